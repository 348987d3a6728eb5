"""The command as a process: it starts, says where, bears some load, and on SIGTERM lets an answer end."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import threading
from pathlib import Path

import httpx
import pytest
from tests.serving.server.conftest import chat
from tests.serving.server.test_limits import PATH

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "serve_load.py"
pytestmark = pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmarks are not part of this copy")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("serve_load", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_load"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["serve_load"]


def test_load_then_sigterm_in_the_middle_of_an_answer(bench, places, tmp_path):
    log = tmp_path / "log"
    named = [word for name, place in places.adapters.items() for word in ("--adapter", f"{name}={place}")]
    process, address, models = bench.start_server(str(places.base), named, log)
    try:
        assert models == ["tiny", "one", "two"]
        options = bench.parse(["--clients", "16", "--seconds", "2", "--tokens", "12", "--leaving", "0.1"])
        result, page = bench.asyncio.run(bench.load(address, models, process, options))
        assert result.failures == [] and set(result.statuses) == {"200"} and sum(result.statuses.values()) > 16
        assert bench.gauge(page, "fintune_answers_open") == 0
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            body = chat(text="a very secret prompt", max_tokens=300, stream=True, logit_bias={"2": -100})
            with client.stream("POST", PATH, json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                threading.Timer(0.1, process.send_signal, [signal.SIGTERM]).start()
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [event["event"] for event in events if event["event"] != "request"] == [
        "started", "draining", "drained", "stopped",
    ]  # fmt: skip
    assert "secret" not in log.read_text()
