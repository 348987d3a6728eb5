"""``fintune.build_corpus``: sources in, a cleaned corpus for continued pretraining out.

::

    DIR/
      documents/train-00000.parquet   text, title, date, source, tickers, id; validation and test beside it
      tokens/train-00000.bin, .ends   the same documents as token ids; tokens.json describes them
      corpus.json                     settings, fingerprints of the sources, versions, counts, hashes; no times
      statistics.md, statistics.html  the same for people, with figures/
      .work/                          pieces of a build that is not finished

Enters: sources and settings. Leaves: that folder. A build that was stopped goes on with the same call.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fintune.inference.progress import tracking
from fintune.schema.errors import DataError, RecipeError, RunError
from fintune.schema.run_directory import only_process, write_json, writing
from fintune.sources.corpus import (
    FORMAT_VERSION,
    Cleaning,
    CorpusSource,
    OpenedSource,
    ShardRecord,
    build_documents,
    open_source,
    require_days,
    sources_of,
    write_plain,
)
from fintune.sources.corpus.pieces import aside, read_record, write_record
from fintune.sources.corpus.steps import SPLITS
from fintune.trees.token_shards import HEADER, token_type, write_tokens

MANIFEST, PLAN = "corpus.json", "corpus.plan.json"
DEFAULT_TOKENIZER = "smollm2-135m"
_BATCH = 64
_LIBRARIES = ("pyarrow", "ftfy", "selectolax", "tokenizers", "numpy")
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk.

    Attributes:
        folder: where it is.
        manifest: what ``corpus.json`` says.
        elapsed_s: seconds of this call, None where it is only read.
        peak_bytes: most memory the process has held so far, None likewise.
    """

    folder: Path
    manifest: dict[str, Any]
    elapsed_s: float | None = None
    peak_bytes: int | None = None

    @property
    def shards(self) -> list[ShardRecord]:
        """What each file of documents holds."""
        return [ShardRecord(**shard) for shard in self.manifest["documents"]]

    def texts(self, splits: Sequence[str] = ("train", "validation", "test")) -> Iterator[str]:
        """The texts of splits, one after the other."""
        for shard in self.shards:
            if shard.name.rpartition("-")[0] in splits:
                for batch in _text_batches(self.folder / "documents" / f"{shard.name}.parquet"):
                    yield from batch


def build_corpus(
    sources: str | Path | CorpusSource | Mapping[str, Any] | Sequence[str | Path | CorpusSource | Mapping[str, Any]],
    output_dir: str | Path,
    *,
    tokenizer: str | None = DEFAULT_TOKENIZER,
    overwrite: bool = False,
    progress: bool = True,
    **cleaning: Any,
) -> Corpus:
    """Builds a corpus; the same call again goes on where it was stopped.

    Args:
        sources: files, folders, ids of data sets, or YAML files that list sources with their columns.
        output_dir: where the corpus goes.
        tokenizer: base model whose tokenizer makes the token shards; None makes none.
        overwrite: replace a corpus that was built from other sources or with other settings.
        progress: show bars.
        **cleaning: fields of ``Cleaning``, such as ``validation_from="2020-01-01"``.

    Raises:
        RecipeError: a setting makes no sense.
        DataError: a source cannot be read, nothing is left, or no document has a day although first days are named.
        RunError: the folder cannot be written, holds another corpus, or another process builds into it.
    """
    started = time.monotonic()
    given = [sources] if isinstance(sources, str | Path | CorpusSource | Mapping) else sources
    listed, limits, folder = sources_of(given), Cleaning(**cleaning), Path(output_dir)
    with only_process(folder, "builds"):
        opened = [
            open_source(source, most_characters=limits.max_characters, companies=limits.companies) for source in listed
        ]
        require_days(opened, limits)
        encode = None if tokenizer is None else _Encoder(tokenizer)
        plan = _plan(opened, limits, encode)
        _require_own(folder)
        if overwrite:
            _clear(folder)
        _require_same(folder, plan)
        manifest = _finished(folder)
        if manifest is not None:
            _tidy(folder)
        else:
            write_json(folder / PLAN, plan)
            manifest = _build(folder, opened, limits, encode, plan, progress)
    return Corpus(folder, manifest, time.monotonic() - started, _peak_bytes())


