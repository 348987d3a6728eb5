"""How long a text a model can read.

Enters: a configuration of ``transformers``. Leaves: a number of tokens, or None where the configuration names none.
"""

from __future__ import annotations

from typing import Any

# Architectures with a learned vector for each position: beyond them there is nothing to look up.
_LEARNED = frozenset({"biogpt", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt"})


def context_window(config: Any) -> int | None:
    """Most tokens that the configuration promises, prompt and answer together."""
    most = getattr(_text(config), "max_position_embeddings", None)
    return int(most) if most else None


def learned_positions(config: Any) -> int | None:
    """Most tokens of a model with learned positions, a hard limit; None for a model of any other kind."""
    text = _text(config)
    is_learned = text.model_type in _LEARNED or getattr(text, "positions", None) == "learned"
    return context_window(text) if is_learned else None


def readable_length(config: Any, wanted: int) -> int:
    """``wanted`` tokens, or as many as the model has learned positions for."""
    most = learned_positions(config)
    return wanted if most is None else min(wanted, most)


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
