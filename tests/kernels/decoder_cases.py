"""Random decoder layers, and the same layer in ordinary torch operations for autograd to differentiate."""

from __future__ import annotations

import torch
from tests.kernels.frozen_cases import random_weight
from torch import nn

from fintune.kernels.decoder_layer import decoder_layer
from fintune.kernels.frozen_weight import DenseWeight
from fintune.kernels.hashed_dropout import fold_seed, keep_mask
from fintune.kernels.layer_parts import DecoderLayer, Norm, Pass
from fintune.kernels.lora_group import Adapter, LoraGroup, refresh
from fintune.kernels.rope import HeadLayout

HIDDEN, MLP = 64, 96
LAYOUT = HeadLayout(4, 2, 16)
# Ranks of q, k, v, o, gate, up and down; 0 where a layer has no adapter. None is a multiple of 16.
RANKS = {
    "all": (3, 20, 5, 4, 18, 2, 7),
    "q and v": (4, 0, 9, 0, 0, 0, 0),
    "mlp": (0, 0, 0, 0, 0, 4, 3),
    "up only": (0, 0, 0, 0, 0, 5, 0),
    "down and q": (4, 0, 0, 0, 0, 0, 7),
}


def random_group(kind, sizes, inputs, ranks, dtype, *, bias=False, device="cpu", scale=1.7):
    adapters = tuple(
        Adapter(
            (torch.randn(rank, inputs, device=device, dtype=trained_in(dtype)) / inputs**0.5).requires_grad_(),
            (torch.randn(size, rank, device=device, dtype=trained_in(dtype)) * 0.2).requires_grad_(),
            scale + member,
        )
        if rank
        else None
        for member, (size, rank) in enumerate(zip(sizes, ranks, strict=True))
    )
    weight = random_weight(kind, sum(sizes), inputs, dtype, device)
    biases = torch.randn(sum(sizes), device=device).to(dtype) * 0.3 if bias else None
    return LoraGroup(weight, biases, tuple(sizes), adapters, dtype)


def trained_in(dtype):
    return torch.promote_types(dtype, torch.float32)


def random_layer(
    dtype,
    *,
    kind="dense",
    ranks="all",
    bias=False,
    four_norms=False,
    head_norms=False,
    activation="silu",
    dropout=0.0,
    device="cpu",
):
    q, k, v, o, gate, up, down = RANKS[ranks]
    width, narrow = LAYOUT.query * LAYOUT.size, LAYOUT.key * LAYOUT.size

    def group(sizes, inputs, own):
        return random_group(kind, sizes, inputs, own, dtype, bias=bias, device=device)

    def norm(size):
        weight = torch.randn(size, device=device) * 0.2 + (0.0 if four_norms else 1.0)
        return Norm(weight.to(dtype), 1e-5, unit_offset=four_norms)

    return DecoderLayer(
        qkv=group((width, narrow, narrow), HIDDEN, (q, k, v)),
        o=group((HIDDEN,), width, (o,)),
        gate_up=group((MLP, MLP), HIDDEN, (gate, up)),
        down=group((HIDDEN,), MLP, (down,)),
        layout=LAYOUT,
        activation=activation,
        input_norm=norm(HIDDEN),
        mlp_norm=norm(HIDDEN),
        attention_out_norm=norm(HIDDEN) if four_norms else None,
        mlp_out_norm=norm(HIDDEN) if four_norms else None,
        query_norm=norm(LAYOUT.size) if head_norms else None,
        key_norm=norm(LAYOUT.size) if head_norms else None,
        dropout=dropout,
    )


