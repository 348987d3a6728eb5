"""Reads a GGUF header strictly before any library does: every count and length must fit into the file.

Enters: a ``.gguf`` file. Leaves: its numbers and names, or a ``ModelError`` that says which byte range is wrong. A
reader that trusts the counts would loop or allocate for as long as a damaged or hostile file tells it to.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fintune.schema.errors import DependencyError, ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_REMEDY = "Download it again; the file is incomplete or damaged."
_STRING, _ARRAY = 8, 9
# GGUF's value types by number: struct letter of each scalar.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST_NAME = 65_535
_MOST_DIMENSIONS = 8
_LARGEST_ALIGNMENT = 1 << 20


@dataclass
class _Cursor:
    """A position in the file that refuses to leave it."""

    stream: BinaryIO
    path: Path
    size: int
    offset: int = 0

    def take(self, length: int, what: str) -> bytes:
        """The next ``length`` bytes."""
        self.require(length, what)
        self.offset += length
        return self.stream.read(length)

    def skip(self, length: int, what: str) -> None:
        """Passes over ``length`` bytes."""
        self.require(length, what)
        self.offset += length
        self.stream.seek(self.offset)

    def number(self, letter: str, what: str) -> Any:
        """One little-endian number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str) -> str:
        """A name: its length, then UTF-8."""
        length = self.number("Q", what)
        if length > _LONGEST_NAME:
            raise self.broken(f"{what} is {length} bytes long")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error

    def require(self, length: int, what: str) -> None:
        """Raises when the file ends before ``length`` more bytes."""
        if length > self.size - self.offset:
            raise self.broken(f"it ends inside {what}")

    def broken(self, reason: str) -> ModelError:
        """The error for this file."""
        return ModelError(f"{self.path} cannot be read as a GGUF language model: {reason}.", _REMEDY)


def require_magic(file: Path) -> None:
    """Refuses a file that does not open with GGUF's four letters."""
    try:
        with file.open("rb") as stream:
            found = stream.read(len(MAGIC))
    except OSError as exc:
        raise ModelError(f"{file} cannot be read ({exc.strerror}).", "Check the path in model.base.") from exc
    if found != MAGIC:
        raise ModelError(f"{file} is not a GGUF file.", "Download it again, or point model.base elsewhere.")


def check_gguf(file: Path) -> dict[str, Any]:
    """Refuses a file whose header is damaged or promises more than the file holds.

    Returns:
        Its metadata by key: numbers and short strings; None for long strings and arrays, which are passed over.

    Raises:
        ModelError: naming the file and what is wrong in it.
    """
    require_magic(file)
    with file.open("rb") as stream:
        stream.seek(len(MAGIC))
        return _check(_Cursor(stream, file, file.stat().st_size, len(MAGIC)))


def _check(cursor: _Cursor) -> dict[str, Any]:
    version = cursor.number("I", "its version")
    if version not in _VERSIONS:
        raise cursor.broken(f"its version is {version}, and versions 2 and 3 in little-endian order are read")
    tensors, entries = cursor.number("Q", "its tensor count"), cursor.number("Q", "its metadata count")
    # The shortest entry is a key length, a type and one byte; the shortest tensor has a name length and four numbers.
    cursor.require(13 * entries, f"the {entries} metadata entries it promises")
    cursor.require(24 * tensors, f"the {tensors} tensors it promises")
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text("a metadata key")
        if key in values:
            raise cursor.broken(f"the metadata key {key!r} occurs twice")
        values[key] = _value(cursor, cursor.number("I", key), key)
    _require_layers(cursor, values, tensors)
    _check_tensors(cursor, tensors, values.get("general.alignment", 32))
    return values


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    """A number or a short string; long strings and arrays are passed over."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], key)
    if kind == _STRING:
        length = cursor.number("Q", key)
        if length <= _LONGEST_NAME:
            return cursor.take(length, key).decode("utf-8", "replace")
        cursor.skip(length, key)
        return None
    if kind != _ARRAY:
        raise cursor.broken(f"{key!r} has the unknown type {kind}")
    element, length = cursor.number("I", key), cursor.number("Q", key)
    if element in _SCALARS:
        cursor.skip(length * struct.calcsize(f"<{_SCALARS[element]}"), key)
    elif element == _STRING:
        cursor.require(8 * length, key)
        for _ in range(length):
            cursor.skip(cursor.number("Q", key), key)
    else:  # arrays of arrays exist in the format, but no language model has one
        raise cursor.broken(f"{key!r} is an array of the unknown type {element}")
    return None


def _require_layers(cursor: _Cursor, values: dict[str, Any], tensors: int) -> None:
    for key, value in values.items():
        if key.endswith(".block_count") and isinstance(value, int) and value > tensors:
            raise cursor.broken(f"{key} is {value}, but it holds {tensors} tensors")


def _check_tensors(cursor: _Cursor, count: int, alignment: Any) -> None:
    sizes = _type_sizes()
    ends = [0]
    for _ in range(count):
        name = cursor.text("a tensor name")
        dimensions = cursor.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise cursor.broken(f"the tensor {name!r} has {dimensions} dimensions")
        shape = [cursor.number("Q", name) for _ in range(dimensions)]
        kind, offset = cursor.number("I", name), cursor.number("Q", name)
        if kind not in sizes:
            raise cursor.broken(f"the tensor {name!r} has the unknown type {kind}")
        block, block_bytes = sizes[kind]
        ends.append(offset + prod(shape) * block_bytes // block)
    if not isinstance(alignment, int) or not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.broken(f"its alignment is {alignment}, not a power of two")
    start = -(-cursor.offset // alignment) * alignment
    if start + max(ends) > cursor.size:
        raise cursor.broken(f"its tensors need {start + max(ends)} bytes, but the file has {cursor.size}")


def _type_sizes() -> dict[int, tuple[int, int]]:
    """Elements and bytes of one block of each tensor type."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as exc:
        raise DependencyError("Reading GGUF files needs the gguf package.", "Run: pip install gguf") from exc
    return {int(kind): (int(block), int(size)) for kind, (block, size) in GGML_QUANT_SIZES.items()}
