"""A data file's bytes and lines, unpacked where it is compressed, with a bound on what may come out of a small file.

Enters: a path. Leaves: a byte stream or numbered lines of text. Whatever is wrong is a ``DataError`` that names the
file and the line; sizes that a header claims are never trusted, the bytes are counted as they come.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from fintune.schema.errors import DataError

MAX_UNPACKED_BYTES = 4 * 1024**3
"""No file may unpack to more than this."""

COMPRESSED_SUFFIXES = frozenset({".gz", ".xz", ".zst"})
"""Last suffixes of single files that are unpacked as they are read."""

MAX_LINE_CHARACTERS = 64 * 1024**2
_MAX_READ_BYTES = 64 * 1024**2
_CHUNK_BYTES = 1024**2


class BoundedReader(io.RawIOBase):
    """A stream that stops with a ``DataError`` once more than ``MAX_UNPACKED_BYTES`` came out of ``stream``."""

    def __init__(self, stream: IO[bytes], file: Path) -> None:
        self._stream = stream
        self._file = file

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: a tar file is walked by seeking forward."""
        return True

    def tell(self) -> int:
        """Unpacked bytes passed."""
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an absolute position; skipping is unpacking too."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only absolute positions")
        self._check(offset)
        return self._stream.seek(offset)

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer`` from the stream."""
        # A tar header may ask for gigabytes at once, for a name that long.
        if len(buffer) > _MAX_READ_BYTES:
            raise too_large(self._file)
        data = self._stream.read(len(buffer))
        self._check(self._stream.tell())
        buffer[: len(data)] = data
        return len(data)

    def _check(self, position: int) -> None:
        if position > MAX_UNPACKED_BYTES:
            raise too_large(self._file)


def too_large(file: Path) -> DataError:
    """The refusal of a file that unpacks to more than is sensible."""
    return DataError(
        f"Data file {file} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes.",
        "Unpack it yourself and name the unpacked file, if you trust it.",
    )


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in .gz, .xz or .zst; what fails meanwhile is a ``DataError``."""
    try:
        with file.open("rb") as raw:
            if file.suffix.lower() not in COMPRESSED_SUFFIXES | {".tgz"}:
                yield raw
                return
            with _unpacking(file, raw) as unpacked, BoundedReader(cast(IO[bytes], unpacked), file) as bounded:
                yield io.BufferedReader(bounded, _CHUNK_BYTES)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"Data file {file} cannot be read: {first_line(error)}.", "Check that it is complete and readable."
        ) from error


def _unpacking(file: Path, raw: IO[bytes]) -> Any:
    kind = file.suffix.lower()
    if kind == ".xz":
        return lzma.LZMAFile(raw)
    if kind == ".zst":
        import pyarrow

        return _Counted(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))
    return gzip.GzipFile(fileobj=raw)


class _Counted:
    """A stream of ``pyarrow``, which does not say where it is, with its position; it is only read forward."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        raise io.UnsupportedOperation("only read forward")

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._position += len(data)
        return data


def chunks(file: Path) -> Iterator[bytes]:
    """The file's bytes, a mebibyte at a time."""
    with open_bytes(file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def text_lines(file: Path, encoding: str, newline: str = "\n") -> Iterator[str]:
    """The file's lines with their ends; ``newline`` as for ``open``, so that only real line ends cut."""
    # Closed by hand: a text layer that is only dropped warns about the file below it.
    with open_bytes(file) as stream, io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text:
        number = 0
        try:
            while line := text.readline(MAX_LINE_CHARACTERS):
                number += 1
                if "\0" in line:
                    raise DataError(
                        f"Data file {file} holds a null byte at line {number}.",
                        "It is not text, or not in this encoding: check the suffix and the encoding.",
                    )
                if len(line) == MAX_LINE_CHARACTERS and line[-1] not in "\r\n":
                    raise DataError(f"Data file {file} has an endless line {number}.", "Check that it is a text file.")
                yield line
        except UnicodeError as error:
            raise not_text(file, encoding) from error


def whole_text(file: Path, encoding: str) -> str:
    """The file's whole text, for formats that cannot be read line by line."""
    with open_bytes(file) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
        try:
            return text.read()
        except UnicodeError as error:
            raise not_text(file, encoding) from error


def not_text(file: Path, encoding: str) -> DataError:
    """The error for bytes that ``encoding`` cannot hold, naming the line they are in."""
    name = encoding.removesuffix("-sig")
    line = _first_undecodable_line(file, encoding)
    return DataError(
        f"Data file {file} is not {name} text at line {line}.", "Save it as UTF-8, or name the encoding it has."
    )


def decodes(file: Path, encoding: str) -> bool:
    """Whether every byte of the file is text in ``encoding``."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks(file):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _first_undecodable_line(file: Path, encoding: str) -> int:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    for chunk in chunks(file):
        state = decoder.getstate()
        try:
            line += decoder.decode(chunk).count("\n")
        except UnicodeError:
            decoder.setstate(state)
            return line + _newlines_before_failure(decoder, chunk)
    return line


def _newlines_before_failure(decoder: codecs.IncrementalDecoder, chunk: bytes) -> int:
    newlines = 0
    for position in range(len(chunk)):
        try:
            newlines += decoder.decode(chunk[position : position + 1]).count("\n")
        except UnicodeError:
            break
    return newlines


def first_line(error: BaseException) -> str:
    """What a foreign library said, fit for the middle of a sentence."""
    text = re.sub(r"\s+", " ", (str(error).strip().splitlines() or [""])[0]).strip().rstrip(".")
    return text[:200] or type(error).__name__


@contextmanager
def foreign_errors(file: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turns whatever a library raises about a broken file, of a dozen unrelated types, into one ``DataError``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Data file {file} is not readable {kind}: {first_line(error)}.", remedy) from error
