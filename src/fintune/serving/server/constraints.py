"""Answers of a given form: a JSON schema, any JSON object, or one of several texts, by llguidance.

Enters: a form and a tokenizer. Leaves: for each answer, which tokens may come next. llguidance was chosen because it
needs nothing but a tokenizer and gives a mask in under a millisecond, so it fits a batch in which every answer has
another form; it is Apache-licensed and the library behind vLLM's and llama.cpp's guidance backends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.serving.server.problems import HttpProblem, bad_request

# Of a request that any key may send: a grammar that takes more than a moment to read is refused.
_LIMITS = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "max_grammar_size": 100_000}
# Without white space of free length, in which a small model may lose itself for good.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of the JSON texts that fit a schema.

    Raises:
        HttpProblem: llguidance does not know a keyword of it.
    """
    from llguidance import LLMatcher

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


def require_usable(grammar: str, tokenizer: Any) -> None:
    """Reads a grammar once, before anything waits for its answer.

    Raises:
        HttpProblem: it cannot be read, or is too large.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**_LIMITS, verbose_errors=False)
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=limits)
    if failed:
        raise bad_request(f"The form asked for cannot be used ({_line(messages[0])}).", "invalid_schema")


class Constraint:
    """The form of one answer while it is written."""

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS, verbose_errors=False)
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)

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
