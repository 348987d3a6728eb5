"""Stored samples: equal to what they were made from, wherever they are read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from fintune.schema.errors import RunError
from fintune.trees import stored
from fintune.trees.prefix_tree import TokenSample
from fintune.trees.stored import StoredSamples, store_samples
from tests.trees.samples import sample, sample_lists


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.index == other.index
        for name in ("tokens", "supervision"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.dtype == right.dtype and left.tolist() == right.tolist()


@given(sample_lists())
def test_stored_samples_equal_the_list_they_came_from(samples):
    with tempfile.TemporaryDirectory() as folder:
        found = store_samples(iter(samples), Path(folder) / "samples")
        assert_equal(found, samples)
        assert_equal(found[::-1], samples[::-1])
        assert_equal(StoredSamples(found.folder), samples)


def test_samples_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_FLUSH_AT", 3)
    samples = [sample(list(range(1, 3 + i)), supervised_from=1 + i // 2, index=7 * i) for i in range(8)]
    assert_equal(store_samples(samples, tmp_path / "samples"), samples)


def test_places_count_like_those_of_a_list(tmp_path):
    found = store_samples([sample([1, 2]), sample([3, 4, 5])], tmp_path / "samples")
    assert found[-1].tokens.tolist() == [3, 4, 5]
    for place in (2, -3):
        with pytest.raises(IndexError):
            found[place]


def test_what_is_read_can_be_changed_without_changing_the_files(tmp_path):
    found = store_samples([sample([1, 2, 3])], tmp_path / "samples")
    found[0].tokens[:] = 9
    assert found[0].tokens.tolist() == [1, 2, 3]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written"):
        store_samples([sample([1, 2])], tmp_path / "file" / "samples")


def test_a_token_that_does_not_fit_is_refused(tmp_path):
    large = TokenSample(np.array([1, 2**31], np.int64), np.array([0.0, 1.0]))
    with pytest.raises(AssertionError, match="token ids"):
        store_samples([large], tmp_path / "samples")
