"""The engine against a plain loop: gradients, the first hundred steps, stacks, masks, operators and tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixfit import engine
from pixfit.engine import Job, Moment, Outcome
from pixfit.losses import L1, LOSSES, MSE, Huber, Loss
from pixfit.models import (
    MODELS,
    Coordinates,
    Experts,
    Finer,
    Fourier,
    Gabor,
    Gauss,
    Grid,
    Mlp,
    Model,
    Positional,
    Raw,
    Siren,
    Wire,
)
from pixfit.operators import BoxDownsample, Inpaint
from pixfit.optim import SGD, Adam, AdamW, Muon, Optimiser, ScheduleFreeAdamW
from pixfit.problem import GaussianNoise, Problem, stream
from pixfit.schedules import Constant, Cosine, Linear, Plateau, Schedule
from pixfit.spec import Batches, BestHeldOut, Estimate, Last, MovingAverage, Spec
from pixfit.stack import Samples, Stack
from pixfit.starts import Weights
from pixfit.stopping import Budget, Steps
from tests.conftest import picture
from tests.reference import train

FAMILY: list[Model] = [
    Siren(1, 12),
    Siren(0, 12, output="sigmoid", target_range="unit", first_omega_0=6.0),
    Finer(1, 12),
    Wire(1, 8),
    Gauss(1, 12, scale=3.0),
    Mlp(1, 12, encoding=Raw(), activation="gelu"),
    Mlp(1, 12, encoding=Positional(4), norm="rms", activation="silu"),
    Mlp(2, 12, encoding=Fourier(16, trainable=True), norm="layer", norm_position="pre", skip=True),
    Mlp(1, 12, encoding=Grid(((4, 5, 4), (8, 9, 2)), entries=64, interpolation="cubic", init=0.5)),
    Mlp(1, 12, encoding=Gabor(16), norm="layer", experts=Experts(2, "layer", 8)),
]
family = pytest.mark.parametrize("model", FAMILY, ids=str)


def job(spec: Spec, mask: Weights | None = None, keep: tuple[int, ...] = ()) -> Job:
    network = spec.model.build(2, spec.problem.shape[0], generator=stream(spec.seed, "weights"))
    return Job(spec, spec.problem.view, network.state_dict(), mask, keep)


def run(jobs: list[Job], **options: Any) -> tuple[Outcome, ...]:
    outcomes = list(engine.fit(jobs, **options))[-1].outcomes
    assert outcomes is not None
    return outcomes


def plain(spec: Spec) -> tuple[nn.Module, Tensor, Tensor]:
    """The network of a spec with its coordinates (N, 2), and the measurement in its target range (C', H', W')."""
    dtype = torch.float64 if spec.precision == "float64" else torch.float32
    network = spec.model.build(2, spec.problem.shape[0], generator=stream(spec.seed, "weights"), dtype=dtype)
    coordinates = spec.model.coordinates.grid(*spec.problem.shape[1:], dtype=dtype)
    return network, coordinates, spec.model.to_target(spec.problem.view.measurement.to(dtype))


def pixels(measurement: Tensor) -> Tensor:
    """(C, H, W) as (H·W, C)."""
    return measurement.flatten(1).T.contiguous()


def gradient(spec: Spec, mask: Weights | None = None) -> dict[str, Tensor]:
    """The engine's gradient at the start: what one step of gradient descent at rate 1 takes away."""
    start = job(replace(spec, optimiser=SGD(lr=1.0), budget=Steps(1)), mask)
    (outcome,) = run([start])
    return {name: start.weights[name].to(value) - value for name, value in outcome.weights.items()}


def assert_gradients(ours: Mapping[str, Tensor], network: nn.Module, rtol: float = 1e-9) -> None:
    for name, parameter in network.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        atol = rtol * max(float(expected.abs().max()), 1e-6)
        torch.testing.assert_close(
            ours[name].to(expected), expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- one gradient


def test_the_list_has_every_model() -> None:
    assert {type(model).__name__ for model in FAMILY} == set(MODELS)


@family
@pytest.mark.parametrize("batch", [None, 17])
def test_one_gradient_of_every_model(model: Model, batch: int | None) -> None:
    spec = Spec(Problem(picture(3, 8, 9)), model, batches=Batches(batch), precision="float64", seed=3)
    network, coordinates, targets = plain(spec)
    index = torch.arange(72) if batch is None else torch.randperm(72, generator=stream(3, "batches/0"))[:batch]
    nn.functional.mse_loss(network(coordinates[index]), pixels(targets)[index]).backward()
    assert_gradients(gradient(spec), network)


@pytest.mark.parametrize("loss", [MSE(), L1(), Huber(0.3)], ids=str)
def test_one_gradient_of_every_loss(loss: Loss) -> None:
    assert {MSE, L1, Huber} == set(LOSSES.values())
    spec = Spec(Problem(picture(3, 8, 9)), Siren(1, 12), loss=loss, precision="float64")
    network, coordinates, targets = plain(spec)
    loss(network(coordinates), pixels(targets)).mean().backward()
    assert_gradients(gradient(spec), network)


def test_one_gradient_under_the_fast_kernel() -> None:
    """Single precision, wide enough for the switch of matrix products where the machine has one."""
    spec = Spec(Problem(picture(3, 32, 32)), Siren(2, 96))
    network, coordinates, targets = plain(replace(spec, precision="float64"))
    nn.functional.mse_loss(network(coordinates), pixels(targets)).backward()
    assert_gradients(gradient(spec), network, rtol=2e-4)


def test_an_epoch_sees_every_pixel_once() -> None:
    spec = Spec(Problem(picture(3, 8, 9)), Siren(1, 12))
    views, seeds = [spec.problem.view] * 2, [4, 5]
    samples = Samples(spec.model, views, seeds, 10, dtype=torch.float32, device=torch.device("cpu"))
    assert samples.per_epoch == 8
    everything = torch.cat([samples.at(samples.places[0]), spec.model.to_target(samples.pixels[0])], dim=1).unique(
        dim=0
    )
    epochs = []
    for epoch in range(2):
        batches = [samples.batch(8 * epoch + step) for step in range(8)]
        assert [batch[1].shape[1] for batch in batches] == [10] * 7 + [2]
        for fit in range(2):
            seen = torch.cat([torch.cat([batch[0][fit], batch[1][fit]], dim=1) for batch in batches])
            assert torch.equal(seen.unique(dim=0), everything)
            epochs.append(seen)
    assert not any(torch.equal(a, b) for i, a in enumerate(epochs) for b in epochs[:i])


@pytest.mark.parametrize("fits", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_add_up_to_the_whole(fits: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(picture(3, 8, 9), Inpaint(channel_mask(8, 9))) if masked else Problem(picture(3, 8, 9))
    spec = Spec(problem, Siren(1, 12), precision="float64", budget=Steps(1), optimiser=SGD(lr=1.0))
    jobs = [job(replace(spec, seed=seed)) for seed in range(fits)]
    whole = run(jobs)
    monkeypatch.setattr(Stack, "tile", 7)
    tiled = run(jobs)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(b.losses, a.losses, rtol=1e-6, atol=0)
        assert b.psnr_measured == pytest.approx(a.psnr_measured, abs=1e-9)
        for name, value in a.weights.items():
            torch.testing.assert_close(b.weights[name], value, rtol=0, atol=1e-12)


# --- the first hundred steps


def prefit(**changes: Any) -> Spec:
    """The pre-fit study's protocol on its smallest network."""
    model = Siren(2, 32, coordinates=Coordinates(alignment="corner", order="row_col"))
    optimiser = Adam(lr=1e-4, schedule=Plateau(decay=0.5, patience=500))
    spec = Spec(Problem(picture(3, 32, 32)), model, optimiser=optimiser, budget=Steps(101), seed=11)
    return replace(spec, **changes)


def published(spec: Spec) -> list[float]:
    """The same fit by PyTorch's optimiser and scheduler, written as its publication has it."""
    network, _, targets = plain(spec)
    axis = torch.linspace(-1, 1, 32, dtype=targets.dtype)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.optimiser.lr)
    schedule = spec.optimiser.schedule
    assert isinstance(schedule, Plateau)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=schedule.decay, patience=schedule.patience, threshold=schedule.threshold
    )
    return train(network, grid, pixels(targets), optimiser, spec.budget.steps or 0, scheduler=scheduler)


@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-5), ("float64", 2e-7)])
def test_the_prefit_protocol_is_the_plain_loop(precision: Any, rel: float) -> None:
    """In float64 the agreement is that of the curve, which is kept in float32."""
    spec = prefit(precision=precision)
    (outcome,) = run([job(spec)])
    ours, theirs = outcome.losses.tolist(), published(spec)
    assert len(ours) == len(theirs) == 101
    assert ours[0] == pytest.approx(theirs[0], rel=1.2e-7)
    assert ours == pytest.approx(theirs, rel=rel)
    assert ours[100] < 0.5 * ours[0]


