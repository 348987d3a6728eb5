"""``fintune serve``: models behind HTTP, and ``fintune keys``: who may ask them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune.cli.output import Output
from fintune.cli.predicting import existing_place

_LIMITS, _TIMES = "Limits", "Times"
keys_app = typer.Typer(name="keys", help="Make, list and remove API keys of `fintune serve`.", no_args_is_help=True)
KeyFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File with the keys' hashes.")]
RequestRate = Annotated[int | None, typer.Option(min=1, help="Requests a minute of a key.", rich_help_panel=_LIMITS)]
TokenRate = Annotated[
    int | None, typer.Option(min=1, help="Tokens a minute of a key, read and written.", rich_help_panel=_LIMITS)
]
MostConcurrent = Annotated[
    int | None, typer.Option(min=1, help="Requests of a key at the same time.", rich_help_panel=_LIMITS)
]


def serve(
    context: typer.Context,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Run, adapter directory or name, or base model.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="NAME=PLACE: one more adapter on the same base; repeatable.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="Folder whose sub-folders are served as adapters while they are there.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call PLACE; its last part by default.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Key file of `fintune keys`; without it everyone may ask.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's own need --keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    engine: Annotated[
        Literal["fintune", "vllm"], typer.Option(help="What writes; vllm is experimental and needs vLLM.")
    ] = "fintune",
    quantization: Annotated[
        Literal["none", "nf4", "int8", "fp8"] | None, typer.Option(help="How to hold the base; as trained by default.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Answers of one adapter written at once.", rich_help_panel=_LIMITS)
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Answers that may wait for a slot.", rich_help_panel=_LIMITS)
    ] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request body.", rich_help_panel=_LIMITS)] = 1
    << 20,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=_LIMITS)
    ] = 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; what fits by default.", rich_help_panel=_LIMITS)
    ] = None,
    max_classify_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of one classification.", rich_help_panel=_LIMITS)
    ] = 1 << 16,
    requests_per_minute: RequestRate = None,
    tokens_per_minute: TokenRate = None,
    max_concurrent: MostConcurrent = None,
    request_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for a whole answer.", rich_help_panel=_TIMES)
    ] = 300,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds for open answers to end after SIGTERM.", rich_help_panel=_TIMES)
    ] = 30,
    log_text: Annotated[bool, typer.Option("--log-text", help="Write prompts and answers into the log.")] = False,
) -> None:
    """Serve a model, and adapters on it, behind OpenAI's interface."""
    from fintune.serving.server.opening import Served, open_service, require_libraries
    from fintune.serving.server.settings import KeyLimits, ServerSettings

    output: Output = context.obj
    require_libraries()
    from fintune.serving.server.logs import ServerLog, collected
    from fintune.serving.server.running import Running, address_of, is_loopback, listen
    from fintune.session import default_device

    if keys is None and not is_loopback(host):
        raise typer.BadParameter(f"{host} can be reached from other machines: give --keys FILE (see `fintune keys`).")
    settings = ServerSettings(
        slots=slots,
        max_waiting=max_waiting,
        max_body_bytes=max_body_bytes,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        max_classify_tokens=max_classify_tokens,
        request_timeout_s=request_timeout,
        drain_s=drain,
        limits=KeyLimits(requests_per_minute, tokens_per_minute, max_concurrent),
        log_text=log_text,
    )
    served = Served(existing_place(place), _named(adapter), adapters, name, quantization, engine)
    server_log = ServerLog()
    with listen(host, port, send_timeout_s=settings.send_timeout_s) as opened:
        with output.quiet_stdout():
            service = open_service(served, settings, keys, device=default_device(), server_log=server_log)
        address = address_of(opened)

        def started() -> None:
            names = list(service.models.by_name)
            output.say(f"serving  {address}/v1", f"models   {', '.join(names)}", "Ctrl-C ends it.")
            output.emit({"address": address, "models": names})
            sys.stdout.flush()  # whoever started the server waits for this line

        with collected(server_log):
            Running(service, opened).run(started)


def _named(adapters: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for given in adapters or ():
        name, equals, place = given.partition("=")
        if not equals or not name or not place:
            raise typer.BadParameter(f"--adapter {given}: write NAME=PLACE.")
        if name in found:
            raise typer.BadParameter(f"--adapter {name} is given twice.")
        found[name] = existing_place(place)
    return found


@keys_app.command()
def add(
    context: typer.Context,
    file: KeyFileArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom the key is for.")],
    requests_per_minute: RequestRate = None,
    tokens_per_minute: TokenRate = None,
    max_concurrent: MostConcurrent = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=_LIMITS)
    ] = None,
) -> None:
    """Make a key, show it once, and write its hash into FILE."""
    from fintune.serving.server.keys import add_key
    from fintune.serving.server.settings import KeyLimits

    output: Output = context.obj
    limits = KeyLimits(requests_per_minute, tokens_per_minute, max_concurrent, max_new_tokens)
    secret = add_key(file, name, limits)
    output.say(f"key      {secret}", f"It is shown this once; {file} holds only its hash.")
    output.emit({"name": name, "key": secret})


@keys_app.command("list")
def list_keys(context: typer.Context, file: KeyFileArgument) -> None:
    """List the keys in FILE, with their limits."""
    from dataclasses import asdict

    from fintune.cli.tables import plain_table
    from fintune.serving.server.keys import read_keys

    output: Output = context.obj
    found = read_keys(file)
    table = plain_table("name", "created", "limits")
    for key in found:
        limits = {name: value for name, value in asdict(key.limits).items() if value is not None}
        table.add_row(key.name, key.created, ", ".join(f"{name} {value:,}" for name, value in limits.items()) or "none")
    output.say(table)
    output.emit([{"name": key.name, "created": key.created, **asdict(key.limits)} for key in found])


@keys_app.command()
def remove(
    context: typer.Context,
    file: KeyFileArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key.")],
) -> None:
    """Take a key out of FILE; a running server refuses it within a second."""
    from fintune.serving.server.keys import remove_key

    output: Output = context.obj
    remove_key(file, name)
    output.say(f"removed  {name}")
    output.emit({"removed": name})
