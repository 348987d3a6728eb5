"""Stops at every stage of labelling a file: no row twice, none lost, and a finished output is never an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.schema.errors import DataError, RunError
from fintune.serving import parts
from fintune.serving.answers import Question
from fintune.serving.files import label_file

TEXTS = [f"text {'x' * (number % 4)}" for number in range(20)]


class Killed(BaseException):
    """Nothing that the code under test could catch by mistake."""


@pytest.fixture
def source(tmp_path):
    pq.write_table(pa.table({"n": range(20), "text": TEXTS}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


def check(labeller, output):
    rows = pq.read_table(output).to_pylist()
    assert [row["n"] for row in rows] == list(range(20))
    assert [row["prediction"] for row in rows] == [labeller.of(text)[0] for text in TEXTS]
    assert sorted(path.name for path in output.parent.iterdir()) == ["in.parquet", "out.parquet"]


def dies_at(monkeypatch, target, name, number, after=False):
    """Replaces a function by one that kills at its call of that number, before or after its work."""
    real = getattr(target, name)
    calls = []

    def function(*given, **named):
        calls.append(given)
        if len(calls) == number + 1 and not after:
            raise Killed
        result = real(*given, **named)
        if len(calls) == number + 1:
            raise Killed
        return result

    monkeypatch.setattr(target, name, function)


def killed(labeller, source, output, monkeypatch, *where, **how):
    with monkeypatch.context() as patched:
        dies_at(patched, *where, **how)
        with pytest.raises(Killed):
            labeller.label(source, output)


@pytest.mark.parametrize("kills", [(1,), (0, 2), (3, 0)])
def test_no_row_is_labelled_twice_once_its_part_is_there(labeller, source, output, monkeypatch, small_parts, kills):
    for number in kills:
        killed(labeller, source, output, monkeypatch, parts, "write_part", number)
        assert not output.exists()
    outcome = labeller.label(source, output)
    assert outcome.resumed_from == 6 * sum(kills)
    kept = 6 * sum(kills)
    assert labeller.asked[len(labeller.asked) - (20 - kept) :] == TEXTS[kept:]
    check(labeller, output)


N_REMOVED = 7  # four parts, job, lock and marker


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("target", "name", "number"),
    [
        (parts, "write_json", 1),  # 0 is the job, 1 the marker
        (Path, "replace", 5),  # job, four parts, then: marker, output
        (Path, "replace", 6),
        *((parts, "_unlink", number) for number in range(N_REMOVED - 1)),
    ],
)
def test_a_kill_at_any_stage_of_the_end_leaves_work_that_the_next_start_completes(
    labeller, source, output, monkeypatch, small_parts, target, name, number, after
):
    # Parts are renamed once each by Path.replace, and so are the job and the marker.
    killed(labeller, source, output, monkeypatch, target, name, number, after=after)
    was_there = output.exists()
    asked = len(labeller.asked)
    outcome = labeller.label(source, output)
    assert len(labeller.asked) == asked == 20, "nothing is labelled again"
    n_even = sum(len(text) % 2 == 0 for text in TEXTS)
    assert (outcome.rows, outcome.resumed_from, outcome.labels) == (20, 20, {"x": n_even, "y": 20 - n_even})
    assert was_there or target is not parts or name != "_unlink"
    check(labeller, output)


def test_the_stages_above_are_all_there_are(labeller, source, output, monkeypatch, small_parts):
    removed = []
    unlink = parts._unlink
    monkeypatch.setattr(parts, "_unlink", lambda path: (removed.append(path.name), unlink(path)))
    labeller.label(source, output)
    assert len(removed) == N_REMOVED and removed[-1] == "finished.json"


def test_a_finished_output_is_not_that_of_another_job(labeller, source, output, monkeypatch, small_parts):
    killed(labeller, source, output, monkeypatch, parts, "_unlink", 2)
    with pytest.raises(DataError, match="exists already"):
        labeller.label(source, output, threshold=0.5)
    output.write_bytes(b"mine")
    with pytest.raises(DataError, match="exists already"):
        labeller.label(source, output)
    assert output.read_bytes() == b"mine"


@pytest.mark.parametrize("damage", [b"", b'{"inp', b"[1]", b"\xff\xfe"])
def test_a_damaged_job_names_the_folder_to_remove(labeller, source, output, monkeypatch, small_parts, damage):
    killed(labeller, source, output, monkeypatch, parts, "write_part", 1)
    folder = output.with_name("out.parquet.parts")
    (folder / "job.json").write_bytes(damage)
    with pytest.raises(RunError, match=r"job.json is damaged. Remove .*out.parquet.parts to start afresh"):
        labeller.label(source, output)
    shutil.rmtree(folder)
    labeller.label(source, output)
    check(labeller, output)


@pytest.mark.parametrize("name", ["notes", ".checkpoints"])
def test_a_folder_among_the_parts_is_named(labeller, source, output, monkeypatch, small_parts, name):
    killed(labeller, source, output, monkeypatch, parts, "write_part", 1)
    folder = output.with_name("out.parquet.parts")
    (folder / name).mkdir()
    with pytest.raises(DataError, match=rf"{name} is no part of unfinished work. Remove it"):
        labeller.label(source, output)
    (folder / name).rmdir()
    assert labeller.label(source, output).resumed_from == 6


def sheets(path):
    book = openpyxl.Workbook()
    for title in ("A", "B"):
        sheet = book.create_sheet(title)
        for row in (["text"], *([f"{title} {text}"] for text in TEXTS)):
            sheet.append(row)
    book.remove(book["Sheet"])
    book.save(path)


def two_tables(path):
    """With a comma the texts are in front of it, with a semicolon behind."""
    lines = ["text,a;text", *(f"{text},a;{text}" for text in TEXTS)]
    path.write_text("\n".join(lines) + "\n")


def umlauts(path):
    path.write_bytes("\n".join(["text", *(f"Erl\u00f6s {text}" for text in TEXTS)]).encode() + b"\n")


@pytest.mark.parametrize(
    ("write", "name", "first", "second", "same"),
    [
        (sheets, "in.xlsx", {"sheet": None}, {"sheet": "B"}, {"sheet": "A"}),
        (two_tables, "in.csv", {"delimiter": ","}, {"delimiter": ";"}, {"delimiter": ","}),
        (umlauts, "in.csv", {"encoding": None}, {"encoding": "latin-1"}, {"encoding": "UTF8"}),
    ],
)
def test_the_same_file_read_otherwise_is_another_job(
    labeller, tmp_path, output, monkeypatch, small_parts, write, name, first, second, same
):
    write(tmp_path / name)

    def label(reading):
        question = Question(labeller, None, None)
        return label_file(question, tmp_path / name, "text", output, progress=False, reading=reading)

    with monkeypatch.context() as patched:
        dies_at(patched, parts, "write_part", 2)
        with pytest.raises(Killed):
            label(first)
    (what,) = second
    with pytest.raises(DataError, match=rf"unfinished work with another {what}\. Choose another --output, or remove"):
        label(second)
    assert label(same).resumed_from == 12