def test_double_precision_weights_are_the_plain_loops() -> None:
    spec = prefit(precision="float64", budget=Steps(60))
    network, coordinates, targets = plain(spec)
    train(network, coordinates, pixels(targets), torch.optim.Adam(network.parameters(), lr=1e-4), 60)
    (outcome,) = run([job(spec)])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-10)


def test_bfloat16_is_close_and_keeps_its_weights_in_float32() -> None:
    (exact,), (rounded,) = run([job(prefit())]), run([job(prefit(precision="bfloat16"))])
    assert rounded.losses.tolist() == pytest.approx(exact.losses.tolist(), rel=0.05)
    assert not torch.equal(rounded.losses, exact.losses)
    assert all(value.dtype == torch.float32 for value in rounded.weights.values())


def test_a_plateau_that_bites_is_pytorchs() -> None:
    schedule = Plateau(decay=0.3, patience=2, threshold=0.05)
    spec = prefit(precision="float64", optimiser=Adam(lr=1e-3, schedule=schedule), budget=Steps(80))
    (outcome,) = run([job(spec)])
    (constant,) = run([job(replace(spec, optimiser=Adam(lr=1e-3)))])
    assert outcome.losses.tolist() == pytest.approx(published(spec), rel=2e-7)
    assert not torch.allclose(outcome.losses, constant.losses)


