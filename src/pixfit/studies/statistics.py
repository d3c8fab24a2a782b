"""Paired comparisons of runs: means with bootstrap intervals, Wilcoxon's test, and where a comparison changes sign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Paired", "crossover", "paired"]

_RESAMPLES = 10_000
_FEW = 6  # with fewer pairs not even equal signs are significant at 5 %


@dataclass(frozen=True)
class Paired:
    """What the differences of paired runs say.

    Args:
        pairs: how many.
        mean: of the differences, with ``low`` and ``high`` as the 95 % percentile bootstrap interval over pairs.
        median: of the differences.
        wins: pairs with a positive difference.
        p: of Wilcoxon's signed-rank test, two-sided (Wilcoxon 1945); 1 where all differences are zero.
    """

    pairs: int
    mean: float
    low: float
    high: float
    median: float
    wins: int
    p: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval lies on one side of zero, else 0; 0 for fewer than 6 pairs, too few to tell."""
        return 0 if self.pairs < _FEW else 1 if self.low > 0 else -1 if self.high < 0 else 0


def paired(differences: ArrayLike, *, seed: int = 0) -> Paired | None:
    """The statistics of paired differences (N,); None where there are none. Same seed, same interval."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    count = len(values)
    if count == 0:
        return None
    draws = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return Paired(
        pairs=count, mean=float(values.mean()), low=float(low), high=float(high), median=float(np.median(values)),
        wins=int((values > 0).sum()), p=_wilcoxon(values),
    )  # fmt: skip


def _wilcoxon(values: NDArray[np.float64]) -> float:
    from scipy.stats import wilcoxon

    if not values.any():
        return 1.0
    with np.errstate(invalid="ignore"):
        return float(wilcoxon(values).pvalue)


def crossover(sizes: Sequence[float], signs: Sequence[float]) -> float | None:
    """The size above which a difference that is positive for smaller ones is negative: the threshold between
    consecutive sizes (geometric mean) that puts the fewest differences on the wrong side.

    Args:
        sizes: ascending; equal ones are never parted.
        signs: of the differences; zeros count for neither side.

    Returns:
        None where no threshold inside the sizes is better than calling all differences positive, or all negative.
    """
    wrong = {-math.inf: sum(sign > 0 for sign in signs), math.inf: sum(sign < 0 for sign in signs)}
    for below, above in itertools.pairwise(sizes):
        if below < above:
            wrong[math.sqrt(below * above)] = sum(
                (sign < 0) if size <= below else (sign > 0) for size, sign in zip(sizes, signs, strict=True)
            )
    best = min(wrong.values())
    if best in (wrong[math.inf], wrong[-math.inf]):
        return None
    return next(threshold for threshold, count in wrong.items() if count == best)
