"""Restore one damaged picture without training data: `denoise`, `inpaint`, `upscale` and `deblur`.

A convolutional network is fitted to the damaged picture alone (deep image prior, Ulyanov et al., CVPR 2018). It fits
structure sooner than noise, so the fit must end in time, and the truth that would tell when is not at hand: some whole
pixels are held out of the loss, and the answer is the running average of what the network showed, at the step where it
predicts those pixels best. The same pixels weigh the answer against a classical estimate, which costs next to nothing
and mends what the network is worst at. Large pictures are restored in pieces that overlap.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Literal, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from pixfit import classical, engine, metrics, run
from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.job import Job, Moment, Outcome
from pixfit.models import Hourglass
from pixfit.operators import Blur, Identity, LanczosDownsample, Operator
from pixfit.optim import Adam
from pixfit.pieces import Canvas, Piece, cut
from pixfit.problem import Sealed, stream
from pixfit.spec import AveragedOutput, Spec
from pixfit.stopping import HeldOut, Never, Steps, Stopping

__all__ = ["Options", "Progress", "Restored", "Task", "deblur", "denoise", "inpaint", "upscale"]

Task = Literal["denoise", "inpaint", "upscale", "deblur"]

_DECAY = 0.99  # of the average of outputs
_LOOK = 5  # steps between two looks at the held-out pixels
_HELD_OUT = 0.04  # of the measured pixels
_FEWEST = 25  # measured pixels in a piece, below which a fit tells nothing
_SMALLEST = 16  # pixels a side, below which there is too little to fit
_WHOLE = 256  # pixels a side up to which a picture is fitted in one piece
_PIECE = 192  # pixels a side of the pieces of larger ones
_OVERLAP = 32  # pixels that neighbouring pieces share
_LARGEST_FACTOR = 8
_STRENGTHS = (1e-4, 1e-3, 1e-2)  # of total variation, tried on held-out pixels


@dataclass(frozen=True)
class Progress:
    """How far a restoration is: what ``on_progress`` gets, about ten times a second.

    Args:
        fraction: of the steps that it may take at most, in [0, 1]; a stopping rule may end it sooner.
        fit, fits: the number of this fit, from 1, and how many there are (pieces times runs).
        step, steps: updates of this fit, made and at most.
        score: PSNR in dB of the averaged picture at the held-out pixels of this fit; None where none are held out.
        best: the highest score so far, whose picture is the answer.
        seconds: since the start.
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
    picture: Callable[[], Tensor]


