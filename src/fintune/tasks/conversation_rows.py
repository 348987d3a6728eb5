"""Rows of chat data in their usual formats, as turns; and the first thing that is wrong with them.

Enters: a row as read and the ``conversations`` section. Leaves: ``Message`` objects, or the reason why there are none.
Formats: OpenAI's messages (role, content), ShareGPT's conversations (from, value), Alpaca's instruction, input and
output, a prompt and its completion, a question and its answer, plain documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fintune.schema.conversations import ConversationFormat, ConversationsSection
from fintune.schema.errors import DataError
from fintune.schema.example import Message, Role
from fintune.sources import RawTable, is_blank, missing_column

TURN_COLUMNS = ("messages", "conversations", "conversation", "turns")
_PAIR_COLUMNS: Mapping[str, tuple[str, str]] = {
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
}
_ROLES: Mapping[str, Role] = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "agent", "chatgpt"), "assistant"),
}
_COLUMN_IN_BRACES = re.compile(r"\{([^{}]+)\}")

Turns = tuple[Message, ...]


def pin_format(section: ConversationsSection, table: RawTable) -> ConversationsSection:
    """The section with its format found and its columns checked.

    Raises:
        DataError: the rows are in none of the formats, a column is not there, or rows that are whole conversations
            are to be joined.
    """
    first = next(iter(table.rows), {})
    found = (kind for row in table.rows if (kind := _detect(section, row)) is not None)
    kind = section.format if section.format != "auto" else next(found, None)
    if kind is None:
        raise DataError(
            f"The rows of {table.source} are in no format that is known; their columns are {', '.join(first)}.",
            "Name the columns with conversations.prompt and conversations.answer, conversations.text or "
            "conversations.turns.",
        )
    if section.conversation and kind not in _PAIR_COLUMNS:
        raise DataError(
            f"The rows of {table.source} are in format {kind}, but conversations.conversation joins rows of one "
            "exchange each.",
            "Take conversations.conversation out, or name the columns with conversations.prompt and "
            "conversations.answer.",
        )
    pinned = section.model_copy(update={"format": kind})
    for column in _columns(pinned):
        if not any(look_up(row, column) is not None for row in table.rows):
            raise missing_column(table.source, column, table.columns)
    if kind in ("messages", "sharegpt") and all(turns_column(pinned, row) is None for row in table.rows):
        raise DataError(
            f"{table.source} has no column with lists of turns; its columns are {', '.join(first)}.",
            "Name it with conversations.turns.",
        )
    return pinned


def parse_turns(raw: Mapping[str, Any], section: ConversationsSection) -> tuple[Turns, str]:
    """The turns of a row up to the first fault, and what that is ('' where there is none).

    A plain document is a single turn of the assistant.
    """
    if section.format == "text":
        text = _text_of(look_up(raw, section.text or "text"))
        return ((Message("assistant", text),), "") if text else ((), "row without text")
    if section.format in ("messages", "sharegpt"):
        turns, fault = _listed_turns(raw, section)
    else:
        turns, fault = _pair(raw, section)
    if turns and section.system and not (turns[0].role == "system" and turns[0].content):
        turns = (Message("system", section.system), *turns[turns[0].role == "system" :])
    sound, disorder = _sound_part(turns)
    return sound, fault if disorder == "conversation without an answer at its end" and fault else disorder or fault


def join_exchanges(table: RawTable, section: ConversationsSection) -> list[Mapping[str, Any]]:
    """Rows of one exchange each as rows of ``messages``, where the section names what joins them; else as they are.

    A conversation has the other columns of its first row. One of its exchanges without words is an empty turn. A row
    that names no conversation is one by itself.
    """
    if section.conversation is None:
        return list(table.rows)
    joined: dict[str | int, dict[str, Any]] = {}
    for number, row in enumerate(table.rows):
        cell = look_up(row, section.conversation)
        name = number if is_blank(cell) else str(cell)
        prompt, answer = _pair_of(row, section)
        whole = joined.setdefault(name, {**row, "id": str(name), "messages": []})
        whole["messages"] += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return list(joined.values())


def look_up(raw: Mapping[str, Any], column: str) -> Any:
    """The cell of a column; a dot looks into an object unless a column has that very name. None where there is none."""
    if column in raw or "." not in column:
        return raw.get(column)
    head, _, rest = column.partition(".")
    inner = raw.get(head)
    return look_up(inner, rest) if isinstance(inner, Mapping) else None


def turns_column(section: ConversationsSection, raw: Mapping[str, Any]) -> str | None:
    """The column with the list of turns."""
    if section.turns:
        return section.turns
    return next((name for name in TURN_COLUMNS if _is_list(raw.get(name))), None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _detect(section: ConversationsSection, first: Mapping[str, Any]) -> ConversationFormat | None:
    if section.text:
        return "text"
    if section.prompt or section.answer:
        return "question_answer"
    column = turns_column(section, first)
    if column is not None:
        turn = next(iter(look_up(first, column) or ()), None)
        if isinstance(turn, Mapping):
            return "messages" if "role" in turn else "sharegpt"
    names: tuple[ConversationFormat, ...] = ("alpaca", "prompt_completion", "question_answer")
    found = next((name for name in names if set(_PAIR_COLUMNS[name]) <= first.keys()), None)
    return found or ("text" if "text" in first else None)


def _columns(section: ConversationsSection) -> list[str]:
    """The columns that the format must have, those of the turns aside."""
    extra = [column for column in (section.conversation, section.group) if column]
    if section.format == "text":
        return [section.text or "text", *extra]
    if section.format in ("messages", "sharegpt"):
        return [*([section.turns] if section.turns else []), *extra]
    prompt, answer = _prompt_and_answer(section)
    return [*(_COLUMN_IN_BRACES.findall(prompt) or [prompt]), answer, *extra]


def _prompt_and_answer(section: ConversationsSection) -> tuple[str, str]:
    prompt, answer = _PAIR_COLUMNS[section.format]
    return section.prompt or prompt, section.answer or answer


def _pair_of(raw: Mapping[str, Any], section: ConversationsSection) -> tuple[str, str]:
    prompt, answer = _prompt_and_answer(section)
    asked = _worded(raw, prompt) if _COLUMN_IN_BRACES.search(prompt) else _text_of(look_up(raw, prompt))
    if section.format == "alpaca" and section.prompt is None and (given := _text_of(raw.get("input"))):
        asked = f"{asked}\n\n{given}" if asked else ""
    return asked, _text_of(look_up(raw, answer))


def _worded(raw: Mapping[str, Any], wording: str) -> str:
    """The wording with every column in braces replaced by its cell; nothing where a cell is empty."""
    cells = {name: _text_of(look_up(raw, name)) for name in _COLUMN_IN_BRACES.findall(wording)}
    return _COLUMN_IN_BRACES.sub(lambda match: cells[match[1]], wording).strip() if all(cells.values()) else ""


def _pair(raw: Mapping[str, Any], section: ConversationsSection) -> tuple[Turns, str]:
    prompt, answer = _pair_of(raw, section)
    if not prompt:
        return (), "row without a question"
    if not answer:
        return (), "row without an answer"
    return (Message("user", prompt), Message("assistant", answer)), ""


def _listed_turns(raw: Mapping[str, Any], section: ConversationsSection) -> tuple[Turns, str]:
    column = turns_column(section, raw)
    listed = look_up(raw, column) if column else None
    if not _is_list(listed) or not listed:
        return (), "row without turns"
    role_key, text_key = ("role", "content") if section.format == "messages" else ("from", "value")
    turns: list[Message] = []
    for turn in listed:
        if not isinstance(turn, Mapping):
            return tuple(turns), "turn that is no object"
        role, text = _ROLES.get(str(turn.get(role_key)).strip().lower()), _content(turn.get(text_key))
        if role is None:
            return tuple(turns), "turn of an unknown role"
        if text is None:
            return tuple(turns), "turn that is no text"
        turns.append(Message(role, text))
    return tuple(turns), ""


def _content(value: Any) -> str | None:
    """A turn's text; OpenAI's list of parts is joined where all of them are text. None for anything else."""
    if _is_list(value):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        return "\n".join(texts).strip() if len(texts) == len(parts) else None
    return "" if is_blank(value) else value.strip() if isinstance(value, str) else None


def _sound_part(turns: Turns) -> tuple[Turns, str]:
    """The exchanges before the first fault, with the system's message in front, and that fault."""
    system = turns[:1] if turns and turns[0].role == "system" and turns[0].content else ()
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    fault, sound = "", len(spoken)
    for position, turn in enumerate(spoken):
        fault = _fault(turn, position)
        if fault:
            sound = position
            break
    if not fault and sound % 2:
        fault = "conversation without an answer at its end"
    whole = spoken[: sound - sound % 2]
    return (*system, *whole) if whole else (), fault


def _fault(turn: Message, position: int) -> str:
    expected = ("user", "assistant")[position % 2]
    if turn.role != expected:
        return "conversation that does not begin with the user" if position == 0 else "roles that do not alternate"
    return "" if turn.content else "empty turn"


def _text_of(value: Any) -> str:
    return "" if is_blank(value) else str(value).strip()
