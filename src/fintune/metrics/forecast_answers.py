"""What a written weekly forecast says: its sections, the direction it commits itself to, and how far.

Enters: an answer as a model wrote it. Leaves: ``ForecastAnswer``. ``parse_strict`` follows FinGPT-Forecaster's
published rules with their defects, so that its figures can be compared; ``parse_robust`` is ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fintune.metrics.forecast_movement import prose_movement, stated_movement
from fintune.metrics.forecast_sections import sections_of
from fintune.metrics.return_bins import bin_of

MAX_CHARACTERS = 20_000
"""Longer answers are runaway text that commits itself to nothing: they are missing."""

FEW_WORDS = 6
"""An answer without headings and with no more words is a prediction as a whole: "Up by 1-2%"."""


@dataclass(frozen=True)
class ForecastAnswer:
    """One answer, read.

    Attributes:
        positives: text of the section on positive developments; "" where there is none.
        concerns: text of the section on potential concerns.
        prediction: the text that the direction was read from.
        analysis: text of the analysis.
        direction: 1 up, -1 down, 0 where the answer expects no change (strictly: where no direction was found); None
            where the answer is missing.
        magnitude: expected change in signed percent points; None where no figure could be read.
        missing: why nothing could be read; "" where a direction was.
    """

    positives: str = ""
    concerns: str = ""
    prediction: str = ""
    analysis: str = ""
    direction: int | None = None
    magnitude: float | None = None
    missing: str = ""

    @property
    def bin(self) -> str | None:
        """The bin of the magnitude, such as U3; None without a magnitude, or where that is 0."""
        return bin_of(self.magnitude / 100) if self.magnitude else None


def parse_strict(text: str) -> ForecastAnswer:
    r"""FinGPT's reading (FinGPT_Forecaster/utils.py, ``parse_answer``), defects included.

    The three bracketed headings must stand in their order, in that case, each followed by a colon, the first at the
    beginning and the last spelt with "&" or "and"; what follows the last must begin with ``Prediction:`` and go on to
    ``Analysis:``. Otherwise the answer is missing. A heading that occurs twice divides at its last place. Then:

    - "up" or "increase" anywhere in the prediction is a rise, within "support" too, and beats every word for a fall:
      "down", "decrease", "decline". Without any of these words the direction is 0, which is an answer.
    - The figure is the first ``a-b%`` of single digits with a hyphen, taken as a + 0.5 whatever b is. Failing that it
      is the digit before the first ``%``, plus 0.5: "more than 5%" is 5.5, but so is "2.5%", and "10%" is 0.5.
      Without a figure the magnitude is 0, which is an answer.
    """
    sections = _STRICT.match(text)
    parts = None if sections is None else _STRICT_PREDICTION.match(sections["rest"])
    if sections is None or parts is None:
        return ForecastAnswer(missing="sections" if sections is None else "prediction and analysis")
    said = parts["prediction"]
    lowered = said.lower()
    falls = any(word in lowered for word in ("down", "decrease", "decline"))
    direction = 1 if "up" in lowered or "increase" in lowered else -1 if falls else 0
    figure = _STRICT_RANGE.search(said) or _STRICT_FIGURE.search(said)
    return ForecastAnswer(
        positives=sections["positives"],
        concerns=sections["concerns"],
        prediction=said,
        analysis=parts["analysis"],
        direction=direction,
        magnitude=direction * (int(figure[1]) + 0.5) if figure else 0.0,
    )


def parse_robust(text: str) -> ForecastAnswer:
    """Our reading: sections by the meaning of their headings, and only a direction that the answer commits itself to.

    The direction is read from the prediction's section, else from the forecasts in the analysis, else from those in
    the whole answer. An answer that says both ways, denies the only movement it names, or names none is missing, with
    the reason; so is one whose analysis forecasts, with a figure, the opposite of its prediction. What a statement
    is worth: ``fintune.metrics.forecast_movement``.
    """
    if len(text) > MAX_CHARACTERS:
        return ForecastAnswer(missing=f"longer than {MAX_CHARACTERS:,} characters")
    if not text.strip():
        return ForecastAnswer(missing="empty")
    sections = sections_of(text)
    if not sections and len(text.split()) <= FEW_WORDS:
        sections = {"prediction": text.strip()}
    analysis = sections.get("analysis", "")
    read = ForecastAnswer(sections.get("positives", ""), sections.get("concerns", ""), analysis=analysis)
    if said := sections.get("prediction", ""):
        movement, explained = stated_movement(said), prose_movement(analysis, with_figure=True)
        if movement.direction and explained.direction == -movement.direction:
            return replace(read, prediction=said, missing="the analysis forecasts the opposite of the prediction")
    else:
        said = analysis or ("" if sections else text)
        movement = prose_movement(said)
    return replace(
        read,
        prediction=said,
        direction=movement.direction,
        magnitude=movement.magnitude,
        missing=movement.missing,
    )


_STRICT = re.compile(
    r"\s*\[Positive Developments\]:\s*(?P<positives>.*)\[Potential Concerns\]:\s*(?P<concerns>.*)"
    r"\[Prediction (?:&|and) Analysis\]:\s*(?P<rest>.*)",
    re.DOTALL,
)
_STRICT_PREDICTION = re.compile(r"Prediction:\s*(?P<prediction>.*)Analysis:\s*(?P<analysis>.*)", re.DOTALL)
_STRICT_RANGE = re.compile(r"(\d)-\d%")
_STRICT_FIGURE = re.compile(r"(\d)%")
