"""A new GPT by what a person says of it: kind, size, single choices, and a tokenizer or the text to make one of.

Enters: words and a folder. Leaves: the folder with an untrained GPT, and its figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from huggingface_hub.errors import StrictDataclassError
from pydantic import TypeAdapter, ValidationError

from fintune.models.gpt.config import GPTConfig, baseline, optimised
from fintune.models.gpt.files import refuse_to_overwrite, write_untrained
from fintune.models.gpt.vocabulary import read_texts, train_tokenizer
from fintune.models.load import load_tokenizer
from fintune.models.locate import locate_base
from fintune.schema.errors import ModelError
from fintune.schema.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["optimised", "baseline"]
_FROM_TOKENIZER = {"bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class NewGpt:
    """What was written.

    Attributes:
        folder: of the GPT; a recipe's ``model.base``.
        kind: optimised or baseline.
        parameters: number of weights.
        vocabulary: tokens of the tokenizer; the model may embed a few more.
        layers: blocks.
        width: of the residual stream.
        context: longest text in tokens.
    """

    folder: Path
    kind: Kind
    parameters: int
    vocabulary: int
    layers: int
    width: int
    context: int


def new_gpt(
    folder: str | Path,
    *,
    kind: Kind = "optimised",
    size: str = "124m",
    tokenizer: str = "smollm2-135m",
    train_tokenizer_on: str | None = None,
    text_column: str = "text",
    vocab_size: int = 8192,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> NewGpt:
    """Writes an untrained GPT with its tokenizer.

    Args:
        folder: to write; it must not exist.
        kind: optimised or baseline.
        size: tiny, 124m or 350m.
        tokenizer: base model (alias, hub id, folder) whose tokenizer it reads with.
        train_tokenizer_on: text to train a tokenizer on instead.
        text_column: of that text, where it is a table.
        vocab_size: of that tokenizer.
        seed: decides the weights.
        changes: fields of ``GPTConfig`` that differ.

    Raises:
        ModelError: the folder exists, or a choice is not known or does not fit.
        DataError: the text cannot be read.
    """
    refuse_to_overwrite(Path(folder))
    config = _config(kind, size, changes or {})  # mistakes show before anything slow
    if train_tokenizer_on is not None:
        read: PreTrainedTokenizerBase = train_tokenizer(read_texts(train_tokenizer_on, text_column), vocab_size)
    else:
        section = ModelSection(base=tokenizer)
        read = load_tokenizer(locate_base(section), section)
    given = {"vocab_size": len(read), **(changes or {})}
    config = _config(kind, size, given)
    written = write_untrained(folder, config, read, seed=seed)
    return NewGpt(
        written,
        kind,
        _count(config),
        len(read),
        config.num_hidden_layers,
        config.hidden_size,
        config.max_position_embeddings,
    )


def _config(kind: Kind, size: str, changes: Mapping[str, Any]) -> GPTConfig:
    ours = set(GPTConfig.__annotations__)
    known = {field.name for field in dataclasses.fields(GPTConfig) if field.name in ours} - _FROM_TOKENIZER
    if unknown := sorted(set(changes) - known):
        raise ModelError(f"A GPT has no {unknown[0]}.", f"It has {', '.join(sorted(known))}.")
    for name, value in changes.items():
        _require_kind(name, value)
    make = {"optimised": optimised, "baseline": baseline}[kind]
    try:
        return make(size, **changes)
    except (StrictDataclassError, ValueError) as exc:
        raise ModelError(f"This GPT cannot be: {_last_line(exc)}.", "docs/gpt.md lists the choices.") from exc


def _require_kind(name: str, value: Any) -> None:
    try:
        TypeAdapter(_own_types()[name]).validate_python(value, strict=True)
    except ValidationError as exc:
        reason = exc.errors()[0]["msg"]
        raise ModelError(f"This GPT cannot be: {name}={value}: {reason}.", "docs/gpt.md lists the choices.") from exc


def _own_types() -> dict[str, Any]:
    """Types of the fields that are ours; those of transformers name modules that are not imported."""
    namespace = {"__annotations__": GPTConfig.__annotations__, "__module__": GPTConfig.__module__}
    return get_type_hints(type("Own", (), namespace))


def _last_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[-1].strip().rstrip(".")


def _count(config: GPTConfig) -> int:
    import torch

    from fintune.models.gpt.model import GPTForCausalLM

    with torch.device("meta"):
        return int(GPTForCausalLM(config).num_parameters())
