"""Text that is not about finance, for measuring what continued pretraining forgets: articles of Wikipedia.

Takes any dump of MediaWiki; the wheel of gensim 4.4.0 carries one of 106 English articles for its own tests (CC BY-SA).
Needs ``mwparserfromhell``.

    pip download --no-deps gensim==4.4.0 && unzip -j gensim-*.whl "gensim/test/test_data/enwiki-latest*"
    python benchmarks/general_text.py enwiki-latest*.bz2 general/wikipedia.jsonl
"""

from __future__ import annotations

import argparse
import bz2
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell

_DROPPED = frozenset({"ref", "table", "gallery", "math", "timeline"})


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Title and markup of each page that is no redirect."""
    title = ""
    with bz2.open(dump) as stream:
        for _, element in ElementTree.iterparse(stream):
            name = element.tag.rpartition("}")[2]
            if name == "title":
                title = element.text or ""
            elif name == "text" and element.text and not element.text.lower().startswith("#redirect"):
                yield title, element.text


def plain(markup: str) -> str:
    """The article's words, without references, tables and templates."""
    parsed = mwparserfromhell.parse(markup)
    for tag in parsed.filter_tags(matches=lambda tag: str(tag.tag).lower() in _DROPPED):
        if parsed.contains(tag):
            parsed.remove(tag)
    return re.sub(r"\n{3,}", "\n\n", str(parsed.strip_code())).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"title": title, "text": plain(markup)} for title, markup in articles(options.dump)]
    options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} articles, {sum(len(row['text']) for row in rows):,} characters")


if __name__ == "__main__":
    main()
