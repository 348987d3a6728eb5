"""How much memory a training step needs, by arithmetic: nothing is allocated and no weight is read.

Enters: ``ModelShape`` and ``MemoryPlan`` (what of the recipe costs memory). Leaves: ``MemoryEstimate``, byte by byte.
The activations are those that autograd keeps on the present path, autocast over peft's LoRA layers; a test counts them.

c bytes of the compute type, T tokens computed at once, P rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from fintune.models.shape import Matrix, ModelShape

ABSMAX_BLOCK, DOUBLE_QUANT_BLOCK = 64, 256  # bitsandbytes' defaults: weights a scale, scales a second scale
OPTIMIZER_BLOCK, SMALLEST_8BIT = 256, 4096  # bitsandbytes keeps tensors below 4096 numbers in fp32
SPAN = 64  # queries of one span of tree attention without FlexAttention
# fp32 logits kept, their gradient by index, and three temporaries of logsumexp's gradient; counted, see the tests.
LOGIT_BYTES = 20
# Not allocated by PyTorch: CUDA's context with its loaded kernels, and NF4/int8 or cuBLAS workspaces beside it. What
# nvidia-smi shows beyond max_memory_reserved is 0.4 to 0.6 GiB on current cards.
CONTEXT_BYTES = {"cuda": 600 * 2**20, "cpu": 900 * 2**20}  # on the CPU: Python with its libraries
# The caching allocator rounds blocks and cannot always reuse them; of what comes and goes, not of the weights.
SLACK = 0.08


@dataclass(frozen=True)
class MemoryPlan:
    """What of a run costs memory.

    Attributes:
        tokens: T, computed at once.
        logit_rows: P, positions whose logits are needed at once.
        longest: tokens of the longest sample.
        quantization: none, nf4 or int8.
        double_quant: the NF4 scales are quantised too.
        compute_bytes: 2 for bf16 and fp16, 4 for fp32.
        rank: of the adapter; 0 trains all weights.
        targets: names of adapted layers; None for all linear ones.
        dropout: on the adapter's input.
        dora: a magnitude for each row of an adapted layer.
        checkpointing: layers are recomputed in the backward pass.
        optimizer: adamw, adamw_8bit or paged_adamw_8bit.
        device: cuda or cpu.
        flex: FlexAttention, which keeps no scores and copies no keys.
        padded: rows of plain attention instead of trees.
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
    flex: bool
    padded: bool

    def adapts(self, matrix: Matrix) -> bool:
        """Whether a layer has an adapter."""
        return self.rank > 0 and (
            self.targets is None or any(matrix.name == name.rpartition(".")[2] for name in self.targets)
        )


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

    @property
    def peak(self) -> int:
        """All of them."""
        return sum(getattr(self, item.name) for item in fields(self))

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
    if plan.quantization == "int8":
        return rest + shape.matrix_parameters + 4 * sum(matrix.rows * matrix.count for matrix in shape.matrices)
    return rest + shape.matrix_parameters * whole


def trainable_parameters(shape: ModelShape, plan: MemoryPlan) -> int:
    """Numbers that are trained, as peft counts them."""
    if plan.rank == 0:
        return shape.parameters
    return sum(
        ((matrix.rows + matrix.columns) * plan.rank + (matrix.rows if plan.dora else 0)) * matrix.count
        for matrix in shape.matrices
        if plan.adapts(matrix)
    )


def optimizer_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """Two moments of every trained number: fp32, or bytes with a scale for each block; paged ones lie on the host."""
    trainable = trainable_parameters(shape, plan)
    if plan.optimizer == "adamw":
        return 8 * trainable
    small = 0
    if plan.rank:
        sizes = [(size * plan.rank, m.count) for m in shape.matrices if plan.adapts(m) for size in (m.rows, m.columns)]
        small = sum(size * count for size, count in sizes if size < SMALLEST_8BIT)
    eight_bit = math.ceil((trainable - small) * 2 * (1 + 4 / OPTIMIZER_BLOCK))
    return 8 * small + (0 if plan.optimizer == "paged_adamw_8bit" else eight_bit)


def saved_per_token(shape: ModelShape, plan: MemoryPlan) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    compute = plan.compute_bytes
    query, key_value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    attention: float = compute * (2 * query + 2 * key_value) + 4 * shape.heads  # query, key, value, output, normaliser
    if not plan.flex:
        attention += 0 if plan.padded else _span_bytes(shape, plan)
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
        a_layer = matrix.count / shape.layers
        total += a_layer * plan.compute_bytes * plan.rank
        role = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(matrix.name, matrix.name)
        if plan.compute_bytes < 4 or plan.dropout or role not in shared:
            total += a_layer * plan.compute_bytes * matrix.columns
            shared.add(role)
        if plan.dropout:
            total += a_layer * matrix.columns * (1 if plan.device == "cuda" else 4)  # the mask; fp32 on the CPU
    return total


def _span_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
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


def _mask_bytes(plan: MemoryPlan) -> int:
    """Which keys each token sees, a byte each and one for all layers; FlexAttention has none."""
    return 0 if plan.flex else plan.tokens * (plan.longest + (0 if plan.padded else SPAN))


def _cast_weights(shape: ModelShape, plan: MemoryPlan) -> tuple[int, int]:
    """Copies of master weights that autocast makes: those alive in the forward pass only, and those kept after it."""
    if plan.rank or plan.compute_bytes == 4:
        return 0, 0
    head = plan.compute_bytes * shape.vocabulary * shape.hidden
    layers = plan.compute_bytes * shape.matrix_parameters
    return (layers, head) if plan.checkpointing else (0, layers + head)


def estimate_memory(shape: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    """The peak of one step."""
    trainable = trainable_parameters(shape, plan)
    layer = math.ceil(saved_per_token(shape, plan) * plan.tokens)
    stream = _stream_bytes(plan) * shape.hidden * plan.tokens
    kept = shape.layers * (stream if plan.checkpointing else layer) + 2 * stream + _mask_bytes(plan)
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
        slack=math.ceil(SLACK * coming_and_going),
        context=CONTEXT_BYTES[plan.device],
    )


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, and the peak it would give."""

    change: str
    peak: int


def remedies(shape: ModelShape, plan: MemoryPlan, *, can_quantize: bool) -> list[Remedy]:
    """Keys that lower the peak: each alone, then all together."""
    changes: dict[str, MemoryPlan] = {}
    together = plan
    if plan.quantization == "none" and plan.rank and can_quantize:
        together = replace(together, quantization="nf4", double_quant=True)
        changes["model.quantization=nf4"] = replace(plan, quantization="nf4", double_quant=True)
    if not plan.checkpointing:
        together = replace(together, checkpointing=True)
        changes["training.gradient_checkpointing=true"] = replace(plan, checkpointing=True)
    if plan.rank == 0:
        together = replace(together, rank=16)
        changes["adapter.kind=lora"] = replace(plan, rank=16)
    half = max(plan.longest, plan.tokens // 2)
    if half < plan.tokens:
        together = with_tokens(together, half)
        changes[f"training.tokens_per_batch={half}"] = with_tokens(plan, half)
    if len(changes) > 1:
        changes[" ".join(changes)] = together
    peaks = [Remedy(change, estimate_memory(shape, other).peak) for change, other in changes.items()]
    return [remedy for remedy in peaks if remedy.peak < estimate_memory(shape, plan).peak]


def with_tokens(plan: MemoryPlan, tokens: int) -> MemoryPlan:
    """The plan under another budget; rows of logits go with the tokens."""
    return replace(plan, tokens=tokens, logit_rows=math.ceil(plan.logit_rows * tokens / plan.tokens))
