"""The products of layers that share an input, against autograd on each layer by itself."""

import pytest
import torch
from tests.kernels.decoder_cases import distance, random_group
from tests.kernels.frozen_cases import KINDS

from fintune.kernels.fp8_weight import Fp8Weight, quantize_rows
from fintune.kernels.hashed_dropout import keep_mask
from fintune.kernels.layer_parts import Norm
from fintune.kernels.lora_group import RANK_MULTIPLE, refresh, wide_product

SIZES, INPUTS, TOKENS = (48, 16, 32), 64, 9
SEED = torch.tensor(3)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def group_of(ranks, kind="dense", dtype=torch.float64, **options):
    group = random_group(kind, SIZES, INPUTS, ranks, dtype, **options)
    refresh([group])
    return group


def adapters_output(group, x, dropout):
    """What the adapters add, by definition, (T, N)."""
    kept = keep_mask(torch.arange(len(x), dtype=torch.int32), x.shape[1], SEED, dropout)
    x = torch.where(kept, x / (1 - dropout), 0.0)
    outputs = [
        x.new_zeros(len(x), size) if adapter is None else adapter.scale * (x @ adapter.a.T @ adapter.b.T)
        for size, adapter in zip(group.sizes, group.adapters, strict=True)
    ]
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("ranks", [(3, 0, 20), (16, 32, 16), (0, 0, 1), (5, 5, 5)])
def test_every_product_equals_autograd(ranks, dropout):
    group = group_of(ranks, bias=True)
    x = torch.randn(TOKENS, INPUTS, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(TOKENS, sum(SIZES), dtype=torch.float64)
    small = group.small(x.detach(), SEED, dropout)
    width = -(-max(ranks) // RANK_MULTIPLE) * RANK_MULTIPLE
    assert small is not None and small.shape == (TOKENS, 3 * width) and group.rank == width

    parts = zip(small.chunk(3, 1), group.stack.b.split(SIZES), strict=True)
    added = torch.cat([part @ b.T for part, b in parts], 1)
    expected = adapters_output(group, x, dropout)
    torch.testing.assert_close(added, expected)
    torch.testing.assert_close(group.base(x.detach()), x.detach() @ group.weight.dense(torch.float64).T + group.bias)

    d_small = group.d_small(dy)
    whole = expected + x @ group.weight.dense(torch.float64).T
    dx, *gradients = torch.autograd.grad(whole, [x, *group.trained], dy)
    torch.testing.assert_close(group.input_gradient(dy, d_small, SEED, dropout), dx)
    found = group.adapter_gradients(dy, x.detach(), small, d_small, SEED, dropout)
    assert distance(found, gradients) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_normalised_input_need_not_be_there(dropout):
    group = group_of((3, 0, 20))
    h, dy = torch.randn(TOKENS, INPUTS, dtype=torch.float64), torch.randn(TOKENS, sum(SIZES), dtype=torch.float64)
    rows, columns = torch.rand(TOKENS, dtype=torch.float64), torch.randn(INPUTS, dtype=torch.float64)
    x = h * rows[:, None] * columns
    small, d_small = group.small(x, SEED, dropout), group.d_small(dy)
    expected = group.adapter_gradients(dy, x, small, d_small, SEED, dropout)
    found = group.adapter_gradients(dy, h, small, d_small, SEED, dropout, row_scale=rows, column_scale=columns)
    assert distance(found, expected) < 1e-12


@pytest.mark.parametrize(("size", "gradient"), [(1e-3, 300), (1e4, 1e-3)])
def test_half_precision_neither_loses_nor_overflows_what_a_norm_scales(size, gradient):
    group = group_of((16, 16, 16), dtype=torch.float16)
    h, d_small = size * torch.randn(TOKENS, INPUTS), gradient * torch.randn(TOKENS, 48)
    rstd, h, d_small = h.square().mean(1).rsqrt(), h.half(), d_small.half()
    found = group.adapter_gradients(
        torch.zeros(TOKENS, sum(SIZES)).half(), h, d_small, d_small, SEED, 0.0, row_scale=rstd
    )
    expected = d_small.double().T @ (h.double() * rstd.double()[:, None])
    for member in range(3):
        assert distance([found[2 * member].double()], [expected[16 * member :][:16]]) < 2e-3


def test_a_norm_that_adds_one_is_as_exact_in_the_gradient_as_in_the_forward_pass():
    norm = Norm((torch.randn(INPUTS) * 0.3).bfloat16(), 1e-6, unit_offset=True)
    assert torch.equal(norm.scale, norm.weight.float() + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_adapters_only_the_frozen_products_are_left(kind):
    group = group_of((0, 0, 0), kind, torch.float32)
    x, dy = torch.randn(TOKENS, INPUTS), torch.randn(TOKENS, sum(SIZES))
    assert group.stack is None and group.trained == [] and group.rank == 0
    assert group.small(x, SEED, 0.1) is None and group.d_small(dy) is None
    assert group.adapter_gradients(dy, x, None, None, SEED, 0.1) == []
    assert torch.equal(group.base(x), group.weight.product(x))
    assert torch.equal(group.input_gradient(dy, None, SEED, 0.1), group.weight.input_gradient(dy))


def test_an_input_rounded_before_is_not_rounded_again():
    group = group_of((3, 0, 4), "fp8", torch.float32)
    assert isinstance(group.weight, Fp8Weight)
    x = torch.randn(TOKENS, INPUTS)
    assert torch.equal(group.base(x, rounded=quantize_rows(x)), group.base(x))
    dense = group_of((3, 0, 4), "dense", torch.float32)
    assert torch.equal(dense.base(x, rounded=quantize_rows(2 * x)), dense.base(x))


def test_refreshing_copies_every_adapter_scaled_and_leaves_padding_zero():
    groups = [group_of((3, 0, 20), dtype=torch.bfloat16), group_of((0, 0, 0)), group_of((16, 1, 2))]
    with torch.no_grad():
        for group in groups:
            for tensor in group.trained:
                tensor.normal_()
    refresh(groups)
    for group in groups:
        if group.stack is None:
            continue
        a, b = torch.zeros_like(group.stack.a), torch.zeros_like(group.stack.b)
        starts = (0, SIZES[0], SIZES[0] + SIZES[1])
        for member, adapter in enumerate(group.adapters):
            if adapter is not None:
                a[member * group.rank : member * group.rank + adapter.rank] = adapter.a.detach()
                b[starts[member] : starts[member] + SIZES[member], : adapter.rank] = adapter.b.detach() * adapter.scale
        assert torch.equal(group.stack.a, a) and torch.equal(group.stack.b, b)
        assert group.stack.a.dtype == group.dtype and not group.stack.a.requires_grad


def test_sums_over_tokens_are_wide():
    left, right = (torch.randn(*shape).bfloat16() for shape in ((4, 4096), (4096, 6)))
    product = wide_product(left, right)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, left.float() @ right.float(), rtol=1e-4, atol=1e-3)
    assert wide_product(left.double(), right.double()).dtype == torch.float64
