"""Token files: flat uint16, with a note of the vocabulary beside them.

Enters: text and a tokenizer, or a file and places in it. Leaves: rows of ids and of their targets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_tokens(sources: list[str], tokenizer: str, file: Path) -> dict[str, Any]:
    """Writes all documents of ``sources``, each behind an end-of-text token, and the note."""
    from fintune.models.gpt.vocabulary import read_texts
    from fintune.models.load import load_tokenizer
    from fintune.models.locate import locate_base
    from fintune.schema.recipe import ModelSection

    section = ModelSection(base=tokenizer)
    read = load_tokenizer(locate_base(section), section)
    assert len(read) <= 2**16, "uint16 has no room for this vocabulary"
    end = read.eos_token_id
    count = characters = 0
    with file.open("wb") as stream:
        for source in sources:
            for text in read_texts(_only_file(source)):
                ids = [end, *read(text, add_special_tokens=False, verbose=False)["input_ids"]]
                np.asarray(ids, np.uint16).tofile(stream)
                count, characters = count + len(ids), characters + len(text)
    note = {"vocabulary": len(read), "end_of_document": end, "tokens": count, "characters": characters}
    note_of(file).write_text(json.dumps(note), encoding="utf-8")
    return note


def _only_file(source: str) -> str:
    """A folder with one file of rows, whatever its name, stands for the file."""
    rows = (".jsonl", ".json", ".csv", ".parquet")
    folder = Path(source).expanduser()
    inside = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    found = [file for file in inside if any(ending in rows for ending in file.suffixes)]
    return str(found[0]) if len(found) == 1 else source


def write_bytes_of(texts: list[Path], file: Path) -> None:
    """A token file whose tokens are bytes, for smoke tests."""
    np.frombuffer(b"\0".join(text.read_bytes() for text in texts), np.uint8).astype(np.uint16).tofile(file)
    note_of(file).write_text(json.dumps({"vocabulary": 256, "end_of_document": 0}), encoding="utf-8")


def note_of(file: Path) -> Path:
    """Where the note of a token file lies."""
    return file.with_suffix(".json")


class Rows:
    """Rows of one length in the order of the file, again from its start where it ends; on the device all along.

    Args:
        file: uint16.
        length: tokens of a row.
        validation_rows: the last ones, kept apart.
        device: where.
    """

    def __init__(self, file: Path, length: int, validation_rows: int, device: str) -> None:
        tokens = np.fromfile(file, np.uint16)
        count = (len(tokens) - 1) // length
        assert count > 2 * validation_rows, f"{file} has {count} rows, and {validation_rows} are for validation"
        # int32, because uint16 cannot be indexed by everywhere, and int64 takes four times the file
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self.length, self.train, self.validation = length, count - validation_rows, validation_rows

    def training(self, first: int, rows: int) -> tuple[Tensor, Tensor]:
        """(rows, T) ids and targets from row number ``first`` on."""
        return self._rows((first + torch.arange(rows, device=self.tokens.device)) % self.train)

    def held_out(self, first: int, rows: int) -> tuple[Tensor, Tensor]:
        """The same of the validation rows."""
        return self._rows(self.train + first + torch.arange(rows, device=self.tokens.device))

    def _rows(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        places = numbers[:, None] * self.length + torch.arange(self.length, device=numbers.device)
        return self.tokens[places].long(), self.tokens[places + 1].long()
