"""Claim: fintune's optimised GPT reaches the loss of GPT-2's plain one in less time, and how many tokens a second it is
trained on beside nanoGPT and nanochat.

``speed``: every variant in a process of its own, compiled, with the number of rows at once that is fastest for it; all
take the same tokens and the same rows an optimiser step. Windows take turns between the processes of a group, in which
both peers always are. Layers, width, heads and words are the same, the models are not: nanochat has embeddings that
feed values and more beside them, nanoGPT is GPT-2. So attention, weights and work a token stand beside each rate.

``race``: the plain GPT (all scores, not compiled; in fp32, again with TF32, and compiled in bf16) and the optimised one
on the same tokens; time until the loss on held-out rows is what the plain one ends with. Peers are their own checkouts.

    python benchmarks/gpt_from_scratch.py prepare --text speeches.jsonl.xz news/ --tokenizer smollm2-135m --tokens t.bin
    python benchmarks/gpt_from_scratch.py speed --tokens t.bin --nanogpt DIR --nanochat DIR --json speed.jsonl
    python benchmarks/gpt_from_scratch.py race --tokens t.bin --sizes 124m --only baseline --json race.jsonl
    python benchmarks/gpt_from_scratch.py race --tokens t.bin --sizes 124m --json race.jsonl    # what is left of it
    python benchmarks/gpt_from_scratch.py speed --devices 0,1,2,3 ...       # groups are dealt out to the cards
    python benchmarks/gpt_from_scratch.py all --smoke --nanogpt DIR --nanochat DIR    # everything tiny, on the CPU

The same command with the same ``--json`` leaves out variants that are there without an error, whatever ``--only``
says; another type of card wants another file. An error in a row makes the exit code 1.

Model FLOP utilisation: tokens a second times (6 N + 12 L W T), over the card's dense bf16 peak; N: weights that every
token is multiplied with (blocks and head, no embeddings), L layers, W width, T tokens of a row, as if each saw all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpt_runs.kept import Kept, asked
from gpt_runs.processes import Process, visible_device
from gpt_runs.results import race_table, speed_row, speed_table
from gpt_runs.settings import BASELINES, OURS, PEERS, WIDE, Job, Variant
from gpt_runs.tokens import note_of, write_bytes_of, write_tokens

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
STEPS_HELP = """race: steps of the baseline. A token of the 124M with 49,152 words takes
6 x 122.7M + 12 x 12 x 768 x 1024 = 0.85 GFLOP. 120 steps x 64 rows x 1024 are 7.9M tokens, and 4 steps and 13
validations (256 rows, a third of the work) beside them make it 9.3M: 7.9 PFLOP, or 200 s where fp32 without TF32
reaches 40 TFLOP/s, as is expected of an H200 but was not measured; with the start about 4 minutes. The 350M takes 2.8
times that."""


def main() -> int:
    arguments = parsed()
    if arguments.command == "worker":
        from gpt_runs.worker import serve

        serve(arguments.job)
        return 0
    if arguments.command == "prepare":
        print(write_tokens(arguments.text, arguments.tokenizer, arguments.tokens))
        return 0
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    if arguments.smoke and arguments.tokens is None:
        arguments.tokens = arguments.work_dir / "smoke.bin"
        write_bytes_of(sorted((ROOT / "docs").glob("*.md")), arguments.tokens)
    bench = Bench(arguments)
    for wish in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(wish, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.command in ("speed", "all"):
            bench.deal(list(bench.speed_groups()), bench.speed)
            speed_table(bench.rows)
        if arguments.command in ("race", "all"):
            bench.deal(list(bench.race_groups()), bench.race)
            race_table(bench.rows)
    finally:
        bench.stop()
    return int(any("error" in row for row in bench.rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "speed", "race", "all", "worker"])
    parser.add_argument("job", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help="uint16 file with a .json note beside it, as prepare writes them")
    parser.add_argument("--text", nargs="+", default=[], help="prepare: text files, folders or tables")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="prepare: base model whose tokenizer is used")
    parser.add_argument("--nanogpt", type=Path, help="checkout of karpathy/nanoGPT; left out when not given")
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat; likewise")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="variants, peers and those of race (fintune@0.25) included"
    )
    parser.add_argument(
        "--also", nargs="+", type=lambda text: Variant(**json.loads(text)), default=[], metavar="JSON",
        help='further variants of ours: {"name": "mine", "options": {"attention": "cudnn", "chunk_rows": 8192}}',
    )  # fmt: skip
    parser.add_argument("--sizes", nargs="+", default=["124m", "350m"], choices=["tiny", "124m", "350m"])
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--rows-per-step", type=int, default=512, help="rows behind each update in speed")
    parser.add_argument("--race-rows-per-step", type=int, default=64, help="likewise in race")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[32, 64], help="rows at once that are tried, the fewest first"
    )
    parser.add_argument("--rounds", type=int, default=5, help="windows of each variant")
    parser.add_argument("--window", type=int, default=2, help="optimiser steps of a window")
    parser.add_argument("--steps", "--baseline-steps", type=int, default=120, help=STEPS_HELP)
    parser.add_argument(
        "--validate-every", type=int, default=2, help="race: steps between validations; 5 times as many in fp32 or TF32"
    )
    parser.add_argument("--validation-rows", type=int, default=256)
    parser.add_argument(
        "--horizons", nargs="+", type=float, default=[0.25, 0.5], help="race: schedules of the optimised"
    )
    parser.add_argument("--race-variant", default="fintune", help="race: which of ours the optimised GPT is")
    parser.add_argument("--together", type=int, default=4, help="processes that share a card; peers are among them")
    parser.add_argument("--timeout", type=float, default=420, help="seconds for an answer in speed")
    parser.add_argument("--race-timeout", type=float, default=1500, help="seconds for a run of the race")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--devices", default="0", help="places of cards, from 0, among those of CUDA_VISIBLE_DEVICES")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, in minutes")
    parser.add_argument("--compile", action="store_true", help="compile in a smoke test too")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "gpt-from-scratch")
    parser.add_argument("--json", type=Path, help="a line for each variant, as it is measured")
    arguments = parser.parse_args()
    _refuse_what_is_not_there(parser, arguments)
    if arguments.smoke:
        small = {"device": "cpu", "sizes": ["tiny"], "length": 32, "rows_per_step": 4, "race_rows_per_step": 4}
        few = {"rows": [2, 4], "rounds": 2, "window": 1, "steps": 12, "validate_every": 2, "validation_rows": 8}
        vars(arguments).update(small | few)
    elif arguments.command in ("speed", "race", "all") and arguments.tokens is None:
        parser.error("--tokens is needed; prepare writes such a file")
    if arguments.validation_rows % math.lcm(*arguments.rows):
        parser.error("--validation-rows must be a multiple of all --rows")
    return arguments


def _names(arguments: argparse.Namespace) -> list[str]:
    """What --only may name: peers where their checkout is given."""
    peers = {"fintune"} | {name for name in ("nanogpt", "nanochat") if getattr(arguments, name) is not None}
    speed = [v.name for v in (*PEERS, *OURS, *WIDE, *arguments.also) if v.peer in peers]
    race = [v.name for v in BASELINES] + [f"{arguments.race_variant}@{share:g}" for share in arguments.horizons]
    return {"speed": speed, "race": race}.get(arguments.command, speed + race)


def _refuse_what_is_not_there(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for name, place, part in (("nanogpt", arguments.nanogpt, "model.py"), ("nanochat", arguments.nanochat, "nanochat")):
        if place is not None and not (place / part).exists():
            parser.error(f"--{name} {place} is no checkout: it has no {part}")
    if arguments.device == "cuda" and not arguments.smoke:
        try:
            list(map(visible_device, arguments.devices.split(",")))
        except ValueError as error:
            parser.error(f"--devices {arguments.devices}: {error}")
    if arguments.race_variant not in [v.name for v in (*OURS, *arguments.also)]:
        parser.error(f"--race-variant {arguments.race_variant} is none of ours")
    unknown = set(arguments.only or ()) - set(_names(arguments))
    if unknown:
        parser.error(f"{arguments.command} has no {', '.join(sorted(unknown))}; it has {', '.join(_names(arguments))}")
    if arguments.command in ("speed", "race", "all") and arguments.tokens is not None:
        for file in (arguments.tokens, note_of(arguments.tokens)):
            if not file.is_file():
                parser.error(f"{file} is not there; prepare writes it")


class Stopped(Exception):
    """The benchmark was told to stop."""


class Bench:
    """Deals groups of variants out to devices, and keeps their rows.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.given = arguments
        self.note = json.loads(note_of(arguments.tokens).read_text(encoding="utf-8"))
        places = {"nanogpt": arguments.nanogpt, "nanochat": arguments.nanochat}
        self.peers = {name: str(place.absolute()) for name, place in places.items() if place is not None}
        self.gpus = [None] if arguments.device == "cpu" else arguments.devices.split(",")
        self.rows: list[Row] = []
        self._kept = Kept(arguments.json)
        self._started = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self._lock = threading.Lock()
        self._running: list[Process] = []
        self._is_stopped = False

    def speed_groups(self) -> Iterator[list[Job]]:
        """Variants that take turns, the peers among them each time; heads of another size are groups of their own."""
        for size in self.given.sizes:
            for variants in ((*PEERS, *OURS, *self.given.also), WIDE):
                is_new = {v.name: self._is_new("speed", self._speed_job(v, size, 0)) for v in variants}
                wanted = [v for v in variants if self._is_wanted(v)]
                peers, own = ([v for v in wanted if (v.peer != "fintune") == is_peer] for is_peer in (True, False))
                own = [v for v in own if is_new[v.name]]
                peers = peers if own or any(is_new[v.name] for v in peers) else []
                share = max(1, self.given.together - len(peers))
                for start in range(0, max(len(own), 1 if peers else 0), share):
                    group = [*peers, *own[start : start + share]]
                    yield [self._speed_job(v, size, start) for v in group]

    def race_groups(self) -> Iterator[list[Job]]:
        """One run each: the longest first."""
        (chosen,) = (v for v in (*OURS, *self.given.also) if v.name == self.given.race_variant)
        optimised = [replace(chosen, name=f"{chosen.name}@{share:g}", horizon=share) for share in self.given.horizons]
        for size in self.given.sizes[:1] if self.given.command == "all" else self.given.sizes:
            for variant in (*BASELINES, *optimised):
                job = self._job(variant, size, f"race-{size}", self.given.race_rows_per_step)
                if self._is_new("race", job) and self._is_wanted(variant):
                    yield [job]

    def deal(self, groups: list[list[Job]], measure: Any) -> None:
        """Each device takes the next group when it has done one."""
        waiting: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
        for group in groups:
            waiting.put(group)

        failures: list[Exception] = []

        def work(gpu: str | None) -> None:
            while not self._is_stopped:
                try:
                    measure(waiting.get_nowait(), gpu)
                except queue.Empty:
                    return
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(gpu,)) for gpu in self.gpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """Ends all processes, and lets none start."""
        with self._lock:
            self._is_stopped = True
            running, self._running = self._running, []
        for process in running:
            process.end()

    def speed(self, group: list[Job], gpu: str | None) -> None:
        """Starts a group one after the other, then lets their windows take turns."""
        running: list[tuple[Job, Process, Row, list[Row]]] = []
        # With one number of rows nothing is chosen by speed, so that all may load and compile at once. Processes end
        # with the thread that started them, so that is this one.
        at_once = len(group) if len(self.given.rows) == 1 else 1
        with ThreadPoolExecutor(at_once) as pool:
            asked = []
            for job in group:
                process = self._start(job, gpu)
                asked.append((job, process, pool.submit(process.ask, "prepare", self.given.timeout)))
                if at_once == 1:
                    asked[-1][2].result()
        for job, process, answer in asked:
            facts = answer.result()
            if "error" in facts:
                self._keep(speed_row(job, gpu, facts, []), job)
            else:
                running.append((job, process, facts, []))
        for _ in range(self.given.rounds):
            for _, process, facts, windows in running:
                if "error" not in facts:
                    window = process.ask("window", self.given.timeout, steps=self.given.window)
                    if "error" in window:
                        facts |= window
                    else:
                        windows.append(window)
        for job, process, facts, windows in running:
            process.end()
            self._keep(speed_row(job, gpu, facts, windows), job)

    def race(self, group: list[Job], gpu: str | None) -> None:
        """One run of the race from its first weights to its last."""
        (job,) = group
        started = time.time()
        curve = Path(job.folder) / "curve.jsonl"
        process = self._start(job, gpu)
        curve.unlink(missing_ok=True)
        facts = process.ask("prepare", self.given.timeout)
        if "error" not in facts:
            facts |= process.ask("race", self.given.race_timeout, curve=str(curve.absolute()))
        process.end()
        points = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()] if curve.exists() else []
        own = {"measure": "race", "variant": job.variant.name, "size": job.size, "gpu": gpu, "points": points}
        self._keep({**own, "setting": asdict(job.variant), "wall_s": round(time.time() - started, 1), **facts}, job)

    def _start(self, job: Job, gpu: str | None) -> Process:
        caches = self.given.work_dir / "caches" / f"{job.size}-{job.variant.name}"
        with self._lock:
            if self._is_stopped:
                raise Stopped
            process = Process(Path(__file__), job, gpu, caches.absolute())
            self._running.append(process)
        return process

    def _keep(self, row: Row, job: Job) -> None:
        row["asked"] = self._asked(row["measure"], job)
        row["group"] = f"{self._started} {Path(job.folder).parent.name}"
        with self._lock:
            if self._is_stopped:
                raise Stopped  # an error that was made by stopping is none
            self.rows.append(row)
            self._kept.add(row)
            said = row.get("error") or row.get("tokens_per_s") or row.get("validation_loss")
            print(f"{row['measure']} {row['size']} {row['variant']}: {said}", flush=True)

    def _is_new(self, measure: str, job: Job) -> bool:
        """Else its rows are in the file already, and are taken from there."""
        earlier = self._kept.earlier(self._asked(measure, job))
        self.rows += earlier
        if earlier and self._is_wanted(job.variant):
            print(f"{measure} {job.size} {job.variant.name}: is in {self.given.json} already", flush=True)
        return not earlier

    def _asked(self, measure: str, job: Job) -> Row:
        windows = {"rounds": self.given.rounds, "window": self.given.window} if measure == "speed" else {}
        return asked(measure, job, **windows)

    def _is_wanted(self, variant: Variant) -> bool:
        is_there = variant.peer == "fintune" or variant.peer in self.peers
        if self.given.device == "cpu" and variant.options.get("attention") in ("cudnn", "flash", "flex"):
            return False  # kernels of GPUs; FlexAttention has no backward pass on the CPU
        return is_there and (self.given.only is None or variant.name in self.given.only)

    def _speed_job(self, variant: Variant, size: str, start: int) -> Job:
        return self._job(variant, size, f"speed-{size}-{start}", self.given.rows_per_step)

    def _job(self, variant: Variant, size: str, place: str, rows_per_step: int) -> Job:
        in_full = variant.precision != "bf16"  # slow, and all scores of a layer exist at once
        return Job(
            variant, size, self.given.device, str(self.given.tokens.absolute()), self.note["vocabulary"],
            self.note.get("end_of_document"), self.given.length, rows_per_step,
            (min(self.given.rows),) if in_full else tuple(self.given.rows),
            self.given.steps, self.given.validate_every * (5 if in_full else 1), self.given.validation_rows, self.peers,
            str((self.given.work_dir / place / variant.name).absolute()),
            compiles=not self.given.smoke or self.given.compile,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
