"""One folder in which the documents' commands and Python run one after the other, as a reader would type them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

import fintune
from fintune.cli import main
from fintune.models.files import content_hash
from fintune.models.gguf import MANIFEST, converted_folder
from fintune.models.locate import ALIASES
from fintune.models.tiny import write_tiny_model
from fintune.serving import demo
from fintune.serving.server.opening import Served
from tests.docs.blocks import Block, Command, fintune_arguments
from tests.docs.substitutions import IN_COMMANDS, IN_PYTHON, MORE_ARGUMENTS, NOT_RUN, PYTHON_NOT_RUN, SERVED, SMALL
from tests.serving.server.conftest import SETTINGS, serving

FIRMS = ("Nokia", "Orion", "Fortum", "Kone", "Sampo", "Wartsila", "Neste", "Elisa", "Metso", "Outokumpu", "Cargotec")
WORDS = {"positive": ("rises", "beats", "gains"), "negative": ("falls", "misses", "loses"), "neutral": ("keeps",)}
COLLECTED = Path(demo.__file__).parent / "sample"  # two invented companies, as ``fintune collect`` leaves them
# What Python blocks may use without defining it.
GIVEN = ("fintune", "frame", "news", "texts", "build", "history", "weeks", "ids", "targets", "torch", "SMALL")


def headlines(rows: int) -> pd.DataFrame:
    """Invented headlines with a tone."""
    generator = np.random.default_rng(7)
    made = []
    for i in range(rows):
        tone = list(WORDS)[i % 3]
        words = f"{generator.choice(FIRMS)} {generator.choice(WORDS[tone])}, {generator.integers(10, 99999)} units"
        day = pd.Timestamp("2023-01-02") + pd.Timedelta(days=i)
        made.append({"headline": f"{words} sold by {generator.choice(FIRMS)}", "tone": tone, "published": day})
    return pd.DataFrame(made)


def plant_model(cache: Path) -> None:
    """A tiny random model in the place where the conversion of the embedded one is kept."""
    digest = ALIASES["smollm2-135m"].sha256
    folder = write_tiny_model(converted_folder(digest))
    assert folder.is_relative_to(cache)
    manifest = {"source_sha256": digest, "weights_sha256": content_hash(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _write_files(folder: Path) -> None:
    """The reader's own files that the documents name."""
    headlines(120).to_csv(folder / "my-headlines.csv", index=False)
    frame = headlines(24).rename(columns={"headline": "title"}).drop(columns="tone")
    frame.to_parquet(folder / "news.parquet")
    (folder / "prompts.txt").write_text("What is a bond?\nWhat is a share?\n", encoding="utf-8")
    for name in ("data/top50", "data/three"):
        shutil.copytree(COLLECTED, folder / name)
    prices = pd.read_csv(COLLECTED / "prices.csv")
    prices.to_csv(folder / "prices.csv", index=False)
    prices.to_parquet(folder / "prices.parquet")
    dates = pd.date_range("2024-02-04", "2024-05-26", freq="W-SUN").strftime("%Y-%m-%d")
    directions = (1, -1, 1)
    weeks = [(s, d, directions[i % 3]) for i, d in enumerate(dates) for s in ("XDEMO", "XTOYS")]
    pd.DataFrame(weeks, columns=["symbol", "date", "direction"]).to_csv(folder / "forecasts.csv", index=False)
    (folder / "finance_corpus.txt").write_text(
        "".join(f"{row.headline} in the {i}. week.\n<|endoftext|>\n" for i, row in headlines(30).iterrows()),
        encoding="utf-8",
    )


