"""Classical systems scored on the same documents, so that a tuned model has something honest to beat.

Enters: the very training rows the model saw and the test rows. Leaves: one ``DocumentRecord`` per test document and
system. Majority class; a lexicon (VADER, MIT, general-purpose; Loughran-McDonald from the user's own copy, because its
licence forbids shipping it); TF-IDF with logistic regression; for stock movement the last direction in sight, and rise.
"""

from __future__ import annotations

import logging
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fintune.evaluation.records import answer_records
from fintune.schema.errors import DependencyError, RecipeError
from fintune.schema.example import Example
from fintune.schema.results import DocumentRecord
from fintune.tasks import Task

logger = logging.getLogger(__name__)

POLARITIES = ("negative", "neutral", "positive")
VADER_WINDOW = 200
VADER_THRESHOLD = 0.05
TFIDF_COSTS = (1.0, 3.0, 10.0, 30.0, 100.0)
CROSS_VALIDATION_FOLDS = 4
TFIDF_CHARACTERS = 3_000_000
"""Characters of training texts up to which the learnt baseline takes its time."""

LEARNT = frozenset({"majority", "tfidf"})
"""Systems that learn from training rows."""

Answer = tuple[str | None, tuple[float, ...] | None]
"""A predicted choice and, where the system has them, probabilities in the order of the choices."""


def run_baselines(
    names: Sequence[str],
    train: Sequence[Example],
    test: Sequence[Example],
    task: Task,
    seed: int,
) -> dict[str, list[DocumentRecord]]:
    """Scores classical systems on the test documents.

    Args:
        names: of ``majority``, ``lexicon``, ``tfidf``, ``last_direction`` and ``always_rise``.
        train: the rows the model was trained on; only these are learnt from.
        test: the documents to answer.
        task: the task; one without a closed label set has no baselines here.
        seed: shuffles the cross-validation folds.

    Returns:
        Records by system. A system that does not apply (a lexicon where the labels are not polarities, a learnt
        system without training rows) is left out, and the log says so.
    """
    records: dict[str, list[DocumentRecord]] = {}
    for name in names:
        if name not in _SYSTEMS:
            raise RecipeError(f"There is no baseline named {name!r}.", f"Choose from {', '.join(_SYSTEMS)}.")
        if not test or not test[0].choices:
            logger.info("Baseline %s: task %s has no closed label set to answer with.", name, task.name)
            continue
        answers = _answers(name, task, train, test, seed)
        if answers is None:
            logger.info("Baseline %s does not apply to task %s and is left out.", name, task.name)
            continue
        records[name] = [
            record
            for example, (answer, probabilities) in zip(test, answers, strict=True)
            for record in answer_records(name, task, example, answer, probabilities, protocols=("robust",))
        ]
    return records


def _answers(
    name: str, task: Task, train: Sequence[Example], test: Sequence[Example], seed: int
) -> list[Answer] | None:
    """One answer a document; where a task asks several questions about it, a learnt system learns each by itself."""
    if task.scoring != "questions" or name not in LEARNT:
        return _SYSTEMS[name](train, test, seed)
    answers: list[Answer] = [(None, None)] * len(test)
    for question in dict.fromkeys(example.metadata.get("question") for example in test):
        rows = [example for example in train if example.metadata.get("question") == question]
        positions = [i for i, example in enumerate(test) if example.metadata.get("question") == question]
        found = _SYSTEMS[name](rows, [test[i] for i in positions], seed) if rows else None
        if found is None:
            return None
        for i, answer in zip(positions, found, strict=True):
            answers[i] = answer
    return answers


def _majority(train: Sequence[Example], test: Sequence[Example], seed: int) -> list[Answer] | None:
    """The most frequent training label; its probabilities are the training frequencies. Ties: the first choice."""
    if not train:
        return None
    choices = test[0].choices
    counts = Counter(_targets(train, choices))
    frequencies = tuple(counts[choice] / len(train) for choice in choices)
    return [(choices[int(np.argmax(frequencies))], frequencies)] * len(test)


def _vader(train: Sequence[Example], test: Sequence[Example], seed: int) -> list[Answer] | None:
    """VADER (Hutto and Gilbert, ICWSM 2014) with its authors' thresholds: compound >= 0.05, <= -0.05.

    It was made for short texts, and its time grows with the square of their length: a longer text gets the mean over
    windows of ``VADER_WINDOW`` words.
    """
    words = _polarity_words(test[0].choices)
    if words is None:
        return None
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise DependencyError("The lexicon baseline needs vaderSentiment.", "pip install vaderSentiment") from error
    analyzer = SentimentIntensityAnalyzer()
    scores = (
        statistics.fmean(float(analyzer.polarity_scores(part)["compound"]) for part in _windows(example.document))
        for example in test
    )
    return [(words[_polarity(score, VADER_THRESHOLD)], None) for score in scores]


def _windows(text: str) -> list[str]:
    words = text.split()
    if len(words) <= VADER_WINDOW:
        return [text]
    return [" ".join(words[start : start + VADER_WINDOW]) for start in range(0, len(words), VADER_WINDOW)]


def _polarity(score: float, threshold: float) -> str:
    if score >= threshold:
        return "positive"
    return "negative" if score <= -threshold else "neutral"


def _targets(train: Sequence[Example], choices: Sequence[str]) -> list[str]:
    """Training targets in the test prompt's words: another prompt may call the same label ``Positive``."""
    return [
        choices[example.choices.index(example.target)]
        if len(example.choices) == len(choices) and example.target in example.choices
        else example.target
        for example in train
    ]


