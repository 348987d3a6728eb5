"""Products by oneDNN in fp32, and in bf16 under fp32 activations."""

import pytest
import torch

from fintune.kernels.bf16_weight import bf16_weight
from fintune.kernels.cpu_product import cpu_product

SHAPES = [(1, 8, 3), (7, 33, 5), (130, 96, 64), (0, 8, 3)]


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_the_product_is_that_of_fp64(tokens, inputs, outputs):
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    with torch.no_grad():
        found = cpu_product(x, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)


def test_where_autograd_records_the_gradient_exists():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    cpu_product(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 8))


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_a_bf16_product_rounds_inputs_and_output_once(tokens, inputs, outputs):
    x, parts = torch.randn(tokens, inputs), [torch.randn(outputs, inputs), torch.randn(2, inputs)]
    parameters = [torch.nn.Parameter(part.bfloat16(), requires_grad=False) for part in parts]
    found = bf16_weight(parameters).product(x)
    exact = x.bfloat16().double() @ torch.cat(parts).bfloat16().double().T
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    # Half a step of bf16, and sums in fp32 where terms cancel.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)
    assert all(p.untyped_storage().data_ptr() == parameters[0].untyped_storage().data_ptr() for p in parameters)
