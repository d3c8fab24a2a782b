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

from pixfit.optim import OPTIMISERS, SGD, Adam, AdamW, Entry, Muon, Optimiser, ScheduleFreeAdamW, Stepper, clip_rows
from pixfit.schedules import Cosine

STEPS = 50
FAMILY: list[Optimiser] = [
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.8, nesterov=True),
    Adam(),
    Adam(betas=(0.8, 0.95), eps=1e-6),
    AdamW(weight_decay=0.1),
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
@pytest.mark.parametrize("settings", [settings for settings in FAMILY if not isinstance(settings, Muon)], ids=str)
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
        if isinstance(settings, Muon):  # an orthogonal step fills the gaps; the engine masks the weights again
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
        (lambda: Muon(momentum=-0.1), r"optimiser\.momentum"),
        (lambda: ScheduleFreeAdamW(betas=(0.0, 0.999)), r"optimiser\.betas\[0\] is 0"),
        (lambda: ScheduleFreeAdamW(schedule=Cosine()), r"use optimiser\.warmup_steps"),
    ],
)
def test_settings_that_are_refused(make: Callable[[], Optimiser], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
