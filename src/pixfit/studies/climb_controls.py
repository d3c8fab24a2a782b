"""What needs no training, beside the climb's fits: a sparse block transform, and Lanczos' filter."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

__all__ = ["colours", "own_samples", "resized", "sparse_dct"]

_BLOCK = 16  # pixels of a side


def colours(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Principal colours of a picture (C, H, W): a basis (C, C) of columns, most variance first, and the mean (C)."""
    values = picture.double().flatten(1)
    mean = values.mean(dim=1)
    centred = values - mean[:, None]
    return torch.linalg.eigh(centred @ centred.T)[1].flip(1), mean


def sparse_dct(picture: Tensor, numbers: float, bits: int | None = None) -> Tensor:
    """The largest coefficients of the cosine transform of blocks of 16 pixels, as a picture (C, H, W) in float64.

    Principal colours. Each coefficient that is kept counts as two numbers, its value and its index; what remains is not
    quantised. The basis and the mean of the colours count, too.

    Args:
        picture: (C, H, W) in [0, 1].
        numbers: how many may be spent, of 32 bits each.
        bits: of a value, 2 to 16: then an index takes as many bits as it needs, and the largest absolute value of each
            frequency and colour, from which its values are quantised evenly, counts as a number. None: as above.
    """
    from scipy import fft

    basis, mean = colours(picture)
    channels, height, width = picture.shape
    planes = torch.einsum("ck,chw->khw", basis, picture.double() - mean[:, None, None]).numpy()
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    margins = ((0, 0), (0, rows * _BLOCK - height), (0, columns * _BLOCK - width))
    blocks = np.pad(planes, margins, mode="edge").reshape(channels, rows, _BLOCK, columns, _BLOCK)
    coefficients: NDArray[np.float64] = fft.dctn(blocks, axes=(2, 4), norm="ortho")
    spare, cost = numbers - channels * (channels + 1), 2.0
    if bits is not None:
        spare -= channels * _BLOCK * _BLOCK
        cost = (bits + math.ceil(math.log2(coefficients.size))) / 32
    keep = int(spare / cost)
    if keep < coefficients.size:
        smallest = np.argpartition(np.abs(coefficients), -max(keep, 1), axis=None)[: coefficients.size - max(keep, 0)]
        coefficients.reshape(-1)[smallest] = 0.0
    if bits is not None:
        step = np.abs(coefficients).max(axis=(1, 3), keepdims=True) / (2 ** (bits - 1) - 1)
        coefficients = np.round(coefficients / np.maximum(step, 1e-12)) * step
    shown = fft.idctn(coefficients, axes=(2, 4), norm="ortho").reshape(channels, rows * _BLOCK, columns * _BLOCK)
    shown = torch.einsum("ck,khw->chw", basis, torch.from_numpy(shown[:, :height, :width].copy()))
    return shown + mean[:, None, None]


def own_samples(picture: Tensor) -> int:
    """What the picture's own samples, stored in 8 bits as they are, count in numbers of 32 bits."""
    return -(-picture.numel() // 4)


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """(C, H, W) to another size by Lanczos' filter of Pillow, clamped to [0, 1]."""
    planes = [
        PillowImage.fromarray(plane.float().numpy()).resize((width, height), PillowImage.Resampling.LANCZOS)
        for plane in picture
    ]
    return torch.stack([torch.from_numpy(np.array(plane)) for plane in planes]).clamp(0, 1)