@dataclass
class Session:
    """The folder, what ran in it, and the names of the Python blocks."""

    folder: Path
    closing: contextlib.ExitStack
    done: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: {"run": 0, "parsed only": 0})

    def run(self, command: Command, standard_input: str) -> str | None:
        """Runs a command of ours; what it wrote to standard output, or None where it is only to be parsed."""
        text = str(command)
        if command.words[0] == "curl":
            self._request(command)
            return None
        arguments = fintune_arguments(command)
        if arguments is None or reason_not_to_run(text):
            self.counts["parsed only"] += 1
            return None
        self.counts["run"] += 1
        words = " ".join(arguments)
        for before, after, _ in IN_COMMANDS:
            if before in words:
                arguments = words.replace(before, after).split(" ")
        key = "\0".join(arguments)
        if key in self.done:
            return None
        self.done.add(key)
        given = [*arguments, *MORE_ARGUMENTS.get(arguments[0], ())]
        return self._main(given, dict(command.variables), standard_input, command)

    def _main(self, arguments: list[str], variables: dict[str, str], standard_input: str, command: Command) -> str:
        written, said = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(written):
            patched.setattr(sys, "stdin", io.StringIO(standard_input))
            for name, value in variables.items():
                patched.setenv(name, value)
            with contextlib.redirect_stderr(said):
                code = main(arguments)
        assert code == 0, f"{command.place}: fintune {' '.join(arguments)} ended with {code}: {said.getvalue()[-1500:]}"
        if command.output is not None:
            Path(command.output).write_text(written.getvalue(), encoding="utf-8")
        return written.getvalue()

    @cached_property
    def server(self) -> str:
        """The address of a server of the session's base and its first run, started when it is first asked."""
        served = Served("smollm2-135m", {"tweets": "runs/quickstart"}, None)
        live = self.closing.enter_context(serving(served, replace(SETTINGS, body_timeout_s=15), None, ""))
        return str(live.address)

    def _request(self, command: Command) -> None:
        self.counts["run"] += 1
        address = next(word for word in command.words if word.startswith("http"))
        body = command.words[command.words.index("-d") + 1]
        answer = httpx.post(SERVED.sub(self.server, address), json=json.loads(body), timeout=60)
        assert answer.status_code == 200, f"{command.place}: {answer.text}"

    def execute(self, block: Block, names: dict[str, Any]) -> None:
        """Executes a Python block with the names of the blocks before it."""
        if any(part in block.text for part, _ in PYTHON_NOT_RUN):
            self.counts["parsed only"] += 1
            return
        self.counts["run"] += 1
        text = SERVED.sub(lambda _: self.server, block.text)
        for before, after, _ in IN_PYTHON:
            text = text.replace(before, after)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(text, block.place, "exec"), names)  # the documents' own code

    def names(self) -> dict[str, Any]:
        """What a Python block of a document starts from."""
        news = pd.read_parquet(self.folder / "news.parquet")
        return {
            "fintune": fintune,
            "SMALL": SMALL,
            "frame": headlines(120),
            "news": news,
            "texts": list(news["title"][:3]),
        }


def reason_not_to_run(command: str) -> str | None:
    """Why a command is only parsed; None where it runs."""
    return next((reason for pattern, reason in NOT_RUN if re.search(pattern, command)), None)


@contextlib.contextmanager
def new_session(folder: Path) -> Any:
    """A session in ``folder``, with a cache and a home of its own and two finished runs."""
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as closing:
        patched.chdir(folder)
        patched.setenv("NO_PROXY", "127.0.0.1")
        patched.setenv("FINTUNE_CACHE", str(folder / "cache"))
        patched.setenv("FINTUNE_HOME", str(folder / "home"))
        patched.setenv("COLUMNS", "100")
        patched.delenv("FINTUNE_DATA_DIR", raising=False)
        plant_model(folder / "cache")
        _write_files(folder)
        session = Session(folder, closing)
        for words in (
            ("fintune", "train", "quickstart", "training.epochs=2", "--output-dir", "runs/two-epochs"),
            ("fintune", "train", "quickstart", "--output-dir", "runs/quickstart"),
            ("fintune", "report", "runs/two-epochs"),
            ("fintune", "gpt", "new", "gpt-untrained", "--size", "tiny", "--tokenizer", "smollm2-135m"),
        ):
            session.run(Command("the session", words), "")
        yield session
        os.environ.pop("FINTUNE_OFFLINE", None)
