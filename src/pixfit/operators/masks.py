"""Makers of masks for `Inpaint`: bool tensors, True (white) where a pixel is known.

All take the shape of the mask: (H, W) for whole pixels, (C, H, W) for a mask of its own in each channel. Masks combine
as tensors do: ``masks.text((H, W)) & masks.hole((H, W))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole

__all__ = ["hole", "pixels", "text"]

_PANGRAM = "The five boxing wizards jump quickly. "
_SMALLEST_LETTERS = 8  # pixels; below that they are no longer letters


def pixels(shape: Sequence[int], known: float = 0.5, seed: int = 0) -> Tensor:
    """Each pixel is known with probability ``known``, by itself (Bernoulli).

    Args:
        shape: (H, W), or (C, H, W), where every channel of every pixel is drawn by itself.
        known: probability in (0, 1].
        seed: 0 to 2^63 − 1.

    Raises:
        ValueError: settings out of bounds.
    """
    sides = _sides(shape)
    if not (is_number(known) and 0 < known <= 1):
        raise ValueError(f"known is {known!r}; it is the probability that a pixel is known, above 0 and up to 1")
    return torch.rand(sides, generator=_generator(seed), device="cpu", dtype=torch.float64) < known


def hole(shape: Sequence[int], fraction: float = 0.25, seed: int | None = None) -> Tensor:
    """A rectangle with the picture's proportions is missing.

    Args:
        shape: (H, W), or (C, H, W) for a hole in every channel, which with a seed lie at different places.
        fraction: of the picture's area that is missing, in (0, 1); sides are rounded to whole pixels, at least one.
        seed: of the hole's place; None: in the middle.

    Raises:
        ValueError: settings out of bounds, or a hole that would be the whole picture.
    """
    sides = _sides(shape)
    if not (is_number(fraction) and 0 < fraction < 1):
        raise ValueError(f"fraction is {fraction!r}; it is the part of the picture that is missing, above 0, below 1")
    height, width = (max(1, round(side * math.sqrt(fraction))) for side in sides[-2:])
    spare = (sides[-2] - height, sides[-1] - width)
    if spare == (0, 0):
        raise ValueError(f"a hole of {width}×{height} pixels is the whole picture; lower fraction, now {fraction}")
    generator = None if seed is None else _generator(seed)
    mask = torch.ones(sides, dtype=torch.bool, device="cpu")
    for channel in mask.view(-1, *sides[-2:]):
        if generator is None:
            top, left = spare[0] // 2, spare[1] // 2
        else:
            top, left = (int(torch.randint(most + 1, (), generator=generator)) for most in spare)
        channel[top : top + height, left : left + width] = False
    return mask


def text(shape: Sequence[int], letters: str = _PANGRAM, size: int | None = None, seed: int | None = None) -> Tensor:
    """Lines of text hide the picture, in the font that comes with Pillow, without smoothed edges.

    Args:
        shape: (H, W), or (C, H, W) for a text in every channel, which with a seed begin at different letters.
        letters: what is written, over and over.
        size: of the letters in pixels, 8 or more; None: a twelfth of the height. Lines are two sizes apart.
        seed: of the letter at which each line begins; None: every line begins with the first.

    Raises:
        ValueError: settings out of bounds, or letters that leave no mark.
    """
    from PIL import Image, ImageDraw, ImageFont

    sides = _sides(shape)
    height, width = sides[-2:]
    if not (isinstance(letters, str) and letters.strip() and letters.isprintable()):
        raise ValueError(f"letters is {letters!r}; it must be one line with something to see in it")
    if size is None:
        size = max(_SMALLEST_LETTERS, height // 12)
    if not (is_whole(size) and _SMALLEST_LETTERS <= size <= 2048):
        raise ValueError(f"size is {size!r}; letters may be {_SMALLEST_LETTERS} to 2048 pixels high, or None")
    font = ImageFont.load_default(size)
    generator = None if seed is None else _generator(seed)
    advance = font.getlength(letters)
    copies = 2 + math.ceil(width / max(advance, 1.0))
    mask = torch.ones(sides, dtype=torch.bool, device="cpu")
    for channel in mask.view(-1, height, width):
        canvas = Image.new("1", (width, height), 1)
        draw = ImageDraw.Draw(canvas)
        draw.fontmode = "1"
        for top in range(0, height, 2 * size):
            first = 0 if generator is None else int(torch.randint(len(letters), (), generator=generator))
            draw.text((0, top), (letters[first:] + letters * copies), fill=0, font=font)
        channel.copy_(torch.from_numpy(np.array(canvas, dtype=bool)))
    if bool(mask.all()):
        raise ValueError(f"letters {letters!r} of {size} pixels leave no mark on a {width}×{height} picture")
    return mask


def _sides(shape: Sequence[int]) -> tuple[int, ...]:
    sides = tuple(shape)
    if len(sides) not in (2, 3) or not all(is_whole(side) and side >= 1 for side in sides):
        raise ValueError(f"shape is {shape!r}; it must be (H, W), or (C, H, W) for a mask of its own in each channel")
    return sides


def _generator(seed: int) -> torch.Generator:
    if not (is_whole(seed) and 0 <= seed < 2**63):
        raise ValueError(f"seed is {seed!r}; it must be 0 to 2^63 - 1")
    return torch.Generator("cpu").manual_seed(seed)
