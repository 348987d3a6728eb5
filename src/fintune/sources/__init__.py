"""Where rows come from: files, folders, the hub, shipped samples; and what two sets of texts have in common.

Enters: a path, a hub id or the name of a sample. Leaves: ``RawTable`` objects, which say where their rows came from
and carry their hash, and overlap counts between lists of ``Example``. Nothing here knows what a task is.
"""

from fintune.sources.files import read_file
from fintune.sources.folder import read_folder
from fintune.sources.hub import looks_like_hub_id, read_hub
from fintune.sources.overlap import count_overlap, remove_overlap
from fintune.sources.sample import has_sample, read_sample
from fintune.sources.table import ALL, RawTable, hash_tables
from fintune.sources.text import group_key, normalise_text

__all__ = [
    "ALL",
    "RawTable",
    "count_overlap",
    "group_key",
    "has_sample",
    "hash_tables",
    "looks_like_hub_id",
    "normalise_text",
    "read_file",
    "read_folder",
    "read_hub",
    "read_sample",
    "remove_overlap",
]
