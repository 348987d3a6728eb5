"""Drawing rows: deterministic, balanced on request."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fintune.schema.example import Example
from fintune.tasks import select_rows

LABELS = st.lists(st.sampled_from("abc"), max_size=60)


def make(labels):
    return [Example(str(number), "t", (), label) for number, label in enumerate(labels)]


@given(LABELS, st.none() | st.integers(1, 40), st.booleans(), st.integers(0, 5))
def test_a_draw_repeats_itself_and_takes_distinct_rows(labels, limit, balance, seed):
    examples = make(labels)
    drawn = select_rows(examples, limit, balance, seed)
    assert drawn == select_rows(examples, limit, balance, seed)
    assert len({e.example_id for e in drawn}) == len(drawn) <= (limit or len(examples))
    if not balance:
        assert len(drawn) == min(limit or len(examples), len(examples))


@given(LABELS, st.none() | st.integers(1, 40))
def test_balanced_counts_differ_by_at_most_one(labels, limit):
    counts = Counter(e.target for e in select_rows(make(labels), limit, True, 1))
    rarest = min(Counter(labels).values(), default=0)
    assert max(counts.values(), default=0) - min((counts[label] for label in set(labels)), default=0) <= 1
    if limit is None:
        assert set(counts.values()) <= {rarest}


def test_the_seed_changes_the_draw():
    examples = make("abc" * 20)
    assert select_rows(examples, 10, seed=1) != select_rows(examples, 10, seed=2)
