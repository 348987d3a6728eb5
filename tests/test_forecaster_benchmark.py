"""The comparison of forecaster variants: all on the same weeks, one table, a verdict; what is there is kept."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.public_data import FOLDER, public_data
from tests.runs import QUICK
from tests.tasks.weekly.corpora import stocknet_part

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "forecaster_variants.py"
FEW = (
    *(change for change in QUICK if not change.startswith("evaluation.")),
    "evaluation.bootstrap_samples=100",
    "training.warmup_ratio=null",
    "training.max_steps=1",
    "training.samples_per_step=2",
    "data.train_limit=4",
    "data.validation_limit=2",
)

pytestmark = pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("forecaster_variants", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path, monkeypatch):
    public_data("stock_acl18/prices_raw.csv.gz")
    (tmp_path / "data").mkdir()
    stocknet_part(FOLDER, tmp_path / "data" / "stock_acl18", {"AAPL", "XOM"})
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "stock_acl18" / "prices_raw.csv"


@pytest.mark.slow
def test_three_variants_one_table_and_a_verdict(benchmark, base, data, tmp_path, capsys):
    place = tmp_path / "runs"
    given = ["--prices", str(data), "--output-dir", str(place), "--limit", "4", "--time-limit", "200"]
    changes = [*FEW, f"model.base={base}"]
    assert benchmark.main([*given, "--set", *changes]) == 0, [log.read_text() for log in place.glob("*.log")]
    said = capsys.readouterr().out
    assert "Direction accuracy over" in said and "none beats every baseline" in said
    page = (place / "variants.md").read_text()
    for words in (
        "## weekly_acl18\n",
        "## weekly_acl18_forecast\n",
        "Majority sign",
        "| label",
        "| extractive",
        "Base",
    ):
        assert words in page
    assert "of these not forecast by every system: 0" in page, "all on the same stock-weeks"
    before = (place / "label" / "results.json").stat().st_mtime_ns
    (place / "extractive" / "results.json").unlink()
    assert benchmark.main([*given[:-1], "0.1", "--set", *changes]) == 1
    assert "Without results: extractive" in capsys.readouterr().out
    assert (place / "label" / "results.json").stat().st_mtime_ns == before
