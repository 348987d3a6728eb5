"""Writes a finished run for people: ``report.html``, ``report.md``, ``tables.tex`` and ``figures/*.png``.

Enters: what evaluation and training left. Leaves: files in the run directory, and the path of the page. Where a task of
FLARE was measured, ``results-flare.tex`` and ``results-flare.md`` hold the table its papers print.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fintune.reporting.backtest import backtest_sections
from fintune.reporting.beside import published_table
from fintune.reporting.between import pair_sentences, published_beside_each
from fintune.reporting.captions import not_drawn, picture_captions
from fintune.reporting.documents import documents_of
from fintune.reporting.flare import flare_tables
from fintune.reporting.gallery import Drawn, write_figures
from fintune.reporting.html import Picture, Section, render_html
from fintune.reporting.latex import latex_file, results_tables
from fintune.reporting.markup import markdown_table, markdown_text
from fintune.reporting.places import model_without_places, without_places
from fintune.reporting.run_data import RunData, adapter_bytes, presentable, stage_results
from fintune.reporting.scores import (
    comparisons_tables,
    confusion_tables,
    overview_table,
    per_class_table,
    repeats_tables,
    rules_table,
    systems_tables,
)
from fintune.reporting.tables import (
    Table,
    counts_table,
    errors_table,
    facts_table,
    licence_table,
    overlap_table,
    time_table,
)
from fintune.reporting.verdict import verdict
from fintune.reporting.wording import DISCLAIMER, file_names, interval, systems_of, tasks_of
from fintune.schema.recipe import Recipe
from fintune.schema.results import DocumentRecord, EvaluationResults
from fintune.schema.run_directory import RunDirectory


def write_report(
    run_path: Path,
    *,
    recipe: Recipe | None,
    results: EvaluationResults,
    records: Iterable[DocumentRecord],
    history: Sequence[Mapping[str, Any]],
    model_facts: Mapping[str, Any],
    title: str | None = None,
    other_ranks: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Writes the report into the run directory and returns the path of ``report.html``.

    Args:
        run_path: the run directory; made when it is missing.
        recipe: the resolved recipe, printed whole; None for a comparison of several runs.
        results: aggregates, comparisons, licences and overlap.
        records: one record for each document and system, for the worst errors and calibration.
        history: lines of ``metrics.jsonl``; may be empty.
        model_facts: anything worth stating about model, hardware and versions, in reading order. Absolute paths in
            them, in the recipe and in the results are cut to their last part.
        title: title of the page; when left out the recipe's own title or name, or else a general one.
        other_ranks: the history of further processes of the run, by rank.
    """
    documents = presentable(record for record in records if record.protocol == "robust")
    sources = tuple(model_without_places(one, "source", "split_note") for one in results.data)
    results = model_without_places(results, "model", "adapter", "counts").model_copy(update={"data": sources})
    model_facts = without_places(model_facts)
    run_path.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(run_path)
    data = RunData(
        results=results,
        records=documents,
        history=history,
        other_ranks=other_ranks or {},
        facts=model_facts,
        adapter_bytes=adapter_bytes(run),
        stages=stage_results(run),
    )
    drawn = write_figures(run_path / "figures", [data])
    heading = title or (recipe.report.title or recipe.name if recipe is not None else "Comparison of runs")
    sentences = verdict(results) if recipe is not None else pair_sentences(results)
    sections = _sections(recipe, results, data, drawn)
    sections = [*sections[:1], *backtest_sections(run_path), *sections[1:]]
    about = (recipe.description, f"recipe {recipe.name}") if recipe is not None else ()
    subtitle = " · ".join(part for part in (*about, results.model) if part)
    (run_path / "tables.tex").write_text(latex_file(results_tables(results), heading), encoding="utf-8")
    (run_path / "report.md").write_text(_markdown(run_path, heading, subtitle, sentences, sections), encoding="utf-8")
    _write_flare(run_path, flare_tables(results), heading)
    page = run_path / "report.html"
    html = render_html(title=heading, subtitle=subtitle, verdict=sentences, sections=sections, footer=DISCLAIMER)
    page.write_text(html, encoding="utf-8")
    return page


