"""A picture as cosines, tile by tile: a linear network whose frequencies are chosen, not trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Coordinates, Model, TargetRange, check_choice, check_integer, check_kind
from .networks import Network
from .spectra import choose, cosine_matrix, zigzag

__all__ = ["Cosines", "CosinesNetwork"]

_UNIT = Coordinates(range="unit")
_SAMPLES = 2**13  # that pass at a time: some ten megabytes


class CosinesNetwork(Network):
    """Sums of the cosines of a tile of ``side`` × ``side`` pixels, of which each tile has as many as it says.

    Tensors: ``values`` (K,), the coefficients, tile after tile in row-major order, those of a tile in the order of its
    class; ``spans`` (tiles,), whole numbers: the class times (C · side² + 1), plus how many values the tile has;
    ``ranks`` (classes, C · side²), whole numbers: the place of each coefficient in the order of the class, coefficients
    by plane, row frequency and column frequency; ``planes.weight`` (C, C) and ``planes.bias`` (C,), from planes to
    colours. Samples beyond the picture belong to the tile that is nearest.
    """

    spans: Tensor
    ranks: Tensor

    def __init__(
        self,
        height: int,
        width: int,
        out_features: int,
        values: int,
        classes: int,
        side: int,
        row_axis: int = 1,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.height, self.width, self.side, self.channels = height, width, side, out_features
        self.row_axis, self.low, self.high = row_axis, low, high
        self.rows, self.columns = -(-height // side), -(-width // side)
        self.numbers = out_features * side * side
        self.values = nn.Parameter(torch.empty(values))
        self.planes = nn.Linear(out_features, out_features)
        self.register_buffer("spans", torch.empty(self.rows * self.columns))
        self.register_buffer("ranks", torch.empty(classes, self.numbers))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Every tile has as many values as the others, in order of rising frequency; these are N(0, 0.01²), the planes
        are the colours, and their bias is 1/2."""
        tiles, count = len(self.spans), len(self.values)
        lengths = count // tiles + (torch.arange(tiles) < count % tiles)
        with torch.no_grad():
            self.values.normal_(0.0, 0.01, generator=generator)
            self.spans.copy_(lengths)
            self.ranks.copy_(zigzag(self.channels, self.side).expand_as(self.ranks))
            self.planes.weight.copy_(torch.eye(self.channels))
            self.planes.bias.fill_(0.5)

    def _place(self, t: Tensor, pixels: int, tiles: int) -> tuple[Tensor, Tensor]:
        """The tile of each sample at t (N,) in [0, 1] along a side, and the cosines (N, side) there."""
        at = t * pixels
        tile = (at / self.side).floor().clamp(0, tiles - 1)
        frequency = torch.arange(self.side, dtype=t.dtype, device=t.device) * (math.pi / self.side)
        cosines = torch.cos((at - tile * self.side)[:, None] * frequency) * math.sqrt(2.0 / self.side)
        scale = torch.where(frequency == 0, math.sqrt(0.5), 1.0)
        return tile.long(), cosines * scale

    def forward(self, x: Tensor) -> Tensor:
        t = (x.reshape(-1, 2) - self.low) / (self.high - self.low)
        spans = self.spans.long()
        lengths = spans % (self.numbers + 1)
        kept = (spans // (self.numbers + 1), lengths, lengths.cumsum(dim=0) - lengths)
        # A sample needs the coefficients of its tile side by side: many numbers, so not all samples at once.
        planes = torch.cat([self._planes(part, *kept) for part in torch.split(t, _SAMPLES)])
        h = F.linear(planes, self.planes.weight, self.planes.bias)
        return h.reshape(*x.shape[:-1], h.shape[-1])

    def _planes(self, t: Tensor, classes: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """The planes (N, C) at t (N, 2), by the class, the count and the first of the values (tiles,) of each tile."""
        row, down = self._place(t[:, self.row_axis], self.height, self.rows)
        column, across = self._place(t[:, 1 - self.row_axis], self.width, self.columns)
        tile = row * self.columns + column
        rank = self.ranks.long().index_select(0, classes.index_select(0, tile))
        length, first = lengths.index_select(0, tile)[:, None], starts.index_select(0, tile)[:, None]
        own = torch.where(rank < length, self.values[(first + rank).clamp(max=len(self.values) - 1)], 0.0)
        own = own.reshape(-1, self.channels, self.side, self.side)
        return ((own @ across[:, None, :, None])[..., 0] * down[:, None]).sum(dim=-1)


@dataclass(frozen=True)
class Cosines(Model):
    """The cosine transform of small tiles, of which each tile keeps as much as it needs: few numbers, well spent.

    Frequencies and phases are fixed, and the network is linear in what is trained. Started from the picture
    (`pixfit.starts.FromPicture`) it is at its best without training: of an orthonormal transform the coefficients of a
    picture are known, and so is which ones to keep, see `pixfit.models.spectra`. At random places, as a start, or from
    another measurement, it is trained like any other network. Tiles know nothing of one another, so that the picture
    may jump between them. No compiled kernel serves it.

    height, width  of the picture, in pixels.
    values         coefficients of all tiles together.
    classes        of tiles, each with an order of its own in which coefficients are kept.
    side           of a tile, in pixels, and its frequencies along each direction.
    """

    height: int = 64
    width: int = 64
    values: int = 1024
    classes: int = 16
    side: int = 8
    target_range: TargetRange = "unit"
    coordinates: Coordinates = _UNIT

    def __post_init__(self) -> None:
        check_integer(self, "height", 1, 2**24)
        check_integer(self, "width", 1, 2**24)
        check_integer(self, "values", 1, 2**31)
        check_integer(self, "classes", 1, 512)  # spans are whole numbers in float32
        check_integer(self, "side", 1, 64)
        check_choice(self, "target_range", ("signed", "unit"))
        check_kind(self, "coordinates", Coordinates)
        if self.coordinates.alignment != "center" or self.coordinates.aspect != "stretch":
            raise ValueError("Cosines.coordinates: tiles are of pixels; leave alignment 'center' and aspect 'stretch'")

    @classmethod
    def within(
        cls, numbers: float, height: int, width: int, channels: int, classes: int = 16, side: int = 8
    ) -> Cosines:
        """The settings with as many values as a budget of numbers allows, those that say which are kept included.

        With fewer classes where the orders of all would take more than a tenth of it. There is at least one class and
        one value a tile, whatever the budget.
        """
        most = channels * side * side
        tiles = -(-height // side) * -(-width // side)
        classes = max(1, min(classes, int(0.1 * numbers / most)))
        spare = int(numbers) - classes * most - tiles - channels * (channels + 1)
        return cls(height, width, min(tiles * most, max(tiles, spare)), classes, side)

    @property
    def tiles(self) -> int:
        """How many there are; those at the right and the lower edge may hang over it."""
        return -(-self.height // self.side) * -(-self.width // self.side)

    def network(self, in_features: int = 2, out_features: int = 3) -> CosinesNetwork:
        if in_features != 2:
            raise ValueError(f"in_features: got {in_features}; Cosines take the 2 coordinates of a picture")
        most = self.tiles * out_features * self.side**2
        if self.values > most:
            raise ValueError(
                f"Cosines.values: got {self.values}, but {self.tiles} tiles of {self.side}×{self.side} pixels in "
                f"{out_features} planes have {most}; lower it"
            )
        return CosinesNetwork(
            self.height, self.width, out_features, self.values, self.classes, self.side,
            1 if self.coordinates.order == "xy" else 0, self.coordinates.low, self.coordinates.high,
        )  # fmt: skip

    def kept(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Which coefficient of its tile each of the values is, int64 (K,), by plane, row and column frequency."""
        numbers = weights["ranks"].shape[1]
        spans = weights["spans"].long()
        orders = weights["ranks"].long().argsort(dim=1)[spans // (numbers + 1)]
        return orders[torch.arange(numbers, device=spans.device) < (spans % (numbers + 1))[:, None]]

    def parameters_count(self, in_features: int | None = None, out_features: int = 3) -> int:
        """How many numbers are trained or chosen: what says which coefficients are kept counts like these."""
        return self.stored_numbers(in_features, out_features)

    def from_picture(self, picture: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The coefficients of the picture's principal colour planes that keep the most of their energy.

        Raises ValueError for a picture of another size.
        """
        channels, height, width = picture.shape
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"these Cosines are for pictures of {self.width}×{self.height} pixels, and this one has "
                f"{width}×{height}; set height and width, or take the recipe anew"
            )
        wanted = self.to_target(picture.double())
        mean = wanted.mean(dim=(1, 2))
        centred = wanted - mean[:, None, None]
        _, basis = torch.linalg.eigh(centred.flatten(1) @ centred.flatten(1).T)
        planes = torch.einsum("ck,chw->khw", basis, centred)
        rows, columns = -(-height // self.side), -(-width // self.side)
        margins = (0, columns * self.side - width, 0, rows * self.side - height)
        planes = F.pad(planes[None], margins, mode="replicate")[0]
        blocks = planes.reshape(channels, rows, self.side, columns, self.side).permute(1, 3, 0, 2, 4)
        matrix = cosine_matrix(self.side)
        coefficients = (matrix @ blocks @ matrix.T).reshape(rows * columns, -1)
        orders, chosen, lengths = choose(coefficients, self.values, self.classes)
        numbers = coefficients.shape[1]
        kept = torch.arange(numbers) < lengths[:, None]
        found = {
            "values": coefficients.gather(1, orders[chosen])[kept],
            "spans": chosen * (numbers + 1) + lengths,
            "ranks": orders.argsort(dim=1),
            "planes.weight": basis,
            "planes.bias": mean,
        }
        return {name: found[name].to(value.dtype).reshape(value.shape) for name, value in weights.items()}
