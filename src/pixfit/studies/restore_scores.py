"""Scores of restored pictures: of finished fits, of the blend, and of what restores without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit import metrics, render
from pixfit.problem import Problem
from pixfit.result import Status
from pixfit.spec import Spec
from pixfit.stopping import HeldOut
from pixfit.store import Store
from pixfit.studies.restore_damages import Damage, piece_of
from pixfit.tasks import blended

__all__ = ["Curve", "Key", "Score", "of_control", "of_fit", "picture_of", "restored"]

Key = tuple[str, int]
"""A picture's name and a seed."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and PSNR in dB."""


@dataclass(frozen=True)
class Score:
    """What one restored picture is worth.

    Args:
        psnr, ssim: of the answer against the truth, PSNR in dB.
        last, oracle: PSNR of the fit's picture at the last step and at the best one of those that its curve shows;
            None without a fit.
        stop_step, steps: the step whose picture is the answer, and the steps made.
        seconds: of wall time in training.
        weight: of the fit in a blend; None where nothing was blended.
        curve: of the fit's PSNR.
        row: what the index says of the fit.
    """

    psnr: float
    ssim: float | None
    last: float | None = None
    oracle: float | None = None
    stop_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    weight: float | None = None
    curve: Curve | None = None
    row: Mapping[str, Any] | None = None

    @property
    def gap(self) -> float | None:
        """What the stopping rule lost against the best step, in dB, 0 or below; None for a blend, or without a fit."""
        return None if self.oracle is None or self.weight is not None else self.psnr - self.oracle


def of_control(picture: Tensor, problem: Problem) -> Score:
    truth = problem.image.data
    return Score(metrics.psnr(picture, truth), metrics.ssim(picture, truth))


def of_fit(store: Store, row: Mapping[str, Any], spec: Spec, damage: Damage, *, blend: bool) -> Score | None:
    """The score of a finished fit; None where it was not finished, or left no picture.

    Known pixels of a picture with holes are kept in the answer, and in the curve.

    Args:
        row: of the store's index.
        blend: whether the answer is the blend that is the task's default.
    """
    problem = spec.problem
    assert isinstance(problem, Problem)
    if not Status(row["status"]).finished or (fitted := picture_of(store, spec)) is None:
        return None
    known = problem.operator.known(problem.shape) is not None and problem.noise is None
    steps, levels = (store.curve(row["id"], name) for name in ("psnr_step", "psnr_filled" if known else "psnr"))
    truth, blend = problem.image.data, blend and damage.task.blend
    answer, weight = restored(damage, problem, fitted, blend=blend)
    score = Score(
        metrics.psnr(answer, truth), metrics.ssim(answer, truth), steps=row["steps"], seconds=row["seconds"],
        weight=weight if blend else None, row=row,
    )  # fmt: skip
    if steps is None or levels is None or not len(steps):
        return score
    curve = (steps.double().numpy(), levels.double().numpy())
    looks = isinstance(spec.stopping, HeldOut)
    # The last point is the answer, where that is of another step; the one before it is a few steps from the end.
    last = curve[1][-2 if looks and len(steps) > 1 else -1]
    good = curve[1][np.isfinite(curve[1])]
    return replace(
        score, last=float(last) if math.isfinite(last) else None, oracle=float(good.max()) if len(good) else None,
        stop_step=_stop_step(spec, row, curve), curve=curve,
    )  # fmt: skip


def restored(damage: Damage, problem: Problem, fitted: Tensor, *, blend: bool) -> tuple[Tensor, float]:
    """The answer (C, H, W) in [0, 1] that a fit's picture gives, and the weight of the fit in it."""
    piece, task = piece_of(problem), damage.task
    fitted = fitted.clamp(0, 1)
    if not blend:
        return blended(replace(task, blend=False), piece, fitted, fitted, fitted)
    return blended(task, piece, fitted, task.estimate(piece, None), task.estimate(piece, fitted))


def picture_of(store: Store, spec: Spec) -> Tensor | None:
    """What a finished fit shows, (C, H, W); None where it left no weights to show it, or none that are numbers."""
    result = store.get(spec)
    if result is None:
        return None
    if result.estimate is None:
        if not result.weights or not all(bool(torch.isfinite(value).all()) for value in result.weights.values()):
            return None
        return render.render(result)
    return result.estimate if bool(torch.isfinite(result.estimate).all()) else None


def _stop_step(spec: Spec, row: Mapping[str, Any], curve: Curve) -> int:
    """The step whose picture is the answer."""
    if not isinstance(spec.stopping, HeldOut):
        return int(row["steps"])
    if row["stop_reason"] == "held_out":
        return int(row["steps"]) - spec.stopping.patience
    steps, levels = curve  # the budget ended it: some point of the curve is the answer
    apart = np.abs(levels - float(row["metrics"]["psnr"]))
    return int(steps[np.nanargmin(apart)]) if np.isfinite(apart).any() else int(row["steps"])
