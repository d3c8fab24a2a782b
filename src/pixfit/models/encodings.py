"""Settings of the encodings that lift coordinates to features before a multilayer perceptron.

Frequencies and widths are in the units of the coordinates: with `Coordinates(range="unit")` a frequency is in cycles
per image side and a width is a fraction of the side; with the signed range the side is 2 units long.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit.kernels import Level, Lift, neighbours

from .base import Coordinates, check_choice, check_integer, check_kind, check_number, check_whole
from .networks import FourierEncoding, GaborEncoding, GridEncoding, Network, PositionalEncoding, RawEncoding

__all__ = ["ENCODINGS", "Encoding", "Fourier", "Gabor", "Grid", "Positional", "Raw"]

_UNIT = Coordinates(range="unit")
_MOST_LEVELS = 32
_RIDGE = 1e-9


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
    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        """The encoding as a module, its numbers not meant to be used yet."""

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift | None:
        """The encoding for a fused kernel. None: no fused kernel serves it, torch runs.

        Names of tensors are complete, as in the `state_dict` of the whole network: "encoding." and the name in the
        module that `network` gives.
        """
        return None


@dataclass(frozen=True)
class Raw(Encoding):
    """The coordinates themselves."""

    @property
    def raw(self) -> bool:
        return True

    def out_features(self, in_features: int) -> int:
        return in_features

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        return RawEncoding()

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift | None:
        return Lift("raw", in_features)


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

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        return FourierEncoding(in_features, self.features, self.scale, self.trainable)

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift | None:
        if self.trainable:
            return None
        return Lift("fourier", self.features, frequencies="encoding.frequencies")


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

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        low, high = coordinates.low, coordinates.high
        return GaborEncoding(in_features, self.features, self.scale, self.width, low, high, self.trainable)

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift | None:
        if self.trainable:
            return None
        names = ("encoding.frequencies", "encoding.centres")
        return Lift("gabor", self.features, *names, sigma=self.width)


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

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        return PositionalEncoding(self.octaves, self.include_input)

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift | None:
        features = self.out_features(in_features)
        return Lift("positional", features, octaves=self.octaves, include_input=self.include_input)


@dataclass(frozen=True)
class Grid(Encoding):
    """A pyramid of trainable feature grids over the range of the coordinates (Mueller et al., SIGGRAPH 2022).

    Each level holds `features` numbers at each of rows x columns vertices and gives those of a sample by interpolation;
    the encoding is all levels side by side. A row of vertices runs along a row of the picture, whatever the order of
    the coordinates. The grid covers the whole range: with the aspect "keep" the picture fills a part of it. Coordinates
    outside get what lies on the edge. For pictures only: two coordinates a sample.

    levels         (rows, columns, features) of each level, coarse to fine; (side, features) is stored as
                   (side, side, features).
    entries        None: every level has numbers of its own at each vertex. A power of two: a level with more vertices
                   has a table of that many entries, and the vertex (row, column) takes the one numbered
                   (column xor 2654435761 row mod 2^32) mod entries, shared with others.
    interpolation  "linear" in the 4 vertices around a sample; "cubic" in 16 (Catmull-Rom; Keys 1981 with a = -1/2),
                   about four times the work: smooth in between, so that pictures can be enlarged; "spline" in 16 (the
                   uniform cubic B-spline): twice differentiable, and what a sample shows is never one vertex alone.
    alignment      where the vertices lie, as samples of `Coordinates`: "center" puts vertex i of n at (i + 0.5) / n of
                   the side, "corner" at i / (n - 1). With that of the coordinates, a level of the picture's size has
                   a vertex at each pixel.
    init           all numbers start as U(±init).
    """

    levels: tuple[tuple[int, ...], ...] = ((16, 16, 4), (32, 32, 4), (64, 64, 4), (128, 128, 2), (256, 256, 2))
    entries: int | None = None
    interpolation: Literal["linear", "cubic", "spline"] = "linear"
    alignment: Literal["center", "corner"] = "center"
    init: float = 1e-4

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple) or not 1 <= len(self.levels) <= _MOST_LEVELS:
            raise ValueError(f"Grid.levels: got {self.levels!r}, allowed a tuple of 1 to {_MOST_LEVELS} levels")
        for level in self.levels:
            if not isinstance(level, tuple) or len(level) not in (2, 3):
                raise ValueError(f"Grid.levels: got {level!r}, allowed (rows, columns, features) or (side, features)")
            for side in level[:-1]:
                check_whole("Grid.levels (vertices along a side)", side, 1, 2**20)
            check_whole("Grid.levels (features)", level[-1], 1, 256)
        object.__setattr__(self, "levels", tuple((level[0], *level[-2:]) for level in self.levels))
        if self.entries is not None:
            check_integer(self, "entries", 1, 2**31)
            if self.entries & (self.entries - 1):
                raise ValueError(f"Grid.entries: got {self.entries}, allowed powers of two, or None for no limit")
        check_choice(self, "interpolation", ("linear", "cubic", "spline"))
        check_choice(self, "alignment", ("center", "corner"))
        check_number(self, "init", 0.0, 1e6)

    @classmethod
    def pyramid(cls, height: int, width: int, **settings: Any) -> Self:
        """Five levels for a picture: 4 features at 1/16, 1/8 and 1/4 of its resolution, 2 at 1/2 and at the whole."""
        check_whole("height", height, 1, 2**20)
        check_whole("width", width, 1, 2**20)
        parts = ((16, 4), (8, 4), (4, 4), (2, 2), (1, 2))
        return cls(levels=tuple((-(-height // part), -(-width // part), n) for part, n in parts), **settings)

    @classmethod
    def geometric(cls, coarsest: int, finest: int, count: int, features: int = 2, **settings: Any) -> Self:
        """Square levels whose sides grow by one factor from the coarsest to the finest, as in the paper's hash grids.

        `Grid.geometric(16, 512, 16, entries=2**14)` is one of those.
        """
        check_whole("coarsest", coarsest, 1, 2**20)
        check_whole("finest", finest, coarsest, 2**20)
        check_whole("count", count, 2, _MOST_LEVELS)
        sides = (round(coarsest * (finest / coarsest) ** (number / (count - 1))) for number in range(count))
        return cls(levels=tuple((side, side, features) for side in sides), **settings)

    def out_features(self, in_features: int) -> int:
        return sum(level[-1] for level in self.levels)

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        _check_pair(in_features)
        settings = (self.entries, self.interpolation, self.alignment, self.init)
        return GridEncoding(self.levels, *settings, _row_axis(coordinates), coordinates.low, coordinates.high)

    def lift(self, in_features: int, coordinates: Coordinates) -> Lift:
        _check_pair(in_features)
        levels = []
        for number, (rows, columns, features) in enumerate(self.levels):
            vertices = rows * columns
            entries = vertices if self.entries is None else min(vertices, self.entries)
            levels.append(Level(rows, columns, features, f"encoding.tables.{number}", entries))
        return Lift(
            "grid",
            self.out_features(in_features),
            levels=tuple(levels),
            interpolation=self.interpolation,
            alignment=self.alignment,
            row_axis=_row_axis(coordinates),
            low=coordinates.low,
            high=coordinates.high,
        )

    @property
    def stores(self) -> tuple[tuple[int, int], ...]:
        """(level, feature) of all features whose vertices have numbers of their own, those of most vertices first."""
        sizes = [rows * columns for rows, columns, _ in self.levels]
        own = [level for level, size in enumerate(sizes) if self.entries is None or size <= self.entries]
        own.sort(key=lambda level: -sizes[level])
        return tuple((level, feature) for level in own for feature in range(self.levels[level][-1]))

    def nearest(self, level: int, plane: Tensor, coordinates: Coordinates) -> Tensor:
        """The numbers (rows, columns) of one feature of a level whose interpolation is nearest to a plane (H, W).

        In least squares over the samples of a picture of that size. They form a mesh, so that both sides are solved one
        after the other, each by a banded Cholesky decomposition.
        """
        rows, columns = coordinates.axes(*plane.shape, dtype=torch.float64)
        lift = self.lift(2, coordinates)
        found = _along(lift, rows, self.levels[level][0], plane.double().numpy())
        return torch.from_numpy(_along(lift, columns, self.levels[level][1], found.T).T.copy())


def _along(lift: Lift, places: Tensor, vertices: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers (vertices, K) nearest to values (N, K) at N places along one side."""
    from scipy import linalg, sparse

    index, weights = neighbours(lift, (places - lift.low) / (lift.high - lift.low), vertices)
    samples = torch.arange(len(places)).repeat(len(index))
    entries = (torch.cat(weights).numpy(), (samples.numpy(), torch.cat(index).numpy()))
    matrix = sparse.csr_matrix(entries, shape=(len(places), vertices))
    normal = matrix.T @ matrix
    bands = np.zeros((min(len(index), vertices), vertices))
    for number in range(len(bands)):
        bands[number, : vertices - number] = normal.diagonal(number)
    bands[0] += _RIDGE * bands[0].max()  # vertices beyond the samples are 0
    found: NDArray[np.float64] = linalg.solveh_banded(
        bands, matrix.T @ values, lower=True, overwrite_ab=True, overwrite_b=True
    )
    return found


def _check_pair(in_features: int) -> None:
    if in_features != 2:
        raise ValueError(f"in_features: got {in_features}; a Grid takes the 2 coordinates of a picture")


def _row_axis(coordinates: Coordinates) -> int:
    """Which of the two coordinates says the row."""
    return 1 if coordinates.order == "xy" else 0


def _check_features(encoding: Fourier | Gabor) -> None:
    check_integer(encoding, "features", 2, 65536)
    if encoding.features % 2:
        raise ValueError(f"{type(encoding).__name__}.features: got {encoding.features}, allowed even numbers")


ENCODINGS: dict[str, type[Encoding]] = {
    "Raw": Raw,
    "Fourier": Fourier,
    "Gabor": Gabor,
    "Positional": Positional,
    "Grid": Grid,
}
