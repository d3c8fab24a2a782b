"""Meta-learned starts against plain loops over pictures, and how they serve as starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import pixfit as pf
from pixfit import modelfile, render
from pixfit.models import META_MODELS, Coordinates, Maml, MetaModel, Reptile, Siren, TiledCoordinates
from pixfit.optim import SGD, Adam
from pixfit.problem import stream
from pixfit.spec import Batches
from pixfit.starts import Start
from tests.conftest import picture

SIDE, PIXELS = 6, 36
INNER = Siren(1, 8, coordinates=Coordinates(alignment="corner", order="row_col"))
FAMILY: dict[str, MetaModel] = {
    "maml": Maml(INNER, SIDE, SIDE, steps=2, lr=0.05),
    "meta-sgd": Maml(INNER, SIDE, SIDE, steps=3, lr=0.02, rates="learned"),
    "reptile": Reptile(INNER, SIDE, SIDE, steps=3, lr=0.05),
}
PICTURES = [picture(3, SIDE, SIDE, seed=seed).data for seed in range(6)]
MOSAIC = pf.Problem(torch.cat([torch.cat(PICTURES[:3], dim=1), torch.cat(PICTURES[3:], dim=1)], dim=2))
"""Two columns of three pictures: the first three on the left."""


def spec_of(name: str, **changes: object) -> pf.Spec:
    spec = pf.Spec(MOSAIC, FAMILY[name], optimiser=Adam(3e-3), batches=Batches(2 * PIXELS), budget=pf.Steps(12), seed=4)
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_the_family_is_the_table() -> None:
    assert {type(model) for model in FAMILY.values()} == set(META_MODELS.values())
    assert all(name == kind.__name__ for name, kind in META_MODELS.items())


# --- the plain loop


def plain(model: MetaModel, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Meta-learning on pairs of pictures, drawn as the engine draws them: losses, and the start at the end."""
    network = model.inner.build(2, 3, generator=stream(4, "weights"))
    points = model.inner.coordinates.grid(SIDE, SIDE)
    learned = isinstance(model, Maml) and model.rates == "learned"
    start = dict(network.named_parameters())
    rates = [
        {name: torch.full_like(value, model.lr).requires_grad_(learned) for name, value in start.items()}
        for _ in range(model.steps)
    ]
    trained = [*start.values(), *(value for one in rates for value in one.values() if learned)]
    optimiser = torch.optim.Adam(trained, lr=3e-3)
    losses = []
    for step in range(steps):
        epoch, at = divmod(step, 3)
        order = torch.randperm(6, generator=stream(4, f"batches/{epoch}"))[2 * at : 2 * at + 2].tolist()
        reached, errors = [], []
        for index in order:
            # The mosaic's tiles are numbered row by row, its pictures column by column.
            target = 2 * PICTURES[(index % 2) * 3 + index // 2].flatten(1).T - 1
            weights = start
            for inner in range(model.steps):
                error = (functional_call(network, weights, (points,)) - target).square().mean()
                slopes = torch.autograd.grad(error, list(weights.values()), create_graph=True)
                moves = zip(weights.items(), slopes, strict=True)
                weights = {name: value - rates[inner][name] * slope for (name, value), slope in moves}
            reached.append(weights)
            errors.append((functional_call(network, weights, (points,)) - target).square().mean())
        loss = torch.stack(errors).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        if isinstance(model, Reptile):
            for name, value in start.items():
                value.grad = value.detach() - torch.stack([one[name].detach() for one in reached]).mean(dim=0)
        else:
            loss.backward()
        optimiser.step()
    return losses, {name: value.detach() for name, value in start.items()}


@pytest.mark.parametrize("name", FAMILY)
def test_a_fit_is_that_of_the_plain_loop(name: str) -> None:
    spec = spec_of(name)
    result = pf.fit(spec, device="cpu")
    losses, start = plain(FAMILY[name], 12)
    assert result.status is pf.Status.DONE
    torch.testing.assert_close(result.curves["loss"], torch.tensor(losses), rtol=1e-4, atol=1e-6)
    found = FAMILY[name].heir(result.weights)
    assert list(found) == list(start)
    for key, value in start.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_after_the_steps_falls(name: str) -> None:
    loss = pf.fit(spec_of(name, optimiser=Adam(5e-4), budget=pf.Steps(150)), device="cpu").curves["loss"]
    assert loss[-20:].mean() < 0.8 * loss[:20].mean()


@pytest.mark.parametrize("name", FAMILY)
def test_fits_side_by_side_are_those_alone(name: str) -> None:
    """As a card fits them: F at once."""
    from pixfit import engine, run

    specs = [spec_of(name, seed=seed) for seed in (4, 5)]
    jobs = [run._job(spec, {}, ()) for spec in specs]
    *_, last = engine.fit(jobs)
    assert last.outcomes is not None
    for spec, outcome in zip(specs, last.outcomes, strict=True):
        alone = pf.fit(spec, device="cpu")
        torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-4, atol=1e-6)


