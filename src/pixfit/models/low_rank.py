"""Features that are products of a function of the row and a function of the column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Coordinates, check_integer, check_number
from .encodings import Encoding
from .networks import GridEncoding, Network

__all__ = ["LowRank", "LowRankEncoding"]

_UNIT = Coordinates(range="unit")


class LowRankEncoding(Network):
    """u_r(row) · v_r(column) for r = 1 … rank; both are interpolated linearly between their vertices."""

    def __init__(self, rows: int, columns: int, rank: int, init: float, row_axis: int, low: float, high: float) -> None:
        super().__init__()
        levels = ((rows, 1, rank), (1, columns, rank))
        self.sides = GridEncoding(levels, None, "linear", "center", init, row_axis, low, high)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all numbers from U(±init)."""
        self.sides.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.sides(x).chunk(2, dim=-1)
        product: Tensor = down * across
        return product


@dataclass(frozen=True)
class LowRank(Encoding):
    """A grid of low rank: feature r of a place is u_r(row) · v_r(column) (as TensoRF, Chen et al., ECCV 2022, in 2-D).

    It needs rank · (rows + columns) numbers, where a grid as fine needs rank · rows · columns. For pictures only: two
    coordinates a sample. No compiled kernel serves it.

    rows, columns  vertices along the sides; vertex i of n lies at (i + 0.5) / n of the range of the coordinates.
    rank           features.
    init           all numbers start as U(±init).
    """

    rows: int = 256
    columns: int = 256
    rank: int = 32
    init: float = 0.3

    def __post_init__(self) -> None:
        check_integer(self, "rows", 1, 2**20)
        check_integer(self, "columns", 1, 2**20)
        check_integer(self, "rank", 1, 2**12)
        check_number(self, "init", 0.0, 1e6)

    def out_features(self, in_features: int) -> int:
        return self.rank

    def network(self, in_features: int, coordinates: Coordinates = _UNIT) -> Network:
        if in_features != 2:
            raise ValueError(f"in_features: got {in_features}; LowRank takes the 2 coordinates of a picture")
        row_axis = 1 if coordinates.order == "xy" else 0
        return LowRankEncoding(
            self.rows, self.columns, self.rank, self.init, row_axis, coordinates.low, coordinates.high
        )  # fmt: skip
