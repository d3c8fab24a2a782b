"""What restores a picture without a network: the controls that a fit must beat, and what its answer is blended with."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit import starts
from pixfit.noise_estimate import NoiseLevel
from pixfit.problem import View

__all__ = [
    "NO_BLOCK_MATCHING", "biharmonic", "block_matching", "enlarged", "has_block_matching", "median", "nonlocal_means",
    "total_variation", "wavelets",
]  # fmt: skip

NO_BLOCK_MATCHING = "bm3d is not installed; if its licence (non-commercial use) suits you: pip install bm3d"
"""What is said where `block_matching` is asked for in vain."""

_FEWEST = 25  # known pixels that bi-harmonic inpainting needs
_BLOCK = 8  # pixels a side of the blocks that BM3D matches
_NOTHING = 1e-5  # of the range, below which noise at its strongest counts as none
_EVEN = 0.01  # of its variance, by which noise may grow from black to white and still count as white


def nonlocal_means(noisy: Tensor, level: NoiseLevel) -> Tensor:
    """Non-local means (Buades et al., CVPR 2005): patches of 5 pixels up to 8 apart, h = 0.8 σ, of (C, H, W)."""
    return _stabilised(_nonlocal_means, noisy, level)


def _nonlocal_means(noisy: Tensor, sigma: float) -> Tensor:
    from skimage.restoration import denoise_nl_means

    if sigma <= 0:
        return noisy.clone()
    grey = len(noisy) == 1
    values = (noisy[0] if grey else noisy.movedim(0, -1)).double().numpy()
    found = denoise_nl_means(
        values, patch_size=5, patch_distance=8, h=0.8 * sigma, sigma=sigma, fast_mode=False,
        channel_axis=None if grey else -1,
    )  # fmt: skip
    return _tensor(found.reshape(*noisy.shape[1:], -1))  # scikit-image drops sides of one pixel


def has_block_matching() -> bool:
    """Whether `block_matching` can be had: whether the package ``bm3d`` is installed."""
    return importlib.util.find_spec("bm3d") is not None


def block_matching(noisy: Tensor, level: NoiseLevel) -> Tensor:
    """BM3D (Dabov et al., IEEE TIP 2007) as its authors have it since 2020, of (C, H, W) with independent noise.

    It is their package ``bm3d``, which must be installed. It is free for non-commercial use only, so that pixfit takes
    it where it is asked to.

    Raises:
        ValueError: it is not installed.
    """
    if not has_block_matching():
        raise ValueError(NO_BLOCK_MATCHING)
    bm3d = importlib.import_module("bm3d")
    return _stabilised(partial(_block_matching, bm3d), noisy, level).clamp(0, 1)


def _block_matching(bm3d: Any, noisy: Tensor, sigma: float) -> Tensor:
    if sigma <= 0 or min(noisy.shape[1:]) < _BLOCK:
        return noisy.clone()
    samples = noisy.movedim(0, -1).double().numpy()
    found = bm3d.bm3d_rgb(samples, sigma) if len(noisy) == 3 else bm3d.bm3d(samples, sigma)
    return _tensor(found.reshape(samples.shape))


def wavelets(noisy: Tensor, level: NoiseLevel) -> Tensor:
    """Soft thresholds for wavelets, chosen a band (BayesShrink, Chang et al., IEEE TIP 2000), of (C, H, W).

    A picture of three channels is denoised as luma and two differences of colour.
    """
    return _stabilised(_wavelets, noisy, level).clamp(0, 1)


def _wavelets(noisy: Tensor, sigma: float) -> Tensor:
    from skimage.restoration import denoise_wavelet

    if sigma <= 0 or min(noisy.shape[1:]) < 4:
        return noisy.clone()
    colour = len(noisy) == 3
    found = denoise_wavelet(
        noisy.movedim(0, -1).double().numpy(), sigma=sigma, method="BayesShrink", mode="soft", channel_axis=-1,
        convert2ycbcr=colour, rescale_sigma=True,
    )  # fmt: skip
    return _tensor(found)


def _stabilised(denoise: Callable[[Tensor, float], Tensor], noisy: Tensor, level: NoiseLevel) -> Tensor:
    """What removes white noise of some σ, made to remove noise of a level that changes with brightness.

    The generalised Anscombe transformation (Starck, Murtagh and Bijaoui 1998) makes the noise white, and its
    asymptotically unbiased inverse (Mäkitalo and Foi, IEEE TIP 2013) leads back. Where noise is less the brighter it
    is, as where much of it was clipped at white, it is applied to the negative.
    """
    if level.slope < 0:
        negative = NoiseLevel(level.floor + level.slope, -level.slope)
        return 1 - _stabilised(denoise, 1 - noisy, negative)
    sigma = level.sigma(float(noisy.mean()))
    if level.sigma(1.0) < _NOTHING:
        return noisy.clone()
    if level.slope <= _EVEN * sigma**2:
        return denoise(noisy, sigma)
    gain = level.slope
    # A line that meets 0 above black goes through black here: what is darker than that would be lost.
    shift = max(0.0, level.floor) / gain**2
    flat = 2 * (noisy.double() / gain + shift + 3 / 8).clamp(min=0).sqrt()
    least, span = flat.min(), flat.max() - flat.min()
    if span == 0:
        return noisy.clone()
    found = denoise(((flat - least) / span).float(), 1 / float(span)).double() * span + least
    return (gain * (found.square() / 4 - 1 / 8 - shift)).float()


def median(noisy: Tensor) -> Tensor:
    """The median of the 3 × 3 pixels around each, a channel at a time, of (C, H, W); the border is mirrored."""
    from scipy.ndimage import median_filter

    return torch.from_numpy(median_filter(noisy.numpy(), size=(1, 3, 3), mode="reflect"))


def total_variation(view: View, strength: float, steps: int = 200) -> Tensor:
    """The picture (C, H, W) of least ½‖A x − y‖² + strength · TV(x), isotropic, a channel at a time.

    The primal-dual method of Chambolle and Pock (2011) with both terms in the dual, after so many steps.
    """
    y, operator = view.measurement, view.operator
    use = torch.ones_like(y) if view.use is None else view.use.expand_as(y).to(y)
    x = operator.adjoint(torch.ones_like(y), view.shape)
    norm = 1.0
    for _ in range(20):  # the operator's norm by power iteration
        x = operator.adjoint(operator.forward(x), view.shape)
        norm = float(x.norm())
        if norm == 0:
            raise ValueError("the operator takes every picture to zero; nothing can be restored")
        x = x / norm
    pace = 0.95 / math.sqrt(norm + 8.0)  # 8 is the squared norm of differences in two directions
    # What is measured and the slopes are small where the strength is: their steps are, and the picture's are not.
    small = min(1.0, 3 * math.sqrt(strength))
    slow, fast = pace * small, pace / small
    x = operator.adjoint(y * use, view.shape) / norm
    ahead, measured, slopes = x, torch.zeros_like(y), torch.zeros(2, *view.shape)
    for _ in range(steps):
        measured = use * (measured + slow * (operator.forward(ahead) - y)) / (1 + slow)
        slopes = slopes + slow * _differences(ahead)
        slopes = slopes / (slopes.norm(dim=0, keepdim=True) / strength).clamp(min=1.0)
        before = x
        x = x - fast * (operator.adjoint(measured, view.shape) + _differences_adjoint(slopes))
        ahead = 2 * x - before
    return x.clamp(0, 1)


def _differences(x: Tensor) -> Tensor:
    """(2, C, H, W): to the next row and to the next column, 0 at the last."""
    out = x.new_zeros(2, *x.shape)
    out[0, :, :-1] = x[:, 1:] - x[:, :-1]
    out[1, :, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return out


def _differences_adjoint(slopes: Tensor) -> Tensor:
    out = torch.zeros_like(slopes[0])
    out[:, :-1] -= slopes[0, :, :-1]
    out[:, 1:] += slopes[0, :, :-1]
    out[:, :, :-1] -= slopes[1, :, :, :-1]
    out[:, :, 1:] += slopes[1, :, :, :-1]
    return out


def biharmonic(picture: Tensor, known: Tensor) -> Tensor:
    """Bi-harmonic inpainting (Damelin and Hoang, 2018) by scikit-image; `pixfit.starts.filled` where it knows under 25.

    Args:
        picture: (C, H, W).
        known: bool (1, H, W), or (C, H, W) where channels miss other pixels.
    """
    from skimage.restoration import inpaint_biharmonic

    if len(known) > 1:
        planes = zip(torch.split(picture, 1), torch.split(known, 1), strict=True)
        return torch.cat([biharmonic(plane, of_it) for plane, of_it in planes])
    if bool(known.all()):
        return picture.clone()
    first = starts.filled(picture, known)
    if int(known.sum()) < _FEWEST:
        return first
    found = inpaint_biharmonic(first.movedim(0, -1).double().numpy(), ~known[0].numpy(), channel_axis=-1)
    return _tensor(found).clamp(0, 1)


def enlarged(picture: Tensor, factor: int, method: Literal["lanczos", "bicubic"] = "lanczos") -> Tensor:
    """(C, H, W) made larger by one of Pillow's filters."""
    from PIL import Image as PillowImage

    size = (picture.shape[2] * factor, picture.shape[1] * factor)
    chosen = {"lanczos": PillowImage.Resampling.LANCZOS, "bicubic": PillowImage.Resampling.BICUBIC}[method]
    planes = [PillowImage.fromarray(plane).resize(size, chosen) for plane in picture.numpy()]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)


def _tensor(samples: NDArray[np.float64]) -> Tensor:
    """(H, W, C) as float32 (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(samples, -1, 0))).float()
