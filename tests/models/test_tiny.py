import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fintune.models.tiny import FAMILIES, write_tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_with_a_tokenizer_that_round_trips_and_formats_chats(tmp_path, family):
    folder = write_tiny_model(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Größe: profit rose 12% 🙂\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)
    assert len(tokenizer) <= model.config.vocab_size
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.pad_token == tokenizer.eos_token  # the trap SmolLM2 sets


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3"])
def test_the_sliding_window_matters(tmp_path, family):
    torch.manual_seed(0)
    ids = torch.randint(3, 500, (1, 24))
    narrow = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "n", family, sliding_window=4))
    wide = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "w", family, sliding_window=500))
    difference = (narrow(input_ids=ids).logits - wide(input_ids=ids).logits).abs().amax(-1)[0]
    assert difference[:4].max() < 1e-4
    assert difference[8:].max() > 1e-2


def test_the_seed_decides_the_weights_and_global_randomness_is_untouched(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (write_tiny_model(tmp_path / n, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(torch.rand(3), expected)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, same, other)]
    assert weights[0] == weights[1] != weights[2]


def test_llama_has_no_window_and_unknown_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sliding window"):
        write_tiny_model(tmp_path, sliding_window=8)
    with pytest.raises(ValueError, match="choose from"):
        write_tiny_model(tmp_path, "mamba")
