"""An adapter merged into its base: what the folder computes, and how far it is from what the adapter did."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tests.models.test_hand_over import peft_logits, randomised
from transformers import AutoModelForCausalLM

from fintune.models import attach_adapter, load_base, save_adapter
from fintune.models.adapters import peft_quiet
from fintune.models.merging import TEXTS, merge_and_load
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import AdapterSection, ModelSection

PROMPTS = [list(range(3, 40)), list(range(50, 60))]


def section_of(base, **more):
    return ModelSection(base=base.files.source, **more)


@pytest.fixture
def adapter(load_tiny, tmp_path):
    def make(**section):
        base = load_tiny(**section)
        model = randomised(attach_adapter(base, AdapterSection(rank=3, alpha=7), seed=0))
        return save_adapter(model, base.tokenizer, tmp_path / "adapter", base.files)

    return make


def test_merging_into_whole_weights_changes_rounding_alone(load_tiny, adapter, tmp_path):
    folder = adapter()
    base = load_tiny()
    merged, gap = merge_and_load(base, section_of(base), folder, tmp_path / "merged", PROMPTS)
    with torch.no_grad():
        found = merged.model(input_ids=torch.tensor(PROMPTS[:1])).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=torch.tensor(PROMPTS[:1]))
    torch.testing.assert_close(found, peft_logits(load_tiny, folder)[:, : found.shape[1]], atol=1e-4, rtol=1e-4)
    assert torch.equal(again.logits, found)
    assert gap.positions == 2 and 0 < gap.mean <= gap.largest < 1e-4 < gap.spread and gap.agreement == 1
    assert merged.files.content_hash != base.files.content_hash and merged.tokenizer.chat_template


def test_the_gap_of_a_base_that_is_quantised_anew_is_measured(load_tiny, adapter, tmp_path):
    folder = adapter(quantization="nf4")
    base = load_tiny(quantization="nf4")
    merged, gap = merge_and_load(base, section_of(base, quantization="nf4"), folder, tmp_path / "merged", PROMPTS)
    assert merged.quantization == "nf4"
    with peft_quiet(), torch.no_grad():
        before = PeftModel.from_pretrained(load_tiny(quantization="nf4").model, str(folder)).eval()
        expected = [before(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
        found = [merged.model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
    differences = torch.stack([(a - b).abs() for a, b in zip(expected, found, strict=True)])
    assert gap.largest == pytest.approx(differences.max().item()) and gap.mean == pytest.approx(
        differences.mean().item()
    )
    assert gap.mean > 0.01, "four bits cannot hold the sum"


def test_a_checkpoint_stored_in_four_bits_is_merged_as_what_it_stands_for(load_tiny, adapter, tmp_path):
    load_tiny(quantization="nf4").model.save_pretrained(tmp_path / "stored")
    load_tiny().tokenizer.save_pretrained(tmp_path / "stored")
    stored = load_base(ModelSection(base=str(tmp_path / "stored")), device=torch.device("cpu"), for_training=True)
    model = randomised(attach_adapter(stored, AdapterSection(rank=3, alpha=7), seed=0))
    folder = save_adapter(model, stored.tokenizer, tmp_path / "own", stored.files)
    again = load_base(ModelSection(base=str(tmp_path / "stored")), device=torch.device("cpu"), for_training=True)
    merged, gap = merge_and_load(again, section_of(again), folder, tmp_path / "merged", PROMPTS)
    assert merged.quantization == "nf4" and gap.mean > 0
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        expected = model.eval()(input_ids=torch.tensor(PROMPTS[:1])).logits
        torch.testing.assert_close(whole(input_ids=torch.tensor(PROMPTS[:1])).logits, expected, atol=1e-3, rtol=1e-3)


def test_plain_texts_have_no_prompts_to_compare_on(load_tiny, adapter, tmp_path):
    folder = adapter()
    base = load_tiny()
    _, gap = merge_and_load(base, section_of(base), folder, tmp_path / "merged", [[], []])
    assert gap.positions == len(TEXTS)


def test_all_weights_are_no_adapter_to_merge(load_tiny, tmp_path):
    base = load_tiny()
    folder = save_adapter(base.model, base.tokenizer, tmp_path / "whole", base.files)
    with pytest.raises(AdapterError, match="nothing to merge"):
        merge_and_load(load_tiny(), section_of(base), folder, tmp_path / "merged", PROMPTS)
