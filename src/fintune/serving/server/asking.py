"""Requests become jobs: messages to tokens under the model's template, limits checked, forms made into grammars.

Enters: validated requests. Leaves: prompts and manners. All of it runs in one thread of its own, away from the event
loop: long prompts take a while to tokenise, and Rust tokenizers take one caller at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from fintune.models.window import context_window
from fintune.schema.example import Example, Message
from fintune.serving.asking import is_chat
from fintune.serving.server.classifying import computed_tokens
from fintune.serving.server.constraints import Constraint, choice_grammar, json_grammar
from fintune.serving.server.jobs import Form, Manner
from fintune.serving.server.models import ServedModel
from fintune.serving.server.problems import HttpProblem, bad_request
from fintune.serving.server.settings import KeyLimits, ServerSettings
from fintune.serving.server.wire import ChatRequest, ClassifyRequest, CompletionRequest, SchemaFormat
from fintune.serving.writing import fresh_seed
from fintune.trees.chat import encode_all

if TYPE_CHECKING:
    from fintune.trees.encoded import EncodedExample
    from fintune.trees.prefix_tree import IntArray

COLDEST = 1e-3
_READ_TOGETHER = 16  # texts between two looks at how many tokens there are
_ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Prompted:
    """What a request asks to be written.

    Attributes:
        prompts: (L,) token ids, one for each answer.
        manners: how each answer is written.
    """

    prompts: tuple[IntArray, ...]
    manners: tuple[Manner, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts; those of several answers to one prompt count once."""
        return sum(len(prompt) for prompt in {id(prompt): prompt for prompt in self.prompts}.values())

    @property
    def most_tokens(self) -> int:
        """Tokens that the request may take in the end."""
        return self.prompt_tokens + sum(manner.limit for manner in self.manners)


