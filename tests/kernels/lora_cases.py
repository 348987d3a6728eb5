"""Random frozen weights, layers and comparisons shared by the LoRA tests."""

import bitsandbytes
import torch

from fintune.kernels.fp8_weight import fp8_weight
from fintune.kernels.frozen_weight import frozen_weight
from fintune.kernels.lora_linear import LoraLinear

KINDS = ("dense", "nf4", "nf4 plain scales", "fp8", "fp8 tensor", "fp8 two copies")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def packed(matrix, double_quant=True):
    """Packed by the move to its device, as when a model is loaded."""
    return bitsandbytes.nn.Params4bit(
        matrix.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    ).to(matrix.device)


def random_weight(kind, outputs, inputs, dtype, device="cpu"):
    matrix = torch.randn(outputs, inputs, device=device) / inputs**0.5
    if kind == "dense":
        return frozen_weight(matrix.to(dtype))
    if kind.startswith("nf4"):
        return frozen_weight(packed(matrix, kind == "nf4"))
    return fp8_weight(
        matrix, scaling="tensor" if kind == "fp8 tensor" else "row", copies=2 if kind == "fp8 two copies" else 1
    )


def random_layer(kind, outputs, inputs, dtype, *, rank=4, bias=False, scale=0.7, device="cpu"):
    leaf = torch.float64 if dtype == torch.float64 else torch.float32
    a = torch.randn(rank, inputs, dtype=leaf, device=device).div_(inputs**0.5).requires_grad_() if rank else None
    b = torch.randn(outputs, rank, dtype=leaf, device=device).requires_grad_() if rank else None
    return LoraLinear(
        random_weight(kind, outputs, inputs, dtype, device),
        torch.randn(outputs, device=device) if bias else None,
        a,
        b,
        scale,
    )


def outputs_and_gradients(function, leaves):
    """The outputs of ``function()`` and the gradients of a loss that weighs every output differently."""
    outputs = function()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((y.float() if y.dtype == torch.bfloat16 else y).pow(2).sum() * (i + 1) for i, y in enumerate(outputs))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, leaves)]


def assert_all_near(ours, twin, tolerance):
    """Each tensor within ``tolerance`` of the twin's, relative to its norm, and in the same type and shape."""
    assert len(ours) == len(twin)
    for left, right in zip(ours, twin, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        difference = (left.double() - right.double()).detach().norm()
        assert float(difference) <= tolerance * float(right.detach().double().norm())


def kept_for_backward(function):
    """The tensors autograd keeps while ``function()`` runs, each memory once."""
    kept = {}

    def keep(tensor):
        kept.setdefault(tensor.data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return list(kept.values())
