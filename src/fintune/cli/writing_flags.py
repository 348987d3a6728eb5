"""The options of ``fintune generate`` and ``fintune chat``: how answers are written.

Enters: a command with a parameter ``flags: WritingFlags``. Leaves: the same command with one option for each field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fintune.cli.options import spread

if TYPE_CHECKING:
    from fintune.serving.writing import WritingOptions

_PANEL = "How answers are written"


@dataclass(frozen=True)
class WritingFlags:
    """What the command line says about answers; the defaults are those of ``fintune.answer``."""

    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", rich_help_panel=_PANEL)] = 128
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt, template included; longer ones lose their beginning. 512 in generate, in chat what "
            "the model's window holds.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=_PANEL)] = 0.2
    top_p: Annotated[
        float, typer.Option(help="Share of the probability that is drawn from.", rich_help_panel=_PANEL)
    ] = 0.7
    top_k: Annotated[int, typer.Option(help="Most tokens that are drawn from; 0: all.", rich_help_panel=_PANEL)] = 50
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens that have occurred become less likely.", rich_help_panel=_PANEL)
    ] = 1.2
    no_repeat_ngram_size: Annotated[
        int, typer.Option(help="No such many tokens in a row occur twice; 0 allows it.", rich_help_panel=_PANEL)
    ] = 3
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same answer; generate: 0, chat: a new one.", rich_help_panel=_PANEL)
    ] = None
    chat_template: Annotated[
        bool, typer.Option(help="Ask in the model's chat template, where it has one.", rich_help_panel=_PANEL)
    ] = True
    cache: Annotated[
        bool, typer.Option(help="Keep keys and values; without, to measure what that saves.", rich_help_panel=_PANEL)
    ] = True
    quantization: Annotated[
        Literal["none", "nf4", "int8", "fp8"] | None, typer.Option(help="Else as trained.", rich_help_panel=_PANEL)
    ] = None

    def options(self, *, max_prompt_tokens: int | None = None) -> WritingOptions:
        """The options, with a limit for prompts where none was given; a missing seed is 0.

        Raises:
            DataError: one of them is out of range.
        """
        from fintune.inference.choosing import Sampling
        from fintune.serving.writing import WritingOptions

        sampling = Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            seed=self.seed or 0,
        )
        most = self.max_prompt_tokens if self.max_prompt_tokens is not None else max_prompt_tokens
        return WritingOptions(self.max_new_tokens, most, sampling, self.chat_template, self.cache)


def takes_writing(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter ``flags`` of a command by one option for each field of ``WritingFlags``."""
    return spread(command, "flags", WritingFlags)
