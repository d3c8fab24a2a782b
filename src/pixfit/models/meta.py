"""Meta-learned starts: weights from which a coordinate network fits any picture of a kind in few steps.

The pictures to learn from stand as equal tiles in one large picture, a mosaic. In training the network is given whole
tiles and their pixels: it takes some steps of gradient descent on each tile, from weights that all tiles share, and
shows what came out. Without pixels it shows what the shared weights show, the same in every tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .base import Coordinates, Model, TargetRange, check_integer, check_kind, check_number
from .coordinate import CoordinateModel, Siren
from .networks import Network

__all__ = [
    "META_MODELS", "Maml", "MamlNetwork", "MetaModel", "MetaNetwork", "Reptile", "ReptileNetwork",
    "TiledCoordinates",
]  # fmt: skip

_SIREN = Siren()


@dataclass(frozen=True)
class TiledCoordinates(Coordinates):
    """The convention of `Coordinates`, in each tile of a mosaic anew.

    tile_height, tile_width  of a tile in pixels; the sides of a mosaic are multiples of them.
    """

    tile_height: int = 32
    tile_width: int = 32

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
        """As of `Coordinates`; besides, ValueError for a mosaic that is not made of whole tiles, and for regions of one
        or scales at which the tiles would not have whole pixels."""
        if height % self.tile_height or width % self.tile_width:
            raise ValueError(
                f"the picture is {width} x {height}, which is no mosaic of tiles of {self.tile_width} x "
                f"{self.tile_height}; put the pictures to learn from beside one another, all of that size"
            )
        down, across = height // self.tile_height, width // self.tile_width
        if region not in (None, (0, 0, width, height)):
            raise ValueError("a mosaic of a meta-learned start is rendered as a whole; leave region out")
        rows, columns = samples or (height, width)
        if rows % down or columns % across:
            raise ValueError(
                f"{columns} x {rows} samples do not divide into {across} x {down} tiles; take multiples of these"
            )
        tile = super().axes(
            self.tile_height, self.tile_width, samples=(rows // down, columns // across), dtype=dtype, device=device
        )
        return tile[0].repeat(down), tile[1].repeat(across)


class MetaModel(Model):
    """What the meta-learned starts share; not a model by itself.

    inner          settings of the network that is to start well.
    height, width  of the pictures to learn from, in pixels.
    steps          of gradient descent on each picture.
    lr             of these steps; the loss is the mean of squared errors in the inner network's target range.
    """

    inner: CoordinateModel
    height: int
    width: int
    steps: int
    lr: float

    def __post_init__(self) -> None:
        check_kind(self, "inner", CoordinateModel)
        check_integer(self, "height", 1, 4096)
        check_integer(self, "width", 1, 4096)
        check_integer(self, "steps", 1, 1000)
        check_number(self, "lr", 0.0, 100.0, exclusive=True)

    @property
    def tile(self) -> tuple[int, int]:
        return (self.height, self.width)

    @property
    def target_range(self) -> TargetRange:  # type: ignore[override]
        return self.inner.target_range

    @property
    def coordinates(self) -> Coordinates:  # type: ignore[override]
        own = self.inner.coordinates
        return TiledCoordinates(own.alignment, own.range, own.order, own.aspect, self.height, self.width)

    def heir(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inner network's tensors: what a fit of one picture starts from."""
        prefix = "inner."
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Maml(MetaModel):
    """Model-agnostic meta-learning (Finn et al. 2017) of a start, as for coordinate networks by Tancik et al. 2021.

    The loss of the picture shown after the inner steps is differentiated through these steps. Defaults as there, where
    the outer optimiser was ``Adam(lr=1e-5)`` on three pictures a step, ``Batches(pixels=3 * height * width)``.

    rates  "fixed": every inner step has the rate ``lr``. "learned": each number has a rate for each inner step, which
           starts at ``lr`` and is learned with the start (Meta-SGD, Li et al. 2017; Strümpler et al. 2022, with three
           steps, ``lr`` 1e-5 and the outer rate 5e-5). A fit that starts here does not use them.
    """

    inner: CoordinateModel = _SIREN
    height: int = 32
    width: int = 32
    steps: int = 2
    lr: float = 1e-2
    rates: Literal["fixed", "learned"] = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rates not in ("fixed", "learned"):
            raise ValueError(f"Maml.rates: got {self.rates!r}, allowed 'fixed' or 'learned'")

    def network(self, in_features: int = 2, out_features: int = 3) -> MamlNetwork:
        inner = self.inner.network(in_features, out_features)
        return MamlNetwork(inner, self.height * self.width, self.steps, self.lr, learned=self.rates == "learned")


