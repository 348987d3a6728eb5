"""The bench as a whole: processes of their own, what is done is kept, models side by side."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.bench.waits import wait_long
from typer.testing import CliRunner

from fintune.bench import ablation, sizes
from fintune.bench.measuring import TURN, own_turn
from fintune.bench.models import Asked, model_rows
from fintune.bench.processes import Finished, call_apart
from fintune.bench.reading import read_model
from fintune.cli.app import app
from fintune.cli.output import Output
from fintune.models.gpt import baseline, optimised, write_untrained
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.errors import RecipeError, RunError

TEXTS = ("Operating profit rose to EUR 13.1 mn.", "Shares of the bank fell 3.4% after the board cut its dividend." * 3)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(TEXTS))
    return file


def test_bits_a_byte_are_those_of_the_models_own_logits(base, text):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = read_model(str(base), Asked(str(text), 2048, None, 4, "cpu", "wall"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for own, n_bytes, document in zip(found["nats"], found["bytes"], TEXTS, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(document, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            log_p = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        assert own == pytest.approx(-float(log_p.sum()), rel=1e-4)
        assert n_bytes == len(document)
    assert found["latency_ms"] > 0 and found["parameters"] == model.num_parameters()


def test_an_adapter_is_read_with_its_base(base, text, tmp_path):
    from fintune.models.adapter_files import save_adapter
    from fintune.models.adapters import attach_adapter
    from fintune.models.load import load_base
    from fintune.schema.recipe import AdapterSection, ModelSection

    loaded = load_base(ModelSection(base=str(base)), device=torch.device("cpu"), for_training=True)
    model = attach_adapter(loaded, AdapterSection(rank=2, alpha=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.05)
    folder = save_adapter(model, loaded.tokenizer, tmp_path / "adapter", loaded.files)
    asked = Asked(str(text), 64, None, 2, "cpu", "wall")
    alone, tuned = (read_model(str(place), asked) for place in (base, folder))
    assert tuned["parameters"] > alone["parameters"]
    assert not np.allclose(tuned["nats"], alone["nats"], rtol=1e-3)


def test_differences_are_paired_by_document():
    generator = np.random.default_rng(0)
    nats, rest = generator.uniform(50, 500, 40), {"tokens": 1, "context": 8, "tokens_per_s": 1.0, "bytes_per_s": 1.0}
    rest |= {"latency_ms": 1.0, "peak_bytes": 1, "parameters": 1, "bytes": [100] * 40}
    first, second = model_rows(["a", "b"], [{"nats": nats, **rest}, {"nats": nats + 10, **rest}], 0.95)
    assert first.bits_per_byte.value == pytest.approx(nats.sum() / 4000 / math.log(2))
    assert first.bits_per_byte.low < first.bits_per_byte.value < first.bits_per_byte.high
    assert second.difference.low == pytest.approx(0.1 / math.log(2)) == second.difference.high


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="no CUDA device"):
        ablation.bench_optimisations(tmp_path, device="cuda")
    with pytest.raises(RecipeError, match="no optimisation sdpb"):
        ablation.bench_optimisations(tmp_path, device="cpu", only=["sdpb"])


def test_a_process_knows_its_card_before_any_library_asks():
    script = (
        "from tests.bench.asks_for_devices import Given, devices_seen\n"
        "from fintune.bench.processes import call_apart\n"
        "for card in ('5', '4'):\n"
        "    variables = {'CUDA_VISIBLE_DEVICES': card}\n"
        "    print(call_apart(devices_seen, (Given(),), limit_s=120, device='cuda', variables=variables))\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,5", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    for line, card in zip(ended.stdout.splitlines(), "54", strict=True):
        assert line.startswith(f"Finished(value=('{card}', []), problem=''"), line


def test_devices_are_numbered_among_those_that_are_visible(monkeypatch):
    assert ablation.visible_cards(["1", "0"], "4, 5") == ("5", "4")
    assert ablation.visible_cards(["1", "GPU-1b"], "GPU-3f,GPU-1b") == ("GPU-1b", "GPU-1b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ablation.visible_cards(["1"], None) == ("1",)
    for inherited in (None, "4,5"):
        with pytest.raises(RecipeError, match="no CUDA device 2 among the 2"):
            ablation.visible_cards(["2"], inherited)


def test_a_card_named_twice_is_measured_on_in_turns(tmp_path, monkeypatch):
    bench = of_two_variants(tmp_path / "bench", cards=("4", "4", "GPU-1b"))
    shared, alone = bench._variables("4"), bench._variables("GPU-1b")
    assert alone == {"CUDA_VISIBLE_DEVICES": "GPU-1b"} and shared.keys() == {"CUDA_VISIBLE_DEVICES", TURN}
    monkeypatch.setenv(TURN, shared[TURN])
    began = threading.Event()

    def measure():
        with own_turn():
            began.set()

    other = threading.Thread(target=measure)
    with own_turn():
        other.start()
        assert not began.wait(0.3)
    assert began.wait(10)
    other.join()


def of_two_variants(place, **options):
    (place / "prepared").mkdir(parents=True)
    return ablation.Bench(
        ablation.BenchFolder(place), sizes.SIZES["tiny"], "cpu", families=("gpt",), only=("rmsnorm",), **options
    )


def test_a_bench_that_is_stopped_marks_nothing_as_failed(tmp_path, monkeypatch):
    bench = of_two_variants(tmp_path / "bench", rounds=1)
    monkeypatch.setattr(bench, "_prepare", lambda text: None)
    monkeypatch.setattr("fintune.bench.worker.run_job", wait_long)
    started = bench.folder.prepared / "started"

    def stop():  # as Ctrl-C does: all processes of the terminal, in whichever order
        while not (started.is_file() and started.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(int(started.read_text()), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what starts in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Thread(target=stop, daemon=True).start()
            bench.run(None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not bench.folder.runs.exists() and not multiprocessing.active_children()


def test_what_failed_is_tried_again_by_the_same_command(tmp_path, monkeypatch):
    bench, called = of_two_variants(tmp_path / "bench", rounds=1), []

    def answered(function, arguments, **options):
        called.append(arguments[0].key)
        return Finished(None, "memory ran out", 1.0) if len(called) == 3 else Finished({}, "", 1.0)

    monkeypatch.setattr(ablation, "call_apart", answered)
    monkeypatch.setattr(bench, "_prepare", lambda text: None)
    bench.run(None)
    assert len(called) == len(set(called)) == 8
    assert [record["key"] for record in bench.folder.records() if record["problem"]] == called[2:3]
    bench.run(None)
    assert called[8:] == called[2:3]
    assert [record["key"] for record in bench.folder.records() if not record["problem"]] == called[:8]


@pytest.mark.slow
def test_a_bench_keeps_what_is_done_and_fails_in_words(tmp_path, text, monkeypatch):
    assert "math domain error" in call_apart(math.sqrt, (-1,), limit_s=120).problem
    assert "code 3" in call_apart(os._exit, (3,), limit_s=60).problem
    assert "longer than 0.2 seconds" in call_apart(time.sleep, (60,), limit_s=0.2).problem
    tiny = sizes.SIZES["tiny"]
    gpt = replace(tiny.gpt, width=16, context=32, rows=2, steps=4, warmup=1, validation_rows=2, vocabulary=300)
    monkeypatch.setitem(sizes.SIZES, "tiny", replace(tiny, gpt=gpt, chunks=2, prompt_tokens=8, new_tokens=2))
    place = tmp_path / "bench"
    options = {"device": "cpu", "size": "tiny", "rounds": 1, "text": text, "families": ["gpt"], "only": ["rmsnorm"]}
    found = ablation.bench_optimisations(place, **options)
    lines = (place / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == [""] * 8
    assert {one["name"] for one in found["variants"]} == {"base", "full", "base+rmsnorm", "full-rmsnorm"}
    assert all(one["effect"] for one in found["variants"] if one["key"])
    assert "+ RMSNorm" in (place / "table.md").read_text() and (place / "figure.png").stat().st_size > 10_000
    (place / "runs.jsonl").write_text("\n".join(lines[:7]) + "\n")
    ablation.bench_optimisations(place, **options)
    again = (place / "runs.jsonl").read_text().splitlines()
    assert again[:7] == lines[:7] and json.loads(again[7])["key"] == json.loads(lines[7])["key"]
    with pytest.raises(RunError, match="another size"):
        ablation.bench_optimisations(place, **{**options, "clock": "processor"})

    for kind, make in {"plain": baseline, "new": optimised}.items():
        write_untrained(tmp_path / kind, make("tiny", 512), tiny_tokenizer(512))
    places = [str(tmp_path / "plain"), str(tmp_path / "new")]
    command = ["bench", "models", *places, "--text", str(text), "-o", str(tmp_path / "side"), "--new-tokens", "4"]
    outcome = CliRunner().invoke(app, command, obj=Output())
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / "side" / "models.json").read_text())["models"]
    assert rows[1]["bits_per_byte"]["value"] == pytest.approx(math.log2(512) * rows[1]["tokens"] / 223, rel=1e-4)
    assert "| plain |" in (tmp_path / "side" / "models.md").read_text()
