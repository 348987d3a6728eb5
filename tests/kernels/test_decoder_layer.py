"""The decoder layer's three Functions against the layer by its definition, differentiated by autograd."""

import itertools
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from tests.kernels.decoder_cases import (
    HIDDEN,
    LAYOUT,
    MLP,
    RANKS,
    FrozenProduct,
    distance,
    in_fp64,
    ours,
    plain,
    random_layer,
    random_pass,
    result_and_gradients,
    trained,
)

from fintune.kernels import decoder_layer as module
from fintune.kernels.frozen_weight import PackedMatrix
from fintune.kernels.lora_group import Adapter

TOKENS = 37
SWITCHES = list(itertools.product([False, True], repeat=3))


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def both(layer, given, dtype, tokens=TOKENS):
    h, dy = (torch.randn(tokens, HIDDEN, dtype=dtype) for _ in range(2))
    return [result_and_gradients(function, h, layer, given, dy) for function in (ours, plain)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("four_norms", "head_norms", "bias"), SWITCHES)
def test_output_and_gradients_equal_the_definition(ranks, activation, four_norms, head_norms, bias, dropout):
    layer = random_layer(
        torch.float64,
        ranks=ranks,
        activation=activation,
        four_norms=four_norms,
        head_norms=head_norms,
        bias=bias,
        dropout=dropout,
    )
    for keep in (True, False):
        found, expected = both(layer, random_pass(TOKENS, torch.float64, keep_mlp=keep), torch.float64)
        assert distance(found, expected) < 1e-11


@pytest.mark.parametrize("tokens", [1, 32, 33, 100])
@pytest.mark.parametrize(("four_norms", "head_norms", "bias"), SWITCHES)
def test_computing_the_mlp_again_chunk_by_chunk_changes_nothing(monkeypatch, tokens, four_norms, head_norms, bias):
    monkeypatch.setattr(module, "MLP_ROWS", 16)
    layer = random_layer(torch.float64, four_norms=four_norms, head_norms=head_norms, bias=bias)
    given = random_pass(tokens, torch.float64)
    h, dy = (torch.randn(tokens, HIDDEN, dtype=torch.float64) for _ in range(2))
    kept = result_and_gradients(ours, h, layer, given, dy)
    again = result_and_gradients(ours, h, layer, given._replace(keep_mlp=False), dy)
    assert distance(again, kept) < 1e-12


@pytest.mark.parametrize("keep", [True, False])
def test_no_tokens_at_all(keep):
    layer = random_layer(torch.float64)
    found, expected = both(layer, random_pass(0, torch.float64, keep_mlp=keep), torch.float64, tokens=0)
    assert [part.shape for part in found] == [part.shape for part in expected]
    assert all(not part.any() for part in found)


def test_dropout_is_drawn_again_alike_when_the_mlp_is_computed_again(monkeypatch):
    monkeypatch.setattr(module, "MLP_ROWS", 16)
    layer = random_layer(torch.float64, dropout=0.4)
    found, expected = both(layer, random_pass(100, torch.float64, keep_mlp=False), torch.float64, 100)
    assert distance(found, expected) < 1e-11


def test_dropout_depends_on_the_seed_and_is_off_outside_training():
    layer = random_layer(torch.float64, dropout=0.4)
    given = random_pass(TOKENS, torch.float64)
    h = torch.randn(TOKENS, HIDDEN, dtype=torch.float64)
    y = ours(h, layer, given)
    assert torch.equal(y, ours(h, layer, given))
    assert not torch.allclose(y, ours(h, layer, given._replace(seed=torch.tensor(12))))
    still = given._replace(training=False)
    torch.testing.assert_close(ours(h, layer, still), plain(h, layer, still))


