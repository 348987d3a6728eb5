"""How large the runs of the bench are: shapes, batches, steps.

Enters: a name. Leaves: ``Size``. All variants of a family take the same tokens in the same order, so only the number of
repeats is left for the time that a user gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from fintune.bench.measuring import Clock
from fintune.schema.errors import RecipeError


@dataclass(frozen=True)
class GptSize:
    """A GPT and its run.

    Attributes:
        layers, heads, width: of the GPT.
        vocabulary: tokens of the tokenizer that is trained on the text, at most.
        context: tokens of a row.
        rows: rows of a batch; a step takes ``rows * context`` tokens.
        steps: optimiser steps.
        warmup: steps of warm-up.
        rate: peak learning rate of AdamW alone.
        validation_rows: rows of held-out text.
        least_embedding: rows of the embedding at least, where the shape matters more than the text's vocabulary.
    """

    layers: int
    heads: int
    width: int
    vocabulary: int
    context: int
    rows: int
    steps: int
    warmup: int
    rate: float
    validation_rows: int
    least_embedding: int = 0


@dataclass(frozen=True)
class LlmSize:
    """A language model and its fine-tuning.

    Attributes:
        base: ``tiny`` (trained on the bench's text beforehand), or what ``model.base`` takes: loss is measured on it.
        speed_base: ``1b`` measures speed and memory on random weights in the shape of Llama-3.2-1B; None on ``base``.
        samples_per_step: samples of a step.
        steps: optimiser steps.
        speed_steps: steps on ``speed_base``.
        warmup: steps of warm-up.
        tokens_per_batch: tokens computed at once.
        rank: of LoRA.
        lora_rate: peak learning rate with LoRA.
        whole_rate: peak learning rate where all weights are trained.
        validation: held-out samples.
    """

    base: str
    speed_base: str | None
    samples_per_step: int
    steps: int
    speed_steps: int
    warmup: int
    tokens_per_batch: int
    rank: int
    lora_rate: float
    whole_rate: float
    validation: int


@dataclass(frozen=True)
class Size:
    """One size of the bench.

    Attributes:
        name: as asked for.
        gpt: runs from scratch.
        llm: fine-tuning.
        chunks: parts of a run, after each of which the held-out loss is measured.
        prompt_tokens: tokens of the prompt whose answer is timed.
        new_tokens: tokens written to it.
        limit_s: a variant that takes longer is given up, and said to.
        clock: ``wall``, or ``processor``: seconds in which a process was given a CPU, for machines that others use.
    """

    name: str
    gpt: GptSize
    llm: LlmSize
    chunks: int = 5
    prompt_tokens: int = 64
    new_tokens: int = 24
    limit_s: float = 300.0
    clock: Clock = "wall"


SIZES = {
    "tiny": Size(
        "tiny",
        GptSize(2, 4, 64, 1000, 128, 4, 32, 4, 5e-3, 16),
        LlmSize("tiny", None, 16, 12, 0, 2, 1024, 8, 8e-3, 2e-3, 32),
        chunks=4,
        new_tokens=16,
    ),
    "small": Size(
        "small",
        GptSize(4, 4, 256, 4000, 256, 8, 100, 10, 2e-3, 32),
        LlmSize("smollm2-135m", None, 8, 12, 0, 2, 1024, 16, 1.5e-3, 1e-4, 48),
        limit_s=1800.0,
    ),
    "gpu": Size(
        "gpu",
        GptSize(12, 12, 768, 50257, 1024, 8, 24, 3, 6e-4, 32, least_embedding=50257),
        LlmSize("smollm2-135m", "1b", 16, 24, 12, 3, 16384, 16, 1.5e-3, 1e-4, 100),
        chunks=4,
        prompt_tokens=256,
        new_tokens=32,
    ),
}


def size_named(name: str, device: str) -> Size:
    """The size of a name; ``auto`` is ``gpu`` on a CUDA device and ``tiny`` elsewhere.

    Raises:
        RecipeError: there is none of that name.
    """
    chosen = ("gpu" if device == "cuda" else "tiny") if name == "auto" else name
    if chosen not in SIZES:
        raise RecipeError(f"The bench has no size {name}.", f"Choose auto, {', '.join(SIZES)}.")
    return SIZES[chosen]
