"""What documents are compared by: windows of eight bytes, their MinHash bands, and a digest for equal ones.

Enters: a text. Leaves: arrays of unsigned 64-bit numbers. Windows are taken over a text's letters and digits alone, so
that eight of them are one number: sets are sorted arrays, and every figure here is exact but the bands, which propose.

Eight bytes, not the four letters of ``near``: two unrelated earnings calls share a large part of their four-letter
windows, and nearly all pairs would have to be compared (figures in docs/experiments.md).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fintune.sources.near import bands_and_rows
from fintune.sources.text import normalise_text

WINDOW_BYTES = 8
_SEED = 17
_AT_ONCE = 128
_ONE_BYTE = np.uint64(8)
Hashes = npt.NDArray[np.uint64]


def digest_of(key: str) -> int:
    """A number of 64 bits that equal normalised texts share; others do with a probability of 5e-20 a pair."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def compared_by(text: str) -> str:
    """The letters and digits of a text, or the text itself where it has none."""
    return normalise_text(text) or text


def windows(key: str) -> Hashes:
    """(W,) the distinct windows of a normalised text in order; none for one that is shorter than a window."""
    raw = np.frombuffer(key.encode("utf-8", "surrogatepass"), np.uint8)
    if len(raw) < WINDOW_BYTES:
        return np.zeros(0, np.uint64)
    packed = np.zeros(len(raw) - WINDOW_BYTES + 1, np.uint64)
    for offset in range(WINDOW_BYTES):
        packed = (packed << _ONE_BYTE) | raw[offset : offset + len(packed)]
    packed.sort()
    distinct: Hashes = packed[np.append(True, packed[1:] != packed[:-1])]
    return distinct


def similarity(left: Hashes, right: Hashes) -> float:
    """Jaccard similarity of two sets of windows; 0 for two empty ones."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / max(1, len(left) + len(right) - shared)


def band_hashes(found: Hashes, threshold: float) -> Hashes:
    """(B,) one number a band; texts are compared where one of them agrees and is not 0. See ``near.bands_and_rows``."""
    if not len(found):
        return np.zeros(bands_and_rows(threshold)[0], np.uint64)
    n_bands, rows = bands_and_rows(threshold)
    multipliers, shifts = _permutations(n_bands * rows)
    least = np.full(n_bands * rows, np.iinfo(np.uint64).max, np.uint64)
    mixed = _mixed(found)
    for start in range(0, len(mixed), _AT_ONCE):  # as much as the processor's cache holds
        part = mixed[start : start + _AT_ONCE, None] * multipliers + shifts
        np.minimum(least, part.min(axis=0), out=least)
    bands = np.zeros(n_bands, np.uint64)
    for row in least.reshape(n_bands, rows).T:
        bands = _mixed(bands ^ row)
    return bands


def _mixed(values: Hashes) -> Hashes:
    """Numbers spread over all 64 bits (the finaliser of SplitMix64, Steele and others 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: Hashes = values ^ (values >> np.uint64(31))
    return spread


@lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[Hashes, Hashes]:
    drawn = np.random.default_rng(_SEED).integers(0, 2**63, (2, count), np.uint64)
    return drawn[0] << np.uint64(1) | np.uint64(1), drawn[1]
