"""Which process this is, from what torchrun and Slurm say."""

from __future__ import annotations

import pytest

from fintune.schema.errors import RecipeError, RunError
from fintune.schema.loading import load_recipe
from fintune.schema.processes import Processes, first_node, slurm_variables, this_process

STEP = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}


def test_a_process_by_itself_needs_no_variables():
    assert this_process({}) == Processes(0, 0, 1)
    assert this_process({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}).world == 1


def test_torchrun_and_slurm_say_the_same():
    assert this_process({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == Processes(5, 1, 8) == this_process(STEP)
    assert this_process(STEP | {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}).rank == 2  # torchrun under srun


def test_jobs_meet_on_the_first_node_at_ports_of_their_own():
    found = slurm_variables(STEP)
    assert found["MASTER_ADDR"] == "gpu003"
    others = {slurm_variables(STEP | {"SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(4712, 4732)}
    assert len(others) == 20 and found["MASTER_PORT"] not in others
    assert slurm_variables(STEP | {"MASTER_ADDR": "head"})["MASTER_ADDR"] == "head"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("gpu[003-005,9],big1", "gpu003"), ("gpu[7]", "gpu7"), ("r1[2-3]-ib,x", "r12-ib")],
)
def test_the_first_of_a_list_of_nodes(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize("wrong", [{"RANK": "2"}, {"RANK": "one"}, {"LOCAL_RANK": "-1"}, {"WORLD_SIZE": "0"}])
def test_variables_that_contradict_one_another_are_named(wrong):
    with pytest.raises(RunError, match="names no process"):
        this_process({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"} | wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["strategy=zero2", "offload_param=true"], "stage 3"),
        (["strategy=ddp", "offload_param=true"], "shares out the weights"),
        (["offload_optimizer=true"], "DeepSpeed's"),
        (["strategy=fsdp2", "offload_optimizer=true"], "together with the weights"),
    ],
)
def test_what_cannot_be_offloaded_is_refused_with_the_reason(changes, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", [f"distributed.{change}" for change in changes])


def test_what_cannot_be_shared_out_is_refused():
    for change in ("model.quantization=int8", "training.optimizer=paged_adamw_8bit"):
        with pytest.raises(RecipeError):
            load_recipe("quickstart", ["distributed.strategy=fsdp2", change])
        load_recipe("quickstart", [change])
    load_recipe("quickstart", ["distributed.strategy=zero2", "distributed.offload_optimizer=true"])
