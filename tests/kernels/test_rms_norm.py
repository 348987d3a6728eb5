import pytest
import torch
from tests.kernels import triton_cases as cases
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fintune.kernels.fp8_weight import quantize_rows
from fintune.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_quantized


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


@pytest.mark.parametrize("unit_offset", [False, True])
def test_the_gradient_is_that_of_autograd(unit_offset):
    h, weight, dy, residual = random(7, 12).requires_grad_(), random(12), random(7, 12), random(7, 12)
    y = torch.nn.functional.rms_norm(h, (12,), weight + unit_offset, 1e-3)
    (dh,) = torch.autograd.grad(y, h, dy)
    ours, rstd = rms_norm(h.detach(), weight, 1e-3, unit_offset=unit_offset)
    torch.testing.assert_close(ours, y.detach())
    arguments = (dy, h.detach(), rstd, weight)
    torch.testing.assert_close(rms_norm_backward(*arguments, unit_offset=unit_offset), dh)
    added = rms_norm_backward(*arguments, unit_offset=unit_offset, residual=residual)
    torch.testing.assert_close(added, dh + residual)


@pytest.mark.parametrize("module, unit_offset", [(LlamaRMSNorm, False), (GemmaRMSNorm, True)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_the_norm_of_transformers(module, unit_offset, dtype, tolerance):
    norm = module(48, eps=1e-5).to(dtype)
    norm.weight.data.normal_()
    h, dy = random(9, 48, dtype=dtype).requires_grad_(), random(9, 48, dtype=dtype)
    y = norm(h)
    (dh,) = torch.autograd.grad(y, h, dy)
    ours, rstd = rms_norm(h.detach(), norm.weight.detach(), 1e-5, unit_offset=unit_offset)
    assert ours.dtype == dtype and rstd.dtype == torch.float32
    torch.testing.assert_close(ours, y.detach(), rtol=tolerance, atol=tolerance)
    gradient = rms_norm_backward(dy, h.detach(), rstd, norm.weight.detach(), unit_offset=unit_offset)
    # Transformers rounds the normalised value to bf16 on its way.
    torch.testing.assert_close(gradient, dh, rtol=tolerance, atol=2 * tolerance)


def test_the_gradient_may_overwrite_its_inputs():
    h, dy, residual = random(5, 8), random(5, 8), random(5, 8)
    _, rstd = rms_norm(h, torch.ones(8), 1e-6)
    expected = rms_norm_backward(dy, h, rstd, torch.ones(8), residual=residual)
    for position in range(2):
        own = dy.clone(), residual.clone()
        result = rms_norm_backward(own[0], h, rstd, torch.ones(8), residual=own[1], out=own[position])
        assert result is own[position]
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_the_quantised_norm_is_the_norm_quantised(tokens):
    h, weight = random(tokens, 32, dtype=torch.bfloat16), random(32, dtype=torch.bfloat16)
    y, rstd, rows = rms_norm_quantized(h, weight, 1e-5)
    assert torch.equal(y, rms_norm(h, weight, 1e-5)[0]) and rstd.shape == (tokens,)
    expected = quantize_rows(y)
    assert torch.equal(rows.data.float(), expected.data.float()) and torch.equal(rows.scale, expected.scale)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, features", [(8192, 4096), (1000, 4096), (1000, 576), (1, 16384), (0, 4096)])
def test_the_kernels_equal_their_twins(tokens, features):
    cases.check_rms_norm("cuda", torch.bfloat16, tokens, features, apart=64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_and_gemma_equal_their_twins(dtype):
    cases.check_rms_norm("cuda", dtype, 1000, 576, unit_offset=True)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, features", [(8192, 4096), (1000, 576), (100, 28672), (0, 4096)])
def test_the_quantising_kernel_equals_its_twin(tokens, features, fp8_card):
    cases.check_rms_norm_quantized("cuda", torch.bfloat16, tokens, features)
