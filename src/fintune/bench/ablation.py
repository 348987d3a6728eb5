"""The ablation: every optimisation on from the base and off from the full set, each in a process of its own.

Enters: a device, a size, minutes, a folder. Leaves: the folder with ``settings.json``, ``runs.jsonl`` (a line for
each finished variant), ``results.json``, ``table.md`` and ``figure.png``. The same command goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fintune.bench.jobs import Job, chosen_variants, estimated_seconds, jobs_of_round
from fintune.bench.measuring import TURN, Clock
from fintune.bench.optimisations import FAMILIES, OPTIMISATIONS, Family
from fintune.bench.processes import call_apart
from fintune.bench.sizes import Size, size_named
from fintune.schema.errors import RecipeError, RunError
from fintune.schema.run_directory import read_jsonl, write_json, writing

log = logging.getLogger(__name__)
SETTINGS, RUNS, PREPARED = "settings.json", "runs.jsonl", "prepared"
_PREPARING_S = 1800.0
_ALSO_STOPPED_S = 1.0  # a signal to all processes may end a variant before this one hears of it


@dataclass(frozen=True)
class BenchFolder:
    """The folder of a bench."""

    path: Path

    @property
    def settings(self) -> Path:
        """What makes its measurements comparable."""
        return self.path / SETTINGS

    @property
    def runs(self) -> Path:
        """A line for each finished variant."""
        return self.path / RUNS

    @property
    def prepared(self) -> Path:
        """What all variants share."""
        return self.path / PREPARED

    def records(self) -> list[dict[str, Any]]:
        """The lines of the finished variants; the last of one that failed and was tried again."""
        return list({record["key"]: record for record in read_jsonl(self.runs)}.values())


@dataclass
class Bench:
    """One call of the bench.

    Attributes:
        folder: where everything is kept.
        size: of all runs.
        device: ``cpu`` or ``cuda``.
        cards: CUDA devices to spread over, as ``CUDA_VISIBLE_DEVICES`` names them; empty for the first. One that stands
            there twice has two variants at once, which load and compile side by side and are measured alone.
        families: kinds of run.
        only: keys of the optimisations that are switched; empty for all.
        rounds: repeats at most.
        minutes: after which no further variant is begun.
        on_done: called with each finished job, its record, and how many are done of how many.
    """

    folder: BenchFolder
    size: Size
    device: str
    cards: tuple[str, ...] = ()
    families: tuple[Family, ...] = ("gpt", "llm")
    only: tuple[str, ...] = ()
    rounds: int = 3
    minutes: float = 10.0
    on_done: Callable[[dict[str, Any], int, int], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)

    def run(self, text: Path | None) -> None:
        """Measures until all rounds are done or the time is over; a further round begins only if all of it fits.

        Variants that failed in an earlier call are tried again.

        Raises:
            RunError: the folder holds a bench of other settings, or cannot be written.
            DataError: the text cannot be used.
        """
        deadline = time.monotonic() + 60 * self.minutes
        self._prepare(text)
        variants = chosen_variants(self.families, self.device, self.only)
        for number in range(self.rounds):
            done = {record["key"] for record in self.folder.records() if not record["problem"]}
            jobs = jobs_of_round(variants, self.size, self.device, number)
            left = [job for job in jobs if job.key not in done]
            if number and left and not self._fits(len(left) / len(jobs), deadline):
                log.info("Round %d would not fit into the time that is left.", number + 1)
                return
            self._run_round(left, len(jobs), deadline)
            if time.monotonic() > deadline:
                return

    def _fits(self, share: float, deadline: float) -> bool:
        whole = estimated_seconds(self.folder.records()) / max(1, len(self.cards))
        return time.monotonic() + 1.1 * share * whole < deadline

    def _prepare(self, text: Path | None) -> None:
        from fintune.bench.worker import device_facts, prepare_apart

        path = self.folder.path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        asked = {"size": json.loads(json.dumps(asdict(self.size))), "kind": self.device}
        asked["text"] = None if text is None else str(text)
        known = json.loads(self.folder.settings.read_text(encoding="utf-8")) if self.folder.settings.is_file() else None
        variables = self._variables(self.cards[0]) if self.cards else {}
        facts = call_apart(device_facts, (self.device,), limit_s=_PREPARING_S, device=self.device, variables=variables)
        _require(facts.problem)
        now = {**asked, **facts.value}
        if known is not None and (changed := [key for key in now if known.get(key) != now[key]]):
            raise RunError(
                f"{path} holds a bench of another {changed[0]}, with which new measurements could not be compared.",
                "Name another folder with -o, or remove this one.",
            )
        write_json(self.folder.settings, {**(known or {}), **now})
        arguments = (str(self.folder.prepared), self.size, asked["text"], self.device)
        prepared = call_apart(prepare_apart, arguments, limit_s=_PREPARING_S, device=self.device, variables=variables)
        _require(prepared.problem)
        write_json(self.folder.settings, {**now, "prepared": prepared.value})

    def _run_round(self, left: Sequence[Job], total: int, deadline: float) -> None:
        jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in left:
            jobs.put(job)
        counter = iter(range(total - len(left) + 1, total + 1))
        cards = self.cards or ("",)
        with ThreadPoolExecutor(len(cards)) as pool:
            lanes = [pool.submit(self._lane, jobs, counter, total, deadline, card) for card in cards]
            try:
                for lane in as_completed(lanes):
                    lane.result()
            except BaseException:  # Ctrl-C and SIGTERM among them; the pool then waits until all lanes have stopped
                self._stopping.set()
                raise

    def _lane(
        self, jobs: queue.SimpleQueue[Job], counter: Iterator[int], total: int, deadline: float, card: str
    ) -> None:
        from fintune.bench.worker import run_job

        lanes = max(1, self.cards.count(card))  # each waits for the others
        while time.monotonic() < deadline and not self._stopping.is_set():
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                return
            finished = call_apart(
                run_job,
                (job, str(self.folder.prepared), self.size),
                limit_s=self.size.limit_s * lanes,
                device=self.device,
                variables=self._variables(card),
                stopping=self._stopping,
            )
            if self._stopping.wait(_ALSO_STOPPED_S if finished.problem else 0.0):
                return
            record = {"key": job.key, **asdict(job), "seconds": finished.seconds, "problem": finished.problem}
            record["side_by_side"] = lanes
            record["measured"] = finished.value
            with self._lock:
                with writing(self.folder.runs), self.folder.runs.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
                if self.on_done is not None:
                    self.on_done(record, next(counter), total)

    def _variables(self, card: str) -> dict[str, str]:
        shared = {TURN: str((self.folder.path / f"turn-{card}.lock").absolute())} if self.cards.count(card) > 1 else {}
        return {"CUDA_VISIBLE_DEVICES": card, **shared} if card else {}


def bench_optimisations(
    output_dir: str | Path,
    *,
    device: str = "auto",
    size: str = "auto",
    minutes: float = 10.0,
    rounds: int = 3,
    text: str | Path | None = None,
    families: Sequence[str] = ("gpt", "llm"),
    only: Sequence[str] = (),
    cards: Sequence[str] = (),
    clock: Clock = "wall",
    on_done: Callable[[dict[str, Any], int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures what each optimisation buys, and writes table and figure.

    Args:
        output_dir: folder of the bench; one that is there already is gone on with.
        device: auto, cpu or cuda.
        size: auto, tiny, small or gpu.
        minutes: after which no further variant is begun. The first round is begun whatever it takes.
        rounds: repeats at most.
        text: file or folder with documents for the GPTs; the shipped samples when None.
        families: gpt, llm or both.
        only: keys of optimisations; all when empty.
        cards: CUDA devices to spread the variants over, by number among those that this process sees; see ``Bench``.
        clock: wall, or processor on a CPU that other work shares.
        on_done: called with each finished variant's record, and how many are done of how many.

    Returns:
        What ``results.json`` holds.

    Raises:
        FintuneError: one sentence saying what is wrong, with the remedy.
    """
    from fintune.bench.written import write_results

    chosen = chosen_device(device)
    _require_known(families, list(FAMILIES), "kind of run")
    _require_known(only, [one.key for one in OPTIMISATIONS], "optimisation")
    if minutes <= 0 or rounds < 1:
        raise RecipeError("The bench needs time for one round at least.", "Give --minutes 10 and --rounds 1 or more.")
    kinds: tuple[Family, ...] = tuple(family for family in FAMILIES if family in families)
    folder = BenchFolder(Path(output_dir))
    if clock == "processor" and chosen != "cpu":
        raise RecipeError("Seconds of a processor say nothing about a GPU.", "Choose --clock wall.")
    sized = replace(size_named(size, chosen), clock=clock)
    named = visible_cards(cards, os.environ.get("CUDA_VISIBLE_DEVICES")) if chosen == "cuda" else ()
    if sys.platform == "win32" and len(set(named)) < len(named):
        raise RecipeError("Variants cannot share a card on Windows.", "Name each card once in --devices.")
    bench = Bench(folder, sized, chosen, named, kinds, tuple(only), rounds, minutes, on_done)
    bench.run(None if text is None else Path(text))
    return write_results(folder, chosen)