@dataclass(frozen=True)
class Questions:
    """What a request asks to be classified.

    Attributes:
        examples: the texts with their choices.
        encoded: their tokens.
    """

    examples: tuple[Example, ...]
    encoded: tuple[EncodedExample, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of prompts and choices."""
        return sum(len(text.prompt) + sum(map(len, text.choices)) for text in self.encoded)


def read_chat(request: ChatRequest, model: ServedModel, settings: ServerSettings, limits: KeyLimits) -> Prompted:
    """A conversation as tokens.

    Raises:
        HttpProblem: the model has no template, the template does not take these turns, or they do not fit.
    """
    chat = model.predictor.scorer.chat
    if model.predictor.template == "none":
        raise bad_request("This model has no chat template; use /v1/completions.", "no_chat_template")
    messages = [Message(_ROLES.get(turn.role, turn.role), turn.said) for turn in request.messages]  # type: ignore[arg-type]  # the roles of both are the same words
    if not any(message.content.strip() for message in messages):
        raise bad_request("The messages are empty.", "empty_prompt")
    asked = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    longest = _longest_prompt(asked, model, settings, limits)
    _require_short(request.n_characters, longest, model)
    if is_chat(model.predictor, True):
        try:
            prompt = chat.prompt(messages)
        except TemplateError as error:
            raise bad_request(f"The model's template does not take these turns ({error}).", "bad_turns") from error
    else:
        prompt = _opened(model, "\n".join(message.content for message in messages))
    return _prompted(request, [prompt], asked, model, settings, limits)


def read_completion(
    request: CompletionRequest, model: ServedModel, settings: ServerSettings, limits: KeyLimits
) -> Prompted:
    """Texts as tokens behind the tokenizer's opening token.

    Raises:
        HttpProblem: they are empty, or do not fit.
    """
    if not all(request.prompts):
        raise bad_request("A prompt is empty.", "empty_prompt")
    longest = _longest_prompt(request.max_tokens, model, settings, limits)
    for text in request.prompts:
        _require_short(len(text), longest, model)
    prompts = [_opened(model, text) for text in request.prompts]
    return _prompted(request, prompts, request.max_tokens, model, settings, limits)


def _opened(model: ServedModel, text: str) -> IntArray:
    import numpy as np

    chat = model.predictor.scorer.chat
    return np.concatenate([[chat.opening_id], chat.text(text)]).astype(np.int64)


def _prompted(
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[IntArray],
    asked: int | None,
    model: ServedModel,
    settings: ServerSettings,
    limits: KeyLimits,
) -> Prompted:
    n = request.n or 1
    rooms = [_room(len(prompt), asked, model, settings, limits) for prompt in prompts]
    manner = _manner(request, model)
    vocabulary = int(model.predictor.scorer.model.model.config.get_text_config().vocab_size)
    if any(token >= vocabulary for token in manner.logit_bias):
        raise bad_request(f"logit_bias names a token beyond the {vocabulary:,} of this model.", "invalid_token")
    return Prompted(
        tuple(prompt for prompt in prompts for _ in range(n)),
        tuple(replace(manner, limit=room, seed=manner.seed + i) for room in rooms for i in range(n)),
    )


def _most_new(settings: ServerSettings, limits: KeyLimits) -> int:
    return min(settings.max_new_tokens, limits.max_new_tokens or settings.max_new_tokens)


def _window(model: ServedModel) -> int:
    scorer = model.predictor.scorer
    return context_window(scorer.model.model.config) or scorer.chat.max_length


def _longest_prompt(asked: int | None, model: ServedModel, settings: ServerSettings, limits: KeyLimits) -> int:
    """Most tokens of a prompt beside the answer; 0 or less where the answer alone fills the window."""
    most, window = _most_new(settings, limits), _window(model)
    if asked is not None and asked > most:
        raise bad_request(f"max_tokens is {asked:,}, and at most {most:,} are allowed.", "max_tokens_too_large")
    return min(settings.max_prompt_tokens or window, window - (1 if asked is None else asked))


def _require_short(n_characters: int, longest: int, model: ServedModel) -> None:
    """Refuses, before it is tokenised, a text that has too many tokens however long each of them is."""
    if n_characters > max(longest, 0) * model.longest_token:
        raise bad_request(
            f"The prompt has {n_characters:,} characters, more than the {max(longest, 0):,} tokens that fit beside the "
            "answer can hold. Shorten it, or lower max_tokens.",
            "context_length_exceeded",
        )


def _room(n_prompt: int, asked: int | None, model: ServedModel, settings: ServerSettings, limits: KeyLimits) -> int:
    """Tokens of an answer: what was asked for, or as many as are usual and fit."""
    longest = _longest_prompt(asked, model, settings, limits)
    if n_prompt > longest:
        raise bad_request(
            f"The prompt has {n_prompt:,} tokens, and {max(longest, 0):,} fit beside the answer. "
            "Shorten it, or lower max_tokens.",
            "context_length_exceeded",
        )
    return asked or min(settings.default_new_tokens, _most_new(settings, limits), _window(model) - n_prompt)


def _manner(request: ChatRequest | CompletionRequest, model: ServedModel) -> Manner:
    return Manner(
        limit=1,
        temperature=_temperature(request.temperature),
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=(fresh_seed() if request.seed is None else request.seed) % 2**62,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        stops=request.stop_texts,
        form=_form(request, model),
        streams=bool(request.stream),
    )


def _temperature(asked: float | None) -> float:
    """As asked; below ``COLDEST`` the likeliest token, for quotients by less would leave the numbers of fp32."""
    temperature = 1.0 if asked is None else asked
    return 0.0 if temperature < COLDEST else temperature


def _form(request: ChatRequest | CompletionRequest, model: ServedModel) -> Form | None:
    wanted = request.response_format
    is_json = wanted is not None and wanted.type != "text"
    if request.choices is not None:
        if is_json:
            raise bad_request("choices and response_format cannot be combined.", "invalid_request")
        grammar = choice_grammar(request.choices)
        return Form(Constraint(grammar, model.grammar_tokenizer), choices=tuple(request.choices))
    if is_json:
        schema = wanted.json_schema.schema_ if isinstance(wanted, SchemaFormat) else {"type": "object"}
        return Form(Constraint(json_grammar(schema), model.grammar_tokenizer), schema=schema)
    return None


def read_questions(request: ClassifyRequest, model: ServedModel, settings: ServerSettings) -> Questions:
    """Texts under a prompt with the choices, as tokens.

    Raises:
        HttpProblem: a text is empty or does not fit, or there is nothing to choose from.
        FintuneError: there is no such task, or it has no labels.
    """
    texts = request.texts
    if len(texts) > settings.max_inputs:
        raise bad_request(f"One request may classify {settings.max_inputs} texts.", "too_many_inputs")
    for number, text in enumerate(texts):
        if not text.strip():
            raise bad_request(f"Text {number} of the input is empty.", "empty_prompt")
    if model.predictor.template == "none":
        raise bad_request("This model has no chat template to ask with.", "no_chat_template")
    examples = _examples(request, texts, model)
    return Questions(tuple(examples), tuple(_encoded(examples, model, settings.max_classify_tokens)))


def _encoded(examples: Sequence[Example], model: ServedModel, most: int) -> list[EncodedExample]:
    """The tokens of questions; no more of them are read than are allowed."""
    encoded: list[EncodedExample] = []
    scorer, n_tokens = model.predictor.scorer, 0
    if sum(len(choice) for example in examples for choice in example.choices) > most * model.longest_token:
        raise _too_many_tokens(most)
    for start in range(0, len(examples), _READ_TOGETHER):
        found = encode_all(scorer.chat, examples[start : start + _READ_TOGETHER])
        missing = set(range(len(examples[start : start + _READ_TOGETHER]))) - set(found.kept)
        if missing:
            raise _does_not_fit(start + min(missing))
        encoded += found.encoded
        n_tokens += sum(computed_tokens(text, scorer.packing) for text in found.encoded)
        if n_tokens > most:
            raise _too_many_tokens(most)
    return encoded


def _does_not_fit(number: int) -> HttpProblem:
    return bad_request(f"Text {number} of the input does not fit the model.", "context_length_exceeded")


def _too_many_tokens(most: int) -> HttpProblem:
    return bad_request(
        f"The texts with all their choices have more than {most:,} tokens, which is the most of one request. "
        "Send fewer texts or choices at a time.",
        "too_many_tokens",
    )


def _examples(request: ClassifyRequest, texts: Sequence[str], model: ServedModel) -> list[Example]:
    if request.choices is None:
        return model.predictor.questions(texts, request.task)
    if request.task is not None:
        raise bad_request("Give task or choices, not both.", "invalid_request")
    most = model.predictor.scorer.chat.max_length * model.longest_token
    for number, text in enumerate(texts):
        if len(text) > most:
            raise _does_not_fit(number)
    choices = tuple(request.choices)
    if len(set(choices)) < len(choices):
        raise bad_request("A choice is there twice.", "invalid_request")
    return [
        Example(example_id=f"text-{i}", task="choices", messages=(Message("user", text),), target="", choices=choices)
        for i, text in enumerate(texts)
    ]
