"""Losses from hidden states, chunk by chunk, against the plain twin with all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fintune.kernels.edge_loss import edge_cross_entropy, edge_log_probabilities
from fintune.kernels.fp8_weight import quantize_rows
from fintune.kernels.linear_edge_loss import (
    LinearHead,
    LossEdges,
    chunk_rows,
    linear_edge_cross_entropy,
    linear_edge_cross_entropy_plain,
    linear_edge_log_probabilities,
)
from fintune.kernels.triton_use import interpreted, uses_triton
from fintune.schema.errors import ModelError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HEADS = {"plain": {}, "capped": {"softcap": 3.0}, "scaled and capped": {"logit_scale": 0.3, "softcap": 2.0}}


def problem(parents, edges, hidden_size=11, vocabulary=37, dtype=torch.float32, device="cpu", bias=True):
    """Leaves that want gradients (hidden, weight, bias) and edges, several to a parent, some of no weight."""
    hidden = torch.randn(parents, hidden_size, dtype=dtype, device=device)
    weight = torch.randn(vocabulary, hidden_size, dtype=dtype, device=device) / hidden_size**0.5
    leaves = [hidden, weight, *([torch.randn(vocabulary, dtype=dtype, device=device)] if bias else [])]
    parent = torch.randint(max(parents, 1), (edges,), device=device)
    target = torch.randint(vocabulary, (edges,), device=device)
    edge_weight = torch.rand(edges, device=device) * 3 * (torch.rand(edges, device=device) > 0.2)
    if dtype == torch.float64:
        edge_weight = edge_weight.double()
    return [leaf.requires_grad_() for leaf in leaves], LossEdges(parent, target, edge_weight)


def head_of(leaves, **rest):
    return LinearHead(leaves[1], leaves[2] if len(leaves) > 2 else None, **rest)


def loss_and_gradients(function, leaves, factor=0.37):
    loss = function()
    return loss.detach(), torch.autograd.grad(loss * factor, leaves)


def assert_close(ours, twin, tolerance):
    """By the norm of what is compared: single entries are small differences of large numbers."""
    for a, b in zip((ours[0], *ours[1]), (twin[0], *twin[1]), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm() + 1e-30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("parents", "edges"), [(1, 1), (7, 23), (13, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("rows", [1, 3, 7, None])
def test_values_and_gradients_equal_the_plain_twin_in_fp64(parents, edges, rows, bias, rest, device):
    leaves, given = problem(parents, edges, dtype=torch.float64, device=device, bias=bias)
    head = head_of(leaves, **rest)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given, rows=rows)[0], leaves)
    twin = loss_and_gradients(lambda: linear_edge_cross_entropy_plain(leaves[0], head, given), leaves)
    assert_close(ours, twin, 1e-12)


def test_gradients_equal_finite_differences():
    leaves, given = problem(5, 9, hidden_size=3, vocabulary=6, dtype=torch.float64)

    def loss(*inputs):
        return linear_edge_cross_entropy(inputs[0], head_of(inputs, softcap=2.0, logit_scale=1.5), given, rows=2)[0]

    assert torch.autograd.gradcheck(loss, leaves)


# bf16: logits and their gradient are rounded to 8 bits in both, but not at the same places.
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_precisions_equal_the_plain_twin(dtype, tolerance, rest, device):
    torch.manual_seed(2)
    leaves, given = problem(19, 41, hidden_size=64, vocabulary=301, dtype=dtype, device=device)
    head = head_of(leaves, **rest)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given, rows=5)[0], leaves)
    twin = loss_and_gradients(lambda: linear_edge_cross_entropy_plain(leaves[0], head, given), leaves)
    assert_close(ours, twin, tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_type_of_products(dtype):
    torch.manual_seed(3)
    leaves, given = problem(19, 41, hidden_size=64, vocabulary=301)
    exact = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head_of(leaves), given)[0], leaves)
    with torch.autocast("cpu", dtype=dtype):
        ours = loss_and_gradients(
            lambda: linear_edge_cross_entropy(leaves[0], head_of(leaves), given, rows=4)[0], leaves
        )
        scores = linear_edge_log_probabilities(leaves[0], head_of(leaves), given.parent, given.target)
    assert_close(ours, exact, 1e-2)
    assert scores.dtype == torch.float32
    assert not torch.equal(ours[1][0], exact[1][0])


def test_half_precision_keeps_gradients_that_the_loss_scale_would_have_saved():
    torch.manual_seed(4)
    leaves, given = problem(6, 9, hidden_size=64, vocabulary=301, dtype=torch.float16, bias=False)
    tiny = LossEdges(given.parent, given.target, given.weight * 1e-7)
    head = head_of(leaves)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, tiny)[0], leaves, factor=1e7)
    whole = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given)[0], leaves, factor=1.0)
    for a, b in zip(ours[1], whole[1], strict=True):
        assert (a.float() - b.float()).norm() <= 2e-3 * b.float().norm()


def test_half_precision_takes_weights_that_are_all_negative():
    torch.manual_seed(4)
    leaves, given = problem(6, 9, hidden_size=64, vocabulary=301, dtype=torch.float16)
    head, below = head_of(leaves), LossEdges(given.parent, given.target, -given.weight)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, below)[0], leaves)
    twin = loss_and_gradients(lambda: linear_edge_cross_entropy_plain(leaves[0], head, below), leaves)
    assert_close(ours, twin, 2e-3)


@pytest.mark.parametrize("rows", [1, 4, None])
def test_equal_to_the_loss_from_whole_logits(rows):
    torch.manual_seed(5)
    leaves, given = problem(17, 31, hidden_size=32, vocabulary=1009, bias=False)
    logits = nn.functional.linear(leaves[0], leaves[1])
    whole = edge_cross_entropy(logits, given.parent, given.target, given.weight)[0]
    loss, scores = linear_edge_cross_entropy(leaves[0], head_of(leaves), given, rows=rows)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    expected = edge_log_probabilities(logits, given.parent, given.target)
    apart = linear_edge_log_probabilities(leaves[0], head_of(leaves), given.parent, given.target, rows=rows)
    for found in (scores, apart):
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_frozen_hidden_states_none():
    leaves, given = problem(7, 12)
    for trained in ((0,), (1,), (1, 2), ()):
        for number, leaf in enumerate(leaves):
            leaf.grad = None
            leaf.requires_grad_(number in trained)
        loss, _ = linear_edge_cross_entropy(leaves[0], head_of(leaves), given, rows=3)
        assert loss.requires_grad == bool(trained)
        if trained:
            loss.backward()
        assert [leaf.grad is not None for leaf in leaves] == [number in trained for number in range(3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_head_tied_to_the_embedding_gets_both_gradients(dtype):
    torch.manual_seed(6)
    embedding = torch.randn(37, 12, dtype=dtype, requires_grad=True)
    tokens = torch.randint(37, (8,))
    given = LossEdges(torch.randint(8, (20,)), torch.randint(37, (20,)), torch.rand(20))

    def gradient(function):
        return function(torch.tanh(embedding[tokens]), LinearHead(embedding))

    ours = loss_and_gradients(
        lambda: gradient(lambda h, head: linear_edge_cross_entropy(h, head, given, rows=3)[0]), [embedding]
    )
    twin = loss_and_gradients(
        lambda: gradient(lambda h, head: linear_edge_cross_entropy_plain(h, head, given)), [embedding]
    )
    assert_close(ours, twin, 1e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [16, None])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_in_fp8_is_the_head_with_rounded_factors(device, rows, bias, request):
    if device == "cuda":
        request.getfixturevalue("fp8_card")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    leaves, edges = problem(48, 120, hidden_size=64, vocabulary=96, dtype=dtype, device=device, bias=bias)
    rounded = [quantize_rows(leaf.detach()).dense(torch.float32).requires_grad_() for leaf in leaves[:2]]
    twin_leaves = rounded + [leaf.detach().float().requires_grad_() for leaf in leaves[2:]]
    head = head_of(leaves, softcap=3.0, fp8=True)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, edges, rows=rows)[0], leaves)
    twin = loss_and_gradients(
        lambda: linear_edge_cross_entropy_plain(rounded[0], head_of(twin_leaves, softcap=3.0), edges), twin_leaves
    )
    torch.testing.assert_close(ours[0], twin[0], atol=1e-5, rtol=1e-5 if device == "cpu" else 5e-3)
    for own, other in zip(ours[1], twin[1], strict=True):  # three bits of mantissa, in the gradient of logits too
        assert (own.float() - other).norm() < 0.05 * other.norm()
    exact = head_of(leaves, softcap=3.0)
    both = [linear_edge_log_probabilities(leaves[0], each, edges.parent, edges.target) for each in (head, exact)]
    assert both[0].equal(both[1])


def test_a_head_that_does_not_fit_fp8_is_refused():
    leaves, edges = problem(5, 9, hidden_size=64, vocabulary=37)
    with pytest.raises(ModelError, match="Leave fp8_head out"):
        linear_edge_cross_entropy(leaves[0], head_of(leaves, fp8=True), edges)


def test_edges_of_no_weight_leave_no_gradient_in_any_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves, given = problem(7, 12, dtype=dtype)
        filler = LossEdges(given.parent, given.target, torch.zeros_like(given.weight))
        loss, gradients = loss_and_gradients(
            lambda leaves=leaves, filler=filler: linear_edge_cross_entropy(leaves[0], head_of(leaves), filler)[0],
            leaves,
        )
        assert loss == 0 and all(bool((g == 0).all()) for g in gradients)


def test_chunks_are_about_equal_and_within_the_budget():
    for parents in (1, 63, 500, 524, 1025, 8192):
        rows = chunk_rows(parents, 128_256, 4096)
        assert rows * 128_256 * 4 <= 256 * 2**20
        chunks = -(-parents // rows)
        assert chunks == -(-parents // min(parents, 512)) and rows * chunks - parents < 64 * chunks
    assert chunk_rows(0, 512, 64) == 1
    assert chunk_rows(10_240, 256_000, 16_384) == 1024  # H/16, whatever the budget
    assert chunk_rows(5, 512, 64, chunk_bytes=1) == 4
    assert chunk_rows(8192, 128_256, 4096, logit_bytes=2) == 1024  # as the kernels need no fp32 copy


class Largest(TorchDispatchMode):
    """Notes the largest tensor of floating point that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_no_more_than_a_chunk_of_logits_ever_exists(dtype, softcap):
    parents, vocabulary, hidden_size, rows = 64, 1009, 16, 8
    leaves, given = problem(parents, 80, hidden_size, vocabulary, dtype, bias=False)
    leaves[1].requires_grad_(False)
    head = head_of(leaves, softcap=softcap)
    with Largest() as plain:
        linear_edge_cross_entropy_plain(leaves[0], head, given).backward()
    assert plain.elements >= parents * vocabulary
    with Largest() as fused:
        linear_edge_cross_entropy(leaves[0], head, given, rows=rows)[0].backward()
        linear_edge_log_probabilities(leaves[0], head, given.parent, given.target, rows=rows)
    # The head itself has vocabulary x hidden_size elements, and here it may be viewed whole.
    assert fused.elements <= max(rows, hidden_size) * vocabulary < parents * vocabulary


