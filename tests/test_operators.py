"""Operators: linear, with exact adjoints and the shapes they announce; one list for the whole family."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from skimage.data import astronaut
from skimage.transform import radon
from torch import Tensor, nn

from pixfit import canonical, images, modelfile, run
from pixfit.models import Siren
from pixfit.noise import GaussianNoise
from pixfit.operators import (
    OPERATORS,
    Blur,
    BoxDownsample,
    External,
    GaussianSensing,
    Identity,
    Inpaint,
    LanczosDownsample,
    Operator,
    Radon,
    Shape,
    gaussian_kernel,
    masks,
    read_kernel,
    sensing,
)
from pixfit.operators import radon as radon_module
from pixfit.optim import Adam
from pixfit.problem import Problem, Sealed
from pixfit.spec import Spec
from pixfit.stopping import Steps
from tests.conftest import picture


def mask_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask.view(-1)[0] = True
    return mask


def kernel_of(height: int, width: int) -> Tensor:
    """A kernel without any symmetry, so that a flip or a shift is seen."""
    return torch.randn(height, width, generator=torch.Generator().manual_seed(height * 31 + width)).double()


class Mixture(nn.Module):
    """A foreign operator in the manner of deepinv: batches in, vectors out; it mixes all pixels and has a tensor."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        matrix = torch.randn(5, shape[0] * shape[1] * shape[2], generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", matrix)
        self.shape = shape

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x.dtype).T  # type: ignore[operator, union-attr]

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return (y @ self.matrix.to(y.dtype)).reshape(-1, *self.shape)  # type: ignore[operator, union-attr]


class Turned:
    """A foreign operator that is no module, in NumPy, so that torch cannot differentiate it."""

    def A(self, x: Tensor) -> Tensor:
        return torch.from_numpy(3 * np.rot90(x.detach().numpy(), axes=(-2, -1)).copy()).to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.from_numpy(3 * np.rot90(y.detach().numpy(), -1, axes=(-2, -1)).copy()).to(y)


FAMILY: dict[str, Callable[[Shape], Operator]] = {
    "identity": lambda shape: Identity(),
    "inpaint pixels": lambda shape: Inpaint(mask_of(shape[1:])),
    "inpaint channels": lambda shape: Inpaint(mask_of(shape)),
    "box 1": lambda shape: BoxDownsample(1),
    "box 2": lambda shape: BoxDownsample(2),
    "box 3": lambda shape: BoxDownsample(3),
    "lanczos 2": lambda shape: LanczosDownsample(2),
    "lanczos 3": lambda shape: LanczosDownsample(3),
    "lanczos 4, 3 lobes": lambda shape: LanczosDownsample(4, lobes=3),
    "lanczos 4, other data": lambda shape: LanczosDownsample(4, lobes=3, data="pillow"),
    "blur reflect": lambda shape: Blur(kernel_of(3, 6)),
    "blur zero": lambda shape: Blur(kernel_of(4, 9), "zero"),
    "blur circular": lambda shape: Blur(kernel_of(2, 3), "circular"),
    "sensing": lambda shape: GaussianSensing(7, seed=3),
    "sensing, larger": lambda shape: GaussianSensing(50),
    "radon 5": lambda shape: Radon(5),
    "radon by degrees": lambda shape: Radon((0, 45, 90, 123.4, -400)),
    "external module": lambda shape: External(Mixture(shape), shape),
    "external object": lambda shape: External(Turned(), shape, name="turned"),
}
SHAPES: list[Shape] = [(1, 6, 6), (3, 12, 6), (4, 6, 18), (2, 24, 30)]
ODD_SHAPES: list[Shape] = [(1, 1, 1), (3, 1, 7), (2, 5, 1), (3, 7, 11), (1, 13, 9), (5, 2, 3)]
REFUSED = {
    "box 2": ODD_SHAPES, "box 3": ODD_SHAPES,
    "lanczos 2": ODD_SHAPES[:3], "lanczos 3": [*ODD_SHAPES[:3], (5, 2, 3)],
    "lanczos 4, 3 lobes": [*ODD_SHAPES[:3], (5, 2, 3)], "lanczos 4, other data": [*ODD_SHAPES[:3], (5, 2, 3)],
    "blur reflect": [*ODD_SHAPES[:3], (5, 2, 3)],
}  # fmt: skip
"""What cannot measure which pictures of odd sides, or of a single pixel a side; everything else must."""

family = pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY.keys())
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
everywhere = pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(make, shape, id=f"{name}-{shape}")
        for name, make in FAMILY.items()
        for shape in SHAPES + ODD_SHAPES
        if shape not in REFUSED.get(name, [])
    ],
)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_list_has_every_operator() -> None:
    assert {type(make((3, 6, 6))).__name__ for make in FAMILY.values()} == set(OPERATORS)
    assert all(name == kind.__name__ for name, kind in OPERATORS.items())


