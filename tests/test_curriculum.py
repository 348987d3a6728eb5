"""The recipes of the FLARE curriculum and ``CurriculumTrainer``: the paper's numbers, and runs on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest

import fintune
from fintune.models.adapters import count_trainable
from fintune.schema.errors import DataError, RunError
from fintune.schema.loading import load_recipe
from fintune.schema.stages import stage_recipes, whole_recipe
from tests.models.test_adapters import LLAMA_8B
from tests.public_data import public_data
from tests.runs import losses

SECTIONS = ("model", "adapter", "data", "training")
FEW = (
    "model.quantization=none",
    "model.dtype=float32",
    "data.train_limit=12",
    "data.validation_limit=2",
    "data.near_duplicate_threshold=null",
    "training.tracking=[]",
    "evaluation.limit=2",
    "evaluation.bootstrap_samples=100",
    "evaluation.baselines=[]",
    "evaluation.decoding=constrained",
    "evaluation.abstention=false",
    "evaluation.tasks=[{name: tfns, source: sample}]",
    "report.enabled=false",
)


def test_the_stages_are_the_papers():
    complex_, simple = stage_recipes(load_recipe("flare-curriculum"))
    assert (complex_.adapter.rank, complex_.adapter.alpha, complex_.adapter.dropout) == (16, 32, 0.05)
    assert (simple.adapter.rank, simple.adapter.alpha, simple.adapter.dropout) == (32, 64, 0.1)
    assert [stage.training.max_length for stage in (complex_, simple)] == [3500, 512]
    assert [stage.training.epochs for stage in (complex_, simple)] == [2, 3]
    for stage in (complex_, simple):
        assert (stage.training.samples_per_step, stage.training.learning_rate) == (8, 2e-4)
        assert (stage.model.quantization, stage.model.double_quant, stage.model.dtype) == ("nf4", True, "bfloat16")
    assert count_trainable(LLAMA_8B, complex_.adapter)[0] == 13_631_488
    assert count_trainable(LLAMA_8B, simple.adapter)[0] == 83_886_080


def test_the_single_stages_are_those_of_the_curriculum():
    for stage, name in zip(
        stage_recipes(load_recipe("flare-curriculum")), ("flare-stage1", "flare-stage2"), strict=True
    ):
        alone = load_recipe(name)
        for section in SECTIONS:
            own, other = getattr(stage, section), getattr(alone, section)
            if section == "adapter":
                own, other = (adapter.model_copy(update={"init_adapter": None}) for adapter in (own, other))
            assert own == other, section


def test_mixed_differs_from_the_curriculum_in_the_order_alone():
    one, other = load_recipe("flare-curriculum-smollm2"), load_recipe("flare-mixed-smollm2")
    changes = {"name": other.name, "description": other.description, "stage_order": "mixed"}
    assert one.model_copy(update=changes) == other
    (mixed,) = stage_recipes(other)
    assert {task.name: task.epochs for task in mixed.data.tasks} == {
        **dict.fromkeys(("finqa", "convfinqa", "acl18"), 2),
        **dict.fromkeys(("fpb", "fiqa_sa", "ner"), 3),
    }
    assert len({stage.training.max_length for stage in one.stages}) == 1, "no token is cut off in one and not the other"


def sources(recipe, *, local):
    """Overrides that give every task of every stage rows that are at hand."""
    found = load_recipe(recipe)
    sections = [("data.tasks", found.data.tasks)] if not found.stages else [
        (f"stages.{number}.data.tasks", stage.data.tasks) for number, stage in enumerate(found.stages)
    ]  # fmt: skip
    samples = ("convfinqa", "acl18", "ner")
    return [
        f"{where}.{number}.source=sample"
        for where, tasks in sections
        for number, task in enumerate(tasks)
        if task.name in samples or not local
    ]


@pytest.mark.parametrize("name", ["flare-curriculum-smollm2", "flare-mixed-smollm2"])
def test_the_small_recipes_run_on_a_tiny_model(base, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(public_data().parents[1]))
    changes = [f"model.base={base}", *FEW, *sources(name, local=True), "training.samples_per_step=12"]
    outcome = fintune.train(name, overrides=changes, output_dir=tmp_path / "run", progress=False)
    assert np.isfinite(losses(outcome)).all()
    drawn = sum(own["samples_drawn"] for own in outcome.facts["stages"].values())
    whole = whole_recipe(load_recipe(outcome.run_dir))
    rows = {"finqa": 12, "convfinqa": 12, "acl18": 3, "fpb": 12, "fiqa_sa": 12, "ner": 12}
    assert drawn == sum(rows[task.name] * task.epochs for task in whole.data.tasks)


def test_the_large_recipe_runs_on_a_tiny_model(base, tmp_path):
    """With tasks that have samples: the others' rows are not shipped."""
    tasks = (
        "stages.0.data.tasks=[{name: finqa, source: sample, prompt: flare}, {name: acl18, source: sample}]",
        "stages.1.data.tasks=[{name: tfns, source: sample}, {name: ner, source: sample, prompt: flare}]",
    )
    outcome = fintune.train(
        "flare-curriculum",
        overrides=[f"model.base={base}", *FEW, *tasks, "model.quantization=nf4", "training.max_length=1024"],
        output_dir=tmp_path / "run",
        progress=False,
    )
    assert np.isfinite(losses(outcome)).all() and outcome.facts["quantization"] == "nf4"
    assert [own["steps"] for own in outcome.facts["stages"].values()] == [2 * 24 / 8, 3 * 24 / 8]


def test_the_trainer_runs_the_stages_one_by_one(base, tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(public_data().parents[1]))
    trainer = fintune.CurriculumTrainer(model_name=base, output_dir=tmp_path, overrides=FEW, progress=False)
    with pytest.raises(RunError, match="stage1 holds no trained adapter"):
        trainer.train_stage2()
    with pytest.raises(DataError, match=r"no test data named 'FPB' here.*"):
        trainer.train_stage1(qa_datasets=["FPB"])
    first = trainer.train_stage1(qa_datasets=["FinQA"], smp_datasets=["ACL"], epochs=1, learning_rate=1e-3)
    one = load_recipe(first.run_dir)
    assert [task.name for task in one.data.tasks] == ["finqa", "acl18"]
    assert (one.training.epochs, one.training.learning_rate, one.adapter.rank) == (1, 1e-3, 16)
    second = trainer.train_stage2(epochs=1)
    two = load_recipe(second.run_dir)
    assert [(task.name, task.prompt) for task in two.data.tasks] == [
        (name, "flare") for name in ("fpb", "fiqa_sa", "ner")
    ]
    assert (two.adapter.rank, two.adapter.hand_over, two.adapter.init_adapter) == (32, "pad", str(tmp_path / "stage1"))
    assert two.adapter.init_hash and two.training.learning_rate == 2e-4
