"""Writes the reference pages that follow from code: recipe-reference.md and support-matrix.md.

Run ``make docs`` after a change to the schema; a test fails while the pages are out of date.
"""

from __future__ import annotations

from pathlib import Path

from fintune.schema.keys import FOREIGN_NAMES, Key, recipe_keys
from fintune.schema.support import CONFLICTS

SHOWN_LATER = (
    (
        "`model.attention: flex` without a CUDA device",
        "once the model is loaded",
        "An error; set `model.attention` to auto or sdpa.",
    ),
    (
        "`model.quantization` that differs from what a checkpoint is already stored in",
        "when its configuration is read",
        "An error; set `model.quantization=none`, and it loads as it is stored.",
    ),
    (
        "`training.packing` other than none for an architecture that cannot share prefixes exactly (recurrent layers, "
        "RoPE scaled by the longest position of the batch)",
        "once the model is loaded",
        "Samples are padded instead, and a warning says why; results are the same, only slower.",
    ),
    (
        "`training.packing: tree` for experts that are balanced per token",
        "once the model is loaded",
        "Samples are packed without sharing prefixes, and a warning says why.",
    ),
)
NOTE = "<!-- Written by docs/generate.py from the schema; edit that, not this page. -->\n"


def recipe_reference() -> str:
    """Every key of the recipe: what it accepts, its default, and what it does."""
    lines = [
        "# Recipe reference\n",
        NOTE,
        "A recipe is one YAML file; `fintune recipes quickstart` prints one with comments. Any key can be changed",
        "for one run on the command line, as in",
        "`fintune train quickstart training.epochs=2 adapter.rank=8 --output-dir runs/two-epochs`. Numbers",
        "may be written as `2e-4`; positions in lists count from 0; `null` clears a value. Unknown keys are errors.\n",
    ]
    keys = recipe_keys()
    lines += _table("Top level", "", [key for key in keys.values() if "." not in key.name and key.section is None])
    for key in keys.values():
        if key.section is not None:
            prefix = f"{key.name}.0." if key.is_list else f"{key.name}."
            fields = [keys[prefix + name] for name in key.section.model_fields]
            lines += _table(f"`{key.name}`", _purpose(key), [field for field in fields if field.section is None])
    lines += [
        "## Names from other toolkits\n",
        "These are not keys of a recipe; the error message points to the key that is.\n",
        "| elsewhere | here |",
        "| --- | --- |",
        *(f"| `{foreign}` | `{name}` |" for foreign, name in FOREIGN_NAMES.items()),
    ]
    return "\n".join(lines) + "\n"


def support_matrix() -> str:
    """What cannot be combined, why, and what to do instead."""
    lines = [
        "# Support matrix\n",
        NOTE,
        "Checked before anything loads, wherever the recipe alone tells that it cannot run:\n",
        "| keys | why not | instead |",
        "| --- | --- | --- |",
        *(f"| `{c.keys[0]}`, `{c.keys[1]}` | {_cell(c.reason)} | {_cell(c.remedy)} |" for c in CONFLICTS),
        "",
        "What depends on the machine, the checkpoint or the architecture shows later:\n",
        "| what | when it shows | what happens |",
        "| --- | --- | --- |",
        *(f"| {what} | {when} | {happens} |" for what, when, happens in SHOWN_LATER),
    ]
    return "\n".join(lines) + "\n"


PAGES = {"recipe-reference.md": recipe_reference, "support-matrix.md": support_matrix}


def _purpose(key: Key) -> str:
    documentation = (key.section.__doc__ or "").strip() if key.section is not None else ""
    listed = " A list; each entry has these keys." if key.is_list else ""
    return f"{key.field.description or documentation}{listed}"


def _table(title: str, purpose: str, keys: list[Key]) -> list[str]:
    lines = [f"## {title}\n"]
    if purpose:
        lines.append(f"{purpose}\n")
    lines += ["| key | accepts | default | effect |", "| --- | --- | --- | --- |"]
    for key in keys:
        default = "required" if key.field.is_required() else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {_cell(key.accepts)} | {default} | {_cell(key.field.description or '')} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> None:
    """Writes every page beside this file."""
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
