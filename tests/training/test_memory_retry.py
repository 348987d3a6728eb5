"""Out of memory at any place of any step: less is kept, then smaller batches; the same samples, the same result."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file

from fintune.schema.errors import RunError
from fintune.schema.recipe import Recipe
from fintune.training import memory as memory_module
from fintune.training import memory_choice
from fintune.training import trainer as trainer_module
from fintune.training.checkpoints import is_intact, list_checkpoints
from fintune.training.memory import POLICIES
from fintune.training.token_budget import RandomState, TokenBudget, memory_remedy
from fintune.trees.packing import PaddedBatch, pack_samples
from fintune.trees.prefix_tree import TokenSample
from tests.runs import losses, metrics, run

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = (
    "evaluation.base=false",
    "evaluation.limit=3",
    "evaluation.abstention=false",
    "data.near_duplicate_threshold=null",
)
SEVERAL = (*QUICK, "training.tokens_per_batch=500")  # two or three batches a step
SPARING = "training.gradient_checkpointing=true"  # all that the CPU can keep less of: what fails next is the budget


class NoMemory:
    """Fails on the batches that ``wanted`` picks, forward or in the backward pass, as a full card would."""

    def __init__(self, monkeypatch, wanted):
        self.failures: list[tuple[int, int, str]] = []
        batch_loss = trainer_module.TreeTrainer._batch_loss

        def fails(trainer, step, number, model):
            place = wanted(step, number, len(self.failures))
            if place is not None:
                self.failures.append((step.number, number, place))
            if place == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            loss = batch_loss(trainer, step, number, model)
            if place == "backward":
                loss.register_hook(self.raises)
            return loss

        monkeypatch.setattr(trainer_module.TreeTrainer, "_batch_loss", fails)

    @staticmethod
    def raises(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def at(*places):
    """Each place once: step, batch (counted among those of several samples), forward or backward."""
    left = list(places)

    def wanted(step, number, failures):
        several = [i for i, batch in enumerate(step.batches) if batch.n_samples > 1]
        if left and left[0][0] == step.number and several[left[0][1] % len(several)] == number:
            return left.pop(0)[2]
        return None

    return wanted


def larger_than(tokens):
    return lambda step, number, failures: "forward" if step.batches[number].real_tokens > tokens else None


def adapter(outcome):
    (file,) = outcome.adapter_dir.glob("*model.safetensors")
    return load_file(file)


def assert_same_weights(one, other):
    one, other = adapter(one), adapter(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 1e-5 * tensor.norm() + 1e-9, name


@pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
def test_a_run_that_runs_out_of_memory_anywhere_ends_where_the_undisturbed_one_does(
    base, tmp_path, monkeypatch, caplog, packing
):
    changes = (*SEVERAL, f"training.packing={packing}", SPARING)
    straight = run(base, tmp_path / "straight", *changes)
    draw = random.Random(packing)
    places = [
        (step, draw.randrange(3), draw.choice(["forward", "backward"])) for step in sorted(draw.sample(range(6), 2))
    ]
    with monkeypatch.context() as patched:
        memory = NoMemory(patched, at(*places))
        disturbed = run(base, tmp_path / "disturbed", *changes)
    assert [(step, place) for step, _, place in memory.failures] == [(step, place) for step, _, place in places]
    assert_same_weights(straight, disturbed)
    assert losses(disturbed) == pytest.approx(losses(straight), rel=1e-5)
    assert disturbed.facts["memory_retries"] == 2 and straight.facts["memory_retries"] == 0
    assert disturbed.facts["tokens_per_batch"] <= 125 and straight.facts["tokens_per_batch"] == 500
    assert f"Step {places[0][0] + 1} ran out of memory" in caplog.text
    noted = {row["step"]: row["tokens_per_batch"] for row in metrics(disturbed) if row.get("memory_retries")}
    assert min(noted) == places[0][0] + 1 and noted[max(noted)] == disturbed.facts["tokens_per_batch"], (
        "on every line from then on"
    )
    assert disturbed.facts["sample_tokens"] == straight.facts["sample_tokens"], "a repeated step counts once"


def test_losses_by_task_are_those_of_the_repeated_step(base, tmp_path, monkeypatch):
    tasks = 'data.tasks=[{"name": "tfns", "source": "sample"}, {"name": "ner", "source": "sample"}]'
    changes = (
        *SEVERAL,
        tasks,
        "training.max_steps=3",
        "training.tokens_per_batch=1500",
        "evaluation.tasks=[{name: tfns, source: sample}]",
    )
    straight = run(base, tmp_path / "straight", *changes)
    with monkeypatch.context() as patched:
        NoMemory(patched, at((1, 1, "backward")))
        disturbed = run(base, tmp_path / "disturbed", *changes)
    for name, figures in straight.facts["by_task"].items():
        assert disturbed.facts["by_task"][name] == pytest.approx(figures, rel=1e-5)


@pytest.fixture
def all_policies(monkeypatch):
    """The ways of a card, on the CPU: offloading moves nothing here, and computes the same."""
    monkeypatch.setattr(memory_choice, "policies_for", lambda *_, recompute: POLICIES[1 + int(recompute) :])


@pytest.mark.usefixtures("all_policies")
@pytest.mark.parametrize("seed", [1, 2])
def test_less_is_kept_before_less_is_computed_at_once(base, tmp_path, monkeypatch, caplog, seed):
    straight = run(base, tmp_path / "straight", *SEVERAL)
    draw = random.Random(seed)
    places = [
        (step, draw.randrange(3), draw.choice(["forward", "backward"])) for step in sorted(draw.sample(range(6), 3))
    ]
    with monkeypatch.context() as patched:
        memory = NoMemory(patched, at(*places))
        disturbed = run(base, tmp_path / "disturbed", *SEVERAL)
    assert len(memory.failures) == 3
    assert_same_weights(straight, disturbed)
    assert losses(disturbed) == pytest.approx(losses(straight), rel=1e-5)
    assert straight.facts["activations"] == "keep" and straight.facts["memory_retries"] == 0
    assert disturbed.facts["activations"] == "offload" and disturbed.facts["memory_retries"] == 3
    assert disturbed.facts["tokens_per_batch"] <= 250, "the third time"
    said = [message for message in caplog.messages if "ran out of memory" in message]
    assert [message.split(":")[0] for message in said] == [
        f"Step {step + 1} ran out of memory" for step, _, _ in places
    ]
    assert ["by recompute instead of keep" in said[0], "by offload instead of recompute" in said[1]] == [True, True]
    assert "tokens are computed at once instead of 500" in said[2]
    kept = {row["step"]: row["activations"] for row in metrics(disturbed) if "activations" in row}
    first, second = places[0][0] + 1, places[1][0] + 1
    assert all(kept[step] == ("keep" if step < first else "recompute" if step < second else "offload") for step in kept)
    assert kept.keys() >= {first, second}


@pytest.mark.usefixtures("all_policies")
def test_a_run_begins_with_the_first_policy_that_fits(base, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def begun(name, free, *changes):
        monkeypatch.setattr(memory_choice, "free_bytes", lambda device: free)
        return run(base, tmp_path / name, *QUICK, "training.max_steps=1", *changes).facts

    roomy = begun("roomy", 10**12)
    assert roomy["activations"] == "keep" and roomy["free_bytes"] == 10**12
    assert "Activations: keep;" in caplog.text and "931.3 GiB are free" in caplog.text
    exact = begun("exact", roomy["predicted_bytes"])
    assert exact["activations"] == "keep"
    tight = begun("tight", roomy["predicted_bytes"] - 1)
    assert tight["activations"] == "recompute" and tight["predicted_bytes"] < roomy["predicted_bytes"]
    assert begun("none", 0)["activations"] == "offload"
    asked = begun("asked", 10**12, SPARING)
    assert asked["activations"] == "recompute" and roomy["whole_layers"] == asked["whole_layers"] == 0
    plain = begun("plain", 10**12, "training.packing=none")
    assert plain["activations"] is None and plain["predicted_bytes"] is None


@pytest.mark.usefixtures("all_policies")
def test_room_that_is_left_lets_layers_keep_everything_until_memory_runs_out(base, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(memory_choice, "free_bytes", lambda device: 10**12)
    straight = run(base, tmp_path / "straight", *SEVERAL)
    # Not enough for both layers; for a model this small one costs more than it spares, so any is let in.
    monkeypatch.setattr(memory_choice, "free_bytes", lambda device: straight.facts["predicted_bytes"] - 1)
    monkeypatch.setattr(memory_module, "is_free_for_sure", lambda needed, free: True)
    with monkeypatch.context() as patched:
        memory = NoMemory(patched, at((2, 0, "backward")))
        disturbed = run(base, tmp_path / "disturbed", *SEVERAL)
    assert len(memory.failures) == 1
    assert_same_weights(straight, disturbed)
    assert disturbed.facts["activations"] == "recompute" and disturbed.facts["whole_layers"] == 0
    (said,) = [message for message in caplog.messages if "ran out of memory" in message]
    assert "by recompute instead of recompute, but for the last layer, which keeps everything" in said
    kept = {row["step"]: row.get("whole_layers", 0) for row in metrics(disturbed) if "activations" in row}
    assert kept[1] == 1 and kept[max(kept)] == 0


@pytest.mark.parametrize("packing, expected", [("tree", False), ("none", True)])
def test_layers_of_our_own_are_not_checkpointed_by_transformers(base, tmp_path, monkeypatch, packing, expected):
    asked = []
    monkeypatch.setattr("fintune.training.run.recompute_layers", asked.append)
    run(base, tmp_path / "run", *QUICK, SPARING, f"training.packing={packing}", "training.max_steps=1")
    assert bool(asked) == expected


def test_a_card_that_holds_less_is_found_out_once(base, tmp_path, monkeypatch):
    straight = run(base, tmp_path / "straight", *QUICK)
    with monkeypatch.context() as patched:
        memory = NoMemory(patched, larger_than(300))
        limited = run(base, tmp_path / "limited", *QUICK)
    assert limited.facts["activations"] == "recompute"
    assert limited.facts["tokens_per_batch"] == 256 and limited.facts["memory_retries"] == len(memory.failures) <= 5
    assert_same_weights(straight, limited)


def test_a_resumed_run_remembers_the_budget(base, tmp_path, monkeypatch):
    straight = run(base, tmp_path / "straight", *SEVERAL)
    with monkeypatch.context() as patched:
        NoMemory(patched, larger_than(300))
        full = run(base, tmp_path / "full", *SEVERAL)

        def dies(step, number, failures):
            if step.number == 4:
                raise KeyboardInterrupt
            return larger_than(300)(step, number, failures)

        with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
            NoMemory(killed, dies)
            run(base, tmp_path / "run", *SEVERAL)
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].manifest()["budget"] == {
            "tokens": 250, "retries": 2, "memory": "recompute", "whole_layers": 0,
            "predicted_bytes": None, "free_bytes": None,
        }  # fmt: skip
        again = NoMemory(patched, larger_than(300))
        resumed = run(base, tmp_path / "run", *SEVERAL)
    assert resumed.facts["resumed_from_step"] == 4 and not again.failures
    assert resumed.facts["tokens_per_batch"] == 250 and resumed.facts["memory_retries"] == 2
    assert resumed.facts["activations"] == "recompute"
    assert_same_weights(straight, resumed)
    assert losses(resumed) == losses(full)


def test_another_budget_of_the_recipe_is_taken_over_what_was_found(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def dies(step, number, failures):
            if step.number == 4:
                raise KeyboardInterrupt
            return None if failures else "forward"

        NoMemory(patched, dies)
        run(base, tmp_path / "run", *SEVERAL, SPARING)
    resumed = run(base, tmp_path / "run", *QUICK, SPARING, "training.tokens_per_batch=400")
    assert resumed.facts["tokens_per_batch"] == 400 and resumed.facts["memory_retries"] == 1


def test_a_sample_that_does_not_fit_alone_ends_in_one_sentence(base, tmp_path, monkeypatch, caplog):
    from fintune.cli import main

    def late(step, number, failures):
        return "forward" if step.number >= 3 else None

    NoMemory(monkeypatch, late)
    with pytest.raises(RunError) as caught:
        run(base, tmp_path / "run", *QUICK, "training.packing=none")
    assert "Step 4: a sample of" in caught.value.message and "alone does not fit into memory." in caught.value.message
    assert "training.gradient_checkpointing=true" in caught.value.remedy
    assert [is_intact(checkpoint) for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")] == [True]
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    monkeypatch.undo()
    outcome = run(base, tmp_path / "run", *QUICK, "training.packing=none", SPARING)
    assert outcome.facts["resumed_from_step"] == 2 and outcome.facts["steps"] == 6


def test_the_repeated_step_draws_the_same_dropout(base, tmp_path, monkeypatch):
    changes = (*QUICK, SPARING, "adapter.dropout=0.5", "training.max_steps=2", "training.samples_per_step=2")
    # The second attempt may not split anything here, so that equal draws show: an error that leaves the batches alone.
    straight = run(base, tmp_path / "straight", *changes)
    monkeypatch.setattr(trainer_module, "require_divisible", lambda *_: None)
    monkeypatch.setattr(TokenBudget, "shrink", lambda self, batch: None)
    memory = NoMemory(monkeypatch, at((1, 0, "backward")))
    repeated = run(base, tmp_path / "repeated", *changes)
    assert memory.failures and losses(repeated) == losses(straight)


def test_what_is_no_lack_of_memory_is_raised(base, tmp_path, monkeypatch):
    def broken(trainer, step, number, model):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(trainer_module.TreeTrainer, "_batch_loss", broken)
    with pytest.raises(RuntimeError, match="must match"):
        run(base, tmp_path / "run", *QUICK)


@pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
def test_a_smaller_budget_always_splits_the_batch_that_failed(packing):
    draw = random.Random(3)
    for _ in range(30):
        samples = [_sample(draw) for _ in range(6)]
        budget = TokenBudget(4096)
        batches = pack_samples(samples, packing, budget.tokens)
        while (failed := max(batches, key=lambda batch: batch.n_samples)).n_samples > 1:
            before = budget.tokens
            budget.shrink(failed)
            assert budget.tokens < before
            batches = pack_samples(samples, packing, budget.tokens)
            assert max(_cost(b) for b in batches if b.n_samples > 1 or b is batches[0]) <= max(
                budget.tokens, max(map(len, samples))
            )
        assert len(batches) == 6


def _cost(batch):
    return len(batch) if isinstance(batch, PaddedBatch) else batch.real_tokens


def _sample(draw):
    import numpy as np

    length = draw.randint(2, 40)
    tokens = np.array([draw.randrange(3) for _ in range(length)], np.int64)
    weight = np.zeros(length)
    weight[-1] = 1
    return TokenSample(tokens, weight)


def test_generators_are_put_back():
    state = RandomState.of(torch.device("cpu"))
    first = torch.rand(4)
    state.restore()
    assert torch.equal(first, torch.rand(4))


def test_the_remedy_names_the_next_key():
    recipe = {"name": "x", "model": {"base": "b"}, "data": {"tasks": [{"name": "tfns"}]}}
    assert "training.gradient_checkpointing=true" in memory_remedy(Recipe.model_validate(recipe), fast=False)
    assert "or set model.quantization=nf4" in memory_remedy(Recipe.model_validate(recipe), fast=True), "tried already"
    recipe["training"] = {"gradient_checkpointing": True}
    assert "training.max_length, which is 2048, or set model.quantization=nf4" in memory_remedy(
        Recipe.model_validate(recipe), fast=False
    )
    recipe["model"] = {"base": "b", "quantization": "nf4"}
    assert "nf4" not in memory_remedy(Recipe.model_validate(recipe), fast=False)
