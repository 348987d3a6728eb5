"""Parts of public corpora, copied for tests."""

import csv
import gzip
import json
from datetime import datetime


def json_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stocknet_part(shared_data, place, symbols, keep=lambda table, when: True, change=lambda row: row):
    """A copy of the corpus with some symbols, and of these the rows that are kept, the others changed or dropped."""
    place.mkdir()
    source = shared_data / "stock_acl18"
    with (
        gzip.open(source / "prices_raw.csv.gz", "rt") as lines,
        (place / "prices_raw.csv").open("w", newline="") as out,
    ):
        reader = csv.DictReader(lines)
        writer = csv.DictWriter(out, reader.fieldnames)
        writer.writeheader()
        for row in reader:
            if row["Symbol"] in symbols and (kept := row if keep("prices", row["Date"]) else change(row)):
                writer.writerow(kept)
    for part in ("train", "valid", "test"):
        rows = []
        with gzip.open(source / f"tweets_{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["symbol"] in symbols:
                    when = datetime.strptime(row["created_at"], "%a %b %d %H:%M:%S %z %Y")
                    rows.append(row if keep("tweets", when) else change(row))
        json_lines(place / f"tweets_{part}.jsonl", [row for row in rows if row])
    return place
