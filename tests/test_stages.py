"""Runs with stages on a tiny model: layout, orders at equal tokens, hand-over, resume, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

import fintune
from fintune import staged
from fintune.evaluation.suite import load_run_data
from fintune.models import load_base
from fintune.schema.errors import AdapterError, DataError, RecipeError, RunError
from fintune.schema.loading import load_recipe, save_recipe
from fintune.schema.recipe import ModelSection
from fintune.schema.stages import whole_recipe
from fintune.training import trainer as trainer_module
from fintune.trees.chat import ChatFormat

ATTENTION = ["q_proj", "v_proj"]


def recipe_of(base, **more):
    """Tables of four columns are short; the first stage has the longer texts and the smaller adapter."""
    return {
        "name": "curriculum",
        "model": {"base": str(base)},
        "adapter": {"rank": 2, "alpha": 4, "targets": ATTENTION},
        "data": {"train_limit": 20, "validation_limit": 6, "near_duplicate_threshold": None},
        "training": {"samples_per_step": 8, "save_steps": 1, "tracking": [], "max_length": 512, "learning_rate": 1e-3},
        "evaluation": {"limit": 8, "bootstrap_samples": 100, "baselines": [], "abstention": False},
        "report": {"enabled": False},
        "stages": [
            {
                "name": "complex",
                "data": {"tasks": [{"name": "ner_typing", "source": "sample"}]},
                "training": {"epochs": 2},
            },
            {
                "name": "simple",
                "data": {"tasks": [{"name": "tfns", "source": "sample", "epochs": 0.5}]},
                "training": {"samples_per_step": 5},
                "adapter": {"rank": 3, "alpha": 6, "targets": "all-linear", "hand_over": "pad"},
            },
        ],
        **more,
    }


def train(base, place, *overrides, **more):
    return fintune.train(recipe_of(base, **more), overrides=overrides, output_dir=place, progress=False)


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    """A run that nothing happened to."""
    return train(base, tmp_path_factory.mktemp("runs") / "straight")


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_each_stage_is_a_run_and_the_last_ones_adapter_is_the_runs(straight):
    run = straight.run_dir
    names = sorted(place.name for place in (run / "stages").iterdir())
    assert names == ["1-complex", "2-simple"]
    for name in names:
        place = run / "stages" / name
        files = {file.name for file in place.iterdir()}
        assert {"recipe.yaml", "facts.json", "metrics.jsonl", "checkpoints", "adapter"} <= files
        assert not load_recipe(place).stages and "results.json" not in files
    assert weights(straight.adapter_dir) == weights(run / "stages" / "2-simple" / "adapter")
    assert {(r.task, r.system) for r in straight.results.results} >= {("ner_typing", "tuned"), ("tfns", "base")}


def test_facts_and_metrics_tell_samples_and_tokens_of_each_stage(straight):
    stages = straight.facts["stages"]
    assert {name: own["samples_drawn"] for name, own in stages.items()} == {"1-complex": 40, "2-simple": 10}
    for key in ("samples_drawn", "sample_tokens", "distinct_tokens", "steps"):
        assert straight.facts[key] == sum(own[key] for own in stages.values()) > 0
    rows = [json.loads(line) for line in (straight.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, straight.facts["steps"] + 1))
    assert Counter(row["stage"] for row in losses) == {name: own["steps"] for name, own in stages.items()}


def test_the_recipe_that_is_kept_has_hashes_and_gives_the_same_run(straight, tmp_path):
    kept = load_recipe(straight.run_dir)
    assert all(task.content_hash for stage in kept.stages for task in stage.data.tasks)
    assert (
        load_recipe(save_recipe(kept, tmp_path / "again.yaml"))
        == kept
        == load_recipe(straight.adapter_dir).model_copy(update={"model": kept.model})
    )
    again = fintune.train(straight.run_dir, output_dir=tmp_path / "again", progress=False)
    assert weights(again.adapter_dir) == weights(straight.adapter_dir)


def test_mixed_draws_the_same_samples_at_random_in_one_stage(base, straight, tmp_path):
    mixed = train(base, tmp_path / "mixed", "stage_order=mixed")
    assert list(mixed.facts["stages"]) == ["1-mixed"]
    for key in ("samples_drawn", "sample_tokens"):
        assert mixed.facts[key] == straight.facts[key]
    counts = {task: own["samples"] for task, own in mixed.facts["by_task"].items()}
    assert counts == {"ner_typing": 40, "tfns": 10}
    own = load_recipe(mixed.run_dir / "stages" / "1-mixed")
    assert (own.adapter.rank, own.adapter.targets, own.adapter.hand_over) == (3, "all-linear", None)
    assert own.training.samples_per_step == 8, "the recipe's own training section"
    assert train(base, tmp_path / "mixed", "stage_order=mixed").facts["stages"] == mixed.facts["stages"]


def test_reversed_moves_the_data_and_leaves_the_adapters_to_grow(base, tmp_path):
    outcome = train(base, tmp_path / "run", "stage_order=reversed")
    first, second = (load_recipe(outcome.run_dir / "stages" / name) for name in ("1-simple", "2-complex"))
    assert [task.name for task in first.data.tasks] == ["tfns"] and first.training.samples_per_step == 5
    assert (first.adapter.rank, second.adapter.rank, second.training.epochs) == (2, 3, 2)


def test_measured_loss_begins_with_what_the_base_finds_hardest(base, tmp_path, monkeypatch):
    outcome = train(base, tmp_path / "run", "stage_order=measured_loss")
    kept = json.loads((outcome.run_dir / "stages.json").read_text())
    assert list(kept["losses"]) == ["complex", "simple"]
    for stage, task in (("complex", "ner_typing"), ("simple", "tfns")):
        assert kept["losses"][stage] == pytest.approx(plain_loss(base, task), rel=1e-4)
    assert kept["names"] == sorted(kept["losses"], key=kept["losses"].get, reverse=True)
    monkeypatch.setattr(staged, "_losses", None)  # measured once
    train(base, tmp_path / "run", "stage_order=measured_loss")
    with pytest.raises(DataError, match="complex has no validation rows"):
        monkeypatch.undo()
        monkeypatch.setattr(staged.Session, "open", without_validation(staged.Session.open))
        train(base, tmp_path / "other", "stage_order=measured_loss")


def without_validation(open_session):
    def opened(*arguments, **options):
        session = open_session(*arguments, **options)
        object.__setattr__(session.data, "validation", ())
        return session

    return opened


def plain_loss(base, task):
    """Nats per token of the answer and its end, row by row through transformers alone."""
    loaded = load_base(ModelSection(base=str(base)), device=torch.device("cpu"), for_training=False)
    rows = load_run_data(whole_recipe(load_recipe(recipe_of(base)))).validation
    chat = ChatFormat(loaded.tokenizer, 512)
    nats, tokens = 0.0, 0
    for row in (row for row in rows if row.task == task):
        encoded = chat.encode(row)
        ids = torch.tensor([[*encoded.prompt.tolist(), *encoded.completion.tolist()]])
        with torch.no_grad():
            scores = loaded.model(input_ids=ids).logits[0, len(encoded.prompt) - 1 : -1].log_softmax(-1)
        nats -= scores.gather(1, ids[0, len(encoded.prompt) :, None]).sum().item()
        tokens += len(encoded.completion)
    return nats / tokens


@pytest.mark.parametrize("at", [3, 6, 7, "between", "adapter"])
def test_a_stopped_run_goes_on_where_it_was(base, straight, tmp_path, monkeypatch, at):
    steps = []
    step = trainer_module.TreeTrainer.training_step

    def counted(self, *arguments):
        if len(steps) == at:
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return step(self, *arguments)

    monkeypatch.setattr(trainer_module.TreeTrainer, "training_step", counted)
    if not isinstance(at, int):
        name, calls = ("train_recipe", [1]) if at == "between" else ("describe_adapter", [0])
        monkeypatch.setattr(staged, name, interrupted(getattr(staged, name), calls))
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "run")
    done, at = len(steps), None
    again = train(base, tmp_path / "run")
    total = straight.facts["steps"]
    assert weights(again.adapter_dir) == weights(straight.adapter_dir)
    assert len(steps) == total and steps == [*range(6), *range(2)], f"nothing of {done} steps is repeated"
    assert again.facts["stages"].keys() == straight.facts["stages"].keys()
    assert [r.metrics for r in again.results.results] == [r.metrics for r in straight.results.results]


def interrupted(function, before):
    """Ends the call whose number is in ``before``, once."""
    calls = []

    def wrapper(*arguments, **options):
        calls.append(1)
        if len(calls) - 1 in before:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return wrapper


def test_a_changed_recipe_is_refused_by_key(base, straight, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(straight.run_dir, place)
    for change, key in (
        ("stages.1.training.epochs=3", "stages.1.training.epochs"),
        ("stages.0.adapter.alpha=3", "stages.0.adapter.alpha"),
        ("stage_order=reversed", "stage_order"),
        ("seed=3", "seed"),
    ):
        with pytest.raises(RunError, match=f"another {key}"):
            train(base, place, change)
    train(base, place, "training.log_steps=3")


def test_a_stage_that_asks_is_measured_too(base, tmp_path):
    outcome = train(base, tmp_path / "run", "stages.0.evaluate=true", "report.enabled=true")
    first = outcome.run_dir / "stages" / "1-complex"
    results = fintune.compare({"after one": first, "after both": outcome.run_dir})
    assert {r.task for r in results.results} == {"ner_typing", "tfns"}
    card = (outcome.adapter_dir / "README.md").read_text()
    assert "Stage complex: LoRA adapter on ner" in card and "Stage simple: LoRA adapter on tfns: rank 3" in card
    assert (first / "report.html").is_file() and "1-complex" in (outcome.run_dir / "report.md").read_text()


def test_a_stacked_stage_leaves_the_earlier_part_as_it_is(base, tmp_path, monkeypatch):
    norms = []
    clip = trainer_module.TreeTrainer._clip_grad_norm

    def watched(self, model):
        if self.frozen is not None:
            norms.append(
                all(not p.grad.narrow(axis, 0, kept.shape[axis]).any() for p, axis, kept in self.frozen.matrices)
            )
        return clip(self, model)

    monkeypatch.setattr(trainer_module.TreeTrainer, "_clip_grad_norm", watched)
    changes = ("stages.1.adapter.hand_over=stack", "training.weight_decay=0.5", "training.learning_rate=1e-2")
    outcome = train(base, tmp_path / "run", *changes)
    assert norms == [True, True], "nothing of the frozen part is in the norm that is clipped"
    before = load_file(outcome.run_dir / "stages" / "1-complex" / "adapter" / "adapter_model.safetensors")
    after = load_file(outcome.adapter_dir / "adapter_model.safetensors")
    for name, old in before.items():
        axis = 0 if "lora_A" in name else 1
        assert after[name].shape[axis] == old.shape[axis] + 3
        assert torch.equal(after[name].narrow(axis, 0, 2), old), "scales agree, so B is not even rescaled"
    facts = outcome.facts
    assert facts["frozen_adapter_parameters"] == sum(tensor.numel() for tensor in before.values())
    assert facts["trainable_parameters"] + facts["frozen_adapter_parameters"] == sum(t.numel() for t in after.values())


def test_a_merged_stage_trains_on_a_base_of_its_own_and_reports_the_gap(base, tmp_path, monkeypatch):
    changes = ("stages.1.adapter.hand_over=merge", "model.quantization=nf4")
    with monkeypatch.context() as patched:
        patched.setattr(staged, "describe_adapter", interrupted(staged.describe_adapter, [0]))
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "run", *changes)
    outcome = train(base, tmp_path / "run", *changes)
    gap = outcome.facts["hand_over"]
    assert (
        gap["rule"] == "merge" and gap["held"] == "nf4" and gap["positions"] == 8 and 0 < gap["mean"] < gap["largest"]
    )
    assert outcome.facts["stages"]["2-simple"]["hand_over"] == gap
    merged = outcome.run_dir / "stages" / "2-simple" / "base"
    assert load_recipe(outcome.adapter_dir).model.base == str(merged)
    assert load_recipe(outcome.run_dir).model.base == str(base), "the base that is measured beside is the recipe's"
    asked = [json.loads(line) for line in (outcome.run_dir / "predictions.jsonl").read_text().splitlines()]
    assert {row["system"] for row in asked} == {"base", "tuned"}
    fintune.load(outcome.run_dir)
    again = fintune.evaluate(outcome.run_dir, tasks=["tfns"], limit=8, progress=False)
    assert again.find("tfns", "tuned").metrics == outcome.results.find("tfns", "tuned").metrics


def test_one_run_starts_from_another(base, straight, tmp_path):
    plain = {
        **recipe_of(base),
        "stages": [],
        "data": {"tasks": [{"name": "tfns", "source": "sample"}], "train_limit": 8},
    }
    start = tmp_path / "first"
    shutil.copytree(straight.run_dir, start)
    given = [f"adapter.init_adapter={start}", "adapter.rank=5", "adapter.targets=all-linear", "adapter.hand_over=pad"]
    outcome = fintune.train(plain, overrides=given, output_dir=tmp_path / "run", progress=False)
    assert load_recipe(outcome.run_dir).adapter.init_hash
    assert fintune.train(plain, overrides=given, output_dir=tmp_path / "run", progress=False).facts["steps"] == 1
    with pytest.raises(AdapterError, match="cannot be started from: rank differs"):
        fintune.train(plain, overrides=[given[0], *given[1:3]], output_dir=tmp_path / "other", progress=False)
    shutil.rmtree(start / "adapter")
    shutil.copytree(straight.run_dir / "stages" / "1-complex" / "adapter", start / "adapter")
    with pytest.raises(RunError, match=r"another adapter\.init_hash"):
        fintune.train(plain, overrides=given, output_dir=tmp_path / "run", progress=False)
    pinned = load_recipe(outcome.run_dir)
    with pytest.raises(AdapterError, match="but the recipe pins"):
        fintune.train(pinned, output_dir=tmp_path / "third", progress=False)


def test_data_of_ones_own_cannot_take_the_place_of_stages(base, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,b\n")
    with pytest.raises(RecipeError, match="has stages"):
        fintune.train(recipe_of(base), data=file, text="text", label="label", output_dir=tmp_path / "run")
