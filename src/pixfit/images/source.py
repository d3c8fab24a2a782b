"""What every decoder hands over: the picture's header and a way to read bands of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pixfit.images.image import PEAKS, ImageError

__all__ = ["Source", "assemble", "check_pixels"]

_BAND_SAMPLES = 1 << 22


@dataclass
class Source:
    """A decoded or decodable picture: ``read(start, stop)`` gives its stored rows as ``(h, W, C)``.

    Samples are uint8, uint16 or float32 in ``[0, 1]`` by ``bit_depth`` 8, 16 or 32; C = 2 and 4 end with alpha.
    ``orientation`` is the EXIF value 1 to 8 that turns the stored rows upright.
    """

    height: int
    width: int
    channels: int
    bit_depth: int
    read: Callable[[int, int], np.ndarray[Any, Any]]
    orientation: int = 1
    notes: list[str] = field(default_factory=list)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by the size in its header, before anything of that size is allocated."""
    if width < 1 or height < 1:
        raise ImageError(f"says it is {width}x{height} pixels; the file is damaged")
    if width * height > max_pixels:
        raise ImageError(
            f"is {width}x{height}, {width * height} pixels: more than max_pixels={max_pixels}; raise it if meant"
        )


def assemble(source: Source, alpha: str) -> torch.Tensor:
    """All rows as float32 ``(C, H, W)`` in ``[0, 1]``, upright, with the alpha policy applied.

    Alpha is composited in the file's own value space and at its own bit depth. Works in bands, so the peak memory is
    the result plus what the decoder holds. Appends to ``source.notes``.
    """
    has_alpha = source.channels in (2, 4)
    colours = source.channels - has_alpha
    channels = source.channels if alpha == "keep" else colours
    turned = source.orientation >= 5
    sides = (source.width, source.height) if turned else (source.height, source.width)
    data = np.empty((channels, *sides), np.float32)
    canvas = _stored_view(data, source.orientation)
    step = max(1, _BAND_SAMPLES // (source.width * source.channels))
    peak = np.float32(PEAKS.get(source.bit_depth, 1))
    for start in range(0, source.height, step):
        stop = min(start + step, source.height)
        rows = source.read(start, stop)
        if rows.shape != (stop - start, source.width, source.channels):
            raise ImageError("holds fewer samples than its header says; the file is damaged or truncated")
        if has_alpha and alpha == "white":
            rows = _on_white(rows[..., :colours], rows[..., colours:], source.bit_depth)
        np.divide(np.moveaxis(rows[..., :channels], -1, 0), peak, out=canvas[:, start:stop], casting="unsafe")
    if has_alpha:
        said = {"white": "alpha composited on white", "keep": "alpha kept as the last channel", "drop": "alpha dropped"}
        source.notes.append(said[alpha])
    if source.orientation != 1:
        source.notes.append(f"EXIF rotation applied (orientation {source.orientation})")
    return torch.from_numpy(data)


def _stored_view(upright: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """A view of the upright ``(C, H, W)`` whose rows are the rows as stored in the file."""
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    view = upright[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return view.transpose(0, 2, 1) if orientation >= 5 else view


def _on_white(colour: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any], bit_depth: int) -> np.ndarray[Any, Any]:
    if bit_depth == 32:
        return np.asarray(np.clip(colour * alpha + (1 - alpha), 0.0, 1.0))
    peak = PEAKS[bit_depth]
    wide = alpha.astype(np.uint32)  # 65535² + 32767 still fits 32 bits
    return np.asarray((colour * wide + peak * (peak - wide) + peak // 2) // peak)
