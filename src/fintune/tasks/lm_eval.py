"""A task with a closed label set as a folder that lm-evaluation-harness reads: prompts, answers and shots as here.

Enters: a ``LoadedTask``. Leaves: ``<task>.yaml``, the documents, training rows in the order in which they serve as
shots, a small module that the YAML names, and a README with version, terms and citation. The folder may be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fintune.schema import yaml_text
from fintune.schema.errors import DataError, RecipeError
from fintune.schema.example import Example, Message
from fintune.schema.run_directory import read_jsonl, write_json, write_text_atomically
from fintune.sources.overlap import remove_overlap
from fintune.tasks.base import LoadedTask
from fintune.tasks.selection import DRAW_SEED, select_rows
from fintune.tasks.shots import shot_order

PREFIX = "fintune_"
"""In front of a task's name, so that no task of the harness's own is meant."""
DOCUMENTS_FILE, SHOTS_FILE, MODULE = "test.jsonl", "train.jsonl", "fintune_task"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% elif message['role'] == 'assistant' %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
"""``model.chat_template`` for base models that says what the harness says without ``--apply_chat_template``."""
_NEAR_DUPLICATE = 0.6


@dataclass(frozen=True)
class ExportedTask:
    """What was written.

    Attributes:
        task: fintune's name of the task.
        name: what the harness calls it.
        folder: where it is.
        documents: rows that are scored.
        shots: rows that shots are taken from, from the first on.
    """

    task: str
    name: str
    folder: Path
    documents: int
    shots: int


def export_lm_eval(
    loaded: LoadedTask,
    output_dir: Path,
    *,
    split: Literal["test", "validation"] = "test",
    limit: int | None = None,
    seed: int = 17,
) -> ExportedTask:
    """Writes ``<output_dir>/<task>/`` for ``lm_eval --include_path <output_dir>``.

    Args:
        loaded: the task with its rows, under the prompt to be exported.
        output_dir: created where it does not exist.
        split: rows that are scored.
        limit: at most this many of them, the same ones that an evaluation with this limit scores.
        seed: of the order in which training rows serve as shots.

    Raises:
        DataError: the answers are free text, there are no rows, or a prompt has several turns.
        RecipeError: the task's name cannot name a folder.
    """
    name = loaded.task.name
    folder = output_dir / name
    if folder.resolve().parent != output_dir.resolve():
        raise RecipeError(f"The task name {name!r} cannot name a folder.", "Choose letters, digits and dashes.")
    documents = loaded.splits[split] if limit is None else select_rows(loaded.splits[split], limit, seed=DRAW_SEED)
    if not documents:
        raise DataError(f"The task {name} from {loaded.source} has no {split} rows.", "Choose another split or source.")
    if not all(example.choices for example in documents):
        raise DataError(
            f"The task {name} has no closed set of answers, and only likelihoods of such answers are exported.",
            "Leave it out.",
        )
    train, _ = remove_overlap(loaded.splits["train"], documents, threshold=_NEAR_DUPLICATE)
    shots = shot_order(train, seed=seed)
    _write_rows(folder / DOCUMENTS_FILE, documents)
    if shots:
        _write_rows(folder / SHOTS_FILE, shots)
    else:
        (folder / SHOTS_FILE).unlink(missing_ok=True)
    labels = {example.choices for example in documents}
    n_labels = len(labels.pop()) if len(labels) == 1 else 0
    write_text_atomically(folder / f"{MODULE}.py", _module(n_labels))
    write_text_atomically(folder / f"{name}.yaml", _yaml(loaded, bool(shots), bool(n_labels)))
    write_text_atomically(folder / "README.md", _readme(loaded, documents, shots, split))
    write_json(folder / "LICENCE.json", loaded.licence.model_dump(mode="json"))
    return ExportedTask(name, PREFIX + name, folder, len(documents), len(shots))


def read_export(folder: Path) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The documents and the training rows of an exported folder, in their order."""
    shots = folder / SHOTS_FILE
    return (
        tuple(_example(row, folder.name) for row in read_jsonl(folder / DOCUMENTS_FILE)),
        tuple(_example(row, folder.name) for row in read_jsonl(shots)) if shots.is_file() else (),
    )


def _write_rows(path: Path, examples: Sequence[Example]) -> None:
    # In ASCII: a tweet may hold U+2028, at which many readers would end the line.
    write_text_atomically(path, "".join(json.dumps(_row(example)) + "\n" for example in examples))


