"""The log: what cannot be written is lost, and the server goes on."""

from __future__ import annotations

import errno
import logging
import shutil

from tests.serving.server.conftest import SETTINGS, chat, serving
from tests.serving.server.test_engine import until
from tests.serving.server.test_limits import PATH, code

from fintune.inference.continuous import SlotWriter
from fintune.serving.server.logs import ServerLog, collected
from fintune.serving.server.opening import Served


def test_a_full_disk_under_the_log_stops_nothing(places, tmp_path, monkeypatch):
    lines = []

    def write(line):
        if lines:
            raise OSError(errno.ENOSPC, "No space left on device")
        lines.append(line)

    # Leaving the block ends the server, and fails where it does not end.
    with (
        serving(Served(str(places.base), {}, tmp_path), SETTINGS, None, "none", write) as live,
        collected(live.service.server_log),
        live.client() as client,
    ):
        assert until(lambda: lines)
        for name in ("one", "two"):
            shutil.copytree(places.adapters[name], tmp_path / name)
        assert until(lambda: {"one", "two"} <= set(live.service.models.by_name))
        with monkeypatch.context() as patch:
            patch.setattr(SlotWriter, "_read_tree", lambda *given: 1 / 0)
            assert code(client.post(PATH, json=chat("tiny"))) == (500, "failed")
        assert client.post(PATH, json=chat("two")).status_code == 200


def test_a_message_whose_arguments_do_not_fit_is_still_a_line():
    lines = []
    with collected(ServerLog(lines.append)):
        logging.getLogger("fintune.anything").warning("%d of them", "many")
    assert len(lines) == 1 and '"%d of them"' in lines[0]
