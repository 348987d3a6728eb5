"""A finished run made up from a seed, small enough to draw in a second."""

import numpy as np
import pytest

from fintune.metrics import compare, summarise
from fintune.schema.recipe import Recipe
from fintune.schema.results import DataLicence, DocumentRecord, EvaluationResults, OverlapReport

LABELS = ("negative", "neutral", "positive")
SHARES = {"majority": 0.0, "lexicon": 0.45, "tfidf": 0.66, "base": 0.36, "tuned": 0.82}


def simulated_records(system, share, n=120, task="tfns", seed=0, labels=LABELS, text="Shares of {} rose <b>4%</b>"):
    draw = np.random.default_rng([seed, sum(map(ord, system + task))])
    records = []
    for i in range(n):
        target = labels[i % len(labels)]
        right = draw.random() < share
        prediction = target if right else str(draw.choice([x for x in labels if x != target]))
        prediction = labels[1] if system == "majority" else prediction
        prediction = None if system == "lexicon" and i % 10 == 0 else prediction
        sure = float(draw.uniform(0.4, 0.99))
        shown = tuple(sure if x == prediction else (1 - sure) / (len(labels) - 1) for x in labels)
        records.append(
            DocumentRecord(
                system=system,
                task=task,
                example_id=f"{task}-{i}",
                group=f"{task}-{i}",
                target=target,
                prediction=prediction,
                correct=target == prediction,
                choices=labels,
                probabilities=shown if system in ("base", "tuned") else None,
                text=text.format(f"company {i}"),
            )
        )
    return records


def scored_results(records_by, labels=LABELS, **fields):
    """Results of ``{(system, task): records}``, tuned compared with every other system."""
    results = [
        summarise(r, task_version="1", split="test", labels=labels, n_resamples=200) for r in records_by.values()
    ]
    comparisons = [
        compare(records_by["tuned", task], r, labels=labels, n_resamples=200)
        for (system, task), r in records_by.items()
        if system != "tuned" and ("tuned", task) in records_by
    ]
    return EvaluationResults(
        model="smollm2-135m", adapter="adapter", results=tuple(results), comparisons=tuple(comparisons), **fields
    )


@pytest.fixture(scope="session")
def make_records():
    return simulated_records


@pytest.fixture(scope="session")
def make_results():
    return scored_results


@pytest.fixture(scope="session")
def measured():
    """Results for ``{system: share right}``, with or without paired comparisons."""

    def measure(shares, *, compared=True, n=120, per_group=1):
        by = {
            (system, "tfns"): [
                r.model_copy(update={"group": f"g{i // per_group}"})
                for i, r in enumerate(simulated_records(system, share, n))
            ]
            for system, share in shares.items()
        }
        found = scored_results(by)
        return found if compared else found.model_copy(update={"comparisons": ()})

    return measure


@pytest.fixture(scope="session")
def records_by():
    return {(system, "tfns"): simulated_records(system, share) for system, share in SHARES.items()}


@pytest.fixture(scope="session")
def records(records_by):
    return [r for found in records_by.values() for r in found]


@pytest.fixture(scope="session")
def results(records_by):
    return scored_results(
        records_by,
        overlap=(OverlapReport(task="tfns", n_train=900, n_test=120, exact=2, normalised=3, removed_from_train=3),),
        data=(
            DataLicence(
                task="tfns",
                source="zeroshot/twitter-financial-news-sentiment",
                licence="MIT",
                citation="Twitter Financial News Sentiment, 2022",
                split_note="balanced by class; not the natural mix",
                content_hash="0123456789abcdef",
            ),
        ),
        counts={"shortened_documents": 4, "dropped_rows": 0},
        elapsed_s=11.5,
    )


@pytest.fixture(scope="session")
def recipe():
    return Recipe.model_validate(
        {
            "name": "quickstart",
            "description": "Sentiment of financial news.",
            "model": {"base": "smollm2-135m", "quantization": "nf4"},
            "data": {"tasks": [{"name": "tfns", "source": "sample"}]},
        }
    )


@pytest.fixture(scope="session")
def history():
    draw = np.random.default_rng(0)
    rows = [
        {
            "step": s,
            "epoch": s / 56,
            "loss": float(1.6 * np.exp(-s / 18) + 0.35 + 0.08 * draw.normal()),
            "learning_rate": 1e-3 * min(s / 5, (57 - s) / 52),
            "grad_norm": float(2 + draw.random()),
            "tokens_per_s": 900.0,
            "samples_per_s": 9.0,
            "peak_bytes": 2**30,
        }
        for s in range(1, 57)
    ]
    validations = [
        {"step": s, "eval_loss": 1.2 - s / 80, "eval_accuracy": 0.4 + s / 150, "eval_macro_f1": 0.35 + s / 140}
        for s in (14, 28, 42, 56)
    ]
    return rows + validations


@pytest.fixture(scope="session")
def model_facts():
    return {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_licence": "apache-2.0",
        "trainable_params": "trainable params: 4,884,480 || all params: 139,399,488 || trainable%: 3.5039",
        "dtype": "float32",
        "elapsed_s": 141.2,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
