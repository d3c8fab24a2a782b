"""From a list of specs to a list of results: skip what is finished, parents first, checkpoint, store.

This is the module that knows everything: it resolves starts, builds the watcher that knows the truth, and calls the
engine, which sees neither.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import overload

import torch
from torch import Tensor

import pixfit
from pixfit import engine, kernels, metrics, render, starts
from pixfit.job import Job, Moment, Outcome, State
from pixfit.problem import Problem, Sealed, stream
from pixfit.result import Result, Status
from pixfit.spec import Record, Spec
from pixfit.store import Store, StoreError

__all__ = ["Progress", "choose_device", "first_weights", "fit", "interruptible", "result_of", "side_by_side"]

_SLOW_TO_SCORE = 2**20  # pixels above which rendering and scoring take long enough to be killed in
_SAVE_EVERY = 60.0  # seconds between two checkpoints: what a killed program loses at most


@dataclass(frozen=True)
class Progress:
    """How far a fit is: what ``on_progress`` gets, about ten times a second.

    Args:
        spec: of the fit; the first one of a stack.
        step, fraction: updates made, and the part of the budget that is spent, in [0, 1].
        loss: of the last step.
        psnr: in dB against the truth at the last point of the curve, on a sample of pixels; None before.
        seconds: of wall time since the fit began in this program.
        stage: ``fitting``, or ``scoring`` while the finished network is rendered and compared with the truth; then
            ``fraction`` is of the rendering.
        fitted, held_out: as ``psnr``, of the sampled pixels that are in the loss, and of those that are held out; None
            where no pixel is.
    """

    spec: Spec
    step: int
    fraction: float
    loss: float
    psnr: float | None
    seconds: float
    stage: str = "fitting"
    fitted: float | None = None
    held_out: float | None = None


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device to compute on: the one named, or a GPU where there is one, or the CPU.

    Raises:
        ValueError: a device that this machine does not have.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}); give cpu, or cuda on a machine with a GPU"
        ) from None
    return chosen


@overload
def fit(
    specs: Spec,
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    record: Record | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    again: bool = False,
    names: Mapping[str, str] | None = None,
    recipe: str = "",
) -> Result: ...
@overload
def fit(
    specs: Sequence[Spec],
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    record: Record | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    again: bool = False,
    names: Mapping[str, str] | None = None,
    recipe: str = "",
) -> list[Result]: ...
def fit(
    specs: Spec | Sequence[Spec],
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    record: Record | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    again: bool = False,
    names: Mapping[str, str] | None = None,
    recipe: str = "",
) -> Result | list[Result]:
    """Fits one spec, or a list of them, and returns one result for each in order.

    Parents named by starts are fitted first, each once. With a store, finished fits are taken from it, others are
    checkpointed about once a minute, and a fit that was killed goes on from there. Ctrl-C ends the running fits with
    the status ``cancelled`` and keeps their checkpoints.

    Args:
        specs: what to fit.
        store: where finished fits are kept; None keeps nothing.
        device: ``"cpu"``, ``"cuda"``, …; by default a GPU where there is one.
        record: what to write down on the way.
        on_progress: is told how far it is.
        again: fit anew what is finished, too.
        names, recipe: labels for the store's list, by spec id.

    Raises:
        ValueError: a single spec that cannot be fitted. In a list a failure is a result with the status ``failed``.
        KeyboardInterrupt: Ctrl-C while a finished fit was rendered and scored.
    """
    wanted = [specs] if isinstance(specs, Spec) else list(specs)
    runner = _Runner(store, choose_device(device), record or Record(), on_progress, dict(names or {}), recipe)
    with interruptible() as interrupted:
        results = runner.run(wanted, again=again, interrupted=interrupted, strict=isinstance(specs, Spec))
        if interrupted() and all(result.status is not Status.CANCELLED for result in results.values()):
            raise KeyboardInterrupt  # it came while the last fit was scored: all is filed, but the caller must know
    return results[specs.id] if isinstance(specs, Spec) else [results[spec.id] for spec in wanted]


def side_by_side(spec: Spec, device: torch.device) -> int:
    """How many specs of this kind `fit` makes at once: more than one where a compiled kernel gives each a thread."""
    if device.type == "cpu" and not engine.one_thread_each(Job(spec, spec.problem.view, {})):
        return 1
    return engine.stack_limit(Job(spec, spec.problem.view, {}), device)


_Group = list[tuple[Spec, Job]]
_Saved = tuple[State, Mapping[str, list[str]]]


@dataclass
class _Runner:
    store: Store | None
    device: torch.device
    record: Record
    on_progress: Callable[[Progress], None] | None
    names: dict[str, str]
    recipe: str

    def run(
        self, wanted: Sequence[Spec], *, again: bool, interrupted: Callable[[], bool], strict: bool
    ) -> dict[str, Result]:
        results: dict[str, Result] = {}
        order, keep = _parents_first(wanted, self.record.keep)
        for spec in order:
            found = None if again or self.store is None else self.store.get(spec)
            if found is not None and found.status.finished and _keeps(found, keep[spec.id]):
                results[spec.id] = _with_estimate(found, self.device, self._scoring(spec, interrupted))
        waiting = [spec for spec in order if spec.id not in results]
        while waiting:
            if interrupted():
                reason, device = "interrupted before it began", str(self.device)
                results |= {spec.id: Result(spec, Status.CANCELLED, reason, {}, device=device) for spec in waiting}
                return results
            ready = [spec for spec in waiting if _parent(spec) is None or _parent_id(spec) in results]
            for group in self._groups(ready, results, keep, strict=strict):
                for part, state in self._at_one_step(group, results, again=again, strict=strict):
                    self._fit_group(part, state, results, interrupted, strict=strict)
            waiting = [spec for spec in waiting if spec.id not in results]
        return results

    def _groups(
        self, ready: Sequence[Spec], results: dict[str, Result], keep: Mapping[str, tuple[int, ...]], *, strict: bool
    ) -> list[list[tuple[Spec, Job]]]:
        """Stacks of fits whose shapes allow it: on a GPU, and on a CPU where a compiled kernel gives each a thread."""
        groups: dict[str, list[tuple[Spec, Job]]] = {}
        for spec in ready:
            try:
                job = _job(spec, results, keep[spec.id])
            except Exception as error:
                if strict:
                    raise
                self._file(_failure(spec, error, self.device), results)
                continue
            together = self.device.type != "cpu" or engine.one_thread_each(job)
            groups.setdefault(engine.stack_key(job) if together else spec.id, []).append((spec, job))
        stacks = []
        for group in groups.values():
            most = engine.stack_limit(group[0][1], self.device)
            stacks += [group[i : i + most] for i in range(0, len(group), most)]
        return stacks

    def _at_one_step(
        self, group: _Group, results: dict[str, Result], *, again: bool, strict: bool
    ) -> list[tuple[_Group, list[_Saved]]]:
        """The group in parts that can go on together: fits that an earlier run left at one step, or that are new."""
        parts: dict[object, tuple[_Group, list[_Saved]]] = {}
        for spec, job in group:
            try:
                saved = None if again else self._resumed(spec, job.keep)
            except StoreError as error:
                if strict:
                    raise
                self._file(_failure(spec, error, self.device), results)
                continue
            where = None
            if saved is not None:
                state, watched = saved
                where = (state.step, state.scalars["filled"], str(watched["steps"]), *sorted(state.tensors))
            members, states = parts.setdefault(where, ([], []))
            members.append((spec, job))
            if saved is not None:
                states.append(saved)
        return list(parts.values())

    def _fit_group(
        self,
        group: _Group,
        saved: list[_Saved],
        results: dict[str, Result],
        interrupted: Callable[[], bool],
        *,
        strict: bool,
    ) -> None:
        specs, jobs = [spec for spec, _ in group], [job for _, job in group]
        if interrupted():
            return
        pixels = specs[0].problem.shape[1] * specs[0].problem.shape[2]
        watch = _Watch(specs, self.store, self.on_progress, self.record.points, self.names)
        try:
            outcomes = None
            resumed = State.join([state for state, _ in saved]) if saved else None
            if saved:
                watch.restore([scalars for _, scalars in saved])
            states = engine.fit(
                jobs, device=self.device, watch=watch, every=self.record.every, state=resumed,
                save_every=_SAVE_EVERY, interrupt=interrupted,
            )  # fmt: skip
            for state in states:
                outcomes = state.outcomes
                # The last state is kept only where it may be needed: to go on, or because scoring takes its time.
                needed = outcomes is None or any(o.verdict == "cancelled" for o in outcomes) or pixels > _SLOW_TO_SCORE
                if self.store is not None and needed:
                    for index, (spec, one) in enumerate(zip(specs, state.split(), strict=True)):
                        self._checkpoint(spec.id, one, {"watch": watch.scalars(index)})
            assert outcomes is not None
            for index, (spec, outcome) in enumerate(zip(specs, outcomes, strict=True)):
                scoring = self._scoring(spec, interrupted)
                self._file(result_of(spec, outcome, watch.curve(index, outcome.steps), self.device, scoring), results)
        except Exception as error:
            if self.store is not None:
                self.store.land(*(spec.id for spec in specs))
            if strict:
                raise
            for spec in specs:
                if spec.id not in results:
                    self._file(_failure(spec, error, self.device), results)

    def _checkpoint(self, key: str, state: State, more: Mapping[str, object]) -> None:
        """Saves a state; a disk that is full must not end a healthy fit."""
        assert self.store is not None
        try:
            self.store.save_checkpoint(key, state.tensors, {**state.scalars, **more})
        except StoreError as error:
            warnings.warn(f"no checkpoint could be saved, the fit goes on: {error}", stacklevel=2)

    def _scoring(self, spec: Spec, interrupted: Callable[[], bool]) -> Callable[[float], None]:
        """Tells how far the rendering of a finished fit is, and lets Ctrl-C end it."""
        began = time.monotonic()

        def tell(fraction: float) -> None:
            if interrupted():
                raise KeyboardInterrupt
            if self.on_progress is not None:
                seconds = time.monotonic() - began
                self.on_progress(Progress(spec, 0, fraction, math.nan, None, seconds, stage="scoring"))

        return tell

    def _resumed(self, spec: Spec, keep: tuple[int, ...]) -> _Saved | None:
        """What an interrupted run left of the fit; a damaged file is an error, never silently begun anew."""
        if self.store is None or (found := self.store.load_checkpoint(spec.id)) is None:
            return None
        tensors, scalars = found
        step = int(scalars["step"])
        if any(wanted < step and f"kept/{wanted}" not in tensors for wanted in keep):
            return None  # weights of a step are wanted that the earlier run passed without keeping them
        if (done := self.store.get(spec)) is not None and done.status.finished:
            return None  # the checkpoint is of a run that has ended
        watched = scalars.pop("watch")
        return State(step, tensors, scalars), watched

    def _file(self, result: Result, results: dict[str, Result]) -> None:
        results[result.id] = result
        if self.store is not None:
            self.store.put(result, name=self.names.get(result.id, ""), recipe=self.recipe)


class _Watch:
    """Knows the truth, draws the curve, passes progress on. The engine reads nothing that it returns."""

    def __init__(
        self,
        specs: Sequence[Spec],
        store: Store | None,
        on_progress: Callable[[Progress], None] | None,
        points: int,
        names: Mapping[str, str],
    ) -> None:
        self.specs, self._store, self._on_progress, self._names = specs, store, on_progress, names
        problem = specs[0].problem
        pixels = problem.shape[1] * problem.shape[2]
        order = torch.randperm(pixels, generator=stream(0, "curve")) if pixels > points else torch.arange(pixels)
        self._index = order[:points].sort().values
        truths = [spec.problem.image.data for spec in specs if isinstance(spec.problem, Problem)]
        self._truth = torch.stack([truth.flatten(1).T[self._index] for truth in truths]).double()
        self._steps: list[int] = []
        # Which errors count, and a row of one level a fit at each look, by the curve's name.
        self._counted: dict[str, Tensor | float] = {"psnr": 1.0}
        if (gaps := self._gaps([spec.problem for spec in specs])) is not None:
            self._counted["psnr_filled"] = gaps
        self._curves: dict[str, list[list[float]]] = {name: [] for name in self._counted}
        # Which of the sampled pixels of the first fit are held out, and its levels on the others and on these.
        held_out = problem.view.held_out if isinstance(problem, Problem) and problem.operator.pointwise else None
        self._held_out = None if held_out is None else held_out.any(dim=0).flatten()[self._index]
        self._apart: tuple[float | None, float | None] = (None, None)
        self._began = time.monotonic()
        self._noted = -math.inf

    def look(self, moment: Moment) -> None:
        if self._steps and moment.step <= self._steps[-1]:
            return  # a resumed fit shows its first step again
        predicted = moment.predict(self._index).double().cpu().clamp(0, 1)
        errors = (predicted - self._truth).square()
        self._steps.append(moment.step)
        if self._held_out is not None and 0 < int(self._held_out.sum()) < len(self._held_out):
            fitted, held_out = (float(errors[0, mask].mean()) for mask in (~self._held_out, self._held_out))
            self._apart = (_level(fitted), _level(held_out))
        for name, rows in self._curves.items():
            means = (errors * self._counted[name]).mean(dim=(1, 2)).tolist()
            rows.append([_level(mean) for mean in means])

    def _gaps(self, problems: Sequence[Problem | Sealed]) -> Tensor | None:
        """(F, n, C), 1 at values that were not measured; None unless the others were measured exactly."""
        found = []
        for problem in problems:
            known = problem.operator.known(problem.shape) if isinstance(problem, Problem) else None
            if known is None or not isinstance(problem, Problem) or problem.noise is not None:
                return None
            found.append(~known.expand(problem.shape).flatten(1).T[self._index])
        return torch.stack(found).double()

    def tick(self, step: int, fraction: float, losses: Sequence[float]) -> None:
        levels = self._curves["psnr"]
        psnr = levels[-1][0] if levels else None
        seconds = time.monotonic() - self._began
        if self._store is not None and seconds - self._noted >= 1.0:
            self._noted = seconds
            for index, spec in enumerate(self.specs):
                level = levels[-1][index] if levels else None
                loss = losses[index] if math.isfinite(losses[index]) else None
                self._store.note_flight(spec.id, self._names.get(spec.id, ""), step, fraction, loss, level)
        if self._on_progress is not None:
            now = Progress(self.specs[0], step, fraction, losses[0], psnr, seconds)
            self._on_progress(replace(now, fitted=self._apart[0], held_out=self._apart[1]))

    def curve(self, index: int, last: int) -> dict[str, Tensor]:
        """One fit's curve up to its own last step: its mates in a stack may have gone on."""
        count = sum(step <= last for step in self._steps)
        levels = {name: [row[index] for row in rows[:count]] for name, rows in self._curves.items()}
        return {
            "psnr_step": torch.tensor(self._steps[:count]),
            **{name: torch.tensor(values, dtype=torch.float32) for name, values in levels.items()},
        }

    def scalars(self, index: int) -> dict[str, list[str]]:
        """One fit's curve, for its checkpoint: as texts, since JSON knows no infinity."""
        levels = {name: [str(row[index]) for row in rows] for name, rows in self._curves.items()}
        return {"steps": list(map(str, self._steps)), **levels}

    def restore(self, curves: Sequence[Mapping[str, list[str]]]) -> None:
        """Takes the curves of all fits, which share their steps."""
        self._steps = [int(step) for step in curves[0]["steps"]]
        unknown = ["nan"] * len(self._steps)  # of a curve that an older checkpoint does not have
        for name in self._curves:
            columns = [curve.get(name, unknown) for curve in curves]
            self._curves[name] = [[float(level) for level in row] for row in zip(*columns, strict=True)]


