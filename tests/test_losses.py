"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch

from pixfit.losses import L1, LOSSES, MSE, Huber, Loss

FAMILY: list[Loss] = [MSE(), L1(), Huber(), Huber(0.5)]


def test_the_list_has_every_loss() -> None:
    assert {type(loss).__name__ for loss in FAMILY} == set(LOSSES)


@pytest.mark.parametrize("loss", FAMILY, ids=str)
def test_shape_sign_and_minimum(loss: Loss) -> None:
    a, b = torch.rand(2, 5, 3), torch.rand(2, 5, 3)
    assert loss(a, b).shape == a.shape
    assert bool((loss(a, b) >= 0).all())
    assert not loss(a, a).any()
    torch.testing.assert_close(loss(a, b), loss(b, a))


def test_formulas() -> None:
    error = torch.tensor([0.0, 0.05, -0.05, 0.1, 0.3, -2.0])
    zero = torch.zeros_like(error)
    torch.testing.assert_close(MSE()(error, zero), error**2)
    torch.testing.assert_close(L1()(error, zero), error.abs())
    huber = torch.where(error.abs() <= 0.1, error**2 / 2, 0.1 * (error.abs() - 0.05))
    torch.testing.assert_close(Huber(0.1)(error, zero), huber)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_delta_must_be_above_zero(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        Huber(delta)
