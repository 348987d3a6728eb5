"""Batches: the same rows as reading whole, from any row on, in memory that does not grow with the file."""

import gzip
import json
import lzma
import tracemalloc

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.schema.errors import DataError
from fintune.sources import open_stream, opening, read_file

ROWS = [{"text": f"Profit, {number}\nup", "label": str(number % 3)} for number in range(23)]


@pytest.fixture(scope="module")
def every_format(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    quoted = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.csv").write_text(quoted, newline="")
    (folder / "b.csv.gz").write_bytes(gzip.compress(quoted.encode("utf-16")))
    (folder / "c.tsv").write_text(quoted.replace('",', '"\t').replace("text,", "text\t"), newline="")
    (folder / "d.jsonl").write_text(lines)
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "f.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "g.parquet", row_group_size=5)
    book = openpyxl.Workbook()
    for row in [tuple(ROWS[0]), *(tuple(row.values()) for row in ROWS)]:
        book.active.append(row)
    book.save(folder / "h.xlsx")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("start", "size"), [(0, 1), (0, 10), (0, 23), (0, 50), (4, 5), (5, 5), (22, 3), (23, 3), (99, 3)]
)
def test_batches_are_the_rows_of_the_file_from_a_row_on(every_format, start, size):
    assert len(every_format) == 8
    for file in every_format:
        batches = list(open_stream(file).batches(start, size))
        assert [row for batch in batches for row in batch] == ROWS[start:], file
        assert all(len(batch) == size for batch in batches[:-1]) and all(batches)


def test_a_stream_knows_its_columns_and_parquet_its_schema_and_length(every_format):
    for file in every_format:
        stream = open_stream(file)
        assert stream.columns == ("text", "label") and stream.source == str(file)
        assert stream.notes == read_file(file).notes
        if file.suffix == ".parquet":
            assert stream.n_rows == 23 and stream.schema == pq.read_schema(file)
        else:
            assert stream.n_rows is None and stream.schema is None


def test_a_stream_can_be_read_twice_and_left_early(every_format):
    for file in every_format:
        stream = open_stream(file)
        assert next(stream.batches(0, 2)) == ROWS[:2]
        assert next(stream.batches(0, 2)) == ROWS[:2]


def test_parquet_row_groups_before_the_start_are_not_read(tmp_path):
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"some text {number}" for number in range(3000)]})
    pq.write_table(table, file, row_group_size=1000, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content[start : start + 2000] = b"\xff" * 2000
    file.write_bytes(content)
    from fintune.sources.columnar import _parquet_rows

    assert [row["text"] for row in _parquet_rows(file, 2998)] == ["some text 2998", "some text 2999"]
    with pytest.raises(DataError, match="not readable Parquet"):
        list(_parquet_rows(file, 0))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"a,b\n" + b"1,2\n" * 500 + b"1\n", "ending at line 502"),
        ("a.jsonl", b'{"a": 1}\n' * 500 + b'{"a": \n', "line 501"),
        ("a.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 500 + b"1\n", mtime=0), "ending at line 502"),
    ],
)
def test_a_broken_line_is_named_when_it_is_reached(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    batches = open_stream(tmp_path / name).batches(0, 100)
    assert [len(next(batches)) for _ in range(5)] == [100] * 5
    with pytest.raises(DataError, match=expected):
        next(batches)


@pytest.mark.parametrize(("start", "size"), [(-1, 5), (0, 0)])
def test_impossible_batches_are_refused(every_format, start, size):
    with pytest.raises(DataError, match="cannot start at"):
        next(open_stream(every_format[0]).batches(start, size))


def test_an_empty_file_is_an_error_when_it_is_opened(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,label\n")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(DataError, match="has no rows"):
            open_stream(tmp_path / name)


def test_parquet_column_names_are_checked(tmp_path):
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="names 'a' twice"):
        open_stream(tmp_path / "a.parquet")


def test_memory_does_not_grow_with_a_single_row_group(tmp_path):
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{number} {'text ' * 40}{number}" for number in range(200_000)]})
    pq.write_table(table, file, row_group_size=200_000)
    whole = table.nbytes
    del table
    before = pa.total_allocated_bytes()
    highest = max(pa.total_allocated_bytes() - before for _ in open_stream(file).batches(0, 256))
    assert whole > 40_000_000 and highest < whole / 4


def test_memory_does_not_grow_with_a_text_file(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + f"{'text ' * 40},1\n" * 60_000)
    tracemalloc.start()
    try:
        n_rows = sum(len(batch) for batch in open_stream(file).batches(0, 256))
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_rows == 60_000 and highest < file.stat().st_size / 2


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_other_compressions_are_read_bounded_and_refused_when_cut(tmp_path, monkeypatch, suffix):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS * 50).encode()
    packed = lzma.compress(lines) if suffix == ".xz" else pa.Codec("zstd").compress(lines).to_pybytes()
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(packed)
    assert list(open_stream(file).rows_from(3)) == (ROWS * 50)[3:]
    file.write_bytes(packed[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        list(open_stream(file).rows_from(0))
    file.write_bytes(packed)
    monkeypatch.setattr(opening, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        list(open_stream(file).rows_from(0))
