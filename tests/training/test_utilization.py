"""Model operations against those that PyTorch counts while it runs; ratios against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fintune.inference.forward import EdgeModel
from fintune.models import attach_adapter, load_base
from fintune.models.tiny import write_tiny_model
from fintune.schema.recipe import AdapterSection, ModelSection
from fintune.training import utilization
from fintune.training.callbacks import Totals
from fintune.training.memory_choice import base_shape
from fintune.training.utilization import ModelFlops, Work, model_flops, peak_flops
from fintune.trees.packing import pack_samples, pad_samples
from fintune.trees.plan import Step, make_step
from fintune.trees.prefix_tree import TokenSample


def sample(tokens, supervised=2):
    tokens = np.asarray(tokens, np.int64)
    weight = np.zeros(len(tokens), np.float32)
    weight[-supervised:] = 1
    return TokenSample(tokens, weight)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    folder = write_tiny_model(tmp_path / "tiny")

    def load(**section):
        return load_base(ModelSection(base=str(folder), **section), device=torch.device("cpu"), for_training=True)

    return load


@pytest.mark.parametrize("section", [AdapterSection(rank=4), AdapterSection(kind="none")], ids=["lora", "all weights"])
def test_operations_are_those_that_pytorch_counts(loaded, section):
    base = loaded()
    model = attach_adapter(base, section, seed=0)
    found = model_flops(base_shape(base), model)
    length, logits = 24, 5
    batch = pad_samples([sample(range(3, 3 + length), supervised=logits)])
    edge_model = EdgeModel(model, "eager", fast=False)
    edge_model.use_plain_attention = lambda: edge_model.set_attention("eager")
    with FlopCounterMode(display=False) as counter:
        edge_model.loss_sum(batch).backward()
    # PyTorch multiplies the whole square of scores, and needs no gradient for the first layer's input.
    square = found.of(Work(length, length * length, logits))
    if section.kind == "lora":
        first = {
            name: p for name, p in model.named_parameters() if ".layers.0.self_attn." in name and "o_proj" not in name
        }
        skipped = sum(p.numel() for name, p in first.items() if "base_layer" in name or "lora_A" in name)
        square -= 2 * length * skipped
    assert counter.get_total_flops() == square
    assert Work.of([batch]) == Work(length, length * (length + 1) // 2, logits)


def test_packed_weights_count_as_what_they_stand_for(loaded):
    plain, packed = loaded(), loaded(quantization="nf4")
    counts = [model_flops(base_shape(base), attach_adapter(base, AdapterSection(), seed=0)) for base in (plain, packed)]
    assert counts[0] == counts[1]


def test_work_of_a_tree_counts_shared_tokens_once_and_what_each_sees():
    shared, samples = list(range(10)), []
    for ending in ([20, 21], [30, 31, 32]):
        samples.append(sample(shared + ending))
    (tree,) = pack_samples(samples, "tree", 64, buckets=True)
    assert len(tree) > 15  # padded to a bucket
    seen = sum(range(1, 11)) + (11 + 12) + (11 + 12 + 13)
    assert Work.of([tree]) == Work(15, seen, 4)
    (padded,) = pack_samples(samples, "none", 64)
    assert Work.of([padded]) == Work(12 + 13, sum(range(1, 13)) + sum(range(1, 14)), 4)


def test_fillers_are_no_work():
    step = make_step([sample(range(6))], "tree", 64, rank=1, world=2)
    assert step.batches[0].n_samples == 0 and Work.of(step.batches) == Work()


def test_ratios_and_utilization():
    shared, samples = list(range(10)), []
    for ending in ([20, 21], [30, 31, 32]):
        samples.append(sample(shared + ending))
    totals = Totals()
    tree, padded = pack_samples(samples, "tree", 64)[0], pack_samples(samples, "none", 64)[0]
    totals.add(Step((tree,), 1.0, 2, sample_tokens=25, distinct_tokens=15), 2.0, 3e12)
    assert totals.sharing_ratio == 25 / 15 and totals.padding_ratio == 0
    assert totals.tflops_per_s == 1.5 and totals.utilization(6e12) == 0.25 and totals.utilization(None) is None
    totals = Totals()
    totals.add(Step((padded,), 1.0, 2, sample_tokens=25, distinct_tokens=25), 2.0)
    assert totals.sharing_ratio == 1 and totals.padding_ratio == pytest.approx(1 / 26)
    assert totals.tflops_per_s is None and totals.utilization(6e12) is None


def test_the_peak_is_known_for_known_cards(monkeypatch):
    cuda = torch.device("cuda")
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("Tesla T4", 65e12), ("Unheard-of 9000", None)):
        monkeypatch.setattr(utilization.torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(cuda) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_an_eight_billion_model_takes_six_and_four_operations_a_weight():
    """By hand: 8e9 weights, 1,000 tokens without attention or head."""
    frozen = ModelFlops(matrix=8_000_000_000, adapter=40_000_000, head=0, width=0, trains_base=False)
    assert frozen.of(Work(1000)) == 1000 * (4 * 8e9 + 6 * 4e7)
    whole = ModelFlops(matrix=8_000_000_000, adapter=0, head=0, width=0, trains_base=True)
    assert whole.of(Work(1000)) == 1000 * 6 * 8e9
