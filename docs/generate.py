"""Writes the reference pages that follow from code: recipe-reference.md, support-matrix.md, tasks.md and cli.md.

Run ``make docs`` after a change to the schema or to a task; a test fails while the pages are out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from fintune.cli.app import app
from fintune.schema.keys import FOREIGN_NAMES, Key, recipe_keys
from fintune.schema.support import CONFLICTS
from fintune.sources import has_sample
from fintune.tasks.base import Prompt, Task
from fintune.tasks.questions import QuestionPrompt, QuestionTask
from fintune.tasks.registry import get_task, list_tasks
from fintune.tasks.splits import TEST_FRACTION, VALIDATION_FRACTION
from fintune.tasks.suites import SUITES
from fintune.tasks.tagging import TaggingTask

SHOWN_LATER = (
    (
        "`model.attention: flex` or `triton` without a CUDA device",
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
TASKS_NOTE = "<!-- Written by docs/generate.py from the registered tasks; edit these, not this page. -->\n"
CLI_NOTE = "<!-- Written by docs/generate.py from the commands; edit these, not this page. -->\n"
SCORES = {
    "classification": "classification: accuracy, macro and weighted F1, MCC; quoted: `accuracy`",
    "questions": "questions: weighted F1 of each question and their plain mean; quoted: `avg_f1`",
    "tagging": "entities: micro F1, precision and recall of whole entities, F1 of each type; quoted: `entity_f1`",
    "qa": "questions over pages: right answers, and how exactly they are right; quoted: `accuracy`",
    "text": "free text: token F1 and ROUGE-L with the reference, share of equal answers; quoted: `token_f1`",
    "chat": "conversations: perplexities, the next turn among others, words and numbers of written answers",
}


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
        if key.section is not None and not _in_a_stage(key):
            prefix = f"{key.name}.0." if key.is_list else f"{key.name}."
            fields = [keys[prefix + name] for name in key.section.model_fields]
            lines += _table(f"`{key.name}`", _purpose(key), [field for field in fields if field.section is None])
        if key.name == "stages":
            lines += [
                "A stage also has `data`, `adapter` and `training`: of their keys, above, only those that differ.\n"
            ]
    lines += [
        "## Names from other toolkits\n",
        "These are not keys of a recipe; the error message points to the key that is.\n",
        "| elsewhere | here |",
        "| --- | --- |",
        *(f"| `{foreign}` | `{name}` |" for foreign, name in FOREIGN_NAMES.items()),
    ]
    return "\n".join(lines) + "\n"


def _in_a_stage(key: Key) -> bool:
    """The sections of a stage have the keys of the recipe's own."""
    return key.name.startswith("stages.0.")


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


def task_cards() -> str:
    """Every registered task: answers, scores, sources, splits, prompts, terms."""
    lines = [
        "# Tasks\n",
        TASKS_NOTE,
        "What can be trained on and measured. How answers are read and scored: [evaluation.md](evaluation.md).",
        "`fintune tasks NAME` prints a task's terms and prompts; a config is chosen as `data.tasks.0.config=NAME`.\n",
        "Rows are looked for in the task's folder below `FINTUNE_DATA_DIR`, then at its hub id, then in the shipped "
        "sample.",
        "From a hub id the repository's own splits are used. What stands under *split* is how splits are made from",
        "the original files; the report of a run says which rows it used.\n",
        "In a prompt `⏎` is a line break, `…` the document, and `<kind>` what a document is called, or what is asked",
        "about it: for headlines one of the nine questions, for ner_typing the entity.\n",
        "| suite | tasks |",
        "| --- | --- |",
        *(f"| `{name}` | {_linked(suite.tasks)} |" for name, suite in SUITES.items()),
        f"| `all` | all {len(list_tasks())} below |",
        "",
    ]
    for name in list_tasks():
        lines += _task_card(get_task(name))
    return "\n".join(lines).rstrip("\n") + "\n"


def _task_card(task: Task) -> list[str]:
    protocols = ", ".join(f"`{protocol}`" for protocol in task.protocols)
    rows = {
        "version": task.version,
        "answer": _answer_of(task),
        "scores": SCORES[task.scoring],
        "protocols": protocols,
        "longest written answer": f"{task.max_answer_tokens} tokens",
        "earlier turns show": {"given": "", "own": "the system's own answers"}[task.history],
        "configs": ", ".join(f"`{_named(config)}`" for config in task.configs) + " (the first is the default)"
        if task.configs
        else "",
        "folder": f"`{task.folder}`",
        "hub ids": ", ".join(
            f"`{hub_id}`" + (f" ({_named(config)})" if task.configs else "") for config, hub_id in task.hub_ids.items()
        )
        or "none",
        "shipped sample": "yes" if has_sample(task.name) else "no",
        "licence of the data": task.licence,
        "citation": task.citation,
    }
    configs = task.configs or ("",)
    return [
        f"## {task.name}\n",
        f"{task.description}\n",
        "| | |",
        "| --- | --- |",
        *(f"| {title} | {_cell(value)} |" for title, value in rows.items() if value),
        *(f"| split{_of_config(task, config)} | {_cell(_split_of(task, config))} |" for config in configs),
        "",
        "| prompt | wording | source |",
        "| --- | --- | --- |",
        *(_prompt_row(task, prompt) for prompt in task.prompts.values()),
        "",
    ]


