"""Repeats over a whole corpus: sound, near-exhaustive, the same in parts, and text files that come back."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.sources.corpus import repeats as module
from fintune.sources.corpus.drafts import Draft
from fintune.sources.corpus.pieces import write_array, write_piece
from fintune.sources.corpus.plain import MARKER, read_plain, write_plain
from fintune.sources.corpus.repeats import EQUAL, KEPT, NEAR, HeldWindows, Repeats
from fintune.sources.corpus.signatures import band_hashes, compared_by, digest_of, similarity, windows

WORDS = [
    f"{a}{b}" for a in ("ba", "ko", "lu", "mi", "ne", "ro", "su", "ti") for b in ("nd", "rket", "lling", "sing", "x")
]
THRESHOLD = 0.8


def texts_with_repeats():
    """Documents of random words, some of which change a few words of an earlier one or only its punctuation."""
    draw = random.Random(3)
    texts = []
    for _ in range(150):
        if texts and draw.random() < 0.4:
            words = draw.choice(texts).split()
            for _ in range(draw.choice([0, 1, 2, 5, 20])):
                words[draw.randrange(len(words))] = draw.choice(WORDS)
            texts.append(" ".join(words).title() + "!")
        else:
            texts.append(" ".join(draw.choices(WORDS, k=draw.randint(30, 200))))
    return texts


def repeats_of(folder, texts, per_piece):
    parts = [texts[start : start + per_piece] for start in range(0, len(texts), per_piece)]
    paths = [folder / f"{number:03d}.arrow" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        keys = [compared_by(text) for text in part]
        write_piece(path, [Draft(text) for text in part])
        write_array(path.with_suffix(".digests.npy"), np.asarray([digest_of(key) for key in keys], np.uint64))
        write_array(path.with_suffix(".bands.npy"), np.asarray([band_hashes(windows(key), THRESHOLD) for key in keys]))
    return Repeats(folder / "repeats", paths, [len(part) for part in parts]), len(parts)


def found_by(folder, texts, per_piece):
    repeats, n = repeats_of(folder, texts, per_piece)
    repeats.find(THRESHOLD)
    return [int(root) for number in range(n) for root in repeats.roots(number)], [
        int(kind) for number in range(n) for kind in repeats.kinds(number)
    ]


@pytest.fixture(scope="module")
def texts():
    return texts_with_repeats()


@pytest.fixture(scope="module")
def found(texts, tmp_path_factory):
    return found_by(tmp_path_factory.mktemp("one"), texts, 40)


def test_what_goes_is_similar_to_an_earlier_one_that_stays(texts, found):
    roots, kinds = found
    sets = [windows(compared_by(text)) for text in texts]
    for document, (root, kind) in enumerate(zip(roots, kinds, strict=True)):
        if kind == EQUAL:
            assert root < document and compared_by(texts[root]) == compared_by(texts[document])
        elif kind == NEAR:
            assert root < document and kinds[root] == KEPT
            assert similarity(sets[root], sets[document]) >= THRESHOLD
    assert min(kinds.count(kind) for kind in (KEPT, EQUAL, NEAR)) >= 5


def test_what_stays_is_what_comparing_all_pairs_leaves(texts, found):
    sets, kept, seen = [windows(compared_by(text)) for text in texts], [], set()
    for document, text in enumerate(texts):
        key = compared_by(text)
        if key not in seen and all(similarity(sets[document], sets[one]) < THRESHOLD for one in kept):
            kept.append(document)
        seen.add(key)
    assert [document for document, kind in enumerate(found[1]) if kind == KEPT] == kept


def test_families_of_similar_texts_leave_no_twins(tmp_path):
    draw = random.Random(1)
    same, choices = draw.choices(WORDS, k=70), [draw.sample(WORDS, k=4) for _ in range(14)]
    texts = [" ".join([*same, *map(draw.choice, choices)]) for _ in range(200)]
    kinds = found_by(tmp_path, texts, 64)[1]
    sets, twins = [windows(compared_by(text)) for text in texts], 0
    kept = [document for document, kind in enumerate(kinds) if kind == KEPT]
    for place, document in enumerate(kept):
        twins += any(similarity(sets[document], sets[one]) >= THRESHOLD for one in kept[:place])
    assert len(kept) > 5 and twins <= len(kept) // 20


def test_pieces_and_parts_change_nothing(texts, found, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 50)  # hashes are sorted in four parts
    assert found_by(tmp_path, texts, 7) == found


def test_a_stopped_search_goes_on_to_the_same_end(texts, found, tmp_path):
    repeats, n = repeats_of(tmp_path, texts, 40)
    with pytest.raises(KeyboardInterrupt):
        repeats.find(THRESHOLD, stop_after(2))
    # What a kill leaves: a piece settled in the map, but not yet noted.
    (tmp_path / "repeats" / "settled.json").write_text('{"pieces": 1}')
    repeats.find(THRESHOLD)
    assert [int(root) for number in range(n) for root in repeats.roots(number)] == found[0]


def test_windows_are_held_up_to_a_number_of_bytes():
    made = []

    def windows_of(document):
        made.append(document)
        return np.zeros(10 * document, np.uint64)

    held = HeldWindows(windows_of, 790)
    for document in (1, 2, 3, 1, 4, 1, 2, 20):
        assert len(held(document)) == 10 * document
        assert held.bytes <= max(790, 80 * document)
    assert made == [1, 2, 3, 4, 2, 20]


def stop_after(calls):
    left = [calls]

    def advance(documents):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return advance


def test_texts_too_short_for_a_window_repeat_only_equal_ones(tmp_path):
    assert found_by(tmp_path, ["up 8%", "UP 8 %", "up 9%", "€", "€", "$"], 4)[1] == [
        KEPT,
        EQUAL,
        KEPT,
        KEPT,
        EQUAL,
        KEPT,
    ]


lines = st.one_of(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), st.sampled_from(
    [MARKER, f"\\{MARKER}", f"\\\\{MARKER}", f" {MARKER}", f"{MARKER}x", "", "\\"]))  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.lists(lines, min_size=1, max_size=5).map("\n".join).filter(str.strip), max_size=5))
def test_texts_in_one_file_come_back_as_they_were(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("plain") / "finance_corpus.txt"
    assert write_plain(file, texts) == len(texts)
    assert list(read_plain(file, "utf-8", "marker", 10**6)) == texts


def test_other_text_files_are_separated_as_told(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("one\ntwo\n\n\nthree\n")
    read = {kind: list(read_plain(file, None, kind, 100)) for kind in ("marker", "blank", "line")}
    assert read == {"marker": ["one\ntwo\n\n\nthree"], "blank": ["one\ntwo", "three"], "line": ["one", "two", "three"]}
    assert len(next(read_plain(file, None, "marker", 4))) <= 10  # of a long text only a part is held
