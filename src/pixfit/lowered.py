"""A stack of fits handed to a kernel that makes whole steps: compiled code on a CPU, or graphs of steps on a card.

Shape legend: F fits of one stack, P parameters of a fit, N samples (known pixels), S steps of a call, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pixfit.kernels import card, library
from pixfit.kernels.graph import Fits, GraphSteps
from pixfit.kernels.library import Library
from pixfit.kernels.native import Fused, Rows, Update
from pixfit.kernels.persistent import PersistentSteps
from pixfit.kernels.plan import Plan
from pixfit.losses import L1, MSE, Huber
from pixfit.models import Model
from pixfit.optim import Stepper
from pixfit.problem import View
from pixfit.schedules import Plateau, PlateauState
from pixfit.spec import MovingAverage, Spec
from pixfit.stack import Samples, Stack

__all__ = ["Graphed", "Lowered", "Served", "Training", "forward", "lower", "served"]

_CALL = 1.0e10  # multiply-adds of a call of many steps: some hundredths of a second
_MOST = 1024  # steps of a call

Served = tuple[Library, Plan]
"""A library, and the plan that it is to run."""


def served(spec: Spec, view: View, device: torch.device) -> Served | None:
    """What runs fits of this kind, or None where torch does: a rule of settings, device and instruction set."""
    if device.type != "cpu" or spec.kernel != "auto" or not view.operator.pointwise:
        return None
    if spec.precision not in ("float32", "bfloat16-backward") or type(spec.loss) not in (MSE, L1, Huber):
        return None
    found, plan = library.load(), spec.model.plan(spec.model.in_features, view.shape[0])
    return None if found is None or plan is None else (found, plan)


@dataclass(frozen=True)
class Training:
    """What a stack in training consists of; kernels work on it in place.

    Args:
        spec: the settings that the fits share.
        stack, samples: the weights, and what they are fitted to.
        stepper: the optimiser at work.
        rates: (F,) float64 learning rates without schedule.
        plateau: state of that schedule, or None.
        average: (F, P), the moving average of the weights, or None.
    """

    spec: Spec
    stack: Stack
    samples: Samples
    stepper: Stepper
    rates: Tensor
    plateau: PlateauState | None
    average: Tensor | None

    def update(self) -> Update | None:
        """What a kernel does with a gradient; None where it does not know the optimiser."""
        rule, schedule, estimate = self.stepper.rule(), self.spec.optimiser.schedule, self.spec.estimate
        return rule and Update(
            rule.name, rule.betas, rule.eps, rule.weight_decay, clip_norm=self.spec.optimiser.clip_norm,
            average_decay=estimate.decay if isinstance(estimate, MovingAverage) else None,
            plateau=schedule.limits if isinstance(schedule, Plateau) else None,
        )  # fmt: skip

    def plateau_rows(self) -> Tensor | None:
        """The plateau's vectors as (F, 5)."""
        return None if self.plateau is None else torch.stack(list(self.plateau.tensors().values()), dim=1)

    def after(self, rates: Tensor, plateau_rows: Tensor | None) -> None:
        """Notes that a kernel made steps with the rates (F, S), and takes the plateau's new numbers."""
        if self.plateau is not None and plateau_rows is not None:
            self.plateau.restore(dict(zip(self.plateau.tensors(), plateau_rows.T, strict=True)))
        self.stepper.advance(rates)

    @property
    def backward(self) -> Literal["float32", "bfloat16"]:
        return "bfloat16" if self.spec.precision == "bfloat16-backward" else "float32"


def lower(state: Training, view: View, device: torch.device, threads: int) -> Lowered | Graphed | None:
    """What makes the steps of this stack, or None where the engine does by itself.

    Raises:
        ValueError: the spec asks for the kernel ``graph``, which cannot run it.
    """
    if state.spec.kernel == "graph":
        return Graphed(state, view, device)
    found = served(state.spec, view, device)
    return None if found is None else Lowered(found, state, threads)


