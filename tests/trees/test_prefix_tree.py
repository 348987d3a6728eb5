import numpy as np
import pytest
from hypothesis import given

from fintune.trees.prefix_tree import TokenSample, build_tree, tree_mask
from tests.trees.samples import sample, sample_lists


def test_the_drawn_example_of_the_module_docstring():
    tree = build_tree([sample([10, 11, 2, 3, 4]), sample([10, 11, 5, 6, 7])])
    assert tree.tokens.tolist() == [10, 11, 2, 3, 4, 5, 6, 7]
    assert tree.subtree_end.tolist() == [8, 8, 5, 5, 5, 8, 8, 8]
    assert tree.depth.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 3, 1, 5, 6]


@given(sample_lists())
def test_every_sample_is_a_path_from_a_root(samples):
    tree = build_tree(samples)
    for path, one in zip(tree.paths, samples, strict=True):
        assert tree.tokens[path].tolist() == one.tokens.tolist()
        assert tree.depth[path].tolist() == list(range(len(one)))
        assert tree.parent[path].tolist() == [-1, *path[:-1].tolist()][: len(path)]


@given(sample_lists())
def test_every_distinct_prefix_is_computed_once(samples):
    prefixes = {tuple(one.tokens[: n + 1]) for one in samples for n in range(len(one))}
    assert len(build_tree(samples)) == len(prefixes)
    assert len(build_tree(samples, share=False)) == sum(len(one) for one in samples)


@given(sample_lists())
def test_a_token_sees_exactly_its_ancestors(samples):
    tree = build_tree(samples)
    expected = np.zeros((len(tree), len(tree)), bool)
    for node in range(len(tree)):
        at = node
        while at >= 0:
            expected[node, at] = True
            at = tree.parent[at]
    assert (tree_mask(tree.subtree_end) == expected).all()


@given(sample_lists())
def test_supervision_is_summed_over_the_samples_of_an_edge(samples):
    tree = build_tree(samples)
    by_prefix: dict[tuple[int, ...], float] = {}
    for one in samples:
        for n in range(len(one)):
            key = tuple(one.tokens[: n + 1])
            by_prefix[key] = by_prefix.get(key, 0.0) + one.supervision[n]
    for path, one in zip(tree.paths, samples, strict=True):
        for n, node in enumerate(path):
            assert tree.supervision[node] == pytest.approx(by_prefix[tuple(one.tokens[: n + 1])])


def test_a_supervised_first_token_is_refused():
    with pytest.raises(ValueError, match="first token"):
        TokenSample(np.array([1, 2]), np.array([1.0, 0.0]))
