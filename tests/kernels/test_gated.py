from types import SimpleNamespace

import pytest
import torch
from tests.kernels import triton_cases as cases
from transformers.activations import ACT2FN

from fintune.kernels.gated import gated, gated_backward
from fintune.kernels.triton_use import triton_is_installed

TOKENS, FEATURES, RANK = 5, 6, 3
OF_TRANSFORMERS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(params=OF_TRANSFORMERS)
def activation(request):
    return request.param


def hidden_state(gate_up, activation):
    gate, up = gate_up.chunk(2, 1)
    return ACT2FN[OF_TRANSFORMERS[activation]](gate) * up


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_values_and_gradients_are_those_of_autograd(activation, adapters, down):
    gate_up, dp = random(TOKENS, 2 * FEATURES), random(TOKENS, FEATURES)
    small, b = random(TOKENS, 2 * RANK), random(2 * FEATURES, RANK)
    down_small, down_a = random(TOKENS, RANK), random(RANK, FEATURES)
    outputs = torch.cat([small[:, :RANK] @ b[:FEATURES].T, small[:, RANK:] @ b[FEATURES:].T], 1)
    total = (gate_up + outputs * adapters).requires_grad_()
    expected = hidden_state(total, activation)
    (gradient,) = torch.autograd.grad(expected, total, dp + down_small @ down_a * down)

    options = {"small": small, "b": b} if adapters else {}
    torch.testing.assert_close(gated(gate_up, activation, **options), expected.detach())
    if down:
        options |= {"down_small": down_small, "down_a": down_a}
    ours, hidden = gated_backward(dp, gate_up, activation, **options)
    torch.testing.assert_close(ours, gradient)
    torch.testing.assert_close(hidden, expected.detach())
    assert hidden is dp


def test_the_gradient_may_overwrite_its_input_and_spares_dp_when_nothing_else_is_wanted(activation):
    gate_up, dp = random(TOKENS, 2 * FEATURES), random(TOKENS, FEATURES)
    before = dp.clone()
    expected, hidden = gated_backward(dp, gate_up, activation, want_hidden=False)
    assert hidden is None and torch.equal(dp, before)
    state = gated(gate_up, activation)
    result, hidden = gated_backward(dp, gate_up, activation, out=gate_up)
    assert result is gate_up and torch.equal(result, expected)
    torch.testing.assert_close(hidden, state)


@pytest.mark.slow
@pytest.mark.skipif(not triton_is_installed(), reason="Triton is not installed")
@pytest.mark.parametrize(("capability", "rank"), [(86, 32), (90, 16)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_tiles_fit_into_the_shared_memory_of_cards_for_games(dtype, capability, rank):
    from tests.kernels.compiled import shared_bytes

    from fintune.kernels import gated_columns_triton as columns

    backward = columns.backward_tile({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    for kernel, tile in ((columns._forward_kernel, columns._FORWARD), (columns._backward_kernel, backward)):
        shape = SimpleNamespace(warps=tile["num_warps"], stages=tile["num_stages"])
        constants = {"FEATURES": 14336, "RANK": rank, "DOWN_RANK": rank, "GELU": False, "STAGES": shape.stages}
        assert 0 < shared_bytes(kernel, constants | tile, shape, capability, dtype) <= 99 * 1024, kernel.__name__


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, features", [(8192, 14336), (1000, 14336), (1, 14336), (0, 14336)])
@pytest.mark.parametrize("rank, down_rank", [(0, 0), (16, 16), (48, 64)])
def test_the_kernels_equal_their_twins(tokens, features, activation, rank, down_rank):
    cases.check_gated("cuda", torch.bfloat16, tokens, features, activation, rank=rank, down_rank=down_rank)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype, features, rank, down_rank",
    [
        (torch.bfloat16, 1536, 16, 0),
        (torch.bfloat16, 1536, 0, 16),
        (torch.float16, 1000, 16, 32),
        (torch.float32, 1000, 16, 32),
    ],
    ids=str,
)
def test_other_types_and_ranks_equal_their_twins(dtype, features, rank, down_rank):
    cases.check_gated("cuda", dtype, 131, features, "silu", rank=rank, down_rank=down_rank, apart=8)
