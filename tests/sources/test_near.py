"""Near-duplicates: exact in what is reported, blind only where the arithmetic says so, and found when planted."""

import importlib.util
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st
from tests.public_data import public_data

from fintune.schema.errors import RecipeError
from fintune.sources import normalise_text, read_sample
from fintune.sources.near import MIN_THRESHOLD, SHINGLE, bands_and_rows, jaccard, near_duplicates, shingles, signature

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "near_duplicates.py"
THRESHOLD = 0.6
# Few letters and whole phrases, so that random texts are often alike.
TEXTS = st.lists(
    st.lists(st.sampled_from(["profit rose", "EUR", "5 %", "fell", "sharply", "$T", "!", "a", "Ä"]), max_size=6).map(
        " ".join
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def planting():
    if not BENCHMARK.is_file():
        pytest.skip("the benchmarks are not part of this copy")
    spec = importlib.util.spec_from_file_location("near_duplicates_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def brute_force(texts, corpus, threshold):
    """All pairs at or above the threshold, in plain sets."""

    def prepared(text):
        key = normalise_text(text)
        return key, {key[i : i + SHINGLE] for i in range(len(key) - SHINGLE + 1)}

    def similarity(left, right):
        if left[0] == right[0]:
            return float(bool(left[0]))
        return len(left[1] & right[1]) / len(left[1] | right[1]) if left[1] and right[1] else 0.0

    others = [prepared(text) for text in corpus]
    return [
        tuple(i for i, other in enumerate(others) if similarity(own, other) >= threshold)
        for own in map(prepared, texts)
    ]


@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.6, 0.9, 1.0]))
def test_only_pairs_above_the_threshold_are_reported(texts, corpus, threshold):
    expected = brute_force(texts, corpus, threshold)
    for found, wanted in zip(near_duplicates(texts, corpus, threshold=threshold), expected, strict=True):
        assert set(found) <= set(wanted) and found == tuple(sorted(found))


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.9])
def test_hardly_a_pair_of_the_sample_is_missed(threshold):
    texts = [row["text"] for row in read_sample("tfns")["validation"].rows]
    # Copies with more or less of their end cut off: pairs at every similarity, many just above the threshold.
    copies = [text[: len(text) * share // 20] for share in (10, 12, 13, 14, 15, 16, 18, 19) for text in texts[:40]]
    expected, found = brute_force(copies, texts, threshold), near_duplicates(copies, texts, threshold=threshold)
    n_missed = sum(len(set(wanted) - set(got)) for wanted, got in zip(expected, found, strict=True))
    assert all(set(got) <= set(wanted) for wanted, got in zip(expected, found, strict=True))
    # 1 in 1000 is expected at most, for a pair that lies just at the threshold.
    assert sum(map(len, expected)) >= 50 and n_missed <= 2


@given(TEXTS, TEXTS)
def test_it_is_symmetric(left, right):
    forward = {(i, j) for i, twins in enumerate(near_duplicates(left, right, threshold=THRESHOLD)) for j in twins}
    backward = {(i, j) for j, twins in enumerate(near_duplicates(right, left, threshold=THRESHOLD)) for i in twins}
    assert forward == backward


def checksum(shingle):
    return zlib.crc32(shingle.encode("utf-8", "surrogatepass"))


def datasketch_signature(key, count):
    """The MinHash of the library's own code."""
    made = MinHash(num_perm=count, seed=17, hashfunc=checksum)
    made.update_batch(shingles(key))
    return made


def through_datasketch(texts, corpus, threshold):
    """Near-duplicates by the library's own index: proposed by it, and checked exactly."""
    keys, others = [normalise_text(text) for text in texts], [normalise_text(text) for text in corpus]
    bands, rows = bands_and_rows(threshold)
    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    for place, other in enumerate(others):
        if shingles(other):
            index.insert(place, datasketch_signature(other, bands * rows))

    def twins(key):
        same = {place for place, other in enumerate(others) if key and other == key}
        near = index.query(datasketch_signature(key, bands * rows)) if shingles(key) else ()
        return same | {place for place in near if jaccard(shingles(key), shingles(others[place])) >= threshold}

    return [tuple(sorted(twins(key))) for key in keys]


@given(st.text(min_size=SHINGLE), st.integers(2, 256))
def test_hashes_are_those_of_datasketch_bit_for_bit(key, count):
    for text in (key, key + "".join(map(str, range(2000)))):  # the second is hashed in several parts
        assert np.array_equal(signature(text, count), datasketch_signature(text, count).hashvalues)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_the_sample_is_searched_as_datasketch_does(threshold):
    sample = {split: [row["text"] for row in table.rows] for split, table in read_sample("tfns").items()}
    # Ends cut off, so that many pairs are about as alike as the threshold, where hashes decide what is proposed.
    copies = [text[: len(text) * (10 + number % 10) // 20] for number, text in enumerate(sample["test"])]
    texts, corpus = sample["validation"] + copies, sample["test"]
    found = near_duplicates(texts, corpus, threshold=threshold)
    assert found == through_datasketch(texts, corpus, threshold) and sum(map(len, found)) > 50


def test_another_process_finds_the_same():
    """Python's own hash of strings differs from process to process."""
    program = (
        "from fintune.sources import read_sample\n"
        "from fintune.sources.near import near_duplicates\n"
        "texts = [row['text'] for row in read_sample('tfns')['train'].rows[:300]]\n"
        "found = near_duplicates([text[:-12] for text in texts], texts, threshold=0.7)\n"
    )
    here: dict[str, object] = {}
    exec(program, here)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", program + "print(found)"], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(here["found"])
    assert any(here["found"]) and not all(here["found"])


def test_short_and_empty_texts_match_only_their_equals():
    corpus = ["Up", "up!", "upp", "https://t.co/1", "!!!", "", "profit up"]
    found = near_duplicates(["UP", "https://t.co/1", "", "profit upp"], corpus, threshold=THRESHOLD)
    assert found == [(0, 1), (), (), (6,)]
    assert near_duplicates([], corpus, threshold=THRESHOLD) == []
    assert near_duplicates(["Up"], [], threshold=THRESHOLD) == [()]
    assert jaccard(shingles("ab"), shingles("ab")) == 0


@pytest.mark.parametrize("threshold", [0, MIN_THRESHOLD / 2, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(RecipeError, match="near_duplicate_threshold"):
        near_duplicates(["a"], ["a"], threshold=threshold)


@given(st.floats(MIN_THRESHOLD, 1))
def test_the_bands_find_what_they_promise(threshold):
    bands, rows = bands_and_rows(threshold)
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert 2 <= bands * rows <= 256


def check_planted(planting, data, each):
    results = [planting.measure(*texts, threshold=THRESHOLD, each=each) for texts in data.values()]
    totals = planting.total_found(results)
    n_found, n_planted = (sum(counts[i] for counts in totals.values()) for i in (0, 1))
    assert n_planted > 1000 and min(n for _, n in totals.values()) > 10
    assert n_found >= 0.95 * n_planted, totals
    flagged, false = (sum(result[key] for result in results) for key in ("flagged", "false"))
    assert false <= 0.01 * flagged
    return flagged


def test_planted_near_duplicates_are_found_in_the_shipped_sample(planting):
    texts = {split: [row["text"] for row in table.rows] for split, table in read_sample("tfns").items()}
    assert check_planted(planting, {"tfns": (texts["train"], texts["validation"] + texts["test"])}, each=9) > 0


def test_planted_near_duplicates_are_found_in_real_data(planting):
    folder = public_data().parents[1]
    # Fewer rows than the benchmark takes, to keep the test short.
    data = {name: (train[:4000], heldout[:1000]) for name, (train, heldout) in planting.read_data(folder).items()}
    assert check_planted(planting, data, each=1) > 100
