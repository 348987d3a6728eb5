"""Unpacks weights that bitsandbytes packed to NF4: the scales and the weights in one pass over memory.

Enters: the fields of ``frozen_weight.Nf4Weight``. Leaves: the (O, I) matrix, equal to bitsandbytes' own to the bit.

Shapes: O output features, I input features; two weights a byte, the first in the high half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fintune.kernels.triton_use import FLOATS, interpreted, triton_is_installed

# The 16 values of NF4: quantiles of the normal distribution, as published with QLoRA.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Weights in the words the kernel reads.
WORD_WEIGHTS = 8

_values: dict[torch.device, Tensor] = {}


def unpack_nf4(
    packed: Tensor,
    absmax: Tensor,
    absmax_code: Tensor | None,
    absmax_scale: Tensor | None,
    absmax_offset: Tensor | None,
    block: int,
    absmax_block: int,
    out: Tensor,
) -> Tensor:
    """Writes the weights to ``out``.

    Args:
        packed: O x I / 2 bytes of any shape.
        absmax: one scale for every ``block`` weights: fp32, or uint8 where the scales are quantised too.
        absmax_code: (256,) fp32 values of the quantised scales; with the next two, None where they are not quantised.
        absmax_scale: one fp32 scale for every ``absmax_block`` scales.
        absmax_offset: 0-d fp32 mean of the scales.
        block: weights that share a scale.
        absmax_block: scales that share a scale.
        out: (O, I), rows contiguous and perhaps apart.

    Returns:
        ``out``.
    """
    if _kernel_takes(packed, block, out):
        from fintune.kernels import unpack_nf4_triton

        return unpack_nf4_triton.unpack_nf4(
            packed, absmax, absmax_code, absmax_scale, absmax_offset, block, absmax_block, nf4_values(out.device), out
        )
    return unpack_nf4_plain(packed, absmax, absmax_code, absmax_scale, absmax_offset, block, absmax_block, out)


def unpack_nf4_plain(
    packed: Tensor,
    absmax: Tensor,
    absmax_code: Tensor | None,
    absmax_scale: Tensor | None,
    absmax_offset: Tensor | None,
    block: int,
    absmax_block: int,
    out: Tensor,
) -> Tensor:
    """The plain twin of ``unpack_nf4``."""
    if absmax_code is not None and absmax_scale is not None and absmax_offset is not None:
        scales = absmax_scale.repeat_interleave(absmax_block)[: absmax.numel()]
        absmax = absmax_code[absmax.flatten().int()] * scales + absmax_offset
    data = packed.flatten().view(torch.uint8)
    halves = torch.stack([data >> 4, data & 15], 1).flatten()[: out.numel()]
    weights = nf4_values(out.device)[halves.int()] * absmax.flatten().repeat_interleave(block)[: out.numel()]
    return out.copy_(weights.view(out.shape))


def nf4_values(device: torch.device) -> Tensor:
    """(16,) fp32, made once a device: later calls copy nothing, so a CUDA graph may hold them."""
    if device not in _values:
        # Values made in inference mode could not be saved for a backward pass outside it.
        with torch.inference_mode(False):
            _values[device] = torch.tensor(NF4_VALUES, dtype=torch.float32, device=device)
    return _values[device]


def _kernel_takes(packed: Tensor, block: int, out: Tensor) -> bool:
    if torch.compiler.is_compiling() or not ((out.is_cuda or interpreted()) and triton_is_installed()):
        return False
    row = out.numel() if out.is_contiguous() else out.shape[1]
    words_fit = row % WORD_WEIGHTS == 0 and block % WORD_WEIGHTS == 0 and packed.data_ptr() % 4 == 0
    return words_fit and packed.is_contiguous() and out.dtype in FLOATS and out.numel() > 0