class Options(TypedDict, total=False):
    """What all four take.

    runs         fits with different seeds, whose pictures are averaged: slower and better; 1 by default.
    steps        of a fit, at most.
    seed         of the networks and of the held-out pixels; 0 by default.
    device       ``"cpu"``, ``"cuda"``, …; by default a GPU where there is one.
    truth        the true picture, for reporting only; it changes nothing.
    on_progress  is told how far it is.
    """

    runs: int
    steps: int | None
    seed: int
    device: str | torch.device | None
    truth: Image | None
    on_progress: Callable[[Progress], None] | None


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored picture and how it came about.

    Args:
        image: the answer, with the name and the bit depth of what was given.
        task: which of the four.
        status: ``stopped`` by the rule, ``done`` after all steps, or ``cancelled``: the best that there was.
        stop_rule: ``held_out``, ``steps``, ``interrupted``, or ``classical`` for a picture that is too small to be
            fitted.
        stop_step, steps: the step whose picture is the answer, and the steps made; of several fits the means.
        seconds: of wall time.
        degraded: (C, H, W), what was given, brought to the size of the answer, black where it is missing.
        fitted: (C, H, W), what the fits gave, without the blend. Equal to ``control`` where nothing was fitted.
        control: (C, H, W), the classical estimate: non-local means, bi-harmonic, or total variation.
        weight: of the fit in the blend, in [0, 1]; 1 where nothing was blended.
        sigma: standard deviation of the noise, given or estimated, in units of the range [0, 1]; None where not used.
        curves: a fit each: ``step`` (K,) and ``held_out`` (K,), the mean squared error at the held-out pixels.
        last, oracle: (C, H, W), the fits' pictures at their last steps and at those nearest to the truth; None without
            a truth.
        notes: what the user should know, a line each.
    """

    image: Image
    task: Task
    status: str
    stop_rule: str
    stop_step: int
    steps: int
    seconds: float
    degraded: Tensor
    fitted: Tensor
    control: Tensor
    weight: float = 1.0
    sigma: float | None = None
    curves: tuple[Mapping[str, Tensor], ...] = ()
    last: Tensor | None = None
    oracle: Tensor | None = None
    notes: tuple[str, ...] = ()

    def scores(self, truth: Image) -> dict[str, float | None]:
        """PSNR in dB and SSIM against the true picture: of what was given, of the answer, and of the fits' pictures at
        the last step and at the best one. Alpha does not count.

        Raises:
            ValueError: a truth of another size.
        """
        clean = _truth(truth, self.fitted, self.task)
        answer = self.image.data[: clean.shape[0]]
        return {
            "psnr_degraded": metrics.psnr(self.degraded, clean),
            "psnr": metrics.psnr(answer, clean),
            "psnr_last": None if self.last is None else metrics.psnr(self.last, clean),
            "psnr_oracle": None if self.oracle is None else metrics.psnr(self.oracle, clean),
            "ssim": metrics.ssim(answer, clean),
        }


def denoise(
    image: Image,
    *,
    sigma: float | None = None,
    blend: bool = True,
    **options: Unpack[Options],
) -> Restored:
    """Removes noise that differs from pixel to pixel. Noise that neighbours share, as in JPEG files and resized
    photographs, is taken for structure.

    The answer is blended with non-local means (Buades et al., CVPR 2005), by the weight that predicts the held-out
    pixels best. Ctrl-C ends the fit and gives the best so far; a second one ends the program.

    Args:
        image: the noisy picture. Alpha is kept as it is.
        sigma: standard deviation of the noise in units of the range [0, 1]; by default it is estimated from the finest
            wavelets (Donoho and Johnstone, 1994). Only non-local means needs it.
        blend: whether to blend.
        options: see `Options`. Steps are by default 1500, and more above 96 pixels a side; the stopping rule usually
            ends the fit sooner.

    Raises:
        ValueError: settings out of bounds, or a truth of another size.
    """
    if sigma is not None and not (is_number(sigma) and 0 <= sigma <= 1):
        raise ValueError(f"sigma is {sigma!r}; it must be 0 to 1, in units of the picture's range [0, 1]")
    colours, alpha = _split(image)
    level = classical.noise_level(colours) if sigma is None else float(sigma)

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        noisy = piece.measurement
        if fitted is not None and piece.held_out is not None:
            noisy = torch.where(piece.held_out, fitted, noisy)
        return classical.nonlocal_means(noisy, level)

    task = _Task("denoise", colours, Identity(), channels=32, stopping=HeldOut(150), estimate=estimate, blend=blend)
    done = _restore(task, **options)
    return replace(_named(done, image, alpha), sigma=level)


def inpaint(
    image: Image,
    mask: Tensor | None = None,
    *,
    blend: bool = True,
    **options: Unpack[Options],
) -> Restored:
    """Fills missing pixels; known ones are kept exactly. They are taken to be without noise.

    The answer is blended with bi-harmonic inpainting by the weight that predicts the held-out pixels best.

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
    colours, alpha = _split(image)
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

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        seen = known.new_ones(1, 1, 1) if piece.known is None else piece.known
        if fitted is not None and piece.held_out is not None:
            seen = seen & ~piece.held_out
        return classical.biharmonic(piece.measurement, seen.expand(1, *piece.measurement.shape[1:]))

    blanked = torch.where(known, colours, 0.0)
    task = _Task(
        "inpaint", blanked, Identity(), known=known, channels=64, longest=2000, grows_from=128, stopping=Never(),
        estimate=estimate, blend=blend,
    )  # fmt: skip
    return _named(_restore(task, **options), image, None)


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

    The answer's ``control`` is a total-variation fit with the same filter.

    Raises:
        ValueError: a factor out of bounds.
    """
    if not (is_whole(factor) and 2 <= factor <= _LARGEST_FACTOR):
        raise ValueError(f"factor is {factor!r}; it must be a whole number from 2 to {_LARGEST_FACTOR}")
    operator = LanczosDownsample(factor, lobes=3)
    colours, alpha = _split(image)

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        return classical.total_variation(piece.view, 1e-3)

    task = _Task(
        "upscale", colours, operator, factor=factor, channels=64, stopping=Never(), held_out=0.0, grows_from=None,
        estimate=estimate, blend=False,
    )  # fmt: skip
    done = _restore(task, **options)
    return _named(done, image, None if alpha is None else classical.enlarged(alpha, factor))


def deblur(
    image: Image,
    kernel: Tensor,
    **options: Unpack[Options],
) -> Restored:
    """Undoes a blur whose kernel is known.

    The answer is not blended: of blurred pixels a sharp and a smooth picture predict nearly the same, so held-out ones
    cannot weigh them. ``control`` is a total-variation fit.

    Args:
        image: the blurred picture. Alpha is kept as it is.
        kernel: (Kh, Kw); `pixfit.operators.read_kernel` reads one from a file, `gaussian_kernel` makes one.
        options: see `Options`. Steps are by default at most 2000, and more above 96 pixels a side.

    Raises:
        ValueError: a kernel that is none, or that reaches further than the picture goes.
    """
    operator = Blur(kernel)
    colours, alpha = _split(image)
    operator.output_shape((colours.shape[0], image.height, image.width))
    strengths: dict[int, float] = {}

    def estimate(piece: Piece, fitted: Tensor | None) -> Tensor:
        if piece.held_out is None:
            return classical.total_variation(piece.view, _STRENGTHS[1])
        if id(piece) not in strengths:
            errors = {s: piece.held_out_error(classical.total_variation(piece.view, s)) for s in _STRENGTHS}
            strengths[id(piece)] = min(_STRENGTHS, key=lambda strength: errors[strength])
        view = piece.view if fitted is not None else replace(piece.view, use=piece.known, held_out=None)
        return classical.total_variation(view, strengths[id(piece)])

    task = _Task(
        "deblur", colours, operator, channels=32, longest=2000, stopping=HeldOut(300), estimate=estimate,
        blend=False, overlap=max(_OVERLAP, max(operator.kernel.shape)),
    )  # fmt: skip
    return _named(_restore(task, **options), image, alpha)


# ------------------------------------------------------------------------------------------------ pieces and fits


class _Estimate(Protocol):
    """A classical estimate (C, H, W) of a piece; with a fitted picture one that does not know the held-out pixels."""

    def __call__(self, piece: Piece, fitted: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class _Task:
    name: Task
    measurement: Tensor
    operator: Operator
    estimate: _Estimate
    stopping: Stopping
    channels: int
    blend: bool
    known: Tensor | None = None  # bool (1, h, w)
    factor: int = 1
    held_out: float = _HELD_OUT
    longest: int = 1500
    grows_from: int | None = 96  # pixels a side above which a fit may take more steps
    overlap: int = field(default_factory=lambda: _OVERLAP)

    def steps(self, height: int, width: int) -> int:
        """Steps at most, for a picture of that size."""
        grown = 1.0 if self.grows_from is None else math.sqrt(height * width) / self.grows_from
        return round(self.longest * max(1.0, grown))


def _held_out(task: _Task, seed: int) -> Tensor | None:
    """Bool (1, h, w): some whole pixels that were measured. They are drawn at once, so that all pieces agree."""
    if task.held_out == 0:
        return None
    height, width = task.measurement.shape[1:]
    seen = torch.ones(height * width, dtype=torch.bool) if task.known is None else task.known.flatten()
    places = seen.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=stream(seed, "held-out"))
    chosen = torch.zeros(1, height, width, dtype=torch.bool)
    chosen.view(-1)[places[order[: max(1, round(task.held_out * len(places)))]]] = True
    return chosen


def _complete(piece: Piece) -> bool:
    """Whether it is a piece of a picture with holes, and has none."""
    return piece.known is not None and bool(piece.known.all())


def _enough(piece: Piece) -> bool:
    """Whether there is enough of a piece for a network to be fitted."""
    seen = piece.measurement[0].numel() if piece.known is None else int(piece.known.sum())
    held = piece.held_out is None or bool(piece.held_out.any())
    return min(piece.shape[1:]) >= _SMALLEST and seen >= _FEWEST and held


@dataclass(eq=False)
class _Watch:
    """Sees the average every few steps: tells how far the fit is, and keeps what is only for reporting."""

    piece: Piece
    truth: Tensor | None
    tell: Callable[[_Watch, int, float], None] | None = None
    limit: int = 0
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    latest: Tensor | None = None
    oracle: Tensor | None = None
    nearest: float = math.inf

    def look(self, moment: Moment) -> None:
        height, width = self.piece.shape[1:]
        self._see(moment.step, _as_picture(moment.predict(torch.arange(height * width))[0], self.piece.shape))

    def close(self, step: int, last: Tensor) -> None:
        """The engine's own last look was at the answer, not at the last step's picture."""
        if self.steps and self.steps[-1] == step:
            del self.steps[-1], self.errors[-1]
        self._see(step, last)

    def _see(self, step: int, picture: Tensor) -> None:
        self.latest = picture.clamp(0, 1)
        self.steps.append(step)
        self.errors.append(math.nan if self.piece.held_out is None else self.piece.held_out_error(self.latest))
        if self.truth is not None and (error := metrics.mse(self.latest, self.truth)) < self.nearest:
            self.nearest, self.oracle = error, self.latest

    @property
    def curve(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.steps), "held_out": torch.tensor(self.errors)}

    def tick(self, step: int, fraction: float, losses: Sequence[float]) -> None:
        if self.tell is not None:
            self.tell(self, step, fraction)


@dataclass(frozen=True, eq=False)
class _Report:
    """Turns what a watch sees into `Progress`."""

    on_progress: Callable[[Progress], None]
    began: float
    done: int
    fits: int
    canvas: Canvas
    degraded: Tensor

    def __call__(self, watch: _Watch, step: int, fraction: float) -> None:
        errors = [error for error in watch.errors if error > 0]
        self.on_progress(
            Progress(
                fraction=(self.done + fraction) / self.fits, fit=self.done + 1, fits=self.fits, step=step,
                steps=watch.limit, score=metrics.psnr_of_mse(errors[-1]) if errors else None,
                best=metrics.psnr_of_mse(min(errors)) if errors else None, seconds=time.monotonic() - self.began,
                picture=partial(self._picture, watch),
            )
        )  # fmt: skip

    def _picture(self, watch: _Watch) -> Tensor:
        base = self.degraded
        if watch.latest is not None:
            base = base.clone()
            base[:, watch.piece.rows, watch.piece.columns] = watch.latest
        return self.canvas.picture(base)


def _restore(
    task: _Task,
    *,
    runs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    truth: Image | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Restored:
    """Fits every piece, puts them together, and blends."""
    if not (is_whole(runs) and 1 <= runs <= 64):
        raise ValueError(f"runs is {runs!r}; it must be a whole number from 1 to 64")
    if steps is not None and not (is_whole(steps) and steps >= 1):
        raise ValueError(f"steps is {steps!r}; it must be a whole number, 1 or more")
    began, chosen = time.monotonic(), run.choose_device(device)
    degraded = classical.enlarged(task.measurement, task.factor) if task.factor > 1 else task.measurement
    shape = (degraded.shape[0], degraded.shape[1], degraded.shape[2])
    clean = None if truth is None else _truth(truth, degraded, task.name)
    held_out = _held_out(task, seed)
    whole = Piece(slice(None), slice(None), task.operator, shape, task.measurement, task.known, held_out)
    pieces = cut(whole, side=_PIECE, least=_WHOLE, overlap=task.overlap, factor=task.factor)
    canvases = {name: Canvas(shape, task.overlap) for name in ("fitted", "control", "blind")}
    if clean is not None:
        canvases |= {name: Canvas(shape, task.overlap) for name in ("last", "oracle")}
    fits: list[_Fit] = []
    with _interruptible() as interrupted:
        for number, piece in enumerate(pieces):
            own: list[_Fit] = []
            for repeat in range(runs if _enough(piece) and not _complete(piece) else 0):
                if interrupted():
                    break
                watch = _Watch(piece, None if clean is None else clean[:, piece.rows, piece.columns])
                if on_progress is not None:
                    done = number * runs + repeat
                    watch.tell = _Report(on_progress, began, done, len(pieces) * runs, canvases["fitted"], degraded)
                own.append(_fit(task, piece, steps, seed + repeat, chosen, watch, interrupted))
            fits += own
            pictures = {"control": task.estimate(piece, None)}
            for name in ("fitted", "last", "oracle"):
                each = [getattr(fit, name) for fit in own if fit.answered]
                pictures[name] = torch.stack(each).mean(dim=0) if each else pictures["control"]
            blind = task.blend and any(fit.answered for fit in own)
            pictures["blind"] = task.estimate(piece, pictures["fitted"]) if blind else pictures["fitted"]
            for name, canvas in canvases.items():
                canvas.add(piece, pictures[name])
        stopped = interrupted()
    made = {name: canvas.picture() for name, canvas in canvases.items()}
    weight = 1.0
    if task.blend and held_out is not None:
        weight = _weight(task, made["fitted"], made["blind"], held_out)
    answer = weight * made["fitted"] + (1 - weight) * made["control"]
    if task.known is not None:
        made = {name: torch.where(task.known, task.measurement, picture) for name, picture in made.items()}
        answer = torch.where(task.known, task.measurement, answer)
    rules = {fit.outcome.reason for fit in fits if fit.answered}
    rule = "interrupted" if stopped else "held_out" if "held_out" in rules else "steps" if rules else "classical"
    count = max(1, len(fits))
    return Restored(
        image=Image(answer.clamp(0, 1)), task=task.name,
        status={"interrupted": "cancelled", "held_out": "stopped"}.get(rule, "done"), stop_rule=rule,
        stop_step=round(sum(fit.stop_step for fit in fits) / count),
        steps=round(sum(fit.outcome.steps for fit in fits) / count), seconds=time.monotonic() - began,
        degraded=degraded, fitted=made["fitted"], control=made["control"], weight=weight,
        curves=tuple(fit.curve for fit in fits), last=made.get("last"), oracle=made.get("oracle"),
        notes=_notes(pieces, fits),
    )  # fmt: skip


def _weight(task: _Task, fitted: Tensor, blind: Tensor, held_out: Tensor) -> float:
    """Of the fit in the blend, in [0, 1]: that of the least squared error at the held-out pixels."""
    wanted = held_out.expand_as(task.measurement)
    first, second = (task.operator.forward(picture)[wanted].double() for picture in (fitted, blind))
    apart, wrong = first - second, task.measurement[wanted].double() - second
    size = float(apart.square().sum())
    return 1.0 if size == 0 else min(1.0, max(0.0, float((apart * wrong).sum()) / size))


def _notes(pieces: Sequence[Piece], fits: Sequence[_Fit]) -> tuple[str, ...]:
    notes = []
    small = sum(not _enough(piece) and not _complete(piece) for piece in pieces)
    if small:
        what = "the picture is" if len(pieces) == 1 else f"{small} of {len(pieces)} pieces are"
        notes.append(
            f"{what} too small, or too little of it is known, for a network to be fitted "
            f"(from {_SMALLEST}×{_SMALLEST} pixels): the classical estimate stands in"
        )
    for fit in fits:
        if not fit.answered:
            reason = f"{fit.outcome.verdict} ({fit.outcome.reason})"
            notes.append(f"a fit was {reason}: the classical estimate stands in for it")
    return tuple(notes)


@dataclass(frozen=True, eq=False)
class _Fit:
    """One network's fit to a piece; pictures (C, H, W)."""

    outcome: Outcome
    stop_step: int
    fitted: Tensor
    last: Tensor
    oracle: Tensor
    curve: Mapping[str, Tensor]

    @property
    def answered(self) -> bool:
        return self.outcome.verdict not in ("diverged", "collapsed")


