"""Scores against scikit-image's, and the definitions they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from pixfit import metrics


def pair(channels: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A truth (C, H, W) and a prediction that leaves [0, 1] in places."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(channels, height, width, generator=generator)
    return truth + 0.2 * torch.randn(channels, height, width, generator=generator), truth


# The last height that one strip of 512 rows holds for SSIM is 522, and one row more leaves a strip of one row.
SIZES = [(3, 16, 20), (1, 1, 1), (4, 511, 3), (3, 512, 4), (1, 513, 5), (3, 1100, 2)]
WINDOWED = [(3, 11, 11), (1, 30, 17), (1, 522, 12), (1, 523, 12), (3, 600, 13), (1, 1100, 11)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_psnr_is_scikit_images(size: tuple[int, int, int]) -> None:
    prediction, truth = pair(*size)
    theirs = peak_signal_noise_ratio(truth.double().numpy(), prediction.double().clamp(0, 1).numpy(), data_range=1)
    assert metrics.psnr(prediction, truth) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_psnr_of_eight_bits_is_that_of_the_saved_picture(size: tuple[int, int, int]) -> None:
    prediction, truth = pair(*size)
    a, b = (np.rint(x.double().clamp(0, 1).numpy() * 255).astype(np.uint8) for x in (prediction, truth))
    assert metrics.psnr_8bit(prediction, truth) == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-9)


@pytest.mark.parametrize("size", WINDOWED, ids=str)
def test_ssim_is_scikit_images(size: tuple[int, int, int]) -> None:
    prediction, truth = pair(*size)
    theirs = structural_similarity(
        prediction.double().clamp(0, 1).numpy(), truth.double().numpy(), data_range=1, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert metrics.ssim(prediction, truth) == pytest.approx(theirs, abs=1e-10)


def test_equal_pictures_are_infinite_and_one() -> None:
    _, truth = pair(3, 20, 20)
    assert metrics.psnr(truth, truth) == math.inf
    snapped = (truth * 255).round() / 255
    assert metrics.psnr_8bit(snapped + 1e-3, snapped) == math.inf > metrics.psnr(snapped + 1e-3, snapped)
    assert metrics.ssim(truth, truth) == pytest.approx(1)


def test_the_prediction_is_clamped() -> None:
    truth = torch.tensor([[[0.0, 1.0]]])
    assert metrics.psnr(torch.tensor([[[-3.0, 7.0]]]), truth) == math.inf
    assert metrics.psnr(torch.tensor([[[math.inf, 1.0]]]), truth) == pytest.approx(10 * math.log10(2))


def test_differences_of_one_float_step_are_seen() -> None:
    truth = torch.full((1, 4, 4), 0.5)
    assert metrics.psnr(torch.nextafter(truth, torch.ones(())), truth) == pytest.approx(-20 * math.log10(2**-24))


def test_ssim_needs_eleven_pixels_a_side() -> None:
    assert metrics.ssim(*pair(3, 10, 40)) is None
    assert metrics.ssim(*pair(3, 40, 10)) is None


@pytest.mark.parametrize("score", [metrics.psnr, metrics.psnr_8bit, metrics.ssim, metrics.mse])
@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 21, 20), (3, 20, 19)], ids=str)
def test_other_shapes_are_refused(score: object, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        score(torch.zeros(shape), torch.zeros(3, 20, 20))  # type: ignore[operator]


def test_a_prediction_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="got nan"):
        metrics.psnr(torch.full((1, 2, 2), math.nan), torch.zeros(1, 2, 2))


@given(st.floats(1e-30, 1e6), st.sampled_from([1.0, 2.0, 255.0]))
def test_psnr_of_mse_is_the_formula(value: float, data_range: float) -> None:
    assert metrics.psnr_of_mse(value, data_range) == pytest.approx(10 * math.log10(data_range**2 / value), abs=1e-9)


def test_psnr_of_mse_at_its_ends() -> None:
    assert metrics.psnr_of_mse(0.0) == math.inf
    assert metrics.psnr_of_mse(math.inf) == -math.inf
    assert metrics.psnr_of_mse(5e-324) > 3000
    for value in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="at least 0"):
            metrics.psnr_of_mse(value)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_no_picture_of_one_colour_beats_the_best_constant(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(3, 5, 6, generator=generator)
    colour = torch.rand(3, 1, 1, generator=generator).expand_as(truth)
    best = metrics.best_constant_psnr(truth)
    assert metrics.psnr(colour, truth) <= best
    mean = truth.mean(dim=(1, 2), keepdim=True).expand_as(truth)
    assert metrics.psnr(mean, truth) == pytest.approx(best, abs=1e-5)


def test_area_under_a_curve() -> None:
    assert metrics.auc([1, 2, 3.5]) == 6.5
    assert metrics.auc(np.array([50.0, 70.0, 150.0]), cap=60) == 170
    assert metrics.auc(torch.tensor([10.0, math.inf]), cap=60) == 70
    assert metrics.auc([]) == 0


def test_steps_to_a_level() -> None:
    curve = [10.0, 20.0, 30.0, 25.0, 40.0]
    assert metrics.steps_to(curve, 5) == 0
    assert metrics.steps_to(torch.tensor(curve), 30) == 2
    assert metrics.steps_to(np.array(curve), 30.5) == 4
    assert metrics.steps_to(curve, 41) is None
    assert metrics.steps_to([math.nan, 50.0], 40) == 1
    assert metrics.steps_to([], 1) is None
