"""Cross-entropy over loss edges: one logsumexp per distinct parent, however many children it predicts."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_log_probabilities(logits: Tensor, edge_parent: Tensor, edge_target: Tensor) -> Tensor:
    """Log-probability of each edge's target.

    Args:
        logits: (P, V) logits of the distinct parents, any float type; computed in fp32.
        edge_parent: (E,) row of ``logits`` that predicts the edge.
        edge_target: (E,) token id.

    Returns:
        (E,) fp32 log-probabilities.
    """
    logits = logits.float()
    normaliser = torch.logsumexp(logits, dim=-1)
    return logits[edge_parent, edge_target] - normaliser[edge_parent]


def edge_cross_entropy(
    logits: Tensor, edge_parent: Tensor, edge_target: Tensor, edge_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum (not mean) of negative log-probabilities over edges; divide by the step's total weight.

    Args:
        logits: (P, V) logits of the distinct parents.
        edge_parent: (E,) row of ``logits`` that predicts the edge.
        edge_target: (E,) token id.
        edge_weight: (E,) weight of the edge.

    Returns:
        The sum, and the (E,) log-probabilities without gradient.
    """
    log_probabilities = edge_log_probabilities(logits, edge_parent, edge_target)
    return -(log_probabilities * edge_weight).sum(), log_probabilities.detach()


def edge_cross_entropy_plain(logits: Tensor, edge_parent: Tensor, edge_target: Tensor, edge_weight: Tensor) -> Tensor:
    """The plain twin: ``torch.nn.functional.cross_entropy`` on one copied row of logits per edge."""
    losses = torch.nn.functional.cross_entropy(logits[edge_parent].float(), edge_target, reduction="none")
    return (losses * edge_weight).sum()
