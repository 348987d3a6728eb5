"""Every mistake through the command line: one sentence, a remedy, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

import fintune
from fintune.cli import main
from fintune.models.tiny import write_tiny_model
from tests.models.gguf_files import write_tiny_gguf
from tests.runs import QUICK, run


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the cases work on: a finished run of a tiny base, and a folder for damaged things.

    Attributes:
        base: the base model the run was trained on.
        run: the run directory, complete.
        new: an empty folder.
        place: a run directory that does not exist.
    """

    base: Path
    run: Path
    new: Path
    place: Path

    def train(self, *changes: str, base: Path | str | None = None, flags: tuple[str, ...] = ()) -> list[str]:
        """A training command into a directory of its own."""
        place = f"--output-dir={self.place}"
        return ["train", "quickstart", f"model.base={base or self.base}", *QUICK, *changes, place, "--quiet", *flags]

    def table(self, rows: str, *options: str, text: str = "text", label: str = "label") -> list[str]:
        """A training command on a table of one's own."""
        file = self.file("mine.csv", rows)
        own = ["train", "--data", str(file), "--text", text, "--label", label, *options]
        quick = [change for change in QUICK if "warmup" not in change]
        return [*own, f"model.base={self.base}", *quick, f"--output-dir={self.place}", "--quiet"]

    def split_files(self, **contents: str) -> Path:
        """A folder with one file a split, good rows but for those given."""
        folder = self.new / "split"
        folder.mkdir()
        good = ROWS.replace(",up", ",positive").replace(",down", ",negative")
        for split in ("train", "validation", "test"):
            (folder / f"{split}.csv").write_text(contents.get(split, good))
        return folder

    def file(self, name: str, content: str | bytes) -> Path:
        """A file in the empty folder."""
        path = self.new / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def damaged_base(self, damage: Callable[[bytes], bytes]) -> Path:
        """A copy of the base whose weight file is damaged."""
        return _damaged(self.base, self.new / "base", "model.safetensors", damage)

    def damaged_adapter(self, damage: Callable[[bytes], bytes]) -> Path:
        """A copy of the run whose adapter is damaged."""
        _damaged(self.run, self.new / "run", "adapter/adapter_model.safetensors", damage)
        return self.new / "run"

    def gguf(self, damage: Callable[[bytes], bytes]) -> Path:
        """A GGUF file of the base, damaged."""
        file = write_tiny_gguf(self.base, self.new / "model.gguf")
        file.write_bytes(damage(file.read_bytes()))
        return file


