"""Readers: what comes out of each format, and the sentence a broken file gets."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.schema.errors import DataError
from fintune.sources import RawTable, read_file, read_folder

ROWS = [{"text": 'Profit, "up" 5%', "label": "1"}, {"text": "Zwei\nZeilen\u2028hier", "label": "2"}]


@pytest.fixture
def every_format(tmp_path):
    quoted = [f'"{row["text"]}"'.replace('"up"', '""up""') + f",{row['label']}" for row in ROWS]
    (tmp_path / "a.csv").write_text("\ufefftext,label\n" + "\n".join(quoted) + "\n", encoding="utf-8", newline="")
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    (tmp_path / "b.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "d.json").write_text(json.dumps(ROWS), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    return sorted(tmp_path.iterdir())


def test_all_formats_give_the_same_rows_and_hash(every_format):
    tables = [read_file(path) for path in every_format]
    assert len(tables) == 5
    for table in tables:
        assert [dict(row) for row in table.rows] == ROWS
    assert len({table.content_hash for table in tables}) == 1


def test_hash_depends_on_rows_and_their_order_not_on_key_order():
    table = RawTable(rows=({"a": 1, "b": 2},), source="x")
    assert RawTable(rows=({"b": 2, "a": 1},), source="y").content_hash == table.content_hash
    assert RawTable(rows=({"a": 1, "b": 3},), source="x").content_hash != table.content_hash


def test_phrasebank_text_is_split_at_the_last_at_sign_and_is_latin_1(tmp_path):
    file = tmp_path / "Sentences_50Agree.txt"
    file.write_bytes("Mail a@b.fi , Sepp\xe4l\xe4 said .@neutral\r\nLoss .@negative\n".encode("latin-1"))
    assert [dict(row) for row in read_file(file).rows] == [
        {"sentence": "Mail a@b.fi , Sepp\xe4l\xe4 said .", "label": "neutral"},
        {"sentence": "Loss .", "label": "negative"},
    ]


def test_fiqa_json_gives_one_row_an_annotation_with_its_kind(tmp_path):
    file = tmp_path / "task1_headline_ABSA_train.json"
    info = [{"sentiment_score": "0.3", "target": "A"}, {"sentiment_score": "-0.3", "target": "B"}]
    file.write_text(json.dumps({"7": {"sentence": "A beats B", "info": info}}))
    rows = read_file(file).rows
    assert [row["id"] for row in rows] == ["7-0", "7-1"]
    assert {row["sentence"] for row in rows} == {"A beats B"} and {row["kind"] for row in rows} == {"headline"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.csv", None, "does not exist"),
        ("a.doc", b"x", "unknown suffix .doc"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,label\nfine,1\nProfit, up,1\n", "wrong number of columns in the row ending at line 3"),
        ("a.csv", b"text,label\nshort\n", "wrong number of columns in the row ending at line 2"),
        ("a.csv", b"text,text\na,b\n", "twice in its header"),
        ("a.csv", b'text,label\n"never closed,1\n', "is broken at line 2"),
        ("a.csv", "text,label\nErlöse über Plan,1\n".encode() + b"na\xefve,1\n", "not utf-8 text at line 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "not valid JSON at line 2"),
        ("a.jsonl", b'["text"]\n', "no JSON object at line 1"),
        ("a.json", b"[1, 2]", "not a list of JSON objects"),
        ("a.json", b'{"1": {"text": "no info"}}', "under the key '1'"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 50, mtime=0)[:-9], "cannot be read"),
        ("a.parquet", b"PAR1 truncated", "not readable Parquet"),
        ("a.txt", b"Profit rose .\n", "no '@' before a label at line 1"),
    ],
)
def test_a_broken_file_is_one_sentence_with_a_remedy(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="a file|Data file") as caught:
        read_file(tmp_path / name)
    assert expected in caught.value.message and name in caught.value.message
    assert caught.value.remedy and "\n" not in caught.value.message


@given(
    content=st.binary(max_size=200),
    suffix=st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet", "txt", "jsonl.gz"]),
)
def test_any_bytes_are_rows_or_a_clean_error(tmp_path_factory, content, suffix):
    file = tmp_path_factory.mktemp("fuzz") / f"a.{suffix}"
    file.write_bytes(content)
    try:
        table = read_file(file)
    except DataError as error:
        assert "a." in error.message
    else:
        assert len(table) > 0


def test_a_folder_of_hub_shards_is_found_by_split_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, text in (
        ("train-00000-of-00002", "a"),
        ("train-00001-of-00002", "b"),
        ("valid-00000-of-00001-0a1b2c3d4e5f6789", "c"),
    ):
        pq.write_table(pa.Table.from_pylist([{"text": text}]), data / f"{name}.parquet")
    (tmp_path / "README.md").write_text("x")
    tables = read_folder(tmp_path)
    assert [row["text"] for row in tables["train"].rows] == ["a", "b"]
    assert set(tables) == {"train", "validation"}


def test_two_candidates_for_a_split_are_refused(tmp_path):
    for name in ("train.csv", "other_train.csv"):
        (tmp_path / name).write_text("text\na\n")
    with pytest.raises(DataError, match="several candidates for the train split"):
        read_folder(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"Expected x\.txt, or files named train"):
        read_folder(tmp_path, ({"all": ("x.txt",)},))