def _level(error: float) -> float:
    """PSNR in dB; NaN of an error that is not finite."""
    return metrics.psnr_of_mse(error) if math.isfinite(error) else math.nan


def _parents_first(wanted: Sequence[Spec], kept: Sequence[int]) -> tuple[list[Spec], dict[str, tuple[int, ...]]]:
    """Every spec to fit, parents before children, each once; and the steps that each must keep.

    Those are ``kept`` for the specs that were asked for, and the steps that children start from for all.
    """
    order: dict[str, Spec] = {}
    keep: dict[str, set[int]] = {spec.id: set(kept) for spec in wanted}

    def add(spec: Spec) -> None:
        chain = [spec]
        while (parent := _parent(chain[-1])) is not None:
            chain.append(parent)
        for child in chain:
            keep.setdefault(child.id, set())
            if (parent := _parent(child)) is not None and child.start.step is not None:
                keep.setdefault(parent.id, set()).add(child.start.step)
        for item in reversed(chain):
            order.setdefault(item.id, item)

    for spec in wanted:
        add(spec)
    return list(order.values()), {identity: tuple(sorted(steps)) for identity, steps in keep.items()}


def _keeps(result: Result, steps: tuple[int, ...]) -> bool:
    """Whether the result has the weights of these steps, as far as it ever reached them."""
    return all(step in result.kept or step > result.steps for step in steps)


