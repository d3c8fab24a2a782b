"""The four restorations: what each takes and checks, and which task and classical estimate it comes down to."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack, cast, get_args

import torch
from torch import Tensor

from pixfit import classical, noise_estimate, tasks
from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.noise_estimate import NoiseLevel
from pixfit.restore.pictures import restored
from pixfit.restore.restored import LARGEST_FACTOR, Options, Restored, colours_and_alpha
from pixfit.tasks import Control

__all__ = ["deblur", "denoise", "inpaint", "upscale"]


def denoise(
    image: Image,
    *,
    noise: str = "auto",
    sigma: float | None = None,
    stop: str = "held_out",
    held_out: str = "auto",
    control: str = "nlm",
    blend: bool = True,
    **options: Unpack[Options],
) -> Restored:
    """Removes noise.

    Of salt and pepper, values replaced by white and black, those that were probably struck count as missing
    (`pixfit.noise_estimate.struck`). The others stay as they are, or lose their noise, too, where there is more of it
    than fine structure could be. Where impulses are of any brightness the picture is fitted beside outliers (You et
    al., NeurIPS 2020), with all steps. What follows is about noise of other kinds.

    A fit ends when it no longer gets better at pixels that it does not see. Where neighbours share their noise, as in
    JPEG files and resized photographs, single pixels cannot tell: their noise can be read off those around them. Then
    squares of 3 x 3 pixels are held out, and errors are compared in their middles; the answer's ``notes`` say so. That
    serves as long as noise reaches hardly further than to the next pixel.

    The answer is blended with non-local means (Buades et al., CVPR 2005), by the weight that predicts the held-out
    pixels best, and no more than the noise's share of the fit's error there. Ctrl-C ends the fit and gives the best so
    far; a second one ends the program.

    Args:
        image: the noisy picture. Alpha is kept as it is.
        noise: ``impulse``, where some values were replaced by others; ``white``, where every pixel is a little wrong;
            ``auto`` takes impulses where values stand alone at black and white (`pixfit.noise_estimate.impulses`), and
            none of the settings of white noise (sigma, stop, held_out) is given. The answer's ``notes`` say so.
        sigma: standard deviation of white noise in units of the range [0, 1], by which classical estimates go. By
            default it is estimated from the finest wavelets, and may grow with brightness, as that of photon counts
            does (`pixfit.noise_estimate.noise_level`). Shared noise has too little of those; where squares are held
            out it is that of `pixfit.noise_estimate.shared_level`.
        stop: ``held_out``, or ``sure``: Stein's unbiased risk estimate (`pixfit.tasks.risk`), in twice the time, since
            a second fit beside the first, of the picture with more noise, tells how far the first follows its own.
            Nothing is held out then, and the risk chooses the weight in the blend, too. It trusts ``sigma``, takes
            noise for independent from pixel to pixel, and ends early where clipping took much of it.
        held_out: ``pixels`` or ``squares``; ``auto`` takes squares where the picture shows signs of such noise
            (`pixfit.noise_estimate`).
        control: what the answer is blended with: ``nlm``, or ``bm3d`` (`pixfit.classical.block_matching`), which is
            better, and whose package is for non-commercial use.
        blend: whether to blend.
        options: see `Options`. Steps are by default 1500, and more above 96 pixels a side; the stopping rule usually
            ends the fit sooner.

    Raises:
        ValueError: settings out of bounds, a truth of another size, or a package that is not installed.
    """
    if sigma is not None and not (is_number(sigma) and 0 <= sigma <= 1):
        raise ValueError(f"sigma is {sigma!r}; it must be 0 to 1, in units of the picture's range [0, 1]")
    if held_out not in ("auto", "pixels", "squares"):
        raise ValueError(f"held_out is {held_out!r}; it may be auto, pixels or squares")
    if noise not in ("auto", "white", "impulse"):
        raise ValueError(f"noise is {noise!r}; it may be auto, white or impulse")
    if control not in get_args(Control):
        raise ValueError(f"control is {control!r}; it may be {' or '.join(get_args(Control))}")
    if control == "bm3d" and not classical.has_block_matching():  # now rather than after the fit
        raise ValueError(classical.NO_BLOCK_MATCHING)
    if stop not in ("held_out", "sure"):
        raise ValueError(f"stop is {stop!r}; it may be held_out or sure")
    by_risk = stop == "sure"
    if by_risk and held_out != "auto":
        raise ValueError(f"held_out is {held_out!r}, and with stop='sure' nothing is held out; leave one of them out")
    colours, alpha = colours_and_alpha(image)
    told = sigma is not None or held_out != "auto" or by_risk
    if noise == "impulse" and (told or control != "nlm"):
        raise ValueError("noise is impulse, for which there is no sigma, stop, held_out or control; leave those out")
    noticed = noise_estimate.impulses(colours) >= noise_estimate.IMPULSIVE
    if noise == "impulse" or (noise == "auto" and not told and noticed):
        task, notes = _impulsive(colours, noticed)
        done = restored(replace(task, blend=task.blend and blend), colours, **options).named(image, alpha)
        level = None if task.level is None else task.level(colours)
        notes += (f"{control} has no part in that",) if control != "nlm" else ()
        return replace(done, noise=level, notes=(*notes, *done.notes))
    signs = noise_estimate.signs_of_shared_noise(colours)
    squares = held_out == "squares" or (held_out == "auto" and bool(signs) and not by_risk)
    level = tasks.noise_estimated(colours, squares=squares) if sigma is None else NoiseLevel.white(float(sigma))
    if by_risk:  # it counts with one standard deviation
        level = NoiseLevel.white(level.sigma(float(colours.mean())))
    if by_risk and level.floor == 0:
        raise ValueError(
            "no noise was found in the picture, and stop='sure' goes by its level; give sigma, or leave stop out"
            if sigma is None
            else "sigma is 0.0; stop='sure' needs noise of a level above 0"
        )
    task = tasks.denoising(level, squares=squares, by_risk=by_risk, control=cast(Control, control))
    task = replace(task, blend=blend)
    done = restored(task, colours, **options).named(image, alpha)
    follows = (
        "squares of pixels are held out instead of single ones, so that the fit ends in time"
        if squares
        else f"{'SURE' if by_risk else 'single held-out pixels'} cannot tell such noise from the picture, and the fit "
        "may go on for too long"
    )
    return replace(done, noise=level, notes=(*(f"{sign}: {follows}" for sign in signs), *done.notes))


def _impulsive(colours: Tensor, noticed: bool) -> tuple[tasks.Task, tuple[str, ...]]:
    """What removes impulses from a picture, and what to say of it. So many that none stands alone are not noticed."""
    if not noticed and noise_estimate.impulse_rate(colours) < noise_estimate.IMPULSIVE:
        note = "its black and white values are not like salt and pepper: impulses of any brightness are looked for"
        return tasks.outliers(), (note,)
    lost = noise_estimate.struck(colours)
    task, rest = tasks.impulses(), "the others stay as they are (noise white takes none for impulses)"
    sigma = noise_estimate.noise_beside(colours, lost)
    if sigma >= noise_estimate.BESIDE:
        lost, task = noise_estimate.struck(colours, sigma), tasks.impulses(sigma)
        rest = f"in the others noise of {255 * sigma:.0f} / 255 is removed"
    share = (
        f"{float(lost.float().mean()):.0%} of the values, black and white ones, are taken for impulses and filled in"
    )
    return task, (f"{share}; {rest}",)


def inpaint(
    image: Image,
    mask: Tensor | None = None,
    *,
    blend: bool = True,
    **options: Unpack[Options],
) -> Restored:
    """Fills missing pixels; known ones are kept exactly. They are taken to be without noise.

    The answer is blended with bi-harmonic inpainting by the weight that predicts the held-out pixels best, less two
    standard errors, so that it is hardly ever worse than bi-harmonic alone.

    Args:
        image: the picture; what stands at missing pixels does not matter.
        mask: bool (H, W), True (white) where a pixel is known. By default the alpha channel of the picture: pixels that
            are fully opaque are known.
        blend: whether to blend.
        options: see `Options`. Steps are by default 2000, and more above 128 pixels a side: the fit of exact pixels
            gets better to the last one.

    Raises:
        ValueError: no mask, one of another size, or one that knows nothing or everything.
    """
    colours, alpha = colours_and_alpha(image)
    if mask is None:
        if alpha is None:
            raise ValueError("the picture has no alpha channel that tells what is missing; give a mask")
        known = alpha == 1.0
    else:
        known = torch.as_tensor(mask).bool().cpu()[None]
    if known.shape != (1, image.height, image.width):
        size = "×".join(str(side) for side in reversed(known.shape[1:]))
        raise ValueError(f"the mask is {size}, the picture {image.width}×{image.height}; both must have one size")
    if not bool(known.any()) or bool(known.all()):
        which = "every" if bool(known.all()) else "no"
        raise ValueError(f"the mask marks {which} pixel as known (white); black marks what is to be filled")

    task = replace(tasks.inpainting(), blend=blend)
    return restored(task, torch.where(known, colours, 0.0), known, **options).named(image, None)


def upscale(
    image: Image,
    factor: int,
    **options: Unpack[Options],
) -> Restored:
    """Makes a picture ``factor`` times larger: one that, made smaller by Lanczos' filter (3 lobes), is the given one.

    Args:
        image: the small picture, without noise. Alpha is enlarged by Lanczos' filter.
        factor: 2 to 8.
        options: see `Options`. Steps are by default 1500, all of which are made: there is no noise to fit. Of a truth
            the rows and columns beyond ``factor`` times the small picture are cut off.

    The answer's ``control`` is a total-variation fit with the same filter. It stands in for a fit that was interrupted
    before half of its steps, since no score tells how good that is.

    Raises:
        ValueError: a factor out of bounds.
    """
    if not (is_whole(factor) and 2 <= factor <= LARGEST_FACTOR):
        raise ValueError(f"factor is {factor!r}; it must be a whole number from 2 to {LARGEST_FACTOR}")
    colours, alpha = colours_and_alpha(image)
    done = restored(tasks.upscaling(factor), colours, **options)
    return done.named(image, None if alpha is None else classical.enlarged(alpha, factor))


def deblur(
    image: Image,
    kernel: Tensor,
    *,
    blend: bool = True,
    **options: Unpack[Options],
) -> Restored:
    """Undoes a blur whose kernel is known.

    The answer is blended with a total-variation fit by the weight that predicts the held-out pixels best; they choose
    the strength of total variation, too.

    Args:
        image: the blurred picture. Alpha is kept as it is.
        kernel: (Kh, Kw); `pixfit.operators.read_kernel` reads one from a file, `gaussian_kernel` makes one.
        blend: whether to blend.
        options: see `Options`. Steps are by default at most 2000, and more above 96 pixels a side.

    Raises:
        ValueError: a kernel that is none, or that reaches further than the picture goes.
    """
    task = replace(tasks.deblurring(kernel), blend=blend)
    colours, alpha = colours_and_alpha(image)
    task.operator.output_shape((colours.shape[0], image.height, image.width))
    return restored(task, colours, **options).named(image, alpha)
