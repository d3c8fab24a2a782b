"""What restores which damage: the fit's settings, the classical estimate beside it, and how the two are weighed.

`pixfit.restore` and the study of restoration both take their fits and their answers from here. What the settings were
chosen on stands in docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pixfit import classical, noise_estimate
from pixfit.models import DoublyOverparameterised, Hourglass, PicturePrior
from pixfit.noise_estimate import NoiseLevel
from pixfit.operators import Blur, Identity, LanczosDownsample, Operator
from pixfit.optim import Adam
from pixfit.pieces import Piece
from pixfit.problem import Problem, Sealed, View, stream
from pixfit.spec import AveragedOutput, Precision, Spec
from pixfit.stopping import HeldOut, Never, Steps, Stopping

__all__ = [
    "CONTROL_PROBE", "LOOK", "Control", "Estimate", "Task", "TaskName", "blend_weight", "blended", "deblurring",
    "denoising", "impulses", "inpainting", "noise_estimated", "outliers", "risk", "risk_weight", "upscaling",
]  # fmt: skip

TaskName = Literal["denoise", "inpaint", "upscale", "deblur"]

Control = Literal["nlm", "bm3d"]
"""A classical estimate of a picture with independent noise: non-local means or BM3D."""

Estimate = Callable[[Piece, Tensor | None], Tensor]
"""A classical estimate (C, H, W) of a piece; with a fitted picture one that does not know the held-out pixels."""

LOOK = 5
"""Steps between two looks at the held-out pixels."""

CONTROL_PROBE = 0.1
"""Of a piece's probe, what a classical estimate is asked with: it bends sooner than a fit, whose steps are chaotic."""

_DECAY = 0.99  # of the average of outputs
_REACH = round(1 / (1 - _DECAY))  # steps that this average reaches back, over which its errors are averaged, too
_HELD_OUT = 0.04  # of the measured pixels
_HELD_OUT_SQUARES = 0.09  # of the measured pixels, a ninth of which is scored
_STAND_IN = 0.5  # of the noise's variance
_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3)  # of total variation, tried on held-out pixels
_SURE = 2.0  # standard errors, where bi-harmonic is the other part of a blend
_GENTLE = 1e-3  # strength of total variation where there is no noise


@dataclass(frozen=True, eq=False)
class Task:
    """How one kind of damage is undone by default.

    Args:
        name: of the command.
        operator: how the sought picture becomes what was measured; that some pixels are missing is said elsewhere.
        estimate: the classical estimate.
        stopping: what ends a fit before its last step.
        blend: whether the answer is a blend of both.
        caution: standard errors by which the weight of the fit in it is lowered: how sure it must be that the fit
            deserves it.
        channels: of the hourglass, on each of its levels.
        lost: tells which values (C, h, w) of a measurement say nothing of the picture, so that they count as missing;
            None: none are like that.
        exact: whether the other values are the picture's, so that the answer has them as they are.
        level: tells the level of the noise in a measurement (C, h, w), where held-out pixels have noise; the weight of
            the fit in a blend is no more than the noise's share of its error there. None: not asked.
        outliers: whether it is fitted beside outliers, `pixfit.models.DoublyOverparameterised`.
        longest: steps of a fit at most, for pictures up to ``grows_from`` pixels a side; those of larger ones grow with
            the side, where there is such a size.
        sigma: standard deviation of independent noise, where the fit goes by its estimated `risk` in place of held-out
            pixels; None: it does not.
        held_out: fraction of the measured pixels that is kept out of the loss.
        squares: whether those are squares of 3 x 3 pixels of which the middle is scored (`pixfit.held_out`), in place
            of single pixels.
        factor: pixels of the answer for one of the measurement, along a side.
        reach: pixels along a side that one measured pixel depends on.
        precision: of the fit, see `Spec`.
    """

    name: TaskName
    operator: Operator
    estimate: Estimate
    stopping: Stopping
    blend: bool = False
    caution: float = 0.0
    channels: int = 32
    lost: Callable[[Tensor], Tensor] | None = None
    exact: bool = False
    level: Callable[[Tensor], NoiseLevel] | None = None
    outliers: bool = False
    sigma: float | None = None
    longest: int = 1500
    grows_from: int | None = 96
    held_out: float = _HELD_OUT
    squares: bool = False
    factor: int = 1
    reach: int = 1
    precision: Precision = "float32"

    def steps(self, height: int, width: int) -> int:
        """Steps at most, for a picture of that size."""
        grown = 1.0 if self.grows_from is None else math.sqrt(height * width) / self.grows_from
        return round(self.longest * max(1.0, grown))

    def spec(self, problem: Problem | Sealed, *, steps: int | None = None, seed: int = 0) -> Spec:
        """The fit of a problem that was damaged so; with ``steps`` it has so many at most."""
        _, height, width = problem.shape
        levels = len(Hourglass.small(height, width).channels)
        prior: PicturePrior = Hourglass(channels=(self.channels,) * levels)
        looks = LOOK if isinstance(self.stopping, HeldOut) else None
        return Spec(
            problem, DoublyOverparameterised(prior) if self.outliers else prior, optimiser=Adam(lr=0.01),
            budget=Steps(self.steps(height, width) if steps is None else steps), stopping=self.stopping,
            estimate=AveragedOutput(_DECAY, every=looks), precision=self.precision, seed=seed,
        )  # fmt: skip