def random_pass(tokens, dtype, *, seed=11, training=True, keep_mlp=True, device="cpu"):
    turns = torch.rand(tokens, LAYOUT.size // 2, device=device, dtype=torch.float64) * 6.3
    cos, sin = (torch.cat([part, part], 1).to(dtype) for part in (turns.cos(), turns.sin()))
    return Pass(cos, sin, torch.tensor(seed, device=device), training, keep_mlp)


def trained(layer):
    return [tensor for group in layer.groups for tensor in group.trained]


def attend(query, key, value):
    """Causal attention: (1, heads, T, D) to (T, heads D)."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = (query @ key.transpose(2, 3)).to(trained_in(query.dtype)) / query.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    out = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(value.dtype) @ value
    return out[0].transpose(0, 1).flatten(1)


def ours(h, layer, given, attention=attend):
    refresh(layer.groups)
    return decoder_layer(h, layer, given, attention)


class FrozenProduct(torch.autograd.Function):
    """The weight's own products: for fp8, inputs and gradients are rounded in them."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.weight.input_gradient(dy.contiguous()), None


def dense_product(x, weight):
    stored = weight.data.dtype if isinstance(weight, DenseWeight) else torch.float32  # NF4 unpacks to 32 bits at most
    return x @ weight.dense(stored).to(x.dtype).T


def plain(h, layer, given, attention=attend, product=dense_product):
    """The layer by its definition, in the type of ``h``."""
    x = plain_norm(layer.input_norm, h)
    columns = plain_group(layer.qkv, x, layer, given, 0, product).unflatten(1, (-1, LAYOUT.size))
    query, key, value = columns.split_with_sizes(LAYOUT.sections, 1)
    if layer.query_norm is not None:
        query, key = plain_norm(layer.query_norm, query), plain_norm(layer.key_norm, key)
    query, key = (rotated(heads, given) for heads in (query, key))
    attended = attention(*(heads.transpose(0, 1)[None] for heads in (query, key, value)))
    h = h + plain_norm(layer.attention_out_norm, plain_group(layer.o, attended, layer, given, 1, product))
    x = plain_norm(layer.mlp_norm, h)
    gate, up = plain_group(layer.gate_up, x, layer, given, 2, product).chunk(2, 1)
    act = nn.functional.silu(gate) if layer.activation == "silu" else nn.functional.gelu(gate, approximate="tanh")
    return h + plain_norm(layer.mlp_out_norm, plain_group(layer.down, act * up, layer, given, 3, product))


def plain_norm(norm, x):
    if norm is None:
        return x
    wide = x.to(trained_in(x.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return (normed * (norm.weight.to(wide.dtype) + (1 if norm.unit_offset else 0))).to(x.dtype)


def rotated(heads, given):
    cos, sin = given.cos[:, None].to(heads.dtype), given.sin[:, None].to(heads.dtype)
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin


def plain_group(group, x, layer, given, part, product):
    y = product(x, group.weight)
    if group.bias is not None:
        y = y + group.bias.to(x.dtype)
    if layer.dropout and given.training:
        rows = torch.arange(len(x), dtype=torch.int32, device=x.device)
        stays = keep_mask(rows, x.shape[1], fold_seed(given.seed, part), layer.dropout)
        x = torch.where(stays, x / (1 - layer.dropout), 0.0)
    outputs = list(y.split(group.sizes, 1))
    for member, adapter in enumerate(group.adapters):
        if adapter is not None:
            a, b = adapter.a.to(x.dtype), adapter.b.to(x.dtype)
            outputs[member] = outputs[member] + adapter.scale * ((x @ a.T) @ b.T)
    return torch.cat(outputs, 1)


def result_and_gradients(function, h, layer, given, dy, **options):
    """The output, then the gradients of ``h`` and of A and B of every adapter."""
    h = h.clone().requires_grad_()
    y = function(h, layer, given, **options)
    return [y.detach(), *torch.autograd.grad(y, [h, *trained(layer)], dy.to(y.dtype))]


def distance(found, expected):
    """The largest distance of a tensor from what is expected, relative to its norm."""
    return max(
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        for a, b in zip(found, expected, strict=True)
    )


def in_fp64(given):
    return given._replace(cos=given.cos.double(), sin=given.sin.double())
