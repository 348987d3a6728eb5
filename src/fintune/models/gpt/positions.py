"""Rotary positions: pairs of features of queries and keys are turned by angles that grow with the position.

Enters: positions, then heads. Leaves: the heads turned, so that their products depend on distances alone (Su et al.,
arXiv 2104.09864). Features i and i + D/2 make a pair, as in GPT-NeoX and Llama.

Shapes: B rows, T tokens, H heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]


def rotation(position_ids: Tensor, head_size: int, theta: float) -> Rotation:
    """Cosines and sines (B, 1, T, D/2) in fp32 for positions (B, T).

    Frequencies are computed anew each time: there is no buffer that a checkpoint, a cast or a move could leave wrong.
    """
    pair = torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32)
    angle = position_ids[:, None, :, None].float() * theta ** -(pair / head_size)
    return angle.cos(), angle.sin()


def rotate(heads: Tensor, turn: Rotation) -> Tensor:
    """Heads (B, H, T, D) turned by ``rotation``, in their own type."""
    cos, sin = turn
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)
