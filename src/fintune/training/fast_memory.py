"""How much memory a training step needs where our own kernels run the decoder layers and the loss comes in chunks.

Enters: ``ModelShape`` and a ``MemoryPlan`` whose ``memory`` is not None. Leaves: ``MemoryEstimate`` and the bytes of
pinned host memory. Everything is counted from what ``kernels.decoder_layer`` saves; nothing is fitted to measurements.

c bytes of the compute type, T tokens computed at once, P positions with a loss, H hidden size, F MLP, V vocabulary.
"""

from __future__ import annotations

import math

from fintune.kernels.decoder_layer import MLP_ROWS
from fintune.kernels.linear_edge_loss import chunk_rows
from fintune.kernels.lora_group import RANK_MULTIPLE
from fintune.kernels.offload import AHEAD, LEAST_BYTES
from fintune.models.fast_layers import KEEPS_ALL, NOT_OFFLOADED
from fintune.models.shape import Matrix, ModelShape
from fintune.training.memory_plan import (
    CONTEXT_BYTES,
    MemoryEstimate,
    MemoryPlan,
    optimizer_bytes,
    slack_bytes,
    trainable_parameters,
    weight_bytes,
)
from fintune.training.plain_memory import mask_bytes, span_bytes

_GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
# The plain twins that run on the CPU compute in fp32: at most so many numbers a token more in each width.
_TWIN_HIDDEN, _TWIN_INNER = 6, 6
# cuBLAS takes as much for each of the two threads that start kernels, forward and backward, on Hopper; elsewhere less.
_WORKSPACE_BYTES = 2 * 32 * 2**20


def kept_parts(shape: ModelShape, plan: MemoryPlan) -> list[float]:
    """Bytes a token of every tensor that one layer keeps for its backward pass; ``whole_layers`` are not looked at."""
    compute, hidden = plan.compute_bytes, shape.hidden
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    parts: list[float] = [compute * hidden] * 2 + [4.0] * shape.norms  # the input of both norms; reciprocal scales
    parts += [
        compute * (query + 2 * key),
        compute * query,
        4 * shape.heads,
    ]  # q k v, what attention gives, its normaliser
    parts += [compute * hidden] * (shape.norms - 2)  # what a norm behind attention or MLP was given
    if shape.head_norms:
        parts += [compute * query, compute * key, 4 * (shape.heads + shape.key_value_heads)]
    parts += [compute * len(members) * _padded(plan) for members in _adapted_groups(shape, plan)]
    if _keeps_all(plan):
        parts.append(mlp_part(shape, plan))
    if not plan.blockwise:
        parts += [span_bytes(shape, plan), compute * query]
    return parts


def mlp_part(shape: ModelShape, plan: MemoryPlan) -> float:
    """Bytes a token of the outputs of gate and up."""
    return plan.compute_bytes * 2 * shape.intermediate


def _keeps_all(plan: MemoryPlan) -> bool:
    return plan.memory in KEEPS_ALL


def ready_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """What quantised weights take besides, unpacked (NF4) or transposed (fp8), where they are held ready."""
    a_weight = {"nf4": plan.compute_bytes, "fp8": 1}.get(plan.quantization, 0)
    return a_weight * shape.matrix_parameters


def _padded(plan: MemoryPlan) -> int:
    return math.ceil(plan.rank / RANK_MULTIPLE) * RANK_MULTIPLE


def _adapted_groups(shape: ModelShape, plan: MemoryPlan) -> list[list[Matrix]]:
    """The matrices of each group that shares an input, where at least one has an adapter."""
    groups = [[matrix for matrix in shape.matrices if matrix.name in names] for names in _GROUPS]
    return [members for members in groups if any(map(plan.adapts, members))]


def _kept(shape: ModelShape, plan: MemoryPlan) -> int:
    """What all layers keep on the device, at the loss."""
    parts = [part * plan.tokens for part in kept_parts(shape, plan)]
    a_layer, more = sum(parts), 0.0 if _keeps_all(plan) else plan.whole_layers * mlp_part(shape, plan) * plan.tokens
    if plan.memory != "offload":
        return math.ceil(shape.layers * a_layer + more)
    # The last ones, or later those whose copies are under way.
    near = min(shape.layers, max(NOT_OFFLOADED, AHEAD, plan.whole_layers))
    return math.ceil(near * a_layer + more + (shape.layers - near) * sum(part for part in parts if part < LEAST_BYTES))


def host_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """Pinned host memory of offloaded tensors, which PyTorch rounds up to powers of two."""
    if plan.memory != "offload" or plan.device != "cuda":
        return 0
    sizes = [math.ceil(part * plan.tokens) for part in kept_parts(shape, plan)]
    moving = max(0, shape.layers - max(NOT_OFFLOADED, plan.whole_layers))
    return moving * sum(1 << (s - 1).bit_length() for s in sizes if s >= LEAST_BYTES)


