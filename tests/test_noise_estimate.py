"""The kind of noise told from a damaged picture alone: synthetic noise on bundled photographs."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional

import pixfit as pf
from pixfit.images import BUNDLED
from pixfit.noise_estimate import (
    BESIDE,
    CORRELATED,
    GRIDDED,
    IMPULSIVE,
    NoiseLevel,
    impulse_rate,
    impulses,
    jpeg_grid,
    neighbour_correlation,
    noise_beside,
    noise_level,
    shared_level,
    signs_of_shared_noise,
    struck,
)


def photograph(name: str, side: int = 192) -> Tensor:
    """The centre (C, side, side) of a bundled photograph."""
    data = pf.images.load(name).data[:3]
    top, left = (data.shape[1] - side) // 2, (data.shape[2] - side) // 2
    return data[:, top : top + side, left : left + side].clone()


def drawn(shape: torch.Size, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blurred(noise: Tensor, sigma: float) -> Tensor:
    """Gaussian of so many pixels over every channel, then of variance 1 again."""
    taps = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma).square())
    kernel = torch.outer(taps, taps)[None, None]
    out = functional.conv2d(functional.pad(noise[:, None], (4,) * 4, mode="reflect"), kernel)[:, 0]
    return out / out.std()


def jpeg(picture: Tensor, quality: int) -> Tensor:
    samples = (picture.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    kept = io.BytesIO()
    PillowImage.fromarray(samples.squeeze()).save(kept, "JPEG", quality=quality)
    back = np.array(PillowImage.open(kept), dtype=np.float32) / 255
    return torch.from_numpy(back.reshape(*samples.shape)).movedim(-1, 0)


def resized(picture: Tensor, factor: float) -> Tensor:
    side = round(picture.shape[1] * factor)
    planes = [PillowImage.fromarray(plane.numpy()) for plane in picture]
    made = [plane.resize((side, side), PillowImage.Resampling.BICUBIC) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in made]))


# --- impulses one by one


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.5, 0.8])
def test_what_impulses_struck(rate: float) -> None:
    """Nearly all of it, and little else: neither a bright sky nor a black line, where impulses are few."""
    clean = 0.02 + 0.96 * photograph("coffee", 96)
    clean[:, :40, :48] = 1.0
    clean[:, 60:63] = 0.0
    given = peppered(clean, rate)
    changed, found = given != clean, struck(given)
    assert float((changed & ~found).float().mean()) < 0.003
    if rate <= 0.2:
        assert float((found & ~changed).float().mean()) < 0.02
    assert not bool(found[(given > 0) & (given < 1)].any())


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.6])
def test_the_rate_of_impulses_does_not_count_a_caption(rate: float) -> None:
    clean = 0.02 + 0.96 * photograph("coffee", 96)
    assert impulse_rate(clean) == 0
    clean[:, :30] = 1.0
    clean[:, 10:20, 10:80] = 0.0
    assert impulse_rate(peppered(clean, rate)) == pytest.approx(rate, rel=0.25)
    assert impulse_rate(torch.zeros(3, 40, 40)) == 0  # black, and nothing of both kinds


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("sigma", [0.0, 0.04, 0.1])
def test_noise_beside_impulses(rate: float, sigma: float) -> None:
    clean = 0.1 + 0.8 * photograph("coffee", 96)
    given = peppered((clean + sigma * drawn(clean.shape)).clamp(0, 1), rate)
    found = noise_beside(given, struck(given))
    assert found < BESIDE if sigma == 0 else found == pytest.approx(sigma, rel=0.2)


def test_what_noise_made_black_is_not_struck() -> None:
    """Else dark parts that have noise would lose their darker half."""
    clean = torch.full((3, 64, 64), 0.05)
    given = peppered((clean + 0.1 * drawn(clean.shape)).clamp(0, 1), 0.1)
    black = given == 0
    assert float(struck(given, 0.1)[black].float().mean()) < 0.1
    assert float(struck(given, 0.1)[given == 1].float().mean()) > 0.95


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (1, 1, 300), (3, 5, 5)])
def test_struck_of_small_pictures(shape: tuple[int, int, int]) -> None:
    random = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 3).floor() / 2
    assert struck(random).shape == struck(random, 0.1).shape == random.shape
    assert 0 <= noise_beside(random, struck(random)) < 2
    assert 0 <= impulse_rate(random) <= 1
    assert not struck(torch.full(shape, 0.5)).any()
    assert not struck(torch.ones(shape)).any()


# --- the level of independent noise


@settings(max_examples=30, deadline=None)
@given(
    floor=st.floats(0.001, 0.02), slope=st.floats(0, 0.03), seed=st.integers(0, 99), channels=st.sampled_from([1, 3])
)
def test_the_line_of_the_variance_is_found(floor: float, slope: float, seed: int, channels: int) -> None:
    clean = torch.linspace(0.1, 0.9, 128).expand(channels, 128, 128)
    found = noise_level(clean + (floor + slope * clean).sqrt() * drawn(clean.shape, seed))
    for brightness in (0.2, 0.5, 0.8):
        assert found.sigma(brightness) == pytest.approx(math.sqrt(floor + slope * brightness), rel=0.12)


@pytest.mark.parametrize("name", BUNDLED)
def test_noise_of_counts_in_photographs(name: str) -> None:
    """With 30 counts at white the variance grows by 1/30 from black, where the picture has something bright."""
    clean = photograph(name)
    noisy = torch.poisson(30 * clean, generator=torch.Generator().manual_seed(0)) / 30
    found, bright = noise_level(noisy), float(clean.quantile(0.9))
    assert found.sigma(bright) == pytest.approx(math.sqrt(bright / 30), rel=0.25)
    white = noise_level(clean + 0.1 * drawn(clean.shape))
    assert white.sigma(float(clean.mean())) == pytest.approx(0.1, rel=0.2)
    assert abs(white.slope) < 0.01


@pytest.mark.parametrize("seed", range(6))
def test_noise_in_a_flat_picture_has_one_level(seed: int) -> None:
    found = noise_level(0.5 + 0.04 * drawn(torch.Size([3, 64, 64]), seed))
    assert found.slope == 0
    assert found.sigma(0.5) == pytest.approx(0.04, rel=0.1)


def test_levels_of_pictures_with_little_in_them() -> None:
    for shape in ((1, 1, 1), (3, 3, 200), (3, 4, 4), (1, 5, 300)):
        found = noise_level(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        assert math.isfinite(found.sigma(0.5))
        assert min(shape[1:]) < 4 or found.sigma(0.5) > 0
    assert noise_level(torch.full((3, 64, 64), 0.5)).sigma(0.5) < 1e-9
    half = torch.cat([torch.zeros(1, 64, 40), 0.5 + 0.1 * drawn(torch.Size([1, 64, 24]))], dim=2)
    assert math.isfinite(noise_level(half).sigma(1.0))  # most of it has no noise at all
    assert NoiseLevel.white(0.1).sigma(0.9) == pytest.approx(0.1)
    assert NoiseLevel(-0.01, 0.02).sigma(0.0) == 0.0


each = pytest.mark.parametrize("name", BUNDLED)


# --- independent noise raises no alarm


@each
def test_independent_noise_is_not_shared(name: str) -> None:
    clean = photograph(name)
    for sigma in (10 / 255, 25 / 255, 50 / 255):
        noisy = (clean + sigma * drawn(clean.shape)).clamp(0, 1)
        assert neighbour_correlation(noisy) < CORRELATED
        assert jpeg_grid(noisy) < GRIDDED
        assert signs_of_shared_noise(noisy) == ()
    counted = torch.poisson(30 * clean, generator=torch.Generator().manual_seed(1)) / 30
    assert signs_of_shared_noise(counted) == ()
    alike = (clean + 25 / 255 * drawn(clean[:1].shape)).clamp(0, 1)  # one value for all channels of a pixel
    assert signs_of_shared_noise(alike) == ()


# --- shared noise does


@each
def test_blurred_noise_is_shared(name: str) -> None:
    clean = photograph(name)
    for sigma in (10 / 255, 25 / 255):
        noisy = (clean + sigma * blurred(drawn(clean.shape), 0.6)).clamp(0, 1)
        assert neighbour_correlation(noisy) > CORRELATED
        (line,) = signs_of_shared_noise(noisy)
        assert line.startswith("neighbouring pixels share their noise")


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.5, 2.0])
def test_noise_of_resized_pictures_is_shared(factor: float) -> None:
    """In all but one of the pictures, which at half its size is too small."""
    found = 0
    for name in BUNDLED:
        clean = photograph(name)
        lines = signs_of_shared_noise(resized((clean + 25 / 255 * drawn(clean.shape)).clamp(0, 1), factor))
        found += len(lines) == 1 and "share their noise" in lines[0]
    assert found >= len(BUNDLED) - (factor < 1)


@pytest.mark.parametrize("shift", [0, 3])
def test_jpeg_shows_its_grid_wherever_it_begins(shift: int) -> None:
    """In all but one of the pictures, which is of bricks."""
    kept = [jpeg(photograph(name), 50)[:, shift:, 2 * shift :] for name in BUNDLED]
    found = [
        jpeg_grid(each) > GRIDDED and signs_of_shared_noise(each)[0].startswith("it was kept as JPEG") for each in kept
    ]
    assert sum(found) >= len(BUNDLED) - 1


# --- against formulas, and at the edges


def test_the_correlation_of_noise_alone_is_that_of_the_formula() -> None:
    """Of noise with the autocovariance a(lag), second differences have Σ w(j) a(j) with w = 1, −4, 6, −4, 1 on either
    axis; a blur of two equal taps along the rows has a = 1, 1/2."""
    noise = drawn(torch.Size((1, 512, 512)))
    assert abs(neighbour_correlation(0.5 + 0.1 * noise)) < 0.01
    shared = (noise[:, :, 1:] + noise[:, :, :-1]) / 2
    weights = {-2: 1, -1: -4, 0: 6, 1: -4, 2: 1}

    def covariance(lag: int) -> float:
        return sum(weight * {0: 1.0, 1: 0.5}.get(abs(lag + at), 0.0) for at, weight in weights.items())

    across, down = covariance(1) / covariance(0), -2 / 3
    assert neighbour_correlation(0.5 + 0.1 * shared) == pytest.approx((across + down) / 2 + 2 / 3, abs=0.01)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_level_of_shared_noise_is_that_of_noise_alone(sigma: float) -> None:
    """On a slope, for a blur of 0.6 pixels; for others it is not far from it."""
    slope = torch.linspace(0.2, 0.8, 256).expand(3, 256, 256)
    noise = drawn(torch.Size((3, 256, 256)))
    for blur, within in ((0.0, 0.12), (0.6, 0.02), (0.9, 0.2)):
        noisy = slope + sigma * (blurred(noise, blur) if blur else noise)
        assert shared_level(noisy) == pytest.approx(sigma, rel=within)
    assert shared_level(slope) < 1e-3


@each
def test_the_level_of_shared_noise_in_photographs(name: str) -> None:
    """Within three tenths, but for pictures that are flat nowhere; there it is too high."""
    clean = photograph(name)
    noisy = (clean + 25 / 255 * blurred(drawn(clean.shape), 0.6)).clamp(0, 1)
    assert 0.7 < 255 / 25 * shared_level(noisy) < 1.5


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 12, 12), (1, 12, 70), (3, 64, 64), (4, 70, 65)], ids=str)
def test_small_and_flat_pictures_say_nothing(shape: tuple[int, int, int]) -> None:
    for flat in (torch.zeros(shape), torch.full(shape, 0.7)):
        assert neighbour_correlation(flat) == 0.0
        assert jpeg_grid(flat) == 0.0
        assert signs_of_shared_noise(flat) == ()
        assert shared_level(flat) == pytest.approx(0.0, abs=1e-9)
    noise = drawn(torch.Size(shape))
    assert np.isfinite([neighbour_correlation(noise), jpeg_grid(noise)]).all()


# --- impulses


def peppered(clean: Tensor, rate: float) -> Tensor:
    chance = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(chance < rate / 2, 0.0, torch.where(chance < rate, 1.0, clean))


def rounded(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round() / 255


@each
def test_impulses_are_noticed_and_nothing_else_is_taken_for_them(name: str) -> None:
    clean = photograph(name)
    grey = clean.mean(dim=0, keepdim=True)
    for rate in (0.03, 0.1, 0.3, 0.5):
        found = [impulses(peppered(rounded(one), rate)) for one in (clean, grey)]
        if name == "hubble_deep_field":  # black ones do not show in it, and white ones alone are stars
            assert found == [0, 0]
        else:
            assert all(IMPULSIVE < share <= rate for share in found)
    for level in (0, 15, 25, 50, 100):
        assert impulses(rounded(clean + level / 255 * drawn(clean.shape))) < IMPULSIVE
    counts = torch.poisson(clean * 10, generator=torch.Generator().manual_seed(0)) / 10
    assert impulses(rounded(counts)) < IMPULSIVE


def test_black_lines_on_white_are_no_impulses() -> None:
    page = torch.ones(1, 64, 64)
    page[:, ::6] = 0
    page[:, :, ::9] = 0
    assert impulses(page) == 0


def test_impulses_are_those_that_differ_from_all_around_them() -> None:
    values = peppered(rounded(photograph("chelsea", 24)[:1]), 0.3)[0].numpy()
    framed = np.pad(values, 1, mode="reflect")
    alone = sum(
        (abs(values[row, column] - framed[row : row + 3, column : column + 3]) >= 0.25).sum() == 8
        and values[row, column] in (0, 1)
        for row in range(24)
        for column in range(24)
    )
    assert impulses(torch.from_numpy(values)[None]) == pytest.approx(alone / 24**2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (9, 2), (3, 3), (700, 4)])
def test_pictures_of_any_size_are_asked_for_impulses(height: int, width: int) -> None:
    assert 0 <= impulses(peppered(torch.full((3, height, width), 0.5), 0.2)) <= 1
