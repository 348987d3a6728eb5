"""Between the fused query/key/value product and attention: adapters' outputs, per-head norms, rotary positions.

Enters: qkv, whose columns are the query heads, the key heads and the value heads. Leaves: q, k and v by head. One pass
over memory forward and one backward; without norms, forward works in place. Nothing here is recorded by autograd.

Shapes: T tokens, Hq query and Hk key heads of D features, W = (Hq + 2 Hk) D, r adapter rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fintune.kernels.triton_use import uses_triton, wide


@dataclass(frozen=True)
class HeadLayout:
    """How the columns of qkv divide into heads.

    Attributes:
        query: Hq.
        key: Hk; as many value heads follow.
        size: D.
    """

    query: int
    key: int
    size: int

    @property
    def heads(self) -> int:
        """Query, key and value heads."""
        return self.query + 2 * self.key

    @property
    def width(self) -> int:
        """W."""
        return self.heads * self.size

    @property
    def sections(self) -> tuple[int, int, int]:
        """Heads of queries, keys and values."""
        return self.query, self.key, self.key


def rotate_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: HeadLayout,
    *,
    small: Tensor | None = None,
    b: Tensor | None = None,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Adds the adapters' outputs to qkv, normalises the heads of q and k where asked, and rotates them.

    Args:
        qkv: (T, W); overwritten with the result, or, with norms, with the sum before norms and rotation, which the
            backward pass needs. Untouched only with norms and without adapters.
        cos: (T, D) cosines, the second half equal to the first.
        sin: (T, D) sines, likewise.
        layout: of the columns.
        small: (T, 3 r) inputs times the A matrices of the adapters of queries, keys and values; r a multiple of 16.
        b: (W, r) the B matrices, one below the other.
        query_norm: (D,) weight of the RMSNorm of every query head; both norms or none.
        key_norm: (D,) the same for keys.
        eps: of the norms.
        unit_offset: the norms multiply by 1 + weight.

    Returns:
        q (T, Hq, D), k and v (T, Hk, D): views of ``qkv``, but for q and k with norms, which are views of one new
        matrix (T, (Hq + Hk) D); and, with norms, (T, Hq + Hk) reciprocal root mean squares in fp32.
    """
    if uses_triton(qkv, cos, sin, small, b, query_norm, key_norm):
        from fintune.kernels import rope_triton

        return rope_triton.rotate_heads(qkv, cos, sin, layout, small, b, query_norm, key_norm, eps, unit_offset)
    if query_norm is None and qkv.dtype == wide(qkv.dtype) and not torch.is_grad_enabled():
        return _rotate_in_place(qkv, cos, sin, layout, small, b)
    return rotate_heads_plain(
        qkv,
        cos,
        sin,
        layout,
        small=small,
        b=b,
        query_norm=query_norm,
        key_norm=key_norm,
        eps=eps,
        unit_offset=unit_offset,
    )


