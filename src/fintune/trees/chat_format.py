"""Examples to tokens: the tokenizer's own chat template, applied once, with text kept text.

Three rules hold. User text never becomes control tokens: ``<|im_end|>`` in a headline is tokenised as characters.
The answer is supervised with its end-of-turn token, found by position and never by comparing with the pad id.
Truncation shortens the document, never the instruction or the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fintune.schema.errors import ModelError
from fintune.schema.example import Example, Message
from fintune.trees.encoded import EncodedExample
from fintune.trees.prefix_tree import IntArray

_READ_TOGETHER = 1024  # examples that the tokenizer is given in one call
MOST_KEPT = 20_000  # characters of a turn whose tokens stay in memory: longer ones are pages, which are not shared

# Characters of the Unicode private-use area stand in for control strings while a template is rendered.
_PLACEHOLDER = "\ue000{}\ue001"
_PLACEHOLDER_PATTERN = re.compile("\ue000(\\d+)\ue001")


class ChatFormat:
    """Renders and tokenises examples with a tokenizer's chat template.

    Args:
        tokenizer: fast tokenizer with a chat template.
        max_length: longest sample in tokens, answer included.
        end_of_turn: False tokenises as lm-evaluation-harness does, for comparison with it: an answer is what its text
            adds to the tokens of the prompt, white space at the prompt's end goes to the answer, no end of turn
            follows, and the tokenizer puts its opening token where the template wrote none.
        kept_pieces: tokenised turns, and as many answers, that stay in memory, as prompts share them.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, end_of_turn: bool = True, kept_pieces: int = 4096) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "The base model's tokenizer has no chat template.", "Set model.chat_template to plain or chatml."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.end_of_turn = end_of_turn
        # Added tokens that are not "special" (<tool_call>, </think>) steer a model too; the placeholder characters
        # are hidden like the rest, so that text holding them cannot be mistaken for a placeholder.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
        control = sorted(added | set(tokenizer.all_special_tokens) | {"\ue000", "\ue001"}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, control)))
        self._special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._kept_completion = lru_cache(maxsize=kept_pieces)(self._completion)
        self._boundaries = _independent_boundaries(tokenizer)
        self._piece_tokens = lru_cache(maxsize=kept_pieces)(self._encode_text)
        self._accepts_system = self._probe_system_role()

    def encode(self, example: Example, reserve: int = 0) -> EncodedExample | None:
        """Tokenises an example, or returns None when no document would be left within ``max_length``.

        ``reserve`` tokens are kept free for an answer that is not known yet.
        """
        messages, truncated = example.messages, False
        encoded = self._encode(messages, example, truncated)
        while (excess := _length(encoded, reserve) - self.max_length) > 0:
            shorter = self._shorten(messages, excess)
            if shorter is None:
                return None
            messages, truncated = shorter, True
            encoded = self._encode(messages, example, truncated)
        return encoded

    def encode_many(self, examples: Sequence[Example], reserve: int = 0) -> list[EncodedExample | None]:
        """``encode`` of each; the tokenizer reads them all in one call, on all cores."""
        if self._boundaries is None or not self.end_of_turn:
            return [self.encode(example, reserve) for example in examples]
        found: list[EncodedExample | None] = []
        for start in range(0, len(examples), _READ_TOGETHER):
            part = examples[start : start + _READ_TOGETHER]
            prompts = self._prompts([example.messages for example in part])
            for example, prompt in zip(part, prompts, strict=True):
                encoded = None if prompt is None else self._with_answers(example, prompt)
                fits = encoded is not None and _length(encoded, reserve) <= self.max_length
                found.append(encoded if fits else self.encode(example, reserve))
        return found

    def _prompts(self, conversations: Sequence[Sequence[Message]]) -> list[IntArray | None]:
        """Tokens of each prompt; None where its text holds control strings."""
        assert self._boundaries is not None
        hidden = [self._hidden(self._turns(messages), add_generation_prompt=True) for messages in conversations]
        split = [[] if control else [*filter(None, self._boundaries.split(text))] for text, control in hidden]
        pieces = list(dict.fromkeys(piece for pieces in split for piece in pieces))
        read = self.tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else []
        tokens = dict(zip(pieces, (np.asarray(ids, np.int64) for ids in read), strict=True))
        return [np.concatenate([tokens[piece] for piece in pieces]) if pieces else None for pieces in split]

    def _with_answers(self, example: Example, prompt: IntArray) -> EncodedExample:
        completion = self.completion(example.target) if example.target else np.zeros(0, np.int64)
        return EncodedExample(prompt, completion, tuple(map(self.completion, example.choices)), False)

    def _encode(self, messages: Sequence[Message], example: Example, truncated: bool) -> EncodedExample:
        answers = [*example.choices, *([example.target] if example.target else [])]
        if self.end_of_turn:
            prompt, tokens = self.prompt(messages), [self.completion(answer) for answer in answers]
        else:
            prompt, tokens = self._continued(messages, answers)
        completion = tokens[-1] if example.target else np.zeros(0, np.int64)
        return EncodedExample(prompt, completion, tuple(tokens[: len(example.choices)]), truncated)

    def _continued(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[IntArray, list[IntArray]]:
        """Tokens of the conversation, and what each answer's text adds to them when both are tokenised as one text."""
        text, control = self._hidden(self._turns(messages), add_generation_prompt=True)
        head, tail = self._before_last_turn(text)
        opening_and_head = np.concatenate([self._opening(text), self._shown(head, control)])
        context = self._shown(tail.rstrip(), control)
        tokens = {answer: self._shown(tail + answer, control)[len(context) :] for answer in dict.fromkeys(answers)}
        if melted := [answer for answer, added in tokens.items() if not len(added)]:
            raise ModelError(
                f"The answer {melted[0]!r} melts into the prompt's last token, so it cannot be scored on its own.",
                "Score with the end of turn, or choose another chat template.",
            )
        return np.concatenate([opening_and_head, context]), [tokens[answer] for answer in answers]

    def _before_last_turn(self, text: str) -> tuple[str, str]:
        """The text through its last added token, which answers leave as it is, and the rest."""
        ends = [match.end() for match in self._boundaries.finditer(text)] if self._boundaries else []
        if not ends or text[ends[-1] - 1].isspace():
            return "", text
        return text[: ends[-1]], text[ends[-1] :]

    def _opening(self, text: str) -> IntArray:
        """The special tokens the tokenizer puts before a text by itself, unless the text brings the first of them."""
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        if first is not None and text.startswith(self.tokenizer.decode(first)):
            return np.zeros(0, np.int64)
        plain, whole = self._encode_text("a").tolist(), list(self.tokenizer("a")["input_ids"])
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        return np.asarray(whole[: starts[0]] if starts else [], np.int64)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the template's end of turn and the tokenizer's end of text."""
        return frozenset({int(self.completion("x")[-1]), int(self.tokenizer.eos_token_id)})

    @property
    def opening_id(self) -> int:
        """What a plain text stands behind: the tokenizer's opening token, or its end of text where it has none."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def prompt(self, messages: Sequence[Message]) -> IntArray:
        """Tokens of the conversation up to where the assistant's answer starts."""
        return self._tokens(self._turns(messages), add_generation_prompt=True)

    def completion(self, target: str) -> IntArray:
        """Tokens of an answer and its end of turn, as they follow any prompt."""
        return self._kept_completion(target)

    def closed(self, messages: Sequence[Message]) -> IntArray:
        """Tokens of a conversation that ends with an answer, and of what the template writes after it."""
        return self._tokens(self._turns(messages), add_generation_prompt=False)

    def end_of_answer(self, answer: IntArray) -> int | None:
        """Where an answer ends: behind its first special token; None where the template writes none."""
        ends = (i for i, token in enumerate(answer.tolist()) if token in self._special_ids)
        return next((i + 1 for i in ends), None)

    def text(self, text: str) -> IntArray:
        """Tokens of a text without any template; control strings in it stay characters."""
        control: list[str] = []
        return self._shown(self._hide(text, control), control)

    def starts(self, text: str) -> list[int]:
        """The first character of every token of a text."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return [int(start) for start, _ in encoding["offset_mapping"]]

    def _completion(self, target: str) -> IntArray:
        question = {"role": "user", "content": "?"}
        prompt = self._tokens([question], add_generation_prompt=True)
        whole = self._tokens([question, {"role": "assistant", "content": target}], add_generation_prompt=False)
        if np.array_equal(whole[: len(prompt)], prompt):
            answer = whole[len(prompt) :]
        else:  # a template that treats the generation prompt apart (thinking models)
            ends = [token for token in whole.tolist() if token in self._special_ids]
            answer = np.asarray([*self._plain_tokens(target), *ends[-1:]], np.int64)
        return self._through_end_of_turn(answer)

    def _through_end_of_turn(self, answer: IntArray) -> IntArray:
        end = self.end_of_answer(answer)
        return np.append(answer, self.tokenizer.eos_token_id) if end is None else answer[:end]

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if not self._accepts_system and len(turns) > 1 and turns[0]["role"] == "system":
            system, first = turns[0], turns[1]
            turns = [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *turns[2:]]
        return turns

    def _probe_system_role(self) -> bool:
        from jinja2 import TemplateError

        probe = "\ue002system\ue002"
        try:
            rendered = self._render(
                [{"role": "system", "content": probe}, {"role": "user", "content": "?"}], add_generation_prompt=True
            )
        except TemplateError:
            return False
        return probe in rendered

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
            )
        )

    def _tokens(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> IntArray:
        return self._shown(*self._hidden(turns, add_generation_prompt=add_generation_prompt))

    def _hidden(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> tuple[str, list[str]]:
        """The rendered conversation with placeholders for the control strings of its text, and those strings."""
        control: list[str] = []
        turns = [{**turn, "content": self._hide(turn["content"], control)} for turn in turns]
        return self._render(turns, add_generation_prompt=add_generation_prompt), control

    def _hide(self, text: str, control: list[str]) -> str:
        """The text with placeholders for its control strings, which are added to ``control``."""

        def hide(match: re.Match[str]) -> str:
            control.append(match.group())
            return _PLACEHOLDER.format(len(control) - 1)

        return self._control.sub(hide, text)

    def _shown(self, rendered: str, control: Sequence[str]) -> IntArray:
        """Tokens of a rendered text, its placeholders replaced by the characters of what they stand for."""
        if not control or not rendered:
            return self._template_tokens(rendered)
        # Control strings in user text: tokenise the text around them as usual and themselves as characters.
        pieces = _PLACEHOLDER_PATTERN.split(rendered)  # text, number, text, number, ..., text
        tokens = [
            self._characters(control[int(piece)]) if odd else self._template_tokens(piece)
            for i, piece in enumerate(pieces)
            if (odd := i % 2) or piece
        ]
        return np.concatenate(tokens)

    def _template_tokens(self, text: str) -> IntArray:
        if self._boundaries is None:
            return self._encode_text(text)
        # Turns that many prompts share (instructions, shots) are tokenised once.
        pieces = [
            self._piece_tokens(piece) if len(piece) <= MOST_KEPT else self._encode_text(piece)
            for piece in self._boundaries.split(text)
            if piece
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _encode_text(self, text: str) -> IntArray:
        # The template has written BOS itself where the model wants one, hence no special tokens here.
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)

    def _plain_tokens(self, text: str) -> IntArray:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return np.asarray(ids, np.int64)

    def _characters(self, control: str) -> IntArray:
        # In two parts: tokenizers split special tokens on request, but keep other added tokens whole.
        return np.concatenate([self._plain_tokens(part) for part in (control[:1], control[1:]) if part])

    def _shorten(self, messages: tuple[Message, ...], excess: int) -> tuple[Message, ...] | None:
        """Cuts about ``excess`` tokens off the end of the last document; None when nothing would be left of it."""
        at = next((i for i in reversed(range(len(messages))) if messages[i].document), None)
        if at is None:
            return None
        message = messages[at]
        encoding = self.tokenizer(
            message.document, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        kept = len(encoding["input_ids"]) - excess
        document = message.document[: encoding["offset_mapping"][kept - 1][1]].rstrip() if kept > 0 else ""
        if len(document) >= len(message.document):
            document = message.document[:-1]
        if not document.strip():
            return None
        assert message.document_span is not None  # a message without a span has no document
        start, stop = message.document_span
        before, after = message.content[:start], message.content[stop:]
        shorter = replace(message, content=before + document + after, document_span=(start, start + len(document)))
        return (*messages[:at], shorter, *messages[at + 1 :])


def _length(encoded: EncodedExample, reserve: int) -> int:
    """Tokens of the prompt with its longest answer, ``reserve`` tokens at least."""
    return len(encoded.prompt) + max([reserve, len(encoded.completion), *map(len, encoded.choices)])


def _independent_boundaries(tokenizer: Any) -> re.Pattern[str] | None:
    """Where a tokenizer cuts every text first, so that the pieces can be tokenised apart; None where it may not.

    Fast tokenizers take added tokens out before anything else. A token that looks at its surroundings, or a
    pre-tokenizer that treats the start of a text apart, makes the pieces depend on each other.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not added or re.search(r'"prepend_scheme":\s*"first"', backend.to_str()):
        return None
    if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
        return None
    longest_first = sorted((token.content for token in added), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")
