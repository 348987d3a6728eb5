"""``fintune chat``: a conversation in the terminal, or with a pipe.

Enters: lines. Leaves: answers as they are written, on standard output; everything else is said on standard error. A
line that begins with a slash is a command; two slashes say a line that begins with one.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fintune.cli.output import Output, Terminated
from fintune.cli.predicting import existing_place
from fintune.cli.streamed import Shown
from fintune.cli.writing_flags import WritingFlags, takes_writing
from fintune.schema.errors import DataError, FintuneError

if TYPE_CHECKING:
    from fintune.serving.conversation import Conversation

HELP = """\
/reset            forget the conversation; the system message stays
/system TEXT      tell the model TEXT before everything else; without TEXT, nothing
/set NAME VALUE   such as /set temperature 0.7; /set alone shows all
/save FILE        keep the conversation as a line of JSON
/load FILE        go on with a saved one
/quit             end; so does Ctrl-D. Ctrl-C stops an answer
//TEXT            say TEXT with one slash before it"""
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size")
_LENGTHS = ("max_new_tokens", "max_prompt_tokens")


@takes_writing
def chat(
    context: typer.Context,
    flags: WritingFlags,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Run, adapter directory or name, or model.")],
    system: Annotated[str, typer.Option(help="What the model is told before everything else.")] = "",
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
) -> None:
    """Talk to any model; /help lists what else can be typed."""
    from fintune.answering import load_writer
    from fintune.serving.conversation import Conversation

    output: Output = context.obj
    options = flags.options()
    found = existing_place(place)
    with output.quiet_stdout():
        conversation = Conversation(load_writer(found, quantization=flags.quantization), options, system)
        session = Session(output, conversation, flags.seed)
        if load is not None:
            session.load(str(load))
        session.run()
    output.emit({"messages": conversation.messages(), "forgotten_exchanges": conversation.forgotten})


@dataclass
class Session:
    """One chat at a terminal or a pipe.

    Attributes:
        output: where words go.
        conversation: the turns.
        seed: of every answer; a new one for each, when None.
        own_files: files this session has saved or loaded, which it may write again.
    """

    output: Output
    conversation: Conversation
    seed: int | None = None
    own_files: set[Path] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Answers line after line until /quit or the end of input."""
        self._say("/help lists what can be typed; /quit ends.")
        for line in self._lines():
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if self._obey(*line[1:].split(maxsplit=1)):
                        return
                elif line:
                    self._answer(line.removeprefix("/") if line.startswith("//") else line)
            except FintuneError as error:
                self._say(str(error))

    def load(self, name: str) -> None:
        """Goes on with a saved conversation."""
        file = Path(_needed(name, "/load FILE")).expanduser()
        self.conversation.load(file)
        self.own_files.add(file.resolve())
        self._say(f"{len(self.conversation.turns) // 2} exchanges.")

    def _lines(self) -> Iterator[str]:
        """What is typed, stripped; Ctrl-C on an empty line only says how to leave."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no UTF-8 must not end the session
        if not sys.stdin.isatty():
            yield from (line.strip() for line in sys.stdin)
            return
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401  # importing it gives ``input`` its arrow keys and history

        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                self._say("")
                return
            except Terminated:
                raise
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D ends the chat.")

    def _answer(self, text: str) -> None:
        from fintune.serving.writing import fresh_seed

        options = self.conversation.options
        seed = fresh_seed() if self.seed is None else self.seed
        self.conversation.options = replace(options, sampling=replace(options.sampling, seed=seed))
        file = self.output.console.file
        try:
            with closing(self.conversation.say(text)) as steps:
                written = Shown(file).show(steps)
        except Terminated:
            raise
        except KeyboardInterrupt:
            self._say("\n(Stopped. What was written stays in the conversation.)")
            return
        file.write("\n")
        file.flush()
        if self.conversation.forgotten:
            self._say_once("(The oldest exchanges no longer fit the model's window; it does not read them any more.)")
        if written is not None and written.dropped_tokens:
            self._say(f"(Your text was too long: its oldest {written.dropped_tokens:,} tokens were left out.)")
        if written is not None and written.ended == "limit":
            self._say_once(f"(Cut off after {written.n_tokens:,} tokens; /set max_new_tokens NUMBER allows more.)")

    def _obey(self, word: str = "", rest: str = "") -> bool:
        """Carries out a command; True ends the session."""
        if word in ("quit", "exit"):
            return True
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda rest: self._say(HELP),
            "reset": self._reset,
            "system": self._tell,
            "set": self._set,
            "save": self._save,
            "load": self.load,
        }
        if word not in commands:
            raise DataError(f"/{word} is no command.", "/help lists them; // says a line that begins with a slash.")
        commands[word](rest.strip())
        return False

    def _reset(self, rest: str) -> None:
        self.conversation.reset()
        self.told.clear()
        self._say("The conversation is empty.")

    def _tell(self, text: str) -> None:
        self.conversation.system = text
        self._say("The model is told so from now on." if text else "There is no system message now.")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name:
            self._change(name, value.strip())
        options = self.conversation.options
        shown = {key: getattr(options.sampling, key) for key in _SAMPLING}
        shown |= {key: getattr(options, key) for key in _LENGTHS} | {"seed": self.seed}
        self._say(", ".join(f"{key} {_spoken(shown[key])}" for key in shown if not name or key == name))

    def _change(self, name: str, text: str) -> None:
        options = self.conversation.options
        if name == "seed":
            self.seed = _number(name, text)
        elif name in _SAMPLING:
            is_share = isinstance(getattr(options.sampling, name), float)
            changed: Any = {name: _number(name, text, float if is_share else int)}
            self.conversation.options = replace(options, sampling=replace(options.sampling, **changed))
        elif name in _LENGTHS:
            found: Any = {name: _number(name, text)}
            if found[name] is None and name == "max_new_tokens" or (found[name] is not None and found[name] < 1):
                raise DataError(f"{name} is {text}.", "Give 1 or more.")
            self.conversation.options = replace(options, **found)
        else:
            raise DataError(f"{name} is no setting.", f"Choose one of {', '.join((*_SAMPLING, *_LENGTHS, 'seed'))}.")

    def _save(self, name: str) -> None:
        file = Path(_needed(name, "/save FILE")).expanduser()
        if file.exists() and file.resolve() not in self.own_files:
            raise DataError(f"{file} exists already.", "Choose another name.")
        self.conversation.save(file)
        self.own_files.add(file.resolve())
        self._say(f"{len(self.conversation.turns) // 2} exchanges in {file}.")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _say_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self._say(text)


def _needed(name: str, usage: str) -> str:
    if not name:
        raise DataError("No file is named.", f"Write {usage}.")
    return name


def _number(name: str, text: str, kind: Callable[[str], Any] = int) -> Any:
    """A number; ``none`` leaves a seed or a limit open."""
    if text == "none" and kind is int and name in ("seed", "max_prompt_tokens"):
        return None
    try:
        return kind(text)
    except ValueError:
        raise DataError(f"{text or 'Nothing'} is no value for {name}.", f"Write /set {name} NUMBER.") from None


def _spoken(value: Any) -> str:
    return "none" if value is None else str(value)
