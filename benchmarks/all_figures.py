"""Measures what ``docs/experiments.md`` reports of GPUs, as a queue over the cards of one host.

The queue is ``all_figures.yaml``: each entry a command, the cards it takes and the seconds it may. Entries start in
order as cards come free, each with its own log and JSON; one that wants several cards waits for them, and nothing
overtakes it. What is not timed takes a part of a card, beside others; entries that take turns at being measured share a
card with their like, so that one starts while another is measured. Entries that have ended well are left out when
the same command is started again.

    python benchmarks/all_figures.py --data DATA --tokenizer FOLDER --output-dir runs/figures --cards 0 1 2 3
    python benchmarks/all_figures.py --list
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

QUEUE = Path(__file__).with_suffix(".yaml")
POLL_SECONDS = 0.5
EPSILON = 1e-6  # parts of a card add up to one, but for rounding


@dataclass(frozen=True)
class Entry:
    """One measurement.

    Attributes:
        name: of the log and the JSON file.
        run: the command; ``{data}``, ``{tokenizer}``, ``{peers}``, ``{work}``, ``{out}`` and ``{json}`` are filled in.
        seconds: after which it is stopped.
        cards: how many it takes, none for work of the host alone.
        part: how much of each: 1 where a time is taken, less where several entries may run side by side.
        turns: its processes wait for one another before they use the card (``fintune.bench.measuring.own_turn``).
        after: entries that must have ended well before, where they were asked for too.
    """

    name: str
    run: str
    seconds: float
    cards: int = 1
    part: float = 1.0
    turns: bool = False
    after: tuple[str, ...] = ()

    def command(self, places: dict[str, str]) -> list[str]:
        """Words of the command, with places filled in."""
        own = {**places, "json": f"{places['out']}/{self.name}.json"}
        words = [word.format_map(own) for word in shlex.split(self.run)]
        return [sys.executable if words[0] == "python" else words[0], *words[1:]]


@dataclass
class Running:
    """An entry that has started."""

    entry: Entry
    cards: tuple[str, ...]
    process: subprocess.Popen[bytes]
    started: float

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def stop(self) -> None:
        """The whole process group, politely and then not."""
        for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(patience)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def read_queue(path: Path) -> list[Entry]:
    entries = [Entry(**{**one, "after": tuple(one.get("after", ()))}) for one in yaml.safe_load(path.read_text())]
    names = [entry.name for entry in entries]
    known = {name for entry in entries for name in entry.after} <= set(names)
    if len(set(names)) < len(names) or not known or not all(0 < entry.part <= 1 for entry in entries):
        sys.exit(f"{path}: a name stands twice, an entry comes after one that is not there, or part is not up to 1.")
    return entries


def ended_well(ledger: Path) -> set[str]:
    """Names by the last line that each has in the ledger."""
    rows = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    last = {row["name"]: row["returncode"] for row in rows}
    return {name for name, code in last.items() if code == 0}


def start(entry: Entry, cards: tuple[str, ...], places: dict[str, str]) -> Running:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(cards), "FINTUNE_TEST_GPUS": ",".join(cards)}
    environment |= {"FINTUNE_DATA_DIR": places["data"]} if places["data"] else {}
    if entry.turns:
        environment["FINTUNE_BENCH_TURN"] = str(Path(places["out"], f"turn-{'-'.join(cards)}.lock").absolute())
    with Path(places["out"], f"{entry.name}.log").open("wb") as log:
        process = subprocess.Popen(
            entry.command(places), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    print(f"{time.strftime('%X')} start {entry.name} on {','.join(cards) or 'no card'}", flush=True)
    return Running(entry, cards, process, time.monotonic())


def measure(entries: Sequence[Entry], cards: Sequence[str], places: dict[str, str]) -> bool:
    """Runs what has not ended well before; whether everything has now."""
    ledger = Path(places["out"], "ledger.jsonl")
    good = ended_well(ledger)
    asked = {entry.name for entry in entries}
    waiting = [entry for entry in entries if entry.name not in good]
    free, running = dict.fromkeys(cards, 1.0), list[Running]()
    try:
        while waiting or running:
            for one in [one for one in running if one.process.poll() is not None or one.elapsed_s > one.entry.seconds]:
                late = one.process.poll() is None
                one.stop()
                row = {"name": one.entry.name, "returncode": one.process.returncode, "stopped": late}
                row |= {"seconds": round(one.elapsed_s, 1), "cards": one.cards}
                with ledger.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(f"{time.strftime('%X')} end   {row}", flush=True)
                good |= {one.entry.name} if row["returncode"] == 0 else set()
                running.remove(one)
                for card in one.cards:
                    free[card] += one.entry.part
            waiting = [entry for entry in waiting if not _hopeless(entry, asked, good, waiting, running)]
            ready = next((entry for entry in waiting if set(entry.after) & asked <= good), None)
            taken = None if ready is None else _cards_for(ready, free, running)
            if ready is not None and taken is not None:
                for card in taken:
                    free[card] -= ready.part
                waiting.remove(ready)
                running.append(start(ready, taken, places))
            else:
                time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.stop()
    return asked <= good


def _cards_for(entry: Entry, free: dict[str, float], running: Sequence[Running]) -> tuple[str, ...] | None:
    """The cards it gets, None if it must wait: the fullest, so that others stay empty for what needs one alone."""
    unlike = {card for one in running if one.entry.turns != entry.turns for card in one.cards}
    room = [card for card, left in free.items() if left > entry.part - EPSILON and card not in unlike]
    fit = sorted(room, key=lambda card: free[card])
    chosen = set(fit[: entry.cards])
    return tuple(card for card in free if card in chosen) if len(chosen) == entry.cards else None


def _hopeless(
    entry: Entry, asked: set[str], good: set[str], waiting: Sequence[Entry], running: Sequence[Running]
) -> bool:
    """Whether an entry that must come before has failed."""
    may_come = good | {one.name for one in waiting} | {one.entry.name for one in running}
    missing = sorted((set(entry.after) & asked) - may_come)
    if missing:
        print(f"{entry.name} is left out: {', '.join(missing)} failed.", flush=True)
    return bool(missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", type=Path, default=QUEUE)
    parser.add_argument("--data", default=os.environ.get("FINTUNE_DATA_DIR", ""), help="folder of the data sets")
    parser.add_argument("--tokenizer", default="", help="folder with tokenizer files of the Llama shapes")
    parser.add_argument("--peers", default="", help="folder of the checkouts nanoGPT and nanochat")
    parser.add_argument("--work-dir", default="", help="for checkpoints; OUTPUT_DIR/work when left out")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/figures"))
    parser.add_argument("--cards", nargs="+", default=["0"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="entries; all when left out")
    parser.add_argument("--list", action="store_true", help="print the queue and measure nothing")
    options = parser.parse_args()
    entries = read_queue(options.queue)
    if unknown := set(options.only or ()) - {entry.name for entry in entries}:
        parser.error(f"not in {options.queue}: {', '.join(sorted(unknown))}")
    entries = [entry for entry in entries if not options.only or entry.name in options.only]
    if options.list:
        for entry in entries:
            print(f"{entry.name:28} {entry.cards} cards x {entry.part:g} {entry.seconds:5.0f} s  {entry.run}")
        return 0
    named = {"data": options.data, "tokenizer": options.tokenizer, "peers": options.peers}
    for place, given in named.items():
        if not given and (need := [entry.name for entry in entries if f"{{{place}}}" in entry.run]):
            print(f"Left out for want of --{place}: {', '.join(need)}.")
            entries = [entry for entry in entries if entry.name not in need]
    if too_many := [entry.name for entry in entries if entry.cards > len(options.cards)]:
        print(f"Left out for want of cards: {', '.join(too_many)}.")
        entries = [entry for entry in entries if entry.cards <= len(options.cards)]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    places = {**named, "work": options.work_dir or str(options.output_dir / "work"), "out": str(options.output_dir)}
    return 0 if measure(entries, options.cards, places) else 1


if __name__ == "__main__":
    sys.exit(main())
