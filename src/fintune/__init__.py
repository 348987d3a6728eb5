"""fintune adapts open language models to finance, measures what that bought, and says so honestly.

Everything public is here; the rest of the package may change between versions.
"""

# First of all: libraries read these settings once, when they are imported.
from typing import TYPE_CHECKING, Any

from fintune.schema.cuda_memory import settle_cuda_memory
from fintune.schema.network import settle_network

settle_network()
settle_cuda_memory()

from fintune import adapters  # noqa: E402
from fintune.api import (  # noqa: E402
    check_data,
    compare,
    doctor,
    estimate,
    evaluate,
    load,
    prepare_data,
    preview,
    recipes,
    report,
    tasks,
    train,
)
from fintune.schema.errors import FintuneError  # noqa: E402
from fintune.schema.outcomes import PreviewSample, TaskInfo, TrainingOutcome  # noqa: E402
from fintune.schema.recipe import Recipe  # noqa: E402

if TYPE_CHECKING:
    from fintune.answering import answer
    from fintune.backtesting import backtest
    from fintune.collecting import collect
    from fintune.corpora import build_corpus
    from fintune.curriculum import CurriculumTrainer
    from fintune.drawing import figures
    from fintune.exporting import export
    from fintune.exporting.push import push
    from fintune.flare import FLAREEvaluator
    from fintune.judging import judge
    from fintune.labelling import predict_file
    from fintune.quant import quant_build, quant_evaluate

_ON_DEMAND = {
    "answer": "fintune.answering",
    "backtest": "fintune.backtesting",
    "CurriculumTrainer": "fintune.curriculum",
    "FLAREEvaluator": "fintune.flare",
    "build_corpus": "fintune.corpora",
    "collect": "fintune.collecting",
    "export": "fintune.exporting",
    "figures": "fintune.drawing",
    "judge": "fintune.judging",
    "predict_file": "fintune.labelling",
    "push": "fintune.exporting.push",
    "quant_build": "fintune.quant",
    "quant_evaluate": "fintune.quant",
}

__all__ = [
    "CurriculumTrainer",
    "FLAREEvaluator",
    "FintuneError",
    "PreviewSample",
    "Recipe",
    "TaskInfo",
    "TrainingOutcome",
    "adapters",
    "answer",
    "backtest",
    "build_corpus",
    "check_data",
    "collect",
    "compare",
    "doctor",
    "estimate",
    "evaluate",
    "export",
    "figures",
    "judge",
    "load",
    "predict_file",
    "prepare_data",
    "preview",
    "push",
    "quant_build",
    "quant_evaluate",
    "recipes",
    "report",
    "tasks",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports what few programs need when it is first asked for."""
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ON_DEMAND[name]), name)
