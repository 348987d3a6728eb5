"""Figures and LaTeX tables of finished runs, one or several, in a folder of their own: ``fintune figures``.

Enters: run directories by name. Leaves: figures in each format, ``tables.tex``, and ``figures.tex``, a document that
``pdflatex`` compiles as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fintune.schema.errors import RecipeError, RunError
from fintune.schema.run_directory import RunDirectory, write_text_atomically, writing

if TYPE_CHECKING:
    from fintune.reporting.run_data import RunData

DOCUMENT, TABLES = "figures.tex", "tables.tex"


@dataclass(frozen=True)
class FiguresOutcome:
    """What was drawn.

    Attributes:
        folder: where everything lies.
        files: by name of the figure, one for each format.
        left_out: by name of the figure, or of a part of it, the reason.
        tables: the tables in LaTeX; None where the runs have none.
        document: the LaTeX document of tables and figures.
    """

    folder: Path
    files: Mapping[str, Sequence[Path]]
    left_out: Mapping[str, str]
    tables: Path | None
    document: Path


def figures(
    runs: Mapping[str, str | Path] | Sequence[str | Path] | str | Path,
    *,
    output_dir: str | Path | None = None,
    formats: Sequence[str] = ("png", "pdf"),
) -> FiguresOutcome:
    """Draws what run directories hold; a figure without data is left out, and the outcome says why.

    Args:
        runs: a run directory; or several, by the name that figures give them, or without, by that of their folders.
        output_dir: where the files go; needed for several runs, else ``figures`` in the run.
        formats: of png, pdf and svg.

    Raises:
        RunError: there is no such run, or nothing in it to draw; two have one name; or one of its files is damaged.
        RecipeError: a format is not known, or there is no folder for several runs.
    """
    from fintune.reporting import styles
    from fintune.reporting.gallery import write_figures
    from fintune.reporting.run_data import read_run

    known = get_args(styles.Format)
    if not formats or (strange := [kind for kind in formats if kind not in known]):
        named = f"{strange[0]} is not a format of figures" if formats else "There is no format for the figures"
        raise RecipeError(f"{named}.", f"Choose among {', '.join(known)}.")
    named_runs = _named(runs)
    if output_dir is None and len(named_runs) > 1:
        raise RecipeError("Figures of several runs need a folder of their own.", "Name one with --output-dir.")
    data = [read_run(_existing(path), name) for name, path in named_runs.items()]
    folder = Path(output_dir) if output_dir is not None else next(iter(named_runs.values())) / "figures"
    with writing(folder):
        drawn = write_figures(folder, data, [kind for kind in known if kind in formats])
        if not drawn.files:
            places = ", ".join(map(str, named_runs.values()))
            raise RunError(f"There is nothing to draw in {places}.", "Train or evaluate first, then try again.")
        tables = _write_latex(folder, data, list(drawn.files))
    return FiguresOutcome(folder, drawn.files, drawn.left_out, tables, folder / DOCUMENT)


def _named(runs: Mapping[str, str | Path] | Sequence[str | Path] | str | Path) -> dict[str, Path]:
    if isinstance(runs, Mapping):
        return {name: Path(path) for name, path in runs.items()}
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(path) for path in runs]
    if not paths:
        raise RunError("There is no run to draw.", "Name a run directory.")
    named: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name
        if name in named:
            raise RunError(f"Two runs are called {name}.", "Name them apart: NAME=RUN, such as first=runs/a second=b.")
        named[name] = path
    return named


def _existing(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    if not path.is_dir():
        raise RunError(f"There is no run {path}.", "Check the path; a run is a folder that fintune train wrote.")
    return run


def _write_latex(folder: Path, data: Sequence[RunData], drawn: Sequence[str]) -> Path | None:
    """Writes tables and document; the path of the tables, None where there are none."""
    from fintune.reporting.captions import picture_captions
    from fintune.reporting.efficiency import efficiency_table
    from fintune.reporting.latex import document, latex_file, results_tables
    from fintune.reporting.run_data import together
    from fintune.schema.results import EvaluationResults

    heading = f"Figures and tables: {', '.join(run.name for run in data)}"
    nothing = EvaluationResults(model="", adapter=None, results=())
    results = (data[0].results or nothing) if len(data) == 1 else together(data)[0]
    efficiency = efficiency_table(data)
    tables = [*results_tables(results, across=len(data) > 1), *([efficiency] if efficiency is not None else [])]
    if tables:
        write_text_atomically(folder / TABLES, latex_file(tables, heading))
    captions = picture_captions(data, results)
    text = document(heading, TABLES if tables else None, {name: captions[name] for name in drawn})
    write_text_atomically(folder / DOCUMENT, text)
    return folder / TABLES if tables else None
