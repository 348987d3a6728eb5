"""The part of a model card that says how to use what lies beside it.

Enters: ``Recipe``, facts about the model, and the form it is in. Leaves: Markdown with code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from fintune.reporting.markup import markdown_text
from fintune.schema.recipe import Recipe

Form = Literal["run", "merged", "gguf"]
"""What the run itself saved (an adapter, or all weights), or an export of it: whole weights, or GGUF files."""
_HUB_ID = re.compile(
    r"^(?:sample of )?(?:hf://|https://huggingface\.co/(?:datasets/)?)?([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@\w+)?$"
)


def usage(recipe: Recipe, facts: Mapping[str, Any], form: Form) -> str:
    """How to load and ask the model."""
    if form == "gguf":
        return _GGUF
    base = base_id(recipe, facts)
    adapter = recipe.adapter.kind == "lora" and form == "run"
    if adapter:
        package = "peft"
        code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base or "path/to/the/base/model"}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""
    else:
        package = "transformers"
        code = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")"""
    source = str(facts.get("base_source") or "")
    derived = adapter and base is not None and bool(source) and hub_id(source) != base
    caveat = (
        f"\n\nThe scores above were measured on a copy of {markdown_text(base)} derived from a 4-bit file (Q4_1 GGUF), "
        "so with the base loaded from the hub they may differ slightly."
        if derived and base
        else ""
    )
    return f"""With fintune, which scores each label as a whole:

```python
import fintune

model = fintune.load("path/to/this/folder")
model.predict(["Operating profit rose to EUR 13.1 mn from EUR 8.7 mn."])
```

With {package} alone:

```python
{code}
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```{caveat}"""


def base_id(recipe: Recipe, facts: Mapping[str, Any]) -> str | None:
    """The hub id of the base model, when it has one."""
    return hub_id(str(facts.get("base_model") or recipe.model.base))


def hub_id(name: str) -> str | None:
    """The hub id in a source or base name; None for aliases and local paths, which mean nothing elsewhere."""
    found = _HUB_ID.match(name.strip())
    if found is None or found[1].endswith((".gguf", ".csv", ".json", ".jsonl", ".parquet", ".txt")):
        return None
    return found[1]


_GGUF = """With llama.cpp:

```bash
llama-server -m NAME-q8_0.gguf
```

With Ollama, by the `Modelfile` beside the files:

```bash
ollama create NAME -f Modelfile
ollama run NAME
```

The scores above were measured before the weights were rounded to the type in the file's name. Ask as the model was
trained to be asked: the prompts of its tasks are in fintune's documentation of tasks."""