@pytest.mark.parametrize("schedule", [Constant, Cosine, Linear, Plateau])
def test_every_schedule_warms_up(schedule: type[Schedule]) -> None:
    """Over half of 20 steps the rate of plain descent rises from 0 by a tenth a step."""
    spec = prefit(precision="float64", optimiser=SGD(lr=1e-3, schedule=schedule(warmup=0.5)), budget=Steps(20))
    (outcome,) = run([job(spec, keep=(0, 1, 2, 3))])
    moved = [
        torch.cat([(outcome.kept[step + 1][n] - outcome.kept[step][n]).flatten() for n in outcome.weights]).norm()
        for step in range(3)
    ]
    assert moved[0] == 0
    assert float(moved[2] / moved[1]) == pytest.approx(2, rel=0.1)


def test_clipping_is_pytorchs() -> None:
    spec = prefit(precision="float64", optimiser=SGD(lr=1e-2, clip_norm=0.1), budget=Steps(20))
    network, coordinates, targets = plain(spec)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.mse_loss(network(coordinates), pixels(targets)).backward()
        assert float(nn.utils.clip_grad_norm_(network.parameters(), 0.1)) > 0.1
        optimiser.step()
    (outcome,) = run([job(spec)])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-9)


# --- stacks


STACKED: list[Model] = [
    Siren(1, 16),
    Mlp(1, 16, encoding=Fourier(16), norm="layer", experts=Experts(2)),
    Finer(1, 16),
    Wire(1, 8),
]


