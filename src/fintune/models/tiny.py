"""Tiny models with random weights, for tests and dry runs: real architectures, a real tokenizer, no network.

Enters: a folder and the name of a model family. Leaves: that folder in Hugging Face layout (config, safetensors,
tokenizer with a chat template), loadable like any other local base model. It has learnt nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.models.quiet import no_progress_bars
from fintune.models.templates import CHATML

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Family = Literal["llama", "qwen2", "mistral", "gemma2", "gemma3"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "mistral", "gemma2", "gemma3")

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Enough repeated finance English for a few hundred merges; the tokenizer only has to be real, not good.
_CORPUS = (
    "What is the sentiment of this news? Please choose an answer from negative, neutral or positive. Text: Answer:",
    "Sentiment of this financial news (negative, neutral or positive)?",
    "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in the corresponding period of 2007.",
    "The company's net sales decreased by 12 percent in the third quarter, below analysts' estimates.",
    "Shares of the bank fell 3.4% after the board cut its dividend and warned of weaker demand.",
    "The agreement was signed in Helsinki; its value was not disclosed.",
    "$AAPL upgraded to buy, price target raised to $210; earnings beat expectations.",
    "system user assistant You are a helpful assistant that reads market reports.",
)


def tiny_tokenizer(vocab_size: int = 512, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the spot; any text round-trips.

    Like SmolLM2's, its pad token is its end-of-turn token, so code that confuses the two fails in tests.

    Args:
        vocab_size: upper limit of the vocabulary, at least 256 bytes and three special tokens.
        chat_template: Jinja template, or None for a base model that has none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(family: Family = "llama", *, sliding_window: int | None = None, layers: int = 2) -> PreTrainedConfig:
    """The configuration of a tiny model; ``sliding_window`` applies to mistral, gemma2, gemma3 and qwen2."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        # Five times the usual spread: with 0.02 attention hardly matters and a wrong mask would pass a test.
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if family == "llama":
        if sliding_window is not None:
            raise ValueError("llama has no sliding window; use mistral, qwen2, gemma2 or gemma3")
        return transformers.LlamaConfig(**shape)
    if family == "mistral":
        return transformers.MistralConfig(**shape, sliding_window=sliding_window)
    if family == "qwen2":
        del shape["head_dim"]  # Qwen2 derives it
        window: dict[str, Any] = {"use_sliding_window": False}
        if sliding_window is not None:
            window = {"use_sliding_window": True, "sliding_window": sliding_window, "max_window_layers": layers // 2}
        return transformers.Qwen2Config(**shape, **window)
    alternating = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
    shape |= {"query_pre_attn_scalar": 16, "sliding_window": sliding_window or 1024, "layer_types": alternating}
    gemma: Callable[..., PreTrainedConfig] = (
        transformers.Gemma2Config if family == "gemma2" else transformers.Gemma3TextConfig
    )
    return gemma(**shape)


def write_tiny_model(
    path: str | Path,
    family: Family = "llama",
    *,
    sliding_window: int | None = None,
    seed: int = 0,
    layers: int = 2,
    chat_template: str | None = CHATML,
) -> Path:
    """Writes a tiny random causal language model with its tokenizer to ``path`` and returns the path.

    Hidden size 64, 4 heads, 2 key-value heads, vocabulary 512, fp32; random weights for tests and dry runs only.

    Args:
        path: folder to create; existing files of the same names are overwritten.
        family: architecture.
        sliding_window: attention window in tokens, for the families that have one.
        seed: seeds the weights; torch's global generator is left as it was.
        layers: number of decoder layers.
        chat_template: Jinja template of the tokenizer, ChatML by default; None leaves it without one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            tiny_config(family, sliding_window=sliding_window, layers=layers), dtype=torch.float32
        )
    with no_progress_bars():
        model.save_pretrained(folder)
    tiny_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder
