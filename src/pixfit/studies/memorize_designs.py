"""The designs that the study of memories compares: networks, codes, what they are shown, and how they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pixfit.models import (
    AxisCode,
    BinaryCode,
    Code,
    ConvEncoder,
    Coordinates,
    Encoder,
    Grid,
    LearnedCode,
    Mlp,
    RingCode,
    SetEncoder,
    Siren,
)
from pixfit.models.coordinate import CoordinateModel
from pixfit.optim import Adam, AdamW, Optimiser
from pixfit.spec import AugmentedBatches, Batches

__all__ = ["DESIGNS", "HYPER", "PUBLISHED", "Design", "HyperDesign", "Side"]

Side = tuple[int, int]
"""(height, width) in pixels."""

PUBLISHED = Coordinates("corner", order="row_col")
"""The published convention of coordinates."""

_CENTRES = Coordinates("center", order="row_col")
_ADAM, _BINARY = Adam(lr=1e-4), BinaryCode()


@dataclass(frozen=True, eq=False)
class Design:
    """One row of the study.

    Args:
        title: a few words.
        inner: the network's settings, of its width and the largest picture's size.
        code: how pictures are told apart.
        shown: what it is fitted to: the pictures as they are; ``copies`` (flips and turns) or ``crops`` of them, too,
            each with a code of its own; or ``doubled`` (enlarged by Lanczos, so that it is told what lies between
            pixels).
        optimiser: with the learning rate.
        family: what it tries for up-sampling; empty: it is about something else.
    """

    title: str
    inner: Callable[[int, Side], CoordinateModel]
    code: Code = _BINARY
    shown: Literal["plain", "copies", "crops", "doubled"] = "plain"
    optimiser: Optimiser = _ADAM
    family: str = ""


def _siren(width: int, side: Side) -> CoordinateModel:
    return Siren(3, width, coordinates=PUBLISHED)


def _centred(width: int, side: Side) -> CoordinateModel:
    return Siren(3, width, coordinates=_CENTRES)


def _slow(width: int, side: Side) -> CoordinateModel:
    return Siren(3, width, first_omega_0=10.0, coordinates=_CENTRES)


def _slower(width: int, side: Side) -> CoordinateModel:
    return Siren(3, width, first_omega_0=5.0, hidden_omega_0=15.0, coordinates=_CENTRES)


def _narrow(width: int, side: Side) -> CoordinateModel:
    return Siren.bottleneck(width, coordinates=PUBLISHED)


def _spline(width: int, side: Side) -> CoordinateModel:
    grid = Grid.pyramid(*side, interpolation="spline", init=0.1)
    return Mlp(3, width, encoding=grid, activation="silu", output="linear", coordinates=Coordinates(range="unit"))


DESIGNS: Mapping[str, Design] = {
    "binary": Design("the published network, with the number in binary", _siren, family="as published"),
    "axis": Design("the number as a further coordinate", _siren, AxisCode()),
    "axis-25": Design("that coordinate 25 times as long", _siren, AxisCode(25.0)),
    "ring": Design("a place on a ring", _siren, RingCode()),
    "learned": Design("16 learned numbers", _siren, LearnedCode(16, 0.5)),
    "bottleneck": Design("five layers, the middle one a tenth as wide", _narrow),
    "copies": Design("binary, with flips and turns as further pictures", _siren, shown="copies", family="augmentation"),
    "crops": Design("binary, with crops as further pictures", _siren, shown="crops", family="augmentation"),
    "centred": Design("binary, coordinates at pixel centres", _centred, family="pixel-centred coordinates"),
    "omega-10": Design("centred, first omega_0 10", _slow, family="lower omega_0"),
    "omega-5": Design("centred, omega_0 5 and 15", _slower, family="lower omega_0"),
    "decay": Design("centred, weight decay 1", _centred, optimiser=AdamW(lr=1e-4, weight_decay=1.0),
                    family="weight decay"),
    "doubled": Design("centred, fitted to the pictures doubled by Lanczos", _centred, shown="doubled",
                      family="anti-aliased targets"),
    "spline": Design("a perceptron on a grid of cubic splines", _spline, optimiser=Adam(lr=1e-3),
                     family="spline grid"),
    "omega-10-decay": Design("centred, first omega_0 10, weight decay 1", _slow,
                             optimiser=AdamW(lr=1e-4, weight_decay=1.0), family="lower omega_0 and weight decay"),
}  # fmt: skip
"""The designs by name. Early stopping, a family too, is scored of every one of them that has held-out pixels."""


@dataclass(frozen=True, eq=False)
class HyperDesign:
    """A hypernetwork, which makes a network of what it sees of a picture, as a row of the study.

    Args:
        title: a few words.
        encoder: of its width.
        turns, crop: how a step of training shows each picture, see `pixfit.spec.AugmentedBatches`; by default as it is.
    """

    title: str
    encoder: Callable[[int], Encoder]
    turns: bool = False
    crop: float = 1.0

    def batches(self, pixels: int) -> Batches:
        """Of so many pixels."""
        if not self.turns and self.crop == 1:
            return Batches(pixels)
        return AugmentedBatches(pixels, self.turns, self.crop)


HYPER: Mapping[str, HyperDesign] = {
    "hyper-conv": HyperDesign("a hypernetwork behind convolutions", ConvEncoder),
    "hyper-set": HyperDesign("a hypernetwork behind a set encoder", SetEncoder),
    "hyper-conv-turned": HyperDesign("hyper-conv, each step with new flips and turns", ConvEncoder, turns=True),
    "hyper-set-turned": HyperDesign("hyper-set, each step with new flips and turns", SetEncoder, turns=True),
    "hyper-set-cropped": HyperDesign("hyper-set-turned, with crops, too", SetEncoder, turns=True, crop=0.5),
}
"""The hypernetworks by name; they are trained to complete pictures of which they see few pixels."""
