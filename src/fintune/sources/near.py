"""Near-duplicates: texts that share most of their four-letter shingles, found by MinHash and checked exactly.

Enters: two lists of texts and a threshold. Leaves: for each text, the positions of its near-duplicates. Hashing only
proposes pairs; every pair that is reported has at least the stated Jaccard similarity, so only recall depends on it.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import RecipeError
from fintune.sources.text import normalise_text

SHINGLE = 4
"""Letters and digits a shingle. Blanks are not among them, so that texts equal after normalising have equal sets.
Measured in benchmarks/near_duplicates.py: with more, one replaced word costs a tweet too much of its similarity; with
fewer, headlines that share only their vocabulary come too close."""

MIN_THRESHOLD = 0.1
"""Below it hundreds of hashes a text would be needed, and hardly a pair of texts in one language is less similar."""

_RECALL = 0.999
_MAX_HASHES = 256
_SEED = 17
_AT_ONCE = 1024
_Hashes = npt.NDArray[np.uint32]


def near_duplicates(texts: Sequence[str], corpus: Sequence[str], *, threshold: float) -> list[tuple[int, ...]]:
    """Finds, for each text, the texts of ``corpus`` whose shingle sets have a Jaccard similarity >= ``threshold``.

    Texts are compared after ``normalise_text``. Those equal after it always match, however short; those with fewer
    letters than a shingle match nothing else, and those with none at all (only a link) match nothing. A pair just at
    the threshold is found with a probability of 99.9 % (see ``bands_and_rows``), a more similar pair with a higher one.

    Returns:
        One tuple a text: ascending positions in ``corpus``.
    """
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(corpus):
        positions.setdefault(normalise_text(text), []).append(position)
    keys = [normalise_text(text) for text in texts]
    similar = NearSearch(positions, threshold).twins(keys)
    return [tuple(sorted(place for twin in similar[key] for place in positions[twin])) for key in keys]


class NearSearch:
    """Normalised texts to be searched: hashed once, when first asked, and each text is looked up once.

    Args:
        corpus: texts after ``normalise_text``.
        threshold: Jaccard similarity of shingles from which two texts are near-duplicates.

    Raises:
        RecipeError: the threshold is out of range.
    """

    def __init__(self, corpus: Iterable[str], threshold: float) -> None:
        if not MIN_THRESHOLD <= threshold <= 1:
            raise RecipeError(
                f"A near-duplicate threshold of {threshold} is out of range.",
                f"Set data.near_duplicate_threshold to a value from {MIN_THRESHOLD} to 1, or to null for equal texts "
                "only.",
            )
        self.corpus = dict.fromkeys(corpus)
        self.threshold = threshold
        self._found: dict[str, frozenset[str]] = {"": frozenset()}

    def twins(self, keys: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """For each of ``keys``, which are normalised too, the near-duplicates in the corpus; itself, if it is there."""
        asked = dict.fromkeys(keys)
        fresh = [key for key in asked if key not in self._found]
        similar = _similar_keys(fresh, self._index, self.threshold) if fresh else {}
        for key in fresh:
            itself = {key} if key in self.corpus else set()
            self._found[key] = frozenset(similar.get(key, set()) | itself)
        return {key: self._found[key] for key in asked}

    @cached_property
    def _index(self) -> _Index:
        return _Index([key for key in self.corpus if len(key) >= SHINGLE], self.threshold)


def shingles(key: str) -> frozenset[str]:
    """The set of four-letter windows of a normalised text; empty when the text is shorter."""
    return frozenset(key[start : start + SHINGLE] for start in range(len(key) - SHINGLE + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared shingles as a fraction of all shingles of the two; 0 for two empty sets."""
    shared = len(left & right)
    return shared / max(1, len(left) + len(right) - shared)


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """How the hashes are banded: two texts are compared when all rows of any band agree.

    For a similarity s that happens with probability 1 - (1 - s^rows)^bands. More rows propose fewer unrelated pairs
    but need more bands; taken are the most rows for which 256 hashes hold the bands that find 99.9 % at the threshold.
    """
    for rows in range(8, 0, -1):
        # An identical pair agrees everywhere; the cap only keeps the logarithm finite.
        band_agrees = min(threshold, 0.99) ** rows
        bands = max(2, math.ceil(math.log(1 - _RECALL) / math.log1p(-band_agrees)))
        if bands * rows <= _MAX_HASHES:
            break
    return bands, rows


