"""``fintune gpt``: a GPT that has read nothing yet, as a folder that recipes train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fintune.cli.output import Output

gpt_app = typer.Typer(
    name="gpt", help="Make a GPT of your own, to be pretrained from scratch by a recipe.", no_args_is_help=True
)


@gpt_app.callback()
def _gpt() -> None:
    """Without this, typer would take the only command for the whole group."""


@gpt_app.command()
def new(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must not exist.")],
    choices: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Single choices, such as qk_norm=false.")
    ] = None,
    kind: Annotated[
        Literal["optimised", "baseline"], typer.Option(help="baseline is GPT-2's architecture.")
    ] = "optimised",
    size: Annotated[Literal["tiny", "124m", "350m"], typer.Option(help="Layers and width.")] = "124m",
    tokenizer: Annotated[str, typer.Option(help="Base model whose tokenizer it reads with.")] = "smollm2-135m",
    train_tokenizer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Train a tokenizer on this text instead: file, folder or table.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of that table with the text.")] = "text",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the trained tokenizer.")] = 8192,
    seed: Annotated[int, typer.Option(help="Decides the weights.")] = 0,
) -> None:
    """Write an untrained GPT with its tokenizer; a recipe names the folder as model.base."""
    from fintune.models.gpt.making import new_gpt

    output: Output = context.obj
    with output.quiet_stdout():
        made = new_gpt(
            folder, kind=kind, size=size, tokenizer=tokenizer, train_tokenizer_on=train_tokenizer,
            text_column=text_column, vocab_size=vocab_size, seed=seed, changes=_fields(choices or ()),
        )  # fmt: skip
    output.say(
        f"{made.kind} GPT: {made.parameters:,} weights, {made.layers} layers of width {made.width}, "
        f"{made.vocabulary:,} tokens, texts of {made.context} tokens",
        f"written  {made.folder}",
        f"train    fintune train gpt-scratch model.base={made.folder}",
    )
    output.emit(made)


def _fields(words: list[str] | tuple[()]) -> dict[str, Any]:
    import yaml

    if wrong := [word for word in words if "=" not in word]:
        raise typer.BadParameter(f"{wrong[0]} is not FIELD=VALUE.")
    pairs = (word.split("=", 1) for word in words)
    return {name.strip(): yaml.safe_load(value) for name, value in pairs}
