"""The shape and the choices of a GPT trained from scratch: a field for each choice, so that each can be switched alone.

Enters: the name of a size and what differs. Leaves: ``GPTConfig``, which ``transformers`` writes to config.json.
``baseline`` is GPT-2 (Radford et al. 2019), ``optimised`` what later work changed; both share every line of the model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from fintune.schema.errors import ModelError

Positions = Literal["learned", "rope"]
NormKind = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu", "relu2", "swiglu"]
Initialisation = Literal["gpt2", "fan_in"]

# Layers, heads and width; 124m and 350m are GPT-2's first two.
SIZES: dict[str, tuple[int, int, int]] = {"tiny": (2, 4, 64), "124m": (12, 12, 768), "350m": (24, 16, 1024)}
GPT2_VOCABULARY = 50257
_TILE = 128  # rows of a matrix that tensor cores take at once; a vocabulary that fills them multiplies faster


@strict
class GPTConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves what it hooks in untyped
    """Shape and choices of a GPT; the defaults are the baseline of 124 million weights.

    How attention is computed is no choice of architecture and no field: ``attn_implementation`` or the backend of
    ``EdgeModel`` says it. The same holds for precision (autocast) and ``compile_blocks``, but for the head's.

    Attributes:
        vocab_size: rows of the embedding and of the head.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward block. None: four times ``hidden_size``, and for SwiGLU, which
            has three matrices instead of two, two thirds of that, so that both have as many weights.
        num_hidden_layers: blocks.
        num_attention_heads: heads of queries, keys and values alike.
        max_position_embeddings: longest text in tokens; a hard limit with learned positions only.
        positions: ``learned`` vectors added to the embedding, or ``rope`` (Su et al., arXiv 2104.09864).
        rope_theta: base of the rotation's wavelengths.
        norm: ``layernorm``, or ``rmsnorm`` (Zhang & Sennrich, arXiv 1910.07467).
        norm_eps: added to the variance.
        qk_norm: heads of queries and keys get a root mean square of one (Henry et al., arXiv 2010.04245), no weights.
        activation: ``gelu`` (its tanh form), ``relu2`` (So et al., arXiv 2109.08668) or ``swiglu`` (Shazeer, arXiv
            2002.05202).
        biases: linear layers and layer norms have them.
        tie_word_embeddings: the head is the embedding.
        final_logit_softcapping: bound of the logits, ``cap tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118), or None.
        fp8_head: in training, logits and the gradient that they send back are products in fp8, which Ada, Hopper and
            newer cards compute (a CPU imitates them); evaluation and generation are not touched.
        low_precision_residual: under autocast the residual stream has its type too, instead of fp32.
        initialisation: see ``fintune.models.gpt.initialisation``.
        initializer_range: spread of initial weights under ``gpt2``.
        zero_outputs: each block's last matrices, and a head that is not tied, start at zero. With a tied head the first
            loss is then far from ln(vocab_size), as every token predicts itself.
    """

    model_type: ClassVar[str] = "fintune_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = GPT2_VOCABULARY
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 1024
    positions: Positions = "learned"
    rope_theta: float = 10000.0
    norm: NormKind = "layernorm"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    activation: Activation = "gelu"
    biases: bool = True
    tie_word_embeddings: bool = True
    final_logit_softcapping: float | None = None
    fp8_head: bool = False
    low_precision_residual: bool = False
    initialisation: Initialisation = "gpt2"
    initializer_range: float = 0.02
    zero_outputs: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = _inner_width(self.hidden_size, self.activation)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # as above

    def validate_architecture(self) -> None:
        """Raises ``ValueError`` where the heads do not fit the width."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(f"positions=rope turns pairs of features, but a head has {self.head_size}")

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def _inner_width(width: int, activation: Activation) -> int:
    return -(-8 * width // 3 // 64) * 64 if activation == "swiglu" else 4 * width


def baseline(size: str = "124m", vocab_size: int = GPT2_VOCABULARY, **changes: Any) -> GPTConfig:
    """GPT-2's architecture: learned positions, LayerNorm, GELU, biases, a tied head.

    Args:
        size: tiny, 124m or 350m.
        vocab_size: of the tokenizer.
        **changes: any field of ``GPTConfig``.

    Raises:
        ModelError: no size has this name.
    """
    return _sized(size, vocab_size=vocab_size, **changes)


def optimised(size: str = "124m", vocab_size: int = GPT2_VOCABULARY, **changes: Any) -> GPTConfig:
    """What transfers from the speed runs on GPT-2, as the logs of modded-nanogpt and nanochat have it.

    The vocabulary is rounded up to a multiple of 128; no token is ever trained towards the rows beyond the tokenizer's.

    Args:
        size: tiny, 124m or 350m.
        vocab_size: of the tokenizer.
        **changes: any field of ``GPTConfig``; ``optimised("124m", qk_norm=False)`` leaves one choice out.

    Raises:
        ModelError: no size has this name.
    """
    choices: dict[str, Any] = {
        "positions": "rope",
        "norm": "rmsnorm",
        "qk_norm": True,
        "activation": "relu2",
        "biases": False,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 15.0,
        "low_precision_residual": True,
        "initialisation": "fan_in",
        "zero_outputs": True,
    }
    return _sized(size, **{"vocab_size": -(-vocab_size // _TILE) * _TILE, **choices, **changes})


def _sized(size: str, **fields: Any) -> GPTConfig:
    if size not in SIZES:
        raise ModelError(f"There is no GPT of size {size}.", f"Choose from {', '.join(SIZES)}.")
    layers, heads, width = SIZES[size]
    shape = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width}
    return GPTConfig(**{**shape, **fields})