def denoising(
    level: NoiseLevel | None = None, *, squares: bool = False, by_risk: bool = False, control: Control = "nlm"
) -> Task:
    """Of noise of this level, which only the classical estimate and the risk need.

    Args:
        level: None: it is estimated of each piece.
        control: the classical estimate: non-local means, or BM3D where that is installed.
        squares: whether squares are held out, for noise that neighbours share.
        by_risk: whether nothing is held out, and the estimated `risk` of the average ends the fit. It wants a level of
            white noise.
    """

    estimates = {"nlm": classical.nonlocal_means, "bm3d": classical.block_matching}

    def level_of(noisy: Tensor) -> NoiseLevel:
        return noise_estimated(noisy, squares=squares) if level is None else level

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        noisy = piece.measurement
        strength = level_of(noisy)
        if fitted is not None and piece.held_out is not None:
            noisy = torch.where(piece.held_out, fitted if squares else _stand_in(fitted, strength), noisy)
        return estimates[control](noisy, strength)

    if by_risk:
        if level is None or level.slope or level.floor <= 0:
            raise ValueError(
                f"the level of the noise is {level}; a risk can be estimated of white noise with a standard deviation "
                "above 0"
            )
        sigma = level.sigma(0.0)
        return Task("denoise", Identity(), estimate, Never(), blend=True, held_out=0.0, sigma=sigma)
    fraction = _HELD_OUT_SQUARES if squares else _HELD_OUT
    return Task(
        "denoise", Identity(), estimate, HeldOut(150, _REACH), blend=True, level=level_of, held_out=fraction,
        squares=squares,
    )  # fmt: skip


def _stand_in(fitted: Tensor, level: NoiseLevel) -> Tensor:
    """What a fit says of held-out pixels, with some noise. Without any an estimate that changes little would seem
    good where it does not know the pixel, and leave the noise where it does; with all of it the estimate would have the
    fit's errors, too, and seem worse than it is."""
    noise = torch.randn(fitted.shape, generator=stream(0, "stand-in"))
    return (fitted + (_STAND_IN * level.variance(fitted)).sqrt() * noise).clamp(0, 1)


def noise_estimated(noisy: Tensor, *, squares: bool = False) -> NoiseLevel:
    """The level of the noise of a picture (C, H, W), as `denoising` takes it where none is given."""
    if squares:
        return NoiseLevel.white(noise_estimate.shared_level(noisy))
    return noise_estimate.noise_level(noisy)


