"""What pictures are damaged by in the study of restoration, and what restores them without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from pixfit import classical, noise_estimate, tasks
from pixfit.images import Image
from pixfit.noise import Clipped, GaussianNoise, Noise, PoissonNoise, SaltAndPepper
from pixfit.noise_estimate import NoiseLevel
from pixfit.operators import Blur, Identity, Inpaint, LanczosDownsample, Operator, gaussian_kernel, masks
from pixfit.pieces import Piece
from pixfit.problem import Problem
from pixfit.tasks import Task

__all__ = ["DAMAGES", "Control", "Damage", "piece_of"]

Control = Callable[[Piece], Tensor]
"""A picture (C, H, W) made without a network of all that was measured."""


@dataclass(frozen=True, eq=False)
class Damage:
    """One row of the study.

    Args:
        title: a few words.
        task: how it is undone by default.
        operator: of a picture's (height, width) and the problem's seed.
        noise: what is added.
        controls: by name; the first one is the damaged picture itself.
    """

    title: str
    task: Task
    operator: Callable[[tuple[int, int], int], Operator] = field(default=lambda size, seed: Identity())
    noise: Noise | None = None
    controls: Mapping[str, Control] = field(default_factory=dict)

    def problem(self, image: Image, seed: int) -> Problem:
        """The picture damaged so, with the held-out pixels that the task wants."""
        operator = self.operator((image.height, image.width), seed)
        # What would be held out of lost values is lost, too.
        held_out = 0.0 if self.task.lost else self.task.held_out
        return Problem(image, operator, self.noise, held_out=held_out, seed=seed)


def piece_of(problem: Problem) -> Piece:
    """What was measured of a problem's picture, in one piece."""
    view = problem.view
    known = problem.operator.known(problem.shape)
    return Piece(slice(None), slice(None), view.operator, view.shape, view.measurement, known, view.held_out)


# ------------------------------------------------------------------------------------------------------------ controls


def _given(piece: Piece) -> Tensor:
    return piece.measurement.clamp(0, 1)


def _tv(strength: float, piece: Piece) -> Tensor:
    return classical.total_variation(replace(piece.view, use=piece.known, held_out=None), strength)


def _noise_controls(task: Task, known: NoiseLevel | None) -> dict[str, Control]:
    def level(piece: Piece) -> NoiseLevel:
        return tasks.noise_estimated(piece.measurement) if known is None else known

    def smooth(piece: Piece) -> Tensor:
        return _tv(_TV_OF_SIGMA * level(piece).sigma(float(piece.measurement.mean())), piece)

    found: dict[str, Control] = {
        "degraded": _given,
        "median": lambda piece: classical.median(piece.measurement).clamp(0, 1),
        "wavelets": lambda piece: classical.wavelets(piece.measurement, level(piece)),
        "total variation": smooth,
        "non-local means": lambda piece: task.estimate(piece, None).clamp(0, 1),
    }
    if classical.has_block_matching():
        found["BM3D"] = lambda piece: classical.block_matching(piece.measurement, level(piece))
    return found


_TV_OF_SIGMA = 0.8  # strength of total variation for white noise of σ = 1
_EXACT = 1e-3  # strength where there is no noise


def _denoise(title: str, noise: Noise, known: NoiseLevel | None = None) -> Damage:
    task = tasks.denoising(known)
    return Damage(title, task, noise=Clipped(noise), controls=_noise_controls(task, known))


def _white(sigma: int) -> Damage:
    title = f"white noise, σ {sigma}/255, clipped"
    return _denoise(title, GaussianNoise(sigma / 255), NoiseLevel.white(sigma / 255))


def _impulse(title: str, noise: Noise) -> Damage:
    task = tasks.impulses()

    def filled(piece: Piece) -> Tensor:
        return task.estimate(replace(piece, known=~noise_estimate.struck(piece.measurement)), None)

    controls = {**_noise_controls(tasks.denoising(), None), "bi-harmonic": filled}
    return Damage(title, task, noise=noise, controls=controls)


def _inpaint(title: str, mask: Callable[[tuple[int, int], int], Tensor]) -> Damage:
    task = tasks.inpainting()
    controls: dict[str, Control] = {
        "degraded": _given, "total variation": partial(_tv, _EXACT),
        "bi-harmonic": lambda piece: task.estimate(piece, None),
    }  # fmt: skip
    return Damage(title, task, lambda size, seed: Inpaint(mask(size, seed)), controls=controls)


def _upscale(factor: int) -> Damage:
    task = tasks.upscaling(factor)
    controls: dict[str, Control] = {
        "degraded": lambda piece: classical.enlarged(_given(piece), factor),
        "bicubic": lambda piece: classical.enlarged(_given(piece), factor, "bicubic"),
        "total variation": lambda piece: task.estimate(piece, None),
    }
    title = f"×{factor}, made smaller by a known Lanczos filter"
    return Damage(title, task, lambda size, seed: LanczosDownsample(factor, lobes=3), controls=controls)


def _deblur(sigma: float, noise: float) -> Damage:
    task = tasks.deblurring(gaussian_kernel(sigma))
    controls: dict[str, Control] = {
        "degraded": _given, "total variation": lambda piece: task.estimate(piece, None),
    }  # fmt: skip
    title = f"Gaussian blur of {sigma:g} pixels, known, and noise of σ {255 * noise:g}/255"
    added = Clipped(GaussianNoise(noise))
    return Damage(title, task, lambda size, seed: Blur(gaussian_kernel(sigma)), added, controls)


DAMAGES: dict[str, Damage] = {
    "denoise-15": _white(15),
    "denoise-25": _white(25),
    "denoise-50": _white(50),
    "poisson-30": _denoise("Poisson noise, 30 counts at white, clipped; level estimated", PoissonNoise(30)),
    "impulse-20": _impulse("20 % of the values black or white; level estimated", SaltAndPepper(0.2)),
    "impulse-50": _impulse("50 % of the values black or white; level estimated", SaltAndPepper(0.5)),
    "inpaint-50": _inpaint("half of the pixels missing", lambda size, seed: masks.pixels(size, 0.5, seed)),
    "inpaint-text": _inpaint("text over the picture", lambda size, seed: masks.text(size, seed=seed)),
    "upscale-4": _upscale(4),
    "deblur": _deblur(1.6, 2 / 255),
}
"""The rows of the study. A new one needs a task of `pixfit.tasks` that undoes it, and its controls."""
