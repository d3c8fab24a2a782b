"""The training loop, the only one. It sees views and tensors: no path, no database, no truth.

F fits of one shape are fitted in lockstep (`pixfit.stack`): weights and gradients are matrices (F, P), and seeds,
learning rates, masks and step limits are vectors of length F. One fit is F = 1. `pixfit.run` decides which fits form a
stack.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixfit import canonical, kernels
from pixfit.job import Blind, Job, Moment, Outcome, State, Watch
from pixfit.kernels import card
from pixfit.lowered import Lowered, Training, lower, served
from pixfit.models import PicturePrior
from pixfit.optim import Muon, clip_rows, with_descents
from pixfit.problem import View, stream
from pixfit.schedules import Plateau, PlateauState
from pixfit.spec import (
    AugmentedBatches,
    AveragedOutput,
    BestHeldOut,
    MovingAverage,
    PictureBatches,
    PosteriorMean,
    Shown,
)
from pixfit.stack import Samples, Stack
from pixfit.stopping import HeldOut, Judge, MovingVariance, TargetPSNR, WindowVariance

__all__ = ["fit", "one_thread_each", "stack_key", "stack_limit"]

_CHECK = 32  # steps between two looks at the losses; on a GPU each look waits for the card
_SMALL = 2**27  # multiply-adds of a step that one thread makes in some milliseconds
_PACE = 0.02  # seconds of a call where the budget is in seconds
_LOOKS = 40  # points of the curve where nobody asked for a number
_SHARE = 5  # times as long as a look is trained before the next, where a budget is in seconds
_TICK = 0.1  # seconds between two signs of life
_FEW = 2**20  # pixels × features of a convolutional network below which torch's own threads do not pay
_FAIR = 500  # steps after which a network that shows one colour has collapsed


def stack_key(job: Job) -> str:
    """Fits with one key may form one stack: they differ only in pixels, weights, seed, rate, mask and limits."""
    spec = job.spec
    settings = {
        name: getattr(spec, name)
        for name in ("model", "loss", "batches", "estimate", "precision", "kernel", "stopping")
    }
    # Muon's two rates keep their ratio, so fits with different ones do not share a working optimiser.
    optimiser = spec.optimiser if isinstance(spec.optimiser, Muon) else replace(spec.optimiser, lr=1.0)
    samples = len(job.view.samples()[0]) if job.view.operator.pointwise else list(job.view.measurement.shape)
    # Pictures of unequal sizes, shuffled by each fit's own seed, make batches of unequal sizes.
    apart = isinstance(spec.batches, PictureBatches) and spec.batches.order == "shuffled"
    timed = spec.id if spec.budget.seconds is not None or apart else None
    shape = {"samples": samples, "shape": job.view.shape, "weighted": job.view.use is not None}
    operator = None if job.view.operator.pointwise else job.view.operator
    return canonical.text(
        {**settings, **shape, "optimiser": optimiser, "operator": operator, "keep": job.keep, "timed": timed}
    )


def one_thread_each(job: Job) -> bool:
    """Whether many such fits on a CPU are best fitted side by side, a thread each: they are small, and compiled."""
    found = served(job.spec, job.view, torch.device("cpu"))
    if found is None or job.spec.budget.seconds is not None:
        return False
    pixels = job.view.measurement.shape[1] * job.view.measurement.shape[2]
    return job.spec.batches.per_step(pixels, len(job.spec.model.sizes)) * found[1].products < _SMALL


def stack_limit(job: Job, device: torch.device) -> int:
    """How many such fits form one stack: on a CPU as many as keep its threads evenly busy while results still come
    early, on a card as many as its free memory takes. Networks of whole pictures are fitted one by one."""
    if isinstance(job.spec.model, PicturePrior):
        return 1
    if device.type != "cuda":
        return 4 * torch.get_num_threads()
    free, _ = torch.cuda.mem_get_info(device)
    pixels = job.view.measurement.shape[1] * job.view.measurement.shape[2]
    model = job.spec.model
    samples = job.spec.batches.per_step(pixels, len(model.sizes))
    plan = model.plan(model.in_features, job.view.shape[0])
    if plan is not None:
        return max(1, card.stack_limit(plan, samples, free))
    # Weights, moments and copies, and what autograd keeps at every sample of every map, with room to spare.
    parameters = sum(value.numel() for value in job.weights.values())
    features = sum(value.shape[0] for value in job.weights.values() if value.dim() == 2)
    return max(1, free // (2 * 4 * (12 * parameters + 12 * samples * features)))


def fit(
    jobs: Sequence[Job],
    *,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
    every: int | None = None,
    state: State | None = None,
    save_every: float = 60.0,
    interrupt: Callable[[], bool] = lambda: False,
) -> Iterator[State]:
    """Fits one stack, and yields its state about every ``save_every`` seconds and at the end.

    Args:
        jobs: fits with one `stack_key`; fits with a budget in seconds come alone.
        device: where to compute.
        watch: is shown the fit at the first and last step and every ``every`` steps between; by default at about 40
            points. Its time is not counted as training.
        state: of an earlier call with the same jobs, to go on from.
        interrupt: asked before every step; True ends the fits as cancelled.

    Raises:
        ValueError: jobs that cannot form a stack, or weights that are not the network's.
    """
    if not jobs:
        raise ValueError("there is nothing to fit: the list of jobs is empty")
    if len({stack_key(job) for job in jobs}) > 1:
        raise ValueError(
            "these jobs differ in more than pixels, weights, seeds and limits; fit them in separate stacks"
        )
    loop = _Loop(jobs, torch.device(device), watch or Blind(), every)
    if state is not None:
        loop.restore(state)
    saved = time.monotonic()
    # Who waits for a state computes meanwhile, too, and has his own setting then.
    with kernels.fast_matmul(loop.kernel), contextlib.ExitStack() as numbers, loop.crew:
        numbers.enter_context(kernels.without_subnormals())
        loop.clock.start()
        while loop.settle(interrupt()):
            if time.monotonic() - saved > save_every:
                loop.clock.pause()
                kept = loop.state()
                numbers.close()
                yield kept
                numbers.enter_context(kernels.without_subnormals())
                saved = time.monotonic()
                loop.clock.start()
            loop.advance(interrupt)
        loop.clock.pause()
        end = replace(loop.state(), outcomes=loop.outcomes())
        numbers.close()
        yield end


class _Clock:
    """Wall and process seconds of training; what runs between ``pause`` and ``start`` counts as evaluation.

    A fit that has but one thread of a CPU counts the time of this, since other fits may run beside it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        alone = device.type == "cpu" and torch.get_num_threads() == 1  # beside a card, torch has threads of its own
        self._busy = time.thread_time if alone else time.process_time
        self.wall = self.process = self.evaluation = 0.0
        self._since: tuple[float, float] | None = None
        self._paused: float | None = None

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), self._busy()

    def start(self) -> None:
        self._since = self._now()
        if self._paused is not None:
            self.evaluation += self._since[0] - self._paused
            self._paused = None

    def pause(self) -> None:
        assert self._since is not None
        wall, process = self._now()
        self.wall += wall - self._since[0]
        self.process += process - self._since[1]
        self._since, self._paused = None, wall

    def seconds(self) -> float:
        return self.wall if self._since is None else self.wall + time.perf_counter() - self._since[0]


