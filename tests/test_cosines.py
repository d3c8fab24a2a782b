"""Pictures as cosines of tiles: against the plain transform, and what is chosen of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from torch import Tensor

import pixfit as pf
from pixfit import engine, modelfile, operators, render
from pixfit.job import Job
from pixfit.models import Coordinates, Cosines, cosines
from pixfit.models.spectra import choose, cosine_matrix, zigzag
from pixfit.spec import Spec
from pixfit.starts import FromPicture, Start
from tests.conftest import picture

SIZES = ((1, 1), (8, 8), (9, 11), (24, 16), (7, 40))
sizes = pytest.mark.parametrize(("height", "width"), SIZES)


def whole(height: int, width: int, channels: int = 3, side: int = 8, **others: object) -> Cosines:
    """With room for every coefficient."""
    model = Cosines(height, width, 1, side=side)
    return replace(model, values=model.tiles * channels * side**2, **others)  # type: ignore[arg-type]


def started(image: pf.Image, model: Cosines, **others: object) -> pf.Result:
    return pf.fit(
        Spec(pf.Problem(image), model, start=Start(FromPicture()), budget=pf.Steps(0), **others), device="cpu"
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@sizes
def test_with_every_coefficient_the_picture_comes_back(height: int, width: int, channels: int) -> None:
    image = picture(channels, height, width)
    for side in (4, 8):
        shown = render.render(started(image, whole(height, width, channels, side)))
        torch.testing.assert_close(shown, image.data, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "coordinates",
    [
        Coordinates(range="unit"),
        Coordinates(range="signed", order="row_col"),
        Coordinates(range="unit", order="row_col"),
    ],
)
def test_what_is_kept_is_the_plain_transform_of_the_tiles(coordinates: Coordinates) -> None:
    """Every coefficient that is kept has the value of scipy's transform, and the others are not there."""
    image, side = picture(1, 16, 24), 8
    model = Cosines(16, 24, 100, classes=2, side=side, coordinates=coordinates)
    shown = render.render(started(image, model)).double()
    plain, found = (
        fft.dctn((data - image.data.double().mean()).reshape(2, side, 3, side).numpy(), axes=(1, 3), norm="ortho")
        for data in (image.data.double()[0], shown[0])
    )
    kept = abs(found) > 1e-5
    assert kept.sum() == 100
    assert abs(found - plain)[kept].max() < 1e-5
    assert (plain[kept] ** 2).sum() > 0.8 * sum(sorted((plain**2).flatten())[-100:])


