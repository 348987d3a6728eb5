from contextlib import nullcontext
from types import SimpleNamespace

import bitsandbytes.functional
import pytest
import torch
from tests.kernels.frozen_cases import KINDS, packed, random_weight

from fintune.kernels import frozen_weight as frozen_weights
from fintune.kernels.fp8_weight import LARGEST, fp8_weight, quantize_rows, stack_fp8
from fintune.kernels.frozen_weight import (
    DenseWeight,
    Nf4Weight,
    PackedMatrix,
    SmallProduct,
    frozen_weight,
    release_buffers,
    shared_buffer,
    unpack_ahead,
    unpacked_together,
)
from fintune.schema.errors import ModelError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_products_are_those_of_the_dense_weight(kind, dtype, tokens):
    torch.manual_seed(tokens)
    weight = random_weight(kind, 48, 64, dtype)
    assert weight.shape == (48, 64)
    x, dy = torch.randn(tokens, 64, dtype=dtype), torch.randn(tokens, 48, dtype=dtype)
    dense = weight.dense(torch.float32)
    forward, backward = x.float() @ dense.T, dy.float() @ dense
    # Rounding to fp8 leaves three bits of mantissa, in both factors.
    tolerance = 0.08 if kind.startswith("fp8") else 1e-5 if dtype == torch.float32 else 1e-2
    y, dx = weight.product(x), weight.input_gradient(dy)
    assert (y.dtype, dx.dtype, y.shape, dx.shape) == (dtype, dtype, forward.shape, backward.shape)
    assert float((y - forward).norm()) <= tolerance * float(forward.norm())
    assert float((dx - backward).norm()) <= tolerance * float(backward.norm())


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_unpacks_as_bitsandbytes_does(double_quant, dtype):
    matrix = torch.randn(96, 320).to(dtype)
    parameter = packed(matrix, double_quant)
    weight = frozen_weight([parameter])
    assert isinstance(weight, Nf4Weight)
    assert weight.parts[0].packed.data_ptr() == parameter.data_ptr()
    expected = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    assert torch.equal(weight.dense(dtype), expected)


def test_a_dense_weight_is_not_copied():
    parameter = torch.nn.Parameter(torch.randn(4, 8))
    weight = frozen_weight([parameter])
    assert isinstance(weight, DenseWeight)
    assert weight.dense(torch.float32).data_ptr() == parameter.data_ptr()
    assert not weight.data.requires_grad


def test_weights_without_a_fast_path_are_refused():
    with pytest.raises(ModelError, match="int8"):
        frozen_weight([torch.zeros(4, 4, dtype=torch.int8)])
    unpacked = bitsandbytes.nn.Params4bit(torch.randn(8, 8), requires_grad=False)
    with pytest.raises(ModelError, match="not been packed"):
        frozen_weight([unpacked])


def test_stored_bytes():
    matrix = torch.randn(256, 512)
    count = matrix.numel()
    assert frozen_weight([matrix.bfloat16()]).stored_bytes == 2 * count
    assert fp8_weight(matrix).stored_bytes == count + 4 * 256
    both = fp8_weight(matrix)
    both.hold_ready(torch.bfloat16)
    assert both.stored_bytes == 2 * count + 4 * 256
    # Half a byte a weight, a byte for every 64 of them, and the table and few scales of the scales.
    assert frozen_weight([packed(matrix)]).stored_bytes == count // 2 + count // 64 + 4 * (256 + count // 64 // 256 + 1)
    assert frozen_weight([packed(matrix, False)]).stored_bytes == count // 2 + 4 * count // 64


def test_fp8_rows_reach_the_largest_number_and_zeros_stay():
    matrix = torch.randn(5, 16) * torch.tensor([1e-6, 1.0, 1e6, 0.0, 3.0])[:, None]
    rows = quantize_rows(matrix)
    assert rows.data.float().abs().amax(1).tolist() == [LARGEST, LARGEST, LARGEST, 0.0, LARGEST]
    assert torch.all((rows.dense(torch.float32) - matrix).abs() <= matrix.abs() / 16 + rows.scale * 2**-9)
    assert quantize_rows(matrix, "tensor").scale.unique().numel() == 1
    assert quantize_rows(matrix.T).data.is_contiguous()


