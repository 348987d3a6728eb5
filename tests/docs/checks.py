"""What a block is held to without running it: the real parsers, the schema, imports, names and signatures."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import re
import subprocess
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from fintune.cli import _split_flags
from fintune.cli.app import app
from fintune.cli.output import Output
from fintune.schema.errors import FintuneError
from fintune.schema.loading import list_recipes, load_recipe
from fintune.schema.yaml_text import parse
from fintune.sources.corpus.settings import sources_of
from tests.docs.blocks import ROOT, Block, Command, fintune_arguments, shell_text

# Programs of the system, or of a library that only starts others: nothing of ours to check in their arguments.
SYSTEM = {
    "export",
    "source",
    "cd",
    "mkdir",
    "printf",
    "echo",
    "cat",
    "head",
    "ls",
    "cp",
    "for",
    "srun",
    "git",
    "tensorboard",
    "ollama",
    "vllm",
    "llama-cli",
}


def check_shell_syntax(block: Block) -> None:
    """Asks bash to read the block without running it."""
    read = subprocess.run(["bash", "-n"], input=shell_text(block), text=True, capture_output=True, check=False)
    assert read.returncode == 0, f"{block.place}: {read.stderr}"


def check_command(command: Command) -> None:
    """A command of ours is parsed by its parser; of others, what they name of ours must exist."""
    arguments = fintune_arguments(command)
    first = command.words[0]
    if arguments is not None:
        check_fintune(arguments, command.place)
    elif first == "make":
        check_make(command)
    elif first in ("pip", "python", "python3", "uv"):
        check_python_program(command)
    elif first == "curl":
        check_request(command)
    else:
        assert first in SYSTEM, f"{command.place}: no rule for {first!r}; write one in tests/docs/checks.py"


def check_request(command: Command) -> None:
    """A request to our server: the address exists and the body is what it takes."""
    address = next(word for word in command.words if word.startswith("http"))
    body = json.loads(command.words[command.words.index("-d") + 1])
    wire = importlib.import_module("fintune.serving.server.wire")
    kinds = {
        "v1/classify": "ClassifyRequest",
        "v1/chat/completions": "ChatRequest",
        "v1/completions": "CompletionRequest",
    }
    path = address.partition("://")[2].partition("/")[2]
    assert path in kinds, f"{command.place}: no rule for /{path}; write one in tests/docs/checks.py"
    getattr(wire, kinds[path]).model_validate(body)


def check_fintune(arguments: list[str], place: str) -> None:
    """Parses the arguments with the real commands, whose bodies are taken out, and validates the recipe they name."""
    tree, seen = _parser()
    seen.clear()
    rest, _ = _split_flags(arguments)
    try:
        tree(rest, prog_name="fintune", standalone_mode=False, obj=Output(json=False, debug=False, arguments=rest))
    except Exception as error:
        raise AssertionError(f"{place}: fintune {' '.join(arguments)}: {error}") from error
    for given in seen:
        _check_recipe(given, place)


@cache
def _parser() -> tuple[Any, list[Mapping[str, Any]]]:
    """The commands without their bodies, which takes a while to make, and what the last one was given."""
    seen: list[Mapping[str, Any]] = []
    tree = get_command(app)
    _take_out_bodies(tree, seen)
    return tree, seen


def _take_out_bodies(command: Any, seen: list[Mapping[str, Any]]) -> None:
    commands = getattr(command, "commands", None)
    if commands is None or command.callback is None:
        command.callback = lambda **given: seen.append(given)
    elif command.invoke_without_command:
        command.callback = lambda **_: None
    for child in (commands or {}).values():
        _take_out_bodies(child, seen)


@cache
def _shipped() -> set[str]:
    return {info.name for info in list_recipes()}


def _check_recipe(given: Mapping[str, Any], place: str) -> None:
    """Recipe, overrides and tasks of a parsed command."""
    recipe, overrides = given.get("recipe"), given.get("overrides") or ()
    if isinstance(recipe, str) and "=" in recipe:  # as in ``fintune train --data FILE training.epochs=2``
        recipe, overrides = "quickstart", [recipe, *overrides]
    if recipe in _shipped() or (recipe is None and overrides):
        try:
            load_recipe(recipe or "quickstart", overrides)
        except FintuneError as error:
            raise AssertionError(f"{place}: {error}") from error
    elif isinstance(recipe, str):
        assert recipe.endswith((".yaml", ".yml")), f"{place}: {recipe} is no shipped recipe"


def check_make(command: Command) -> None:
    """The targets of a make command are in the Makefile, and so are the variables it sets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??=", makefile, re.MULTILINE))
    for word in command.words[1:]:
        name, assigned, _ = word.partition("=")
        assert name in (variables if assigned else targets), f"{command.place}: the Makefile has no {name}"


