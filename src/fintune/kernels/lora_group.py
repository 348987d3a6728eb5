"""Linear layers with LoRA on frozen weights that share an input, computed as one layer.

::

    x ──┬────────── [W1; W2; W3] (frozen) ─────────────┬── + ── [y1 y2 y3]
        └── drop ── [A1; A2; A3] ── z1 z2 z3 ── s B1, s B2, s B3

Enters: frozen weights stacked into one, and the adapters of peft. Leaves: the products a decoder layer is made of,
forward and backward, for autograd Functions to call; nothing here is recorded by autograd.

Shapes: T tokens, I input features, N output features of all members, M members, r their padded rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fintune.kernels.fp8_weight import Fp8Rows, Fp8Weight
from fintune.kernels.frozen_weight import FrozenWeight, SmallProduct
from fintune.kernels.hashed_dropout import add_dropped_, drop

RANK_MULTIPLE = 16  # what a tensor core multiplies at once


@dataclass(frozen=True, eq=False)
class Adapter:
    """One layer's LoRA matrices.

    Attributes:
        a: (rank, I) trainable.
        b: (O, rank) trainable.
        scale: factor on the output: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class Stack:
    """Working copies of a group's adapters, side by side in the compute type; ``refresh`` fills them.

    Attributes:
        a: (M r, I) all A on top of each other; rows of zeros where a rank is padded or a member has no adapter.
        b: (N, r) all B on top of each other, times their scales.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class LoraGroup:
    """Frozen layers that share an input, and the adapters of those that have one.

    Attributes:
        weight: (N, I), the members' weights on top of each other.
        bias: (N,) or None.
        sizes: output features of each member; their sum is N.
        adapters: one per member, None where it has none; all None where nothing is trained.
        dtype: compute type.
        stack: the working copies; None without adapters.
        copies: what fills them: (target, source, factor) of each trained matrix.
    """

    weight: FrozenWeight
    bias: Tensor | None
    sizes: tuple[int, ...]
    adapters: tuple[Adapter | None, ...]
    dtype: torch.dtype
    stack: Stack | None = field(init=False)
    copies: tuple[tuple[Tensor, Tensor, float], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", self._make_stack())
        object.__setattr__(self, "copies", tuple(self._make_copies()))

    def _make_stack(self) -> Stack | None:
        ranks = [adapter.rank for adapter in self.adapters if adapter is not None]
        if not ranks:
            return None
        rank = -(-max(ranks) // RANK_MULTIPLE) * RANK_MULTIPLE
        device = next(adapter.a.device for adapter in self.adapters if adapter is not None)
        outputs, inputs = self.weight.shape
        with torch.inference_mode(False):
            a = torch.zeros(len(self.sizes) * rank, inputs, dtype=self.dtype, device=device)
            return Stack(a, torch.zeros(outputs, rank, dtype=self.dtype, device=device))

    @property
    def rank(self) -> int:
        """Columns each member has in ``small``; 0 without adapters."""
        return 0 if self.stack is None else self.stack.b.shape[1]

    @property
    def trained(self) -> list[Tensor]:
        """A1, B1, A2, B2, ... of the members that have adapters."""
        return [tensor for adapter in self.adapters if adapter is not None for tensor in (adapter.a, adapter.b)]

    def _make_copies(self) -> list[tuple[Tensor, Tensor, float]]:
        if self.stack is None:
            return []
        moves = []
        for member, (adapter, own) in enumerate(zip(self.adapters, self._slices(), strict=True)):
            if adapter is not None:
                moves.append((self.stack.a[member * self.rank :][: adapter.rank], adapter.a.detach(), 1.0))
                moves.append((self.stack.b[own, : adapter.rank], adapter.b.detach(), adapter.scale))
        return moves

    def _slices(self) -> list[slice]:
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    def base(self, x: Tensor, rounded: Fp8Rows | None = None) -> Tensor:
        """``x W^T + bias`` (T, N), without adapters.

        ``rounded`` is ``x`` in fp8 where something before has rounded it on the way; None has the weight do it.
        """
        if rounded is not None and isinstance(self.weight, Fp8Weight):
            y = self.weight.product_of(rounded, x.dtype)
        else:
            y = self.weight.product(x)
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))

    def small(self, x: Tensor, seed: Tensor, dropout: float) -> Tensor | None:
        """Z = drop(x) A^T (T, M r); None without adapters."""
        return None if self.stack is None else drop(x, seed, dropout) @ self.stack.a.T

    def d_small(self, dy: Tensor) -> Tensor | None:
        """The gradient of z (T, M r) from that of y."""
        if self.stack is None:
            return None
        out = dy.new_empty(dy.shape[0], len(self.sizes) * self.rank)
        for member, own in enumerate(self._slices()):
            part = out[:, member * self.rank :][:, : self.rank]
            if self.adapters[member] is None:
                part.zero_()
            else:
                torch.mm(dy[:, own], self.stack.b[own], out=part)
        return out

    def input_gradient(self, dy: Tensor, d_small: Tensor | None, seed: Tensor, dropout: float) -> Tensor:
        """The gradient of x (T, I), through the frozen weights and the adapters."""
        if d_small is None or self.stack is None:
            return self.weight.input_gradient(dy)
        if not dropout:
            return self.weight.input_gradient(dy, SmallProduct(d_small, self.stack.a))
        return add_dropped_(self.weight.input_gradient(dy), d_small @ self.stack.a, seed, dropout)

    def adapter_gradients(
        self,
        dy: Tensor,
        x: Tensor,
        small: Tensor | None,
        d_small: Tensor | None,
        seed: Tensor,
        dropout: float,
        *,
        row_scale: Tensor | None = None,
        column_scale: Tensor | None = None,
        d_b: Tensor | None = None,
    ) -> list[Tensor]:
        """The gradients of A1, B1, A2, B2, ... in the types of the adapters.

        Args:
            dy: (T, N).
            x: (T, I) the input, or, with scales, what gives it: ``input = row_scale x column_scale``. A normalised
                input then need neither be kept nor computed again.
            small: (T, M r).
            d_small: (T, M r).
            seed: of the dropout.
            dropout: probability.
            row_scale: (T,) fp32.
            column_scale: (I,).
            d_b: (N, r) fp32, ``dy`` times ``small`` of each member, where that is known already; overwritten.
        """
        if small is None or d_small is None:
            return []
        scaled, peak = d_small, None
        if row_scale is not None:
            # Half precision would lose what a small scale leaves, and overflow at a large one.
            if d_small.dtype == torch.float16 and len(row_scale):
                peak = row_scale.amax()
                row_scale = row_scale / peak
            scaled = (d_small * row_scale[:, None]).to(d_small.dtype)
        d_a = wide_product(scaled.T, drop(x, seed, dropout))
        for factor in (peak, column_scale):
            if factor is not None:
                d_a.mul_(factor)
        return self.gradients_of(d_a, self.d_b(dy, small) if d_b is None else d_b)

    def d_b(self, dy: Tensor, small: Tensor) -> Tensor:
        """The gradients of all B before the scales (N, r), in fp32 at least; rows without an adapter are left open."""
        d_b = torch.empty(sum(self.sizes), self.rank, dtype=_wide(dy.dtype), device=dy.device)
        for adapter, own, z in zip(self.adapters, self._slices(), torch.split(small, self.rank, 1), strict=True):
            if adapter is not None:
                wide_product(dy[:, own].T, z, out=d_b[own])
        return d_b

    def gradients_of(self, d_a: Tensor, d_b: Tensor) -> list[Tensor]:
        """The gradients of A1, B1, A2, B2, ... in the types of the adapters, from those of the stacked matrices.

        Args:
            d_a: (M r, I) fp32.
            d_b: (N, r) fp32, before the scales; overwritten.
        """
        gradients = []
        for member, (adapter, own) in enumerate(zip(self.adapters, self._slices(), strict=True)):
            if adapter is None:
                continue
            start = member * self.rank
            gradients.append(d_a[start : start + adapter.rank].to(adapter.a.dtype))
            gradients.append(d_b[own, : adapter.rank].mul_(adapter.scale).to(adapter.b.dtype))
        return gradients


def wide_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left right`` summed and returned in fp32 at least, in ``out`` where given."""
    wide = _wide(left.dtype)
    if left.dtype == wide:
        return torch.mm(left, right, out=out)
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=wide, out=out)
    return torch.mm(left.to(wide), right.to(wide), out=out)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def refresh(groups: Sequence[LoraGroup]) -> None:
    """Fills the working copies of all groups from the trained matrices, in three kernels however many there are."""
    moves = [move for group in groups for move in group.copies]
    if not moves:
        return
    targets, sources, factors = (list(column) for column in zip(*moves, strict=True))
    with torch.no_grad():
        torch._foreach_copy_(targets, torch._foreach_mul(sources, factors))