def same(a: Outcome, b: Outcome, rel: float = 1e-4) -> None:
    """Two outcomes of one fit, to rounding."""
    assert (a.verdict, a.reason, a.steps, a.epochs) == (b.verdict, b.reason, b.steps, b.epochs)
    assert a.losses.tolist() == pytest.approx(b.losses.tolist(), rel=rel)
    assert set(a.kept) == set(b.kept)
    for ours, theirs in [(a.weights, b.weights), *((a.kept[step], b.kept[step]) for step in a.kept)]:
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=rel, atol=rel * float(theirs[name].abs().max()))


@pytest.mark.parametrize("model", STACKED, ids=str)
@pytest.mark.parametrize("batch", [None, 50])
def test_a_stack_is_its_fits_alone(model: Model, batch: int | None) -> None:
    """Three pictures, seeds and rates in one stack, against each alone."""
    jobs = []
    for fit, lr in enumerate((1e-3, 3e-4, 2e-3)):
        problem = Problem(picture(3, 12, 10, seed=fit))
        spec = Spec(
            problem, model, optimiser=Adam(lr=lr, schedule=Cosine()), batches=Batches(batch), budget=Steps(30), seed=fit
        )
        jobs.append(job(spec, keep=(0, 7)))
    for together, alone in zip(run(jobs), (run([j])[0] for j in jobs), strict=True):
        same(together, alone)
        assert together.psnr_measured == pytest.approx(alone.psnr_measured, abs=1e-2)