class Lowered:
    """A stack on the compiled kernel of a CPU.

    Args:
        found: from `served`.
        state: see there.
        threads: for all fits together.
    """

    def __init__(self, found: Served, state: Training, threads: int) -> None:
        loaded, plan = found
        units = "-amx" if state.backward == "bfloat16" and loaded.products == 2 else ""
        self.name = f"fused-{loaded.isa}{units}"
        spec, stack, samples = state.spec, state.stack, state.samples
        self._state, self._stack, self._samples, self._threads = state, stack, samples, threads
        places = {entry.name: entry.start for entry in stack.layout}
        self._fused = Fused(loaded, plan, places, stack.weights.shape[1], stack.buffers, backward=state.backward)
        if samples.whole:
            points, targets, _ = samples.batch(0)
        else:
            points, targets = samples.at(samples.places), spec.model.to_target(samples.pixels)
        self._rows = Rows(points.contiguous(), targets.contiguous(), samples.weights)
        self._gradient = torch.zeros_like(stack.weights.detach())
        self._loss, self._delta = type(spec.loss).__name__, spec.loss.delta if isinstance(spec.loss, Huber) else 1.0
        self._update = state.update()
        work = 3.0 * plan.products * samples.per_step
        self.check = max(1, min(_MOST, int(_CALL / work)))  # of one fit alone: mates must not move the looks at losses
        self.at_once = max(1, min(_MOST, int(_CALL / (work * stack.fits)))) if self._update else 1

    @property
    def updates(self) -> bool:
        """Whether the kernel knows the optimiser: then call `steps`, else `gradient`."""
        return self._update is not None

    def gradient(self, step: int, interrupt: Callable[[], bool]) -> tuple[Tensor, Tensor] | None:
        """Losses (F,) and gradients (F, P) of a step, which the next call overwrites; None: it was interrupted."""
        index, _ = self._samples.rows(step, 1)
        losses, made = self._fused.steps(
            Update("gradient"), self._rows, self._stack.weights.detach(), self._gradient,
            torch.zeros(self._stack.fits, 1, 2, dtype=torch.float64), loss=self._loss, delta=self._delta, index=index,
            threads=self._threads, interrupt=interrupt,
        )  # fmt: skip
        return (losses[:, 0], self._gradient) if made else None

    def steps(self, step: int, rates: Tensor, interrupt: Callable[[], bool]) -> Tensor:
        """Makes up to S whole steps, the optimiser's part included.

        Args:
            step: number of the first.
            rates: (F, S) float64, the schedule included, a plateau's factor not.
            interrupt: asked in long calls; True ends the call after the last whole step.

        Returns:
            Losses (F, n) of the n steps that were made: fewer than S at the end of an epoch or interrupted.
        """
        assert self._update is not None
        state, samples = self._state, self._samples
        index, count = samples.rows(step, rates.shape[1])
        rates, plateau = rates[:, :count], state.plateau_rows()
        losses, made = self._fused.steps(
            self._update, self._rows, self._stack.weights.detach(), self._gradient, state.stepper.table(rates),
            loss=self._loss, delta=self._delta, moments=state.stepper.moments(), average=state.average,
            mask=self._stack.mask, plateau=plateau, plateau_base=None if plateau is None else state.rates, index=index,
            count=state.stepper.count, steps_per_epoch=samples.per_epoch, epoch_step=step % samples.per_epoch,
            threads=self._threads, interrupt=interrupt,
        )  # fmt: skip
        state.after(rates[:, :made], plateau)
        return losses[:, :made]

    def predict(self, weights: Tensor, coordinates: Tensor, fit: int | None = None) -> Tensor:
        """Outputs (F, n, C) of any weights (F, P) at coordinates (1 or F, n, D), or (1, n, C) of one fit."""
        points = coordinates.to(torch.float32).contiguous()
        fits = range(len(weights)) if fit is None else (fit,)
        rows = [
            self._fused.forward(
                weights[one].detach().contiguous(), points[one % len(points)], one, threads=self._threads
            )
            for one in fits
        ]
        return torch.stack(rows)


