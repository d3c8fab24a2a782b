"""Networks of few numbers as they are stored: weights in few bits, and what a block transform leaves over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixfit import metrics, render
from pixfit.images import Image
from pixfit.modelfile import Network
from pixfit.models import Cosines, Model
from pixfit.problem import Problem
from pixfit.result import Result
from pixfit.studies.climb_controls import sparse_dct

__all__ = ["Score", "left_over", "quantised", "score"]


@dataclass(frozen=True)
class Score:
    """Of a picture that comes out of what is stored: PSNR in dB and SSIM; the PSNR of the weights in 32 bits beside."""

    psnr: float
    ssim: float | None
    whole: float


def quantised(model: Model, weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Each tensor rounded to 2^bits even steps from its least to its greatest value; 32 bits: as it is.

    Of `Cosines` only the values are, and with a step for each coefficient, as those of the sparse transform are: 2^bits
    − 1 even steps about zero up to the largest of its values.
    """
    if bits == 32:
        return dict(weights)
    if not isinstance(model, Cosines):
        return {name: _rounded(value, bits) for name, value in weights.items()}
    values, which = weights["values"], model.kept(weights)
    largest = values.new_zeros(weights["ranks"].shape[1]).scatter_reduce_(0, which, values.abs(), "amax")
    step = (largest / (2 ** (bits - 1) - 1)).clamp(min=1e-12)[which]
    return {**weights, "values": step * (values / step).round()}


def _rounded(value: Tensor, bits: int) -> Tensor:
    low, high = value.min(), value.max()
    step = (high - low) / (2**bits - 1)
    return value.clone() if step == 0 else low + step * ((value - low) / step).round()


def left_over(image: Image, numbers: float) -> Problem:
    """What a sparse block transform of so many numbers leaves of a picture, as a picture: (x − transform + 1) / 2."""
    rest = image.data.double() - sparse_dct(image.data, numbers)
    return Problem(Image(((rest + 1) / 2).clamp(0, 1).float(), name=f"{image.name}, left over", bit_depth=32))


def score(result: Result, truth: Tensor, bits: int = 32, transform: float | None = None) -> Score:
    """What the stored network of a finished fit shows, against the picture (C, H, W).

    Args:
        bits: of each weight.
        transform: the numbers of the block transform that the network was fitted to the rest of; None: there is none.

    Raises:
        ValueError: a fit without weights, or with some that are no numbers.
    """
    network = Network.of(result)
    base = None if transform is None else sparse_dct(truth, transform)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def shown(weights: Mapping[str, Tensor]) -> Tensor:
        picture = render.render(Network(network.model, weights, network.record), device=device)
        return picture if base is None else base + 2 * picture.double() - 1

    whole = shown(network.weights)
    stored = whole if bits == 32 else shown(quantised(network.model, network.weights, bits))
    return Score(metrics.psnr(stored, truth), metrics.ssim(stored, truth), metrics.psnr(whole, truth))
