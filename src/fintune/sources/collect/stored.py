"""Raw answers of providers on disk, each with the time it was retrieved, under what was asked and without any key.

::

    raw/finnhub/3f0c....json    {"provider", "path", "parameters", "retrieved_at", "body"}

Enters: a question and the body that answered it. Leaves: the same again, in every later run. Files are renamed into
place, so that a killed run leaves whole answers only, and never asks for one again that it has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from fintune.schema.run_directory import write_json


@dataclass(frozen=True)
class Question:
    """What is asked of a provider.

    Attributes:
        provider: its name.
        path: below its base URL, such as ``company-news``.
        parameters: of the query, without the key.
        until: last day that the answer speaks of; None for what is asked as of now.
    """

    provider: str
    path: str
    parameters: Mapping[str, str]
    until: date | None = None

    @property
    def identity(self) -> dict[str, object]:
        """What makes it the same question: not the address of the server that answers."""
        return {"provider": self.provider, "path": self.path, "parameters": dict(sorted(self.parameters.items()))}


@dataclass(frozen=True)
class StoredAnswer:
    """A body as it came, with the UTC time it was retrieved, such as ``2024-04-02T08:00:00Z``."""

    body: str
    retrieved_at: str


class AnswerStore:
    """The raw answers below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, question: Question, today: date) -> StoredAnswer | None:
        """The stored answer; None where there is none, or where its days were not over yet and a day has passed."""
        try:
            found = json.loads(self._place(question).read_text(encoding="utf-8"))
            same = {key: found[key] for key in question.identity} == question.identity
            answer = StoredAnswer(str(found["body"]), str(found["retrieved_at"]))
            retrieved_on = datetime.fromisoformat(answer.retrieved_at).date()
        except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged by something other than us
            return None
        unfinished = question.until is not None and retrieved_on <= question.until
        return None if not same or (unfinished and today > retrieved_on) else answer

    def keep(self, question: Question, body: str, moment: datetime) -> StoredAnswer:
        """Stores a body as the answer.

        Raises:
            RunError: it cannot be written.
        """
        answer = StoredAnswer(body, moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        write_json(
            self._place(question), {**question.identity, "retrieved_at": answer.retrieved_at, "body": answer.body}
        )
        return answer

    def adopt_leftovers(self) -> None:
        """Takes what a killed run had written whole and not renamed yet; removes what it had written in part."""
        for partial in self.folder.glob("*/.*.partial"):
            try:
                found = json.loads(partial.read_text(encoding="utf-8"))
                place = self._place(Question(found["provider"], found["path"], found["parameters"]))
                if place.parent == partial.parent and partial.name.startswith(f".{place.name}."):
                    partial.replace(place)
            except (OSError, ValueError, KeyError, TypeError):
                pass
            partial.unlink(missing_ok=True)

    def _place(self, question: Question) -> Path:
        text = json.dumps(question.identity, sort_keys=True, ensure_ascii=True)
        return self.folder / question.provider / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
