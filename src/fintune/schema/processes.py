"""Which of a run's processes this one is, as the launcher says it: torchrun, Slurm, ``accelerate`` or fintune itself.

Enters: environment variables. Leaves: ``Processes``, and for Slurm the variables under which the others are met.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fintune.schema.errors import RunError

_PORTS = range(20_000, 40_000)  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number over all machines; 0 writes the files and speaks to people.
        local_rank: its number on this machine, which is also the number of its GPU.
        world: how many processes there are.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def this_process(environment: Mapping[str, str] | None = None) -> Processes:
    """What the environment says; a process by itself where it says nothing.

    Raises:
        RunError: the variables are no numbers, or contradict one another.
    """
    found = os.environ if environment is None else environment
    if "WORLD_SIZE" not in found:
        found = slurm_variables(found)
    words = {
        name: found.get(name, default) for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
    }
    try:
        rank, local_rank, world = (int(word) for word in words.values())
    except ValueError:
        rank, local_rank, world = 0, 0, 0
    if not 0 <= rank < world or local_rank < 0:
        said = ", ".join(f"{name}={word}" for name, word in words.items())
        raise RunError(f"The environment names no process of a run ({said}).", "Start it with torchrun or --gpus.")
    return Processes(rank, local_rank, world)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``torchrun`` from those of ``srun``; none where this is no step of several tasks.

    The port follows from the number of the job, so that two jobs on one machine do not meet.
    """
    tasks, rank = environment.get("SLURM_STEP_NUM_TASKS", "1"), environment.get("SLURM_PROCID")
    if rank is None or tasks == "1":
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    job = int(environment.get("SLURM_JOB_ID", "0")) + 97 * int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": rank,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_node(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_PORTS[job % len(_PORTS)]),
    }


def first_node(nodes: str) -> str:
    """The first name of a Slurm list of nodes: ``gpu[003-005,9],big1`` gives ``gpu003``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