needs_interpreter = pytest.mark.skipif(not interpreted(), reason="needs a GPU or Triton's interpreter")
# The interpreter cuts fp32 off to bf16 instead of rounding.
ON_KERNELS = [
    pytest.param("cpu", torch.float32, marks=needs_interpreter),
    pytest.param("cpu", torch.float16, marks=needs_interpreter),
    *(pytest.param("cuda", t, marks=pytest.mark.gpu) for t in (torch.float32, torch.float16, torch.bfloat16)),
]
# Half a step of the type, as of numbers rounded once, and a little for errors of fp32 before.
ROUNDED = {torch.float32: 1e-5, torch.float16: 1.05 * 2**-11, torch.bfloat16: 1.05 * 2**-8}


def from_raw_logits(raw, parent, target, weight, head):
    """Log-probabilities and the gradient of raw logits, in fp64 by autograd."""
    raw = raw.double().requires_grad_()
    logits = raw * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = logits.log_softmax(-1)[parent, target]
    return log_p.detach(), torch.autograd.grad(-(log_p * weight.double()).sum(), raw)[0]


def sharing_cells(edges):
    """Every third edge repeats the cell of the edge before it; every sixth does so without a weight."""
    parent, target, weight = edges.parent.clone(), edges.target.clone(), edges.weight.clone() + 0.1
    for cells in (parent, target):
        cells[1::3] = cells[0::3][: len(cells[1::3])]
    weight[1::6] = 0
    return LossEdges(parent, target, weight)


