"""What evaluation writes and reporting reads: per-document records, aggregates with intervals, comparisons.

``predictions.jsonl`` holds one ``DocumentRecord`` per line; ``results.json`` holds one ``EvaluationResults``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Protocol = Literal["robust", "flare_strict"]
"""How an answer is read: ``flare_strict`` is the reference implementation's rules as they are, ``robust`` is ours."""
Scoring = Literal["classification", "questions", "tagging", "qa", "text", "chat"]
"""Family of scores a task is aggregated by."""


@dataclass(frozen=True)
class Judgement:
    """What one answer is worth under one protocol.

    Attributes:
        prediction: what was read out of the answer; None when nothing could be read (missing).
        correct: whether it is right as a whole.
        counts: numbers that aggregates add up over documents, by name.
    """

    prediction: str | None
    correct: bool
    counts: Mapping[str, float] = field(default_factory=dict)


LOWER_IS_BETTER = frozenset({"perplexity", "byte_perplexity", "invented_numbers"})
"""Scores of which less is better; all others the other way round."""
SIGNIFICANT = 0.05
"""P-values from here on show no difference."""
SAMPLE_OF = "sample of "
"""What the source of a shipped sample begins with; the whole's hub id, or the task's name, follows."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DocumentRecord(_Frozen):
    """One document as one system answered it, read under one protocol.

    ``output`` is the answer as given (None: the document did not fit the model, or the system has no words);
    ``prediction`` what the protocol read out of it, None when nothing (missing); ``counts`` what aggregates add up.
    ``reference`` is an answer that was published for the document: compared with, never scored as right.
    ``dialogue`` names the conversation a turn belongs to; ``truncated`` says that the document was shortened to fit.
    """

    system: str
    task: str
    example_id: str
    group: str
    target: str
    prediction: str | None
    correct: bool
    protocol: Protocol = "robust"
    output: str | None = None
    counts: dict[str, float] = {}
    dialogue: str = ""
    truncated: bool = False
    choices: tuple[str, ...] = ()
    probabilities: tuple[float, ...] | None = None
    log_likelihoods: tuple[float, ...] | None = None
    text: str = ""
    reference: str = ""


class Estimate(_Frozen):
    """A metric with its confidence interval; ``low`` and ``high`` are None when no interval applies."""

    value: float
    low: float | None = None
    high: float | None = None


class ClassScores(_Frozen):
    """Precision, recall and F1 of one class; ``support`` counts the documents whose target it is."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class TaskResult(_Frozen):
    """One system's scores on one task.

    ``metrics`` depends on the task's scoring family and ``primary`` names the one to quote. With a closed label set it
    holds at least accuracy, macro_f1, weighted_f1 and mcc; ``confusion`` then has one row per target label and one
    column per predicted label, then a last column for missing answers. ``decoding`` says whether the answers were the
    best of the labels (as those of classical systems are) or written freely; ``n_shortened`` of the documents were cut
    to fit the model.
    """

    system: str
    task: str
    task_version: str
    split: str
    n: int
    n_groups: int
    missing_rate: float
    confidence: float
    metrics: dict[str, Estimate]
    protocol: Protocol = "robust"
    primary: str = "accuracy"
    scoring: Scoring = "classification"
    decoding: Literal["ranked", "written"] = "ranked"
    n_shortened: int = 0
    per_class: tuple[ClassScores, ...] = ()
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