def impulses(sigma: float = 0.0) -> Task:
    """Of values of which some, however many, were replaced by black or white: what was probably struck counts as
    missing (`pixfit.noise_estimate.struck`).

    Args:
        sigma: standard deviation of white noise in the others; 0: they are exact.
    """
    if not sigma:
        return Task(
            "denoise", Identity(), _from_around, Never(), blend=True, caution=_SURE, lost=noise_estimate.struck,
            exact=True,
        )  # fmt: skip
    level = NoiseLevel.white(sigma)

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        return classical.nonlocal_means(_from_around(piece, fitted), level)

    return Task(
        "denoise", Identity(), estimate, HeldOut(150, _REACH), blend=True,
        lost=partial(noise_estimate.struck, sigma=sigma), level=lambda noisy: level,
    )  # fmt: skip


def outliers() -> Task:
    """Of values of which some, however many, were replaced by any others: by a fit beside outliers, which takes all of
    its steps, since the held-out pixels would be struck, too."""

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        return classical.median(piece.measurement)

    return Task("denoise", Identity(), estimate, Never(), outliers=True, held_out=0.0)


def inpainting() -> Task:
    """Of missing pixels, the others being exact: the fit gets better to its last step. On smooth pictures bi-harmonic
    is hard to beat, and a few per cent of the pixels tell that badly, so that the fit has to prove its weight."""
    return Task(
        "inpaint", Identity(), _from_around, Never(), blend=True, caution=_SURE, exact=True, channels=64, longest=2000,
        grows_from=128,
    )  # fmt: skip


def _from_around(piece: Piece, fitted: Tensor | None) -> Tensor:
    """The estimate of what is missing from what is around it."""
    seen = torch.ones(1, 1, 1, dtype=torch.bool) if piece.known is None else piece.known
    if fitted is not None and piece.held_out is not None:
        seen = seen & ~piece.held_out
    return classical.biharmonic(piece.measurement, seen.expand(-1, *piece.measurement.shape[1:]))


def upscaling(factor: int) -> Task:
    """Of a picture that was made smaller by Lanczos' filter (3 lobes), without noise."""

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        return classical.total_variation(piece.view, _GENTLE)

    operator = LanczosDownsample(factor, lobes=3)
    return Task("upscale", operator, estimate, Never(), grows_from=None, held_out=0.0, factor=factor)


def deblurring(kernel: Tensor) -> Task:
    """Of a blur by a known kernel. Held-out pixels choose the strength of total variation, too."""

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        if piece.held_out is None:
            return classical.total_variation(piece.view, _GENTLE)
        found = {strength: classical.total_variation(piece.view, strength) for strength in _STRENGTHS}
        strength = min(found, key=lambda one: piece.held_out_error(found[one]))
        if fitted is not None:
            return found[strength]
        return classical.total_variation(replace(piece.view, use=piece.known, held_out=None), strength)

    operator = Blur(kernel)
    return Task(
        "deblur", operator, estimate, HeldOut(300), blend=True, longest=2000, reach=max(operator.kernel.shape)
    )  # fmt: skip


def blend_weight(fitted: Tensor, blind: Tensor, view: View, caution: float = 0.0) -> float:
    """Of the fit in a blend, in [0, 1]: that of the least squared error at the held-out samples; 1 without any.

    Args:
        fitted: (C, H, W), a picture that does not know the held-out samples.
        blind: (C, H, W), a classical estimate that does not know them either.
        caution: standard errors of this weight, by pixels, that are taken off it.
    """
    if view.held_out is None:
        return 1.0
    wanted = view.held_out.expand_as(view.measurement)
    first, second = (view.operator.forward(picture).double() for picture in (fitted, blind))
    apart = torch.where(wanted, first - second, 0.0)
    gains = (apart * (view.measurement.double() - second)).sum(dim=0)
    sizes = apart.square().sum(dim=0)
    size = float(sizes.sum())
    if size == 0:
        return 1.0
    weight = float(gains.sum()) / size
    error = math.sqrt(float((gains - weight * sizes).square().sum())) / size
    return min(1.0, max(0.0, weight - caution * error))


