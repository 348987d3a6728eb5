"""A run killed by SIGKILL, anywhere and more than once, ends in the bits of the run that nothing happened to.

FINTUNE_TEST_KILLS sets how many kills are made; the moments are drawn from a fixed seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from fintune.models.tiny import write_tiny_model
from tests.forks import forks
from tests.training import kill_child

KILLS = int(os.environ.get("FINTUNE_TEST_KILLS", "8"))
SAVE_STEPS = 2
CHANGES = (
    "adapter.dropout=0.2",
    "data.validation_limit=9",
    "data.near_duplicate_threshold=null",  # a fifth of the time of a run, and the same in all of them
    "training.epochs=1.5",
    "training.eval_steps=2",
    "training.best_metric=loss",
    "evaluation.limit=12",
    f"training.save_steps={SAVE_STEPS}",
)
ANYWHERE = ("start", "step", "saving", "validating", "scoring", "adapter", "writing")
INSIDE = {"saving": "saving", "validating": "evaluation", "scoring": "evaluation"}


@dataclass(frozen=True)
class Moment:
    """Kill ``delay_s`` after the ``occurrence``-th announcement of ``phase``."""

    phase: str
    occurrence: int
    delay_s: float


@dataclass(frozen=True)
class Watched:
    """What one process announced, and whether it was killed."""

    said: tuple[tuple[str, int | None, float], ...]
    killed: bool

    def open_phase(self) -> str | None:
        """The phase the process was in at its end."""
        stack: list[str] = []
        for name, _, _ in self.said:
            if name.startswith("end of "):
                stack.pop()
            elif name not in ("start", "finished"):
                stack.append(name)
        return stack[-1] if stack else None

    def steps(self, name: str) -> list[int]:
        return [step for said, step, _ in self.said if said == name]


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """Starts runs in forks of a server that has the libraries loaded."""
    context = forks()
    base = write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")
    cache = tmp_path_factory.mktemp("cache")

    def child(place: Path, moment: Moment | None = None, changes=CHANGES, recipe="quickstart") -> Watched:
        receive, send = context.Pipe(duplex=False)
        given = (send, str(base), str(place), str(cache), changes, recipe)
        process = context.Process(target=kill_child.start, args=given)
        process.start()
        send.close()
        said, killed, seen = [], False, 0
        try:
            while True:
                try:
                    said.append(receive.recv())
                except EOFError:
                    break
                if moment is None or killed or said[-1][0] != moment.phase:
                    continue
                seen += 1
                if seen == moment.occurrence:
                    time.sleep(moment.delay_s)
                    os.kill(process.pid, signal.SIGKILL)
                    killed = True
        finally:
            receive.close()
            process.join(timeout=60)
        finished = bool(said) and said[-1][0] == "finished"
        assert process.exitcode == (0 if finished and process.exitcode == 0 else -signal.SIGKILL), said[-3:]
        return Watched(tuple(said), process.exitcode == -signal.SIGKILL and not finished)

    return child


def left_by(place: Path) -> dict[str, object]:
    """What has to be equal in bits."""
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed_s", "tokens_per_s", "distinct_tokens_per_s", "samples_per_s", "tflops_per_s", "peak_bytes")
    return {
        "weights": (place / "adapter" / "adapter_model.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "predictions": (place / "predictions.jsonl").read_text(),
        "checkpoints": sorted(path.name for path in (place / "checkpoints").iterdir()),
        "files": sorted(path.name for path in place.iterdir()),
    }


def durations(watched: Watched) -> dict[str, float]:
    """Seconds each phase takes, at its shortest."""
    begun: dict[str, float] = {}
    shortest: dict[str, float] = {}
    for name, _, at in watched.said:
        phase = name.removeprefix("end of ")
        if phase == name:
            begun[phase] = at
        else:
            shortest[phase] = min(shortest.get(phase, 60.0), at - begun[phase])
    return shortest


def draw(generator: random.Random, wanted: str, straight: Watched, killed_before: int) -> Moment:
    """A moment inside ``wanted`` (saving or evaluation), or anywhere."""
    phases = [phase for phase, kind in INSIDE.items() if kind == wanted] or list(ANYWHERE)
    phase = generator.choice(phases)
    often = sum(name == phase for name, _, _ in straight.said)
    last = durations(straight).get(phase, 0.5)
    left = max(1, often // (killed_before + 1))  # a resumed run has fewer phases before it
    return Moment(phase, generator.randint(1, left), generator.uniform(0.0, last))


def wanted_next(made: Counter[str]) -> str:
    """Eight in thirty kills belong inside a checkpoint's writing, six inside an evaluation, the rest anywhere."""
    for kind, share in (("saving", 8 / 30), ("evaluation", 6 / 30)):
        if made[kind] < share * KILLS:
            return kind
    return "anywhere"


