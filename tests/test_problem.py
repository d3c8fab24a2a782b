"""The keeper of the truth: what a view shows, and what it must never show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixfit.images import Image
from pixfit.operators import BoxDownsample, Inpaint, Operator
from pixfit.problem import GaussianNoise, Problem, Sealed, View, stream
from tests.conftest import picture


def reachable(value: Any) -> Iterator[Tensor]:
    """Every tensor that can be reached from a value through its fields, attributes and containers."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            waiting += list(item)
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            waiting += list(vars(item).values())


def shows(view: View, truth: Tensor) -> bool:
    """Whether any tensor of the view holds the picture, whole or in its values."""
    wanted = set(truth.flatten().tolist())
    for tensor in reachable(view):
        same_memory = tensor.untyped_storage().data_ptr() == truth.untyped_storage().data_ptr()
        if same_memory or len(wanted & set(tensor.flatten().tolist()) - {0.0, 1.0}) > 0:
            return True
    return False


def half(height: int, width: int) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(5)) < 0.5


def dithered(channels: int = 3, height: int = 12, width: int = 10) -> Image:
    """A picture whose values are all different, so that any leak of one is seen."""
    order = torch.randperm(channels * height * width, generator=torch.Generator().manual_seed(1))
    return Image(((order + 1) / (len(order) + 2)).float().reshape(channels, height, width), bit_depth=32)


# --- the truth


@pytest.mark.parametrize(
    "operator", [None, Inpaint(half(12, 10)), BoxDownsample(2)], ids=["identity", "inpaint", "box"]
)
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_noisy_view_holds_no_truth(operator: Operator | None, held_out: float) -> None:
    image = dithered()
    settings: dict[str, Any] = {} if operator is None else {"operator": operator}
    view = Problem(image, noise=GaussianNoise(0.1), held_out=held_out, **settings).view
    assert not shows(view, image.data)
    assert isinstance(view, View)
    assert {f.name for f in dataclasses.fields(view)} == {"measurement", "operator", "shape", "use", "held_out"}


def test_a_view_of_a_masked_picture_holds_nothing_behind_the_mask() -> None:
    image, mask = dithered(), half(12, 10)
    for held_out in (0.0, 0.3):
        view = Problem(image, Inpaint(mask), held_out=held_out).view
        hidden = image.data[:, ~mask]
        assert not shows(view, hidden.clone())
    assert shows(view, image.data)  # the check itself can see: the known pixels are there


def test_the_measurement() -> None:
    image = picture(3, 12, 10)
    assert torch.equal(Problem(image).view.measurement, image.data)
    assert torch.equal(Problem(image, BoxDownsample(2)).view.measurement, BoxDownsample(2).forward(image.data))
    noisy = Problem(image, BoxDownsample(2), noise=GaussianNoise(0.1)).view.measurement
    noise = noisy - BoxDownsample(2).forward(image.data)
    assert noise.shape == (3, 6, 5)
    assert 0.07 < float(noise.std()) < 0.13


def test_fitting_cannot_change_the_picture() -> None:
    image = picture(3, 4, 4)
    index, targets, _ = Problem(image).view.samples()
    targets.zero_()
    assert torch.equal(image.data, picture(3, 4, 4).data)
    assert index.tolist() == list(range(16))


# --- seeds


def test_the_seed_decides_noise_and_held_out_pixels() -> None:
    image = picture(3, 12, 10)

    def view(seed: int, sigma: float = 0.1, held_out: float = 0.3) -> View:
        return Problem(image, noise=GaussianNoise(sigma), held_out=held_out, seed=seed).view

    a, b, c = view(1), view(1), view(2)
    assert torch.equal(a.measurement, b.measurement)
    assert torch.equal(a.held_out, b.held_out)  # type: ignore[arg-type]
    assert not torch.equal(a.measurement, c.measurement)
    assert not torch.equal(a.held_out, c.held_out)  # type: ignore[arg-type]
    # The streams are separate: other noise leaves the held-out pixels, and the other way round.
    assert torch.equal(a.held_out, view(1, sigma=0.2).held_out)  # type: ignore[arg-type]
    assert torch.equal(a.measurement, view(1, held_out=0.5).measurement)


def test_the_draws_are_those_of_the_named_streams() -> None:
    """Written out, since a stored fit can be repeated only while these stay as they are."""
    image = picture(3, 12, 10)
    view = Problem(image, noise=GaussianNoise(0.1), held_out=0.3, seed=6).view
    assert torch.equal(view.measurement, image.data + 0.1 * torch.randn(3, 12, 10, generator=stream(6, "noise")))
    assert view.held_out is not None
    assert torch.equal(view.held_out, torch.rand(1, 12, 10, generator=stream(6, "held-out")) < 0.3)


def test_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Problem(picture(3, 6, 6), noise=GaussianNoise(0.1), held_out=0.3).view
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(
        Problem(picture(3, 6, 6), noise=GaussianNoise(0.1), held_out=0.3).view.measurement, first.measurement
    )


