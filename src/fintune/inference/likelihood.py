"""Likelihood of each answer of a closed set: answers are branches under their prompt, prompts under their prefix."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from fintune.inference.forward import EdgeModel
from fintune.inference.out_of_memory import ScoringBudget, is_out_of_memory
from fintune.schema.recipe import Packing
from fintune.trees.batch import batch_from_tree, bucket_size
from fintune.trees.encoded import EncodedExample
from fintune.trees.packing import Batch, pad_samples, split_by_budget
from fintune.trees.prefix_tree import FloatArray, IntArray, TokenSample, build_tree


def choice_log_likelihoods(
    model: EdgeModel,
    examples: Sequence[EncodedExample],
    *,
    tokens_per_batch: int | ScoringBudget,
    packing: Packing = "tree",
    on_batch: Callable[[int], None] | None = None,
) -> list[FloatArray]:
    """Log-likelihood of every choice of every example, end-of-turn token included.

    Args:
        model: the model to ask; it should be in eval mode.
        examples: encoded examples with choices.
        tokens_per_batch: tree tokens computed at once. Results do not depend on it beyond float rounding. A number is
            kept to; a budget shrinks where memory runs out, and what does not fit is repeated under it.
        packing: tree shares prompts and prefixes; sequence scores each prompt-and-answer apart (the plain twin).
        on_batch: called with the number of finished choices after each batch.

    Returns:
        One (n_choices,) array per example, in natural-log units.

    Raises:
        ModelError: a single sample does not fit into memory.
    """
    samples = [sample for example in examples for sample in example.choice_samples()]
    scores = sample_log_likelihoods(
        model, samples, tokens_per_batch=tokens_per_batch, packing=packing, on_batch=on_batch
    )
    ends = np.cumsum([len(example.choices) for example in examples])
    return [np.asarray(part) for part in np.split(scores, ends[:-1])] if examples else []


def sample_log_likelihoods(
    model: EdgeModel,
    samples: Sequence[TokenSample],
    *,
    tokens_per_batch: int | ScoringBudget,
    packing: Packing = "tree",
    on_batch: Callable[[int], None] | None = None,
) -> FloatArray:
    """(S,) log-likelihood of the supervised tokens of each sample, in nats; weights do not count.

    Arguments are those of ``choice_log_likelihoods``; ``on_batch`` gets the number of finished samples.
    """
    budget = tokens_per_batch if isinstance(tokens_per_batch, ScoringBudget) else None
    scores = np.zeros(len(samples))

    def finish(group: Sequence[int], edge_log_probabilities: Tensor, sample_edges: list[IntArray]) -> None:
        edge_scores = edge_log_probabilities.double().cpu().numpy()
        scores[group] = [edge_scores[edges].sum() for edges in sample_edges]
        if on_batch is not None:
            on_batch(len(group))

    begun: tuple[Sequence[int], Tensor, list[IntArray]] | None = None  # a GPU computes it while the next one is made
    waiting = _grouped(samples, range(len(samples)), packing, tokens_per_batch)
    while waiting:
        group = waiting.popleft()
        members = [samples[i] for i in group]
        bucket_budget = _tokens(tokens_per_batch) if model.backend == "flex" else None
        batch, sample_edges = _batch_with_edges(members, packing, bucket_budget)
        computed = _computed(model, batch, raises=budget is None)
        if begun is not None:
            finish(*begun)
            begun = None
        if computed is not None:
            begun = group, computed, sample_edges
        elif budget is not None:
            budget.shrink(batch)
            left = [i for own in (group, *waiting) for i in own]
            waiting = _grouped(samples, left, packing, budget)
    if begun is not None:
        finish(*begun)
    return scores


def _tokens(budget: int | ScoringBudget) -> int:
    return budget.tokens if isinstance(budget, ScoringBudget) else budget


def _grouped(
    samples: Sequence[TokenSample], chosen: Sequence[int], packing: Packing, budget: int | ScoringBudget
) -> deque[list[int]]:
    """Numbers of the chosen samples, group by group, each within the budget."""
    groups = split_by_budget([samples[i] for i in chosen], packing, _tokens(budget))
    return deque([chosen[i] for i in group] for group in groups)


def _computed(model: EdgeModel, batch: Batch, *, raises: bool) -> Tensor | None:
    """(E,) log-probabilities of a batch; None where memory ran out, unless that is to be raised.

    Returns rather than handles, because an exception being handled keeps the failed batch's tensors alive.
    """
    try:
        return model.edge_log_probabilities(batch.to(model.device))
    except RuntimeError as error:
        if raises or not is_out_of_memory(error):
            raise
        return None


def _batch_with_edges(
    samples: Sequence[TokenSample], packing: Packing, bucket_budget: int | None
) -> tuple[Batch, list[IntArray]]:
    """A batch, and for each sample the numbers of the loss edges along its supervised tokens."""
    if packing == "none":
        padded = pad_samples(samples)
        return padded, [np.flatnonzero(padded.edge_row.numpy() == row) for row in range(len(samples))]
    tree = build_tree(samples, share=packing == "tree")
    edge_of_node = np.cumsum(tree.is_edge) - 1
    edges = [edge_of_node[path[s.supervision > 0]] for path, s in zip(tree.paths, samples, strict=True)]
    leaves = packing != "tree" or not tree.inner
    pad_to = None if bucket_budget is None else bucket_size(len(tree) if leaves else tree.inner, bucket_budget)
    return batch_from_tree(tree, pad_to=pad_to, leaves=leaves), edges


def softmax(log_likelihoods: FloatArray) -> FloatArray:
    """Probabilities over a closed set of answers from their log-likelihoods."""
    shifted = np.exp(log_likelihoods - log_likelihoods.max())
    return np.asarray(shifted / shifted.sum())
