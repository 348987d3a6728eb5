"""The sum at the end of an output projection; ``interpreted_kernels`` runs its kernel in Triton's interpreter."""

import pytest
import torch
from tests.kernels import triton_cases as cases

from fintune.kernels.add_output import add_output


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_everything_is_added_and_rounded_once(dtype, rank, with_residual):
    torch.manual_seed(0)
    y, residual = (torch.randn(7, 24).to(dtype) for _ in range(2))
    small, b = torch.randn(7, rank).to(dtype), torch.randn(24, rank).to(dtype)
    exact = y.double() + (residual.double() if with_residual else 0) + small.double() @ b.double().T
    given = y.clone()
    found = add_output(given, residual if with_residual else None, *((small, b) if rank else ()))
    assert found is given
    step = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=step, atol=4 * step if dtype != torch.bfloat16 else 1e-5)


def test_the_residual_stays_as_it_is():
    y, residual = torch.randn(5, 8), torch.randn(5, 8)
    before = residual.clone()
    add_output(y, residual, torch.randn(5, 16), torch.randn(8, 16))
    assert torch.equal(residual, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "features"), [(1000, 4096), (129, 576), (0, 64), (1, 200)])
@pytest.mark.parametrize("rank", [0, 16, 64])
def test_the_kernel_equals_its_twin(dtype, tokens, features, rank):
    torch.manual_seed(0)
    cases.check_add_output(torch.device("cuda"), dtype, tokens, features, rank=rank, apart=8)
