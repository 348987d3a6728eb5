"""The shape of a base model without its weights: which matrices it has, read from its configuration alone.

Enters: ``ModelSection``. Leaves: ``ModelShape``, counted on the meta device, where nothing is allocated. A GGUF file is
read as far as its header, and of a hub id only the configuration is fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.models.foreign import first_line, speaks_of_the_file
from fintune.models.gguf import converted_folder
from fintune.models.gguf_header import check_gguf
from fintune.models.gguf_splits import split_as_stated
from fintune.models.locate import ALIASES, wheel_file
from fintune.models.own import know_own_models
from fintune.models.quiet import no_gguf_progress_bar, no_progress_bars
from fintune.schema.errors import ModelError
from fintune.schema.network import is_offline, offline_reason
from fintune.schema.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Matrix:
    """A linear layer that occurs ``count`` times: ``rows`` outputs from ``columns`` inputs."""

    name: str
    rows: int
    columns: int
    count: int

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.rows * self.columns * self.count


@dataclass(frozen=True)
class ModelShape:
    """What memory and speed of a decoder follow from.

    Attributes:
        architecture: the name the configuration gives it.
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width inside the feed-forward block.
        heads: query heads.
        key_value_heads: heads of keys and values.
        head_size: width of a head.
        vocabulary: rows of the output head.
        matrices: all linear layers but the head.
        embedding_parameters: weights of the input embedding, and of the head where it is not tied to it.
        other_parameters: norms, biases, and anything else that is not a linear layer.
        norms: norms of the residual width in each layer.
        head_norms: queries and keys are normalised.
        gated: the feed-forward block multiplies two projections.
        softcap: attention scores are bounded, which only FlexAttention does without keeping them.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    embedding_parameters: int
    other_parameters: int
    norms: int
    head_norms: bool
    gated: bool
    softcap: bool

    @property
    def matrix_parameters(self) -> int:
        """Weights of the linear layers without the head."""
        return sum(matrix.parameters for matrix in self.matrices)

    @property
    def parameters(self) -> int:
        """All weights, tied ones once."""
        return self.matrix_parameters + self.embedding_parameters + self.other_parameters


def read_shape(section: ModelSection) -> tuple[ModelShape, PreTrainedConfig]:
    """The shape of the base model a recipe names, and its configuration.

    Raises:
        ModelError: there is no configuration to be had, or it describes no causal language model.
    """
    config = _read(section, *_place(section), "configuration", "AutoConfig")
    return shape_of(config, trust_remote_code=section.trust_remote_code), config


def read_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model; its weights are neither fetched nor converted."""
    place, options = _place(section)
    tokenizer: PreTrainedTokenizerBase = _read(section, place, options, "tokenizer", "AutoTokenizer")
    if "gguf_file" in options:
        file = Path(place) / options["gguf_file"]
        split_as_stated(tokenizer, check_gguf(file), file)
    return tokenizer


def _read(section: ModelSection, place: str | Path, options: Mapping[str, Any], what: str, loader: str) -> Any:
    import transformers

    know_own_models()
    try:
        with no_progress_bars(), no_gguf_progress_bar():
            return getattr(transformers, loader).from_pretrained(
                place, trust_remote_code=section.trust_remote_code, **options
            )
    except BaseException as exc:  # whatever hub, JSON and tokenizer libraries raise
        if not speaks_of_the_file(exc):
            raise
        raise _unreadable(section, what, exc) from exc


def _place(section: ModelSection) -> tuple[str | Path, Mapping[str, Any]]:
    """Where configuration and tokenizer are read from, and with which options."""
    if section.base in ALIASES:
        return _from_alias(section.base)
    path = Path(section.base).expanduser()
    if path.is_dir():
        return path, {}
    if path.suffix == ".gguf":
        check_gguf(path)
        return path.parent, {"gguf_file": path.name}
    return section.base, {"revision": section.revision, "local_files_only": is_offline()}


def _from_alias(name: str) -> tuple[Path, Mapping[str, Any]]:
    alias = ALIASES[name]
    converted = converted_folder(alias.sha256)
    if (converted / "config.json").is_file():
        return converted, {}
    file = wheel_file(name, alias)
    return file.parent, {"gguf_file": file.name}


def _unreadable(section: ModelSection, what: str, exc: BaseException) -> ModelError:
    if Path(section.base).expanduser().exists() or section.base in ALIASES:
        return ModelError(
            f"The {what} of {section.base} cannot be read ({type(exc).__name__}: {first_line(exc)}).",
            "Point model.base at a folder with config.json and tokenizer, a .gguf file or a hub id.",
        )
    reason = offline_reason() or "the hub does not give it"
    return ModelError(
        f"The {what} of {section.base} is neither on this machine nor to be fetched: {reason}.",
        "Check the name, or set model.base to a folder that holds config.json.",
    )


def shape_of(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ModelShape:
    """Counts a model that is built on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = make.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, AttributeError, ImportError) as exc:
        raise ModelError(
            f"No causal language model can be made from the configuration ({type(exc).__name__}: {first_line(exc)}).",
            "Use a causal language model that transformers knows.",
        ) from exc
    return _counted(model, config.get_text_config())


def _counted(model: Any, config: Any) -> ModelShape:
    import torch

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found = Counter(
        (name.rpartition(".")[2], module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    matrices = tuple(Matrix(*key, count) for key, count in found.items())
    tied = head is not None and head.weight is embedding.weight
    embeddings = embedding.weight.numel() + (0 if head is None or tied else head.weight.numel())
    total = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    intermediate = int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
    inner = sum(matrix.count * matrix.rows for matrix in matrices if matrix.rows in (intermediate, 2 * intermediate))
    heads = config.num_attention_heads
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    norms = Counter(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and ".layers.0." in name and module.weight is not None
    )
    return ModelShape(
        architecture=str(config.model_type),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=intermediate,
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=head_size,
        vocabulary=config.vocab_size,
        matrices=matrices,
        embedding_parameters=embeddings,
        other_parameters=total - embeddings - sum(matrix.parameters for matrix in matrices),
        norms=norms[config.hidden_size] or 2,
        head_norms=norms[head_size] > 0 and head_size != config.hidden_size,
        gated=inner >= 2 * intermediate * config.num_hidden_layers,
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    )
