"""Muon for the matrices of a model and AdamW for everything else, as one optimiser.

Enters: weights by kind, and learning rates. Leaves: an optimiser with one ``state_dict``, whose groups any schedule of
``transformers`` scales together; ``get_wsd_schedule`` has the warm-up, plateau and decay of speed runs.

Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about one, found by five steps of
a Newton-Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon). AdamW is PyTorch's own; Muon is too,
or else goes through matrices of one shape at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from fintune.models.gpt.groups import WeightKinds, has_unit_embeddings, weight_kinds
from fintune.schema.errors import InternalError
from fintune.training.batched_muon import BatchedMuon

log = logging.getLogger(__name__)

SMALL_RATE = 1e-3
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

    @classmethod
    def around(cls, matrices: float, *, unit_embeddings: bool = True) -> Rates:
        """Nanochat's rates, all scaled so that the one of matrices is ``matrices``.

        Args:
            matrices: of Muon.
            unit_embeddings: embeddings have unit variance; smaller ones, or those the head is tied to, get the head's
                rate.
        """
        usual = cls()
        scale = matrices / usual.matrices
        return cls(
            matrices,
            (usual.embeddings if unit_embeddings else usual.head) * scale,
            usual.head * scale,
            usual.vectors * scale,
        )


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
        for inner in self.parts():
            inner.step()
        return loss

    def parts(self) -> list[Optimizer]:
        """Both optimisers, with the groups and the state of this one."""
        for name, inner in self._inner.items():
            # Anew each time: ``load_state_dict`` puts other objects in the place of both.
            inner.param_groups = [group for group in self.param_groups if group[_METHOD] == name]
            inner.state = self.state
        return list(self._inner.values())


def muon_and_adamw(
    kinds: WeightKinds,
    rates: Rates = Rates(),
    *,
    width: int,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    batched: bool = True,
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
        batched: matrices of one shape are updated together; False takes PyTorch's Muon, the plain twin.

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
    kind = BatchedMuon if batched else Muon
    is_fused = all(weight.is_cuda for weights, _ in others for weight in weights)  # one kernel for each group
    return MuonAndAdamW(
        kind(kinds.matrices, lr=rates.matrices, momentum=momentum, weight_decay=weight_decay),
        AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=is_fused or None),
    )


def recipe_optimiser(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> MuonAndAdamW:
    """The optimiser of ``training.optimizer: muon``.

    Args:
        model: whose weights are all trained.
        learning_rate: of the matrices at its peak; the others follow in nanochat's proportions.
        weight_decay: of the matrices.

    Raises:
        ModelError: it has weights that Muon cannot sort.
    """
    if learning_rate < SMALL_RATE:
        log.warning(
            "training.learning_rate is %g, and with Muon it is the length of a matrix's steps: %g is usual, and below "
            "%g hardly anything is learnt.",
            learning_rate,
            Rates().matrices,
            SMALL_RATE,
        )
    rates = Rates.around(learning_rate, unit_embeddings=has_unit_embeddings(model))
    return muon_and_adamw(weight_kinds(model), rates, width=model.config.hidden_size, weight_decay=weight_decay)
