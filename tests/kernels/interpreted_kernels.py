"""The Triton kernels in Triton's interpreter, at small sizes; run by ``test_interpreted`` in a process of its own."""

import pytest
import torch
from tests.kernels import triton_cases as cases

from fintune.kernels.rope import HeadLayout
from fintune.kernels.triton_use import uses_triton

# The interpreter cuts fp32 off to bf16 instead of rounding, so the short type is fp16 here.
DTYPES = [torch.float32, torch.float16]
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.parametrize("dtype", DTYPES, ids=str),
    # NumPy's, about uint32 numbers that wrap around, which is what a hash wants.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def test_kernels_are_what_runs(dtype):
    assert uses_triton(torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("tokens, features, apart", [(5, 24, 0), (3, 300, 4), (1, 2048, 0), (0, 24, 0)])
@pytest.mark.parametrize("unit_offset", [False, True])
def test_rms_norm(dtype, tokens, features, apart, unit_offset):
    cases.check_rms_norm(CPU, dtype, tokens, features, apart=apart, unit_offset=unit_offset)


def test_rms_norm_quantized(dtype):
    cases.check_rms_norm_quantized(CPU, dtype, 7, 200)


@pytest.mark.parametrize("layout", [HeadLayout(3, 1, 24), HeadLayout(4, 2, 64)])
@pytest.mark.parametrize("rank", [0, 16, 48])
@pytest.mark.parametrize("norms", [False, True])
def test_rotation(dtype, layout, rank, norms):
    cases.check_rotation(CPU, dtype, 21, layout, rank=rank, norms=norms, apart=rank, unit_offset=rank == 16)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rank, down_rank", [(0, 0), (16, 0), (0, 32), (48, 16), (16, 16), (32, 16)])
def test_gated(dtype, activation, rank, down_rank):
    cases.check_gated(CPU, dtype, 67, 72, activation, rank=rank, down_rank=down_rank, apart=rank)


@pytest.mark.parametrize("tokens, features, apart", [(5, 24, 0), (70, 300, 4), (0, 24, 0)])
@pytest.mark.parametrize("rank", [0, 16, 48])
def test_add_output(dtype, tokens, features, apart, rank):
    cases.check_add_output(CPU, dtype, tokens, features, rank=rank, apart=apart)


@pytest.mark.parametrize("tokens, features, apart", [(5, 24, 0), (3, 300, 4), (0, 24, 0), (2, 0, 0)])
def test_quantize(dtype, tokens, features, apart):
    cases.check_quantize(CPU, dtype, tokens, features, apart=apart)


@pytest.mark.parametrize("rows, columns", [(4, 4), (132, 20), (256, 128), (3, 8)])
def test_transpose(dtype, rows, columns):
    cases.check_transpose(CPU, rows, columns)


@pytest.mark.parametrize("tokens, features, apart", [(70, 24, 0), (3, 512, 4), (0, 24, 0)])
def test_dropout(dtype, tokens, features, apart):
    cases.check_dropout(CPU, dtype, tokens, features, apart=apart)


@pytest.mark.parametrize("outputs, inputs, apart", [(16, 64, 0), (3, 40, 0), (34, 96, 32), (3, 6, 0)])
@pytest.mark.parametrize("nested", [False, True])
def test_unpack_nf4(dtype, outputs, inputs, apart, nested):
    cases.check_unpack_nf4(CPU, dtype, outputs, inputs, nested, apart=apart)
