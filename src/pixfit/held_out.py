"""Which samples are kept out of the loss, to tell when a fit begins to follow the noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["squares"]


def squares(
    measured: Tensor, fraction: float, generator: torch.Generator, *, side: int = 3, guard: int = 1
) -> tuple[Tensor, Tensor]:
    """Small squares instead of single pixels, for noise that neighbours share.

    A single pixel's noise can be read off the pixels around it, so that its error goes on falling while the noise is
    fitted. In the middle of a square it cannot, as far as the noise reaches no further than ``guard``. There is one
    square, at a random place, in each cell of a grid; two squares never touch.

    Args:
        measured: bool (1, H, W), the pixels that were measured.
        fraction: of the pixels that is left out, about; 0.09 and more leaves room between the squares of 3 pixels.
        generator: of the places.
        side: of a square, in pixels.
        guard: pixels between the border of a square and those that are scored.

    Returns:
        left_out: bool (1, H, W), measured pixels that the loss must not see.
        scored: bool (1, H, W), those of them at which errors are compared.

    Raises:
        ValueError: squares without a middle, too large a fraction, or a picture in which not one square fits.
    """
    if guard < 0 or 2 * guard >= side:
        raise ValueError(f"side is {side} and guard {guard}; a square must have a middle: side above 2 · guard")
    cell = round(side / math.sqrt(fraction)) if fraction > 0 else 0
    if cell <= side:
        raise ValueError(
            f"fraction is {fraction}; squares of {side} pixels need one above 0 and under {_most(side):.2f}"
        )
    height, width = measured.shape[1:]
    rows, columns = height // cell, width // cell
    if rows * columns == 0:
        raise ValueError(f"a picture of {width}×{height} has no cell of {cell} pixels; raise the fraction")
    left_out, scored = torch.zeros_like(measured), torch.zeros_like(measured)
    top, left = torch.randint(cell - side, (2, rows * columns), generator=generator)
    numbers = torch.arange(rows * columns)
    top += numbers // columns * cell
    left += numbers % columns * cell
    for row in range(side):
        for column in range(side):
            left_out[0, top + row, left + column] = True
            if guard <= min(row, column) and max(row, column) < side - guard:
                scored[0, top + row, left + column] = True
    return left_out & measured, scored & measured


def _most(side: int) -> float:
    return (side / (side + 0.5)) ** 2