@dataclass(frozen=True)
class Reptile(MetaModel):
    """A start moved towards the weights that the inner steps reach (Nichol et al. 2018, Reptile).

    The gradient that the optimiser gets is the start less the mean of the weights reached on the pictures of a step; it
    does not come from the loss, which is only shown. Defaults are those of `Maml`.
    """

    inner: CoordinateModel = _SIREN
    height: int = 32
    width: int = 32
    steps: int = 2
    lr: float = 1e-2

    def network(self, in_features: int = 2, out_features: int = 3) -> ReptileNetwork:
        inner = self.inner.network(in_features, out_features)
        return ReptileNetwork(inner, self.height * self.width, self.steps, self.lr)


META_MODELS: dict[str, type[MetaModel]] = {"Maml": Maml, "Reptile": Reptile}


class MetaNetwork(Network):
    """A network and the steps of gradient descent that it takes on each picture.

    Args:
        inner: maps coordinates (N, 2) to (N, C).
        pixels: N of one picture.
        steps, lr: of the descent.
    """

    def __init__(self, inner: Network, pixels: int, steps: int, lr: float) -> None:
        super().__init__()
        self.inner, self.pixels, self.steps, self.lr = inner, pixels, steps, lr

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.inner.reset_parameters(generator)

    def forward(self, coordinates: Tensor, targets: Tensor | None = None) -> Tensor:
        """Coordinates (B·N, 2) of B whole pictures to outputs (B·N, C): after the steps on the targets (B·N, C), or
        without targets from the shared weights."""
        if targets is None:
            shown: Tensor = self.inner(coordinates)
            return shown
        pictures = targets.reshape(-1, self.pixels, targets.shape[1])
        return self.adapted(coordinates[: self.pixels], pictures).flatten(0, 1)

    def adapted(self, points: Tensor, pictures: Tensor) -> Tensor:
        """Outputs (B, N, C) at points (N, 2) after the steps on each of the pictures (B, N, C)."""
        raise NotImplementedError

    def _descend(self, weights: Mapping[str, Tensor], points: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """The weights after the steps on one picture (N, C)."""

        def loss(weights: dict[str, Tensor]) -> Tensor:
            error: Tensor = functional_call(self.inner, weights, (points,)) - picture
            return error.square().mean()

        reached = dict(weights)
        for step in range(self.steps):
            slopes = grad(loss)(reached)
            reached = {name: value - self._rate(step, name) * slopes[name] for name, value in reached.items()}
        return reached

    def _rate(self, step: int, name: str) -> Tensor | float:
        return self.lr


class MamlNetwork(MetaNetwork):
    """See `Maml`. With ``learned`` rates these are parameters ``rates.STEP.NAME``, the dots of names as dashes."""

    def __init__(self, inner: Network, pixels: int, steps: int, lr: float, *, learned: bool = False) -> None:
        super().__init__(inner, pixels, steps, lr)
        self.rates = torch.nn.ModuleList()
        for _ in range(steps if learned else 0):
            rates = {_key(name): torch.full_like(value, lr) for name, value in inner.named_parameters()}
            self.rates.append(torch.nn.ParameterDict(rates))

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        for parameter in self.rates.parameters():
            torch.nn.init.constant_(parameter, self.lr)

    def adapted(self, points: Tensor, pictures: Tensor) -> Tensor:
        start = dict(self.inner.named_parameters())

        def one(picture: Tensor) -> Tensor:
            shown: Tensor = functional_call(self.inner, self._descend(start, points, picture), (points,))
            return shown

        return vmap(one)(pictures)

    def _rate(self, step: int, name: str) -> Tensor | float:
        if not len(self.rates):
            return self.lr
        rate: Tensor = self.rates[step][_key(name)]  # type: ignore[index]
        return rate


class ReptileNetwork(MetaNetwork):
    """See `Reptile`."""

    def adapted(self, points: Tensor, pictures: Tensor) -> Tensor:
        parameters = dict(self.inner.named_parameters())
        start = {name: value.detach() for name, value in parameters.items()}

        def one(picture: Tensor) -> tuple[Tensor, list[Tensor]]:
            reached = self._descend(start, points, picture)
            return functional_call(self.inner, reached, (points,)), list(reached.values())

        shown, reached = vmap(one)(pictures)
        away = [value - there.mean(dim=0) for value, there in zip(start.values(), reached, strict=True)]
        moved: Tensor = _Displaced.apply(shown, *parameters.values(), *away)  # type: ignore[no-untyped-call]
        return moved


class _Displaced(torch.autograd.Function):
    """Passes its first argument through, and hands each parameter its displacement for a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(shown: Tensor, *parameters_and_away: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1 + (len(inputs) - 1) // 2 :])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        away = ctx.saved_tensors
        return (None, *away, *(None for _ in away))


def _key(name: str) -> str:
    """A parameter's name without dots, which names of parameters in a dictionary must not have."""
    return name.replace(".", "-")
