import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trees.samples import sample, sample_lists
from torch import nn

from fintune.kernels.tree_attention import TreeContext, ancestor_mask, tree_attention
from fintune.schema.errors import InternalError, ModelError
from fintune.trees.prefix_tree import build_tree


def states(tokens, heads=4, groups=2, size=8, dtype=torch.float32):
    query = torch.randn(1, heads, tokens, size, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(1, groups, tokens, size, dtype=dtype, requires_grad=True) for _ in range(2))
    return query, key, value


def context(tree, backend):
    return TreeContext(torch.from_numpy(tree.subtree_end), torch.from_numpy(tree.depth), backend)


@given(sample_lists(fewest=1), st.sampled_from([None, 1, 2, 4]))
def test_the_mask_is_ancestors_within_the_window_measured_in_depth(samples, window):
    tree = build_tree(samples)
    mask = ancestor_mask(torch.from_numpy(tree.subtree_end), torch.from_numpy(tree.depth), window).numpy()
    for path in tree.paths:
        for q, node in enumerate(path):
            visible = path[max(0, q + 1 - window) if window else 0 : q + 1]
            assert np.flatnonzero(mask[node]).tolist() == sorted(visible.tolist())


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_sdpa_equals_the_eager_twin_in_values_and_gradients(window, scaling):
    torch.manual_seed(0)
    tree = build_tree([sample([1, 2, 3, 4]), sample([1, 2, 5]), sample([7, 8, 9, 1, 2])])
    inputs = states(len(tree))
    gradients, outputs = [], []
    for backend in ("sdpa", "eager"):
        out, _ = tree_attention(
            nn.Module(), *inputs, None, scaling=scaling, sliding_window=window, tree=context(tree, backend)
        )
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    for ours, twin in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)


def test_a_missing_tree_is_an_error_and_no_silent_fallback():
    with pytest.raises(ModelError, match="without a tree"):
        tree_attention(nn.Module(), *states(4), None)


def test_what_trees_cannot_do_is_refused():
    tree = build_tree([sample([1, 2, 3])])
    with pytest.raises(ModelError, match="dropout"):
        tree_attention(nn.Module(), *states(3), None, dropout=0.1, tree=context(tree, "sdpa"))
    with pytest.raises(ModelError, match="sinks"):
        tree_attention(nn.Module(), *states(3), None, tree=context(tree, "sdpa"), s_aux=torch.zeros(4))
    with pytest.raises(InternalError, match="do not match"):
        tree_attention(nn.Module(), *states(5), None, tree=context(tree, "sdpa"))
