"""The commands. Each reads its arguments, calls one function of ``fintune.api``, and prints what came back.

Heavy imports stay inside the functions, so that ``fintune --help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fintune.cli.adapter_commands import adapters_app
from fintune.cli.backtesting import backtest
from fintune.cli.bench import bench_app
from fintune.cli.chatting import chat
from fintune.cli.collecting import collect
from fintune.cli.comparing import compare
from fintune.cli.corpus import corpus_app
from fintune.cli.data_commands import data_app
from fintune.cli.demo import demo
from fintune.cli.estimating import estimate
from fintune.cli.evaluating import evaluate, show_results
from fintune.cli.exporting import export
from fintune.cli.figures import figures
from fintune.cli.generating import generate
from fintune.cli.gpt_commands import gpt_app
from fintune.cli.judging import judge
from fintune.cli.launching import Gpus, ProcessCount, share_out
from fintune.cli.options import OutputDir, Overrides, Quiet, RecipeArgument, Resume
from fintune.cli.output import Output
from fintune.cli.own_options import TableOptions, takes_table
from fintune.cli.predicting import (
    TABLES,
    Bf16Products,
    LabellingEngine,
    LabellingGpus,
    LabellingProcesses,
    PredictCommand,
    abstention_line,
    existing_place,
    file_summary,
    predictions_table,
    read_lines,
    unmarked,
)
from fintune.cli.pushing import push
from fintune.cli.quant import quant_app
from fintune.cli.rationales import rationales
from fintune.cli.serving import keys_app, serve
from fintune.cli.task_commands import tasks_app

app = typer.Typer(
    name="fintune",
    help="Adapt open language models to finance, and measure honestly what that bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(adapters_app)
app.add_typer(bench_app)
app.add_typer(corpus_app)
app.add_typer(data_app)
app.add_typer(gpt_app)
app.add_typer(keys_app)
app.add_typer(quant_app)
app.add_typer(tasks_app)
app.command()(collect)
app.command()(backtest)
app.command()(chat)
app.command()(compare)
app.command()(demo)
app.command()(estimate)
app.command()(export)
app.command()(figures)
app.command()(generate)
app.command()(judge)
app.command()(push)
app.command()(rationales)
app.command()(serve)

RequireLicence = Annotated[
    Literal["commercial"] | None, typer.Option(help="Refuse data whose terms do not allow this use.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fintune {version('fintune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output; text goes to stderr.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Open no network connection.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.")] = False,
) -> None:
    """Global options; these three flags are taken out before, because they may stand anywhere."""


@app.command()
def quickstart(
    context: typer.Context,
    overrides: Overrides = None,
    output_dir: OutputDir = None,
    resume: Resume = True,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a small real model on real financial text and print what it gained (no GPU, no account)."""
    _train(context.obj, "quickstart", overrides, output_dir, resume, quiet, closing=True)


@app.command()
@takes_table
def train(
    context: typer.Context,
    table: TableOptions,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or your own's path; with --data: quickstart."),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another base model than the recipe's.")] = None,
    class_weights: Annotated[
        Literal["none", "balanced"] | None, typer.Option(help="balanced: rare labels weigh more.")
    ] = None,
    require_licence: RequireLicence = None,
    output_dir: OutputDir = None,
    resume: Resume = True,
    gpus: Gpus = None,
    processes: ProcessCount = None,
    quiet: Quiet = False,
) -> None:
    """Train what a recipe describes, or on a table of your own; measure it and write the report."""
    words = list(overrides or ())
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        words.insert(0, recipe)
        recipe = None
    if recipe is None and table.data is None:
        raise typer.BadParameter("Name a recipe, or give --data with --text and --label.")
    share_out(context.obj, gpus, processes)
    keys = {"model.base": model, "data.class_weights": class_weights, "data.require_licence": require_licence}
    words = [f"{key}={value}" for key, value in keys.items() if value is not None] + words
    _train(context.obj, recipe, words, output_dir, resume, quiet, table=table)


def _train(
    output: Output,
    recipe: str | None,
    overrides: list[str] | None,
    output_dir: Path | None,
    resume: bool,
    quiet: bool,
    *,
    table: TableOptions | None = None,
    closing: bool = False,
) -> None:
    from fintune import api

    own: dict[str, Any] = {"data": table.data, "table": table.section()} if table is not None and table.given else {}

    output.interrupt_hint = "Run the same command again to go on from the newest checkpoint."
    progress = not (quiet or output.json)
    with output.quiet_stdout():
        outcome = api.train(
            recipe, overrides=overrides or (), output_dir=output_dir, resume=resume, progress=progress, **own
        )
    output.interrupt_hint = ""
    if outcome.results is not None:
        show_results(output, outcome.results)
    output.say(f"\nadapter  {outcome.adapter_dir}", f"run      {outcome.run_dir}")
    if outcome.report is not None:
        output.say(f"report   {outcome.report}")
    if closing:
        output.say(
            "\nWhat next:",
            f'  fintune predict {outcome.run_dir} "Shares fell 8% after the profit warning"',
            "  fintune preview quickstart                      what the model is trained on, token by token",
            "  fintune recipes quickstart > my-recipe.yaml     start a recipe of your own; change its name: first",
        )
    output.emit(outcome)


