"""Results as people read them in a terminal: scores with intervals, paired comparisons, overlap.

Enters: ``EvaluationResults``. Leaves: rich tables and plain sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fintune.schema.results import Comparison, Estimate, EvaluationResults, Scoring, TaskResult

if TYPE_CHECKING:
    from fintune.reporting import tables as reporting

_RULES = "'s rules"
METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mcc": "MCC",
    "avg_f1": "average F1",
    "entity_f1": "entity F1",
    "dialogue_accuracy": "dialogues",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "win_rate": "win rate",
    "tie_rate": "ties",
    "order_dependent": "by order",
    "next_turn_accuracy": "next turn",
    "next_turn_chance": "by chance",
    "invented_numbers": "numbers invented",
}
_SHOWN: dict[Scoring, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "mcc"),
    "questions": ("avg_f1", "accuracy", "macro_f1"),
    "tagging": ("entity_f1", "precision", "recall"),
    "qa": ("accuracy", "exact", "dialogue_accuracy"),
    "text": ("accuracy", "token_f1", "rouge_l"),
    "chat": (
        "win_rate",
        "tie_rate",
        "order_dependent",
        "next_turn_accuracy",
        "next_turn_chance",
        "token_f1",
        "invented_numbers",
        "perplexity",
    ),
}
"""Scores that fit a terminal's width; the report has them all."""
NOT_MEASURED = "not measured: "
"""What the results' counts call a task of a suite that was left out, before its name."""
NOT_COMPARED = "training rows not compared: "
"""What they call a task the adapter was trained on whose rows were not to be had, before its name."""
_SYSTEM_ORDER = ("base", "tuned")


def plain_table(*headers: str) -> Table:
    """A table with a rule under its header and nothing else; its first column is never broken."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    for position, header in enumerate(headers):
        table.add_column(header, no_wrap=position == 0, overflow="fold")
    return table


def as_rich(table: reporting.Table) -> Table:
    """A table of the report for the terminal, its caption above and its note below."""
    shown = plain_table(*table.columns)
    shown.title, shown.caption = table.caption, table.note
    for position, column in enumerate(shown.columns):
        column.justify = "left" if position < table.text_columns else "right"
    for cells in table.rows:
        shown.add_row(*cells)
    return shown


def task_names(results: EvaluationResults) -> list[str]:
    """The measured tasks in the order of the results."""
    return list(dict.fromkeys(result.task for result in results.under("robust")))


def results_table(results: EvaluationResults, task: str) -> Table | Group:
    """One task: our rules, then FLARE's rules beside them and what others published, where there is either."""
    further = [part for part in (_rules_table(results, task), _published_table(results, task)) if part is not None]
    scores = _scores_table(results, task)
    return Group(scores, *further) if further else scores


def _scores_table(results: EvaluationResults, task: str) -> Table:
    """A row per system, base and tuned first, each metric with its interval."""
    from fintune.reporting.chance import CHANCE_MARK, chance_evidence

    rows = _in_order([result for result in results.under("robust") if result.task == task])
    metrics = dict.fromkeys([rows[0].primary, *_SHOWN[rows[0].scoring]])
    shown = [metric for metric in metrics if any(metric in row.metrics for row in rows)]
    table = _number_table("system", *(METRIC_TITLES.get(metric, metric) for metric in shown), "missing")
    table.title = f"{task}: {rows[0].split} split, {_documents(rows[0])}"
    by_chance = [row for row in rows if chance_evidence(row)]
    for row in rows:
        cells = [format_estimate(row.metrics.get(metric)) for metric in shown]
        name = f"{row.system} {CHANCE_MARK}" if row in by_chance else row.system
        table.add_row(name, *cells, f"{row.missing_rate:.1%}", style="bold" if row.system == "tuned" else "")
    what = "label" if rows[0].labels else "answer"
    table.caption = (
        f"Brackets: {rows[0].confidence:.0%} bootstrap intervals. Missing: answers without a readable {what}."
        + (f" {CHANCE_MARK} Cannot be told apart from chance." if by_chance else "")
    )
    return table


def _rules_table(results: EvaluationResults, task: str) -> Table | None:
    from fintune.reporting.wording import OUR_RULES, rules_name

    rows = _in_order([result for result in results.under("flare_strict") if result.task == task])
    if not rows:
        return None
    theirs = rules_name("flare_strict", [task])
    table = _number_table("system", OUR_RULES, theirs, "missing", f"missing ({theirs.removesuffix(_RULES)})")
    table.title = f"\n{task}, {METRIC_TITLES.get(rows[0].primary, rows[0].primary)}: {theirs} beside ours"
    for row in rows:
        ours = results.find(task, row.system)
        table.add_row(
            row.system,
            format_estimate(None if ours is None else ours.metrics.get(row.primary)),
            format_estimate(row.metrics.get(row.primary)),
            "-" if ours is None else f"{ours.missing_rate:.1%}",
            f"{row.missing_rate:.1%}",
            style="bold" if row.system == "tuned" else "",
        )
    return table


def _published_table(results: EvaluationResults, task: str) -> Group | None:
    """What others published, as the report has it, with its caveats line by line."""
    from fintune.reporting.beside import published_caveats, published_table

    found = published_table(results, task)
    if found is None:
        return None
    # A terminal has no room for whose rules read which, nor for our interval and n; the report has them.
    kept = [i for i, column in enumerate(found.columns) if column not in ("Read by", "Our n")]
    table = plain_table(*(found.columns[i].lower() for i in kept))
    table.columns[0].min_width, table.columns[0].no_wrap = 18, False
    table.title = f"\n{found.caption}"
    for cells in found.rows:
        short = [cells[i].partition(" (")[0] if found.columns[i] == "Ours" else cells[i] for i in kept]
        table.add_row(*("–" if cell == "not measured" else cell for cell in short))
    # How such comparisons are meant is the same for all tasks: it is said once, in the notes.
    return Group(table, *(Text(line, style="dim") for line in published_caveats(task)[1:]))


