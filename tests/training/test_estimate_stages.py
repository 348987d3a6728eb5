"""The estimate of a recipe with stages: each as a run of its own, memory of the largest, time of all."""

from __future__ import annotations

import pytest

import fintune
from fintune.models.adapters import count_trainable
from fintune.models.tiny import tiny_config
from fintune.schema.loading import list_recipes, load_recipe
from fintune.schema.recipe import AdapterSection
from fintune.schema.stages import stage_recipes

STAGES = """[
 {name: one, data: {tasks: [{name: ner_typing, source: sample}]}, adapter: {rank: 4, targets: [q_proj]},
  training: {epochs: 2}},
 {name: two, data: {tasks: [{name: tfns, source: sample, epochs: 2}]}, adapter: {rank: 8, hand_over: stack},
  training: {max_steps: 3}}]"""


def recipe_of(base):
    return load_recipe(
        {"name": "staged", "model": {"base": str(base)}, "data": {"near_duplicate_threshold": None}, "stages": []}
        | {"training": {"max_length": 512}},
        [f"stages={STAGES}"],
    )


def test_each_stage_is_estimated_and_their_times_add_up(base):
    recipe = recipe_of(base)
    found = fintune.estimate(recipe, gpu="H100")
    assert list(found.stages) == ["1-one", "2-two"]
    one, two = found.stages.values()
    alone = fintune.estimate(stage_recipes(recipe)[0], gpu="H100")
    assert one == alone and one.seconds == pytest.approx(2 * one.seconds_per_epoch)
    assert two.seconds == pytest.approx(3 * two.seconds_per_step)
    assert two.workload.sample_tokens == pytest.approx(2 * tokens_once(recipe), rel=0.05), "epochs of a task count"
    assert found.peak_bytes == max(one.peak_bytes, two.peak_bytes)
    assert found.seconds == pytest.approx(one.seconds + two.seconds)
    both = AdapterSection(rank=4 + 8, targets="all-linear")
    assert two.trainable_parameters == count_trainable(tiny_config(), both)[0], "a stacked adapter holds both"


@pytest.mark.parametrize("name", [info.name for info in list_recipes()])
def test_every_shipped_recipe_is_priced(base, monkeypatch, tmp_path, name):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))  # without data, which need not be here
    monkeypatch.setenv("FINTUNE_OFFLINE", "1")
    recipe = load_recipe(name, [f"model.base={base}"])
    found = fintune.estimate(recipe, gpu="H100", data=False)
    assert len(found.stages) == (len(stage_recipes(recipe)) if recipe.stages else 0)
    for part in found.stages.values() if recipe.stages else (found,):
        assert part.peak_bytes > 0 and part.trainable_parameters > 0
    shared = recipe.distributed.strategy not in ("auto", "ddp")
    assert shared == any("distributed.strategy" in note for note in found.notes)


def tokens_once(recipe):
    (_, two) = stage_recipes(load_recipe(recipe, ["stages.1.data.tasks.0.epochs=1"]))
    return fintune.estimate(two, gpu="H100").workload.sample_tokens
