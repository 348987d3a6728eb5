"""Random frozen weights and comparisons shared by the tests of LoRA on frozen weights."""

import bitsandbytes
import pytest
import torch

from fintune.kernels.fp8_weight import LEAST_CAPABILITY, fp8_weight
from fintune.kernels.frozen_weight import frozen_weight

KINDS = ("dense", "nf4", "nf4 unpacked", "nf4 plain scales", "fp8", "fp8 tensor", "fp8 transposed")


def require_fp8_card():
    """Skips on cards older than Ada, which a user may have too."""
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("the card has no fp8")


def packed(matrix, double_quant=True):
    """Packed by the move to its device, as when a model is loaded."""
    return bitsandbytes.nn.Params4bit(
        matrix.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    ).to(matrix.device)


def random_weight(kind, outputs, inputs, dtype, device="cpu"):
    matrix = torch.randn(outputs, inputs, device=device) / inputs**0.5
    if kind == "dense":
        return frozen_weight([matrix.to(dtype)])
    if kind.startswith("nf4"):
        weight = frozen_weight([packed(matrix, kind != "nf4 plain scales")])
        if kind == "nf4 unpacked":
            weight.hold_ready(dtype)
        return weight
    weight = fp8_weight(matrix, scaling="tensor" if kind == "fp8 tensor" else "row")
    if kind == "fp8 transposed":
        weight.hold_ready(dtype)
    return weight
