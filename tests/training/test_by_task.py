"""Figures by task: exact, adding up to the loss of the step, and the same after a kill as in one go."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from fintune.models.adapters import attach_adapter
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Recipe
from fintune.schema.run_directory import RunDirectory
from fintune.session import Session
from fintune.training import trainer as trainer_module
from fintune.training.by_task import TaskMeter
from fintune.training.identity import _LATER_KEYS, _training_identity
from fintune.training.metrics_log import MetricsLog
from fintune.training.run import train_model
from fintune.trees.chat import encode_all
from fintune.trees.plan import make_step
from tests.runs import QUICK
from tests.trees.samples import sample

pytestmark = pytest.mark.usefixtures("own_cache")

MIXED = ("data.mixture=weights", "data.tasks.0.weight=1", "data.tasks.1.weight=3")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A second task, of fewer rows and with other prompts."""
    path = tmp_path_factory.mktemp("table") / "calls.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(60):
            word = ["rises", "falls"][number % 2]
            writer.writerow([f"Share {number * 37} of firm {number} {word} in trade {number * 13}", word])
    return path


@pytest.fixture
def train(base, table):
    """Trains on tfns and the table's task, as the pipeline does, and returns what was measured."""

    def run(place, *changes):
        tasks = [
            {"name": "tfns", "source": "sample"},
            {"name": "moves", "source": str(table), "table": {"text": "text", "label": "label"}},
        ]
        quick = [change for change in QUICK if not change.startswith("data.")]
        changes = [
            *quick,
            "data.train_limit=24",
            f"data.tasks={json.dumps(tasks)}",
            "data.near_duplicate_threshold=null",
            "training.samples_per_step=8",
            "training.eval_steps=null",
            "training.best_metric=null",
            "adapter.dropout=0.1",
            "training.learning_rate=1e-2",
            *changes,
        ]
        recipe = load_recipe("quickstart", [f"model.base={base}", *changes])
        session = Session.open(recipe, training=True, progress=False)
        encoded = encode_all(session.chat, session.data.train)
        names = list(dict.fromkeys(example.task for example in session.data.train))
        directory = RunDirectory(place)
        directory.path.mkdir(parents=True, exist_ok=True)
        model = session.edge_model(attach_adapter(session.base, recipe.adapter, seed=recipe.seed))
        trained = train_model(
            session.recipe,
            session.base,
            model,
            [one.training_sample(i, 1.0 + i % 3) for i, one in enumerate(encoded.encoded)],
            range(len(encoded.encoded)),
            directory,
            packing=session.packing,
            validate=None,
            fingerprint={},
            progress=False,
            tasks=[names.index(session.data.train[i].task) for i in encoded.kept],
            task_names=names,
        )
        weights = {name: value.clone() for name, value in model.model.state_dict().items() if "lora" in name}
        return trained, [row for row in directory.read_history() if "loss" in row], weights

    return run


class Killed(Exception):
    pass


def test_losses_by_task_add_up_to_the_loss_and_are_those_of_the_tasks_alone(train, tmp_path, monkeypatch):
    alone = []
    train_step = trainer_module.TreeTrainer.training_step

    def watched(self, model, inputs, num_items_in_batch=None):
        drawn = self.steps.plan.indices(self.state.global_step)
        for task in range(2):
            own = [self.steps.samples[i] for i in drawn if self.steps.tasks[i] == task]
            if own:
                step = make_step(own, "none", 10_000)
                with torch.no_grad():
                    model.eval()
                    loss = sum(float(self.edge_model.loss_sum(batch)) for batch in step.batches)
                alone.append((self.state.global_step + 1, task, loss / step.total_weight))
        return train_step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(trainer_module.TreeTrainer, "training_step", watched)
    trained, rows, _ = train(tmp_path / "run", "adapter.dropout=0")
    names = ["tfns", "moves"]
    logged = [
        (row["step"], task, row["loss_by_task"][name])
        for row in rows
        for task, name in enumerate(names)
        if name in row["loss_by_task"]
    ]
    assert [one[:2] for one in logged] == [one[:2] for one in alone]
    assert [one[2] for one in logged] == pytest.approx([one[2] for one in alone], rel=2e-5)
    for row in rows:
        supervised = row["supervised_by_task"]
        total = math.fsum(row["loss_by_task"][name] * supervised[name] for name in supervised)
        assert total / math.fsum(supervised.values()) == pytest.approx(row["loss"], rel=1e-6)
    assert {name: trained.by_task[name]["samples"] for name in names} == {"tfns": 24, "moves": 24}  # one epoch
    assert sum(trained.by_task[name]["tokens"] for name in names) == trained.sample_tokens
    for name in names:
        weight = math.fsum(row["supervised_by_task"].get(name, 0) for row in rows)
        summed = math.fsum(row["loss_by_task"].get(name, 0) * row["supervised_by_task"].get(name, 0) for row in rows)
        assert trained.by_task[name]["loss"] == pytest.approx(summed / weight)


