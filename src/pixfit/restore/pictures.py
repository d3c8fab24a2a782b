"""A whole picture restored: cut into pieces, each fitted and estimated, put together, and blended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pixfit import classical, held_out, metrics, run
from pixfit.canonical import is_whole
from pixfit.images import Image
from pixfit.pieces import Canvas, Piece, cut
from pixfit.problem import stream
from pixfit.restore.fits import Fit, Watch, fit, pace
from pixfit.restore.restored import Progress, Restored, true_colours
from pixfit.store import Store
from pixfit.tasks import CONTROL_PROBE, Task, blended

__all__ = ["restored"]

_FEWEST = 25  # measured pixels in a piece, below which a fit tells nothing
_SMALLEST = 16  # pixels a side, below which there is too little to fit
_WHOLE = 256  # pixels a side up to which a picture is fitted in one piece
_PIECE = 192  # pixels a side of the pieces of larger ones
_OVERLAP = 32  # pixels that neighbouring pieces share
_PACED = 10  # steps of a fit after which its pace is known


def restored(
    task: Task,
    measurement: Tensor,
    known: Tensor | None = None,
    *,
    runs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    truth: Image | None = None,
    store: Store | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Restored:
    """The picture of which this is a measurement; options as in `pixfit.restore.Options`.

    Args:
        measurement: (C, h, w) in [0, 1].
        known: bool (1, h, w), what was measured; None: everything but for what the task says is lost.

    Raises:
        ValueError: options out of bounds.
    """
    if not (is_whole(runs) and 1 <= runs <= 64):
        raise ValueError(f"runs is {runs!r}; it must be a whole number from 1 to 64")
    if steps is not None and not (is_whole(steps) and steps >= 1):
        raise ValueError(f"steps is {steps!r}; it must be a whole number, 1 or more")
    began, chosen = time.monotonic(), run.choose_device(device)
    degraded = classical.enlarged(measurement, task.factor) if task.factor > 1 else measurement
    shape = (degraded.shape[0], degraded.shape[1], degraded.shape[2])
    clean = None if truth is None else true_colours(truth, degraded, task.name)
    if known is None and task.lost is not None:
        known = ~task.lost(measurement)
    masks = _held_out(task, measurement, known, seed)
    probe = None if task.sigma is None else task.sigma * _signs(measurement, seed)
    whole = Piece(slice(None), slice(None), task.operator, shape, measurement, known, *masks, probe)
    overlap = max(_OVERLAP, task.reach)
    pieces = cut(whole, side=_PIECE, least=_WHOLE, overlap=overlap, factor=task.factor)
    worth = {piece for piece in pieces if _enough(piece) and not _complete(piece)}
    names = ["fitted", "control", "blind", *([] if clean is None else ["last", "oracle"])]
    names += [] if probe is None else ["fitted probed", "control probed"]
    canvases = {name: Canvas(shape, overlap) for name in names}
    limits = {piece: task.steps(*piece.shape[1:]) if steps is None else steps for piece in pieces}
    report = None
    if on_progress is not None:
        report = _Report(on_progress, began, len(worth) * runs, canvases["fitted"], degraded)
        if len(worth) > 1:
            first = next(piece for piece in pieces if piece in worth)
            report.before(pace(task, first, chosen), limits[first])
    fits: list[Fit] = []
    with run.interruptible() as interrupted:
        for piece in pieces:
            own: list[Fit] = []
            for repeat in range(runs if piece in worth else 0):
                if interrupted():
                    break
                true = None if clean is None else clean[:, piece.rows, piece.columns]
                watch = Watch(piece, limits[piece], task.sigma, true)
                if report is not None:
                    watch.tell = report.begin(len(fits) + len(own))
                made = fit(
                    task, piece, watch, seed=seed + repeat, device=chosen, interrupted=interrupted, store=store,
                    name=f"piece {1 + pieces.index(piece)} of {len(pieces)}",
                )  # fmt: skip
                own.append(made)
            fits += own
            pictures = {"control": task.estimate(piece, None)}
            for name in ("fitted", "last", "oracle"):
                each = [getattr(one, name) for one in own if one.answered]
                pictures[name] = torch.stack(each).mean(dim=0) if each else pictures["control"]
            blind = task.blend and task.sigma is None and any(one.answered for one in own)
            pictures["blind"] = task.estimate(piece, pictures["fitted"]) if blind else pictures["fitted"]
            if probe is not None:
                pictures["control probed"] = task.estimate(piece.probed(CONTROL_PROBE), None)
                each = [one.probed for one in own if one.answered and one.probed is not None]
                pictures["fitted probed"] = torch.stack(each).mean(dim=0) if each else pictures["control probed"]
            for name, canvas in canvases.items():
                canvas.add(piece, pictures[name])
        stopped = interrupted()
    whole_ones = {name: canvas.picture() for name, canvas in canvases.items()}
    probed = None if probe is None else (whole_ones["fitted probed"], whole_ones["control probed"])
    fitted, control, blind_one = (whole_ones[name] for name in ("fitted", "control", "blind"))
    answer, weight = blended(task, whole, fitted, control, blind_one, probed)
    if known is not None and task.exact:
        whole_ones = {name: torch.where(known, measurement, picture) for name, picture in whole_ones.items()}
    rules = {one.reason for one in fits if one.answered}
    known_rules = ("held_out", "sure", "steps")
    rule = "interrupted" if stopped else next((one for one in known_rules if one in rules), "classical")
    count, useful = max(1, len(fits)), [one.stop_step for one in fits if one.answered]
    return Restored(
        image=Image(answer), task=task.name,
        status={"interrupted": "cancelled", "held_out": "stopped", "sure": "stopped"}.get(rule, "done"), stop_rule=rule,
        stop_step=round(sum(useful) / max(1, len(useful))),
        steps=round(sum(one.steps for one in fits) / count), seconds=time.monotonic() - began,
        degraded=degraded, fitted=whole_ones["fitted"], control=whole_ones["control"], weight=weight,
        curves=tuple(one.curve for one in fits), last=whole_ones.get("last"), oracle=whole_ones.get("oracle"),
        notes=_notes(pieces, fits),
    )  # fmt: skip


def _held_out(task: Task, measurement: Tensor, known: Tensor | None, seed: int) -> tuple[Tensor | None, Tensor | None]:
    """Bool (1, h, w), or by channels as what is known: some whole pixels, as far as they were measured, and those of
    them that are scored, None for all. They are drawn at once, so that all pieces agree."""
    if task.held_out == 0:
        return None, None
    height, width = measurement.shape[1:]
    seen = torch.ones(1, height, width, dtype=torch.bool) if known is None else known.any(dim=0, keepdim=True)
    generator = stream(seed, "held-out")
    if task.squares and min(height, width) >= _SMALLEST:  # there is no fit of a smaller picture that could use them
        return held_out.squares(seen, task.held_out, generator)
    places = seen.flatten().nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator)
    chosen = torch.zeros(1, height, width, dtype=torch.bool)
    chosen.view(-1)[places[order[: max(1, round(task.held_out * len(places)))]]] = True
    return chosen if known is None else chosen & known, None


def _signs(measurement: Tensor, seed: int) -> Tensor:
    """Random signs, 1 or -1, one for each value that was measured."""
    return torch.randint(2, measurement.shape, generator=stream(seed, "probe")) * 2.0 - 1.0


def _complete(piece: Piece) -> bool:
    """Whether it is a piece of a picture with holes, and has none."""
    return piece.known is not None and bool(piece.known.all())


def _enough(piece: Piece) -> bool:
    """Whether there is enough of a piece for a network to be fitted."""
    seen = piece.measurement[0].numel() if piece.known is None else int(piece.known.any(dim=0).sum())
    scored = piece.view.held_out
    held = scored is None or bool(scored.any())
    return min(piece.shape[1:]) >= _SMALLEST and seen >= _FEWEST and held


@dataclass(eq=False)
class _Report:
    """Turns what the watches see into `Progress`, fit after fit."""

    on_progress: Callable[[Progress], None]
    began: float
    fits: int
    canvas: Canvas
    degraded: Tensor
    done: int = 0
    pace: float | None = None  # seconds of a step
    first: tuple[float, int] | None = None  # when the fit's first sign of life came, and at which step

    def before(self, pace: float, limit: int) -> None:
        """What is known before the first fit begins."""
        self.pace = pace
        self._tell(0, limit, None, None, lambda: self.degraded)

    def begin(self, done: int) -> Callable[[Watch, int], None]:
        """For the watch of the next fit, after so many."""
        self.done, self.first = done, None
        return self.look

    def look(self, watch: Watch, step: int) -> None:
        now = time.monotonic()
        since, at = self.first = self.first or (now, step)
        if step - at >= _PACED:
            self.pace = (now - since) / (step - at)
        errors = [error for error in watch.errors if error > 0]  # neither unknown, nor a risk estimated below 0
        score = metrics.psnr_of_mse(errors[-1]) if errors else None
        best = metrics.psnr_of_mse(min(errors)) if errors else None
        self._tell(step, watch.limit, score, best, partial(self._picture, watch))

    def _tell(
        self, step: int, limit: int, score: float | None, best: float | None, picture: Callable[[], Tensor]
    ) -> None:
        ahead = None if self.pace is None else self.pace * ((self.fits - self.done) * limit - step)
        self.on_progress(
            Progress(
                fraction=(self.done + step / limit) / self.fits, fit=self.done + 1, fits=self.fits, step=step,
                steps=limit, score=score, best=best, seconds=time.monotonic() - self.began, ahead=ahead,
                picture=picture,
            )
        )  # fmt: skip

    def _picture(self, watch: Watch) -> Tensor:
        base = self.degraded
        if watch.latest is not None:
            base = base.clone()
            base[:, watch.piece.rows, watch.piece.columns] = watch.latest
        return self.canvas.picture(base)


def _notes(pieces: Sequence[Piece], fits: Sequence[Fit]) -> tuple[str, ...]:
    notes = []
    small = sum(not _enough(piece) and not _complete(piece) for piece in pieces)
    if small:
        what = "the picture is" if len(pieces) == 1 else f"{small} of {len(pieces)} pieces are"
        notes.append(
            f"{what} too small, or too little of it is known, for a network to be fitted "
            f"(from {_SMALLEST}×{_SMALLEST} pixels): the classical estimate stands in"
        )
    for one in fits:
        if not one.answered:
            reason = f"{one.status.value} ({one.reason})"
            notes.append(f"a fit was {reason}: the classical estimate stands in for it")
    return tuple(notes)
