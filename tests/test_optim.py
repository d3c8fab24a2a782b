"""Optimisers against PyTorch's and the package's own, on rows that must not notice each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import schedulefree
import torch
from torch import Tensor

from pixfit.models import Descent
from pixfit.optim import (
    OPTIMISERS,
    SGD,
    Adam,
    AdamW,
    Backtracking,
    Entry,
    Langevin,
    Muon,
    Optimiser,
    ScheduleFreeAdamW,
    Stepper,
    clip_rows,
    with_descents,
)
from pixfit.schedules import Cosine

STEPS = 50
FAMILY: list[Optimiser] = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.8, nesterov=True),
    Adam(),
    Adam(betas=(0.8, 0.95), eps=1e-6),
    AdamW(weight_decay=0.1),
    Langevin(weight_decay=0.1),
    Backtracking(weight_decay=0.1, every=5),
    ScheduleFreeAdamW(),
    ScheduleFreeAdamW(betas=(0.95, 0.99), weight_decay=0.1, warmup_steps=10),
    Muon(),
    Muon(momentum=0.9, adam_lr=1e-3, weight_decay=0.1),
]
family = pytest.mark.parametrize("settings", FAMILY, ids=str)

SHAPES = {
    "layers.0.weight": (6, 2), "layers.0.bias": (6,), "layers.1.weight": (6, 6), "layers.1.bias": (6,),
    "layers.2.weight": (12, 6), "layers.2.bias": (12,), "layers.3.weight": (8, 12), "layers.3.bias": (8,),
    "layers.4.weight": (3, 8), "layers.4.bias": (3,),
}  # fmt: skip


def layout() -> list[Entry]:
    entries, at = [], 0
    for name, shape in SHAPES.items():
        size = torch.Size(shape).numel()
        entries.append(Entry(name, shape, at, at + size))
        at += size
    return entries


def rows(fits: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(F, P) numbers; row f is the same however many rows there are."""
    size = layout()[-1].stop
    drawn = [
        torch.randn(size, generator=torch.Generator().manual_seed(100 * seed + f), dtype=dtype) for f in range(fits)
    ]
    return torch.stack(drawn)


def gradient(weights: Tensor, step: int) -> Tensor:
    """Of a bowl with very different curvatures, with a push that changes with the step."""
    curvature = torch.logspace(-2, 1, weights.shape[1], dtype=weights.dtype)
    return curvature * (weights - 0.3) + 0.5 * torch.sin(torch.arange(weights.shape[1], dtype=weights.dtype) + step)


def advance(stepper: Stepper, weights: Tensor, lr: Tensor, steps: Iterator[int] | range) -> None:
    for step in steps:
        stepper.update(gradient(weights, step), lr)


def rates(settings: Optimiser, fits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return settings.lr * torch.tensor([[1.0], [0.3], [2.5]], dtype=dtype)[:fits]


def test_the_list_has_every_optimiser() -> None:
    assert {type(settings).__name__ for settings in FAMILY} == set(OPTIMISERS)


# --- against the reference of each

Reference = Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]


def torchs(settings: Optimiser) -> Reference:
    match settings:
        case SGD():
            return lambda p, lr: torch.optim.SGD(p, lr, momentum=settings.momentum, nesterov=settings.nesterov)
        case AdamW():
            return lambda p, lr: torch.optim.AdamW(
                p, lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
            )
        case Adam():
            return lambda p, lr: torch.optim.Adam(p, lr, betas=settings.betas, eps=settings.eps)
        case ScheduleFreeAdamW():
            return lambda p, lr: schedulefree.AdamWScheduleFree(
                p, lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay,
                warmup_steps=settings.warmup_steps,
            )  # fmt: skip
    raise AssertionError(settings)


