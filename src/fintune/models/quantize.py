"""Storage of frozen weights in 4 or 8 bits through bitsandbytes, on GPU and CPU.

Enters: what the recipe asks and what the checkpoint's config says. Leaves: one decision (``QuantizationPlan``), and
after loading, the corrections that keep bitsandbytes' arithmetic the same in training and evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.models.quiet import import_bitsandbytes
from fintune.schema.errors import DependencyError, ModelError
from fintune.schema.recipe import ModelSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class QuantizationPlan:
    """How the linear layers are stored: ``none``, ``nf4``, ``int8``, ``fp8``, or ``fp4`` where a checkpoint came so."""

    kind: str
    double_quant: bool
    prequantized: bool


def plan_quantization(section: ModelSection, config: Mapping[str, Any]) -> QuantizationPlan:
    """Reconciles the recipe with the checkpoint's own ``quantization_config``.

    The recipe's ``none`` is its default, so a quantised checkpoint then loads as it is; any other value must agree.

    Args:
        section: the recipe's model section.
        config: the checkpoint's ``config.json``.
    """
    own = config.get("quantization_config")
    if not own:
        return QuantizationPlan(section.quantization, section.quantization == "nf4" and section.double_quant, False)
    stored = _stored_kind(section.base, own)
    if section.quantization not in ("none", stored):
        raise ModelError(
            f"The checkpoint {section.base} is already quantised to {stored}, but the recipe says "
            f"model.quantization={section.quantization}.",
            f"Set model.quantization={stored if stored != 'fp4' else 'none'} to load it as it is, "
            "or use the checkpoint that is not quantised.",
        )
    return QuantizationPlan(stored, bool(own.get("bnb_4bit_use_double_quant", False)), True)


def _stored_kind(source: str, own: Mapping[str, Any]) -> str:
    method = own.get("quant_method", "bitsandbytes" if "load_in_4bit" in own or "load_in_8bit" in own else "unknown")
    if own.get("load_in_4bit") and method == "bitsandbytes":
        return str(own.get("bnb_4bit_quant_type", "fp4"))
    if own.get("load_in_8bit") and method == "bitsandbytes":
        return "int8"
    raise ModelError(
        f"The checkpoint {source} is quantised by {method}, which fintune does not read.",
        "Use the unquantised checkpoint with model.quantization=nf4, or one quantised by bitsandbytes.",
    )


def bitsandbytes_config(plan: QuantizationPlan, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The loading instruction for transformers; None when bitsandbytes has no part in it."""
    if plan.kind in ("none", "fp8"):
        return None
    try:
        import_bitsandbytes()
    except ImportError as exc:
        raise DependencyError(
            f"model.quantization={plan.kind} needs the bitsandbytes package.", "Run: pip install bitsandbytes"
        ) from exc
    if plan.prequantized:
        return None
    import transformers

    make: Callable[..., BitsAndBytesConfig] = transformers.BitsAndBytesConfig
    # Neither names modules to skip: transformers then leaves out the output head and tied embeddings by itself.
    if plan.kind == "int8":
        # Outlier columns are chosen per batch: with a threshold, a row's result depends on its company.
        return make(load_in_8bit=True, llm_int8_threshold=0.0)
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=plan.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def settle_quantized_layers(model: nn.Module, plan: QuantizationPlan, dtype: torch.dtype, device: torch.device) -> None:
    """Makes every quantised layer compute in ``dtype`` and by the same arithmetic in training and evaluation."""
    if plan.kind in ("none", "fp8"):
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if plan.kind == "int8":
        # It warns, once a call, that bf16 inputs are rounded through fp16 before they are quantised.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype  # a checkpoint's own setting may not suit this device
            module.compute_type_is_set = True
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights in place for a bf16 kernel:
            # less exact, and a backward pass after it has no gradient.
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.state.threshold = 0.0
            if device.type == "cpu":
                _hold_in_training_mode(module)


def _hold_in_training_mode(module: nn.Module) -> None:
    """Keeps a layer without dropout in training mode whatever ``model.eval()`` says.

    On the CPU, bitsandbytes rounds activations to 8 bits in evaluation but not in training; the weights are the same.
    """

    def train(mode: bool = True) -> nn.Module:
        return module

    module.training = True
    module.train = train  # type: ignore[method-assign]
