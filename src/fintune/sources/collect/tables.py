"""What a collection leaves behind, for steps that have no network.

::

    data/dow30/
      universe.csv        ticker, index, name, sector, member_from, member_to, market_cap, as_of
      news.jsonl          one ``NewsRow`` a line
      prices.csv          one ``PriceRow`` a line
      profiles.jsonl      one ``ProfileRow`` a line
      financials.jsonl    one ``FinancialsRow`` a line
      collected.json      what was asked, found, dropped and refused, by ticker; hashes of the tables
      raw/                answers as they came, by provider

Enters: rows. Leaves: sorted tables, equal for equal answers but for the times of retrieval, which the hashes leave out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fintune.schema.run_directory import write_text_atomically
from fintune.sources.collect.rows import FinancialsRow, NewsRow, PriceRow, ProfileRow
from fintune.sources.collect.universe import Member

FILES = {"news": "news.jsonl", "prices": "prices.csv", "profile": "profiles.jsonl", "financials": "financials.jsonl"}
UNIVERSE, REPORT = "universe.csv", "collected.json"
_RETRIEVAL = frozenset({"retrieved_at", "as_of"})
AnyRow = NewsRow | PriceRow | ProfileRow | FinancialsRow | Member


def write_table(path: Path, kind: type[AnyRow], rows: Sequence[AnyRow]) -> str:
    """Writes rows as CSV or JSON lines, as the name says, and returns the hash of what they say.

    Raises:
        RunError: it cannot be written.
    """
    names = [field.name for field in fields(kind)]
    records = [asdict(row) for row in rows]
    as_text = _csv if path.suffix == ".csv" else _json_lines
    write_text_atomically(path, as_text(names, records))
    kept = [name for name in names if name not in _RETRIEVAL]
    return hashlib.sha256(as_text(kept, ({name: row[name] for name in kept} for row in records)).encode()).hexdigest()


def _csv(names: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _json_lines(names: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
