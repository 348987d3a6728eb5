"""Actors of a Ray cluster that hold the model, each with two groups in hand: one it answers, and the next.

Enters: groups, which are read only when an actor has room for one, so that parts are written from the first on and
the file is never in memory. Leaves: their answers in any order. What an actor had in hand when it or its machine was
lost goes to another: a group is answered the same way wherever that is.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from fintune.schema import errors
from fintune.schema.errors import FintuneError, RunError
from fintune.serving.groups import Answered, Group
from fintune.serving.posed import Posed
from fintune.serving.workers import AGAIN

_IN_HAND = 2
_LOSSES = 3  # of each actor, without an answer in between: then it is not bad luck


class GroupAnswerer:
    """What each actor runs: holds the model and answers one group a call. What it says is JSON, mistakes included."""

    def __init__(self, posed: Posed) -> None:
        self._posed = posed

    def open(self) -> str:
        """Loads the model; says what is to be known of the question."""
        return said_in_json(self._open)

    def answer(self, start: int, texts: list[str | None]) -> str:
        """The values of the added columns for each row of a group."""
        return said_in_json(lambda: {"start": start, "values": list(self._values(texts))})

    def _values(self, texts: list[str | None]) -> Iterator[list[Any]]:
        return self._question.values(self._question.read(texts))

    def _open(self) -> dict[str, Any]:
        self._question = self._posed.open()
        return self._posed.known(self._question)


@dataclass(eq=False)
class _Actor:
    """One actor: whether its model is loaded, and how many groups it has in hand."""

    handle: Any
    is_open: bool = False
    in_hand: int = 0


@dataclass
class _Pool:
    """The actors and what they were asked: to load the model, where no group stands beside them, or to answer one."""

    start: Callable[[], Any]
    check: Callable[[dict[str, Any]], None]
    actors: list[_Actor] = field(default_factory=list)
    asked: dict[Any, tuple[_Actor, Group | None]] = field(default_factory=dict)
    lost: deque[Group] = field(default_factory=deque)
    losses: int = 0

    def hire(self) -> None:
        """Starts an actor; it waits where the cluster has no room for it yet."""
        actor = _Actor(self.start())
        self.actors.append(actor)
        self.asked[actor.handle.open.remote()] = (actor, None)

    def free(self) -> _Actor | None:
        """The open actor with the fewest groups, if it has room for one."""
        found = [actor for actor in self.actors if actor.is_open and actor.in_hand < _IN_HAND]
        return min(found, key=lambda actor: actor.in_hand, default=None)

    def give(self, actor: _Actor, group: Group) -> None:
        """Asks an actor about a group."""
        actor.in_hand += 1
        self.asked[actor.handle.answer.remote(group.start, group.texts)] = (actor, group)

    def lost_or(self, unread: Iterator[Group]) -> Group | None:
        """A group that was lost, else the next one; None where there is none."""
        return self.lost.popleft() if self.lost else next(unread, None)

    def at_work(self) -> bool:
        """Whether a group is in hand, be it of an actor that was dismissed: its end has yet to be told."""
        return any(group is not None for _, group in self.asked.values())

    def next_answer(self) -> Answered | None:
        """Waits until something was done; None where that was no answer.

        Raises:
            RunError: actors are lost again and again.
            FintuneError: what an actor could not do.
        """
        import ray

        (done,), _ = ray.wait(list(self.asked), num_returns=1)
        actor, group = self.asked.pop(done)
        actor.in_hand -= group is not None
        try:
            found = taken(ray.get(done))
        except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
            self._lose(actor, group, error)
            return None
        if group is None:
            self.check(found)
            actor.is_open = True
            return None
        self.losses = 0
        return Answered(found["start"], found["values"])

    def dismiss(self) -> None:
        """Ends all actors, whatever they are doing."""
        import ray

        for actor in self.actors:
            ray.kill(actor.handle)

    def _lose(self, actor: _Actor, group: Group | None, error: Exception) -> None:
        import ray

        if group is not None:
            self.lost.append(group)
        if actor not in self.actors:
            return  # what else it was asked said so before
        self.losses += 1
        if self.losses > _LOSSES * len(self.actors):
            raise RunError(f"Ray lost {self.losses} actors without an answer in between: {last_line(error)}", AGAIN)
        self.actors.remove(actor)
        ray.kill(actor.handle)  # an answer that was lost leaves it alive
        self.hire()


def answers(
    start: Callable[[], Any], count: int, check: Callable[[dict[str, Any]], None], groups: Iterator[Group]
) -> Iterator[Answered]:
    """The answers to groups, in any order.

    Args:
        start: starts an actor that runs ``GroupAnswerer``, and gives its handle.
        count: actors at most; no more than there are groups.
        check: is told what each actor knows of the question.
        groups: what is asked; read as actors have room.

    Raises:
        RunError: actors are lost again and again.
        FintuneError: what an actor could not do.
    """
    first = list(islice(groups, count))
    unread = chain(first, groups)
    pool = _Pool(start, check)
    try:
        for _ in first:
            pool.hire()
        while pool.actors:
            while (actor := pool.free()) is not None and (group := pool.lost_or(unread)) is not None:
                pool.give(actor, group)
            if actor is not None and not pool.at_work():
                return
            if (found := pool.next_answer()) is not None:
                yield found
    finally:
        pool.dismiss()


def said_in_json(act: Callable[[], dict[str, Any]]) -> str:
    """What ``act`` returns, or the error it raises, as JSON that ``taken`` reads."""
    try:
        return json.dumps(act())
    except FintuneError as error:
        return json.dumps({"error": [type(error).__name__, error.message, error.remedy]})


def taken(line: str) -> dict[str, Any]:
    """What was said in JSON.

    Raises:
        FintuneError: the error that was.
    """
    found: dict[str, Any] = json.loads(line)
    if "error" in found:
        kind, message, remedy = found["error"]
        raise getattr(errors, kind, FintuneError)(message, remedy)
    return found


def last_line(error: Exception) -> str:
    """Where Ray says what happened, shortened."""
    said = str(error).strip().splitlines()
    return said[-1].strip()[:240] if said else type(error).__name__