def _damaged(original: Path, copied: Path, name: str, damage: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(original, copied)
    file = copied / name
    file.write_bytes(damage(file.read_bytes()))
    return copied


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbage_header(data: bytes) -> bytes:
    return data[:8] + b"\xff" * 100 + data[108:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINTUNE_CACHE", str(folder / "cache"))
        base = write_tiny_model(folder / "base")
        yield base, run(base, folder / "run", "evaluation.limit=6", "evaluation.base=false").run_dir


@pytest.fixture
def bench(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    base, finished = made
    (tmp_path / "new").mkdir()
    return Bench(base, shutil.copytree(finished, tmp_path / "run"), tmp_path / "new", tmp_path / "place")


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


ROWS = "text,label\n" + "".join(f"Text number {n} of the table,{['up', 'down'][n % 2]}\n" for n in range(40))


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A command that must fail, and what it must say; ``{new}`` and the like stand for the folders of the bench."""

    name: str
    command: Callable[[Bench], list[str]]
    message: str
    remedy: str


MISTAKES = [
    Mistake(
        "missing data file",
        lambda b: b.train(f"data.tasks.0.source={b.new}/none.csv"),
        "The source {new}/none.csv of task tfns is no file, folder or hub id.",
        "Set source to sample, the hub id zeroshot/twitter-financial-news-sentiment, a file (csv, jsonl, parquet), or",
    ),
    Mistake(
        "missing table",
        lambda b: ["train", "--data", f"{b.new}/none.csv", "--text", "a", "--label", "b", f"--output-dir={b.place}"],
        "Data file {new}/none.csv does not exist.",
        "Check the path",
    ),
    Mistake(
        "wrong column",
        lambda b: b.table(ROWS, text="txt"),
        "{new}/mine.csv has no column txt.",
        "Did you mean text? Its columns are text, label.",
    ),
    Mistake(
        "wrong column of labels",
        lambda b: b.table(ROWS, label="lable"),
        "{new}/mine.csv has no column lable.",
        "Did you mean label? Its columns are text, label.",
    ),
    Mistake(
        "unknown label",
        lambda b: b.table(ROWS + "One more,sideways\n", "--labels", "up=positive,down=negative"),
        "Row 41 of {new}/mine.csv has the unknown label 'sideways'.",
        "Known are up, down. Correct it, or map it with --labels (table.labels in a recipe); "
        "an empty word drops such rows.",
    ),
    Mistake(
        "unknown labels of a known task",
        lambda b: b.train(f"data.tasks.0.source={b.file('odd.csv', ROWS)}"),
        "None of the 40 rows of tfns (all) from {new}/odd.csv has a text and a known label.",
        "Labels must be one of negative, neutral, positive,",
    ),
    *(
        Mistake(
            name,
            lambda b, rows=rows: b.table(rows),  # type: ignore[misc]
            "Data file {new}/mine.csv has no rows.",
            "Check that the right file is named and that it is complete.",
        )
        for name, rows in (("empty table", "text,label\n"), ("empty file", ""))
    ),
    Mistake(
        "empty split",
        lambda b: b.train(f"data.tasks.0.source={b.split_files(test='text,label' + chr(10))}"),
        "{new}/split/test.csv has no rows.",
        "Check that the right file is named and that it is complete.",
    ),
    Mistake(
        "truncated GGUF",
        lambda b: b.train(base=b.gguf(half)),
        "{new}/model.gguf cannot be read as a GGUF language model: its tensors need",
        "Download it again; the file is incomplete or damaged.",
    ),
    Mistake(
        "GGUF cut inside its header",
        lambda b: b.train(base=b.gguf(lambda data: data[:300])),
        "{new}/model.gguf cannot be read as a GGUF language model: it ends inside",
        "Download it again; the file is incomplete or damaged.",
    ),
    Mistake(
        "GGUF with the wrong magic",
        lambda b: b.train(base=b.gguf(lambda data: b"GGML" + data[4:])),
        "{new}/model.gguf is not a GGUF file.",
        "Download it again, or point model.base elsewhere.",
    ),
    Mistake(
        "GGUF with garbage for tensors",
        lambda b: b.train(base=b.gguf(lambda data: data.replace(b"blk.0.attn_q.weight", b"\xff" * 19))),
        "{new}/model.gguf cannot be read as a GGUF language model: a tensor name is not UTF-8.",
        "Download it again; the file is incomplete or damaged.",
    ),
    Mistake(
        "GGUF that promises endless metadata",
        lambda b: b.train(base=b.gguf(lambda data: data[:16] + b"\xff" * 8 + data[24:])),
        "{new}/model.gguf cannot be read as a GGUF language model: it ends inside the 18446744073709551615 metadata",
        "Download it again; the file is incomplete or damaged.",
    ),
    Mistake(
        "truncated base",
        lambda b: b.train(base=b.damaged_base(half)),
        "The weight file {new}/base/model.safetensors cannot be read (SafetensorError: ",
        "Download it again; the file may be incomplete.",
    ),
    Mistake(
        "base with a garbage header",
        lambda b: b.train(base=b.damaged_base(garbage_header)),
        "The weight file {new}/base/model.safetensors cannot be read (SafetensorError: ",
        "Download it again; the file may be incomplete.",
    ),
    Mistake(
        "truncated adapter",
        lambda b: ["predict", str(b.damaged_adapter(half)), "Profit rose"],
        "{new}/run/adapter/adapter_model.safetensors cannot be read (SafetensorError: ",
        "The adapter is damaged; copy or train it again.",
    ),
    Mistake(
        "adapter with a garbage header",
        lambda b: ["predict", str(b.damaged_adapter(garbage_header)), "Profit rose"],
        "{new}/run/adapter/adapter_model.safetensors cannot be read (SafetensorError: ",
        "The adapter is damaged; copy or train it again.",
    ),
    Mistake(
        "mistyped key",
        lambda b: b.train("training.learning_rat=1e-3"),
        "override training.learning_rat=1e-3: unknown key training.learning_rat.",
        "Did you mean training.learning_rate?",
    ),
    Mistake(
        "mistyped value",
        lambda b: b.train("model.quantization=nf5"),
        "override model.quantization=nf5: model.quantization must be one of none, nf4, int8, fp8, but is nf5.",
        "Did you mean nf4?",
    ),
    Mistake(
        "mistyped key in a file",
        lambda b: ["train", str(b.file("mine.yaml", "name: x\nmodle:\n  base: b\n")), f"--output-dir={b.place}"],
        "{new}/mine.yaml, line 2: unknown key modle.",
        "Did you mean model?",
    ),
    Mistake(
        "no such recipe",
        lambda b: ["train", "quikstart", f"--output-dir={b.place}"],
        "There is no recipe named quikstart, nor a file of that name.",
        "Did you mean quickstart?",
    ),
    Mistake(
        "base from the hub while offline",
        lambda b: b.train(base="nobody/no-such-model", flags=("--offline",)),
        "nobody/no-such-model is neither a local folder nor in the hub cache, and offline is set",
        "Fetch it once without that switch, or set model.base to a local folder or to smollm2-135m.",
    ),
    Mistake(
        "data from the hub while offline",
        lambda b: b.train("data.tasks.0.source=nobody/no-such-data", flags=("--offline",)),
        "Data set nobody/no-such-data cannot be loaded: ",
        "or set data.tasks[].source to a file, a folder, or sample where one is shipped.",
    ),
    Mistake(
        "base without a chat template",
        lambda b: b.train(base=write_tiny_model(b.new / "plain", chat_template=None)),
        "The base model {new}/plain has no chat template.",
        "Set model.chat_template: plain or chatml.",
    ),
    Mistake(
        "adapter of another base",
        lambda b: [
            *("evaluate", "--model", str(write_tiny_model(b.new / "other", seed=5)), "--adapter", str(b.run)),
            *("--tasks", "tfns:sample", "--limit", "5", "--quiet"),
        ],
        "The adapter {run}/adapter was trained on {base} with weights ",
        "Load the base it was trained on ({base}, revision unknown).",
    ),
    Mistake(
        "report of no run",
        lambda b: ["report", str(b.new)],
        "{new} has no recipe.yaml, so it is no run directory.",
        "Check the path.",
    ),
    Mistake(
        "prediction with no run",
        lambda b: ["predict", str(b.new), "Profit rose"],
        "{new} has no config.json, so it is not a model folder.",
        "Point model.base at a folder written by save_pretrained, a .gguf file or a hub id, or use smollm2-135m.",
    ),
    Mistake(
        "run of another recipe",
        lambda b: [*b.train("evaluation.limit=6", "adapter.rank=8"), f"--output-dir={b.run}"],
        "{run} holds a run with another adapter.rank.",
        "Choose another --output-dir, or --no-resume to start beside it.",
    ),
]


def said(err: str) -> tuple[str, str]:
    """Message and remedy on standard error; whatever was logged before stands above them."""
    _, found, tail = err.partition("error: ")
    assert found, err
    lines = tail.rstrip("\n").split("\n")
    assert len(lines) <= 2, f"one sentence and a remedy, not {lines}"
    return lines[0], lines[1] if len(lines) == 2 else ""


def filled(text: str, bench: Bench) -> str:
    for name in ("new", "run", "base"):
        text = text.replace(f"{{{name}}}", str(getattr(bench, name)))
    return text


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_a_sentence_and_a_remedy_and_costs_nothing(
    mistake: Mistake, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    command = mistake.command(bench)
    before = contents(bench.run)
    code = main(command)
    err = capsys.readouterr().err
    message, remedy = said(err)
    assert code == 2, err
    assert "Traceback" not in err and "unexpectedly" not in err
    assert filled(mistake.message, bench) in message
    assert message.endswith(".") and remedy.endswith((".", "?")), err
    assert filled(mistake.remedy, bench) in remedy
    assert contents(bench.run) == before
    assert not bench.place.exists(), "a run that could not start leaves no directory that looks like one"


# -- what was saved stays ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """A run that the disk stopped after its first checkpoint: how to start it again, and what it has saved.

    Its base is a copy inside ``bench.new``, so that a test may damage it.
    """
    base = shutil.copytree(bench.base, bench.new / "own-base")
    command = bench.train("evaluation.limit=6", base=base)
    full_disk(monkeypatch, after_writes=1)
    assert main(command) == 2
    monkeypatch.undo()
    monkeypatch.setenv("FINTUNE_CACHE", str(bench.new / "cache"))
    saved = contents(bench.place)
    assert any(name.startswith("checkpoints/checkpoint-2/") for name in saved)
    return command, saved


def full_disk(monkeypatch: pytest.MonkeyPatch, after_writes: int) -> None:
    """The disk is full from some write of adapter weights on, as safetensors says it."""
    import peft.peft_model

    write, count = peft.peft_model.safe_save_file, [0]

    def fails(*arguments: object, **options: object) -> None:
        count[0] += 1
        if count[0] > after_writes:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        write(*arguments, **options)

    monkeypatch.setattr(peft.peft_model, "safe_save_file", fails)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = bench.train("evaluation.limit=6", "training.max_steps=3")
    with monkeypatch.context() as patch:
        full_disk(patch, after_writes=1)
        assert main(command) == 2
    message, remedy = said(capsys.readouterr().err)
    assert message.startswith(f"The checkpoint of step 3 could not be written to {bench.place}/checkpoints (")
    assert "No space left on device" in message
    assert remedy == "Free some space and start the same command again; it goes on from the last complete checkpoint."
    assert [path.name for path in (bench.place / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert main(command) == 0
    assert fintune.load(bench.place).predict(["Profit rose"])


def damage_weights(bench: Bench) -> None:
    file = bench.new / "own-base" / "model.safetensors"
    file.write_bytes(half(file.read_bytes()))


def change_weights(bench: Bench) -> None:
    write_tiny_model(bench.new / "own-base", seed=8)


def damage_tokenizer(bench: Bench) -> None:
    (bench.new / "own-base" / "tokenizer.json").write_text("{")


def remove_base(bench: Bench) -> None:
    shutil.rmtree(bench.new / "own-base")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_weights, "own-base/model.safetensors cannot be read"),
        (damage_tokenizer, "The tokenizer in"),
        (remove_base, "own-base does not exist"),
        (change_weights, "model.content_hash"),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_a_run_that_cannot_go_on_keeps_all_it_has_saved(
    bench: Bench,
    stopped: tuple[list[str], dict[str, str]],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Bench], None],
    words: str,
) -> None:
    command, saved = stopped
    damage(bench)
    capsys.readouterr()
    assert main(command) == 2
    message, remedy = said(capsys.readouterr().err)
    assert words in message and remedy
    assert contents(bench.place) == saved
    shutil.rmtree(bench.new / "own-base", ignore_errors=True)
    shutil.copytree(bench.base, bench.new / "own-base")
    assert main(command) == 0, "the run goes on once the base is back"


# -- tracebacks and exit codes ----------------------------------------------------------------------------------------


def test_a_traceback_is_shown_with_debug_only(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(bench.new)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["--debug", "report", str(bench.new)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "RunError" in err
    assert said(err[err.rindex("error: ") :])[0] == f"{bench.new} has no recipe.yaml, so it is no run directory."


def test_a_fault_of_ours_exits_with_one_and_says_how_to_see_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero\nand a second line")

    monkeypatch.setattr("fintune.session.load_base", broken)
    before = contents(bench.run)
    assert main(bench.train()) == 1
    message, remedy = said(capsys.readouterr().err)
    assert message == "fintune failed unexpectedly (ZeroDivisionError: division by zero)."
    assert remedy == "Add --debug to see where."
    assert main([*bench.train(), "--debug"]) == 1
    assert "in broken" in capsys.readouterr().err
    assert contents(bench.run) == before


def test_with_json_an_error_is_a_document_and_still_a_sentence(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(bench.new), "--json"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "RunError" and said(captured.err) == (error["message"], error["remedy"])
