"""Exact paired tests of two systems on the same documents.

McNemar's test counts the documents that only one of the two answers right; it needs independent documents. Where
a group holds several, the sign-flip test swaps the two systems a whole group at a time; on groups of one document
it is McNemar's test. Both are exact and two-sided, so neither needs a seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mcnemar_p(only_system_correct: int, only_reference_correct: int) -> float:
    """Exact two-sided McNemar p-value; 1 when the systems never disagree in correctness."""
    from scipy.special import bdtr  # type: ignore[import-untyped, unused-ignore]

    disagreements = only_system_correct + only_reference_correct
    if disagreements == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_system_correct, only_reference_correct), disagreements, 0.5)))


def sign_flip_p(differences: npt.ArrayLike) -> float:
    """Exact two-sided p-value of the sum of whole-number group differences, every sign being equally likely.

    Args:
        differences: for each group, right answers of the system minus right answers of the reference.
    """
    signed = np.asarray(differences)
    if not np.array_equal(signed, np.rint(signed)):
        raise ValueError("sign_flip_p needs whole numbers: right answers gained or lost in each group.")
    sizes = [int(size) for size in np.abs(signed).ravel() if size]
    observed, total = abs(int(signed.sum())), sum(sizes)
    # chance[s]: probability that the groups whose sign came up positive add up to s.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for size in sizes:
        chance[size:] = chance[size:] + chance[:-size]
        chance /= 2
    reached = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chance[reached >= observed].sum()))
