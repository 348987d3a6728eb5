"""What decides a model's answers to the bit, in one line: unfinished work is gone on with only under the same.

Enters: the model as it is held, and its recipe. Leaves: a text that is the same wherever the files lie. What differs
from device to device is left out: such answers differ in their last bits, and are documented to.
"""

from __future__ import annotations

from fintune.models.adapter_files import AdapterInfo
from fintune.models.load import LoadedBase
from fintune.schema.recipe import ModelSection, Packing


def identity_of(
    loaded: LoadedBase,
    adapter: AdapterInfo | None,
    section: ModelSection,
    packing: Packing,
    tokens_per_batch: int | None,
    *,
    merged: bool = False,
    bf16_products: bool = False,
) -> str:
    """The line.

    Args:
        loaded: the base.
        adapter: what was trained; None for the base alone.
        section: how the recipe holds the base: attention and dtype as they were asked for.
        packing: how samples are packed.
        tokens_per_batch: scored at once, as the recipe says; None takes what suits device and model.
        merged: the adapter was added to the weights, so that sums are rounded otherwise.
        bf16_products: matrix products are in bf16.
    """
    held = [loaded.quantization, *["merged"] * merged, *["bf16 products"] * bf16_products]
    asked = [section.dtype, section.attention, packing, str(tokens_per_batch or "auto")]
    return "/".join([loaded.files.content_hash, adapter.content_hash if adapter else "base", *held, *asked])
