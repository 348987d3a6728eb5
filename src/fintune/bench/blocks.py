"""The rows of a GPT's batch: the same tokens with documents run together, kept apart, or padded.

Enters: a piece of the token stream. Leaves: ``Rows``. All three forms predict the same targets; kept apart and padded
also see the same context, so that only their cost differs.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fintune.bench.texts import TokenStream
from fintune.trees.prefix_tree import IntArray

Layout = Literal["together", "apart", "padded"]
IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Rows of one batch.

    Attributes:
        tokens: (B, T).
        targets: (B, T) the token after each; ``IGNORED`` where there is none.
        positions: (B, T); they start again where a document is not to see the one before.
        row_end: (B * T,) for rows laid end to end, one past the last token that sees each token; None unless ``apart``.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    row_end: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """Tokens that are predicted."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        moved = {name: None if tensor is None else tensor.to(device) for name, tensor in vars(self).items()}
        return Rows(**moved)  # type: ignore[arg-type]  # the names are the fields'


def batches(
    stream: TokenStream, step: int, rows: int, context: int, layout: Layout, *, fixed: bool = False
) -> Iterator[Rows]:
    """The batches of one step, which together predict ``rows * context`` tokens.

    Args:
        stream: at least ``(step + 1) * rows * context + 1`` tokens.
        step: number of the step, from 0.
        rows: rows of a batch.
        context: tokens of a row.
        layout: documents of a row together, apart in one row, or each in a padded row of its own.
        fixed: padded batches are all (rows, context), for compiled code, instead of as wide as their longest row.
    """
    start = step * rows * context
    inputs = stream.tokens[start : start + rows * context].reshape(rows, context)
    targets = stream.tokens[start + 1 : start + 1 + rows * context].reshape(rows, context)
    cuts = stream.first[start : start + rows * context].reshape(rows, context)
    if layout == "padded":
        pieces = [piece for row in range(rows) for piece in _pieces(inputs[row], targets[row], cuts[row])]
        for first in range(0, len(pieces), rows):
            yield _padded(pieces[first : first + rows], (rows, context) if fixed else None)
        return
    positions = np.tile(np.arange(context), (rows, 1))
    if layout == "together":
        yield _rows(inputs, targets, positions)
        return
    ends = np.empty((rows, context), np.int64)
    for row in range(rows):
        bounds = _bounds(cuts[row])
        for begin, end in bounds:
            positions[row, begin:end] = np.arange(end - begin)
            ends[row, begin:end] = row * context + end
    yield _rows(inputs, targets, positions, ends.reshape(-1))


def _rows(tokens: IntArray, targets: IntArray, positions: IntArray, row_end: IntArray | None = None) -> Rows:
    end = None if row_end is None else torch.from_numpy(row_end)
    return Rows(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(positions), end)


def _bounds(cuts: Any) -> list[tuple[int, int]]:
    """First and one past the last token of each piece of a document within a row."""
    firsts = sorted({0, *np.flatnonzero(cuts).tolist()})
    return list(zip(firsts, [*firsts[1:], len(cuts)], strict=True))


def _pieces(inputs: Any, targets: Any, cuts: Any) -> list[tuple[Any, Any]]:
    return [(inputs[begin:end], targets[begin:end]) for begin, end in _bounds(cuts)]


def _padded(pieces: list[tuple[Any, Any]], shape: tuple[int, int] | None) -> Rows:
    shape = shape or (len(pieces), max(len(inputs) for inputs, _ in pieces))
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for row, (inputs, following) in enumerate(pieces):
        tokens[row, : len(inputs)], targets[row, : len(inputs)] = inputs, following
    positions = np.tile(np.arange(shape[1]), (shape[0], 1))
    return _rows(tokens, targets, positions)
