"""Dropout whose mask is a function of (seed, row, column), so that the backward pass draws it again, storing nothing.

Enters: a tensor and a 0-d seed tensor. Leaves: the tensor with elements dropped. The mask is the same on every device,
in eager mode and under ``torch.compile``: it is integer arithmetic that wraps at 32 bits, in plain torch operations.

Shapes: T tokens, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fintune.kernels.triton_use import uses_triton, wide
from fintune.schema.errors import InternalError

# Elements masked at a time in eager mode, where every step of the hash is a tensor of its own.
CHUNK_ELEMENTS = 1 << 23

_ROW_SALT, _COLUMN_SALT = 0x2545F491, 0x6C8E9CF5
# 64-bit mixing constants as torch holds them: signed.
_STEP, _FIRST, _SECOND = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def as_seed(seed: Tensor | int, device: torch.device) -> Tensor:
    """The seed as a 0-d int64 tensor on ``device``; a number is written by a kernel there, so nothing is waited for."""
    if isinstance(seed, Tensor):
        return seed.to(device=device, dtype=torch.int64)
    return torch.full((), seed, dtype=torch.int64, device=device)


def fold_seed(seed: Tensor, part: Tensor | int) -> Tensor:
    """A seed of its own for each ``part`` (a step, a layer, a group of layers), unrelated to those of other parts.

    Args:
        seed: 0-d int64.
        part: a number, or an int64 tensor of any shape.

    Returns:
        int64, of the shape of ``part``.
    """
    step = (torch.zeros_like(seed) + part + 1) * _STEP  # as a tensor, so that it wraps
    mixed = (seed + step) * _FIRST
    mixed = (mixed ^ ((mixed >> 29) & 0x7FFFFFFFF)) * _SECOND
    return mixed ^ ((mixed >> 32) & 0xFFFFFFFF)


def layer_seeds(seed: Tensor, layers: int) -> Tensor:
    """(layers,) seeds, one per layer; index it outside a compiled layer, so that layers share one compilation."""
    return fold_seed(seed, torch.arange(layers, device=seed.device))


def keep_mask(rows: Tensor, columns: int, seed: Tensor, dropout: float) -> Tensor:
    """Which elements stay.

    Args:
        rows: (T,) int32 row numbers.
        columns: H.
        seed: 0-d int64.
        dropout: probability of dropping an element, below 1.

    Returns:
        (T, H) bool.
    """
    threshold = _threshold(dropout)
    low, high = ((seed << 32) >> 32).to(torch.int32), (seed >> 32).to(torch.int32)
    row_key = _mix(_mix(rows ^ _ROW_SALT ^ low) ^ high)
    column = torch.arange(columns, dtype=torch.int32, device=rows.device)
    column_key = _mix(_mix(column ^ _COLUMN_SALT ^ high) ^ low)
    return _mix(row_key[:, None] ^ column_key) >= threshold


def _mix(bits: Tensor) -> Tensor:
    """Spreads int32 bits over int32; one to one, the high bits best mixed.

    The masks make torch's signed shift a logical one: with copies of the sign it would xor the sign bit away.
    """
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * (0x85EBCA6B - (1 << 32))
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * (0xC2B2AE35 - (1 << 32))
    return bits ^ ((bits >> 16) & 0xFFFF)


def drop(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """``x`` (T, H) with elements zeroed and the rest divided by ``1 - dropout``; linear, hence its own backward."""
    if dropout == 0.0:
        return x
    if uses_triton(x):
        from fintune.kernels import hashed_dropout_triton

        return hashed_dropout_triton.drop(x, seed, _threshold(dropout), 1.0 / (1.0 - dropout))
    return drop_plain(x, seed, dropout)


def add_dropped_(target: Tensor, x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """Adds ``drop(x)`` to ``target`` (T, H) in place; returns ``target``."""
    if dropout == 0.0:
        return target.add_(x)
    if uses_triton(target, x):
        from fintune.kernels import hashed_dropout_triton

        return hashed_dropout_triton.add_dropped_(target, x, seed, _threshold(dropout), 1.0 / (1.0 - dropout))
    return add_dropped_plain_(target, x, seed, dropout)


def drop_plain(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """The plain twin of ``drop``."""
    tokens, columns = x.shape
    if torch.compiler.is_compiling() or x.numel() <= CHUNK_ELEMENTS:
        return _drop_rows(x, torch.arange(tokens, dtype=torch.int32, device=x.device), seed, dropout)
    out = torch.empty_like(x)
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, tokens, step):
        rows = torch.arange(start, min(start + step, tokens), dtype=torch.int32, device=x.device)
        out[start : start + step] = _drop_rows(x[start : start + step], rows, seed, dropout)
    return out


def add_dropped_plain_(target: Tensor, x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """The plain twin of ``add_dropped_``."""
    return target.add_(drop_plain(x.to(wide(x.dtype)), seed, dropout))


def _drop_rows(x: Tensor, rows: Tensor, seed: Tensor, dropout: float) -> Tensor:
    return torch.where(keep_mask(rows, x.shape[1], seed, dropout), x * (1.0 / (1.0 - dropout)), 0.0)


def _threshold(dropout: float) -> int:
    """The least hash of an element that stays, as a signed 32-bit number."""
    if not 0.0 <= dropout < 1.0:
        raise InternalError(f"A dropout of {dropout} is not a probability below 1.")
    return round(dropout * (1 << 32)) - (1 << 31)
