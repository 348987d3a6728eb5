"""GGUF files, read by llama.cpp itself: the same tokens and the same likelihoods as transformers computes."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from fintune.models.export.gguf_file import write_gguf
from fintune.models.export.gguf_layout import layout_of
from fintune.models.export.gguf_vocabulary import gguf_vocabulary
from fintune.models.export.kept import kept_share
from fintune.models.export.llama_cpp import LlamaCpp, has_llama_cpp, quantize, tokens_of
from fintune.models.gguf_splits import LLAMA3, QWEN2
from fintune.models.tiny import tiny_config, tiny_tokenizer
from fintune.schema.errors import ModelError

needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="cyllama, which brings llama.cpp, is not installed")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: tiny_config("llama"),
    "llama3-rope": lambda: transformers.LlamaConfig(**shape(), rope_parameters=LLAMA3_ROPE),
    "linear-rope": lambda: transformers.LlamaConfig(
        **shape(), rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "biases-untied": lambda: transformers.LlamaConfig(**shape() | {"tie_word_embeddings": False}, attention_bias=True),
    "mistral": lambda: tiny_config("mistral"),
    "qwen2": lambda: tiny_config("qwen2"),
    "qwen3": lambda: transformers.Qwen3Config(**shape() | {"head_dim": 32}),
}


def shape() -> dict:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = tiny_config("llama")
    more = ("num_key_value_heads", "max_position_embeddings", "initializer_range", "tie_word_embeddings")
    return {name: getattr(config, name) for name in (*names, *more)} | {"eos_token_id": 2, "bos_token_id": 1}


def write_model(folder: Path, config, tokenizer=None) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms are ones and biases zeros at first, and would hide a wrong order
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def likelihoods(folder: Path, prompt: list[int], choices: list[list[int]]) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scores = []
    for choice in choices:
        with torch.no_grad():
            logs = model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
        scores.append(sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(choice)))
    return scores


@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_does(name, tmp_path):
    folder = write_model(tmp_path / "model", MODELS[name]())
    prompt = [5 + 7 * i % 500 for i in range(90)]
    choices = [[20, 30, 2], [41, 2], [300, 12, 99, 2]]
    found = LlamaCpp(write_gguf(folder, tmp_path / "f16.gguf", "f16").path, context=256, threads=1)
    expected = likelihoods(folder, prompt, choices)
    assert found.choice_log_likelihoods(prompt, choices) == pytest.approx(expected, abs=0.05)
    assert np.ptp(expected) > 2  # far apart, so that a tolerance of 0.05 means something


@needs_llama_cpp
def test_packed_kinds_stay_near_and_k_quants_come_from_llama_cpp(tmp_path):
    folder = write_model(tmp_path / "model", tiny_config("llama"))
    prompt, choices = [5 + 7 * i % 500 for i in range(60)], [[20, 30, 2], [41, 2]]
    expected = np.array(likelihoods(folder, prompt, choices))
    wide = write_gguf(folder, tmp_path / "f16.gguf", "f16").path
    errors = {}
    for kind in ("q8_0", "q5_1", "q4_1", "q4_0"):
        written = write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        assert written.tensors == ({"q8_0": 15, "f32": 5} if kind == "q8_0" else {"q8_0": 1, kind: 14, "f32": 5})
        found = LlamaCpp(written.path, context=256, threads=1).choice_log_likelihoods(prompt, choices)
        errors[kind] = float(np.abs(np.array(found) - expected).mean())
    assert errors["q8_0"] < 0.3 and errors["q8_0"] < min(errors["q4_0"], errors["q4_1"])
    quantize(wide, tmp_path / "k.gguf", "q4_k_m", threads=1)
    assert (tmp_path / "k.gguf").stat().st_size < wide.stat().st_size
    assert len(LlamaCpp(tmp_path / "k.gguf", context=256, threads=1).choice_log_likelihoods(prompt, choices)) == 2


def digits():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def words(regex: str):
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


TOKENIZERS = {
    "gpt-2": (None, False, None),
    "smollm": (digits, False, None),
    "llama-bpe": (lambda: words(LLAMA3), True, None),
    "dbrx": (lambda: words(LLAMA3), False, None),
    "qwen2": (lambda: words(QWEN2), False, normalizers.NFC()),
}


def tokenizer_like(name: str):
    split, whole, normalizer = TOKENIZERS[name]
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    if split is not None:
        backend.pre_tokenizer = split()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.model.ignore_merges = whole
    return tokenizer


@functools.cache
def opened(name: str, folder: Path) -> tuple:
    write_model(folder / name, tiny_config("llama", layers=1), tokenizer_like(name))
    written = write_gguf(folder / name, folder / f"{name}.gguf", "f16")
    assert written.pre_tokenizer == name
    return LlamaCpp(written.path), AutoTokenizer.from_pretrained(folder / name)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


LETTERS = "aeinrstEUR mn's I'LL'd  \n\n\t\r0123456789.,%-+$€£()/:;!?<>|_&\"“”—éüßЖа中国股🚀½٣한\u00a0\u3000"


@needs_llama_cpp
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_splits_any_text_as_the_tokenizer_does(name, shared_folder):
    found, tokenizer = opened(name, shared_folder)

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.one_of(st.text(LETTERS, max_size=60), st.text(st.characters(max_codepoint=0x2FF, exclude_characters="\0")))
    )
    def same(text: str) -> None:
        text = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        assert found.tokens(text) == tokenizer(text, split_special_tokens=True)["input_ids"]

    same()
    marked = "<|im_start|>user\nUp 3%?<|im_end|>\n"
    assert found.tokens(marked, control=True) == tokenizer(marked)["input_ids"]
    assert found.tokens(marked) == tokenizer(marked, split_special_tokens=True)["input_ids"]


@needs_llama_cpp
def test_tokens_are_the_same_in_a_process_of_their_own(shared_folder):
    found, _ = opened("smollm", shared_folder)
    texts = ["Up 12.5%\n\n in 2007", ""]
    assert tokens_of(shared_folder / "smollm.gguf", texts) == [found.tokens(text) for text in texts]
    (shared_folder / "broken.gguf").write_bytes((shared_folder / "smollm.gguf").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot read .*broken.gguf"):
        tokens_of(shared_folder / "broken.gguf", texts)


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = words(r"\w+|\s+")
    with pytest.raises(ModelError, match="llama.cpp has no tokenizer that splits text by"):
        gguf_vocabulary(tokenizer, 512)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="no pre-tokenizer like"):
        gguf_vocabulary(tokenizer, 512)
    with pytest.raises(ModelError, match="has 512 tokens, and the model 100"):
        gguf_vocabulary(tiny_tokenizer(), 100)


def test_what_llama_cpp_does_not_compute_is_refused_or_said():
    with pytest.raises(ModelError, match="gemma2 model is not written to GGUF here"):
        layout_of(tiny_config("gemma2"))
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(ModelError, match="RoPE of the kind dynamic"):
        layout_of(transformers.LlamaConfig(**shape(), rope_parameters=rope))
    layout = layout_of(tiny_config("mistral", sliding_window=64))
    assert layout.context == 64 and "no sliding window" in layout.notes[0]


def test_a_failed_file_leaves_nothing_and_the_old_one_stays(tmp_path):
    folder = write_model(tmp_path / "model", tiny_config("llama", layers=1))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[0] = 1.0
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(folder)
    target = tmp_path / "out.gguf"
    target.write_text("old")
    with pytest.raises(ModelError, match="holds 1e.06, which does not fit into f16"):
        write_gguf(folder, target, "f16")
    assert target.read_text() == "old" and not list(tmp_path.glob(".*"))


def test_an_update_below_the_step_of_the_grid_is_measured_as_lost(tmp_path):
    import gguf

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    write_model(base, tiny_config("llama"))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    matrices = [p for p in model.parameters() if p.dim() == 2]
    for parameter in matrices:
        packed = gguf.quantize(parameter.detach().numpy(), kind)
        parameter.data = torch.from_numpy(gguf.dequantize(packed, kind).reshape(parameter.shape).copy())
    model.save_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    for parameter in matrices[1:]:  # all but the embedding, which no adapter changes
        parameter.data += 0.002 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tuned)
    tiny_tokenizer().save_pretrained(tuned)
    layout = layout_of(tiny_config("llama"))
    kept = {
        kind: kept_share(write_gguf(tuned, tmp_path / f"{kind}.gguf", kind).path, layout, tuned, base)
        for kind in ("f16", "q8_0", "q4_1")
    }
    assert kept["f16"] == pytest.approx(1, abs=0.01) and kept["q8_0"] == pytest.approx(1, abs=0.1)
    assert kept["q4_1"] < 0.3
    assert kept_share(tmp_path / "f16.gguf", layout, tuned, tuned) is None
