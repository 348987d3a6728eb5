"""Running a server: the socket, uvicorn, and an end that lets answers finish.

Enters: a service and an address. Leaves: nothing, once SIGTERM or Ctrl-C came and the open requests have ended. From
the signal on new requests get 503, so that a load balancer turns away; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import uvicorn

from fintune.schema.errors import RunError
from fintune.serving.server.app import Service

BACKLOG = 1024
MOST_CONNECTIONS = 2048


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, *, send_timeout_s: float = 30.0) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        RunError: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as closing:
            opened = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it: the kernel drops one whose client takes nothing for so long.
            with suppress(AttributeError, OSError):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * send_timeout_s))
            opened.bind((host, port))
            opened.listen(BACKLOG)
            closing.pop_all()
    except OSError as error:
        raise RunError(
            f"The server cannot listen at {host}:{port} ({error.strerror or error}).",
            "Choose another --port or --host.",
        ) from error
    return opened


def address_of(opened: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Running:
    """One server; ``run`` serves until it is told to stop.

    Args:
        service: what is served.
        opened: the socket.
    """

    def __init__(self, service: Service, opened: socket.socket) -> None:
        self._service, self._socket = service, opened
        config = uvicorn.Config(
            service.guard,
            lifespan="on",
            log_config=None,
            log_level="critical",  # the guard notes every request, and what failed in it
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            limit_concurrency=MOST_CONNECTIONS,
            ws="none",
        )
        self.server = uvicorn.Server(config)
        self.server.handle_exit = self._told_to_stop
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, on_started: Callable[[], None] = lambda: None) -> None:
        """Serves; returns when all is over.

        Raises:
            RunError: the server did not start.
        """
        asyncio.run(self._serve(on_started))

    async def _serve(self, on_started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        telling = asyncio.ensure_future(self._tell(on_started))
        try:
            await self.server.serve(sockets=[self._socket])
        except SystemExit:
            raise RunError("The server did not start; the log says why.") from None
        finally:
            telling.cancel()

    async def _tell(self, on_started: Callable[[], None]) -> None:
        while not self.server.started:
            await asyncio.sleep(0.01)
        on_started()

    def _told_to_stop(self, number: int, frame: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes no more requests and ends when those that are open have; called again, it ends at once."""
        if self._service.guard.draining:
            self.server.force_exit = self.server.should_exit = True
            return
        self._service.guard.draining = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        service, until = self._service, time.monotonic() + self._service.settings.drain_s
        try:
            service.server_log.event("draining", open=service.guard.open)
            while service.guard.open and time.monotonic() < until:
                await asyncio.sleep(0.05)
            service.server_log.event("drained", open=service.guard.open)
        finally:
            self.server.should_exit = True
