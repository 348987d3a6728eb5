"""A corpus from end to end: every kind of source, counts that add up, resume after a kill, tokens, text in and out."""

import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fintune
from fintune.corpora import build_corpus, export_corpus, read_corpus
from fintune.reporting import corpus as page
from fintune.schema.errors import DataError, RecipeError, RunError
from fintune.sources.corpus import Cleaning, CorpusSource, build, build_documents, open_source, sources_of
from fintune.trees.token_shards import TokenShards, token_type
from tests.sources.corpus.news import FOOTER, articles, write_rows

DRAWN = page._pictures
DATES = {"validation_from": "2019-01-01", "test_from": "2020-01-01", "undated": "hash"}


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Several pieces of a source, as a large one has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PIECE_DOCUMENTS", 25)
        patch.setattr(page, "_pictures", lambda folder, manifest: [])  # a second a build; one test draws them
        yield


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("news") / "wire.jsonl", articles())


@pytest.fixture(scope="module")
def corpus(news, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return build_corpus(news, folder, tokenizer=str(base), progress=False, shard_documents=30, **DATES)


@pytest.fixture(scope="module")
def undated_corpus(tmp_path_factory):
    """One document, in train."""
    folder = tmp_path_factory.mktemp("undated")
    notes = write_rows(folder / "notes.jsonl", [{"text": "The central bank kept its rate."}])
    options = {"tokenizer": None, "progress": False, "test_from": "2020-01-01", "undated": "hash"}
    return build_corpus(notes, folder / "out", test_share=0, **options)


def rows_of(corpus, split=None):
    """Documents of a corpus in order."""
    shards = [shard for shard in corpus.shards if split in (None, shard.name.rpartition("-")[0])]
    files = [corpus.folder / "documents" / f"{shard.name}.parquet" for shard in shards]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def bytes_of(folder):
    """Everything that a build writes but pictures, by name."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith((".", "figures/"))}


def test_every_row_is_a_document_or_counted(corpus):
    found = corpus.manifest["counts"]["wire"]
    dropped = {step: counts["dropped"] for step, counts in found.items() if "dropped" in counts}
    assert found["rows"]["in"] == 120 == sum(dropped.values()) + found["documents"]["out"]
    assert dropped.keys() == {"short", "near"} or dropped.keys() == {"short", "near", "equal"}
    assert found["documents"]["out"] == len(rows_of(corpus)) == len({row["id"] for row in rows_of(corpus)})
    assert found["html"]["changed"] == 12 and found["boilerplate"]["lines"] >= 100


def test_documents_have_their_columns_and_lie_in_the_split_of_their_day(corpus):
    for split, years in {"train": {"2018"}, "validation": {"2019"}, "test": {"2020"}}.items():
        rows = rows_of(corpus, split)
        assert rows and {row["date"][:4] for row in rows if row["date"]} == years
    one = rows_of(corpus)[0]
    assert one["text"].startswith(f"{one['title']}\n\nCompany 0 (NYSE: ") and FOOTER not in one["text"]
    assert one["source"] == "wire" and one["tickers"][0] == "ACME" and len(one["tickers"]) == 2
    assert sum(row["date"] is None for row in rows_of(corpus)) == sum(shard.undated for shard in corpus.shards) == 1


def test_a_recipe_takes_the_documents_as_they_are(corpus):
    from fintune.schema.conversations import ConversationsSection
    from fintune.schema.recipe import TaskSection
    from fintune.tasks.loading import load_task

    section = TaskSection(
        name="news", source=str(corpus.folder / "documents"), conversations=ConversationsSection(format="text")
    )
    loaded = load_task(section)
    assert [example.target for example in loaded.splits["test"]] == [row["text"] for row in rows_of(corpus, "test")]


def test_tokens_are_those_of_the_documents(corpus, base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    for split in ("train", "validation", "test"):
        shards = TokenShards(corpus.folder / "tokens", split)
        rows = rows_of(corpus, split)
        assert len(shards) == len(rows)
        for document, row in zip(shards, rows, strict=True):
            assert document.tolist() == tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert shards.n_tokens == sum(len(document) + 1 for document in shards)
    assert len(shards[-3:]) == 3
    with pytest.raises(IndexError):
        shards[len(shards)]


@pytest.mark.parametrize("across", [False, True])
def test_blocks_supervise_every_token_once(corpus, across):
    shards = TokenShards(corpus.folder / "tokens", "train")
    blocks = shards.blocks(16, across_documents=across)
    samples = list(blocks)
    assert len(samples) == len(blocks) and max(map(len, samples)) == 16
    supervised = np.concatenate([sample.tokens[sample.supervision > 0] for sample in samples])
    assert supervised.tolist() == [token for document in shards for token in [*document, shards.end_of_text]]
    for before, sample in zip([None, *samples], samples, strict=False):
        starts = before is None or before.tokens[-1] == shards.end_of_text
        assert sample.tokens[0] == (shards.end_of_text if starts else before.tokens[-1])
        if not across:  # nothing stands behind an end of text
            assert shards.end_of_text not in sample.tokens[1:-1]
    assert [blocks[-1].tokens.tolist(), blocks[len(blocks) - 1].index] == [samples[-1].tokens.tolist(), len(blocks) - 1]


def test_ids_take_two_bytes_where_they_fit():
    assert [token_type(size) for size in (65536, 65537)] == ["<u2", "<u4"]


def test_a_shard_that_was_cut_is_refused_and_built_again(corpus, news, base, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder, folder)
    cut = folder / "tokens" / "train-00000.bin"
    cut.write_bytes(cut.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train-00000\.bin is not there or not whole"):
        TokenShards(folder / "tokens")
    with pytest.raises(DataError, match="no finished corpus"):
        read_corpus(folder)
    build_corpus(news, folder, tokenizer=str(base), progress=False, shard_documents=30, **DATES)
    assert bytes_of(folder) == bytes_of(corpus.folder)


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def test_a_build_stopped_anywhere_goes_on_to_the_same_bytes(corpus, news, base, tmp_path, monkeypatch):
    arguments = {"tokenizer": str(base), "progress": False, "shard_documents": 30, **DATES}
    rename, calls, draw = Path.replace, [0, 10**9], random.Random(1)

    def counted(path, target):
        calls[0] += 1
        if calls[0] >= calls[1]:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    build_corpus(news, tmp_path / "whole", **arguments)
    total = calls[0]
    kills = 0
    for after in sorted(draw.sample(range(1, total), 6)):  # each goes on where the one before was stopped
        calls[:] = [0, max(1, after // 3)]
        try:
            build_corpus(news, tmp_path / "killed", **arguments)
        except Killed:
            kills += 1
    calls[:] = [0, 10**9]
    build_corpus(news, tmp_path / "killed", **arguments)
    assert kills >= 4
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole") == bytes_of(corpus.folder)


def test_what_was_built_otherwise_is_not_mixed(corpus, news, base, tmp_path):
    folder, arguments = tmp_path / "corpus", {"tokenizer": None, "progress": False}
    build_corpus(news, folder, **arguments)
    started = (folder / "corpus.json").stat().st_mtime_ns
    build_corpus(news, folder, **arguments)
    assert (folder / "corpus.json").stat().st_mtime_ns == started  # nothing was left to do
    with pytest.raises(RunError, match=r"built otherwise \(min_characters\)"):
        build_corpus(news, folder, min_characters=30, **arguments)
    other = write_rows(tmp_path / "wire.jsonl", articles(seed=6))
    with pytest.raises(RunError, match=r"built otherwise \(source wire\)"):
        build_corpus(other, folder, **arguments)
    again = build_corpus(other, folder, overwrite=True, **arguments)
    assert again.manifest["sources"] != corpus.manifest["sources"]
    (tmp_path / "mine" / "documents").mkdir(parents=True)
    with pytest.raises(RunError, match="no build has written"):
        build_corpus(other, tmp_path / "mine", overwrite=True, **arguments)


def write_kinds(folder, rows):
    """The same rows as files, folders and a data set that ``datasets`` reads."""
    named = [{"text": row["body"], "title": row["headline"], "date": row["published"]} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in named).encode()
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(lines))
    with pa.CompressedOutputStream(str(folder / "b.jsonl.zst"), "zstd") as stream:
        stream.write(lines)
    (folder / "shards").mkdir()
    pq.write_table(pa.Table.from_pylist(named[:9]), folder / "shards" / "c-0.parquet")
    pq.write_table(pa.Table.from_pylist(named[9:]), folder / "shards" / "c-1.parquet")
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_bytes(lines)
    (folder / "texts").mkdir()
    for number, row in enumerate(named):
        (folder / "texts" / f"{number:04d}.txt").write_text(f"{row['title']}\n\n{row['text']}")
    return ["a.jsonl.xz", "b.jsonl.zst", "shards", "texts", CorpusSource(str(folder / "set"), datasets=True)]


def test_every_kind_of_source_gives_the_same_documents(tmp_path):
    rows = [row for row in articles(24) if len(row["body"]) > 9 and "<p>" not in row["body"]]
    found = []
    for number, kind in enumerate(write_kinds(tmp_path, rows)):
        source = kind if isinstance(kind, CorpusSource) else str(tmp_path / kind)
        built = build_corpus(source, tmp_path / f"out-{number}", tokenizer=None, progress=False)
        found.append(sorted(row["text"] for row in rows_of(built)))
    assert len(found[0]) > 15 and all(texts == found[0] for texts in found[1:])


def test_files_of_a_folder_may_have_columns_of_their_own(tmp_path):
    rows = [row for row in articles(12) if len(row["body"]) > 9 and row["published"]]
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "a.jsonl", [{"text": row["body"], "date": row["published"]} for row in rows[:4]])
    write_rows(tmp_path / "in" / "b.jsonl", [{"body": row["body"], "published": row["published"]} for row in rows[4:]])
    write_rows(tmp_path / "in.jsonl", rows)
    options = {"tokenizer": None, "progress": False, "near_duplicates": None}
    built = [build_corpus(tmp_path / name, tmp_path / f"out-{name}", **options) for name in ("in", "in.jsonl")]
    days = [[row["date"] for row in rows_of(one)] for one in built]
    assert days[0] == days[1] == [row["published"] for row in rows]


def test_undated_documents_go_where_days_split_and_are_counted(news, tmp_path):
    options = {"tokenizer": None, "progress": False}
    built = build_corpus(news, tmp_path / "out", test_from="20200101", **options)
    assert built.manifest["counts"]["wire"]["undated"] == {"dropped": 1}
    assert all(row["date"] for row in rows_of(built))
    assert {row["date"] >= "2020-01-01" for row in rows_of(built, "train")} == {False}
    assert "want of a day: 1;" in (built.folder / "statistics.md").read_text()


def test_sources_without_any_day_are_refused_where_days_split(undated_corpus, tmp_path):
    assert len(rows_of(undated_corpus)) == 1
    notes = undated_corpus.folder.parent / "notes.jsonl"
    with pytest.raises(DataError, match="No document of notes has a day, but splits begin on 2020-01-01"):
        build_corpus(notes, tmp_path / "out", tokenizer=None, progress=False, test_from="2020-01-01")


def test_a_text_file_goes_out_and_comes_back(corpus, tmp_path):
    file = tmp_path / "finance_corpus.txt"
    assert export_corpus(corpus.folder, file) == len(rows_of(corpus))
    back = build_corpus(file, tmp_path / "back", tokenizer=None, progress=False)
    assert sorted(row["text"] for row in rows_of(back)) == sorted(row["text"] for row in rows_of(corpus))


@pytest.mark.parametrize("splits", [["trian"], ["train", "dev"], [], ["test"]])
def test_a_split_that_is_not_there_leaves_the_file_as_it_was(undated_corpus, tmp_path, splits):
    file = tmp_path / "finance_corpus.txt"
    file.write_text("before")
    with pytest.raises(RecipeError, match="no split '(trian|dev)'|no document of"):
        export_corpus(undated_corpus.folder, file, splits)
    assert [file.read_text(), len(list(tmp_path.iterdir()))] == ["before", 1]


def test_a_collection_gives_the_largest_companies_and_joins_their_tickers(tmp_path):
    folder = tmp_path / "collected"
    folder.mkdir()
    (folder / "collected.json").write_text("{}")
    (folder / "universe.csv").write_text("ticker,market_cap\nAAPL,3e12\nMSFT,2e12\nF,5e10\n")
    article = {"published": "2024-01-03T14:05:00Z", "source": "Wire", "url": "", "headline": "Rivals sign a pact"}
    write_rows(folder / "news.jsonl", [
        {**article, "ticker": "AAPL", "summary": "Apple and Microsoft agree on standards.", "text": ""},
        {**article, "ticker": "F", "summary": "", "text": "A car maker (F) reports quarterly results."},
        {**article, "ticker": "MSFT", "summary": "Apple and Microsoft agree on standards.", "text": ""},
    ])  # fmt: skip
    built = build_corpus(folder, tmp_path / "out", tokenizer=None, progress=False, companies=2)
    assert [(row["tickers"], row["source"], row["date"]) for row in rows_of(built)] == [
        (["AAPL", "MSFT"], "Wire", "2024-01-03")
    ]
    counts = built.manifest["counts"]["collected"]
    assert counts["companies"] == counts["equal"] == {"dropped": 1}


def built_from(folder, *sources, **limits):
    """A corpus without tokens from lists of rows, each a source."""
    places = [write_rows(folder / f"{number}.jsonl", rows) for number, rows in enumerate(sources)]
    return build_corpus(places, folder / "out", tokenizer=None, progress=False, **limits)


def test_an_article_collected_for_many_companies_keeps_its_lines(tmp_path):
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("arket", "elling", "oses")]
    draw = random.Random(4)
    bodies = [" ".join(draw.choices(words, k=30)) + f".\n{FOOTER}" for _ in range(12)]
    article = "Two makers of chips agreed on a standard.\nTheir shares rose by three percent on Monday."
    rows = [{"text": text} for text in [*bodies, *[article] * 12]]
    texts = [row["text"] for row in rows_of(built_from(tmp_path, rows))]
    assert article in texts and len(texts) == 13
    assert not any(FOOTER in text for text in texts)


def test_the_earliest_copy_decides_the_split(tmp_path):
    texts = [f"The {name} company raised its forecast for the whole year." for name in ("first", "second", "third")]
    late = [{"text": text, "date": day} for text, day in zip(texts, ("2020-05-02", "", "2018-03-01"), strict=True)]
    early = [{"text": text.upper(), "date": day} for text, day in
             zip(texts, ("2018-05-01", "2020-07-01", "2020-03-01"), strict=True)]  # fmt: skip
    built = built_from(tmp_path, late, [*early, {**early[0], "date": ""}], near_duplicates=None, **DATES)
    assert {row["text"]: row["date"] for row in rows_of(built, "train")} == {
        texts[0]: "2018-05-01", texts[2]: "2018-03-01"}  # fmt: skip
    assert {row["text"]: row["date"] for row in rows_of(built, "test")} == {texts[1]: "2020-07-01"}
    assert built.manifest["counts"]["0"]["day"] == {"changed": 2}


def test_an_empty_corpus_names_the_step(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "short"}])
    with pytest.raises(DataError, match="most were dropped by the step 'short'"):
        build_corpus(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=None, progress=False)


def test_a_pipeline_of_datatrove_cleans_alike(news, tmp_path):
    pytest.importorskip("datatrove", reason="needs fintune[datatrove]")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import JsonlWriter

    from fintune.sources.corpus.trove import CleanDocuments

    rows = [json.loads(line) for line in news.read_text().splitlines()]
    named = [{"text": row["body"], "id": str(number), "title": row["headline"], "date": row["published"],
              "source": "wire", "tickers": ["ACME"]} for number, row in enumerate(rows)]  # fmt: skip
    (tmp_path / "in").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(named[part * 60 : part * 60 + 60]), tmp_path / "in" / f"{part}.parquet")
    limits = {"boilerplate_share": 0.0, **DATES}
    executor = LocalPipelineExecutor(
        [
            ParquetReader(str(tmp_path / "in")),
            CleanDocuments("wire", Cleaning(**limits)),
            JsonlWriter(str(tmp_path / "clean")),
        ],
        tasks=2, workers=1, logging_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    executor.run()
    direct = build_corpus(news, tmp_path / "direct", tokenizer=None, progress=False, **limits)
    piped = build_corpus(tmp_path / "clean", tmp_path / "piped", tokenizer=None, progress=False, **limits)
    assert [row["id"] for row in rows_of(piped)] == [row["id"] for row in rows_of(direct)]
    for column in ("text", "title", "date", "source", "tickers"):
        assert [row[column] for row in rows_of(piped)] == [row[column] for row in rows_of(direct)]


def test_documents_of_datatrove_are_read_by_their_own_columns():
    pytest.importorskip("datatrove", reason="needs fintune[datatrove]")
    from datatrove.data import Document

    from fintune.sources.corpus.trove import CleanDocuments

    text = "Acme reported record revenue on Monday, it said."
    given = [
        {"headline": "Acme", "published": "2021-05-01", "ticker": "ACME", "publisher": "wire2", "url": "a.example/1"},
        {"Title": "Acme", "date": "", "timestamp": 1704290700, "symbols": ["ACME"], "editor": "jane@example.com"},
    ]
    documents = [Document(text=text, id=str(number), metadata=one) for number, one in enumerate(given)]
    cleaned = [one.metadata for one in CleanDocuments("wire", Cleaning(private=True)).run(iter(documents))]
    same = {"title": "Acme", "tickers": ["ACME"]}
    assert cleaned == [
        {**same, "date": "2021-05-01", "source": "wire2", "url": "a.example/1"},
        {**same, "date": "2024-01-03", "source": "wire", "editor": "[EMAIL]"},
    ]


CHILD = """
import sys
from pathlib import Path
from fintune.sources.corpus import Cleaning, build, build_documents, open_source, sources_of
build.PIECE_DOCUMENTS = 25
opened = [open_source(one, most_characters=10**6, companies=None) for one in sources_of(sys.argv[2:])]
print("started", flush=True)
build_documents(opened, Cleaning(shard_documents=30), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_byte(tmp_path):
    rows = write_rows(tmp_path / "many.jsonl", articles(800))
    draw, kills = random.Random(7), 0
    opened = [open_source(one, most_characters=10**6, companies=None) for one in sources_of([rows])]
    build_documents(opened, Cleaning(shard_documents=30), tmp_path / "whole")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(rows)]
    for _ in range(8):
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        with child, child.stdout:
            child.stdout.readline()
            time.sleep(draw.uniform(0, 0.4))
            child.send_signal(signal.SIGKILL)
        kills += child.returncode == -signal.SIGKILL
        if child.returncode == 0:
            break
    else:
        build_documents(opened, Cleaning(shard_documents=30), tmp_path / "killed")
    assert kills >= 3
    documents = [bytes_of(tmp_path / name / "documents") for name in ("whole", "killed")]
    assert documents[0] == documents[1]


def test_the_command_builds_shows_and_exports(news, base, tmp_path, capsys, monkeypatch):
    from fintune.cli import main

    monkeypatch.setattr(page, "_pictures", DRAWN)

    folder, file = tmp_path / "out", tmp_path / "finance_corpus.txt"
    columns = ["--text", "body", "--title", "headline", "--test-from", "2020-01-01"]
    assert main(["corpus", "build", str(news), "-o", str(folder), "--tokenizer", str(base), "-q", *columns]) == 0
    said = capsys.readouterr().out
    assert main(["corpus", "stats", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    documents = sum(shard["documents"] for shard in shown["documents"])
    assert f"{documents:,} documents with" in said and shown["tokens"]["dtype"] == "<u2"
    assert main(["corpus", "export", str(folder), str(file), "--splits", "test"]) == 0
    assert file.read_text().count("<|endoftext|>\n") == shown["documents"][-1]["documents"]
    written = (folder / "statistics.html").read_text()
    assert written.count("data:image/png;base64,") == 4
    assert "What each step dropped" in (folder / "statistics.md").read_text()
    assert main(["corpus", "build", str(news), "-o", str(folder), "--min-characters", "0"]) == 2
    assert "makes no sense" in capsys.readouterr().err
    assert fintune.build_corpus is build_corpus
