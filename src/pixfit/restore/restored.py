"""What a restoration takes and gives: its options, how far it is, and the restored picture with how it came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from pixfit import metrics
from pixfit.images import Image
from pixfit.noise_estimate import NoiseLevel
from pixfit.spec import Precision
from pixfit.store import Store
from pixfit.tasks import TaskName

__all__ = ["LARGEST_FACTOR", "Options", "Progress", "Restored", "colours_and_alpha", "true_colours"]

LARGEST_FACTOR = 8
"""Of an enlargement."""


@dataclass(frozen=True)
class Progress:
    """How far a restoration is: what ``on_progress`` gets, about ten times a second.

    Args:
        fraction: of the steps that all fits may take at most, in [0, 1]; a stopping rule may end one sooner.
        fit, fits: the number of the fit that tells, from 1, and how many there are (pieces times runs). On a CPU they
            run side by side, so that several tell by turns; calls do not overlap, but come from the fits' threads,
            which wait for them.
        step, steps: updates of this fit, made and at most.
        score: PSNR in dB of the averaged picture at the held-out pixels of this fit, or that of the whole picture which
            SURE estimates; None where none is known.
        best: the highest score so far; the answer is of a step near it.
        seconds: since the start.
        ahead: seconds that all fits will still take at most, by the pace of some steps; None before that is known. Of a
            large picture it is known before the first fit begins.
        picture: gives the picture (C, H, W) as it would be now, without the blend.
    """

    fraction: float
    fit: int
    fits: int
    step: int
    steps: int
    score: float | None
    best: float | None
    seconds: float
    ahead: float | None
    picture: Callable[[], Tensor]


class Options(TypedDict, total=False):
    """What all four take.

    runs         fits with different seeds, whose pictures are averaged: slower and better; 1 by default.
    steps        of a fit, at most.
    seed         of the networks and of the held-out pixels; 0 by default.
    device       ``"cpu"``, ``"cuda"``, …; by default a GPU where there is one.
    precision    ``"float32"`` or ``"bfloat16"``, see `pixfit.Spec`; ``"auto"``, the default, takes the latter where the
                 processor is faster with it.
    truth        the true picture, for reporting only; it changes nothing.
    store        keeps finished fits, so that the same call goes on where an interrupted one ended; None: nothing is
                 kept. With a truth all fits are made anew, since their last and best pictures are not kept.
    on_progress  is told how far it is.
    """

    runs: int
    steps: int | None
    seed: int
    device: str | torch.device | None
    precision: str
    truth: Image | None
    store: Store | None
    on_progress: Callable[[Progress], None] | None


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored picture and how it came about.

    Args:
        image: the answer, with the name and the bit depth of what was given.
        task: which of the four.
        status: ``stopped`` by the rule, ``done`` after all steps, or ``cancelled``: the best that there was.
        stop_rule: ``held_out``, ``sure``, ``steps``, ``interrupted``, or ``classical`` for a picture that is too small
            to be fitted.
        stop_step, steps: the step whose picture is the answer, and the steps made; of several fits the means.
        seconds: of wall time.
        degraded: (C, H, W), what was given, brought to the size of the answer, black where it is missing.
        fitted: (C, H, W), what the fits gave, without the blend. Equal to ``control`` where nothing was fitted.
        control: (C, H, W), the classical estimate: non-local means or BM3D, bi-harmonic, total variation, or a median.
        weight: of the fit in the blend, in [0, 1]; 1 where nothing was blended.
        noise: level of the noise, given or estimated; None where not used.
        precision: of the fits, see `Options`.
        curves: a fit each: ``step`` (K,) and ``held_out`` (K,), the mean squared error at the held-out pixels, or the
            one that SURE estimates of the whole picture.
        last, oracle: (C, H, W), the fits' pictures at their last steps and at those nearest to the truth; None without
            a truth.
        notes: what the user should know, a line each.
    """

    image: Image
    task: TaskName
    status: str
    stop_rule: str
    stop_step: int
    steps: int
    seconds: float
    degraded: Tensor
    fitted: Tensor
    control: Tensor
    weight: float = 1.0
    noise: NoiseLevel | None = None
    precision: Precision = "float32"
    curves: tuple[Mapping[str, Tensor], ...] = ()
    last: Tensor | None = None
    oracle: Tensor | None = None
    notes: tuple[str, ...] = ()

    def named(self, image: Image, alpha: Tensor | None) -> Restored:
        """With what the given picture had: its name and bit depth, and this alpha channel (1, H, W)."""
        data = self.image.data if alpha is None else torch.cat([self.image.data, alpha])
        return replace(self, image=Image(data, image.name, image.bit_depth))

    def scores(self, truth: Image) -> dict[str, float | None]:
        """PSNR in dB and SSIM against the true picture: of what was given, of the answer, and of the fits' pictures at
        the last step and at the best one. Alpha does not count.

        Raises:
            ValueError: a truth of another size.
        """
        clean = true_colours(truth, self.fitted, self.task)
        answer = self.image.data[: clean.shape[0]]
        return {
            "psnr_degraded": metrics.psnr(self.degraded, clean),
            "psnr": metrics.psnr(answer, clean),
            "psnr_last": None if self.last is None else metrics.psnr(self.last, clean),
            "psnr_oracle": None if self.oracle is None else metrics.psnr(self.oracle, clean),
            "ssim": metrics.ssim(answer, clean),
        }


def colours_and_alpha(image: Image) -> tuple[Tensor, Tensor | None]:
    """The colours (1 or 3, H, W) and the alpha channel (1, H, W), if there is one."""
    if not isinstance(image, Image):
        raise TypeError(f"a picture is a pixfit.images.Image, got {type(image).__name__}; see Image.from_array")
    if image.channels in (2, 4):
        return image.data[:-1], image.data[-1:]
    return image.data, None


def true_colours(truth: Image, like: Tensor, task: TaskName) -> Tensor:
    """The colours of the true picture at the size of the answer; what no enlarged picture can have is cut off."""
    colours, _ = colours_and_alpha(truth)
    height, width = like.shape[1:]
    beyond = (colours.shape[1] - height, colours.shape[2] - width)
    most = LARGEST_FACTOR - 1 if task == "upscale" else 0
    if colours.shape[0] != like.shape[0] or not all(0 <= more <= most for more in beyond):
        raise ValueError(
            f"the true picture is {truth.width}×{truth.height} with {colours.shape[0]} colour channels, the restored "
            f"one {width}×{height} with {like.shape[0]}; they must be of one size"
        )
    return colours[:, :height, :width]
