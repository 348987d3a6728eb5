"""A frozen ``nn.Linear`` whose weight is held in fp8, for models loaded with ``model.quantization=fp8``.

Enters: a loaded model. Leaves: the same model with every linear layer but the output head replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fintune.kernels.fp8_weight import FP8, Fp8Weight, fp8_weight
from fintune.schema.errors import ModelError


class Fp8Linear(nn.Linear):
    """A frozen linear layer in fp8; inputs are rounded to fp8 by a scale per token.

    ``weight`` is a uint8 parameter, (out_features, in_features), so that nothing casts it or its adapters to fp8.
    """

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        held = fp8_weight(linear.weight.detach().to(device))
        self.weight = nn.Parameter(held.data.view(torch.uint8), requires_grad=False)
        self.register_buffer("weight_scale", held.scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def held(self) -> Fp8Weight:
        """The weight as the kernels take it."""
        scale: Any = self.weight_scale
        return Fp8Weight(self.weight.detach().view(FP8), scale)

    def hold(self, data: Tensor, scale: Tensor) -> None:
        """Makes the layer use equal numbers that lie elsewhere."""
        self.weight.data, self.weight_scale = data.view(torch.uint8), scale

    def forward(self, input: Tensor) -> Tensor:
        """``input W^T + bias`` in the type of the input, or that of autocast."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        apply: Any = _Fp8Product.apply
        y: Tensor = apply(input.to(dtype).flatten(0, -2), self.held()).unflatten(0, input.shape[:-1])
        return y if self.bias is None else y + self.bias.to(dtype)


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Fp8Weight) -> Tensor:
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.input_gradient(gradients[0].contiguous()), None


def hold_in_fp8(model: nn.Module, device: torch.device) -> None:
    """Replaces every linear layer but the output head, one by one, and moves the model to ``device``."""
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, Fp8Linear(child, device))
    model.to(device)


def refuse_merging(model: nn.Module) -> None:
    """Makes peft refuse to merge adapters into fp8 weights, whose bytes it would take for numbers and add to."""
    for module in model.modules():
        if isinstance(getattr(module, "base_layer", None), Fp8Linear):
            vars(module)["merge"] = _refuse


def _refuse(*_: Any, **__: Any) -> None:
    raise ModelError(
        "An adapter cannot be merged into weights held in fp8.",
        "Load the base with model.quantization=none and merge there.",
    )