def _polarity_words(choices: Sequence[str]) -> Mapping[str, str] | None:
    """The choices by polarity, None unless they are exactly the three polarities."""
    words = {choice.lower(): choice for choice in choices}
    return words if set(words) == set(POLARITIES) else None


def _tfidf(train: Sequence[Example], test: Sequence[Example], seed: int) -> list[Answer] | None:
    """TF-IDF of words (1-2) and characters (2-5, inside words), logistic regression; C by cross-validated macro-F1.

    Its time grows with the characters it reads, so a large training set is bounded: from ``TFIDF_CHARACTERS`` on only
    words count, and rows beyond four times as many characters are left out at random. C is chosen on that many too.
    """
    targets = _targets(train, test[0].choices)
    if len(set(targets)) < 2:
        return _majority(train, test, seed)
    texts = [example.document for example in train]
    rows = _within(texts, 4 * TFIDF_CHARACTERS, seed)
    if len(rows) < len(texts):
        logger.info("Baseline tfidf: learns from %d of %d training rows, drawn at random.", len(rows), len(texts))
    texts, targets = [texts[row] for row in rows], [targets[row] for row in rows]
    has_pieces = sum(map(len, texts)) <= TFIDF_CHARACTERS
    chosen_on = _within(texts, TFIDF_CHARACTERS, seed)
    cost = _choose_cost([texts[row] for row in chosen_on], [targets[row] for row in chosen_on], seed, has_pieces)
    logger.info("Baseline tfidf: C=%g, chosen by cross-validation on %d training rows.", cost, len(chosen_on))
    features = _features(has_pieces)
    model = _classifier(cost).fit(features.fit_transform(texts), targets)
    by_class = {label: column for column, label in enumerate(model.classes_)}
    probabilities = model.predict_proba(features.transform([example.document for example in test]))
    answers: list[Answer] = []
    for example, row in zip(test, probabilities, strict=True):
        aligned = tuple(float(row[by_class[c]]) if c in by_class else 0.0 for c in example.choices)
        answers.append((example.choices[int(np.argmax(aligned))], aligned))
    return answers


def _within(texts: Sequence[str], characters: int, seed: int) -> list[int]:
    """Rows whose texts have at most so many characters together: all, or as many as fit of a random order."""
    rows = list(range(len(texts)))
    if sum(map(len, texts)) <= characters:
        return rows
    random.Random(seed).shuffle(rows)
    ends = np.cumsum([len(texts[row]) for row in rows])
    return sorted(rows[: max(1, int(np.searchsorted(ends, characters, side="right")))])


def _choose_cost(texts: Sequence[str], targets: Sequence[str], seed: int, has_pieces: bool) -> float:
    """The C with the best mean macro-F1 over stratified folds; 1 when a class is too rare to fold."""
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold

    folds = min(CROSS_VALIDATION_FOLDS, min(Counter(targets).values()))
    if folds < 2:
        return 1.0
    labels = np.asarray(targets)
    scores = dict.fromkeys(TFIDF_COSTS, 0.0)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fit_rows, held_rows in splitter.split(np.zeros(len(labels)), labels):
        features = _features(has_pieces)
        fit_x = features.fit_transform([texts[row] for row in fit_rows])
        held_x = features.transform([texts[row] for row in held_rows])
        for cost in TFIDF_COSTS:
            model = _classifier(cost).fit(fit_x, labels[fit_rows])
            scores[cost] += float(f1_score(labels[held_rows], model.predict(held_x), average="macro"))
    return max(scores, key=lambda cost: scores[cost])


def _classifier(cost: float) -> Any:
    """Multinomial logistic regression. newton-cg: with far more features than rows, lbfgs takes ten times as long."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=cost, solver="newton-cg", tol=1e-3, max_iter=200)


def _features(has_pieces: bool) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # token_pattern keeps one-letter words and signs such as $ and %, which matter in headlines.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[$%+-]")
    if not has_pieces:
        return words
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    return FeatureUnion([("words", words), ("characters", characters)])


def _last_direction(train: Sequence[Example], test: Sequence[Example], seed: int) -> list[Answer] | None:
    """The direction of the latest move that the document shows; rise where it shows none."""
    words = _directions(test[0].choices)
    if words is None:
        return None
    return [(words.get(str(example.metadata.get("last_move")).lower(), words["rise"]), None) for example in test]


def _always_rise(train: Sequence[Example], test: Sequence[Example], seed: int) -> list[Answer] | None:
    words = _directions(test[0].choices)
    return None if words is None else [(words["rise"], None)] * len(test)


def _directions(choices: Sequence[str]) -> Mapping[str, str] | None:
    """The choices by direction, None unless they are exactly rise and fall, or up and down."""
    words = {_DIRECTIONS.get(choice.lower(), ""): choice for choice in choices}
    return words if set(words) == {"rise", "fall"} else None


_DIRECTIONS = {"rise": "rise", "fall": "fall", "up": "rise", "down": "fall"}
_SYSTEMS: Mapping[str, Callable[[Sequence[Example], Sequence[Example], int], list[Answer] | None]] = {
    "majority": _majority,
    "lexicon": _vader,
    "tfidf": _tfidf,
    "last_direction": _last_direction,
    "always_rise": _always_rise,
}
CLASSICAL = frozenset(_SYSTEMS)
"""All systems here; each chooses from a closed label set."""
