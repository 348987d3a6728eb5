"""Chat templates for base models that have none, or whose own should not be used.

Enters: a tokenizer and ``model.chat_template``. Leaves: the same tokenizer with a template set; its vocabulary and its
special tokens are never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fintune.schema.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Works with any tokenizer: nothing but the text, and the end-of-sequence token after each answer.
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def apply_chat_template_override(
    tokenizer: PreTrainedTokenizerBase, override: str | None, source: str, *, needed: bool = True
) -> str:
    """Sets the tokenizer's chat template as the recipe asks and returns where it came from.

    Args:
        tokenizer: changed in place; only its ``chat_template``.
        override: ``plain``, ``chatml``, Jinja text, or None to keep the tokenizer's own.
        source: name of the base model, for messages.
        needed: False gives a tokenizer without a template ``plain`` in place of an error.

    Returns:
        ``own``, ``plain``, ``chatml`` or ``jinja``; ``none`` where there is no template and none is needed.
    """
    if override is None:
        if not tokenizer.chat_template and not needed:
            tokenizer.chat_template = _bos(tokenizer) + PLAIN
            return "none"
        if not tokenizer.chat_template:
            raise ModelError(
                f"The base model {source} has no chat template.", f"Set model.chat_template: {_usable(tokenizer)}."
            )
        return "own"
    if override == "plain":
        tokenizer.chat_template = _bos(tokenizer) + PLAIN
        return "plain"
    if override == "chatml":
        if not _knows_chatml(tokenizer):
            raise ModelError(
                f"The tokenizer of {source} has no {' and '.join(_CHATML_TOKENS)} tokens, which chatml needs.",
                "Set model.chat_template: plain.",
            )
        tokenizer.chat_template = _bos(tokenizer) + CHATML
        return "chatml"
    if "{{" not in override and "{%" not in override:
        raise ModelError(
            f"model.chat_template {override!r} is neither plain, chatml nor a Jinja template.",
            f"Set model.chat_template: {_usable(tokenizer)}.",
        )
    tokenizer.chat_template = override
    _require_renders(tokenizer)
    return "jinja"


def _usable(tokenizer: PreTrainedTokenizerBase) -> str:
    return "plain or chatml" if _knows_chatml(tokenizer) else "plain"


def _knows_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    vocabulary = tokenizer.get_vocab()
    return all(token in vocabulary for token in _CHATML_TOKENS)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template's opening: the BOS token when this tokenizer puts one before every text by itself."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return "{{ bos_token }}" if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""


def _require_renders(tokenizer: PreTrainedTokenizerBase) -> None:
    probe: list[dict[str, Any]] = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    try:
        tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception as exc:  # the template is the user's program and may fail in any way
        raise ModelError(
            f"model.chat_template does not render a question and an answer ({type(exc).__name__}: {exc}).",
            "Correct the Jinja text, or set model.chat_template: plain.",
        ) from exc
