"""Tokenised documents in flat files that are mapped, not read: training text of any size in little memory.

::

    tokens/
      tokens.json            tokenizer, its hash, number type, end-of-text token, shards
      train-00000.bin        token ids, little endian, each document followed by the end-of-text token
      train-00000.ends       (D,) unsigned 64-bit: where each document ends in the file, its end-of-text token included

Enters: batches of token ids. Leaves: ``TokenShards`` with documents, and ``TokenBlocks``, a sequence of ``TokenSample``
that are made as they are asked for.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import DataError
from fintune.trees.prefix_tree import IntArray, TokenSample

HEADER = "tokens.json"
_REMEDY = "Build the corpus again: fintune corpus build ... --overwrite"


def token_type(vocabulary: int) -> str:
    """The smallest number type that holds every id of a vocabulary: ``<u2`` or ``<u4``."""
    return "<u2" if vocabulary <= 2**16 else "<u4"


def write_tokens(
    bin_file: Path, ends_file: Path, batches: Iterable[Sequence[Sequence[int]]], kind: str, end: int
) -> int:
    """Writes the documents of one shard and returns how many tokens it has.

    Args:
        bin_file: where token ids go.
        ends_file: where the documents' ends go.
        batches: documents as token ids.
        kind: of ``token_type``.
        end: id of the end-of-text token, which is put after each document.
    """
    total = 0
    with bin_file.open("wb") as tokens, ends_file.open("wb") as ends:
        for batch in batches:
            closed = [np.asarray([*document, end], np.dtype(kind)) for document in batch]
            if not closed:
                continue
            until = total + np.cumsum([len(document) for document in closed])
            tokens.write(np.concatenate(closed).tobytes())
            ends.write(until.astype("<u8").tobytes())
            total = int(until[-1])
    return total


@dataclass(frozen=True)
class _Shard:
    """One pair of files: ``tokens`` (T,) and ``ends`` (D,)."""

    name: str
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.uint64]


class TokenShards(Sequence[IntArray]):
    """The documents of one split as token ids, without their end-of-text token.

    Args:
        folder: of ``tokens.json``; the files must stay as they are while this is in use.
        split: train, validation or test.

    Raises:
        DataError: the folder holds no tokens of the split, or a file has another size than the header says.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.header = _read_header(self.folder)
        self.end_of_text = int(self.header["end_of_text"])
        named = [shard for shard in self.header["shards"] if shard["name"].rpartition("-")[0] == split]
        if not named:
            raise DataError(f"{self.folder} holds no tokens of the split {split}.", f"It has {_splits(self.header)}.")
        self._shards = [_open(self.folder, shard, self.header["dtype"]) for shard in named]
        self._firsts = np.cumsum([0, *(len(shard.ends) for shard in self._shards)]).tolist()

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, with the end-of-text token of each."""
        return sum(len(shard.tokens) for shard in self._shards)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @overload
    def __getitem__(self, place: int) -> IntArray: ...

    @overload
    def __getitem__(self, place: slice) -> list[IntArray]: ...

    def __getitem__(self, place: int | slice) -> IntArray | list[IntArray]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = _within(place, len(self))
        which = bisect_right(self._firsts, number) - 1
        shard, row = self._shards[which], number - self._firsts[which]
        start = int(shard.ends[row - 1]) if row else 0
        return shard.tokens[start : int(shard.ends[row]) - 1].astype(np.int64)

    def blocks(self, length: int, *, across_documents: bool = False) -> TokenBlocks:
        """The documents as samples of at most ``length`` tokens, each token supervised in exactly one of them.

        A block begins with the token before its first supervised one; for the first of a document that is an
        end-of-text token. The end-of-text token after a document is supervised.

        Args:
            length: tokens of a block, the one that is only read included; 2 at least.
            across_documents: cut every ``length - 1`` tokens whatever ends there, so that all blocks but the last of a
                shard are full and a block may see the end of another document. False lets no block hold two documents.
        """
        return TokenBlocks(self, length, across_documents)


class TokenBlocks(Sequence[TokenSample]):
    """Blocks of a ``TokenShards``; only their places are held: eight bytes a document, or nothing."""

    def __init__(self, shards: TokenShards, length: int, across_documents: bool) -> None:
        if length < 2:
            raise ValueError(f"a block of {length} tokens has nothing to predict")
        self._step = length - 1
        self._end_of_text = shards.end_of_text
        self._shards = shards._shards
        self._across = across_documents
        self._until = [self._block_ends(shard) for shard in self._shards]
        self._firsts = np.cumsum([0, *(int(until[-1]) if len(until) else 0 for until in self._until)]).tolist()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @overload
    def __getitem__(self, place: int) -> TokenSample: ...

    @overload
    def __getitem__(self, place: slice) -> list[TokenSample]: ...

    def __getitem__(self, place: int | slice) -> TokenSample | list[TokenSample]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = _within(place, len(self))
        which = bisect_right(self._firsts, number) - 1
        start, stop = self._span(which, number - self._firsts[which])
        tokens = np.empty(stop - start + 1, np.int64)
        # What lies before a document's first token is the end of the one before it; before the first lies nothing.
        tokens[0] = self._shards[which].tokens[start - 1] if start else self._end_of_text
        tokens[1:] = self._shards[which].tokens[start:stop]
        supervision = np.ones(len(tokens))
        supervision[0] = 0.0
        return TokenSample(tokens, supervision, number)

    def _block_ends(self, shard: _Shard) -> npt.NDArray[np.int64]:
        """Number of blocks up to and including each document, or of the whole shard."""
        if self._across:
            return np.asarray([-(-len(shard.tokens) // self._step)], np.int64)
        sizes = np.diff(shard.ends.astype(np.int64), prepend=0)
        return np.cumsum(-(-sizes // self._step))

    def _span(self, which: int, block: int) -> tuple[int, int]:
        """First token that a block supervises, and the end."""
        shard, until = self._shards[which], self._until[which]
        if self._across:
            return block * self._step, min((block + 1) * self._step, len(shard.tokens))
        document = int(np.searchsorted(until, block, side="right"))
        begin = int(shard.ends[document - 1]) if document else 0
        start = begin + (block - (int(until[document - 1]) if document else 0)) * self._step
        return start, min(start + self._step, int(shard.ends[document]))


def _open(folder: Path, shard: dict[str, Any], kind: str) -> _Shard:
    bin_file, ends_file = folder / f"{shard['name']}.bin", folder / f"{shard['name']}.ends"
    expected = (int(shard["tokens"]) * np.dtype(kind).itemsize, int(shard["documents"]) * 8)
    for file, size in zip((bin_file, ends_file), expected, strict=True):
        if not file.is_file() or file.stat().st_size != size:
            raise DataError(f"{file} is not there or not whole: {size:,} bytes are expected.", _REMEDY)
    return _Shard(shard["name"], _mapped(bin_file, kind), _mapped(ends_file, "<u8"))


def _mapped(path: Path, kind: str) -> npt.NDArray[Any]:
    if not path.stat().st_size:  # nothing can be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, np.dtype(kind), mode="r"))


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header["dtype"] not in ("<u2", "<u4") or not isinstance(header["shards"], list):
            raise ValueError(header["dtype"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no tokenised corpus: {HEADER} cannot be read.", _REMEDY) from error
    return header


def _splits(header: dict[str, Any]) -> str:
    return ", ".join(sorted({shard["name"].rpartition("-")[0] for shard in header["shards"]})) or "nothing"


def _within(place: int, size: int) -> int:
    number = place + size if place < 0 else place
    if not 0 <= number < size:
        raise IndexError(place)
    return number
