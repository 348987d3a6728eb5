"""A tokenizer as GGUF metadata, such that llama.cpp splits every text into the same tokens.

Enters: a fast tokenizer of transformers. Leaves: ``GgufVocabulary``, or a ``ModelError`` where llama.cpp has no such
tokenizer. What decides is the definition in the tokenizer itself, not the model's name: the same vocabulary with
another rule for digits is another tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fintune.models.gguf_splits import DIGIT, GPT2, NAMES, Split
from fintune.schema.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Numbers of llama.cpp's enum llama_token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_SPACE = "\u2581"
_LEADING_SPACE = (
    "llama.cpp puts one space more before a text, or a part after a control token, that begins with one.",
)
_REMEDY = "Export it as merged, without GGUF."


@dataclass(frozen=True)
class GgufVocabulary:
    """What the keys below ``tokenizer.ggml`` hold.

    Attributes:
        model: gpt2 for merges of bytes, llama for SentencePiece.
        pre: llama.cpp's name of the rule that splits a text before merging.
        tokens: text of each token; bytes are written as GPT-2 writes them.
        types: kind of each token.
        merges: pairs in the order of merging; empty for llama.
        scores: of each token, higher merges first; empty for gpt2.
        special: token number by role: bos, eos, unk, pad, eot.
        add_bos: whether a BOS token is put before every text; likewise EOS after it.
        add_eos: see ``add_bos``.
        add_space_prefix: whether a space is put before every text.
        notes: what llama.cpp does otherwise, in sentences.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    notes: tuple[str, ...] = field(default=())


def gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, end_tokens: Sequence[int] = ()) -> GgufVocabulary:
    """Describes a tokenizer in llama.cpp's words.

    Args:
        tokenizer: a fast tokenizer.
        size: rows of the model's embedding; tokens it lacks are marked unused.
        end_tokens: where the model stops writing, as its generation configuration says.

    Raises:
        ModelError: it is no BPE tokenizer, or splits text in a way that llama.cpp does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} has no fast tokenizer, which GGUF is written from.", _REMEDY)
    stated: dict[str, Any] = json.loads(backend.to_str())
    if stated["model"].get("type") != "BPE":
        raise ModelError(f"The tokenizer is {stated['model'].get('type')}, and only BPE is written to GGUF.", _REMEDY)
    tokens, types = _tokens(stated, size)
    bos, eos = _added(tokenizer)
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "special": _special(tokenizer, end_tokens),
        "add_bos": bos,
        "add_eos": eos,
    }
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in stated["model"]["merges"]]
    if _is_sentencepiece(stated):
        return GgufVocabulary(
            model="llama",
            pre="default",
            merges=(),
            scores=_scores(tokens, merges),
            add_space_prefix=_space_prefix(stated),
            notes=_LEADING_SPACE if (stated.get("pre_tokenizer") or {}).get("type") == "Metaspace" else (),
            **common,
        )
    return GgufVocabulary(
        model="gpt2",
        pre=pre_tokenizer_name(stated),
        merges=tuple(" ".join(pair) for pair in merges),
        scores=(),
        add_space_prefix=False,
        notes=_notes(stated),
        **common,
    )


def pre_tokenizer_name(stated: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level BPE tokenizer splits a text.

    Args:
        stated: the tokenizer as the JSON of the tokenizers library.

    Raises:
        ModelError: llama.cpp does not split in this way.
    """
    patterns = tuple(_patterns(stated.get("pre_tokenizer") or {"type": "None"}))
    whole = bool(stated["model"].get("ignore_merges"))
    name = NAMES.get(Split(patterns, whole))
    if name is None:
        raise ModelError(
            f"llama.cpp has no tokenizer that splits text by {' then '.join(patterns) or 'nothing'}"
            f"{' and takes known words whole' if whole else ''}.",
            _REMEDY,
        )
    return name


def _patterns(part: Mapping[str, Any]) -> list[str]:
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            return [pattern for inner in parts for pattern in _patterns(inner)]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return [regex]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            return [regex]  # what lies between matches is dropped, but these patterns match every text in full
        case {"type": "Digits", "individual_digits": True}:
            return [DIGIT]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [GPT2] if part.get("use_regex", True) else []
    raise ModelError(f"llama.cpp has no pre-tokenizer like {json.dumps(part)[:120]}.", _REMEDY)


def _notes(stated: Mapping[str, Any]) -> tuple[str, ...]:
    normalizer = stated.get("normalizer")
    if normalizer is None:
        return ()
    if normalizer.get("type") == "NFC":
        return ("The tokenizer joins decomposed characters (NFC) first, and llama.cpp does not.",)
    raise ModelError(f"llama.cpp does not normalise text by {normalizer.get('type')}.", _REMEDY)


def _tokens(stated: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(size,) texts and kinds of all tokens."""
    model = stated["model"]
    texts = {number: text for text, number in model["vocab"].items()}
    kinds = {number: NORMAL for number in texts}
    if model.get("byte_fallback"):
        kinds |= {number: BYTE for number, text in texts.items() if len(text) == 6 and text.startswith("<0x")}
    for token in stated.get("added_tokens", ()):
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        kinds[unknown] = UNKNOWN
    if texts and max(texts) >= size:
        raise ModelError(f"The tokenizer has {max(texts) + 1} tokens, and the model {size}.", "Use its own tokenizer.")
    return (
        tuple(texts.get(number, f"[PAD{number}]") for number in range(size)),
        tuple(kinds.get(number, UNUSED) for number in range(size)),
    )


def _is_sentencepiece(stated: Mapping[str, Any]) -> bool:
    return bool(stated["model"].get("byte_fallback")) and "byte" not in json.dumps(stated.get("pre_tokenizer")).lower()


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """(V,) what llama.cpp picks the next merge by: the earlier a token is made by the list of merges, the higher."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    return tuple(float(-first.get(token, len(merges))) for token in tokens)


def _space_prefix(stated: Mapping[str, Any]) -> bool:
    """Whether SentencePiece's mark of a space is put before a text."""
    text = json.dumps(stated.get("normalizer"), ensure_ascii=False)
    metaspace = stated.get("pre_tokenizer") or {}
    if metaspace.get("type") == "Metaspace":
        return bool(metaspace.get("prepend_scheme", "always") != "never")
    if metaspace or _SPACE not in text:
        raise ModelError(f"llama.cpp has no pre-tokenizer like {json.dumps(metaspace)[:120]}.", _REMEDY)
    return '"Prepend"' in text


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    ids: list[int] = tokenizer("a")["input_ids"]
    return (
        tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    )


def _special(tokenizer: PreTrainedTokenizerBase, end_tokens: Sequence[int]) -> dict[str, int]:
    known: Any = tokenizer
    roles = {"bos": known.bos_token_id, "eos": known.eos_token_id, "unk": known.unk_token_id, "pad": known.pad_token_id}
    others = [token for token in end_tokens if token != known.eos_token_id]
    roles["eot"] = others[0] if others else None
    return {role: int(number) for role, number in roles.items() if number is not None}