class Comparison(_Frozen):
    """A paired comparison of ``system`` with ``reference`` on the same documents of one task.

    ``differences`` are system minus reference by paired bootstrap over groups. The p-values are two-sided and about
    ``primary``. ``mcnemar_p`` is exact; it is None when the documents are not independent (a group holds several) or
    the primary score is no accuracy. ``sign_flip_p`` swaps the two systems a whole group at a time, which holds for
    groups of any size: exactly on accuracy, otherwise by enumeration or 9,999 random swaps. ``holm_p`` is that p-value
    after Holm's correction over all tasks on which the same two systems are compared; None for one task.
    """

    task: str
    system: str
    reference: str
    n: int
    only_system_correct: int
    only_reference_correct: int
    mcnemar_p: float | None
    sign_flip_p: float | None = None
    differences: dict[str, Estimate]
    protocol: Protocol = "robust"
    primary: str = "accuracy"
    holm_p: float | None = None

    @property
    def headline(self) -> tuple[str, Estimate | None]:
        """The primary score's name and difference; another's in results that lack it."""
        name = self.primary if self.primary in self.differences else next(iter(self.differences), "")
        return name, self.differences.get(name)

    @property
    def p_value(self) -> float | None:
        """The one p-value to go by: Holm's where several tasks were tested, else the exact test's."""
        exact = self.sign_flip_p if self.mcnemar_p is None else self.mcnemar_p
        return exact if self.holm_p is None else self.holm_p

    @property
    def side(self) -> Literal["above", "below", "unclear"]:
        """Where the system stands: the headline's interval excludes zero, and no test says otherwise at 0.05.

        Above is better, also where less is better.
        """
        name, difference = self.headline
        if (
            difference is None
            or difference.low is None
            or difference.high is None
            or difference.low <= 0 <= difference.high
        ):
            return "unclear"
        if self.p_value is not None and self.p_value >= SIGNIFICANT:
            return "unclear"
        return "above" if (difference.low > 0) != (name in LOWER_IS_BETTER) else "below"


class RepeatedScore(_Frozen):
    """One score of one system over several runs of it (seeds): its value in each, their mean and sample deviation."""

    task: str
    system: str
    metric: str
    values: tuple[float, ...]
    mean: float
    deviation: float
    protocol: Protocol = "robust"


class OverlapReport(_Frozen):
    """Test documents of ``task`` that also occur in the training rows of ``trained_on`` (of all tasks, where empty).

    ``exact``, ``normalised`` and ``near`` count test documents with an equal text, an equal normalised text or a
    near-duplicate in train; each includes the one before. ``near`` is 0 where ``near_threshold``, the least Jaccard
    similarity of shingles, is None: near-duplicates were not looked for. ``same_document`` (a report page, a filing)
    and ``same_ticker_week`` count test documents apart from these; they are None where not both sides say it. So does
    ``same_exchanges`` with conversations that share half of their answers, or of the other's, with one of train.
    """

    task: str
    n_train: int
    n_test: int
    exact: int
    normalised: int
    removed_from_train: int
    near: int = 0
    near_threshold: float | None = None
    trained_on: str = ""
    same_document: int | None = None
    same_ticker_week: int | None = None
    same_exchanges: int | None = None


class DataLicence(_Frozen):
    """Where a task's rows came from and on what terms."""

    task: str
    source: str
    licence: str
    citation: str
    split_note: str = ""
    content_hash: str = ""

    @property
    def is_sample(self) -> bool:
        """Whether the rows are those that ship with fintune."""
        return self.source.startswith(SAMPLE_OF)


class TimeCost(_Frozen):
    """What one system's answers to ``n`` documents of a task took, several of them being answered at once.

    ``written_tokens`` is None where answers were ranked. Documents answered in an earlier start are not among ``n``.
    """

    system: str
    task: str
    n: int
    elapsed_s: float
    written_tokens: int | None = None

    @property
    def s_per_answer(self) -> float | None:
        """Seconds an answer, None without answers."""
        return self.elapsed_s / self.n if self.n else None

    @property
    def tokens_per_s(self) -> float | None:
        """Written tokens a second, None where nothing was written or no time was measured."""
        return self.written_tokens / self.elapsed_s if self.written_tokens is not None and self.elapsed_s else None


class EvaluationResults(_Frozen):
    """Everything one evaluation measured; written to ``results.json``."""

    model: str
    adapter: str | None
    results: tuple[TaskResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    overlap: tuple[OverlapReport, ...] = ()
    data: tuple[DataLicence, ...] = ()
    repeats: tuple[RepeatedScore, ...] = ()
    counts: dict[str, Any] = {}
    elapsed_s: float = 0.0
    time_costs: tuple[TimeCost, ...] = ()

    def find(self, task: str, system: str, protocol: Protocol = "robust") -> TaskResult | None:
        """The result of ``system`` on ``task`` under ``protocol``, or None when it was not measured."""
        return next((r for r in self.under(protocol) if r.task == task and r.system == system), None)

    def under(self, protocol: Protocol) -> tuple[TaskResult, ...]:
        """The results under one protocol."""
        return tuple(r for r in self.results if r.protocol == protocol)
