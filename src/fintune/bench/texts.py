"""The text of the bench: documents, part of them held out, as one stream of tokens.

Enters: a file, a folder, or nothing for the text that ships with fintune. Leaves: documents, a byte-level tokenizer
trained on those that are not held out, and ``TokenStream``s in which every document begins with the opening token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources.documents import holds_documents, read_documents
from fintune.sources.files import read_file
from fintune.sources.sample import read_sample
from fintune.trees.prefix_tree import IntArray

# Shipped samples with text of their own, and the column that holds it.
_SHIPPED = {"finqa": "context", "convfinqa": "context", "tatqa": "context", "ner": "text", "tfns": "text"}
_HELD_OUT = 10  # one document in so many
OPENING = "<|endoftext|>"


@dataclass(frozen=True)
class Documents:
    """Documents of a text.

    Attributes:
        train: read by the models.
        held_out: only ever measured on.
        source: where they come from, for the table.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class TokenStream:
    """Documents one after the other.

    Attributes:
        tokens: (N,) token ids; each document begins with the opening token.
        first: (N,) True at opening tokens.
        n_bytes: (N,) bytes of text behind each token.
    """

    tokens: IntArray
    first: Any
    n_bytes: IntArray


def bench_documents(path: Path | None) -> Documents:
    """The documents of a file or folder, or of the shipped samples.

    Raises:
        DataError: it cannot be read, or has fewer than two documents.
    """
    found = _shipped() if path is None else _read(path)
    # In the order of their hashes: sources come one after the other, and a short run would read the first alone.
    unique = sorted({text for text in found if text.strip()}, key=lambda text: (_number(text) // _HELD_OUT, text))
    held_out = [text for text in unique if _number(text) % _HELD_OUT == 0]
    train = [text for text in unique if _number(text) % _HELD_OUT]
    if not held_out and len(unique) > 1:  # few documents, none of which the hash chose
        train, held_out = unique[:-1], unique[-1:]
    if not train or not held_out:
        raise DataError(
            f"{path} has {len(unique)} document(s), but at least two are needed, one of them to be held out.",
            "Part the documents by empty lines, or name a folder with a file for each.",
        )
    return Documents(tuple(train), tuple(held_out), "shipped samples" if path is None else path.name)


def held_out_documents(path: Path) -> list[str]:
    """All documents of a file or folder that no model is to have read."""
    return [text for text in _read(path) if text.strip()]


def _shipped() -> Iterable[str]:
    for name, column in _SHIPPED.items():
        for table in read_sample(name).values():
            yield from (str(row[column]) for row in table.rows)


def _read(path: Path) -> list[str]:
    if path.is_dir() or holds_documents(path):
        if path.is_dir() and not holds_documents(path):
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            tables = [file for file in files if ".jsonl" in file.name or file.suffix == ".parquet"]
            return [text for file in tables for text in _rows(file)]
        texts = [str(row["text"]) for row in read_documents(path).rows]
        return [part for text in texts for part in text.split("\n\n")] if path.is_file() else texts
    return _rows(path)


def _rows(file: Path) -> list[str]:
    rows = read_file(file).rows
    if rows and "text" not in rows[0]:
        raise DataError(f"{file} has no column text.", "Name the column with the documents text.")
    return [str(row["text"]) for row in rows]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4])


def text_hash(documents: Documents) -> str:
    """A hash of all documents and of which are held out."""
    whole = hashlib.sha256()
    for text in (*documents.train, "\0", *documents.held_out):
        whole.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return whole.hexdigest()[:16]


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of at most ``vocabulary`` tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from fintune.models.templates import CHATML

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[OPENING, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=backend,
        bos_token=OPENING,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def text_tokens(tokenizer: Any, text: str) -> IntArray:
    """The tokens of a text in which nothing is control."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return np.asarray(ids, np.int64)


def token_stream(tokenizer: Any, texts: Sequence[str], least: int) -> TokenStream:
    """Documents in their order, from the start again until there are ``least`` tokens."""
    opening = tokenizer.bos_token_id
    parts = [np.concatenate([[opening], text_tokens(tokenizer, text)]) for text in texts]
    once = np.concatenate(parts).astype(np.int64)
    tokens = np.tile(once, -(-least // len(once)))[: max(least, 1)]
    # A byte-level tokenizer writes each byte as one character; special tokens stand for no text.
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    size = np.array([0 if i in tokenizer.all_special_ids else len(name) for i, name in enumerate(names)], np.int64)
    return TokenStream(tokens, tokens == opening, size[tokens])
