"""Every command: what it passes to the api, what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.cli.conftest import RESULTS

from fintune import labelling
from fintune.cli.predicting import abstention_line
from fintune.cli.tables import comparison_sentence, notes, results_table
from fintune.metrics.abstention import Abstention
from fintune.schema.errors import InternalError, RecipeError
from fintune.schema.loading import recipe_text
from fintune.schema.results import Comparison, Estimate, EvaluationResults, TaskResult

Run = Callable[..., Any]
COMPARISON = Comparison(
    task="tfns", system="tuned", reference="base", n=240, only_system_correct=120, only_reference_correct=11,
    mcnemar_p=1e-20, differences={"macro_f1": Estimate(value=0.45, low=0.38, high=0.51)},
)  # fmt: skip


def test_train_passes_its_arguments_and_prints_scores_tests_and_places(run: Run, api: Any) -> None:
    ran = run("train", "mine.yaml", "training.epochs=2", "--output-dir", "out", "--no-resume", "seed=3")
    assert ran.code == 0, ran.err
    name, args, kwargs = api.calls[0]
    assert (name, args) == ("train", ("mine.yaml",))
    assert list(kwargs.pop("overrides")) == ["training.epochs=2", "seed=3"]
    assert kwargs == {"output_dir": Path("out"), "resume": False, "progress": True}
    for words in ("0.780 [0.73, 0.83]", "240 documents", "95% bootstrap", "runs/x/report.html", "runs/x/adapter"):
        assert words in ran.out
    assert ran.out.index("base") < ran.out.index("tuned") < ran.out.index("tfidf"), "base and tuned come first"
    assert (
        "tuned is better than base (macro-F1 +0.450 [+0.38, +0.51], paired; right alone: 120 against 11 of 240; "
        "exact McNemar p < 0.0001)." in ran.out.replace("\n", " ")
    )
    assert "1 after normalising; 1 training rows removed" in ran.out
    assert "tfns: Shipped sample: class-balanced." in ran.out and "Only trained on." not in ran.out


def test_tasks_without_data_are_named_beside_the_scores() -> None:
    counts = {"not measured: ner": "No data for task ner.", "shortened_documents": 0}
    found = list(notes(RESULTS.model_copy(update={"counts": counts})))
    assert "ner is not measured: No data for task ner." in found
    assert not any("shortened" in line for line in found)


def test_training_rows_that_were_not_compared_are_named_beside_the_scores() -> None:
    counts = {"training rows not compared: ner": {"reason": "No data for task ner."}}
    found = list(notes(RESULTS.model_copy(update={"counts": counts})))
    assert "ner: the adapter's training rows were not compared with the documents: No data for task ner." in found


def test_a_narrow_terminal_cuts_no_number_and_no_head() -> None:
    score, mcc = Estimate(value=0.5, low=0.4, high=0.6), Estimate(value=-0.05, low=-0.2, high=-0.01)
    measured = tuple(
        TaskResult(
            system=system, task="acl18", task_version="1", split="test", n=1, n_groups=1, missing_rate=1.0,
            confidence=0.95, metrics={"accuracy": score, "macro_f1": score, "mcc": mcc}, protocol=protocol,
        )
        for system in ("base", "base_calibrated", "last_direction", "tuned")
        for protocol in ("robust", "flare_strict")
    )  # fmt: skip
    results = EvaluationResults(model="m", adapter=None, results=measured)
    file = io.StringIO()
    Console(file=file, width=80).print(results_table(results, "acl18"))
    shown = file.getvalue()
    assert "acl18: test split, 1 document " in shown
    head = next(line for line in shown.splitlines() if line.startswith("system"))
    assert head.split() == ["system", "accuracy", "macro-F1", "MCC", "missing"]
    assert shown.count("-0.050 [-0.20, -0.01]  100.0%") == 4
    assert "missing missing (FLARE)" in shown


def test_how_published_figures_are_compared_is_said_once() -> None:
    estimate = Estimate(value=0.8, low=0.7, high=0.9)
    measured = [
        TaskResult(
            system="base", task=task, task_version="1", split="test", n=50, n_groups=50, missing_rate=0.0,
            confidence=0.95, metrics={"accuracy": estimate, "weighted_f1": estimate}, protocol=protocol,
        )
        for task in ("fpb", "fiqa_sa")
        for protocol in ("robust", "flare_strict")
    ]  # fmt: skip
    results = EvaluationResults(model="m", adapter=None, results=tuple(measured))
    shown = io.StringIO()
    Console(file=shown, width=80).print(*(results_table(results, task) for task in ("fpb", "fiqa_sa")))
    rows = [line.split() for line in shown.getvalue().splitlines() if line.startswith("FinMA-30B ")]
    assert rows and all("0.800" in row for row in rows), "a row fits into a line of a narrow terminal"
    assert "FinMA" in shown.getvalue() and "nothing is tested in pairs" not in shown.getvalue()
    assert sum("nothing is tested in pairs" in line for line in notes(results)) == 1


def test_grouped_documents_show_the_test_over_groups() -> None:
    grouped = COMPARISON.model_copy(update={"mcnemar_p": None, "sign_flip_p": 0.0312})
    assert "sign-flip test over groups p = 0.0312" in comparison_sentence(grouped)
    assert "test" not in comparison_sentence(grouped.model_copy(update={"sign_flip_p": None}))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.3, "is better than"), (-0.3, -0.1, "is worse than"), (-0.1, 0.2, "is not clearly different from")],
)
def test_the_verdict_follows_the_interval(low: float, high: float, words: str) -> None:
    difference = Estimate(value=(low + high) / 2, low=low, high=high)
    comparison = COMPARISON.model_copy(update={"differences": {"macro_f1": difference}})
    assert f"tuned {words} base" in comparison_sentence(comparison)


def test_quickstart_trains_the_quickstart_and_says_what_to_try_next(run: Run, api: Any) -> None:
    ran = run("quickstart", "data.train_limit=8", "-q")
    assert ran.code == 0 and api.calls[0][1] == ("quickstart",) and api.calls[0][2]["progress"] is False
    assert "What next" in ran.out and "fintune predict runs/x" in ran.out


@pytest.mark.parametrize("arguments", [("--json", "train", "q"), ("train", "q", "--json")])
def test_json_stands_alone_on_standard_output(run: Run, api: Any, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    document = json.loads(ran.out)
    assert document["run_dir"] == "runs/x" and document["facts"] == {"tokens_per_s": None, "steps": 3}
    assert document["results"]["results"][0]["metrics"]["accuracy"]["value"] == 0.17
    assert "report" in ran.err and "a library prints" in ran.err, "text for people goes to standard error"
    assert api.calls[0][2]["progress"] is False


def test_evaluate_passes_only_what_was_given(run: Run, api: Any) -> None:
    ran = run("evaluate", "--model", "smollm2-135m", "--tasks", "fpb, tfns")
    assert ran.code == 0
    baselines = ("majority", "lexicon", "tfidf", "last_direction", "always_rise")
    given = {"tasks": ("fpb", "tfns"), "baselines": baselines, "progress": True}
    assert api.calls[0] == ("evaluate", ("smollm2-135m",), given)
    run("evaluate", "-m", "m", "-t", "fpb", "-a", "runs/x", "--limit", "5", "--baselines", "none", "seed=1")
    kwargs = api.calls[1][2]
    assert kwargs["adapter"] == "runs/x" and kwargs["limit"] == 5 and kwargs["baselines"] == ()
    assert kwargs["overrides"] == ["seed=1"]
    ran = run("evaluate", "-m", "m", "-t", "fpb", "--decoding", "free", "--shots", "3", "--base-variants", "five_shot")
    assert ran.code == 0, ran.err
    wanted = {"decoding": "free", "shots": 3, "base_variants": ("five_shot",)}
    assert wanted.items() <= api.calls[2][2].items()
    assert run("evaluate", "-m", "m", "-t", "fiqa_sa@flare,", "--decoding", "both").code == 0
    assert {"tasks": ("fiqa_sa@flare",), "decoding": "both"}.items() <= api.calls[3][2].items()


def test_evaluate_answers_to_the_names_other_tools_use(run: Run, api: Any) -> None:
    run("evaluate", "--model_path", "runs/x", "--benchmark", "flare", "--output_dir", "out")
    run("evaluate", "--model-path", "runs/x", "--tasks", "all", "--output-dir", "out")
    for (_, model, kwargs), tasks in zip(api.calls, ("flare", "all"), strict=True):
        assert model == ("runs/x",) and kwargs["tasks"] == (tasks,) and kwargs["output_dir"] == Path("out")


@pytest.mark.parametrize(
    ("place", "words"), [((), "With --output-dir"), (("--output-dir", "out"), "Give the same command again to go on")]
)
def test_a_stopped_evaluation_says_how_to_go_on(run: Run, api: Any, place: tuple[str, ...], words: str) -> None:
    api.raises = KeyboardInterrupt()
    ran = run("evaluate", "-m", "m", "-t", "fpb", *place)
    assert ran.code == 130 and words in ran.err


def test_predict_takes_texts_files_and_standard_input(
    run: Run, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    lines = tmp_path / "texts.txt"
    lines.write_text("one\n\n two \n", encoding="utf-8")
    ran = run("predict", "runs/x", "up [bold]", "--file", str(lines), "--task", "tfns")
    assert ran.code == 0 and "positive 0.90 negative 0.10" in ran.out and "up [bold]" in ran.out
    assert api.calls[0] == ("load", ("runs/x",), {"bf16_products": False})
    assert api.calls[1] == ("predict", (["up [bold]", "one", "two"],), {"task": "tfns", "abstain": None})
    monkeypatch.setattr("sys.stdin", io.StringIO("three\n"))
    document = json.loads(run("--json", "predict", "runs/x", "-f", "-").out)
    assert document[0]["label"] == "positive" and api.calls[-1][1] == (["three"],)
    run("predict", "runs/x", "--bf16-products", "up")
    assert api.calls[-2] == ("load", ("runs/x",), {"bf16_products": True})
    run("predict", "runs/x", "--", "--json")
    assert api.calls[-1][1] == (["--json"],), "what follows -- is text"


def test_a_text_may_begin_with_a_minus_sign(run: Run, api: Any, tmp_path: Path) -> None:
    place = str(tmp_path)
    ran = run("predict", place, "up", "-8% after the warning", "--task", "tfns", "-$2", "--", "-3%")
    assert ran.code == 0, ran.err
    assert api.calls[-1] == (
        "predict",
        (["up", "-8% after the warning", "-$2", "-3%"],),
        {"task": "tfns", "abstain": None},
    )
    ran = run("predict", place, "-profit falls")
    assert ran.code == 2 and "Write -- before a text" in ran.err


@pytest.mark.parametrize("place", ["runs/none", "./none", "/no/where", "~/no-such-folder", "none", "there/none"])
def test_predict_on_a_path_that_leads_nowhere_asks_no_hub(
    run: Run, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    ran = run("predict", place, "up")
    assert ran.code == 2 and f"There is no run, adapter or model at {place}." in ran.err
    assert "folder that holds runs/" in ran.err and not api.calls


def test_predict_takes_aliases_hub_ids_and_gguf_files_and_guesses_at_runs(
    run: Run, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "org/name", "model.gguf"):
        assert run("predict", name, "up").code == 0
        assert api.calls[-2] == ("load", (name,), {"bf16_products": False})
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert "Did you mean runs/mine?" in run("predict", "mine", "up").err
    assert "Did you mean smollm2-135m?" in run("predict", "smollm2-135", "up").err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_fintune_s_messages_reach_standard_error_and_no_others(run: Run, api: Any, flags: tuple[str, ...]) -> None:
    api.logs = [
        ("fintune.tasks.loading", logging.WARNING, "Task tfns: using the shipped sample."),
        ("fintune.session", logging.INFO, "tfns: 300 documents to score."),
        ("fintune.sources.hub", logging.INFO, "a detail"),
        ("some_library", logging.INFO, "chatter"),
    ]
    ran = run("train", "quickstart", *flags)
    assert "warning: Task tfns: using the shipped sample.\ntfns: 300 documents to score.\n" in ran.err
    assert "a detail" not in ran.err + ran.out and "chatter" not in ran.err + ran.out
    assert "300 documents" not in ran.out
    assert logging.getLogger("fintune").handlers == [] and logging.getLogger("fintune").propagate


def test_predict_without_text_or_with_a_bad_file_says_so(run: Run, tmp_path: Path) -> None:
    ran = run("predict", "runs/x")
    assert ran.code == 2 and "Give at least one text" in ran.err
    ran = run("predict", "runs/x", "-f", str(tmp_path / "none.txt"))
    assert ran.code == 2 and "cannot be read" in ran.err
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8" in run("predict", "runs/x", "-f", str(tmp_path / "latin.txt")).err


def test_preview_brackets_what_is_supervised(run: Run) -> None:
    ran = run("preview", "quickstart", "-n", "1")
    assert ran.code == 0
    assert "tfns-1: 5 tokens, 2 supervised, document shortened to fit" in ran.out
    flat = ran.out.replace("↵\n", "").replace("\\n\n", "")
    assert "Sentiment?⟦positive⟧!" in flat or "Sentiment?[[positive]]!" in flat
    assert "pos|3" in run("preview", "quickstart", "--ids").out


def test_recipes_lists_and_prints_yaml_that_loads(run: Run) -> None:
    assert "finllama-sentiment" in run("recipes").out
    assert run("recipes", "quickstart").out == recipe_text("quickstart")
    assert yaml.safe_load(run("recipes", "quickstart").out)["name"] == "quickstart"
    assert json.loads(run("--json", "recipes", "quickstart").out)["training"]["learning_rate"] == 1.5e-3
    assert json.loads(run("--json", "recipes").out)[0]["base"]
    assert run("recipes", "quikstart").code == 2


def test_recipes_prints_shipped_ones_only_and_says_so_for_a_file(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text("name: mine\n", encoding="utf-8")
    ran = run("recipes", str(mine))
    assert ran.code == 2 and "is no shipped recipe" in ran.err and f"fintune preview {mine}" in ran.err
    assert "nor a file" not in ran.err


def test_tasks_lists_and_details(run: Run) -> None:
    assert "MIT" in run("tasks").out
    assert "Someone (2022)" in run("tasks", "tfns").out
    ran = run("tasks", "tfn")
    assert ran.code == 2 and "Did you mean tfns?" in ran.err
    assert json.loads(run("--json", "tasks").out)[0]["has_sample"] is True


def test_doctor_fails_only_when_a_check_failed(run: Run, api: Any) -> None:
    ran = run("doctor")
    assert ran.code == 0 and "note" in ran.out and "Training runs on the CPU." in ran.out
    api.checks.append(type(api.checks[0])("torch", False, "missing", "pip install torch"))
    ran = run("doctor")
    assert ran.code == 1 and "failed" in ran.out and "pip install torch" in ran.out


def test_report_prints_the_path(run: Run) -> None:
    assert "runs/x/report.html" in run("report", "runs/x").out
    assert json.loads(run("--json", "report", "runs/x").out) == {"report": "runs/x/report.html"}


def test_compare_names_runs_and_adds_those_without_a_name_to_the_one_before(run: Run, api: Any) -> None:
    shown = run("compare", "base=runs/a:base", "tuned=runs/b=1", "runs/c", "base=runs/d", "--output-dir", "out").out
    runs = {"base": ["runs/a:base", "runs/d"], "tuned": ["runs/b=1", "runs/c"]}
    assert api.calls == [("compare", (runs,), {"output_dir": Path("out")})]
    assert "tuned is better than base" in shown and "out/report.html" in shown
    failed = run("compare", "runs/a", "tuned=runs/b")
    assert failed.code == 2 and "'runs/a' has no name" in failed.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecipeError("f.yaml: unknown key x.", "Did you mean y?"), 2, ["f.yaml: unknown key x.", "Did you mean y?"]),
        (InternalError("A promise broke."), 1, ["A promise broke."]),
        (ZeroDivisionError("division by zero"), 1, ["fintune failed unexpectedly", "division by zero", "--debug"]),
        (KeyboardInterrupt(), 130, ["Stopped.", "Run the same command again"]),
    ],
)  # fmt: skip
def test_errors_are_a_sentence_a_remedy_and_a_code(
    run: Run, api: Any, error: BaseException, code: int, words: list[str]
) -> None:
    api.raises = error
    ran = run("train", "quickstart")
    assert ran.code == code and "Traceback" not in ran.err
    for word in words:
        assert word in ran.err
    ran = run("train", "quickstart", "--debug", "--json")
    assert ran.code == code and "Traceback" in ran.err
    assert set(json.loads(ran.out)["error"]) == {"type", "message", "remedy"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "train"),
        (["train"], "fintune train --help"),
        (["preview", "q", "-n", "0"], "fintune preview --help"),
        (["train", "q", "--bogus"], "--bogus"),
    ],
)
def test_usage_errors_point_at_the_help(run: Run, arguments: list[str], words: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2 and words in ran.err


def test_help_and_version(run: Run) -> None:
    for arguments in (["--help"], ["train", "-h"], ["--version"]):
        ran = run(*arguments)
        assert ran.code == 0 and "fintune" in ran.out


def test_help_starts_fast_and_loads_no_machine_learning_library() -> None:
    program = (
        "import sys; from fintune.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'sklearn', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    elapsed_s = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        elapsed_s.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    assert min(elapsed_s) < 3, "about 0.4 s on an idle machine; the bound leaves room for busy ones"


def test_a_terminal_without_unicode_still_works(tmp_path: Path) -> None:
    program = "import sys; from fintune.cli import main; sys.exit(main(['tränsform']))"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert done.returncode == 2 and b"error" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("is_bound", [True, False])
def test_abstention_promises_certainty_only_where_it_holds(is_bound: bool) -> None:
    line = abstention_line(Abstention(0.8, 0.5, 0.95, 0.91, 300, is_bound))
    assert ("at least 0.910 with 95 % certainty" in line) == is_bound
    assert ("chose the checkpoint" in line) != is_bound


def test_several_processes_are_for_files_and_counted_once(run: Run, tmp_path: Path) -> None:
    assert "are for --data FILE" in run("predict", str(tmp_path), "up", "--processes", "2").err
    (tmp_path / "in.csv").write_text("t\nup\n")
    words = ["predict", str(tmp_path), "--data", str(tmp_path / "in.csv"), "--text", "t", "-o", str(tmp_path / "o.csv")]
    ran = run(*words, "--processes", "2", "--gpus", "2")
    assert ran.code == 2 and "both say how many" in ran.err


STOPPED_PROGRAM = """
import os, signal, sys, types
import fintune
api = types.ModuleType("fintune.api")
def load(place, **held):
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit("not stopped")
api.load = load
sys.modules["fintune.api"] = fintune.api = api
from fintune.cli import main
sys.exit(main(["predict", "smollm2-135m", "up"]))
"""


def test_sigterm_stops_with_a_word_and_the_code_of_an_interrupt() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED_PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Stopped." in done.stderr and "Traceback" not in done.stderr


def test_sigterm_says_how_to_go_on_and_its_handler_is_put_back(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("not stopped")

    monkeypatch.setattr(labelling, "predict_file", stopped)
    before = signal.getsignal(signal.SIGTERM)
    ran = run("predict", str(tmp_path), "--data", "in.csv", "--text", "t", "--output", "out.csv")
    assert ran.code == 130
    assert "Stopped." in ran.err and "Give the same command again to go on" in ran.err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_of_the_calling_program_stays(run: Run, api: Any) -> None:
    seen: list[Any] = []

    def handler(number: int, frame: Any) -> None:
        """The program's own."""

    before = signal.signal(signal.SIGTERM, handler)
    try:
        api.load = lambda place, **held: seen.append(signal.getsignal(signal.SIGTERM))
        run("predict", "smollm2-135m", "up")
        assert seen == [handler] and signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_commands_run_in_threads_too(run: Run) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run("recipes").code))
    thread.start()
    thread.join()
    assert codes == [0]
