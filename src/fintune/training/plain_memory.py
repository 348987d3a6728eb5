"""How much memory a training step needs where transformers' layers and peft's adapters run, under autocast.

Enters: ``ModelShape`` and ``MemoryPlan``. Leaves: ``MemoryEstimate``. The activations are those that autograd keeps on
that path; a test counts them.

c bytes of the compute type, T tokens computed at once, P rows of logits, V vocabulary.
"""

from __future__ import annotations

import math

from fintune.models.shape import ModelShape
from fintune.training.memory_plan import (
    CONTEXT_BYTES,
    MemoryEstimate,
    MemoryPlan,
    optimizer_bytes,
    slack_bytes,
    trainable_parameters,
    weight_bytes,
)

SPAN = 64  # queries of one span of tree attention without FlexAttention
# fp32 logits kept, their gradient by index, and three temporaries of logsumexp's gradient; counted, see the tests.
LOGIT_BYTES = 20


def saved_per_token(shape: ModelShape, plan: MemoryPlan) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    compute = plan.compute_bytes
    query, key_value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    attention: float = compute * (2 * query + 2 * key_value) + 4 * shape.heads  # query, key, value, output, normaliser
    if not plan.blockwise:
        attention += 0 if plan.padded else span_bytes(shape, plan)
        attention += _score_bytes(shape, plan) if shape.softcap else 0
    norms = shape.norms * (4 * shape.hidden + 4)  # the input in fp32 and its scale
    if shape.head_norms:
        norms += 4 * (query + key_value) + 4 * (shape.heads + shape.key_value_heads)
    if plan.rank == 0:  # a trained norm keeps its normalised input too
        norms += shape.norms * 4 * shape.hidden + (4 * (query + key_value) if shape.head_norms else 0)
    block = compute * shape.intermediate * (3 if shape.gated else 1)  # both projections and the activation
    return attention + norms + block + _input_bytes(shape, plan)


def _input_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Inputs of the layers that are trained or adapted.

    Below fp32 every adapter casts its input anew, so queries, keys and values each keep a copy; in fp32 without
    dropout they share one.
    """
    total, shared = 0.0, set()
    for matrix in shape.matrices:
        if plan.rank and not plan.adapts(matrix):
            continue
        a_layer = (plan.adapters(matrix) or matrix.count) / shape.layers
        total += a_layer * plan.compute_bytes * plan.rank
        role = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(matrix.name, matrix.name)
        if plan.compute_bytes < 4 or plan.dropout or role not in shared:
            total += a_layer * plan.compute_bytes * matrix.columns
            shared.add(role)
        if plan.dropout:
            total += a_layer * matrix.columns * (1 if plan.device == "cuda" else 4)  # the mask; fp32 on the CPU
    return total


def span_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Keys and values that each span of queries gathers: its own and its ancestors', repeated for every query head."""
    keys_per_query = (SPAN + plan.longest) / SPAN
    return keys_per_query * 2 * shape.heads * shape.head_size * plan.compute_bytes


def _score_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Capped scores and their softmax, in place of the normaliser."""
    keys = plan.longest + (0 if plan.padded else SPAN)
    return shape.heads * (8 * keys - 4)


def _stream_bytes(plan: MemoryPlan) -> int:
    """Of the residual stream, which starts in the type of the embedding."""
    return 4 if plan.rank == 0 else plan.compute_bytes


def _transient_per_token(shape: ModelShape, plan: MemoryPlan) -> int:
    """Gradients alive at once in the widest layer: of the base's input and the adapter's, which passes through fp32."""
    compute = plan.compute_bytes
    fp32_gradients = 8 if plan.dropout else 4  # before and after the mask
    return (2 * compute + fp32_gradients) * shape.intermediate + 3 * compute * shape.hidden


def mask_bytes(plan: MemoryPlan) -> int:
    """Which keys each token sees, a byte each and one for all layers; FlexAttention has none."""
    return 0 if plan.blockwise else plan.tokens * (plan.longest + (0 if plan.padded else SPAN))


def _cast_weights(shape: ModelShape, plan: MemoryPlan) -> tuple[int, int]:
    """Copies of master weights that autocast makes: those alive in the forward pass only, and those kept after it."""
    if plan.rank or plan.compute_bytes == 4:
        return 0, 0
    head = plan.compute_bytes * shape.vocabulary * shape.hidden
    layers = plan.compute_bytes * shape.matrix_parameters
    return (layers, head) if plan.checkpointing else (0, layers + head)


def estimate_plain(shape: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    """The peak of one step."""
    trainable = trainable_parameters(shape, plan)
    layer = math.ceil(saved_per_token(shape, plan) * plan.tokens)
    stream = _stream_bytes(plan) * shape.hidden * plan.tokens
    kept = shape.layers * (stream if plan.checkpointing else layer) + 2 * stream + mask_bytes(plan)
    forward, copies = _cast_weights(shape, plan)
    kept += copies
    largest = max((matrix.rows * matrix.columns for matrix in shape.matrices), default=0)
    unpacked = 0 if plan.quantization == "none" else largest * plan.compute_bytes
    backward = (layer if plan.checkpointing else 0) + _transient_per_token(shape, plan) * plan.tokens + unpacked
    logits = LOGIT_BYTES * plan.logit_rows * shape.vocabulary
    # Loss and layers take turns: at the loss no layer is being recomputed, and later the logits are gone.
    recomputed, logits = (max(backward, forward), 0) if max(backward, forward) >= logits else (0, logits)
    gradients = 4 * trainable
    weights = weight_bytes(shape, plan)
    coming_and_going = gradients + kept + recomputed + logits
    return MemoryEstimate(
        weights=weights,
        trainable=0 if plan.rank == 0 else 4 * trainable,
        gradients=gradients,
        optimizer=optimizer_bytes(shape, plan),
        activations=kept,
        recomputed=recomputed,
        logits=logits,
        slack=slack_bytes(coming_and_going, plan.device),
        context=CONTEXT_BYTES[plan.device],
    )
