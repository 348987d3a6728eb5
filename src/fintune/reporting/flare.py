"""FLARE's scores as its papers print them: one row a system, one column a task, published rows above ours.

Enters: ``EvaluationResults``. Leaves: a ``Table`` by FLARE's rules and one by ours; both also as LaTeX and Markdown
files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from fintune.reporting.beside import published_value
from fintune.reporting.chance import STOCK_TASKS
from fintune.reporting.published import STOCK_MOVEMENT, published_rows
from fintune.reporting.tables import Table
from fintune.reporting.wording import CLASSICAL, answers_phrase, percent, rules_name, system_name, systems_of
from fintune.schema.results import EvaluationResults, Protocol, TaskResult

_ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One column: its task or stock movement, the metric, and its head by FLARE's rules and by ours."""

    task: str
    metric: str
    strict_head: str
    robust_head: str

    def head(self, protocol: Protocol) -> str:
        """The column's head under one protocol."""
        return self.strict_head if protocol == "flare_strict" else self.robust_head


COLUMNS = (
    Column("finqa", "accuracy", "FinQA EM", "FinQA acc"),
    Column("convfinqa", "accuracy", "ConvFinQA EM", "ConvFinQA acc"),
    Column("fpb", "weighted_f1", "FPB F1", "FPB F1"),
    Column("fiqa_sa", "weighted_f1", "FiQA-SA F1", "FiQA-SA F1"),
    Column(STOCK_MOVEMENT, "accuracy", "SMP acc", "SMP acc"),
    Column("ner", "entity_f1", "NER F1", "NER F1"),
    Column("headlines", "avg_f1", "Headlines AvgF1", "Headlines AvgF1"),
)
_TASKS = frozenset({*(column.task for column in COLUMNS), *STOCK_TASKS})


def flare_tables(results: EvaluationResults) -> list[Table]:
    """The table by FLARE's rules, then the one by ours; empty where none of its tasks was measured."""
    protocols: tuple[Protocol, ...] = ("flare_strict", "robust")
    return [table for protocol in protocols if (table := flare_table(results, protocol)) is not None]


def flare_table(results: EvaluationResults, protocol: Protocol) -> Table | None:
    """Published systems, then ours with n and missing rates, under one protocol.

    None where none of FLARE's tasks was measured under it. The rows of a shipped sample are no test set of FLARE's: a
    task measured on them is left out, as it is beside single published figures.
    """
    samples = {data.task for data in results.data if data.is_sample}
    found = [result for result in results.under(protocol) if result.task in _TASKS]
    sampled = [task for task in dict.fromkeys(result.task for result in found) if task in samples]
    found = [result for result in found if result.task not in samples]
    if not found:
        return None
    results = results.model_copy(update={"results": tuple(found)})
    measured = {result.task for result in found}
    stocks = [task for task in STOCK_TASKS if task in measured]
    ours = [("n of ours", *_document_cells(found, stocks))]
    for system in systems_of(results, protocol=protocol):
        cells = _our_cells(results, system, protocol, stocks)
        if any(cell != _ABSENT for cell in cells):
            ours += [(system_name(system), *cells), *_missing_row(results, system, protocol, stocks)]
    published = _published_rows(stocks or STOCK_TASKS)
    rows = [*((name, *cells) for name, cells in published.items()), *ours]
    tuned = [i for i, row in enumerate(rows) if i >= len(published) and row[0] == system_name("tuned")]
    how = answers_phrase(found) if protocol == "flare_strict" else ""
    by_rules = ", ".join(filter(None, [f"Results on FLARE by {rules_name(protocol)}", how]))
    return Table(
        name=f"results-{protocol.replace('_', '-')}",
        caption=f"{by_rules}; the first {len(published)} rows are published",
        columns=("System", *(column.head(protocol) for column in COLUMNS)),
        rows=tuple(rows),
        note=" ".join(_notes(protocol, stocks, sampled)),
        emphasised=frozenset(tuned),
        ruled=frozenset({len(published)}),
    )


def _our_cells(results: EvaluationResults, system: str, protocol: Protocol, stocks: Iterable[str]) -> tuple[str, ...]:
    def value(task: str, metric: str) -> float | None:
        found = results.find(task, system, protocol)
        return found.metrics[metric].value if found is not None and metric in found.metrics else None

    cells = []
    for column in COLUMNS:
        found = mean_of([value(task, column.metric) for task in _tasks_in(column, stocks)])
        cells.append(_ABSENT if found is None else f"{found:.3f}")
    return tuple(cells)


def _document_cells(found: Iterable[TaskResult], stocks: Iterable[str]) -> tuple[str, ...]:
    """How many documents each column's scores are of, all sets of stock movement together."""
    numbers = {result.task: result.n for result in found}
    totals = [sum(numbers.get(task, 0) for task in _tasks_in(column, stocks)) for column in COLUMNS]
    return tuple(f"{total:,}" if total else _ABSENT for total in totals)


def _missing_row(
    results: EvaluationResults, system: str, protocol: Protocol, stocks: Iterable[str]
) -> list[tuple[str, ...]]:
    """The share of a model's answers that could not be read, where there are such: they pull its scores down."""
    if system in CLASSICAL:
        return []
    rates = []
    for column in COLUMNS:
        found = [results.find(task, system, protocol) for task in _tasks_in(column, stocks)]
        rates.append(mean_of([None if result is None else result.missing_rate for result in found]))
    if not any(rates):
        return []
    return [(f"{system_name(system)}: missing", *(_ABSENT if rate is None else percent(rate) for rate in rates))]


def _tasks_in(column: Column, stocks: Iterable[str]) -> list[str]:
    return list(stocks) if column.task == STOCK_MOVEMENT else [column.task]


def _published_rows(stocks: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Published systems scored by FLARE's rules, in the data file's order; stock movement is the mean of those sets."""
    values: dict[str, dict[tuple[str, str], float]] = {}
    for row in published_rows():
        if row.protocol == "flare_strict":
            values.setdefault(row.system, {})[row.task, row.metric] = row.value
    return {
        system: tuple(_published_cell(found, column, stocks) for column in COLUMNS)
        for system, found in values.items()
        if any(_published_cell(found, column, stocks) != _ABSENT for column in COLUMNS)
    }


def _published_cell(found: Mapping[tuple[str, str], float], column: Column, stocks: Iterable[str]) -> str:
    value = found.get((column.task, column.metric))
    if value is not None:
        return published_value(value)
    if column.task != STOCK_MOVEMENT:
        return _ABSENT
    mean = mean_of([found.get((task, column.metric)) for task in stocks])
    return _ABSENT if mean is None else f"{mean:.3f}"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The plain mean; None where one is missing, or there are none."""
    known = list(values)
    found = [value for value in known if value is not None]
    return fmean(found) if found and len(found) == len(known) else None


def _notes(protocol: Protocol, stocks: list[str], sampled: list[str]) -> list[str]:
    names = ", ".join(stocks)
    notes = [
        "Published figures were measured by others, partly with other prompts and splits; each task's table tells.",
        f"SMP acc is the mean accuracy over {names}, of published systems too where all of these are published."
        if stocks
        else f"Stock movement was not measured here; published SMP acc is the mean over {', '.join(STOCK_TASKS)}.",
        "The curriculum paper's SMP acc is its own mean, over sets it does not name.",
        "Intervals of our scores stand in each task's table.",
    ]
    if sampled:
        notes.append(f"Measured on a shipped sample, and so left out here: {', '.join(sampled)}.")
    if protocol == "robust":
        notes.append("Published figures were read by FLARE's rules, ours by our own.")
    return notes