def rotate_heads_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: HeadLayout,
    *,
    qkv: Tensor | None = None,
    rstd: Tensor | None = None,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    unit_offset: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient of qkv (adapters' outputs included), gathered into one matrix.

    Args:
        dq: (T, Hq, D), features contiguous, other strides as they come.
        dk: (T, Hk, D), likewise.
        dv: (T, Hk, D), likewise.
        cos: as in the forward pass.
        sin: as in the forward pass.
        layout: of the columns.
        qkv: (T, W) as the forward pass left it; with the next three, given when there are norms.
        rstd: (T, Hq + Hk) from the forward pass.
        query_norm: (D,).
        key_norm: (D,).
        unit_offset: as in the forward pass.
        out: (T, W) to write to; may be ``qkv`` itself.

    Returns:
        (T, W): ``out``, or a new tensor in the type of ``dq``.
    """
    if uses_triton(dq, dk, dv, cos, sin, qkv, rstd, query_norm, key_norm, out):
        from fintune.kernels import rope_triton

        return rope_triton.rotate_heads_backward(
            dq, dk, dv, cos, sin, layout, qkv, rstd, query_norm, key_norm, unit_offset, out
        )
    return rotate_heads_backward_plain(
        dq,
        dk,
        dv,
        cos,
        sin,
        layout,
        qkv=qkv,
        rstd=rstd,
        query_norm=query_norm,
        key_norm=key_norm,
        unit_offset=unit_offset,
        out=out,
    )


def rotate_heads_plain(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: HeadLayout,
    *,
    small: Tensor | None = None,
    b: Tensor | None = None,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The plain twin of ``rotate_heads``."""
    dtype = wide(qkv.dtype)
    total = qkv.to(dtype)
    if small is not None and b is not None:
        total = total + _adapter_outputs(small.to(dtype), b.to(dtype), layout)
    if query_norm is not None and key_norm is not None:
        if small is not None:
            total = qkv.copy_(total).to(dtype)  # what the backward pass will see
        heads = total.view(len(total), layout.heads, layout.size)[:, : layout.query + layout.key]
        rstd = torch.rsqrt(heads.square().mean(2) + eps)
        normed = heads * rstd[:, :, None] * _gains(query_norm, key_norm, layout, unit_offset, dtype)
        q, k = _rotate(normed, cos, sin).to(qkv.dtype).split_with_sizes(layout.sections[:2], 1)
        return q, k, _by_head(qkv, layout)[2], rstd
    q, k, v = _by_head(total, layout)
    rotated = [_rotate(q, cos, sin), _rotate(k, cos, sin), v]
    qkv.copy_(torch.cat([heads.flatten(1) for heads in rotated], 1))
    return *_by_head(qkv, layout), None


def rotate_heads_backward_plain(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: HeadLayout,
    *,
    qkv: Tensor | None = None,
    rstd: Tensor | None = None,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    unit_offset: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The plain twin of ``rotate_heads_backward``."""
    dtype = wide(dq.dtype)
    gradient = _rotate(torch.cat([dq, dk], 1).to(dtype), cos, -sin)
    if qkv is not None and rstd is not None and query_norm is not None and key_norm is not None:
        heads = qkv.to(dtype).view(len(qkv), layout.heads, layout.size)[:, : layout.query + layout.key]
        normed = heads * rstd[:, :, None]
        gradient = gradient * _gains(query_norm, key_norm, layout, unit_offset, dtype)
        gradient = (gradient - normed * (gradient * normed).mean(2, keepdim=True)) * rstd[:, :, None]
    result = torch.cat([gradient, dv.to(dtype)], 1).flatten(1)
    return result.to(dq.dtype) if out is None else out.copy_(result)


def _by_head(qkv: Tensor, layout: HeadLayout) -> tuple[Tensor, Tensor, Tensor]:
    heads = qkv.view(len(qkv), layout.heads, layout.size)
    q, k, v = heads.split_with_sizes(layout.sections, 1)
    return q, k, v


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cos[:, None].to(heads.dtype) + torch.cat([-second, first], -1) * sin[:, None].to(heads.dtype)


def _rotate_in_place(
    qkv: Tensor, cos: Tensor, sin: Tensor, layout: HeadLayout, small: Tensor | None, b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, None]:
    """``rotate_heads_plain`` without norms, to the same bits, and with two new tensors of half the heads only."""
    if small is not None and b is not None:
        qkv += _adapter_outputs(small.to(qkv.dtype), b.to(qkv.dtype), layout)
    half = layout.size // 2
    heads = qkv.view(len(qkv), layout.heads, layout.size)[:, : layout.query + layout.key]
    first, second = heads[..., :half], heads[..., half:]
    cosine, sine = (part[:, None, :half].to(qkv.dtype) for part in (cos, sin))
    from_first, from_second = first * sine, second * sine
    first.mul_(cosine).sub_(from_second)
    second.mul_(cosine).add_(from_first)
    return *_by_head(qkv, layout), None


def _gains(query_norm: Tensor, key_norm: Tensor, layout: HeadLayout, unit_offset: bool, dtype: torch.dtype) -> Tensor:
    """(Hq + Hk, D) factors of the norms."""
    rows = [query_norm.expand(layout.query, -1), key_norm.expand(layout.key, -1)]
    return torch.cat(rows).to(dtype) + (1 if unit_offset else 0)


def _adapter_outputs(small: Tensor, b: Tensor, layout: HeadLayout) -> Tensor:
    members = b.split_with_sizes([heads * layout.size for heads in layout.sections])
    return torch.cat([part @ member.T for part, member in zip(small.chunk(3, 1), members, strict=True)], 1)
