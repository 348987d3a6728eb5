"""A conversation with a model: its turns, what of them the model still reads, and how it is kept in a file.

Enters: what the user says. Leaves: prompts that fit the model, the oldest exchanges left out where they do not; a line
of JSON in the format ``messages``, which a recipe's ``conversations:`` reads too.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.errors import DataError
from fintune.schema.example import Message
from fintune.schema.run_directory import write_text_atomically
from fintune.serving.asking import Asked, ask, room_for_prompt
from fintune.serving.writing import WritingOptions, Written, stream_written
from fintune.sources.text import without_lone_surrogates

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor

_ROLES = ("system", "user", "assistant")
_ANY_LENGTH = 2**31


@dataclass
class Conversation:
    """Turns with one model.

    Attributes:
        predictor: the model.
        options: lengths and sampling of the next answer.
        system: what the model is told before everything else; empty for nothing.
        turns: user and assistant in turn; all of them, whatever the model still reads.
        forgotten: exchanges at the beginning that were left out of the last answer's prompt to make it fit.
    """

    predictor: Predictor
    options: WritingOptions
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0

    def say(self, text: str) -> Generator[Written, None, None]:
        """Streams the answer to ``text``; both join the turns once it ends, or as far as it came when reading stops.

        Raises:
            FintuneError: nothing was said, or it does not fit the model; the conversation stays as it was.
        """
        question = Message("user", without_lone_surrogates(text))
        asked, forgotten = self._asked(question)
        last: Written | None = None
        try:
            with closing(stream_written(self.predictor, asked, self.options)) as steps:
                for last in steps:
                    yield last
        finally:
            if last is not None and (last.text or last.ended):
                self.turns += [question, Message("assistant", last.text)]
                self.forgotten = forgotten

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self.turns.clear()
        self.forgotten = 0

    def _asked(self, question: Message) -> tuple[Asked, int]:
        """The prompt with as many exchanges as fit, and how many are left out; one that is alone is cut."""
        window = room_for_prompt(self.predictor, self.options.max_new_tokens, self.options.max_prompt_tokens)
        exchanges = len(self.turns) // 2

        def without(first: int) -> Asked:
            messages = [*self._told(), *self.turns[2 * first :], question]
            most = window if first == exchanges else _ANY_LENGTH
            return ask(self.predictor, messages, most=most, chat=self.options.chat)

        whole = without(0)
        if not exchanges or len(whole.tokens) <= window:
            return whole, 0
        forgotten = bisect_left(range(exchanges), True, lo=1, key=lambda first: len(without(first).tokens) <= window)
        return without(forgotten), forgotten

    def messages(self) -> list[dict[str, str]]:
        """System message and turns, as role and content."""
        return [{"role": message.role, "content": message.content} for message in [*self._told(), *self.turns]]

    def _told(self) -> list[Message]:
        return [Message("system", without_lone_surrogates(self.system))] if self.system else []

    def save(self, file: Path) -> None:
        """Writes the conversation as one line of JSON, aside first.

        Raises:
            RunError: it cannot be written.
        """
        write_text_atomically(file, json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n")

    def load(self, file: Path) -> None:
        """Goes on with a saved conversation in place of this one.

        Raises:
            DataError: the file holds no conversation of whole exchanges.
        """
        try:
            with file.open(encoding="utf-8") as stream:
                messages = [_message(given) for given in json.loads(stream.readline())["messages"]]
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise _no_conversation(file) from error
        system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
            raise _no_conversation(file)
        self.system, self.turns, self.forgotten = system, messages, 0


def _message(given: Any) -> Message:
    role, content = given["role"], given["content"]
    if role not in _ROLES or not isinstance(content, str):
        raise ValueError(role)
    return Message(role, without_lone_surrogates(content))


def _no_conversation(file: Path) -> DataError:
    return DataError(
        f"The first line of {file} is no conversation of whole exchanges.",
        'It reads {"messages": [{"role": "user", "content": "..."}, ...]}, as /save writes it.',
    )
