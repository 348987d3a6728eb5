"""The registry of adapters: what it keeps, refuses and survives."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.forks import forks
from tests.models import stored_adapters as samples
from tests.models.stored_adapters import write_adapter

from fintune.models import adapter_registry
from fintune.models.adapter_registry import add_adapter, remove_adapter, verify_adapters
from fintune.schema.adapter_records import (
    adapter_place,
    find_stored,
    get_stored,
    names,
    read_stored,
    registry_root,
    require_place,
    stored_adapters,
    versions,
)
from fintune.schema.errors import AdapterError, RunError

KILLS = int(os.environ.get("FINTUNE_TEST_KILLS", "30"))
pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def source(tmp_path):
    return write_adapter(tmp_path / "source")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_versions_are_copies_and_count_up(source, tmp_path):
    before = bytes_of(source)
    assert [add_adapter(source, "fin").record.version for _ in range(2)] == [1, 2]
    (source / "adapter_model.safetensors").unlink()
    stored = get_stored(registry_root(), "fin@1")
    assert bytes_of(stored.path) == before
    assert get_stored(registry_root(), "fin").record.version == 2
    assert adapter_place("fin") == get_stored(registry_root(), "fin").path
    assert names(registry_root()) == ["fin"]


def test_a_removed_number_is_not_given_again(source):
    for _ in range(3):
        add_adapter(source, "fin")
    assert remove_adapter("fin@3") == ("fin@3",)
    assert add_adapter(source, "fin").record.version == 4
    assert remove_adapter("fin") == ("fin@1", "fin@2", "fin@4")
    assert names(registry_root()) == [] and find_stored(registry_root(), "fin") is None
    assert add_adapter(source, "fin").record.version == 5


def test_what_is_no_part_of_an_adapter_is_named_and_left_out(source):
    (source / "training_args.bin").write_bytes(b"pickled")
    (source / "checkpoint-1").mkdir()
    record = add_adapter(source, "fin").record
    assert record.left_out == ("checkpoint-1", "training_args.bin")
    assert set(record.files) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a@1", "a b", "x" * 65, "smollm2-135m", "ä"])
def test_names_that_cannot_be_used(source, name):
    with pytest.raises(AdapterError):
        add_adapter(source, name)
    assert not registry_root().exists()


def test_pickled_and_whole_models_are_refused(tmp_path):
    pickled = write_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled"):
        add_adapter(pickled, "fin")
    whole = tmp_path / "whole"
    shutil.copytree(write_adapter(tmp_path / "lora", base_hash="0" * 64), whole)
    note = json.loads((whole / "fintune_base.json").read_text())
    (whole / "fintune_base.json").write_text(json.dumps(note | {"kind": "full"}))
    with pytest.raises(AdapterError, match="no adapter"):
        add_adapter(whole, "fin")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match="not trained to its end"):
        add_adapter(tmp_path / "run", "fin")


def test_unknown_names_give_the_nearest(source):
    for name in ("sentiment", "sentinel", "headlines"):
        add_adapter(source, name)
    with pytest.raises(AdapterError, match=r"called sentimnt\. The nearest are sentiment"):
        get_stored(registry_root(), "sentimnt")
    with pytest.raises(AdapterError, match=r"no version 7\. Its versions are 1"):
        adapter_place("sentiment@7")
    with pytest.raises(AdapterError, match="no adapter called"):
        require_place("nothing")
    assert adapter_place("nothing") == Path("nothing")  # may be a hub id
    assert require_place("no/such/folder") == Path("no/such/folder")  # reads as a path


def test_a_path_wins_over_a_name(source, tmp_path, monkeypatch):
    add_adapter(source, "fin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fin").mkdir()
    assert adapter_place("fin") == Path("fin")
    assert adapter_place("fin@1") == get_stored(registry_root(), "fin").path


def test_verify_finds_what_changed_is_missing_or_was_put_in(source):
    for _ in range(4):
        add_adapter(source, "fin")
    checked, damage = verify_adapters()
    assert checked == ("fin@1", "fin@2", "fin@3", "fin@4") and damage == []
    one, two, three, four = (get_stored(registry_root(), f"fin@{version}").path for version in (1, 2, 3, 4))
    weights = one / "adapter_model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time as before
    (two / "adapter_config.json").unlink()
    (three / "extra.json").write_text("{}")
    (four.parent / "record.json").write_text("{")
    found = {item.reference: item.problem for item in verify_adapters()[1]}
    assert set(found) == {"fin@1", "fin@2", "fin@3", "fin@4"}
    assert "changed" in found["fin@1"] and "missing" in found["fin@2"] and "was not there" in found["fin@3"]
    assert "damaged" in found["fin@4"]
    assert [stored.record.version for stored in stored_adapters(registry_root())] == [1, 2, 3]
    assert remove_adapter("fin@4") == ("fin@4",)  # damaged ones can still be removed


def test_parents_are_not_removed_under_their_children(source):
    parent = add_adapter(source, "first").record
    origin = adapter_registry.Origin(parents=(parent.as_parent(),))
    add_adapter(source, "second", origin=origin)
    with pytest.raises(AdapterError, match="first@1 is a parent of second@1"):
        remove_adapter("first")
    assert remove_adapter("first", force=True) == ("first@1",)
    add_adapter(source, "third")
    add_adapter(source, "third", origin=adapter_registry.Origin(parents=(get_parent("third@1"),)))
    assert remove_adapter("third") == ("third@1", "third@2")  # child and parent together


def get_parent(reference):
    return get_stored(registry_root(), reference).record.as_parent()


def test_an_adapter_that_changes_while_it_is_copied_is_refused(source, monkeypatch):
    copy = shutil.copyfile

    def changing(origin, target):
        copy(origin, target)
        if Path(target).suffix == ".safetensors":
            write_adapter(source.with_name("other"), seed=1)
            copy(source.with_name("other") / "adapter_model.safetensors", target)

    monkeypatch.setattr(adapter_registry.shutil, "copyfile", changing)
    with pytest.raises(AdapterError, match="changed while it was copied"):
        add_adapter(source, "fin")
    assert names(registry_root()) == [] and list(registry_root().glob(".adding-*")) == []


PATH = pathlib.Path
OPERATIONS = [
    ("add", shutil, "copyfile"),
    ("add", os, "fsync"),
    ("add", PATH, "mkdir"),
    ("add", PATH, "rename"),
    ("add", PATH, "write_text"),
    ("remove", os, "fsync"),
    ("remove", PATH, "mkdir"),
    ("remove", PATH, "rename"),
    ("remove", PATH, "touch"),
]


@pytest.mark.parametrize(("action", "owner", "name"), OPERATIONS, ids=[f"{row[0]}-{row[2]}" for row in OPERATIONS])
def test_each_file_operation_may_fail_in_its_turn(source, monkeypatch, action, owner, name):
    expected = bytes_of(source)
    add_adapter(source, "fin")
    real, calls, failed_at = getattr(owner, name), 0, 0

    def failing(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == failed_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    failures = 0
    for failed_at in range(1, 40):
        calls, before = 0, versions(registry_root(), "fin")
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing)
            try:
                if action == "add":
                    add_adapter(source, "fin")
                else:
                    remove_adapter(f"fin@{before[-1]}")
            except RunError as error:
                failures += 1
                assert "No space left" in str(error)
        there = versions(registry_root(), "fin")
        assert set(there) - set(before) <= {max(before) + 1} if action == "add" else set(there) <= set(before)
        for version in there:
            assert bytes_of(read_stored(registry_root(), "fin", version).path) == expected
        if calls < failed_at:
            break
        if not there or action == "remove":
            add_adapter(source, "fin")
    assert calls < failed_at
    assert verify_adapters()[1] == []
    add_adapter(source, "fin")
    assert leftovers() == []
    assert failures


def leftovers() -> list[str]:
    return [path.name for path in registry_root().glob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def context():
    return forks()


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_versions(context, own_home, tmp_path):
    source = write_adapter(tmp_path / "large", width=1024, rank=16)
    expected = bytes_of(source)
    generator, acknowledged, gone, doomed = random.Random(17), set(), set(), set()
    inside, longest = 0, 0.0
    for number in range(KILLS):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=samples.keep_changing, args=(send, str(own_home), str(source)))
        process.start()
        send.close()
        assert receive.recv()[0] == "ready"
        if number == 0:  # one whole round of two additions and a removal, to know how long it takes here
            begun, told = time.monotonic(), [receive.recv() for _ in range(3)]
            longest = time.monotonic() - begun
            acknowledged.add(told[0][1])
            doomed.add(told[1][1])
            gone.add(told[2][1])
        time.sleep(generator.uniform(0.0, 1.2 * longest))
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        while True:
            try:
                word, reference = receive.recv()
            except EOFError:
                break
            {"added": acknowledged, "removing": doomed, "removed": gone}[word].add(reference)
        receive.close()
        inside += bool(leftovers())
        there = {f"kept@{version}" for version in versions(registry_root(), "kept")}
        assert acknowledged - doomed <= there and not gone & there
        for stored in stored_adapters(registry_root()):
            assert bytes_of(stored.path) == expected, stored.record.reference
        assert verify_adapters()[1] == []
    highest = max(versions(registry_root(), "kept"))
    assert add_adapter(source, "kept").record.version == highest + 1
    assert leftovers() == []
    print(f"{KILLS} kills, {inside} of them inside a change; {len(acknowledged)} adds and {len(gone)} removals told")
    assert inside >= KILLS / 4 and gone


def test_two_processes_add_at_the_same_time(context, own_home, source):
    workers = [
        context.Process(target=samples.add_some, args=(str(own_home), str(source), 6), daemon=True) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert versions(registry_root(), "kept") == list(range(1, 13))
    assert verify_adapters()[1] == []


def test_a_change_waits_for_another_process(source, monkeypatch):
    from filelock import FileLock

    registry_root().mkdir(parents=True)
    monkeypatch.setattr(adapter_registry, "LOCK_SECONDS", 0.05)
    with FileLock(registry_root() / ".lock"), pytest.raises(AdapterError, match="Another process"):
        add_adapter(source, "fin")
