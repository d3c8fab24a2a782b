"""A memory: many pictures in one coordinate network, each told from the others by a code.

The network takes a picture's code and a place in that picture. The code goes straight into the first linear map, beside
the coordinates (or what an encoding makes of them), so that with one code it is no more than a shift of that map's
bias: a memory at any code *is* its inner network, with two inputs and weights that `Memory.shown` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pixfit.kernels import Plan

from .base import Coordinates, Model, TargetRange, check_kind, check_whole
from .codes import BinaryCode, Code, LearnedCode
from .coordinate import CoordinateModel, Finer, Gauss, Mlp, Siren, Wire
from .encodings import Encoding, Raw
from .networks import Network

__all__ = ["Memory", "MemoryCoordinates", "MemoryNetwork"]

_SIREN = Siren()
_BINARY = BinaryCode()
_MOST = 2**24  # pixels of all pictures together: they stand in one row
_TABLE, _INNER, _BESIDE = "code.tables.0", "inner.", "encoding.inner."


@dataclass(frozen=True)
class MemoryCoordinates(Coordinates):
    """The points of all pictures, one after the other, row-major each: a row of code and coordinates a pixel.

    code   what stands first: the picture's code, or, where codes are learned, its number.
    sizes  (height, width) of each picture. Its coordinates are those of `Coordinates` in the picture by itself.
    """

    code: Code = _BINARY
    sizes: tuple[tuple[int, int], ...] = ((1, 1),)

    def axes(
        self,
        height: int,
        width: int,
        *,
        region: tuple[float, float, float, float] | None = None,
        samples: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One row, and the points (N, D) in place of positions along it.

        Raises ValueError for anything but the one row of all N pixels: pictures are rendered one by one.
        """
        count, total = len(self.sizes), sum(rows * columns for rows, columns in self.sizes)
        if (height, width) != (1, total):
            raise ValueError(
                f"the {count} pictures of this memory have {total} pixels in all, and the problem is {width} x "
                f"{height}; give Memory the sizes of the gallery that it is fitted to"
            )
        if region not in (None, (0, 0, width, height)) or samples not in (None, (height, width)):
            raise ValueError("a memory is rendered picture by picture; take one with Network.picture")
        first = torch.arange(count, dtype=torch.float64)[:, None] if self.code.learned else self.code.table(count)
        points, places = [], {}
        for own, size in zip(first, self.sizes, strict=True):
            if size not in places:
                places[size] = super().mesh(*super().axes(*size, dtype=torch.float64))
            points.append(torch.cat([own.expand(len(places[size]), -1), places[size]], dim=1).to(dtype))
        return torch.zeros(1, dtype=dtype, device=device), torch.cat(points).to(device)

    def mesh(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The points (N, D) themselves."""
        return columns

    def pick(self, rows: Tensor, columns: Tensor, index: Tensor) -> Tensor:
        """The points (..., D) of pixels by their number (...)."""
        return columns[index]


@dataclass(frozen=True)
class Memory(Model):
    """Many pictures, of any sizes, in one coordinate network.

    inner  settings of the network: a Siren, Finer, Gauss, Wire, or an Mlp without experts. Its convention of
           coordinates holds in each picture by itself.
    code   how it is told which picture to show (`pixfit.models.codes`).
    sizes  (height, width) of each picture: those of the `pixfit.problem.Gallery` that it is fitted to.

    Networks take (N, in_features): with fixed codes the code and the two coordinates, with learned ones the picture's
    number and the two coordinates.
    """

    inner: CoordinateModel = _SIREN
    code: Code = _BINARY
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)

    def __post_init__(self) -> None:
        check_kind(self, "inner", Siren, Finer, Gauss, Wire, Mlp)
        check_kind(self, "code", Code)
        if isinstance(self.inner, Mlp) and self.inner.experts is not None:
            raise ValueError("Memory.inner: got experts, whose gate a code cannot pass; use a network without them")
        if not isinstance(self.sizes, tuple) or not self.sizes:
            raise ValueError(f"Memory.sizes: got {self.sizes!r}, allowed (height, width) of each picture")
        for size in self.sizes:
            if not isinstance(size, tuple) or len(size) != 2:
                raise ValueError(f"Memory.sizes: got {size!r}, allowed (height, width) of each picture")
            for side in size:
                check_whole("Memory.sizes", side, 1, _MOST)
        if (total := sum(rows * columns for rows, columns in self.sizes)) > _MOST:
            raise ValueError(f"Memory.sizes: got {total:,} pixels in all, allowed {_MOST:,}")

    @property
    def target_range(self) -> TargetRange:  # type: ignore[override]
        return self.inner.target_range

    @property
    def coordinates(self) -> MemoryCoordinates:  # type: ignore[override]
        own = self.inner.coordinates
        return MemoryCoordinates(own.alignment, own.range, own.order, own.aspect, self.code, self.sizes)

    @property
    def code_features(self) -> int:
        """Numbers of a code."""
        return self.code.features(len(self.sizes))

    @property
    def in_features(self) -> int:
        return 3 if self.code.learned else self.code_features + 2

    def network(self, in_features: int | None = None, out_features: int = 3) -> Network:
        """The network; its inputs are `in_features` of the settings, and ValueError tells of another number."""
        if in_features not in (None, self.in_features):
            raise ValueError(f"in_features: got {in_features}; this memory takes {self.in_features}")
        network = self._joined.network(self.code_features + 2, out_features)
        if isinstance(self.code, LearnedCode):
            return MemoryNetwork(network, len(self.sizes), self.code.size, self.code.std)
        return network

    def plan(self, in_features: int | None = None, out_features: int = 3) -> Plan | None:
        if self.code.learned or self._joined is not self.inner:
            return None
        return self.inner.plan(self.in_features, out_features)

    @property
    def _joined(self) -> CoordinateModel:
        """The inner network's settings with the code beside what its encoding makes of the coordinates."""
        if isinstance(self.inner, Mlp) and not isinstance(self.inner.encoding, Raw):
            return replace(self.inner, encoding=_Beside(self.inner.encoding, self.code_features))
        return self.inner

    def codes(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The codes (N, K) of the pictures, in the number format of the weights: fixed, or as they were learned."""
        if self.code.learned:
            return weights[_TABLE]
        return self.code.table(len(self.sizes)).to(weights["layers.0.weight"].dtype)

    def shown(self, weights: Mapping[str, Tensor], code: Tensor) -> dict[str, Tensor]:
        """Every tensor of the inner network (`inner`, with two inputs) that shows what this memory does at a code.

        weights  every tensor of the memory's network.
        code     (K,): a row of `codes`, a blend of rows, or anything else of that length.

        Raises ValueError for a code of another length.
        """
        features = self.code_features
        if tuple(code.shape) != (features,):
            raise ValueError(f"code: got {tuple(code.shape)} numbers, this memory's codes have {features}")
        if self.code.learned:
            weights = {name.removeprefix(_INNER): weights[name] for name in weights if name.startswith(_INNER)}
        found = {name.replace(_BESIDE, "encoding."): value for name, value in weights.items()}
        matrix, bias = found["layers.0.weight"].double(), found["layers.0.bias"].double()
        shifted = bias + matrix[:, :features] @ code.double().to(matrix.device)
        found["layers.0.weight"] = found["layers.0.weight"][:, features:].contiguous()
        found["layers.0.bias"] = shifted.to(found["layers.0.bias"].dtype)
        return found


class MemoryNetwork(Network):
    """A network whose first `features` inputs are looked up by the picture's number.

    Args:
        inner: maps (N, features + 2) to (N, C).
        count: of the pictures.
        features: numbers of a code.
        std: of their initial values.
    """

    def __init__(self, inner: Network, count: int, features: int, std: float) -> None:
        super().__init__()
        self.inner, self.std = inner, std
        self.code = _Table(count, features)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """The inner network's first, then the codes."""
        self.inner.reset_parameters(generator)
        nn.init.normal_(self.code.tables[0], 0.0, self.std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., 3), the picture's number and two coordinates, to (..., C)."""
        code = self.code.tables[0][x[..., 0].long()]
        output: Tensor = self.inner(torch.cat([code, x[..., 1:]], dim=-1))
        return output


class _Table(nn.Module):
    """Numbers of which a sample sees one row; named as the tables of a grid, of which the same is true."""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(torch.empty(count, features))])


@dataclass(frozen=True)
class _Beside(Encoding):
    """An encoding of the last two inputs, with the first ones passed on beside it."""

    inner: Encoding
    columns: int

    @property
    def raw(self) -> bool:
        return self.inner.raw

    def out_features(self, in_features: int) -> int:
        return self.columns + self.inner.out_features(in_features - self.columns)

    def network(self, in_features: int, coordinates: Coordinates = _SIREN.coordinates) -> Network:
        return _BesideNetwork(self.inner.network(in_features - self.columns, coordinates), self.columns)


class _BesideNetwork(Network):
    def __init__(self, inner: Network, columns: int) -> None:
        super().__init__()
        self.inner, self.columns = inner, columns

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.inner.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.inner(x[..., self.columns :])
        return torch.cat([x[..., : self.columns], encoded], dim=-1)
