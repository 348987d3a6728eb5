"""What a client is told when a request cannot be answered, in OpenAI's error format.

Enters: a cause. Leaves: a status code and one sentence, without anything of the request's text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class HttpProblem(Exception):
    """A request ends with an error.

    Attributes:
        status: HTTP status code.
        message: one or two sentences.
        code: a word that programs can ask for.
        headers: further response headers.
    """

    status: int
    message: str
    code: str
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "request_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def encoded(self) -> bytes:
        """``body`` as JSON in ASCII: names of unknown fields may hold anything."""
        return json.dumps(self.body()).encode("ascii")


def bad_request(message: str, code: str = "invalid_request") -> HttpProblem:
    """The client's mistake."""
    return HttpProblem(400, message, code)


def too_busy(message: str, code: str, retry_after_s: float) -> HttpProblem:
    """Asked too much or too often; the header says when to come back, in whole seconds."""
    return HttpProblem(429, message, code, {"retry-after": str(max(1, -int(-retry_after_s // 1)))})
