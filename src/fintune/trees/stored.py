"""Tokenised samples in flat files instead of one Python object each, so that a million of them cost no memory.

Enters: samples. Leaves: ``StoredSamples``, a sequence of equal samples read from a memory map. Other processes that
open the same folder share its pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from fintune.schema.run_directory import writing
from fintune.trees.prefix_tree import TokenSample

_TOKENS, _WEIGHTS, _PLACES = "tokens.i4", "weights.f8", "places.i8"
_FLUSH_AT = 4096  # samples written at once


class StoredSamples(Sequence[TokenSample]):
    """Samples that ``store_samples`` has written.

    Token ids take four bytes. Supervision is kept from the first weight that is not zero, so that a prompt costs none.

    Args:
        folder: where they lie; the files must stay as they are while this is in use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Each row: end of the sample's tokens, end of its weights, its index.
        self._places = _mapped(folder / _PLACES, np.int64).reshape(-1, 3)
        self._tokens = _mapped(folder / _TOKENS, np.int32)
        self._weights = _mapped(folder / _WEIGHTS, np.float64)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> TokenSample: ...

    @overload
    def __getitem__(self, place: slice) -> list[TokenSample]: ...

    def __getitem__(self, place: int | slice) -> TokenSample | list[TokenSample]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(place)
        first_token, first_weight = self._places[number - 1, :2].tolist() if number else (0, 0)
        end_token, end_weight, index = self._places[number].tolist()
        tokens = self._tokens[first_token:end_token].astype(np.int64)
        supervision = np.zeros(len(tokens))
        supervision[len(tokens) - (end_weight - first_weight) :] = self._weights[first_weight:end_weight]
        return TokenSample(tokens, supervision, index)


def store_samples(samples: Iterable[TokenSample], folder: Path) -> StoredSamples:
    """Writes samples, one after the other, into a new folder.

    Raises:
        RunError: they cannot be written.
    """
    ends = np.zeros(2, np.int64)
    with writing(folder):
        folder.mkdir(parents=True)
        with (
            (folder / _TOKENS).open("wb") as tokens,
            (folder / _WEIGHTS).open("wb") as weights,
            (folder / _PLACES).open("wb") as places,
        ):
            waiting: list[TokenSample] = []
            for sample in samples:
                waiting.append(sample)
                if len(waiting) == _FLUSH_AT:
                    ends, waiting = _write(waiting, ends, tokens, weights, places), []
            _write(waiting, ends, tokens, weights, places)
    return StoredSamples(folder)


def _write(
    samples: Sequence[TokenSample], ends: npt.NDArray[np.int64], tokens: BinaryIO, weights: BinaryIO, places: BinaryIO
) -> npt.NDArray[np.int64]:
    """Appends samples; returns where tokens and weights now end."""
    if not samples:
        return ends
    kept = [sample.supervision[_first_weight(sample) :] for sample in samples]
    sizes = np.asarray([(len(sample), len(part)) for sample, part in zip(samples, kept, strict=True)], np.int64)
    ids = np.concatenate([sample.tokens for sample in samples])
    assert not len(ids) or (ids.min() >= 0 and ids.max() <= np.iinfo(np.int32).max), "token ids are small numbers"
    until = ends + np.cumsum(sizes, axis=0)
    index = np.asarray([sample.index for sample in samples], np.int64)
    ids.astype(np.int32).tofile(tokens)
    np.concatenate(kept).tofile(weights)
    np.column_stack([until, index]).tofile(places)
    last: npt.NDArray[np.int64] = until[-1]
    return last


def _first_weight(sample: TokenSample) -> int:
    supervised = sample.supervision != 0
    return int(supervised.argmax()) if supervised.any() else len(sample)


def _mapped(path: Path, kind: type) -> npt.NDArray[Any]:
    """A plain array over the file's pages; slices of ``np.memmap`` itself are slow to make."""
    if not path.stat().st_size:  # nothing can be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, mode="r"))