def _sections(recipe: Recipe | None, results: EvaluationResults, data: RunData, drawn: Drawn) -> list[Section]:
    tasks, records = tasks_of(results), data.records
    names = file_names(tasks).values()
    shows_texts = recipe is None or recipe.report.documents
    captions = picture_captions([data], results)
    pictures = {name: Picture(path, captions[name]) for name, path in drawn.first.items()}
    worst = "tuned" if "tuned" in systems_of(results) else "base"
    sections = [
        *_score_sections(results, _named(pictures, "performance_comparison"), across=recipe is None),
        Section(
            "Comparisons",
            "comparisons",
            tables=[*comparisons_tables(results), *comparisons_tables(results, "flare_strict")],
        ),
        Section("Repeated runs", "repeats", tables=repeats_tables(results)),
        Section("FLARE's table", "flare", tables=flare_tables(results)),
        Section("Classes", "classes", tables=_present(*(per_class_table(results, task) for task in tasks))),
        Section(
            "Confusion matrices",
            "confusion",
            _named(pictures, *(f"confusion_{name}" for name in names)),
            confusion_tables(results),
        ),
        Section(
            "Training",
            "training",
            _named(pictures, "training_curves", "curriculum_comparison", "gpu_utilization", "efficiency_comparison"),
            paragraphs=[
                *(() if "training_curves" in pictures else ("No training history was recorded.",)),
                *not_drawn(drawn.left_out),
            ],
        ),
        Section(
            "Calibration",
            "calibration",
            _named(pictures, *(f"calibration_{name}" for name in names)),
            paragraphs=_calibration_words(results),
        ),
        Section("Data and licences", "data", tables=_present(licence_table(results))),
        Section(
            "Overlap",
            "overlap",
            tables=_present(overlap_table(results)),
            paragraphs=() if results.overlap else ("Overlap between training and test was not measured.",),
        ),
        Section("Documents", "documents", documents=documents_of(records) if shows_texts else None),
        Section(
            "Worst errors",
            "errors",
            tables=_present(*(errors_table(records, task, worst) for task in tasks)) if shows_texts else (),
            paragraphs=() if shows_texts else ("The recipe keeps the texts of documents out of the report.",),
        ),
        Section(
            "Run facts",
            "facts",
            tables=_present(
                facts_table(_facts(results, data.facts)), time_table(results), counts_table(results.counts)
            ),
        ),
        Section("Recipe", "recipe", code=_yaml(recipe) if recipe is not None else ""),
    ]
    return [section for section in sections if not section.empty]


def _score_sections(results: EvaluationResults, pictures: list[Picture], *, across: bool) -> list[Section]:
    """Scores of all tasks in one section, or with several tasks an overview and then a section each."""
    tasks = tasks_of(results)
    overview = overview_table(results)
    if overview is None:
        return [
            Section(
                "Systems", "systems", pictures, [table for task in tasks for table in _of_task(results, task, across)]
            )
        ]
    sections = [
        Section(f"Task {task}", f"task-{number}", tables=_of_task(results, task, across))
        for number, task in enumerate(tasks, start=1)
    ]
    return [Section("Systems", "systems", pictures, [overview]), *sections]


def _of_task(results: EvaluationResults, task: str, across: bool) -> list[Table]:
    """Ours first, then FLARE's rules beside ours, then what others published, beside each system ``across`` runs."""
    published = published_beside_each(results, task) if across else _present(published_table(results, task))
    return [*systems_tables(results, task), *_present(rules_table(results, task)), *published]


def _present(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _named(pictures: Mapping[str, Picture], *names: str) -> list[Picture]:
    return [pictures[name] for name in names if name in pictures]


def _calibration_words(results: EvaluationResults) -> list[str]:
    return [
        f"On {task}, the calibration error (15 bins, lower is better) is "
        + " and ".join(f"{interval(r.metrics['ece'])} for the {r.system} model" for r in found)
        + "."
        for task in tasks_of(results)
        if (found := [r for s in ("base", "tuned") if (r := results.find(task, s)) is not None and "ece" in r.metrics])
    ]


def _facts(results: EvaluationResults, model_facts: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"whole_run_s": results.elapsed_s} if results.elapsed_s else {}
    return {"model": results.model, "adapter": results.adapter or "none", **model_facts, **whole}


def _yaml(recipe: Recipe) -> str:
    import yaml

    return str(yaml.safe_dump(without_places(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True))


def _markdown(
    run_path: Path, heading: str, subtitle: str, sentences: Sequence[str], sections: Sequence[Section]
) -> str:
    parts = [f"# {markdown_text(heading)}", markdown_text(subtitle), *(f"> {markdown_text(s)}" for s in sentences)]
    for section in sections:
        parts.append(f"## {markdown_text(section.title)}")
        parts += [f"![{markdown_text(p.alt)}]({p.path.relative_to(run_path).as_posix()})" for p in section.pictures]
        parts += [part for table in section.tables for part in _markdown_parts(table)]
        parts += [markdown_text(p) for p in section.paragraphs]
        parts += [_fenced(section.code)] if section.code else []
    return "\n\n".join([*parts, f"*{DISCLAIMER}*"]) + "\n"


def _fenced(code: str) -> str:
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}yaml\n{code.rstrip()}\n{fence}"


def _write_flare(run_path: Path, tables: Sequence[Table], heading: str) -> None:
    """FLARE's table in files of its own; none of an earlier report stay where there is no such table."""
    files = {name: run_path / f"results-flare.{name}" for name in ("tex", "md")}
    if not tables:
        for file in files.values():
            file.unlink(missing_ok=True)
        return
    files["tex"].write_text(latex_file(tables, heading), encoding="utf-8")
    parts = [f"# {markdown_text(heading)}", *(part for table in tables for part in _markdown_parts(table))]
    files["md"].write_text("\n\n".join([*parts, f"*{DISCLAIMER}*"]) + "\n", encoding="utf-8")


def _markdown_parts(table: Table) -> list[str]:
    parts = [f"**{markdown_text(table.caption)}**", markdown_table(table)]
    return [*parts, markdown_text(table.note)] if table.note else parts
