import pytest
import torch
from tests.kernels import triton_cases as cases
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from fintune.kernels.rope import HeadLayout, rotate_heads, rotate_heads_backward, rotate_heads_plain

LAYOUT = HeadLayout(query=4, key=2, size=6)
TOKENS, RANK = 5, 3
EPS = 1e-4
NORMS = {"none": None, "qwen3": Qwen3RMSNorm, "gemma3": Gemma3RMSNorm}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def of_transformers(qkv, cos, sin, norms):
    """q, k, v as transformers' layers calculate them: (heads, T, D) inside."""
    q, k, v = (part.transpose(0, 1)[None] for part in qkv.unflatten(1, (-1, LAYOUT.size)).split((4, 2, 2), 1))
    if norms:
        q, k = norms[0](q), norms[1](k)
    q, k = apply_rotary_pos_emb(q, k, cos[None], sin[None])
    return [part[0].transpose(0, 1) for part in (q, k, v)]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("adapters", [False, True])
def test_it_is_what_transformers_layers_do_and_so_is_the_gradient(kind, adapters):
    module = NORMS[kind]
    norms = [module(LAYOUT.size, eps=EPS) for _ in range(2)] if module else []
    for norm in norms:
        norm.weight.data.normal_()
    qkv, small, b = random(TOKENS, LAYOUT.width).requires_grad_(), random(TOKENS, 3 * RANK), random(LAYOUT.width, RANK)
    cos, sin = cases.angles("cpu", torch.float64, TOKENS, LAYOUT.size)
    outputs = torch.cat([small[:, :3] @ b[:24].T, small[:, 3:6] @ b[24:36].T, small[:, 6:] @ b[36:].T], 1)
    expected = of_transformers(qkv + outputs * adapters, cos, sin, norms)
    gradients = [torch.randn_like(part) for part in expected]
    (dqkv,) = torch.autograd.grad(expected, qkv, gradients)

    own = qkv.detach().clone()
    gains = {}
    if norms:
        gains = {name: norm.weight.detach() for name, norm in zip(("query_norm", "key_norm"), norms, strict=True)}
        gains["unit_offset"] = kind == "gemma3"
    *heads, rstd = rotate_heads(
        own, cos, sin, LAYOUT, small=small if adapters else None, b=b if adapters else None, eps=EPS, **gains
    )
    # Transformers' norms calculate in fp32.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if norms else {}
    for ours, theirs in zip(heads, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), **tolerance)
    known = {"qkv": own, "rstd": rstd, **gains} if norms else {}
    assert (rstd is not None) == bool(norms)
    result = rotate_heads_backward(*gradients, cos, sin, LAYOUT, **known)
    torch.testing.assert_close(result, dqkv, **tolerance)


def test_without_norms_it_works_in_place():
    qkv = random(TOKENS, LAYOUT.width)
    before = qkv.clone()
    cos, sin = cases.angles("cpu", torch.float64, TOKENS, LAYOUT.size)
    q, k, v, rstd = rotate_heads(qkv, cos, sin, LAYOUT)
    torch.testing.assert_close(torch.cat([part.flatten(1) for part in (q, k, v)], 1), qkv, rtol=0, atol=0)
    assert q.data_ptr() == qkv.data_ptr() and rstd is None
    assert torch.equal(v, before.unflatten(1, (-1, LAYOUT.size))[:, 6:])
    # A rotation's gradient is the rotation back.
    torch.testing.assert_close(rotate_heads_backward(q, k, v, cos, sin, LAYOUT), before)


def test_with_norms_qkv_keeps_what_the_backward_pass_needs():
    qkv, ones = random(TOKENS, LAYOUT.width), torch.ones(LAYOUT.size, dtype=torch.float64)
    before = qkv.clone()
    cos, sin = cases.angles("cpu", torch.float64, TOKENS, LAYOUT.size)
    q, k, v, rstd = rotate_heads(qkv, cos, sin, LAYOUT, query_norm=ones, key_norm=ones, eps=EPS)
    assert torch.equal(qkv, before)
    torch.testing.assert_close(q.square().mean(2), torch.ones(TOKENS, 4, dtype=torch.float64), rtol=1e-2, atol=0)
    gains = {"query_norm": ones, "key_norm": ones}
    fresh = rotate_heads_backward(q, k, v, cos, sin, LAYOUT, qkv=qkv, rstd=rstd, **gains)
    result = rotate_heads_backward(q, k, v.clone(), cos, sin, LAYOUT, qkv=qkv, rstd=rstd, **gains, out=qkv)
    assert result is qkv and torch.equal(result, fresh)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [8192, 1000, 1, 0])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("rank", [0, 16, 48])
@pytest.mark.parametrize("norms", [False, True])
def test_the_kernels_equal_their_twins(tokens, layout, rank, norms):
    cases.check_rotation("cuda", torch.bfloat16, tokens, cases.LAYOUTS[layout], rank=rank, norms=norms)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "layout, dtype, norms",
    [
        (HeadLayout(8, 4, 256), torch.bfloat16, True),
        (HeadLayout(32, 32, 96), torch.float16, False),
        (HeadLayout(5, 1, 80), torch.float32, True),
    ],
    ids=str,
)
def test_other_layouts_and_types_equal_their_twins(layout, dtype, norms):
    cases.check_rotation("cuda", dtype, 131, layout, rank=32, norms=norms, apart=64, unit_offset=True)


@pytest.mark.parametrize("adapters", [False, True])
def test_in_place_where_nothing_is_recorded_it_gives_the_same_bits(adapters):
    qkv, small, b = torch.randn(TOKENS, LAYOUT.width), torch.randn(TOKENS, 3 * RANK), torch.randn(LAYOUT.width, RANK)
    cos, sin = cases.angles("cpu", torch.float32, TOKENS, LAYOUT.size)
    given = {"small": small, "b": b} if adapters else {}
    *expected, _ = rotate_heads_plain(qkv.clone(), cos, sin, LAYOUT, **given)
    with torch.no_grad():
        *found, rstd = rotate_heads(qkv, cos, sin, LAYOUT, **given)
    assert rstd is None and found[0].data_ptr() == qkv.data_ptr()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
