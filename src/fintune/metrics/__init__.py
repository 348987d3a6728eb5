"""What a set of answers is worth: scores, intervals and paired tests, as pure functions over arrays.

Enters: ``DocumentRecord`` sequences or plain arrays. Leaves: ``TaskResult``, ``Comparison`` and numbers. No torch.
A missing answer (``None``) is wrong in every score and never dropped; statistics cluster by ``group``.
"""

from fintune.metrics.calibration import expected_calibration_error, reliability_table
from fintune.metrics.classification import accuracy, confusion_matrix, macro_f1, mcc, per_class, tally, weighted_f1
from fintune.metrics.paired import mcnemar_p, sign_flip_p
from fintune.metrics.summary import compare, summarise

__all__ = [
    "accuracy",
    "compare",
    "confusion_matrix",
    "expected_calibration_error",
    "macro_f1",
    "mcc",
    "mcnemar_p",
    "per_class",
    "reliability_table",
    "sign_flip_p",
    "summarise",
    "tally",
    "weighted_f1",
]
