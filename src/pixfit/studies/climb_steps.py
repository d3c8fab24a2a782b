"""The published recipe climb as values: its points, its sweeps in order, and what was said of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["NAMES", "Claim", "Members", "Point", "Sweep", "Values", "climb", "label", "text"]

NAMES = (
    "baseline", "size", "encoding", "adamw", "free", "trainable", "activation", "type", "norm", "experts", "skip",
    "batch", "sigma", "gate", "decay",
)  # fmt: skip
"""Of the twelve published steps, 0 to 11, and of three more sweeps: over what only the published program tells."""

_STEPS = {name: str(number) for number, name in enumerate(NAMES[:12])}


@dataclass(frozen=True)
class Point:
    """One setting of everything that the climb changes, in the published units.

    Args:
        layers: linear maps, the output's included.
        hidden: width.
        kind: of the encoding, ``Fourier`` or ``Gabor``.
        features: size of the encoding.
        scale: of the frequencies, in cycles per image side; None: the program's default for this size.
        trainable: whether the encoding is trained.
        sigma: width rule of Gabor features, ``code`` or ``text``.
        activation: ``relu``, ``silu`` or ``gelu``.
        norm: whether a LayerNorm follows on each activation.
        experts: how many.
        gate: ``layer`` normalises the gate's coordinates, as published; ``none`` does not.
        skip: whether hidden layers add their input.
        optimiser: ``AdamW`` or ``ScheduleFreeAdamW``.
        lr: learning rate.
        decay: of the weights.
        batch: pixels a step.
    """

    layers: int = 4
    hidden: int = 256
    kind: Literal["Fourier", "Gabor"] = "Fourier"
    features: int = 64
    scale: float | None = None
    trainable: bool = False
    sigma: Literal["code", "text"] = "code"
    activation: Literal["relu", "silu", "gelu"] = "relu"
    norm: bool = False
    experts: int = 1
    gate: Literal["layer", "none"] = "layer"
    skip: bool = False
    optimiser: Literal["AdamW", "ScheduleFreeAdamW"] = "AdamW"
    lr: float = 1e-4
    decay: float = 0.01
    batch: int = 4096


Values = tuple[Any, ...]
Members = Mapping[Values, Point]
"""The points of a sweep by their values on its axes."""


@dataclass(frozen=True)
class Claim:
    """That one member of a sweep is better than another.

    Args:
        better: its values on the sweep's axes.
        worse: those of the other one; None: whichever of the others is best here.
        said: the published finding in a few words; empty where none was stated.
        even: whether the finding is that the two are not to be told apart, or the better one hardly.
    """

    better: Values
    worse: Values | None
    said: str
    even: bool = False


@dataclass(frozen=True)
class Sweep:
    """One sweep: the grid over ``axes`` around ``point``, whose other settings are held fixed.

    Args:
        name: one of `NAMES`, with the frequency scale behind it where the published one is not known.
        step: number in the published order; empty for the three more.
        axes: values by the point's field, in order.
        point: what is held fixed: what was chosen before.
        taken: the member that later steps hold fixed.
        claims: what was said of the order.
        psnr: the published mean in dB, where there is one.
    """

    name: str
    step: str
    axes: Mapping[str, Values]
    point: Point
    taken: Values
    claims: tuple[Claim, ...]
    psnr: float | None = None

    @property
    def members(self) -> Members:
        """All points of the grid, the last axis running fastest."""
        return {
            values: replace(self.point, **dict(zip(self.axes, values, strict=True)))
            for values in itertools.product(*self.axes.values())
        }

    @property
    def onward(self) -> Point:
        """The point that the next step starts from."""
        return self.members[self.taken]


def label(sweep: Sweep, values: Values) -> str:
    """A member by its values, such as ``hidden=1024, layers=6``."""
    return ", ".join(f"{name}={text(value)}" for name, value in zip(sweep.axes, values, strict=True))


def text(value: Any) -> str:
    """A value of an axis as tables and figures show it."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def climb(
    first_scales: Sequence[float | None],
    *,
    sigma: Literal["code", "text"],
    gate: Literal["layer", "none"],
    adamw_decay: float,
    free_decay: float,
) -> tuple[Sweep, ...]:
    """The twelve steps, and three sweeps more.

    Each step holds fixed what was chosen before it in the published order, whatever is best here.

    Args:
        first_scales: frequency scales of the steps 0 and 1, for which none was stated.
        sigma, gate: of `Point`, wherever they are not swept.
        adamw_decay, free_decay: weight decay with AdamW and with its schedule-free form: the published program has
            0.01 and 0, so its step from one to the other changes two things.
    """
    start = Point(sigma=sigma, gate=gate, decay=adamw_decay)
    sizes = {"hidden": (512, 768, 1024), "layers": (3, 4, 5, 6)}
    found = [_sweep("baseline", start, {"scale": tuple(first_scales)}, (first_scales[0],))]
    for scale in first_scales:
        said = "the largest is best, a corner of the grid"
        found.append(
            _sweep("size", replace(start, scale=scale), sizes, (1024, 6), said, psnr=26.0, variant=text(scale))
        )
    encodings = {"scale": (50.0, 80.0, 110.0, 140.0, 170.0), "features": (64, 128, 256)}
    said = "80 with 256 is best, an edge of the grid"
    found.append(_sweep("encoding", found[-1].onward, encodings, (80.0, 256), said, psnr=35.0))

    rates = {"lr": (1e-4, 2e-4, 3e-4, 4e-4, 5e-4)}
    found.append(_sweep("adamw", found[-1].onward, rates, (1e-4,)))
    free = replace(found[-1].onward, optimiser="ScheduleFreeAdamW", decay=free_decay)
    best = Claim((5e-4,), None, "5e-4 is best; 4e-4 is taken, for stability")
    found.append(_sweep("free", free, rates, (4e-4,), claims=(best,)))
    tuned = found[-1].onward
    even = (Claim((False,), None, "training them gains nothing", even=True),)
    found.append(_sweep("trainable", tuned, {"trainable": (False, True)}, (False,), claims=even))
    activations = {"activation": ("relu", "silu", "gelu")}
    found.append(_sweep("activation", tuned, activations, ("relu",), "ReLU by a clear margin"))

    types: dict[str, Values] = {"kind": ("Fourier", "Gabor"), "features": (192, 256, 320, 384, 512)}
    claims: tuple[Claim, ...] = (
        Claim(("Gabor", 256), ("Fourier", 256), "very even", even=True),
        Claim(("Gabor", 512), ("Fourier", 512), "Gabor is ahead at large sizes"),
        Claim(("Fourier", 384), ("Fourier", 192), "Fourier is flat from 192 to 384", even=True),
    )
    found.append(_sweep("type", tuned, types, ("Gabor", 256), claims=claims))
    gabor = found[-1].onward
    found.append(_sweep("norm", gabor, {"norm": (False, True)}, (True,), "a big gain, in PSNR and in speed"))
    mixtures = {"experts": (1, 2), "hidden": (768, 1024, 1280), "layers": (5, 6, 7)}
    said = "best, though not significantly"
    claims = (Claim((2, 1024, 5), None, said, even=True), Claim((2, 1024, 5), (1, 1024, 5), said, even=True))
    found.append(_sweep("experts", found[-1].onward, mixtures, (2, 1024, 5), claims=claims, psnr=47.15))
    final = found[-1].onward
    found.append(_sweep("skip", final, {"skip": (False, True)}, (False,), "skips are slightly worse, and slower"))
    found.append(_sweep("batch", final, {"batch": (512, 1024, 2048, 4096, 8192)}, (4096,), "4096 is best"))

    found.append(_sweep("sigma", gabor, {"sigma": ("code", "text")}, ("code",)))
    found.append(_sweep("gate", final, {"gate": ("layer", "none")}, ("layer",)))
    found.append(_sweep("decay", tuned, {"decay": (0.0, 0.01)}, (0.0,)))
    return tuple(found)


def _sweep(
    name: str,
    point: Point,
    axes: Mapping[str, Values],
    taken: Values,
    said: str = "",
    *,
    claims: tuple[Claim, ...] = (),
    psnr: float | None = None,
    variant: str = "",
) -> Sweep:
    """A sweep; without other claims it is said that the taken member is better than all others."""
    full = f"{name}_{variant}" if variant else name
    return Sweep(full, _STEPS.get(name, ""), axes, point, taken, claims or (Claim(taken, None, said),), psnr)