class Graphed:
    """A stack whose steps the host does not take part in: CUDA graphs, or one persistent kernel for small networks.

    On a CPU the same steps run plainly, for tests. Arguments as of `Lowered`.

    Raises:
        ValueError: fits that it cannot run.
    """

    updates = True

    def __init__(self, state: Training, view: View, device: torch.device) -> None:
        spec, stack, samples = state.spec, state.stack, state.samples
        plan, update = spec.model.plan(spec.model.in_features, view.shape[0]), state.update()
        if plan is None or update is None or not view.operator.pointwise or spec.precision in ("float64", "bfloat16"):
            raise ValueError(
                "kernel is graph, which runs models that have a plan, Adam, AdamW or schedule-free, pointwise "
                "operators and the precisions float32 and bfloat16-backward; set kernel to auto or torch"
            )
        cuda = device.type == "cuda"
        if cuda and (against := card.graph_reason(plan, samples.per_step, stack.fits, device)) is not None:
            raise ValueError(against)
        first, second = state.stepper.moments()
        base = None if state.plateau is None else state.rates.to(device)
        self._state = state
        self._fits = Fits(stack.weights.detach(), first, second, stack.mask, state.average, state.plateau_rows(), base)
        places = {entry.name: entry.start for entry in stack.layout}
        plain = stack.mask is None and state.average is None and samples.weights is None and update.clip_norm is None
        self._kernel: GraphSteps | PersistentSteps
        if (
            cuda and plain and type(spec.loss) is MSE and update.rule == "adam" and spec.precision == "float32"
            and samples.whole and card.persistent_reason(plan) is None
            and 4 * stack.fits >= torch.cuda.get_device_properties(device).multi_processor_count
        ):  # fmt: skip
            self._kernel = PersistentSteps(plan, places, self._fits, samples.batch(0), update)
        else:
            limit = spec.budget.step_limit(samples.per_epoch) or math.inf
            compiled = cuda and card.compile_reason(plan, samples.per_step, stack.fits, limit) is None
            self._kernel = GraphSteps(
                plan, places, self._fits, stack.buffers, samples.batch, update, spec.loss,
                per_epoch=samples.per_epoch, backward=state.backward, compiled=compiled,
            )  # fmt: skip
        self.name = self._kernel.name
        self.check = self.at_once = min(_MOST, card.steps_at_once(plan, samples.per_step, stack.fits))

    def steps(self, step: int, rates: Tensor, interrupt: Callable[[], bool]) -> Tensor:
        """As of `Lowered`; the S ≤ 1,024 steps of a call are not interrupted."""
        state = self._state
        rows = state.plateau_rows()
        if self._fits.plateau is not None and rows is not None:
            self._fits.plateau.copy_(rows)
        losses = self._kernel.steps(step, state.stepper.table(rates))
        state.after(rates, self._fits.plateau)
        return losses


def forward(
    model: Model, weights: Mapping[str, Tensor], channels: int, threads: int
) -> Callable[[Tensor], Tensor] | None:
    """A finished network on the kernel, from coordinates (n, D) to outputs (n, C); None where torch has to run it."""
    found, plan = library.load(), model.plan(model.in_features, channels)
    if found is None or plan is None or any(value.dtype != torch.float32 for value in weights.values()):
        return None
    with torch.device("meta"):
        names = [name for name, _ in model.network(model.in_features, channels).named_parameters()]
    places, at = {}, 0
    for name in names:
        places[name] = at
        at += weights[name].numel()
    fixed = {name: value[None] for name, value in weights.items() if name not in places}
    row = torch.cat([weights[name].reshape(-1) for name in names])
    fused = Fused(found, plan, places, at, fixed)
    return lambda points: fused.forward(row, points.contiguous(), threads=threads)
