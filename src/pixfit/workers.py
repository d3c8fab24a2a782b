"""Warm worker processes: lists of specs fitted side by side, with one thread a fit and one writer of the index.

A worker writes the files of its fits and of their checkpoints; the parent alone writes the index, from the rows that
workers send. So what is in the store never depends on the number of workers, and a worker that dies loses at most the
minute since its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Self

import numpy as np
import torch

from pixfit import canonical, run
from pixfit.problem import Problem
from pixfit.result import Result, Status
from pixfit.spec import Record, Spec
from pixfit.starts import Start
from pixfit.stopping import Budget, Never
from pixfit.store import Row, Store

__all__ = ["Forecast", "Pool", "Tally", "estimate"]

_ATTEMPTS = 3  # times that a task is given to a worker before its fits count as failed
_POLITE = 30.0  # seconds that a worker has to save its checkpoint when asked to end
_SIZES = 6  # kinds of fits that are timed for an estimate


@dataclass(frozen=True)
class Tally:
    """How far a call of `Pool.fit` is.

    Args:
        fits, done, failed: asked for, ended (failed ones too), and failed.
        current: of the fits under way, by id, the fraction in [0, 1].
        fraction: of all the work, in [0, 1], as `Forecast` sees it by now: it may go back where a fit of a new kind
            turns out to be slow.
    """

    fits: int
    done: int
    failed: int
    current: dict[str, float]
    fraction: float


class Forecast:
    """What fits take: at first a guess by their size, then what ended ones of their kind took.

    Kinds differ in model and encoding, and in whether a compiled kernel may serve them; fits with a budget in seconds
    are one more.

    Args:
        specs: all the fits.
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        self._size = {spec.id: _size_of(spec) for spec in specs}
        self._kind = {spec.id: _kind_of(spec) for spec in specs}
        self._seen: dict[str, tuple[float, float]] = {}  # by kind, seconds and sizes of ended fits

    def learn(self, identity: str, seconds: float) -> None:
        """Takes the processor seconds of a fit that has ended."""
        before = self._seen.get(self._kind[identity], (0.0, 0.0))
        self._seen[self._kind[identity]] = (before[0] + seconds, before[1] + self._size[identity])

    def fraction(self, ended: Collection[str], flights: Mapping[str, float]) -> float:
        """Of all the work, in [0, 1], what the ended fits and parts of those under way are."""
        rates = {kind: seconds / size for kind, (seconds, size) in self._seen.items()}
        usual = sum(rates.values()) / len(rates) if rates else 1.0
        work = {one: size * rates.get(self._kind[one], usual) for one, size in self._size.items()}
        spent = sum(work[one] for one in ended) + sum(work[one] * part for one, part in flights.items())
        total = sum(work.values())
        return spent / total if total else 0.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: list[Spec] | None = None
    left: dict[str, Spec] = field(default_factory=dict)  # of the task, what has not been filed