@pytest.mark.parametrize("four_norms", [False, True])
def test_gradients_equal_finite_differences(four_norms):
    layer = random_layer(torch.float64, four_norms=four_norms, head_norms=True, bias=True, dropout=0.2)
    given = random_pass(5, torch.float64, keep_mlp=False)  # what is kept can be differentiated once only
    h = torch.randn(5, HIDDEN, dtype=torch.float64, requires_grad=True)
    # The adapters are what ``trained`` names: changed in place, they are seen by the next forward pass.
    assert torch.autograd.gradcheck(lambda h, *_: ours(h, layer, given), (h, *trained(layer)), fast_mode=True)


def test_the_first_layer_needs_no_gradient_of_its_input():
    layer = random_layer(torch.float64)
    given = random_pass(TOKENS, torch.float64)
    h, dy = (torch.randn(TOKENS, HIDDEN, dtype=torch.float64) for _ in range(2))
    expected = result_and_gradients(plain, h, layer, given, dy)[2:]
    found = torch.autograd.grad(ours(h, layer, given), trained(layer), dy)
    assert distance(found, expected) < 1e-11


def test_two_layers_one_after_the_other():
    layers = [random_layer(torch.float64, ranks=ranks) for ranks in ("all", "q and v")]
    given = random_pass(TOKENS, torch.float64)
    h = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)
    leaves = [h, *(tensor for layer in layers for tensor in trained(layer))]
    found, expected = (
        torch.autograd.grad(function(function(h, layers[0], given), layers[1], given).square().sum(), leaves)
        for function in (ours, plain)
    )
    assert distance(found, expected) < 1e-11


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_fp32(kind, keep):
    layer = random_layer(torch.float32, kind=kind, bias=True)
    found, expected = both(layer, random_pass(TOKENS, torch.float32, keep_mlp=keep), torch.float32)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [10, 100])
def test_the_weights_of_an_mlp_in_pieces_are_unpacked_once_a_pass(monkeypatch, tokens, dropout):
    monkeypatch.setattr(module, "MLP_ROWS", 16)
    layer = random_layer(torch.float32, kind="nf4", dropout=dropout)
    given = random_pass(tokens, torch.float32, keep_mlp=False)
    h, dy = (torch.randn(tokens, HIDDEN) for _ in range(2))
    calls = []
    unpack = PackedMatrix.unpack
    monkeypatch.setattr(PackedMatrix, "unpack", lambda self, out: (calls.append(self), unpack(self, out)))
    once = result_and_gradients(ours, h, layer, given, dy)
    assert len(calls) == 2 * len({id(matrix) for matrix in calls}) == 8  # four groups, forward and backward
    assert all(group.weight.ready is None for group in layer.groups)
    monkeypatch.setattr(module, "unpacked_together", lambda *_: nullcontext())
    for_every_product = result_and_gradients(ours, h, layer, given, dy)
    assert len(calls) > 8 + 8
    assert all(map(torch.equal, once, for_every_product))


@pytest.mark.parametrize("four_norms", [False, True])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_bf16_is_no_further_from_exact_arithmetic_than_the_definition_in_bf16(kind, four_norms):
    layer = random_layer(torch.bfloat16, kind=kind, four_norms=four_norms, head_norms=four_norms)
    given = random_pass(TOKENS, torch.bfloat16)
    h, dy = (torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16) for _ in range(2))
    exact = result_and_gradients(plain, h.double(), layer, in_fp64(given), dy)
    found, definition = (result_and_gradients(function, h, layer, given, dy) for function in (ours, plain))
    errors = [[distance([own], [true]) for own, true in zip(side, exact, strict=True)] for side in (found, definition)]
    assert sum(errors[0]) < 1.15 * sum(errors[1])
    assert all(own < 1.6 * other for own, other in zip(*errors, strict=True))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["fp8", "fp8 tensor", "fp8 transposed"])
