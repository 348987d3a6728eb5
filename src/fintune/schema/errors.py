"""The errors fintune raises on purpose: one base, one subclass per cause.

Every message is one sentence that names the file, row or key; ``remedy`` says what to do about it.
The command line prints both and exits with ``exit_code``: 2 for the user's mistake, 1 for ours.
"""

from __future__ import annotations


class FintuneError(Exception):
    """Base of all errors fintune raises deliberately.

    Args:
        message: one sentence naming what is wrong and where.
        remedy: one sentence saying what to do; empty when there is nothing to add.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class RecipeError(FintuneError):
    """A recipe has an unknown key, a bad value or an impossible combination."""


class DataError(FintuneError):
    """A data file, column, label or split is missing or malformed."""


class ModelError(FintuneError):
    """A base model cannot be found, read or used as asked."""


class AdapterError(FintuneError):
    """An adapter is missing, malformed or was made for another base model."""


class RunError(FintuneError):
    """A run directory or checkpoint is missing, incomplete or belongs to another run."""


class SaidElsewhere(RunError):
    """A run of several processes has failed, and another of them has said why; this one only ends."""

    exit_code = 1


class DependencyError(FintuneError):
    """An optional library that the request needs is not installed."""


class ProviderError(FintuneError):
    """A provider of data needs a key, refuses to answer, or cannot be reached."""


class InternalError(FintuneError):
    """Something fintune promised did not hold; the fault is ours."""

    exit_code = 1
