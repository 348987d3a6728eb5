"""Adapters merged into 16 bits: what the report says is what the files compute."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from fintune.models import attach_adapter, load_adapter, save_adapter
from fintune.models.merging import MERGE_NOTE, TEXTS, dequantized, logit_gap, merge_adapter
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import AdapterSection, ModelSection

CPU = torch.device("cpu")


def trained(load_tiny, folder, section: AdapterSection, **model):
    base = load_tiny(**model)
    adapted = attach_adapter(base, section, seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return save_adapter(adapted, base.tokenizer, folder, base.files)


def logits(model, tokenizer) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]


@pytest.mark.parametrize(
    ("section", "quantization"),
    [
        (AdapterSection(rank=4), "none"),
        (AdapterSection(rank=4, rslora=True), "nf4"),
        (AdapterSection(rank=4, dora=True), "none"),
        (AdapterSection(rank=4, targets=("q_proj", "down_proj")), "int8"),
        (AdapterSection(rank=4), "fp8"),
    ],
)
def test_the_report_is_what_the_files_compute(load_tiny, tiny_folder, tmp_path, section, quantization):
    adapter = trained(load_tiny, tmp_path / "adapter", section, quantization=quantization)
    model_section = ModelSection(base=str(tiny_folder), quantization=quantization)
    report = merge_adapter(model_section, adapter, tmp_path / "merged", device=CPU)
    base = load_tiny(quantization=quantization)
    before = logits(load_adapter(base, adapter), base.tokenizer)
    after = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32), base.tokenizer)
    difference = torch.cat([one - other for one, other in zip(before, after, strict=True)]).abs()
    assert report.gap.largest == pytest.approx(float(difference.max()), rel=1e-5)
    assert report.gap.mean == pytest.approx(float(difference.mean()), rel=1e-4)
    assert report.gap.positions == sum(map(len, before)) and report.held == quantization
    assert 0 < report.gap.mean < 0.1 * report.gap.spread  # the adapter itself moves them far more
    untuned = torch.cat(logits(load_tiny(quantization=quantization).model, base.tokenizer))
    assert (torch.cat(before) - untuned).abs().mean() > 3 * report.gap.mean
    assert json.loads((tmp_path / "merged" / MERGE_NOTE).read_text())["gap"]["largest"] == report.gap.largest
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert not list((tmp_path / "merged").glob("*.bin"))


@pytest.mark.parametrize("quantization", ["nf4", "int8", "fp8"])
def test_unpacked_weights_compute_what_packed_ones_did(load_tiny, quantization):
    packed = load_tiny(quantization=quantization)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = packed.model(input_ids=ids).logits
        dense = dequantized(packed, CPU)
        found = dense.model(input_ids=ids).logits
        untouched = load_tiny().model(input_ids=ids).logits
    assert dense.quantization == "none" and {p.dtype for p in dense.model.parameters()} == {torch.float32}
    tolerance = 0.1 if quantization == "fp8" else 1e-4  # fp8 rounds what the weights are multiplied with, too
    assert (found - expected).abs().mean() < tolerance
    assert (found - untouched).abs().mean() > 1e-3  # rounded weights, not the original ones


def test_merging_refuses_what_it_should(load_tiny, tiny_folder, tmp_path):
    adapter = trained(load_tiny, tmp_path / "adapter", AdapterSection(rank=4))
    (tmp_path / "there").mkdir()
    with pytest.raises(AdapterError, match="would be overwritten"):
        merge_adapter(ModelSection(base=str(tiny_folder)), adapter, tmp_path / "there", device=CPU)
    with pytest.raises(AdapterError, match="was trained on"):
        from fintune.models import write_tiny_model

        other = write_tiny_model(tmp_path / "other", seed=1)
        merge_adapter(ModelSection(base=str(other)), adapter, tmp_path / "merged", device=CPU)
    assert not (tmp_path / "merged").exists()


def test_the_gap_of_known_logits():
    one, two = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 2.5], [3.0, 4.0]])
    gap = logit_gap([one], [two])
    assert (gap.positions, gap.largest, gap.mean, gap.agreement) == (2, 4.0, 4.5 / 4, 0.5)