def _similar_keys(keys: Iterable[str], index: _Index, threshold: float) -> dict[str, set[str]]:
    """Normalised text -> normalised texts of the corpus that are similar enough; only those with any."""
    found: dict[str, set[str]] = {}
    for key in keys:
        candidates = index.candidates(key) if len(key) >= SHINGLE else set()
        own = shingles(key) if candidates else frozenset()
        twins = {twin for twin in candidates if jaccard(own, _cached_shingles(twin)) >= threshold}
        if twins:
            found[key] = twins
    return found


class _Index:
    """The corpus by bands of its hashes. Holds no shingles: those of long documents would fill the memory."""

    def __init__(self, keys: Sequence[str], threshold: float) -> None:
        self._keys = keys
        bands, rows = bands_and_rows(threshold)
        self._hashes = bands * rows
        self._band = np.dtype((np.void, rows * np.dtype(np.uint32).itemsize))
        # By band: the last text that has it, and for each text the one before it that has the same, or -1. Lists of
        # texts would be a hundred thousand objects for Python to look through whenever it collects garbage.
        self._last: list[dict[bytes, int]] = [{} for _ in range(bands)]
        self._before = [array("l") for _ in range(bands)]
        for position, key in enumerate(keys):
            for last, before, band in zip(self._last, self._before, self._bands(key), strict=True):
                before.append(last.get(band, -1))
                last[band] = position

    def candidates(self, key: str) -> set[str]:
        """The texts that share a band with ``key``, which has a shingle at least."""
        found: set[str] = set()
        for last, before, band in zip(self._last, self._before, self._bands(key), strict=True):
            position = last.get(band, -1)
            while position >= 0:
                found.add(self._keys[position])
                position = before[position]
        return found

    def _bands(self, key: str) -> list[bytes]:
        bands: list[bytes] = signature(key, self._hashes).view(self._band).tolist()
        return bands


def signature(key: str, count: int) -> _Hashes:
    """(count,) the MinHash of a normalised text's shingles, of which there is one at least.

    It is that of datasketch 2's ``MinHash(scheme="affine32")``, bit for bit: checksums spread by MurmurHash3's
    finaliser, then multiplied and shifted modulo 2^32. Of short texts, the search takes half as long as through it.
    """
    multipliers, shifts = _permutations(count)
    spread = _spread(np.fromiter(map(_hash, shingles(key)), np.uint32))
    least = np.full(count, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(spread), _AT_ONCE):  # a long document's numbers would fill the memory
        part = spread[start : start + _AT_ONCE, None] * multipliers + shifts
        np.minimum(least, part.min(axis=0), out=least)
    return least


def _spread(values: _Hashes) -> _Hashes:
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    spread: _Hashes = values ^ (values >> np.uint32(16))
    return spread


@lru_cache(maxsize=8)
def _permutations(count: int) -> tuple[_Hashes, _Hashes]:
    chance = np.random.RandomState(_SEED)  # its numbers are the same in every version of NumPy
    multipliers = chance.randint(0, 2**31, count, np.uint32) << np.uint32(1) | np.uint32(1)
    return multipliers, chance.randint(0, 2**32, count, np.uint32)


_cached_shingles = lru_cache(maxsize=4096)(shingles)


def _hash(shingle: str) -> int:
    # Python's own hash differs from process to process; a checksum does not, and has no collision in four bytes.
    return zlib.crc32(shingle.encode("utf-8", "surrogatepass"))
