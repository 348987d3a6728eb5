"""Which of a split's examples a run uses, and how much each counts: a deterministic draw, weights by label."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from fintune.schema.example import Example

DRAW_SEED = 17
"""Of draws that must not depend on a run's seed, such as which held-out rows a limit keeps."""


def select_rows(
    examples: Sequence[Example], limit: int | None = None, balance: bool = False, seed: int = 17
) -> tuple[Example, ...]:
    """Draws at most ``limit`` examples, in shuffled order.

    With ``balance``, every label gives equally many rows: as many as the rarest has, or ``limit`` shared out (the
    first labels in alphabetical order take the remainder). The draw depends on the examples and the seed alone.
    """
    generator = random.Random(seed)
    shuffled = list(examples)
    generator.shuffle(shuffled)
    if balance:
        shuffled = _balanced(shuffled, limit)
        generator.shuffle(shuffled)
    return tuple(shuffled if limit is None else shuffled[:limit])


def _balanced(examples: Sequence[Example], limit: int | None) -> list[Example]:
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.target, []).append(example)
    if not by_label:
        return []
    rarest = min(len(rows) for rows in by_label.values())
    piles = [by_label[label][:rarest] for label in sorted(by_label)]
    dealt = [example for hand in zip_longest(*piles) for example in hand if example is not None]
    return dealt if limit is None else dealt[:limit]


def balanced_weights(examples: Sequence[Example]) -> list[float]:
    """One weight an example: all labels of a task weigh the same in sum, and a task's mean weight is 1."""
    counts = Counter((example.task, example.target) for example in examples)
    rows = Counter(example.task for example in examples)
    labels = Counter(task for task, _ in counts)
    return [rows[e.task] / (labels[e.task] * counts[e.task, e.target]) for e in examples]
