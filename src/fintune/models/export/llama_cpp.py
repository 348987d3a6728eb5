"""llama.cpp itself, where the package cyllama brings it: it reads the files written here, and packs K-quants.

Enters: a GGUF file. Leaves: the tokens it makes of texts, the likelihoods of answers, or a smaller file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fintune.schema.errors import DependencyError, ModelError

# llama.cpp's number of each kind of file (enum llama_ftype) that only llama.cpp itself packs.
K_FILE_TYPES = {"q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}
_PACKAGE = "cyllama"


def has_llama_cpp() -> bool:
    """Whether the package that brings llama.cpp is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def require_llama_cpp() -> None:
    """Raises a ``DependencyError`` where llama.cpp cannot be loaded, before anything slow begins."""
    _library()


def _library() -> Any:
    try:
        library = importlib.import_module(f"{_PACKAGE}.llama.llama_cpp")
    except ImportError as error:
        raise DependencyError(
            f"This needs llama.cpp, and {_PACKAGE}, which brings it, cannot be imported ({error}).",
            "Run: pip install 'fintune[llamacpp]'",
        ) from error
    library.disable_logging()
    return library


class LlamaCpp:
    """A GGUF file opened in llama.cpp, on the CPU, with its usual settings.

    Args:
        file: the GGUF file.
        context: tokens of a prompt with all its answers, at most; 0 for texts alone.
        answers: answers of one prompt, at most.
        threads: CPU threads; all when None.

    Raises:
        DependencyError: llama.cpp is not installed.
        ModelError: it cannot read the file.
    """

    def __init__(self, file: Path, *, context: int = 0, answers: int = 32, threads: int | None = None) -> None:
        self._library = library = _library()
        settings = library.LlamaModelParams()
        settings.n_gpu_layers = 0
        # vocab_only, which would read less, aborts the process in 0.2.18.
        settings.use_extra_bufts = context > 0  # other copies of the weights, for speed alone
        with _silent():
            try:
                self._model = _counted(library.LlamaModel)(str(file), settings)  # the vocabulary lives in it
            except Exception as error:  # whatever the library makes of a file that llama.cpp refused
                raise ModelError(f"llama.cpp cannot read {file} ({error}).", "Export it again.") from error
        self._vocabulary = self._model.get_vocab()
        self._context = self._open(context, answers, threads or os.cpu_count() or 1) if context else None

    def tokens(self, text: str, *, control: bool = False, whole: bool = False) -> list[int]:
        """The tokens of a text.

        Args:
            text: any text.
            control: read control tokens in it, as in a rendered chat, and not as plain text.
            whole: add what the file says belongs around a text, such as BOS.
        """
        return [int(token) for token in self._vocabulary.tokenize(text, whole, control)] if text else []

    def choice_log_likelihoods(self, prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> list[float]:
        """Log-likelihood of each answer after the prompt, in nats; prompt and answers are token numbers."""
        if self._context is None:
            raise ModelError("The file was opened without its weights.", "Open it with a context.")
        entries = [(token, place, list(range(len(choices)))) for place, token in enumerate(prompt)]
        rows: list[list[int]] = []
        for number, choice in enumerate(choices):
            # What follows the prompt is read off its last token, what follows an answer's token off that token.
            rows.append([len(prompt) - 1, *range(len(entries), len(entries) + len(choice) - 1)])
            entries += [(token, len(prompt) + place, [number]) for place, token in enumerate(choice)]
        wanted = {place for places in rows for place in places}
        batch = self._library.LlamaBatch(n_tokens=len(entries), embd=0, n_seq_max=len(choices))
        for place, (token, position, owners) in enumerate(entries):
            batch.add(int(token), position, owners, place in wanted)
        self._context.kv_cache_clear()
        self._context.decode(batch)
        logs = {place: self._log_probabilities(place) for place in wanted}
        return [
            sum(float(logs[place][token]) for place, token in zip(places, choice, strict=True))
            for places, choice in zip(rows, choices, strict=True)
        ]

    def _log_probabilities(self, place: int) -> Any:
        """(V,) natural logarithms of the probabilities of what follows the token at ``place`` of the batch."""
        context: Any = self._context
        logits = np.asarray(context.get_logits_ith(place), dtype=np.float64)
        shifted = logits - logits.max()
        return shifted - np.log(np.exp(shifted).sum())

    def _open(self, context: int, answers: int, threads: int) -> Any:
        settings = self._library.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_seq_max = answers
        settings.kv_unified = True  # the prompt's tokens belong to all its answers
        settings.n_threads = settings.n_threads_batch = threads
        with _silent():
            return self._library.LlamaContext(self._model, settings)


def tokens_of(file: Path, texts: Sequence[str], *, control: bool = False) -> list[list[int]]:
    """The tokens that llama.cpp makes of plain texts, BOS and EOS included where the file says so.

    With ``control`` the texts are rendered chats: control tokens in them are read, and nothing is put around them.

    llama.cpp ends the process it runs in where a file is not as it expects, so it gets one of its own.

    Raises:
        DependencyError: llama.cpp is not installed.
        ModelError: it cannot read the file.
    """
    require_llama_cpp()
    tokens: list[list[int]] = _apart({"tokens_of": str(file), "texts": list(texts), "control": control}, f"read {file}")
    return tokens


def quantize(source: Path, target: Path, kind: str, *, threads: int = 0) -> None:
    """Packs an f16 file as ``kind``, by llama.cpp itself, in a process of its own.

    Args:
        source: GGUF file in f16.
        target: file to write.
        kind: one of ``K_FILE_TYPES``. Rows that no block of 256 fits are packed in a type of blocks of 32.
        threads: CPU threads; all when 0.

    Raises:
        DependencyError: llama.cpp is not installed.
        ModelError: it refuses.
    """
    require_llama_cpp()
    request = {"quantize": str(source), "target": str(target), "file_type": K_FILE_TYPES[kind], "threads": threads}
    _apart(request, f"pack {source} as {kind}")


def _apart(request: dict[str, Any], what: str) -> Any:
    # By its path, not as a module: this file needs nothing of fintune.models, which takes seconds to import.
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"llama.cpp cannot {what} (exit code {done.returncode}: {last}).", "Export it as merged.")
    return json.loads(done.stdout)


def _answer(request: dict[str, Any]) -> Any:
    """What ``_apart`` asks for, in the process that it started."""
    if "tokens_of" in request:
        opened = LlamaCpp(Path(request["tokens_of"]))
        control = request["control"]
        return [opened.tokens(text, control=control, whole=not control) for text in request["texts"]]
    library = _library()
    settings = library.LlamaModelQuantizeParams()
    settings.ftype, settings.nthread = request["file_type"], request["threads"]
    with _silent():
        library.model_quantize(request["quantize"], request["target"], settings)
    return None


def _counted(kind: Any) -> Any:
    """The library's model with the number of tokens that its context asks it for, which 0.2.18 lacks."""
    if hasattr(kind, "n_vocab"):
        return kind
    return type("Counted", (kind,), {"n_vocab": property(lambda model: model.get_vocab().n_vocab)})


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps off standard error what llama.cpp prints past its logging switch."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(json.loads(sys.stdin.read()))))
