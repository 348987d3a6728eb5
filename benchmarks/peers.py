"""Claim: fintune trains faster than Unsloth and than TRL with PEFT on the same data, rank, precision and batch.

Every configuration runs in a process of its own, with caches of its own, and its row is written as soon as it ends.
Times are of windows of several steps; the cold time is of the steps before them, compilation included. Random weights.

    python benchmarks/peers.py prepare --source Sentences_50Agree.txt --tokenizer FOLDER --phrasebank phrasebank.jsonl
    python benchmarks/peers.py dense --work-dir /tmp/peers --json dense.json --only unsloth-nf4 fintune-nf4
    python benchmarks/peers.py phrasebank --phrasebank phrasebank.jsonl --json phrasebank.json
    python benchmarks/peers.py dense --shape tiny --device cpu --rows 2 --length 32 --only fintune-bf16   # a smoke test
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer_runs.environments import child_environment, last_words
from peer_runs.settings import WORKLOADS, Job, Setting, job_from

if TYPE_CHECKING:
    from peer_runs.recording import Recorder

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*WORKLOADS, "prepare", "checkpoint", "job"])
    parser.add_argument("job", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=["8b", "3b", "1b", "tiny"], help="8b; 1b for efficiency")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="configurations; all when left out")
    parser.add_argument("--rows", type=int, help="rows of a dense step")
    parser.add_argument("--length", type=int, help="tokens of a dense row, or of a packed one")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before timing")
    parser.add_argument("--repeats", type=int, default=5, help="timed windows")
    parser.add_argument("--window", type=int, default=2, help="steps of a window")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for each configuration")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files; a tiny one when left out")
    parser.add_argument("--phrasebank", type=Path, help="tokenised samples, as prepare writes them")
    parser.add_argument("--source", help="prepare: PhraseBank file, folder or hub id")
    parser.add_argument("--keep-caches", action="store_true", help="let configurations find each other's kernels")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is being measured ends too
    if arguments.command == "job":
        run_job(arguments.job)
    elif arguments.command == "prepare":
        from peer_runs.data import prepare

        if not (arguments.source and arguments.tokenizer and arguments.phrasebank):
            parser.error("prepare needs --source, --tokenizer and --phrasebank")
        print(f"{prepare(arguments.source, arguments.tokenizer, arguments.phrasebank)} samples")
    elif arguments.command == "checkpoint":
        make_checkpoint(arguments)
    else:
        if arguments.command == "phrasebank" and not arguments.phrasebank:
            parser.error("phrasebank needs --phrasebank, a file that prepare has written")
        measure(arguments, chosen(arguments, parser))


def chosen(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Setting]:
    """The configurations asked for, in the order in which they were named."""
    known = {setting.name: setting for setting in WORKLOADS[arguments.command].settings}
    if unknown := sorted(set(arguments.only or ()) - set(known)):
        parser.error(f"{arguments.command} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return [known[name] for name in arguments.only or known]


def measure(arguments: argparse.Namespace, settings: list[Setting]) -> None:
    """Runs each configuration in turn; what has been measured is in the JSON file at any time."""
    checkpoint = shape_folder(arguments)
    if not (checkpoint / "written.json").is_file():
        written = spawn(["checkpoint", *checkpoint_options(arguments)], arguments, "checkpoint")
        if written is not None:
            sys.exit(f"The checkpoint could not be written: {written}")
    result: dict[str, Any] = {
        "workload": arguments.command,
        "shape": shape_name(arguments),
        "environments": {},
        "rows": [],
    }
    for setting in settings:
        row = run_setting(arguments, setting, checkpoint)
        if environment := row.pop("environment", None):
            result["environments"][setting.peer] = environment
        result["rows"].append(row)
        print(f"{setting.name}: {row.get('error') or row['tokens_per_s']} after {row['wall_s']} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print_table(result["rows"])
    if failed := [row["name"] for row in result["rows"] if "error" in row]:
        sys.exit(f"Not measured: {', '.join(failed)}.")


def run_setting(arguments: argparse.Namespace, setting: Setting, checkpoint: Path) -> Row:
    """One configuration's row: its measurements, or why there are none."""
    workload = WORKLOADS[arguments.command]
    folder = (arguments.work_dir / arguments.command / shape_name(arguments) / setting.name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.time()
    job = Job(
        arguments.command,
        setting,
        arguments.rows or workload.rows,
        arguments.length or workload.length,
        workload.targets,
        str(checkpoint.absolute()),
        str(arguments.phrasebank.absolute()) if arguments.phrasebank else None,
        arguments.device,
        arguments.warm_up,
        arguments.repeats,
        arguments.window,
        str(folder),
        started,
    )
    file = folder / "job.json"
    file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    failure = spawn(["job", str(file)], arguments, setting.name, folder)
    found = folder / "result.json"
    measured = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    if not measured.get("finished"):
        measured.setdefault("error", failure or "it ended without a result")
    return {**asdict(setting), "wall_s": round(time.time() - started, 1), **measured}


def spawn(options: list[str], arguments: argparse.Namespace, name: str, folder: Path | None = None) -> str | None:
    """Runs this script again in a process group of its own; None when it succeeded, otherwise why not."""
    folder = folder or arguments.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).absolute()), *options],
            cwd=folder,  # Unsloth writes where it is started
            env=child_environment(arguments.work_dir if arguments.keep_caches else folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(arguments.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {arguments.timeout:g} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return None if code == 0 else f"exit {code}: {last_words(log)}"


def shape_name(arguments: argparse.Namespace) -> str:
    return arguments.shape or ("1b" if arguments.command == "efficiency" else "8b")


def shape_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work_dir) / f"model-{shape_name(arguments)}"


def checkpoint_options(arguments: argparse.Namespace) -> list[str]:
    options = ["--shape", shape_name(arguments), "--device", arguments.device]
    options += ["--work-dir", str(arguments.work_dir.absolute())]
    return options + (["--tokenizer", str(arguments.tokenizer.absolute())] if arguments.tokenizer else [])


def make_checkpoint(arguments: argparse.Namespace) -> None:
    import torch
    from peer_runs.shapes import SHAPES, write_checkpoint

    shape = SHAPES[shape_name(arguments)]
    write_checkpoint(shape, shape_folder(arguments), torch.device(arguments.device), arguments.tokenizer)


def run_job(file: Path) -> None:
    """Inside the subprocess: measures one configuration; a failure is noted and then raised for the log."""
    job = job_from(json.loads(file.read_text(encoding="utf-8")))
    if job.setting.peer == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it changes
    from peer_runs.recording import Recorder

    from fintune.bench.measuring import own_turn

    asked = time.time()
    with own_turn():
        recorder = Recorder(replace(job, started=job.started + time.time() - asked), Path(job.folder) / "result.json")
        try:
            run_peer(job)(job, recorder)
        except Exception as error:
            recorder.fail(error)
            raise


def run_peer(job: Job) -> Callable[[Job, Recorder], None]:
    """What measures this job; libraries are imported only where they are measured."""
    if job.setting.peer == "fintune":
        from peer_runs.fintune_loop import run_fintune

        return run_fintune
    if job.workload == "phrasebank":
        from peer_runs.sft_loop import run_sft

        return run_sft
    from peer_runs.dense_loop import run_dense

    return run_dense


def print_table(rows: list[Row]) -> None:
    print("| configuration | tokens/s (least-most) | samples/s | allocated GiB | device GiB | load s | cold s | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if "tokens_per_s" not in row:
            print(f"| {row['name']} | {row['error']} | | | | | | |")
            continue
        (tokens, least, most), samples = row["tokens_per_s"], row["samples_per_s"][0]
        memory = [f"{row[key]:.2f}" if key in row else "" for key in ("peak_allocated_gib", "peak_device_gib")]
        cells = [
            f"{tokens:,.0f} ({least:,.0f}-{most:,.0f})",
            f"{samples:.1f}",
            *memory,
            row["load_s"],
            row.get("cold_s", ""),
        ]
        print("|", " | ".join(map(str, [row["name"], *cells, row.get("loss", row.get("error"))])), "|")
    for row in rows:
        if "saved_bytes" in row:
            share = f"{row['trainable']:,} of {row['parameters']:,} trained"
            print(f"{row['name']}: {share}, {row['saved_bytes']:,} bytes saved")


if __name__ == "__main__":
    main()
