"""Random token samples that share prefixes, for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fintune.trees.prefix_tree import TokenSample


def sample(tokens: list[int], supervised_from: int | None = None, index: int = 0) -> TokenSample:
    """A sample whose tokens from ``supervised_from`` on are supervised (default: the last one)."""
    start = len(tokens) - 1 if supervised_from is None else supervised_from
    weight = np.zeros(len(tokens))
    weight[max(start, 1) :] = 1
    return TokenSample(np.asarray(tokens, np.int64), weight, index)


@st.composite
def sample_lists(draw: st.DrawFn, vocabulary: int = 3, longest: int = 9, most: int = 8, fewest: int = 0):
    """Lists of samples over a small alphabet, so that prefixes, duplicates and nested samples are common."""
    samples = []
    for index in range(draw(st.integers(fewest, most))):
        tokens = draw(st.lists(st.integers(1, vocabulary), min_size=0 if fewest == 0 else 2, max_size=longest))
        weights = [0.0] + [draw(st.sampled_from([0.0, 1.0, 0.5])) for _ in tokens[1:]]
        samples.append(TokenSample(np.asarray(tokens, np.int64), np.asarray(weights[: len(tokens)], np.float64), index))
    return samples
