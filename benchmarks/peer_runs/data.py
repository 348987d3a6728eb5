"""The tokens every library is given: random ones by step number, or tokenised samples from a file.

Enters: seeds, or Financial PhraseBank. Leaves: arrays and ``TokenisedSample``, the same for every library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from peer_runs.settings import SEED


@dataclass(frozen=True)
class TokenisedSample:
    """One sample: its tokens, and where the supervised answer begins."""

    tokens: list[int]
    completion_start: int


def random_tokens(step: int, rows: int, length: int, vocabulary: int) -> np.ndarray:
    """(rows, length) token ids of one step."""
    return np.random.default_rng([SEED, step]).integers(0, vocabulary, (rows, length), np.int64)


def prepare(source: str, tokenizer_folder: Path, file: Path, max_length: int = 512) -> int:
    """Writes PhraseBank's training sentences with the FLARE prompt as ChatML, in tokens; returns how many there are."""
    from transformers import AutoTokenizer

    from fintune.models.templates import CHATML
    from fintune.schema.recipe import TaskSection
    from fintune.tasks.loading import load_task
    from fintune.trees.chat import ChatFormat, encode_all

    task = load_task(TaskSection(name="fpb", source=source, prompt="flare"))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = CHATML  # as many models have it; SmolLM2's own adds a system turn to every sample
    chat = ChatFormat(tokenizer, max_length)
    samples = [
        TokenisedSample([*e.prompt.tolist(), *e.completion.tolist()], len(e.prompt))
        for e in encode_all(chat, task.splits["train"]).encoded
    ]
    file.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
    return len(samples)


def read_samples(file: str) -> list[TokenisedSample]:
    with Path(file).open(encoding="utf-8") as lines:
        return [TokenisedSample(**json.loads(line)) for line in lines]