@pytest.mark.slow
def test_runs_killed_anywhere_end_in_the_same_bits(children, tmp_path):
    straight = children(tmp_path / "straight")
    expected = left_by(tmp_path / "straight")
    steps = straight.steps("step")
    assert steps == list(range(9)) and [row["step"] for row in expected["metrics"] if "loss" in row] == list(
        range(1, 10)
    )
    generator = random.Random(17)
    made: Counter[str] = Counter()
    runs = kills = 0
    killed_often: Counter[int] = Counter()
    while kills < KILLS or wanted_next(made) != "anywhere":
        place = tmp_path / f"run-{runs}"
        runs += 1
        assert runs <= 4 * KILLS, f"the moments missed their phases too often: {made}"
        times = generator.choice([1, 2, 3])
        killed_here, done, before = 0, False, None
        while not done:
            moment = draw(generator, wanted_next(made), straight, killed_here) if killed_here < times else None
            watched = children(place, moment)
            if before is not None:
                require_little_redone(before, watched, len(steps))
            before = watched
            done = not watched.killed
            if watched.killed:
                killed_here += 1
                kills += 1
                made[INSIDE.get(watched.open_phase() or "", "elsewhere")] += 1
        if killed_here:
            killed_often[killed_here] += 1
            assert left_by(place) == expected, f"{place.name}, killed {killed_here} times"
    print(f"{kills} kills in {runs} runs: {dict(made)}; runs by kills: {dict(killed_often)}")
    assert made["saving"] >= 8 / 30 * KILLS and made["evaluation"] >= 6 / 30 * KILLS
    assert max(killed_often) > 1


def require_little_redone(before: Watched, after: Watched, total: int) -> None:
    """At most ``SAVE_STEPS`` steps that were complete are computed again."""
    complete = before.steps("end of step")
    if not complete:
        return
    again = after.steps("step")
    goes_on_at = again[0] if again else total
    assert complete[-1] + 1 - goes_on_at <= SAVE_STEPS


STAGES = {
    "name": "stages",
    "model": {"base": "replaced"},
    "training": {"samples_per_step": 8, "max_length": 512, "learning_rate": 1e-3},
    "stages": [
        {"name": "one", "data": {"tasks": [{"name": "ner_typing", "source": "sample"}]}, "adapter": {"rank": 4}},
        {
            "name": "two",
            "data": {"tasks": [{"name": "tfns", "source": "sample"}]},
            "adapter": {"rank": 6, "hand_over": "stack"},
        },
    ],
}
STAGED = ("data.train_limit=20", "data.near_duplicate_threshold=null", "evaluation.limit=8", "training.save_steps=1")


@pytest.mark.slow
def test_a_run_with_stages_killed_inside_and_between_them_ends_in_the_same_bits(children, tmp_path):
    def start(place, moment=None):
        return children(place, moment, STAGED, STAGES)

    straight = start(tmp_path / "straight")
    assert straight.steps("step") == [0, 1, 2, 0, 1, 2]
    expected = left_by_stages(tmp_path / "straight")
    moments = [
        Moment("step", 2, 0.0),
        Moment("saving", 3, 0.01),
        Moment("end of adapter", 1, 0.0),
        Moment("step", 5, 0.0),
        Moment("adapter", 2, 0.005),
        Moment("copying", 1, 0.0),
        Moment("scoring", 2, 0.0),
    ]
    for number, moment in enumerate(moments):
        place = tmp_path / f"killed-{number}"
        watched = start(place, moment)
        assert watched.killed, f"{moment} was missed"
        again = start(place)
        assert left_by_stages(place) == expected, moment
        redone = len(watched.steps("end of step")) + len(again.steps("step")) - 6
        assert redone <= 1, f"{moment}: at most the step that was not saved is computed again"


def left_by_stages(place: Path) -> dict[str, object]:
    """What has to be equal in bits."""
    adapters = sorted(place.rglob("adapter/adapter_model.safetensors"))
    return {
        "weights": {str(file.relative_to(place)): file.read_bytes() for file in adapters},
        "predictions": (place / "predictions.jsonl").read_text(),
        "files": sorted(str(path.relative_to(place)) for path in place.rglob("*.json*")),
    }
