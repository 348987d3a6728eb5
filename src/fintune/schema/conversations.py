"""What a recipe says of a source of conversations, instructions or plain text: its format, its splits, its checks.

Enters and leaves as the ``conversations`` section of an entry of ``data.tasks``; nothing is read here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ConversationFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "text"]
ConversationMeasure = Literal["auto", "next_turn", "answers", "likelihood"]


class ConversationsSection(BaseModel):
    """A source of conversations, instructions or plain text: what is a turn, what is held out, what is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    format: ConversationFormat = Field(
        "auto",
        description="How rows are written: messages (role, content), sharegpt (from, value), alpaca (instruction, "
        "input, output), prompt_completion, question_answer, or text (plain documents); auto looks at the columns.",
    )
    turns: str | None = Field(
        None, description="Column with the list of turns; null takes messages, conversations, conversation or turns."
    )
    prompt: str | None = Field(
        None,
        description="Column with the user's words, or a wording with columns in braces: 'What does {term} mean?'; "
        "null takes the format's own.",
    )
    answer: str | None = Field(None, description="Column with the assistant's words; null takes the format's own.")
    text: str | None = Field(None, description="Column with the document of format text; null takes text.")
    system: str | None = Field(None, description="System message for conversations that bring none.")
    conversation: str | None = Field(
        None, description="Column that joins rows, each one exchange, to a conversation; they stay in their order."
    )
    group: str | None = Field(
        None,
        description="Column whose rows are held out together, such as metadata.ticker (a dot looks into an object); "
        "null holds out single conversations.",
    )
    test_share: float = Field(
        0.1, ge=0, le=1, description="Share of the groups held out for the final scores; 1 only measures."
    )
    validation_share: float = Field(0.05, ge=0, lt=1, description="Share held out to choose checkpoints.")
    measure: ConversationMeasure = Field(
        "auto",
        description="Beside perplexity: next_turn ranks the true last answer among others, answers writes it and "
        "compares words and numbers, likelihood does neither; auto takes next_turn, for text likelihood.",
    )
    max_answer_tokens: int = Field(128, ge=1, description="Longest answer written for measure answers.")
    faulty_turns: Literal["drop", "cut"] = Field(
        "drop",
        description="Conversations with an empty turn, roles that do not alternate or no answer at the end: drop "
        "leaves them out, cut keeps the exchanges before the fault.",
    )
    min_characters: int = Field(1, ge=1, description="Shorter conversations or documents are left out.")
    max_characters: int | None = Field(
        None, ge=1, description="Longer ones are left out; null leaves length to training.max_length, which cuts."
    )
    min_latin_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of letters that must be Latin; 0 allows every script. It tells no languages apart.",
    )
    near_duplicates: float | None = Field(
        0.9,
        ge=0.1,
        le=1,
        description="Similarity from which a conversation repeats an earlier one, of this or an earlier source, and is "
        "left out; null leaves out equal ones only.",
    )
    licence: str | None = Field(None, description="Terms of the data, for the report and the licence gate.")
    delimiter: str | None = Field(None, description="Of a CSV file; null detects it.")
    encoding: str | None = Field(None, description="Of a text file; null detects it.")
    sheet: str | None = Field(None, description="Of an Excel file; null takes the first.")
