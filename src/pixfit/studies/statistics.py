"""Comparisons of runs: over pairs that stand for others, over seeds of given pictures, and where one changes sign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Paired", "Seeded", "crossover", "paired", "seeded"]

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


@dataclass(frozen=True)
class Seeded:
    """What differences over a few given pictures say of these pictures: what would other seeds have given?

    It says nothing of other pictures. Of these there are too few for that, and runs of one picture are too alike to
    stand for as many pictures.

    Args:
        pairs: how many differences.
        mean: over pictures, of the means over seeds; with ``error``, its standard error over seeds, and the interval
            ``low`` to ``high`` of 95 % by Student's t, from how much the seeds of a picture differ. The error is
            infinite where no picture has two seeds.
        p: of a mean that is zero, two-sided; 1 where it cannot be told.
        agree: pictures whose mean is positive, and how many pictures there are.
    """

    pairs: int
    mean: float
    error: float
    low: float
    high: float
    p: float
    agree: tuple[int, int]

    @property
    def sign(self) -> int:
        """1 or −1 where the interval lies on one side of zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def seeded(differences: Mapping[tuple[str, int], float]) -> Seeded | None:
    """The statistics of differences by picture and seed; None where there are none.

    An analysis of variance with the picture as a fixed factor: seeds are taken to spread alike on all pictures.
    """
    by_picture: dict[str, list[float]] = {}
    for (picture, _), difference in differences.items():
        if math.isfinite(difference):
            by_picture.setdefault(picture, []).append(difference)
    if not by_picture:
        return None
    groups = [np.array(group) for group in by_picture.values()]
    means = np.array([group.mean() for group in groups])
    mean, pairs = float(means.mean()), sum(map(len, groups))
    agree = (int((means > 0).sum()), len(means))
    freedom = pairs - len(groups)
    if freedom == 0:
        return Seeded(pairs, mean, math.inf, -math.inf, math.inf, 1.0, agree)
    from scipy.stats import t

    variance = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom
    error = math.sqrt(variance * sum(1 / len(group) for group in groups)) / len(groups)
    reach = float(t.ppf(0.975, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Seeded(pairs, mean, error, mean - reach, mean + reach, p, agree)


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
