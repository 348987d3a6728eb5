"""Numbers that a written answer states: those of the reference, those of the question, and invented ones.

Enters: texts. Leaves: counts to be added up over documents. A number is told by its size as written and as meant
("$1.2 billion" is 1,200 million, "46.8%" is 46.8 and 0.468); digits within words ("10-K", "Q3") are none.
"""

from __future__ import annotations

import math

from fintune.metrics.numbers import Quantity, quantities_in


def number_counts(answer: str, reference: str, question: str) -> dict[str, float]:
    """What an answer's numbers are, as counts for ``numbers_right`` and ``invented_numbers``.

    Returns:
        ``numbers_expected`` of the reference that are not in the question already, ``numbers_found`` of these in the
        answer, ``numbers_said`` in the answer, ``numbers_invented`` of these that neither reference nor question has.
    """
    said, asked = _distinct(answer), _distinct(question)
    expected = [number for number in _distinct(reference) if not _among(number, asked)]
    return {
        "numbers_expected": float(len(expected)),
        "numbers_found": float(sum(_among(number, said) for number in expected)),
        "numbers_said": float(len(said)),
        "numbers_invented": float(sum(not _among(number, [*expected, *asked]) for number in said)),
    }


def _distinct(text: str) -> list[Quantity]:
    found: list[Quantity] = []
    for number in quantities_in(text):
        if not _among(number, found):
            found.append(number)
    return found


def _among(number: Quantity, others: list[Quantity]) -> bool:
    return any(_agree(number, other) for other in others)


def _agree(first: Quantity, second: Quantity) -> bool:
    """Whether two numbers are one but for sign: at their word, or per cent against a bare number."""
    if math.isclose(abs(first.literal), abs(second.literal), rel_tol=1e-9):
        return True
    return first.percent != second.percent and math.isclose(abs(first.value), abs(second.value), rel_tol=1e-9)
