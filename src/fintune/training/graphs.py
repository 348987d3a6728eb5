"""Forward and backward passes as CUDA graphs, which the host starts with one call instead of thousands.

Enters: token trees whose sizes are padded to a few. Leaves: their loss and their gradients added up, as without graphs.
A size is run plainly when it first comes, which compiles what it needs, and recorded when it comes again. Inputs are
copied into the recorded ones; padded edges weigh nothing.

Shapes: T tokens, P parents, E edges.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fintune.inference.forward import EdgeModel
from fintune.models.fast_layers import KEEPS_ALL
from fintune.models.foreign import first_line
from fintune.schema.errors import RunError
from fintune.trees.batch import TreeBatch

log = logging.getLogger(__name__)

MOST_GRAPHS = 16
_LEAST_EDGES = 64


def padded_edges(batch: TreeBatch) -> TreeBatch:
    """The batch with parents and edges padded to a few sizes; the padding weighs nothing."""
    parents, edges = _rounded_up(len(batch.parents)), _rounded_up(len(batch.edge_parent))
    return replace(
        batch,
        parents=_pad(batch.parents, parents),
        edge_parent=_pad(batch.edge_parent, edges),
        edge_target=_pad(batch.edge_target, edges),
        edge_weight=_pad(batch.edge_weight, edges),
    )


def _rounded_up(count: int) -> int:
    """To a power of two or the three quarters of one."""
    power = max(_LEAST_EDGES, 1 << (count - 1).bit_length())
    return power * 3 // 4 if power > _LEAST_EDGES and count <= power * 3 // 4 else power


def _pad(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)))


@dataclass(eq=False)
class _Recorded:
    """One graph with the tensors it reads and writes; ``layers`` keeps those alive that lie in the model's layers."""

    graph: Any
    layers: Any
    batch: TreeBatch
    scale: Tensor
    loss: Tensor
    losses: Tensor


class GraphedPasses:
    """Adds up losses and gradients over batches.

    Args:
        model: the model; its trained parameters stay the same tensors.
    """

    def __init__(self, model: EdgeModel) -> None:
        self.model = model
        self.trained = [p for p in model.model.parameters() if p.requires_grad]
        self.gradients = [torch.zeros_like(p) for p in self.trained]
        self.recorded: dict[tuple[int, ...], _Recorded | None] = {}
        self._pool: Any = None

    @staticmethod
    def suits(model: EdgeModel) -> bool:
        """Whether a model runs on kernels that can be recorded, and keeps what it computes, as graphs keep all."""
        if not model.is_blockwise or model.memory not in KEEPS_ALL:
            return False
        if model.device.type != "cuda":
            return False
        return model.fast_layers() is not None and model.output_head() is not None

    def start(self) -> None:
        """Begins an optimiser step: gradients are zero, and belong to the parameters."""
        torch._foreach_zero_(self.gradients)
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient

    def add(self, batch: TreeBatch, scale: float) -> tuple[Tensor, Tensor]:
        """The scaled loss of one batch, its gradients added to those of the step, and each edge's loss (E,).

        What is returned lasts until the next call.

        Args:
            batch: on the host or the device.
            scale: factor on the loss.
        """
        edges = len(batch.edge_parent)
        batch = padded_edges(batch)
        key = (len(batch), len(batch.parents), len(batch.edge_parent), batch.equal_rows)
        if key not in self.recorded:
            if len(self.recorded) < MOST_GRAPHS:
                self.recorded[key] = None
            return self._run(batch.to(self.model.device), scale, edges)
        recorded = self.recorded[key] or self._record(batch)
        self.recorded[key] = recorded
        for name, value in vars(recorded.batch).items():
            if isinstance(value, Tensor):
                value.copy_(getattr(batch, name), non_blocking=True)
        recorded.scale.fill_(ctypes.c_float(scale).value)  # infinite rather than refused where fp32 ends
        recorded.graph.replay()
        return recorded.loss, recorded.losses[:edges]

    def _run(self, batch: TreeBatch, scale: float | Tensor, edges: int) -> tuple[Tensor, Tensor]:
        loss, losses = self.model.loss_by_edge(batch)
        loss = loss * scale
        gradients = torch.autograd.grad(loss, self.trained, allow_unused=True)
        reached = [(total, own) for total, own in zip(self.gradients, gradients, strict=True) if own is not None]
        torch._foreach_add_([total for total, _ in reached], [own for _, own in reached])
        return loss.detach(), losses[:edges]

    def _record(self, batch: TreeBatch) -> _Recorded:
        """Records the pass over a batch of this size, without running it.

        Raises:
            RunError: it cannot be recorded; memory ran out, say.
        """
        own = batch.to(self.model.device)
        copies: dict[str, Any] = {name: v.clone() for name, v in vars(own).items() if isinstance(v, Tensor)}
        still = replace(own, **copies)
        scale = torch.zeros((), device=self.model.device)
        # What autograd remembers of a parameter lives as long as any graph that reached it, and belongs to its stream.
        gc.collect()
        torch.cuda.empty_cache()  # graphs have memory of their own
        graph = torch.cuda.CUDAGraph()
        try:
            # NCCL has a thread that asks after its events meanwhile, which must not spoil the recording.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss, losses = self._run(still, scale, len(still.edge_parent))
        except RuntimeError as exc:  # the random generator is left in a state that allows no second try
            raise RunError(
                f"A training pass over {len(still)} tokens could not be recorded as a CUDA graph ({first_line(exc)}).",
                "Set training.gradient_checkpointing=true, which does without and needs less memory, and start the "
                "same command again; it goes on from the newest checkpoint.",
            ) from exc
        self._pool = self._pool or graph.pool()
        log.info("Recorded %d tokens with %d edges as a CUDA graph.", len(still), len(still.edge_parent))
        return _Recorded(graph, self.model.fast_layers(), still, scale, loss, losses)
