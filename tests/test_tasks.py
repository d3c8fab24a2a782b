"""What restorations go by: classical estimates, weights of a blend, and the estimated risk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixfit import classical, images, metrics, noise_estimate, tasks
from pixfit.noise_estimate import NoiseLevel
from pixfit.operators import Blur, Identity, gaussian_kernel
from pixfit.pieces import Piece
from pixfit.problem import View, stream
from pixfit.studies.restore_pictures import crop
from tests.conftest import clean, counts, noisy, picture

# --- classical estimates


def test_total_variation_finds_the_least_of_its_functional() -> None:
    """Against gradient descent on the smoothed functional, and: without noise and strength it is the picture."""
    image = clean().data[:, :16, :16].clone()
    y = Blur(gaussian_kernel(0.8)).forward(image)
    view = View(y, Blur(gaussian_kernel(0.8)), (3, 16, 16))

    def value(x: Tensor) -> Tensor:
        slopes = classical._differences(x)
        return (
            0.5 * (view.operator.forward(x) - y).square().sum() + 0.01 * (slopes.square().sum(0) + 1e-12).sqrt().sum()
        )

    found = classical.total_variation(view, 0.01, steps=1000)
    x = y.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=0.003)
    for _ in range(300):
        optimiser.zero_grad()
        value(x).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert float(value(found)) <= float(value(x.detach())) * 1.001
    # The default number of steps is enough, also where the functional hardly asks for smoothness.
    soon = classical.total_variation(view, 0.01)
    assert float(value(soon)) <= float(value(found)) * 1.01
    same = classical.total_variation(View(image, Identity(), (3, 16, 16)), 1e-7)
    torch.testing.assert_close(same, image, rtol=0, atol=1e-3)


def test_differences_have_their_adjoint() -> None:
    x, s = torch.rand(2, 5, 7, dtype=torch.float64), torch.rand(2, 2, 5, 7, dtype=torch.float64)
    there, back = classical._differences(x), classical._differences_adjoint(s)
    assert float((there * s).sum()) == pytest.approx(float((x * back).sum()))


def test_white_noise_needs_no_stabilising() -> None:
    image = noisy(clean())
    for slope in (0.0, 1e-6, -1e-6):
        level = NoiseLevel(0.01, slope)
        sigma = level.sigma(float(image.data.mean()))
        found = classical.nonlocal_means(image.data, level)
        torch.testing.assert_close(found, classical._nonlocal_means(image.data, sigma), rtol=0, atol=1e-6)


def test_noise_of_the_negative() -> None:
    given, level = noisy(clean()).data, NoiseLevel(0.002, 0.02)
    mirrored = 1 - classical.nonlocal_means(1 - given, NoiseLevel(level.floor + level.slope, -level.slope))
    torch.testing.assert_close(classical.nonlocal_means(given, level), mirrored, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("denoise", "gain"), [(classical.nonlocal_means, 0.7), (classical.wavelets, 0.0)])
def test_classical_estimates_know_that_noise_grows_with_brightness(
    denoise: Callable[[torch.Tensor, NoiseLevel], torch.Tensor], gain: float
) -> None:
    """They beat the same at the one level that is right on the whole, and do not change how bright the picture is."""
    truth = crop(images.load("astronaut"), 64)
    given = counts(truth, 20).data
    white = NoiseLevel.white(float((given - truth.data).square().mean()) ** 0.5)
    found = denoise(given, noise_estimate.noise_level(given))
    assert metrics.psnr(found, truth.data) > metrics.psnr(denoise(given, white), truth.data) + gain
    assert float(found.mean()) == pytest.approx(float(truth.data.mean()), abs=0.005)


@given(floor=st.floats(-0.1, 0.1), slope=st.floats(-0.5, 0.5), height=st.integers(1, 9), width=st.integers(1, 9))
def test_no_level_makes_an_estimate_that_is_no_number(floor: float, slope: float, height: int, width: int) -> None:
    given = picture(3, height, width).data
    found = classical.nonlocal_means(given, NoiseLevel(floor, slope))
    assert found.shape == given.shape
    assert bool(found.isfinite().all())


def test_what_stands_in_for_held_out_pixels_does_not_flatter() -> None:
    """Non-local means are farther off at pixels that they do not know than if a perfect fit stood there, and still not
    as far as at those that they do know."""
    level, errors = NoiseLevel.white(0.1), torch.zeros(3)
    for name in ("astronaut", "coffee", "chelsea"):
        truth = crop(images.load(name), 48)
        held_out, given = torch.rand(1, 48, 48, generator=stream(1, name)) < 0.1, noisy(truth, 0.1).data
        piece = Piece(slice(None), slice(None), Identity(), (3, 48, 48), given, None, held_out)
        task = tasks.denoising(level)
        perfect = classical.nonlocal_means(torch.where(held_out, truth.data, given), level)
        blind, knowing = (task.estimate(piece, fitted) for fitted in (truth.data, None))
        assert torch.equal(blind, task.estimate(piece, truth.data))
        for at, one in enumerate((perfect, blind, knowing)):
            errors[at] += (one - truth.data)[held_out.expand(3, -1, -1)].square().sum()
    assert 1.02 * float(errors[0]) < float(errors[1]) < float(errors[2])


# --- the weight in a blend


def pieces_of_a_blend(seed: int, errors: float) -> tuple[Tensor, Tensor, View]:
    """A fit and a classical estimate that are as far from the truth, each its own way, and single held-out pixels."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(3, 40, 40, generator=generator)
    fitted, blind = (truth + errors * torch.randn(3, 40, 40, generator=generator) for _ in range(2))
    held_out = torch.rand(1, 40, 40, generator=generator) < 0.1
    return fitted, blind, View(truth, Identity(), (3, 40, 40), held_out=held_out)


