"""A file labelled by several processes, or on a Ray cluster, one of which is lost: the same bytes as by one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from queue import SimpleQueue

import psutil
import pytest
import torch

import fintune
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import DataError, RunError
from fintune.serving import files, worker
from fintune.serving import workers as workers_module
from fintune.serving.answers import Question
from fintune.serving.groups import Group, open_groups
from fintune.serving.parts import PartStore
from fintune.serving.workers import AGAIN

ROWS = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("workers") / "llama")


@pytest.fixture
def source(tmp_path):
    lines = ["n,headline", *(f'{n},"Profit rose {n * 37 % 101} %{", again" * (n % 7)}"' for n in range(ROWS))]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.csv"


@pytest.fixture
def undisturbed(place, source, tmp_path, monkeypatch):
    """The output of one process, as bytes; groups have four rows from here on."""
    monkeypatch.setattr(Question, "rows_a_part", 4)
    fintune.predict_file(place, source, "headline", tmp_path / "alone.csv", device="cpu")
    return (tmp_path / "alone.csv").read_bytes()


def at_first_part(monkeypatch, action):
    """Does something when the first part has been written."""
    write, written = PartStore.write, []

    def and_then(store, start, answers):
        write(store, start, answers)
        written.append(start)
        if len(written) == 1:
            action()

    monkeypatch.setattr(PartStore, "write", and_then)
    return written


def workers():
    return [child for child in psutil.Process().children() if "fintune.serving.worker" in child.cmdline()]


def test_a_killed_process_ends_all_in_a_sentence_and_the_next_start_leaves_no_trace_of_it(
    place, source, undisturbed, tmp_path, monkeypatch
):
    output = tmp_path / "out.csv"
    with monkeypatch.context() as patched:
        written = at_first_part(patched, lambda: os.kill(workers()[0].pid, signal.SIGKILL))
        with pytest.raises(RunError, match=rf"Process 1 of 2 ended with SIGKILL; the others were stopped\. {AGAIN}"):
            fintune.predict_file(place, source, "headline", output, processes=2, device="cpu")
    assert not workers() and not output.exists() and 0 < 4 * len(written) < ROWS
    outcome = fintune.predict_file(place, source, "headline", output, device="cpu")
    assert outcome.resumed_from == 4 * len(written) and outcome.rows == ROWS
    assert output.read_bytes() == undisturbed


def test_a_file_that_changes_while_it_is_read_is_not_joined_with_answers_to_other_rows(
    place, source, undisturbed, tmp_path, monkeypatch
):
    at_first_part(monkeypatch, lambda: source.write_text(source.read_text().replace("Profit", "Loss")))
    with pytest.raises(DataError, match=r"in.csv changed while its rows were read\. Remove .*out.csv.parts"):
        fintune.predict_file(place, source, "headline", tmp_path / "out.csv", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize("count", [1, 2])
def test_gpus_that_are_not_there_are_not_replaced_by_the_processor(place, source, tmp_path, count):
    with pytest.raises(RunError, match=rf"--gpus {count} was asked for, but PyTorch finds 0 .* Leave --gpus out"):
        fintune.predict_file(place, source, "headline", tmp_path / "out.csv", gpus=count)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"gpus": 1, "device": "cpu"}, "device and gpus both say where"),
        ({"gpus": 1, "processes": 1}, "processes and gpus both say how many"),
        ({"gpus": 0}, "gpus is 0. Give 1 or more"),
        ({"processes": -1}, "processes is -1. Give 1 or more"),
    ],
)
def test_arguments_that_contradict_one_another_are_refused(place, source, tmp_path, given, reason):
    with pytest.raises(DataError, match=reason):
        fintune.predict_file(place, source, "headline", tmp_path / "out.csv", **given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's, about itself
def test_a_cluster_that_loses_a_machine_ends_with_the_same_rows(place, source, undisturbed, tmp_path, monkeypatch):
    """And the file is read as it is answered: at the first part each actor has two groups at most."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'fintune[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    read, read_at_first_part = [], []

    def lose_a_machine():
        read_at_first_part.append(len(read))
        cluster.remove_node(machines[0], allow_graceful=False)

    def noted(*given):
        for group in open_groups(*given):
            read.append(group.start)
            yield group

    monkeypatch.setattr(files, "open_groups", noted)
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        written = at_first_part(monkeypatch, lose_a_machine)
        fintune.predict_file(place, source, "headline", tmp_path / "out.csv", processes=2, engine="ray", device="cpu")
        deadline = time.monotonic() + 60  # Ray notices a dead machine later than its actor
        while [node["Alive"] for node in ray.nodes()].count(True) != 2:  # the head and one machine
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(written) == len(read) == ROWS / 4 and read_at_first_part[0] <= 4
    assert (tmp_path / "out.csv").read_bytes() == undisturbed


class _Asked:
    """A question that notes when it reads and answers, and cannot read one text."""

    def __init__(self):
        self.steps = []
        self.is_read = threading.Event()

    def read(self, texts):
        if texts == ["unreadable"]:
            raise DataError("It cannot be read.", "Leave it out.")
        self.steps.append(("read", texts[0]))
        if texts == ["second"]:
            self.is_read.set()
        return texts

    def values(self, read):
        assert self.is_read.wait(60)  # the second group is read while the first is answered
        self.steps.append(("values", read[0]))
        return iter([[text.upper()] for text in read])


def test_a_process_reads_the_next_group_while_it_answers_one(monkeypatch):
    question, told = _Asked(), []
    monkeypatch.setattr(worker, "_tell", lambda stream, value: told.append(value))
    lines = SimpleQueue()
    for start, text in enumerate(["first", "second", "unreadable"]):
        lines.put(json.dumps({"start": start, "texts": [text]}))
    with pytest.raises(DataError, match="cannot be read"):
        worker.answer(question, lines, None)
    assert told == [{"start": 0, "values": [["FIRST"]]}, {"start": 1, "values": [["SECOND"]]}]
    assert question.steps.index(("read", "second")) < question.steps.index(("values", "first"))


class _Echo:
    """A process that answers at once."""

    def __init__(self):
        self.given = SimpleQueue()

    def give(self, group):
        self.given.put(group)

    def take(self):
        group = self.given.get()
        return {"start": group["start"], "values": [group["texts"]]}


def test_no_thread_is_left_behind_where_answers_are_not_read_to_their_end():
    before = set(threading.enumerate())
    answered = workers_module._side_by_side([_Echo(), _Echo()], (Group(start, ["x"]) for start in range(100)))
    next(answered)
    started = set(threading.enumerate()) - before
    answered.close()
    for thread in started:
        thread.join(timeout=10)
    assert started and not any(thread.is_alive() for thread in started)
