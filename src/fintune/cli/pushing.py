"""``fintune push``: a model with its card to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.output import Output


def push(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Run, adapter directory or name, or a folder of an export.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub; made if needed.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing, and show files, sizes and the card; works offline.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; a new one is private else.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to.")] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "Upload by fintune",
) -> None:
    """Upload an adapter, merged weights or GGUF files with the model card; without secrets and local paths."""
    from fintune.exporting.push import push as send

    output: Output = context.obj
    with output.quiet_stdout():
        report = send(source, repository, private=not public, dry_run=dry_run, revision=revision, message=message)
    if dry_run:
        output.say(report.card)
    seen = "private" if report.private else "public"
    output.say(f"{'would be sent to' if dry_run else 'sent to'} {report.repository}, {seen} where it is new")
    for file in report.files:
        output.say(f"  {file.size_bytes:>15,} bytes  {file.name}")
        for path in file.shortened:
            output.say(f"{'':26}{path} becomes {Path(path).name}")
    output.say(f"total    {sum(file.size_bytes for file in report.files):,} bytes")
    if report.left_out:
        output.say(f"left out {', '.join(report.left_out)}")
    output.say(f"licence  {report.licence}")
    if report.address is not None:
        output.say(f"address  {report.address}")
    shown = [{"name": file.name, "size_bytes": file.size_bytes, "shortened": file.shortened} for file in report.files]
    output.emit({**{key: value for key, value in vars(report).items() if key != "files"}, "files": shown})
