"""``fintune adapters``: named adapters, kept apart from the runs they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune.cli.output import Output

adapters_app = typer.Typer(
    name="adapters",
    help="Keep adapters by name and version: list, inspect, compare, combine, merge. Names stand for paths everywhere.",
    no_args_is_help=True,
)

Reference = Annotated[str, typer.Argument(metavar="NAME", help="NAME for its newest version, or NAME@VERSION.")]
Anything = Annotated[str, typer.Argument(metavar="ADAPTER", help="Name, run directory or adapter folder.")]


@adapters_app.command()
def add(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory or adapter folder; it is copied.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name; the next version of it is made.")],
    parent: Annotated[
        str | None, typer.Option(help="Named adapter that its training began from; else as its recipe says.")
    ] = None,
) -> None:
    """Copy the adapter of a run into the registry, with its lineage."""
    from fintune import adapters

    output: Output = context.obj
    record = adapters.add(source, name, parent=parent)
    output.say(f"added    {record.reference}")
    if record.left_out:
        output.say(f"left out {', '.join(record.left_out)}: no part of an adapter")
    output.emit(record)


@adapters_app.command("list")
def list_adapters(context: typer.Context) -> None:
    """List all versions of all named adapters."""
    from fintune import adapters
    from fintune.cli.adapter_tables import records_table

    output: Output = context.obj
    found = adapters.records()
    output.say(records_table(found) if found else "No adapter has a name yet: fintune adapters add RUN NAME")
    output.emit(found)


@adapters_app.command()
def show(context: typer.Context, name: Reference) -> None:
    """Show base, rank, targets, size of the update by layer type, and lineage."""
    from fintune import adapters
    from fintune.cli.adapter_tables import details

    output: Output = context.obj
    found = adapters.show(name)
    output.say(*details(found))
    output.emit(found)


@adapters_app.command()
def diff(
    context: typer.Context,
    first: Anything,
    second: Anything,
    modules: Annotated[int, typer.Option(min=0, help="Modules to list, the most different first.")] = 10,
) -> None:
    """Compare two adapters of one base: settings, and how far their weight updates are apart."""
    from fintune import adapters
    from fintune.cli.adapter_tables import difference

    output: Output = context.obj
    found = adapters.diff(first, second)
    output.say(*difference(found, modules))
    output.emit(found)


@adapters_app.command()
def combine(
    context: typer.Context,
    references: Annotated[list[str], typer.Argument(metavar="NAME...", help="Two or more named adapters.")],
    name: Annotated[str, typer.Option("--as", help="Name of the combination.")],
    method: Annotated[
        Literal["linear", "svd", "cat", "ties", "dare_linear", "dare_ties"],
        typer.Option(help="cat, and svd at full rank, are the weighted sum; linear only comes near it."),
    ] = "linear",
    weights: Annotated[str | None, typer.Option(help="Separated by commas; equal shares when left out.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the result, for svd.")] = None,
    density: Annotated[float, typer.Option(help="Share kept, for ties and dare.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Decides what dare drops.")] = 17,
) -> None:
    """Make one adapter of several of one base, by peft."""
    from fintune import adapters

    output: Output = context.obj
    shares = _numbers(weights)
    record = adapters.combine(references, name, method=method, weights=shares, rank=rank, density=density, seed=seed)
    output.say(f"added    {record.reference}, by {method} of {', '.join(p.reference for p in record.parents)}")
    if record.gap is not None:
        output.say(f"its update is {record.gap:.2g} times the weighted sum's norm away from that sum")
    output.emit(record)


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(f"--weights {text} is no list of numbers.") from None


@adapters_app.command()
def merge(
    context: typer.Context,
    adapter: Anything,
    output_dir: Annotated[
        Path, typer.Option("--output", "-o", "--output-dir", "--output_dir", help="Folder of the merged model.")
    ],
    dtype: Annotated[Literal["bfloat16", "float16"], typer.Option(help="Of the merged weights.")] = "bfloat16",
    quantization: Annotated[str | None, typer.Option(help="Of the base before; as trained when left out.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; it needs four bytes a weight there.")] = None,
) -> None:
    """Merge an adapter into its base as a 16-bit model, and measure what that changes."""
    from fintune import adapters
    from fintune.cli.adapter_tables import merge_lines

    output: Output = context.obj
    with output.quiet_stdout():
        report = adapters.merge(adapter, output_dir, dtype=dtype, quantization=quantization, device=device)
    output.say(*merge_lines(report))
    output.emit(report)


@adapters_app.command()
def remove(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME", help="NAME for all versions, or NAME@VERSION.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if another adapter has it as a parent.")] = False,
) -> None:
    """Remove a version, or a name with all its versions."""
    from fintune import adapters

    output: Output = context.obj
    if not yes:
        typer.confirm(f"Remove {reference} for good?", abort=True, err=True)
    removed = adapters.remove(reference, force=force)
    output.say(f"removed  {', '.join(removed)}")
    output.emit({"removed": removed})


@adapters_app.command()
def verify(
    context: typer.Context,
    reference: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them; all when left out.")] = None,
) -> None:
    """Compare every file with the hash it was added with."""
    from fintune import adapters

    output: Output = context.obj
    checked, damage = adapters.verify(reference)
    output.say(*(f"{found.reference}: {found.problem}" for found in damage))
    output.say(f"{len(checked)} versions checked, {len({found.reference for found in damage})} damaged.")
    output.emit({"checked": checked, "damage": damage})
    if damage:
        raise typer.Exit(1)
