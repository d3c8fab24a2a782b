"""A small sine network for each tile of a picture: a mixture of networks by place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import Coordinates, TargetRange, check_integer, check_number
from .coordinate import CoordinateModel, Output
from .networks import Network

__all__ = ["Tiles", "TilesNetwork"]

_SIGNED = Coordinates()


class TilesNetwork(Network):
    """A sine network of its own in each of ``rows`` × ``columns`` tiles of the range [low, high] of two coordinates.

    Each tile has coordinates of its own, −1 to 1 from edge to edge. Samples beyond the range belong to the tile that
    is nearest. Weights stand as (tiles, inputs, outputs), biases as (tiles, outputs), tiles in row-major order.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        out_features: int,
        widths: tuple[int, ...],
        first_omega_0: float = 30.0,
        hidden_omega_0: float = 30.0,
        output: str = "linear",
        row_axis: int = 1,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.first_omega_0, self.hidden_omega_0 = first_omega_0, hidden_omega_0
        self.output, self.row_axis, self.low, self.high = output, row_axis, low, high
        sizes = list(pairwise((2, *widths, out_features)))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(rows * columns, a, b)) for a, b in sizes])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(rows * columns, b)) for _, b in sizes])

    def reset_parameters(self, generator: torch.Generator) -> None:
        """As SIREN in every tile: first weight U(±1/2), later ones U(±sqrt(6/fan_in)/hidden_omega_0), biases
        U(±1/sqrt(fan_in))."""
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            fan_in = weight.shape[1]
            bound = 1.0 / fan_in if number == 0 else math.sqrt(6.0 / fan_in) / self.hidden_omega_0
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)

    def _place(self, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The tile of each sample at t (N,) in [0, 1] along a side, and where in it, −1 to 1."""
        position = t * count
        tile = position.floor().clamp(0, count - 1)
        return tile.long(), 2.0 * (position - tile) - 1.0

    def forward(self, x: Tensor) -> Tensor:
        t = (x.reshape(-1, 2) - self.low) / (self.high - self.low)
        row, down = self._place(t[:, self.row_axis], self.rows)
        column, across = self._place(t[:, 1 - self.row_axis], self.columns)
        tile = row * self.columns + column
        h, omega = torch.stack([across, down], dim=-1), self.first_omega_0
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            # Every sample has the matrix of its tile: products of one row each.
            own = weight.index_select(0, tile)
            h = (h[:, None] @ own)[:, 0] + bias.index_select(0, tile)
            if number < len(self.weights) - 1:
                h, omega = torch.sin(omega * h), self.hidden_omega_0
        h = torch.sigmoid(h) if self.output == "sigmoid" else h
        return h.reshape(*x.shape[:-1], h.shape[-1])


@dataclass(frozen=True)
class Tiles(CoordinateModel):
    """A small SIREN for each tile of the picture (as KiloNeRF has networks for parts of space, Reiser et al. 2021).

    Tiles know nothing of one another, so that the picture may jump between them. No compiled kernel serves it.

    rows, columns    how many tiles lie along the sides of the range of the coordinates.
    hidden_layers    of each network, counted as in `Siren`: 1 is two sine layers.
    hidden_features  width of each network.
    first_omega_0    in units of the tile's own coordinates, which are −1 and 1 at its edges.
    """

    rows: int = 16
    columns: int = 16
    hidden_layers: int = 1
    hidden_features: int | tuple[int, ...] = 12
    first_omega_0: float = 30.0
    hidden_omega_0: float = 30.0
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _SIGNED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "rows", 1, 2**14)
        check_integer(self, "columns", 1, 2**14)
        check_number(self, "first_omega_0", 0.0, 1e6, exclusive=True)
        check_number(self, "hidden_omega_0", 0.0, 1e6, exclusive=True)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        if in_features != 2:
            raise ValueError(f"in_features: got {in_features}; Tiles take the 2 coordinates of a picture")
        return TilesNetwork(
            self.rows, self.columns, out_features, self.widths, self.first_omega_0, self.hidden_omega_0, self.output,
            1 if self.coordinates.order == "xy" else 0, self.coordinates.low, self.coordinates.high,
        )  # fmt: skip
