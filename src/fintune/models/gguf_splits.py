"""How a byte-level BPE tokenizer splits a text before merging, under the names of the GGUF key ``tokenizer.ggml.pre``.

Enters: such a name and a tokenizer. Leaves: the tokenizer with this rule. Names, patterns and which rules take known
words whole are those of llama.cpp's ``src/llama-vocab.cpp``; where it approximates a tokenizer's own pattern and quotes
it in a comment, the quoted one is used. A file does not state how text is normalised, and llama.cpp does not normalise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.errors import ModelError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

log = logging.getLogger(__name__)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _WORDS.replace("NUMBERS", r"\p{N}{1,3}"), _WORDS.replace("NUMBERS", DIGIT)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PARTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_PARTS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_PARTS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNSTATED = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Split:
    """A rule that splits texts.

    Attributes:
        patterns: regular expressions; each splits what the one before it left into its matches and what lies between.
        whole: a piece that is in the vocabulary is taken whole, before any merge.
    """

    patterns: tuple[str, ...]
    whole: bool = False


_NAMES: dict[Split, str] = {
    Split((GPT2,)): "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat modern-bert mellum a.x-4.0 granite-docling",
    Split((DIGIT, GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    Split((LLAMA3,), whole=True): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0 jina-v5-nano",
    Split((LLAMA3,)): "dbrx smaug-bpe glm4 chatglm-bpe",
    Split((QWEN2,)): "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open kormo f2llmv2",
    Split((_QWEN35,)): "qwen35",
    Split((_TEKKEN,), whole=True): "tekken",
    Split((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Split(_UNSTATED): "default",
}
SPLITS: dict[str, Split] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
"""The rule behind each name."""
NAMES: dict[Split, str] = {rule: names.split()[0] for rule, names in _NAMES.items()}
"""The name that each rule is written under."""


def split_as_stated(tokenizer: Any, metadata: Mapping[str, Any], file: Path) -> None:
    """Makes a tokenizer that was read from a GGUF file split texts as the file says; others than BPE are left alone.

    Args:
        tokenizer: a fast tokenizer of transformers; changed in place.
        metadata: what ``check_gguf`` gives.
        file: the GGUF file, for messages.

    Raises:
        ModelError: the file names a rule that is not known here.
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    name = metadata.get("tokenizer.ggml.pre") or "default"
    if name not in SPLITS:
        raise ModelError(
            f"{file} splits text by the rule {name!r} (tokenizer.ggml.pre), which is not known here.",
            "Use the safetensors version of the model.",
        )
    if name == "default":
        log.warning(
            "%s does not say by which rule its model splits text (tokenizer.ggml.pre); llama.cpp's default is used, "
            "and a newer conversion of the model may read texts better.",
            file,
        )
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = _pre_tokenizer(SPLITS[name])
    backend.model.ignore_merges = SPLITS[name].whole


def _pre_tokenizer(rule: Split) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    *first, last = rule.patterns
    plain = last == GPT2  # the pattern that ByteLevel has built in
    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == DIGIT
        else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in (first if plain else rule.patterns)
    ]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)])
