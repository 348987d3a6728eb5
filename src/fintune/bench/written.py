"""The bench's table and figure.

Enters: the folder of a bench. Leaves: ``results.json``, ``table.md``, ``figure.png``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fintune.bench.optimisations import FAMILIES, Family, Origin, full_set, optimisations
from fintune.bench.summary import Spread, VariantRow, equal_time_s, variant_rows
from fintune.reporting.markup import markdown_table
from fintune.reporting.tables import Table
from fintune.schema.run_directory import write_json, write_text_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fintune.bench.ablation import BenchFolder

RESULTS, TABLE, FIGURE = "results.json", "table.md", "figure.png"
_MIB = 2**20
_NONE = "–"
_TICKS = (0.125, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0)
_UNITS = {"gpt": "bits a byte", "llm": "nats a supervised token"}
_COLUMNS = (
    *("Tokens/s", "With ÷ without", "Peak, MiB", "Held-out loss", "Loss at equal time"),
    *("ms a written token", "First passes, s", "Note"),
)


def write_results(folder: BenchFolder, device: str) -> dict[str, Any]:
    """Writes results, table and figure of what is measured so far, and returns the results."""
    from fintune.reporting.styles import write_figure

    records = folder.records()
    settings = json.loads(folder.settings.read_text(encoding="utf-8"))
    rows = _rows(folder, device)
    results = {
        "settings": settings,
        "equal_time_s": {family: equal_time_s(records, family) for family in rows},
        "full_set": {family: sorted(full_set(family, device)) for family in rows},
        "failed": sum(bool(record["problem"]) for record in records),
        "variants": [asdict(row) for found in rows.values() for row in found],
    }
    write_json(folder.path / RESULTS, results)
    tables = bench_tables(folder, device)
    parts = [f"**{table.caption}**\n\n{markdown_table(table)}\n\n{table.note}".rstrip() for table in tables]
    parts = [*setting_lines(settings, records), *parts]
    write_text_atomically(folder.path / TABLE, "\n\n".join(parts) + "\n")
    if rows:
        write_figure(lambda: effects_figure(rows), folder.path / FIGURE)
    return results


def bench_tables(folder: BenchFolder, device: str) -> list[Table]:
    """The tables of what is measured so far."""
    return [table for family, found in _rows(folder, device).items() for table in family_tables(family, found)]


def _rows(folder: BenchFolder, device: str) -> dict[Family, list[VariantRow]]:
    records = folder.records()
    rows = {family: variant_rows(records, family, device) for family in FAMILIES}
    return {family: found for family, found in rows.items() if found}


def setting_lines(settings: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured on what, in a paragraph."""
    prepared, rounds = settings.get("prepared", {}), {record["round"] for record in records}
    seconds = sum(record["seconds"] for record in records)
    where = settings["device"] if settings["kind"] == "cuda" else f"CPU, {settings['threads']} thread(s)"
    clock = "" if settings["size"]["clock"] == "wall" else " Seconds are those of the processor, but for first passes."
    processor = sum(record["measured"]["processor_s"] for record in records if record["measured"])
    return [
        f"Size {settings['size']['name']} on {where}; PyTorch {settings['torch']}, transformers "
        f"{settings['transformers']}. Text: {prepared.get('text')}, {prepared.get('documents', 0):,} documents and "
        f"{prepared.get('held_out_documents', 0):,} held out; the GPTs read the documents "
        f"{prepared.get('passes')} times. {len(records)} processes in {len(rounds)} round(s), "
        f"{seconds / 60:.1f} minutes in all, {processor / 60:.1f} of them on a processor.{clock}"
    ]


def family_tables(family: Family, rows: Sequence[VariantRow]) -> list[Table]:
    """What each optimisation does alone, and what the full set is without it."""
    captions: dict[Origin, str] = {
        "base": f"{FAMILIES[family]}: one optimisation added to the base",
        "full": f"{FAMILIES[family]}: one optimisation switched in the full set",
    }
    return [
        Table(
            name=f"bench-{family}-{origin}",
            caption=caption,
            columns=("Variant", *_COLUMNS),
            rows=tuple(_cells(row) for row in rows if row.origin == origin),
            note=_note(family),
            emphasised=frozenset({0}),
        )
        for origin, caption in captions.items()
    ]


