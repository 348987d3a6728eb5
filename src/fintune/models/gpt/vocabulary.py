"""A tokenizer of one's own: byte-level BPE trained on the text that a GPT will read.

Enters: texts and a size. Leaves: a tokenizer of ``transformers`` under which any text round-trips. One token ends a
document and opens the next, and the tokens of ChatML are there, so that the same GPT can be taught to chat later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.models.templates import CHATML
from fintune.schema.conversations import ConversationsSection
from fintune.schema.errors import DataError
from fintune.schema.recipe import TaskSection
from fintune.sources.documents import holds_documents, read_documents
from fintune.sources.text import is_blank
from fintune.tasks.own_source import found_in_data_dir, read_own_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
LEAST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` tokens; texts that hold fewer pairs leave it smaller.

    Raises:
        DataError: the size has no room for all bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < LEAST_VOCABULARY:
        raise DataError(
            f"A vocabulary of {vocab_size} has no room for the 256 bytes and {len(SPECIAL_TOKENS)} special tokens.",
            f"Ask for {LEAST_VOCABULARY} or more, such as 8192.",
        )
    backend = Tokenizer(models.BPE())
    digits: Any = pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")  # so that amounts do not fill the vocabulary
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # transformers leaves it without types
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def read_texts(source: str, column: str = "text") -> Iterator[str]:
    """Documents of a text file, a folder of them, or a column of a table; splits that are held out are not read.

    Raises:
        DataError: it cannot be read, lacks the column, or holds no text.
    """
    place = found_in_data_dir(source)
    if holds_documents(path := Path(place).expanduser()):
        tables = {"": read_documents(path)}
    else:
        asked = ConversationsSection(format="text")
        _, found = read_own_source(TaskSection(name="text", source=place), asked)
        tables = {name: table for name, table in found.items() if name not in ("validation", "test")}
    count = 0
    for table in tables.values():
        for row in table.rows:
            if column not in row:
                raise DataError(
                    f"{source} has no column {column}; it has {', '.join(row)}.", "Name it with --text-column."
                )
            if not is_blank(row[column]):
                count += 1
                yield str(row[column])
    if not count:
        raise DataError(f"{source} holds no text.", "Name a text file, a folder of text files, or a table.")
