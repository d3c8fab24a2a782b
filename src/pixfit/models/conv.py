"""Settings of the convolutional image priors: networks that make one whole picture of one size from a fixed code.

They know no coordinates, so they are fitted to the whole picture in every step and cannot be rendered at other sizes.
What restores a picture is that they fit its structure sooner than its noise: a fit must end, or be averaged, in time.

`Hourglass()` has the 2,217,831 parameters of the deep image prior's experiments; `Hourglass.small(height, width)` has
152 thousand, restores pictures of some hundred pixels as well, and takes a fraction of the time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from .base import Coordinates, Model, TargetRange, check_choice, check_integer, check_kind, check_number, check_whole
from .conv_networks import DecoderNetwork, HourglassNetwork, PictureNetwork

__all__ = ["PRIORS", "ConvDecoder", "DeepDecoder", "Descent", "Hourglass", "Perturbation", "PicturePrior"]

_MESH = Coordinates(alignment="corner", range="unit")
_LARGEST_SIDE = 2**16


@dataclass(frozen=True)
class Perturbation:
    """Normal noise that is added to the code, drawn anew for each step of training; predictions are made without it.

    std    its standard deviation; 0 for none.
    decay  factor on std after every so many steps (`every`). The deep decoder's program has 0.7 every 500, and takes
           the factor once before the first step too.
    """

    std: float = 1 / 30
    decay: float = 1.0
    every: int = 500

    def __post_init__(self) -> None:
        check_number(self, "std", 0.0, 1e3)
        check_number(self, "decay", 0.0, 1.0)
        check_integer(self, "every", 1, 10**9)

    def at(self, step: int) -> float:
        """The standard deviation in a step, counted from 0."""
        return self.std * self.decay ** (step // self.every)


_SLIGHT = Perturbation()
_NONE = Perturbation(0.0)


class Descent(NamedTuple):
    """A parameter that the optimiser leaves alone: it goes down its own gradient, by a rate of its own.

    name   of the parameter.
    rate   of the descent on the *sum* of the errors: the loss is their mean, so its gradient is multiplied by the
           number of values in the parameter. It knows no schedule.
    every  steps between two of its own.
    """

    name: str
    rate: float
    every: int = 1


class PicturePrior(Model):
    """What the convolutional priors share; not a model by itself.

    code_scale    the code is U(0, code_scale), drawn with the weights' seed and kept with them as the buffer ``code``.
    perturbation  noise on the code in training.
    output        "sigmoid" for values in [0, 1] whatever the weights, or "linear".
    size          (height, width) of the picture; None: of the picture that the network is fitted to.

    The norms use the statistics of the picture itself, during the fit and after it.
    """

    code_scale: float
    perturbation: Perturbation
    output: Literal["sigmoid", "linear"]
    size: tuple[int, int] | None

    def __post_init__(self) -> None:
        check_number(self, "code_scale", 0.0, 1e3, exclusive=True)
        check_kind(self, "perturbation", Perturbation)
        check_choice(self, "output", ("sigmoid", "linear"))
        check_choice(self, "target_range", ("signed", "unit"))
        if self.output == "sigmoid" and self.target_range == "signed":
            raise ValueError(
                f"{type(self).__name__}.output: got 'sigmoid' (values in [0, 1]) with target_range 'signed'; "
                "use target_range 'unit' or output 'linear'"
            )
        if self.size is not None:
            if not isinstance(self.size, tuple) or len(self.size) != 2:
                raise ValueError(f"{type(self).__name__}.size: got {self.size!r}, allowed (height, width) or None")
            for side in self.size:
                check_whole(f"{type(self).__name__}.size", side, 1, _LARGEST_SIDE)
            self.check_size(*self.size)

    @property
    def coordinates(self) -> Coordinates:  # type: ignore[override]
        """Where the pixels lie in the mesh that is the code of some; else without meaning."""
        return _MESH

    def sized(self, height: int, width: int) -> Self:
        """These settings for pictures of one size. Raises ValueError for one that they do not allow."""
        if self.size not in (None, (height, width)):
            own = f"{self.size[1]} x {self.size[0]}" if self.size is not None else ""
            raise ValueError(
                f"{type(self).__name__}.size: got {own} (width x height) for a picture of {width} x {height}; "
                "leave size at None"
            )
        return replace(self, size=(height, width))  # type: ignore[type-var]

    def network(self, in_features: int = 2, out_features: int = 3) -> PictureNetwork:
        """The network of settings with a size; ``in_features`` has no meaning, as it sees no coordinates."""
        if self.size is None:
            name = type(self).__name__
            raise ValueError(f"{name}.size is None: the network is of one size; use {name}(...).sized(height, width)")
        check_whole("out_features", out_features, 1, 65536)
        return self.picture_network(*self.size, out_features)

    def parameters_count(self, in_features: int | None = None, out_features: int = 3) -> int:
        with torch.device("meta"):  # the same at every size, so that settings without one can tell
            network = self.picture_network(1, 1, out_features)
        return sum(parameter.numel() for parameter in network.parameters())

    @property
    def descents(self) -> tuple[Descent, ...]:
        """Parameters that the optimiser leaves alone; of most priors none."""
        return ()

    def explained(self, measured: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """What the loss compares with the measurement, of what the picture measures (C', H', W'): the same, unless some
        of the parameters stand for a part of the measurement that no picture has."""
        return measured

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(features, rows, columns) of the code, of settings with a size."""
        with torch.device("meta"):
            features, rows, columns = self.network().code.shape
        return features, rows, columns

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for a size of which the network cannot make a picture."""

    @abstractmethod
    def picture_network(self, height: int, width: int, out_features: int) -> PictureNetwork:
        """The network for a size, on the current default device."""

    def _check_sides(self, height: int, width: int, least: int, remedy: str) -> None:
        if min(height, width) < least:
            raise ValueError(
                f"{type(self).__name__} with these settings makes pictures from {least} x {least} pixels, "
                f"this one is {width} x {height}; {remedy}"
            )


@dataclass(frozen=True)
class Hourglass(PicturePrior):
    """Maps that shrink by halves and grow again, with connections across (deep image prior, Ulyanov et al., CVPR 2018).

    On each level, from the picture's size down, a convolution of stride 2 and one of stride 1; on the way up the maps
    are doubled, put beside those that came across by a narrow convolution, normalised and convolved. All convolutions
    have biases and all but the last are followed by a norm and a leaky ReLU. Every picture from 33 pixels a side fits
    five levels, odd sides too: of a doubled map that is one pixel larger, the last row or column is left out.

    channels        of the maps on the way down, one a level.
    up_channels     of those on the way up; None: the same.
    skip_channels   of the connections across, one number or one a level; 0 for none.
    down_kernel     side of the kernels on the way down, odd; `up_kernel` on the way up, `skip_kernel` across.
    mix             whether a 1 x 1 convolution follows on each level of the way up.
    upsampling      "bilinear" with half-pixel centres, or "nearest".
    padding         "reflection", or "zeros", which is faster.
    slope           of the leaky ReLU below 0.
    code            "uniform": random numbers, see `PicturePrior`; "mesh": two maps with the column and the row of each
                    pixel from 0 to 1, for large holes.
    code_channels   of the code, which is of the picture's size; 2 for the mesh.

    The settings of the original tasks:
        denoising, super-resolution, half of the pixels missing: the defaults.
        text over a picture: skip_channels=128, upsampling="nearest".
        a large hole ("vase"): code="mesh", code_channels=2, skip_channels=0, upsampling="nearest".
        a large hole ("library"): channels=(16, 32, 64, 128, 128, 128), skip_channels=0, down_kernel=5, mix=False,
            upsampling="nearest", code_channels=1, perturbation=Perturbation(0).
        JPEG artefacts ("snail"): channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4), code_channels=3.
    """

    channels: tuple[int, ...] = (128, 128, 128, 128, 128)
    up_channels: tuple[int, ...] | None = None
    skip_channels: int | tuple[int, ...] = 4
    down_kernel: int = 3
    up_kernel: int = 3
    skip_kernel: int = 1
    mix: bool = True
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    padding: Literal["reflection", "zeros"] = "reflection"
    slope: float = 0.2
    code: Literal["uniform", "mesh"] = "uniform"
    code_channels: int = 32
    code_scale: float = 0.1
    perturbation: Perturbation = _SLIGHT
    output: Literal["sigmoid", "linear"] = "sigmoid"
    size: tuple[int, int] | None = None
    target_range: TargetRange = "unit"

    def __post_init__(self) -> None:
        self._check_level_numbers("channels", self.channels, 1)
        if self.up_channels is not None:
            self._check_level_numbers("up_channels", self.up_channels, 1)
        if isinstance(self.skip_channels, tuple):
            self._check_level_numbers("skip_channels", self.skip_channels, 0)
        else:
            check_integer(self, "skip_channels", 0, 65536)
        for name in ("down_kernel", "up_kernel", "skip_kernel"):
            check_integer(self, name, 1, 99)
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"Hourglass.{name}: got {getattr(self, name)}, allowed odd numbers")
        check_kind(self, "mix", bool)
        check_choice(self, "upsampling", ("bilinear", "nearest"))
        check_choice(self, "padding", ("reflection", "zeros"))
        check_number(self, "slope", 0.0, 1.0)
        check_choice(self, "code", ("uniform", "mesh"))
        check_integer(self, "code_channels", 1, 65536)
        if self.code == "mesh" and self.code_channels != 2:
            raise ValueError(f"Hourglass.code_channels: got {self.code_channels} with code 'mesh', which has 2")
        super().__post_init__()

    @classmethod
    def small(cls, height: int, width: int) -> Self:
        """32 channels on five levels, or on as many as a smaller picture allows: 152 thousand parameters.

        Of the networks measured for restoring pictures of about 100 pixels a side this one takes the least time to get
        as far as any.
        """
        check_whole("height", height, 3, _LARGEST_SIDE)
        check_whole("width", width, 3, _LARGEST_SIDE)
        return cls(channels=(32,) * min(5, (min(height, width) - 1).bit_length() - 1))

    @property
    def skips(self) -> tuple[int, ...]:
        """Channels of the connection across of each level."""
        if isinstance(self.skip_channels, tuple):
            return self.skip_channels
        return (self.skip_channels,) * len(self.channels)

    def check_size(self, height: int, width: int) -> None:
        """The smallest map must have two pixels a side; where borders are reflected, maps must be larger than those."""
        levels = len(self.channels)
        least = 2**levels + 1
        if self.padding == "reflection":
            up = max(self.up_kernel, self.skip_kernel if any(self.skips) else 1)
            least = max(least, self.down_kernel // 2 * 2**levels + 1, up // 2 * 2 ** (levels - 1) + 1)
        self._check_sides(
            height, width, least, "give it fewer channels (one a level), as Hourglass.small(height, width) does"
        )

    def picture_network(self, height: int, width: int, out_features: int) -> HourglassNetwork:
        return HourglassNetwork(
            height,
            width,
            self.code_channels,
            None if self.code == "mesh" else self.code_scale,
            self.channels,
            self.channels if self.up_channels is None else self.up_channels,
            self.skips,
            (self.down_kernel, self.up_kernel, self.skip_kernel),
            self.mix,
            self.upsampling,
            self.padding,
            self.slope,
            out_features,
            self.output,
        )

    def _check_level_numbers(self, name: str, numbers: object, low: int) -> None:
        if not isinstance(numbers, tuple) or not 1 <= len(numbers) <= 12 or len(numbers) != len(self.channels):
            count = "1 to 12" if name == "channels" else f"{len(self.channels)}, one a level"
            raise ValueError(f"Hourglass.{name}: got {numbers!r}, allowed a tuple of {count} whole numbers")
        for number in numbers:
            check_whole(f"Hourglass.{name}", number, low, 65536)


@dataclass(frozen=True)
class DeepDecoder(PicturePrior):
    """A small code doubled in size again and again, its features mixed pixel by pixel (Heckel and Hand, ICLR 2019).

    `doublings` stages of a 1 x 1 convolution, a doubling, ReLU and a norm, one more without the doubling, and the
    colours; no convolution has a bias. The code has a 2^doublings-th of the picture's sides, rounded up; where that
    does not divide them, a larger picture is made and its centre taken.

    channels    of the code and of all maps. Published: 64 for strong noise, 128 for denoising, 256 for inpainting.
    resize      whether a map is doubled "after" a stage's convolution or "before" it; then the stage without a doubling
                is the first.
    upsampling  "bilinear" with half-pixel centres, or "nearest".
    """

    channels: int = 128
    doublings: int = 5
    resize: Literal["after", "before"] = "after"
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    code_scale: float = 0.1
    perturbation: Perturbation = _NONE
    output: Literal["sigmoid", "linear"] = "sigmoid"
    size: tuple[int, int] | None = None
    target_range: TargetRange = "unit"

    def __post_init__(self) -> None:
        check_integer(self, "channels", 1, 65536)
        check_integer(self, "doublings", 1, 12)
        check_choice(self, "resize", ("after", "before"))
        check_choice(self, "upsampling", ("bilinear", "nearest"))
        super().__post_init__()

    def check_size(self, height: int, width: int) -> None:
        """A code with a single row or column could make no structure across it."""
        self._check_sides(height, width, 2**self.doublings + 1, "lower doublings")

    def picture_network(self, height: int, width: int, out_features: int) -> DecoderNetwork:
        rows, columns = -(-height // 2**self.doublings), -(-width // 2**self.doublings)
        sizes = [(rows << number, columns << number) for number in range(self.doublings + 1)]
        sizes = sizes if self.resize == "before" else [*sizes[1:], sizes[-1]]
        return DecoderNetwork(
            height,
            width,
            (rows, columns),
            self.code_scale,
            self.channels,
            tuple(sizes),
            1,
            self.resize,
            self.upsampling,
            out_features,
            self.output,
        )


@dataclass(frozen=True)
class ConvDecoder(PicturePrior):
    """A small code enlarged by one factor a layer, with 3 x 3 convolutions (Darestani and Heckel, IEEE TCI 2021).

    `layers` - 1 stages of an enlargement, a convolution, ReLU and a norm, one more without the enlargement, and the
    colours; no convolution has a bias. The sides after the stages grow geometrically, rounded up, from the code's to
    the picture's, whatever these are. Defaults are those of the authors' program for natural pictures but for the
    enlargement, which is "nearest".

    channels    of the code and of all maps.
    layers      see above.
    kernel      side of the kernels, odd.
    upsampling  "nearest", or "bilinear" with half-pixel centres.
    code_size   (rows, columns) of the code, which the picture must not be smaller than.
    """

    channels: int = 64
    layers: int = 6
    kernel: int = 3
    upsampling: Literal["bilinear", "nearest"] = "nearest"
    code_size: tuple[int, int] = (16, 16)
    code_scale: float = 0.1
    perturbation: Perturbation = _NONE
    output: Literal["sigmoid", "linear"] = "sigmoid"
    size: tuple[int, int] | None = None
    target_range: TargetRange = "unit"

    def __post_init__(self) -> None:
        check_integer(self, "channels", 1, 65536)
        check_integer(self, "layers", 2, 64)
        check_integer(self, "kernel", 1, 99)
        if self.kernel % 2 == 0:
            raise ValueError(f"ConvDecoder.kernel: got {self.kernel}, allowed odd numbers")
        check_choice(self, "upsampling", ("bilinear", "nearest"))
        if not isinstance(self.code_size, tuple) or len(self.code_size) != 2:
            raise ValueError(f"ConvDecoder.code_size: got {self.code_size!r}, allowed (rows, columns)")
        for side in self.code_size:
            check_whole("ConvDecoder.code_size", side, 2, _LARGEST_SIDE)
        super().__post_init__()

    def check_size(self, height: int, width: int) -> None:
        if height < self.code_size[0] or width < self.code_size[1]:
            raise ValueError(
                f"ConvDecoder.code_size: got {self.code_size[1]} x {self.code_size[0]} (width x height), which is more "
                f"than the picture's {width} x {height}; lower it"
            )

    def picture_network(self, height: int, width: int, out_features: int) -> DecoderNetwork:
        steps = self.layers - 1

        def grown(start: int, end: int, number: int) -> int:
            factor: float = (end / start) ** (number / steps)
            return math.ceil(start * factor - 1e-6)  # the cube root of 8, cubed, may come out above 8

        rows, columns = self.code_size
        sizes = [(grown(rows, height, number), grown(columns, width, number)) for number in range(1, steps)]
        sizes += [(height, width)] * 2
        return DecoderNetwork(
            height,
            width,
            self.code_size,
            self.code_scale,
            self.channels,
            tuple(sizes),
            self.kernel,
            "before",
            self.upsampling,
            out_features,
            self.output,
        )


PRIORS: dict[str, type[PicturePrior]] = {
    "Hourglass": Hourglass,
    "DeepDecoder": DeepDecoder,
    "ConvDecoder": ConvDecoder,
}