@pytest.mark.parametrize("kind", ["dense", "nf4", "fp8"])
def test_weights_on_top_of_each_other_multiply_as_each_alone(kind):
    torch.manual_seed(0)
    matrices = [torch.randn(rows, 64) / 8 for rows in (48, 16, 32)]
    x, dy = torch.randn(9, 64), torch.randn(9, 96)
    if kind == "fp8":
        alone = [fp8_weight(matrix) for matrix in matrices]
        whole = stack_fp8(alone)
    else:
        parameters = [packed(m) if kind == "nf4" else torch.nn.Parameter(m, requires_grad=False) for m in matrices]
        alone = [frozen_weight([parameter]) for parameter in parameters]
        whole = frozen_weight(parameters)
    assert whole.shape == (96, 64)
    torch.testing.assert_close(whole.product(x), torch.cat([weight.product(x) for weight in alone], 1))
    parts = zip(alone, dy.split([48, 16, 32], 1), strict=True)
    expected = sum(weight.input_gradient(part) for weight, part in parts)
    # In fp8 a row of the whole gradient is rounded by one scale, its parts by one each.
    tolerance = 0.05 if kind == "fp8" else 1e-5
    assert float((whole.input_gradient(dy) - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("kind", ["dense", "nf4", "fp8"])
def test_a_small_product_is_added_to_the_input_gradient(kind):
    torch.manual_seed(0)
    matrix = torch.randn(96, 64) / 8
    weight = fp8_weight(matrix) if kind == "fp8" else frozen_weight([packed(matrix) if kind == "nf4" else matrix])
    dy, small = torch.randn(9, 96), SmallProduct(torch.randn(9, 16), torch.randn(16, 64))
    expected = weight.input_gradient(dy) + small.left @ small.right
    torch.testing.assert_close(weight.input_gradient(dy, small), expected, rtol=1e-5, atol=1e-5)


def test_dense_weights_are_joined_in_place_and_only_once():
    parameters = [torch.nn.Parameter(torch.randn(rows, 8), requires_grad=False) for rows in (4, 2, 6)]
    before = [parameter.detach().clone() for parameter in parameters]
    whole = frozen_weight(parameters).data
    assert torch.equal(whole, torch.cat(before))
    assert all(torch.equal(parameter, held) for parameter, held in zip(parameters, before, strict=True))
    assert {parameter.untyped_storage().data_ptr() for parameter in parameters} == {whole.data_ptr()}
    assert frozen_weight(parameters).data.data_ptr() == whole.data_ptr()


def test_the_kept_transpose_gives_the_same_gradient_to_the_bit():
    torch.manual_seed(0)
    weight, dy = fp8_weight(torch.randn(96, 64)), torch.randn(33, 96)
    exact = dy @ weight.dense(torch.float32)
    ours = weight.input_gradient(dy)
    weight.hold_ready(torch.float32)
    assert torch.equal(ours, weight.input_gradient(dy))
    assert float(torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)) > 0.998


@pytest.mark.parametrize(("capability", "shape", "message"), [((8, 0), (32, 32), "8.9"), ((9, 0), (32, 24), "of 16")])
def test_fp8_is_refused_where_the_card_or_the_shape_does_not_fit(monkeypatch, capability, shape, message):
    class OnCard:
        device = torch.device("cuda")

    OnCard.shape = shape
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    with pytest.raises(ModelError, match=message):
        fp8_weight(OnCard())


def test_the_shared_buffer_is_reused_and_can_be_written_after_inference_mode():
    release_buffers()
    device = torch.device("cpu")
    with torch.inference_mode():
        first = shared_buffer((4, 8), torch.float32, device)
    second = shared_buffer((2, 8), torch.float32, device)
    assert second.data_ptr() == first.data_ptr()
    second.fill_(1.0)
    assert shared_buffer((8, 8), torch.float32, device).data_ptr() != 0
    assert shared_buffer((2, 2), torch.bfloat16, device).dtype == torch.bfloat16
    release_buffers()


def test_an_error_while_weights_are_unpacked_together_leaves_none_in_the_shared_buffer(monkeypatch):
    first, second = (frozen_weight([packed(torch.randn(8, 64), True)]) for _ in range(2))
    expected, unpack = first.dense(torch.float32), PackedMatrix.unpack

    def fails(self, out):
        if self is second.parts[0]:
            raise KeyboardInterrupt
        unpack(self, out)

    with monkeypatch.context() as patch:
        patch.setattr(PackedMatrix, "unpack", fails)
        with pytest.raises(KeyboardInterrupt), unpacked_together(torch.float32, first, second):
            pass
    assert first.ready is None and second.ready is None
    second.dense(torch.float32)
    assert torch.equal(first.dense(torch.float32), expected)


def test_an_error_while_weights_are_unpacked_ahead_is_not_taken_for_their_presence(monkeypatch):
    """As on a CUDA device, with streams that do nothing."""
    stream = SimpleNamespace(cuda_stream=1, wait_stream=lambda other: None, wait_event=print, record_event=lambda: None)
    monkeypatch.setattr(frozen_weights, "_can_be_unpacked_beside", lambda part: True)
    monkeypatch.setattr(frozen_weights, "_side_stream", lambda key: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda own: nullcontext())
    layers = [[frozen_weight([packed(torch.randn(8, 64), True)]) for _ in range(2)] for _ in range(2)]
    expected, unpack, runs = layers[0][0].dense(torch.float32), PackedMatrix.unpack, []
    release_buffers()

    def fails_at_the_last(self, out):
        runs.append(self)
        if self is layers[1][1].parts[0]:
            raise torch.OutOfMemoryError
        unpack(self, out)

    monkeypatch.setattr(PackedMatrix, "unpack", fails_at_the_last)
    for _ in range(2):
        with unpacked_together(torch.float32, *layers[0]):
            assert torch.equal(layers[0][0].ready, expected)
    assert len(runs) == 2  # the second time they were still there
    with pytest.raises(torch.OutOfMemoryError):
        unpack_ahead(torch.float32, *layers[1])
    with unpacked_together(torch.float32, *layers[0]):
        assert torch.equal(layers[0][0].ready, expected)
    release_buffers()


def test_weights_that_are_ready_in_another_type_are_unpacked_together_too_and_stay_ready():
    first, second = (frozen_weight([packed(torch.randn(8, 64), True)]) for _ in range(2))
    expected = [weight.dense(torch.float32) for weight in (first, second)]
    second.hold_ready(torch.bfloat16)
    held = second.ready
    with unpacked_together(torch.float32, first, second):
        x = torch.eye(64)
        assert torch.equal(second.product(x), expected[1].T) and torch.equal(first.product(x), expected[0].T)
    assert first.ready is None and second.ready is held
