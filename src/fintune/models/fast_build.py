"""What a decoder layer of ``transformers`` computes, as our kernels take it.

Enters: a layer's module, with or without peft's LoRA. Leaves: ``DecoderLayer`` over the module's own parameters, or
``NotFast`` with the reason why our kernels cannot run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fintune.kernels.bf16_weight import bf16_weight
from fintune.kernels.fp8_weight import Fp8Weight, stack_fp8
from fintune.kernels.frozen_weight import FrozenWeight, frozen_weight
from fintune.kernels.gated import Activation
from fintune.kernels.layer_parts import DecoderLayer, Norm
from fintune.kernels.lora_group import Adapter, LoraGroup
from fintune.kernels.rope import HeadLayout
from fintune.models.bf16_linear import Bf16Linear
from fintune.models.fp8_linear import Fp8Linear

# Architectures whose layer is the one of kernels.decoder_layer; transformers' module names.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
_LINEAR = ("Linear", "Linear4bit", "Fp8Linear", "Bf16Linear")


class OwnForward:
    """What our kernels put in the place of a module's ``forward``, to be told from what others put there."""


class NotFast(Exception):
    """Why a model or a layer runs on the plain path."""


def are_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody looks at, or changes, what passes through parts of a layer, which our kernels skip."""
    for module in modules:
        own = vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return True
        if "forward" in own and not isinstance(own["forward"], OwnForward):
            return True
    return False


def linear_modules(layer: Any) -> list[Any]:
    """The seven linear layers, as peft left them."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    names = [(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    return [module for parent, name in names if (module := getattr(parent, name, None)) is not None]


def merged_adapters(module: Any) -> Any:
    """Names of the adapters that are merged into a layer's weights."""
    return getattr(module, "merged_adapters", ())


