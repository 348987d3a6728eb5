"""What the pool does when a cluster loses answers, with a stand-in for Ray that tells of losses in a given order."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

from fintune.serving.groups import Group
from fintune.serving.ray_pool import answers, said_in_json


class RayActorError(Exception):
    """Stands for Ray's."""


class ObjectLostError(Exception):
    """Stands for Ray's."""


@dataclass(eq=False)
class Reference:
    """To what an actor says, or raises; waited for after all others where it is late."""

    found: str | Exception
    late: bool = False


class Cluster:
    """Actors that answer at once. The first one's answers are lost; of its second group that is told last of all."""

    def __init__(self):
        self.hired = 0
        self.killed = []
        names = ("NodeDiedError", "RayActorError", "ObjectLostError")
        known = {"RayActorError": RayActorError, "ObjectLostError": ObjectLostError}
        self.exceptions = SimpleNamespace(**{name: known.get(name, type(name, (Exception,), {})) for name in names})

    def start(self):
        number, self.hired = self.hired, self.hired + 1

        def answer(start, texts):
            if number:
                return Reference(said_in_json(lambda: {"start": start, "values": [texts]}))
            return Reference(RayActorError() if start else ObjectLostError(), late=bool(start))

        opened = Reference("{}")
        return SimpleNamespace(
            number=number, open=SimpleNamespace(remote=lambda: opened), answer=SimpleNamespace(remote=answer)
        )

    def wait(self, references, num_returns):
        return [min(references, key=lambda reference: reference.late)], []

    def get(self, reference):
        if isinstance(reference.found, Exception):
            raise reference.found
        return reference.found

    def kill(self, handle):
        self.killed.append(handle.number)


def test_both_groups_of_an_actor_that_lost_one_are_answered(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", cluster := Cluster())
    groups = [Group(start, [f"text {start}"]) for start in range(4)]
    found = list(answers(cluster.start, 2, lambda known: None, iter(groups)))
    assert sorted((one.start, one.values) for one in found) == [(n, [[f"text {n}"]]) for n in range(4)]
    assert cluster.hired == 3 and sorted(cluster.killed) == [0, 1, 2]
