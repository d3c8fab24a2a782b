"""Compressed sensing: few random sums of all pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from pixfit.canonical import is_whole

from .base import Operator, Shape, linear, shape_of, working_dtype

__all__ = ["GaussianSensing"]


@dataclass(frozen=True)
class GaussianSensing(Operator):
    """y = A x / √m with m rows of independent standard normal numbers, one a pixel and channel.

    The measurement has the shape (1, 1, m), and on average the length of the picture as a vector. Row i of A depends on
    the seed, on i and on how many numbers a picture has, and on nothing else: it is float32, drawn on the CPU, for
    every device and precision. A matrix of up to `stored` numbers is made once and kept; a larger one never exists as
    a whole: its rows are drawn again, one at a time, in every product.

    Args:
        measurements: m, 1 to 2^31 − 1.
        seed: 0 to 2^63 − 1.

    Raises:
        ValueError: settings out of bounds, or an adjoint without the picture's shape.
    """

    measurements: int
    seed: int = 0

    stored: ClassVar[dict[str, int]] = {"cpu": 2**26, "cuda": 2**30}
    """Most numbers of a matrix that is kept, by type of device: 256 MiB in float32 on a CPU, 4 GiB on a card."""

    def __post_init__(self) -> None:
        if not (is_whole(self.measurements) and 1 <= self.measurements < 2**31):
            raise ValueError(f"measurements is {self.measurements!r}; it must be 1 to 2^31 - 1")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**63):
            raise ValueError(f"seed is {self.seed!r}; it must be 0 to 2^63 - 1")

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._measure, partial(self._back, shape_of(x)))

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        if shape is None:
            raise ValueError("random sums do not tell the picture's shape; call adjoint(y, shape)")
        return linear(y, partial(self._back, shape), self._measure)

    def output_shape(self, shape: Shape) -> Shape:
        return (1, 1, self.measurements)

    def rows(self, numbers: int) -> Iterator[Tensor]:
        """The rows of A for pictures of so many numbers (C·H·W): float32 (numbers,), on the CPU."""
        generator = torch.Generator("cpu")
        for row in range(self.measurements):
            mixed = hashlib.sha256(f"{self.seed}/sensing/{row}".encode()).digest()
            generator.manual_seed(int.from_bytes(mixed[:7], "big"))
            yield torch.randn(numbers, generator=generator, dtype=torch.float32, device="cpu")

    def _measure(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, math.prod(x.shape[-3:])).to(working_dtype(x))
        if self._keeps(flat):
            sums = flat @ _matrix(self, flat.shape[1], flat.dtype, flat.device).mT
        else:
            sums = torch.stack([flat @ row.to(flat) for row in self.rows(flat.shape[1])], dim=1)
        return (sums / math.sqrt(self.measurements)).reshape(*x.shape[:-3], 1, 1, self.measurements).to(x.dtype)

    def _back(self, shape: Shape, y: Tensor) -> Tensor:
        sums = y.reshape(-1, self.measurements).to(working_dtype(y)) / math.sqrt(self.measurements)
        flat = sums.new_zeros(len(sums), math.prod(shape))
        if self._keeps(flat):
            flat = sums @ _matrix(self, flat.shape[1], flat.dtype, flat.device)
        else:
            for column, row in zip(sums.mT, self.rows(flat.shape[1]), strict=True):
                flat.addr_(column, row.to(flat))
        return flat.reshape(*y.shape[:-3], *shape).to(y.dtype)

    def _keeps(self, flat: Tensor) -> bool:
        return self.measurements * flat.shape[1] <= self.stored.get(flat.device.type, self.stored["cpu"])


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def _matrix(operator: GaussianSensing, numbers: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A (m, numbers), without the factor 1 / √m."""
    matrix = torch.empty(operator.measurements, numbers, dtype=dtype, device=device)
    for place, row in zip(matrix, operator.rows(numbers), strict=True):
        place.copy_(row)
    return matrix
