"""Variants of deep image priors against plain loops; what they are for; settings, files and stacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pixfit as pf
from pixfit import canonical, engine, modelfile, render, run
from pixfit.models import (
    VARIANTS,
    AutoencodingSequential,
    ConvDecoder,
    DeepDecoder,
    DoublyOverparameterised,
    Hourglass,
    Perturbation,
    PriorVariant,
    SelfGuided,
    Siren,
    TotalVariation,
)
from pixfit.noise import SaltAndPepper
from pixfit.operators import BoxDownsample, Inpaint
from pixfit.optim import SGD, Adam, AdamW, Backtracking, Langevin, ScheduleFreeAdamW
from pixfit.problem import stream
from pixfit.spec import AveragedOutput
from tests.conftest import picture

TINY = Hourglass(channels=(6, 6), code_channels=4, slope=0.1)
STILL = dataclasses.replace(TINY, perturbation=Perturbation(0.0))

FAMILY: list[PriorVariant] = [
    DoublyOverparameterised(TINY, rate=0.3, start=0.05),
    DoublyOverparameterised(DeepDecoder(6, 2)),
    TotalVariation(TINY, strength=0.1),
    TotalVariation(DoublyOverparameterised(ConvDecoder(5, 3, code_size=(3, 4)), rate=0.3, start=0.05), strength=0.02),
    SelfGuided(TINY, strength=0.7, draws=3),
    AutoencodingSequential(STILL, strength=0.5, every=2),
    AutoencodingSequential(TINY, every=3),
]  # fmt: skip
IDS = [f"{number}-{type(model).__name__}" for number, model in enumerate(FAMILY)]
family = pytest.mark.parametrize("model", FAMILY, ids=IDS)


def spec_of(model: Any = TINY, **changes: Any) -> pf.Spec:
    problem = pf.Problem(picture(3, 13, 10), noise=SaltAndPepper(0.2), held_out=0.1)
    options = {"optimiser": Adam(lr=0.01), "budget": pf.Steps(7), "seed": 5, "precision": "float64", **changes}
    return pf.Spec(options.pop("problem", problem), model, **options)


def built(model: PriorVariant, size: tuple[int, int] = (13, 10), channels: int = 3, **options: Any) -> nn.Module:
    return model.sized(*size).build(2, channels, generator=torch.Generator().manual_seed(0), **options)


# --- the family


def test_the_list_has_every_variant() -> None:
    assert {type(model) for model in FAMILY} == set(VARIANTS.values())
    assert all(name == kind.__name__ for name, kind in VARIANTS.items())


@family
def test_settings_survive_json(model: PriorVariant) -> None:
    for each in (model, model.sized(13, 10)):
        assert modelfile.decode(json.loads(canonical.text(each))) == each


@family
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shows_one_picture_of_the_size(model: PriorVariant, channels: int) -> None:
    sized, network = model.sized(13, 10), built(model, channels=channels)
    zero = torch.zeros(1, 1, 1)
    assert network(zero).shape == (130, channels)
    assert network(torch.randn(sized.code_shape)).shape == (130, channels)
    assert sized.size == (13, 10)
    counted = sum(p.numel() for name, p in network.named_parameters() if name not in ("plus", "minus", "inner.code"))
    if not isinstance(model, TotalVariation):
        assert model.parameters_count(out_features=channels) == sized.parameters_count(2, channels) == counted


@family
def test_reset_sets_every_number_from_the_generator(model: PriorVariant) -> None:
    network, fresh = built(model), built(model)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(float("nan"))
    network.reset_parameters(torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoublyOverparameterised(Siren()), "inner: got Siren.*allowed PicturePrior"),
        (lambda: DoublyOverparameterised(TINY, rate=0), "rate: got 0, allowed numbers above 0"),
        (lambda: DoublyOverparameterised(TINY, start=-1e-5), "start: got -1e-05"),
        (lambda: TotalVariation(TINY, strength=-1), "strength: got -1"),
        (lambda: TotalVariation(TINY, rounding=0), "rounding: got 0"),
        (lambda: SelfGuided(DeepDecoder()), "inner: got DeepDecoder.*allowed Hourglass"),
        (lambda: SelfGuided(Hourglass(code="mesh", code_channels=2)), "got 'mesh', allowed 'uniform': the code is lea"),
        (lambda: SelfGuided(TINY, draws=0), "draws: got 0"),
        (lambda: AutoencodingSequential(TINY, every=0), "every: got 0"),
        (lambda: SelfGuided(TINY).network(), r"size is None: .* use SelfGuided\(...\).sized\(height, width\)"),
        (lambda: TotalVariation(Hourglass()).sized(20, 20), "makes pictures from 33 x 33"),
        (lambda: spec_of(SelfGuided(TINY), batches=pf.Batches(4)), "SelfGuided makes the whole picture in every step"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- plain loops


class Loop:
    """A fit written out: the network inside `model`, a plain loss for each step, Adam, and nothing of the variants."""

    def __init__(self, spec: pf.Spec, inner: Hourglass | DeepDecoder) -> None:
        self.spec, self.view = spec, spec.problem.view
        channels, height, width = spec.problem.shape
        self.shape = (channels, height, width)
        self.size = inner.sized(height, width)
        self.net = self.size.build(2, channels, generator=stream(spec.seed, "weights"), dtype=torch.float64)
        self.y = self.view.measurement.double()
        self.use = torch.ones_like(self.y) if self.view.use is None else self.view.use.expand_as(self.y).double()
        self.losses: list[float] = []
        self.pictures: list[Tensor] = []

    def noise(self, step: int, features: int) -> Tensor:
        model = self.spec.model
        drawn = torch.randn(*self.shape[1:], features, generator=stream(self.spec.seed, f"perturbation/{step}"))
        return (model.perturbation.at(step) * drawn).double().permute(2, 0, 1)  # type: ignore[attr-defined]

    def data(self, shown: Tensor) -> Tensor:
        loss = ((shown - self.y).square() * self.use).sum() / self.use.sum()
        self.losses.append(loss.item())
        return loss

    def picture(self, code: Tensor) -> Tensor:
        shown: Tensor = self.net.pixels(code)  # type: ignore[operator]
        return shown.T.reshape(self.shape)

    def run(self, step_loss: Callable[[Loop, int], Tensor], more: Any = (), after: Any = None) -> None:
        adam = torch.optim.Adam([*self.net.parameters(), *more], lr=self.spec.optimiser.lr)
        for step in range(self.spec.budget.steps or 0):
            adam.zero_grad()
            step_loss(self, step).backward()
            adam.step()
            if after is not None:
                after(step)

    def same(self, result: Any, prefix: str = "inner.") -> None:
        assert result.curves["loss"].tolist() == pytest.approx(self.losses, rel=1e-5)
        for name, value in self.net.state_dict().items():
            if name != "code":
                torch.testing.assert_close(result.weights[prefix + name], value, rtol=0, atol=1e-6, msg=name)


def test_outliers_are_the_plain_loop() -> None:
    """Adam for the network, descent on the sum of squares for g and h, whose squares are beside the picture."""
    spec = spec_of(FAMILY[0])
    loop = Loop(spec, TINY)
    g, h = (torch.full(loop.shape, 0.05, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(loop: Loop, step: int) -> Tensor:
        g.grad = h.grad = None
        shown = loop.picture(loop.net.code + loop.noise(step, 4))  # type: ignore[operator]
        loop.pictures.append(shown.detach())
        return loop.data(shown + g**2 - h**2)

    def descend(step: int) -> None:
        with torch.no_grad():
            for part in (g, h):
                assert part.grad is not None
                part -= 0.3 * part.numel() * part.grad

    loop.run(loss, after=descend)
    result = pf.fit(spec)
    loop.same(result)
    torch.testing.assert_close(result.weights["plus"], g.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.weights["minus"], h.detach(), rtol=0, atol=1e-6)
    assert float((g.detach() - 0.05).abs().max()) > 0.05
    # What is shown and averaged is the picture alone.
    averaged = pf.fit(dataclasses.replace(spec, estimate=AveragedOutput(0.5))).estimate
    kept = loop.pictures[0]
    for shown in loop.pictures[1:]:
        kept = 0.5 * kept + 0.5 * shown
    assert averaged is not None
    torch.testing.assert_close(averaged.double(), kept, rtol=0, atol=1e-5)


def test_total_variation_is_the_plain_loop() -> None:
    spec = spec_of(FAMILY[2])
    loop = Loop(spec, TINY)

    def loss(loop: Loop, step: int) -> Tensor:
        shown = loop.picture(loop.net.code + loop.noise(step, 4))  # type: ignore[operator]
        total, (channels, height, width) = torch.zeros((), dtype=torch.float64), loop.shape
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    here = shown[c, row, column]
                    down = shown[c, row + 1, column] - here if row + 1 < height else 0.0
                    right = shown[c, row, column + 1] - here if column + 1 < width else 0.0
                    total = total + (down**2 + right**2 + 1e-6) ** 0.5
        return loop.data(shown) + 0.1 * total / shown.numel()

    loop.run(loss)
    loop.same(pf.fit(spec))


def test_self_guidance_is_the_plain_loop() -> None:
    spec = spec_of(FAMILY[4], start=pf.Start(pf.starts.FromPicture()))
    loop = Loop(spec, dataclasses.replace(TINY, code_channels=3))
    u = pf.starts.filled(loop.view.measurement, loop.view.use).double().requires_grad_(True)

    def loss(loop: Loop, step: int) -> Tensor:
        noise = loop.noise(step, 12)
        shown = sum(loop.picture(u + noise[4 * draw : 4 * draw + 3]) for draw in range(3)) / 3
        assert isinstance(shown, Tensor)
        return loop.data(shown) + 0.7 * (shown - u).square().mean()

    loop.run(loss, more=[u])
    result = pf.fit(spec)
    loop.same(result)
    torch.testing.assert_close(result.weights["inner.code"], u.detach(), rtol=0, atol=1e-6)


def test_autoencoding_sequence_is_the_plain_loop() -> None:
    spec = spec_of(FAMILY[5], start=pf.Start(pf.starts.FromPicture()))
    loop = Loop(spec, dataclasses.replace(STILL, code_channels=3))
    u = pf.starts.filled(loop.view.measurement, loop.view.use).double()
    latest = u

    def loss(loop: Loop, step: int) -> Tensor:
        nonlocal latest
        shown = loop.picture(u)
        latest = shown.detach()
        return loop.data(shown) + 0.5 * (shown - u).square().mean()

    def renew(step: int) -> None:
        nonlocal u
        if (step + 1) % 2 == 0:
            u = latest

    loop.run(loss, after=renew)
    result = pf.fit(spec)
    loop.same(result)
    torch.testing.assert_close(result.weights["inner.code"], u, rtol=0, atol=1e-6)


def test_a_variant_around_a_variant_has_both() -> None:
    """With total variation of strength 0 it is the fit of the outliers alone."""
    inner = DoublyOverparameterised(TINY, rate=0.3, start=0.05)
    both, alone = pf.fit(spec_of(TotalVariation(inner, strength=0.0))), pf.fit(spec_of(inner))
    assert both.curves["loss"].tolist() == pytest.approx(alone.curves["loss"].tolist(), rel=1e-9)
    assert float((both.weights["inner.plus"] - 0.05).abs().max()) > 0.05
    smooth = pf.fit(spec_of(TotalVariation(inner, strength=1.0)))
    assert not torch.equal(smooth.weights["inner.plus"], both.weights["inner.plus"])


@pytest.mark.parametrize(
    "optimiser",
    [AdamW(lr=0.01, weight_decay=0.5), ScheduleFreeAdamW(lr=0.01), SGD(lr=0.1)],
    ids=lambda o: type(o).__name__,
)
def test_no_optimiser_moves_what_has_its_own_descent(optimiser: Any) -> None:
    """A rate next to nothing leaves the outliers where they are, whatever the optimiser decays or averages."""
    model = DoublyOverparameterised(TINY, rate=1e-12, start=0.05)
    result = pf.fit(spec_of(model, optimiser=optimiser))
    assert float((result.weights["plus"] - 0.05).abs().max()) < 1e-9
    name = "inner.colours.weight"
    assert not torch.equal(result.weights[name], run.first_weights(spec_of(model))[name])


# --- what they are for


def waves(height: int, width: int) -> Tensor:
    """A smooth picture (3, H, W) without noise."""
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 4, width)[None]
    channels = [torch.sin((1 + c) * rows + c) * torch.cos((2 - 0.5 * c) * columns) for c in range(3)]
    return 0.5 + 0.4 * torch.stack(channels)


def test_impulse_noise_is_taken_out_of_the_picture() -> None:
    """A third of the samples are black or white; plain descent follows them, the outliers take them up."""
    clean = waves(32, 32)
    problem = pf.Problem(pf.Image(clean), noise=SaltAndPepper(0.33), seed=3)
    model = Hourglass(channels=(12, 12, 12), code_channels=8)
    found = {}
    for name, each in {"plain": model, "outliers": DoublyOverparameterised(model)}.items():
        spec = spec_of(each, problem=problem, budget=pf.Steps(250), precision="float32", estimate=AveragedOutput(0.95))
        found[name] = pf.fit(spec)
    assert found["plain"].psnr is not None
    assert found["outliers"].psnr is not None
    assert found["outliers"].psnr > found["plain"].psnr + 3
    weights = found["outliers"].weights
    outliers = weights["plus"].square() - weights["minus"].square()
    struck = (problem.view.measurement - clean).abs() > 0.2
    assert float((outliers[~struck].abs() < 0.02).float().mean()) > 0.95
    assert float((outliers - (problem.view.measurement - clean))[struck].abs().median()) < 0.1


def test_total_variation_makes_the_picture_smoother() -> None:
    def variation(strength: float) -> float:
        shown = pf.fit(spec_of(TotalVariation(TINY, strength=strength), budget=pf.Steps(60))).estimate
        assert shown is not None
        return float((shown[:, 1:] - shown[:, :-1]).abs().mean() + (shown[:, :, 1:] - shown[:, :, :-1]).abs().mean())

    levels = [variation(strength) for strength in (0.0, 0.1, 1.0)]
    assert levels == sorted(levels, reverse=True)


# --- in stacks, files, and after an interruption


@family
def test_fits_of_one_stack_are_those_fits_alone(model: PriorVariant) -> None:
    specs = [spec_of(model, seed=seed, estimate=AveragedOutput(0.8, every=2)) for seed in (1, 2)]
    together = list(engine.fit([run._job(spec, {}, ()) for spec in specs]))[-1].outcomes
    assert together is not None
    for outcome, spec in zip(together, specs, strict=True):
        alone = pf.fit(spec)
        torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-6, atol=0)
        for name, value in alone.weights.items():
            torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-6)


@family
def test_a_fit_that_goes_on_ends_bit_identical(model: PriorVariant) -> None:
    job = run._job(spec_of(model, precision="float32"), {}, ())
    states = {state.step: state for state in engine.fit([job], save_every=-1.0)}
    whole = states[7].outcomes
    assert whole is not None
    for step in (1, 4):
        saved = dataclasses.replace(states[step], scalars=json.loads(json.dumps(states[step].scalars)))
        again = list(engine.fit([job], state=saved))[-1].outcomes
        assert again is not None
        assert torch.equal(again[0].losses, whole[0].losses)
        assert all(torch.equal(again[0].weights[name], value) for name, value in whole[0].weights.items())


# --- the optimisers for them


def test_langevin_wanders_by_its_seed_alone() -> None:
    options = {"optimiser": Langevin(), "precision": "float32"}
    first, again, other = (pf.fit(spec_of(seed=seed, **options)) for seed in (5, 5, 6))
    assert torch.equal(first.curves["loss"], again.curves["loss"])
    assert not torch.equal(first.curves["loss"], other.curves["loss"])
    still = spec_of(optimiser=Langevin(noise=0.0, weight_decay=0.0), precision="float32")
    plain = dataclasses.replace(still, optimiser=Adam(lr=0.01))
    assert torch.equal(pf.fit(still).curves["loss"], pf.fit(plain).curves["loss"])
    assert not torch.equal(pf.fit(still).curves["loss"], first.curves["loss"])


def test_backtracking_goes_back_in_a_fit_and_on_after_an_interruption() -> None:
    """At this rate the loss jumps again and again."""
    spec = spec_of(
        FAMILY[0], optimiser=Backtracking(lr=1.0, jump=1.1, every=2), budget=pf.Steps(40), precision="float32"
    )
    jobs = [run._job(dataclasses.replace(spec, seed=seed), {}, ()) for seed in (1, 2)]
    states = {state.step: state for state in engine.fit(jobs, save_every=-1.0)}
    end = states[40]
    rows = end.scalars["optimiser"]["rows"]
    assert all(row["mark"]["returns"] > 0 and row["count"] < 40 for row in rows)
    for step in (9, 30):
        saved = dataclasses.replace(states[step], scalars=json.loads(json.dumps(states[step].scalars)))
        again = list(engine.fit(jobs, state=type(saved).join(saved.split())))[-1]
        assert again.scalars["optimiser"] == end.scalars["optimiser"]
        assert all(torch.equal(again.tensors[name], value) for name, value in end.tensors.items())


@family
def test_model_files_hold_them(model: PriorVariant, tmp_path: Path) -> None:
    result = pf.fit(spec_of(model, precision="float32", budget=pf.Steps(3)))
    modelfile.save(result, tmp_path / "model.safetensors")
    network = modelfile.load(tmp_path / "model.safetensors")
    assert network.model == model
    assert result.estimate is not None
    assert torch.equal(render.render(network), result.estimate)


def test_a_fit_of_the_inner_prior_goes_on_from_a_variant() -> None:
    parent = spec_of(FAMILY[0], precision="float32")
    child = spec_of(TINY, precision="float32", start=pf.Start(weights=parent), budget=pf.Steps(0))
    end, start = pf.fit([parent, child])
    assert all(torch.equal(value, end.weights[f"inner.{name}"]) for name, value in start.weights.items())


def test_outliers_need_a_sample_of_the_picture_at_each_measured_one() -> None:
    masked = pf.Problem(picture(3, 12, 10), Inpaint(torch.rand(12, 10) < 0.7))
    assert pf.fit(spec_of(FAMILY[0], problem=masked)).status is pf.Status.DONE
    small = pf.Problem(picture(3, 12, 10), BoxDownsample(2))
    with pytest.raises(ValueError, match=r"an outlier for each sample of the .*, \(3, 12, 10\), .* is \(3, 6, 5\)"):
        pf.fit(spec_of(FAMILY[0], problem=small))


def test_the_code_starts_from_what_was_measured() -> None:
    spec = spec_of(FAMILY[4], start=pf.Start(pf.starts.FromPicture()), precision="float32")
    first = run.first_weights(spec)
    view = spec.problem.view
    assert view.use is not None
    known = view.use.expand_as(view.measurement)
    assert torch.equal(first["inner.code"][known], view.measurement[known])
    assert set(first) == set(run.first_weights(dataclasses.replace(spec, start=pf.Start())))
