"""Answers of a given form: a JSON schema, any JSON object, or one of several texts, by llguidance.

Enters: a form and a tokenizer. Leaves: for each answer, which tokens may come next. llguidance was chosen because it
needs nothing but a tokenizer and gives a mask in under a millisecond, so it fits a batch in which every answer has
another form; it is Apache-licensed and the library behind vLLM's and llama.cpp's guidance backends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from copy import copy
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.serving.server.problems import HttpProblem, bad_request

# Of a request that any key may send: a grammar that takes more than a moment to read is refused.
_LIMITS = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "max_grammar_size": 100_000}
# What these limits do not count, and what takes more than about 0.2 s of one core: each of llguidance's automata of a
# multipleOf has as many states as its value has remainders (factors of 2 and 5 cost nothing), and names are compared
# in pairs, patterns of names by intersecting them.
_MOST_REMAINDERS, _MOST_NAMES, _MOST_PATTERNS = 10_000, 1_000, 20
# Without white space of free length, in which a small model may lose itself for good.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of the JSON texts that fit a schema.

    Raises:
        HttpProblem: llguidance does not know a keyword of it, or would take too long to read it.
    """
    from llguidance import LLMatcher

    _require_quick(schema)
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON))
    except ValueError as error:
        raise bad_request(f"The JSON schema cannot be used ({_line(error)}).", "invalid_schema") from error


def choice_grammar(choices: Sequence[str]) -> str:
    """The grammar of a few texts."""
    from llguidance import grammar_from

    return str(grammar_from("choice", json.dumps(list(choices))))


def grammar_tokenizer(tokenizer: Any, vocabulary: int, end_ids: Collection[int]) -> Any:
    """A tokenizer as llguidance takes it; a second of work, so it is kept.

    Args:
        tokenizer: fast tokenizer of transformers.
        vocabulary: number of the model's logits.
        end_ids: tokens that end an answer.
    """
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(end_ids))


def _require_quick(schema: dict[str, Any]) -> None:
    """Refuses what llguidance's own limits let through and what would hold the reader up for longer than a moment."""
    remainders, together, n_names, n_patterns = 0, 1, 0, 0
    open_parts: list[Any] = [schema]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, list):
            open_parts += part
        if not isinstance(part, dict):
            continue
        open_parts += part.values()
        n_names += sum(len(part[key]) for key in ("properties", "required") if isinstance(part.get(key), dict | list))
        patterns, multiple = part.get("patternProperties"), part.get("multipleOf")
        n_patterns += len(patterns) if isinstance(patterns, dict) else 0
        if isinstance(multiple, int | float):
            n = _remainders(multiple)
            remainders, together = remainders + n, math.lcm(together, n)  # allOf multiplies them
    if max(remainders, together) > _MOST_REMAINDERS:
        raise _too_costly("the values of multipleOf are too large")
    if n_names > _MOST_NAMES:
        raise _too_costly(f"it names {n_names:,} properties, of {_MOST_NAMES:,} that may be")
    if n_patterns > _MOST_PATTERNS:
        raise _too_costly(f"it has {n_patterns:,} patternProperties, of {_MOST_PATTERNS:,} that may be")


def _remainders(multiple: float) -> int:
    """States of the automaton of a multipleOf: its digits as a whole number, without factors of 2 and 5."""
    digits = "".join(map(str, Decimal(str(multiple)).as_tuple().digits)) if math.isfinite(multiple) else "0"
    n = int(digits)
    for factor in (2, 5):
        while n and n % factor == 0:
            n //= factor
    return max(n, 1)


def _too_costly(why: str) -> HttpProblem:
    return bad_request(f"The JSON schema takes too long to read: {why}.", "invalid_schema")


class Constraint:
    """The form of one answer while it is written.

    It is read once, where requests are read, as far as the first token: what waits then has its answer in time.

    Raises:
        HttpProblem: the grammar cannot be read, or is too large.
    """

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS, verbose_errors=False)
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not self._matcher.is_error():
            self._matcher.compute_bitmask()
        if self._matcher.is_error():
            message = f"The form asked for cannot be used ({_line(self._matcher.get_error())})."
            raise bad_request(message, "invalid_schema")

    def of_answer(self) -> Constraint:
        """The same form for one answer, as far as it is read; takes no time."""
        own = copy(self)
        own._matcher = self._matcher.deep_copy()
        return own

    def masked(self, logits: Tensor) -> Tensor:
        """(V,) logits with minus infinity where a token must not come.

        Raises:
            HttpProblem: the form has become too complex to go on with.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[-1]].astype(np.bool_)
        mask = torch.ones(logits.shape, dtype=torch.bool)
        mask[: len(allowed)] = torch.from_numpy(~allowed)
        return logits.masked_fill(mask.to(logits.device), -torch.inf)

    def take(self, token: int) -> bool:
        """Adds a token; True when nothing may follow.

        Raises:
            HttpProblem: as ``masked``.
        """
        self._matcher.consume_token(token)
        self._require_sound()
        return bool(self._matcher.is_stopped())

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            message = f"The answer could not be kept to its form ({_line(self._matcher.get_error())})."
            raise HttpProblem(400, message, "invalid_schema")


def _line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:200].rstrip(".")
