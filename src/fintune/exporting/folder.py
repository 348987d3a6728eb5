"""The folder of an export, part by part: whole weights, adapter, GGUF files, settings of other programs, model cards.

Enters: ``Source`` and an empty folder. Leaves: ``ExportReport`` and the files it names.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.exporting.settings import write_adapter, write_settings
from fintune.exporting.source import Source
from fintune.schema.errors import ModelError
from fintune.schema.run_directory import write_json

if TYPE_CHECKING:
    import torch

    from fintune.models.export.gguf_file import GgufFile
    from fintune.models.merging import MergeReport
    from fintune.models.named import Half

_LEAST_KEPT = 0.5
_PROBES = (
    "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in 2007; net sales were 1,234,567.89.\n\n\n2008:  +12%\t(Q4)",
    "$AAPL +3.4% \u2014 \u201cbeat\u201d; \u20ac1.2bn, \u00a3900k \U0001f680\U0001f4c8 \u00e9\u00df \u4e2d",
    "  leading, trailing  \n\r\n1 22 333 4444 55555\nI'll don't WE'VE it's\n   \n\tx_y-z/10-K?v=1&w=2 <b>3.0</b>...",
    "a\n\n b\n  \n   c d\u3000e\u200bf 1\u00bd \u0661\u0662 \u043f\u0440\u0438 \u0644\u0644 \ud55c\uad6d !!!???---",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: its folder.
        files: name within it and size in bytes, by name.
        merge: how far the merged weights are from the adapter on its base; None where nothing was merged.
        gguf: the GGUF files.
        tokens_checked: texts that llama.cpp split as the tokenizer does; None where llama.cpp is not installed.
        notes: what to know of these files, in sentences.
    """

    path: Path
    files: dict[str, int]
    merge: MergeReport | None = None
    gguf: tuple[GgufFile, ...] = ()
    tokens_checked: int | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class WeightForm:
    """How whole weights are made.

    Attributes:
        dtype: bfloat16 or float16.
        shard_bytes: largest file.
        device: of the merge.
    """

    dtype: Half
    shard_bytes: int
    device: torch.device


def write_folder(
    source: Source, aside: Path, asked: Sequence[str], form: WeightForm, *, explicit: bool
) -> ExportReport:
    """Writes an export into an empty folder.

    Args:
        source: what is exported.
        aside: the folder.
        asked: the formats.
        form: of the merged weights.
        explicit: the formats were named, so that one that cannot be written is an error.
    """
    told = write_adapter(source, aside) if "adapter" in asked and source.adapter is not None else []
    if set(asked) == {"adapter"}:
        return ExportReport(aside, {}, notes=tuple(told))
    report = _write_weights(source, aside, asked, form, explicit=explicit)
    return replace(report, notes=(*report.notes, *told))


def _write_weights(
    source: Source, aside: Path, asked: Sequence[str], form: WeightForm, *, explicit: bool
) -> ExportReport:
    """Whole weights and GGUF files, with settings and cards."""
    from fintune.models.export.llama_cpp import has_llama_cpp

    notes: list[str] = []
    kinds = [one for one in asked if one not in ("merged", "adapter")]
    merged = aside / "merged"
    merge, licence = _whole(source, merged, form)
    if kinds and not explicit and (reason := _no_gguf(merged)):
        kinds = []
        notes.append(f"No GGUF file: {reason}")
    gguf = _write_gguf(source, merged, aside / "gguf", kinds) if kinds else ()
    notes += [note for note in dict.fromkeys(note for one in gguf for note in one.notes)]
    checked = None
    if gguf and has_llama_cpp():
        checked, otherwise = _check_tokens(gguf[0], merged)
        notes += otherwise
    elif gguf:
        notes.append("Not checked against llama.cpp, which is not installed: pip install 'fintune[llamacpp]'.")
    write_settings(source, aside, merged, gguf, asked)
    _write_cards(source, aside, licence)
    if "merged" not in asked:
        shutil.rmtree(merged)
    return ExportReport(aside, {}, merge, gguf, checked, tuple(notes))


def _whole(source: Source, folder: Path, form: WeightForm) -> tuple[MergeReport | None, str]:
    """The whole model in 16 bits, and its base's licence."""
    from fintune.models.export.whole import write_whole
    from fintune.models.files import read_json, stated_licence
    from fintune.models.merging import MERGE_NOTE, merge_adapter

    dtype, size = form.dtype, form.shard_bytes
    if source.adapter is None:
        return None, write_whole(source.section, folder, dtype=dtype, shard_bytes=size)
    report = merge_adapter(source.section, source.adapter, folder, device=form.device, dtype=dtype, shard_bytes=size)
    note = read_json(folder / MERGE_NOTE)
    write_json(folder / MERGE_NOTE, {key: value for key, value in note.items() if key not in ("path", "adapter")})
    return report, stated_licence(folder)


