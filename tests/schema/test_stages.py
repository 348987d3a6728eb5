"""Stages of a recipe: written short and read in full, as recipes of their own, and refused with their place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.schema.errors import RecipeError
from fintune.schema.loading import load_recipe, save_recipe
from fintune.schema.recipe import AdapterSection
from fintune.schema.stages import stage_folders, stage_recipes, whole_recipe, with_full_stages, with_short_stages

TREE: dict[str, Any] = {
    "name": "mine",
    "model": {"base": "smollm2-135m"},
    "adapter": {"rank": 4, "targets": ["q_proj"]},
    "training": {"learning_rate": 1e-3},
    "stages": [
        {"name": "one", "data": {"tasks": [{"name": "finqa"}]}, "training": {"epochs": 2}},
        {
            "name": "two",
            "data": {"tasks": [{"name": "fpb", "epochs": 1.5}, {"name": "finqa"}]},
            "training": {"epochs": 3, "max_length": 99},
            "adapter": {"rank": 8, "targets": ["q_proj", "v_proj"], "hand_over": "pad"},
        },
    ],
}


def error_of(*overrides: str, **sections: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**TREE, **sections}, overrides)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_stage_takes_what_it_does_not_say_from_the_recipe() -> None:
    recipe = load_recipe(TREE)
    one, two = recipe.stages
    assert one.adapter == recipe.adapter and one.training.learning_rate == two.training.learning_rate == 1e-3
    assert (two.adapter.rank, two.adapter.alpha, two.training.epochs) == (8, recipe.adapter.alpha, 3)
    assert [task.name for task in recipe.data.tasks] == ["finqa", "fpb"], "all of theirs, each once"
    assert recipe.data.tasks[1].epochs == 1
    assert load_recipe(TREE, ["training.learning_rate=2e-3"]).stages[1].training.learning_rate == 2e-3
    assert load_recipe(recipe, ["training.learning_rate=2e-3"]).stages[1].training.learning_rate == 2e-3


def test_the_stages_as_recipes() -> None:
    recipe = load_recipe(TREE)
    one, two = stage_recipes(recipe)
    assert (one.name, two.name, one.stages, two.output_dir) == ("mine-one", "mine-two", (), None)
    assert [str(folder) for folder in stage_folders(recipe)] == ["stages/1-one", "stages/2-two"]
    assert (one.adapter.init_adapter, two.adapter.init_adapter) == (None, "stages/1-one")
    assert [task.name for task in one.evaluation.tasks or ()] == ["finqa", "fpb"], "each is measured on all"
    whole = whole_recipe(recipe)
    assert {task.name: task.epochs for task in whole.data.tasks} == {"finqa": 2 + 3, "fpb": 4.5}
    assert (whole.training.epochs, whole.training.max_length) == (1, recipe.training.max_length)
    assert (whole.adapter.rank, whole.adapter.hand_over) == (8, None)
    assert load_recipe(whole) == whole, "valid as a recipe of its own"


def test_only_the_first_stage_starts_from_the_recipes_own_start() -> None:
    recipe = load_recipe(TREE, ["adapter.init_adapter=runs/before"])
    assert [stage.adapter.init_adapter for stage in recipe.stages] == ["runs/before", None]
    assert whole_recipe(recipe).adapter.init_adapter == "runs/before"
    other = load_recipe(TREE, ["stages.1.adapter.init_adapter=runs/other", "stages.1.adapter.rank=1"])
    assert stage_recipes(other)[1].adapter.init_adapter == "runs/other", "what that is, is seen when it is read"


sections = st.fixed_dictionaries(
    {},
    optional={
        "adapter": st.fixed_dictionaries({}, optional={"rank": st.integers(8, 9), "init_adapter": st.just("a")}),
        "training": st.fixed_dictionaries({}, optional={"epochs": st.floats(1, 3), "max_length": st.integers(16, 18)}),
    },
)


@given(sections, st.lists(sections, min_size=1, max_size=3))
def test_written_short_and_read_again_is_the_same(own: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    named = [
        {"name": f"s{number}", "data": {"tasks": [{"name": "fpb"}]}, **stage} for number, stage in enumerate(stages)
    ]
    for stage in named:
        stage["adapter"] = {"hand_over": "stack", **stage.get("adapter", {})}
    tree = {"name": "a", "model": {"base": "b"}, **own, "stages": named}
    before = copy.deepcopy(tree)
    recipe = load_recipe(tree)
    assert tree == before, "what was given is left as it was"
    full = recipe.model_dump(mode="json")
    assert with_full_stages(with_short_stages(full)) == full
    assert load_recipe(recipe) == recipe


def test_a_saved_recipe_shows_what_differs(tmp_path: Any) -> None:
    recipe = load_recipe(TREE)
    file = save_recipe(recipe, tmp_path / "recipe.yaml")
    stages = file.read_text().partition("stages:")[2]
    assert load_recipe(file) == recipe
    assert "learning_rate" not in stages and "max_length: 99" in stages


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["stages.1.training.epochs=x"], ["override stages.1", "stages.1.training.epochs must be a number above 0"]),
        (["stages.1.training.best_metric=loss"], ["stages.1.training.best_metric needs", "Set training.eval_steps"]),
        (["stages.0.trainin.epochs=1"], ["Did you mean stages.0.training.epochs?"]),
        (["stages.1.adapter.lora_r=1"], ["Did you mean stages.1.adapter.rank?"]),
        (["stages.1.data.tasks=[{config: x}]"], ["stages.1.data.tasks.0.name is missing"]),
        (["training.epochs=x"], ["override training.epochs=x: training.epochs must be"]),
        (["stages.1.adapter.hand_over=null"], ["stages.1.adapter: rank and targets differ", "pad", "stack", "merge"]),
        (["stages.1.adapter.rank=2"], ["stages.1.adapter: hand_over=pad cannot shrink rank 4 to 2"]),
        (["stages.1.adapter.targets=[v_proj]"], ["cannot drop the targets q_proj"]),
        (["stages.1.adapter.hand_over=stack", "adapter.dora=true"], ["stages.1.adapter.hand_over=stack", "DoRA"]),
        (["stages.1.adapter.hand_over=stack", "stages.0.adapter.dora=true"], ["stages.1.adapter", "cannot hold DoRA"]),
        (["stages.1.adapter.kind=none", "stages.1.adapter.hand_over=null"], ["kind=none cannot start from"]),
        (["stages.1.name=one"], ["same name"]),
        (["stages=[]", "data.tasks=[{name: fpb}]", "stage_order=mixed"], ["has no stages"]),
        (["stage_order=mixed", "stages.0.training.max_steps=3"], ["a stage has training.max_steps"]),
        (["stage_order=mixed", "stages.0.data.balance=true"], ["differ in more than tasks"]),
        (["stage_order=mixed", "stages.1.data.tasks.1.prompt=facts"], ["differ in more than tasks"]),
        (["adapter.hand_over=pad", "stages=[]", "data.tasks=[{name: fpb}]"], ["no adapter to take over"]),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_place(overrides: list[str], parts: list[str]) -> None:
    text = str(error_of(*overrides))
    for part in parts:
        assert part in text, text


def test_stages_without_any_tasks_lack_the_recipes_own() -> None:
    assert "the key data is missing" in str(error_of(stages=[{"name": "one"}]))
    own = {"tasks": [{"name": "fpb"}]}
    for wrong in ("x", ["x"], [{"name": "a", "data": 3}]):
        assert " must be " in str(error_of(stages=wrong, data=own))


def test_ranks_add_up_over_stacked_stages() -> None:
    stage = {"data": {"tasks": [{"name": "fpb"}]}}
    stacked = {**stage, "adapter": {"hand_over": "stack", "rank": 3}}
    stages = [{"name": "a", **stage}, {"name": "b", **stacked}, {"name": "c", **stage, "adapter": {"hand_over": "pad"}}]
    assert "cannot shrink rank 7 to 4" in str(error_of(stages=stages))
    stages[2]["adapter"] = {"hand_over": "pad", "rank": 7}
    assert load_recipe({**TREE, "stages": stages}).stages[2].adapter == AdapterSection(
        rank=7, targets=("q_proj",), hand_over="pad"
    )
