"""Pictures in more pixels: by a network, and by the filters that it must beat, in both conventions of coordinates.

Edges: both pictures have the same edges, as picture programs have it. Corners: the centres of their first and last
pixels are the same, as in the published exercise; the large picture is then shown a little too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixfit import metrics
from pixfit.modelfile import Network

__all__ = ["CONVENTIONS", "FILTERS", "Controls", "Convention", "Quality", "filtered", "quality", "resized", "sampled"]

Convention = Literal["edges", "corners"]
CONVENTIONS: tuple[Convention, ...] = ("edges", "corners")

_POINTS = 2**15  # samples that pass through a network at a time


def _cubic(x: Tensor) -> Tensor:
    """Keys 1981 with a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "nearest": lambda x: ((x > -0.5) & (x <= 0.5)).double(),
    "bilinear": lambda x: (1 - x.abs()).clamp(min=0),
    "bicubic": _cubic,
    "lanczos": lambda x: torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0),
}
"""Weights of a pixel by its distance from a sample, in pixels."""


def _positions(samples: int, pixels: int, convention: Convention) -> Tensor:
    """Where the samples lie along a side, in pixels from the centre of the first one."""
    index = torch.arange(samples, dtype=torch.float64)
    if convention == "corners":
        return index * (pixels - 1) / max(samples - 1, 1)
    return (index + 0.5) * pixels / samples - 0.5


def resized(picture: Tensor, size: tuple[int, int], method: str, convention: Convention = "edges") -> Tensor:
    """(C, H, W) made larger to a size (height, width) by one of `FILTERS`, in float32, not clamped.

    At the border the weights of the pixels that are there are scaled to sum to 1, as in Pillow.
    """
    both = []
    for samples, pixels in zip(size, picture.shape[1:], strict=True):
        at = _positions(samples, pixels, convention).clamp(-0.5 + 1e-9, pixels - 0.5)
        weights = FILTERS[method](at[:, None] - torch.arange(pixels, dtype=torch.float64))
        both.append(weights / weights.sum(dim=1, keepdim=True))
    return (both[0] @ picture.double() @ both[1].T).float()


def sampled(network: Network, size: tuple[int, int], convention: Convention = "edges") -> Tensor:
    """(C, height, width), not clamped, of a network of one picture, whatever its own convention of coordinates.

    Samples may lie up to half a pixel outside of what a network with corners in its coordinates was fitted to.
    """
    own, pixels = network.model.coordinates, network.shape[1:]
    if own.aspect != "stretch":
        raise ValueError(f"coordinates.aspect is {own.aspect!r}; it must be 'stretch' here")
    axes = []
    for samples, side in zip(size, pixels, strict=True):
        at = _positions(samples, side, convention)
        part = at / max(side - 1, 1) if own.alignment == "corner" else (at + 0.5) / side
        axes.append(own.low + (own.high - own.low) * part)
    points = own.mesh(*axes).to(next(iter(network.weights.values())).dtype)
    module = network.module()
    with torch.no_grad():
        outputs = torch.cat([module(part) for part in torch.split(points, _POINTS)])
    return network.model.to_pixels(outputs.float()).T.reshape(-1, *size)


@dataclass(frozen=True)
class Quality:
    """Means over pictures of PSNR in dB and of SSIM; SSIM is None where a picture is too small for it."""

    psnr: float
    ssim: float | None


def quality(shown: Sequence[Tensor], true: Sequence[Tensor]) -> Quality:
    """Of pictures (C, H, W) each, clamped to [0, 1]."""
    likeness = [metrics.ssim(one, other) for one, other in zip(shown, true, strict=True)]
    known = [value for value in likeness if value is not None]
    levels = [metrics.psnr(one, other) for one, other in zip(shown, true, strict=True)]
    return Quality(float(np.mean(levels)), float(np.mean(known)) if len(known) == len(likeness) else None)


Controls = Mapping[str, Mapping[Convention, Quality]]
"""The quality of filters by name and convention; empty without large pictures."""


def filtered(small: Sequence[Tensor], large: Sequence[Tensor], names: Sequence[str]) -> Controls:
    """Of small pictures (C, h, w) that filters made as large as the true ones (C, H, W)."""
    found: dict[str, dict[Convention, Quality]] = {}
    for name in names:
        found[name] = {}
        for way in CONVENTIONS:
            made = [
                resized(one, (true.shape[1], true.shape[2]), name, way) for one, true in zip(small, large, strict=True)
            ]
            found[name][way] = quality(made, large)
    return found
