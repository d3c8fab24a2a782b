"""What all models share: the coordinate convention, the settings' interface, and checks of settings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole
from pixfit.kernels import Plan

from .networks import Network

__all__ = [
    "Coordinates",
    "Model",
    "TargetRange",
    "check_choice",
    "check_integer",
    "check_kind",
    "check_number",
    "check_whole",
]

TargetRange = Literal["signed", "unit"]

_LARGEST_SIDE = 2**24  # pixels or samples along one axis
_SLACK = 1e-9  # pixels by which x + w may pass the edge: 0.1 + 0.2 is more than 0.3


def check_choice(owner: object, name: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the field is one of the allowed texts."""
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{type(owner).__name__}.{name}: got {value!r}, allowed {' or '.join(map(repr, allowed))}")


def check_whole(label: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless the value is a whole number in [low, high]; `label` names it in the message."""
    if not is_whole(value) or not low <= value <= high:
        raise ValueError(f"{label}: got {value!r}, allowed whole numbers from {low:,} to {high:,}")


def check_integer(owner: object, name: str, low: int, high: int) -> None:
    """Raise ValueError unless the field is a whole number in [low, high]."""
    check_whole(f"{type(owner).__name__}.{name}", getattr(owner, name), low, high)


def check_number(owner: object, name: str, low: float, high: float, *, exclusive: bool = False) -> None:
    """Raise ValueError unless the field is a finite number in [low, high] (`exclusive`: low itself is refused).

    Stores the number as a float, so that 30 and 30.0 are one setting.
    """
    value = getattr(owner, name)
    if not is_number(value) or not low <= value <= high or (exclusive and value == low):
        bounds = f"above {low:g} and up to {high:g}" if exclusive else f"from {low:g} to {high:g}"
        raise ValueError(f"{type(owner).__name__}.{name}: got {value!r}, allowed numbers {bounds}")
    object.__setattr__(owner, name, float(value))


def check_kind(owner: object, name: str, *kinds: type) -> None:
    """Raise ValueError unless the field is an instance of one of the classes."""
    value = getattr(owner, name)
    if not isinstance(value, kinds):
        allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{type(owner).__name__}.{name}: got {value!r}, allowed {allowed}")


@dataclass(frozen=True)
class Coordinates:
    """Where the samples of a picture lie in the input space of a coordinate network.

    alignment  "center": samples sit at pixel centres; the picture's edges are the ends of the range.
               "corner": the first and the last sample sit on the ends of the range (a single sample: in the middle).
    range      "signed": [-1, 1] per axis; "unit": [0, 1] per axis.
    order      "xy": column 0 is x (to the right), column 1 is y (down); "row_col": column 0 is y, column 1 is x.
    aspect     "stretch": both sides span the whole range; "keep": the longer side spans it, the shorter one is centred
               in it and shorter by the ratio of the sides in pixels.

    With t in [0, 1] along an axis of n pixels, the n samples of the picture itself are t = (i + 0.5) / n (center) or
    t = i / (n - 1) (corner); signed coordinates are 2 t - 1.
    """

    alignment: Literal["center", "corner"] = "center"
    range: Literal["signed", "unit"] = "signed"
    order: Literal["xy", "row_col"] = "xy"
    aspect: Literal["stretch", "keep"] = "stretch"

    def __post_init__(self) -> None:
        check_choice(self, "alignment", ("center", "corner"))
        check_choice(self, "range", ("signed", "unit"))
        check_choice(self, "order", ("xy", "row_col"))
        check_choice(self, "aspect", ("stretch", "keep"))

    @property
    def low(self) -> float:
        """Lower end of the range of each axis."""
        return -1.0 if self.range == "signed" else 0.0

    @property
    def high(self) -> float:
        """Upper end of the range of each axis."""
        return 1.0

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
        """Row positions (R,) and column positions (C,) of R x C samples of a region of a height x width picture.

        region   (x, y, w, h) in source pixels, fractions allowed, inside the picture; default the whole picture.
        samples  (R, C); default one sample per source pixel, which a region of fractional size must spell out.

        center: sample i of R lies at the source row y + (i + 0.5) h / R, counted from the picture's top edge, so the
        samples of any scale and region cover one and the same picture.
        corner: the scale R / h makes the whole picture N = height R / h samples, spread from end to end of the range;
        sample i of the region is number y R / h + i of those. Twice the samples of a whole picture are thus 2 height
        points with both ends included.

        Each position is one correctly rounded float64 quotient, cast at the end: for regions and scales in whole
        pixels the samples of a region equal that slice of the whole picture's samples bit for bit.
        Raises ValueError for sizes, regions and samples out of bounds.
        """
        check_whole("height", height, 1, _LARGEST_SIDE)
        check_whole("width", width, 1, _LARGEST_SIDE)
        x, y, w, h = (0, 0, width, height) if region is None else region
        inside = 0 <= x < x + w <= width + _SLACK and 0 <= y < y + h <= height + _SLACK
        if not (inside and all(map(math.isfinite, (x, y, w, h)))):
            raise ValueError(
                f"region: got (x, y, w, h) = {region!r}, allowed parts of the {width} x {height} picture with w, h > 0"
            )
        if samples is None:
            if w != int(w) or h != int(h):
                raise ValueError(f"region: got the size {w} x {h}; a fractional size needs samples=(rows, columns)")
            samples = (int(h), int(w))
        check_whole("samples (rows)", samples[0], 1, _LARGEST_SIDE)
        check_whole("samples (columns)", samples[1], 1, _LARGEST_SIDE)
        longest = max(height, width)
        rows = self._axis(height, longest, y, h, samples[0])
        columns = self._axis(width, longest, x, w, samples[1])
        return rows.to(dtype).to(device), columns.to(dtype).to(device)

    def _axis(self, size: int, longest: int, start: float, length: float, count: int) -> Tensor:
        index = torch.arange(count, dtype=torch.float64, device="cpu")
        if self.alignment == "center":
            numerator = start * count + (index + 0.5) * length
            denominator = float(size) * count
        else:
            numerator = start * count + index * length
            denominator = float(size) * count - length
            if denominator == 0.0:  # one sample for the whole picture
                numerator, denominator = numerator + 1.0, 2.0
        # The signed position is offset / scale, written so that whole numbers stay exact and the two ends mirror.
        ratio, whole = (size, longest) if self.aspect == "keep" else (1, 1)
        offset = (2.0 * numerator - denominator) * ratio
        scale = denominator * whole
        return offset / scale if self.range == "signed" else (offset + scale) / (2.0 * scale)

    def mesh(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Coordinates (R*C, 2), row-major, of all pairs of row positions (R,) and column positions (C,).

        Pass a slice of the rows from `axes` for a band of the picture; it equals that part of the whole grid.
        """
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        pair = (column, row) if self.order == "xy" else (row, column)
        return torch.stack(pair, dim=-1).reshape(-1, 2)

    def pick(self, rows: Tensor, columns: Tensor, index: Tensor) -> Tensor:
        """Coordinates (..., 2) of samples by their row-major number (...): what `mesh` has there, without making it."""
        row, column = rows[index // len(columns)], columns[index % len(columns)]
        return torch.stack((column, row) if self.order == "xy" else (row, column), dim=-1)

    def grid(
        self,
        height: int,
        width: int,
        *,
        region: tuple[float, float, float, float] | None = None,
        samples: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Coordinates (R*C, 2), row-major; arguments and errors as for `axes`."""
        rows, columns = self.axes(height, width, region=region, samples=samples, dtype=dtype, device=device)
        return self.mesh(rows, columns)


class Model(ABC):
    """Settings of a network: a frozen value that builds a plain `torch.nn.Module` and knows nothing of losses or loops.

    A subclass is a frozen dataclass with at least the fields below and implements `network`. Its networks map
    (..., in_features) to (..., out_features), unless it is a `PicturePrior`, depend on torch alone, and implement
    `reset_parameters(generator)`, which sets every parameter and buffer.

    target_range  what the output means: "signed" pixels in [-1, 1], "unit" pixels in [0, 1].
    coordinates   where the samples of a picture lie in the network's input space.
    """

    target_range: TargetRange
    coordinates: Coordinates

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass with another network has no plan until it gives one: the inherited plan is of another network."""
        super().__init_subclass__(**options)
        if "network" in cls.__dict__ and "plan" not in cls.__dict__:
            cls.plan = Model.plan  # type: ignore[method-assign]

    @abstractmethod
    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        """The network on the current default device, its weights not meant to be used: load or reset them."""

    @property
    def in_features(self) -> int:
        """Numbers that the network takes at a sample: its two coordinates, unless the model says otherwise."""
        return 2

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each picture of the `pixfit.problem.Gallery` that the network is fitted to; empty for
        models of one picture."""
        return ()

    @property
    def tile(self) -> tuple[int, int] | None:
        """(rows, columns) of the pictures that the network learns from, tile by tile: then it is trained on whole
        tiles, and its forward pass is given their targets too. None: it maps coordinates alone."""
        return None

    def seen(self, pixels: int, generator: torch.Generator) -> Tensor | None:
        """Which pixels of whole tiles the network may look at in a step of training, bool (pixels, 1): that comes to it
        as one more column of their targets. None: all of them, and there is no such column."""
        return None

    def sized(self, height: int, width: int) -> Model:
        """The settings for pictures of one size, of which some networks are: those that know no coordinates."""
        return self

    def heir(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors that another fit takes, which starts from a fit of this model."""
        return weights

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan | None:
        """The same network as layers for a fused kernel. None: no fused kernel serves it, torch runs.

        Its tensors are named as in the network's `state_dict`. Parameters that it does not name have no effect on the
        output, so that their gradient is 0.
        """
        return None

    def from_picture(self, picture: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a network that shows a picture without training, as nearly as it can.

        picture  (C, H, W) in [0, 1].
        weights  every tensor of the network as drawn at random, kept where the picture has nothing to say.

        Raises ValueError for models that know no such weights, which is most of them.
        """
        raise ValueError(
            f"{type(self).__name__} with these settings cannot start from the picture; an Mlp can, with a Grid, "
            "activation relu, and no norm, skip or experts; or leave the start at random"
        )

    def build(
        self,
        in_features: int | None = None,
        out_features: int = 3,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Network:
        """The network on the CPU with weights drawn from `generator` alone; the global random state is untouched.

        Weights are drawn in float32 and cast, so that one seed means the same weights in every dtype.
        """
        with torch.device("meta"):
            network = self.network(self.in_features if in_features is None else in_features, out_features)
        network = network.to(torch.float32).to_empty(device="cpu")
        network.reset_parameters(generator)
        return network.to(dtype)

    def parameters_count(self, in_features: int | None = None, out_features: int = 3) -> int:
        """How many numbers are trained; without `in_features` with the model's own, as everywhere here."""
        with torch.device("meta"):
            network = self.network(self.in_features if in_features is None else in_features, out_features)
            return sum(parameter.numel() for parameter in network.parameters())

    def stored_numbers(self, in_features: int | None = None, out_features: int = 3) -> int:
        """How many numbers a file of the network holds: the trained ones and fixed ones such as frequencies."""
        with torch.device("meta"):
            network = self.network(self.in_features if in_features is None else in_features, out_features)
            return sum(tensor.numel() for tensor in network.state_dict().values())

    def to_target(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as values of the network's output range."""
        return 2.0 * pixels - 1.0 if self.target_range == "signed" else pixels

    def to_pixels(self, output: Tensor) -> Tensor:
        """Network output as pixels, in [0, 1] where the output is in its range; not clamped."""
        return 0.5 * output + 0.5 if self.target_range == "signed" else output
