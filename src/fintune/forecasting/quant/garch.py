"""GARCH(1,1) of each ticker: fitted on its training days by the library ``arch``, then only filtered.

::

    change = mean + sqrt(h) e        h' = omega + alpha (change - mean)^2 + beta h        e normal, or Student's t

Enters: ``Targets``. Leaves: ``Forecasts``: the day's variance follows from earlier changes with the fitted parameters.
Fits are kept beside the data (``garch.json``) and made again only for other days or another version of ``arch``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fintune.forecasting.quant.days import DayTable
from fintune.forecasting.quant.forecasts import Forecasts, Targets
from fintune.metrics.binned import from_cdf
from fintune.metrics.classification import Floats
from fintune.schema.errors import DependencyError
from fintune.schema.run_directory import write_json

Shape = Literal["normal", "t"]
CACHE = "garch.json"
_PER_CENT = 100  # arch asks for numbers near 1
NAMES: dict[Shape, str] = {"normal": "GARCH(1,1), normal", "t": "GARCH(1,1), Student's t"}


@dataclass(frozen=True)
class Fit:
    """Parameters of one ticker in per cent; ``degrees`` of Student's t is None where changes are normal.

    Attributes:
        mean: of the changes.
        omega: constant of the variance.
        alpha: weight of the last squared surprise.
        beta: weight of the last variance.
        start: variance before the first day: that of the training days.
        degrees: of freedom.
        converged: whether the optimiser said so.
    """

    mean: float
    omega: float
    alpha: float
    beta: float
    start: float
    degrees: float | None = None
    converged: bool = True

    def variances(self, changes: Floats) -> Floats:
        """(D,) variance of each day in per cent squared, from the days before it."""
        squared = (_PER_CENT * changes - self.mean) ** 2
        found = np.empty(len(changes))
        variance = self.start
        for day, surprise in enumerate(squared.tolist()):
            found[day] = variance
            variance = self.omega + self.alpha * surprise + self.beta * variance
        return found

    def cdf(self, standard: Floats) -> Floats:
        """The distribution function of changes with mean 0 and variance 1."""
        from scipy.special import ndtr, stdtr

        if self.degrees is None:
            normal: Floats = ndtr(standard)
            return normal
        students: Floats = stdtr(self.degrees, standard * np.sqrt(self.degrees / (self.degrees - 2)))
        return students


def garch(targets: Targets, shape: Shape, folder: Path, on_fit: Callable[[int, int], None] | None = None) -> Forecasts:
    """Forecasts of GARCH(1,1) with normal or Student's t surprises.

    Args:
        targets: what is forecast.
        shape: of the surprises.
        folder: where fits are kept.
        on_fit: told how many tickers are done, and of how many.

    Raises:
        DependencyError: ``arch`` is not installed.
    """
    fits = _fits(targets.days, shape, folder, on_fit)
    cdf = np.empty((len(targets.rows), targets.n_bins - 1))
    for rows, fit in zip(targets.days.series(), fits, strict=True):
        mine = (targets.rows >= rows.start) & (targets.rows < rows.stop)
        spread = np.sqrt(fit.variances(targets.days.change[rows]))[targets.rows[mine] - rows.start]
        edges = _PER_CENT * targets.edges[None] * targets.volatility[mine][:, None]
        cdf[mine] = fit.cdf((edges - fit.mean) / spread[:, None])
    failed = sum(not fit.converged for fit in fits)
    return Forecasts(NAMES[shape], from_cdf(cdf), counts={"fits": len(fits), "fits that did not converge": failed})


def _fits(days: DayTable, shape: Shape, folder: Path, on_fit: Callable[[int, int], None] | None) -> list[Fit]:
    path = folder / CACHE
    kept, fits = _read(path), []
    is_train, before = days.in_split("train"), len(kept)
    for place, rows in enumerate(days.series()):
        changes = days.change[rows][is_train[rows]]
        key = _key(changes, shape)
        if key not in kept:
            kept[key] = asdict(_fit(changes, shape))
        fits.append(Fit(**kept[key]))
        if on_fit is not None:
            on_fit(place + 1, len(days.tickers))
    if len(kept) > before:
        write_json(path, kept)
    return fits


def _fit(changes: Floats, shape: Shape) -> Fit:
    model = _arch().arch_model(_PER_CENT * changes, mean="Constant", vol="GARCH", p=1, q=1, dist=shape, rescale=False)
    found = model.fit(disp="off", show_warning=False)
    given = {name: float(value) for name, value in found.params.items()}
    start = float(np.var(_PER_CENT * changes))
    fit = Fit(
        mean=given["mu"],
        omega=given["omega"],
        alpha=given["alpha[1]"],
        beta=given["beta[1]"],
        start=start,
        degrees=given.get("nu"),
        converged=found.convergence_flag == 0,
    )
    if np.isfinite([*given.values()]).all():
        return fit
    return Fit(float(_PER_CENT * changes.mean()), start, 0.0, 0.0, start, 5.0 if shape == "t" else None, False)


def _key(changes: Floats, shape: Shape) -> str:
    content = hashlib.sha256(np.ascontiguousarray(changes).tobytes()).hexdigest()
    return f"{shape} {_arch().__version__} {content[:32]}"


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    """The fits that are kept; none where the file is absent or damaged, for they can be made again."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _arch() -> Any:
    try:
        import arch
    except ImportError as error:
        raise DependencyError(
            "GARCH needs the library arch, which is not installed.",
            "Install it with: pip install 'fintune[quant]'; or leave GARCH out with --no-garch.",
        ) from error
    return arch
