"""``fintune corpus``: news and other texts into a corpus for continued pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fintune.cli.options import Quiet
from fintune.cli.output import Output

if TYPE_CHECKING:
    from fintune.corpora import Corpus

corpus_app = typer.Typer(
    name="corpus",
    help="Build a corpus of texts for continued pretraining, look at it, export it.",
    no_args_is_help=True,
)
_COLUMNS, _STEPS, _SPLITS = "Columns", "Cleaning", "Splits"
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished corpus.")]


@corpus_app.command()
def build(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files (.jsonl, .csv, .parquet, .txt; .gz, .xz, .zst), folders, what collect wrote, data sets on the "
            "hub, or a .yaml file that lists them.",
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "--output_dir", "-o", help="Folder of the corpus.")],
    text: Annotated[str | None, typer.Option(help="Column with the text.", rich_help_panel=_COLUMNS)] = None,
    title: Annotated[str | None, typer.Option(help="Column with the title.", rich_help_panel=_COLUMNS)] = None,
    date: Annotated[str | None, typer.Option(help="Column with the day.", rich_help_panel=_COLUMNS)] = None,
    source: Annotated[str | None, typer.Option(help="Column with the publisher.", rich_help_panel=_COLUMNS)] = None,
    ticker: Annotated[str | None, typer.Option(help="Column with tickers.", rich_help_panel=_COLUMNS)] = None,
    date_format: Annotated[
        str | None, typer.Option(help="Of days that read in two ways, such as %d/%m/%Y.", rich_help_panel=_COLUMNS)
    ] = None,
    separated_by: Annotated[
        str, typer.Option(help="Documents of a .txt file end at: marker, blank or line.", rich_help_panel=_COLUMNS)
    ] = "marker",
    companies: Annotated[
        int | None, typer.Option(min=1, help="Of what collect wrote, the largest companies only.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="Base model whose tokenizer is used, or none.")] = "smollm2-135m",
    validation_from: Annotated[
        str | None, typer.Option(help="First day of validation.", rich_help_panel=_SPLITS)
    ] = None,
    test_from: Annotated[str | None, typer.Option(help="First day of test.", rich_help_panel=_SPLITS)] = None,
    undated: Annotated[
        str,
        typer.Option(
            help="Documents without a day, where a first day is given: drop or hash.", rich_help_panel=_SPLITS
        ),
    ] = "drop",
    validation_share: Annotated[
        float, typer.Option(help="Of documents that are split by hash.", rich_help_panel=_SPLITS)
    ] = 0.05,
    test_share: Annotated[float, typer.Option(help="Likewise.", rich_help_panel=_SPLITS)] = 0.1,
    min_characters: Annotated[int, typer.Option(help="Shorter ones are dropped.", rich_help_panel=_STEPS)] = 20,
    max_characters: Annotated[int, typer.Option(help="Longer ones are dropped.", rich_help_panel=_STEPS)] = 1_000_000,
    min_latin_share: Annotated[
        float, typer.Option(help="Share of letters that must be Latin.", rich_help_panel=_STEPS)
    ] = 0.5,
    near_duplicates: Annotated[
        float, typer.Option(help="Similarity from which a text repeats another; 0: equal only.", rich_help_panel=_STEPS)
    ] = 0.8,
    boilerplate_share: Annotated[
        float, typer.Option(help="Lines in this share of a source's texts go; 0: none.", rich_help_panel=_STEPS)
    ] = 0.005,
    html: Annotated[bool, typer.Option(help="Take texts out of HTML.", rich_help_panel=_STEPS)] = True,
    unwrap: Annotated[bool, typer.Option(help="Join hard line ends.", rich_help_panel=_STEPS)] = True,
    remove_private: Annotated[
        bool,
        typer.Option("--remove-private", help="Replace e-mails, phones, IBANs, cards, SSNs.", rich_help_panel=_STEPS),
    ] = False,
    shard_documents: Annotated[int, typer.Option(min=1, help="Documents a file at most.")] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a corpus that was built otherwise.")] = False,
    quiet: Quiet = False,
) -> None:
    """Clean texts, drop repeats, split by date, tokenise; the same command goes on after a stop."""
    from fintune.corpora import build_corpus

    columns = {"text": text, "title": title, "date": date, "source": source, "ticker": ticker}
    columns |= {"date_format": date_format, "separated_by": separated_by if separated_by != "marker" else None}
    output: Output = context.obj
    output.interrupt_hint = "Give the same command again to go on after the last whole piece."
    with output.quiet_stdout():
        built = build_corpus(
            [_with_columns(one, {key: value for key, value in columns.items() if value}) for one in sources],
            output_dir,
            tokenizer=None if tokenizer == "none" else tokenizer,
            overwrite=overwrite,
            progress=not (quiet or output.json),
            companies=companies,
            validation_from=validation_from,
            test_from=test_from,
            undated=undated,
            validation_share=validation_share,
            test_share=test_share,
            min_characters=min_characters,
            max_characters=max_characters,
            min_latin_share=min_latin_share,
            near_duplicates=near_duplicates or None,
            boilerplate_share=boilerplate_share,
            html=html,
            unwrap=unwrap,
            private=remove_private,
            shard_documents=shard_documents,
        )
    output.interrupt_hint = ""
    _show(output, built)


@corpus_app.command()
def stats(context: typer.Context, folder: Folder) -> None:
    """Show what went in, what each step dropped, and what came out."""
    from fintune.corpora import read_corpus

    _show(context.obj, read_corpus(folder))


@corpus_app.command()
def export(
    context: typer.Context,
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text file to write, such as finance_corpus.txt.")],
    splits: Annotated[str, typer.Option(help="Which, separated by commas.")] = "train,validation,test",
) -> None:
    """Write all texts into one file, each followed by a line <|endoftext|>; build reads it again."""
    from fintune.cli.data_commands import words
    from fintune.corpora import export_corpus

    output: Output = context.obj
    written = export_corpus(folder, file, words(splits))
    output.say(f"{written:,} documents", f"written  {file}")
    output.emit({"documents": written, "file": file})


def _with_columns(place: str, columns: dict[str, str]) -> Any:
    """The source with columns that the command names; a list of sources names its own."""
    if not columns or place.lower().endswith((".yaml", ".yml")):
        return place
    return {"place": place, **columns}


def _show(output: Output, corpus: Corpus) -> None:
    from fintune.cli.tables import as_rich
    from fintune.reporting.corpus import PAGE, corpus_sentences, corpus_tables

    for table in corpus_tables(corpus.manifest):
        output.say("", as_rich(table))
    output.say("", *corpus_sentences(corpus.manifest))
    if corpus.elapsed_s is not None and corpus.peak_bytes is not None:
        output.say(f"Took {corpus.elapsed_s:,.1f} s; at most {corpus.peak_bytes / 2**20:,.0f} MiB were held.")
    output.say(f"corpus      {corpus.folder}", f"statistics  {corpus.folder / PAGE}")
    output.emit({"folder": corpus.folder, **corpus.manifest, "elapsed_s": corpus.elapsed_s,
                 "peak_bytes": corpus.peak_bytes})  # fmt: skip
