"""What a server allows: sizes, times and rates.

Enters: the command's options. Leaves: frozen values that all parts of the server read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyLimits:
    """What one key may ask for; None is no limit.

    Attributes:
        requests_per_minute: requests that are let in.
        tokens_per_minute: tokens read and written; a request reserves what it may take and gives back what it did not.
        max_concurrent: requests at the same time.
        max_new_tokens: tokens of one answer.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, for all keys together.

    Attributes:
        slots: answers of one adapter written at once; None takes what suits the device.
        max_waiting: answers, and requests read or classified, that may wait for a slot; more are refused with 429.
        max_body_bytes: largest request body.
        max_new_tokens: most tokens of an answer that a request may ask for.
        default_new_tokens: tokens of an answer where the request names no limit.
        max_prompt_tokens: longest prompt; None allows what the model's window holds beside the answer.
        max_answers: most prompts times answers of one request.
        max_inputs: most texts of one classification.
        max_classify_tokens: most tokens of one classification, texts and choices together.
        request_timeout_s: from a request's arrival to the end of its answer.
        body_timeout_s: for the whole body to arrive.
        send_timeout_s: for a client to take the next piece of a stream.
        stuck_s: a step of the engine that takes longer makes /health say so.
        drain_s: how long answers may take to end after SIGTERM.
        limits: of a key that has none of its own, and of everyone where there are no keys.
        log_text: write prompts and answers into the log.
    """

    slots: int | None = None
    max_waiting: int = 256
    max_body_bytes: int = 1 << 20
    max_new_tokens: int = 1024
    default_new_tokens: int = 256
    max_prompt_tokens: int | None = None
    max_answers: int = 32
    max_inputs: int = 256
    max_classify_tokens: int = 1 << 16
    request_timeout_s: float = 300.0
    body_timeout_s: float = 15.0
    send_timeout_s: float = 30.0
    stuck_s: float = 120.0
    drain_s: float = 30.0
    limits: KeyLimits = KeyLimits()
    log_text: bool = False