@everywhere
def test_the_adjoint_is_the_adjoint(make: Callable[[Shape], Operator], shape: Shape) -> None:
    operator = make(shape)
    x, y = random(shape, 1), random(operator.output_shape(shape), 2)
    left, right = (operator.forward(x) * y).sum(), (x * operator.adjoint(y, shape)).sum()
    assert abs(float(left - right)) <= 1e-12 * float(x.norm() * y.norm())


@everywhere
def test_output_shape_is_that_of_the_output(make: Callable[[Shape], Operator], shape: Shape) -> None:
    operator = make(shape)
    assert tuple(operator.forward(random(shape, 1)).shape) == operator.output_shape(shape)
    assert tuple(operator.adjoint(random(operator.output_shape(shape), 1), shape).shape) == shape


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, refused in REFUSED.items() for shape in refused])
def test_pictures_that_are_refused(name: str, shape: Shape) -> None:
    with pytest.raises(ValueError, match="picture"):
        FAMILY[name](shape).output_shape(shape)
    with pytest.raises(ValueError, match="picture"):
        FAMILY[name](shape).forward(torch.zeros(shape))


@family
def test_the_adjoint_asks_for_the_shape_where_the_measurement_does_not_tell_it(
    make: Callable[[Shape], Operator],
) -> None:
    operator, shape = make((3, 12, 12)), (3, 12, 12)
    y = random(operator.output_shape(shape), 1)
    if isinstance(operator, (GaussianSensing, Radon)):
        with pytest.raises(ValueError, match=r"call adjoint\(y, shape\)"):
            operator.adjoint(y)
    else:
        assert torch.equal(operator.adjoint(y), operator.adjoint(y, shape))


@everywhere
def test_the_gradient_is_the_adjoint_and_can_be_differentiated(make: Callable[[Shape], Operator], shape: Shape) -> None:
    operator = make(shape)
    x, v = random(shape, 1).requires_grad_(), random(shape, 2)
    y = random(operator.output_shape(shape), 3).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.forward(x), x, y, create_graph=True)
    torch.testing.assert_close(gradient, operator.adjoint(y, shape), rtol=1e-12, atol=1e-12)
    (second,) = torch.autograd.grad(gradient, y, v)  # the derivative of the adjoint is the operator
    torch.testing.assert_close(second, operator.forward(v), rtol=1e-12, atol=1e-12)
    (back,) = torch.autograd.grad(operator.adjoint(y, shape), y, v)
    torch.testing.assert_close(back, operator.forward(v), rtol=1e-12, atol=1e-12)


@family
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_type_and_device_are_those_of_the_argument(
    make: Callable[[Shape], Operator], dtype: torch.dtype, device: str
) -> None:
    shape = (3, 12, 6)
    operator = make(shape)
    if isinstance(operator, External) and (dtype == torch.bfloat16 or device != "cpu"):
        return  # what foreign objects take is their own affair; NumPy has no bfloat16
    x, y = random(shape, 1), random(operator.output_shape(shape), 2)
    tolerance = {"rtol": 0.0, "atol": 60 * torch.finfo(dtype).eps}
    for exact, rounded in (
        (operator.forward(x), operator.forward(x.to(device, dtype))),
        (operator.adjoint(y, shape), operator.adjoint(y.to(device, dtype), shape)),
    ):
        assert rounded.dtype == dtype
        assert rounded.device.type == device
        scale = float(exact.abs().max())
        torch.testing.assert_close(rounded.cpu().double() / scale, exact / scale, **tolerance)


@family
def test_the_same_again_bit_for_bit(make: Callable[[Shape], Operator]) -> None:
    shape = (3, 24, 18)
    x = random(shape, 1)
    first, second = make(shape), make(shape)
    assert torch.equal(first.forward(x), first.forward(x))
    assert torch.equal(first.forward(x), second.forward(x))
    y = first.forward(x)
    assert torch.equal(first.adjoint(y, shape), second.adjoint(y, shape))


@family
def test_a_first_use_without_gradients_leaves_nothing_behind(make: Callable[[Shape], Operator]) -> None:
    """Matrices are made once and kept: they must not be tensors of inference mode."""
    shape = (2, 36, 30)
    operator = make(shape)
    with torch.inference_mode():
        operator.adjoint(operator.forward(torch.ones(shape)), shape)
    x = torch.ones(shape, requires_grad=True)
    operator.forward(x).sum().backward()
    assert x.grad is not None