OPTIMISERS: list[Optimiser] = [
    SGD(lr=0.01, momentum=0.9),
    Adam(lr=1e-3),
    AdamW(lr=1e-3),
    ScheduleFreeAdamW(lr=3e-3),
    Muon(lr=0.01, adam_lr=1e-3),
    Adam(lr=1e-3, clip_norm=0.05),
    Adam(lr=1e-3, schedule=Plateau(patience=1, threshold=0.05)),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
def test_a_fit_does_not_depend_on_its_mates_rate(optimiser: Optimiser) -> None:
    """Fits that `stack_key` puts together must each go at their own rate."""
    model = Mlp(2, 16, encoding=Fourier(16), norm="layer")
    specs = [
        Spec(Problem(picture(3, 8, 8)), model, optimiser=replace(optimiser, lr=lr * optimiser.lr), budget=Steps(20))
        for lr in (1.0, 0.25)
    ]
    jobs = [job(replace(spec, precision="float64")) for spec in specs]
    one_stack = len({engine.stack_key(j) for j in jobs}) == 1
    assert one_stack or isinstance(optimiser, Muon)  # Muon has a second rate, so fits may have to go alone
    if one_stack:
        rel = 2e-2 if isinstance(optimiser, Muon) else 1e-6  # Muon's orthogonal steps are in bfloat16
        for together, alone in zip(run(jobs), (run([j])[0] for j in jobs), strict=True):
            same(together, alone, rel=rel)


def test_fits_of_one_stack_end_at_their_own_limits() -> None:
    limits = [Steps(5), Steps(40), Budget(epochs=8), Steps(0)]
    jobs = []
    for seed, budget in enumerate(limits):
        spec = Spec(Problem(picture(3, 8, 8)), Siren(1, 16), optimiser=Adam(lr=1e-3, schedule=Cosine()), budget=budget)
        jobs.append(job(replace(spec, batches=Batches(32), seed=seed), keep=(0, 10, 30)))
    together = run(jobs)
    assert [outcome.steps for outcome in together] == [5, 40, 16, 0]
    assert [sorted(outcome.kept) for outcome in together] == [[0], [0, 10, 30], [0, 10], [0]]
    for outcome, alone in zip(together, (run([j])[0] for j in jobs), strict=True):
        same(outcome, alone)


def test_a_mate_that_diverges_harms_nobody() -> None:
    specs = [
        Spec(Problem(picture(3, 8, 8)), Gauss(1, 16, scale=3.0), optimiser=SGD(lr=lr), budget=Steps(60))
        for lr in (0.1, 1e5)
    ]
    jobs = [job(spec) for spec in specs]
    calm, wild = run(jobs)
    same(calm, run([jobs[0]])[0])
    assert wild.verdict in ("diverged", "done", "collapsed")
    assert calm.verdict == "done"


# --- masks


@pytest.mark.parametrize("fits", [1, 2])
@pytest.mark.parametrize(
    "optimiser", [AdamW(lr=1e-2), Muon(weight_decay=0.1), ScheduleFreeAdamW(), SGD(lr=0.1, momentum=0.9)], ids=str
)
@pytest.mark.parametrize("estimate", [Last(), MovingAverage(0.5)], ids=str)
def test_a_mask_keeps_its_zeros(fits: int, optimiser: Optimiser, estimate: Estimate) -> None:
    if isinstance(optimiser, ScheduleFreeAdamW):
        estimate = Last()  # it averages by itself, so a moving average is refused
    jobs = []
    for seed in range(fits):
        spec = Spec(
            Problem(picture(3, 8, 8)), Siren(2, 12), optimiser=optimiser, budget=Steps(12), estimate=estimate, seed=seed
        )
        bare = job(spec)
        draw = torch.Generator().manual_seed(seed)
        mask = {
            n: (torch.rand(v.shape, generator=draw) < 0.5).float() for n, v in bare.weights.items() if "weight" in n
        }
        jobs.append(replace(bare, mask=Weights(mask), keep=(0, 5)))
    for one, outcome in zip(jobs, run(jobs), strict=True):
        assert one.mask is not None
        for weights in (outcome.weights, outcome.kept[0], outcome.kept[5]):
            for name, mask in one.mask.tensors.items():
                assert not weights[name][mask == 0].any()
                assert bool((weights[name][mask == 1] != 0).all())
        moved = [
            not torch.equal(outcome.weights[n], one.weights[n]) for n in outcome.weights if n not in one.mask.tensors
        ]
        assert all(moved)


def test_a_masked_gradient_is_that_of_the_smaller_network() -> None:
    spec = Spec(Problem(picture(3, 8, 9)), Siren(1, 12), precision="float64")
    mask = {"layers.1.weight": (torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()}
    network, coordinates, targets = plain(spec)
    weight = network.get_parameter("layers.1.weight")
    with torch.no_grad():
        weight.mul_(mask["layers.1.weight"])
    nn.functional.mse_loss(network(coordinates), pixels(targets)).backward()
    assert weight.grad is not None
    kept = mask["layers.1.weight"] == 1
    ours = gradient(spec, Weights(mask))
    torch.testing.assert_close(ours["layers.1.weight"][kept], weight.grad[kept], rtol=1e-9, atol=1e-12)
    del ours["layers.1.weight"]
    for name, value in ours.items():
        torch.testing.assert_close(value, network.get_parameter(name).grad, rtol=1e-8, atol=1e-12)


def test_the_start_is_cloned() -> None:
    one = job(Spec(Problem(picture(3, 8, 8)), Siren(1, 12), optimiser=Adam(lr=1e-2), budget=Steps(5)))
    before = {name: value.clone() for name, value in one.weights.items()}
    (first,) = run([one])
    (second,) = run([one])
    for name, value in before.items():
        assert torch.equal(one.weights[name], value)
        assert torch.equal(first.weights[name], second.weights[name])


# --- operators


def channel_mask(height: int, width: int) -> Tensor:
    mask = torch.rand(3, height, width, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[:, 0, 0] = False  # a pixel without any measured channel
    return mask


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_picture_that_is_measured_in_blocks(held_out: float) -> None:
    problem = Problem(picture(3, 8, 12), BoxDownsample(2), noise=GaussianNoise(0.05), held_out=held_out)
    spec = Spec(problem, Siren(1, 12), precision="float64", optimiser=Adam(lr=1e-3), budget=Steps(20))
    network, coordinates, targets = plain(spec)
    use = problem.view.use
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=1e-3), []
    for step in range(20):
        optimiser.zero_grad()
        output = network(coordinates).T.reshape(3, 8, 12)
        error = (nn.functional.avg_pool2d(output[None], 2)[0] - targets).square()
        loss = error.mean() if use is None else error[use.expand_as(error)].mean()
        loss.backward()
        if step == 0:
            assert_gradients(gradient(spec), network)
        optimiser.step()
        losses.append(loss.item())
    (outcome,) = run([job(spec)])
    assert outcome.losses.tolist() == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_mask_for_each_channel(held_out: float) -> None:
    problem = Problem(picture(3, 8, 12), Inpaint(channel_mask(8, 12)), held_out=held_out, noise=GaussianNoise(0.1))
    spec = Spec(problem, Siren(1, 12), precision="float64")
    network, coordinates, targets = plain(spec)
    use = problem.view.use
    assert use is not None
    output = network(coordinates).T.reshape(3, 8, 12)
    loss = nn.functional.mse_loss(output[use], targets[use])
    loss.backward()
    assert_gradients(gradient(spec), network)
    (outcome,) = run([job(replace(spec, budget=Steps(1)))])
    assert float(outcome.losses[0]) == pytest.approx(loss.item(), rel=1e-6)


def test_batches_under_a_mask_draw_known_pixels_alone() -> None:
    mask = channel_mask(8, 12)[0]
    spec = Spec(
        Problem(picture(3, 8, 12), Inpaint(mask)), Siren(1, 12), batches=Batches(9), precision="float64", seed=4
    )
    network, coordinates, targets = plain(spec)
    known = mask.flatten().nonzero()[:, 0]
    index = known[torch.randperm(len(known), generator=stream(4, "batches/0"))[:9]]
    nn.functional.mse_loss(network(coordinates[index]), pixels(targets)[index]).backward()
    assert_gradients(gradient(spec), network)


def test_what_is_not_measured_cannot_matter() -> None:
    """Two pictures that differ behind the mask, and in held-out pixels, give the same fit bit for bit."""
    mask = channel_mask(8, 12)[0]
    first, other = picture(3, 8, 12), picture(3, 8, 12, seed=1)
    mixed = replace(first, data=torch.where(mask, first.data, other.data))
    outcomes = [run([job(Spec(Problem(i, Inpaint(mask)), Siren(1, 12), budget=Steps(10)))])[0] for i in (first, mixed)]
    assert not torch.equal(first.data, mixed.data)
    assert torch.equal(outcomes[0].losses, outcomes[1].losses)
    held_out = Problem(first, held_out=0.3).view.held_out
    assert held_out is not None
    mixed = replace(first, data=torch.where(held_out, other.data, first.data))
    outcomes = [run([job(Spec(Problem(i, held_out=0.3), Siren(1, 12), budget=Steps(10)))])[0] for i in (first, mixed)]
    assert torch.equal(outcomes[0].losses, outcomes[1].losses)


# --- estimates


def test_the_moving_average() -> None:
    spec = prefit(precision="float64", optimiser=Adam(lr=1e-3), budget=Steps(15), estimate=MovingAverage(0.8))
    network, coordinates, targets = plain(spec)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    for _ in range(15):
        train(network, coordinates, pixels(targets), optimiser, 1)
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in network.state_dict().items()}
    (outcome,) = run([job(spec)])
    for name, value in average.items():
        torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-10)


