"""The networks of the convolutional image priors as plain modules. This file needs nothing but torch, the kernels
and `networks`.

Shapes: one picture of H x W pixels; maps inside are (1, features, rows, columns). Weights and maps are kept in
channels-last order in memory: on a CPU that is up to twice as fast in bfloat16.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixfit.kernels import HourglassShape, hourglass_pixels

from .networks import Network

__all__ = ["DecoderNetwork", "HourglassNetwork", "PictureNetwork"]


class _Convolution(nn.Conv2d):
    """k x k with an odd k, padded by (k - 1) / 2 with zeros or by reflection, so that stride s gives ceil(side / s)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: str = "zeros", bias: bool = True
    ) -> None:
        self.border = (kernel - 1) // 2 if padding == "reflection" else 0
        own = 0 if padding == "reflection" else (kernel - 1) // 2
        super().__init__(inputs, outputs, kernel, stride, padding=own, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.border:
            x = F.pad(x, (self.border,) * 4, mode="reflect")
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class _Norm(nn.Module):
    """Batch normalisation by the statistics of the one picture, in training and after it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=1e-5)


class PictureNetwork(Network):
    """A network that makes one whole picture of one size from a fixed input, its code; it knows no coordinates.

    A subclass makes features (1, K, h, w) of a code in `features`, and has as `colours` the 1 x 1 convolution that
    makes the picture of their centre, in full precision under autocast too.

    Args:
        height, width: of the picture.
        code_shape: (features, rows, columns) of the code.
        code_scale: the code is U(0, code_scale), drawn once; None: it is the mesh of two maps that rise from 0 to 1
            from left to right and from top to bottom.
        output: "linear" or "sigmoid".
    """

    code: Tensor
    colours: nn.Conv2d

    def __init__(
        self, height: int, width: int, code_shape: tuple[int, int, int], code_scale: float | None, output: str
    ) -> None:
        super().__init__()
        self.height, self.width, self.code_scale, self.output = height, width, code_scale, output
        self.register_buffer("code", torch.empty(code_shape))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Convolutions as by PyTorch's default, U(±1/sqrt(fan_in)), norms 1 and 0.

        The first number seeds a generator for the code alone: one seed means the same weights at every size of the
        picture, and the same code for every network that takes one of that shape.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = 1.0 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, _Norm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.code_scale is None:
            _, rows, columns = self.code.shape
            with torch.no_grad():
                self.code[0] = _ramp(columns)
                self.code[1] = _ramp(rows)[:, None]
        else:
            nn.init.uniform_(self.code, 0.0, self.code_scale, generator=torch.Generator("cpu").manual_seed(seed))

    def forward(self, noise: Tensor) -> Tensor:
        """The picture's pixels (H·W, C), row by row. The noise is added to the code and has its shape, or is one 0."""
        return self.pixels(self.code + noise)

    def pixels(self, code: Tensor) -> Tensor:
        """The picture's pixels (H·W, C) of any code (D, h, w)."""
        x = self.features(code[None].contiguous(memory_format=torch.channels_last))
        x = _centre(x, self.height, self.width).to(self.colours.weight.dtype)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                x = self.colours(x)
        else:
            x = self.colours(x)
        return (torch.sigmoid(x) if self.output == "sigmoid" else x)[0].flatten(1).T

    def learn_code(self) -> None:
        """Makes the code a parameter."""
        code = self.code
        del self.code
        self.code = nn.Parameter(code)

    def features(self, x: Tensor) -> Tensor:
        """Features (1, K, h, w) of a code (1, D, h', w'), where h and w are at least the picture's sides."""
        raise NotImplementedError


class _Level(nn.Module):
    """One level of an hourglass, without what lies below it: ``down`` to half the size, ``up`` from there."""

    def __init__(
        self,
        inputs: int,
        down: int,
        below: int,
        up: int,
        skip: int,
        kernels: tuple[int, int, int],
        mix: bool,
        padding: str,
        slope: float,
    ) -> None:
        super().__init__()
        down_kernel, up_kernel, skip_kernel = kernels
        self.slope = slope
        self.skip: nn.Module | None = None
        if skip:
            self.skip, self.skip_norm = _Convolution(inputs, skip, skip_kernel, 1, padding), _Norm(skip)
        self.halve, self.halve_norm = _Convolution(inputs, down, down_kernel, 2, padding), _Norm(down)
        self.deepen, self.deepen_norm = _Convolution(down, down, down_kernel, 1, padding), _Norm(down)
        self.join_norm = _Norm(skip + below)
        self.merge, self.merge_norm = _Convolution(skip + below, up, up_kernel, 1, padding), _Norm(up)
        self.mix: nn.Module | None = None
        if mix:
            self.mix, self.mix_norm = _Convolution(up, up, 1), _Norm(up)

    def _active(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x, self.slope)

    def across(self, x: Tensor) -> Tensor | None:
        return None if self.skip is None else self._active(self.skip_norm(self.skip(x)))

    def down(self, x: Tensor) -> Tensor:
        x = self._active(self.halve_norm(self.halve(x)))
        return self._active(self.deepen_norm(self.deepen(x)))

    def up(self, x: Tensor, skipped: Tensor | None) -> Tensor:
        """``x`` at this level's own size, beside what came across."""
        x = self.join_norm(x if skipped is None else torch.cat([skipped, x], dim=1))
        x = self._active(self.merge_norm(self.merge(x)))
        return x if self.mix is None else self._active(self.mix_norm(self.mix(x)))


class HourglassNetwork(PictureNetwork):
    """Down to ever smaller maps and up again, with narrow connections across (Ulyanov et al., CVPR 2018: "skip").

    A map of odd side n goes down to (n + 1) / 2 and comes up as n + 1, of which the centre, from 0 on, is taken.

    Args:
        height, width: of the picture.
        code_channels, code_scale: of the code, which is of the picture's size.
        channels, up_channels, skip_channels: one a level, from the picture's size down; a skip of 0 is none.
        kernels: sides of the kernels on the way down, up and across.
        mix: whether a 1 x 1 convolution follows each on the way up.
        upsampling: "bilinear" (half-pixel centres) or "nearest".
        padding: "reflection" or "zeros".
        slope: of the leaky ReLU below 0.
        out_features, output: as of `PictureNetwork`.

    ``threads``, a plain attribute, is how many compiled code may use, see `kernels.hourglass_pixels`; 0 leaves all to
    torch, and None takes as many as torch has. ``row``, another one, may be a row of all parameters that they are
    windows on: compiled code then gives its gradient in place of theirs.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code_channels: int,
        code_scale: float | None,
        channels: tuple[int, ...],
        up_channels: tuple[int, ...],
        skip_channels: tuple[int, ...],
        kernels: tuple[int, int, int] = (3, 3, 1),
        mix: bool = True,
        upsampling: str = "bilinear",
        padding: str = "reflection",
        slope: float = 0.2,
        out_features: int = 3,
        output: str = "sigmoid",
    ) -> None:
        super().__init__(height, width, (code_channels, height, width), code_scale, output)
        self.upsampling = upsampling
        self.threads: int | None = None
        self.row: Tensor | None = None
        inputs, below = (code_channels, *channels[:-1]), (*up_channels[1:], channels[-1])
        self.levels = nn.ModuleList(
            _Level(*sizes, kernels, mix, padding, slope)
            for sizes in zip(inputs, channels, below, up_channels, skip_channels, strict=True)
        )
        self.colours = _Convolution(up_channels[0], out_features, 1)
        self._shape = HourglassShape(
            tuple(zip(channels, up_channels, skip_channels, strict=True)), kernels, mix, upsampling == "nearest",
            padding == "reflection", slope, out_features, output == "sigmoid",
        )  # fmt: skip
        parts = [*self.levels.modules(), self.colours]
        self._owners = [(module, name) for module in parts for name in module._parameters]

    def pixels(self, code: Tensor) -> Tensor:
        if self.threads == 0:
            return super().pixels(code)
        if self.row is not None:
            parameters = [self.row]
        else:  # by name: a call may put other tensors in their places
            parameters = [getattr(module, name) for module, name in self._owners]
        return hourglass_pixels(code, parameters, self._shape, super().pixels, self.threads)

    def features(self, x: Tensor) -> Tensor:
        levels = cast(list[_Level], list(self.levels))
        above = []
        for level in levels:
            above.append((x.shape[-2], x.shape[-1], level.across(x)))
            x = level.down(x)
        for level, (height, width, skipped) in zip(reversed(levels), reversed(above), strict=True):
            x = _resized(x, 2 * x.shape[-2], 2 * x.shape[-1], self.upsampling)
            x = level.up(_centre(x, height, width), skipped)
        return x


class DecoderNetwork(PictureNetwork):
    """From a small code up to the picture: convolutions without bias, ReLU, norm and changes of size in between.

    Args:
        height, width: of the picture.
        code_size: (rows, columns) of the code.
        code_scale: of the code.
        channels: of the code and of all maps.
        sizes: (rows, columns) after each stage; the last is at least the picture's.
        kernel: side of the stages' kernels; padded with zeros.
        resize: "before" or "after" a stage's convolution.
        upsampling: "bilinear" (half-pixel centres) or "nearest".
        out_features, output: as of `PictureNetwork`.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code_size: tuple[int, int],
        code_scale: float,
        channels: int,
        sizes: tuple[tuple[int, int], ...],
        kernel: int = 1,
        resize: str = "after",
        upsampling: str = "bilinear",
        out_features: int = 3,
        output: str = "sigmoid",
    ) -> None:
        super().__init__(height, width, (channels, *code_size), code_scale, output)
        self.sizes, self.resize, self.upsampling = sizes, resize, upsampling
        self.stages = nn.ModuleList(_Convolution(channels, channels, kernel, bias=False) for _ in sizes)
        self.norms = nn.ModuleList(_Norm(channels) for _ in sizes)
        self.colours = _Convolution(channels, out_features, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        for stage, norm, (height, width) in zip(self.stages, self.norms, self.sizes, strict=True):
            if self.resize == "before":
                x = stage(_resized(x, height, width, self.upsampling))
            else:
                x = _resized(stage(x), height, width, self.upsampling)
            x = norm(F.relu(x))
        return x


def _resized(x: Tensor, height: int, width: int, upsampling: str) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode=upsampling, align_corners=None if upsampling == "nearest" else False)


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of a map, from half the difference of the sides on, rounded down."""
    if x.shape[-2:] == (height, width):  # a cut would cost a copy in the backward pass
        return x
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _ramp(count: int) -> Tensor:
    """0 to 1 in so many equal steps; 0.5 where there is one alone."""
    index = torch.arange(count, dtype=torch.float64, device="cpu")
    return (index / (count - 1) if count > 1 else index + 0.5).float()
