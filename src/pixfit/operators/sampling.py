"""Operators that make a picture smaller: means over blocks, and Lanczos' filter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixfit.canonical import is_whole

from .base import Operator, Shape, shape_of, working_dtype

__all__ = ["BoxDownsample", "LanczosDownsample"]


@dataclass(frozen=True)
class BoxDownsample(Operator):
    """The mean over blocks of ``factor`` × ``factor`` pixels. The sides must be multiples of the factor."""

    factor: int = 2

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = self.output_shape(shape_of(x))
        k = self.factor
        return x.reshape(*x.shape[:-3], channels, height, k, width, k).mean(dim=(-3, -1))

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        k = self.factor
        return y.repeat_interleave(k, dim=-2).repeat_interleave(k, dim=-1) / (k * k)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"a {width}×{height} picture cannot be cut into {self.factor}×{self.factor} blocks; crop it first"
            )
        return channels, height // self.factor, width // self.factor


@dataclass(frozen=True)
class LanczosDownsample(Operator):
    """Lanczos' windowed sinc, then every ``factor``-th pixel: the low-resolution model of super-resolution.

    The convention is that of the deep image prior (Ulyanov et al., CVPR 2018): measured pixel i lies at the centre of
    its block, pixel (i + ½)·factor − ½ of the picture; a pixel at the distance d, in measured pixels, has the weight
    sinc(d)·sinc(d / lobes) with |d| < lobes; weights sum to 1; beyond the border the outermost pixels are repeated.
    With an even factor the kernel has 2·lobes·factor taps a side (16 and 32 for ×4 and ×8 with 2 lobes), with an odd
    one, where a pixel lies in the middle, one less. Sides that are no multiples of the factor lose the pixels of the
    last, incomplete block but for what the filter sees of them: a measurement has H // factor rows.

    Args:
        factor: 1 to 64.
        lobes: of the window, 2 or 3.
        data: which filter makes the measurement of a `Problem`. ``same``: the one that the fit models. ``pillow``: the
            mismatch of published protocols, Pillow's LANCZOS (3 lobes, other borders) of the picture rounded to 8 bits,
            rounded to 8 bits again; the fit still models the filter above, so its error cannot reach 0.

    Raises:
        ValueError: settings out of bounds, or a picture with a side below the factor.
    """

    factor: int = 4
    lobes: int = 2
    data: Literal["same", "pillow"] = "same"

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not (is_whole(self.lobes) and self.lobes in (2, 3)):
            raise ValueError(f"lobes is {self.lobes!r}; it may be 2 or 3")
        if self.data not in ("same", "pillow"):
            raise ValueError(f"data is {self.data!r}; it may be 'same' or 'pillow'")

    @property
    def kernel(self) -> Tensor:
        """(k, k) float64: the weights of one measured pixel."""
        _, weights = _taps(self.factor, self.lobes)
        return weights[:, None] * weights

    def forward(self, x: Tensor) -> Tensor:
        self.output_shape(shape_of(x))
        rows, columns = self._matrices(x, x.shape[-2], x.shape[-1])
        return (rows @ (x.to(rows.dtype) @ columns.mT)).to(x.dtype)

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        """Without ``shape`` the picture's sides are multiples of the factor."""
        height, width = (side * self.factor for side in y.shape[-2:]) if shape is None else shape[1:]
        rows, columns = self._matrices(y, height, width)
        return (rows.mT @ (y.to(rows.dtype) @ columns)).to(y.dtype)

    def measure(self, x: Tensor) -> Tensor:
        if self.data == "same":
            return self.forward(x)
        from PIL import Image

        _, height, width = self.output_shape(shape_of(x))
        levels = (x.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
        box = (0, 0, width * self.factor, height * self.factor)  # the grid of `forward`, for all sides
        small = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS, box=box))
            for plane in levels.reshape(-1, *levels.shape[-2:])
        ]
        return torch.from_numpy(np.stack(small)).reshape(*x.shape[:-2], height, width).to(x) / 255

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if min(height, width) < self.factor:
            raise ValueError(f"a {width}×{height} picture is too small to be made {self.factor} times smaller")
        return channels, height // self.factor, width // self.factor

    def _matrices(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        settings = (self.factor, self.lobes, working_dtype(x), x.device)
        return _matrix(height, *settings), _matrix(width, *settings)


def _taps(factor: int, lobes: int) -> tuple[int, Tensor]:
    """Where the filter of measured pixel 0 begins, and its weights (k,) along one side, float64."""
    reach = lobes * factor - (0.5 if factor % 2 == 0 else 1.0)  # at the distance of all lobes the weight is 0
    count = round(2 * reach) + 1
    distance = (torch.arange(count, dtype=torch.float64, device="cpu") - reach) / factor
    weights = torch.sinc(distance) * torch.sinc(distance / lobes)
    return round((factor - 1) / 2 - reach), weights / weights.sum()


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _matrix(size: int, factor: int, lobes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size // factor, size): the filter along one side. Dense products with it beat strided convolutions."""
    first, weights = _taps(factor, lobes)
    places = torch.arange(size // factor, device="cpu")[:, None] * factor + first
    places = (places + torch.arange(len(weights), device="cpu")).clamp(0, size - 1)
    matrix = torch.zeros(size // factor, size, dtype=torch.float64, device="cpu")
    return matrix.scatter_add_(1, places, weights.expand(len(places), -1)).to(device, dtype)


def _check_factor(factor: int) -> None:
    if not (is_whole(factor) and 1 <= factor <= 64):
        raise ValueError(f"factor is {factor!r}; it may be 1 to 64")
