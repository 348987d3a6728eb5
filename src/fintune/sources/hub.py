"""A Hugging Face data set id in, one ``RawTable`` per split out, with the commit that the rows came from.

Data files only: `datasets` runs no code from a repository. Without a network the library's cache is tried, quickly,
and a miss is one clear ``DataError``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.schema.network import is_offline, offline_reason
from fintune.sources.files import DATA_SUFFIXES
from fintune.sources.table import ALL, RawTable, canonical_split
from fintune.sources.text import without_lone_surrogates

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMEOUT_S = 10.0


def looks_like_hub_id(source: str) -> bool:
    """Whether ``source`` reads as ``owner/name`` and not as the path of a data file."""
    return _HUB_ID.fullmatch(source) is not None and Path(source).suffix.lower() not in DATA_SUFFIXES


def read_hub(hub_id: str, config: str | None = None, revision: str | None = None) -> dict[str, RawTable]:
    """Loads every split of a data set from the hub, pinned to a commit.

    Args:
        hub_id: ``owner/name``.
        config: configuration of the data set; None takes its default.
        revision: branch, tag or commit; the returned tables carry the commit it resolved to.
    """
    commit = None if is_offline() else resolve_commit(hub_id, revision)
    try:
        import datasets

        if commit is None:
            with _cache_only(datasets):
                loaded = datasets.load_dataset(hub_id, config, revision=revision)
        else:
            loaded = datasets.load_dataset(hub_id, config, revision=commit)
    except Exception as error:  # the library raises a dozen unrelated types; all mean "not loadable"
        raise _not_loadable(hub_id, config, error, reachable=commit is not None) from error
    tables = {name: _to_table(split, hub_id, commit or revision) for name, split in loaded.items()}
    return _canonical_names(hub_id, tables)


def _canonical_names(hub_id: str, tables: Mapping[str, RawTable]) -> dict[str, RawTable]:
    named = {canonical_split(name): table for name, table in tables.items()}
    named.pop(None, None)
    if named:
        return {split: table for split, table in named.items() if split is not None}
    if len(tables) == 1:
        return {ALL: next(iter(tables.values()))}
    raise DataError(
        f"Data set {hub_id} has the splits {', '.join(sorted(tables))}, none of them train, validation or test.",
        "Save the split you want as a file and name that file as the source.",
    )


def _to_table(split: Any, hub_id: str, revision: str | None) -> RawTable:
    """Rows of one split. Class ids get their name beside them: the ids' order differs from repository to repository."""
    names = {column: feature.names for column, feature in split.features.items() if hasattr(feature, "int2str")}
    rows = []
    for row in split:
        for column, labels in names.items():
            value = row[column]
            if isinstance(value, int) and 0 <= value < len(labels):
                row.setdefault(f"{column}_text", labels[value])
        rows.append(without_lone_surrogates(row))
    return RawTable(rows=tuple(rows), source=hub_id, revision=revision)


def resolve_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit ``revision`` stands for; None when the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(hub_id, revision=revision, timeout=_TIMEOUT_S).sha
    except GatedRepoError as error:
        raise DataError(f"Data set {hub_id} asks for its terms to be accepted.", "Accept them, then log in.") from error
    except RevisionNotFoundError as error:
        raise DataError(f"Data set {hub_id} has no revision {revision}.", "Check data.tasks[].revision.") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"Data set {hub_id} is not on the hub, or is private.", "Check the id, or name a local file or folder."
        ) from error
    except Exception as error:  # no route, no name, time-out, proxy: whatever the transport calls it
        logger.info("The hub cannot be reached for %s (%s); trying the local cache.", hub_id, type(error).__name__)
        return None


def _not_loadable(hub_id: str, config: str | None, error: Exception, *, reachable: bool) -> DataError:
    name = f"{hub_id} ({config})" if config else hub_id
    if not reachable:
        why = offline_reason() or "the hub is not reachable"
        return DataError(
            f"Data set {name} cannot be loaded: {why}, and the cache lacks it.",
            "Connect once to fetch it, or set data.tasks[].source to a file, a folder, or sample where one is shipped.",
        )
    reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    return DataError(f"Data set {name} cannot be loaded: {reason}.", "Check the id and config, or use a local file.")


@contextmanager
def _cache_only(datasets: Any) -> Iterator[None]:
    """Keeps `datasets` off the network: without a route it would retry for half a minute before it says so."""
    import huggingface_hub

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
