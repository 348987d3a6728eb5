"""The Triton kernels beside their twins: run on a GPU at real sizes, and interpreted on the CPU at small ones.

Both sides calculate in fp32 and round once, so results may differ by one step of their type, and only here and there.
"""

import torch

from fintune.kernels.add_output import add_output, add_output_plain
from fintune.kernels.gated import (
    gated,
    gated_backward,
    gated_backward_plain,
    gated_backward_sums,
    gated_backward_sums_plain,
    gated_plain,
)
from fintune.kernels.hashed_dropout import add_dropped_, add_dropped_plain_, as_seed, drop, drop_plain
from fintune.kernels.quantize import (
    quantize_rows_fp8,
    quantize_rows_fp8_plain,
    transpose_bytes,
    transpose_bytes_plain,
)
from fintune.kernels.rms_norm import (
    rms_norm,
    rms_norm_backward,
    rms_norm_backward_plain,
    rms_norm_plain,
    rms_norm_quantized,
)
from fintune.kernels.rope import (
    HeadLayout,
    rotate_heads,
    rotate_heads_backward,
    rotate_heads_backward_plain,
    rotate_heads_plain,
)
from fintune.kernels.triton_use import interpreted
from fintune.kernels.unpack_nf4 import unpack_nf4, unpack_nf4_plain

STEP = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def random(device, dtype, *shape, scale=1.0, apart=0):
    """A random matrix; with ``apart``, rows that do not follow one another."""
    wide = torch.randn(*shape[:-1], shape[-1] + apart, device=device) * scale
    return wide.to(dtype)[..., : shape[-1]]


# How many elements errors of fp32 may push over to the next number: there are eight times as many in fp16.
OFTEN = {torch.float16: 0.08, torch.bfloat16: 0.01}


