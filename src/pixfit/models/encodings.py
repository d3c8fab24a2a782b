"""Settings of the encodings that lift coordinates to features before a multilayer perceptron.

Frequencies and widths are in the units of the coordinates: with `Coordinates(range="unit")` a frequency is in cycles
per image side and a width is a fraction of the side; with the signed range the side is 2 units long.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from .base import check_integer, check_kind, check_number
from .networks import FourierEncoding, GaborEncoding, Network, PositionalEncoding, RawEncoding

__all__ = ["ENCODINGS", "Encoding", "Fourier", "Gabor", "Positional", "Raw"]


class Encoding(ABC):
    """Settings of an encoding (..., in_features) -> (..., out_features(in_features))."""

    @property
    def raw(self) -> bool:
        """Whether the encoding passes coordinates on, so that the next layer must not round them under autocast."""
        return False

    @abstractmethod
    def out_features(self, in_features: int) -> int:
        """Size of the encoding of `in_features` coordinates."""

    @abstractmethod
    def network(self, in_features: int, low: float = 0.0, high: float = 1.0) -> Network:
        """The encoding as a module, for coordinates in [low, high], its frequencies not meant to be used yet."""


@dataclass(frozen=True)
class Raw(Encoding):
    """The coordinates themselves."""

    @property
    def raw(self) -> bool:
        return True

    def out_features(self, in_features: int) -> int:
        return in_features

    def network(self, in_features: int, low: float = 0.0, high: float = 1.0) -> Network:
        return RawEncoding()


def _default_freq_scale(features: int) -> float:
    return 0.5 * (features // 2) / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class Fourier(Encoding):
    """Random Fourier features [cos 2 pi f.x, sin 2 pi f.x] (Tancik et al., NeurIPS 2020).

    features    size of the encoding, even: m = features / 2 frequency vectors.
    freq_scale  standard deviation of the frequencies, in cycles per unit of the coordinates (cycles per image side
                when `coordinates.range` is "unit"); None means 0.5 m / sqrt(2 pi), 6.4 at 64 features and 25.5 at 256.
    trainable   whether the frequencies are parameters; fixed ones are buffers, stored but not trained.
    """

    features: int = 256
    freq_scale: float | None = None
    trainable: bool = False

    def __post_init__(self) -> None:
        _check_features(self)
        if self.freq_scale is not None:
            check_number(self, "freq_scale", 0.0, 1e6, exclusive=True)
        check_kind(self, "trainable", bool)

    @property
    def scale(self) -> float:
        """The standard deviation in use."""
        return _default_freq_scale(self.features) if self.freq_scale is None else self.freq_scale

    def out_features(self, in_features: int) -> int:
        return self.features

    def network(self, in_features: int, low: float = 0.0, high: float = 1.0) -> Network:
        return FourierEncoding(in_features, self.features, self.scale, self.trainable)


@dataclass(frozen=True)
class Gabor(Encoding):
    """Gabor features exp(-|d|^2 / (2 sigma^2)) [cos 2 pi f.d, sin 2 pi f.d] with d = x - c.

    features    size of the encoding, even: features / 2 centres c, uniform over the range of the coordinates.
    freq_scale  standard deviation of the frequencies, in cycles per unit of the coordinates; None as for `Fourier`.
    sigma       width of the envelope in units of the coordinates. "code": 0.1 sqrt(256 / 2) = 1.131 whatever the size,
                as the program behind the published recipe computes it (on the unit square nearly plain Fourier
                features); "text": 0.1 sqrt(m / 256) with m = features / 2, 0.071 at 256 features, as its text says.
    trainable   whether centres and frequencies are parameters; the width stays a setting.
    """

    features: int = 256
    freq_scale: float | None = 80.0
    sigma: Literal["code", "text"] | float = "code"
    trainable: bool = False

    def __post_init__(self) -> None:
        _check_features(self)
        if self.freq_scale is not None:
            check_number(self, "freq_scale", 0.0, 1e6, exclusive=True)
        if self.sigma not in ("code", "text"):
            if isinstance(self.sigma, str):
                raise ValueError(f"Gabor.sigma: got {self.sigma!r}, allowed 'code', 'text' or a number above 0")
            check_number(self, "sigma", 0.0, 1e6, exclusive=True)
        check_kind(self, "trainable", bool)

    @property
    def scale(self) -> float:
        """The standard deviation of the frequencies in use."""
        return _default_freq_scale(self.features) if self.freq_scale is None else self.freq_scale

    @property
    def width(self) -> float:
        """The width sigma in use, in units of the coordinates."""
        if isinstance(self.sigma, str):
            return 0.1 * math.sqrt(256 / 2) if self.sigma == "code" else 0.1 * math.sqrt(self.features / 2 / 256)
        return self.sigma

    def out_features(self, in_features: int) -> int:
        return self.features

    def network(self, in_features: int, low: float = 0.0, high: float = 1.0) -> Network:
        return GaborEncoding(in_features, self.features, self.scale, self.width, low, high, self.trainable)


@dataclass(frozen=True)
class Positional(Encoding):
    """[x, sin 2^k pi x, cos 2^k pi x] for k = 0 ... octaves - 1 on every axis (NeRF, Mildenhall et al., ECCV 2020).

    octaves        how many frequencies per axis; the highest is 2^(octaves - 1) / 2 cycles per unit.
    include_input  whether the coordinates themselves come first.
    """

    octaves: int = 10
    include_input: bool = True

    def __post_init__(self) -> None:
        check_integer(self, "octaves", 1, 32)
        check_kind(self, "include_input", bool)

    @property
    def raw(self) -> bool:
        return self.include_input

    def out_features(self, in_features: int) -> int:
        return in_features * (2 * self.octaves + int(self.include_input))

    def network(self, in_features: int, low: float = 0.0, high: float = 1.0) -> Network:
        return PositionalEncoding(self.octaves, self.include_input)


def _check_features(encoding: Fourier | Gabor) -> None:
    check_integer(encoding, "features", 2, 65536)
    if encoding.features % 2:
        raise ValueError(f"{type(encoding).__name__}.features: got {encoding.features}, allowed even numbers")


ENCODINGS: dict[str, type[Encoding]] = {
    "Raw": Raw,
    "Fourier": Fourier,
    "Gabor": Gabor,
    "Positional": Positional,
}
