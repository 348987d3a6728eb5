"""Trees, and ``tree_flash`` beside the eager twin: on a GPU at real sizes, interpreted on the CPU at small ones."""

import math

import numpy as np
import torch

from fintune.kernels.tree_attention import _eager, ancestor_mask
from fintune.kernels.tree_flash import TreeWork, tree_flash, tree_flash_forward, tree_work

# Relative to the greatest element, or to 1. Sums over many queries round more often than one output does.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def shared_prefix(prefix, branches, branch, pad=0):
    """(T,) subtree_end and depth of samples that share their first tokens, and padding after them."""
    size = prefix + branches * branch
    start = prefix + np.arange(branches).repeat(branch) * branch
    ends = np.concatenate([np.full(prefix, size), start + branch])
    depths = np.concatenate([np.arange(prefix), prefix + np.tile(np.arange(branch), branches)])
    return padded(ends, depths, pad)


def documents(lengths, pad=0):
    """Samples that share nothing."""
    behind = np.cumsum(lengths)
    return padded(np.repeat(behind, lengths), np.concatenate([np.arange(length) for length in lengths]), pad)


def deep_tree(size, climb, seed=0, pad=0):
    """Every token's parent is its predecessor or, with probability ``climb``, any of that one's ancestors."""
    rng = np.random.default_rng(seed)
    ends, depths, path = np.zeros(size, np.int64), np.zeros(size, np.int64), []
    for token in range(size):
        if path and rng.random() < climb:
            kept = int(rng.integers(len(path)))
            ends[path[kept:]] = token
            path = path[:kept]
        depths[token] = len(path)
        path.append(token)
    ends[path] = size
    return padded(ends, depths, pad)


def padded(ends, depths, pad):
    """With tokens at the end that only see themselves, as ``TreeBatch`` has them."""
    size = len(ends)
    ends = np.concatenate([ends, np.arange(size + 1, size + pad + 1)])
    return torch.from_numpy(ends), torch.from_numpy(np.concatenate([depths, np.zeros(pad, np.int64)]))


def states(device, dtype, tokens, heads, groups, size):
    """Views into one matrix, as the rotation leaves them."""
    qkv = torch.randn(tokens, heads + 2 * groups, size, device=device).to(dtype)
    parts = qkv.split((heads, groups, groups), 1)
    return [part.transpose(0, 1)[None].detach().requires_grad_() for part in parts]


def work_on(tree, device, window, size, dtype, **options):
    ends, depths = (part.to(device) for part in tree)
    work = tree_work(ends, depths, window, size, dtype)
    return TreeWork(work.subtree_end, work.depth, window, options.pop("tiling", work.tiling), **options)


def assert_near(actual, expected, dtype, what):
    actual, expected = actual.detach().float(), expected.detach().float()
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=TOLERANCE[dtype] * size, msg=lambda text: f"{what}: {text}"
    )


def check(device, dtype, tree, *, heads=4, groups=2, size=16, window=None, softcap=None, scaling=None, **options):
    """Outputs, log-sums and gradients; and that they are the same bits the second time."""
    work = work_on(tree, device, window, size, dtype, **options)
    inputs = states(device, dtype, len(tree[0]), heads, groups, size)
    out = tree_flash(*inputs, work, scaling=scaling, softcap=softcap)
    d_out = torch.randn_like(out)
    gradients = torch.autograd.grad(out, inputs, d_out)

    exact = [part.detach().float().requires_grad_() for part in inputs]
    mask = ancestor_mask(*(part.to(device) for part in tree), window)
    expected = _eager(*exact, mask, scaling, softcap)
    assert_near(out, expected, dtype, "out")
    for name, ours, theirs in zip("qkv", gradients, torch.autograd.grad(expected, exact, d_out.float()), strict=True):
        assert_near(ours, theirs, dtype, f"d{name}")
    for part in (out, *gradients):
        assert part.dtype == dtype and part.transpose(1, 2).is_contiguous()

    factor = size**-0.5 if scaling is None else scaling
    with torch.no_grad():
        again, lse = tree_flash_forward(*inputs, work, factor, softcap)
        assert torch.equal(again, out)
        assert torch.equal(tree_flash(*inputs, work, scaling=scaling, softcap=softcap), out)
        assert_near(lse, log_sums(exact, mask, factor, softcap), dtype, "lse")
    repeated = torch.autograd.grad(tree_flash(*inputs, work, scaling=scaling, softcap=softcap), inputs, d_out)
    assert all(torch.equal(one, other) for one, other in zip(gradients, repeated, strict=True))
    return work


def log_sums(inputs, mask, factor, softcap):
    query, key, _ = inputs
    scores = query[0] @ key[0].repeat_interleave(query.shape[1] // key.shape[1], 0).mT * factor
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, -math.inf).logsumexp(2) / math.log(2)