def _row(example: Example) -> dict[str, Any]:
    if [message.role for message in example.messages] not in (["user"], ["system", "user"]):
        raise DataError(
            f"Row {example.example_id} of {example.task} is a conversation of {len(example.messages)} turns, which "
            "lm-evaluation-harness cannot show a model.",
            "Leave the task out.",
        )
    if example.target not in example.choices:
        raise DataError(
            f"Row {example.example_id} of {example.task} has the answer {example.target!r}, which is not among its "
            "choices.",
            "Correct the row, or leave it out.",
        )
    return {
        "id": example.example_id,
        "group": example.group,
        "system": "".join(message.content for message in example.messages[:-1]),
        "prompt": example.messages[-1].content,
        "choices": list(example.choices),
        "gold": example.choices.index(example.target),
    }


def _example(row: Mapping[str, Any], task: str) -> Example:
    system = (Message("system", row["system"]),) if row["system"] else ()
    choices = tuple(row["choices"])
    turns = (*system, Message("user", row["prompt"]))
    return Example(row["id"], task, turns, choices[row["gold"]], choices, row["group"])


def _yaml(loaded: LoadedTask, has_shots: bool, has_f1: bool) -> str:
    task = loaded.task
    try:
        version: float | str = float(task.version)
    except ValueError:
        version = task.version
    config: dict[str, Any] = {
        "task": PREFIX + task.name,
        "test_split": "test",
        **({"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}} if has_shots else {}),
        "output_type": "multiple_choice",
        # Names of columns, not templates: a brace in a document must not be read as Jinja.
        "description": "system",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "metadata": {
            "version": version,
            "prompt": loaded.section.prompt,
            "source": loaded.source,
            "content_hash": loaded.content_hash,
        },
    }
    metrics = "metric_list:\n- metric: acc\n  aggregation: mean\n  higher_is_better: true\n"
    if has_f1:
        metrics += f"- metric: f1\n  aggregation: !function {MODULE}.macro_f1\n  higher_is_better: true\n"
    return f"{yaml_text.dump(config)}custom_dataset: !function {MODULE}.load_splits\n{metrics}"


def _module(n_labels: int) -> str:
    return f'''"""What the YAML beside names: the rows of this folder, wherever it is, and macro-F1 over all labels."""

import json
from pathlib import Path

from datasets import Dataset, DatasetDict

FOLDER = Path(__file__).parent
N_LABELS = {n_labels}


def load_splits(**_):
    """The rows by split."""
    files = {{"test": FOLDER / "{DOCUMENTS_FILE}", "train": FOLDER / "{SHOTS_FILE}"}}
    return DatasetDict({{split: _rows(file) for split, file in files.items() if file.exists()}})


def _rows(file):
    with file.open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines])


def macro_f1(items):
    """The plain mean of F1 over all labels, from (right answer, answer) pairs; 0 for a label that never occurs."""
    scores = []
    for label in range(N_LABELS):
        hits = sum(gold == label == int(answer) for gold, answer in items)
        named = sum((gold == label) + (int(answer) == label) for gold, answer in items)
        scores.append(2 * hits / named if named else 0.0)
    return sum(scores) / N_LABELS
'''


def _readme(loaded: LoadedTask, documents: Sequence[Example], shots: Sequence[Example], split: str) -> str:
    task, licence = loaded.task, loaded.licence
    name = PREFIX + task.name
    few = (
        f"Shots are the first rows of `{SHOTS_FILE}` ({len(shots):,} training rows without those that are also, or "
        "nearly, held out; labels take turns): the same ones for every document."
        if shots
        else "There are no training rows, so only zero-shot runs are possible."
    )
    return f"""# {task.name} for lm-evaluation-harness

{task.description}

| | |
| --- | --- |
| version | {task.version} |
| prompt | {loaded.section.prompt} |
| documents | {len(documents):,} ({split}) |
| licence of the data | {licence.licence} |
| citation | {licence.citation} |
| source | {licence.source} |
| split | {licence.split_note} |
| rows as read (SHA-256) | {licence.content_hash} |

Chat models:

```bash
lm_eval --model hf --model_args pretrained=MODEL --include_path .. --tasks {name} \\
    --apply_chat_template --fewshot_as_multiturn true --num_fewshot 0
```

Base models: leave out `--apply_chat_template` and `--fewshot_as_multiturn`. Models that can think need
`enable_thinking=False` in `--model_args`.

{few}
"""