def check_python_program(command: Command) -> None:
    """Extras of fintune that are installed exist; a script of ours exists and has the options."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for names in re.findall(r"(?:^|\s)(?:fintune|\.)\[([\w,]+)\]", " ".join(command.words)):
        assert set(names.split(",")) <= set(extras), f"{command.place}: there is no extra {names}"
    if "-c" in command.words and (constraints := command.words[command.words.index("-c") + 1]).endswith(".txt"):
        assert (ROOT / constraints).is_file(), f"{command.place}: {constraints} does not exist"
    script = next((word for word in command.words[1:2] if word.endswith(".py")), None)
    if script is not None:
        assert (ROOT / script).is_file(), f"{command.place}: {script} does not exist"
        known = _script_words(ROOT / script)
        for word in command.words[2:]:
            if word.startswith("--"):
                assert word in known, f"{command.place}: {script} has no option {word}"


def _script_words(script: Path) -> set[str]:
    """Every string in the script and the modules beside it that it imports: its options are among them."""
    package = script.parent.name
    found = set()
    for file in [script, *(ROOT / package).glob("*_runs/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def check_yaml(block: Block) -> None:
    """A recipe is validated against the schema, a list of sources by the reader of such files."""
    values, _ = parse(block.text)
    assert isinstance(values, dict), f"{block.place}: no mapping"
    try:
        if "sources" in values:
            sources_of(values["sources"])
        else:
            load_recipe(values)
    except FintuneError as error:
        raise AssertionError(f"{block.place}: {error}") from error


def check_python(block: Block, known: set[str]) -> None:
    """Compiles the block, resolves what it imports, finds undefined names, and binds calls to our signatures.

    ``known`` are the names that exist already: what earlier blocks of the document define is added to it.
    """
    tree = ast.parse(block.text, filename=block.place)
    compile(tree, block.place, "exec")
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                module = importlib.import_module(name.name)
                values[name.asname or name.name.partition(".")[0]] = (
                    module if name.asname else importlib.import_module(name.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block.place}: {node.module} has no {name.name}"
                values[name.asname or name.name] = getattr(module, name.name)
    _check_names(tree, block, known | set(values))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _resolved(node, values, block)
        elif isinstance(node, ast.Call):
            _check_call(node, values, block)
    known |= _bound(tree) | set(values)


def _bound(tree: ast.AST) -> set[str]:
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def _check_names(tree: ast.AST, block: Block, known: set[str]) -> None:
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unknown = used - known - _bound(tree) - set(dir(builtins))
    assert not unknown, f"{block.place}: {sorted(unknown)} are never defined; see GIVEN in tests/docs/session.py"


def _resolved(node: ast.AST, values: Mapping[str, Any], block: Block) -> Any:
    """What a name or an attribute of a module stands for; None where only a run could tell."""
    if isinstance(node, ast.Name):
        return values.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, values, block)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            assert hasattr(owner, node.attr), f"{block.place}: {owner.__name__} has no {node.attr}"
            return getattr(owner, node.attr)
    return None


def _check_call(node: ast.Call, values: Mapping[str, Any], block: Block) -> None:
    called = _resolved(node.func, values, block)
    if called is None or not getattr(called, "__module__", "").startswith("fintune"):
        return
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        return
    try:
        inspect.signature(called).bind(*node.args, **{k.arg: k.value for k in node.keywords if k.arg})
    except TypeError as error:
        raise AssertionError(f"{block.place}: {ast.unparse(node)}: {error}") from error