def read_corpus(folder: str | Path) -> Corpus:
    """A finished corpus.

    Raises:
        DataError: there is none, or it is not finished.
    """
    manifest = _finished(Path(folder))
    if manifest is None:
        raise DataError(f"{folder} holds no finished corpus.", "Build it: fintune corpus build SOURCE -o DIR")
    return Corpus(Path(folder), manifest)


def export_corpus(folder: str | Path, file: str | Path, splits: Sequence[str] = ("train", "validation", "test")) -> int:
    """Writes the texts of a corpus into one text file (``sources.corpus.plain``), and returns how many.

    Raises:
        RecipeError: a split is unknown, or none of them has a document; the file is as it was.
        DataError: there is no finished corpus.
        RunError: the file cannot be written.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise RecipeError(f"There is no split {unknown[0]!r}.", f"Choose from {', '.join(SPLITS)}.")
    corpus = read_corpus(folder)
    known = list(dict.fromkeys(shard.name.rpartition("-")[0] for shard in corpus.shards))
    if not set(splits) & set(known):
        raise RecipeError(
            f"{folder} has no document of {', '.join(splits) or 'no split'}.", f"Choose from {', '.join(known)}."
        )
    return write_plain(Path(file), corpus.texts(splits))


class _Encoder:
    """A tokenizer by the name of its model, loaded when it is first used."""

    def __init__(self, base: str) -> None:
        from fintune.models.load import load_tokenizer
        from fintune.models.locate import locate_base
        from fintune.schema.recipe import ModelSection

        section = ModelSection(base=base)
        files = locate_base(section)
        self._tokenizer: Any = load_tokenizer(files, section)
        end: Any = self._tokenizer.convert_tokens_to_ids(_END_OF_TEXT)
        known = end is not None and self._tokenizer.convert_ids_to_tokens(end) == _END_OF_TEXT
        self.end: int = end if known else self._tokenizer.eos_token_id
        self.facts: dict[str, Any] = {
            "tokenizer": _place(base),
            "tokenizer_sha256": _vocabulary_hash(self._tokenizer),
            "vocabulary": len(self._tokenizer),
            "dtype": token_type(len(self._tokenizer)),
            "end_of_text": self.end,
            "end_of_text_token": str(self._tokenizer.convert_ids_to_tokens(self.end)),
        }

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids; what looks like a special token in a text is text."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        found: list[list[int]] = self._tokenizer(list(texts), **options)["input_ids"]
        return found


def _build(
    folder: Path,
    opened: Sequence[OpenedSource],
    limits: Cleaning,
    encode: _Encoder | None,
    plan: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    _clear_partials(folder)
    with _phases(progress) as advance:
        documents = build_documents(opened, limits, folder, advance)
        tokens = None if encode is None else _tokenise(folder, documents.shards, encode, advance)
    manifest = {
        **plan,
        "counts": documents.counts,
        "documents": [asdict(shard) for shard in documents.shards],
        "tokens": tokens,
    }
    from fintune.reporting.corpus import write_page

    write_page(folder, manifest)
    write_json(folder / MANIFEST, manifest)
    _tidy(folder)
    return manifest


def _tidy(folder: Path) -> None:
    """Takes away what only an unfinished build needs."""
    (folder / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / ".work", ignore_errors=True)


def _tokenise(
    folder: Path, shards: Sequence[ShardRecord], encode: _Encoder, advance: Callable[[str, int], None]
) -> dict[str, Any]:
    """A shard of tokens for each of documents, and the header that describes them."""
    records = []
    for shard in shards:
        note = folder / ".work" / "tokenised" / f"{shard.name}.json"
        record = read_record(note)
        if record is None or not _is_whole(folder, record, encode):
            record = _tokenise_shard(folder, shard, encode)
            write_record(note, record)
        records.append(record)
        advance("tokenising", shard.documents)
    header = {**encode.facts, "shards": records}
    write_json(folder / "tokens" / HEADER, header)
    return header


def _tokenise_shard(folder: Path, shard: ShardRecord, encode: _Encoder) -> dict[str, Any]:
    bin_file, ends_file = (folder / "tokens" / f"{shard.name}{suffix}" for suffix in (".bin", ".ends"))
    batches = map(encode, _text_batches(folder / "documents" / f"{shard.name}.parquet"))
    with aside(bin_file) as tokens, aside(ends_file) as ends:
        total = write_tokens(tokens, ends, batches, encode.facts["dtype"], encode.end)
    return {
        "name": shard.name,
        "documents": shard.documents,
        "tokens": total,
        "sha256": _sha256(bin_file),
        "ends_sha256": _sha256(ends_file),
    }


def _is_whole(folder: Path, record: Mapping[str, Any], encode: _Encoder) -> bool:
    bin_file, ends_file = (folder / "tokens" / f"{record['name']}{suffix}" for suffix in (".bin", ".ends"))
    width = int(str(encode.facts["dtype"])[-1])
    sizes = {bin_file: record["tokens"] * width, ends_file: record["documents"] * 8}
    return all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())


def _text_batches(path: Path) -> Iterator[list[str]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(_BATCH, columns=["text"]):
            yield batch.column(0).to_pylist()


def _plan(opened: Sequence[OpenedSource], limits: Cleaning, encode: _Encoder | None) -> dict[str, Any]:
    """All that decides the bytes of the corpus; where the sources lie does not."""
    return {
        "format": FORMAT_VERSION,
        "cleaning": asdict(limits),
        "sources": [
            {**asdict(one.source), "place": _place(one.source.place), "name": one.source.label,
             "columns": list(one.source.columns), "content": dict(sorted(one.fingerprint.items()))}
            for one in opened
        ],
        "tokenizer": None if encode is None else encode.facts,
        "versions": {name: version(name) for name in _LIBRARIES},
    }  # fmt: skip


def _place(place: str) -> str:
    """The name of a file or folder wherever it lies; the whole id of a data set."""
    path = Path(place).expanduser()
    return path.resolve().name if path.exists() else place


def _require_same(folder: Path, plan: Mapping[str, Any]) -> None:
    """Pieces of another corpus must not be mixed with those of this one."""
    before = read_record(folder / PLAN) or read_record(folder / MANIFEST)
    if before is None:
        return
    now = json.loads(json.dumps(plan))
    if differing := _differences(before, now):
        raise RunError(
            f"{folder} holds a corpus that was built otherwise ({', '.join(differing[:4])}).",
            "Name another folder, or use --overwrite to replace it.",
        )


def _require_own(folder: Path) -> None:
    """What no build has written is neither mixed with a corpus nor cleared away for one."""
    if (folder / PLAN).exists() or (folder / MANIFEST).exists():
        return
    if strangers := [name for name in ("documents", "tokens", "figures", ".work") if (folder / name).exists()]:
        raise RunError(f"{folder} holds {strangers[0]} that no build has written.", "Name another folder.")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs: a key of the settings, the content of a source, a version."""
    found = []
    for part in ("cleaning", "versions", "tokenizer"):
        then, later = before.get(part) or {}, now.get(part) or {}
        found += [key for key in sorted({*then, *later}) if then.get(key) != later.get(key)]
    old, new = ({one["name"]: one for one in found_in.get("sources", [])} for found_in in (before, now))
    if list(old) != list(new):
        found.append("the sources")
    else:
        found += [f"source {name}" for name in new if old[name] != new[name]]
    return found if found or before.get("format") == now.get("format") else ["the format"]


