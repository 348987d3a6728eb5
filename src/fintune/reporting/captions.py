"""What each figure shows, in a sentence, and which were not drawn and why.

Enters: runs and their results. Leaves: captions by name of the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fintune.reporting.curves import curves_caption
from fintune.reporting.efficiency import EFFICIENCY_CAPTION
from fintune.reporting.figures import comparison_caption
from fintune.reporting.hardware import HARDWARE_CAPTION
from fintune.reporting.run_data import RunData
from fintune.reporting.stages import STAGES_CAPTION
from fintune.reporting.wording import file_names, tasks_of
from fintune.schema.results import EvaluationResults


def picture_captions(runs: Sequence[RunData], results: EvaluationResults) -> dict[str, str]:
    """The caption of every figure that there can be of these runs and their results together."""
    several = "Training of each run by optimiser step; losses and gradient norms logged often are running medians."
    captions = {
        "training_curves": curves_caption(runs[0].history) if len(runs) == 1 else several,
        "gpu_utilization": HARDWARE_CAPTION,
        "performance_comparison": comparison_caption(results),
        "efficiency_comparison": EFFICIENCY_CAPTION,
        "curriculum_comparison": STAGES_CAPTION,
    }
    for task, name in file_names(tasks_of(results)).items():
        captions[f"confusion_{name}"] = f"Targets by answers on {task}."
        captions[f"calibration_{name}"] = f"Share right by probability of the answer, {task}."
    return captions


def not_drawn(left_out: Mapping[str, str]) -> list[str]:
    """One sentence that names the figures left out by reason; none where all were drawn."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
    return [f"Not drawn: {said}."] if said else []
