"""One model reading a text and writing a little: what runs in the process of a row of the models' table.

Enters: a base model, a run or an adapter, and how it is measured. Leaves: nats and bytes of each document, and costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fintune.bench.measuring import Gauge, seconds_of, written_token_ms
from fintune.bench.texts import held_out_documents, text_tokens
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.inference.likelihood import sample_log_likelihoods
from fintune.models.adapter_files import load_adapter, read_adapter_info
from fintune.models.adapters import count_parameters
from fintune.models.load import LoadedBase, load_base
from fintune.schema.adapter_records import adapter_place
from fintune.schema.errors import DataError
from fintune.schema.recipe import ModelSection
from fintune.schema.run_directory import adapter_folder
from fintune.serving.predictor import recipe_of
from fintune.trees.prefix_tree import IntArray, TokenSample

if TYPE_CHECKING:
    from fintune.bench.models import Asked

_PROMPT = 32
_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}


def read_model(place: str, asked: Asked) -> dict[str, Any]:
    """Measures one model; see ``ModelRow`` for what comes back, and ``nats`` and ``bytes`` by document."""
    if asked.clock == "processor":
        torch.set_num_threads(1)
    device = torch.device(asked.device)
    gauge = Gauge(device)
    loaded, model = open_model(place, device)
    edge = EdgeModel(model, choose_backend("auto", device, loaded.model.config), loaded.dtype)
    most = getattr(loaded.model.config, "max_position_embeddings", None) or asked.context
    context = min(asked.context, most)
    documents = held_out_documents(Path(asked.text))[: asked.limit]
    samples, owner = text_samples(loaded.tokenizer, documents, context)
    packing, _ = supported_packing(loaded.model.config, "sequence")
    budget = max(context, _TOKENS_PER_BATCH[asked.device])
    scores: list[Any] = []

    def read(some: list[TokenSample]) -> None:
        scores[:] = [sample_log_likelihoods(edge, some, tokens_per_batch=budget, packing=packing)]

    read(samples[:2])  # claims memory and compiles what there is to compile
    seconds = seconds_of(lambda: read(samples), device, asked.clock)
    nats = np.zeros(len(documents))
    np.add.at(nats, owner, -scores[0])
    n_bytes = [len(text.encode("utf-8", "surrogatepass")) for text in documents]
    tokens = sum(len(sample) - 1 for sample in samples)
    edge.use_plain_attention()
    prompt = _prompt(samples, min(_PROMPT, most - asked.new_tokens))
    with edge.precision():
        latency = written_token_ms(model, prompt.to(device), asked.new_tokens, use_cache=True, clock=asked.clock)
    return {
        "nats": nats.tolist(),
        "bytes": n_bytes,
        "tokens": tokens,
        "context": context,
        "tokens_per_s": tokens / seconds,
        "bytes_per_s": sum(n_bytes) / seconds,
        "latency_ms": latency,
        "peak_bytes": gauge.peak(),
        "parameters": count_parameters(model)[1],
    }


def open_model(place: str, device: torch.device) -> tuple[LoadedBase, Any]:
    """The base and the model of a run, an adapter, or a base model.

    Args:
        place: what ``fintune.load`` takes.
        device: where it goes.
    """
    folder = adapter_folder(adapter_place(place))
    is_adapter = any((folder / name).is_file() for name in ("adapter_config.json", "fintune_base.json"))
    recipe = recipe_of(folder) if is_adapter else None
    if recipe is not None:
        section = recipe.model
    else:
        section = ModelSection(base=read_adapter_info(folder).base if is_adapter else place)
    loaded = load_base(section, device=device, for_training=False)
    model: Any = load_adapter(loaded, folder) if is_adapter else loaded.model
    model.eval()
    return loaded, model


def text_samples(tokenizer: Any, documents: list[str], context: int) -> tuple[list[TokenSample], IntArray]:
    """Documents as blocks that overlap by one token, so that each token is predicted once; and whose each block is.

    Args:
        tokenizer: of the model.
        documents: texts.
        context: tokens of a block at most.

    Raises:
        DataError: the documents hold no text.
    """
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    samples: list[TokenSample] = []
    owner: list[int] = []
    for number, text in enumerate(documents):
        tokens = np.concatenate([[opening], text_tokens(tokenizer, text)]).astype(np.int64)
        for start in range(0, len(tokens) - 1, context - 1):
            block = tokens[start : start + context]
            supervision = np.ones(len(block))
            supervision[0] = 0.0
            samples.append(TokenSample(block, supervision, len(samples)))
            owner.append(number)
    if not samples:
        raise DataError("The documents hold no text.", "Name another text.")
    return samples, np.asarray(owner, np.int64)


def _prompt(samples: list[TokenSample], length: int) -> torch.Tensor:
    longest = max(samples, key=len)
    return torch.from_numpy(longest.tokens[: max(1, length)])[None]
