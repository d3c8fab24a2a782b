"""Many pictures on one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["contact_sheet"]


def contact_sheet(pictures: Sequence[Tensor], *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Pictures side by side on white, each in the middle of a cell as large as the largest.

    Args:
        pictures: (C, H, W) each, of any sizes, with one number of channels.
        columns: in a row; by default as many as make about a square.
        gap: white pixels between two cells and around them.

    Returns:
        (C, H', W').

    Raises:
        ValueError: no picture, unequal channels, or a column count or gap that is out of range.
    """
    channels = {picture.shape[0] for picture in pictures}
    if len(channels) != 1:
        raise ValueError(f"a sheet needs pictures with one number of channels, got {sorted(channels)}")
    columns = math.ceil(math.sqrt(len(pictures))) if columns is None else columns
    if columns < 1 or gap < 0:
        raise ValueError(f"columns is {columns} and gap is {gap}; they must be at least 1 and 0")
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    rows = math.ceil(len(pictures) / columns)
    sheet = torch.ones(*channels, rows * (height + gap) + gap, columns * (width + gap) + gap, dtype=pictures[0].dtype)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top = gap + row * (height + gap) + (height - picture.shape[1]) // 2
        left = gap + column * (width + gap) + (width - picture.shape[2]) // 2
        sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture.cpu()
    return sheet
