"""Scores that need the truth: PSNR, SSIM, area under a curve, steps to a level. The loop never imports this."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["auc", "best_constant_psnr", "mse", "psnr", "psnr_8bit", "psnr_of_mse", "ssim", "steps_to"]

_ROWS = 512  # rows scored at a time, so that a 268-megapixel picture needs no second copy in float64


def psnr_of_mse(value: float, data_range: float = 1.0) -> float:
    """10·log10(data_range² / MSE) in dB; infinite for a perfect match (``null`` with ``"lossless": true`` in JSON)."""
    if value < 0 or math.isnan(value):
        raise ValueError(f"a mean squared error is at least 0, got {value}")
    return math.inf if value == 0 else 20.0 * math.log10(data_range) - 10.0 * math.log10(value)


def mse(prediction: Tensor, truth: Tensor, *, round_8bit: bool = False) -> float:
    """Mean squared error over all pixels and channels, in float64, of the prediction clamped to [0, 1].

    Args:
        prediction: (C, H, W), any float type.
        truth: the same shape, in [0, 1].
        round_8bit: first round both to multiples of 1/255, as a saved 8-bit picture does.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(prediction, truth)
    total = 0.0
    for start in range(0, prediction.shape[-2], _ROWS):
        rows = slice(start, start + _ROWS)
        a, b = prediction[..., rows, :].double().clamp(0, 1), truth[..., rows, :].double().to(prediction.device)
        if round_8bit:
            a, b = (a * 255).round() / 255, (b * 255).round() / 255
        total += float((a - b).square().sum())
    return total / prediction.numel()


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB (`mse` of pictures (C, H, W) in [0, 1]); no epsilon, infinite when equal."""
    return psnr_of_mse(mse(prediction, truth))


def psnr_8bit(prediction: Tensor, truth: Tensor) -> float:
    """`psnr` after both pictures are rounded to 8 bits: what a saved PNG has. Infinite when it is lossless."""
    return psnr_of_mse(mse(prediction, truth, round_8bit=True))


def best_constant_psnr(truth: Tensor) -> float:
    """PSNR of the best picture of one colour: the level of a network that learnt nothing but the mean. (C, H, W)."""
    values = truth.double().flatten(1)
    return psnr_of_mse(float((values - values.mean(dim=1, keepdim=True)).square().mean()))


def ssim(prediction: Tensor, truth: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004), with their Gaussian window: σ 1.5, 11×11, data range 1.

    The mean over channels, by scikit-image in strips with overlap, so that memory does not grow with the picture.

    Args:
        prediction: (C, H, W), clamped to [0, 1] first.
        truth: the same shape, in [0, 1].

    Returns:
        The mean over the interior pixels, as scikit-image has it, or None where a side is under 11 pixels.

    Raises:
        ValueError: the shapes differ.
    """
    from skimage.metrics import structural_similarity

    _check_shapes(prediction, truth)

    height, width = truth.shape[-2:]
    if min(height, width) < 11:
        return None
    pad = 5  # half the window; scikit-image leaves such a border out of the mean
    total, count = 0.0, 0
    for top in range(pad, height - pad, _ROWS):
        bottom = min(top + _ROWS, height - pad)
        rows = slice(top - pad, bottom + pad)
        for a, b in zip(prediction[:, rows], truth[:, rows], strict=True):
            _, full = structural_similarity(  # type: ignore[no-untyped-call]
                a.double().clamp(0, 1).cpu().numpy(), b.double().cpu().numpy(), data_range=1.0, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False, full=True,
            )  # fmt: skip
            inside = full[pad:-pad, pad:-pad]
            total += float(inside.sum())
            count += inside.size
    return total / count


def auc(curve: Sequence[float] | NDArray[np.floating] | Tensor, *, cap: float | None = None) -> float:
    """Area under a curve with unit spacing (its sum), after cutting values above ``cap``.

    The pre-fit study's measure of speed: values are PSNR in dB, one an epoch.
    """
    values = torch.as_tensor(curve, dtype=torch.float64)
    return float((values if cap is None else values.clamp(max=cap)).sum())


def steps_to(curve: Sequence[float] | NDArray[np.floating] | Tensor, level: float) -> int | None:
    """The first index at which the curve reaches ``level``, or None if it never does."""
    reached = (torch.as_tensor(curve, dtype=torch.float64) >= level).nonzero()
    return int(reached[0]) if len(reached) else None


def _check_shapes(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"pictures of one shape are compared, got {tuple(prediction.shape)} and {tuple(truth.shape)}")