@family
def test_a_problem_takes_it_and_travels(make: Callable[[Shape], Operator]) -> None:
    """Problems are sent to worker processes, and known by their record in files."""
    image = picture(3, 12, 12)
    problem = Problem(image, make((3, 12, 12)), GaussianNoise(0.01), held_out=0.5, seed=4)
    spec = Spec(problem, Siren(1, 8), budget=Steps(2))
    again = pickle.loads(pickle.dumps(spec))
    assert again.id == spec.id
    assert torch.equal(again.problem.view.measurement, problem.view.measurement)
    sealed = modelfile.decode_spec(json.loads(json.dumps(spec.plain)))
    assert isinstance(sealed.problem, Sealed)
    assert sealed.id == spec.id
    assert len(canonical.text(problem.operator)) < 500  # what is large stands there as a hash
    assert problem.view.measurement.shape == problem.operator.output_shape((3, 12, 12))


@family
def test_a_network_is_fitted_through_it(make: Callable[[Shape], Operator]) -> None:
    problem = Problem(picture(3, 12, 12), make((3, 12, 12)))
    result = run.fit(Spec(problem, Siren(1, 16), optimiser=Adam(lr=1e-2), budget=Steps(50)))
    losses = result.curves["loss"]
    assert float(losses[-1]) < 0.7 * float(losses[0])


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
    back = operator.adjoint(operator.forward(batch), (3, 12, 6))
    torch.testing.assert_close(back[1, 0], operator.adjoint(one_by_one[1, 0], (3, 12, 6)))


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


# --- identities of operators

