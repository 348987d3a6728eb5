"""A question that travels: what is to be asked of each row, in words that another process or machine can act on.

Enters: the name of a model and of a task. Leaves: a ``Question``, with the model loaded where it is opened, and what is
to be known of it by those who only pass rows on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fintune.metrics.abstention import Abstention
from fintune.schema.errors import InternalError
from fintune.serving.answers import Prediction, Question


@dataclass(frozen=True)
class Posed:
    """A question in words.

    Attributes:
        place: run, adapter or model, as ``load`` takes it.
        task: its task; None is its first.
        abstain: accuracy that the answers should have.
        quantization: none, nf4, int8 or fp8; the run's own when None.
        device: torch device; a GPU if there is one, when None.
        bf16_products: as ``load_predictor``.
    """

    place: str
    task: str | None = None
    abstain: float | None = None
    quantization: str | None = None
    device: str | None = None
    bf16_products: bool = False

    def open(self) -> Question:
        """The question, with the model loaded here."""
        import torch

        from fintune.models.named import named_device
        from fintune.serving.predictor import load_predictor

        device = named_device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        held: dict[str, Any] = {"quantization": self.quantization, "bf16_products": self.bf16_products, "merge": True}
        predictor = load_predictor(self.place, device=device, **held, needs_template=False)
        threshold = None if self.abstain is None else predictor.abstention(self.abstain, task=self.task).threshold
        return Question(predictor, self.task, threshold)

    def known(self, question: Question) -> dict[str, Any]:
        """What those who pass rows on must know of the opened question; JSON can hold it."""
        found = None
        if self.abstain is not None:
            from fintune.serving.predictor import Predictor

            assert isinstance(question.labeller, Predictor)
            found = asdict(question.labeller.abstention(self.abstain, task=self.task))
        return {
            "choices": list(question.labeller.choices(self.task)),
            "fingerprint": question.labeller.fingerprint(self.task),
            "rows_a_part": question.rows_a_part,
            "threshold": question.threshold,
            "abstention": found,
        }


@dataclass(frozen=True)
class Elsewhere:
    """A labeller that is in other processes: all there is to know of it but its answers."""

    names: tuple[str, ...]
    hashes: Mapping[str, str]
    rows_a_part: int

    def read(self, texts: Sequence[str], task: str | None = None) -> Any:
        """Raises an ``InternalError``: engines ask the other processes."""
        raise InternalError("A labeller of other processes was asked in this one.")

    def label_read(self, read: Any, threshold: float | None = None) -> list[Prediction | None]:
        """Raises an ``InternalError``, as ``read`` does."""
        raise InternalError("A labeller of other processes was asked in this one.")

    def choices(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of the task."""
        return self.names

    def fingerprint(self, task: str | None) -> dict[str, str]:
        """What the answers depend on."""
        return dict(self.hashes)


def question_elsewhere(posed: Posed, known: Mapping[str, Any]) -> tuple[Question, Abstention | None]:
    """The question of other processes, from what one of them says of it, and its threshold in words."""
    labeller = Elsewhere(tuple(known["choices"]), known["fingerprint"], known["rows_a_part"])
    found = known["abstention"]
    return Question(labeller, posed.task, known["threshold"]), None if found is None else Abstention(**found)
