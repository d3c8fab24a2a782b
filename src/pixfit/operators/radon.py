"""The Radon transform in parallel beams: computed tomography of one slice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit.canonical import is_number, is_whole

from .base import Operator, Shape, linear, shape_of, working_dtype

__all__ = ["Radon"]

_AT_ONCE = 2**24  # weights of a matrix that is not kept
_TAPS = 3  # detectors that see one pixel: its shadow on them is at most 1 + √2 of their widths


@dataclass(frozen=True)
class Radon(Operator):
    """Parallel-beam projections: each measured sample is the mean of the picture over a strip one pixel wide.

    Pixels are squares of one colour, and the weight of a pixel in a strip is the area that they share, so every view
    counts the whole picture that its detectors see. The geometry is that of skimage.transform.radon with
    ``circle=False``: D = ⌈√2 · max(H, W)⌉ detectors one pixel apart, turning about the pixel (H // 2, W // 2), angles
    in degrees. Sums over strips are divided by D, which keeps a measurement in the picture's range; times D it is
    that function's sinogram, up to how both interpolate (below 0.1 % of the norm on a photograph of 128 × 128).

    The matrix is made once for a size and kept, for both directions, while it has up to `stored` weights: 2 GB for
    512 × 512 pixels at 180 angles in float32. A larger one is made again in every product, a few angles at a time,
    which takes 0.5 GB and some thirty times as long.

    Args:
        angles: how many, spread evenly over the half turn from 0°, or the angles themselves, in degrees.

    Raises:
        ValueError: no angle, too many or none that is finite; an adjoint without the picture's shape.
    """

    angles: int | tuple[float, ...] = 180

    stored: ClassVar[int] = 2**28
    """Most weights of a kept matrix, three for every pixel and angle: 512 × 512 pixels at 341 angles."""

    def __post_init__(self) -> None:
        if is_whole(self.angles):
            if not 1 <= self.angles <= 2**16:
                raise ValueError(f"angles is {self.angles!r}; there may be 1 to 65536 of them")
            return
        given: Any = self.angles
        if not isinstance(given, tuple) or not 1 <= len(given) <= 2**16 or not all(map(is_number, given)):
            raise ValueError(f"angles is {given!r}; it must be how many, or a tuple of degrees such as (0, 45, 90)")
        object.__setattr__(self, "angles", tuple(float(angle) for angle in given))

    @property
    def degrees(self) -> tuple[float, ...]:
        """The angles in use."""
        if isinstance(self.angles, tuple):
            return self.angles
        return tuple(180 * number / self.angles for number in range(self.angles))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) to sinograms (..., C, D, angles)."""
        return linear(x, self._project, partial(self._back, shape_of(x)))

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        if shape is None:
            raise ValueError("a sinogram does not tell the picture's shape; call adjoint(y, shape)")
        return linear(y, partial(self._back, shape), self._project)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], _detectors(shape), len(self.degrees))

    def _project(self, x: Tensor) -> Tensor:
        shape = shape_of(x)
        channels, detectors, angles = self.output_shape(shape)
        table = x.reshape(-1, shape[1] * shape[2]).mT.to(working_dtype(x)).contiguous()
        sums = torch.cat([rays.sums(table) for rays, _ in self._views(shape, table)])
        sums = sums.reshape(angles, detectors, -1).permute(2, 1, 0) / detectors
        return sums.reshape(*x.shape[:-3], channels, detectors, angles).to(x.dtype)

    def _back(self, shape: Shape, y: Tensor) -> Tensor:
        _, detectors, angles = self.output_shape(shape)
        table = y.reshape(-1, detectors, angles).permute(2, 1, 0).to(working_dtype(y)) / detectors
        table = table.reshape(angles * detectors, -1).contiguous()
        total, start = table.new_zeros(shape[1] * shape[2], table.shape[1]), 0
        for rays, pixels in self._views(shape, table):
            total += pixels.sums(table[start : start + len(rays)])
            start += len(rays)
        return total.mT.reshape(*y.shape[:-3], *shape).to(y.dtype)

    def _views(self, shape: Shape, table: Tensor) -> Iterator[tuple[_Sums, _Sums]]:
        """The matrix and its transpose, some angles after the other: rows are rays by angle and detector."""
        degrees, rest = self.degrees, (shape[1], shape[2], table.dtype, table.device)
        weights = _TAPS * shape[1] * shape[2]
        if weights * len(degrees) <= self.stored:
            yield _kept(degrees, *rest)
            return
        at_once = max(1, _AT_ONCE // weights)
        for first in range(0, len(degrees), at_once):
            yield _weights(degrees[first : first + at_once], *rest)


@dataclass(frozen=True, eq=False)
class _Sums:
    """A sparse matrix by rows: row i has the weights ``weight[offsets[i]:offsets[i + 1]]``."""

    index: Tensor
    offsets: Tensor
    weight: Tensor

    @classmethod
    def of(cls, matrix: Any, device: torch.device) -> _Sums:
        """From a CSR matrix of SciPy."""
        return cls(*(torch.from_numpy(part).to(device) for part in (matrix.indices, matrix.indptr, matrix.data)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sums(self, table: Tensor) -> Tensor:
        """The product with a table (columns, N): (rows, N), each sum in one fixed order."""
        return torch.nn.functional.embedding_bag(
            self.index, table, self.offsets, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )


@torch.inference_mode(False)
def _weights(
    degrees: tuple[float, ...], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[_Sums, _Sums]:
    """From pixels to rays, numbered angle by angle, and back."""
    from scipy import sparse

    angles = np.deg2rad(np.asarray(degrees))
    detectors = _detectors((1, height, width))
    columns, first = np.arange(width) - width // 2, np.arange(len(degrees)) * detectors
    index = np.empty((height, width, len(degrees), _TAPS), np.int32)
    weight = np.empty(index.shape, np.float64 if dtype == torch.float64 else np.float32)
    for row in range(height):
        place = detectors // 2 + np.cos(angles) * columns[:, None] - np.sin(angles) * (row - height // 2)
        nearest = np.rint(place)
        # Its shadow's area up to the two borders of the nearest detector, from the middle; it is 1 in all.
        left, right = (_shadow(nearest + side - place, angles) for side in (-0.5, 0.5))
        for tap, area in enumerate((0.5 + left, right - left, 0.5 - right)):
            seen = nearest.astype(np.int64) + (tap - 1)
            inside = (seen >= 0) & (seen < detectors)
            index[row, :, :, tap] = first + np.where(inside, seen, 0)
            weight[row, :, :, tap] = np.where(inside, area, 0)
    pixels, taps = height * width, len(degrees) * _TAPS
    back = sparse.csr_array(
        (weight.reshape(-1), index.reshape(-1), np.arange(pixels + 1, dtype=np.int32) * taps),
        shape=(pixels, len(degrees) * detectors),
    )
    back.eliminate_zeros()
    return _Sums.of(back.T.tocsr(), device), _Sums.of(back, device)


_kept = lru_cache(maxsize=1)(_weights)


def _shadow(distance: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area of a unit square's shadow at each angle, from its middle to a distance: an odd function up to ±½.

    The shadow is a trapezoid: flat up to ``flat`` from the middle, nothing beyond ``reach``.
    """
    a, b = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    flat, reach = np.abs(a - b) / 2, (a + b) / 2
    far = np.minimum(np.abs(distance), reach)
    slope = np.maximum(far - flat, 0)
    area = np.minimum(far, flat) + slope - slope**2 / (2 * np.maximum(reach - flat, 1e-300))
    shadow: NDArray[np.float64] = np.copysign(area / np.maximum(a, b), distance)
    return shadow


def _detectors(shape: Shape) -> int:
    return math.ceil(math.sqrt(2) * max(shape[1:]))