def _parent(spec: Spec) -> Spec | None:
    return spec.start.weights if isinstance(spec.start.weights, Spec) else None


def _parent_id(spec: Spec) -> str:
    parent = _parent(spec)
    assert parent is not None
    return parent.id


def first_weights(spec: Spec, results: Mapping[str, Result] | None = None) -> dict[str, Tensor]:
    """The tensors that a fit begins with, as its start says.

    Args:
        spec: the fit, with its picture.
        results: finished fits by id, where the start names one of them.

    Raises:
        ValueError: a start that is not to be had, or is another network's.
    """
    channels, *size = spec.problem.shape
    model = spec.model.sized(*size)
    with kernels.Crew(1):  # many small operations, in which threads of torch's would wait for one another
        fresh = dict(model.build(model.in_features, channels, generator=stream(spec.seed, "weights")).state_dict())
        source = _source(spec, results or {}, fresh)
    return fresh if source is None else starts.merge(fresh, source, layers=spec.start.layers)


def _job(spec: Spec, results: Mapping[str, Result], keep: tuple[int, ...]) -> Job:
    if not isinstance(spec.problem, Problem):
        raise ValueError("this spec was read from a file, which never holds the picture; give it a problem")
    weights = first_weights(spec, results)
    bare = replace(spec, problem=Sealed(dict(spec.plain["problem"])), start=starts.Start())
    return Job(bare, spec.problem.view, weights, spec.start.mask, keep)


