"""Every command and snippet in the documents runs, or is held to the real parser, schema and signatures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, SHELLS, Block, all_blocks, blocks_of, commands_of
from tests.docs.checks import check_command, check_python, check_shell_syntax, check_yaml
from tests.docs.session import GIVEN, Session, new_session, reason_not_to_run
from tests.docs.substitutions import IN_COMMANDS, IN_PYTHON, NOT_RUN, PYTHON_NOT_RUN

LEFT_OUT = 0
"""Blocks with a marker ``not checked``; a new one has to be counted here, so that none slips in."""


def is_shell(block: Block) -> bool:
    return block.language in SHELLS or (block.language == "" and "\n$ " in f"\n{block.text}")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with new_session(tmp_path_factory.mktemp("documents")) as started:
        yield started


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_snippets(document: Path, session: Session) -> None:
    known, names = set(GIVEN), session.names()
    for block in blocks_of(document):
        if block.reason is not None:
            continue
        if is_shell(block):
            check_shell_syntax(block)
            before = ""
            for command in commands_of(block):
                check_command(command)
                given = before if command.piped else "/quit\n"
                before = session.run(command, given) or _printed(command.words)
        elif block.language == "yaml":
            check_yaml(block)
            if block.text.startswith("name: my-first"):
                Path("my-recipe.yaml").write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            check_python(block, known)
            session.execute(block, names)
        else:
            assert block.language in ("", "text", "json"), f"{block.place}: no rule for {block.language}"


def _printed(words: tuple[str, ...]) -> str:
    """What printf or echo hand to the next command."""
    return words[1].replace("\\n", "\n") if words[0] in ("printf", "echo") and len(words) > 1 else ""


def test_what_is_left_out_is_counted_and_has_a_reason() -> None:
    left_out = [block for block in all_blocks() if block.reason is not None]
    assert len(left_out) == LEFT_OUT, [block.place for block in left_out]
    assert all(block.reason for block in left_out)


def test_every_substitution_is_still_needed() -> None:
    blocks = [block for block in all_blocks() if block.reason is None]
    commands = [str(command) for block in blocks if is_shell(block) for command in commands_of(block)]
    python = [block.text for block in blocks if block.language == "python"]
    for pattern, reason in NOT_RUN:
        assert any(re.search(pattern, command) for command in commands), f"no command needs: {reason}"
    for part, reason in PYTHON_NOT_RUN:
        assert any(part in text for text in python), f"no snippet needs: {reason}"
    for before, _, reason in IN_COMMANDS:
        assert any(before in command for command in commands), f"no command needs {before}: {reason}"
    for before, _, reason in IN_PYTHON:
        assert any(before in text for text in python), f"no snippet needs {before}: {reason}"


def test_most_commands_of_ours_run() -> None:
    """The list of exceptions must not swallow the rule."""
    ours = {str(c) for b in all_blocks() if b.reason is None and is_shell(b) for c in commands_of(b)}
    ours = {command for command in ours if command.startswith("fintune ")}
    run = {command for command in ours if reason_not_to_run(command) is None}
    assert len(run) > len(ours) / 2, f"{len(run)} of {len(ours)} run; not {sorted(ours - run)}"
