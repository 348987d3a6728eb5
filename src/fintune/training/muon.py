"""Muon for the matrices of a GPT and AdamW for everything else, as one optimiser.

Enters: a GPT's weights by kind, and learning rates. Leaves: an optimiser with one ``state_dict``, whose groups any
schedule of ``transformers`` scales together; ``get_wsd_schedule`` has the warm-up, plateau and decay of speed runs.

Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about one, found by five steps of
a Newton-Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon). It and AdamW are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from fintune.models.gpt.groups import WeightKinds
from fintune.schema.errors import InternalError

_METHOD = "method"
_REFERENCE_WIDTH = 768


@dataclass(frozen=True)
class Rates:
    """Learning rates by kind of weight; the defaults are nanochat's, who tuned them at width 768.

    Attributes:
        matrices: of Muon; steps have size one whatever the gradient's, so it is ten to a hundred times AdamW's.
        embeddings: of AdamW, for embeddings of unit variance; use about 0.004 where the head is tied to them.
        head: of AdamW.
        vectors: of AdamW.
    """

    matrices: float = 0.02
    embeddings: float = 0.2
    head: float = 0.004
    vectors: float = 0.004


class MuonAndAdamW(Optimizer):
    """Two optimisers that look like one: their groups, their state and their files are shared.

    Args:
        muon: over the matrices.
        adamw: over everything else.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self._inner: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        groups = [{**group, _METHOD: name} for name, inner in self._inner.items() for group in inner.param_groups]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, inner in self._inner.items():
            # Anew each time: ``load_state_dict`` puts other objects in the place of both.
            inner.param_groups = [group for group in self.param_groups if group[_METHOD] == name]
            inner.state = self.state
            inner.step()
        return loss


def muon_and_adamw(
    kinds: WeightKinds, rates: Rates = Rates(), *, width: int, momentum: float = 0.95, weight_decay: float = 0.0
) -> MuonAndAdamW:
    """The optimiser of an optimised GPT.

    AdamW's rates shrink with the root of the width, and its betas are (0.8, 0.95), as in nanochat. A matrix with more
    rows than columns takes steps longer by the root of their ratio, as in Jordan's own code.

    Args:
        kinds: the weights.
        rates: by kind, at their peak.
        width: of the residual stream.
        momentum: of Muon.
        weight_decay: of the matrices, decoupled.

    Raises:
        InternalError: there are no matrices, or nothing else.
    """
    scale = (width / _REFERENCE_WIDTH) ** -0.5
    others: list[tuple[list[nn.Parameter], float]] = [
        (kinds.embeddings, rates.embeddings),
        (kinds.head, rates.head),
        (kinds.vectors, rates.vectors),
    ]
    groups = [{"params": weights, "lr": rate * scale} for weights, rate in others if weights]
    if not kinds.matrices or not groups:
        raise InternalError("Muon and AdamW each need weights.", "Train all weights of the GPT, or use AdamW alone.")
    return MuonAndAdamW(
        Muon(kinds.matrices, lr=rates.matrices, momentum=momentum, weight_decay=weight_decay),
        AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0),
    )
