"""Every document of an evaluation with every system's answer, as data that the report page sorts and filters.

Enters: records. Leaves: one JSON text, by columns; the page's script is ``templates/documents.js``. Long texts are cut,
so that a page of many documents still opens at once, and the page says where.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fintune.reporting.run_data import presentable
from fintune.reporting.tables import answer_probability
from fintune.reporting.wording import SYSTEM_ORDER, system_name
from fintune.schema.results import DocumentRecord

MAX_DOCUMENTS = 50_000
_TEXT_BUDGET, _SHORTEST, _LONGEST = 6_000_000, 120, 2_000  # characters of all texts together, and of each
_ANSWER_CHARACTERS = 300
_PER_MILLE = 1000


@dataclass(frozen=True)
class Documents:
    """What the page needs.

    Attributes:
        data: JSON that is safe inside a ``script`` element.
        note: what was cut or left out, in a sentence or two.
    """

    data: str
    note: str


def documents_of(records: Sequence[DocumentRecord]) -> Documents | None:
    """The documents of all tasks; None without any. Of very many, those on which systems differ or err come first."""
    rows: dict[tuple[str, str], dict[str, DocumentRecord]] = {}
    for record in presentable(records):
        rows.setdefault((record.task, record.example_id), {}).setdefault(record.system, record)
    if not rows:
        return None
    kept = list(rows.values())
    if len(kept) > MAX_DOCUMENTS:
        # A stable sort: within either part the order stays.
        kept = sorted(kept, key=_of_little_interest)[:MAX_DOCUMENTS]
    length = max(_SHORTEST, min(_LONGEST, _TEXT_BUDGET // len(kept)))
    notes = [f"Answers are read by our rules; documents are cut at {length:,} characters."]
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept):,} further documents, on which all systems are right, are left out.")
    columns = _columns(kept, length)
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    return Documents(text.translate(_IN_SCRIPT), " ".join(notes))


# Within a script element, "</script>" and "<!--" would end or change it.
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def _of_little_interest(row: dict[str, DocumentRecord]) -> bool:
    return all(record.correct for record in row.values())


def _columns(rows: Sequence[dict[str, DocumentRecord]], length: int) -> dict[str, Any]:
    words: dict[str, int] = {}  # targets and answers repeat, so each is kept once

    def word(text: str) -> int:
        return words.setdefault(_cut(text, _ANSWER_CHARACTERS), len(words))

    first = [next(iter(row.values())) for row in rows]
    tasks = list(dict.fromkeys(record.task for record in first))
    choices = {task: next(r.choices for r in first if r.task == task) for task in tasks}
    present = dict.fromkeys(system for row in rows for system in row)
    systems = [s for s in SYSTEM_ORDER if s in present] + [s for s in present if s not in SYSTEM_ORDER]
    return {
        "tasks": tasks,
        "choices": [[_cut(choice, _ANSWER_CHARACTERS) for choice in choices[task]] for task in tasks],
        "task": [tasks.index(record.task) for record in first],
        "id": [record.example_id for record in first],
        "text": [_cut(record.text, length) for record in first],
        "target": [word(record.target) for record in first],
        "systems": [_system(system, [row.get(system) for row in rows], choices, word) for system in systems],
        "words": list(words),
    }


def _system(
    system: str, answers: Sequence[DocumentRecord | None], choices: dict[str, tuple[str, ...]], word: Any
) -> dict[str, Any]:
    """One system's column: the word answered (-1 missing, -2 not asked), whether it is right, and how sure it was."""
    return {
        "key": system,
        "name": system_name(system),
        "answer": [-2 if a is None else -1 if a.prediction is None else word(a.prediction) for a in answers],
        "right": "".join("1" if a is not None and a.correct else "0" for a in answers),
        "sure": [-1 if a is None or (p := answer_probability(a)) is None else round(_PER_MILLE * p) for a in answers],
        "shares": [_shares(a, choices) for a in answers],
        "written": {number: more for number, a in enumerate(answers) if (more := _written(a))},
    }


def _shares(answer: DocumentRecord | None, choices: dict[str, tuple[str, ...]]) -> list[int] | int:
    """Probabilities of all choices per mille; 0 where there are none, or of other choices than the task's."""
    if answer is None or not answer.probabilities or answer.choices != choices[answer.task]:
        return 0
    return [round(_PER_MILLE * share) for share in answer.probabilities]


def _written(answer: DocumentRecord | None) -> str:
    """The answer as given, where it says more than what was read out of it."""
    if answer is None or answer.output is None or answer.output.strip() == (answer.prediction or ""):
        return ""
    return _cut(answer.output, _ANSWER_CHARACTERS)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