def test_fp8_weights(kind, dtype, keep):
    """Inputs and gradients are rounded to three bits after the first, 2 % to 3 % each time, and that adds up.

    With the same roundings in the same places as the definition, little is left: numbers on the edge between two.
    """
    layer = random_layer(dtype, kind=kind)
    given = random_pass(TOKENS, dtype, keep_mlp=keep)
    h, dy = (torch.randn(TOKENS, HIDDEN, dtype=dtype) for _ in range(2))
    exact = result_and_gradients(plain, h.double(), layer, in_fp64(given), dy)
    found = result_and_gradients(ours, h, layer, given, dy)
    assert distance(found[:1], exact[:1]) < 0.07
    assert distance(found, exact) < 0.18
    if dtype == torch.float32:
        rounded = result_and_gradients(partial(plain, product=FrozenProduct.apply), h, layer, given, dy)
        assert distance(found, rounded) < 0.01


def test_gradients_have_the_type_of_their_adapters():
    layer = random_layer(torch.bfloat16)
    h = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    y = ours(h, layer, random_pass(TOKENS, torch.bfloat16))
    gradients = torch.autograd.grad(y.float().sum(), [h, *trained(layer)])
    assert y.dtype == gradients[0].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in gradients[1:]} == {torch.float32}


def test_a_second_backward_pass_over_what_the_first_wrote_over_is_refused():
    layer = random_layer(torch.float32)
    y = ours(torch.randn(TOKENS, HIDDEN), layer, random_pass(TOKENS, torch.float32))
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_computed_again_it_may_be_differentiated_twice():
    layer = random_layer(torch.float64)
    y = ours(
        torch.randn(TOKENS, HIDDEN, dtype=torch.float64), layer, random_pass(TOKENS, torch.float64, keep_mlp=False)
    )
    first, second = (torch.autograd.grad(y.sum(), trained(layer), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def attention_that_keeps_nothing(query, key, value):
    repeats = query.shape[1] // key.shape[1]
    total = query + key.repeat_interleave(repeats, 1) + value.repeat_interleave(repeats, 1)
    return total[0].transpose(0, 1).flatten(1)


def kept_columns(layer, keep_mlp):
    """Columns of the (T, more than one) matrices that are kept, each piece of memory once."""
    kept = {}

    def keep(tensor):
        if tensor.dim() > 1:
            kept[tensor.data_ptr()] = tensor.numel() // TOKENS
        return tensor

    h = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = ours(h, layer, random_pass(TOKENS, torch.float32, keep_mlp=keep_mlp), attention_that_keeps_nothing)
    assert y.requires_grad
    return sorted(kept.values())


@pytest.mark.parametrize("keep", [True, False])
def test_no_more_is_kept_than_promised(keep):
    padded = {"qkv": 3 * 32, "o": 16, "gate_up": 2 * 32, "down": 16}
    # h at both norms, what attention made, gate and up, and the small products of the adapters.
    promised = [HIDDEN, HIDDEN, LAYOUT.query * LAYOUT.size, *padded.values()] + [2 * MLP] * keep
    assert kept_columns(random_layer(torch.float32, dropout=0.1), keep) == sorted(promised)


def test_norms_on_heads_and_outputs_keep_their_inputs_as_well():
    layer = random_layer(torch.float32, ranks="up only", four_norms=True, head_norms=True)
    heads = LAYOUT.query + LAYOUT.key
    wide = [HIDDEN, HIDDEN, LAYOUT.query * LAYOUT.size, LAYOUT.width, heads, HIDDEN, HIDDEN]
    assert kept_columns(layer, True) == sorted([*wide, 2 * MLP, 2 * 16])


def test_autocast_by_the_caller_is_not_needed_and_adapters_may_change_between_passes():
    layer = random_layer(torch.float64)
    given = random_pass(TOKENS, torch.float64)
    h = torch.randn(TOKENS, HIDDEN, dtype=torch.float64)
    before = ours(h, layer, given)
    adapter = layer.o.adapters[0]
    assert isinstance(adapter, Adapter)
    with torch.no_grad():
        adapter.b.mul_(2.0)
    after = ours(h, layer, given)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, plain(h, layer, given))
