"""How a decoder of transformers is laid out in a GGUF file: metadata, names of tensors, and their order in memory.

Enters: the configuration of a Llama, Mistral, Qwen2 or Qwen3 model. Leaves: ``Layout``, or a ``ModelError``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fintune.schema.errors import ModelError

if TYPE_CHECKING:
    import gguf
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

# By transformers' model type: llama.cpp's architecture. Its llama turns neighbouring numbers of a head by one angle,
# transformers turns halves of it, so the rows of queries and keys change places; its qwen2 and qwen3 turn halves, too.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_REORDERED = "llama"
_REMEDY = "Export it as merged, without GGUF."


@dataclass(frozen=True)
class Layout:
    """Where the weights of one model go.

    Attributes:
        architecture: llama.cpp's name of it.
        config: transformers' configuration.
        layers: number of decoder layers.
        heads: attention heads, and in ``kv_heads`` those of keys and values.
        kv_heads: see ``heads``.
        head_size: numbers of a head.
        context: tokens the model reads at most.
        tied: whether the embedding is the output layer, too.
        notes: what llama.cpp does otherwise, in sentences.
    """

    architecture: str
    config: Any
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    tied: bool
    notes: tuple[str, ...]

    def name(self, source: str) -> str:
        """The GGUF name of a tensor.

        Raises:
            ModelError: llama.cpp has no place for it.
        """
        found: str | None = _names(self.architecture, self.layers).get_name(source, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"llama.cpp's {self.architecture} has no tensor for {source}.", _REMEDY)
        return found

    def ordered(self, source: str, weights: FloatArray) -> FloatArray:
        """Weights, or a bias, in llama.cpp's order: (heads * D, ...) stays of the same shape."""
        if self.architecture != _REORDERED:
            return weights
        if ".q_proj." in source:
            return _interleaved(weights, self.heads)
        return _interleaved(weights, self.kv_heads) if ".k_proj." in source else weights

    def extra_tensors(self) -> dict[str, FloatArray]:
        """Tensors that transformers computes from the configuration: Llama 3's factors of the rotation."""
        rope = rope_of(self.config)
        return {"rope_freqs.weight": _llama3_factors(rope, self.head_size)} if _kind(rope) == "llama3" else {}


def layout_of(config: Any) -> Layout:
    """The layout of a model with this configuration.

    Raises:
        ModelError: it is of another family, or computes something that llama.cpp does not.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"A {kind} model is not written to GGUF here, only {', '.join(ARCHITECTURES)}.",
            "Export it as merged, and convert that with llama.cpp's own converter.",
        )
    if config.hidden_act != "silu":
        raise ModelError(f"llama.cpp computes {kind} with silu, not {config.hidden_act}.", _REMEDY)
    if _kind(rope_of(config)) not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"RoPE of the kind {_kind(rope_of(config))} is not written to GGUF.", _REMEDY)
    context, notes = _context(config)
    heads = int(config.num_attention_heads)
    return Layout(
        architecture=ARCHITECTURES[kind],
        config=config,
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(config.num_key_value_heads or heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        context=context,
        tied=bool(config.tie_word_embeddings),
        notes=notes,
    )


def write_layout(writer: gguf.GGUFWriter, layout: Layout) -> None:
    """Writes the metadata of the architecture."""
    config = layout.config
    writer.add_block_count(layout.layers)
    writer.add_context_length(layout.context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.kv_heads)
    writer.add_key_length(layout.head_size)
    writer.add_value_length(layout.head_size)
    writer.add_rope_dimension_count(layout.head_size)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))
    _write_rope(writer, rope_of(config), int(config.max_position_embeddings))


def rope_of(config: Any) -> Mapping[str, Any]:
    """The parameters of the rotation, as transformers 5 and its predecessors state them."""
    rope = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    rope.setdefault("rope_theta", getattr(config, "rope_theta", None) or 10_000.0)
    return rope


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _write_rope(writer: gguf.GGUFWriter, rope: Mapping[str, Any], context: int) -> None:
    import gguf

    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if _kind(rope) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif _kind(rope) == "yarn":
        if stray := sorted(set(rope) & {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"}):
            raise ModelError(f"YaRN with {stray[0]} is not written to GGUF.", _REMEDY)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope.get("original_max_position_embeddings") or context))


def _llama3_factors(rope: Mapping[str, Any], head_size: int) -> FloatArray:
    """(D/2,) what each frequency is divided by; transformers' ``_compute_llama3_parameters``."""
    frequency = float(rope["rope_theta"]) ** (-np.arange(0, head_size, 2) / head_size)
    length, factor = 2 * math.pi / frequency, float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    share = (original / length - low) / (high - low)  # between both bounds: from scaled to as it was
    between = 1 / ((1 - share) / factor + share)
    scaled = np.where(length > original / low, factor, np.where(length < original / high, 1.0, between))
    return scaled.astype(np.float32)


def _context(config: Any) -> tuple[int, tuple[str, ...]]:
    """Tokens, and what is to be said of them; a sliding window that llama.cpp leaves out ends the context."""
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if config.model_type.startswith("qwen") and not getattr(config, "use_sliding_window", False):
        window = None
    if window is None or int(window) >= longest:
        return longest, ()
    note = (
        f"llama.cpp has no sliding window for this model, so the file says {window} tokens, up to which both compute "
        f"the same, and not {longest}."
    )
    return int(window), (note,)


def _interleaved(weights: FloatArray, heads: int) -> FloatArray:
    """(heads * D, ...) with the halves of each head interleaved."""
    parts = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(weights.shape))


@cache
def _names(architecture: str, layers: int) -> Any:
    import gguf

    names: Mapping[Any, str] = gguf.MODEL_ARCH_NAMES
    number = next(number for number, name in names.items() if name == architecture)
    return gguf.get_tensor_name_map(number, layers)