def _source(spec: Spec, results: Mapping[str, Result], fresh: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """The tensors that the start names; None for a random start, which is ``fresh``."""
    named = spec.start.weights
    if isinstance(named, starts.FromPicture):
        view = spec.problem.view
        if not view.operator.pointwise:
            raise ValueError(
                f"its start is the picture, which {type(view.operator).__name__} does not measure pixel by pixel; "
                "leave the start at random"
            )
        return spec.model.from_picture(starts.filled(view.measurement, view.use), fresh)
    if isinstance(named, Spec):
        parent = results[named.id]
        if not parent.weights:
            raise ValueError(f"its start {named.id} has no weights: it is {parent.status.value} ({parent.reason})")
        if spec.start.step is None:
            return named.model.heir(parent.weights)
        if spec.start.step not in parent.kept:
            raise ValueError(
                f"its start {named.id} ended after {parent.steps} steps and never reached step {spec.start.step}"
            )
        return named.model.heir(parent.kept[spec.start.step])
    return None if named is None else dict(named.tensors)


def result_of(
    spec: Spec,
    outcome: Outcome,
    curve: Mapping[str, Tensor],
    device: torch.device,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Result:
    """The result of a fit that the engine has ended, with its picture, scored where the truth is at hand.

    Args:
        curve: what was watched, by name; see `Result.curves`.
        progress: is told how far the rendering is.
    """
    began = time.monotonic()
    result = Result(
        spec=spec, status=Status(outcome.verdict), reason=outcome.reason, weights=outcome.weights, steps=outcome.steps,
        epochs=outcome.epochs, seconds=outcome.seconds, process_seconds=outcome.process_seconds,
        curves={"loss": outcome.losses, **outcome.looks, **curve}, kept=outcome.kept, device=str(device),
        kernel=outcome.kernel, threads=torch.get_num_threads(), versions=_versions(), estimate=outcome.picture,
        spread=outcome.spread,
    )  # fmt: skip
    if result.status is not Status.CANCELLED:  # who interrupts a fit does not want to wait for its scores
        result = _with_estimate(result, device, progress)
    scores: dict[str, float | None] = {"psnr_measured": outcome.psnr_measured}
    if result.estimate is not None and isinstance(spec.problem, Problem):
        truth = spec.problem.image.data
        scores |= {
            "psnr": metrics.psnr(result.estimate, truth),
            "psnr_8bit": metrics.psnr_8bit(result.estimate, truth),
            "ssim": metrics.ssim(result.estimate, truth),
        }
    return replace(result, metrics=scores, evaluation_seconds=outcome.evaluation_seconds + time.monotonic() - began)


def _with_estimate(result: Result, device: torch.device, progress: Callable[[float], None]) -> Result:
    if not result.weights or not all(bool(value.isfinite().all()) for value in result.weights.values()):
        return result
    if result.estimate is not None:  # no weights show it
        return result
    return replace(result, estimate=render.render(result, device=device, progress=progress))


def _failure(spec: Spec, error: Exception, device: torch.device) -> Result:
    return Result(spec, Status.FAILED, f"{type(error).__name__}: {error}", {}, device=str(device), versions=_versions())


def _versions() -> dict[str, str]:
    return {
        "pixfit": pixfit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Lets the first Ctrl-C (or a polite kill) end the fits in good order; the second ends the program.

    Signals come to the main thread only; elsewhere nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def press(number: int, stack: FrameType | None) -> None:
        pressed.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, press)
    try:
        yield pressed.is_set
    finally:
        restore()