def _fit(
    task: _Task,
    piece: Piece,
    steps: int | None,
    seed: int,
    device: torch.device,
    watch: _Watch,
    interrupted: Callable[[], bool],
) -> _Fit:
    channels, height, width = piece.shape
    watch.limit = task.steps(height, width) if steps is None else steps
    levels = len(Hourglass.small(height, width).channels)
    looks = _LOOK if isinstance(task.stopping, HeldOut) else None
    # The picture that is sought is known to nobody: a problem made of it cannot be, only what was measured.
    sealed = Sealed({"image": {"channels": channels, "height": height, "width": width}})
    spec = Spec(
        sealed, Hourglass(channels=(task.channels,) * levels), optimiser=Adam(lr=0.01), budget=Steps(watch.limit),
        stopping=task.stopping, estimate=AveragedOutput(_DECAY, every=looks), seed=seed,
    )  # fmt: skip
    job = Job(spec, piece.view, run.first_weights(spec))
    for state in engine.fit([job], device=device, watch=watch, every=_LOOK, interrupt=interrupted):
        end = state
    assert end.outcomes is not None
    (outcome,) = end.outcomes
    assert outcome.picture is not None
    last = _as_picture(end.tensors["shown"][0].reshape(-1, channels), piece.shape)
    watch.close(outcome.steps, last)
    stop_step = outcome.steps if looks is None else end.scalars["best_step"][0]
    fitted, oracle = outcome.picture.clamp(0, 1), last if watch.oracle is None else watch.oracle
    return _Fit(outcome, stop_step, fitted, last.clamp(0, 1), oracle, watch.curve)


