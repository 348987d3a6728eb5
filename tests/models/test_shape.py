"""Shapes of models unlike Llama: what is estimated of them is what peft counts, or what the run will do."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

import fintune.api
from fintune.models.adapters import count_trainable
from fintune.models.fast_layers import fast_layers
from fintune.models.plausible import require_plausible
from fintune.models.shape import shape_of
from fintune.schema.errors import AdapterError, ModelError
from fintune.schema.recipe import AdapterSection
from fintune.training.utilization import model_flops

SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SMALL, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
PER_LAYER = {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
GEMMA_3N = transformers.Gemma3nTextConfig(**TEXT, **PER_LAYER, laurel_rank=4)
MAMBA = transformers.MambaConfig(**SMALL, state_size=4)
GPT2 = transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
LLAMA = transformers.LlamaConfig(**TEXT, tie_word_embeddings=False)


@pytest.fixture
def estimated(tmp_path):
    def estimate(config, gpu="H100", quantization="none", **adapter):
        config.save_pretrained(tmp_path)
        recipe = {
            "name": "x",
            "model": {"base": str(tmp_path), "quantization": quantization},
            "adapter": adapter,
            "data": {"tasks": [{"name": "tfns"}]},
        }
        return fintune.api.estimate(recipe, gpu=gpu, data=False)

    return estimate


@pytest.mark.parametrize(
    "config, adapter",
    [
        (MAMBA, {"targets": ["in_proj", "x_proj"]}),
        (GEMMA_3N, {}),
        (GPT2, {}),
        (LLAMA, {"targets": ["q_proj", "lm_head"]}),
        (LLAMA, {"targets": ["layers.0.self_attn.q_proj"]}),
    ],
    ids=["no heads", "widths by layer", "transposed", "the head", "one layer's"],
)
def test_trained_numbers_are_those_of_peft_for_models_unlike_llama(estimated, config, adapter):
    trainable = count_trainable(config, AdapterSection(**adapter))[0]
    found = estimated(config, **adapter)
    assert found.trainable_parameters == trainable > 0
    assert found.memory.optimizer == 8 * trainable, "the arithmetic agrees with peft"
    assert any("no attention heads" in note for note in found.notes) == (config is MAMBA)


def test_the_shape_of_lists_and_of_no_heads():
    uneven = transformers.Gemma3nTextConfig(**{**TEXT, "intermediate_size": [128, 256]}, **PER_LAYER)
    shape = shape_of(uneven)
    assert shape.intermediate == 256 and shape.gated
    mamba = shape_of(MAMBA)
    assert mamba.heads == mamba.key_value_heads == 0 and mamba.matrices
    with pytest.raises(ModelError, match="mamba model names no attention heads"):
        model_flops(mamba, torch.nn.Module())
    with pytest.raises(AdapterError, match=r"on out_proj of a mamba model\..*others, of dt_proj, in_proj, x_proj\."):
        count_trainable(MAMBA, AdapterSection())


def test_four_bits_take_transposed_weights_and_fp8_leaves_them(estimated):
    dense, four, eight = (estimated(GPT2, quantization=kind).memory.weights for kind in ("none", "nf4", "fp8"))
    assert four < 0.7 * dense and eight == dense


@pytest.mark.parametrize("card", ["A100", "T4"])
def test_fp8_is_refused_where_the_run_would_refuse_it(estimated, card):
    assert estimated(LLAMA, "L4", "fp8").tokens_per_second
    with pytest.raises(ModelError, match=f"fp8 needs .* 8.9.* the {card} is older. Set model.quantization=nf4"):
        estimated(LLAMA, card, "fp8")


def test_the_path_is_the_one_that_the_loaded_model_takes(estimated):
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    pictures = transformers.Gemma3Config(
        text_config=TEXT, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    for config in (pictures, LLAMA, transformers.Gemma3TextConfig(**TEXT)):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
        assert (estimated(config).policy is None) == isinstance(fast_layers(model, torch.float32), str)


def test_only_counts_of_modules_are_held_against_the_weights(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    stated = {"num_hidden_layers": 1, "num_experts": 2, "n_layer": 1, "num_experts_per_tok": 2}
    config = {**json.loads(GEMMA_3N.to_json_string()), **stated, "num_kv_shared_layers": 0, "max_window_layers": 28}
    require_plausible(tmp_path, config)
    for key in ("num_hidden_layers", "num_local_experts", "n_layers", "n_routed_experts", "encoder_layers"):
        with pytest.raises(ModelError, match=f"states {key} 4000000"):
            require_plausible(tmp_path, {"text_config": {key: 4_000_000}})
