"""The course of the learning rate: end points, ranges, and the plateau rule against PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixfit.schedules import SCHEDULES, Constant, Cosine, Linear, Plateau, PlateauState, Schedule

FAMILY: list[Schedule] = [
    Constant(), Constant(warmup=0.1), Cosine(), Cosine(warmup=0.25, final=0.1), Linear(), Linear(hold=0.0, final=0.2),
    Linear(hold=1.0), Linear(warmup=0.5, hold=0.5), Plateau(),
]  # fmt: skip
family = pytest.mark.parametrize("schedule", FAMILY, ids=str)


def test_the_list_has_every_schedule() -> None:
    assert {type(schedule).__name__ for schedule in FAMILY} == set(SCHEDULES)


@family
def test_factors_lie_in_zero_to_one_and_fall_after_the_warm_up(schedule: Schedule) -> None:
    factors = [schedule.factor(i / 1000) for i in range(1001)]
    assert all(0 <= factor <= 1 for factor in factors)
    top = round(1000 * schedule.warmup)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[top] == 1


@family
def test_the_ends(schedule: Schedule) -> None:
    assert schedule.factor(0.0) == (0 if schedule.warmup else 1)
    held = isinstance(schedule, Linear) and schedule.hold == 1
    assert schedule.factor(1.0) == pytest.approx(1 if held else getattr(schedule, "final", 1), abs=1e-12)


def test_shapes_in_between() -> None:
    assert Cosine().factor(0.5) == pytest.approx(0.5)
    assert Cosine(final=0.2).factor(1 / 3) == pytest.approx(0.2 + 0.8 * 0.75)
    assert Cosine(warmup=0.2).factor(0.1) == pytest.approx(0.5)
    assert Cosine(warmup=0.2).factor(0.6) == pytest.approx(0.5)
    assert Linear(hold=0.6).factor(0.6) == 1
    assert Linear(hold=0.6).factor(0.8) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_cosine_and_linear_against_pytorch(kind: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    theirs: Any = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=40, eta_min=0.1)
        if kind is Cosine
        else torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=40)
    )
    ours = Cosine(final=0.1) if kind is Cosine else Linear(hold=0.0, final=0.1)
    for step in range(41):
        assert ours.factor(step / 40) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-9)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(warmup=1.0), "schedule.warmup is 1.0"),
        (lambda: Cosine(warmup=-0.1), "schedule.warmup"),
        (lambda: Cosine(final=1.5), "schedule.final is 1.5"),
        (lambda: Linear(final=-1), "schedule.final"),
        (lambda: Linear(hold=2), "schedule.hold"),
        (lambda: Plateau(decay=2), "schedule.decay"),
        (lambda: Plateau(patience=-1), "schedule.patience"),
        (lambda: Plateau(min_lr=-1e-3), "schedule.min_lr"),
    ],
)
def test_settings_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- the plateau


def torchs_rates(settings: Plateau, base: float, losses: list[float]) -> list[float]:
    """The learning rate after each epoch by PyTorch's scheduler."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=settings.decay, patience=settings.patience, threshold=settings.threshold,
        min_lr=settings.min_lr, eps=settings.eps,
    )  # fmt: skip
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(float(optimiser.param_groups[0]["lr"]))
    return rates


loss_values = st.sampled_from([0.0, 0.5, 0.99989, 0.9999, 0.99991, 1.0, 1.1, math.inf, math.nan]) | st.floats(
    0, 2, width=32
)


@settings(max_examples=150, deadline=None)
@given(
    losses=st.lists(st.tuples(loss_values, loss_values, loss_values), min_size=1, max_size=40),
    patience=st.integers(0, 3),
    decay=st.sampled_from([0.1, 0.5, 0.9]),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    min_lr=st.sampled_from([0.0, 1e-3, 1.0]),
    eps=st.sampled_from([1e-8, 1e-2]),
)
def test_plateau_is_pytorchs_for_each_fit_by_itself(
    losses: list[tuple[float, ...]], patience: int, decay: float, threshold: float, min_lr: float, eps: float
) -> None:
    plateau = Plateau(decay=decay, patience=patience, threshold=threshold, min_lr=min_lr, eps=eps)
    bases = torch.tensor([1.0, 0.03, 0.004], dtype=torch.float64)
    state = PlateauState(plateau, 3)
    ours = []
    for row in losses:
        state.update(torch.tensor(row, dtype=torch.float64), bases, end_of_epoch=True)
        ours.append((state.factors * bases).tolist())
    for fit, base in enumerate(bases.tolist()):
        theirs = torchs_rates(plateau, base, [row[fit] for row in losses])
        assert [row[fit] for row in ours] == pytest.approx(theirs, rel=1e-12)


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    plateau, base = Plateau(patience=2), torch.ones(1, dtype=torch.float64)
    state, rates = PlateauState(plateau, 1), []
    for epoch in steps:
        for number, loss in enumerate(epoch):
            before = state.factors.clone()
            state.update(loss[None], base, end_of_epoch=number == 2)
            assert number == 2 or torch.equal(state.factors, before)
        rates.append(float(state.factors))
    assert rates == pytest.approx(torchs_rates(plateau, 1.0, steps.mean(dim=1).tolist()), rel=1e-12)
    assert rates[-1] < 1


def test_a_restored_plateau_goes_on_bit_for_bit() -> None:
    losses = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
    base = torch.tensor([1e-3, 1e-4])
    whole = PlateauState(Plateau(patience=1), 2)
    first = PlateauState(Plateau(patience=1), 2)
    for step, row in enumerate(losses[:26]):
        whole.update(row, base, end_of_epoch=step % 4 == 3)
        first.update(row, base, end_of_epoch=step % 4 == 3)
    second = PlateauState(Plateau(patience=1), 2)
    second.restore({name: value.clone() for name, value in first.tensors().items()})
    for step, row in enumerate(losses[26:], start=26):
        whole.update(row, base, end_of_epoch=step % 4 == 3)
        second.update(row, base, end_of_epoch=step % 4 == 3)
    assert all(torch.equal(value, second.tensors()[name]) for name, value in whole.tensors().items())
    assert float(whole.factors.min()) < 1
