"""The course of the learning rate over a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole

__all__ = ["SCHEDULES", "Constant", "Cosine", "Linear", "Plateau", "PlateauState", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules: a factor on the learning rate.

    Args:
        warmup: fraction of the budget over which the factor first rises linearly from 0 to 1.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not (is_number(self.warmup) and 0 <= self.warmup < 1):
            raise ValueError(f"schedule.warmup is {self.warmup!r}; it is a fraction of the budget, from 0 up to 1")

    def factor(self, progress: float) -> float:
        """The factor after the fraction ``progress`` in [0, 1] of the budget."""
        if progress < self.warmup:
            return progress / self.warmup
        return self.after_warmup((progress - self.warmup) / (1 - self.warmup))

    def after_warmup(self, progress: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The learning rate as it is."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final`` (Loshchilov and Hutter 2017, without restarts)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(self, "final")

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Linear(Schedule):
    """1 for the fraction ``hold`` of the budget, then a straight line down to ``final``."""

    hold: float = 0.6
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(self, "hold", "final")

    def after_warmup(self, progress: float) -> float:
        if progress <= self.hold:
            return 1.0
        return 1.0 + (self.final - 1.0) * (min(progress, 1.0) - self.hold) / max(1 - self.hold, 1e-12)


@dataclass(frozen=True)
class Plateau(Schedule):
    """Multiplies by ``decay`` when the training loss has not improved for more than ``patience`` epochs.

    The semantics of PyTorch's ReduceLROnPlateau (mode min, relative threshold, no cool-down), for each fit by itself:
    the loss of an epoch is the mean over its steps, and with full batches an epoch is a step.

    Args:
        decay: the factor, 0 to 1.
        patience: epochs without improvement that are tolerated.
        threshold: relative improvement that counts as one.
        min_lr: the learning rate is not taken below this.
        eps: a change of the learning rate smaller than this is not made.
    """

    decay: float = 0.5
    patience: int = 500
    threshold: float = 1e-4
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(self, "decay", "threshold")
        if not (is_whole(self.patience) and self.patience >= 0):
            raise ValueError(f"schedule.patience is {self.patience!r}; it must be a whole number, 0 or more epochs")
        for name in ("min_lr", "eps"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise ValueError(f"schedule.{name} is {value!r}; it must be a number, 0 or more")

    @property
    def limits(self) -> tuple[float, float, float, float, int]:
        """The settings in the order that compiled kernels take them."""
        return (self.decay, self.threshold, self.min_lr, self.eps, self.patience)

    def after_warmup(self, progress: float) -> float:
        return 1.0


SCHEDULES: dict[str, type[Schedule]] = {"Constant": Constant, "Cosine": Cosine, "Linear": Linear, "Plateau": Plateau}


class PlateauState:
    """The counters of `Plateau` for a stack of F fits, in float64 as PyTorch's scheduler has them."""

    def __init__(self, settings: Plateau, fits: int, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.best = torch.full((fits,), math.inf, dtype=torch.float64, device=device)
        self.bad = torch.zeros_like(self.best)
        self.factors = torch.ones_like(self.best)
        self.total = torch.zeros_like(self.best)
        self.steps = torch.zeros_like(self.best)

    def update(self, losses: Tensor, rates: Tensor, *, end_of_epoch: bool) -> None:
        settings = self.settings
        self.total += losses
        self.steps += 1
        if not end_of_epoch:
            return
        mean = self.total / self.steps
        self.total.zero_()
        self.steps.zero_()
        better = mean < self.best * (1 - settings.threshold)
        self.best = torch.where(better, mean, self.best)
        self.bad = torch.where(better, 0.0, self.bad + 1)
        due = self.bad > settings.patience
        if due.device.type == "cpu" and not bool(due.any()):
            return  # elsewhere the question would wait for the device at every epoch
        base = rates.double()
        old = self.factors * base
        new = (old * settings.decay).clamp(min=settings.min_lr)
        change = due & (old - new > settings.eps)
        self.factors = torch.where(change, new / base, self.factors)
        self.bad = torch.where(due, 0.0, self.bad)

    def tensors(self) -> dict[str, Tensor]:
        return {"best": self.best, "bad": self.bad, "factors": self.factors, "total": self.total, "steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            getattr(self, name).copy_(value)


def _check_fractions(schedule: Schedule, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"schedule.{name} is {value!r}; it must be a number from 0 to 1")
