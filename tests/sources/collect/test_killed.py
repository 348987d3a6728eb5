"""A collection that is killed again and again against a server full of faults: the same tables, nothing asked twice."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sources.collect.provider_server import EODHD_KEY, FINNHUB_KEY, number

FAULTS = [429, (429, "0"), 500, 503, "cut", "truncated", "empty", "html", "other", "close", "bytes"]
ORDER = {"names": ["AAPL", "BUSY", "BRK.B"], "first": "2024-01-01", "last": "2024-01-31"}
KILLS = 20


def faulty(url, attempt):
    """On average every other request fails, in a way that follows from its URL; one URL is slow as well."""
    if "profile2" in url and "BUSY" in url and attempt == 1:
        return "slow"
    if attempt > 4 or number("fault", url, attempt) < 0.5:
        return None
    return FAULTS[int(number("kind", url, attempt) * len(FAULTS))]


class Collections:
    """The process that forks collections."""

    def __init__(self):
        script = Path(__file__).with_name("forked_collections.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "FINNHUB_API_KEY": FINNHUB_KEY, "EODHD_API_KEY": EODHD_KEY},
        )  # fmt: skip
        self.said = []

    def start(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.wait_for("pid")

    def wait_for(self, key):
        for line in self.process.stdout:
            self.said.append(line)
            found = json.loads(line)
            if "error" in found:
                raise AssertionError(found["error"])
            if key in found:
                return found[key]
        raise AssertionError("".join(self.said))

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def collections():
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked, which this system cannot")
    found = Collections()
    yield found
    found.close()


def tables(folder):
    """Every file but the raw answers, without what says when something was retrieved."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != ".lock" and path.suffix != ".partial":
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in text.splitlines()]
                text = json.dumps([{**row, "retrieved_at": ""} for row in rows])
            if path.name == "prices.csv":
                text = "\n".join(line.rpartition(",")[0] for line in text.splitlines())
            found[path.name] = text
    return found


def nowhere(folder, said):
    for key in (FINNHUB_KEY, EODHD_KEY, EODHD_KEY.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
        assert key not in said
        assert not [path for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def order_for(server, folder):
    return {**ORDER, "folder": str(folder), "base_urls": server.base_urls}


def straight(server, collections, folder):
    collections.start(**order_for(server, folder))
    assert collections.wait_for("ended") == 0
    delivered = dict(server.delivered)
    server.delivered.clear()
    server.asked.clear()
    return tables(folder), delivered


def test_twenty_kills_change_nothing_and_nothing_is_fetched_twice(server, collections, tmp_path):
    plain, delivered = straight(server, collections, tmp_path / "straight")
    assert set(delivered.values()) == {1} and len(delivered) > 30
    assert set(plain) == {"universe.csv", "news.jsonl", "prices.csv", "profiles.jsonl", "financials.jsonl",
                          "collected.json"}  # fmt: skip

    server.fault = faulty
    moments, victims, asked_since = ["asked", "half"], queue.Queue(), [0]
    killed = []

    def kill_there(_, stage):
        """Kills at the third request of a run: when it has arrived, or when half of its answer is on the way."""
        asked_since[0] += stage == "asked"
        if len(killed) < KILLS and asked_since[0] >= 3 and stage == moments[len(killed) % 2]:
            asked_since[0] = -(10**9)  # once a run
            victim = victims.get()
            os.kill(victim, signal.SIGKILL)
            killed.append(stage)
            raise ConnectionResetError  # nobody is there to answer

    server.before = kill_there
    folder = tmp_path / "killed"
    endings = []
    while not endings or endings[-1] != 0:
        asked_since[0] = 0
        victims.put(collections.start(**order_for(server, folder)))
        endings.append(collections.wait_for("ended"))
        victims = queue.Queue()
        assert len(endings) < 3 * KILLS
    assert endings == [-signal.SIGKILL] * KILLS + [0]
    assert set(killed) == {"asked", "half"}
    assert tables(folder) == plain
    assert dict(server.delivered) == delivered  # the same answers, each sent whole once
    assert sum(server.asked.values()) > sum(delivered.values()) + KILLS  # the faults did happen
    nowhere(tmp_path, "".join(collections.said))
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize(("write", "whole"), [(1, False), (11, False), (2, True)])
def test_only_an_answer_that_was_written_in_part_is_asked_for_again(server, collections, tmp_path, write, whole):
    plain, delivered = straight(server, collections, tmp_path / "straight")
    folder = tmp_path / "killed"
    collections.start(**order_for(server, folder), die_at_write=write, whole=whole)
    assert collections.wait_for("ended") == -signal.SIGKILL
    assert len(list((folder / "raw").rglob("[!.]*.json"))) == write - 1
    assert len(list((folder / "raw").rglob(".*.partial"))) == 1
    collections.start(**order_for(server, folder))
    assert collections.wait_for("ended") == 0
    assert tables(folder) == plain
    assert sorted(server.delivered.values())[-2:] == [1, 1 if whole else 2] and set(server.delivered) == set(delivered)
    assert not list(folder.rglob("*.partial"))


def test_a_kill_while_the_tables_are_written_costs_no_request(server, collections, tmp_path):
    plain, delivered = straight(server, collections, tmp_path / "straight")
    folder = tmp_path / "killed"
    for table in (1, 3, 6):  # the universe, a table of rows, the report
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "straight" / "raw", folder / "raw")
        collections.start(**order_for(server, folder), die_at_write=table)
        assert collections.wait_for("ended") == -signal.SIGKILL
        assert len(list(folder.glob(".*.partial"))) == 1 and len(tables(folder)) == table - 1
        collections.start(**order_for(server, folder))
        assert collections.wait_for("ended") == 0
        assert tables(folder) == plain and not list(folder.glob(".*.partial"))
    assert not server.asked
