"""Other views of a picture: its flips and quarter turns, and its crops; a fixed few of them, or drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["COPIES", "corner", "drawn", "turned"]


def turned(picture: Tensor, copy: int) -> Tensor:
    """Copy 0 to 7 of (..., H, W): so many quarter turns to the left, from copy 4 on of the mirrored picture; copy 0 is
    itself."""
    return torch.rot90(picture.flip(-1) if copy >= 4 else picture, copy % 4, (-2, -1)).contiguous()


def corner(picture: Tensor, bottom: bool, right: bool) -> Tensor:
    """The crop of (..., H, W) that has three quarters of both sides, rounded up, and one of the picture's corners."""
    height, width = (-(-3 * side // 4) for side in picture.shape[-2:])
    rows = slice(-height, None) if bottom else slice(height)
    return picture[..., rows, slice(-width, None) if right else slice(width)].contiguous()


_TURNS = (
    "", "turned 90", "turned 180", "turned 270", "mirrored", "mirrored turned 90", "mirrored turned 180",
    "mirrored turned 270",
)  # fmt: skip

COPIES: Mapping[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
    "turns": {name: partial(turned, copy=copy) for copy, name in enumerate(_TURNS)},
    "crops": {
        "": Tensor.contiguous,
        "top left": partial(corner, bottom=False, right=False), "top right": partial(corner, bottom=False, right=True),
        "bottom left": partial(corner, bottom=True, right=False),
        "bottom right": partial(corner, bottom=True, right=True),
    },
}  # fmt: skip
"""Fixed views of a picture by kind and name; the first of each kind, without a name, is the picture itself. Each maps
(..., H, W) to pixels that are all its own."""


def drawn(pictures: Tensor, generator: torch.Generator, *, turns: bool, crop: float) -> Tensor:
    """Each of T pictures (T, C, H, W) in a view of its own, of the same size, that is drawn for it.

    Args:
        generator: on the CPU, wherever the pictures are.
        turns: whether each is flipped and turned: in one of eight ways, or of the four that keep the shape of pictures
            that are not square.
        crop: the least share of both sides that a crop has, in (0, 1]; the share is uniform from there to 1, and so is
            the crop's place. It is enlarged to the size of the picture by bilinear interpolation, edges on edges.
    """
    count, _, height, width = pictures.shape
    if turns:
        ways = torch.arange(0, 8, 1 if height == width else 2)
        chosen = ways[torch.randint(len(ways), (count,), generator=generator)].tolist()
        pictures = torch.stack([turned(picture, copy) for picture, copy in zip(pictures, chosen, strict=True)])
    if crop < 1:
        share = (crop + (1 - crop) * torch.rand(count, 1, generator=generator)).to(pictures)
        middles = torch.rand(2, count, 1, generator=generator).to(pictures)
        # Places run from -1 to 1, edge to edge. A product of matrices would round them on some cards.
        axes = [
            share * (torch.arange(1, 2 * side, 2, device=pictures.device) / side - 1) + (1 - share) * (2 * middle - 1)
            for side, middle in zip((height, width), middles, strict=True)
        ]
        rows, columns = axes[0][:, :, None].expand(-1, -1, width), axes[1][:, None].expand(-1, height, -1)
        places = torch.stack([columns, rows], dim=3)
        pictures = F.grid_sample(pictures, places, mode="bilinear", padding_mode="border", align_corners=False)
    return pictures