class _Loop:
    """The state of a stack in training, one step, and when each fit ends."""

    def __init__(self, jobs: Sequence[Job], device: torch.device, watch: Watch, every: int | None) -> None:
        spec = jobs[0].spec
        self.jobs, self.spec, self.watch, self.device = jobs, spec, watch, device
        self.fits = len(jobs)
        dtype = torch.float64 if spec.precision == "float64" else torch.float32
        weights, masks, views = [job.weights for job in jobs], [job.mask for job in jobs], [job.view for job in jobs]
        model = spec.model.sized(*views[0].shape[1:])
        rounded = None
        if spec.precision == "bfloat16-backward":
            rounded = model.plan(model.in_features, views[0].shape[0])
        threads = torch.get_num_threads()
        own = spec.kernel == "auto" and device.type == "cpu" and isinstance(model, PicturePrior)
        maps = kernels.maps_library(spec.precision) if own else None
        self.stack = Stack(
            model, views[0].shape[0], weights, masks, threads=0 if maps is None else threads, rounded=rounded,
            dtype=dtype, device=device,
        )  # fmt: skip
        pictures = spec.batches if isinstance(spec.batches, PictureBatches) else None
        augmented = spec.batches if isinstance(spec.batches, AugmentedBatches) else None
        self.samples = Samples(
            model, views, [job.spec.seed for job in jobs], spec.batches.pixels, pictures=pictures, augmented=augmented,
            dtype=dtype, device=device,
        )  # fmt: skip
        self.kernel = kernels.kernel_name(device, self.stack.widest, spec.kernel)
        alone = device.type == "cpu" and self.fits == 1 and self.samples.pointwise
        size = kernels.crew_size(self.samples.per_step, self.stack.widest) if alone else 0
        if device.type == "cpu" and isinstance(model, PicturePrior) and self.samples.count * self.stack.widest < _FEW:
            size = 1  # torch's threads would meet after each of many small operations
        if self.stack.has_maps and maps is not None:  # its threads are its own; torch's would spin beside them
            self.kernel, size = kernels.maps_name(maps, spec.precision), 1
        self.crew = kernels.Crew(size)
        self.weights = self.stack.weights.detach()
        descents = model.descents if isinstance(model, PicturePrior) else ()
        self.stepper = with_descents(spec.optimiser.start(self.weights, self.stack.layout), self.stack.layout, descents)
        self.stepper.crew = self.crew
        self.stepper.seeds = [stream(job.spec.seed, "optimiser").initial_seed() for job in jobs]
        self.rates = torch.tensor([[job.spec.optimiser.lr] for job in jobs], dtype=dtype, device=device)
        schedule = spec.optimiser.schedule
        self.plateau = PlateauState(schedule, self.fits, device) if isinstance(schedule, Plateau) else None
        self.average = self.weights.clone() if isinstance(spec.estimate, MovingAverage) else None
        # (F, N·C): the average of what the steps showed. Where there is one, it stands behind the weights in all rows
        # that an answer may be.
        self.shown: Tensor | None = None
        if isinstance(spec.estimate, Shown):
            self.shown = self.stack.predict(self.weights, self.samples.places, self.crew).flatten(1)
        # (F, N·C): the variance of what is averaged, behind the average.
        self.spread: Tensor | None = None
        if self.shown is not None and isinstance(spec.estimate, PosteriorMean):
            self.spread = torch.zeros_like(self.shown)
        base = self.rates[:, 0].double()
        state = Training(spec, self.stack, self.samples, self.stepper, base, self.plateau, self.average)
        self.lowered = lower(state, views[0], device, threads)
        if self.lowered is not None:
            self.kernel = self.lowered.name
        self.at_once = 1 if self.lowered is None else self.lowered.at_once
        limits = [job.spec.budget.step_limit(self.samples.per_epoch) for job in jobs]
        self.limits = [math.inf if limit is None else limit for limit in limits]
        longest = max(self.limits)
        self.every = every or (max(1, int(longest) // _LOOKS) if longest < math.inf else None)

        self.clock = _Clock(device)
        self.step = 0
        self.losses: list[Tensor] = []  # finished chunks (F, n) on the CPU
        self.check = _CHECK if self.lowered is None else max(_CHECK, self.lowered.check)
        self.chunk = torch.full((self.fits, self.check), math.nan, device=device)
        self.filled = 0
        # good: at the last look at finite losses; final: of fits that ended; best: by held-out pixels or a rule.
        rule = spec.estimate
        self.compare_every = rule.every if isinstance(rule, BestHeldOut | AveragedOutput) else None
        self.good = self._row(self.weights).clone()
        self.final = self.good.clone()
        self.judge: Judge | None = None
        if isinstance(spec.stopping, WindowVariance | MovingVariance):
            if self.compare_every is not None:
                raise ValueError(
                    f"the stopping rule {type(spec.stopping).__name__} chooses the step of the answer itself; give an "
                    "estimate without looks at held-out pixels, such as AveragedOutput()"
                )
            shown = torch.empty(self.fits, self.samples.count, self.samples.shape[0], dtype=dtype, device=device)
            self.judge = spec.stopping.judge(shown)
        self.variance = torch.full((self.fits,), math.inf)
        self.best = self.good.clone() if self.compare_every is not None or self.judge is not None else None
        self.best_error, self.best_step = [math.inf] * self.fits, [0] * self.fits
        self.compared: list[Tensor] = []  # (F, 2) of each look at held-out pixels: the loss, the PSNR
        if isinstance(spec.stopping, HeldOut) and self.compare_every is None:
            raise ValueError(
                "the stopping rule HeldOut needs an estimate that looks at held-out pixels, such as "
                "AveragedOutput(every=5) or BestHeldOut()"
            )
        self.kept: dict[int, Tensor] = {}
        self.ended: list[dict[str, Any] | None] = [None] * self.fits
        self.looked = self.ticked = -math.inf
        self.look_seconds = 0.0
        self.pace = math.inf  # seconds of a step
        self.block: Tensor | None = None  # learning rates of the steps from block_step on
        self.block_step = 0

    # ------------------------------------------------------------------------------------------------ steps

    def advance(self, interrupt: Callable[[], bool]) -> None:
        """Updates of every fit: one, or as many as a compiled kernel can make before something else is due."""
        began = time.perf_counter()
        if self.lowered is not None and self.lowered.updates:
            losses = self.lowered.steps(self.step, self._rates(self._reach()), interrupt)
        else:
            passed = (
                self.lowered.gradient(self.step, interrupt) if isinstance(self.lowered, Lowered) else self._backward()
            )
            if passed is None:
                return
            losses = passed[0][:, None]
            self._improve(*passed)
        made = losses.shape[1]
        self.chunk[:, self.filled : self.filled + made] = losses
        self.filled += made
        self.step += made
        if self.spec.budget.seconds is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # else the clock runs ahead of the card
            self.pace = (time.perf_counter() - began) / max(made, 1)

    @torch.no_grad()
    def _improve(self, losses: Tensor, gradient: Tensor) -> None:
        """What follows on a gradient in one step."""
        if self.stack.mask is not None:
            gradient.mul_(self.stack.mask)
        if self.spec.optimiser.clip_norm is not None:
            clip_rows(gradient, self.spec.optimiser.clip_norm)
        rates = self._rates_now()
        if self.plateau is not None:
            rates = rates * self.plateau.factors.to(rates.dtype)[:, None]
        self.stepper.notice(losses)
        self.stepper.update(gradient, rates)
        if self.stack.mask is not None:
            self.weights.mul_(self.stack.mask)
        if isinstance(self.spec.estimate, MovingAverage) and self.average is not None:
            self.average.lerp_(self.weights, 1 - self.spec.estimate.decay)
        if self.plateau is not None:
            last = (self.step + 1) % self.samples.per_epoch == 0
            self.plateau.update(losses, self.rates[:, 0], end_of_epoch=last)

    def _reach(self) -> int:
        """How many steps can be made before something is due between two of them."""
        reach = float(min(self.at_once, self.check - self.filled))
        limits = [limit for limit in self.limits if limit > self.step]
        marks = [step for step in self.jobs[0].keep if step > self.step]
        rhythms = [self.every or math.inf]
        if self.compare_every is not None:
            rhythms.append(self.compare_every)
        if isinstance(self.spec.stopping, TargetPSNR):
            rhythms.append(self.spec.stopping.every)
        ahead = [mark - self.step for mark in (*limits, *marks)]
        ahead += [rhythm - self.step % rhythm for rhythm in rhythms if rhythm < math.inf]
        if self.spec.budget.seconds is not None:
            ahead.append(max(1, int(_PACE / self.pace)))
        return int(min(reach, *ahead)) if ahead else int(reach)

    def _rates_now(self) -> Tensor:
        """Learning rates (F, 1) of the next step on the device, to which they are copied some steps at a time."""
        if self.device.type == "cpu" or self.spec.budget.seconds is not None:
            return self._rates(1).to(self.rates)
        ahead = self.step - self.block_step
        if self.block is None or not 0 <= ahead < self.block.shape[1]:
            self.block, self.block_step, ahead = self._rates(_CHECK).to(self.rates), self.step, 0
        return self.block[:, ahead : ahead + 1]

    def _rates(self, steps: int) -> Tensor:
        """Learning rates (F, S) in float64 of the next steps, with the schedule, without a plateau's factor."""
        rates = torch.tensor([[job.spec.optimiser.lr] for job in self.jobs], dtype=torch.float64)
        schedule, courses = self.spec.optimiser.schedule, {}
        for fit, limit in enumerate(self.limits):
            if limit not in courses:
                courses[limit] = [schedule.factor(self.fraction(fit, ahead)) for ahead in range(steps)]
        return rates * torch.tensor([courses[limit] for limit in self.limits], dtype=torch.float64)

    @torch.enable_grad()
    def _backward(self) -> tuple[Tensor, Tensor]:
        """The losses (F,), means over the values in use, and their gradient (F, P)."""
        samples, autocast = self.samples, self.spec.precision == "bfloat16"
        coordinates, targets, weights = samples.batch(self.step)
        size = _size(targets, weights)

        def descend(predicted: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            error = self.spec.loss(predicted, targets[:, part])
            losses = (error if weights is None else error * weights[:, part]).flatten(1).sum(dim=1) / size
            return losses.detach(), self.stack.gradient(losses)

        if self.spec.model.tile is not None:
            given = samples.given(targets, self.step)
            return descend(self.stack.forward(coordinates, targets=given, autocast=autocast), slice(None))
        if not samples.pointwise:
            output = self.stack.forward(coordinates, autocast=autocast)
            self._average(output.detach())
            measured = self.stack.explained(samples.operator.forward(samples.picture(output)))
            return descend(self.spec.model.to_target(measured), slice(None))

        count = targets.shape[1]
        parts = min(max(1, self.crew.size), count)
        length = -(-count // parts)

        def one(part: int) -> tuple[Tensor, Tensor]:
            tiles = (
                slice(start, min(start + self.stack.tile, (part + 1) * length, count))
                for start in range(part * length, min((part + 1) * length, count), self.stack.tile)
            )
            return _sum(descend(self.stack.forward(coordinates[:, tile], autocast=autocast), tile) for tile in tiles)

        return _sum(self.crew.map(one, -(-count // length)))

    def _average(self, output: Tensor) -> None:
        """Takes what this step shows, (F, N, C), into the average."""
        if self.judge is not None:
            self.variance = self.judge.see(output, self.step)
        if self.shown is not None and isinstance(self.spec.estimate, Shown):
            weight = self.spec.estimate.weight(self.step)
            if self.spread is not None:
                self.spread.add_((output.flatten(1) - self.shown).square(), alpha=weight).mul_(1 - weight)
            self.shown.lerp_(output.flatten(1), weight)

    def fraction(self, fit: int, ahead: int = 0) -> float:
        """Of the budget spent, in [0, 1], now or after so many further steps."""
        limit, seconds = self.limits[fit], self.jobs[fit].spec.budget.seconds
        spent = (self.step + ahead) / limit if limit else 1.0
        if seconds is not None:
            later = ahead * self.pace if ahead else 0.0
            spent = max(spent, (self.clock.seconds() + later) / seconds if seconds else 1.0)
        return min(spent, 1.0)

    # -------------------------------------------------------------------------------------------------- between steps

    def settle(self, interrupted: bool) -> bool:
        """All that happens between two steps; False when every fit has ended."""
        spec = self.spec
        if self.filled >= self.check:
            self._harvest()
        if self.step in self.jobs[0].keep and self.step not in self.kept:
            self.kept[self.step] = self.estimate().clone()
        if self.compare_every is not None and self.step % self.compare_every == 0:
            self._compare_held_out()
            if isinstance(spec.stopping, HeldOut):
                for fit, best in enumerate(self.best_step):
                    if self.step - best >= spec.stopping.patience:
                        self._end(fit, "stopped", "held_out")
        if isinstance(spec.stopping, WindowVariance | MovingVariance) and self.step > spec.stopping.warmup:
            answers = self.estimate()
            for fit, variance in enumerate(self.variance.tolist()):
                self._remember(fit, variance, answers)
                if self.step - max(self.best_step[fit], spec.stopping.warmup) >= spec.stopping.patience:
                    self._end(fit, "stopped", "variance")
        if isinstance(spec.stopping, TargetPSNR) and self.step % spec.stopping.every == 0:
            for fit, level in enumerate(self.measured_psnr(self.estimate())):
                if level >= spec.stopping.psnr:
                    self._end(fit, "stopped", "target_psnr")
        for fit, limit in enumerate(self.limits):
            if self.step >= limit:
                steps = self.jobs[fit].spec.budget.steps
                self._end(fit, "budget", "steps" if steps is not None and self.step >= steps else "epochs")
        seconds = spec.budget.seconds
        if seconds is not None and self.clock.seconds() >= seconds:
            self._end(0, "budget", "seconds")
        if interrupted:
            for fit in range(self.fits):
                self._end(fit, "cancelled", "interrupted")
        running = any(end is None for end in self.ended)
        self._show(last=not running)
        return running

    def _harvest(self) -> None:
        """Moves the last losses to the CPU, ends fits whose loss is not finite, remembers weights that were good."""
        chunk = self.chunk[:, : self.filled].cpu().clone()  # .cpu() alone would be a window on a CPU
        first, self.filled = self.step - self.filled, 0
        self.losses.append(chunk)
        finite = chunk.isfinite()
        for fit in (~finite.all(dim=1)).nonzero()[:, 0].tolist():
            if self.ended[fit] is None:
                step = first + int((~finite[fit]).nonzero()[0])
                self.final[fit] = self.good[fit]
                self.ended[fit] = self._ending("diverged", f"the loss was not finite at step {step}", step)
        self.good = torch.where(finite.all(dim=1).to(self.device)[:, None], self.estimate(), self.good)

    def _end(self, fit: int, verdict: str, reason: str) -> None:
        if self.filled:
            self._harvest()
        if self.ended[fit] is not None:
            return
        chosen = self.estimate() if self.best is None or self.best_error[fit] == math.inf else self.best
        if not bool(chosen[fit].isfinite().all()):  # the very last update went wrong: no loss has told
            self.final[fit] = self.good[fit]
            self.ended[fit] = self._ending("diverged", f"the weights were not finite at step {self.step}", self.step)
            return
        self.final[fit] = chosen[fit]
        self.ended[fit] = self._ending(verdict, reason, self.step)

    def _ending(self, verdict: str, reason: str, step: int) -> dict[str, Any]:
        return {"verdict": verdict, "reason": reason, "step": step, "seconds": self.clock.seconds()}

    def estimate(self) -> Tensor:
        """(F, P): the weights whose prediction is the answer at this step; with the average of what was shown, if that
        is the answer."""
        return self._row(self.stepper.evaluation_weights().detach() if self.average is None else self.average)

    def _row(self, weights: Tensor) -> Tensor:
        behind = [part for part in (self.shown, self.spread) if part is not None]
        return torch.cat([weights, *behind], dim=1) if behind else weights

    def predict(self, weights: Tensor, coordinates: Tensor) -> Tensor:
        """Pixels (F, n, C) at coordinates (1 or F, n, D), not clamped."""
        return self.spec.model.to_pixels(self._output(weights, coordinates))

    def _output(self, weights: Tensor, coordinates: Tensor) -> Tensor:
        if self.shown is not None:
            return self._kept_output(weights).take_along_dim(coordinates[..., None], dim=1)
        if isinstance(self.lowered, Lowered):
            return self.lowered.predict(weights, coordinates)
        return self.stack.predict(weights, coordinates, self.crew)

    def _kept_output(self, rows: Tensor) -> Tensor:
        """The average (F, N, C) that stands behind the weights in rows."""
        return self._behind(rows)[0]

    def _behind(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The average (F, N, C) and, if there is one, the variance that stand behind the weights in rows."""
        behind = rows[:, self.weights.shape[1] :]
        return behind.reshape(self.fits, -1, self.samples.count, self.samples.shape[0]).unbind(dim=1)

    def _compare_held_out(self) -> None:
        assert self.best is not None
        assert self.compare_every is not None
        self.clock.pause()
        weights, found, now = self.estimate(), torch.zeros(self.fits, 2), []
        for fit, job in enumerate(self.jobs):
            if job.view.held_out is None:
                name = type(self.spec.estimate).__name__
                raise ValueError(f"the estimate {name} needs held-out pixels; give the problem held_out=0.1")
            errors, losses = self._held_out_errors(weights, job.view, job.view.held_out, fit)
            mean = errors.square().mean()
            found[fit, 0], found[fit, 1] = losses.mean(), -10 * mean.log10()
            now.append(float(mean))
        if self.step // self.compare_every == len(self.compared):  # a resumed fit looks at its first step again
            self.compared.append(found)
        for fit, error in enumerate(now):
            self._remember(fit, self._over_window(fit, error), weights)
        self.clock.start()

    def _over_window(self, fit: int, error: float) -> float:
        """What the stopping rule makes of this look's error."""
        rule, every = self.spec.stopping, self.compare_every
        if every is None or not isinstance(rule, HeldOut) or rule.window <= every:
            return error
        levels = torch.stack(self.compared[-(rule.window // every) :])[:, fit, 1].double()
        return float(rule.compared(10 ** (-levels / 10), every)[-1])

    def _remember(self, fit: int, error: float, answers: Tensor) -> None:
        """Keeps the fit's answer, in its row, if none before had a smaller error."""
        if self.best is not None and error < self.best_error[fit]:
            self.best_error[fit], self.best_step[fit] = error, self.step
            self.best[fit] = answers[fit]

    def _held_out_errors(self, weights: Tensor, view: View, held_out: Tensor, fit: int) -> tuple[Tensor, Tensor]:
        """At the held-out samples, (n,) each: differences between what the weights predict, clamped, and what was
        measured; and the losses, in the network's target range and not clamped, as in training."""
        model = self.spec.model
        if self.samples.pointwise:  # then only those pixels need to be computed
            places = held_out.any(dim=0).flatten().nonzero()[:, 0]
            points = self.samples.at(places)[None]
            if isinstance(self.lowered, Lowered):  # its mates have held-out pixels of their own
                output = self.lowered.predict(weights, points, fit)[0].T
            else:
                output = self._output(weights, points)[fit].T
            predicted, shown = model.to_pixels(output).clamp(0, 1), output
            measured, wanted = view.measurement.flatten(1)[:, places], held_out.flatten(1)[:, places]
        else:
            picture = self.samples.picture(self._output(weights, self.samples.at(self.samples.places)))[fit]
            predicted, measured, wanted = view.operator.forward(picture.clamp(0, 1)), view.measurement, held_out
            shown = model.to_target(view.operator.forward(picture))
        wanted = wanted.expand_as(measured)
        losses = self.spec.loss(shown.cpu().to(measured), model.to_target(measured))
        return (predicted.cpu() - measured)[wanted], losses.detach()[wanted]

    def measured_psnr(self, weights: Tensor, limit: int | None = None) -> list[float]:
        """PSNR (F) of what the clamped picture measures, against the fitted samples or about ``limit`` of them."""
        self.clock.pause()
        samples = self.samples
        stride = 1 if limit is None or not samples.pointwise else -(-samples.count // limit)
        part = slice(None, None, stride)
        if samples.pointwise:
            predicted = self.predict(weights, samples.at(samples.places[:, part])).clamp(0, 1)
            targets, scale = samples.pixels[:, part], None if samples.weights is None else samples.weights[:, part]
        else:
            picture = samples.picture(self._output(weights, samples.at(samples.places))).clamp(0, 1)
            predicted, targets, scale = samples.operator.forward(picture), samples.pixels, samples.weights
        error = (predicted - targets).square().double()
        means = (error if scale is None else error * scale).flatten(1).sum(dim=1) / _size(targets, scale)
        self.clock.start()
        return [
            math.inf if mean == 0 else -10 * math.log10(mean) if math.isfinite(mean) else -math.inf
            for mean in means.tolist()
        ]

    def _looks(self, fit: int, last: int) -> dict[str, Tensor]:
        """One fit's curves over its looks at held-out pixels, up to its own last step."""
        if self.compare_every is None:
            return {}
        steps = torch.arange(0, last + 1, self.compare_every)[: len(self.compared)]
        losses, levels = torch.stack(self.compared)[: len(steps), fit].unbind(dim=1)
        return {"held_out_step": steps, "held_out_loss": losses.clone(), "held_out_psnr": levels.clone()}

    def _show(self, *, last: bool) -> None:
        now = self.clock.seconds()
        if self.every is None:  # a look at a large picture may take longer than what lies between two
            due = now - self.looked >= max((self.spec.budget.seconds or 0.0) / _LOOKS, _SHARE * self.look_seconds)
        else:
            due = self.step % self.every == 0
        if due or last:
            self.looked = now
            weights = self.final if last else self.estimate()
            self.clock.pause()
            began = time.perf_counter()
            self.watch.look(Moment(self.step, now, lambda index: self.predict(weights, self.samples.at(index)[None])))
            self.look_seconds = time.perf_counter() - began
            self.clock.start()
        if last or now - self.ticked >= _TICK:
            self.ticked = now
            latest = self.chunk[:, self.filled - 1] if self.filled else self.losses[-1][:, -1] if self.losses else None
            fraction = max(self.fraction(fit) for fit in range(self.fits))
            self.watch.tick(self.step, fraction, [math.nan] * self.fits if latest is None else latest.tolist())

    # --------------------------------------------------------------------------------------------- values to hand out

    def outcomes(self) -> tuple[Outcome, ...]:
        losses = torch.cat(self.losses, dim=1) if self.losses else torch.zeros(self.fits, 0)
        self.clock.start()
        levels, spreads = self.measured_psnr(self.final, limit=2**16), self._spreads()
        pictures = maps = None
        if self.shown is not None:
            pictures = self.samples.picture(self._kept_output(self.final)).float().cpu().clone()
        if self.spread is not None:
            ends = self._behind(self.final)[1].sqrt()
            maps = (self.samples.picture(ends) - self.samples.picture(torch.zeros_like(ends))).float().cpu()
        self.clock.pause()
        out = []
        for fit, end in enumerate(self.ended):
            assert end is not None
            curve = losses[fit, : end["step"]].clone()
            kept = {step: weights for step, weights in self.kept.items() if step <= end["step"]}
            out.append(
                Outcome(
                    verdict=self._verdict(end, curve, levels[fit], spreads[fit], fit), reason=end["reason"],
                    steps=end["step"],
                    epochs=end["step"] / self.samples.per_epoch, weights=self.stack.named(self.final, fit),
                    kept={step: self.stack.named(weights, fit) for step, weights in kept.items()},
                    losses=curve, psnr_measured=levels[fit], seconds=end["seconds"],
                    process_seconds=self.clock.process / self.fits, evaluation_seconds=self.clock.evaluation,
                    kernel=self.kernel, picture=None if pictures is None else pictures[fit],
                    looks=self._looks(fit, end["step"]), spread=None if maps is None else maps[fit],
                )
            )  # fmt: skip
        return tuple(out)

    def _verdict(self, end: Mapping[str, Any], curve: Tensor, level: float, spread: float, fit: int) -> str:
        """What the end of a budget means. Collapsed: hardly better than the best single colour, after a fair time."""
        verdict: str = end["verdict"]
        if verdict != "budget":
            return verdict
        reached = "out_of_budget" if isinstance(self.spec.stopping, TargetPSNR) else "done"
        if self.spec.model.tile is not None:  # what many pictures start from may well show one colour
            return reached
        axes = 0 if self.samples.pointwise else (1, 2)
        variance = float(self.samples.pixels[fit].double().var(dim=axes, correction=0).mean())
        # Noise is hard to fit, and then the network is no better than one colour either; but it does not show one.
        flat = spread < 0.01 * variance or level < -10 * math.log10(max(variance, 1e-12)) - 3
        fair = end["step"] >= _FAIR or (len(curve) > 20 and float(curve[-10:].mean()) > 2 * float(curve[0]))
        if variance > 1e-6 and fair and flat and level < -10 * math.log10(variance) + 1:
            return "collapsed"
        return reached

    def _spreads(self) -> list[float]:
        """Variance of what the final weights of each fit show at about 65,536 samples, mean over channels."""
        places = self.samples.places[:, :: -(-self.samples.count // 2**16)]
        shown = self.predict(self.final, self.samples.at(places)).double()
        return [float(value) for value in shown.var(dim=1, correction=0).mean(dim=1)]

    def state(self) -> State:
        """Everything that `restore` needs, cloned."""
        tensors = {
            "weights": self.weights, "good": self.good, "final": self.final, "chunk": self.chunk[:, : self.filled],
            "losses": torch.cat(self.losses, dim=1) if self.losses else torch.zeros(self.fits, 0),
            **{f"optimiser/{name}": value for name, value in self.stepper.tensors().items()},
            **{f"kept/{step}": value for step, value in self.kept.items()},
        }  # fmt: skip
        if self.average is not None:
            tensors["average"] = self.average
        if self.best is not None:
            tensors["best"] = self.best
        if self.shown is not None:
            tensors["shown"] = self.shown
        if self.spread is not None:
            tensors["spread"] = self.spread
        if self.judge is not None:
            tensors |= {f"judge/{name}": value for name, value in self.judge.state.items()}
        if self.compared:
            tensors["compared"] = torch.stack(self.compared, dim=1)
        if self.plateau is not None:
            tensors |= {f"plateau/{name}": value for name, value in self.plateau.tensors().items()}
        scalars = {
            "step": self.step, "filled": self.filled, "ended": list(self.ended), "optimiser": self.stepper.scalars(),
            "best_error": [None if value == math.inf else value for value in self.best_error],
            "best_step": list(self.best_step),
            "clock": [self.clock.wall, self.clock.process, self.clock.evaluation],
        }  # fmt: skip
        return State(self.step, {name: value.detach().cpu().clone() for name, value in tensors.items()}, scalars)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Goes on from a state; raises ValueError where it is not one of these fits."""
        tensors, scalars = state.tensors, state.scalars
        if tensors["weights"].shape != self.weights.shape:
            raise ValueError("this checkpoint belongs to other fits; remove it, or run the fit that wrote it")
        self.step, self.filled = int(scalars["step"]), int(scalars["filled"])
        for name in ("weights", "good", "final", "average", "best", "shown", "spread"):
            if name in tensors:
                getattr(self, name).copy_(tensors[name])
        # Another kernel may have looked less often.
        width = max(self.check, self.filled)
        self.chunk = torch.full((self.fits, width), math.nan, device=self.device)
        self.chunk[:, : self.filled] = tensors["chunk"]
        self.losses = [tensors["losses"].clone()] if tensors["losses"].numel() else []
        self.stepper.restore(_below("optimiser/", tensors), scalars["optimiser"])
        if self.judge is not None:
            self.judge.restore(_below("judge/", tensors))
        self.kept = {int(step): value.to(self.device) for step, value in _below("kept/", tensors).items()}
        if self.plateau is not None:
            self.plateau.restore(_below("plateau/", tensors))
        self.best_error = [math.inf if value is None else float(value) for value in scalars["best_error"]]
        self.best_step = list(scalars.get("best_step", self.best_step))  # older checkpoints have no such rule
        if self.compare_every is not None:
            looks = self.step // self.compare_every + 1  # older checkpoints have not kept what they saw
            compared = tensors.get("compared", torch.full((self.fits, looks, 2), math.nan))
            self.compared = list(compared.clone().unbind(dim=1))
        # A cancelled fit goes on; any other end stands.
        self.ended = [None if end is None or end["verdict"] == "cancelled" else end for end in scalars["ended"]]
        self.clock.wall, self.clock.process, self.clock.evaluation = scalars["clock"]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _sum(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Losses and gradients of parts, added in order, in place of the first."""
    each = iter(pairs)
    losses, gradient = next(each)
    for more_losses, more_gradient in each:
        losses += more_losses
        gradient += more_gradient
    return losses, gradient


def _size(targets: Tensor, weights: Tensor | None) -> Tensor | float:
    """What a sum of errors is divided by to be a mean: the number of values in use, one number or (F,)."""
    return float(targets[0].numel()) if weights is None else weights.flatten(1).sum(dim=1).clamp(min=1)
