"""Operators: linear, with exact adjoints and the shapes they announce; one list for the whole family."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pixfit import canonical
from pixfit.operators import OPERATORS, BoxDownsample, Identity, Inpaint, Operator

Shape = tuple[int, int, int]


def mask_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask.view(-1)[0] = True
    return mask


FAMILY: dict[str, Callable[[Shape], Operator]] = {
    "identity": lambda shape: Identity(),
    "inpaint pixels": lambda shape: Inpaint(mask_of(shape[1:])),
    "inpaint channels": lambda shape: Inpaint(mask_of(shape)),
    "box 1": lambda shape: BoxDownsample(1),
    "box 2": lambda shape: BoxDownsample(2),
    "box 3": lambda shape: BoxDownsample(3),
}
SHAPES: list[Shape] = [(1, 6, 6), (3, 12, 6), (4, 6, 18), (2, 24, 30)]
family = pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY.keys())
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_list_has_every_operator() -> None:
    assert {type(make((3, 6, 6))).__name__ for make in FAMILY.values()} == set(OPERATORS)
    assert all(name == kind.__name__ for name, kind in OPERATORS.items())


@family
@shapes
def test_the_adjoint_is_the_adjoint(make: Callable[[Shape], Operator], shape: Shape) -> None:
    operator = make(shape)
    x, y = random(shape, 1), random(operator.output_shape(shape), 2)
    left, right = (operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert abs(float(left - right)) <= 1e-12 * float(x.norm() * y.norm())


@family
@shapes
def test_output_shape_is_that_of_the_output(make: Callable[[Shape], Operator], shape: Shape) -> None:
    operator = make(shape)
    assert tuple(operator.forward(random(shape, 1)).shape) == operator.output_shape(shape)
    assert tuple(operator.adjoint(random(operator.output_shape(shape), 1)).shape) == shape


@family
def test_it_is_linear_and_leaves_its_argument_alone(make: Callable[[Shape], Operator]) -> None:
    operator, x, y = make((3, 12, 6)), random((3, 12, 6), 1), random((3, 12, 6), 2)
    before = x.clone()
    combined = operator.forward(2.5 * x - y)
    torch.testing.assert_close(combined, 2.5 * operator.forward(x) - operator.forward(y))
    assert torch.equal(x, before)
    assert not operator.forward(torch.zeros_like(x)).any()


@family
def test_leading_dimensions_pass_through(make: Callable[[Shape], Operator]) -> None:
    operator, batch = make((3, 12, 6)), random((5, 2, 3, 12, 6), 1)
    one_by_one = torch.stack([torch.stack([operator.forward(x) for x in row]) for row in batch])
    torch.testing.assert_close(operator.forward(batch), one_by_one)
    torch.testing.assert_close(operator.adjoint(operator.forward(batch))[1, 0], operator.adjoint(one_by_one[1, 0]))


@family
def test_known_is_a_bool_that_spreads_over_the_measurement(make: Callable[[Shape], Operator]) -> None:
    operator, shape = make((3, 12, 6)), (3, 12, 6)
    known = operator.known(shape)
    if known is not None:
        assert known.dtype == torch.bool
        measured = operator.forward(torch.ones(shape))
        assert torch.equal(measured != 0, known.expand_as(measured))


@family
def test_pointwise_says_whether_pixels_mix(make: Callable[[Shape], Operator]) -> None:
    operator, shape = make((2, 6, 6)), (2, 6, 6)
    alone = torch.zeros(shape)
    alone[:, 2, 3] = 1
    if operator.pointwise:
        elsewhere = operator.forward(alone)
        elsewhere[:, 2, 3] = 0
        assert operator.output_shape(shape) == shape
        assert not elsewhere.any()


@family
def test_the_canonical_form_is_json_and_tells_operators_apart(make: Callable[[Shape], Operator]) -> None:
    operator = make((3, 12, 6))
    assert json.loads(canonical.text(operator))["kind"] == type(operator).__name__
    assert canonical.text(operator) == canonical.text(make((3, 12, 6)))
    assert operator == make((3, 12, 6))
    assert hash(operator) == hash(make((3, 12, 6)))
    others = [other((3, 12, 6)) for other in FAMILY.values() if other is not make]
    assert canonical.text(operator) not in {canonical.text(other) for other in others}


def test_box_downsample_is_the_mean_over_blocks() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    assert BoxDownsample(2).forward(x).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]


def test_masks_of_any_kind_are_one_mask() -> None:
    bits = [[1, 0, 1], [0, 0, 1]]
    kinds = [torch.tensor(bits), torch.tensor(bits).bool(), torch.tensor(bits, dtype=torch.float32)[None]]
    assert len({canonical.text(Inpaint(mask)) for mask in kinds}) == 1
    transposed = Inpaint(torch.tensor(bits).reshape(3, 2))  # the same bits in another shape are another mask
    assert canonical.text(transposed) != canonical.text(Inpaint(kinds[0]))


def test_a_mask_is_a_value() -> None:
    for mask in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)):
        operator = Inpaint(mask)
        mask.zero_()
        assert bool(operator.mask.all())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4), "shape"),
        (torch.ones(1, 1, 2, 2), "shape"),
        (torch.full((2, 2), 0.5), "threshold"),
        (torch.full((2, 2), 255), "threshold"),
        (torch.full((2, 2), float("nan")), "threshold"),
        (torch.zeros(2, 2), "no pixel as known"),
    ],
)
def test_masks_that_are_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inpaint(mask)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 5, 4), (2, 5, 4)])
def test_a_mask_of_another_size_is_refused(shape: Shape) -> None:
    mask = Inpaint(torch.ones(3, 4, 4))
    with pytest.raises(ValueError, match="both must have one size"):
        mask.output_shape(shape)
    with pytest.raises(ValueError, match="both must have one size"):
        mask.known(shape)


@pytest.mark.parametrize("factor", [0, -2, 65])
def test_factors_that_are_refused(factor: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        BoxDownsample(factor)


def test_sides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match="5×4 picture cannot be cut into 2×2 blocks; crop it first"):
        BoxDownsample(2).output_shape((3, 4, 5))
    with pytest.raises(ValueError, match="crop it first"):
        BoxDownsample(2).forward(torch.zeros(3, 4, 5))
