"""Models side by side on one held-out text: bits a byte, speed of reading, latency of writing, memory.

Enters: folders of base models, runs or adapters, and a text that none of them has read. Leaves: a row for each,
measured in a process of its own, and differences from the first with intervals over documents.

Bits a byte compare models with different tokenizers: every byte of text is counted once, whatever tokens hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fintune.bench.measuring import Clock
from fintune.bench.processes import call_apart
from fintune.reporting.markup import markdown_table
from fintune.reporting.tables import Table
from fintune.schema.errors import DataError, RecipeError, RunError
from fintune.schema.results import Estimate
from fintune.schema.run_directory import write_json, write_text_atomically

RESULTS, TABLE = "models.json", "models.md"
_RESAMPLES = 2000
_LIMIT_S = 3600.0
_MIB = 2**20


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: as it was given.
        documents: of the text.
        bits_per_byte: of the whole text, with an interval over documents.
        difference: its bits a byte minus the first model's, on the same resampled documents; None for the first.
        tokens: of the text under its tokenizer.
        context: tokens it sees at most before the one it predicts.
        tokens_per_s: read, once warm.
        bytes_per_s: the same in bytes of text, which compares tokenizers.
        latency_ms: of a written token.
        peak_bytes: while reading and writing.
        parameters: of the model, its adapter included.
    """

    name: str
    documents: int
    bits_per_byte: Estimate
    difference: Estimate | None
    tokens: int
    context: int
    tokens_per_s: float
    bytes_per_s: float
    latency_ms: float
    peak_bytes: int
    parameters: int


@dataclass(frozen=True)
class Asked:
    """How models are measured.

    Attributes:
        text: file or folder with the documents.
        context: tokens of a block at most; less where a model has less.
        limit: documents at most; None for all.
        new_tokens: written to time them.
        device: ``cpu`` or ``cuda``.
        clock: what seconds are.
    """

    text: str
    context: int
    limit: int | None
    new_tokens: int
    device: str
    clock: Clock


def bench_models(
    places: Sequence[str | Path],
    text: str | Path,
    output_dir: str | Path | None = None,
    *,
    device: str = "auto",
    context: int = 1024,
    limit: int | None = None,
    new_tokens: int = 32,
    clock: Clock = "wall",
    confidence: float = 0.95,
) -> list[ModelRow]:
    """Measures models on the same text.

    Args:
        places: base models, run directories or adapters; the others are compared with the first.
        text: file or folder with documents that none of them was trained on.
        output_dir: where ``models.json`` and ``models.md`` go; nowhere when None.
        device: auto, cpu or cuda.
        context: tokens that are predicted together, at most.
        limit: documents at most.
        new_tokens: how many are written to time one.
        clock: wall, or processor on a CPU that other work shares.
        confidence: level of the intervals.

    Raises:
        DataError: the text cannot be read, or has fewer than two documents.
        RunError: a model cannot be loaded or measured.
    """
    from fintune.bench.ablation import chosen_device
    from fintune.bench.texts import held_out_documents

    if not places:
        raise RecipeError("There is no model to measure.", "Name at least one folder, run or base model.")
    if context < 2 or new_tokens < 1:
        raise RecipeError("A context has two tokens at least, and one is written.", "Write --context 1024.")
    documents = len(held_out_documents(Path(text))[:limit])
    if documents < 2:
        raise DataError(f"{text} has {documents} document(s), but an interval needs two.", "Name a longer text.")
    asked = Asked(str(text), context, limit, new_tokens, chosen_device(device), clock)
    found = [_measured(str(place), asked) for place in places]
    rows = model_rows([str(place) for place in places], found, confidence)
    if output_dir is not None:
        place = Path(output_dir)
        write_json(place / RESULTS, {"asked": asdict(asked), "models": [_plain(row) for row in rows]})
        table = models_table(rows, asked)
        write_text_atomically(place / TABLE, f"**{table.caption}**\n\n{markdown_table(table)}\n\n{table.note}\n")
    return rows


def _measured(place: str, asked: Asked) -> dict[str, Any]:
    from fintune.bench.reading import read_model

    finished = call_apart(read_model, (place, asked), limit_s=_LIMIT_S, device=asked.device)
    if finished.problem:
        raise RunError(f"{place} could not be measured: {finished.problem}", "Leave it out, or correct that.")
    found: dict[str, Any] = finished.value
    return found


def model_rows(names: Sequence[str], found: Sequence[dict[str, Any]], confidence: float) -> list[ModelRow]:
    """Rows with intervals from what was read of each document.

    Args:
        names: of the models.
        found: for each, what ``read_model`` returned: ``nats`` and ``bytes`` by document, and the rest.
        confidence: level of the intervals.
    """
    n_bytes = np.asarray(found[0]["bytes"], np.float64)
    drawn = np.random.default_rng(0).multinomial(len(n_bytes), np.full(len(n_bytes), 1 / len(n_bytes)), _RESAMPLES)
    bits = [np.asarray(one["nats"]) / math.log(2) for one in found]
    rates = [(drawn @ own) / (drawn @ n_bytes) for own in bits]
    whole = [float(own.sum() / n_bytes.sum()) for own in bits]
    rows = []
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        difference = None
        if number:
            difference = _estimate(whole[number] - whole[0], rates[number] - rates[0], confidence)
        rest = {key: value for key, value in one.items() if key not in ("nats", "bytes")}
        value = _estimate(whole[number], rates[number], confidence)
        rows.append(ModelRow(name=name, documents=len(n_bytes), bits_per_byte=value, difference=difference, **rest))
    return rows


def _estimate(value: float, drawn: Any, confidence: float) -> Estimate:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def models_table(rows: Sequence[ModelRow], asked: Asked) -> Table:
    """The rows as a table."""
    from fintune.reporting.wording import interval

    cells = tuple(
        (
            Path(row.name).name or row.name,
            interval(row.bits_per_byte),
            "–" if row.difference is None else interval(row.difference, signed=True),
            f"{row.tokens_per_s:,.0f}",
            f"{row.bytes_per_s:,.0f}",
            f"{row.latency_ms:.1f}",
            f"{row.peak_bytes / _MIB:,.0f}",
            f"{row.parameters:,}",
            f"{row.context:,}",
        )
        for row in rows
    )
    note = (
        "Intervals are over documents; differences are on the same resampled documents. Blocks of at most the stated "
        "context, each token predicted once. One answer is written at a time, with a KV cache. Whether a model has "
        "read the text in its training is not known here."
    )
    if asked.clock == "processor":
        note += " Seconds are those of the processor."
    return Table(
        name="bench-models",
        caption=f"{len(rows)} models on {rows[0].documents:,} held-out documents",
        columns=(
            *("Model", "Bits a byte", "Against the first", "Tokens/s read", "Bytes/s read", "ms a written token"),
            *("Peak, MiB", "Weights", "Context"),
        ),
        rows=cells,
        note=note,
    )


def _plain(row: ModelRow) -> dict[str, Any]:
    estimates = {"bits_per_byte": row.bits_per_byte, "difference": row.difference}
    return {**vars(row), **{key: value and value.model_dump() for key, value in estimates.items()}}