def test_telling_tasks_apart_does_not_move_the_loss(train, tmp_path, monkeypatch):
    _, rows, weights = train(tmp_path / "told")
    monkeypatch.setattr(trainer_module.TreeTrainer, "_batch_loss", plain_batch_loss)
    _, plain, plain_weights = train(tmp_path / "plain")
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


def plain_batch_loss(self, step, number, model):
    return self.edge_model.loss_sum(step.batches[number].to(self.args.device), model)


@pytest.mark.parametrize("log_steps", [1, 4])
def test_a_killed_run_with_a_mixture_resumes_to_the_same_bits(train, tmp_path, monkeypatch, log_steps):
    changes = (*MIXED, "training.epochs=2", f"training.log_steps={log_steps}")
    straight, rows, weights = train(tmp_path / "straight", *changes)
    train_step = trainer_module.TreeTrainer.training_step

    def dies(self, model, inputs, num_items_in_batch=None):
        if self.state.global_step == 7:  # in the second epoch, one step after a checkpoint and two after a line
            raise Killed
        return train_step(self, model, inputs, num_items_in_batch)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer_module.TreeTrainer, "training_step", dies)
        train(tmp_path / "run", *changes)
    resumed, again, resumed_weights = train(tmp_path / "run", *changes)
    assert resumed.resumed_from == 6 and straight.resumed_from == 0
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    kept = ("step", "loss", "loss_by_task", "supervised_by_task", "tokens_by_task", "samples_by_task")
    assert [[row[key] for key in kept] for row in again] == [[row[key] for key in kept] for row in rows]
    assert resumed.by_task == straight.by_task
    # 48 samples an epoch, a quarter and three quarters of them, twice.
    assert {name: one["samples"] for name, one in straight.by_task.items()} == {"tfns": 24, "moves": 72}


def test_a_skipped_update_counts_tokens_but_no_loss():
    step = make_step([sample([1, 2, 3]), sample([4, 5])], "tree", 100, tasks=[0, 1], n_tasks=2)
    meter = TaskMeter(["a", "b"], {})
    meter.add(step, [2.0, 4.0])
    meter.add(step, None)
    row = meter.take_unlogged()
    assert row["loss_by_task"] == {"a": 2.0, "b": 4.0} and row["supervised_by_task"] == {"a": 1.0, "b": 1.0}
    assert row["tokens_by_task"] == {"a": 6, "b": 4} and row["samples_by_task"] == {"a": 2, "b": 2}
    assert meter.take_unlogged()["loss_by_task"] == {}
    meter.add(step, None)
    assert meter.take_unlogged()["loss_by_task"] == {}  # nothing that could be told
    assert meter.totals()["a"] == {"loss": 2.0, "supervised": 1.0, "tokens": 9, "samples": 3}
    assert TaskMeter(["a", "b"], json.loads(json.dumps(meter.state()))).totals() == meter.totals()


def test_numbers_within_a_line_that_are_not_finite_become_null(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", 0).append({"step": 1, "loss_by_task": {"a": math.nan, "b": 1.0}})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss_by_task"] == {"a": None, "b": 1.0}


def test_a_mixture_is_part_of_a_run_and_the_default_leaves_older_runs_what_they_were():
    identity = _training_identity(load_recipe("quickstart"))
    for section, defaults in _LATER_KEYS.items():
        fields = Recipe.model_fields[section].annotation.model_fields
        assert {key: fields[key].default for key in defaults} == defaults
        assert not defaults.keys() & identity[section].keys()
    assert not {"weight", "epochs", "proportion"} & identity["data"]["tasks"][0].keys()
    changed = _training_identity(load_recipe("quickstart", ["data.mixture=weights", "data.tasks.0.weight=2"]))
    assert changed["data"]["mixture"] == "weights" and changed["data"]["tasks"][0]["weight"] == 2
    several = _training_identity(load_recipe("quickstart", ["data.tasks.0.epochs=2", "data.tasks.0.proportion=0.5"]))
    assert (several["data"]["tasks"][0]["epochs"], several["data"]["tasks"][0]["proportion"]) == (2, 0.5)
