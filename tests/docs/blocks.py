"""The fenced blocks of README, CONTRIBUTING and docs, and the commands in them.

A block is left out of all checks only by a line right above it that gives the reason:

    <!-- not checked: the output of another program -->
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELLS = ("bash", "sh", "console")
_FENCE = re.compile(
    r"(?:^[ \t]*<!-- not checked:(?P<reason>[^\n]*?)-->[ \t]*\n+)?"
    r"^(?P<indent>[ \t]*)(?P<fence>```+)[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_OPERATORS = {"|", "||", "&&", ";", "&"}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_KEYWORDS = {"do", "then", "else", "done", "fi"}


@dataclass(frozen=True)
class Block:
    """One fenced block; ``reason`` says why it is left out, None where it is not."""

    document: Path
    line: int
    language: str
    text: str
    reason: str | None = None

    @property
    def place(self) -> str:
        """Document and line of the fence, as failures show it."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell block: its words, variables set for it alone, and the file its output goes to."""

    place: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    piped: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks_of(document: Path) -> list[Block]:
    """Every fenced block of a document, in order; text indented below a list or tab is moved to the left."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            text.count("\n", 0, found.start("fence")) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
            None if found["reason"] is None else found["reason"].strip(),
        )
        for found in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """The blocks of all documents."""
    return [block for document in DOCUMENTS for block in blocks_of(document)]


def shell_text(block: Block) -> str:
    """What would be typed: the block, or its lines behind a ``$`` where it shows answers as well."""
    typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    if typed or block.language not in SHELLS:
        return "\n".join(typed) + "\n"
    return block.text


def commands_of(block: Block) -> list[Command]:
    """The commands of a shell block; ``a | b`` are two, and b reads what a writes."""
    found = []
    for line in shell_text(block).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
        piped = False
        while words:
            end = next((i for i, word in enumerate(words) if word in _OPERATORS), len(words))
            if command := _command(block.place, words[:end], piped):
                found.append(command)
            piped = words[end : end + 1] == ["|"]
            words = words[end + 1 :]
    return found


def _command(place: str, words: list[str], piped: bool) -> Command | None:
    while words and words[0] in _KEYWORDS:
        words = words[1:]
    output = None
    if ">" in words:
        at = words.index(">")
        output, words = words[at + 1], words[:at] + words[at + 2 :]
    variables = []
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words[0].partition("=")
        variables.append((name, value))
        words = words[1:]
    return Command(place, tuple(words), tuple(variables), output, piped) if words else None


def fintune_arguments(command: Command) -> list[str] | None:
    """The arguments of fintune in a command, also behind torchrun, accelerate, srun and python -m; None without it."""
    words = list(command.words)
    for start in (["-m", "fintune.cli"], ["-m", "fintune"]):
        for i in range(len(words)):
            if words[i : i + 2] == start:
                return words[i + 2 :]
    if words[0] == "fintune":
        return words[1:]
    if words[0] in ("srun", "nohup", "time", "docker") and "fintune" in words:
        return words[words.index("fintune") + 1 :]
    return None