CANONICAL: dict[str, Operator] = {
    '{"kind":"Identity"}': Identity(),
    '{"kind":"Inpaint","mask":"52a5c4a10657220cac05","shape":[1,2,2]}': Inpaint(torch.tensor([[1, 0], [1, 1]])),
    '{"factor":2,"kind":"BoxDownsample"}': BoxDownsample(),
    '{"data":"same","factor":4,"kind":"LanczosDownsample","lobes":2}': LanczosDownsample(),
    '{"boundary":"reflect","kernel":"ba0c29f3d865060f3f51","kind":"Blur","shape":[1,3]}': Blur(
        torch.tensor([[0.25, 0.5, 0.25]])
    ),
    '{"kind":"GaussianSensing","measurements":9,"seed":0}': GaussianSensing(9),
    '{"angles":180,"kind":"Radon"}': Radon(),
    '{"angles":[0.0,90.0],"kind":"Radon"}': Radon((0, 90)),
    '{"kind":"External","name":"turned","shape":[3,4,4]}': External(Turned(), (3, 4, 4), "turned"),
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_forms(text: str) -> None:
    """If one of these fails, stored fits are no longer found: raise `canonical.SCHEMA` and add a migration."""
    assert canonical.text(CANONICAL[text]) == text


def test_every_operator_has_its_canonical_form_written_down() -> None:
    assert {type(operator) for operator in CANONICAL.values()} == set(OPERATORS.values())


# --- masks


@pytest.mark.parametrize("shape", [(40, 60), (3, 40, 60)], ids=str)
def test_masks_have_the_shape_that_was_asked_for_and_repeat(shape: tuple[int, ...]) -> None:
    for make in (masks.pixels, masks.hole, masks.text):
        mask = make(shape, seed=1)
        assert mask.dtype == torch.bool
        assert tuple(mask.shape) == shape
        assert torch.equal(mask, make(shape, seed=1))
        assert not torch.equal(mask, make(shape, seed=2))
        assert 0 < float(mask.float().mean()) < 1
        assert Inpaint(mask).output_shape((3, 40, 60)) == (3, 40, 60)
        if len(shape) == 3:  # every channel has its own
            assert not torch.equal(mask[0], mask[1])


def test_global_random_state_neither_matters_nor_changes_in_masks_and_matrices() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = masks.pixels((9, 9)), masks.hole((9, 9), seed=0), GaussianSensing(3).forward(torch.ones(1, 9, 9))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = masks.pixels((9, 9)), masks.hole((9, 9), seed=0), GaussianSensing(3).forward(torch.ones(1, 9, 9))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_pixels_are_known_with_their_probability() -> None:
    assert bool(masks.pixels((5, 5), 1.0).all())
    for known in (0.1, 0.5, 0.9):
        found = float(masks.pixels((3, 200, 200), known, seed=3).double().mean())
        assert abs(found - known) < 4 * (known * (1 - known) / 120000) ** 0.5
    few, many = masks.pixels((50, 50), 0.2, seed=1), masks.pixels((50, 50), 0.7, seed=1)
    assert bool((few <= many).all())  # one draw: what is known with less stays known with more


def test_a_hole_in_the_middle_and_elsewhere() -> None:
    mask = masks.hole((8, 12))
    assert mask.int().tolist() == [[0 if 2 <= r < 6 and 3 <= c < 9 else 1 for c in range(12)] for r in range(8)]
    places = {tuple((~masks.hole((8, 12), seed=seed)).nonzero()[0].tolist()) for seed in range(200)}
    assert places == {(top, left) for top in range(5) for left in range(7)}
    assert int((~masks.hole((30, 30), 0.001)).sum()) == 1  # at least one pixel


def test_text_hides_a_part_of_the_picture_in_lines() -> None:
    mask = masks.text((96, 128))
    assert 0.8 < float(mask.float().mean()) < 0.95
    rows = mask.all(dim=1)
    assert int((rows[1:] != rows[:-1]).sum()) >= 10  # six lines with space between them
    assert not torch.equal(mask, masks.text((96, 128), "Quite another text"))
    large = masks.text((96, 128), size=40)
    assert not torch.equal(mask, large)
    assert torch.equal(masks.text((3, 96, 128))[2], mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.pixels((4,)), "shape is"),
        (lambda: masks.pixels((0, 4)), "shape is"),
        (lambda: masks.pixels((4, 4), 0.0), "known is 0.0"),
        (lambda: masks.pixels((4, 4), 1.5), "known is 1.5"),
        (lambda: masks.pixels((4, 4), seed=-1), "seed is -1"),
        (lambda: masks.hole((4, 4), 1.0), "fraction is 1.0"),
        (lambda: masks.hole((4, 4), 0.99), "lower fraction"),
        (lambda: masks.hole((1, 1)), "whole picture"),
        (lambda: masks.text((20, 20), " "), "letters is"),
        (lambda: masks.text((20, 20), "a\nb"), "letters is"),
        (lambda: masks.text((20, 20), size=4), "size is 4"),
        (lambda: masks.text((1, 1)), "leave no mark"),
    ],
)
def test_masks_that_cannot_be_made(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- Lanczos


def deep_image_prior_downsample(x: Tensor, factor: int, lobes: int) -> Tensor:
    """The published convention, written out: padding by repetition, then a strided convolution; even factors."""
    k = 2 * lobes * factor
    kernel = torch.zeros(k, k, dtype=torch.float64)
    for i in range(k):
        for j in range(k):
            kernel[i, j] = 1.0
            for place in (i, j):
                d = torch.tensor(abs(place + 0.5 - k / 2) / factor, dtype=torch.float64)
                kernel[i, j] *= torch.sin(torch.pi * d) * torch.sin(torch.pi * d / lobes) * lobes / (torch.pi * d) ** 2
    kernel /= kernel.sum()
    padded = nn.functional.pad(x[:, None], ((k - factor) // 2,) * 4, mode="replicate")
    return nn.functional.conv2d(padded, kernel[None, None], stride=factor)[:, 0]


@pytest.mark.parametrize("lobes", [2, 3])
@pytest.mark.parametrize("factor", [2, 4, 6, 8])
@pytest.mark.parametrize("sides", [(32, 48), (29, 35)], ids=["multiples", "not"])
def test_lanczos_is_the_published_convention(factor: int, lobes: int, sides: tuple[int, int]) -> None:
    x = random((3, *sides), 1)
    expected = deep_image_prior_downsample(x, factor, lobes)
    torch.testing.assert_close(LanczosDownsample(factor, lobes).forward(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", range(2, 9))
def test_lanczos_kernels_and_flat_pictures(factor: int) -> None:
    kernel = LanczosDownsample(factor).kernel
    assert kernel.shape == ((4 * factor, 4 * factor) if factor % 2 == 0 else (4 * factor - 1, 4 * factor - 1))
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    for other in (kernel.T, kernel.flip(0), kernel.flip(1)):
        torch.testing.assert_close(other, kernel, rtol=0, atol=1e-15)
    flat = torch.full((1, 5 * factor, 3 * factor + 1), 0.3, dtype=torch.float64)
    small = LanczosDownsample(factor).forward(flat)
    torch.testing.assert_close(small, torch.full((1, 5, 3), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_lanczos_puts_each_measured_pixel_into_the_middle_of_its_block(factor: int) -> None:
    """A ramp keeps its slope: where no border is near, its mean over a block is what is measured."""
    rows = torch.arange(12 * factor, dtype=torch.float64)[:, None]
    columns = torch.arange(14 * factor, dtype=torch.float64)
    ramp = (rows + 0.5 * columns)[None]
    inner = LanczosDownsample(factor).forward(ramp)[:, 3:-3, 3:-3]
    torch.testing.assert_close(inner, BoxDownsample(factor).forward(ramp)[:, 3:-3, 3:-3])


def test_lanczos_measures_with_the_filter_that_it_models() -> None:
    image = picture(3, 32, 48)
    problem = Problem(image, LanczosDownsample(4))
    assert torch.equal(problem.view.measurement, problem.operator.forward(image.data))


@pytest.mark.parametrize("factor", [4, 8])
def test_the_published_mismatch(shared_data: Path, factor: int) -> None:
    """The measurement is Pillow's; the fit models the filter above, and so misses it even at the true picture."""
    image = images.load(shared_data / "set5" / "butterfly.png")
    levels = PillowImage.fromarray((image.data * 255).round().byte().permute(1, 2, 0).numpy())
    size = (image.width // factor, image.height // factor)
    expected = np.asarray(levels.resize(size, PillowImage.Resampling.LANCZOS))
    view = Problem(image, LanczosDownsample(factor, data="pillow")).view
    assert np.array_equal((view.measurement.permute(1, 2, 0) * 255).numpy(), expected.astype(np.float32))
    error = float((view.operator.forward(image.data) - view.measurement).square().mean())
    assert 1e-5 < error < 1e-3
    wide = LanczosDownsample(factor, lobes=3)  # with as many lobes only rounding, clipping and borders differ
    difference = (wide.forward(image.data) - view.measurement)[:, 3:-3, 3:-3]
    assert float(difference.abs().quantile(0.95)) < 1.5 / 255


def test_pillow_sees_the_same_grid_where_sides_are_no_multiples() -> None:
    image = picture(3, 83, 70)
    ours = LanczosDownsample(4, lobes=3, data="pillow")
    difference = (ours.measure(image.data) - ours.forward(image.data))[:, 3:-3, 3:-3]
    assert float(difference.abs().max()) < 1.5 / 255


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"factor": 0}, "1 to 64"), ({"lobes": 4}, "2 or 3"), ({"lobes": True}, "2 or 3"), ({"data": "matlab"}, "pillow")],
)
def test_lanczos_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanczosDownsample(**settings)


# --- blur


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "mirror"), ("zero", "constant"), ("circular", "wrap")])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5), (4, 4), (7, 6)], ids=str)
def test_blur_is_that_of_scipy(boundary: Any, mode: str, size: tuple[int, int]) -> None:
    x, kernel = random((2, 11, 9), 1), kernel_of(*size)
    expected = np.stack([scipy.ndimage.convolve(plane, kernel.numpy(), mode=mode) for plane in x.numpy()])
    assert np.allclose(Blur(kernel, boundary).forward(x).numpy(), expected, rtol=0, atol=1e-12)