def _note(family: Family) -> str:
    return (
        f"Medians, with the range over rounds where there are several. Loss in {_UNITS[family]}; at equal time: after "
        "the time that the quickest variant of the family takes, without shortening learning-rate schedules to it. "
        "With ÷ without: speed with the optimisation by speed without it, against the row that differs in nothing "
        "else, or against the first where there is none (the note then says what else differs). First passes: before "
        "any update, compilation included, beside those of others where a card was shared. The KV cache leaves "
        "training as it is: where its row differs in speed, that is noise."
    )


def _cells(row: VariantRow) -> tuple[str, ...]:
    return (
        variant_title(row),
        _number(row.tokens_per_s, "{:,.0f}"),
        _number(row.effect, "{:.2f}"),
        _number(row.peak_bytes, "{:,.0f}", _MIB),
        _number(row.loss, "{:.3f}"),
        _number(row.loss_at_time, "{:.3f}", ranged=False),
        _number(row.latency_ms, "{:.1f}", ranged=False),
        _number(row.cold_s, "{:.1f}", ranged=False),
        "; ".join(row.said),
    )


def variant_title(row: VariantRow) -> str:
    """``base``, ``+ RMSNorm`` or ``- RMSNorm (LayerNorm)``."""
    if not row.key:
        return row.origin
    one = next(one for one in optimisations(row.family) if one.key == row.key)
    return f"+ {one.name}" if row.is_on else f"− {one.name} ({one.without})"


def _number(found: Spread | None, shape: str, unit: float = 1.0, *, ranged: bool = True) -> str:
    if found is None:
        return _NONE
    middle, low, high = (shape.format(value / unit) for value in (found.middle, found.low, found.high))
    return f"{middle} ({low} to {high})" if ranged and found.n > 1 and low != high else middle


def effects_figure(rows: dict[Family, list[VariantRow]]) -> Figure:
    """What each optimisation does to speed, memory and loss: alone on the base, and within the full set."""
    from matplotlib.figure import Figure

    heights = [len({row.key for row in found if row.key}) + 2 for found in rows.values()]
    figure = Figure(figsize=(7.2, 0.19 * sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for line, (family, found) in zip(grid, rows.items(), strict=True):
        _draw_family(line, family, found)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_family(line: Any, family: Family, rows: Sequence[VariantRow]) -> None:
    from fintune.reporting.styles import BLUE, ORANGE

    shown = [one for one in optimisations(family) if any(row.key == one.key for row in rows)]
    place = {one.key: -number for number, one in enumerate(shown)}
    panels = (
        ("Speed, ×", "effect", 1.0),
        ("Peak memory, ×", "memory_effect", 1.0),
        ("Held-out loss, +", "loss_effect", 0.0),
    )
    for axes, (title, name, nothing) in zip(line, panels, strict=True):
        for origin, colour, marker, label in (
            ("base", ORANGE, "o", "added to the base"),
            ("full", BLUE, "D", "with against without it in the full set"),
        ):
            points = [
                (getattr(row, name), place[row.key]) for row in rows if row.origin == origin and getattr(row, name)
            ]
            for found, height in points:
                axes.plot([found.low, found.high], [height, height], color=colour, linewidth=1)
            heights = [height for _, height in points]
            middles = [found.middle for found, _ in points]
            face = colour if origin == "base" else "white"
            axes.scatter(middles, heights, s=14, color=colour, facecolor=face, marker=marker, label=label, zorder=3)
        axes.axvline(nothing, color="#999999", linewidth=0.6)
        if nothing == 1.0:
            axes.set_xscale("log", base=2)
            low, high = axes.get_xlim()
            axes.set_xticks([tick for tick in _TICKS if low <= tick <= high] or [1.0])
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:g}")
        for key, height in place.items():
            if not any(getattr(row, name) for row in rows if row.key == key):
                axes.text(0.5, height, "not measured", transform=axes.get_yaxis_transform(), ha="center", va="center")
        axes.set_ylim(0.6 - len(shown), 0.6)
        axes.set_yticks(list(place.values()), [one.name for one in shown] if axes is line[0] else [])
        axes.set(title=f"{FAMILIES[family]}\n{title}" if axes is line[0] else title)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
