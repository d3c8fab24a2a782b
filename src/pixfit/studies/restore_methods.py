"""The networks that the study of restoration fits to one damaged picture each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from pixfit.losses import L1, MSE, Loss
from pixfit.models import (
    AutoencodingSequential,
    ConvDecoder,
    DeepDecoder,
    DoublyOverparameterised,
    Finer,
    Fourier,
    Hourglass,
    Mlp,
    Model,
    Perturbation,
    SelfGuided,
    Siren,
    TotalVariation,
)
from pixfit.operators import Inpaint
from pixfit.optim import Adam, Langevin
from pixfit.problem import Problem
from pixfit.spec import AveragedOutput, BestHeldOut, Estimate, Last, PosteriorMean, Spec
from pixfit.starts import FromPicture, Start
from pixfit.stopping import HeldOut, Never
from pixfit.tasks import LOOK, Task, TaskName

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
        serves: the names of the tasks that it can be fitted to.
    """

    title: str
    make: Maker
    blend: bool = False
    serves: tuple[TaskName, ...] = get_args(TaskName)


def _default(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
    if task.lost is not None:
        known = Inpaint(~task.lost(problem.view.measurement))
        problem = replace(problem, operator=known, held_out=task.held_out)
    return task.spec(problem, steps=steps, seed=seed)


def _prior(model: Callable[[int, int], Model], rate: float = 0.01, loss: Loss | None = None) -> Maker:
    """The default fit with another network of whole pictures, made for (height, width)."""

    def make(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        _, height, width = problem.shape
        spec = task.spec(problem, steps=steps, seed=seed)
        return replace(spec, model=model(height, width), optimiser=Adam(lr=rate), loss=loss or MSE())

    return make


def _small(height: int, width: int) -> Hourglass:
    return Hourglass(channels=(32,) * _levels(height, width))


def _shaken(height: int, width: int) -> Hourglass:
    return replace(_small(height, width), perturbation=Perturbation(0.25))


def _still(height: int, width: int) -> Hourglass:
    return replace(_small(height, width), perturbation=Perturbation(0.0))


def _to_the_end(make: Maker) -> Maker:
    """These fits without a rule that ends them: the answer is the average at the last step."""

    def unstopped(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        return replace(make(problem, task, steps, seed), stopping=Never(), estimate=AveragedOutput())

    return unstopped


def _from_picture(make: Maker) -> Maker:
    """These fits with a code that begins as what was measured, where that is a picture of the same size."""

    def begun(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        start = Start(FromPicture()) if problem.operator.pointwise else Start()
        return replace(make(problem, task, steps, seed), start=start)

    return begun


def _sampled(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
    """Cheng et al. have 20,000 steps, of which 7,000 do not count, and then every 50th does; here so in proportion."""
    spec = _prior(_small)(problem, task, steps, seed)
    longest = spec.budget.steps
    assert longest is not None
    mean = PosteriorMean(burn_in=round(0.35 * longest), every=max(1, round(longest / 400)))
    return replace(spec, optimiser=Langevin(), stopping=Never(), estimate=mean)


def _coordinates(model: Callable[[float], Model], rate: float) -> Maker:
    """The default fit with a coordinate network, made for a picture of (pixels)^½ a side: the answer is what the best
    weights show, as an average of what was shown gains nothing there. The best step is short-lived, and looks count
    alone."""

    def make(problem: Problem, task: Task, steps: int | None, seed: int) -> Spec:
        _, height, width = problem.shape
        spec = task.spec(problem, steps=steps, seed=seed)
        stopping = spec.stopping
        estimate: Estimate = Last()
        if isinstance(stopping, HeldOut):
            stopping, estimate = replace(stopping, window=1), BestHeldOut(LOOK)
        made = model((height * width) ** 0.5)
        return replace(spec, model=made, optimiser=Adam(lr=rate), stopping=stopping, estimate=estimate)

    return make


def _levels(height: int, width: int) -> int:
    """Halvings that a picture allows, five at most."""
    return len(Hourglass.small(height, width).channels)


METHODS: dict[str, Method] = {
    "ours": Method("what pixfit restore does", _default, blend=True),
    "hourglass-small": Method("deep image prior, 32 channels", _prior(_small)),
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
    "hourglass-last": Method("deep image prior, 32 channels, never stopped", _to_the_end(_prior(_small))),
    "dip-l1": Method(
        "deep image prior, 32 channels, absolute errors, never stopped", _to_the_end(_prior(_small, loss=L1()))
    ),
    "doip": Method(
        "double over-parameterisation of 32 channels, never stopped",
        _to_the_end(_prior(lambda height, width: DoublyOverparameterised(_small(height, width)))),
        serves=("denoise", "inpaint", "deblur"),  # it has an outlier for each sample of the picture
    ),
    "self-guided": Method(
        "self-guided deep image prior, 32 channels",
        _from_picture(_prior(lambda height, width: SelfGuided(_shaken(height, width)))),
    ),
    "sequential": Method(
        "autoencoding-sequential deep image prior, 32 channels",
        _from_picture(_prior(lambda height, width: AutoencodingSequential(_still(height, width)))),
    ),
    "total-variation": Method(
        "deep image prior, 32 channels, with a total-variation penalty of 0.01",
        _prior(lambda height, width: TotalVariation(_small(height, width))),
    ),
    "sgld": Method("deep image prior, 32 channels, posterior mean by Langevin steps, never stopped", _sampled),
}
"""The lines of the tables. A new one is a title and a function that returns its fit."""
