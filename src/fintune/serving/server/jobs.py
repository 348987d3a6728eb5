"""One answer on its way: how it is to be written, what there is of it, and whom it is handed to.

Enters: a prompt as tokens. Leaves: ``Piece`` objects, the last of which says how the answer ended. Every job has one
last piece, also when nobody waits for it any more: it says that the engine has let go of the job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fintune.inference.choosing import Chooser, Sampling
from fintune.inference.drafts import Draft
from fintune.inference.out_of_memory import is_out_of_memory
from fintune.serving.server.constraints import Constraint
from fintune.serving.server.problems import HttpProblem
from fintune.serving.server.text import AnswerText

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel
    from fintune.trees.prefix_tree import IntArray

log = logging.getLogger(__name__)
Ended = Literal["stop", "length"]


@dataclass(frozen=True)
class Form:
    """What an answer must look like: a schema its JSON fits, or one of some texts; and both as they are kept to."""

    constraint: Constraint
    schema: Mapping[str, object] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manner:
    """How an answer is written; the numbers mean what they mean in OpenAI's interface.

    Attributes:
        limit: most tokens.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        seed: the same seed writes the same answer on the same kind of device.
        presence_penalty: taken off the logit of each token that the answer holds.
        frequency_penalty: taken off as often as the answer holds it.
        logit_bias: added to the logits of these tokens.
        stops: texts that end the answer before them.
        form: what the answer must look like.
        streams: whether pieces are wanted before the end.
    """

    limit: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    form: Form | None = None
    streams: bool = False

    @property
    def changes_logits(self) -> bool:
        """Whether the likeliest token by the model's own logits may not be taken as it is."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias or self.form)


@dataclass(frozen=True)
class Piece:
    """Some more of an answer.

    Attributes:
        index: number of the answer within its request.
        text: what is new; of an answer that is not streamed, all of it.
        n_tokens: tokens of the answer so far.
        ended: how it ended; None while it goes on.
        problem: why it ended without an answer.
        first_token_s: from its submission to its first token.
    """

    index: int
    text: str
    n_tokens: int
    ended: Ended | None = None
    problem: HttpProblem | None = None
    first_token_s: float | None = None

    @property
    def is_last(self) -> bool:
        """Nothing follows."""
        return self.ended is not None or self.problem is not None


Deliver = Callable[[Piece], None]


class Job:
    """An answer that is to be written; made in the event loop, written by the engine's thread.

    Args:
        model: what writes it.
        prompt: (L,) token ids.
        manner: how it is written.
        deliver: takes the pieces.
        index: number of the answer within its request.

    Attributes:
        cancelled: nobody waits for it any more; set from any thread.
    """

    def __init__(self, model: ServedModel, prompt: IntArray, manner: Manner, deliver: Deliver, index: int = 0) -> None:
        self.model, self.prompt, self.manner, self.index = model, prompt, manner, index
        self._deliver = deliver
        self._text = AnswerText(model.decoder, manner.stops)
        self._constraint: Constraint | None = None
        self._chooser = Chooser(Sampling(manner.temperature, manner.top_p, 1.0, 0, 0, manner.seed))
        self._pending = ""
        self._submitted = time.perf_counter()
        self._first_token_s: float | None = None
        self.n_tokens = 0
        self.cancelled = False
        self.done = False

    @property
    def is_greedy(self) -> bool:
        """Whether the model's likeliest token is taken."""
        return self.manner.temperature == 0 and not self.manner.changes_logits

    def choose(self, draft: Draft, logits: Tensor) -> int:
        """The next token by its (V,) logits."""
        scores = logits.float()
        if self.manner.changes_logits:
            scores = self._changed(draft, scores)
        return self._chooser.choose([draft], scores[None])[0]

    def _changed(self, draft: Draft, scores: Tensor) -> Tensor:
        manner, scores = self.manner, scores.clone()
        if draft.answer and (manner.presence_penalty or manner.frequency_penalty):
            tokens, counts = torch.unique(torch.tensor(draft.answer, device=scores.device), return_counts=True)
            scores[tokens] -= manner.presence_penalty + manner.frequency_penalty * counts
        for token, bias in manner.logit_bias.items():
            scores[token] += bias
        if manner.form is not None:
            if self._constraint is None:
                self._constraint = manner.form.constraint.of_answer()
            scores = self._constraint.masked(scores)
        return scores

    def take(self, token: int, end_ids: frozenset[int]) -> None:
        """Adds the next token of the answer, which it may end."""
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._submitted
        if self.cancelled:
            self.drop()
            return
        if token in end_ids:
            self.finish("stop")
            return
        self.n_tokens += 1
        self._pending += self._text.add(token)
        is_formed = self._constraint is not None and self._constraint.take(token)
        if self._text.stopped or is_formed:
            self.finish("stop")
        elif self.n_tokens >= self.manner.limit:
            self.finish("length")
        elif self.manner.streams and self._pending:
            self._deliver(Piece(self.index, self._pending, self.n_tokens, first_token_s=self._first_token_s))
            self._pending = ""

    def finish(self, ended: Ended) -> None:
        """Ends it with what there is."""
        self._pending += self._text.rest()
        self._end(Piece(self.index, self._pending, self.n_tokens, ended, first_token_s=self._first_token_s))

    def fail(self, problem: HttpProblem) -> None:
        """Ends it without an answer."""
        self._end(Piece(self.index, "", self.n_tokens, problem=problem))

    def drop(self) -> None:
        """Ends it as nobody waits for it any more; who counts open answers hears of that too."""
        self.fail(HttpProblem(499, "The client has gone.", "client_gone"))

    def _end(self, last: Piece) -> None:
        if not self.done:
            self.done = True
            self._deliver(last)


@contextmanager
def failing_alone(job: Job) -> Iterator[None]:
    """Ends a job that fails in the block, and no other; the log gets the place of an error and none of its words.

    Rust libraries quote the answer in their errors, and panic with a BaseException.
    """
    try:
        yield
    except HttpProblem as problem:
        job.fail(problem)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[1:]]
        log.error("An answer ends with %s at %s.", type(error).__name__, ", ".join(frames))
        job.fail(HttpProblem(500, "The answer could not be written; the server's log says why.", "failed"))


class JobChooser:
    """Chooses the next tokens of jobs in one batch, each in its own manner; jobs by the index of their draft."""

    def __init__(self, jobs: Mapping[int, Job]) -> None:
        self._jobs = jobs

    def choose(self, drafts: Sequence[Draft], logits: Tensor) -> list[int]:
        """The next tokens of ``drafts`` by their (N, V) logits; a job that fails here ends alone."""
        chosen: list[int] = logits.argmax(-1).tolist()
        for row, draft in enumerate(drafts):
            job = self._jobs[draft.index]
            if job.cancelled or job.is_greedy:
                continue
            with failing_alone(job):
                chosen[row] = job.choose(draft, logits[row])
        return chosen


class JobTaker:
    """Hands tokens to their jobs, and tells the batch which drafts are done."""

    def __init__(self, jobs: Mapping[int, Job], end_ids: frozenset[int]) -> None:
        self._jobs, self._end_ids = jobs, end_ids

    def take(self, draft: Draft, token: int) -> None:
        """Adds the model's next token."""
        job = self._jobs[draft.index]
        if not job.done:
            draft.answer.append(token)
            with failing_alone(job):
                job.take(token, self._end_ids)
        draft.done = job.done
