"""Named adapters as people read them: the list, one in detail, a difference, a merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.cli.tables import plain_table

if TYPE_CHECKING:
    from fintune.adapters import AdapterDetails
    from fintune.models.adapter_weights import AdapterDifference
    from fintune.models.merging import MergeReport
    from fintune.schema.adapter_records import AdapterRecord


def records_table(records: Sequence[AdapterRecord]) -> Any:
    """One line a version."""
    table = plain_table("adapter", "base", "made by", "added", "scores")
    for record in records:
        made = record.method
        if record.parents:
            made += f" from {', '.join(parent.reference for parent in record.parents)}"
        scores = " ".join(f"{score.task} {score.value:.3f}" for score in record.scores)
        table.add_row(record.reference, Path(record.base).name, made, record.added[:16].replace("T", " "), scores)
    return table


def details(found: AdapterDetails) -> list[Any]:
    """Everything about one version, its norms as a table."""
    record, contents = found.record, found.contents
    scale = "alpha / sqrt(rank)" if contents.rslora else "alpha / rank"
    lines = [
        f"{record.reference}, added {record.added}",
        f"base        {record.base} {_short(record.base_content_hash)}",
        f"adapter     rank {contents.rank}, alpha {contents.alpha:g} ({scale}){', DoRA' if contents.dora else ''}",
        f"layers      {contents.modules} of {', '.join(contents.targets)}",
        f"parameters  {contents.parameters:,}",
        f"weights     {_short(record.content_hash)}",
        f"data        {_short(record.data_hash) or 'unknown'}, recipe {_short(record.recipe_hash) or 'unknown'}",
        f"run         {record.run or 'none'}",
        f"folder      {found.path}",
    ]
    for score in record.scores:
        interval = f" [{score.low:.3f}, {score.high:.3f}]" if score.low is not None and score.high is not None else ""
        lines.append(f"score       {score.task}: {score.metric} {score.value:.3f}{interval}, n = {score.n}")
    for parent in found.lineage:
        share = f", weight {parent.weight:g}" if parent.weight is not None else ""
        lines.append(f"from        {parent.reference} {_short(parent.content_hash)}{share}")
    if record.gap is not None:
        lines.append(f"made by     {record.method}, {record.gap:.2g} from the weighted sum of its parents")
    table = plain_table("layer type", "norm of the update")
    for kind, norm in contents.norms.items():
        table.add_row(kind, f"{norm:.4g}")
    return [*lines, "", table]


def difference(found: AdapterDifference, shown: int) -> list[Any]:
    """Settings that differ, the distance of all updates, and the modules that differ most."""
    lines: list[Any] = [f"{key}: {_value(one)} -> {_value(other)}" for key, (one, other) in found.configuration.items()]
    lines.append(f"difference of all updates: {_relative(found.relative)} of the first's norm")
    if not shown:
        return lines
    table = plain_table("module", "difference / first", "norm of first", "norm of second")
    ordered = sorted(found.modules, key=lambda row: -(float("inf") if row.relative is None else row.relative))
    for row in ordered[:shown]:
        table.add_row(row.module, _relative(row.relative), f"{row.norms[0]:.4g}", f"{row.norms[1]:.4g}")
    return [*lines, "", table, f"{min(shown, len(ordered))} of {len(ordered)} modules; --modules shows more."]


def merge_lines(report: MergeReport) -> list[str]:
    """Where the merged model is, what it costs, and how far it is from the adapter on its base."""
    gap = report.gap
    held = "in full" if report.held == "none" else f"in {report.held}, unpacked for the merge"
    return [
        f"merged   {report.path}",
        f"base     {report.base}, held {held}: {report.base_bytes:,} bytes; merged in {report.dtype}: "
        f"{report.merged_bytes:,} bytes",
        f"logits   differ by {gap.largest:.3g} at most and {gap.mean:.3g} on average (their own spread is "
        f"{gap.spread:.3g}), over {gap.positions} tokens, computed in {report.computed_in}",
        f"tokens   the likeliest next one is the same for {gap.agreement:.1%}",
    ]


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else ""


def _relative(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
