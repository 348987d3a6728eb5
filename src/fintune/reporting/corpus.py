"""A corpus for people: what went in, what each step dropped, what came out; tables, figures, Markdown and HTML.

Enters: the manifest of a corpus (``corpus.json``). Leaves: ``Table``s, ``statistics.md``, ``statistics.html`` with its
figures inside, and ``figures/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fintune.reporting.html import Picture, Section, render_html
from fintune.reporting.markup import markdown_table, markdown_text
from fintune.reporting.styles import BLUE, GREEN, GREY, INK, ORANGE, write_figure
from fintune.reporting.tables import Table
from fintune.schema.run_directory import write_text_atomically
from fintune.sources.corpus import LENGTH_EDGES, ShardRecord
from fintune.sources.corpus.steps import SPLITS

MARKDOWN, PAGE = "statistics.md", "statistics.html"
_DROPS = {
    "companies": "not of the largest companies",
    "no text": "no text",
    "short": "too short",
    "long": "too long",
    "script": "too few Latin letters",
    "undated": "without a day",
    "equal": "equal to an earlier one",
    "near": "nearly an earlier one",
}
_CHANGES = {
    "repair": "letters repaired",
    "html": "HTML taken out",
    "unwrap": "line ends joined",
    "boilerplate": "boilerplate lines taken out",
    "private": "private data replaced",
    "day": "earlier day of a repeat",
}
_LOOKS = {"train": (BLUE, ""), "validation": (ORANGE, "////"), "test": (GREEN, "....")}
_MOST_SOURCES = 20
_NONE = "–"


def corpus_tables(manifest: Mapping[str, Any]) -> list[Table]:
    """Documents by source and step, changes by step, splits, and what was replaced where anything was."""
    tables = [steps_table(manifest), changes_table(manifest), splits_table(manifest)]
    return [*tables, *([private_table(manifest)] if manifest["cleaning"]["private"] else [])]


def steps_table(manifest: Mapping[str, Any]) -> Table:
    """Rows in, documents dropped by step, documents out; a source a row."""
    counts = manifest["counts"]
    drops = [step for step in _DROPS if any(_of(found, step, "dropped") for found in counts.values())]
    whole = {"all": _sum(counts.values())} if len(counts) > 1 else {}
    rows = tuple(
        (
            label,
            f"{_of(found, 'rows', 'in'):,}",
            *(f"{_of(found, step, 'dropped'):,}" for step in drops),
            f"{_of(found, 'documents', 'out'):,}",
        )
        for label, found in {**counts, **whole}.items()
    )
    columns = ("Source", "Rows in", *(_DROPS[step].capitalize() for step in drops), "Documents out")
    note = "A document is dropped by the first step that applies, in the order of the columns."
    ruled = frozenset({len(counts)}) if whole else frozenset[int]()
    return Table("corpus-steps", "What each step dropped", columns, rows, note=note, ruled=ruled)


def changes_table(manifest: Mapping[str, Any]) -> Table:
    """Documents that each step changed."""
    steps = [step for step in _CHANGES if any(_of(found, step, "changed") for found in manifest["counts"].values())]
    rows = tuple(
        (
            label,
            *(f"{_of(found, step, 'changed'):,}" for step in steps),
            f"{_of(found, 'boilerplate', 'lines'):,}",
        )
        for label, found in manifest["counts"].items()
    )
    columns = ("Source", *(_CHANGES[step].capitalize() for step in steps), "Boilerplate lines")
    note = "A changed document may have been dropped by a later step. Blanks and empty lines are not counted."
    return Table("corpus-changes", "Documents that each step changed", columns, rows, note=note)


def splits_table(manifest: Mapping[str, Any]) -> Table:
    """What each split holds."""
    tokens = {shard["name"]: shard["tokens"] for shard in (manifest["tokens"] or {"shards": []})["shards"]}
    rows = []
    for split in SPLITS:
        shards = [ShardRecord(**one) for one in manifest["documents"] if one["name"].rpartition("-")[0] == split]
        if shards:
            rows.append(_split_row(split, shards, tokens))
    columns = ("Split", "From", "To", "Documents", "Without a day", "With tickers", "Characters", "Tokens", "Files")
    name = manifest["tokens"]["tokenizer"] if manifest["tokens"] else ""
    note = f"Tokens of {name}, with the end-of-text token of each document." if name else "Not tokenised."
    return Table("corpus-splits", "What came out", columns, tuple(rows), text_columns=3, note=note)


def private_table(manifest: Mapping[str, Any]) -> Table:
    """What was replaced because it identifies a person."""
    whole = _sum(manifest["counts"].values()).get("private", {})
    rows = tuple((kind, f"{number:,}") for kind, number in sorted(whole.items()) if kind != "changed")
    return Table("corpus-private", "Replaced because it identifies a person", ("Kind", "Times"), rows)


def corpus_sentences(manifest: Mapping[str, Any]) -> list[str]:
    """The corpus in a few sentences."""
    shards = [ShardRecord(**one) for one in manifest["documents"]]
    whole = _sum(manifest["counts"].values())
    documents, characters = sum(one.documents for one in shards), sum(one.characters for one in shards)
    said = [
        f"{documents:,} documents with {characters:,} characters from {_of(whole, 'rows', 'in'):,} rows of "
        f"{len(manifest['counts'])} source{'s' if len(manifest['counts']) > 1 else ''}."
    ]
    if manifest["tokens"]:
        total = sum(one["tokens"] for one in manifest["tokens"]["shards"])
        said.append(
            f"{total:,} tokens of {manifest['tokens']['tokenizer']}, {characters / max(1, total - documents):.2f} "
            "characters a token."
        )
    if undated := sum(one.undated for one in shards):
        said.append(f"{undated:,} documents without a day are split by hash.")
    if dropped := _of(whole, "undated", "dropped"):
        said.append(f"Documents dropped for want of a day: {dropped:,}; --undated hash splits them by hash.")
    return said


def write_page(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Writes the statistics beside a corpus and returns the HTML page.

    Raises:
        RunError: they cannot be written.
    """
    tables, said = corpus_tables(manifest), corpus_sentences(manifest)
    pictures = _pictures(folder / "figures", manifest)
    sections = [
        Section("What came out", "out", pictures[:-1], [tables[2]]),
        Section("What went", "steps", pictures[-1:], [tables[0], tables[1], *tables[3:]]),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    page = render_html(title="Corpus", subtitle=", ".join(manifest["counts"]), verdict=said, sections=sections,
                       footer=f"Built with {versions}.")  # fmt: skip
    write_text_atomically(folder / PAGE, page)
    parts = [f"# Corpus\n\n{' '.join(map(markdown_text, said))}"]
    parts += [f"**{table.caption}**\n\n{markdown_table(table)}\n\n{markdown_text(table.note)}" for table in tables]
    parts += [f"![{picture.alt}](figures/{picture.path.name})" for picture in pictures]
    write_text_atomically(folder / MARKDOWN, "\n\n".join(parts) + "\n")
    return folder / PAGE


def _pictures(folder: Path, manifest: Mapping[str, Any]) -> list[Picture]:
    shards = [ShardRecord(**one) for one in manifest["documents"]]
    drawn = {
        "corpus_years": ("Documents by year and split.", lambda: years_figure(shards)),
        "corpus_sources": ("Documents by publisher.", lambda: sources_figure(shards)),
        "corpus_lengths": ("Documents by length in characters.", lambda: lengths_figure(shards)),
        "corpus_drops": ("Documents that each step dropped.", lambda: drops_figure(manifest)),
    }
    return [Picture(write_figure(draw, folder / f"{stem}.png"), alt) for stem, (alt, draw) in drawn.items()]


def years_figure(shards: Sequence[ShardRecord]) -> Figure:
    """Bars of documents by year, splits on top of one another."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    known = sorted({int(year) for shard in shards for year in shard.years})
    names = [f"{year:04d}" for year in range(known[0], known[-1] + 1)] if known else []
    height = Counter[str]()
    for split, (colour, hatch) in _LOOKS.items():
        found = Counter[str]()
        for shard in shards:
            if shard.name.rpartition("-")[0] == split:
                found.update(shard.years)
        axes.bar(names, [found[name] for name in names], bottom=[height[name] for name in names], color=colour,
                 hatch=hatch, label=split, edgecolor=INK, linewidth=0.4)  # fmt: skip
        height.update(found)
    axes.set(title="Documents by year", ylabel="documents")
    axes.tick_params(axis="x", rotation=90 if len(names) > 12 else 0, labelsize=6 if len(names) > 24 else 8)
    if names:
        axes.legend()
    return figure


def sources_figure(shards: Sequence[ShardRecord]) -> Figure:
    """Bars of documents by publisher, the largest on top."""
    found = Counter[str]()
    for shard in shards:
        found.update(shard.sources)
    largest = found.most_common(_MOST_SOURCES)
    if len(found) > len(largest):
        largest.append((f"{len(found) - len(largest):,} others", found.total() - sum(n for _, n in largest)))
    return _bars("Documents by publisher", dict(largest), BLUE)


def lengths_figure(shards: Sequence[ShardRecord]) -> Figure:
    """How long the documents are, on a logarithmic axis."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    heights = [sum(shard.lengths[place] for shard in shards) for place in range(len(LENGTH_EDGES) + 1)]
    edges = [LENGTH_EDGES[0] / 10 ** (1 / 4), *LENGTH_EDGES, LENGTH_EDGES[-1] * 10 ** (1 / 4)]
    axes.stairs(heights, edges, fill=True, color=BLUE)
    axes.set(title="Documents by length", xlabel="characters", ylabel="documents", xscale="log")
    return figure


def drops_figure(manifest: Mapping[str, Any]) -> Figure:
    """How many documents each step dropped."""
    whole = _sum(manifest["counts"].values())
    found = {name: _of(whole, step, "dropped") for step, name in _DROPS.items()}
    return _bars("Documents dropped", {name: number for name, number in found.items() if number}, GREY)


def _bars(title: str, values: Mapping[str, int], colour: str) -> Figure:
    figure = Figure(figsize=(7.2, 0.8 + 0.28 * max(1, len(values))), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(values)[::-1], list(values.values())[::-1], color=colour)
    axes.bar_label(bars, [f"{number:,}" for number in list(values.values())[::-1]], padding=3)
    axes.set(title=title)
    axes.margins(x=0.12)
    return figure


def _split_row(split: str, shards: Sequence[ShardRecord], tokens: Mapping[str, int]) -> tuple[str, ...]:
    days = (
        [shard.first_day for shard in shards if shard.first_day],
        [shard.last_day for shard in shards if shard.last_day],
    )
    return (
        split,
        min(days[0], default=_NONE),
        max(days[1], default=_NONE),
        f"{sum(shard.documents for shard in shards):,}",
        f"{sum(shard.undated for shard in shards):,}",
        f"{sum(shard.with_tickers for shard in shards):,}",
        f"{sum(shard.characters for shard in shards):,}",
        f"{sum(tokens[shard.name] for shard in shards):,}" if tokens else _NONE,
        f"{len(shards):,}",
    )


def _of(found: Mapping[str, Mapping[str, int]], step: str, what: str) -> int:
    return found.get(step, {}).get(what, 0)


def _sum(counts: Any) -> dict[str, dict[str, int]]:
    whole: dict[str, dict[str, int]] = {}
    for found in counts:
        for step, numbers in found.items():
            into = whole.setdefault(step, {})
            for what, number in numbers.items():
                into[what] = into.get(what, 0) + number
    return whole