def test_the_matrix_is_orthonormal_and_the_zigzag_a_permutation() -> None:
    for side in (1, 3, 8):
        matrix = cosine_matrix(side)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(side, dtype=torch.float64))
        ranks = zigzag(3, side)
        assert sorted(ranks.tolist()) == list(range(3 * side * side))
        assert ranks[[0, side * side, 2 * side * side]].tolist() == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(
    tiles=st.integers(1, 40), numbers=st.integers(1, 30), classes=st.integers(1, 6), part=st.floats(0, 1),
    seed=st.integers(0, 99), flat=st.booleans(),
)  # fmt: skip
def test_as_many_values_are_chosen_as_were_asked_for(
    tiles: int, numbers: int, classes: int, part: float, seed: int, flat: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(tiles, numbers, generator=generator) * (0.0 if flat else 1.0)
    values = max(1, round(part * tiles * numbers))
    orders, chosen, lengths = choose(coefficients, values, classes)
    assert int(lengths.sum()) == values
    assert int(lengths.min()) >= 0
    assert int(lengths.max()) <= numbers
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < classes
    assert torch.equal(orders.sort(dim=1).values, torch.arange(numbers).expand(classes, -1))


def energy(coefficients: Tensor, orders: Tensor, chosen: Tensor, lengths: Tensor) -> float:
    kept = torch.arange(coefficients.shape[1]) < lengths[:, None]
    return float((coefficients.gather(1, orders[chosen]).square() * kept).sum())


def test_classes_find_the_kinds_of_tiles_that_there_are() -> None:
    """Tiles of two kinds, each with ten coefficients of its own: two classes keep them all, one class cannot."""
    generator = torch.Generator().manual_seed(0)
    coefficients = 1e-3 * torch.randn(60, 32, generator=generator)
    coefficients[::2, 4:14] += 1.0
    coefficients[1::2, 20:30] += 1.2
    parts = {classes: energy(coefficients, *choose(coefficients, 600, classes)) for classes in (1, 2)}
    every = float(coefficients.square().sum())
    assert parts[2] > 0.999 * every
    assert parts[1] < 0.8 * every


def test_more_classes_and_more_values_are_better() -> None:
    image = pf.images.load("astronaut")
    image = replace(image, data=image.data[:, 100:196, 200:296].contiguous())
    levels = {}
    for values, classes in ((2000, 1), (2000, 8), (6000, 8)):
        psnr = started(image, Cosines(96, 96, values, classes)).psnr
        assert psnr is not None
        levels[values, classes] = psnr
    assert levels[2000, 1] + 0.2 < levels[2000, 8] < levels[6000, 8] - 3


def test_numbers_that_say_what_is_kept_are_counted() -> None:
    model = Cosines(20, 17, 50, classes=3, side=4)
    assert model.tiles == 25
    assert model.parameters_count() == model.stored_numbers() == 50 + 25 + 3 * 48 + 12
    assert Cosines.within(2000, 64, 64, 3).parameters_count() <= 2000


@settings(max_examples=40, deadline=None)
@given(numbers=st.integers(0, 10_000), height=st.integers(1, 60), width=st.integers(1, 60), channels=st.integers(1, 4))
def test_a_budget_is_kept_where_it_allows_a_value_a_tile(numbers: int, height: int, width: int, channels: int) -> None:
    model = Cosines.within(numbers, height, width, channels)
    counted = model.parameters_count(2, channels)
    least = replace(model, values=model.tiles, classes=1)
    assert counted <= max(numbers, least.parameters_count(2, channels))
    most = model.tiles * channels * model.side**2
    assert model.values == most or model.values == model.tiles or counted == numbers


def test_random_starts_repeat_themselves_and_are_trained() -> None:
    """From what measures more than pixels it learns as others do; every number that is trained has a say."""
    model = Cosines(16, 24, 200, classes=2, side=8)
    first, again = (model.build(generator=torch.Generator().manual_seed(1)).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    network = model.build(generator=torch.Generator().manual_seed(1))
    network(model.coordinates.grid(16, 24)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).all()), name
    spec = Spec(pf.Problem(picture(3, 16, 24), operators.BoxDownsample(2)), model, optimiser=pf.optim.Adam(lr=0.02))
    spec = replace(spec, budget=pf.Steps(150))
    result = pf.fit(spec, device="cpu")
    assert result.curves["loss"][-1] < 0.02 * result.curves["loss"][0]


def test_training_cannot_better_a_start_from_the_picture() -> None:
    """Of an orthonormal transform the kept coefficients are known: the loss is at its minimum."""
    image = picture(3, 32, 32)
    spec = started(image, Cosines(32, 32, 400, classes=2)).spec
    still = pf.fit(spec, device="cpu")
    trained = pf.fit(replace(spec, budget=pf.Steps(200), optimiser=pf.optim.Adam(lr=1e-3)), device="cpu")
    assert still.psnr is not None
    assert trained.psnr is not None
    assert abs(trained.psnr - still.psnr) < 0.05


def test_fits_do_not_depend_on_their_mates_and_come_back_from_their_files(tmp_path: Path) -> None:
    model = Cosines(9, 11, 60, classes=2, side=4)
    specs = [
        Spec(pf.Problem(picture(3, 9, 11, seed)), model, start=Start(FromPicture()), budget=pf.Steps(3))
        for seed in (0, 1)
    ]
    alone = [pf.fit(spec, device="cpu") for spec in specs]
    jobs = [Job(spec, spec.problem.view, pf.run.first_weights(spec)) for spec in specs]
    *_, end = engine.fit(jobs, device=torch.device("cpu"))
    assert end.outcomes is not None
    for one, other in zip(alone, end.outcomes, strict=True):
        for name, value in one.weights.items():
            torch.testing.assert_close(value, other.weights[name], rtol=1e-4, atol=1e-6)
    modelfile.save(alone[0], tmp_path / "model")
    again = modelfile.load(tmp_path / "model")
    assert again.model == model
    assert torch.equal(render.render(again), render.render(alone[0]))


def test_it_renders_at_any_scale_and_its_pixels_are_those_of_the_fit() -> None:
    image = picture(3, 24, 16)
    result = started(image, whole(24, 16))
    large = render.render(result, scale=3)
    assert large.shape == (3, 72, 48)
    torch.testing.assert_close(large[:, 1::3, 1::3], image.data, rtol=0, atol=2e-6)  # samples at the same centres


def test_stacked_as_on_a_card_it_gives_the_same_numbers() -> None:
    """Of pictures whose tiles are of several classes, with other orders each."""
    model = Cosines(16, 24, 200, classes=3, side=4)
    network, points = model.build(generator=torch.Generator().manual_seed(0)), model.coordinates.grid(16, 24)
    own = [model.from_picture(picture(3, 16, 24, seed).data, network.state_dict()) for seed in (0, 1)]
    for weights in own:
        assert len((weights["spans"] // 49).unique()) > 1
        assert not torch.equal(weights["ranks"][0], weights["ranks"][1])
    tensors = {name: torch.stack([weights[name] for weights in own]) for name in own[0]}
    made = torch.func.vmap(lambda one: torch.func.functional_call(network, one, (points,)))(tensors)
    for number, weights in enumerate(own):
        network.load_state_dict(weights)
        torch.testing.assert_close(made[number], network(points))


def test_samples_pass_in_parts_and_the_parts_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    image, model = picture(3, 24, 16), Cosines(24, 16, 300, classes=2)
    whole = render.render(started(image, model))
    monkeypatch.setattr(cosines, "_SAMPLES", 37)
    assert torch.equal(render.render(started(image, model)), whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosines(8, 8, 193).network(), "have 192; lower it"),
        (lambda: Cosines(8, 8, 10).network(3), "2 coordinates of a picture"),
        (lambda: Cosines(0, 8), "height"),
        (lambda: Cosines(8, 8, 10, coordinates=Coordinates("corner", "unit")), "leave alignment 'center'"),
        (lambda: started(picture(3, 8, 9), Cosines(9, 8, 10)), "for pictures of 8×9 pixels, and this one has 9×8"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
