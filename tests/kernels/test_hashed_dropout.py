import pytest
import torch
from tests.kernels import triton_cases as cases

from fintune.kernels import hashed_dropout
from fintune.kernels.hashed_dropout import add_dropped_, as_seed, drop, fold_seed, keep_mask, layer_seeds
from fintune.schema.errors import InternalError

CPU = torch.device("cpu")
SIZE = 1024


def mask(seed, dropout=0.3, size=SIZE):
    return keep_mask(torch.arange(size, dtype=torch.int32), size, as_seed(seed, CPU), dropout)


def z_score(product, deviation):
    """How many standard errors the mean of independent zero-mean products is from zero."""
    return abs(float(product.sum() / (deviation * product.numel() ** 0.5)))


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_the_keep_rate_is_right_overall_and_in_every_row_and_column(dropout):
    kept = mask(1, dropout).float()
    deviation = (dropout * (1 - dropout)) ** 0.5
    assert z_score(kept - (1 - dropout), deviation) < 4
    for dim in (0, 1):
        rates = (kept.mean(dim) - (1 - dropout)) / (deviation / SIZE**0.5)
        assert float(rates.abs().max()) < 5.5
        assert 0.85 < float(rates.std()) < 1.15


def test_neighbours_in_a_mask_are_independent():
    centred, variance = mask(2).float() - 0.7, 0.21
    for step in (1, 2, 64, 512):
        pairs = [
            (centred[step:], centred[:-step]),
            (centred[:, step:], centred[:, :-step]),
            (centred[step:, step:], centred[:-step, :-step]),
        ]
        assert all(z_score(left * right, variance) < 4.5 for left, right in pairs)
        # Keys of rows and columns are combined by xor, under which the corners of a rectangle cancel before mixing.
        corners = centred[step:, step:] * centred[:-step, step:] * centred[step:, :-step] * centred[:-step, :-step]
        assert z_score(corners, variance**2) < 4.5


def test_masks_of_other_seeds_layers_steps_and_of_the_transpose_are_independent():
    base = as_seed(3, CPU)
    seeds = [4, -3, 3 + (1 << 32), 3 ^ (1 << 31), int(fold_seed(base, 0)), *layer_seeds(base, 4).tolist()]
    first = mask(3).float() - 0.7
    others = [mask(seed).float() - 0.7 for seed in seeds] + [first.T.triu(1)]
    assert all(z_score(first * other, 0.21) < 4.5 for other in others)


def test_seeds_of_layers_and_of_steps_never_meet():
    seeds = torch.cat([layer_seeds(fold_seed(as_seed(17, CPU), step), 80) for step in range(200)])
    assert len(seeds.unique()) == len(seeds)


def test_the_mask_is_the_same_for_the_same_seed_and_pinned():
    assert torch.equal(mask(5), mask(5))
    pinned = keep_mask(torch.arange(2, dtype=torch.int32), 16, as_seed(5, CPU), 0.5).int()
    assert ["".join(map(str, row)) for row in pinned.tolist()] == ["0100111100100011", "1001001000111001"]


def test_chunks_do_not_show(monkeypatch):
    x = torch.randn(37, 24)
    whole = drop(x, as_seed(1, CPU), 0.4)
    monkeypatch.setattr(hashed_dropout, "CHUNK_ELEMENTS", 100)
    assert torch.equal(drop(x, as_seed(1, CPU), 0.4), whole)
    kept = whole != 0
    torch.testing.assert_close(whole[kept], x[kept] / 0.6)


def test_no_dropout_is_the_tensor_itself_and_a_certain_one_is_refused():
    x = torch.randn(3, 4)
    assert drop(x, as_seed(1, CPU), 0.0) is x
    assert drop(torch.empty(0, 4), as_seed(1, CPU), 0.5).shape == (0, 4)
    with pytest.raises(InternalError, match="below 1"):
        drop(x, as_seed(1, CPU), 1.0)


def test_adding_is_dropping_and_adding():
    x, target = torch.randn(6, 40), torch.randn(6, 40)
    seed = as_seed(2, CPU)
    expected = target + drop(x, seed, 0.4)
    assert add_dropped_(target, x, seed, 0.4) is target
    assert torch.equal(target, expected)
    torch.testing.assert_close(add_dropped_(target, x, seed, 0.0), expected + x)
    with pytest.raises(InternalError, match="below 1"):
        add_dropped_(target, x, seed, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, features", [(8192, 4096), (1000, 14336), (65, 520), (0, 4096)])
def test_the_kernel_equals_its_twin(tokens, features):
    cases.check_dropout("cuda", torch.bfloat16, tokens, features)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_equal_their_twin(dtype):
    cases.check_dropout("cuda", dtype, 1000, 576, apart=8)
