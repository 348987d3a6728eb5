"""Server-sent events that notice a client who has gone, or who does not read.

Enters: events. Leaves: ``data: {...}`` frames (WHATWG HTML, section 9.2), and a comment now and then while nothing
comes, so that proxies keep the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
QUIET_S = 15.0


class ClientGone(Exception):
    """The client has closed the connection."""


class SlowReader(Exception):
    """The client takes nothing any more."""


def frame(event: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):  # type: ignore[misc]  # FastAPI, an extra, passes on nothing but its own class
    """A response that an ASGI server runs.

    Args:
        events: frames; closed when the client goes.
        send_timeout_s: longest time for a client to take a frame.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], send_timeout_s: float) -> None:
        self._events, self._send_timeout_s = events, send_timeout_s
        self.background = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Sends the events until they end, or the client has gone.

        Raises:
            SlowReader: it did not take a frame in time; the server then drops the connection.
        """
        gone = asyncio.ensure_future(until_gone(receive))
        pending = asyncio.ensure_future(anext(self._events, None))  # begun at once: only then does closing it clean up
        try:
            await self._put(send, {"type": "http.response.start", "status": 200, "headers": HEADERS})
            while True:
                done, _ = await asyncio.wait({pending, gone}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
                if gone in done:
                    return
                piece = b": still waiting\n\n" if not done else pending.result()
                if piece is None:
                    break
                await self._put(send, {"type": "http.response.body", "body": piece, "more_body": True})
                if done:
                    pending = asyncio.ensure_future(anext(self._events, None))
            await self._put(send, {"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
            await self._events.aclose()

    async def _put(self, send: Send, message: MutableMapping[str, Any]) -> None:
        try:
            await asyncio.wait_for(send(message), self._send_timeout_s)
        except TimeoutError:
            raise SlowReader from None
