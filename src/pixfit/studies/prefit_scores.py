"""Scores of the pre-fit study's runs, from their curves, and what they differ by over the same triples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixfit import metrics
from pixfit.studies.statistics import Paired, paired

if TYPE_CHECKING:
    from pixfit.store import Entry, Store

__all__ = ["Levels", "Pairs", "Results", "Runs", "common", "pairs", "place", "psnr_of_loss"]

_CAP = 60.0  # dB above which a picture of 8 bits cannot be told from the fit
_FAIR = 500  # epochs after which a fit at the level of one colour has collapsed
_COMPARED = (
    ("same", "random"), ("different", "random"), ("different", "same"), ("same chained", "random"),
    ("different chained", "random"), ("different chained", "same chained"), ("same chained", "same"),
    ("different chained", "different"), ("mean", "random"), ("mean", "different"), ("reptile", "random"),
    ("maml", "random"), ("meta-sgd", "random"), ("reptile", "mean"), ("maml", "mean"), ("meta-sgd", "mean"),
)  # fmt: skip


def place(size: str) -> tuple[int, int]:
    """Sizes are ordered by layers × features, and equal ones by layers."""
    layers, features = map(int, size.split("x"))
    return layers * features, layers


def psnr_of_loss(loss: Tensor) -> NDArray[np.float64]:
    """PSNR in dB of mean squared errors in [−1, 1], as the published study defines it: not clamped, not rounded."""
    errors: NDArray[np.float64] = np.maximum(loss.double().numpy(), 1e-30)
    return np.asarray(10 * np.log10(4 / errors))


@dataclass(frozen=True)
class Runs:
    """The finished runs of one arm at one size.

    Args:
        curves: PSNR in dB before each step, (R, epochs); a run that diverged goes on at its last value.
        triples: of each run, ascending.
        diverged: how many did.
    """

    curves: NDArray[np.float64]
    triples: tuple[int, ...]
    diverged: int

    @staticmethod
    def read(store: Store, entries: Mapping[str, Entry], ids: Mapping[int, str], epochs: int) -> Runs:
        """The runs that the store has finished, of those with these ids by triple."""
        curves, triples, diverged = [], [], 0
        for triple, identity in ids.items():
            entry = entries.get(identity)
            loss = store.curve(identity) if entry is not None and entry.status.finished else None
            if entry is None or loss is None or len(loss) == 0:
                continue
            curve = psnr_of_loss(loss)
            curves.append(np.concatenate([curve, np.full(epochs - len(curve), curve[-1])]))
            triples.append(triple)
            diverged += entry.status.value == "diverged"
        return Runs(np.stack(curves) if curves else np.empty((0, epochs)), tuple(triples), diverged)

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """(R,) each: areas under the curve in thousands, whole and cut at 60 dB, and the last PSNR in dB."""
        return {
            "AUC": self.curves.sum(axis=1) / 1000,
            "AUC60": np.minimum(self.curves, _CAP).sum(axis=1) / 1000,
            "final": self.curves[:, -1] if self.curves.size else np.empty(0),
        }

    def epochs_to(self, level: float) -> NDArray[np.float64]:
        """(R,) first epochs at the level in dB; infinite where it was never reached."""
        reached = self.curves >= level
        return np.where(reached.any(axis=1), reached.argmax(axis=1), math.inf)

    def collapsed(self, flat: NDArray[np.float64]) -> int:
        """How many ended within 1 dB of the best constant colours ``flat`` (triples,), after 500 epochs."""
        if self.curves.shape[1] <= _FAIR:
            return 0
        return int((self.curves[:, -1] < flat[list(self.triples)] + 1).sum()) if self.triples else 0


@dataclass(frozen=True)
class Levels:
    """Levels in dB of each triple that need no training, (T,) each: of the best constant colour for the target, and of
    the two other pictures against it."""

    flat: NDArray[np.float64]
    same: NDArray[np.float64]
    different: NDArray[np.float64]

    @staticmethod
    def of(pictures: Sequence[Sequence[Tensor]]) -> Levels:
        """Of the triples' pictures: target, same class, different class, each (C, H, W)."""
        alike = all(picture.shape == three[0].shape for three in pictures for picture in three)
        return Levels(
            np.array([metrics.best_constant_psnr(three[0]) for three in pictures]),
            np.array([metrics.psnr(three[1], three[0]) if alike else math.nan for three in pictures]),
            np.array([metrics.psnr(three[2], three[0]) if alike else math.nan for three in pictures]),
        )


Results = Mapping[str, Mapping[str, Runs]]
"""The finished runs by size and arm, sizes in order."""

Pairs = dict[tuple[str, str], dict[str, dict[str, Paired]]]
"""By arm and the arm it is compared with, by size, by score."""


def common(one: Runs, other: Runs) -> tuple[list[int], list[int], list[int]]:
    """Triples that both have, and their rows in each."""
    both = sorted(set(one.triples) & set(other.triples))
    return both, [one.triples.index(t) for t in both], [other.triples.index(t) for t in both]


def pairs(results: Results) -> Pairs:
    """The paired differences of all arms that are compared, over the triples that both have."""
    compared = [*_COMPARED]
    partial = dict.fromkeys(arm for arms in results.values() for arm in arms if arm.startswith("first "))
    compared += [(arm, other) for arm in partial for other in ("random", "different")]
    found: Pairs = {}
    for arm, other in compared:
        for size, arms in results.items():
            if arm not in arms or other not in arms:
                continue
            _, rows, others = common(arms[arm], arms[other])
            ours, theirs = arms[arm].scores(), arms[other].scores()
            for score in ours:
                if (one := paired(ours[score][rows] - theirs[score][others])) is not None:
                    found.setdefault((arm, other), {}).setdefault(size, {})[score] = one
    return found
