"""Claim: LoRA by DDP keeps 95 % of one GPU's speed on each of several, and every strategy follows one GPU's losses.

Runs ``fintune train RECIPE --gpus N`` as a user does, on Llama shapes with random weights and dense text of its own.
``scaling`` fixes the work of one GPU; ``strategies`` compares losses of two processes with those of one; ``kill`` kills
one of two processes and goes on with two, and with one. What has been measured is in the JSON file at any time.

    python benchmarks/several_gpus.py --only scaling --gpus 1 2 4 --work-dir /tmp/peers --tokenizer FOLDER --json a.json
    python benchmarks/several_gpus.py --only strategies kill --together --share 2 --tokenizer FOLDER --json b.json
    python benchmarks/several_gpus.py --device cpu --tiny --gpus 1 2 --work-dir /tmp/several     # a smoke test
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peer_runs.environments import child_environment
from peer_runs.launched import Devices, Ended, dense_text, gpus_of_machine, history, kill_process, last_lines, ranks_of
from peer_runs.settings import ALPHA, LINEAR_LAYERS, RANK, SEED

Row = dict[str, Any]
PARTS = ("scaling", "strategies", "kill")
STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2")
TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}  # of a step's loss: computed in bf16, and in fp32
PROMISED_S = 30.0  # docs/distributed.md: within half a minute
FALLING = {"learning_rate": 5e-4, "schedule": "constant"}  # losses that did not move would follow any others
FEW = 16  # samples of the part that compares strategies, so that they are learnt
GIB = 2**30
QUIET = {
    "evaluation": {"limit": 1, "base": False, "baselines": [], "abstention": False, "bootstrap_samples": 100},
    "report": {"enabled": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4], help="scaling: processes, 1 among them")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "fp8", "none"], help="scaling: the base")
    parser.add_argument("--shape", default="8b", help="scaling: 8b, 3b or 1b")
    parser.add_argument("--small-shape", default="1b", help="the shape of the other parts")
    parser.add_argument("--samples", type=int, default=8, help="scaling: samples of a step and GPU")
    parser.add_argument("--length", type=int, default=2048, help="scaling: tokens of a sample")
    parser.add_argument("--at-once", type=int, default=4, help="scaling: samples computed at once")
    parser.add_argument("--steps", type=int, default=16, help="scaling: steps in all")
    parser.add_argument("--warm-up", type=int, default=4, help="scaling: steps before timing")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--storages", nargs="+", default=["none", "nf4"], help="strategies: how the base is held")
    parser.add_argument("--dtype", default="auto", help="compute type")
    parser.add_argument("--together", action="store_true", help="run at the same time what finds free GPUs")
    parser.add_argument("--share", type=int, default=1, help="runs that a GPU may have at once; scaling has it alone")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and short runs")
    parser.add_argument("--timeout", type=float, default=200, help="seconds for each run")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="for everything; what has not begun then is left out"
    )
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files; a tiny one when left out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.shape = arguments.small_shape = "tiny"
        arguments.samples, arguments.length, arguments.at_once = 4, 64, 2
    bench = Bench(arguments)
    for parts in (PARTS[:1], PARTS[1:]):  # speeds are measured before anything else uses the machine
        chains = [chain for part in parts if part in arguments.only for chain in CHAINS[part](bench)]
        with ThreadPoolExecutor(len(chains) if arguments.together and chains else 1) as pool:
            list(pool.map(bench.carry_out, chains))
    print_tables(bench.result)
    sys.exit(0 if all(row.get("passed", True) and "error" not in row for row in bench.rows()) else 1)


class Bench:
    """The arguments, the machine and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work_dir.absolute()
        self.runs = self.work / "several"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.ends = time.monotonic() + 60 * arguments.minutes
        self.is_gpu = arguments.device == "cuda"
        self.count, names = gpus_of_machine() if self.is_gpu else (max(2, *arguments.gpus), ["CPU"])
        self.devices = Devices(self.count, arguments.share)
        self.tolerance = TOLERANCE["cpu" if not self.is_gpu and arguments.dtype in ("auto", "float32") else "cuda"]
        chosen = {name: str(value) for name, value in vars(arguments).items() if name not in ("json", "work_dir")}
        self.result: dict[str, Any] = {"devices": names, "arguments": chosen, **{part: [] for part in PARTS}}
        self._lock = threading.Lock()
        os.environ.setdefault("FINTUNE_CACHE", str(self.work / "fintune-cache"))  # weights are hashed once

    def rows(self) -> list[Row]:
        """Those of all parts."""
        return [row for part in PARTS for row in self.result[part]]

    def note(self, part: str, row: Row) -> None:
        """Keeps a row, prints it and writes the file."""
        with self._lock:
            self.result[part].append(row)
            print(f"{part}: {json.dumps(row)}", flush=True)
            if self.arguments.json:
                self.arguments.json.write_text(json.dumps(self.result, indent=2), encoding="utf-8")

    def carry_out(self, chain: Callable[[], None]) -> None:
        """Runs a chain; its failure is a row and does not stop the others."""
        try:
            chain()
        except Exception as error:
            part = chain.__name__.removeprefix("chain_")
            self.note(part, {"name": chain.__doc__, "error": f"{type(error).__name__}: {error}"[:1500]})

    def base(self, shape: str) -> Path:
        """The folder of a shape with random weights, written by a process of its own where it is not there."""
        folder = self.work / f"model-{shape}"
        command = [sys.executable, str(Path(__file__).with_name("peers.py")), "checkpoint", "--shape", shape]
        command += ["--device", self.arguments.device, "--work-dir", str(self.work)]
        command += ["--tokenizer", str(self.arguments.tokenizer.absolute())] if self.arguments.tokenizer else []
        with self._lock:
            if not (folder / "written.json").is_file():
                subprocess.run(command, check=True, timeout=180, env=child_environment(self.work))
        return folder

    def recipe(self, name: str, shape: str, length: int, training: Row, **sections: Row) -> Path:
        """Writes a recipe for dense text of ``length`` tokens a sample, which all runs of that length share."""
        base = self.base(shape)
        with self._lock:
            text = dense_text(base, length, self.work / f"several-text-{shape}-{length}.jsonl")
        source = {"name": "dense", "source": str(text), "conversations": {
            "format": "text", "measure": "likelihood", "min_latin_share": 0, "near_duplicates": None,
            "test_share": 0.01, "validation_share": 0,
        }}  # fmt: skip
        content = {
            "name": name,
            "seed": SEED,
            "model": {"base": str(base), "dtype": self.arguments.dtype, **sections.get("model", {})},
            "adapter": {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": list(LINEAR_LAYERS)},
            "data": {
                "tasks": [source],
                "remove_overlap": False,
                "near_duplicate_threshold": None,
                "train_limit": FEW if "learning_rate" in training else None,
            },
            "training": {"epochs": 1000, "max_length": length, "tracking": [], "log_steps": 1, **training},
            "distributed": sections.get("distributed", {}),
            **QUIET,
        }
        file = self.runs / f"{name}.yaml"
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")  # JSON is YAML
        return file

    def train(
        self,
        recipe: Path,
        place: Path,
        count: int,
        *,
        alone: bool = False,
        meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> Ended:
        """``fintune train`` in ``count`` processes, on GPUs of its own; ``meanwhile`` gets the running command."""
        with self.devices.lent(count, alone=alone) as numbers:
            left = min(self.arguments.timeout, self.ends - time.monotonic())
            if left < 10:
                raise TimeoutError(f"no time left for {place.name}; raise --minutes")
            log = place.with_suffix(".log")
            command = [sys.executable, "-m", "fintune.cli", "train", str(recipe), "--output-dir", str(place)]
            command += ["--gpus" if self.is_gpu else "--processes", str(count)] if count > 1 else []
            environment = child_environment(self.work) | {"PYTHONUNBUFFERED": "1"}
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, numbers)) if self.is_gpu else ""
            if not self.is_gpu:
                environment["OMP_NUM_THREADS"] = "1"
            started = time.monotonic()
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, start_new_session=True
                )
                try:
                    if meanwhile is not None:
                        meanwhile(process)
                    code: int | None = process.wait(max(1.0, left - (time.monotonic() - started)))
                except BaseException as error:
                    for pid in [*ranks_of(process.pid).values(), process.pid]:  # each in a session of its own
                        kill_process(pid)
                    process.wait()
                    if not isinstance(error, subprocess.TimeoutExpired):
                        raise
                    code = None
        return Ended(code, place, log, time.monotonic() - started)

    def fresh(self, name: str) -> Path:
        """The folder for a run, with nothing there."""
        place = self.runs / name
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        return place

    def losses(self, ended: Ended) -> list[float]:
        """By step.

        Raises:
            RuntimeError: the run did not succeed.
        """
        if ended.failure is not None:
            raise RuntimeError(f"{ended.place.name}: {ended.failure}")
        return [row["loss"] for row in history(ended.place) if "loss" in row]