PROBLEMS = {
    "identity": lambda: Problem(picture(3, 8, 12), noise=GaussianNoise(0.2), held_out=0.3),
    "mask": lambda: Problem(picture(3, 8, 12), Inpaint(channel_mask(8, 12)[0]), GaussianNoise(0.2), held_out=0.3),
    "channels": lambda: Problem(picture(3, 8, 12), Inpaint(channel_mask(8, 12)), GaussianNoise(0.2), held_out=0.3),
    "blocks": lambda: Problem(picture(3, 8, 12), BoxDownsample(2), GaussianNoise(0.2), held_out=0.3),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_best_by_held_out_pixels(name: str) -> None:
    """The answer is the step, of those looked at, whose measured held-out samples are met best."""
    model = Siren(1, 32, first_omega_0=3.0, hidden_omega_0=3.0)
    spec = Spec(PROBLEMS[name](), model, optimiser=Adam(lr=1e-2), budget=Steps(60), estimate=BestHeldOut(5))
    spec = replace(spec, precision="float64")
    looked = tuple(range(0, 61, 5))
    (outcome,) = run([job(spec, keep=looked)])
    network, coordinates, _ = plain(spec)
    view = spec.problem.view
    assert view.held_out is not None
    known = view.operator.known(view.shape)
    wanted = view.held_out.expand_as(view.measurement)
    if known is not None:
        wanted = wanted & known
    errors = {}
    for step in looked:
        network.load_state_dict({name: value.double() for name, value in outcome.kept[step].items()})
        with torch.no_grad():
            output = spec.model.to_pixels(network(coordinates)).T.reshape(view.shape).clamp(0, 1)
        errors[step] = float((view.operator.forward(output) - view.measurement)[wanted].square().mean())
    best = min(errors, key=lambda step: errors[step])
    assert best not in (0, 60)  # else this test would show nothing
    for key, value in outcome.weights.items():
        assert torch.equal(value, outcome.kept[best][key])


# --- going on, and looking


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": Adam(lr=1e-3, schedule=Plateau(patience=1, threshold=0.05))},
        {"optimiser": Muon(schedule=Cosine(warmup=0.1)), "batches": Batches(50)},
        {"optimiser": ScheduleFreeAdamW(warmup_steps=5)},
        {"optimiser": AdamW(lr=1e-2), "estimate": BestHeldOut(7), "batches": Batches(33)},
    ],
    ids=["plateau", "muon", "schedule-free", "held-out"],
)
@pytest.mark.parametrize("fits", [1, 2])
def test_a_fit_that_goes_on_ends_where_it_would_have(changes: dict[str, Any], fits: int) -> None:
    problem = Problem(picture(3, 12, 10), noise=GaussianNoise(0.1), held_out=0.2)
    spec = Spec(problem, Siren(2, 12), budget=Steps(50), **changes)
    jobs = [job(replace(spec, seed=seed), keep=(3, 45)) for seed in range(fits)]
    whole = run(jobs)
    states = {}
    for state in engine.fit(jobs, save_every=-1.0):
        states[state.step] = replace(state, scalars=json.loads(json.dumps(state.scalars)))
    for step in (1, 32, 40):
        for ours, theirs in zip(run(jobs, state=states[step]), whole, strict=True):
            assert (ours.verdict, ours.steps, sorted(ours.kept)) == (theirs.verdict, theirs.steps, sorted(theirs.kept))
            assert torch.equal(ours.losses, theirs.losses)
            for name, value in theirs.weights.items():
                assert torch.equal(ours.weights[name], value)
                assert all(torch.equal(ours.kept[at][name], theirs.kept[at][name]) for at in theirs.kept)