def _finished(folder: Path) -> dict[str, Any] | None:
    """The manifest of a corpus all of whose files are there."""
    manifest = read_record(folder / MANIFEST)
    if manifest is None:
        return None
    sizes = {folder / "documents" / f"{one['name']}.parquet": one["size"] for one in manifest["documents"]}
    if (tokens := manifest["tokens"]) is not None:
        width = int(tokens["dtype"][-1])
        for one in tokens["shards"]:
            sizes[folder / "tokens" / f"{one['name']}.bin"] = one["tokens"] * width
            sizes[folder / "tokens" / f"{one['name']}.ends"] = one["documents"] * 8
    whole = all(file.is_file() and file.stat().st_size == size for file, size in sizes.items())
    return manifest if whole else None


def _clear(folder: Path) -> None:
    """Takes away what a build writes, and nothing else."""
    with writing(folder):
        for name in ("documents", "tokens", "figures", ".work"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (MANIFEST, PLAN, "statistics.md", "statistics.html"):
            (folder / name).unlink(missing_ok=True)


def _clear_partials(folder: Path) -> None:
    """What a killed build was still writing aside; nothing of it had taken its place."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def _phases(shown: bool) -> Iterator[Callable[[str, int], None]]:
    """One count of documents a phase, shown as a bar of unknown length."""
    with tracking("building", None, shown=shown) as tracker:
        yield lambda phase, documents: tracker.advance(documents)


def _peak_bytes() -> int | None:
    """Most memory that this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer as its library writes it, or of its vocabulary where it writes none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
