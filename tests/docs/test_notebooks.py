"""The notebooks run from top to bottom, and lie in git without outputs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.blocks import ROOT
from tests.docs.session import plant_model

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMED = ("data_exploration", "gpt_training", "results_analysis", "training_demo")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The cells of every notebook as they ran: one after the other in one process, so that libraries load once.

    Names are cleared before each, which gets a folder of its own. The embedded model is a tiny random one: its place in
    the cache is taken. A cell that fails does not keep the others from running.
    """
    book, ends = nbformat.v4.new_notebook(), {}
    for path in NOTEBOOKS:
        fresh = f"%reset -f\n%cd -q {tmp_path_factory.mktemp(path.stem)}"
        book.cells += [nbformat.v4.new_code_cell(fresh), *read(path).cells]
        ends[path.stem] = len(book.cells)
    with pytest.MonkeyPatch.context() as patched:
        cache = tmp_path_factory.mktemp("cache")
        patched.setenv("FINTUNE_CACHE", str(cache))
        patched.setenv("FINTUNE_OFFLINE", "1")
        patched.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
        patched.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patched.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        plant_model(cache)
        NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True).execute()
    starts = [0, *ends.values()]
    return {name: book.cells[start:end] for start, (name, end) in zip(starts, ends.items(), strict=False)}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_the_promised_notebooks_are_there() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == NAMED
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_in_git_and_the_first_cell_installs(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "%pip install" in code[0].source and "find_spec" in code[0].source
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|tmp|Users)/", json.dumps(raw)), "a path of somebody's machine"


@pytest.mark.parametrize("name", NAMED)
def test_it_runs(name: str, ran: dict[str, list[Any]]) -> None:
    outputs = [(cell, out) for cell in ran[name] for out in cell.get("outputs", [])]
    for cell, out in outputs:
        assert out["output_type"] != "error", f"{cell.source}\n\n{out['ename']}: {out['evalue']}"
    assert any(out.get("name") == "stdout" and out["text"].strip() for _, out in outputs)
    assert any("image/png" in out.get("data", {}) for _, out in outputs), "no figure"
