import pytest
import torch
from tests.kernels import triton_cases as cases

from fintune.kernels.fp8_weight import FP8, quantize_rows, quantize_rows_plain
from fintune.kernels.quantize import quantize_rows_fp8, transpose_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_within_half_a_step(dtype):
    x = torch.randn(9, 40, dtype=dtype)
    x[3] = 0
    rows = quantize_rows_fp8(x)
    assert rows.data.dtype == FP8 and rows.scale.shape == (9, 1)
    # Three bits after the leading one; below 2^-6 of 448 steps are even: 2^-9.
    error = (rows.dense(torch.float32) - x.float()).abs()
    assert bool((error <= torch.maximum(x.float().abs() * 2**-4, rows.scale * 2**-10) * 1.001).all())
    assert torch.equal(rows.data.float().abs().amax(1), torch.tensor([448.0] * 3 + [0.0] + [448.0] * 5))


def test_the_scale_of_columns_is_multiplied_in_first():
    x, scale = torch.randn(4, 16).bfloat16(), torch.rand(16)
    rows, expected = quantize_rows_fp8(x, column_scale=scale), quantize_rows_plain(x.float() * scale)
    assert torch.equal(rows.data.float(), expected.data.float()) and torch.equal(rows.scale, expected.scale)


@pytest.mark.parametrize("dtype", [torch.uint8, FP8])
@pytest.mark.parametrize("shape", [(8, 12), (3, 5), (0, 4)])
def test_the_transpose_of_bytes(dtype, shape):
    data = torch.randint(0, 100, shape, dtype=torch.uint8).view(dtype)
    out = torch.empty(shape[::-1], dtype=torch.uint8).view(dtype)
    assert transpose_bytes(data, out) is out
    assert torch.equal(out.view(torch.uint8), data.view(torch.uint8).T)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens, features", [(8192, 4096), (8192, 14336), (99, 28672), (1000, 576), (1, 16), (0, 576)])
def test_the_kernel_equals_its_twin(tokens, features, fp8_card):
    cases.check_quantize("cuda", torch.bfloat16, tokens, features)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_equal_their_twin(dtype, fp8_card):
    cases.check_quantize("cuda", dtype, 1000, 576, apart=16)


@pytest.mark.gpu
def test_the_weight_module_uses_the_kernel(fp8_card):
    matrix = torch.randn(100, 256, device="cuda").bfloat16()
    for x in (matrix, matrix.T):
        cases.assert_same_rows(quantize_rows(x), quantize_rows_plain(x))


@pytest.mark.gpu
@pytest.mark.parametrize("rows, columns", [(14336, 4096), (1024, 4096), (576, 1536), (132, 20), (3, 8)])
def test_the_transposing_kernel_equals_its_twin(rows, columns):
    cases.check_transpose("cuda", rows, columns)