class Pool:
    """Worker processes that stay warm from call to call; a context manager.

    Args:
        workers: how many processes. On a CPU each has one thread; on a GPU they share the card.
        store: where results go, and where finished parents are taken from.
        device: ``cpu``, ``cuda``, …; by default a GPU where there is one.
        weights: whether to keep the weights of all fits; else of those that others start from, or that kept steps.
        record: what to write down on the way, fit by fit; by default a curve of about 40 points.

    Raises:
        ValueError: fewer than one worker, or a device that is not here.
    """

    def __init__(
        self,
        workers: int,
        store: Store,
        *,
        device: str | None = None,
        weights: bool = False,
        record: Callable[[Spec], Record] = lambda spec: Record(),
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; at least one process is needed")
        self.device, self.store = str(run.choose_device(device)), store
        self._settings = (str(store.folder), self.device, weights)
        self._record = record
        self._wanted = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fit(self, specs: Sequence[Spec], on_progress: Callable[[Tally], None] | None = None, recipe: str = "") -> Tally:
        """Fits what the store has not finished, parents first, and files every result as it comes.

        A fit whose worker dies goes on from its checkpoint in another one; after three deaths it is filed as failed.

        Args:
            specs: parents may be left out; those that the store has not finished are fitted, too.
            on_progress: is told how far it is, about ten times a second.
            recipe: label for the store's list.

        Raises:
            KeyboardInterrupt: Ctrl-C, or a polite kill, after the workers have saved where they are.
        """
        tasks = deque(self._tasks(specs))
        every = [spec for task in tasks for spec in task]
        forecast = Forecast(every)
        counts = {"fits": len(every), "done": 0, "failed": 0}
        ended: set[str] = set()
        flights: dict[str, float] = {}
        deaths: dict[str, int] = {}

        def file(row: Row) -> None:
            self.store.enter((*row[:3], recipe, *row[4:]))
            flights.pop(row[0], None)
            if Status(row[4]) is not Status.CANCELLED:
                ended.add(row[0])
                forecast.learn(row[0], json.loads(row[7]).get("process_seconds") or 0.0)
                counts["done"] += 1
                counts["failed"] += Status(row[4]) is Status.FAILED

        with self.store.held_open(), run.interruptible() as interrupted:
            while tasks or any(worker.task is not None for worker in self._workers):
                if interrupted():
                    self._end_politely(file)
                    raise KeyboardInterrupt
                self._employ(tasks)
                for worker in self._ready():
                    try:
                        kind, *content = worker.pipe.recv()
                    except (EOFError, OSError):
                        self._bury(worker, tasks, deaths, file)
                        continue
                    if kind == "row":
                        worker.left.pop(content[0][0], None)
                        file(content[0])
                    elif kind == "flight":
                        self.store.note_flight(*content)
                        flights[content[0]] = content[3]
                    else:
                        if kind == "error":
                            self._fail(worker, content[0], file)
                        worker.task = None
                if on_progress is not None:
                    on_progress(Tally(**counts, current=dict(flights), fraction=forecast.fraction(ended, flights)))
        return Tally(**counts, current={}, fraction=1.0)

    def close(self) -> None:
        """Ends the workers; those at work are killed, which loses what came since their checkpoints."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send_bytes(b"")
            if worker.task is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_POLITE)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    # ------------------------------------------------------------------------------------------------------- one task

    def _tasks(self, specs: Sequence[Spec]) -> list[list[Spec]]:
        """What is not finished, in lists that depend on nothing unfinished outside: families of fits with one
        unfinished ancestor; on a GPU the families of one model together, for it fits them as stacks."""
        family: dict[str, str] = {}
        tasks: dict[str, list[Spec]] = {}
        for spec in self.store.unfinished(specs):
            parent = spec.start.weights
            root = spec.id if self.device == "cpu" else canonical.text(spec.model)
            family[spec.id] = family.get(parent.id, root) if isinstance(parent, Spec) else root
            tasks.setdefault(family[spec.id], []).append(spec)
        return list(tasks.values())

    def _employ(self, tasks: deque[list[Spec]]) -> None:
        """Gives every idle worker a task; starts workers where there are too few."""
        while tasks:
            worker = next((worker for worker in self._workers if worker.task is None), None)
            if worker is None:
                if len(self._workers) >= self._wanted:
                    return
                worker = self._start()
            worker.task = tasks.popleft()
            worker.left = {spec.id: spec for spec in worker.task}
            with contextlib.suppress(OSError):  # it has died: the end of its pipe will tell
                worker.pipe.send_bytes(pickle.dumps([(spec, self._record(spec)) for spec in worker.task]))

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, *self._settings), daemon=True)
        with _one_thread_at_first(), _deaf_to_ctrl_c():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _ready(self, seconds: float = 0.1) -> list[_Worker]:
        """The workers that have something to say, or have died."""
        found = wait([worker.pipe for worker in self._workers], seconds)
        return [worker for worker in self._workers if worker.pipe in found]

    def _bury(
        self, worker: _Worker, tasks: deque[list[Spec]], deaths: dict[str, int], file: Callable[[Row], None]
    ) -> None:
        """A worker has died: its task goes to another one, or has failed."""
        self._workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        self.store.land(*worker.left)
        if not worker.left:
            return
        first = next(iter(worker.left))
        deaths[first] = deaths.get(first, 0) + 1
        if deaths[first] < _ATTEMPTS:
            tasks.appendleft(list(worker.left.values()))
            return
        reason = f"its worker process died {_ATTEMPTS} times, at last with exit code {worker.process.exitcode}"
        self._fail(worker, reason, file)

    def _fail(self, worker: _Worker, reason: str, file: Callable[[Row], None]) -> None:
        for spec in worker.left.values():
            file(self.store.write(Result(spec, Status.FAILED, reason, {}, device=self.device)))
        worker.left = {}

    def _end_politely(self, file: Callable[[Row], None]) -> None:
        """Lets the workers save where they are, and files what they still send."""
        deadline = time.monotonic() + _POLITE
        while time.monotonic() < deadline and any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if worker.task is not None:
                    worker.process.terminate()  # a fit takes it as Ctrl-C; a worker that is just reading its task, not
            for worker in self._ready():
                try:
                    kind, *content = worker.pipe.recv()
                except (EOFError, OSError):
                    self._workers.remove(worker)
                    worker.process.join()
                    worker.pipe.close()
                    self.store.land(*worker.left)
                    continue
                if kind == "row":
                    file(content[0])
                elif kind in ("idle", "error"):
                    worker.task = None
        self.close()


# ---------------------------------------------------------------------------------------------- in the worker process


class _Relay(Store):
    """The store as a worker has it: it reads and writes files, and leaves the index to the parent."""

    def __init__(self, folder: str, pipe: Connection, keep_all: bool) -> None:
        super().__init__(folder)
        self._pipe, self._keep_all = pipe, keep_all
        self.parents: set[str] = set()

    def get(self, fit: Spec | str) -> Result | None:
        """A result without weights is none to a worker: it is asked for parents, and for what was fitted before."""
        found = super().get(fit)
        return found if found is None or found.weights else None

    def put(self, result: Result, *, name: str = "", recipe: str = "") -> None:
        keep = self._keep_all or result.id in self.parents or bool(result.kept) or not result.status.finished
        self._pipe.send(("row", self.write(result, name=name, recipe=recipe, weights=keep)))

    def note_flight(
        self, identity: str, name: str, step: int, fraction: float, loss: float | None, psnr: float | None
    ) -> None:
        self._pipe.send(("flight", identity, name, step, fraction, loss, psnr))

    def land(self, *identities: str) -> None:
        """The parent does it when it files the row."""


def _work(pipe: Connection, folder: str, device: str, keep_all: bool) -> None:
    """A worker's life: tasks in, rows out, until an empty message or the end of the parent."""
    signal.signal(signal.SIGTERM, lambda number, stack: None)  # heard by a fit alone, which then ends in good order
    torch.set_num_threads(1)
    relay = _Relay(folder, pipe, keep_all)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while data := pipe.recv_bytes():
            task: list[tuple[Spec, Record]] = pickle.loads(data)
            relay.parents = {spec.start.weights.id for spec, _ in task if isinstance(spec.start.weights, Spec)}
            try:
                for record in dict.fromkeys(record for _, record in task):
                    alike = [spec for spec, one in task if one == record]
                    if any(r.status is Status.CANCELLED for r in run.fit(alike, relay, device=device, record=record)):
                        break
                pipe.send(("idle",))
            except KeyboardInterrupt:
                pipe.send(("idle",))
            except (ValueError, OSError, MemoryError) as error:
                pipe.send(("error", f"{type(error).__name__}: {error}"))


# ----------------------------------------------------------------------------------------------------------- estimates


def _size_of(spec: Spec) -> float:
    """The work of a fit, in some unit that is about the same for all fits of a kind."""
    limit = _limit(spec)
    if limit is None:
        return spec.budget.seconds or 1.0
    return max(1, limit) * _samples(spec) * spec.model.parameters_count(out_features=3)


def _kind_of(spec: Spec) -> str:
    if _limit(spec) is None:
        return "seconds"
    encoding = type(getattr(spec.model, "encoding", None)).__name__
    compiled = spec.model.plan(spec.model.in_features, spec.problem.shape[0]) is not None
    return f"{type(spec.model).__name__}/{encoding}/{compiled}"


def _limit(spec: Spec) -> int | None:
    """The steps at which the budget ends the fit; None where seconds alone do."""
    pixels, pictures = math.prod(spec.problem.shape[1:]), len(spec.model.sizes)
    return spec.budget.step_limit(spec.batches.steps_per_epoch(pixels, pictures))


def _samples(spec: Spec) -> int:
    """How many pixels a step sees."""
    return spec.batches.per_step(math.prod(spec.problem.shape[1:]), len(spec.model.sizes))


def estimate(
    specs: Sequence[Spec],
    *,
    device: str | None = None,
    seconds: float = 5.0,
    record: Callable[[Spec], Record] = lambda spec: Record(),
    progress: Callable[[float], None] = lambda fraction: None,
) -> float:
    """About how many seconds one process needs for all the specs, from short runs of some kinds of them.

    Kinds differ in model and pixels a step; up to six that have a plan for compiled kernels are timed and six that have
    none, spread over their sizes, and the others are interpolated by the number of parameters times pixels. Fits with a
    budget in seconds count as these.

    Args:
        seconds: that the runs take about; each makes a step at least, and shows its picture, which can take longer.
        record: as of `Pool`.
        progress: is told how much of this is done, in [0, 1].
    """
    kinds: dict[bool, dict[tuple[str, int], list[Spec]]] = {}
    total = 0.0
    for spec in specs:
        if spec.budget.seconds is not None:
            total += spec.budget.seconds
        elif isinstance(spec.problem, Problem):
            alike = kinds.setdefault(spec.model.plan(spec.model.in_features, spec.problem.shape[0]) is not None, {})
            alike.setdefault((canonical.text(spec.model), _samples(spec)), []).append(spec)
    for number, alike in enumerate(kinds.values()):
        work = {key: math.log(group[0].model.parameters_count(out_features=3) * key[1]) for key, group in alike.items()}
        ordered = sorted(alike, key=lambda key: work[key])
        count = min(_SIZES, len(ordered))
        chosen = list(dict.fromkeys(ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)))
        # The first run finds everything cold, and is made twice.
        share = seconds / len(kinds) / (len(chosen) + 1)
        pace = []
        for at, key in enumerate((chosen[0], *chosen)):
            progress((number + at / (len(chosen) + 1)) / len(kinds))
            pace.append(_pace(alike[key][0], device, share))
        del pace[0]
        extra = sum(extra for _, extra in pace) / len(pace)
        for key, group in alike.items():
            step = math.exp(np.interp(work[key], [work[one] for one in chosen], [math.log(step) for step, _ in pace]))
            total += sum(extra + step * ((_limit(spec) or 0) + _looks(spec, record(spec))) for spec in group)
    return total


def _looks(spec: Spec, record: Record) -> float:
    """What the points of a curve that were asked for take, in steps: for as many pixels a third of one, without the
    way back."""
    if record.every is None:
        return 0.0
    points = min(record.points, math.prod(spec.problem.shape[1:]))
    return (_limit(spec) or 0) / record.every * points / _samples(spec) / 3


def _pace(spec: Spec, device: str | None, seconds: float) -> tuple[float, float]:
    """Seconds of a step, and of all that a fit takes besides its steps.

    On the CPU these are of one thread, as workers have it, and of the processor, so that other programs do not count.
    """
    short = replace(spec, start=Start(), budget=Budget(seconds=seconds), stopping=Never())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.monotonic(), time.process_time()
        result = run.fit(short, device=device)
        wall, busy = time.monotonic() - began[0], time.process_time() - began[1]
    finally:
        torch.set_num_threads(threads)
    all_of_it, steps = (busy, result.process_seconds) if result.device == "cpu" else (wall, result.seconds)
    return steps / max(1, result.steps), max(0.0, all_of_it - steps)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C, which reaches all of them: this one decides, and hears it next."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread_at_first() -> Iterator[None]:
    """Processes started meanwhile make no more threads than they will use: each would hold memory for them."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
