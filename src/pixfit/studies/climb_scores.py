"""Scores of the climb's runs, and what two of its settings differ by over the same pictures and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixfit.result import Status
from pixfit.store import Store
from pixfit.studies.climb_steps import Claim, Sweep, Values
from pixfit.studies.statistics import Seeded, seeded

__all__ = ["Curve", "Key", "Results", "Run", "Runs", "Verdict", "judge"]

_POINTS = 200  # of a curve of the loss

Key = tuple[str, int]
"""A picture's name and a seed."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Epochs and values."""


@dataclass(frozen=True)
class Run:
    """One finished fit.

    Args:
        last: PSNR in dB of its last step, over all pixels.
        psnr: the curve of the PSNR over all pixels, dB.
        loss: the mean training loss over stretches of steps.
        row: what the index says of it.
    """

    last: float
    psnr: Curve
    loss: Curve
    row: Mapping[str, Any]

    @staticmethod
    def read(store: Store, row: Mapping[str, Any], steps_per_epoch: int) -> Run | None:
        """The run of a row of the index; None where it was not finished, or left no picture to score."""
        score = row["metrics"].get("psnr")
        steps, psnr, loss = (store.curve(row["id"], name) for name in ("psnr_step", "psnr", "loss"))
        if not Status(row["status"]).finished or score is None or steps is None or psnr is None or loss is None:
            return None
        parts = np.array_split(loss.double().numpy(), min(_POINTS, max(1, len(loss))))
        ends = np.cumsum([len(part) for part in parts]) / steps_per_epoch
        means = np.array([part.mean() if len(part) else math.nan for part in parts])
        levels = (steps.double().numpy() / steps_per_epoch, psnr.double().numpy())
        return Run(float(score), _finite(*levels), _finite(ends, means), row)

    @property
    def best(self) -> float:
        """PSNR of the best of the epochs that the curve shows."""
        return float(np.max(np.append(self.psnr[1], self.last)))

    @property
    def best_epoch(self) -> float:
        """When that was; the end, where the last step is the best."""
        epochs, levels = self.psnr
        if not len(levels) or levels.max() <= self.last:
            return float(self.row["epochs"])
        return float(epochs[levels.argmax()])

    @property
    def mse(self) -> float:
        """Mean squared error of the best epoch, of pixels in [0, 1]: the published MSE of a run."""
        return 10 ** (-self.best / 10)

    @property
    def diverged(self) -> bool:
        return bool(self.row["status"] == "diverged")


@dataclass(frozen=True)
class Runs:
    """The finished runs of one point, of the ``pictures`` that there are."""

    runs: Mapping[Key, Run]
    pictures: Sequence[str]

    def seeds(self) -> list[int]:
        """Those for which every picture is finished."""
        found = sorted({seed for _, seed in self.runs})
        return [seed for seed in found if all((picture, seed) in self.runs for picture in self.pictures)]

    def level(self, score: Callable[[Run], float] = lambda run: run.last) -> tuple[float, float]:
        """Mean and standard error of a score, as published: over seeds, of its mean over all pictures.

        The mean is NaN without a complete seed, the error without two of them.
        """
        means = [np.mean([score(self.runs[picture, seed]) for picture in self.pictures]) for seed in self.seeds()]
        error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        return float(np.mean(means)) if means else math.nan, float(error)

    def of_picture(self, picture: str) -> float:
        """Mean PSNR of the last step over the seeds of one picture; NaN without any."""
        levels = [run.last for (name, _), run in self.runs.items() if name == picture]
        return float(np.mean(levels)) if levels else math.nan

    def curve(self, name: str) -> Curve | None:
        """The mean curve, ``psnr`` or ``loss``, over all runs; one that ended earlier goes on at its last value."""
        found: list[Curve] = [curve for run in self.runs.values() if len((curve := getattr(run, name))[0])]
        if not found:
            return None
        across = max((curve[0] for curve in found), key=lambda epochs: float(epochs[-1]))
        return across, np.mean([np.interp(across, *curve) for curve in found], axis=0)

    def minus(self, other: Runs) -> dict[Key, float]:
        """Differences of the last step's PSNR over the pictures and seeds that both have."""
        return {key: run.last - other.runs[key].last for key, run in self.runs.items() if key in other.runs}


Results = Mapping[str, Mapping[Values, Runs]]
"""The finished runs by sweep and member."""


@dataclass(frozen=True)
class Verdict:
    """What the finished runs say of a claim, about their pictures.

    Args:
        claim: with the two members that were compared.
        worse: the second of them.
        differences: of the last step's PSNR, positive where the first is better.
    """

    sweep: Sweep
    claim: Claim
    worse: Values
    differences: Seeded

    @property
    def order(self) -> str:
        """Same order as published, other order, or not significant; even, or not, where that was published; that no
        order was stated is added."""
        sign = self.differences.sign
        if self.claim.even:
            return {1: "not even: first is better", -1: "not even: second is better", 0: "not told apart, as said"}[
                sign
            ]
        if self.claim.said:
            return {1: "same order", -1: "other order", 0: "not significant"}[sign]
        return {1: "first is better", -1: "second is better", 0: "not significant"}[sign] + " (none stated)"


def judge(sweep: Sweep, claim: Claim, members: Mapping[Values, Runs]) -> Verdict | None:
    """The verdict on a claim; None where one of the two has no finished runs to compare.

    A member that is claimed to be the best is compared with the best of the others, by the mean over the pictures and
    seeds that it shares with it.
    """
    ours = members.get(claim.better)
    if ours is None:
        return None
    others = [claim.worse] if claim.worse is not None else [values for values in members if values != claim.better]
    found = {values: ours.minus(members[values]) for values in others if values in members}
    found = {values: differences for values, differences in found.items() if differences}
    if not found:
        return None
    most = max(len(differences) for differences in found.values())
    worse = min(
        (values for values in found if len(found[values]) == most),
        key=lambda one: float(np.mean([*found[one].values()])),
    )
    differences = seeded(found[worse])
    return None if differences is None else Verdict(sweep, claim, worse, differences)


def _finite(across: NDArray[np.float64], up: NDArray[np.float64]) -> Curve:
    """The points of a curve that are numbers: a fit that diverged ends with some that are none."""
    good = np.isfinite(up)
    return across[good], up[good]
