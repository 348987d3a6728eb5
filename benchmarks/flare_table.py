"""Claim: all tasks at hand, untuned, tuned alone and tuned together, within an hour of one GPU.

Trains SmolLM2-135M-Instruct with the shipped ``*-smollm2`` recipes (three seeds each), on further tasks alone and on
FLARE's together, scores everything on the test rows under both protocols, and leaves one run directory for each. Small
models leave a GPU idle between kernels, so several runs share it: 14 needed a little more than 140 GB (CUDA's
multi-process service helps). Started again, it goes on with what is missing. ``fintune compare`` then makes the
table, its patterns in quotes.

    python benchmarks/flare_table.py --output-dir runs/table --workers 12
    fintune compare "base=runs/table/base-*" "alone=runs/table/*-17" "alone=runs/table/*-1" "alone=runs/table/*-2" \
        "together=runs/table/together*" --output-dir runs/table/compared
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEEDS = (17, 1, 2)
TRAINED = ("evaluation.base=false", "evaluation.baselines=[]", "evaluation.abstention=false", "training.tracking=[]")
QUICK = ("evaluation.bootstrap_samples=1000", "evaluation.batch_size=128", "report.enabled=false")
SENTIMENT = "[{name: fpb, prompt: short}, {name: tfns, prompt: short}, {name: fiqa_sa, prompt: flare}]"
QUESTIONS = "[{name: finqa, config: programs, prompt: facts_program}, {name: convfinqa, prompt: program}]"
OTHERS = (
    "[{name: acl18, prompt: short}, {name: bigdata22, prompt: short}, {name: cikm18, prompt: short}, "
    "{name: nwgi_3, prompt: short}, {name: fomc, prompt: short}, {name: ner_typing, prompt: short}]"
)
UNSEEN = (
    "[{name: finer_ord, prompt: short}, {name: xbrl_term}, {name: xbrl_formula}, {name: financebench}, "
    "{name: tatqa, prompt: facts}]"
)


@dataclass(frozen=True)
class Job:
    """One run: what it is called, the arguments of ``fintune``, and the run it waits for."""

    name: str
    arguments: tuple[str, ...]
    after: str = ""


def jobs() -> list[Job]:
    """All runs, the longest first."""
    together = [
        Job("together", ("train", "flare-smollm2", "training.tokens_per_batch=49152", f"evaluation.tasks={SENTIMENT}")),
    ]
    parts = {
        "headlines": "[{name: headlines, prompt: short}]",
        "ner": "[{name: ner, config: sec, prompt: short}]",
        "questions": QUESTIONS,
        "others": OTHERS,
        "unseen": UNSEEN,
    }
    together_scored = [
        Job(f"together-{part}", _scored(tasks, adapter="together"), "together") for part, tasks in parts.items()
    ]
    recipes = ("headlines", "tfns", "fpb", "convfinqa", "ner", "finqa", "fiqa")
    seeds = [Job(f"{name}-{seed}", ("train", f"{name}-smollm2", f"seed={seed}")) for name in recipes for seed in SEEDS]
    alone = [
        _alone("acl18", "{name: acl18, prompt: short}", "5e-4", 64, 2),
        _alone("fomc", "{name: fomc, prompt: short}", "1e-3", 32, 5),
        _alone("xbrl_term", "{name: xbrl_term}", "1e-3", 32, 3, length=1024),
        _alone("tatqa", "{name: tatqa, prompt: facts}", "1e-3", 16, 4, length=2048),
        _alone("finer_ord", "{name: finer_ord, prompt: short}", "2e-3", 32, 4),
        _alone("xbrl_formula", "{name: xbrl_formula}", "1e-3", 16, 6, length=1024),
        _alone("ner_typing", "{name: ner_typing, prompt: short}", "1e-3", 16, 5),
    ]
    variants = ("--base-variants", "five_shot,calibrated")
    base = [
        Job("base-headlines", _scored(parts["headlines"])),
        Job("base-questions", _scored("[{name: finqa, prompt: flare}, {name: convfinqa, prompt: flare}]")),
        Job("base-others", (*_scored(OTHERS), *variants)),
        Job("base-sentiment", (*_scored(SENTIMENT), *variants)),
        Job("base-unseen", _scored(UNSEEN)),
        Job("base-ner", _scored(parts["ner"])),
    ]
    return [
        *together,
        *seeds[:6],
        *base[:2],
        *alone[:2],
        *seeds[6:12],
        *alone[2:5],
        *base[2:5],
        *seeds[12:],
        *alone[5:],
        *base[5:],
        *together_scored,
    ]


def _alone(name: str, task: str, rate: str, samples: int, epochs: int, length: int = 512) -> Job:
    changes = {
        "name": name,
        "data.tasks": f"[{task}]",
        "training.learning_rate": rate,
        "training.samples_per_step": samples,
        "training.epochs": epochs,
        "training.max_length": length,
    }
    return Job(f"{name}-{SEEDS[0]}", ("train", "fpb-smollm2", *(f"{key}={value}" for key, value in changes.items())))


def _scored(tasks: str, adapter: str = "") -> tuple[str, ...]:
    names = [part.split(",")[0].split("}")[0] for part in tasks.split("name: ")[1:]]
    chosen = ("--adapter", adapter) if adapter else ()
    return ("evaluate", "--model", "smollm2-135m", "--tasks", ",".join(names), f"evaluation.tasks={tasks}", *chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/table"))
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="names of runs; default all")
    parser.add_argument("--set", nargs="*", default=[], help="changes to every recipe, such as training.max_steps=2")
    arguments = parser.parse_args()
    unknown = set(arguments.only or ()) - {job.name for job in jobs()}
    if unknown:
        raise SystemExit(
            f"There is no run {', '.join(sorted(unknown))}; there are {', '.join(j.name for j in jobs())}."
        )
    (arguments.output_dir / "logs").mkdir(parents=True, exist_ok=True)
    chosen = [job for job in jobs() if not arguments.only or job.name in arguments.only]
    failed = run_all(chosen, arguments.output_dir, arguments.workers, arguments.set)
    if failed:
        raise SystemExit(f"Without results: {', '.join(failed)}. Their logs are in {arguments.output_dir / 'logs'}.")


def run_all(chosen: Sequence[Job], place: Path, workers: int, changes: Sequence[str]) -> list[str]:
    """Runs every job that has no results yet, several at a time; returns the names of those that failed.

    A job whose predecessor failed is not started, and fails too. The log of each stands beside the runs.
    """
    started = time.time()
    waiting = list(chosen)
    pending = {job.name for job in chosen}
    failed: list[str] = []
    lock = threading.Lock()

    def next_job() -> Job | None:
        with lock:
            for job in waiting:
                if job.after not in pending:
                    waiting.remove(job)
                    return job
        return None

    def work() -> None:
        while waiting:
            job = next_job()
            if job is None:
                time.sleep(1)
                continue
            begun, code = time.time(), 1
            try:
                if job.after not in failed:
                    code = 0 if (place / job.name / "results.json").is_file() else _run(job, place, changes)
            finally:
                with lock:
                    pending.discard(job.name)
                    failed.extend([job.name] if code else [])
                    span = {"from_s": round(begun - started), "to_s": round(time.time() - started)}
                    print(json.dumps({"job": job.name, "code": code, **span}), flush=True)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def _run(job: Job, place: Path, changes: Sequence[str]) -> int:
    words = [str(place / word) if word == "together" else word for word in job.arguments]
    if words[0] == "train":
        settings = [*QUICK, *TRAINED, *changes]
    else:
        settings = [
            *QUICK,
            "evaluation.decoding=both",
            *(word for word in changes if not word.startswith(("training.", "data."))),
        ]
        if job.after:
            settings += ["evaluation.base=false", "evaluation.baselines=[]"]
    command = [sys.executable, "-m", "fintune.cli", *words, *settings, "--output-dir", str(place / job.name), "--quiet"]
    with (place / "logs" / f"{job.name}.log").open("w", encoding="utf-8") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    main()
