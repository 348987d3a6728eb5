"""A frozen ``nn.Linear`` that multiplies in bf16 while the model computes in fp32, for faster labelling on a CPU.

Enters: a loaded model in fp32, with or without peft's adapters. Leaves: the same model with every linear layer but the
output head and the adapters replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fintune.kernels.bf16_weight import Bf16Weight
from fintune.schema.errors import ModelError

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_WITHOUT = "Leave bf16 products out."


class Bf16Linear(nn.Linear):
    """A frozen linear layer whose weight is held in bf16; inputs are rounded to bf16, outputs have the input's type."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """``input W^T + bias``: (..., I) to (..., O)."""
        y = Bf16Weight(self.weight.detach()).product(input)
        return y if self.bias is None else y + self.bias


def multiply_in_bf16(model: nn.Module) -> None:
    """Replaces every linear layer but the output head and those of adapters, one by one."""
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    of_head = set(nn.ModuleList([get_head()]).modules())  # with what an adapter wraps it in
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child not in of_head and "lora_" not in path:
                setattr(parent, name, Bf16Linear(child))


def require_bf16_products(device: torch.device, dtype: torch.dtype, quantization: str) -> None:
    """Refuses what bf16 products are not for, or would not be faster for.

    Args:
        device: of the model.
        dtype: type it computes in.
        quantization: how its weights are held.

    Raises:
        ModelError: the model is not on the CPU, not held in fp32, or the processor lacks the instructions.
    """
    if device.type != "cpu" or dtype != torch.float32 or quantization != "none":
        held = str(dtype).removeprefix("torch.") if quantization == "none" else quantization
        raise ModelError(
            f"Products in bf16 are for a model in float32 on the CPU, not {held} on {device.type}.", _WITHOUT
        )
    if not multiplies_in_bf16(torch.cpu.get_capabilities()):
        raise ModelError(
            f"This processor has no instructions for products in bf16 ({' or '.join(_INSTRUCTIONS)}), which would be "
            "slower than those in fp32.",
            _WITHOUT,
        )


def multiplies_in_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a processor of these capabilities, as ``torch.cpu.get_capabilities`` names them, does so natively."""
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)