def check_in_place(device, dtype, size, vocabulary, head, start=3):
    """Kernels on one chunk of the parents, of which others come before and after it."""
    from fintune.kernels.edge_loss_triton import score_in_place

    edges = sharing_cells(problem(start + size + 5, 4 * size + 7, vocabulary=vocabulary, device=device)[1])
    edges.parent[edges.parent == start] = start + 1  # one parent has none
    raw = (torch.randn(size, vocabulary, device=device) * 2).to(dtype)
    inside = (edges.parent >= start) & (edges.parent < start + size)
    row, target, weight = edges.parent[inside] - start, edges.target[inside], edges.weight[inside]
    expected_log_p, expected = from_raw_logits(raw, row, target, weight, head)
    cell = edges.parent * vocabulary + edges.target
    cell_weight = torch.stack([edges.weight[cell == own].sum() for own in cell])
    parent_weight = edges.weight.new_zeros(start + size + 5).index_add_(0, edges.parent, edges.weight)

    log_p, scored = torch.full_like(edges.weight, 7.0), torch.full_like(edges.weight, 7.0)
    before = raw.clone()
    score_in_place(raw, head, edges, start, None, scored)
    assert torch.equal(raw, before)
    score_in_place(raw, head, edges, start, (parent_weight, cell_weight), log_p)
    assert torch.equal(log_p, scored) and bool((log_p[~inside] == 7).all())
    torch.testing.assert_close(log_p[inside].double(), expected_log_p, rtol=0, atol=1e-5)
    assert bool((raw[0] == 0).all())
    # Cells of edges are differences; everywhere else relative errors are those of rounding (in fp16 of subnormals too).
    at_edge = torch.zeros_like(raw, dtype=torch.bool)
    at_edge[row, target] = True
    least = 2**-24 if dtype == torch.float16 else 0.0
    for chosen, absolute in ((~at_edge, least), (at_edge, least + 2e-6 * float(parent_weight.max()))):
        torch.testing.assert_close(raw[chosen].double(), expected[chosen], rtol=ROUNDED[dtype], atol=absolute)