def test_all_pictures_at_once() -> None:
    """Without batches every step sees every picture, in the order of the tiles."""
    together = pf.fit(spec_of("maml", batches=Batches(), budget=pf.Steps(1)), device="cpu").curves["loss"][0]
    pairs = pf.fit(spec_of("maml", optimiser=SGD(1e-12), budget=pf.Steps(3)), device="cpu").curves["loss"]
    torch.testing.assert_close(together, pairs.mean(), rtol=1e-5, atol=0)


# --- as a start


@pytest.mark.parametrize("name", FAMILY)
def test_a_fit_starts_from_the_inner_network(name: str) -> None:
    parent = spec_of(name)
    child = pf.Spec(pf.Problem(PICTURES[0]), INNER, start=Start(weights=parent), budget=pf.Steps(1), seed=9)
    result, learned = pf.fit([child, parent], device="cpu")
    assert result.status is pf.Status.DONE, result.reason
    network = INNER.build(2, 3, generator=stream(0, "weights"))
    network.load_state_dict(dict(FAMILY[name].heir(learned.weights)))
    with torch.no_grad():
        shown = network(INNER.coordinates.grid(SIDE, SIDE))
    expected = (shown - (2 * PICTURES[0].flatten(1).T - 1)).square().mean()
    torch.testing.assert_close(result.curves["loss"][0], expected, rtol=1e-5, atol=1e-7)


def test_a_start_from_a_kept_step() -> None:
    parent = spec_of("reptile")
    child = pf.Spec(pf.Problem(PICTURES[0]), INNER, start=Start(weights=parent, step=0), budget=pf.Steps(1))
    random = replace(child, start=Start(), seed=4)
    losses = [result.curves["loss"][0] for result in pf.fit([child, random], device="cpu")]
    torch.testing.assert_close(losses[0], losses[1])


def test_one_colour_is_no_collapse() -> None:
    """The best start for many pictures may show a single colour, and has learned something all the same."""
    result = pf.fit(spec_of("maml", optimiser=Adam(1e-5), budget=pf.Steps(520)), device="cpu")
    assert result.status is pf.Status.DONE


# --- the mosaic


def test_coordinates_begin_anew_in_every_tile() -> None:
    tiled = TiledCoordinates("corner", order="row_col", tile_height=4, tile_width=3)
    one = Coordinates("corner", order="row_col").grid(4, 3).view(4, 3, 2)
    grid = tiled.grid(8, 9).view(8, 9, 2)
    for row in (0, 4):
        for column in (0, 3, 6):
            assert torch.equal(grid[row : row + 4, column : column + 3], one)
    twice = Coordinates("corner", order="row_col").grid(4, 3, samples=(8, 6)).view(8, 6, 2)
    assert torch.equal(tiled.grid(8, 9, samples=(16, 18)).view(16, 18, 2)[8:, 6:12], twice)


def test_a_picture_that_is_no_mosaic_is_refused() -> None:
    with pytest.raises(ValueError, match="no mosaic of tiles of 6 x 6"):
        pf.fit(spec_of("maml", problem=pf.Problem(picture(3, 12, 13))))
    with pytest.raises(ValueError, match="whole pictures"):
        pf.fit(spec_of("maml", batches=Batches(50)))
    with pytest.raises(ValueError, match="every pixel"):
        pf.fit(spec_of("maml", problem=replace(MOSAIC, held_out=0.1)))


def test_the_start_is_rendered_in_every_tile(tmp_path: Path) -> None:
    result = pf.fit(spec_of("reptile"), device="cpu")
    assert result.estimate is not None
    assert result.estimate.shape == (3, 18, 12)
    torch.testing.assert_close(result.estimate[:, :6, :6], result.estimate[:, 12:, 6:])
    modelfile.save(result, tmp_path / "start.pixfit")
    network = modelfile.load(tmp_path / "start.pixfit")
    assert network.model == FAMILY["reptile"]
    assert torch.equal(render.render(network), result.estimate)
    assert render.render(network, scale=2).shape == (3, 36, 24)
    with pytest.raises(ValueError, match="as a whole"):
        render.render(network, region=(0, 0, 6, 6))


def test_wrong_settings_say_what_is_allowed() -> None:
    for made, says in (
        (lambda: Maml(steps=0), "Maml.steps"), (lambda: Reptile(lr=0), "Reptile.lr"),
        (lambda: Maml(rates="free"), "Maml.rates"), (lambda: Maml(inner=3), "Maml.inner"),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            made()


@pytest.mark.parametrize("name", FAMILY)
def test_an_interrupted_fit_goes_on_as_if_nothing_had_been(name: str) -> None:
    from pixfit import engine, run

    job = run._job(spec_of(name), {}, ())
    *_, undisturbed = engine.fit([job])
    asked = iter([False] * 5 + [True])
    *_, stopped = engine.fit([job], interrupt=lambda: next(asked, True))
    assert 0 < stopped.step < 12
    *_, resumed = engine.fit([job], state=stopped)
    assert undisturbed.outcomes is not None
    assert resumed.outcomes is not None
    assert torch.equal(undisturbed.outcomes[0].losses, resumed.outcomes[0].losses)
