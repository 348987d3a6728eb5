# mypy: ignore-errors
"""Triton kernel of ``unpack_nf4``: a word of eight weights becomes 16 bytes, the widest store there is.

Enters and leaves: what ``unpack_nf4`` takes and gives.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.triton_use import launch

_WORDS = 1024  # of a program: 16 KiB of bf16


def unpack_nf4(
    packed: Tensor,
    absmax: Tensor,
    absmax_code: Tensor | None,
    absmax_scale: Tensor | None,
    absmax_offset: Tensor | None,
    block: int,
    absmax_block: int,
    values: Tensor,
    out: Tensor,
) -> Tensor:
    """``out``; rows of eights of weights."""
    rows, row_words = out.shape[0], out.shape[1] // 8
    if out.is_contiguous():
        rows, row_words = 1, out.numel() // 8
    launch(
        _kernel,
        (rows * triton.cdiv(row_words, _WORDS),),
        out.device,
        packed.view(-1).view(torch.int32),
        absmax,
        absmax_code,
        absmax_scale,
        absmax_offset,
        values,
        out,
        out.stride(0),
        row_words,
        BLOCK_WORDS=block // 8,
        ABSMAX_BLOCK=absmax_block,
        NESTED=absmax_code is not None,
        WORDS=_WORDS,
        num_warps=8,
        enable_fp_fusion=False,  # scale and offset are rounded one after the other, as bitsandbytes does
    )
    return out


@triton.jit
def _kernel(
    words_ptr,
    absmax_ptr,
    code_ptr,
    scale_ptr,
    offset_ptr,
    values_ptr,
    out_ptr,
    out_stride,
    row_words,
    BLOCK_WORDS: tl.constexpr,
    ABSMAX_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    WORDS: tl.constexpr,
):
    row_programs = tl.cdiv(row_words, WORDS)
    row = tl.program_id(0) // row_programs
    first = (tl.program_id(0) % row_programs) * WORDS
    own = tl.arange(0, WORDS)
    inside = first + own < row_words
    word = row * row_words + first + own
    bits = tl.load(words_ptr + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    block = word // BLOCK_WORDS
    absmax = tl.load(absmax_ptr + block, mask=inside, other=0)
    if NESTED:
        scale = tl.load(scale_ptr + block // ABSMAX_BLOCK, mask=inside, other=0.0)
        absmax = tl.load(code_ptr + absmax.to(tl.int32)) * scale + tl.load(offset_ptr)
    place = tl.arange(0, 8)
    # Bytes lie in a word from the lowest, a byte's first weight in its high half: 4, 0, 12, 8, 20, 16, 28, 24.
    shift = ((place ^ 1) * 4).to(tl.uint32)
    half = (bits[:, None] >> shift[None, :]) & 15
    # Sixteen values are one line of the first cache, read by a whole warp at once; choosing among registers takes
    # more instructions than writing the weights has time for.
    weights = tl.load(values_ptr + half.to(tl.int32), eviction_policy="evict_last") * absmax[:, None]
    at = out_ptr + row.to(tl.int64) * out_stride + first.to(tl.int64) * 8 + (own[:, None] * 8 + place[None, :])
    tl.store(at, weights.to(out_ptr.dtype.element_ty), mask=inside[:, None])