def _as_picture(samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(H·W, C) as (C, H, W) on the CPU."""
    return samples.T.reshape(shape).float().cpu()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Lets the first Ctrl-C end the fit in good order. Signals come to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed, before = threading.Event(), signal.getsignal(signal.SIGINT)

    def press(number: int, stack: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------ pictures in and out


def _split(image: Image) -> tuple[Tensor, Tensor | None]:
    """The colours (1 or 3, H, W) and the alpha channel (1, H, W), if there is one."""
    if not isinstance(image, Image):
        raise TypeError(f"a picture is a pixfit.images.Image, got {type(image).__name__}; see Image.from_array")
    if image.channels in (2, 4):
        return image.data[:-1], image.data[-1:]
    return image.data, None


def _named(done: Restored, image: Image, alpha: Tensor | None) -> Restored:
    """The answer with what the picture had: its name, bit depth and alpha."""
    data = done.image.data if alpha is None else torch.cat([done.image.data, alpha])
    return replace(done, image=Image(data, image.name, image.bit_depth))


def _truth(truth: Image, like: Tensor, task: Task) -> Tensor:
    """The colours of the true picture at the size of the answer; what no enlarged picture can have is cut off."""
    colours, _ = _split(truth)
    height, width = like.shape[1:]
    beyond = (colours.shape[1] - height, colours.shape[2] - width)
    most = _LARGEST_FACTOR - 1 if task == "upscale" else 0
    if colours.shape[0] != like.shape[0] or not all(0 <= more <= most for more in beyond):
        raise ValueError(
            f"the true picture is {truth.width}×{truth.height} with {colours.shape[0]} colour channels, the restored "
            f"one {width}×{height} with {like.shape[0]}; they must be of one size"
        )
    return colours[:, :height, :width]
