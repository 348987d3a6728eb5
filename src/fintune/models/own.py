"""Architectures of our own, made known to ``transformers`` once a model is read: importing them takes seconds."""

from __future__ import annotations


def know_own_models() -> None:
    """Lets ``AutoConfig`` and ``AutoModelForCausalLM`` read what ``fintune.models.gpt`` wrote."""
    from fintune.models.gpt.files import register

    register()