@pytest.mark.parametrize(("device", "dtype"), ON_KERNELS)
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("vocabulary", [5, 37, 152])
@pytest.mark.parametrize("lanes", [8, 2048])
def test_gradients_in_place_by_kernels(device, dtype, rest, vocabulary, lanes, monkeypatch):
    torch.manual_seed(7)
    monkeypatch.setattr("fintune.kernels.edge_loss_triton._LANES", lanes)
    check_in_place(device, dtype, 4, vocabulary, LinearHead(torch.empty(0), **rest))


@pytest.mark.parametrize(("device", "dtype"), ON_KERNELS)
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rows", [5, 19, None])
def test_loss_and_gradients_by_kernels(device, dtype, rest, rows):
    torch.manual_seed(8)
    leaves, given = problem(19, 41, hidden_size=64, vocabulary=301, dtype=dtype, device=device)
    given, head = sharing_cells(given), head_of(leaves, **rest)
    assert uses_triton(leaves[0])
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given, rows=rows)[0], leaves)
    twin = loss_and_gradients(lambda: linear_edge_cross_entropy_plain(leaves[0], head, given), leaves)
    assert_close(ours, twin, {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype])
    with torch.no_grad():
        loss, log_p = linear_edge_cross_entropy(leaves[0], head, given, rows=rows)
    torch.testing.assert_close(loss, ours[0], rtol=1e-6, atol=0)
    assert log_p.dtype == torch.float32 and bool((log_p < 0).all())


