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
    """A linear layer that occurs ``count`` times: ``rows`` outputs from ``columns`` inputs.

    ``places`` are the dotted names of all of them, ``name`` is the last part of each. GPT-2's weights are
    ``transposed``: adapters and bitsandbytes take them like others, fp8 leaves them as they are.
    """

    name: str
    rows: int
    columns: int
    places: tuple[str, ...]
    transposed: bool = False

    @property
    def count(self) -> int:
        """How often it occurs."""
        return len(self.places)

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
        intermediate: width inside the feed-forward block; the largest where layers differ.
        heads: query heads, the most where layers differ; 0 where the configuration names none, as of Mamba.
        key_value_heads: heads of keys and values.
        head_size: width of a head.
        vocabulary: rows of the output head.
        matrices: all linear layers but the head.
        head: the output head; None where there is none.
        embedding_parameters: weights of the input embedding, and of the head where it is not tied to it.
        other_parameters: norms, biases, and anything else that is not a linear layer.
        norms: norms of the residual width in each layer.
        head_norms: queries and keys are normalised.
        gated: the feed-forward block multiplies two projections.
        softcap: attention scores are bounded, which only FlexAttention does without keeping them.
        layer_family: the module of transformers that the layers at ``model.layers`` come from; None where none are.
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
    head: Matrix | None
    embedding_parameters: int
    other_parameters: int
    norms: int
    head_norms: bool
    gated: bool
    softcap: bool
    layer_family: str | None

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
    layers, hidden, vocabulary = (_stated(config, key) for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    matrices, last = _matrices(model, head)
    tied = head is not None and head.weight is embedding.weight
    embeddings = embedding.weight.numel() + (0 if head is None or tied else head.weight.numel())
    total = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    widths = _numbers(config, "intermediate_size") or [4 * hidden]
    doubled = {2 * width for width in widths} | set(widths)
    inner = sum(matrix.count * matrix.rows for matrix in matrices if matrix.rows in doubled)
    all_widths = sum(widths) if len(widths) == layers else max(widths) * layers
    heads = max(_numbers(config, "num_attention_heads"), default=0)
    head_size = max(_numbers(config, "head_dim"), default=0) or (hidden // heads if heads else 0)
    norms = Counter(
        weight.numel()
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and ".layers.0." in name
        if (weight := getattr(module, "weight", None)) is not None  # some only divide
    )
    return ModelShape(
        architecture=str(config.model_type),
        layers=layers,
        hidden=hidden,
        intermediate=max(widths),
        heads=heads,
        key_value_heads=max(_numbers(config, "num_key_value_heads"), default=heads) if heads else 0,
        head_size=head_size,
        vocabulary=vocabulary,
        matrices=matrices,
        head=last,
        embedding_parameters=embeddings,
        other_parameters=total - embeddings - sum(matrix.parameters for matrix in matrices),
        norms=norms[hidden] or 2,
        head_norms=head_size not in (0, hidden) and norms[head_size] > 0,
        gated=inner >= 2 * all_widths,
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
        layer_family=_layer_family(model),
    )


def _numbers(config: Any, key: str) -> list[int]:
    """A key's positive values: of all layers, where it lists one for each; none where it is not stated."""
    value = getattr(config, key, None)
    values = value if isinstance(value, list | tuple) else [value]
    return [own for own in values if isinstance(own, int) and own > 0]


def _stated(config: Any, key: str) -> int:
    found = _numbers(config, key)
    if not found:
        raise ModelError(
            f"The configuration of this {config.model_type} model does not state {key}, so its shape is not known.",
            "Use another base model; this one can be trained, but not estimated.",
        )
    return max(found)


def _matrices(model: Any, head: Any) -> tuple[tuple[Matrix, ...], Matrix | None]:
    """The linear layers, those of one name and size together; and the head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[tuple[str, int, int, bool], list[str]] = {}
    last = None
    for place, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = module.out_features, module.in_features
        elif isinstance(module, Conv1D):  # GPT-2's, whose weight lies transposed
            columns, rows = module.weight.shape
        else:
            continue
        name = place.rpartition(".")[2]
        if module is head:
            last = Matrix(name, rows, columns, (place,))
        else:
            found.setdefault((name, rows, columns, isinstance(module, Conv1D)), []).append(place)
    matrices = [Matrix(*key[:3], tuple(places), transposed=key[3]) for key, places in found.items()]
    return tuple(matrices), last


def _layer_family(model: Any) -> str | None:
    """Where ``models.fast_layers`` looks for layers too; those of a model of text and pictures lie deeper."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    module = type(layers[0]).__module__.split(".") if layers else []
    return module[2] if module[:2] == ["transformers", "models"] else None
