"""When a fit ends: its budget, and rules that may end it earlier. None of them knows the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole

__all__ = [
    "STOPPING", "Budget", "Epochs", "HeldOut", "Judge", "MovingVariance", "Never", "Seconds", "Steps", "Stopping",
    "TargetPSNR", "WindowVariance", "discrepancy",
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

    Args:
        patience: steps.
        window: steps over whose looks errors are averaged before they are compared, so that chance at some hundred
            noisy pixels does not pick the step. The minimum, and the answer, then come later by about half of it, which
            suits an averaged output: seen pixels gain for longer than held-out ones. A coordinate network's best step
            is too short-lived for it. Up to the estimate's ``every``: each look counts alone.
    """

    patience: int = 150
    window: int = 1

    def __post_init__(self) -> None:
        for name in ("patience", "window"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1):
                raise ValueError(f"stopping.{name} is {value!r}; it must be a whole number, 1 or more steps")

    def compared(self, errors: Tensor, every: int) -> Tensor:
        """What the rule compares (K,): the mean errors over the window that ends at each look, in double precision.

        Args:
            errors: (K,), one a look.
            every: steps from one look to the next.
        """
        looks = min(max(1, self.window // every), max(1, len(errors)))
        before = torch.nn.functional.pad(errors.double(), (looks - 1, 0))
        counts = torch.arange(1, len(errors) + 1).clamp(max=looks)
        return before.unfold(0, looks, 1).sum(dim=1) / counts if len(errors) else errors.double()


def discrepancy(sigma: float, *, factor: float = 1.0, every: int = 10) -> TargetPSNR:
    """Ends the fit when its mean squared error against the measurement is factor · σ² (Morozov 1966), σ known.

    Measured on deep image priors of pictures that were clipped to [0, 1] it may end several dB too late: clipping takes
    noise away where a picture is dark or bright.
    """
    for name, value in (("sigma", sigma), ("factor", factor)):
        if not (is_number(value) and 0 < value <= 10):
            raise ValueError(f"{name} is {value!r}; it must be above 0 and up to 10")
    return TargetPSNR(-10 * math.log10(factor * sigma**2), every)


@dataclass(frozen=True)
class WindowVariance(Stopping):
    """Ends the fit when what the last steps showed varies less than ever, and then no less (Wang et al., TMLR 2023,
    ES-WMV).

    The variance is the mean over the last ``window`` steps of the mean squared distance to their mean. Its least value
    marks the step whose estimate is the answer. For networks of whole pictures.

    Args:
        window: steps.
        patience: steps without a new minimum after which the fit ends.
        warmup: steps that do not count. Measured without one, the flat start of a fit is often taken for the minimum,
            which costs up to 7 dB; published are a patience of 1000 and no warm-up.
    """

    window: int = 100
    patience: int = 1000
    warmup: int = 400

    def __post_init__(self) -> None:
        _check_wait(self.patience, self.warmup)
        if not (is_whole(self.window) and self.window >= 2):
            raise ValueError(f"stopping.window is {self.window!r}; it must be a whole number, 2 or more steps")

    def judge(self, shown: Tensor) -> Judge:
        """The working rule for outputs like ``shown`` (F, …)."""
        return _WindowJudge(self.window, shown)


@dataclass(frozen=True)
class MovingVariance(Stopping):
    """`WindowVariance` with exponential averages in place of a window, which need no memory of it (ES-EMV, ibidem).

    With d the distance of what a step shows from the average before it, the average moves by ``rate`` · d, and the
    variance becomes (1 − rate) · (variance + rate · mean d²).

    Args:
        rate: see above.
        patience, warmup: as of `WindowVariance`.
    """

    rate: float = 0.1
    patience: int = 1000
    warmup: int = 400

    def __post_init__(self) -> None:
        _check_wait(self.patience, self.warmup)
        if not (is_number(self.rate) and 0 < self.rate < 1):
            raise ValueError(f"stopping.rate is {self.rate!r}; it must be above 0 and under 1")

    def judge(self, shown: Tensor) -> Judge:
        """The working rule for outputs like ``shown`` (F, …)."""
        return _MovingJudge(self.rate, shown)


class Judge:
    """A rule at work that sees what every step shows. ``state`` is all of it, tensors with a row a fit."""

    def __init__(self, **state: Tensor) -> None:
        self.state = state

    def see(self, shown: Tensor, step: int) -> Tensor:
        """Takes what the step, counted from 0, shows (F, …); returns (F,), the variance, or inf where it has not seen
        enough."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])


class _WindowJudge(Judge):
    def __init__(self, window: int, shown: Tensor) -> None:
        flat = shown.flatten(1)
        self._window = window
        super().__init__(
            frames=flat.new_zeros(len(flat), window, flat.shape[1]),
            # In double precision: the variance is a small difference of large sums.
            sums=torch.zeros_like(flat, dtype=torch.float64),
            squares=flat.new_zeros(len(flat), dtype=torch.float64),
        )

    def see(self, shown: Tensor, step: int) -> Tensor:
        frames, sums, squares = self.state["frames"], self.state["sums"], self.state["squares"]
        new, old = shown.flatten(1), frames[:, step % self._window]
        sums += new.double() - old.double()
        squares += new.double().square().mean(dim=1) - old.double().square().mean(dim=1)
        old.copy_(new)
        if step + 1 < self._window:
            return torch.full_like(squares, math.inf)
        return squares / self._window - (sums / self._window).square().mean(dim=1)


class _MovingJudge(Judge):
    def __init__(self, rate: float, shown: Tensor) -> None:
        self._rate = rate
        flat = shown.flatten(1)
        super().__init__(mean=torch.zeros_like(flat), variance=flat.new_zeros(len(flat)))

    def see(self, shown: Tensor, step: int) -> Tensor:
        mean, variance = self.state["mean"], self.state["variance"]
        away = shown.flatten(1) - mean
        rate = self._rate if step else 1.0
        mean.add_(away, alpha=rate)
        variance.add_(away.square().mean(dim=1), alpha=rate).mul_(1 - rate)
        return variance.double() if step else torch.full_like(variance, math.inf, dtype=torch.float64)


def _check_wait(patience: int, warmup: int) -> None:
    if not (is_whole(patience) and patience >= 1):
        raise ValueError(f"stopping.patience is {patience!r}; it must be a whole number, 1 or more steps")
    if not (is_whole(warmup) and warmup >= 0):
        raise ValueError(f"stopping.warmup is {warmup!r}; it must be a whole number, 0 or more steps")


STOPPING: dict[str, type[Stopping]] = {
    "Never": Never, "TargetPSNR": TargetPSNR, "HeldOut": HeldOut, "WindowVariance": WindowVariance,
    "MovingVariance": MovingVariance,
}  # fmt: skip
