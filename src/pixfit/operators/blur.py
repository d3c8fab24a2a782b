"""Blur by a known kernel, and where kernels come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit.canonical import is_number

from .base import Operator, Shape, fingerprint, linear, shape_of, working_dtype

__all__ = ["Blur", "Boundary", "gaussian_kernel", "read_kernel"]

Boundary = Literal["reflect", "zero", "circular"]

_LONGEST_SIDE = 1023  # pixels; a larger kernel is most likely a photograph


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """Convolution with one kernel, the same for all channels; the measurement has the picture's size.

    y[i] = Σ k[m] x[i − m + K // 2] along each side of the kernel, K pixels long, as scipy.ndimage.convolve has it.
    It is computed with fast Fourier transforms of the padded picture, so a large kernel costs little more than a small
    one.

    Args:
        kernel: (Kh, Kw), at most 1023 pixels a side, used as it is: a sum of 1 keeps the brightness. In the constructor
            also the path of a file, for `read_kernel`.
        boundary: what lies beyond the border. ``reflect``: the picture mirrored in its outermost pixels, which are not
            repeated (SciPy calls it mirror); ``zero``: black; ``circular``: the picture again.

    Raises:
        ValueError: a kernel of another shape, with numbers that are not finite or all 0; another boundary; with
            ``reflect`` or ``circular`` a kernel that reaches further than the picture goes.
    """

    kernel: Tensor
    boundary: Boundary = "reflect"

    def __post_init__(self) -> None:
        if self.boundary not in get_args(Boundary):
            raise ValueError(f"boundary is {self.boundary!r}; it may be {', '.join(get_args(Boundary))}")
        given: Any = self.kernel
        kernel = read_kernel(given) if isinstance(given, (str, Path)) else torch.as_tensor(given)
        kernel = kernel.detach().to("cpu", torch.float64, copy=True)
        _check_kernel(kernel, "the kernel")
        object.__setattr__(self, "kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        self.output_shape(shape_of(x))
        return linear(x, self._blur, self._adjoint)

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        self.output_shape(shape_of(y))
        return linear(y, self._adjoint, self._blur)

    def output_shape(self, shape: Shape) -> Shape:
        slack = {"reflect": 1, "circular": 0}.get(self.boundary)
        sides = zip(self.kernel.shape, shape[1:], strict=True)
        if slack is not None and any(size // 2 > side - slack for size, side in sides):
            raise ValueError(
                f"a kernel of {self.kernel.shape[1]}×{self.kernel.shape[0]} pixels reaches further than a "
                f"{shape[2]}×{shape[1]} picture goes with the boundary {self.boundary}; use the boundary zero"
            )
        return shape

    def canonical_value(self) -> dict[str, Any]:
        return {
            "kind": "Blur", "kernel": self._fingerprint, "shape": list(self.kernel.shape), "boundary": self.boundary,
        }  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blur) and self.canonical_value() == other.canonical_value()

    def __hash__(self) -> int:
        return hash(str(self.canonical_value()))

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.kernel)

    def _blur(self, x: Tensor) -> Tensor:
        (high, wide), (height, width) = self.kernel.shape, x.shape[-2:]
        padded = _pad(_pad(x.to(working_dtype(x)), -2, high, self.boundary), -1, wide, self.boundary)
        size, spectrum = self._spectrum(padded.shape[-2:], padded)
        full: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
        return full[..., high - 1 : high - 1 + height, wide - 1 : wide - 1 + width].to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        (high, wide), (height, width) = self.kernel.shape, y.shape[-2:]
        length = (height + high - 1, width + wide - 1)
        size, spectrum = self._spectrum(length, y)
        full = torch.nn.functional.pad(y.to(working_dtype(y)), (wide - 1, 0, high - 1, 0))
        padded = torch.fft.irfft2(torch.fft.rfft2(full, s=size) * spectrum.conj(), s=size)
        padded = padded[..., : length[0], : length[1]]
        return _fold(_fold(padded, -1, wide, self.boundary), -2, high, self.boundary).to(y.dtype)

    def _spectrum(self, length: torch.Size | tuple[int, int], x: Tensor) -> tuple[tuple[int, int], Tensor]:
        size = (_fast_length(length[0]), _fast_length(length[1]))
        return size, _spectrum(self, size, working_dtype(x), x.device)


def read_kernel(path: str | Path) -> Tensor:
    """A blur kernel (Kh, Kw) from a file, float64, divided by its sum.

    Args:
        path: a ``.npy`` array of two dimensions, or a grey picture (of a colour one the mean of its channels counts).

    Raises:
        ValueError: no such file, one that is neither, or numbers that are no kernel; one line that names the file.
    """
    name = os.fspath(path)
    try:
        values = _read_array(name) if name.lower().endswith(".npy") else _read_picture(name)
    except Exception as error:  # any damage: readers raise what they stumble over
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name}: no kernel could be read from it ({reason})") from None
    kernel = torch.from_numpy(values)
    _check_kernel(kernel, f"{name}: the kernel")
    total = float(kernel.sum())
    if not total > 0:
        raise ValueError(f"{name}: the kernel's sum is {total:g}; it must be above 0, to be divided by")
    return kernel / total


def gaussian_kernel(sigma: float) -> Tensor:
    """A Gaussian of standard deviation ``sigma`` pixels, cut off at four of them: (2r + 1, 2r + 1) float64, sum 1."""
    if not (is_number(sigma) and 0 < sigma <= 100):
        raise ValueError(f"sigma is {sigma!r}; it must be above 0 and up to 100 pixels")
    radius = int(4 * sigma + 0.5)
    side = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu") / sigma).square())
    side = side / side.sum()
    return side[:, None] * side


def _read_array(name: str) -> NDArray[np.float64]:
    stored = np.load(name, mmap_mode="r", allow_pickle=False)  # mapped: a false header must not ask for memory
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "buif":
        raise ValueError("a kernel is an array of real numbers")
    if stored.size > _LONGEST_SIDE**2:
        raise ValueError(f"{stored.size} numbers are too many for a kernel")
    return np.array(stored, np.float64)


def _read_picture(name: str) -> NDArray[np.float64]:
    from PIL import Image

    with Image.open(name) as picture:
        if max(picture.size) > _LONGEST_SIDE:  # before anything is decoded
            raise ValueError(f"{picture.width}×{picture.height} pixels are too many, {_LONGEST_SIDE} a side may be")
        if picture.mode in ("1", "L", "I;16", "I;16B", "I", "F"):
            return np.array(picture, np.float64)
        colours = np.array(picture.convert("RGB"), np.float64)
        return (colours[..., 0] + colours[..., 1] + colours[..., 2]) / 3


def _check_kernel(kernel: Tensor, name: str) -> None:
    if kernel.dim() != 2 or not all(1 <= side <= _LONGEST_SIDE for side in kernel.shape):
        raise ValueError(f"{name} has the shape {tuple(kernel.shape)}; it must be (Kh, Kw), 1 to {_LONGEST_SIDE} each")
    if not bool(kernel.isfinite().all()) or not bool(kernel.any()):
        raise ValueError(f"{name} must hold finite numbers that are not all 0")


def _pad(x: Tensor, dim: int, kernel: int, boundary: Boundary) -> Tensor:
    """``kernel`` − 1 pixels more along ``dim``: what the border of the measurement sees beyond that of the picture."""
    before, after, n = (kernel - 1) // 2, kernel // 2, x.shape[dim]
    part = partial(torch.narrow, x, dim)
    if boundary == "reflect":
        edges = part(1, before).flip(dim), part(n - 1 - after, after).flip(dim)
    elif boundary == "circular":
        edges = part(n - before, before), part(0, after)
    else:
        zero = torch.zeros_like(part(0, 1))
        edges = zero.repeat_interleave(before, dim), zero.repeat_interleave(after, dim)
    return torch.cat((edges[0], x, edges[1]), dim)


def _fold(z: Tensor, dim: int, kernel: int, boundary: Boundary) -> Tensor:
    """The adjoint of `_pad`: what lies beyond the border is added where it was taken from."""
    before, after, n = (kernel - 1) // 2, kernel // 2, z.shape[dim] - kernel + 1
    x = z.narrow(dim, before, n).clone()
    first, last = z.narrow(dim, 0, before), z.narrow(dim, before + n, after)
    if boundary == "reflect":
        x.narrow(dim, 1, before).add_(first.flip(dim))
        x.narrow(dim, n - 1 - after, after).add_(last.flip(dim))
    elif boundary == "circular":
        x.narrow(dim, n - before, before).add_(first)
        x.narrow(dim, 0, after).add_(last)
    return x


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _spectrum(blur: Blur, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    spectrum: Tensor = torch.fft.rfft2(blur.kernel, s=size)
    return spectrum.to(device, dtype.to_complex())


@lru_cache(maxsize=256)
def _fast_length(length: int) -> int:
    """The next length that is a product of 2, 3 and 5: prime lengths take twice the time."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
