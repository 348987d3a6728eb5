"""What runs inside a process of the bench, with the imports that all of them share.

Enters: a ``Job``. Leaves: its measurements as plain data.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401  # imported here so that the server of processes holds it

from fintune.bench.gpt_training import measure_gpt
from fintune.bench.jobs import Job
from fintune.bench.llm_training import measure_llm
from fintune.bench.measuring import Measured
from fintune.bench.prepared import Prepared, prepare
from fintune.bench.sizes import Size


def prepare_apart(folder: str, size: Size, text: str | None, device: str) -> dict[str, Any]:
    """Makes what all variants share, and returns facts of it."""
    prepare(Path(folder), size, Path(text) if text is not None else None, device)
    return Prepared(Path(folder)).facts()


def device_facts(device: str) -> dict[str, Any]:
    """What the bench runs on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device == "cuda":
        return {**facts, "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return {**facts, "device": "CPU", "threads": torch.get_num_threads()}


def card_facts(device: str) -> dict[str, str]:
    """Which card it was, so that variants spread over several can be told apart; nothing of a CPU."""
    return {"card": str(torch.cuda.get_device_properties(0).uuid)} if device == "cuda" else {}


def run_job(job: Job, folder: str, size: Size) -> dict[str, Any]:
    """Measures one variant."""
    # Routine messages of libraries (a file cache, an optional kernel) would be repeated for every variant.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if size.clock == "processor":
        torch.set_num_threads(1)  # threads that wait for one another would count too
    device, prepared = torch.device(job.device), Prepared(Path(folder))
    if job.family == "gpt":
        vocabulary = int(prepared.facts()["vocabulary"])
        found = measure_gpt(job.switches, size, prepared.text(), vocabulary, seed=job.round, device=device)
    else:
        is_speed = job.part == "speed"
        base = prepared.base(str(size.llm.speed_base) if is_speed else size.llm.base)
        held_out = None if is_speed else prepared.samples("validation")
        found = measure_llm(
            *(job.switches, size, base, prepared.samples("train"), held_out), seed=job.round, device=device
        )
    return measured_record(found) | card_facts(job.device)


def measured_record(found: Measured) -> dict[str, Any]:
    """Measurements as plain data, with the speed that follows and the processor's seconds, compilers included."""
    return {**asdict(found), "tokens_per_s": found.tokens_per_s, "processor_s": sum(os.times()[:4])}
