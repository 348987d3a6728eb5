"""Records of a model's answers: closed label sets by likelihood over trees, free answers by greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fintune.evaluation.conversations import conversation_records, likelihood_counts
from fintune.evaluation.records import answer_records, dialogue_of, split_protocols
from fintune.inference import vllm_engine
from fintune.inference.forward import EdgeModel
from fintune.inference.generate import generate
from fintune.inference.likelihood import choice_log_likelihoods, softmax
from fintune.inference.out_of_memory import ScoringBudget
from fintune.metrics.classification import Tally, accuracy, confusion_matrix, macro_f1, tally
from fintune.schema.example import Example
from fintune.schema.recipe import Decoding, Packing
from fintune.schema.results import DocumentRecord, Protocol
from fintune.tasks.base import Task
from fintune.tasks.conversations import ConversationTask
from fintune.tasks.shots import with_shots
from fintune.trees.chat import ChatFormat, EncodedSet, encode_all
from fintune.trees.prefix_tree import FloatArray

OnBatch = Callable[[int], None]


# On a GPU: tokens times the width of the feed-forward block, as 16,384 tokens of an 8B model have. A batch of a small
# model ends before the next is prepared, so it takes more tokens.
_GPU_ACTIVATIONS = 16384 * 14336
_LEAST_ON_GPU, _MOST_ON_GPU = 16384, 65536


def scoring_budget(wanted: int | None, model: EdgeModel) -> int:
    """Tree tokens scored at once; a GPU needs more to be busy, of a small model most."""
    if wanted or model.device.type == "cpu":
        return wanted or 2048
    config = model.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    width = max(stated) if isinstance(stated, list | tuple) else int(stated)  # Gemma 3n lists one for each layer
    fitting = 1 << (_GPU_ACTIVATIONS // width).bit_length() - 1
    return min(max(fitting, _LEAST_ON_GPU), _MOST_ON_GPU)


def generation_batch(wanted: int | None, device: torch.device) -> int:
    """Answers generated side by side."""
    return wanted or (16 if device.type == "cpu" else 256)


@dataclass(frozen=True)
class Answer:
    """What a model answered to one document.

    Attributes:
        text: the likeliest label or what was written; None where the document does not fit the model.
        truncated: whether the document was shortened to fit, as it was asked: with shots, earlier turns and room for
            the answer.
        log_likelihoods: of every choice; None where the answer was written.
    """

    text: str | None = None
    truncated: bool = False
    log_likelihoods: FloatArray | None = None


@dataclass(frozen=True)
class Scorer:
    """Scores examples with one model.

    Attributes:
        model: the model with its tree attention.
        chat: template and length limit.
        tokens_per_batch: tree tokens scored at once.
        packing: tree, or sequence and none as plain twins.
        decoding: how a closed label set is answered: constrained takes the likeliest label, free generates, both
            does either for the protocols it suits.
        batch_size: answers generated side by side; null takes what suits the device.
        shots: solved examples shown before each document.
        open_vllm: gives the engine that writes free answers in place of ours.
        on_written: called with the number of tokens of the answers just written.
        shrinks: what does not fit into memory is scored in smaller batches, from then on; False where other processes
            compute parts of the same batches and would wait.
    """

    model: EdgeModel
    chat: ChatFormat
    tokens_per_batch: int
    packing: Packing = "tree"
    decoding: Decoding = "constrained"
    batch_size: int | None = None
    shots: tuple[Example, ...] = ()
    open_vllm: Callable[[], vllm_engine.VllmModel] | None = None
    on_written: OnBatch | None = None
    shrinks: bool = True
    fitting: dict[int, ScoringBudget] = field(default_factory=dict, repr=False, compare=False)

    @property
    def budget(self) -> int | ScoringBudget:
        """Tokens scored at once: shared with the scorers that were made from this one, and shrinking with them."""
        wanted = self.tokens_per_batch
        return self.fitting.setdefault(wanted, ScoringBudget(wanted)) if self.shrinks else wanted

    def chunk(self, task: Task, wanted: int) -> int:
        """Documents of ``task`` to ask at once: ``wanted``, or fewer where each takes an answer to be written."""
        _, written = split_protocols(task, self.decoding)
        return min(wanted, 2 * generation_batch(self.batch_size, self.model.device)) if written else wanted

    def records(
        self, task: Task, examples: Sequence[Example], system: str, on_batch: OnBatch | None = None
    ) -> list[DocumentRecord]:
        """For each example a record under each protocol that suits how it is answered (``split_protocols``); those
        too long for the model count as missing.

        Args:
            task: the examples' task.
            examples: the documents, prompts included.
            system: what the records call the model.
            on_batch: called with the number of documents finished since the last call.
        """
        if isinstance(task, ConversationTask):
            return conversation_records(self, task, examples, system, on_batch)
        ranked_under, written_under = split_protocols(task, self.decoding)
        records: list[list[DocumentRecord]] = [[] for _ in examples]
        if ranked_under:
            # Writing takes longer, so where there is both, progress counts what is written.
            ranked = self.ranked(task, examples, None if written_under else on_batch)
            _add_records(records, system, task, examples, ranked, ranked_under)
        if written_under:
            _add_records(records, system, task, examples, self.written(task, examples, on_batch), written_under)
        return [record for found in records for record in found]

    def log_likelihoods(
        self, examples: Sequence[Example], on_batch: OnBatch | None = None
    ) -> tuple[EncodedSet, list[FloatArray]]:
        """The encoded examples and, for each that fits the model, the log-likelihood of every choice."""
        encoded = self.encoded(examples)
        return encoded, self.scores(encoded, on_batch)

    def encoded(self, examples: Sequence[Example]) -> EncodedSet:
        """The examples behind their solved ones, as tokens; needs no device."""
        return encode_all(self.chat, [with_shots(example, self.shots) for example in examples])

    def scores(self, encoded: EncodedSet, on_batch: OnBatch | None = None) -> list[FloatArray]:
        """The log-likelihood of every choice of each encoded example."""
        self.model.model.eval()
        return choice_log_likelihoods(
            self.model,
            encoded.encoded,
            tokens_per_batch=self.budget,
            packing=self.packing,
            on_batch=on_batch,
        )

    def probabilities(self, examples: Sequence[Example]) -> list[FloatArray | None]:
        """Probabilities of each example's choices; None where it does not fit the model."""
        encoded, scores = self.log_likelihoods(examples)
        by_position = dict(zip(encoded.kept, scores, strict=True))
        return [softmax(by_position[i]) if i in by_position else None for i in range(len(examples))]

    def ranked(self, task: Task, examples: Sequence[Example], on_batch: OnBatch | None = None) -> list[Answer]:
        """The likeliest label of each document."""
        counted = None if on_batch is None else _in_documents(on_batch, max(len(task.choices), 1))
        encoded, scores = self.log_likelihoods(examples, counted)
        answers = [Answer()] * len(examples)
        for position, sample, score in zip(encoded.kept, encoded.encoded, scores, strict=True):
            label = examples[position].choices[int(np.argmax(score))]
            answers[position] = Answer(label, sample.truncated, score)
        return answers

    def written(self, task: Task, examples: Sequence[Example], on_batch: OnBatch | None = None) -> list[Answer]:
        """Generated answers; a task with its own history goes turn by turn."""
        if task.history == "given":
            return self._generated(task, examples, on_batch)
        given: dict[str, list[str]] = {}
        answers = [Answer()] * len(examples)
        for turn in sorted({int(example.metadata["turn"]) for example in examples}):
            positions = [i for i, example in enumerate(examples) if int(example.metadata["turn"]) == turn]
            asked = [task.with_history(examples[i], given.get(dialogue_of(examples[i]), [])) for i in positions]
            for i, answer in zip(positions, self._generated(task, asked, on_batch), strict=True):
                answers[i] = answer
                given.setdefault(dialogue_of(examples[i]), []).append(answer.text or "")
        return answers

    def _generated(self, task: Task, examples: Sequence[Example], on_batch: OnBatch | None) -> list[Answer]:
        bare = [with_shots(replace(example, target="", choices=()), self.shots) for example in examples]
        encoded = encode_all(self.chat, bare, reserve=task.max_answer_tokens)
        self.model.model.eval()
        tokenizer = self.chat.tokenizer
        ours, theirs = generate, vllm_engine.generate
        write = partial(ours, self.model) if self.open_vllm is None else partial(theirs, self.open_vllm())
        found = write(
            [sample.prompt for sample in encoded.encoded],
            max_new_tokens=task.max_answer_tokens,
            stop_ids=self.chat.end_ids,
            stop=_stops(tokenizer, task.stop_strings),
            batch_size=generation_batch(self.batch_size, self.model.device),
            tokens_per_batch=self.tokens_per_batch,
            on_done=on_batch,
            packing=self.packing,
        )
        if self.on_written is not None:
            self.on_written(sum(map(len, found)))
        # Decoded as a batch, no answers at all would be one empty one.
        texts = [tokenizer.decode(tokens.tolist(), skip_special_tokens=True) for tokens in found]
        answers = [Answer()] * len(examples)
        for position, sample, text in zip(encoded.kept, encoded.encoded, texts, strict=True):
            answers[position] = Answer(_cut(text, task.stop_strings), sample.truncated)
        return answers

    def validation_metrics(self, examples: Sequence[Example]) -> dict[str, float]:
        """``eval_loss`` (nats per supervised token, as in training) and, of tasks with a closed label set, means over
        the tasks of ``eval_accuracy`` and ``eval_macro_f1``.

        A free answer is scored by the likelihood of the right one; generating them would take longer than training.
        Of conversations and texts, all that is learnt counts.
        """
        told, _ = likelihood_counts(self, [example for example in examples if example.learnt != "answer"])
        nats = sum(counts.get("nats", 0.0) for counts in told)
        tokens = int(sum(counts.get("tokens", 0.0) for counts in told))
        examples = [example for example in examples if example.learnt == "answer"]
        options = [example if example.choices else replace(example, choices=(example.target,)) for example in examples]
        encoded, scores = self.log_likelihoods(options)
        answers: list[str | None] = [None] * len(examples)
        for position, sample, score in zip(encoded.kept, encoded.encoded, scores, strict=True):
            option = options[position]
            target = option.choices.index(option.target)
            nats, tokens = nats - float(score[target]), tokens + len(sample.choices[target])
            answers[position] = option.choices[int(score.argmax())]
        loss = {"eval_loss": nats / max(tokens, 1)}
        closed = [(example, answer) for example, answer in zip(examples, answers, strict=True) if example.choices]
        if not closed:
            return loss
        tallies = list(_tally_by_task(closed).values())
        return {
            **loss,
            "eval_accuracy": float(np.mean([accuracy(counts) for counts in tallies])),
            "eval_macro_f1": float(np.mean([macro_f1(counts) for counts in tallies])),
        }


