"""Whole runs: what they leave behind, that they repeat, resume and refuse as promised."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal

import numpy as np
import pytest

import fintune
from fintune import learning
from fintune.evaluation.scoring import Scorer
from fintune.schema.errors import RecipeError, RunError
from fintune.schema.run_directory import RunDirectory
from fintune.training import trainer as trainer_module
from fintune.training.checkpoints import is_intact, list_checkpoints, newest_intact
from tests.public_data import public_data
from tests.runs import Killed, killed_at_step, losses, metrics, run, weights

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("straight") / "run")


def test_a_run_leaves_everything_it_promises(base, tmp_path):
    outcome = run(
        base, tmp_path / "run", "report.enabled=true", "training.tracking=[tensorboard]", "model.quantization=nf4"
    )
    place = RunDirectory(outcome.run_dir)
    for file in (place.recipe, place.environment, place.facts, place.metrics, place.predictions, place.results):
        assert file.is_file(), file
    assert outcome.report == outcome.run_dir / "report.html" and outcome.report.stat().st_size > 10_000
    assert {"report.md", "tables.tex"} <= {path.name for path in outcome.run_dir.iterdir()}
    assert (outcome.run_dir / "figures" / "training_curves.png").is_file()
    assert any(place.tensorboard.iterdir())
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in place.adapter.iterdir()}
    records = place.read_records()
    robust = [r for r in records if r.protocol == "robust"]
    assert {r.system for r in robust} == {"base", "tuned", "majority"} and len(robust) == 3 * 40
    assert robust == records, "a ranking of labels is not what FLARE's rules are about"
    assert all(abs(sum(r.probabilities) - 1) < 1e-6 for r in robust if r.system == "tuned")
    rows = metrics(outcome)
    wanted = {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_s", "samples_per_s", "peak_bytes"}
    assert all(wanted <= set(row) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert fintune.report(outcome.run_dir) == outcome.report


def test_the_resolved_recipe_reproduces_the_run(straight, tmp_path):
    again = fintune.train(straight.run_dir / "recipe.yaml", output_dir=tmp_path / "again", progress=False)
    assert losses(again) == losses(straight)
    assert weights(again) == weights(straight)
    resolved = (straight.run_dir / "recipe.yaml").read_text()
    assert resolved.count("content_hash") >= 2 and "content_hash: null" not in resolved


@pytest.mark.parametrize("packing", ["sequence", "none"])
def test_packings_follow_the_same_trajectory(base, straight, tmp_path, packing):
    other = run(base, tmp_path / packing, f"training.packing={packing}")
    np.testing.assert_allclose(losses(other), losses(straight), atol=2e-4)


def test_a_smaller_budget_follows_the_same_trajectory(base, straight, tmp_path):
    other = run(base, tmp_path / "small", "training.tokens_per_batch=100")
    np.testing.assert_allclose(losses(other), losses(straight), atol=2e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_killed_run_resumes_to_the_same_bits(base, tmp_path, monkeypatch, killed_at, dropout):
    changes = [
        f"adapter.dropout={dropout}",
        "evaluation.base=false",
        "data.validation_limit=9",
        "training.eval_steps=2",
    ]
    whole = run(base, tmp_path / "whole", *changes)
    with killed_at_step(killed_at, monkeypatch):
        run(base, tmp_path / "killed", *changes)
    resumed = run(base, tmp_path / "killed", *changes)
    assert resumed.facts["resumed_from_step"] == killed_at - killed_at % 2
    assert weights(resumed) == weights(whole)
    assert losses(resumed) == losses(whole)
    assert [row["step"] for row in metrics(resumed)] == [row["step"] for row in metrics(whole)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_the_step_and_resumes_to_the_same_bits(base, straight, tmp_path, monkeypatch, number):
    train_step = trainer_module.TreeTrainer.training_step

    def interrupted(self, model, inputs, num_items_in_batch=None):
        if self.state.global_step == 2:
            signal.raise_signal(number)
        return train_step(self, model, inputs, num_items_in_batch)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer_module.TreeTrainer, "training_step", interrupted)
        run(base, tmp_path / "run")
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 3  # between two regular checkpoints
    resumed = run(base, tmp_path / "run")
    assert resumed.facts["resumed_from_step"] == 3
    assert weights(resumed) == weights(straight)


def test_totals_survive_a_resume_after_the_last_step(base, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(learning, "_save_result", dies)
        run(base, tmp_path / "run")
    resumed = run(base, tmp_path / "run")
    assert resumed.facts["resumed_from_step"] == resumed.facts["steps"]
    for key in ("sample_tokens", "distinct_tokens", "final_loss"):
        assert resumed.facts[key] == straight.facts[key]


def dies(*_, **__):
    raise Killed


def test_an_unfinished_run_is_not_mistaken_for_its_base(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(learning, "_save_result", dies)
        run(base, tmp_path / "run")
    with pytest.raises(RunError, match="not trained to its end"):
        fintune.load(tmp_path / "run", device="cpu")


def test_base_scores_are_not_reused_under_another_prompt(base, tmp_path):
    first = run(base, tmp_path / "run", "data.train_limit=8")
    other = "evaluation.tasks=[{name: tfns, source: sample, prompt: fingpt}]"
    second = run(base, tmp_path / "run", "data.train_limit=8", other)

    def likelihoods(outcome):
        return [r.log_likelihoods for r in RunDirectory(outcome.run_dir).read_records() if r.system == "base"]

    fresh = fintune.evaluate(
        str(base),
        tasks=["tfns:sample"],
        prompt="fingpt",
        limit=40,
        output_dir=tmp_path / "fresh",
        overrides=["evaluation.bootstrap_samples=100", "report.enabled=false", "training.max_length=512"],
        progress=False,
    )
    records = RunDirectory(tmp_path / "fresh").read_records()
    assert likelihoods(second) == [r.log_likelihoods for r in records if r.system == "base"]
    assert fresh.find("tfns", "base").metrics == second.results.find("tfns", "base").metrics
    assert first.run_dir == second.run_dir


def test_evaluate_does_not_write_over_a_training_run(base, straight):
    before = (straight.run_dir / "results.json").read_bytes()
    with pytest.raises(RunError, match="would be overwritten"):
        fintune.evaluate(str(base), tasks=["tfns:sample"], output_dir=straight.run_dir, progress=False)
    assert (straight.run_dir / "results.json").read_bytes() == before


def test_a_full_disk_ends_in_one_sentence_and_older_checkpoints_stay(base, tmp_path, monkeypatch):
    import torch

    save = torch.save

    def full(value, path, *arguments, **options):
        if ".staging-4" in str(path):  # torch reports a full disk as a RuntimeError of its own
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(value, path, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(RunError, match="step 4 could not be written"):
        patched.setattr(torch, "save", full)
        run(base, tmp_path / "run")
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [c.step for c in checkpoints] == [2] and is_intact(checkpoints[0])


def test_a_finished_training_is_not_repeated(base, straight, monkeypatch):
    def fails(*_, **__):
        raise AssertionError("trained again")

    before = straight.results.find("tfns", "tuned")
    monkeypatch.setattr(trainer_module.TreeTrainer, "train", fails)
    again = run(base, straight.run_dir)
    assert again.results.find("tfns", "tuned").metrics == before.metrics


def test_a_damaged_checkpoint_is_passed_over(base, tmp_path, monkeypatch, caplog):
    outcome = run(base, tmp_path / "run", "training.keep_checkpoints=3")
    checkpoints = list_checkpoints(outcome.run_dir / "checkpoints")
    assert all(map(is_intact, checkpoints))
    optimizer = checkpoints[-1].path / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    assert newest_intact(outcome.run_dir / "checkpoints") == checkpoints[-2]
    assert "damaged" in caplog.text


def test_another_recipe_in_the_same_directory_is_refused_and_nothing_is_lost(base, straight):
    before = weights(straight)
    with pytest.raises(RunError, match=r"training\.learning_rate.*--no-resume"):
        run(base, straight.run_dir, "training.learning_rate=5e-4")
    assert weights(straight) == before


def test_no_resume_starts_beside_the_finished_run(base, tmp_path):
    first = run(base, tmp_path / "run", "data.train_limit=8")
    second = run(base, tmp_path / "run", "data.train_limit=8", resume=False)
    assert second.run_dir == tmp_path / "run-2" and first.run_dir.is_dir()


def test_the_best_checkpoint_is_kept_and_used(base, tmp_path):
    outcome = run(
        base,
        tmp_path / "run",
        "training.eval_steps=2",
        "training.best_metric=loss",
        "training.learning_rate=0.05",
        "training.keep_checkpoints=1",
        "training.epochs=2",
    )
    validated = {row["step"]: row["eval_loss"] for row in metrics(outcome) if "eval_loss" in row}
    best = min(validated, key=validated.get)
    assert len(set(validated.values())) > 1
    assert outcome.facts["best_step"] == best
    saved = outcome.run_dir / "checkpoints" / f"checkpoint-{best}" / "weights" / "adapter_model.safetensors"
    assert saved.read_bytes() == weights(outcome)


def test_a_damaged_best_checkpoint_gives_way_to_the_best_intact_one(base, tmp_path, monkeypatch, caplog):
    changes = ["training.eval_steps=2", "training.best_metric=loss", "training.keep_checkpoints=3"]
    scripted = iter([2.0, 1.0, 3.0])
    monkeypatch.setattr(Scorer, "validation_metrics", lambda *_: {"eval_loss": next(scripted)})
    outcome = run(base, tmp_path / "run", *changes)
    assert outcome.facts["best_step"] == 4
    shutil.rmtree(outcome.adapter_dir)
    checkpoints = outcome.run_dir / "checkpoints"
    (checkpoints / "checkpoint-4" / "optimizer.pt").write_bytes(b"damaged")
    again = run(base, tmp_path / "run", *changes)
    assert again.facts["best_step"] == 2 and "best intact one" in caplog.text
    assert (checkpoints / "checkpoint-2" / "weights" / "adapter_model.safetensors").read_bytes() == weights(again)


def test_all_weights_can_be_trained_and_used(base, tmp_path):
    outcome = run(base, tmp_path / "run", "adapter.kind=none")
    assert losses(outcome)[-1] < losses(outcome)[0]
    assert outcome.facts["trainable_parameters"] == outcome.facts["all_parameters"]
    (prediction,) = fintune.load(outcome.run_dir, device="cpu").predict(["Profit rose."])
    assert prediction.label in {"negative", "neutral", "positive"}


def test_a_run_labels_texts_as_it_was_measured(straight):
    records = RunDirectory(straight.run_dir).read_records()
    records = [r for r in records if r.system == "tuned" and r.protocol == "robust"]
    for place in (straight.run_dir, straight.adapter_dir):
        predictor = fintune.load(place, device="cpu")
        found = predictor.predict([r.text for r in records])
        assert [p.label for p in found] == [r.prediction for r in records]
        for prediction, record in zip(found, records, strict=True):
            np.testing.assert_allclose(list(prediction.probabilities.values()), record.probabilities, atol=1e-4)


def test_evaluate_compares_base_and_adapter(base, straight, tmp_path):
    results = fintune.evaluate(
        str(base),
        adapter=straight.run_dir,
        tasks=["tfns:sample"],
        limit=40,
        output_dir=tmp_path / "out",
        overrides=["evaluation.bootstrap_samples=100", "report.enabled=false"],
        progress=False,
    )
    assert results.find("tfns", "tuned").metrics == straight.results.find("tfns", "tuned").metrics
    assert {c.reference for c in results.comparisons} == {"base"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["model"] == str(base)


def test_preview_shows_tokens_and_loss_mask_without_weights(base):
    shown = fintune.preview("quickstart", overrides=[f"model.base={base}"], samples=2)
    assert len(shown) == 2
    for sample in shown:
        answer = "".join(text for text, _, supervised in sample.tokens if supervised)
        assert answer.removesuffix("<|im_end|>") in {"negative", "neutral", "positive"}


PHRASES = {
    "negative": "Operating loss widened to EUR {} mn",
    "neutral": "The board has {} members",
    "positive": "Net sales rose {} %",
}


@pytest.mark.parametrize(("name", "epochs"), [("finllama-sentiment", 1), ("finllama-sentiment-3epoch", 3)])
def test_shipped_recipes_run_on_a_tiny_model(base, tmp_path, name, epochs):
    bank = tmp_path / "Sentences_AllAgree.txt"
    firms = [hashlib.sha256(bytes([n])).hexdigest()[:24] for n in range(40)]  # sentences that are not near-duplicates
    lines = [
        f"{firm}: {phrase.format(n)} .@{label}" for n, firm in enumerate(firms) for label, phrase in PHRASES.items()
    ]
    bank.write_text("\n".join(lines), encoding="latin-1")
    outcome = run(base, tmp_path / "run", f"data.tasks.0.source={bank}", "training.optimizer=adamw", recipe=name)
    assert outcome.results.find("fpb", "tuned").n > 20
    assert len(losses(outcome)) == epochs * 48 / 8 and np.isfinite(losses(outcome)).all()


@pytest.mark.parametrize("name", ["tfns", "ner", "convfinqa"])
def test_shipped_small_recipes_run_on_their_samples(base, tmp_path, name):
    outcome = run_shortly(base, tmp_path / "run", f"{name}-smollm2", "data.tasks.0.source=sample")
    assert np.isfinite(losses(outcome)).all() and len(losses(outcome)) == 2
    assert {r.protocol for r in outcome.results.results if r.system == "tuned"} == {"robust", "flare_strict"}


@pytest.mark.parametrize("name", ["fpb", "fiqa", "headlines", "finqa", "flare"])
def test_shipped_small_recipes_run_on_public_data(base, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(public_data().parents[1]))
    samples = [f"data.tasks.{number}.source=sample" for number in (1, 6, 7)] if name == "flare" else []
    outcome = run_shortly(base, tmp_path / "run", f"{name}-smollm2", "evaluation.tasks=[{name: fiqa_sa}]", *samples)
    assert np.isfinite(losses(outcome)).all() and len(losses(outcome)) == 2
    if name == "flare":
        drawn = {task: counts["samples"] for task, counts in outcome.facts["by_task"].items()}
        assert len(drawn) == 8 and drawn["headlines"] == max(drawn.values())


def run_shortly(base, place, recipe, *overrides):
    """Two small steps of a recipe on few rows, scored on four documents."""
    few = (
        "training.warmup_ratio=null",
        "data.train_limit=20",
        "evaluation.limit=4",
        "training.max_steps=2",
        "training.samples_per_step=40",
    )
    quick = (
        "training.samples_per_step=16",
        "data.near_duplicate_threshold=null",
        "evaluation.baselines=[]",
        "report.enabled=false",
    )
    return run(base, place, *few, *quick, *overrides, recipe=recipe)


def test_impossible_recipes_fail_before_anything_is_loaded(tmp_path):
    with pytest.raises(RecipeError, match="named twice"):
        fintune.train("quickstart", overrides=["evaluation.tasks=[{name: fpb}, {name: fpb}]"], output_dir=tmp_path)
    with pytest.raises(RecipeError, match="quantised weights cannot be trained"):
        fintune.train("quickstart", overrides=["adapter.kind=none", "model.base=/nowhere"], output_dir=tmp_path)
    assert not list(tmp_path.iterdir())
