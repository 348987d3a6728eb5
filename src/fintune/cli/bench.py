"""``fintune bench``: what optimisations buy on this machine, and models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fintune.cli.output import Output

bench_app = typer.Typer(
    name="bench",
    help="Measure what each optimisation buys on this machine, and set models side by side.",
    no_args_is_help=True,
)


@bench_app.command()
def optimisations(
    context: typer.Context,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder of the bench; the same command goes on in it.")
    ] = Path("bench-optimisations"),
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What to run on.")] = "auto",
    size: Annotated[
        Literal["auto", "tiny", "small", "gpu"],
        typer.Option(help="tiny: minutes on a CPU; small: an hour; gpu: 124 million weights and a 1B Llama's shape."),
    ] = "auto",
    minutes: Annotated[float, typer.Option(help="After which no further variant is begun.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Repeats at most; a further one begins only if it fits.")] = 3,
    text: Annotated[
        Path | None, typer.Option(help="File or folder with documents for the GPTs; default the shipped samples.")
    ] = None,
    families: Annotated[str, typer.Option(help="gpt, llm or gpt,llm.")] = "gpt,llm",
    only: Annotated[str, typer.Option(help="Optimisations to switch, by key, such as muon,packing; default all.")] = "",
    clock: Annotated[
        Literal["wall", "processor"],
        typer.Option(help="processor: seconds the process was given a CPU, one thread; for machines that others use."),
    ] = "wall",
    devices: Annotated[str, typer.Option(help="CUDA devices to spread variants over, such as 0,1,2,3.")] = "",
) -> None:
    """Add each optimisation to the base and take it from the full set: speed, memory, loss, latency."""
    from fintune.bench.ablation import BenchFolder, bench_optimisations
    from fintune.bench.written import FIGURE, TABLE, bench_tables
    from fintune.cli.tables import as_rich

    output: Output = context.obj
    output.interrupt_hint = "Give the same command again to go on after the last finished variant."
    with output.quiet_stdout():
        found = bench_optimisations(
            output_dir,
            device=device,
            size=size,
            minutes=minutes,
            rounds=rounds,
            text=text,
            families=_parts(families),
            only=_parts(only),
            cards=_parts(devices),
            clock=clock,
            on_done=lambda record, done, total: output.say(_progress(record, done, total)),
        )
    for table in bench_tables(BenchFolder(output_dir), found["settings"]["kind"]):
        output.say("", as_rich(table))
    output.say(f"\ntable    {output_dir / TABLE}", f"figure   {output_dir / FIGURE}")
    output.emit(found)


@bench_app.command()
def models(
    context: typer.Context,
    places: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Base models, runs or adapters; the first is compared with.")
    ],
    text: Annotated[Path, typer.Option(help="File or folder with documents that none of them has read.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Where models.json and models.md are written.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What to run on.")] = "auto",
    context_tokens: Annotated[int, typer.Option("--context", min=2, help="Tokens of a block at most.")] = 1024,
    limit: Annotated[int | None, typer.Option(min=2, help="Documents at most.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written to time them.")] = 32,
    clock: Annotated[Literal["wall", "processor"], typer.Option(help="As of fintune bench optimisations.")] = "wall",
) -> None:
    """Set models side by side on one text: bits a byte, speed of reading, latency of writing, memory."""
    from fintune.bench.models import Asked, bench_models, models_table
    from fintune.cli.tables import as_rich

    output: Output = context.obj
    with output.quiet_stdout():
        rows = bench_models(
            places,
            text,
            output_dir,
            device=device,
            context=context_tokens,
            limit=limit,
            new_tokens=new_tokens,
            clock=clock,
        )
    asked = Asked(str(text), context_tokens, limit, new_tokens, device, clock)
    output.say(as_rich(models_table(rows, asked)))
    output.emit(rows)


def _parts(listed: str) -> list[str]:
    return [part.strip() for part in listed.split(",") if part.strip()]


def _progress(record: dict[str, Any], done: int, total: int) -> str:
    speed = f"{record['measured']['tokens_per_s']:,.0f} tokens/s" if record["measured"] else record["problem"]
    part = "" if record["part"] == "whole" else f" ({record['part']})"
    return f"{record['round'] + 1}: {done:>3}/{total} {record['family']} {record['variant']}{part}: {speed}"
