"""Some hundred made-up articles with everything in them that a corpus has to deal with."""

import json
import random

FOOTER = "You are receiving this because you subscribed to the daily wire."


def articles(count=120, seed=5):
    """Rows with title, body, date and ticker; some repeat, some are too short, some are HTML, all end alike."""
    draw = random.Random(seed)
    words = [
        f"{draw.choice('bcdfglmnprst')}{a}{b}" for a in "aeiou" for b in ("nd", "rket", "lling", "ses", "x", "tter")
    ]
    rows = []
    for number in range(count):
        sentence = [" ".join(draw.choices(words, k=12)) + "." for _ in range(draw.randint(2, 6))]
        body = f"Company {number} (NYSE: {words[number % 9][:3].upper()}) said:\n" + "\n".join(sentence) + f"\n{FOOTER}"
        if number % 10 == 3:
            body = f"<p>{body}</p>"
        if number % 10 == 5 and rows:
            body = rows[-1]["body"].replace(" said", " says")
        if number % 40 == 7:
            body = "No"
        year = 2018 + 3 * number // count
        rows.append({"headline": f"Title {number}", "body": body, "published": f"{year}-05-{number % 28 + 1:02d}",
                     "symbol": "ACME"})  # fmt: skip
    rows[-1]["published"] = ""
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