@pytest.mark.parametrize(("device", "dtype"), ON_KERNELS)
def test_logits_of_minus_infinity_by_kernels(device, dtype):
    """As heads give them that mask padding of the vocabulary by their bias."""
    torch.manual_seed(9)
    leaves, given = problem(7, 12, dtype=dtype, device=device)
    given.target.clamp_(max=30)
    with torch.no_grad():
        leaves[2][31:] = float("-inf")
    loss, gradients = loss_and_gradients(
        lambda: linear_edge_cross_entropy(leaves[0], head_of(leaves), given, rows=4)[0], leaves
    )
    assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
    assert bool((gradients[1][31:] == 0).all())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("vocabulary", [128_256, 50_257])
def test_gradients_in_place_at_real_sizes(dtype, rest, vocabulary):
    check_in_place("cuda", dtype, 65, vocabulary, LinearHead(torch.empty(0), **rest))


# A product of other shape sums in another order: in bf16 many logits differ by a rounding.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradients"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-3, 1e-2)]
)
@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("vocabulary", [128_256, 49_152])
def test_equal_to_the_plain_twin_at_real_sizes(dtype, of_loss, of_gradients, rest, vocabulary):
    leaves, given = problem(300, 700, 256, vocabulary, dtype, "cuda", bias=False)
    head = head_of(leaves, **rest)
    ours = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given, rows=128)[0], leaves)
    twin = loss_and_gradients(lambda: linear_edge_cross_entropy_plain(leaves[0], head, given), leaves)
    assert_close(ours, twin, of_gradients)
    torch.testing.assert_close(ours[0], twin[0], rtol=of_loss, atol=0)
    again = loss_and_gradients(lambda: linear_edge_cross_entropy(leaves[0], head, given, rows=128)[0], leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours[1], again[1], strict=True))


@pytest.mark.gpu
def test_kernels_in_a_cuda_graph():
    from fintune.kernels.edge_loss_triton import score_in_place

    given = problem(64, 64, vocabulary=1024, device="cuda")[1]
    raw, log_p = torch.randn(64, 1024, device="cuda"), torch.zeros(64, device="cuda")
    head = LinearHead(torch.empty(0))
    score_in_place(raw, head, given, 0, None, log_p)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        score_in_place(raw, head, given, 0, None, log_p)
    raw.normal_()
    given.target.copy_(given.target.flip(0))
    graph.replay()
    expected = raw.log_softmax(-1)[given.parent, given.target]
    torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("trained", [False, True])
def test_peak_memory_on_a_gpu(trained):
    parents, vocabulary, hidden_size = 4096, 128_256, 1024
    leaves, given = problem(parents, parents, hidden_size, vocabulary, torch.bfloat16, "cuda", bias=False)
    leaves[1].requires_grad_(trained)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_edge_cross_entropy(leaves[0], head_of(leaves), given)[0].backward()
    head_bytes = leaves[1].numel() * (4 + 4 + 2 + 2) if trained else 0
    assert torch.cuda.max_memory_allocated() - before < 1.25 * 256 * 2**20 + 8 * leaves[0].numel() * 4 + head_bytes