def scaling_chains(bench: Bench) -> list[Callable[[], None]]:
    """One chain, since each efficiency is compared with one GPU's; more GPUs than there are, are left out."""
    arguments = bench.arguments

    def measure(count: int) -> Row:
        name = f"scaling-{arguments.shape}-{arguments.quantization}-{count}"
        if count > bench.count:
            return {"name": name, "skipped": f"the machine has {bench.count} GPUs"}
        training = {
            "samples_per_step": count * arguments.samples,
            "tokens_per_batch": arguments.at_once * arguments.length,
            "max_steps": arguments.steps,
            "save_steps": 1000,
        }
        model = {"quantization": arguments.quantization}
        recipe = bench.recipe(name, arguments.shape, arguments.length, training, model=model)
        ended = bench.train(recipe, bench.fresh(name), count, alone=True)
        if ended.failure is not None:
            return {"name": name, "error": ended.failure}
        return {"name": name, **speed(ended, arguments.warm_up)}

    def chain_scaling() -> None:
        """Weak scaling."""
        counts, alone = sorted(arguments.gpus), 0.0
        with ThreadPoolExecutor(len(counts) if arguments.together else 1) as pool:
            for count, row in zip(counts, pool.map(measure, counts), strict=True):
                if "tokens_per_s" in row:
                    alone = row["tokens_per_s"] if count == 1 else alone
                    row["efficiency"] = round(row["tokens_per_s"] / (count * alone), 4) if alone else None
                bench.note("scaling", row)

    return [chain_scaling]


