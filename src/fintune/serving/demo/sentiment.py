"""The sentiment tab without its page: the label of a text with all probabilities.

Enters: a text. Leaves: a ``Prediction``, under the first task with labels that the run was trained on.
"""

from __future__ import annotations

from fintune.schema.errors import DataError
from fintune.serving.answers import Prediction
from fintune.serving.predictor import Predictor
from fintune.tasks.classification import ClassificationTask
from fintune.tasks.registry import task_of

WITHOUT_TASK = "tfns"
"""Asked of models that were trained on no task with labels."""


def label_task(predictor: Predictor) -> str:
    """The task whose prompt and labels texts are asked with."""
    trained = (section.name for section in predictor.tasks if isinstance(task_of(section), ClassificationTask))
    return next(trained, WITHOUT_TASK)


def label_text(predictor: Predictor, text: str) -> Prediction:
    """The label of one text.

    Raises:
        DataError: there is no text, or it does not fit the model.
    """
    if not text.strip():
        raise DataError("There is no text.", "Write a headline or a sentence.")
    (found,) = predictor.answer([text], task=label_task(predictor))
    if found is None:
        raise DataError("The text does not fit the model with its prompt.", "Shorten it.")
    return found


def prediction_lines(found: Prediction) -> str:
    """Label and probabilities, one a line, the likeliest first."""
    ordered = sorted(found.probabilities.items(), key=lambda item: -item[1])
    lines = [found.label, *(f"{name} {probability:.3f}" for name, probability in ordered)]
    return "\n".join(lines + (["The text was shortened to fit."] if found.shortened else []))
