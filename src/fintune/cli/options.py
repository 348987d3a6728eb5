"""Arguments and options that several commands have, alone or as the fields of one dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or path to your own YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as training.epochs=2."),
]
OutputDir = Annotated[Path | None, typer.Option(help="Run directory; default runs/<name>.")]
Resume = Annotated[bool, typer.Option(help="Go on from the newest checkpoint, or start afresh in <run>-2.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def spread(command: Callable[..., None], name: str, kind: Any) -> Callable[..., None]:
    """Replaces the parameter ``name`` of a command by one option for each field of the dataclass ``kind``."""
    signature = inspect.signature(command)
    own = get_type_hints(command, include_extras=True)
    options = get_type_hints(kind, include_extras=True)

    @wraps(command)
    def with_options(**given: Any) -> None:
        together = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given, **{name: together})

    parameters = [
        parameter.replace(annotation=own[key]) for key, parameter in signature.parameters.items() if key != name
    ]
    parameters += [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
        )
        for field in fields(kind)
    ]
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
