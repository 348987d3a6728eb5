"""How much of a fine-tuning a packed file still holds.

Enters: a GGUF file, the merged weights it was made of, and those of the untuned base. Leaves: a share, 1 where rounding
took nothing back. A base that was itself read from a packed file lies on that file's grid, and a small update does not
reach the next point of it: packed in the same way again, the tuned model is the untuned one. On any other grid the
rounding is as likely to go one way as the other, and of an update of many numbers all remains, under noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fintune.models.export.gguf_layout import Layout
from fintune.models.files import weight_files

_TENSORS = 12
"""Changed tensors that are looked at, evenly spaced: enough for a share that is right to a few hundredths."""


def kept_share(file: Path, layout: Layout, merged: Path, base: Path) -> float | None:
    """The share of what tuning changed that is still in the packed weights.

    With base W, merged weights M and packed weights P it is <P - W, M - W> / <M - W, M - W>.

    Args:
        file: the GGUF file.
        layout: of the model.
        merged: folder of the merged weights.
        base: folder of the untuned base.

    Returns:
        The share; None where no tensor was changed, or the base stores its weights under other names or packed.
    """
    import gguf

    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    tuned, untuned = _places(merged), _places(base)
    changed = [name for name in sorted(tuned) if name in untuned and _is_matrix(packed.get(layout.name(name)))]
    inner = size = 0.0
    found = 0
    for name in changed[:: max(1, len(changed) // (2 * _TENSORS))]:
        before, after = _read(untuned[name], name), _read(tuned[name], name)
        if before.shape != after.shape or not before.dtype.is_floating_point:
            return None
        before, after = before.float().numpy(), after.float().numpy()
        update = layout.ordered(name, after - before).astype("float64")
        if not update.any():
            continue
        tensor = packed[layout.name(name)]
        held = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(update.shape)
        inner += float(((held - layout.ordered(name, before)) * update).sum())
        size += float((update * update).sum())
        found += 1
        if found == _TENSORS:
            break
    return inner / size if size else None


def _places(folder: Path) -> Mapping[str, Path]:
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            places |= dict.fromkeys(stored.keys(), file)
    return places


def _read(file: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return stored.get_tensor(name)


def _is_matrix(tensor: Any) -> bool:
    return tensor is not None and len(tensor.shape) == 2
