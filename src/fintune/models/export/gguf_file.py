"""A model folder as one GGUF file, which llama.cpp and what is built on it load.

Enters: a folder in Hugging Face layout. Leaves: the file, written aside and renamed. Tensors are read, packed and
written one by one, so memory holds one of them, not the model.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fintune.models.export.gguf_layout import Layout, layout_of, write_layout
from fintune.models.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from fintune.models.files import read_json, stated_licence, weight_files
from fintune.schema.errors import ModelError
from fintune.schema.run_directory import writing

if TYPE_CHECKING:
    import gguf

# llama.cpp's number of each kind of file (enum llama_ftype).
FILE_TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
KINDS = tuple(sorted(FILE_TYPES))
_FINER = "q8_0"
"""What the embedding and the output layer are packed in where the rest has 4 or 5 bits: every answer passes them."""
_RANGE = 65_504.0
"""The largest number of fp16."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that was written.

    Attributes:
        path: the file.
        kind: how most of its weights are packed.
        architecture: llama.cpp's name of the model.
        pre_tokenizer: llama.cpp's name of the rule that splits texts.
        bytes: size of the file.
        tensors: their number, by how they are packed.
        context: tokens it reads at most.
        notes: what llama.cpp does otherwise than transformers, in sentences.
        kept: share of the tuning that its rounding leaves, by ``kept_share``; None where it was not measured.
    """

    path: Path
    kind: str
    architecture: str
    pre_tokenizer: str
    bytes: int
    tensors: dict[str, int]
    context: int
    notes: tuple[str, ...]
    kept: float | None = None


def write_gguf(folder: Path, file: Path, kind: str = "q8_0", *, name: str = "") -> GgufFile:
    """Writes the model in ``folder`` as a GGUF file.

    Args:
        folder: whole model in Hugging Face layout, safetensors.
        file: what to write; replaced in one step.
        kind: f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0. Where it has 4 or 5 bits, the embedding and the output layer
            have 8; norms are always fp32, and rows that no block of 32 fits are fp16.
        name: title of the model; the folder's name when empty.

    Raises:
        ModelError: llama.cpp has no such architecture or tokenizer, a weight does not fit into fp16, or ``kind`` is
            unknown.
        RunError: the file could not be written.
    """
    if kind not in FILE_TYPES:
        raise ModelError(f"{kind} is no kind of GGUF file.", f"Choose from {', '.join(KINDS)}.")
    from transformers import AutoConfig, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    layout = layout_of(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    vocabulary = gguf_vocabulary(tokenizer, int(config.vocab_size), end_tokens(folder))
    aside = file.with_name(f".{file.name}.partial-{uuid.uuid4().hex[:12]}")
    with writing(file):
        try:
            counts = _write(folder, aside, kind, layout, vocabulary, name or folder.name, tokenizer.chat_template)
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)
    return GgufFile(
        path=file,
        kind=kind,
        architecture=layout.architecture,
        pre_tokenizer=vocabulary.pre,
        bytes=file.stat().st_size,
        tensors=counts,
        context=layout.context,
        notes=(*layout.notes, *vocabulary.notes),
    )


def end_tokens(folder: Path) -> list[int]:
    """The tokens that end an answer, as the folder's generation configuration, or its configuration, says."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("eos_token_id")
            if found is not None:
                return [int(number) for number in (found if isinstance(found, list) else [found])]
    return []


def _write(
    folder: Path, file: Path, kind: str, layout: Layout, vocabulary: GgufVocabulary, name: str, template: Any
) -> dict[str, int]:
    import gguf

    writer = gguf.GGUFWriter(file, layout.architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        if (licence := stated_licence(folder)) != "unknown":
            writer.add_license(licence)
        write_layout(writer, layout)
        _write_vocabulary(writer, vocabulary)
        if template:
            writer.add_chat_template(
                template if isinstance(template, str) else [{"name": k, "template": v} for k, v in template.items()]
            )
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        counts: dict[str, int] = {}
        extra = layout.extra_tensors()
        for tensor, weights in extra.items():
            writer.add_tensor_info(tensor, weights.shape, weights.dtype, weights.nbytes)
        for source, shape in _shapes(folder, layout):
            packed = _packing(layout.name(source), shape, kind)
            counts[packed.name.lower()] = counts.get(packed.name.lower(), 0) + 1
            _add_info(writer, layout.name(source), shape, packed)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weights in extra.values():
            writer.write_tensor_data(weights)
        for source, weights in _weights(folder, layout):
            packed = _packing(layout.name(source), weights.shape, kind)
            writer.write_tensor_data(_packed(source, layout.ordered(source, weights), packed))
    finally:
        writer.close()
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return counts


def _write_vocabulary(writer: gguf.GGUFWriter, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    for role, number in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)


def _shapes(folder: Path, layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            for source in sorted(stored.keys()):
                if not _is_left_out(source, layout):
                    yield source, tuple(stored.get_slice(source).get_shape())


def _weights(folder: Path, layout: Layout) -> Iterator[tuple[str, Any]]:
    """Each tensor in fp32, in the order of ``_shapes``."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            for source in sorted(stored.keys()):
                if not _is_left_out(source, layout):
                    yield source, stored.get_tensor(source).float().numpy()


def _is_left_out(source: str, layout: Layout) -> bool:
    return source.endswith("rotary_emb.inv_freq") or (layout.tied and source == "lm_head.weight")


def _packing(name: str, shape: tuple[int, ...], kind: str) -> Any:
    """How a tensor is packed."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return kinds.F32
    outer = name in ("token_embd.weight", "output.weight") and kind.startswith(("q4", "q5"))
    wanted = kinds[(_FINER if outer else kind).upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else kinds.F16


def _add_info(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], packed: Any) -> None:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if packed in (kinds.F32, kinds.F16):
        dtype = np.dtype(np.float32 if packed == kinds.F32 else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
        return
    in_bytes = gguf.quant_shape_to_byte_shape(shape, packed)
    writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), raw_dtype=packed)


def _packed(source: str, weights: Any, packed: Any) -> Any:
    import gguf

    largest = float(np.abs(weights).max(initial=0.0))
    if not np.isfinite(largest) or (packed.name != "F32" and packed.name != "BF16" and largest > _RANGE):
        raise ModelError(
            f"{source} holds {largest:g}, which does not fit into {packed.name.lower()}.", "Export it as bf16."
        )
    return gguf.quants.quantize(weights, packed)
