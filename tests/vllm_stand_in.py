"""A stand-in for vLLM that follows its documented interface, for machines without it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

OPENED: list = []


@dataclass
class StructuredOutputsParams:
    """One of them is given."""

    json: dict | None = None
    choice: list[str] | None = None

    def __post_init__(self):
        assert (self.json is None) != (self.choice is None)


@dataclass
class SamplingParams:
    """Unknown arguments are errors, as in vLLM."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self):
        assert self.max_tokens is None or self.max_tokens >= 1


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self):
        assert self.lora_int_id >= 1 and self.lora_path


class Engine:
    """Goes on with every open request by one token a step, counting up as ``LLM`` does; modulo 300, none special."""

    def __init__(self):
        self.open, self.requests, self.aborted, self.loras = {}, [], [], set()

    def add_request(self, request_id, prompt, params, *, lora_request=None):
        assert isinstance(request_id, str) and request_id not in self.open
        request = SimpleNamespace(prompt=prompt["prompt_token_ids"], params=params, lora=lora_request, tokens=[])
        self.open[request_id] = request
        self.loras |= set() if lora_request is None else {lora_request.lora_int_id}
        self.requests.append(request)

    def abort_request(self, request_ids):
        assert isinstance(request_ids, list)
        for request_id in request_ids:
            if self.open.pop(request_id, None) is not None:
                self.aborted.append(request_id)

    def remove_lora(self, lora_id):
        was_there = lora_id in self.loras
        self.loras.discard(lora_id)
        return was_there

    def step(self):
        outputs = []
        for request_id, request in list(self.open.items()):
            request.tokens.append(40 + (len(request.prompt) + len(request.tokens)) % 300)
            finished = len(request.tokens) >= request.params.max_tokens
            answer = SimpleNamespace(token_ids=tuple(request.tokens), finish_reason="length" if finished else None)
            outputs.append(SimpleNamespace(request_id=request_id, outputs=[answer], finished=finished))
            if finished:
                del self.open[request_id]
        return outputs


class LLM:
    """Counts up from the last prompt token, through its own end-of-sequence token 9 if told to ignore it."""

    def __init__(self, model, **options):
        self.model, self.options, self.requests, self.llm_engine = model, options, [], Engine()
        OPENED.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params) and (lora_request is None or self.options["enable_lora"])
        self.requests.append(lora_request)
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(self._write(prompt["prompt_token_ids"], params)))])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _write(self, prompt, params):
        assert isinstance(prompt, list) and params.temperature == 0
        token = prompt[-1]
        for _ in range(params.max_tokens):
            token += 1
            yield token  # the stop token is part of vLLM's token ids
            if token in params.stop_token_ids or (token == 9 and not params.ignore_eos):
                return


def install(monkeypatch) -> list[LLM]:
    """Puts the stand-in where ``import vllm`` finds it; returns the list of engines that are opened from now on."""
    OPENED.clear()
    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    params = ModuleType("vllm.sampling_params")
    params.SamplingParams, params.StructuredOutputsParams = SamplingParams, StructuredOutputsParams
    module.LLM, module.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for one in (module, lora, request, params):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return OPENED
