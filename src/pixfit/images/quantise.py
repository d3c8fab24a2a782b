"""Float samples to integer samples, the way every picture file is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pixfit.images.image import PEAKS, ImageError

__all__ = ["quantise"]


def quantise(samples: torch.Tensor, bit_depth: int) -> np.ndarray[Any, Any]:
    """Samples as a contiguous array ``(H, W, C)``, ready for a file.

    Values are clamped to ``[0, 1]``, multiplied by 255 or 65535 and rounded to the nearest level,
    halves upwards (⌊x·peak + ½⌋). A ``bit_depth`` of 32 clamps only and gives float32.

    Args:
        samples: floats ``(C, H, W)``.
        bit_depth: 8, 16 or 32.

    Raises:
        ImageError: not floats, or NaN among the samples.
    """
    if not samples.is_floating_point():
        raise ImageError(f"samples to write must be floats in [0, 1], got {samples.dtype}; use Image.from_array")
    data = samples.detach().to("cpu", torch.float32)
    if bool(torch.isnan(data).any()):
        raise ImageError("samples to write contain NaN; nothing was written")
    data = data.permute(1, 2, 0).clamp(0.0, 1.0)
    if bit_depth == 32:
        return np.ascontiguousarray(data.numpy())
    scaled = np.floor(data.numpy() * np.float32(PEAKS[bit_depth]) + np.float32(0.5))
    return np.ascontiguousarray(scaled.astype(np.uint8 if bit_depth == 8 else np.uint16))