def _no_gguf(folder: Path) -> str:
    """Why llama.cpp cannot have this model; empty where it can."""
    from transformers import AutoConfig, AutoTokenizer

    from fintune.models.export.gguf_layout import layout_of
    from fintune.models.export.gguf_vocabulary import gguf_vocabulary
    from fintune.models.own import know_own_models

    know_own_models()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layout_of(config)
        gguf_vocabulary(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), int(config.vocab_size))
    except ModelError as error:
        return error.message
    return ""


def _write_gguf(source: Source, merged: Path, folder: Path, kinds: Sequence[str]) -> tuple[GgufFile, ...]:
    from fintune.models.export.gguf_file import write_gguf
    from fintune.models.export.llama_cpp import K_FILE_TYPES, quantize

    folder.mkdir()
    files: list[GgufFile] = []
    wide: GgufFile | None = None
    for kind in sorted(kinds, key=lambda kind: kind in K_FILE_TYPES):
        file = folder / f"{source.name}-{kind}.gguf"
        if kind not in K_FILE_TYPES:
            files.append(write_gguf(merged, file, kind, name=source.name))
            wide = files[-1] if kind == "f16" else wide
            continue
        kept = wide is not None
        wide = wide or write_gguf(merged, folder / ".wide.gguf", "f16", name=source.name)
        quantize(wide.path, file, kind)
        files.append(replace(wide, path=file, kind=kind, bytes=file.stat().st_size, tensors=_tensors(file)))
        wide = wide if kept else wide
    (folder / ".wide.gguf").unlink(missing_ok=True)
    if source.adapter is not None:
        files = [_measured(source, merged, one) for one in files]
    order = list(kinds)
    return tuple(sorted(files, key=lambda one: order.index(one.kind)))


def _measured(source: Source, merged: Path, file: GgufFile) -> GgufFile:
    """The file with the share of the tuning that its rounding leaves.

    Raises:
        ModelError: it leaves little, so that the file would answer as the untuned base does.
    """
    from transformers import AutoConfig

    from fintune.models.export.gguf_layout import layout_of
    from fintune.models.export.kept import kept_share
    from fintune.models.locate import locate_base

    if file.kind in ("f16", "bf16"):
        return file
    layout = layout_of(AutoConfig.from_pretrained(merged, trust_remote_code=False))
    share = kept_share(file.path, layout, merged, locate_base(source.section).path)
    if share is not None and share < _LEAST_KEPT:
        raise ModelError(
            f"As {file.kind} only {share:.0%} of what tuning changed would be left: the base lies on the same grid, as "
            "one does that came from such a file, and the rounding takes the small update back.",
            "Leave it out of --formats, and choose q8_0 or another kind.",
        )
    return replace(file, kept=share)


def _tensors(file: Path) -> dict[str, int]:
    import gguf

    return dict(Counter(tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(file).tensors))


def _check_tokens(file: GgufFile, merged: Path) -> tuple[int, list[str]]:
    """The number of texts that llama.cpp splits as the tokenizer does, and what it does otherwise.

    Raises:
        ModelError: it splits one otherwise that it should not.
    """
    from transformers import AutoTokenizer

    from fintune.models.export.llama_cpp import tokens_of

    tokenizer: Any = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    sentencepiece = file.pre_tokenizer == "default"  # whose leading space llama.cpp treats in its own way
    probes = [text.strip() for text in _PROBES] if sentencepiece else list(_PROBES)
    for text, found in zip(probes, tokens_of(file.path, probes), strict=True):
        if found != tokenizer(text, split_special_tokens=True)["input_ids"]:
            raise ModelError(
                f"llama.cpp splits {text[:40]!r}... into other tokens than the tokenizer does.",
                "Export it as merged, without GGUF, and report this tokenizer.",
            )
    if not tokenizer.chat_template:
        return len(probes), []
    turns = [{"role": "user", "content": probes[0]}]
    chat = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    expected = tokenizer(chat, add_special_tokens=False)["input_ids"]
    if tokens_of(file.path, [chat], control=True) == [expected]:
        return len(probes) + 1, []
    return len(probes), ["llama.cpp splits a rendered chat into other tokens than the tokenizer does."]


def _write_cards(source: Source, aside: Path, licence: str) -> None:
    """A model card in each folder of weights: the run's, where it was evaluated, else the licence alone."""
    from fintune.reporting.card import write_model_card

    forms: dict[str, Any] = {"merged": aside / "merged", "gguf": aside / "gguf"}
    for form, folder in forms.items():
        if not folder.is_dir():
            continue
        if source.run is not None and source.recipe is not None:
            kind: Any = form
            results, facts = source.run.read_results(), source.run.read_facts()
            write_model_card(folder, recipe=source.recipe, results=results, model_facts=facts, form=kind)
        else:
            text = f"---\nlicense: {licence}\n---\n{source.name}, exported by fintune.\n"
            (folder / "README.md").write_text(text, encoding="utf-8")
