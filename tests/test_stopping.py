"""Budgets and stopping rules as values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixfit.stopping import (
    STOPPING,
    Budget,
    Epochs,
    HeldOut,
    MovingVariance,
    Never,
    Seconds,
    Steps,
    Stopping,
    TargetPSNR,
    WindowVariance,
    discrepancy,
)


def test_the_list_has_every_rule() -> None:
    rules = {Never, TargetPSNR, HeldOut, WindowVariance, MovingVariance}
    assert set(STOPPING.values()) == rules == set(Stopping.__subclasses__())
    assert all(name == kind.__name__ for name, kind in STOPPING.items())


def test_short_forms() -> None:
    assert Steps(5) == Budget(steps=5)
    assert Epochs(5) == Budget(epochs=5)
    assert Seconds(5) == Budget(seconds=5)


@pytest.mark.parametrize(
    ("budget", "per_epoch", "limit"),
    [
        (Steps(10), 4, 10),
        (Epochs(10), 4, 40),
        (Epochs(10), 1, 10),
        (Budget(steps=30, epochs=10), 4, 30),
        (Budget(steps=50, epochs=10), 4, 40),
        (Seconds(3), 4, None),
        (Budget(steps=7, seconds=3), 4, 7),
        (Steps(0), 4, 0),
    ],
)
def test_the_first_limit_counts(budget: Budget, per_epoch: int, limit: int | None) -> None:
    assert budget.step_limit(per_epoch) == limit


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "a budget needs a limit"),
        (lambda: Steps(-1), "budget.steps is -1"),
        (lambda: Epochs(-1), "budget.epochs"),
        (lambda: Seconds(float("nan")), "budget.seconds is nan"),
        (lambda: Seconds(float("inf")), "budget.seconds is inf"),
        (lambda: TargetPSNR(every=0), "stopping.every is 0"),
        (lambda: HeldOut(patience=0), "stopping.patience is 0"),
        (lambda: HeldOut(window=0), "stopping.window is 0"),
        (lambda: HeldOut(window=2.5), "stopping.window is 2.5"),  # type: ignore[arg-type]
        (lambda: WindowVariance(window=1), "stopping.window is 1"),
        (lambda: WindowVariance(patience=0), "stopping.patience is 0"),
        (lambda: MovingVariance(warmup=-1), "stopping.warmup is -1"),
        (lambda: MovingVariance(rate=1.0), "stopping.rate is 1.0"),
        (lambda: discrepancy(0.0), "sigma is 0.0"),
        (lambda: discrepancy(0.1, factor=-1), "factor is -1"),
    ],
)
def test_values_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_discrepancy_is_a_level_of_the_measurement() -> None:
    assert discrepancy(0.1).psnr == pytest.approx(20.0)
    rule = discrepancy(0.1, factor=0.5, every=7)
    assert (rule.psnr, rule.every) == (pytest.approx(23.0103), 7)


# --- held-out errors over a window


@pytest.mark.parametrize(("window", "every", "looks"), [(1, 5, 1), (5, 5, 1), (10, 5, 2), (24, 5, 4), (500, 5, 100)])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_compared_are_the_means_of_the_last_looks(window: int, every: int, looks: int, count: int) -> None:
    errors = torch.rand(count, generator=torch.Generator().manual_seed(0))
    found = HeldOut(window=window).compared(errors, every)
    wanted = [sum(errors[max(0, k + 1 - looks) : k + 1].tolist()) / min(looks, k + 1) for k in range(count)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


# --- the variance of what is shown, against the formulas


def outputs(steps: int) -> torch.Tensor:
    """(T, F, n): towards a picture, and then about it."""
    generator = torch.Generator().manual_seed(0)
    settle = 0.9 ** torch.arange(steps)[:, None, None]
    return 0.5 + settle + 0.05 * torch.randn(steps, 2, 30, generator=generator)


def test_the_window_is_the_variance_of_the_last_outputs() -> None:
    shown = outputs(40)
    judge = WindowVariance(window=7).judge(shown[0])
    for step, now in enumerate(shown):
        found = judge.see(now, step)
        if step < 6:
            assert bool(found.isinf().all())
        else:
            last = shown[step - 6 : step + 1].double()
            torch.testing.assert_close(found, last.var(dim=0, correction=0).mean(dim=1), rtol=1e-6, atol=1e-12)


def test_the_moving_variance_is_the_published_recursion() -> None:
    shown = outputs(40).double()
    judge = MovingVariance(rate=0.1).judge(shown[0])
    mean, variance = shown[0].clone(), torch.zeros(2).double()
    assert bool(judge.see(shown[0], 0).isinf().all())
    for step in range(1, 40):
        away = shown[step] - mean
        mean = mean + 0.1 * away
        variance = 0.9 * (variance + 0.1 * away.square().mean(dim=1))
        torch.testing.assert_close(judge.see(shown[step], step), variance)


@pytest.mark.parametrize("rule", [WindowVariance(window=5), MovingVariance()], ids=str)
def test_a_restored_judge_goes_on(rule: Any) -> None:
    shown = outputs(20)
    whole, part = rule.judge(shown[0]), rule.judge(shown[0])
    found = [whole.see(now, step) for step, now in enumerate(shown)]
    for step in range(8):
        part.see(shown[step], step)
    again = rule.judge(shown[0])
    again.restore({name: value.clone() for name, value in part.state.items()})
    assert all(value.shape[0] == 2 for value in part.state.values())
    assert all(torch.equal(again.see(shown[step], step), found[step]) for step in range(8, 20))
