"""Scoring in chunks: what is on disk is not asked again, and what comes out is what an undisturbed evaluation gives."""

import random
import signal
from dataclasses import replace

import pytest
from tests.evaluation import killed_evaluation
from tests.forks import forks

from fintune.evaluation.records import answer_records
from fintune.evaluation.resuming import ScoredFile, make_chunks, scored_records
from fintune.schema.example import Example, Message
from fintune.tasks import get_task

TASK = get_task("tfns")
CHOICES = ("negative", "neutral", "positive")


def documents(count, groups=None):
    """Documents in an order that is not that of their texts."""
    numbers = list(range(count))
    random.Random(1).shuffle(numbers)
    return [
        Example(
            f"d{n}", "tfns", (Message.around("user", "?\n", f"text {n:03d}"),), "neutral", CHOICES,
            group=f"g{n % groups}" if groups else "",
        )
        for n in numbers
    ]  # fmt: skip


class Asked:
    """A system that remembers what it was asked, and stops after some chunks."""

    def __init__(self, stops_after=None):
        self.chunks, self.stops_after = [], stops_after

    def __call__(self, examples):
        if len(self.chunks) == self.stops_after:
            raise KeyboardInterrupt
        self.chunks.append([example.example_id for example in examples])
        # What is answered depends on the company, as the last bits of a batch do.
        share = 1 / (len(examples) + len(self.chunks[-1][0]))
        return [
            record
            for example in examples
            for record in answer_records("base", TASK, example, "neutral", (share, 1 - share, 0.0))
        ]


def scored(ask, rows, folder=None, fingerprint="f", size=4, **options):
    file = None if folder is None else ScoredFile(folder, "base", "tfns", fingerprint)
    return scored_records(ask, TASK, rows, chunk=size, n_records=len(TASK.protocols), file=file, **options)


def test_records_come_in_the_documents_order_with_and_without_a_file(tmp_path):
    rows = documents(10)
    records = scored(Asked(), rows)
    assert [record.example_id for record in records] == [row.example_id for row in rows for _ in TASK.protocols]
    assert scored(Asked(), rows, tmp_path) == records
    again = Asked()
    assert scored(again, rows, tmp_path) == records and again.chunks == []


def test_an_evaluation_goes_on_after_the_last_whole_chunk(tmp_path):
    rows = documents(18)
    straight = Asked()
    expected = scored(straight, rows)
    with pytest.raises(KeyboardInterrupt):
        scored(Asked(stops_after=2), rows, tmp_path)
    resumed, restored = Asked(), []
    assert scored(resumed, rows, tmp_path, on_restored=restored.append) == expected
    assert resumed.chunks == straight.chunks[2:] and restored == [8]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) - 7],
        lambda text: text[: text.rstrip("\n").rindex("\n") + 1],
        lambda text: text + '{"system": "ba',
        lambda text: text.rstrip("\n"),
        lambda text: text.replace('"example_id":"d', '"example_id":"x', 1),
    ],
    ids=["cut line", "missing line", "extra line", "no line end", "another document"],
)
def test_damage_costs_the_chunk_it_is_in_and_no_more(tmp_path, damage):
    rows = documents(12)
    expected = scored(Asked(), rows, tmp_path)
    (path,) = tmp_path.rglob("*.jsonl")
    whole = path.read_text()
    path.write_text(damage(whole))
    assert scored(Asked(), rows, tmp_path) == expected
    assert path.read_text() == whole


def test_another_fingerprint_starts_afresh(tmp_path):
    rows = documents(8)
    scored(Asked(), rows, tmp_path)
    other = Asked()
    scored(other, rows, tmp_path, fingerprint="g")
    assert len(other.chunks) == 2
    (path,) = tmp_path.rglob("*.jsonl")
    assert len(path.read_text().splitlines()) == 1 + 8 * len(TASK.protocols)


def test_chunks_hold_neighbours_and_do_not_tear_dialogues_apart():
    rows = documents(23, groups=5)
    plain = make_chunks(rows, 4)
    assert sorted(i for chunk in plain for i in chunk) == list(range(23)) and max(map(len, plain)) == 4
    texts = [rows[i].document for chunk in plain for i in chunk]
    assert texts == sorted(texts), "what begins alike is asked together"
    whole = make_chunks(rows, 4, whole_dialogues=True)
    assert sorted(i for chunk in whole for i in chunk) == list(range(23))
    homes = {
        row.group: {n for n, chunk in enumerate(whole) for i in chunk if rows[i].group == row.group} for row in rows
    }
    assert all(len(home) == 1 for home in homes.values())


def test_dialogues_about_one_page_are_chunked_apart():
    rows = [
        replace(row, group="page", metadata={"dialogue_id": f"d{number % 4}", "turn": number // 4})
        for number, row in enumerate(documents(12))
    ]
    chunks = make_chunks(rows, 3, whole_dialogues=True)
    assert [len({rows[i].metadata["dialogue_id"] for i in chunk}) for chunk in chunks] == [1, 1, 1, 1]


def test_a_dialogue_task_keeps_its_groups_together():
    rows = documents(6, groups=2)
    ask = Asked()
    scored_records(ask, replace(TASK, history="own"), rows, chunk=2, n_records=len(TASK.protocols))
    assert len(ask.chunks) == 2


def start(base, place, chunk, killed_at=0):
    """The exit code, and how many chunks it has written."""
    context = forks()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=killed_evaluation.evaluate, args=(send, base, place, chunk, killed_at))
    process.start()
    send.close()
    process.join(timeout=300)
    n_chunks = receive.recv() if receive.poll() and process.exitcode == 0 else None
    receive.close()
    return process.exitcode, n_chunks


@pytest.mark.slow
def test_a_killed_evaluation_ends_in_the_same_bytes(base, tmp_path):
    ended, n_chunks = start(base, tmp_path / "straight", 6)
    assert ended == 0
    assert n_chunks == 2 * 4, "two systems, 20 documents in chunks of 6"
    place = tmp_path / "killed"
    for killed_at in (2, 4):  # inside the first system, then inside the second
        assert start(base, place, 6, killed_at) == (-signal.SIGKILL, None)
        assert not (place / "predictions.jsonl").exists()
    ended, n_left = start(base, place, 6)
    assert ended == 0
    assert n_left == n_chunks - 1 - 3, "one chunk was whole at the first kill, three more at the second"
    for name in ("predictions.jsonl", "scored/base/tfns.jsonl", "scored/base_calibrated/tfns.jsonl"):
        assert (place / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