def test_a_gaussian_kernel_is_the_filter_of_scipy() -> None:
    x = random((1, 40, 50), 1)
    for sigma in (0.5, 1.6, 3):
        expected = scipy.ndimage.gaussian_filter(x[0].numpy(), sigma, mode="mirror", truncate=4)
        assert np.allclose(Blur(gaussian_kernel(sigma)).forward(x)[0].numpy(), expected, rtol=0, atol=1e-12)
    assert float(gaussian_kernel(2).sum()) == pytest.approx(1, abs=1e-12)


def test_a_kernel_larger_than_the_picture_needs_a_black_surrounding() -> None:
    kernel = kernel_of(9, 9)
    x = random((1, 3, 2), 1)
    expected = scipy.ndimage.convolve(x[0].numpy(), kernel.numpy(), mode="constant")
    assert np.allclose(Blur(kernel, "zero").forward(x)[0].numpy(), expected, rtol=0, atol=1e-12)
    for boundary in ("reflect", "circular"):
        with pytest.raises(ValueError, match=f"boundary {boundary}; use the boundary zero"):
            Blur(kernel, boundary).output_shape((1, 3, 2))  # type: ignore[arg-type]


def test_kernels_are_values_and_their_type_does_not_matter() -> None:
    kernel = torch.tensor([[0.25, 0.5], [0.0, 0.25]])
    operator = Blur(kernel)
    assert operator == Blur(kernel.double()) == Blur(kernel.half()) == Blur(kernel.numpy())  # type: ignore[arg-type]
    assert operator != Blur(kernel.T)
    assert operator != Blur(kernel, "zero")
    assert operator != Blur(kernel.reshape(1, 4))
    assert canonical.text(Blur(-0.0 + 0 * kernel + kernel)) == canonical.text(operator)
    kernel.zero_()
    assert bool(operator.kernel.any())


