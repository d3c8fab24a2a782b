"""A whole picture restored: cut into pieces, each fitted and estimated, put together, and blended.

A fit hardly gains from a second thread. So where there are several, on a CPU, they run side by side, a thread each:
compiled ones with the numbers that one after another has, torch's to rounding.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from pixfit import classical, held_out, kernels, metrics, run
from pixfit.canonical import is_whole
from pixfit.images import Image
from pixfit.pieces import Canvas, Piece, cut
from pixfit.problem import stream
from pixfit.restore.fits import Fit, Watch, fit, pace
from pixfit.restore.restored import Progress, Restored, true_colours
from pixfit.spec import Precision
from pixfit.store import Store
from pixfit.tasks import CONTROL_PROBE, Task, blended

__all__ = ["restored"]

_R = TypeVar("_R")

_FEWEST = 25  # measured pixels in a piece, below which a fit tells nothing
_SMALLEST = 16  # pixels a side, below which there is too little to fit
_WHOLE = 256  # pixels a side up to which a picture is fitted in one piece
_PIECE = 192  # pixels a side of the pieces of larger ones
_OVERLAP = 32  # pixels that neighbouring pieces share
_PACED = 10  # steps of a fit after which its pace is known
_LANES = 16  # fits side by side at most: each takes some hundred megabytes


def restored(
    task: Task,
    measurement: Tensor,
    known: Tensor | None = None,
    *,
    runs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
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
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; it may be auto, float32 or bfloat16")
    began, chosen = time.monotonic(), run.choose_device(device)
    if precision == "auto":
        precision = "bfloat16" if chosen.type == "cpu" and kernels.fast_maps() else "float32"
    task = replace(task, precision=cast(Precision, precision))
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
    orders = [(piece, repeat) for piece in pieces if piece in worth for repeat in range(runs)]
    lanes = min(len(orders), torch.get_num_threads(), _LANES) if chosen.type == "cpu" else 1
    report = None
    if on_progress is not None:
        steps_of = [limits[piece] for piece, _ in orders]
        report = _Report(on_progress, began, lanes, steps_of, canvases["fitted"], degraded)
        if len(worth) > 1:
            with kernels.Crew(1 if lanes > 1 else 0):
                report.before(pace(task, orders[0][0], chosen))
    fits: list[Fit] = []
    with run.interruptible() as interrupted, _side_by_side(lanes) as (begin, failed):

        def made(number: int) -> Fit | None:
            """The fit of that number; None where it comes too late to begin."""
            if interrupted() or failed():
                return None
            piece, repeat = orders[number]
            true = None if clean is None else clean[:, piece.rows, piece.columns]
            watch = Watch(piece, limits[piece], task.sigma, true)
            if report is not None:
                watch.tell = partial(report.look, number)
            done = fit(
                task, piece, watch, seed=seed + repeat, device=chosen, interrupted=lambda: interrupted() or failed(),
                store=store, name=f"piece {1 + pieces.index(piece)} of {len(pieces)}",
            )  # fmt: skip
            if report is not None:
                report.finish(number)
            return done

        coming = {order: begin(partial(made, number)) for number, order in enumerate(orders)}
        for piece in pieces:
            answers = [coming[piece, repeat]() for repeat in range(runs if piece in worth else 0)]
            if failed():
                continue  # the error comes with a later fit
            own = [one for one in answers if one is not None]
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
        precision=task.precision,
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


@contextlib.contextmanager
def _side_by_side(lanes: int) -> Iterator[tuple[Callable[[Callable[[], _R]], Callable[[], _R]], Callable[[], bool]]]:
    """A way to begin work that gives a way to its result, and whether what was begun is no longer wanted.

    One lane is the thread that asks for the result, with all of torch's own; of several each keeps to one. An error
    ends the others as soon as they look.
    """
    if lanes <= 1:
        yield lambda work: work, lambda: False
        return
    over, before = threading.Event(), torch.get_num_threads()

    def watched(work: Callable[[], _R]) -> _R:
        try:
            return work()
        except BaseException:
            over.set()
            raise

    try:
        with ThreadPoolExecutor(lanes, "pixfit", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield lambda work: pool.submit(watched, work).result, over.is_set
            except BaseException:
                over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)  # a thread that is new to torch takes what was set last, by whatever thread


@dataclass(eq=False)
class _Report:
    """Turns what the watches see into `Progress`, one call at a time.

    Args:
        lanes: fits that run side by side.
        limits: steps at most, of each fit.
    """

    on_progress: Callable[[Progress], None]
    began: float
    lanes: int
    limits: Sequence[int]
    canvas: Canvas
    degraded: Tensor
    pace: float | None = None  # seconds of a step
    lock: threading.RLock = field(default_factory=threading.RLock)
    made: dict[int, int] = field(default_factory=dict)  # steps of fits that have begun; a finished one has its limit
    first: dict[int, tuple[float, int]] = field(default_factory=dict)  # when a sign of life came, and at which step
    running: dict[int, Watch] = field(default_factory=dict)

    def before(self, pace: float) -> None:
        """What is known before the first fit begins."""
        self.pace = pace
        self._tell(0, 0, None, None, lambda: self.degraded)

    def finish(self, number: int) -> None:
        """That fit is over, whether or not it made all of its steps."""
        with self.lock:
            self.made[number] = self.limits[number]

    def look(self, number: int, watch: Watch, step: int) -> None:
        """For the watch of that fit."""
        with self.lock:
            now = time.monotonic()
            since, at = self.first.setdefault(number, (now, step))
            if step - at >= _PACED:
                self.pace = (now - since) / (step - at)
            self.made[number], self.running[number] = step, watch
            errors = [error for error in watch.errors if error > 0]  # neither unknown, nor a risk estimated below 0
            score = metrics.psnr_of_mse(errors[-1]) if errors else None
            best = metrics.psnr_of_mse(min(errors)) if errors else None
            latest = [(one.piece, one.latest) for one in self.running.values() if one.latest is not None]
            self._tell(number, step, score, best, partial(self._picture, latest))

    def _tell(
        self, number: int, step: int, score: float | None, best: float | None, picture: Callable[[], Tensor]
    ) -> None:
        done = [self.made.get(one, 0) / limit for one, limit in enumerate(self.limits)]
        self.on_progress(
            Progress(
                fraction=sum(done) / len(done), fit=number + 1, fits=len(done), step=step, steps=self.limits[number],
                score=score, best=best, seconds=time.monotonic() - self.began,
                ahead=None if self.pace is None else self.pace * self._longest(), picture=picture,
            )
        )  # fmt: skip

    def _longest(self) -> int:
        """Steps of the lane that has most ahead, each fit going to the one that has least."""
        lanes = [0] * self.lanes
        for number, limit in enumerate(self.limits):
            lanes[lanes.index(min(lanes))] += limit - self.made.get(number, 0)
        return max(lanes)

    def _picture(self, latest: Sequence[tuple[Piece, Tensor]]) -> Tensor:
        base = self.degraded.clone()
        for piece, picture in latest:  # those that are on the canvas are hidden by it
            base[:, piece.rows, piece.columns] = picture
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
