"""A large Parquet file through `fintune predict`, killed twice: is every row there once, and does memory stay flat?

    python benchmarks/predict_killed.py RUN WORK_FOLDER [--rows 1000000] [--processes 2] [--compare]

RUN is any run or model. The file is made of the shipped tweets with numbers drawn anew, so that rows are distinct.
After about one third of the rows SIGKILL meets a process that holds the model (the command itself where there is only
one process), after two thirds the command. Resident memory is read twice a second, of the command and of the processes
that hold the model. --compare labels the file once more undisturbed, in one process, and compares the bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from fintune.sources import read_sample

BATCH = 50_000
WARM_UP_S = 60.0


@dataclass(frozen=True)
class Memory:
    """Resident memory of some processes after warming up."""

    times_s: tuple[float, ...]
    rss_mib: tuple[float, ...]

    def __str__(self) -> str:
        """Range, and least-squares slope over time."""
        if len(self.rss_mib) < 10:
            return "too short to say"
        slope = np.polyfit(self.times_s, self.rss_mib, 1)[0] * 60
        return f"{min(self.rss_mib):.0f} to {max(self.rss_mib):.0f} MiB, {slope:+.2f} MiB a minute"


@dataclass(frozen=True)
class Life:
    """One start of the command: how it ended, and memory."""

    ended: str
    seconds: float
    command: Memory
    workers: Memory


def write_rows(path: Path, n_rows: int) -> None:
    """Distinct texts: the shipped tweets in which every number is drawn anew, with a running number."""
    texts = [str(row["text"]) for table in read_sample("tfns").values() for row in table.rows]
    generator = random.Random(17)
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("headline", pa.string())])) as writer:
        for start in range(0, n_rows, BATCH):
            numbers = range(start, min(start + BATCH, n_rows))
            made = [
                re.sub(r"\d+", lambda _: str(generator.randint(1, 999)), generator.choice(texts)) + f" ({number})"
                for number in numbers
            ]
            writer.write_table(pa.table({"id": list(numbers), "headline": made}))


def live(command: list[str], parts: Path, kill_at_row: int | None, *, kill_worker: bool) -> Life:
    """Runs the command until it ends, or kills it, or a process of it, once that many rows are done."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    memory: list[tuple[float, float, float]] = []
    killed = ""
    while process.poll() is None:
        elapsed = time.perf_counter() - started
        try:
            workers = watched.children(recursive=True)
            sizes = [watched.memory_info().rss / 2**20, sum(worker.memory_info().rss / 2**20 for worker in workers)]
        except psutil.NoSuchProcess:
            continue
        memory.append((elapsed, *sizes))
        if kill_at_row is not None and not killed and rows_done(parts) >= kill_at_row:
            killed = "a worker" if kill_worker and workers else "the command"
            os.kill(workers[0].pid if kill_worker and workers else process.pid, signal.SIGKILL)
        time.sleep(0.5)
    said = process.communicate()[1].strip().splitlines()
    kept = [found for found in memory if found[0] > WARM_UP_S]
    times = tuple(found[0] for found in kept)
    ended = f"SIGKILL to {killed}" if killed else f"exit code {process.returncode}"
    if said:
        ended += f" ({' '.join(said)[:200]})"
    return Life(
        ended,
        time.perf_counter() - started,
        Memory(times, tuple(found[1] for found in kept)),
        Memory(times, tuple(found[2] for found in kept)),
    )


def rows_done(parts: Path) -> int:
    """Rows in complete parts."""
    numbers = ([int(number) for number in path.stem.split("-")[1:]] for path in parts.glob("rows-*"))
    return sum(stop - start for start, stop in numbers)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Makes the file, labels it through two kills, checks the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--compare", action="store_true", help="with the bytes of an undisturbed run")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    source, output = arguments.folder / "in.parquet", arguments.folder / "out.parquet"
    write_rows(source, arguments.rows)
    base = [sys.executable, "-m", "fintune.cli", "predict", arguments.run, "--data", str(source), "--text", "headline"]
    command = [*base, "--output", str(output), "--processes", str(arguments.processes), "--quiet"]
    parts = output.with_name(f"{output.name}.parts")
    for kill_at_row, kill_worker in ((arguments.rows // 3, True), (2 * arguments.rows // 3, False), (None, False)):
        life = live(command, parts, kill_at_row, kill_worker=kill_worker)
        print(f"{life.ended} after {life.seconds:.0f} s, {rows_done(parts):,} rows in parts", flush=True)
        print(f"  the command: {life.command}; the processes with the model: {life.workers}", flush=True)
    table = pq.read_table(output)
    ids = np.asarray(table["id"])
    print(f"rows {len(ids):,}; in order and each once: {bool((ids == np.arange(arguments.rows)).all())}")
    print(f"texts as given: {table['headline'].equals(pq.read_table(source)['headline'])}")
    print(f"without an answer: {table['prediction'].null_count:,}; parts left behind: {parts.exists()}")
    if arguments.compare:
        alone = arguments.folder / "alone.parquet"
        life = live([*base, "--output", str(alone), "--quiet"], parts, None, kill_worker=False)
        print(f"undisturbed: {life.ended} after {life.seconds:.0f} s; the command: {life.command}")
        print(f"the same bytes: {digest(alone) == digest(output)}")


if __name__ == "__main__":
    main()