def test_kernel_files(tmp_path: Path) -> None:
    levels = np.array([[0, 10, 0], [10, 200, 10], [30, 0, 255]], np.uint8)
    wanted = torch.from_numpy(levels.astype(np.float64) / levels.sum())
    np.save(tmp_path / "a.npy", levels.astype(np.float32) / 7)
    PillowImage.fromarray(levels).save(tmp_path / "grey.png")
    PillowImage.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    PillowImage.fromarray(np.stack([levels] * 3, axis=2)).save(tmp_path / "colour.png")
    for name in ("a.npy", "grey.png", "deep.png", "colour.png"):
        torch.testing.assert_close(read_kernel(tmp_path / name), wanted, rtol=1e-6, atol=0)
    assert Blur(tmp_path / "grey.png") == Blur(str(tmp_path / "deep.png")) == Blur(wanted)  # type: ignore[arg-type]


def test_files_that_are_no_kernels(tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    np.save(tmp_path / "zero.npy", np.zeros((2, 2)))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "negative.npy", -np.ones((2, 2)))
    np.save(tmp_path / "complex.npy", np.ones((2, 2), complex))
    np.save(tmp_path / "object.npy", np.array([[{}]], object))
    np.save(tmp_path / "long.npy", np.ones((1, 2000)))
    PillowImage.new("L", (1024, 4), 9).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.npy").write_bytes(b"")
    for path in [*tmp_path.iterdir(), tmp_path / "missing.png", tmp_path / "missing.npy", tmp_path]:
        with pytest.raises(ValueError) as caught:
            read_kernel(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), at=st.integers(0, 150), kind=st.sampled_from(["a.npy", "a.png"]))
def test_a_damaged_kernel_file_is_a_kernel_or_a_value_error(tmp_path: Path, data: bytes, at: int, kind: str) -> None:
    path = tmp_path / kind
    if kind == "a.npy":
        np.save(path, np.ones((3, 3)))
    else:
        PillowImage.new("L", (3, 3), 9).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    with contextlib.suppress(ValueError):  # nothing else may come out
        assert float(read_kernel(path).sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(torch.ones(3)), r"\(Kh, Kw\)"),
        (lambda: Blur(torch.ones(1, 1024)), "1 to 1023"),
        (lambda: Blur(torch.zeros(3, 3)), "not all 0"),
        (lambda: Blur(torch.full((3, 3), torch.inf)), "finite"),
        (lambda: Blur(torch.ones(3, 3), "mirror"), "reflect, zero, circular"),  # type: ignore[arg-type]
        (lambda: gaussian_kernel(0), "sigma is 0"),
    ],
)
def test_blurs_that_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- compressed sensing


def test_sensing_is_the_product_with_its_rows() -> None:
    operator, x = GaussianSensing(6, seed=2), random((3, 4, 5), 1)
    rows = torch.stack(list(operator.rows(60)))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(operator.forward(x)[0, 0], rows.double() @ x.flatten() / 6**0.5)


def test_rows_are_independent_standard_normal_numbers() -> None:
    rows = torch.stack(list(GaussianSensing(200).rows(500))).double()
    assert abs(float(rows.mean())) < 4 / 100000**0.5
    assert abs(float(rows.var()) - 1) < 4 * (2 / 100000) ** 0.5
    products = rows @ rows.T / 500 - torch.eye(200)
    assert float(products.abs().max()) < 6 / 500**0.5
    x = random((1, 20, 25), 3)
    assert float(GaussianSensing(3000).forward(x).norm() / x.norm()) == pytest.approx(1, abs=0.06)