def risk(estimate: Tensor, probed: Tensor, piece: Piece, sigma: float) -> float:
    """Stein's unbiased estimate of the mean squared error of a denoised picture, which needs no true one.

    Stein (1981): ‖f(y) − y‖² / N − σ² + 2 σ² div f(y) / N, for independent Gaussian noise. The divergence, how far an
    estimate follows its own noise, is taken from a second run with a probe added to the measurement (Ramani, Blu and
    Unser, IEEE TIP 2008), here of random signs as large as the noise. The whole of a fit is such an estimate.

    Args:
        estimate: (C, H, W), of the piece's measurement.
        probed: (C, H, W), made in the same way of the measurement with the probe.
        sigma: standard deviation of the noise.
    """
    misfit = float((estimate - piece.measurement).double().square().mean())
    return misfit - sigma**2 + 2 * sigma**2 * _divergence(estimate, probed, piece)


def _divergence(estimate: Tensor, probed: Tensor, piece: Piece, scale: float = 1.0) -> float:
    """A value, of an estimate and that of the measurement with so much of the probe."""
    assert piece.probe is not None
    probe = scale * piece.probe.double()
    return float((probe * (probed - estimate)).sum() / probe.square().sum())


def risk_weight(fits: tuple[Tensor, Tensor], controls: tuple[Tensor, Tensor], piece: Piece, sigma: float) -> float:
    """Of the fit in a blend, in [0, 1]: that of the least `risk`.

    Args:
        fits, controls: (C, H, W) each, of the measurement, and of that with the probe, or `CONTROL_PROBE` of it.
    """
    apart = (fits[0] - controls[0]).double()
    size = float(apart.square().mean())
    if size == 0:
        return 1.0
    along = float((apart * (controls[0] - piece.measurement)).mean())
    follows = _divergence(*fits, piece) - _divergence(*controls, piece, CONTROL_PROBE)
    return min(1.0, max(0.0, -(along + sigma**2 * follows) / size))


def _share_of_noise(fitted: Tensor, whole: Piece, level: NoiseLevel) -> float:
    """Of a fit's squared error at the held-out pixels, how much the noise there explains: the weight of least error
    beside the measurement itself, which a classical estimate is at least as good as. Where there is next to no noise,
    what stands in for held-out pixels says nothing, and this is next to 0."""
    error = whole.held_out_error(fitted)
    scored = whole.view.held_out
    assert scored is not None
    noise = float(level.variance(fitted.clamp(0, 1))[scored.expand_as(fitted)].mean())
    return 1.0 if error == 0 else min(1.0, noise / error)


def blended(
    task: Task,
    whole: Piece,
    fitted: Tensor,
    control: Tensor,
    blind: Tensor,
    probed: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, float]:
    """The answer (C, H, W) in [0, 1], what is exact kept, and the weight of the fit in it.

    Args:
        whole: what was measured of the picture.
        fitted, blind: see `blend_weight`.
        control: (C, H, W), the classical estimate that knows all that was measured.
        probed: fit and classical estimate with the probe, of a task that goes by its `risk`; None of others.
    """
    if not task.blend:
        weight = 1.0
    elif task.sigma is not None:
        assert probed is not None
        weight = risk_weight((fitted, probed[0]), (control, probed[1]), whole, task.sigma)
    else:
        weight = blend_weight(fitted, blind, whole.view, task.caution)
        if task.level is not None and whole.held_out is not None:
            weight = min(weight, _share_of_noise(fitted, whole, task.level(whole.measurement)))
    answer = weight * fitted + (1 - weight) * control
    if whole.known is not None and task.exact:
        answer = torch.where(whole.known, whole.measurement, answer)
    return answer.clamp(0, 1), weight