def working_copies(shape: ModelShape, plan: MemoryPlan) -> int:
    """The adapters side by side in the compute type, as the products take them."""
    one_layer = sum(
        len(members) * members[0].columns + sum(matrix.rows for matrix in members)
        for members in _adapted_groups(shape, plan)
    )
    return plan.compute_bytes * _padded(plan) * one_layer * shape.layers


def _buffers(shape: ModelShape, plan: MemoryPlan) -> int:
    """Working copies, weights held ready or the buffer that weights share in turn, cuBLAS' workspaces."""
    groups = [sum(m.rows * m.columns for m in shape.matrices if m.name in names) for names in _GROUPS]
    largest = max(groups)
    if plan.quantization == "nf4" and not _keeps_all(plan):
        # Those of the MLP lie side by side, on a GPU in a buffer of their own, where they are unpacked ahead.
        attention, mlp = max(groups[:2]), sum(groups[2:])
        largest = attention + mlp if plan.device == "cuda" else max(attention, mlp)
    unpacked = 0
    if plan.memory == "ready":
        unpacked = ready_bytes(shape, plan)
    elif plan.quantization != "none":
        unpacked = largest * (plan.compute_bytes if plan.quantization == "nf4" else 1)
    workspaces = _WORKSPACE_BYTES if plan.device == "cuda" else 0
    return working_copies(shape, plan) + unpacked + workspaces


def _layer_backward(shape: ModelShape, plan: MemoryPlan) -> int:
    """The most that the backward pass of one layer holds beside what was kept: in its MLP or in its attention."""
    compute, tokens = plan.compute_bytes, plan.tokens
    kinds = {True} if _keeps_all(plan) else {False, plan.whole_layers > 0}
    mlp = max(_mlp_backward(shape, plan, whole=whole) for whole in kinds)
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    # Gradients of q, k and v apart and gathered, and the sum in fp32 that flash kernels make of the queries'.
    attention = tokens * (compute * (2 * shape.hidden + 2 * (query + 2 * key)) + 4 * query)
    if not plan.blockwise:  # gradients of the keys and values that spans gather, in the compute type and in fp32
        attention += math.ceil(tokens * span_bytes(shape, plan) * (1 + 4 / compute))
    return max(mlp, attention)


def _mlp_backward(shape: ModelShape, plan: MemoryPlan, *, whole: bool) -> int:
    """The same of the MLP of a layer that keeps everything, or of one that computes gate and up again."""
    compute, tokens = plan.compute_bytes, plan.tokens
    rows = tokens if whole or plan.dropout else min(tokens, MLP_ROWS)
    again = 0 if whole else 2  # gate and up
    streams = 2 + (shape.norms > 2)  # gradients of output and input
    mlp = compute * (tokens * streams * shape.hidden + rows * (again + 2) * shape.intermediate)
    mlp += compute * rows * shape.hidden * (rows < tokens)  # the latter of some rows, before it is where it belongs
    if plan.device == "cpu":
        mlp += 4 * (tokens * _TWIN_HIDDEN * shape.hidden + rows * _TWIN_INNER * shape.intermediate)
    return mlp


def _loss(shape: ModelShape, plan: MemoryPlan) -> int:
    """The most that the last norm and the loss hold: while chunks are computed, or in the norm's backward pass."""
    compute, parents = plan.compute_bytes, plan.logit_rows
    stream = plan.tokens * shape.hidden
    kept = compute * stream  # what the last norm was given
    in_place = plan.device == "cuda"
    rows = chunk_rows(parents, shape.vocabulary, shape.hidden, logit_bytes=compute if in_place else 4)
    logit = compute if in_place or compute == 4 else 4 + compute
    # Normalised rows, those with a loss, and their gradient.
    forward = compute * (stream + 2 * parents * shape.hidden) + rows * shape.vocabulary * logit
    return kept + max(forward, 2 * compute * stream)


def estimate_fast(shape: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    """The peak of one step."""
    trainable = trainable_parameters(shape, plan)
    rotation = 2 * plan.tokens * shape.head_size * plan.compute_bytes
    kept = _kept(shape, plan) + rotation + mask_bytes(plan)
    backward, loss = _layer_backward(shape, plan), _loss(shape, plan)
    backward, loss = (backward, 0) if backward >= loss else (0, loss)  # one after the other
    gradients = 4 * trainable
    return MemoryEstimate(
        weights=weight_bytes(shape, plan),
        trainable=4 * trainable,
        gradients=gradients,
        optimizer=optimizer_bytes(shape, plan),
        activations=kept,
        recomputed=backward,
        logits=loss,
        slack=slack_bytes(gradients + kept + backward + loss, plan.device),
        context=CONTEXT_BYTES[plan.device],
        buffers=_buffers(shape, plan),
    )
