"""Experimental: vLLM writes, in one batch for the base and all adapters, where it is installed.

Enters: jobs. Leaves: their tokens, a step of the engine at a time. Classification stays with our own model, so vLLM is
given half of the GPU's memory. Written to the interface of vLLM 0.33 and tested against a stand-in of it.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from fintune.inference.vllm_engine import lora_request, open_vllm, rank_to_reserve, require_vllm
from fintune.models.load import LoadedBase
from fintune.schema.errors import ModelError
from fintune.serving.predictor import Predictor
from fintune.serving.server.jobs import Job
from fintune.serving.server.problems import HttpProblem, bad_request

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel

MOST_RANK = 64
MEMORY = 0.5


@dataclass(eq=False)
class _Written:
    job: Job
    n_seen: int = 0


@dataclass(eq=False)
class VllmLane:
    """The one lane of all models.

    Args:
        batch_size: answers written at once.

    Raises:
        DependencyError: vLLM is not installed.
    """

    batch_size: int
    _engine: Any = None
    _jobs: dict[str, _Written] = field(default_factory=dict)
    _numbers: Any = field(default_factory=count)
    _adapter_numbers: Any = field(default_factory=lambda: count(1))  # vLLM keeps weights by them: none is used twice
    _adapters: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_vllm()

    def of(self, predictor: Predictor) -> VllmLane:
        """The lane for a base or an adapter.

        Raises:
            AdapterError: vLLM cannot hold the adapter.
        """
        if predictor.adapter is not None:
            if (rank := rank_to_reserve(predictor.adapter)) > MOST_RANK:
                raise ModelError(
                    f"{predictor.adapter} has rank {rank}, and vLLM has room for {MOST_RANK}.", "Merge the adapter."
                )
            number = next(self._adapter_numbers)
            self._adapters[predictor.using] = lora_request(f"adapter-{number}", number, predictor.adapter)
        return self

    def open(self, base: LoadedBase) -> None:
        """Opens the base in vLLM.

        Raises:
            ModelError: it is held in a form of ours.
        """
        if base.quantization != "none":
            raise ModelError(
                f"vLLM cannot serve a base held as {base.quantization}.",
                "Give --quantization none, or --engine fintune.",
            )
        opened = open_vllm(
            base.files.path, batch_size=self.batch_size, lora_rank=MOST_RANK, gpu_memory_utilization=MEMORY
        )
        self._engine = opened.engine.llm_engine

    def add(self, job: Job) -> None:
        """Hands a job to vLLM, which queues it or refuses it."""
        number = str(next(self._numbers))
        try:
            self._engine.add_request(
                number,
                {"prompt_token_ids": job.prompt.tolist()},
                _sampling(job),
                lora_request=self._adapters.get(job.model.predictor.using),
            )
        except ValueError as error:  # vLLM's word for a request that it cannot take
            job.fail(bad_request(f"vLLM refuses the request ({error})."))
        else:
            self._jobs[number] = _Written(job)

    def using(self) -> AbstractContextManager[object]:
        """Nothing is switched: every prompt brings its adapter."""
        return nullcontext()

    @property
    def is_idle(self) -> bool:
        """No job is queued or being written."""
        return not self._jobs

    def uses(self, model: ServedModel) -> bool:
        """Whether a job of this model is queued or being written."""
        return any(written.job.model is model for written in self._jobs.values())

    def step(self) -> None:
        """Goes on with all jobs by a step of vLLM's engine."""
        self._abort([number for number, written in self._jobs.items() if written.job.cancelled])
        if not self._jobs:
            return
        for output in self._engine.step():
            written = self._jobs.get(output.request_id)
            if written is not None:
                self._take(written, output)
        self._abort([number for number, written in self._jobs.items() if written.job.done])

    def _take(self, written: _Written, output: Any) -> None:
        job, answer = written.job, output.outputs[0]
        end_ids = job.model.predictor.scorer.chat.end_ids
        for token in list(answer.token_ids)[written.n_seen :]:
            written.n_seen += 1
            if not job.done:
                job.take(int(token), end_ids)
        if output.finished and not job.done:
            job.finish("length" if answer.finish_reason == "length" else "stop")

    def _abort(self, numbers: list[str]) -> None:
        """Takes requests out of vLLM; one that has ended there is no mistake."""
        if numbers:
            self._engine.abort_request(numbers)
        for number in numbers:
            self._jobs.pop(number).job.drop()

    def fail_all(self, problem: HttpProblem) -> None:
        """Ends all jobs without an answer."""
        left, self._jobs = self._jobs, {}
        for written in left.values():
            if not written.job.done:
                written.job.fail(problem)
        self._engine.abort_request(list(left))

    def forget(self, model: ServedModel) -> None:
        """Takes an adapter out of vLLM, which may have loaded it."""
        adapter = self._adapters.pop(model.predictor.using, None)
        if adapter is not None:
            self._engine.remove_lora(adapter.lora_int_id)


def _sampling(job: Job) -> Any:
    manner, module = job.manner, importlib.import_module("vllm.sampling_params")
    form: dict[str, Any] = {}
    if manner.form is not None:
        chosen = {"choice": list(manner.form.choices)} if manner.form.choices else {"json": manner.form.schema}
        form = {"structured_outputs": module.StructuredOutputsParams(**chosen)}
    # ignore_eos: an answer ends at our tokens, not at those the model's folder names.
    return module.SamplingParams(
        temperature=manner.temperature,
        top_p=manner.top_p,
        seed=manner.seed,
        presence_penalty=manner.presence_penalty,
        frequency_penalty=manner.frequency_penalty,
        logit_bias=dict(manner.logit_bias) or None,
        max_tokens=manner.limit,
        stop_token_ids=sorted(job.model.predictor.scorer.chat.end_ids),
        ignore_eos=True,
        detokenize=False,
        **form,
    )
