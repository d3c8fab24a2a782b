"""The networks that the study of restoration fits to one damaged picture each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pixfit.models import ConvDecoder, DeepDecoder, Finer, Fourier, Hourglass, Mlp, Model, Siren
from pixfit.optim import Adam
from pixfit.problem import Problem
from pixfit.spec import BestHeldOut, Last, Spec
from pixfit.stopping import HeldOut
from pixfit.tasks import LOOK, Task

__all__ = ["METHODS", "Maker", "Method"]

Maker = Callable[[Problem, Task, int | None, int], Spec]
"""The fit of a damaged picture, by the task that undoes the damage: its steps at most (None: the task's), its seed."""


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    Args:
        title: a few words.
        make: its fits.
        blend: whether the answer is the task's blend with its classical estimate, where it has one.
    """

    title: str
    make: Maker
    blend: bool = False


def _default(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
    return task.spec(problem, steps=steps, seed=seed)


def _prior(model: Callable[[int, int], Model], rate: float = 0.01) -> Maker:
    """The default fit with another network of whole pictures, made for (height, width)."""

    def make(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        _, height, width = problem.shape
        spec = task.spec(problem, steps=steps, seed=seed)
        return replace(spec, model=model(height, width), optimiser=Adam(lr=rate))

    return make


def _coordinates(model: Callable[[float], Model], rate: float) -> Maker:
    """The default fit with a coordinate network, made for a picture of (pixels)^½ a side: the answer is what the best
    weights show, as an average of what was shown gains nothing there."""

    def make(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        _, height, width = problem.shape
        estimate = BestHeldOut(LOOK) if isinstance(task.stopping, HeldOut) else Last()
        spec = task.spec(problem, steps=steps, seed=seed)
        made = model((height * width) ** 0.5)
        return replace(spec, model=made, optimiser=Adam(lr=rate), estimate=estimate)

    return make


def _levels(height: int, width: int) -> int:
    """Halvings that a picture allows, five at most."""
    return len(Hourglass.small(height, width).channels)


METHODS: dict[str, Method] = {
    "ours": Method("what pixfit restore does", _default, blend=True),
    "hourglass-small": Method(
        "deep image prior, 32 channels",
        _prior(lambda height, width: Hourglass(channels=(32,) * _levels(height, width))),
    ),
    "dip": Method(
        "deep image prior, 128 channels as published",
        _prior(lambda height, width: Hourglass(channels=(128,) * _levels(height, width))),
    ),
    "deep-decoder": Method(
        "deep decoder, 128 channels", _prior(lambda height, width: DeepDecoder(128, doublings=_levels(height, width)))
    ),
    "conv-decoder": Method("ConvDecoder, 64 channels", _prior(lambda height, width: ConvDecoder())),
    "siren": Method(
        "SIREN, 3 × 128, ω₀ 20",
        _coordinates(lambda side: Siren(2, 128, first_omega_0=20.0, hidden_omega_0=20.0), 1e-3),
    ),
    "finer": Method(
        "FINER, 3 × 128, ω₀ 10",
        _coordinates(lambda side: Finer(2, 128, first_omega_0=10.0, hidden_omega_0=10.0), 1e-3),
    ),
    "fourier": Method(
        "Fourier features, 3 × 128",
        _coordinates(lambda side: Mlp(2, 128, encoding=Fourier(128, freq_scale=0.06 * side)), 1e-3),
    ),
}
"""The lines of the tables. A new one is a title and a function that returns its fit."""