@pytest.mark.parametrize("fits", [1, 3])
@pytest.mark.parametrize("settings", [s for s in FAMILY if not isinstance(s, Muon | Langevin)], ids=str)
def test_every_row_goes_the_way_of_the_reference(settings: Optimiser, fits: int) -> None:
    settings = replace(settings, lr=0.01)
    weights, lr = rows(fits, 1), rates(settings, fits)
    stepper = settings.start(weights, layout())
    theirs = [torch.nn.Parameter(row) for row in rows(fits, 1)]
    optimisers: list[Any] = [torchs(settings)([p], float(lr[f])) for f, p in enumerate(theirs)]
    start = weights.clone()
    for optimiser in optimisers:
        getattr(optimiser, "train", lambda: None)()
    for step in range(STEPS):
        stepper.update(gradient(weights, step), lr)
        for parameter, optimiser in zip(theirs, optimisers, strict=True):
            parameter.grad = gradient(parameter.detach()[None], step)[0]
            optimiser.step()
        torch.testing.assert_close(weights, torch.stack([p.detach() for p in theirs]), rtol=1e-10, atol=1e-12)
    assert float((weights - start).abs().mean()) > 0.01
    for optimiser in optimisers:
        getattr(optimiser, "eval", lambda: None)()
    averaged = torch.stack([p.detach() for p in theirs])
    torch.testing.assert_close(stepper.evaluation_weights(), averaged, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("fits", [1, 3])
def test_muon_goes_the_way_of_pytorchs(fits: int, weight_decay: float) -> None:
    """Hidden matrices by torch.optim.Muon, all else by AdamW at its own rate."""
    settings = Muon(lr=0.02, adam_lr=3e-3, weight_decay=weight_decay)
    weights, lr = rows(fits, 1, torch.float32), torch.full((fits, 1), 0.02)
    stepper = settings.start(weights, layout())
    hidden = {"layers.1.weight", "layers.2.weight", "layers.3.weight"}
    theirs = rows(fits, 1, torch.float32)
    named = [{e.name: torch.nn.Parameter(row[e.start : e.stop].view(e.shape)) for e in layout()} for row in theirs]
    optimisers: list[torch.optim.Optimizer] = []
    for parameters in named:
        chosen = [parameters[name] for name in parameters if name in hidden]
        others = [parameters[name] for name in parameters if name not in hidden]
        optimisers.append(torch.optim.Muon(chosen, 0.02, weight_decay=weight_decay, momentum=0.95))
        optimisers.append(torch.optim.AdamW(others, 3e-3, weight_decay=weight_decay))
    start = weights.clone()
    for step in range(STEPS):
        stepper.update(gradient(weights, step), lr)
        for row, parameters in zip(theirs, named, strict=True):
            slope = gradient(row[None], step)[0]
            for entry in layout():
                parameters[entry.name].grad = slope[entry.start : entry.stop].view(entry.shape).clone()
        for optimiser in optimisers:
            optimiser.step()
    for entry in layout():
        ours, reference, before = (x[:, entry.start : entry.stop] for x in (weights, theirs, start))
        moved = float((reference - before).norm())
        # The orthogonal steps are in bfloat16, whose rounding differs between the two orders of the same products.
        assert float((ours - reference).norm()) < (2e-2 if entry.name in hidden else 1e-4) * moved, entry.name
        assert moved > 0.01


def test_muon_takes_the_inner_matrices_of_each_list_of_layers() -> None:
    names = [
        "experts.0.layers.0.weight",
        "experts.0.layers.1.weight",
        "experts.0.layers.2.weight",
        "gate.layers.0.weight",
    ]
    entries = [Entry(name, (4, 4), 16 * i, 16 * i + 16) for i, name in enumerate([*names, "gate.layers.1.weight"])]
    weights = torch.randn(1, 80, generator=torch.Generator().manual_seed(0))
    before = weights.clone()
    Muon(lr=0.02, adam_lr=3e-3).start(weights, entries).update(torch.ones(1, 80), torch.tensor([[0.02]]))
    step = (before - weights).reshape(5, 4, 4)
    torch.testing.assert_close(step[[0, 2, 3, 4]], torch.full((4, 4, 4), 3e-3), rtol=1e-4, atol=0)
    # The gradient of ones has one singular value, so its orthogonal form is ones / 4 (roughly: the steps are coarse).
    torch.testing.assert_close(step[1], torch.full((4, 4), 0.02 / 4), rtol=0.35, atol=0)


def test_the_schedule_moves_both_rates_of_muon() -> None:
    def step(factor: float) -> Tensor:
        weights = rows(1, 1, torch.float32)
        before = weights.clone()
        stepper = Muon(lr=0.02, adam_lr=3e-3, schedule=Cosine()).start(weights, layout())
        stepper.update(gradient(weights, 0), torch.tensor([[0.02 * factor]]))
        return before - weights

    torch.testing.assert_close(step(0.25), 0.25 * step(1.0), rtol=1e-3, atol=1e-6)


# --- noise, returns, and descents beside an optimiser


def test_langevin_is_adamw_with_noise_on_the_matrices() -> None:
    """The noise of each step is what is left of the weights without AdamW's own step."""
    settings = Langevin(lr=0.02, noise=1.5, weight_decay=0.1)
    weights, plain = rows(2, 1), rows(2, 1)
    stepper, adam = settings.start(weights, layout()), AdamW(weight_decay=0.1).start(plain, layout())
    stepper.seeds, lr, drawn = [7, 8], torch.tensor([[0.02], [0.01]]).double(), []
    assert stepper.rule() is None  # a compiled kernel would leave the noise out
    for step in range(40):
        slope = gradient(weights, step)
        plain.copy_(weights)
        stepper.update(slope.clone(), lr)
        adam.update(slope.clone(), lr)
        drawn.append((weights - plain) / (1.5 * lr))
    noise = torch.stack(drawn)
    for entry in layout():
        part = noise[..., entry.start : entry.stop]
        if entry.name.endswith("bias"):
            assert float(part.abs().max()) < 1e-9
        else:
            torch.testing.assert_close(part.std(dim=(0, 2)), torch.ones(2, dtype=part.dtype), rtol=0.15, atol=0)
            assert float(part.mean().abs()) < 0.1
    assert not torch.allclose(noise[0, 0], noise[1, 0])
    assert not torch.allclose(noise[0, 0], noise[0, 1])
    again, plain = rows(2, 1), rows(2, 1)
    other = settings.start(again, layout())
    other.seeds = [8, 9]
    other.update(gradient(again, 0), lr)
    AdamW(weight_decay=0.1).start(plain, layout()).update(gradient(plain, 0), lr)
    # One seed and step is one draw, whatever the row and its rate.
    torch.testing.assert_close(((again - plain) / (1.5 * lr))[0], noise[0, 1], rtol=1e-6, atol=1e-6)


def test_backtracking_restores_weights_and_optimiser() -> None:
    """One row's loss jumps at step 13: what follows is the course from step 10, where it was kept; its mate goes on."""
    settings = Backtracking(lr=0.01, jump=3.0, every=5, weight_decay=0.1)
    weights, lr = rows(2, 1), torch.full((2, 1), 0.01).double()
    stepper, course = settings.start(weights, layout()), []
    for step in range(13):
        course.append(weights.clone())
        assert not bool(stepper.notice(torch.tensor([1.0, 2.0])).any())  # type: ignore[union-attr]
        stepper.update(gradient(weights, step), lr)
    weights[0] += 100.0  # a step that went wrong
    back = stepper.notice(torch.tensor([3.1, 5.9]))
    assert back is not None
    assert back.tolist() == [True, False]
    stepper.update(gradient(weights, 13), lr)
    assert torch.equal(weights[0], course[10][0])
    for step in range(10, 20):  # the same gradients as after step 10: the same way, moments and bias correction too
        stepper.notice(torch.tensor([1.0, 2.0]))
        stepper.update(gradient(weights, step), lr)
        if step + 1 < 13:
            assert torch.equal(weights[0], course[step + 1][0])
    plain = rows(1, 1)
    advance(AdamW(weight_decay=0.1).start(plain, layout()), plain, lr[:1], range(20))
    assert torch.equal(weights[0], plain[0])
    assert [row["mark"]["returns"] for row in stepper.scalars()["rows"]] == [1, 0]


def test_backtracking_takes_a_loss_that_is_no_number_for_a_jump() -> None:
    weights = rows(1, 1)
    stepper, before = Backtracking().start(weights, layout()), weights.clone()
    stepper.notice(torch.tensor([0.5]))
    stepper.update(gradient(weights, 0), torch.tensor([[0.01]]))
    stepper.notice(torch.tensor([torch.nan]))
    stepper.update(torch.full_like(weights, torch.nan), torch.tensor([[0.01]]))
    assert torch.equal(weights, before)


@pytest.mark.parametrize("cut", [3, 11, 14])
def test_backtracking_goes_on_bit_for_bit_with_what_it_kept(cut: int) -> None:
    settings, lr = Backtracking(lr=0.01, jump=2.0, every=4), torch.full((2, 1), 0.01)
    losses = [torch.tensor([1.0, 9.0 if step in (6, 13) else 1.0]) for step in range(20)]

    def go(stepper: Stepper, weights: Tensor, steps: range) -> None:
        for step in steps:
            stepper.notice(losses[step])
            stepper.update(gradient(weights, step), lr)

    whole, first = rows(2, 1, torch.float32), rows(2, 1, torch.float32)
    full, part = settings.start(whole, layout()), settings.start(first, layout())
    go(full, whole, range(20))
    go(part, first, range(cut))
    second = torch.zeros_like(first)
    restored = settings.start(second, layout())
    second.copy_(first)
    restored.restore(
        {name: value.clone() for name, value in part.tensors().items()}, json.loads(json.dumps(part.scalars()))
    )
    go(restored, second, range(cut, 20))
    assert torch.equal(second, whole)
    assert restored.scalars() == full.scalars()
    assert full.scalars()["rows"][1]["mark"]["returns"] == 2


@family
def test_descents_are_left_alone_by_every_optimiser(settings: Optimiser) -> None:
    """Two parameters go their own way, at their own pace; all others go as if these had no gradient."""
    descents = [Descent("layers.0.bias", 0.1), Descent("layers.2.bias", 0.2, every=3)]
    weights, plain, lr = rows(2, 1), rows(2, 1), rates(settings, 2)
    stepper = with_descents(settings.start(weights, layout()), layout(), descents)
    alone = settings.start(plain, layout())
    assert with_descents(alone, layout(), ()) is alone
    assert stepper.rule() is None
    parts = {entry.name: slice(entry.start, entry.stop) for entry in layout()}
    first, second = parts["layers.0.bias"], parts["layers.2.bias"]
    own = [weights[:, first].clone(), weights[:, second].clone()]
    for step in range(12):
        slope = gradient(weights, step)
        own[0] -= 0.1 * 6 * slope[:, first]
        if step % 3 == 2:
            own[1] -= 0.2 * 12 * slope[:, second]
        without = gradient(plain, step)
        without[:, first] = without[:, second] = 0
        stepper.update(slope, lr)
        alone.update(without, lr)
        torch.testing.assert_close(weights[:, first], own[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights[:, second], own[1], rtol=1e-12, atol=1e-12)
    others = torch.ones(weights.shape[1], dtype=torch.bool)
    others[first] = others[second] = False
    torch.testing.assert_close(weights[:, others], plain[:, others], rtol=1e-12, atol=1e-12)
    shown = stepper.evaluation_weights()
    torch.testing.assert_close(shown[:, first], own[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shown[:, others], alone.evaluation_weights()[:, others], rtol=1e-12, atol=1e-12)


def test_a_return_takes_descents_back_too() -> None:
    weights, lr = rows(2, 1), torch.full((2, 1), 0.01).double()
    stepper = with_descents(Backtracking().start(weights, layout()), layout(), [Descent("layers.0.bias", 0.1)])
    start = weights.clone()
    for step, losses in enumerate(([1.0, 1.0], [1.0, 1.0], [9.0, 1.0])):
        stepper.notice(torch.tensor(losses))
        stepper.update(gradient(weights, step), lr)
    assert torch.equal(weights[0], start[0])
    assert not torch.equal(weights[1], start[1])


# --- rows, and looking at them


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_notice_each_other(settings: Optimiser, dtype: torch.dtype) -> None:
    """Bit for bit: whatever the mates do, and however many there are."""
    alone, lr = rows(1, 1, dtype), torch.full((3, 1), settings.lr, dtype=dtype)
    advance(settings.start(alone, layout()), alone, lr[:1], range(STEPS))
    together = rows(3, 1, dtype)
    advance(settings.start(together, layout()), together, lr, range(STEPS))
    assert torch.equal(together[0], alone[0])
    spoiled = rows(3, 1, dtype)
    spoiled[2] = torch.nan
    advance(settings.start(spoiled, layout()), spoiled, lr, range(STEPS))
    assert torch.equal(spoiled[:2], together[:2])


@family
def test_a_rate_of_its_own(settings: Optimiser) -> None:
    """A fit among mates with other learning rates ends where it would alone, given the same settings."""
    weights, lr = rows(3, 1), rates(settings, 3)
    advance(settings.start(weights, layout()), weights, lr, range(STEPS))
    for fit in range(3):
        alone = rows(3, 1)[fit : fit + 1].clone()
        advance(settings.start(alone, layout()), alone, lr[fit : fit + 1], range(STEPS))
        assert torch.equal(alone[0], weights[fit])


@family
def test_looking_does_not_change_the_course(settings: Optimiser) -> None:
    quiet, watched = rows(2, 1, torch.float32), rows(2, 1, torch.float32)
    lr = rates(settings, 2, torch.float32)
    stepper = settings.start(watched, layout())
    advance(settings.start(quiet, layout()), quiet, lr, range(STEPS))
    for step in range(STEPS):
        first, second = stepper.evaluation_weights().clone(), stepper.evaluation_weights().clone()
        assert torch.equal(first, second)
        stepper.update(gradient(watched, step), lr)
    assert torch.equal(watched, quiet)


def test_schedule_free_predicts_with_the_average() -> None:
    settings = ScheduleFreeAdamW(lr=0.05)
    weights = rows(1, 1)
    stepper = settings.start(weights, layout())
    torch.testing.assert_close(stepper.evaluation_weights(), weights)
    advance(stepper, weights, rates(settings, 1), range(STEPS))
    x, z = stepper.evaluation_weights(), stepper.tensors()["z"]
    torch.testing.assert_close(weights, 0.9 * x + 0.1 * z)
    assert not torch.allclose(x, weights)


@family
def test_weights_without_a_gradient_stay_at_zero(settings: Optimiser) -> None:
    """What a mask relies on, where the weights begin at zero and no gradient comes."""
    mask = (rows(2, 9, torch.float32) > 0).float()
    weights = rows(2, 1, torch.float32) * mask
    stepper = settings.start(weights, layout())
    for step in range(10):
        stepper.update(gradient(weights, step) * mask, rates(settings, 2, torch.float32))
        if isinstance(settings, Muon | Langevin):  # these fill the gaps; the engine masks the weights again
            weights.mul_(mask)
        assert bool(stepper.evaluation_weights()[mask == 0].eq(0).all())


# --- state


@family
@pytest.mark.parametrize("cut", [0, 1, 23])
def test_a_restored_optimiser_goes_on_bit_for_bit(settings: Optimiser, cut: int) -> None:
    whole, lr = rows(2, 1, torch.float32), rates(settings, 2, torch.float32)
    full = settings.start(whole, layout())
    advance(full, whole, lr, range(STEPS))

    first = rows(2, 1, torch.float32)
    stepper = settings.start(first, layout())
    advance(stepper, first, lr, range(cut))
    saved, tensors = first.clone(), {name: value.clone() for name, value in stepper.tensors().items()}
    scalars = json.loads(json.dumps(stepper.scalars()))
    advance(stepper, first, lr, range(cut, cut + 5))  # what happens after saving must not matter

    second = torch.zeros_like(saved)
    restored = settings.start(second, layout())
    second.copy_(saved)
    restored.restore(tensors, scalars)
    advance(restored, second, lr, range(cut, STEPS))
    assert torch.equal(second, whole)
    assert torch.equal(restored.evaluation_weights(), full.evaluation_weights())
    assert restored.scalars() == full.scalars()
    for name, value in full.tensors().items():
        assert torch.equal(restored.tensors()[name], value)


@family
def test_the_state_is_one_row_a_fit(settings: Optimiser) -> None:
    weights = rows(3, 1, torch.float32)
    assert all(value.shape == weights.shape for value in settings.start(weights, layout()).tensors().values())


# --- clipping and settings


@pytest.mark.parametrize("limit", [0.01, 1.0, 20.0, 1000.0])
def test_clip_rows_is_pytorchs_for_each_row(limit: float) -> None:
    ours = rows(4, 3, torch.float32) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    theirs = [torch.nn.Parameter(torch.zeros_like(row)) for row in ours]
    for parameter, row in zip(theirs, ours, strict=True):
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], limit)
    clip_rows(ours, limit)
    torch.testing.assert_close(ours, torch.stack([p.grad for p in theirs if p.grad is not None]))
    assert float(ours.norm(dim=1).max()) <= limit * (1 + 1e-5)


def test_clipping_a_row_ignores_its_mates() -> None:
    gradient = rows(2, 3, torch.float32)
    alone = gradient[:1].clone()
    gradient[1] = torch.nan
    clip_rows(gradient, 1.0)
    clip_rows(alone, 1.0)
    assert torch.equal(gradient[0], alone[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(lr=-1), r"optimiser\.lr is -1"),
        (lambda: Adam(lr=float("nan")), r"optimiser\.lr is nan"),
        (lambda: Adam(clip_norm=0.0), r"optimiser\.clip_norm is 0"),
        (lambda: Adam(betas=(0.9, 1.0)), r"optimiser\.betas"),
        (lambda: Adam(betas=(0.9,)), r"optimiser\.betas"),  # type: ignore[arg-type]
        (lambda: SGD(momentum=1.0), r"optimiser\.momentum is 1\.0"),
        (lambda: SGD(nesterov=True), r"set optimiser\.momentum above 0"),
        (lambda: Muon(lr=0), r"optimiser\.lr is 0"),
        (lambda: Langevin(noise=-1), r"optimiser\.noise is -1"),
        (lambda: Backtracking(jump=1.0), r"optimiser\.jump is 1\.0; it must be above 1"),
        (lambda: Backtracking(every=0), r"optimiser\.every is 0"),
        (lambda: Muon(momentum=-0.1), r"optimiser\.momentum"),
        (lambda: ScheduleFreeAdamW(betas=(0.0, 0.999)), r"optimiser\.betas\[0\] is 0"),
        (lambda: ScheduleFreeAdamW(schedule=Cosine()), r"use optimiser\.warmup_steps"),
    ],
)
def test_settings_that_are_refused(make: Callable[[], Optimiser], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