def speed(ended: Ended, warm_up: int) -> Row:
    """Tokens a second between the end of the warm-up and that of the last step, whatever happens in between."""
    facts = json.loads((ended.place / "facts.json").read_text(encoding="utf-8"))
    rows = [row for row in history(ended.place) if "loss" in row]
    times = [later["elapsed_s"] - row["elapsed_s"] for row, later in zip(rows, rows[1:], strict=False)][warm_up - 1 :]
    tokens = facts["sample_tokens"] / facts["steps"]
    return {
        "tokens_per_s": round(tokens * len(times) / sum(times)),
        "step_s": [round(value, 3) for value in (statistics.median(times), min(times), max(times))],
        "tokens_of_a_step": round(tokens),
        "sharing": round(facts["sample_tokens"] / facts["distinct_tokens"], 4),
        "peak_gib": round((facts["peak_bytes"] or 0) / GIB, 1),
        "activations": facts["activations"],
        "first_steps_s": round(rows[warm_up - 1]["elapsed_s"], 1),
        "wall_s": round(ended.seconds, 1),
        "losses": [round(row["loss"], 4) for row in rows[:: max(1, len(rows) // 4)]],
    }


def strategies_chains(bench: Bench) -> list[Callable[[], None]]:
    """One chain for each way to hold the base: one process, then all strategies, at the same time if wanted."""
    return [strategies_chain(bench, storage) for storage in bench.arguments.storages]


def strategies_chain(bench: Bench, storage: str) -> Callable[[], None]:
    def recipe(name: str, **sections: Row) -> Path:
        length = 64 if bench.arguments.tiny else 512
        training = {"samples_per_step": 8, "tokens_per_batch": 2 * length, "max_steps": 10, "save_steps": 1000}
        training |= FALLING
        shape, model = bench.arguments.small_shape, {"quantization": storage}
        return bench.recipe(name, shape, length, training, model=model, **sections)

    def chain_strategies() -> None:
        name = f"strategy-{storage}-one"
        expected = bench.losses(bench.train(recipe(name), bench.fresh(name), 1))

        def compare(strategy: str) -> None:
            name = f"strategy-{storage}-{strategy}"
            row: Row = {"name": name, "tolerance": bench.tolerance}
            try:
                ended = bench.train(recipe(name, distributed={"strategy": strategy}), bench.fresh(name), 2)
                row |= difference(bench.losses(ended), expected, bench.tolerance) | {"wall_s": round(ended.seconds, 1)}
            except (RuntimeError, TimeoutError) as error:
                row["skipped" if "DeepSpeed is not installed" in str(error) else "error"] = str(error)
            bench.note("strategies", row)

        with ThreadPoolExecutor(len(STRATEGIES) if bench.arguments.together else 1) as pool:
            list(pool.map(compare, bench.arguments.strategies))

    chain_strategies.__doc__ = f"strategies with a base in {storage}"
    return chain_strategies


def difference(losses: list[float], expected: list[float], tolerance: float) -> Row:
    """How far losses are from those of the run they should follow, step by step."""
    if len(losses) != len(expected):
        return {"error": f"{len(losses)} steps instead of {len(expected)}"}
    gaps = [abs(own - other) for own, other in zip(losses, expected, strict=True)]
    row: Row = {"steps": len(gaps), "largest": max(gaps), "mean": statistics.mean(gaps), "last": gaps[-1]}
    return row | {"first_loss": losses[0], "last_loss": losses[-1], "passed": max(gaps) <= tolerance}


def kill_chains(bench: Bench) -> list[Callable[[], None]]:
    """One chain: a run that nothing disturbs beside one that is killed, then what goes on with the latter."""

    def chain_kill() -> None:
        """A killed rank."""
        steps = 60 if bench.is_gpu else 16
        length = 64 if bench.arguments.tiny else 512
        training = {"samples_per_step": 8, "tokens_per_batch": 4 * length, "max_steps": steps}
        training |= {"save_steps": steps // 4}
        recipe = bench.recipe("kill", bench.arguments.small_shape, length, training)
        killed, again = bench.fresh("kill-killed"), bench.fresh("kill-killed-one")
        found: Row = {"name": "killed"}

        def kill(process: subprocess.Popen[bytes]) -> None:
            limit = time.monotonic() + bench.arguments.timeout
            while len(history(killed)) < steps // 2 + 1 and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            pid = ranks_of(process.pid).get(1)
            if process.poll() is not None or pid is None:
                raise RuntimeError(f"it was not to be killed any more: {last_lines(killed.with_suffix('.log'))}")
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            process.wait(PROMISED_S + 30)
            found["ended_after_s"] = round(time.monotonic() - began, 1)

        with ThreadPoolExecutor(2 if bench.arguments.together else 1) as pool:
            undisturbed = pool.submit(bench.train, recipe, bench.fresh("kill-undisturbed"), 2)
            ended = pool.submit(bench.train, recipe, killed, 2, meanwhile=kill).result()
            found |= {"code": ended.code, "steps": len(history(killed)), "said": last_lines(ended.log, 2)}
            said = "another of" in found["said"].lower() or "SIGKILL" in found["said"]
            found["passed"] = bool(ended.code) and found.get("ended_after_s", PROMISED_S + 1) <= PROMISED_S and said
            bench.note("kill", found)
            shutil.copytree(killed, again)
            runs = {2: pool.submit(bench.train, recipe, killed, 2), 1: pool.submit(bench.train, recipe, again, 1)}
            expected = bench.losses(undisturbed.result())
            for count, run in runs.items():
                went_on = run.result()
                row: Row = {"name": f"goes on with {count}", "tolerance": bench.tolerance}
                if went_on.failure is None:
                    row |= difference(bench.losses(went_on), expected, bench.tolerance)
                    row["resumed_from"] = json.loads((went_on.place / "facts.json").read_text())["resumed_from_step"]
                    row["passed"] = row.get("passed", False) and row["resumed_from"] > 0
                else:
                    row["error"] = went_on.failure
                bench.note("kill", row | {"wall_s": round(went_on.seconds, 1)})

    return [chain_kill]


CHAINS = {"scaling": scaling_chains, "strategies": strategies_chains, "kill": kill_chains}


def print_tables(result: dict[str, Any]) -> None:
    columns = {
        "scaling": ["name", "tokens_per_s", "efficiency", "step_s", "peak_gib", "activations", "wall_s"],
        "strategies": ["name", "largest", "mean", "first_loss", "last_loss", "tolerance", "passed", "wall_s"],
        "kill": ["name", "ended_after_s", "resumed_from", "largest", "last", "tolerance", "passed", "said"],
    }
    for part, names in columns.items():
        if result[part]:
            print(f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")
        for row in result[part]:
            wrong = row.get("error") or row.get("skipped")
            cells = [row["name"], wrong] if wrong else [row.get(name, "") for name in names]
            shown = [f"{cell:.3g}" if isinstance(cell, float) and cell < 1 else str(cell) for cell in cells]
            print(f"| {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