def _answer_of(task: Task) -> str:
    if task.choices:
        return f"one of {', '.join(task.choices)}"
    if isinstance(task, TaggingTask):
        form = "`token:LABEL` line a token" if task.token_prompts else "`name, TYPE` a line, or None"
        return f"free: one {form}; types {', '.join(task.types)}"
    if isinstance(task, QuestionTask):
        return f"free: a number (right within {task.relative_tolerance:.1%}), yes or no, spans, or a program"
    return "free text"


def _split_of(task: Task, config: str) -> str:
    """How the rows of a config are divided: by the layout of its files, and what the task notes."""
    said = task.split_notes.get(config, "")
    if config in task.builders or config not in task.known_files:
        return said or "From the hub only; the repository's own splits."
    layout = set(task.known_files[config][0])
    if task.split_rule.get(config) == "fingpt":
        return (
            "FinGPT's: test is 25% of the 4,846 rows, drawn by `train_test_split` with seed 42; training rows whose "
            f"text is in the test leave. Validation is {VALIDATION_FRACTION:.0%} of the training texts, by hash."
        )
    if layout == {"all"}:
        return (
            f"None is published: test is a stratified {TEST_FRACTION:.0%} of the texts, chosen by hash, validation "
            f"{VALIDATION_FRACTION:.0%} of the rest."
        )
    if layout == {"train", "validation"}:
        return (
            "Test is the publisher's validation file, as no test file is published; validation is "
            f"{VALIDATION_FRACTION:.0%} of the training texts, by hash."
        )
    said = said or "The publisher's files."
    return f"{said} Validation is {VALIDATION_FRACTION:.0%} of the training texts, by hash."


def _prompt_row(task: Task, prompt: Prompt) -> str:
    wording = f"`{prompt.before}…{prompt.after}`".replace("\n", "⏎").replace("|", "\\|")
    default = " (default)" if prompt.name == task.default_prompt and len(task.prompts) > 1 else ""
    notes = [f"answered with {', '.join(prompt.words)}"] if prompt.words else []
    if isinstance(prompt, QuestionPrompt):
        notes += ["`…` is the page's table and the sentences nearest to the question"] * (prompt.context == "facts")
        notes += ["answered with a program"] * (prompt.form == "program")
    return f"| `{prompt.name}`{default} | {'; '.join([wording, *notes])} | {_cell(prompt.source)} |"


def _of_config(task: Task, config: str) -> str:
    return f", `{_named(config)}`" if task.configs else ""


def _named(config: str) -> str:
    return config or '""'


def _linked(names: tuple[str, ...]) -> str:
    return ", ".join(f"[{name}](#{name})" for name in names)


def command_line() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Command line\n",
        CLI_NOTE,
        "`fintune COMMAND --help` shows the same in the terminal. `--json`, `--offline` and `--debug` may stand",
        "anywhere; what follows `--` is text. Exit codes: 0 done, 2 a mistake in what was asked, 1 a fault of fintune,",
        "130 interrupted.\n",
    ]
    return "\n".join([*lines, *_commands(get_command(app), "fintune")]).rstrip("\n") + "\n"


def _commands(command: Any, called: str) -> list[str]:
    lines = []
    for name, child in sorted(command.commands.items()):
        if getattr(child, "commands", None):
            lines += [f"## {called} {name}\n", f"{_unwrapped(child.help)}\n", *_commands(child, f"{called} {name}")]
            continue
        arguments = [one for one in child.params if one.param_type_name == "argument"]
        options = [one for one in child.params if one.param_type_name == "option" and one.name != "help"]
        words = [called, name, *(_shown_argument(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
        lines += [f"{'#' * (1 + len(called.split()))} {called} {name}\n", f"{_unwrapped(child.help)}\n"]
        lines += ["```text", " ".join(words), "```\n"]
        rows = [f"| `{_shown_argument(one)}` | {_cell(one.help or '')} | |" for one in arguments]
        rows += [f"| {_flags(one)} | {_cell(one.help or '')} | {_default(one)} |" for one in options]
        lines += ["| argument or option | what it does | default |", "| --- | --- | --- |", *rows, ""] if rows else []
    return lines


def _unwrapped(text: str | None) -> str:
    """Help as one paragraph; typer keeps the line breaks of docstrings."""
    return _cell(" ".join((text or "").split()))


def _shown_argument(argument: Any) -> str:
    name = (argument.metavar or str(argument.name).upper()).rstrip(".")
    many = "..." if argument.nargs == -1 else ""
    return f"{name}{many}" if argument.required else f"[{name}]{many}"


def _flags(option: Any) -> str:
    asked = option.type_descriptor.annotation
    inner = [one for one in get_args(asked) if one is not type(None)]
    kind = "\\|".join(map(str, inner)) if get_origin(asked) is Literal else getattr(asked, "__name__", "value").upper()
    kind = {"STR": "TEXT", "LIST": "TEXT", "BOOL": ""}.get(kind, kind)
    return ", ".join(f"`{f'{name} {kind}'.strip()}`" for name in [*option.opts, *option.secondary_opts])


def _default(option: Any) -> str:
    default = getattr(option, "default", None)
    if default is None or default is False or default == () or callable(default):
        return "required" if option.required else ""
    return f"`{'yes' if default is True else default}`"


PAGES = {
    "cli.md": command_line,
    "recipe-reference.md": recipe_reference,
    "support-matrix.md": support_matrix,
    "tasks.md": task_cards,
}


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