def visible_cards(cards: Sequence[str], inherited: str | None) -> tuple[str, ...]:
    """What ``CUDA_VISIBLE_DEVICES`` of a process must be to see one card alone, for each of some cards.

    Args:
        cards: numbers among the cards that are visible now: with 4,5 inherited, 1 is card 5; or names of cards.
        inherited: ``CUDA_VISIBLE_DEVICES`` of this process; None where it is not set.

    Raises:
        RecipeError: so many cards are not visible.
    """
    import torch

    count = torch.cuda.device_count() if inherited is None else 0
    visible = [str(number) for number in range(count)] if inherited is None else inherited.split(",")
    for card in cards:
        if card.isdecimal() and int(card) >= len(visible):
            remedy = f"Number those that this process sees from 0 to {len(visible) - 1}."
            raise RecipeError(f"There is no CUDA device {card} among the {len(visible)} that are visible.", remedy)
    return tuple(visible[int(card)].strip() if card.isdecimal() else card for card in cards)


def chosen_device(wanted: str) -> str:
    """The kind of device for auto, cpu or cuda.

    Raises:
        RecipeError: there is none of the kind.
    """
    import torch

    _require_known([wanted], ["auto", "cpu", "cuda"], "device")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError("There is no CUDA device here.", "Choose --device cpu or auto.")
    return wanted


def _require_known(given: Sequence[str], known: Sequence[str], what: str) -> None:
    if unknown := [name for name in given if name not in known]:
        remedy = f"Choose among {', '.join(dict.fromkeys(known))}."
        raise RecipeError(f"The bench knows no {what} {unknown[0]}.", remedy)


def _require(problem: str) -> None:
    if problem:
        raise RunError(f"The bench could not be prepared: {problem}", "Correct that and start the same command again.")
