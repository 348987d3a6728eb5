"""What the documents say is what the software does."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from fintune.cli.app import app
from fintune.schema.keys import recipe_keys
from fintune.schema.loading import load_recipe
from fintune.schema.yaml_text import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _generator() -> object:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe-reference.md", "support-matrix.md", "tasks.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = _generator().PAGES[name]()  # type: ignore[attr-defined]
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page, "run: make docs"


def test_every_recipe_key_is_in_the_reference_with_its_effect() -> None:
    page = (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    for name, key in recipe_keys().items():
        own = re.sub(
            r"^stages\.0\.(?=(data|adapter|training)\b)", "", name
        )  # a stage's sections have the recipe's keys
        assert f"`{own}`" in page
        assert key.section is not None or key.field.description, f"{name} has no description"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_exist_with_their_options(document: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= targets, line
            if words[:1] == ["fintune"] and words[1:2] != ["--version"]:
                command = commands[words[1]]
                command = getattr(command, "commands", {}).get("".join(words[2:3]), command)
                known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
                options = {word for word in words[2:] if re.match(r"--?[a-z]", word)}
                assert options <= known | {"--help", "--json", "--debug", "--offline"}, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_recipes_in_the_documents_load(document: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        assert load_recipe(parse(block)[0])


def test_python_in_the_readme_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        compile(block, "README.md", "exec")


def test_constraints_pin_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pins}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[><=\[;]", requirement)[0].strip().lower().replace("_", "-")
        assert name in pinned, f"{name} is not in constraints.txt"
    assert pins["torch"] == "2.13.0"


def test_the_citation_file_matches_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
