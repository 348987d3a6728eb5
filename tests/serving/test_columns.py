"""What columns the output has, and that no value of the input changes or gets lost on its way into it."""

from __future__ import annotations

import csv
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.serving.answers import Question

ANSWERS = ["prediction", "confidence", "p_x", "p_y", "note"]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_any(path):
    readers = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": lambda place: pq.read_table(place).to_pylist()}
    return readers[path.suffix](path)


def test_values_without_a_type_of_their_own_are_text_in_parquet(labeller, tmp_path):
    rows = [{"text": "up", "price": 1.5, "kept": True, "tags": ["a"]}, {"text": "odd", "price": 2, "kept": None}]
    labeller.label(write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    found = table.to_pylist()
    assert [row["price"] for row in found] == ["1.5", "2"]
    assert [row["kept"] for row in found] == ["true", None]
    assert [row["tags"] for row in found] == ['["a"]', None]
    assert table.schema.field("confidence").type == pa.float64()
    assert [row["prediction"] for row in found] == ["x", "y"]


@pytest.mark.parametrize("name", ["confidence", "p_x", "abstained", "p_other"])
@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_column_of_the_users_that_is_named_like_an_answer_keeps_its_values(labeller, tmp_path, name, suffix):
    source = tmp_path / f"in{suffix}"
    if suffix == ".csv":
        source.write_text(f"text,{name}\nup,high\nodd,low\n")
    else:
        book = openpyxl.Workbook()
        for row in (["text", name], ["up", "high"], ["odd", "low"]):
            book.active.append(row)
        book.save(source)
    labeller.label(source, tmp_path / "out.parquet", threshold=0.5)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row[name] for row in found] == ["high", "low"]
    prefix = "" if name == "p_other" else "fintune_"
    assert [row[f"{prefix}confidence"] for row in found] == [0.75, 0.75]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_output_can_be_labelled_again_and_again(labeller, tmp_path, suffix):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "up", "n": "0"}, {"text": "odd", "n": "1"}])
    for number in range(4):
        labeller.label(path, tmp_path / f"{number}{suffix}")
        path = tmp_path / f"{number}{suffix}"
    found = read_any(path)
    for prefix in ("", "fintune_", "fintune2_", "fintune3_"):
        assert [row[f"{prefix}prediction"] for row in found] == ["x", "y"]
        assert [float(row[f"{prefix}confidence"]) for row in found] == [0.75, 0.75]
    assert [row["n"] for row in found] == ["0", "1"]


def test_the_prefix_counts_up_where_only_some_of_its_names_are_taken(labeller):
    found = Question(labeller).columns(["note", "fintune_p_y", "text"])
    assert list(found.types) == [f"fintune2_{name}" for name in ANSWERS]


LATE = [{"text": "up"}, {"text": "odd", "note": "mine", "who": {"id": 1}}, {"text": "down"}]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_that_only_some_rows_have_are_kept_in_one_of_their_own(labeller, tmp_path, suffix, small_parts):
    outcome = labeller.label(write_jsonl(tmp_path / "in.jsonl", LATE), tmp_path / f"out{suffix}")
    found = read_any(tmp_path / f"out{suffix}")
    assert list(found[0]) == ["text", *ANSWERS, "other_columns"]
    assert [row["other_columns"] or None for row in found][::2] == [None, None]
    assert json.loads(found[1]["other_columns"]) == {"note": "mine", "who": {"id": 1}}
    assert outcome.rows == 3 and not found[1]["note"]


def test_columns_that_only_some_rows_have_stay_in_json_lines(labeller, tmp_path):
    labeller.label(write_jsonl(tmp_path / "in.jsonl", LATE), tmp_path / "out.jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [list(row) for row in found[::2]] == [["text", *ANSWERS]] * 2
    assert found[1]["who"] == {"id": 1}
    assert found[1]["note"] is None and found[1]["other_columns"] == {"note": "mine"}, "the answer's name is taken"


def test_a_table_with_a_header_gets_no_column_for_others(labeller, tmp_path):
    (tmp_path / "in.csv").write_text("text,n\nup,1\n")
    labeller.label(tmp_path / "in.csv", tmp_path / "out.csv")
    assert list(read_csv(tmp_path / "out.csv")[0]) == ["text", "n", *ANSWERS]


def test_csv_headers_are_defused_as_cells_are(labeller, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"text": "up", "=cmd()": "=1+1", "-3.5": "kept"}])
    labeller.label(tmp_path / "in.jsonl", tmp_path / "out.csv")
    (row,) = read_csv(tmp_path / "out.csv")
    assert row["'=cmd()"] == "'=1+1" and row["-3.5"] == "kept"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_half_a_surrogate_pair_in_a_file_is_replaced(labeller, tmp_path, suffix):
    rows = [{"text": "up \ud83d x", "n": "\udc00"}, {"text": "odd \U0001f600", "n": ["cut \ud83d"]}]
    labeller.label(write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}")
    first, second = read_any(tmp_path / f"out{suffix}")
    assert (first["text"], first["n"]) == ("up \ufffd x", "\ufffd")
    assert second["text"] == "odd \U0001f600" and "cut \ufffd" in str(second["n"])
