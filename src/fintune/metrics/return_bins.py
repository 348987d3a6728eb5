"""Bins of a week's return, as FinGPT-Forecaster has them: U1 to U5, U5+ for rises, D1 to D5, D5+ for falls.

A return enters, a label leaves; from a label its phrase ("up by 2-3%"), its sign and the middle of its bin.
"""

from __future__ import annotations

import math

WIDEST = 5  # whole percents that have a bin of their own; beyond lies "5+"
LABELS = tuple(f"{side}{step}" for side in "DU" for step in (*map(str, range(1, WIDEST + 1)), f"{WIDEST}+"))


def bin_of(change: float) -> str:
    """The label of a return, which is a ratio: 0.021 gives U3, -0.07 gives D5+, and 0, in no bin of FinGPT's, gives U1.

    Raises:
        ValueError: The return is not finite.
    """
    if not math.isfinite(change):
        raise ValueError(f"a return of {change} lies in no bin")
    percent = round(abs(change) * 100, 9)  # 0.03 * 100 is a little more than 3, and still three percent
    step = max(1, math.ceil(percent))
    return ("U" if change >= 0 else "D") + (str(step) if step <= WIDEST else f"{WIDEST}+")


def phrase_of(label: str) -> str:
    """How an answer says it: U3 is "up by 2-3%", D5+ is "down by more than 5%"."""
    side, step = _parts(label)
    way = "up" if side > 0 else "down"
    return f"{way} by more than {WIDEST}%" if step > WIDEST else f"{way} by {step - 1}-{step}%"


def middle_of(label: str) -> float:
    """The middle of a bin as a ratio, signed: U3 is 0.025; the open bin counts as the next one, 0.055."""
    side, step = _parts(label)
    return side * (step - 0.5) / 100


def sign_of(label: str) -> int:
    """1 for a rise, -1 for a fall."""
    return _parts(label)[0]


def _parts(label: str) -> tuple[int, int]:
    """Sign and upper whole percent of a label; the open bin's is one more than the widest.

    Raises:
        ValueError: There is no such label.
    """
    if label not in LABELS:
        raise ValueError(f"{label!r} is no bin; the bins are {', '.join(LABELS)}")
    step = label[1:]
    return (1 if label[0] == "U" else -1), (WIDEST + 1 if step.endswith("+") else int(step))