def assert_one_step(actual, expected, *, absolute=2e-6):
    """Equal but for one rounding step, and that in few elements; small differences of large numbers may differ more."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    relative = max(STEP[actual.dtype], 1e-5)
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute * max(1.0, size))
    if actual.dtype != torch.float32 and actual.numel():
        differing = int((actual != expected).sum())
        assert differing <= max(4, OFTEN[actual.dtype] * actual.numel()), f"{differing} of {actual.numel()} differ"


def check_rms_norm(device, dtype, tokens, features, *, apart=0, unit_offset=False):
    h, dy = (random(device, dtype, tokens, features, apart=apart) for _ in range(2))
    weight = random(device, dtype, features)
    y, rstd = rms_norm(h, weight, 1e-5, unit_offset=unit_offset)
    plain_y, plain_rstd = rms_norm_plain(h, weight, 1e-5, unit_offset=unit_offset)
    assert_one_step(y, plain_y)
    assert_one_step(rstd, plain_rstd)
    for residual in (None, random(device, dtype, tokens, features)):
        options = {"unit_offset": unit_offset, "residual": residual}
        expected = rms_norm_backward_plain(dy, h, rstd, weight, **options)
        assert_one_step(rms_norm_backward(dy, h, rstd, weight, **options), expected)
        own = dy.clone()
        assert rms_norm_backward(own, h, rstd, weight, **options, out=own) is own
        assert_one_step(own, expected)
        if residual is not None:
            rms_norm_backward(dy, h, rstd, weight, **options, out=residual)
            assert_one_step(residual, expected)


def assert_same_rows(rows, expected):
    """Rounded to the same fp8 numbers, but for one in ten thousand by one step."""
    assert rows.data.dtype == expected.data.dtype and rows.data.is_contiguous()
    torch.testing.assert_close(rows.scale, expected.scale, rtol=1e-6, atol=0)
    # As integers, numbers of one sign are in order. The sign of a zero does not count: the kernel's is always plus, and
    # random numbers on a GPU are -0.0 once in a hundred million.
    codes = [one.data.view(torch.uint8).int() for one in (rows, expected)]
    difference = (codes[0].where(codes[0] != 0x80, 0) - codes[1].where(codes[1] != 0x80, 0)).abs()
    if interpreted():  # the interpreter's own rounding to fp8 loses the carry from mantissa to exponent
        assert difference.numel() == 0 or float((difference <= 1).float().mean()) > 0.85
        return
    assert difference.numel() == 0 or int(difference.max()) <= 1
    assert int((difference > 0).sum()) <= 1e-4 * difference.numel()


def check_rms_norm_quantized(device, dtype, tokens, features):
    h, weight = random(device, dtype, tokens, features), random(device, dtype, features)
    y, rstd, rows = rms_norm_quantized(h, weight, 1e-5)
    plain_y, plain_rstd = rms_norm(h, weight, 1e-5)
    torch.testing.assert_close(y, plain_y, rtol=2**-7, atol=0)  # compiled apart, so the last bit may differ
    torch.testing.assert_close(rstd, plain_rstd, rtol=1e-6, atol=0)
    assert_same_rows(rows, quantize_rows_fp8_plain(y))


def angles(device, dtype, tokens, size):
    turns = torch.rand(tokens, size // 2, device=device) * 6.3
    return torch.cat([turns.cos()] * 2, 1).to(dtype), torch.cat([turns.sin()] * 2, 1).to(dtype)


def transposed(heads):
    """As attention gives gradients: the heads first in memory."""
    return heads.transpose(0, 1).contiguous().transpose(0, 1)


def check_rotation(device, dtype, tokens, layout, *, rank=0, norms=False, apart=0, unit_offset=False):
    qkv = random(device, dtype, tokens, layout.width, apart=apart)
    cos, sin = angles(device, torch.float32, tokens, layout.size)
    options = {}
    if rank:
        options["small"] = random(device, dtype, tokens, 3 * rank, apart=apart)
        options["b"] = random(device, dtype, layout.width, rank, scale=0.3)
    gains = {}
    if norms:
        gains = {name: random(device, dtype, layout.size) for name in ("query_norm", "key_norm")}
        gains["unit_offset"] = unit_offset
    ours, plain = qkv.clone(), qkv.clone()
    *heads, rstd = rotate_heads(ours, cos, sin, layout, **options, **gains, eps=1e-6)
    *plain_heads, plain_rstd = rotate_heads_plain(plain, cos, sin, layout, **options, **gains, eps=1e-6)
    # A sum that is rounded the other way moves the whole head by its norm, and its partner by the rotation.
    absolute = 4 * STEP[dtype] if norms and rank else 2e-6
    for actual, expected in zip(heads, plain_heads, strict=True):
        assert_one_step(actual, expected, absolute=absolute)
    assert_one_step(ours, plain)
    gradients = [transposed(random(device, dtype, *part.shape)) for part in heads]
    known = {}
    if norms:
        assert_one_step(rstd, plain_rstd, absolute=absolute)
        known = {"qkv": plain, "rstd": plain_rstd, **gains}
    else:
        assert rstd is None and heads[0].data_ptr() == ours.data_ptr()
    dqkv = rotate_heads_backward(*gradients, cos, sin, layout, **known)
    assert_one_step(dqkv, rotate_heads_backward_plain(*gradients, cos, sin, layout, **known))
    assert dqkv.is_contiguous() and dqkv.shape == qkv.shape
    if norms:
        rotate_heads_backward(*gradients, cos, sin, layout, **known, out=plain)
        assert torch.equal(plain, dqkv)


def check_gated(device, dtype, tokens, features, activation, *, rank=0, down_rank=0, apart=0):
    # Gates mostly above -4, below which the twin's 1 + tanh has few digits left, but some as far out as they come.
    gate_up = random(device, dtype, tokens, 2 * features, apart=apart)
    gate_up[:, ::500] *= 30
    dp = random(device, dtype, tokens, features)
    adapters, down = {}, {}
    if rank:
        adapters["small"] = random(device, dtype, tokens, 2 * rank, apart=apart)
        adapters["b"] = random(device, dtype, 2 * features, rank, scale=0.1)
    if down_rank:
        down["down_small"] = random(device, dtype, tokens, down_rank)
        down["down_a"] = random(device, dtype, down_rank, features, scale=0.3)
    before = gate_up.clone()
    assert_one_step(gated(gate_up, activation, **adapters), gated_plain(gate_up, activation, **adapters), absolute=1e-5)
    assert torch.equal(gate_up, before)
    if rank and down_rank:
        check_gated_sums(dp, gate_up, activation, **adapters, **down)
    expected = gated_backward_plain(dp.clone(), gate_up, activation, **adapters, **down)
    own = dp.clone()
    result, hidden = gated_backward(own, gate_up, activation, **adapters, **down, want_hidden=False)
    assert hidden is None and torch.equal(own, dp)
    assert_one_step(result, expected[0], absolute=1e-5)
    result, hidden = gated_backward(own, gate_up, activation, **adapters, **down, out=gate_up)
    assert result is gate_up and hidden is own
    assert_one_step(result, expected[0], absolute=1e-5)
    assert_one_step(hidden, expected[1], absolute=1e-5)


def check_gated_sums(dp, gate_up, activation, **adapters):
    d_gate_up, *sums = gated_backward_sums(dp.clone(), gate_up, activation, **adapters)
    expected, *expected_sums = gated_backward_sums_plain(dp.clone(), gate_up, activation, **adapters)
    assert_one_step(d_gate_up, expected, absolute=1e-5)
    again = gated_backward_sums(dp.clone(), gate_up, activation, **adapters)
    for actual, repeated, exact in zip(sums, again[1:], expected_sums, strict=True):
        assert torch.equal(actual, repeated)
        assert actual.dtype == exact.dtype == torch.float32 and actual.shape == exact.shape
        # What is summed was rounded, here and there the other way; large outliers have large steps.
        allowed = max(1e-5, STEP[dp.dtype] / 8) * float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(actual, exact, rtol=0, atol=allowed)


def check_add_output(device, dtype, tokens, features, *, rank=0, apart=0):
    y = random(device, dtype, tokens, features, apart=apart)
    adapter = ()
    if rank:
        adapter = random(device, dtype, tokens, rank, apart=apart), random(device, dtype, features, rank, scale=0.3)
    for residual in (None, random(device, dtype, tokens, features, apart=apart)):
        own, expected = y.clone(), add_output_plain(y.clone(), residual, *adapter)
        assert add_output(own, residual, *adapter) is own
        assert_one_step(own, expected)


def check_quantize(device, dtype, tokens, features, *, apart=0):
    x = random(device, dtype, tokens, features, apart=apart)
    if tokens > 2:
        x[1] = 0
        x[2] *= 1e-3
    assert_same_rows(quantize_rows_fp8(x), quantize_rows_fp8_plain(x))
    scale = torch.rand(features, device=device) + 0.1
    rows = quantize_rows_fp8(x, column_scale=scale)
    assert_same_rows(rows, quantize_rows_fp8_plain(x, column_scale=scale))


def check_transpose(device, rows, columns):
    data = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device=device)
    out, plain = (torch.zeros(columns, rows, dtype=torch.uint8, device=device) for _ in range(2))
    assert torch.equal(transpose_bytes(data, out), transpose_bytes_plain(data, plain))


def check_dropout(device, dtype, tokens, features, *, apart=0):
    x = random(device, dtype, tokens, features, apart=apart)
    for number, dropout in ((-9, 0.3), (1 << 40, 0.05)):
        seed = as_seed(number, x.device)
        dropped = drop(x, seed, dropout)
        assert torch.equal(dropped, drop_plain(x, seed, dropout))
        target = random(device, torch.float32 if dropout < 0.1 else dtype, tokens, features)
        expected = add_dropped_plain_(target.clone(), x, seed, dropout)
        assert add_dropped_(target, x, seed, dropout) is target
        assert_one_step(target, expected)


def check_unpack_nf4(device, dtype, outputs, inputs, nested, *, apart=0):
    packed = torch.randint(0, 256, (outputs * inputs // 2, 1), dtype=torch.uint8, device=device)
    blocks = -(-outputs * inputs // 64)
    scales = (torch.rand(blocks, device=device) + 0.01, None, None, None)
    if nested:
        scales = (
            torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=device),
            torch.linspace(-1, 1, 256, device=device),
            torch.rand(-(-blocks // 256), device=device),
            torch.tensor(1.37, device=device),
        )
    out, plain = (torch.zeros(outputs, inputs + apart, dtype=dtype, device=device)[:, :inputs] for _ in range(2))
    unpack_nf4(packed, *scales, 64, 256, out)
    unpack_nf4_plain(packed, *scales, 64, 256, plain)
    assert torch.equal(out, plain)


LAYOUTS = {"llama": HeadLayout(32, 8, 128), "small": HeadLayout(9, 3, 64)}
