"""``fintune estimate``: what a recipe needs, shown as a small table.

Enters: an ``Estimate`` as the api returns it. Leaves: a table, whether it fits, and what to change where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fintune.cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from fintune.training.estimate import Estimate, PolicyEstimate

_PARTS = {
    "weights": "base weights",
    "trainable": "adapter",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "activations": "activations kept",
    "recomputed": "one layer's backward pass",
    "logits": "loss and last norm",
    "buffers": "working copies and buffers",
    "slack": "allocator's slack",
    "context": "CUDA context or libraries",
}


def estimate(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or path to your own YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as training.tokens_per_batch=4096."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Card to assume, such as H100, L4, T4; default this machine's.")
    ] = None,
    data: Annotated[bool, typer.Option(help="Count the training samples that are on this machine.")] = True,
) -> None:
    """Predict memory, speed and time of a training run, before anything is loaded."""
    from fintune import api

    output: Output = context.obj
    with output.quiet_stdout():
        found = api.estimate(recipe, overrides=overrides or (), gpu=gpu, data=data)
    for name, own in found.stages.items() or [("", found)]:
        output.say(*([f"\nstage {name}"] if name else []), estimate_table(own), *_verdict(own))
        output.say(*(f"Note: {note}" for note in own.notes))
    if found.stages:
        output.say(f"\nAll {len(found.stages)} stages: {_gib(found.peak_bytes)} GiB at the peak{_whole(found)}.")
    output.emit(found)


def estimate_table(found: Estimate) -> Table:
    """Memory by what it holds, then speed."""
    from fintune.cli.tables import plain_table

    table = plain_table("memory", "GiB")
    table.title = f"{found.base}: {found.parameters:,} parameters, {found.trainable_parameters:,} trained"
    for part in fields(found.memory):
        if getattr(found.memory, part.name):
            table.add_row(_PARTS[part.name], _gib(getattr(found.memory, part.name)))
    table.add_row("peak", _gib(found.peak_bytes))
    return table


def _verdict(found: Estimate) -> Iterator[str]:
    if found.gpu is not None and found.memory_bytes is not None:
        verb = "fits" if found.fits else "does not fit"
        yield f"It {verb} into {found.gpu} with {_gib(found.memory_bytes)} GiB."
    for own in found.policies:
        yield f"  {_gib(own.peak_bytes):>6} GiB {_policy(own, chosen=own.memory == found.policy)}"
    for remedy in found.remedies:
        yield f"  {_gib(remedy.peak):>6} GiB with {remedy.change}"
    if (work := found.workload) is not None:
        yield (
            f"{work.samples:,} samples, {work.sample_tokens:,} tokens an epoch, {work.distinct_tokens:,} after sharing "
            f"prefixes; {work.steps:,} steps of {work.micro_batches:.1f} batches, the largest of {work.batch_tokens:,} "
            "tokens."
        )
    if found.distinct_tokens_per_second is not None and found.tokens_per_second is not None:
        speed = f"{found.tokens_per_second:,.0f} tokens/s ({found.distinct_tokens_per_second:,.0f} computed)"
        yield f"About {speed}{_duration(found)}."


def _policy(own: PolicyEstimate, *, chosen: bool) -> str:
    host = f", {_gib(own.host_bytes)} GiB of the host's" if own.host_bytes else ""
    speed = f", {own.distinct_tokens_per_second:,.0f} tokens/s computed" if own.distinct_tokens_per_second else ""
    return f"with activations by {own.in_words}{host}{speed}{' (chosen)' if chosen else ''}"


def _duration(found: Estimate) -> str:
    if found.seconds_per_epoch is None or found.seconds_per_step is None:
        return ""
    return f", {found.seconds_per_step:.2f} s a step, {_time(found.seconds_per_epoch)} an epoch{_whole(found)}"


def _whole(found: Estimate) -> str:
    return "" if found.seconds is None else f", {_time(found.seconds)} in all"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:,.1f} minutes" if minutes < 120 else f"{minutes / 60:,.1f} hours"


def _gib(size: Any) -> str:
    return f"{size / 2**30:,.2f}"
