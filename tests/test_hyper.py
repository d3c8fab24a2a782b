"""Hypernetworks against plain loops over pictures, what they may see, and what they show of pictures never seen."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pixfit as pf
from pixfit import modelfile, render
from pixfit.models import ENCODERS, ConvEncoder, Coordinates, Fourier, Hyper, Mlp, SetEncoder, Siren
from pixfit.models.hyper import HyperNetwork
from pixfit.optim import Adam
from pixfit.problem import stream
from pixfit.spec import Batches
from tests.conftest import picture

ROWS, COLUMNS = 5, 6
PIXELS = ROWS * COLUMNS
INNER = Siren(1, 8, coordinates=Coordinates(alignment="corner", order="row_col"))
SHAPE = {"hidden_features": 12, "height": ROWS, "width": COLUMNS, "context": (4, 20)}
FAMILY: dict[str, Hyper] = {
    "conv": Hyper(INNER, ConvEncoder(8, 1), weight_weight=3.0, **SHAPE),  # type: ignore[arg-type]
    "set": Hyper(INNER, SetEncoder(8, 3), weight_weight=3.0, **SHAPE),  # type: ignore[arg-type]
    "mlp": Hyper(Mlp(1, 8, Fourier(6)), SetEncoder(8, 2), init="inner", **SHAPE),  # type: ignore[arg-type]
}
PICTURES = [picture(3, ROWS, COLUMNS, seed=seed).data for seed in range(4)]
MOSAIC = pf.Problem(torch.cat([torch.cat(PICTURES[:2], dim=2), torch.cat(PICTURES[2:], dim=2)], dim=1))
"""Two rows of two pictures, in their order."""


def spec_of(name: str, **changes: object) -> pf.Spec:
    spec = pf.Spec(MOSAIC, FAMILY[name], optimiser=Adam(1e-3), batches=Batches(2 * PIXELS), budget=pf.Steps(6), seed=4)
    return replace(spec, **changes)  # type: ignore[arg-type]


def network_of(model: Hyper, seed: int = 4) -> HyperNetwork:
    network = model.build(generator=stream(seed, "weights"))
    assert isinstance(network, HyperNetwork)
    return network


def fitted(model: Hyper, seed: int = 0) -> modelfile.Network:
    """As a fit of the mosaic leaves it, with weights at random."""
    weights = dict(model.build(generator=stream(seed, "weights")).state_dict())
    return modelfile.Network(model, weights, pf.Spec(MOSAIC, model, budget=pf.Steps(1)).plain)


# --- sizes


def test_the_published_widths() -> None:
    model = Hyper()
    with torch.device("meta"):
        network = model.network()
    assert model.inner.parameters_count() == 198_915
    assert len(network.heads) == 10
    encoder = 3_584 + 295_168 + 4 * 2 * (256 * 256 * 25 + 256) + 65_792 + 1_025
    assert sum(value.numel() for value in network.encoder.parameters()) == encoder == 13_474_817
    assert sum(value.numel() for value in network.heads.parameters()) == 10 * 2 * 65_792 + 257 * 198_915 == 52_436_995
    assert model.parameters_count() == 13_474_817 + 52_436_995
    with torch.device("meta"):
        layers = SetEncoder().network(32, 32, 3)
    assert sum(value.numel() for value in layers.parameters()) == 6 * 256 + 3 * 65_792


def test_the_family_has_every_encoder() -> None:
    assert {type(model.encoder) for model in FAMILY.values()} == set(ENCODERS.values())
    assert all(name == kind.__name__ for name, kind in ENCODERS.items())


# --- the plain loop


def plain_code(model: Hyper, network: HyperNetwork, values: Tensor, seen: Tensor) -> Tensor:
    """The code (K,) of one picture (C, H, W) of which (H, W) is seen, by the formulas."""
    own = dict(network.encoder.named_parameters())
    if isinstance(model.encoder, SetEncoder):
        places = model.inner.coordinates.grid(ROWS, COLUMNS)[seen.flatten()]
        x = torch.cat([places, values.flatten(1).T[seen.flatten()]], dim=1)
        for number in range(model.encoder.layers):
            x = torch.sin(30 * (x @ own[f"layers.{number}.weight"].T + own[f"layers.{number}.bias"]))
        return x.mean(dim=0)

    def conv(x: Tensor, name: str, pad: int) -> Tensor:
        return nn.functional.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], padding=pad)

    x = (values * seen)[None]
    x = conv(conv(x, "first", 1).relu(), "second", 1).relu()
    x = (x + conv(conv(x, "convolutions.0", 2).relu(), "convolutions.1", 2).relu()).relu()
    x = conv(x, "mix", 0).relu()[0].flatten(1)
    return x @ own["pool.weight"][0] + own["pool.bias"]


def plain_weights(network: HyperNetwork, inner: nn.Module, code: Tensor) -> dict[str, Tensor]:
    found = {}
    for name, value in inner.named_parameters():
        x, maps = code, dict(network.heads.named_parameters(prefix=""))
        for at in (0, 2, 4):
            key = f"{name.replace('.', '-')}.{at}"
            x = maps[f"{key}.weight"] @ x + maps[f"{key}.bias"]
            x = x.relu() if at < 4 else x
        found[name] = x.view(value.shape)
    for name, fixed in inner.named_buffers():
        found[name] = network.get_buffer(name.replace(".", "-")).view(fixed.shape)
    return found


def plain(model: Hyper, steps: int) -> tuple[list[float], HyperNetwork]:
    """Pairs of pictures, drawn as the engine draws them, one after the other: losses, and the network at the end."""
    network, inner = network_of(model), model.inner.build(generator=stream(0, "weights"))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    points = model.inner.coordinates.grid(ROWS, COLUMNS)
    losses = []
    for step in range(steps):
        epoch, at = divmod(step, 2)
        order = torch.randperm(4, generator=stream(4, f"batches/{epoch}"))[2 * at : 2 * at + 2].tolist()
        masks = model.seen(2 * PIXELS, stream(4, f"seen/{step}")).view(2, ROWS, COLUMNS)
        errors, codes, made = [], [], []
        for index, seen in zip(order, masks, strict=True):
            target = model.to_target(PICTURES[index])
            codes.append(plain_code(model, network, target, seen))
            weights = plain_weights(network, inner, codes[-1])
            made += [value.flatten() for name, value in weights.items() if name in dict(inner.named_parameters())]
            errors.append((functional_call(inner, weights, (points,)) - target.flatten(1).T).square().mean())
        loss = torch.stack(errors).mean()
        losses.append(loss.item())
        penalties = 0.1 * torch.stack(codes).square().mean() + model.weight_weight * torch.cat(made).square().mean()
        optimiser.zero_grad()
        (loss + penalties).backward()
        optimiser.step()
    return losses, network


@pytest.mark.parametrize("name", FAMILY)
def test_a_fit_is_that_of_the_plain_loop(name: str) -> None:
    result = pf.fit(spec_of(name), device="cpu")
    losses, network = plain(FAMILY[name], 6)
    assert result.status is pf.Status.DONE, result.reason
    torch.testing.assert_close(result.curves["loss"], torch.tensor(losses), rtol=1e-4, atol=1e-6)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(result.weights[key], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_fits_side_by_side_are_those_alone(name: str) -> None:
    """As a card fits them: F at once, each with the pixels that it would see alone."""
    from pixfit import engine, run

    specs = [spec_of(name, seed=seed) for seed in (4, 5)]
    *_, last = engine.fit([run._job(spec, {}, ()) for spec in specs])
    assert last.outcomes is not None
    for spec, outcome in zip(specs, last.outcomes, strict=True):
        alone = pf.fit(spec, device="cpu")
        torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_an_interrupted_fit_goes_on_as_if_nothing_had_been(name: str) -> None:
    from pixfit import engine, run

    job = run._job(spec_of(name), {}, ())
    *_, undisturbed = engine.fit([job])
    asked = iter([False] * 3 + [True])
    *_, stopped = engine.fit([job], interrupt=lambda: next(asked, True))
    assert 0 < stopped.step < 6
    *_, resumed = engine.fit([job], state=stopped)
    assert undisturbed.outcomes is not None
    assert resumed.outcomes is not None
    assert torch.equal(undisturbed.outcomes[0].losses, resumed.outcomes[0].losses)
    for key, value in undisturbed.outcomes[0].weights.items():
        assert torch.equal(value, resumed.outcomes[0].weights[key])


# --- penalties


@pytest.mark.parametrize(("latent", "weight"), [(0.1, 0.0), (0.0, 100.0), (0.3, 2.0)])
def test_penalties_have_the_gradient_of_their_formula(latent: float, weight: float) -> None:
    model = replace(FAMILY["conv"], latent_weight=latent, weight_weight=weight)
    network = network_of(model)
    points = model.inner.coordinates.grid(ROWS, COLUMNS)
    drawn = torch.rand(2 * PIXELS, 4, generator=stream(0, "x"))
    targets = torch.cat([2 * drawn[:, :3] - 1, drawn[:, 3:].round()], dim=1)
    parameters = list(network.parameters())
    shown = network(points.repeat(2, 1), targets)
    slopes = torch.autograd.grad((shown - targets[:, :3]).square().mean(), parameters)

    tiles = targets.view(2, PIXELS, 4)
    codes = network.encode(points, tiles[..., :3], tiles[..., 3:])
    made = network.weights_of(codes)
    error = (network.shown(made, points) - tiles[..., :3]).square().mean()
    numbers = torch.cat([value.flatten() for value in made.values()])
    expected = torch.autograd.grad(error + latent * codes.pow(2).mean() + weight * numbers.pow(2).mean(), parameters)
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_the_loss_shown_is_without_penalties() -> None:
    first = [
        pf.fit(spec_of("set", model=replace(FAMILY["set"], weight_weight=weight)), device="cpu").curves["loss"]
        for weight in (0.0, 1e4)
    ]
    assert first[0][0] == first[1][0]
    assert not torch.equal(first[0], first[1])


# --- what is seen


@pytest.mark.parametrize("name", FAMILY)
def test_pixels_that_are_masked_have_no_say(name: str) -> None:
    network = network_of(FAMILY[name])
    points = FAMILY[name].inner.coordinates.grid(ROWS, COLUMNS)
    seen = torch.rand(PIXELS, 1, generator=stream(1, "x")) < 0.5
    values = torch.rand(PIXELS, 3, generator=stream(2, "x"))
    for changed, same in ((~seen, True), (seen, False)):
        others = torch.where(changed, torch.inf if same else 0.5, values)
        shown = [network(points, torch.cat([data, seen.float()], dim=1)) for data in (values, others)]
        assert torch.equal(*shown) is same


def test_so_many_pixels_are_seen() -> None:
    model = Hyper(height=20, width=30, context=(60, 300))
    seen = model.seen(400 * 600, stream(0, "seen")).view(400, 600)
    assert seen.dtype == torch.bool
    counts = seen.sum(dim=1).double()
    # n is uniform from 60 to 300, and the count is binomial around it.
    assert abs(counts.mean() - 180) < 4 * 70 / math.sqrt(400)
    assert abs(counts.std() - math.sqrt(240**2 / 12 + 180 * (1 - 180 / 600))) < 8
    assert 20 < counts.min() < 80
    assert 260 < counts.max() < 380
    assert abs(seen.double().mean(dim=0) - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / 400)
    assert bool(replace(model, context=None).seen(1200, stream(0, "seen")).all())
    assert bool(replace(model, context=(600, 600)).seen(1200, stream(0, "seen")).all())
    assert not bool(replace(model, context=(0, 0)).seen(1200, stream(0, "seen")).any())


def test_every_step_sees_other_pixels() -> None:
    spec = spec_of("set", batches=Batches(), optimiser=Adam(1e-12), budget=pf.Steps(4))
    losses = pf.fit(spec, device="cpu").curves["loss"]
    assert len(set(losses.tolist())) == 4
    assert torch.equal(losses, pf.fit(spec, device="cpu").curves["loss"])
    everything = replace(spec, model=replace(FAMILY["set"], context=None))
    assert len(set(pf.fit(everything, device="cpu").curves["loss"].tolist())) == 1


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_precisions_see_the_same(precision: str) -> None:
    losses = [
        pf.fit(spec_of("conv", precision=kind, budget=pf.Steps(3)), device="cpu").curves["loss"].double()
        for kind in ("float32", precision)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5 if precision == "float64" else 0.1, atol=0)


# --- starts


def test_it_starts_as_published() -> None:
    model = Hyper(Siren(2, 40), SetEncoder(64, 2), hidden_features=50)
    network = network_of(model)
    for name, value in network._form[0].named_parameters():
        head = network.heads[name.replace(".", "-")]
        for at, fan_in, scale in ((0, 64, 1.0), (2, 50, 1.0), (4, 50, 0.01)):
            deviation = scale * math.sqrt(2 / fan_in)
            weight = head.get_parameter(f"{at}.weight")
            assert float(weight.detach().std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * weight.numel()))
        bound = 1 / (value.shape[1] if value.ndim == 2 else 50)
        bias = head.get_parameter("4.bias").detach()
        assert float(bias.abs().max()) <= bound
        if bias.numel() >= 40:
            assert float(bias.abs().max()) > 0.9 * bound
            assert float(bias.std()) == pytest.approx(bound / math.sqrt(3), rel=0.3)


def test_it_may_start_as_the_inner_network_does() -> None:
    model = Hyper(Siren(2, 40), SetEncoder(16, 2), hidden_features=20, init="inner")
    network = network_of(model)
    points = model.inner.coordinates.grid(32, 32)
    with torch.no_grad():
        for head in network.heads.values():
            head.get_parameter("4.weight").zero_()
        shown = network(points)
    weights = {name: network.heads[name.replace(".", "-")].get_parameter("4.bias") for name, _ in
               model.inner.build(generator=stream(0, "x")).named_parameters()}  # fmt: skip
    inner = model.inner.build(generator=stream(0, "x"))
    inner.load_state_dict({name: weights[name].view(value.shape) for name, value in inner.named_parameters()})
    torch.testing.assert_close(shown, inner(points))
    for number in range(3):
        bound = 1 / 2 if number == 0 else math.sqrt(6 / 40) / 30
        assert 0.9 * bound < float(inner.get_parameter(f"layers.{number}.weight").detach().abs().max()) <= bound


def test_one_seed_means_one_network() -> None:
    one, same, other = (network_of(FAMILY["mlp"], seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not any(torch.equal(value, other[name]) for name, value in one.items())


# --- pictures never seen


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_at_a_code_is_an_ordinary_network(name: str, tmp_path: Path) -> None:
    model = FAMILY[name]
    modelfile.save(fitted(model), tmp_path / "hyper.pixfit")
    network = modelfile.load(tmp_path / "hyper.pixfit")
    assert network.model == model
    unseen = picture(3, ROWS, COLUMNS, seed=9).data
    seen = torch.rand(ROWS, COLUMNS, generator=stream(3, "x")) < 0.5
    code = model.encode(network.weights, unseen, seen)
    one = network.shown(code, ROWS, COLUMNS)
    given = torch.cat([model.to_target(unseen).flatten(1).T, seen.flatten()[:, None].float()], dim=1)
    expected = network.module()(model.inner.coordinates.grid(ROWS, COLUMNS), given)
    expected = model.to_pixels(expected).T.reshape(3, ROWS, COLUMNS)
    torch.testing.assert_close(render.render(one), expected, rtol=1e-5, atol=1e-6)
    assert render.render(one, size=(17, 23)).shape == (3, 23, 17)
    modelfile.save(one, tmp_path / "one.pixfit")
    assert torch.equal(render.render(tmp_path / "one.pixfit"), render.render(one))


def test_many_pictures_are_encoded_as_one_by_one() -> None:
    model, network = FAMILY["conv"], fitted(FAMILY["conv"])
    many = torch.stack(PICTURES)
    masks = torch.rand(4, 1, ROWS, COLUMNS, generator=stream(3, "x")) < 0.5
    codes = model.encode(network.weights, many, masks)
    assert codes.shape == (4, 8)
    for data, mask, code in zip(many, masks, codes, strict=True):
        torch.testing.assert_close(model.encode(network.weights, data, mask), code)
    assert torch.equal(
        model.encode(network.weights, many), model.encode(network.weights, many, torch.ones(ROWS, COLUMNS).bool())
    )
    assert not torch.equal(codes, model.encode(network.weights, many))


def test_the_way_between_two_codes_is_not_that_between_two_pictures() -> None:
    """Neither in codes nor in weights: the inner network is no affine map of them."""
    model = replace(FAMILY["conv"], init="inner")
    network = fitted(model)
    weights = {name: value * (300 if name.endswith("4.weight") else 1) for name, value in network.weights.items()}
    network = replace(network, weights=weights)
    codes = model.encode(weights, torch.stack(PICTURES[:2]))
    ends = [network.shown(code, ROWS, COLUMNS) for code in codes]
    between = network.shown(codes.mean(dim=0), ROWS, COLUMNS)
    blended = {name: torch.lerp(value, ends[1].weights[name], 0.5) for name, value in ends[0].weights.items()}
    blend = torch.stack([render.render(end) for end in ends]).mean(dim=0)
    for middle in (between, replace(ends[0], weights=blended)):
        assert float((render.render(middle) - blend).square().mean().sqrt()) > 1e-3


def test_it_learns_the_pictures_and_shows_them_from_all_of_their_pixels() -> None:
    """Better than the mean of the pictures, which is the best that can be shown without a look at them."""
    model = Hyper(
        Siren(1, 16), SetEncoder(16, 2), hidden_features=16, height=ROWS, width=COLUMNS, context=None,
        latent_weight=0.0, weight_weight=0.0, init="inner",
    )  # fmt: skip
    data = [torch.rand(3, 1, 1, generator=stream(seed, "x")).expand(3, ROWS, COLUMNS) for seed in range(3)]
    data = [torch.cat([one[:, :2], 1 - one[:, 2:]], dim=1) for one in data]
    spec = pf.Spec(pf.Problem(torch.cat(data, dim=2)), model, optimiser=Adam(1e-3), budget=pf.Steps(150), seed=1)
    result = pf.fit(spec, device="cpu")
    truth = torch.stack(data)
    codes = model.encode(result.weights, truth)
    network = modelfile.Network.of(result)
    shown = torch.stack([render.render(network.shown(code, ROWS, COLUMNS)) for code in codes])
    mean = (truth.mean(dim=0) - truth).square().mean()
    assert float((shown - truth).square().mean()) < 0.2 * float(mean)


# --- settings and what does not fit


def test_without_targets_it_shows_what_it_makes_of_nothing() -> None:
    for name, model in FAMILY.items():
        result = pf.fit(spec_of(name, budget=pf.Steps(1)), device="cpu")
        assert result.estimate is not None
        nothing = model.encode(result.weights, PICTURES[0], torch.zeros(ROWS, COLUMNS, dtype=torch.bool))
        one = render.render(modelfile.Network.of(result).shown(nothing, ROWS, COLUMNS))
        torch.testing.assert_close(result.estimate, one.tile((1, 2, 2)), rtol=1e-5, atol=1e-6)


def test_threads_may_show_it_side_by_side() -> None:
    network = network_of(FAMILY["conv"])
    points = torch.rand(500, 2)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        once = network(points)
        shown = list(pool.map(lambda _: network(points), range(400)))
    assert all(torch.equal(one, once) for one in shown)


def test_wrong_settings_say_what_is_allowed() -> None:
    for made, says in (
        (lambda: Hyper(context=(5, 3)), "Hyper.context"), (lambda: Hyper(context=(-1, 3)), "Hyper.context"),
        (lambda: Hyper(init="zero"), "Hyper.init"), (lambda: Hyper(inner=3), "Hyper.inner"),  # type: ignore[arg-type]
        (lambda: Hyper(height=0), "Hyper.height"), (lambda: SetEncoder(layers=0), "SetEncoder.layers"),
        (lambda: ConvEncoder(7), "ConvEncoder.features: got 7, allowed even"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            made()
    assert Hyper(context=(10, 200)) == Hyper()


def test_what_does_not_fit_is_refused() -> None:
    network, model = fitted(FAMILY["conv"]), FAMILY["conv"]
    with pytest.raises(ValueError, match=r"pictures: got \(3, 6, 6\), allowed \(C, 5, 6\)"):
        model.encode(network.weights, torch.zeros(3, 6, 6))
    with pytest.raises(ValueError, match=r"got 1 channels, and this network was made for 3"):
        model.encode(network.weights, torch.zeros(1, ROWS, COLUMNS))
    with pytest.raises(ValueError, match=r"seen: got \(2, 2\)"):
        model.encode(network.weights, PICTURES[0], torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"code: got \(3,\) numbers, this model's codes have 8"):
        network.shown(torch.zeros(3), ROWS, COLUMNS)
    with pytest.raises(ValueError, match="not those of a Hyper"):
        FAMILY["set"].shown(network.weights, torch.zeros(8))
    with pytest.raises(ValueError, match="no mosaic of tiles of 6 x 5"):
        pf.fit(spec_of("conv", problem=pf.Problem(picture(3, 12, 13))))
