"""``fintune.answer``: one question to any model, which stays in memory for the next one.

Enters: a prompt, and where a model lies. Leaves: the answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from fintune.schema.adapter_records import adapter_place
from fintune.schema.run_directory import RunDirectory

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor

DEFAULT_MODEL = "smollm2-135m"
MOST_KEPT = 2
"""Models that stay in memory; the one asked longest ago goes before a third is loaded."""

_READ = (".safetensors", ".json", ".yaml", ".jinja", ".gguf", ".model")


def answer(
    prompt: str,
    model: str | Path = DEFAULT_MODEL,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.2,
    top_p: float = 0.7,
    repetition_penalty: float = 1.2,
    no_repeat_ngram_size: int = 3,
    top_k: int = 50,
    max_prompt_tokens: int | None = 512,
    seed: int | None = None,
    chat: bool = True,
    device: str | None = None,
    quantization: str | None = None,
) -> str:
    """Answers a prompt with a run, an adapter, a GPT from scratch or a base model.

    The last two models asked stay in memory; a model whose files have changed is read again. ``forget`` frees them.

    Args:
        prompt: the user's words; for a model without a chat template, the text to go on with.
        model: run directory, adapter folder or name, model folder, .gguf file, hub id or alias.
        max_new_tokens: most tokens of the answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        repetition_penalty: above 1, tokens that have occurred become less likely.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice, the prompt included; 0 allows it.
        top_k: only so many tokens are drawn from; 50 is what ``transformers`` takes unasked, 0 means all.
        max_prompt_tokens: a longer prompt loses its beginning, with a line in the log; the template counts. None allows
            what the model's window holds beside the answer, which is never passed.
        seed: the same seed gives the same answer; a new one each time, when None.
        chat: False gives a model with a chat template the bare text to go on with.
        device: torch device; a GPU if there is one, when None.
        quantization: none, nf4, int8 or fp8; what the run was trained with, when None.

    Raises:
        FintuneError: one sentence saying what is wrong, with the remedy.
    """
    from fintune.inference.choosing import Sampling
    from fintune.serving.writing import WritingOptions, fresh_seed

    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        top_k=top_k,
        seed=fresh_seed() if seed is None else seed,
    )
    options = WritingOptions(max_new_tokens, max_prompt_tokens, sampling, chat)
    with _kept.lock:  # a model answers one question at a time
        return _kept.get(str(model), device, quantization).write(prompt, options)


def forget() -> None:
    """Frees the models that ``answer`` keeps in memory."""
    with _kept.lock:
        _kept.models.clear()


def load_writer(place: str | Path, *, device: str | None = None, quantization: str | None = None) -> Predictor:
    """Loads what can write, with or without a chat template; otherwise as ``fintune.load``."""
    from fintune.api import load

    return load(place, device=device, quantization=quantization)


@dataclass(frozen=True)
class _Entry:
    predictor: Predictor
    stamp: tuple[tuple[str, int, int], ...]


class _Kept:
    """The models asked last, by place, device and quantisation."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.models: OrderedDict[tuple[str, str | None, str | None], _Entry] = OrderedDict()

    def get(self, place: str, device: str | None, quantization: str | None) -> Predictor:
        """The model, from memory where its files are as they were."""
        folder = adapter_place(place)
        key = (str(folder.resolve()) if folder.exists() else place, device, quantization)
        found, stamp = self.models.pop(key, None), _stamp(folder)
        if found is None or found.stamp != stamp:
            found = None  # before the next one needs the memory
            while len(self.models) >= MOST_KEPT:
                self.models.popitem(last=False)
            found = _Entry(load_writer(place, device=device, quantization=quantization), stamp)
        self.models[key] = found
        return found.predictor


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Every file that a model is read from, with its time and size."""
    files = [file for part in _parts(folder) for file in (part.iterdir() if part.is_dir() else [part])]
    read = sorted(file for file in files if file.suffix.lower() in _READ and file.is_file())
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in read)


def _parts(folder: Path) -> Iterator[Path]:
    """The place itself, the adapter in it, and the base where that is a folder of its own."""
    from fintune.models.files import read_json
    from fintune.serving.predictor import recipe_of

    inside = RunDirectory(folder).adapter
    yield from (folder, inside)
    recipe = recipe_of(inside) or recipe_of(folder)
    if recipe is not None:
        yield Path(recipe.model.base).expanduser()
    elif (config := folder / "adapter_config.json").is_file():  # of another tool
        yield Path(str(read_json(config).get("base_model_name_or_path") or folder)).expanduser()


_kept = _Kept()