def test_the_weight_of_a_blend_is_that_of_least_squares() -> None:
    fitted, blind, view = pieces_of_a_blend(0, 0.1)
    assert view.held_out is not None
    wanted = view.held_out.expand_as(fitted)
    a, e = (fitted - blind)[wanted].double(), (view.measurement - blind)[wanted].double()
    assert tasks.blend_weight(fitted, blind, view) == pytest.approx(float(a @ e / (a @ a)), abs=1e-9)
    assert tasks.blend_weight(blind, blind, view) == 1.0
    assert tasks.blend_weight(view.measurement, blind, view) == pytest.approx(1.0)
    assert tasks.blend_weight(fitted, view.measurement, view) == pytest.approx(0.0)


def test_caution_takes_standard_errors_off_the_weight() -> None:
    """As many as are asked for, of what the weight scatters by from one choice of held-out pixels to the next."""
    found = {
        caution: torch.tensor(
            [tasks.blend_weight(*pieces_of_a_blend(seed, 0.1), caution) for seed in range(200)], dtype=torch.float64
        )
        for caution in (0.0, 1.0, 2.0)
    }
    scatter = float(found[0.0].std())
    for caution in (1.0, 2.0):
        lower = float((found[0.0] - found[caution]).mean())
        assert lower == pytest.approx(caution * scatter, rel=0.2)


# --- the estimated risk


def probed(noisy: Tensor, sigma: float, seed: int) -> Piece:
    signs = torch.randint(2, noisy.shape, generator=stream(seed, "probe")) * 2.0 - 1.0
    return Piece(slice(None), slice(None), Identity(), tuple(noisy.shape), noisy, probe=sigma * signs)


def smoothed(noisy: Tensor) -> Tensor:
    return 0.9 * Blur(gaussian_kernel(0.8)).forward(noisy)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.4])
def test_the_risk_is_the_error_that_only_the_truth_tells(sigma: float) -> None:
    truth = images.load("coffee").data[:, :200, :200]
    found, true = [], []
    for seed in range(6):
        piece = probed(truth + sigma * torch.randn(truth.shape, generator=stream(seed, "noise")), sigma, seed)
        estimate = smoothed(piece.measurement)
        found.append(tasks.risk(estimate, smoothed(piece.probed().measurement), piece, sigma))
        true.append(float((estimate - truth).square().mean()))
    assert sum(found) / 6 == pytest.approx(sum(true) / 6, rel=0.03)


def test_the_weight_of_the_least_risk_is_found() -> None:
    sigma, truth = 0.1, clean().data
    piece = probed(truth + sigma * torch.randn(truth.shape, generator=stream(0, "noise")), sigma, 0)
    fits_ = [smoothed(one.measurement) for one in (piece, piece.probed())]
    controls = [0.5 + 0.3 * (one.measurement - 0.5) for one in (piece, piece.probed(tasks.CONTROL_PROBE))]
    whole = 0.5 + 0.3 * (piece.probed().measurement - 0.5)  # of a linear estimate the scale of the probe is no matter
    weights = torch.linspace(0, 1, 201).tolist()
    risks = [
        tasks.risk(w * fits_[0] + (1 - w) * controls[0], w * fits_[1] + (1 - w) * whole, piece, sigma) for w in weights
    ]
    best = weights[risks.index(min(risks))]
    assert 0 < best < 1
    assert tasks.risk_weight((fits_[0], fits_[1]), (controls[0], controls[1]), piece, sigma) == pytest.approx(
        best, abs=0.006
    )
    assert tasks.risk_weight((fits_[0], fits_[1]), (fits_[0], fits_[1]), piece, sigma) == 1.0