def test_a_row_depends_on_its_number_and_the_seed_alone() -> None:
    few, many = list(GaussianSensing(3, seed=5).rows(40)), list(GaussianSensing(9, seed=5).rows(40))
    assert all(torch.equal(a, b) for a, b in zip(few, many[:3], strict=True))
    assert len({tuple(row.tolist()) for row in many}) == 9
    assert not torch.equal(few[0], next(GaussianSensing(3, seed=6).rows(40)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_matrix_is_drawn_again_row_by_row(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """It gives what the kept matrix gives, and is never made."""
    operator, shape = GaussianSensing(30, seed=1), (3, 9, 10)
    x, y = random((2, *shape), 1).to(dtype), random((2, 1, 1, 30), 2).to(dtype)
    kept = operator.forward(x), operator.adjoint(y, shape)
    monkeypatch.setattr(GaussianSensing, "stored", {"cpu": 30 * 270 - 1})
    monkeypatch.setattr(sensing, "_matrix", None)
    drawn = operator.forward(x), operator.adjoint(y, shape)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip(kept, drawn, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    alone = operator.forward(x[:1]), operator.adjoint(y[:1], shape)
    torch.testing.assert_close(alone[0], drawn[0][:1], rtol=0, atol=tolerance)
    wanted = float((drawn[0] * y).sum())
    assert float((x * drawn[1]).sum()) == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("measurements", "seed"), [(0, 0), (2**31, 0), (1.5, 0), (3, -1), (3, 2**63), (True, 0)])
def test_sensing_settings_that_are_refused(measurements: Any, seed: int) -> None:
    with pytest.raises(ValueError, match=r"measurements is|seed is"):
        GaussianSensing(measurements, seed)


# --- Radon


@pytest.mark.parametrize("sides", [(64, 64), (65, 65), (48, 70), (71, 40)], ids=str)
def test_sinograms_are_those_of_skimage(sides: tuple[int, int]) -> None:
    """To 0.3 % of the norm on a photograph: skimage interpolates between pixels, here they are squares."""
    x = nn.functional.interpolate(
        torch.from_numpy(astronaut() / 255).permute(2, 0, 1)[:1, None, :420, :420], sides, mode="area"
    )[0]
    operator = Radon(tuple(np.linspace(-20, 170, 40)))
    expected = radon(x[0].numpy(), np.array(operator.degrees), circle=False)
    ours = operator.forward(x)[0].numpy() * len(expected)
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) < 0.003 * np.linalg.norm(expected)
    assert np.abs(ours - expected).max() < 0.01 * expected.max()


def test_right_angles_are_plain_sums() -> None:
    x = random((2, 7, 7), 1)
    sinogram = Radon((0, 90, 180)).forward(x) * 10
    torch.testing.assert_close(sinogram[:, 2:9, 0], x.sum(dim=1))
    torch.testing.assert_close(sinogram[:, 2:9, 1], x.sum(dim=2).flip(1))
    torch.testing.assert_close(sinogram[:, 2:9, 2], x.sum(dim=1).flip(1))


def test_every_view_counts_the_whole_picture_once() -> None:
    x = nn.functional.pad(random((1, 12, 9), 1), (4, 4, 4, 4))
    views = Radon(37).forward(x).sum(dim=1) * Radon(37).output_shape((1, 20, 17))[1]
    torch.testing.assert_close(views, x.sum().expand(1, 37))
    assert 0 < float(Radon(60).forward(torch.ones(1, 30, 30)).max()) <= 1  # of a white picture, too


def test_a_pixel_casts_the_shadow_of_a_square() -> None:
    """Against the area that square and strip share, counted on a fine lattice."""
    degrees, fine = 33.0, 400
    x = torch.zeros(1, 9, 9, dtype=torch.float64)
    x[0, 2, 7] = 1
    sinogram = Radon((degrees,)).forward(x)[0, :, 0] * 13
    inside = (np.arange(fine) + 0.5) / fine - 0.5
    rows, columns = np.meshgrid(2 - 4 + inside, 7 - 4 + inside, indexing="ij")
    angle = np.deg2rad(degrees)
    detectors = np.rint(6 + columns * np.cos(angle) - rows * np.sin(angle)).astype(int)
    shares = np.bincount(detectors.ravel(), minlength=13) / fine**2
    assert np.allclose(sinogram.numpy(), shares, atol=1e-3)


def test_a_large_matrix_is_made_some_angles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, operator = (3, 12, 10), Radon(7)
    x, y = random(shape, 1), random(operator.output_shape(shape), 2)
    kept = operator.forward(x), operator.adjoint(y, shape)
    monkeypatch.setattr(radon_module, "_kept", None)
    monkeypatch.setattr(Radon, "stored", 3 * 120 * 7 - 1)
    for angles_at_once in (0, 1, 3, 7):
        monkeypatch.setattr(radon_module, "_AT_ONCE", 3 * 120 * angles_at_once)
        assert torch.equal(operator.forward(x), kept[0])
        torch.testing.assert_close(operator.adjoint(y, shape), kept[1], rtol=0, atol=1e-14)


def test_angles_are_spread_over_the_half_turn() -> None:
    assert Radon(4).degrees == (0.0, 45.0, 90.0, 135.0)
    assert Radon((0, 45)) == Radon((0.0, 45.0))
    assert canonical.text(Radon((0, 45))) == canonical.text(Radon((0.0, 45.0)))


@pytest.mark.parametrize("angles", [0, 65537, (), [0.0], (float("nan"),), ("0",), True, None, 2.5])
def test_angles_that_are_refused(angles: Any) -> None:
    with pytest.raises(ValueError, match="angles is"):
        Radon(angles)


# --- objects from elsewhere


class Shrink(nn.Module):
    """Means over pairs of pixels, as a convolution with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1, 2, 2), 0.25))

    def A(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x.reshape(-1, 1, *x.shape[2:]), self.weight, stride=2).reshape(
            *x.shape[:2], x.shape[2] // 2, x.shape[3] // 2
        )

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(y.reshape(-1, 1, *y.shape[2:]), self.weight, stride=2).reshape(
            *y.shape[:2], 2 * y.shape[2], 2 * y.shape[3]
        )


def test_a_problem_takes_an_object_with_A_and_its_adjoint() -> None:
    image, physics = picture(3, 8, 12), Shrink()
    problem = Problem(image, physics)  # type: ignore[arg-type]
    assert isinstance(problem.operator, External)
    torch.testing.assert_close(problem.view.measurement, BoxDownsample(2).forward(image.data))
    ours = Spec(Problem(image, BoxDownsample(2)), Siren(1, 8), budget=Steps(20))
    theirs = Spec(problem, Siren(1, 8), budget=Steps(20))
    losses = [run.fit(spec).curves["loss"] for spec in (ours, theirs)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    assert physics.weight.grad is None


def test_an_object_is_known_by_what_it_does_or_by_its_name() -> None:
    first, same, other = Shrink(), Shrink(), Shrink()
    nn.init.constant_(other.weight, 0.26)
    shape = (3, 4, 6)
    plain = [canonical.text(External(physics, shape)) for physics in (first, same, other)]
    assert plain[0] == plain[1] != plain[2]
    assert "response" in plain[0]
    named = [canonical.text(External(physics, shape, "pairs")) for physics in (first, other)]
    assert named[0] == named[1] != canonical.text(External(first, shape, "other pairs"))
    assert External(first, shape, "pairs") != External(first, (3, 6, 4), "pairs")
    assert replace(External(first, shape), name="pairs") == External(first, shape, "pairs")


def test_an_object_that_hands_out_its_argument() -> None:
    class Nothing:
        def A(self, x: Tensor) -> Tensor:
            return x

        A_adjoint = A

    operator, x = External(Nothing(), (1, 3, 4)), random((1, 3, 4), 1).requires_grad_()
    y = operator.forward(x)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]
    with torch.no_grad():
        operator.forward(x).zero_()
    assert bool(x.any())


def broken(A: Callable[[Tensor], Tensor], A_adjoint: Callable[[Tensor], Tensor]) -> Any:
    return type("Broken", (), {"A": staticmethod(A), "A_adjoint": staticmethod(A_adjoint)})()


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (broken(lambda x: x.clamp(0, 1), lambda y: y), "Broken.A is not linear"),
        (broken(lambda x: x + 1, lambda y: y), "Broken.A is not linear"),
        (broken(lambda x: x + torch.rand(x.shape), lambda y: y), "Broken.A is not linear"),
        (broken(lambda x: 2 * x, lambda y: y / 2), "A_adjoint is not the adjoint"),
        (broken(lambda x: x.roll(1, -1), lambda y: y.roll(1, -1)), "A_adjoint is not the adjoint"),
        (broken(lambda x: x.flatten(1), lambda y: y), "A_adjoint makes"),
        (broken(lambda x: x[None], lambda y: y[0]), "it must keep the first dimension"),
        (broken(lambda x: x.sum(dim=(1, 2, 3)), lambda y: y), "it must keep the first dimension"),
    ],
)
def test_objects_that_are_no_operators(physics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        External(physics, (3, 8, 9))


def test_what_is_no_operator_at_all() -> None:
    for value in ("blur", None, 3, nn.Conv2d(3, 3, 1), torch.ones(3)):
        with pytest.raises(TypeError, match=f"the operator is a {type(value).__name__}; it must be one of"):
            Problem(picture(3, 4, 4), value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"turned takes pictures \(C, H, W\) = \(3, 4, 4\), got \(3, 4, 5\)"):
        Problem(picture(3, 4, 5), External(Turned(), (3, 4, 4), "turned"))


def test_the_measured_psnr_of_values_beyond_the_pictures_range() -> None:
    """Random sums are negative as often as not, and a kernel may brighten: the picture is clamped, they are not."""
    for operator in (GaussianSensing(40, seed=1), Blur(torch.full((3, 3), 0.5), "zero")):
        problem = Problem(picture(3, 6, 7), operator)
        result = run.fit(Spec(problem, Siren(1, 8), budget=Steps(3)), device="cpu")
        assert result.estimate is not None
        error = operator.forward(result.estimate.clamp(0, 1)) - problem.view.measurement
        level = -10 * error.double().square().mean().log10()
        assert result.metrics["psnr_measured"] == pytest.approx(float(level), abs=1e-3)
