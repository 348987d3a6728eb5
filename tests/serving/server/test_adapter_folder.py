"""The watched folder: what is broken in it is said and tried again, and the command's own models stay."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.serving.server.conftest import SETTINGS, chat, serving
from tests.serving.server.test_engine import CPU, until
from tests.serving.server.test_limits import PATH, code

from fintune.schema.errors import AdapterError
from fintune.serving.server import app, routes, watching
from fintune.serving.server.lanes import SlotLane
from fintune.serving.server.models import open_models
from fintune.serving.server.opening import Served, open_service
from fintune.serving.server.watching import AdapterFolder
from fintune.serving.switching import AdapterHost


@pytest.fixture
def folder(places, tmp_path):
    """A watched folder with a damaged adapter and two whole ones."""
    watched = tmp_path / "watched"
    for name in ("a_damaged", "b_large", "c_good"):
        shutil.copytree(places.adapters["two"], watched / name)
    (watched / "a_damaged" / "adapter_config.json").write_text("{")
    return watched


def test_what_cannot_be_loaded_is_tried_again_and_keeps_nothing_else_out(places, folder, monkeypatch):
    monkeypatch.setattr(watching, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(app, "LOOK_S", 0.1)
    add, failed = AdapterHost.add, []

    def short_of_memory(host, place):
        if "b_large" in str(place) and len(failed) < 2:
            failed.append(place)
            raise torch.OutOfMemoryError
        return add(host, place)

    monkeypatch.setattr(AdapterHost, "add", short_of_memory)
    named = {"one": str(places.adapters["one"])}
    with serving(Served(str(places.base), named, folder), SETTINGS, None, "none") as live, live.client() as client:
        assert client.post(PATH, json=chat("c_good", max_tokens=1)).status_code == 200
        assert code(client.post(PATH, json=chat("a_damaged"))) == (404, "model_not_found")
        assert until(lambda: client.post(PATH, json=chat("b_large", max_tokens=1)).status_code == 200), "memory is back"
        served = live.service.models.get("one")
        shutil.copytree(places.adapters["two"], folder / "one")
        assert until(lambda: ("one", "ignored") in results(live))
        shutil.rmtree(folder / "one")
        assert until(lambda: results(live).count(("one", "ignored")) == 2)
        assert live.service.models.get("one") is served and not served.retired
    told = [event for event in live.events() if event["event"] == "adapter"]
    assert results(live)[:3] == [("a_damaged", "failed"), ("b_large", "failed"), ("c_good", "loaded")]
    assert len(failed) == 2 and "adapter_config.json" in told[0]["message"] and "next try" in told[0]["message"]


def test_requests_for_a_model_that_is_changed_meanwhile_are_answered(places, tmp_path, monkeypatch):
    shutil.copytree(places.adapters["one"], tmp_path / "x")
    add, read = AdapterHost.add, routes.read_chat
    loading, go_on, reading = threading.Event(), threading.Event(), threading.Event()

    def slow_to_load(host, place):
        loading.set()
        assert go_on.wait(20)
        return add(host, place)

    def slow_to_read(*given):
        reading.set()
        assert until(lambda: len(results(live)) == 2), "the model is changed while its request is read"
        return read(*given)

    with serving(Served(str(places.base), {}, tmp_path), SETTINGS, None, "none") as live, ThreadPoolExecutor() as pool:

        def ask(path, **body):
            with live.client() as client:
                return client.post(path, json={"model": "x", **body})

        monkeypatch.setattr(AdapterHost, "add", slow_to_load)
        shutil.copytree(places.adapters["two"], tmp_path / "x", dirs_exist_ok=True)
        assert loading.wait(20)
        asked = [
            pool.submit(ask, "/v1/completions", prompt="Sales rose", max_tokens=2),
            pool.submit(ask, "/v1/classify", input="Sales rose", choices=["up", "down"]),
        ]
        assert until(lambda: live.service.engine._inbox.qsize() == 2), "both wait behind the load"
        monkeypatch.setattr(routes, "read_chat", slow_to_read)
        asked.append(pool.submit(ask, PATH, **chat("x", max_tokens=2)))
        assert reading.wait(20)
        go_on.set()
        assert [got.result(30).status_code for got in asked] == [200, 200, 200]
        assert results(live) == [("x", "loaded")] * 2
        peft = live.service.models.host.edge_model.model.peft_config
        assert until(lambda: len(peft) == 1), "the old one leaves memory then"
        shutil.rmtree(tmp_path / "x")
        assert until(lambda: len(results(live)) == 3) and code(ask(PATH, **chat("x"))) == (404, "model_not_found")


def results(live):
    return [(event["model"], event["result"]) for event in live.events() if event["event"] == "adapter"]


def test_a_change_that_failed_is_told_again_after_longer_and_longer_pauses(places, tmp_path):
    now = [0.0]
    folder = AdapterFolder(tmp_path, lambda: now[0])
    shutil.copytree(places.adapters["one"], tmp_path / "one")
    (change,) = folder.begin()
    pauses = []
    for _ in range(9):
        pauses.append(folder.failed(change))
        now[0] += pauses[-1] - 0.5
        assert folder.changes() == []
        now[0] += 0.5
        assert folder.changes() == [change] and folder.changes() == []
    assert pauses[:3] == [5, 10, 20] and pauses[-1] == 600
    folder.failed(change)
    (tmp_path / "one" / "README.md").write_text("changed")
    assert folder.changes() == [] and folder.changes() == [change], "at once, where something in it has changed"
    assert folder.failed(change) == 5
    shutil.rmtree(tmp_path / "one")
    assert [found.gone for found in folder.changes()] == [True]
    now[0] += 1000
    assert folder.changes() == []


def test_what_failed_and_is_copied_again_is_read_once_it_is_whole(places, tmp_path):
    now = [0.0]
    folder = AdapterFolder(tmp_path, lambda: now[0])
    shutil.copytree(places.adapters["one"], tmp_path / "one")
    (change,) = folder.begin()
    pause_s = folder.failed(change)
    for part in range(4):
        now[0] += pause_s
        (tmp_path / "one" / f"part{part}").write_text("copied")
        assert folder.changes() == []
    assert folder.changes() == [change] and folder.changes() == []


def test_a_sub_folder_that_cannot_be_looked_into_keeps_no_other_out(places, tmp_path, caplog):
    closed = tmp_path / "closed"
    closed.symlink_to("x" * 300)  # too long a name for any file system: an error whoever asks
    shutil.copytree(places.adapters["one"], tmp_path / "one")
    folder = AdapterFolder(tmp_path)
    assert folder.names() == ["one"] and [change.name for change in folder.begin()] == ["one"]
    shutil.copytree(places.adapters["two"], tmp_path / "two")
    assert folder.changes() == [] and [change.name for change in folder.changes()] == ["two"]
    assert caplog.text.count(str(closed)) == 1, "said once"
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "two").symlink_to("x" * 300)
    assert folder.changes() == folder.changes() == [], "what was read is served on"
    (tmp_path / "two").unlink()
    assert [change.gone for change in folder.changes()] == [True]


@pytest.mark.parametrize("name", ["tiny", "one", "two"])
def test_no_sub_folder_takes_a_name_of_the_command(places, tmp_path, name):
    shutil.copytree(places.adapters["two"], tmp_path / name)
    served = Served(str(places.adapters["one"]), {"two": str(places.adapters["two"])}, tmp_path)
    with pytest.raises(AdapterError, match=f"Two models are called {name}: "):
        open_service(served, SETTINGS, None, device=CPU, server_log=None)


def test_two_models_of_the_command_have_two_names(places):
    one = str(places.adapters["one"])
    with pytest.raises(AdapterError, match="Two models are called one"):
        open_models(
            one, {"one": places.adapters["two"]}, device=CPU, make_lane=lambda predictor: SlotLane(predictor, 2)
        )
