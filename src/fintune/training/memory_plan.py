"""What of a run costs memory, and the part that is the same whichever layers run: weights and optimiser.

Enters: ``ModelShape`` and ``MemoryPlan``. Leaves: bytes of the weights, of what is trained and of the optimiser.
``plain_memory`` and ``fast_memory`` add what a step keeps, ``memory`` chooses between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

from fintune.models.fast_layers import Memory
from fintune.models.shape import Matrix, ModelShape
from fintune.schema.cuda_memory import segments_grow

ABSMAX_BLOCK, DOUBLE_QUANT_BLOCK = 64, 256  # bitsandbytes' defaults: weights a scale, scales a second scale
OPTIMIZER_BLOCK, SMALLEST_8BIT = 256, 4096  # bitsandbytes keeps tensors below 4096 numbers in fp32
# Not allocated by PyTorch: CUDA's context with its loaded kernels, and NF4/int8 or cuBLAS workspaces beside it. What a
# device has in use beyond max_memory_reserved: 0.74 to 0.83 GiB on an H200 with the driver of CUDA 13.
CONTEXT_BYTES = {"cuda": 820 * 2**20, "cpu": 900 * 2**20}  # on the CPU: Python with its libraries


def slack_bytes(moving: float, device: str) -> int:
    """What the caching allocator holds beyond ``moving``, the bytes that come and go, because it rounds and keeps.

    Measured on an H200: segments that grow are up to 0.2 GiB larger than what they hold; others leave gaps.
    """
    if device == "cuda" and segments_grow():
        return math.ceil(0.02 * moving) + 192 * 2**20
    return math.ceil(0.08 * moving)


@dataclass(frozen=True)
class MemoryPlan:
    """What of a run costs memory.

    Attributes:
        tokens: T, computed at once.
        logit_rows: P, positions whose logits are needed at once.
        longest: tokens of the longest sample.
        quantization: none, nf4, int8 or fp8.
        double_quant: the NF4 scales are quantised too.
        compute_bytes: 2 for bf16 and fp16, 4 for fp32.
        rank: of the adapter; 0 trains all weights.
        targets: names of adapted layers; None for all linear ones.
        dropout: on the adapter's input.
        dora: a magnitude for each row of an adapted layer.
        checkpointing: layers are recomputed in the backward pass.
        optimizer: adamw, adamw_8bit, paged_adamw_8bit or muon.
        device: cuda or cpu.
        blockwise: attention over blocks of a tree on a GPU, which keeps no scores and copies no keys.
        padded: rows of plain attention instead of trees.
        memory: what our own decoder layers keep for the backward pass; None where transformers' layers run.
        whole_layers: so many of them, the last ones, keep everything where ``memory`` computes something again.
    """

    tokens: int
    logit_rows: int
    longest: int
    quantization: str
    double_quant: bool
    compute_bytes: int
    rank: int
    targets: tuple[str, ...] | None
    dropout: float
    dora: bool
    checkpointing: bool
    optimizer: str
    device: str
    blockwise: bool
    padded: bool
    memory: Memory | None = None
    whole_layers: int = 0

    def adapters(self, matrix: Matrix) -> int:
        """How many of a layer's occurrences have an adapter."""
        if self.rank == 0 or self.targets is None:
            return matrix.count if self.rank else 0
        return _targeted(matrix.places, self.targets)

    def adapts(self, matrix: Matrix) -> bool:
        """Whether a layer has an adapter anywhere."""
        return self.adapters(matrix) > 0


@cache
def _targeted(places: tuple[str, ...], targets: tuple[str, ...]) -> int:
    """Counts places as peft chooses them: a target is a dotted name or the end of one."""
    ends = tuple(f".{target}" for target in targets)
    return sum(place in targets or place.endswith(ends) for place in places)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step, by what they hold; their sum is the peak."""

    weights: int
    trainable: int
    gradients: int
    optimizer: int
    activations: int
    recomputed: int
    logits: int
    slack: int
    context: int
    buffers: int = 0

    @property
    def peak(self) -> int:
        """All of them."""
        return sum(getattr(self, item.name) for item in fields(self))

    @property
    def beyond_weights(self) -> int:
        """What comes on top of a model that is loaded, on a device that is in use."""
        return self.peak - self.weights - self.trainable - self.context

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would show."""
        return self.peak - self.slack - self.context


def weight_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """The base as it is held; embeddings, head and norms stay in the compute type, master weights are fp32."""
    whole = 4 if plan.rank == 0 else plan.compute_bytes
    rest = (shape.embedding_parameters + shape.other_parameters) * whole
    if plan.quantization == "nf4":
        scales = math.ceil(shape.matrix_parameters / ABSMAX_BLOCK)
        scale_bytes = scales + 4 * math.ceil(scales / DOUBLE_QUANT_BLOCK) if plan.double_quant else 4 * scales
        return rest + shape.matrix_parameters // 2 + scale_bytes
    if plan.quantization in ("int8", "fp8"):
        left = [matrix for matrix in shape.matrices if matrix.transposed and plan.quantization == "fp8"]
        held = [matrix for matrix in shape.matrices if matrix not in left]
        rest += whole * sum(matrix.parameters for matrix in left)
        return rest + sum(matrix.parameters + 4 * matrix.rows * matrix.count for matrix in held)
    return rest + shape.matrix_parameters * whole


def trainable_parameters(shape: ModelShape, plan: MemoryPlan) -> int:
    """Numbers that are trained, as peft counts them."""
    if plan.rank == 0:
        return shape.parameters
    return sum(
        ((matrix.rows + matrix.columns) * plan.rank + (matrix.rows if plan.dora else 0)) * count
        for matrix, count in _adapted(shape, plan)
    )


def _adapted(shape: ModelShape, plan: MemoryPlan) -> list[tuple[Matrix, int]]:
    """Layers that have adapters, and how many; the head has one only where a target names it."""
    head = [shape.head] if shape.head is not None and plan.targets is not None else []
    return [(matrix, count) for matrix in (*shape.matrices, *head) if (count := plan.adapters(matrix))]


def optimizer_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """Two moments of every trained number: fp32, or bytes with a scale for each block; paged ones lie on the host.

    Muon keeps one moment of matrices.
    """
    trainable = trainable_parameters(shape, plan)
    if plan.optimizer == "muon":
        return 8 * trainable - 4 * shape.matrix_parameters
    if plan.optimizer == "adamw":
        return 8 * trainable
    small = 0
    if plan.rank:
        sizes = [(size * plan.rank, count) for m, count in _adapted(shape, plan) for size in (m.rows, m.columns)]
        small = sum(size * count for size, count in sizes if size < SMALLEST_8BIT)
    eight_bit = math.ceil((trainable - small) * 2 * (1 + 4 / OPTIMIZER_BLOCK))
    return 8 * small + (0 if plan.optimizer == "paged_adamw_8bit" else eight_bit)