app.command()(evaluate)


@app.command(cls=PredictCommand)
def predict(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, adapter directory or name, or base model.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to label.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="File with one text a line; - reads stdin.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Table of any size: CSV, JSONL, Parquet, Excel.", rich_help_panel=TABLES),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Its column with the text.", rich_help_panel=TABLES)
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Labelled table: .csv, .jsonl or .parquet.", rich_help_panel=TABLES),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            help="Accuracy to reach, such as 0.9: less sure answers are marked, by a threshold from validation."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task to answer, where the run was trained on several.")] = None,
    bf16_products: Bf16Products = False,
    processes: LabellingProcesses = None,
    gpus: LabellingGpus = None,
    engine: LabellingEngine = "local",
    quiet: Quiet = False,
) -> None:
    """Label texts, or a column of a table, with a trained model."""
    from fintune import api
    from fintune.labelling import predict_file

    output: Output = context.obj
    if data is not None:
        if text is None or output_file is None or texts or file:
            raise typer.BadParameter("--data needs --text COLUMN and --output FILE, and no texts beside.")
    elif text is not None or output_file is not None:
        raise typer.BadParameter("--text and --output belong to --data FILE.")
    elif processes or gpus or engine != "local":
        raise typer.BadParameter("--processes, --gpus and --engine are for --data FILE.")
    wanted = [*unmarked(texts), *read_lines(file)]
    if data is None and not wanted:
        raise typer.BadParameter("Give at least one text, --file with one text a line, or --data with a table.")
    place = existing_place(run)
    with output.quiet_stdout():
        if data is not None and text is not None and output_file is not None:
            output.interrupt_hint = "Give the same command again to go on with the groups of rows that are missing."
            outcome = predict_file(
                place,
                data,
                text,
                output_file,
                task=task,
                abstain=abstain,
                bf16_products=bf16_products,
                processes=processes,
                gpus=gpus,
                engine=engine,
                progress=not (quiet or output.json),
                on_threshold=lambda found: output.say(abstention_line(found)),
            )
            output.say(file_summary(outcome))
            output.emit(outcome)
            return
        model = api.load(place, bf16_products=bf16_products)
        if abstain is not None:
            output.say(abstention_line(model.abstention(abstain, task=task)))
        predictions = model.predict(wanted, task=task, abstain=abstain)
    output.say(predictions_table(predictions))
    output.emit(predictions)


@app.command()
def report(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of an earlier training or evaluation.")],
    documents: Annotated[
        bool | None,
        typer.Option("--documents/--no-documents", help="Texts and answers on the page; default: as the recipe says."),
    ] = None,
) -> None:
    """Write the report of a run again: HTML, Markdown, LaTeX, figures and model card."""
    from fintune import api

    output: Output = context.obj
    with output.quiet_stdout():
        path = api.report(run, documents=documents)
    output.say(f"report   {path}")
    output.emit({"report": path})


@app.command()
def preview(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="How many samples to show.")] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids too.")] = False,
) -> None:
    """Show the tokens a recipe trains on; the supervised ones are coloured and in brackets."""
    from fintune import api
    from fintune.cli.tables import preview_text

    output: Output = context.obj
    with output.quiet_stdout():
        shown = api.preview(recipe, overrides=overrides or (), samples=samples, split=split)
    unicode = (output.console.encoding or "").lower().startswith("utf")
    for sample in shown:
        supervised = sum(token[2] for token in sample.tokens)
        shortened = ", document shortened to fit" if sample.truncated else ""
        output.say(f"\n{sample.example_id}: {len(sample.tokens)} tokens, {supervised} supervised{shortened}")
        output.say(preview_text(sample.tokens, ids=ids, unicode=unicode))
    output.emit(shown)


@app.command()
def recipes(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this recipe's YAML, to start your own from.")
    ] = None,
) -> None:
    """List the shipped recipes, or print one."""
    output: Output = context.obj
    if name is not None:
        from fintune.cli.listing import shipped_text
        from fintune.schema.loading import load_recipe

        text = shipped_text(name)
        if not output.json:
            typer.echo(text, nl=False)
        output.emit(load_recipe(name))
        return
    from fintune import api
    from fintune.cli.tables import plain_table

    found = api.recipes()
    table = plain_table("name", "base", "description")
    for info in found:
        table.add_row(info.name, info.base, info.description)
    output.say(table, "Print one: fintune recipes NAME")
    output.emit(found)


@app.command()
def doctor(context: typer.Context) -> None:
    """Check this machine: Python, libraries, GPU, memory, embedded model, cache."""
    from fintune import api
    from fintune.cli.listing import checks_table

    output: Output = context.obj
    with output.quiet_stdout():
        checks = api.doctor()
    output.say(checks_table(checks))
    output.emit(checks)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
