"""``fintune export``: a trained model in the forms that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fintune.cli.output import Output

if TYPE_CHECKING:
    from fintune.exporting import ExportReport

_KINDS = "merged, adapter, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; with llama.cpp q4_k_m, q5_k_m, q6_k, q4_k_s, q5_k_s"


def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Run, adapter directory or name, or model.")],
    output_dir: Annotated[Path, typer.Option("--output", "-o", "--output-dir", "--output_dir", help="Folder to make.")],
    formats: Annotated[
        str | None, typer.Option(help=f"Separated by commas: {_KINDS}. When left out: merged, adapter and q8_0.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of files and of the served model; the run's when left out.")] = None,
    dtype: Annotated[Literal["bfloat16", "float16"], typer.Option(help="Of the merged weights.")] = "bfloat16",
    shard_size: Annotated[str, typer.Option(help="Largest file of merged weights.")] = "5GB",
    quantization: Annotated[str | None, typer.Option(help="Of the base before; as trained when left out.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; a merge needs four bytes a weight there.")] = None,
) -> None:
    """Write merged weights, GGUF files, and what Ollama and vLLM start from."""
    from fintune import exporting

    output: Output = context.obj
    chosen = [word.strip().lower() for word in formats.split(",") if word.strip()] if formats else []
    with output.quiet_stdout():
        report = exporting.export(
            source,
            output_dir,
            formats=chosen,
            name=name,
            dtype=dtype,
            shard_size=shard_size,
            quantization=quantization,
            device=device,
        )
    output.say(*_lines(report))
    output.emit(report)


def _lines(report: ExportReport) -> list[str]:
    lines = [f"exported {report.path}"]
    lines += [f"  {size:>15,} bytes  {name}" for name, size in report.files.items() if size >= 1_000_000]
    lines += [f"  and {sum(size < 1_000_000 for size in report.files.values())} smaller files"]
    if report.merge is not None:
        gap = report.merge.gap
        lines.append(
            f"logits   of the merged weights differ from the adapter's on its base by {gap.mean:.3g} on average (their "
            f"own spread is {gap.spread:.3g}); the likeliest token is the same for {gap.agreement:.1%}"
        )
    lines += [
        f"rounding {one.path.name} keeps {one.kept:.0%} of what tuning changed"
        for one in report.gguf
        if one.kept is not None
    ]
    if report.tokens_checked is not None:
        lines.append(f"tokens   llama.cpp splits {report.tokens_checked} difficult texts as the tokenizer does")
    return lines + [f"note     {note}" for note in report.notes]
