"""One server for all tests of this folder: a tiny base with two adapters, behind real HTTP on a free port."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import httpx
import pytest
import torch
from openai import OpenAI
from tests.inference.test_equality import with_random_adapter

from fintune.models.tiny import write_tiny_model
from fintune.serving.server.keys import add_key
from fintune.serving.server.logs import ServerLog
from fintune.serving.server.opening import Served, open_service
from fintune.serving.server.running import Running, address_of, listen
from fintune.serving.server.settings import KeyLimits, ServerSettings

SETTINGS = ServerSettings(
    slots=4,
    max_waiting=64,
    max_body_bytes=200_000,
    max_new_tokens=512,
    request_timeout_s=60,
    body_timeout_s=3,
    send_timeout_s=5,
)


@dataclass
class Live:
    """A running server, and how to ask it."""

    address: str
    service: object
    running: Running
    key: str
    lines: list[str] = field(default_factory=list)

    def client(self, key: str | None = None, **options) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, trust_env=False, **options)

    @cached_property
    def openai(self) -> OpenAI:
        http = httpx.Client(trust_env=False)
        return OpenAI(base_url=f"{self.address}/v1", api_key=self.key, max_retries=0, http_client=http)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]

    def on_loop(self, function):
        """What a function returns when the server's event loop calls it."""

        async def call():
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.running._loop).result(10)


@dataclass(frozen=True)
class Places:
    base: Path
    adapters: dict[str, Path]


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> Places:
    folder = tmp_path_factory.mktemp("served")
    base = write_tiny_model(folder / "tiny")
    adapters = {}
    for name, spread in (("one", 0.3), ("two", 0.6)):
        adapters[name] = folder / name
        with_random_adapter(base, spread).save_pretrained(adapters[name])
    return Places(base, adapters)


@contextmanager
def serving(
    served: Served, settings: ServerSettings, keys: Path | None, key: str, write: Callable[[str], None] | None = None
) -> Iterator[Live]:
    lines: list[str] = []
    opened = listen("127.0.0.1", 0)
    log = ServerLog(write or lines.append, settings.log_text)
    service = open_service(served, settings, keys, device=torch.device("cpu"), server_log=log)
    running, started = Running(service, opened), threading.Event()
    thread = threading.Thread(target=running.run, args=(started.set,))
    thread.start()
    try:
        assert started.wait(30)
        live = Live(address_of(opened), service, running, key, lines)
        yield live
        if "openai" in vars(live):
            live.openai.close()
    finally:
        running.stop()
        thread.join(30)
        opened.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def live(places, tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("watched")
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(keys, "desk")
    add_key(keys, "other", KeyLimits(requests_per_minute=3))
    named = {name: str(place) for name, place in places.adapters.items()}
    with serving(Served(str(places.base), named, folder), SETTINGS, keys, key) as found:
        yield found


@pytest.fixture
def another(places):
    """Starts a further server with other settings."""

    def start(**changes):
        named = {name: str(place) for name, place in places.adapters.items()}
        return serving(Served(str(places.base), named), replace(SETTINGS, **changes), None, "none")

    return start


def chat(model: str = "one", text: str = "Shares of the bank fell", **options) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **options}