def test_streams_differ_by_seed_and_name() -> None:
    draws = {
        float(torch.rand(1, generator=stream(seed, name), dtype=torch.float64))
        for seed in (0, 1, 2**63 - 1)
        for name in "ab"
    }
    assert len(draws) == 6
    assert torch.equal(torch.rand(3, generator=stream(4, "x")), torch.rand(3, generator=stream(4, "x")))
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="seed is"):
            stream(seed, "a")


# --- held-out pixels


@pytest.mark.parametrize("channels_mask", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_held_out_pixels_are_measured_and_not_used(masked: bool, channels_mask: bool) -> None:
    image = dithered(3, 30, 40)
    mask = half(30, 40)
    if channels_mask:
        mask = torch.stack([mask, ~mask, half(30, 40).flip(0)])
    problem = Problem(image, Inpaint(mask), held_out=0.25) if masked else Problem(image, held_out=0.25)
    view = problem.view
    assert view.use is not None
    assert view.held_out is not None
    known = mask.expand(3, 30, 40) if masked else torch.ones(3, 30, 40, dtype=torch.bool)
    use, held_out = view.use.expand(3, 30, 40), view.held_out.expand(3, 30, 40)
    assert not (use & held_out).any()
    assert torch.equal(use, known & ~held_out)
    measured = known.any(dim=0)
    assert not (held_out & ~known).any()
    pixels = held_out.any(dim=0)
    assert torch.equal(held_out, known & pixels)  # whole pixels, all their measured channels
    assert 0.2 < float(pixels.sum() / measured.sum()) < 0.3
    index, targets, weights = view.samples()
    assert not pixels.flatten()[index].any()
    used = targets if weights is None else targets[weights == 1]
    held = image.data[:, pixels]
    assert not set(used.flatten().tolist()) & set(held.flatten().tolist())


def test_held_out_pixels_of_a_smaller_measurement() -> None:
    view = Problem(picture(3, 12, 10), BoxDownsample(2), held_out=0.4).view
    assert view.held_out is not None
    assert view.use is not None
    assert view.held_out.shape == view.use.shape == (1, 6, 5)
    assert torch.equal(view.use, ~view.held_out)


# --- samples


def test_all_samples() -> None:
    image = picture(3, 4, 5)
    index, targets, weights = Problem(image).view.samples()
    assert index.tolist() == list(range(20))
    assert torch.equal(targets.T.reshape(3, 4, 5), image.data)
    assert weights is None


def test_samples_of_a_mask_are_its_white_pixels() -> None:
    image, mask = picture(3, 12, 10), half(12, 10)
    index, targets, weights = Problem(image, Inpaint(mask)).view.samples()
    assert index.tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(targets, image.data[:, mask].T)
    assert weights is None


def test_samples_of_a_mask_per_channel_have_weights() -> None:
    image = picture(3, 2, 2)
    mask = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 1], [0, 1]]])
    index, targets, weights = Problem(image, Inpaint(mask)).view.samples()
    assert index.tolist() == [0, 1, 3]
    assert weights is not None
    assert weights.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert torch.equal(targets * weights, (image.data * mask).flatten(1).T[index])


# --- errors


def test_a_mask_of_another_size_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="the mask is 10×12 with 1 channel"):
        Problem(picture(3, 12, 11), Inpaint(half(12, 10)))
    with pytest.raises(ValueError, match="crop it first"):
        Problem(picture(3, 12, 11), BoxDownsample(2))


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got str; load one with pixfit\.images\.load"):
        Problem("photo.jpg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float"):
        Problem(np.full((4, 4), 7.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("held_out", [-0.1, 1.0, float("nan")])
def test_fractions_that_are_refused(held_out: float) -> None:
    with pytest.raises(ValueError, match="held_out is"):
        Problem(picture(3, 4, 4), held_out=held_out)


def test_nothing_left_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaves no pixel to fit; lower it"):
        Problem(picture(1, 2, 2), held_out=0.9999).view  # noqa: B018


def test_nothing_held_out_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds out none of 4 pixels; raise it"):
        Problem(picture(1, 2, 2), held_out=0.0001).view  # noqa: B018


@pytest.mark.parametrize("sigma", [-0.1, 11.0, float("nan")])
def test_noise_that_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"noise\.sigma is"):
        GaussianNoise(sigma)


def test_a_sealed_problem_has_a_shape_and_no_view() -> None:
    sealed = Sealed({"image": {"channels": 3, "height": 4, "width": 5}})
    assert sealed.shape == (3, 4, 5)
    with pytest.raises(ValueError, match="make the problem again from the picture"):
        sealed.view  # noqa: B018


def test_tensors_and_arrays_are_taken_as_they_are() -> None:
    image = picture(3, 6, 5)
    assert Problem(image.data).image.data.equal(image.data)  # type: ignore[arg-type]
    assert Problem(image.data.permute(1, 2, 0).numpy()).image.data.equal(image.data)  # type: ignore[arg-type]
