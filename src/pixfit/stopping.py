"""When a fit ends: its budget, and rules that may end it earlier. None of them knows the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pixfit.canonical import is_number, is_whole

__all__ = [
    "STOPPING", "Budget", "Epochs", "HeldOut", "Never", "Seconds", "Steps", "Stopping", "TargetPSNR", "discrepancy",
]  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a fit may spend; whichever limit is reached first ends it. At least one must be given.

    Args:
        steps: updates of the weights.
        epochs: passes over the samples; with full batches an epoch is a step.
        seconds: of wall time inside the training loop; evaluating and watching do not count.
    """

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = {"steps": self.steps, "epochs": self.epochs, "seconds": self.seconds}
        if all(limit is None for limit in limits.values()):
            raise ValueError("a budget needs a limit: steps, epochs or seconds, such as pixfit.Steps(2000)")
        for name, limit in limits.items():
            right = is_number(limit) if name == "seconds" else is_whole(limit)
            if limit is not None and not (right and 0 <= limit <= 1e12):
                kind = "a number" if name == "seconds" else "a whole number"
                raise ValueError(f"budget.{name} is {limit!r}; it must be {kind}, 0 or more")

    def step_limit(self, steps_per_epoch: int) -> int | None:
        """The number of steps at which steps or epochs end the fit; None when only seconds do."""
        limits = [self.steps, None if self.epochs is None else self.epochs * steps_per_epoch]
        return min((limit for limit in limits if limit is not None), default=None)


def Steps(steps: int) -> Budget:
    """A budget of that many updates."""
    return Budget(steps=steps)


def Epochs(epochs: int) -> Budget:
    """A budget of that many passes over the samples."""
    return Budget(epochs=epochs)


def Seconds(seconds: float) -> Budget:
    """A budget of that many seconds of wall time inside the training loop."""
    return Budget(seconds=seconds)


class Stopping:
    """Base of the rules that may end a fit before its budget does."""


@dataclass(frozen=True)
class Never(Stopping):
    """Only the budget ends the fit."""


@dataclass(frozen=True)
class TargetPSNR(Stopping):
    """Ends the fit when the PSNR between the prediction and the *measurement* reaches ``psnr`` dB.

    It is looked at every ``every`` steps, over all fitted samples, with the prediction clamped to [0, 1]. The time that
    takes is not counted as training.
    """

    psnr: float = 40.0
    every: int = 50

    def __post_init__(self) -> None:
        if not is_number(self.psnr):
            raise ValueError(f"stopping.psnr is {self.psnr!r}; it must be a number of decibels")
        if not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"stopping.every is {self.every!r}; it must be a whole number, 1 or more steps")


@dataclass(frozen=True)
class HeldOut(Stopping):
    """Ends the fit when the error on the problem's held-out pixels has had no new minimum for ``patience`` steps.

    It is the error of the spec's estimate at its own looks, so the estimate must be one that compares held-out errors:
    `pixfit.AveragedOutput` with ``every``, or `pixfit.BestHeldOut`. Measured on deep image priors, the error of the
    averaged output tells the best step within 0.1 dB, where that of the raw output misfires.
    """

    patience: int = 150

    def __post_init__(self) -> None:
        if not (is_whole(self.patience) and self.patience >= 1):
            raise ValueError(f"stopping.patience is {self.patience!r}; it must be a whole number, 1 or more steps")


def discrepancy(sigma: float, *, factor: float = 1.0, every: int = 10) -> TargetPSNR:
    """Ends the fit when its mean squared error against the measurement is factor · σ² (Morozov 1966), σ known.

    Measured on deep image priors of pictures that were clipped to [0, 1] it may end several dB too late: clipping takes
    noise away where a picture is dark or bright.
    """
    for name, value in (("sigma", sigma), ("factor", factor)):
        if not (is_number(value) and 0 < value <= 10):
            raise ValueError(f"{name} is {value!r}; it must be above 0 and up to 10")
    return TargetPSNR(-10 * math.log10(factor * sigma**2), every)


STOPPING: dict[str, type[Stopping]] = {"Never": Never, "TargetPSNR": TargetPSNR, "HeldOut": HeldOut}
