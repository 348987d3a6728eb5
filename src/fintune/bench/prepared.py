"""What all variants share, made once and kept in the bench's folder: tokens, samples, base models.

Enters: a size and the text. Leaves: a folder with ``text.npz``, ``samples-*.json``, a tokenizer and base models, and
functions that read it. Everything is a pure function of text, size and seed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fintune.bench.blocks import batches
from fintune.bench.gpt_training import GptText
from fintune.bench.sizes import Size
from fintune.bench.texts import TokenStream, bench_documents, text_hash, token_stream, trained_tokenizer
from fintune.models.files import written_aside
from fintune.models.quiet import no_progress_bars
from fintune.schema.recipe import TaskSection
from fintune.schema.run_directory import write_json
from fintune.trees.chat import ChatFormat, encode_all
from fintune.trees.prefix_tree import TokenSample

log = logging.getLogger(__name__)
FACTS = "prepared.json"
_STREAMS = ("train", "held_out")
_TINY_STEPS, _TINY_RATE = 80, 5e-3
_LONGEST = 512
# Llama-3.2-1B's shape: speed and memory follow from it alone.
_ONE_BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Prepared:
    """The folder.

    Attributes:
        path: of the folder.
    """

    path: Path

    def facts(self) -> dict[str, Any]:
        """What was prepared; empty before it is complete."""
        file = self.path / FACTS
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def text(self) -> GptText:
        """The streams of the GPT family."""
        with np.load(self.path / "text.npz", allow_pickle=False) as arrays:
            streams = [
                TokenStream(*(arrays[f"{name}_{part}"] for part in ("tokens", "first", "n_bytes"))) for name in _STREAMS
            ]
        return GptText(*streams)

    def base(self, name: str) -> str:
        """What ``model.base`` takes for a base of the bench."""
        return str(self.path / name) if name in ("tiny", "1b") else name

    def samples(self, split: str) -> list[TokenSample]:
        """The samples of the LLM family."""
        rows = json.loads((self.path / f"samples-{split}.json").read_text(encoding="utf-8"))
        return [_sample(number, row["tokens"], row["answer_from"]) for number, row in enumerate(rows)]


def prepare(path: Path, size: Size, text: Path | None, device: str) -> None:
    """Makes the folder, unless it is complete.

    Args:
        path: of the folder.
        size: of the bench.
        text: file or folder; None for the shipped samples.
        device: where a base is trained.
    """
    if Prepared(path).facts():
        return
    path.mkdir(parents=True, exist_ok=True)
    documents = bench_documents(text)
    gpt = size.gpt
    tokenizer = trained_tokenizer(documents.train, gpt.vocabulary)
    wanted = (gpt.steps * gpt.rows * gpt.context + 1, gpt.validation_rows * gpt.context + 1)
    texts = (documents.train, documents.held_out)
    streams = [token_stream(tokenizer, part, least) for part, least in zip(texts, wanted, strict=True)]
    arrays = {
        f"{name}_{part}": value
        for name, stream in zip(_STREAMS, streams, strict=True)
        for part, value in vars(stream).items()
    }
    np.savez(path / "text.npz", **arrays)
    if size.llm.base == "tiny":
        _write_tiny(path / "tiny", tokenizer, streams[0], size, torch.device(device))
    rows = _write_samples(path, size)
    if size.llm.speed_base == "1b":
        _write_one_billion(path / "1b", size.llm.base)
    facts = {
        "text": documents.source,
        "text_hash": text_hash(documents),
        "documents": len(documents.train),
        "held_out_documents": len(documents.held_out),
        "tokenizer_vocabulary": len(tokenizer),
        "vocabulary": max(len(tokenizer), gpt.least_embedding),
        "passes": round(float(streams[0].first.sum()) / len(documents.train), 2),
        **rows,
    }
    write_json(path / FACTS, facts)


def _sample(number: int, tokens: list[int], answer_from: int) -> TokenSample:
    supervision = np.zeros(len(tokens))
    supervision[answer_from:] = 1.0
    return TokenSample(np.asarray(tokens, np.int64), supervision, number)


def _write_samples(path: Path, size: Size) -> dict[str, int]:
    """The shipped tweets with their labels as tokens; counts of them."""
    from fintune.models.load import load_tokenizer
    from fintune.models.locate import locate_base
    from fintune.schema.recipe import ModelSection
    from fintune.tasks.loading import load_task

    section = ModelSection(base=Prepared(path).base(size.llm.base))
    chat = ChatFormat(load_tokenizer(locate_base(section), section), _LONGEST)
    task = load_task(TaskSection(name="tfns", source="sample", prompt="short"))
    counts: dict[str, int] = {}
    for split, most in (("train", None), ("validation", size.llm.validation)):
        encoded = encode_all(chat, task.splits[split][:most])
        rows = [
            {"tokens": [*one.prompt.tolist(), *one.completion.tolist()], "answer_from": len(one.prompt)}
            for one in encoded.encoded
        ]
        counts |= {f"samples_{split}": len(rows), f"samples_{split}_dropped": encoded.dropped}
        (path / f"samples-{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return counts


def _write_tiny(folder: Path, tokenizer: Any, stream: TokenStream, size: Size, device: torch.device) -> None:
    """A Llama of the GPT's shape that has read the text for a short while, so that its adapters have a base."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    gpt = size.gpt
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=gpt.width,
        intermediate_size=2 * gpt.width,
        num_hidden_layers=gpt.layers,
        num_attention_heads=gpt.heads,
        num_key_value_heads=gpt.heads // 2,
        head_dim=gpt.width // gpt.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    # transformers leaves it without types
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_TINY_RATE, betas=(0.9, 0.95))
    for number in range(_TINY_STEPS):
        for rows in batches(stream, number % gpt.steps, gpt.rows, gpt.context, "together"):
            logits = model(rows.tokens.to(device)).logits.flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, rows.targets.flatten().to(device))
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _save(model, tokenizer, folder)


def _write_one_billion(folder: Path, tokenizer_of: str) -> None:
    """Random weights in the shape of Llama-3.2-1B, under another base's tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from fintune.models.load import load_tokenizer
    from fintune.models.locate import locate_base
    from fintune.schema.recipe import ModelSection

    section = ModelSection(base=tokenizer_of)
    torch.manual_seed(0)
    config = LlamaConfig(**_ONE_BILLION)  # type: ignore[arg-type]  # a mapping of several types
    # transformers leaves it without types
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    _save(model, load_tokenizer(locate_base(section), section), folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with written_aside(folder) as aside, no_progress_bars():
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
