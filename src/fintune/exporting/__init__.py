"""``fintune.export``: a run, an adapter or a model in the forms that other programs read.

Enters: what was trained. Leaves: one folder, written aside and renamed:

::

    exported/
      merged/             16-bit safetensors in shards, tokenizer, chat template, generation configuration, model card
      adapter/            the adapter, for servers that hold the base once and several adapters beside it
      gguf/               NAME-q8_0.gguf and further ones, Modelfile, model card
      vllm-merged.yaml, vllm-lora.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fintune.exporting.folder import ExportReport, WeightForm, write_folder
from fintune.exporting.source import find_source
from fintune.schema.errors import AdapterError, ModelError
from fintune.schema.run_directory import writing

__all__ = ["ExportReport", "export"]

DEFAULT_FORMATS = ("merged", "adapter", "q8_0")


def export(
    source: str | Path,
    output_dir: str | Path,
    *,
    formats: Sequence[str] = (),
    name: str | None = None,
    dtype: str = "bfloat16",
    shard_size: str = "5GB",
    quantization: str | None = None,
    device: str | None = None,
) -> ExportReport:
    """Writes a model in the forms that other programs read.

    Args:
        source: run directory, adapter folder, named adapter, or anything ``model.base`` takes.
        output_dir: folder to make.
        formats: merged, adapter, and kinds of GGUF: f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, and by llama.cpp itself,
            where it is installed, q4_k_s, q4_k_m, q5_k_s, q5_k_m and q6_k. Merged, adapter and q8_0 when empty; an
            adapter only where there is one, and GGUF only where llama.cpp knows the model.
        name: of files and of the served model; the run's when None.
        dtype: bfloat16 or float16, of the merged weights.
        shard_size: largest file of merged weights, such as 5GB.
        quantization: how the base is held before the merge; as the adapter was trained when None.
        device: torch device of the merge, which needs four bytes a weight there; a GPU if there is one, when None.

    Raises:
        AdapterError: ``output_dir`` exists, or ``source`` has no adapter and one was asked for.
        ModelError: there is no such format, size, device or quantization, the model cannot be loaded, or llama.cpp
            has no such model or tokenizer; or another program has made ``output_dir`` meanwhile.
        RunError: the run is not trained to its end, or the files could not be written.
    """
    from fintune.models.files import written_aside
    from fintune.models.named import named_bytes, named_dtype
    from fintune.session import find_device

    target = Path(output_dir).expanduser()
    if target.exists():
        raise AdapterError(f"{target} exists, and would be overwritten.", "Choose another --output.")
    form = WeightForm(named_dtype(dtype), named_bytes(shard_size), find_device(device))
    asked = _known_formats(formats)
    found = find_source(source, quantization=quantization, name=name)
    if found.adapter is None and "adapter" in formats:
        raise AdapterError(f"{source} has no LoRA adapter to export.", "Leave adapter out of --formats.")
    with writing(target), written_aside(target, replace=False) as aside:
        report = write_folder(found, aside, asked, form, explicit=bool(formats))
        sizes = {str(file.relative_to(aside)): file.stat().st_size for file in _files(aside)}
        for name in sizes:
            (aside / name).chmod(_usual_mode(aside))  # safetensors writes for the owner's eyes only
    gguf = tuple(replace(one, path=target / one.path.relative_to(aside)) for one in report.gguf)
    merge = replace(report.merge, path=target / "merged") if report.merge is not None else None
    return replace(report, path=target, files=sizes, gguf=gguf, merge=merge)


def _known_formats(formats: Sequence[str]) -> tuple[str, ...]:
    from fintune.models.export.gguf_file import KINDS
    from fintune.models.export.llama_cpp import K_FILE_TYPES, require_llama_cpp

    asked = tuple(dict.fromkeys(formats or DEFAULT_FORMATS))
    known = ("merged", "adapter", *KINDS, *K_FILE_TYPES)
    if unknown := [one for one in asked if one not in known]:
        raise ModelError(f"{unknown[0]} is no format to export to.", f"Choose from {', '.join(known)}.")
    if any(one in K_FILE_TYPES for one in asked):
        require_llama_cpp()
    return asked


def _usual_mode(folder: Path) -> int:
    """The permissions of a file made as any other program makes one."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