def _add_records(
    records: Sequence[list[DocumentRecord]],
    system: str,
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    protocols: Sequence[Protocol],
) -> None:
    for found, example, answer in zip(records, examples, answers, strict=True):
        scores = answer.log_likelihoods
        probabilities = None if scores is None else softmax(scores).tolist()
        values = None if scores is None else scores.tolist()
        found += answer_records(system, task, example, answer.text, probabilities, values, protocols, answer.truncated)


def _in_documents(on_batch: OnBatch, n_choices: int) -> OnBatch:
    """Turns counts of finished choices into counts of finished documents."""
    done = 0

    def advance(choices: int) -> None:
        nonlocal done
        before, done = done // n_choices, done + choices
        on_batch(done // n_choices - before)

    return advance


def _stops(tokenizer: Any, stop_strings: Sequence[str]) -> Callable[[list[int]], bool] | None:
    if not stop_strings:
        return None
    decode = tokenizer.decode

    def is_over(tokens: list[int]) -> bool:
        # Models often begin with line breaks, which are stop strings themselves but end nothing there.
        text = decode(tokens, skip_special_tokens=True).lstrip()
        return any(stop in text for stop in stop_strings)

    return is_over


def _cut(text: str, stop_strings: Sequence[str]) -> str:
    text = text.strip()
    for stop in stop_strings:
        text = text.partition(stop)[0]
    return text.strip()


def _tally_by_task(answered: Sequence[tuple[Example, str | None]]) -> dict[str, Tally]:
    by_task: dict[str, list[tuple[Example, str | None]]] = {}
    for example, answer in answered:
        by_task.setdefault(example.task, []).append((example, answer))
    return {
        task: tally(confusion_matrix([e.target for e, _ in rows], [a for _, a in rows], rows[0][0].choices))
        for task, rows in by_task.items()
    }
