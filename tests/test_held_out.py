"""Squares of held-out pixels: where they lie, and what they are for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pixfit.held_out import squares


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def around(mask: Tensor, reach: int) -> Tensor:
    """Pixels within so many rows and columns of the mask."""
    return functional.max_pool2d(mask.float(), 2 * reach + 1, 1, reach).bool()


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(24, 70), st.integers(24, 70)), fraction=st.floats(0.06, 0.3), seed=st.integers(0, 99),
    shape=st.sampled_from([(3, 1), (4, 1), (5, 2), (2, 0)]),
)  # fmt: skip
def test_scored_pixels_lie_within_their_squares(
    size: tuple[int, int], fraction: float, seed: int, shape: tuple[int, int]
) -> None:
    side, guard = shape
    measured = torch.ones(1, *size, dtype=torch.bool)
    left_out, scored = squares(measured, fraction, generator(seed), side=side, guard=guard)
    count = int(left_out.sum()) // side**2
    assert int(left_out.sum()) == count * side**2  # none overlap
    assert int(scored.sum()) == count * (side - 2 * guard) ** 2 > 0
    assert not bool((around(scored, guard) & ~left_out).any())
    if side % 2:  # no square touches another: none has a second middle
        half = side // 2
        framed = functional.pad(left_out, (half,) * 4)
        assert int((~around(~framed, half)).sum()) == count
    again = squares(measured, fraction, generator(seed), side=side, guard=guard)
    assert torch.equal(again[0], left_out)


def test_about_the_fraction_is_left_out() -> None:
    left_out, _ = squares(torch.ones(1, 300, 200, dtype=torch.bool), 0.09, generator())
    assert float(left_out.float().mean()) == pytest.approx(0.09, rel=0.02)


def test_pixels_that_were_not_measured_are_in_neither() -> None:
    measured = torch.rand(1, 60, 60, generator=generator(3)) < 0.5
    for mask in squares(measured, 0.1, generator()):
        assert bool(mask.any())
        assert not bool((mask & ~measured).any())


def test_noise_that_neighbours_share_cannot_be_read_off_from_around_a_square() -> None:
    """The best linear guess of a scored pixel's noise from the seen pixels next to it: at single pixels it explains
    much of noise that was blurred by 0.6 pixels, in the middle of squares next to nothing."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / 0.6).square())
    noise = functional.conv2d(torch.randn(1, 1, 400, 400, generator=generator(1)), torch.outer(taps, taps)[None, None])[
        0
    ]
    noise = noise / noise.std()
    measured = torch.ones(1, *noise.shape[1:], dtype=torch.bool)

    def explained(left_out: Tensor, scored: Tensor) -> float:
        seen = torch.where(left_out, 0.0, noise)
        ring = functional.unfold(seen[None], 5, padding=2)[0].T[scored.flatten()]
        target = noise.flatten()[scored.flatten()]
        weights = torch.linalg.lstsq(ring.double(), target.double()[:, None], driver="gelsd").solution
        return 1 - float((ring.double() @ weights - target.double()[:, None]).square().mean())

    single = torch.rand(measured.shape, generator=generator(2)) < 0.02
    assert explained(single, single) > 0.4
    assert explained(*squares(measured, 0.09, generator(4))) < 0.15


@pytest.mark.parametrize(
    ("fraction", "side", "guard", "message"),
    [
        (0.1, 2, 1, "side is 2 and guard 1; a square must have a middle"),
        (0.9, 3, 1, "fraction is 0.9; squares of 3 pixels need one above 0 and under 0.73"),
        (0.0, 3, 1, "fraction is 0.0"),
        (0.001, 3, 1, "a picture of 30×30 has no cell of 95 pixels; raise the fraction"),
    ],
)
def test_squares_that_cannot_be_are_refused(fraction: float, side: int, guard: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        squares(torch.ones(1, 30, 30, dtype=torch.bool), fraction, generator(), side=side, guard=guard)
