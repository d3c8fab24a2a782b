"""Noise: its statistics, its seeds, its range, and that a draw depends on nothing else."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pixfit
from pixfit import canonical, problem
from pixfit.modelfile import decode_spec
from pixfit.models import Siren
from pixfit.noise import NOISES, Clipped, GaussianNoise, Noise, PoissonNoise, SaltAndPepper
from pixfit.operators import BoxDownsample, GaussianSensing, Inpaint
from pixfit.problem import Problem, stream
from pixfit.spec import Spec
from tests.conftest import picture

FAMILY: dict[str, Noise] = {
    "gauss": GaussianNoise(0.1),
    "poisson": PoissonNoise(30),
    "impulses": SaltAndPepper(0.2),
    "impulses of pixels": SaltAndPepper(0.2, pixels=True),
    "clipped gauss": Clipped(GaussianNoise(0.5)),
    "clipped poisson": Clipped(PoissonNoise(5)),
}
family = pytest.mark.parametrize("noise", FAMILY.values(), ids=FAMILY.keys())


def draw(noise: Noise, y: Tensor, seed: int = 0) -> Tensor:
    return noise(y, stream(seed, "noise"))


def level(value: float, side: int = 200) -> Tensor:
    return torch.full((3, side, side), value)


def test_the_list_has_every_noise() -> None:
    assert {type(noise) for noise in FAMILY.values()} == set(NOISES.values()) == set(Noise.__subclasses__())
    assert all(name == kind.__name__ for name, kind in NOISES.items())


@family
def test_the_seed_decides_and_nothing_else(noise: Noise) -> None:
    y = picture(3, 12, 10).data
    before = y.clone()
    first = draw(noise, y, 1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(draw(noise, y, 1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(draw(noise, y, 2), first)
    assert torch.equal(y, before)
    assert first.shape == y.shape
    assert first.dtype == y.dtype
    assert draw(noise, y.double()).dtype == torch.float64


@family
def test_a_problem_draws_it_from_its_own_stream(noise: Noise) -> None:
    """What else is fitted, held out or looked at does not change the draw."""
    image = picture(3, 12, 10)
    view = Problem(image, noise=noise, seed=3).view
    assert torch.equal(view.measurement, draw(noise, image.data, 3))
    mate, same = Problem(picture(3, 7, 9), noise=noise, seed=3), Problem(image, noise=noise, seed=3)
    assert mate.view.measurement.shape == (3, 7, 9)
    assert torch.equal(same.view.measurement, view.measurement)  # also after another one has drawn
    again = Problem(image, noise=noise, seed=3, held_out=0.4).view
    assert torch.equal(again.measurement, view.measurement)
    small = Problem(image, BoxDownsample(2), noise, seed=3)
    assert torch.equal(small.view.measurement, draw(noise, small.operator.forward(image.data), 3))


@family
def test_what_is_masked_stays_out_of_use(noise: Noise) -> None:
    mask = torch.rand(12, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    index, _, weights = Problem(picture(3, 12, 10), Inpaint(mask), noise).view.samples()
    assert index.tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert weights is None


@family
def test_its_canonical_form(noise: Noise) -> None:
    form = json.loads(canonical.text(noise))
    assert form["kind"] == type(noise).__name__
    assert len({canonical.text(other) for other in FAMILY.values()}) == len(FAMILY)
    spec = Spec(Problem(picture(3, 6, 6), noise=noise), Siren(1, 4))
    assert decode_spec(json.loads(json.dumps(spec.plain))).id == spec.id
    assert spec.plain["problem"]["noise"] == form
    assert pickle.loads(pickle.dumps(noise)) == noise


def test_canonical_forms() -> None:
    """If one of these fails, stored fits are no longer found: raise `canonical.SCHEMA` and add a migration."""
    assert [canonical.text(noise) for noise in FAMILY.values()] == [
        '{"kind":"GaussianNoise","sigma":0.1}',
        '{"kind":"PoissonNoise","peak":30.0}',
        '{"kind":"SaltAndPepper","pixels":false,"rate":0.2}',
        '{"kind":"SaltAndPepper","pixels":true,"rate":0.2}',
        '{"kind":"Clipped","noise":{"kind":"GaussianNoise","sigma":0.5}}',
        '{"kind":"Clipped","noise":{"kind":"PoissonNoise","peak":5.0}}',
    ]


def test_gaussian_noise_is_where_it_was() -> None:
    assert pixfit.GaussianNoise is GaussianNoise is problem.GaussianNoise


def test_gaussian_noise_has_its_deviation_at_every_level() -> None:
    for value in (0.0, 0.5, 1.0):
        error = (draw(GaussianNoise(0.1), level(value)) - value).double()
        assert abs(float(error.mean())) < 4 * 0.1 / math.sqrt(error.numel())
        assert float(error.std()) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("peak", [0.5, 5, 30, 1000])
def test_poisson_noise_has_the_mean_and_the_variance_of_counts(peak: float) -> None:
    for value in (0.1, 0.5, 1.0):
        noisy = draw(PoissonNoise(peak), level(value)).double()
        counts = noisy * peak
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
        assert float(noisy.min()) >= 0
        error = math.sqrt(value / peak / noisy.numel())
        assert abs(float(noisy.mean()) - value) < 5 * error
        assert float(noisy.var()) == pytest.approx(value / peak, rel=0.03)


def test_poisson_noise_of_nothing_is_nothing() -> None:
    """An operator with negative weights may lead below 0; there is no count below that."""
    y = torch.tensor([[[0.0, -0.2, 1.0]]])
    noisy = draw(PoissonNoise(100), y)
    assert noisy[0, 0, :2].tolist() == [0, 0]
    assert float(noisy[0, 0, 2]) > 0.5


@pytest.mark.parametrize("pixels", [False, True])
def test_impulses_replace_as_many_samples_as_they_should(pixels: bool) -> None:
    y = level(0.4)
    noisy = draw(SaltAndPepper(0.3, pixels=pixels), y)
    assert set(noisy.unique().tolist()) == {0.0, y[0, 0, 0].item(), 1.0}
    bound = 4 * math.sqrt(0.15 * 0.85 / (noisy.numel() / (3 if pixels else 1)))
    for value in (0.0, 1.0):
        assert abs(float((noisy == value).double().mean()) - 0.15) < bound
    hit = noisy != y
    assert bool((hit == hit[:1]).all()) == pixels
    assert bool((noisy == noisy[:1]).all()) == pixels


def test_no_impulses_and_nothing_else() -> None:
    y = picture(3, 9, 9).data
    assert torch.equal(draw(SaltAndPepper(0.0), y), y)
    assert set(draw(SaltAndPepper(1.0), y).unique().tolist()) == {0.0, 1.0}


def test_clipped_noise_stays_in_range() -> None:
    y = picture(3, 40, 40).data
    plain, clipped = draw(GaussianNoise(0.5), y), draw(Clipped(GaussianNoise(0.5)), y)
    assert float(plain.min()) < 0 < 1 < float(plain.max())
    assert torch.equal(clipped, plain.clamp(0, 1))


def test_noise_on_what_is_no_picture() -> None:
    sums = Problem(picture(3, 6, 6), GaussianSensing(4000), GaussianNoise(0.01)).view.measurement
    exact = GaussianSensing(4000).forward(picture(3, 6, 6).data)
    assert float((sums - exact).std()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-0.1), "noise.sigma is -0.1"),
        (lambda: GaussianNoise("1"), "noise.sigma is '1'"),  # type: ignore[arg-type]
        (lambda: PoissonNoise(0), "noise.peak is 0"),
        (lambda: PoissonNoise(2e6), "noise.peak is"),
        (lambda: PoissonNoise(float("nan")), "noise.peak is nan"),
        (lambda: SaltAndPepper(-0.1), "noise.rate is -0.1"),
        (lambda: SaltAndPepper(1.1), "noise.rate is 1.1"),
        (lambda: SaltAndPepper(0.1, pixels=1), "noise.pixels is 1"),  # type: ignore[arg-type]
        (lambda: Clipped(0.1), "noise.noise is 0.1"),  # type: ignore[arg-type]
    ],
)
def test_noise_that_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        make()


@pytest.mark.parametrize("noise", [0.1, "gauss", GaussianNoise, torch.rand])
def test_what_is_no_noise(noise: Any) -> None:
    with pytest.raises(TypeError, match=r"it must be one of pixfit\.noise, such as GaussianNoise"):
        Problem(picture(3, 4, 4), noise=noise)
