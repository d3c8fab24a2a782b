"""Budgets and stopping rules as values."""

from __future__ import annotations

from typing import Any

import pytest

from pixfit.stopping import STOPPING, Budget, Epochs, HeldOut, Never, Seconds, Steps, Stopping, TargetPSNR, discrepancy


def test_the_list_has_every_rule() -> None:
    assert set(STOPPING.values()) == {Never, TargetPSNR, HeldOut} == set(Stopping.__subclasses__())
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
