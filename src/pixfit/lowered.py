"""A stack of fits handed to the compiled kernel: which stacks it serves, their steps, and their predictions.

Shape legend: F fits of one stack, P parameters of a fit, N samples (known pixels), S steps of a call, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pixfit.kernels import library
from pixfit.kernels.library import Library
from pixfit.kernels.native import Fused, Rows, Update
from pixfit.kernels.plan import Plan
from pixfit.losses import Huber
from pixfit.models import Model
from pixfit.optim import Stepper
from pixfit.problem import View
from pixfit.schedules import Plateau, PlateauState
from pixfit.spec import MovingAverage, Spec
from pixfit.stack import Samples, Stack

__all__ = ["Lowered", "Served", "forward", "served"]

_CALL = 1.0e10  # multiply-adds of a call of many steps: some hundredths of a second
_MOST = 1024  # steps of a call

Served = tuple[Library, Plan]
"""A library, and the plan that it is to run."""


def served(spec: Spec, view: View, device: torch.device) -> Served | None:
    """What runs fits of this kind, or None where torch does: a rule of settings, device and instruction set."""
    if device.type != "cpu" or spec.kernel != "auto" or not view.operator.pointwise:
        return None
    if spec.precision not in ("float32", "bfloat16-backward"):
        return None
    found, plan = library.load(), spec.model.plan(2, view.shape[0])
    return None if found is None or plan is None else (found, plan)


class Lowered:
    """The kernel's side of a stack in training. It works in place on the weights and the optimiser's state.

    Args:
        found: from `served`.
        spec: the settings that the fits share.
        stack, samples: the weights, and what they are fitted to.
        stepper: the optimiser at work.
        rates: (F,) learning rates without schedule.
        plateau: state of that schedule, or None.
        average: (F, P), the moving average of the weights, or None.
        threads: for all fits together.
    """

    def __init__(
        self,
        found: Served,
        spec: Spec,
        stack: Stack,
        samples: Samples,
        stepper: Stepper,
        *,
        rates: Tensor,
        plateau: PlateauState | None,
        average: Tensor | None,
        threads: int,
    ) -> None:
        loaded, plan = found
        self.name = f"fused-{loaded.isa}"
        self._stack, self._samples, self._stepper = stack, samples, stepper
        self._plateau, self._average, self._rates, self._threads = plateau, average, rates.double(), threads
        backward = "bfloat16" if spec.precision == "bfloat16-backward" else "float32"
        places = {entry.name: entry.start for entry in stack.layout}
        self._fused = Fused(loaded, plan, places, stack.weights.shape[1], stack.buffers, backward=backward)
        targets = spec.model.to_target(samples.pixels)
        self._rows = Rows(samples.at(samples.places).contiguous(), targets.contiguous(), samples.weights)
        self._gradient = torch.zeros_like(stack.weights.detach())
        self._loss, self._delta = type(spec.loss).__name__, spec.loss.delta if isinstance(spec.loss, Huber) else 1.0
        rule, schedule, estimate = stepper.rule(), spec.optimiser.schedule, spec.estimate
        self._update = rule and Update(
            rule.name, rule.betas, rule.eps, rule.weight_decay, clip_norm=spec.optimiser.clip_norm,
            average_decay=estimate.decay if isinstance(estimate, MovingAverage) else None,
            plateau=schedule.limits if isinstance(schedule, Plateau) else None,
        )  # fmt: skip
        work = 3.0 * plan.products * samples.per_step * stack.fits
        self.at_once = max(1, min(_MOST, int(_CALL / work))) if self._update else 1

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
        index, count = self._samples.rows(step, rates.shape[1])
        rates, plateau = rates[:, :count], self._plateau
        state = None if plateau is None else torch.stack(list(plateau.tensors().values()), dim=1)
        per_epoch = self._samples.per_epoch
        losses, made = self._fused.steps(
            self._update, self._rows, self._stack.weights.detach(), self._gradient, self._stepper.table(rates),
            loss=self._loss, delta=self._delta, moments=self._stepper.moments(), average=self._average,
            mask=self._stack.mask, plateau=state, plateau_base=None if plateau is None else self._rates, index=index,
            count=self._stepper.count, steps_per_epoch=per_epoch, epoch_step=step % per_epoch, threads=self._threads,
            interrupt=interrupt,
        )  # fmt: skip
        if plateau is not None and state is not None:
            plateau.restore(dict(zip(plateau.tensors(), state.T, strict=True)))
        self._stepper.advance(rates[:, :made])
        return losses[:, :made]

    def predict(self, weights: Tensor, coordinates: Tensor) -> Tensor:
        """Outputs (F, n, C) of any weights (F, P) at coordinates (1 or F, n, 2)."""
        points = coordinates.to(torch.float32).contiguous()
        return torch.stack(
            [
                self._fused.forward(row.contiguous(), points[fit % len(points)], fit, threads=self._threads)
                for fit, row in enumerate(weights.detach())
            ]
        )


def forward(
    model: Model, weights: Mapping[str, Tensor], channels: int, threads: int
) -> Callable[[Tensor], Tensor] | None:
    """A finished network on the kernel, from coordinates (n, 2) to outputs (n, C); None where torch has to run it."""
    found, plan = library.load(), model.plan(2, channels)
    if found is None or plan is None or any(value.dtype != torch.float32 for value in weights.values()):
        return None
    with torch.device("meta"):
        names = [name for name, _ in model.network(2, channels).named_parameters()]
    places, at = {}, 0
    for name in names:
        places[name] = at
        at += weights[name].numel()
    fixed = {name: value[None] for name, value in weights.items() if name not in places}
    row = torch.cat([weights[name].reshape(-1) for name in names])
    fused = Fused(found, plan, places, at, fixed)
    return lambda points: fused.forward(row, points.contiguous(), threads=threads)