def _number_table(*headers: str) -> Table:
    """Numbers keep their width in a narrow terminal; the systems' names give way and are folded."""
    table = plain_table(*headers)
    table.padding = (0, 0)
    table.columns[0].no_wrap, table.columns[0].min_width = False, len("system")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def _in_order(rows: list[TaskResult]) -> list[TaskResult]:
    return sorted(
        rows, key=lambda row: _SYSTEM_ORDER.index(row.system) if row.system in _SYSTEM_ORDER else len(_SYSTEM_ORDER)
    )


def _documents(row: TaskResult) -> str:
    grouped = f" in {row.n_groups} groups" if row.n_groups != row.n else ""
    return f"{row.n:,} document{'' if row.n == 1 else 's'}{grouped}"


def format_estimate(estimate: Estimate | None, *, signed: bool = False) -> str:
    """``0.78 [0.73, 0.83]``; a dash where nothing was measured."""
    if estimate is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    short = "+.2f" if signed else ".2f"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, form)
    return f"{estimate.value:{form}} [{estimate.low:{short}}, {estimate.high:{short}}]"


def comparison_sentence(comparison: Comparison) -> str:
    """One paired comparison in a sentence: the verdict, the differences, the exact test and Holm's correction of it."""
    name, difference = comparison.headline
    shown = f"{METRIC_TITLES.get(name, name)} {format_estimate(difference, signed=True)}" if difference else "no metric"
    counts = f"right alone: {comparison.only_system_correct} against {comparison.only_reference_correct}"
    test = ""
    if comparison.mcnemar_p is not None:
        test = f"; exact McNemar {_p_value(comparison.mcnemar_p)}"
    elif comparison.sign_flip_p is not None:
        test = f"; sign-flip test over groups {_p_value(comparison.sign_flip_p)}"
    if comparison.holm_p is not None:
        test += f", over all tasks Holm's {_p_value(comparison.holm_p)}"
    from fintune.reporting.wording import rules_name

    where = comparison.task
    if comparison.protocol == "flare_strict":
        where += f", {rules_name(comparison.protocol, [comparison.task])}"
    verdict = f"{comparison.system} {_verdict(comparison, difference)} {comparison.reference}"
    return f"{where}: {verdict} ({shown}, paired; {counts} of {comparison.n}{test})."


def comparison_sentences(results: EvaluationResults) -> Iterator[str]:
    """The comparisons that count: those under our rules, each in a sentence."""
    yield from (comparison_sentence(found) for found in results.comparisons if found.protocol == "robust")


def _verdict(comparison: Comparison, difference: Estimate | None) -> str:
    if difference is None or difference.low is None:
        return "against"
    verdicts = {"above": "is better than", "below": "is worse than", "unclear": "is not clearly different from"}
    return verdicts[comparison.side]


def _p_value(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def notes(results: EvaluationResults) -> Iterator[str]:
    """What a reader must know beside the scores: which rows were measured, which were not, overlap with training."""
    from fintune.reporting.beside import published_caveats, published_table

    measured = set(task_names(results))
    compared = next((task for task in task_names(results) if published_table(results, task) is not None), None)
    if compared is not None:
        yield published_caveats(compared)[0]
    for data in results.data:
        if data.split_note and data.task in measured:
            yield f"{data.task}: {data.split_note.strip()}"
    for key, why in results.counts.items():
        if key.startswith(NOT_MEASURED):
            yield f"{key.removeprefix(NOT_MEASURED)} is not measured: {why}"
        elif key.startswith(NOT_COMPARED):
            task = key.removeprefix(NOT_COMPARED)
            yield f"{task}: the adapter's training rows were not compared with the documents: {why['reason']}"
    for overlap in results.overlap:
        found = (overlap.normalised, overlap.near, overlap.same_exchanges, overlap.removed_from_train)
        is_clean = not any(found)
        if is_clean and overlap.trained_on not in ("", overlap.task):
            continue  # tasks with nothing in common need no line
        removed = f"; {overlap.removed_from_train} training rows removed" if overlap.removed_from_train else ""
        near = (
            "" if overlap.near_threshold is None else f", {overlap.near} nearly (similarity {overlap.near_threshold:g})"
        )
        of_task = f" of {overlap.trained_on}" if overlap.trained_on else ""
        alike = "" if overlap.same_exchanges is None else f", {overlap.same_exchanges} sharing half of their answers"
        yield (
            f"{overlap.task}: {overlap.exact} of {overlap.n_test} measured texts also in the {overlap.n_train} "
            f"training rows{of_task}, {overlap.normalised} after normalising{near}{alike}{removed}."
        )


def preview_text(tokens: Sequence[tuple[str, int, bool]], *, ids: bool = False, unicode: bool = True) -> Text:
    """Tokens as they are trained on; supervised runs are coloured, bold and in brackets."""
    opening, closing, line_end = ("⟦", "⟧", "↵\n") if unicode else ("[[", "]]", "\\n\n")
    text = Text()
    inside = False
    for token, token_id, supervised in tokens:
        if supervised != inside:
            text.append(opening if supervised else closing, style="bold green")
            inside = supervised
        text.append(token.replace("\n", line_end), style="bold green" if supervised else "")
        if ids:
            text.append(f"|{token_id} ", style="dim")
    if inside:
        text.append(closing, style="bold green")
    return text