def test_a_state_is_a_value() -> None:
    """What was yielded does not change while the fit goes on."""
    one = job(Spec(Problem(picture(3, 8, 8)), Siren(1, 12), budget=Steps(10), optimiser=ScheduleFreeAdamW()))
    pairs = [
        (state, json.dumps(state.scalars), {name: value.clone() for name, value in state.tensors.items()})
        for state in engine.fit([one], save_every=-1.0)
    ]
    assert len(pairs) == 11
    for state, scalars, tensors in pairs:
        assert json.dumps(state.scalars) == scalars
        for name, value in tensors.items():
            torch.testing.assert_close(state.tensors[name], value, rtol=0, atol=0, equal_nan=True)


def test_looking_changes_nothing() -> None:
    class Curious:
        looks = 0

        def tick(self, step: int, fraction: float, losses: Any) -> None:
            torch.rand(3)

        def look(self, moment: Moment) -> None:
            moment.predict(torch.arange(20)).add_(1)
            self.looks += 1

    spec = Spec(
        Problem(picture(3, 8, 8)), Siren(1, 12), optimiser=ScheduleFreeAdamW(), budget=Steps(20), batches=Batches(20)
    )
    watch = Curious()
    (watched,), (quiet,) = run([job(spec)], watch=watch, every=1), run([job(spec)])
    assert watch.looks == 21
    for name, value in quiet.weights.items():
        assert torch.equal(watched.weights[name], value)