def layer_of(module: Any, dtype: torch.dtype, below: DecoderLayer | None) -> DecoderLayer:
    """A decoder layer for computation in ``dtype``, ``below`` the one before it; raises ``NotFast``."""
    if are_hooked(module.modules()):
        raise NotFast("hooks are attached to its layers")
    if module.input_layernorm.weight.dtype != dtype:
        raise NotFast(f"hidden states of {module.input_layernorm.weight.dtype} are computed with in {dtype}")
    attention, mlp = module.self_attn, module.mlp
    activation = _activation(mlp.act_fn)
    size = attention.head_dim
    has_four_norms = hasattr(module, "pre_feedforward_layernorm")
    mlp_norm = module.pre_feedforward_layernorm if has_four_norms else module.post_attention_layernorm
    qkv = _group((attention.q_proj, attention.k_proj, attention.v_proj), dtype)
    return DecoderLayer(
        qkv=qkv,
        o=_group((attention.o_proj,), dtype),
        gate_up=_group((mlp.gate_proj, mlp.up_proj), dtype),
        down=_group((mlp.down_proj,), dtype),
        layout=HeadLayout(qkv.sizes[0] // size, qkv.sizes[1] // size, size),
        activation=activation,
        input_norm=norm_of(module.input_layernorm),
        mlp_norm=norm_of(mlp_norm),
        attention_out_norm=norm_of(module.post_attention_layernorm) if has_four_norms else None,
        mlp_out_norm=norm_of(module.post_feedforward_layernorm) if has_four_norms else None,
        query_norm=norm_of(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        dropout=_dropout(module),
        below=below,
    )


def _activation(function: Any) -> Activation:
    """Which activation a module is, by what it computes."""
    points = torch.linspace(-4, 4, 33)
    values = function(points)
    if torch.allclose(values, nn.functional.silu(points), atol=1e-6):
        return "silu"
    if torch.allclose(values, nn.functional.gelu(points, approximate="tanh"), atol=1e-6):
        return "gelu_tanh"
    raise NotFast(f"its activation {type(function).__name__} is neither SiLU nor GELU")


def norm_of(module: Any) -> Norm:
    """A frozen RMSNorm; raises ``NotFast`` for anything else."""
    name = type(module).__name__
    if not name.endswith("RMSNorm") or module.weight.requires_grad:
        raise NotFast(f"its norm {name} is not a frozen RMSNorm")
    if name.startswith("Gemma"):
        return Norm(module.weight.detach(), module.eps, unit_offset=True)
    return Norm(module.weight.detach(), module.variance_epsilon)


def _dropout(module: Any) -> float:
    found = set()
    for linear in linear_modules(module):
        dropouts = getattr(linear, "lora_dropout", {})
        found |= {float(getattr(dropouts[name], "p", 0.0)) for name in dropouts if name in linear.active_adapters}
    if len(found) > 1:
        raise NotFast("its adapters differ in dropout")
    return found.pop() if found else 0.0


def _group(modules: Sequence[Any], dtype: torch.dtype) -> LoraGroup:
    pairs = [_base_and_adapter(module) for module in modules]
    bases = [base for base, _ in pairs]
    for base in bases:
        if type(base).__name__ not in _LINEAR:
            raise NotFast(f"a {type(base).__name__} layer is not known to the fast path")
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            raise NotFast("all its weights are trained")
        rounds = isinstance(base, Bf16Linear)
        if base.weight.is_floating_point() and base.weight.dtype != dtype and not rounds:
            raise NotFast(f"weights of {base.weight.dtype} are computed with in {dtype}")
    return LoraGroup(
        weight=_weight(bases),
        bias=_bias(bases, dtype),
        sizes=tuple(int(base.out_features) for base in bases),
        adapters=tuple(adapter for _, adapter in pairs),
        dtype=dtype,
    )


def _weight(layers: Sequence[Any]) -> FrozenWeight:
    if isinstance(layers[0], Fp8Linear):
        return _stack_fp8(layers)
    parameters = [layer.weight for layer in layers]
    rounding = [isinstance(layer, Bf16Linear) for layer in layers]
    if any(rounding) and not all(rounding):
        raise NotFast("layers that share an input are held in different types")
    return bf16_weight(parameters) if all(rounding) else frozen_weight(parameters)


def _bias(layers: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    """The layers' biases side by side, of which each layer then uses its own, or None where there are none."""
    if all(layer.bias is None for layer in layers):
        return None
    parts = [
        layer.weight.new_zeros(layer.out_features, dtype=dtype) if layer.bias is None else layer.bias
        for layer in layers
    ]
    whole = torch.cat([part.detach().to(dtype) for part in parts])
    for layer, own in zip(layers, whole.split_with_sizes([layer.out_features for layer in layers]), strict=True):
        if layer.bias is not None and layer.bias.dtype == dtype:
            layer.bias.data = own
    return whole


def _stack_fp8(layers: Sequence[Any]) -> Fp8Weight:
    """The layers' weights as one, of which each uses its rows."""
    if not all(isinstance(layer, Fp8Linear) for layer in layers):
        raise NotFast("layers that share an input are held in different types")
    whole = stack_fp8([layer.held() for layer in layers])
    sizes = [layer.out_features for layer in layers]
    for layer, data, scale in zip(
        layers, whole.data.split_with_sizes(sizes), whole.scale.split_with_sizes(sizes), strict=True
    ):
        layer.hold(data, scale)
    return whole


def _base_and_adapter(module: Any) -> tuple[Any, Adapter | None]:
    """The frozen layer under a module, and its one active LoRA."""
    if not hasattr(module, "base_layer"):
        return module, None
    if not hasattr(module, "lora_A"):
        raise NotFast(f"{type(module).__name__} is not LoRA")
    if merged_adapters(module):
        raise NotFast("its adapter is merged into the weights")
    names = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return module.base_layer, None
    if len(names) > 1:
        raise NotFast("several adapters are active at once")
    name = names[0]
    if getattr(module, "use_dora", {}).get(name) or name in getattr(module, "lora_variant", {}):
        raise NotFast("DoRA and other variants of LoRA scale the whole weight")
    if getattr(module, "fan_in_fan_out", False) or getattr(module, "lora_bias", {}).get(name):
        raise NotFast("its adapters have biases or transposed weights")
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return module.base_layer, Adapter(a, b, float(module.scaling[name]))
