"""What travels: OpenAI's requests and answers as far as they are served here, and our classification.

Enters: JSON. Leaves: validated models. A field that would change the answer and is not served is an error, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

Text = Annotated[str, Field(max_length=1_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


def _require_false(value: bool) -> bool:
    if value:
        raise ValueError("only false is served")
    return value


# Literal[False] would take 0.0 too, which is equal to it.
OnlyFalse = Annotated[bool, AfterValidator(_require_false), WithJsonSchema({"type": "boolean", "const": False})]


# Fields of OpenAI's that are not served: null asks for nothing, and clients send it.
Unserved = Annotated[None, Field(description="Not served; null is the same as leaving it out.")]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=100)]


class _Turn(_Strict):
    name: str | None = None

    @property
    def said(self) -> str:
        """The text of all parts."""
        content = getattr(self, "content", None)
        return content if isinstance(content, str) else "".join(part.text for part in content or ())


class AskingTurn(_Turn):
    """A turn of whoever asks."""

    role: Literal["system", "developer", "user"]
    content: Content


class AnsweringTurn(_Turn):
    """An earlier answer, as OpenAI's client gives it back; one without content is empty."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: Unserved = None
    annotations: Unserved = None
    audio: Unserved = None
    tool_calls: Unserved = None
    function_call: Unserved = None


class JsonSchema(_Strict):
    """A schema that the answer's JSON fits."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class PlainFormat(_Strict):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(_Strict):
    """What a stream ends with."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
Choices = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(min_length=1, max_length=256)]


class _Writing(_Strict):
    """What chat and completion share."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: Stops | Annotated[str, Field(min_length=1, max_length=200)] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern="^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
            ],
            Field(max_length=1024),
        ]
        | None
    ) = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    choices: Choices | None = Field(None, description="The answer is one of these texts.")
    user: str | None = Field(None, description="Has no effect.")
    safety_identifier: Unserved = None
    service_tier: Unserved = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop strings."""
        return tuple(_listed(self.stop) or ())


class ChatRequest(_Writing):
    """A conversation that is to be gone on with."""

    messages: Annotated[
        list[Annotated[AskingTurn | AnsweringTurn, Field(discriminator="role")]], Field(min_length=1, max_length=1000)
    ]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    store: OnlyFalse | None = None
    logprobs: OnlyFalse | None = None
    top_logprobs: Unserved = None
    tools: Unserved = None
    tool_choice: Unserved = None
    parallel_tool_calls: OnlyFalse | None = None
    functions: Unserved = None
    function_call: Unserved = None
    modalities: Unserved = None
    audio: Unserved = None
    prediction: Unserved = None
    reasoning_effort: Unserved = None
    verbosity: Unserved = None
    web_search_options: Unserved = None
    prompt_cache_key: Unserved = None
    metadata: dict[str, str] | None = Field(None, description="Has no effect.")

    @property
    def n_answers(self) -> int:
        """Answers that are asked for."""
        return self.n or 1

    @property
    def n_characters(self) -> int:
        """Length of what is to be read."""
        return sum(len(message.said) for message in self.messages)


class CompletionRequest(_Writing):
    """Texts that are to be gone on with, without a template."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=128)]
    echo: OnlyFalse | None = None
    logprobs: Unserved = None
    suffix: Unserved = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def prompts(self) -> list[str]:
        """All of them."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def n_answers(self) -> int:
        """Answers that are asked for."""
        return len(self.prompts) * (self.n or 1)

    @property
    def n_characters(self) -> int:
        """Length of what is to be read."""
        return sum(map(len, self.prompts))


class ClassifyRequest(_Strict):
    """Texts that are to be labelled: under a task's prompt, or as they are with the choices given."""

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=4096)]
    task: Name | None = Field(None, description="A task with labels; the first the model was trained on when null.")
    choices: Annotated[Choices, Field(min_length=2)] | None = Field(
        None, description="Answers to choose from, in place of a task; the input is then the whole question."
    )

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def n_characters(self) -> int:
        """Length of what is to be read."""
        return sum(map(len, self.texts)) + sum(map(len, self.choices or ()))


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """All answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionAnswer(BaseModel):
    """All continuations."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Classified(BaseModel):
    """The label of one text."""

    index: int
    label: str
    probabilities: dict[str, float]
    shortened: bool


class ClassifyAnswer(BaseModel):
    """The labels of all texts, in order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class ModelCard(BaseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["fintune"] = "fintune"
    parent: str | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "draining", "stuck", "failed"]
    models: int
    waiting: int


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: ErrorFacts
