import pytest
import torch
from tests.kernels import triton_cases as cases

from fintune.kernels.unpack_nf4 import unpack_nf4
from fintune.models.quiet import import_bitsandbytes


def packed_weight(outputs, inputs, nested, device="cpu"):
    """The arguments of ``unpack_nf4`` for a random weight, and what bitsandbytes unpacks it to."""
    import_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    matrix = torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device)
    packed, state = quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=nested)
    scales = (state.absmax, None, None, None)
    if nested:
        scales = (state.absmax, state.state2.code, state.state2.absmax, state.offset)
    return (packed, *scales, 64, state.state2.blocksize if nested else 0), dequantize_4bit(packed, state)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("outputs, inputs", [(64, 128), (3, 50), (300, 256)])
def test_it_equals_bitsandbytes_to_the_bit(outputs, inputs, nested):
    arguments, expected = packed_weight(outputs, inputs, nested)
    out = torch.zeros(outputs, inputs, dtype=torch.bfloat16)
    assert unpack_nf4(*arguments, out) is out
    assert torch.equal(out, expected)


def test_rows_may_lie_apart():
    arguments, expected = packed_weight(24, 64, True)
    buffer = torch.full((24, 80), 7.0, dtype=torch.bfloat16)
    unpack_nf4(*arguments, buffer[:, :64])
    assert torch.equal(buffer[:, :64], expected) and bool((buffer[:, 64:] == 7).all())


@pytest.mark.gpu
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("outputs, inputs", [(14336, 4096), (1024, 4096), (576, 1536), (300, 72), (3, 50)])
def test_the_kernel_equals_its_twin(outputs, inputs, nested):
    cases.check_unpack_nf4("cuda", torch.bfloat16, outputs, inputs, nested)
    cases.check_unpack_nf4("cuda", torch.bfloat16, outputs, inputs, nested, apart=64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_equal_their_twin(dtype):
    cases.check_unpack_nf4("cuda", dtype, 576, 1536, True)


@pytest.mark.gpu
@pytest.mark.parametrize("nested", [False, True])
def test_the_kernel_equals_bitsandbytes(nested):
    arguments, expected = packed_weight(1024, 4096, nested, "cuda")
    out = torch.zeros(1024, 4096, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(unpack_nf4(*arguments, out), expected)
