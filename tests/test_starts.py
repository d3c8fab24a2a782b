"""Starts are values: cloned, checked, and never shared between fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pixfit as pf
from pixfit import canonical, modelfile, starts
from pixfit.models import Experts, Fourier, Mlp, Model, Siren, Wire
from pixfit.starts import FromPicture, Start, Weights, magnitude_mask, merge


def state(model: Model, seed: int = 0) -> dict[str, Tensor]:
    return dict(model.build(2, 3, generator=torch.Generator().manual_seed(seed)).state_dict())


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- merge


def test_all_of_the_source_is_taken_and_cloned() -> None:
    fresh, source = state(Siren(2, 8)), state(Siren(2, 8), 1)
    merged = merge(fresh, source)
    assert equal(merged, source)
    for value in merged.values():
        value.zero_()
    assert equal(source, state(Siren(2, 8), 1))
    assert equal(fresh, state(Siren(2, 8)))


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4, 9])
def test_the_first_layers_alone(layers: int) -> None:
    fresh, source = state(Siren(2, 8)), state(Siren(2, 8), 1)
    merged = merge(fresh, source, layers=layers)
    for name, value in merged.items():
        expected = source if int(name.split(".")[1]) < layers else fresh
        assert torch.equal(value, expected[name])
        value.zero_()
    assert equal(fresh, state(Siren(2, 8)))
    assert equal(source, state(Siren(2, 8), 1))


def test_tensors_come_in_the_networks_own_format() -> None:
    fresh = state(Siren(1, 8))
    merged = merge(fresh, {name: value.double() for name, value in state(Siren(1, 8), 1).items()})
    assert all(value.dtype == torch.float32 for value in merged.values())
    assert not any(
        value.requires_grad for value in merge(fresh, {n: v.requires_grad_() for n, v in merged.items()}).values()
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Siren(3, 8), r"in excess layers\.4\.bias, layers\.4\.weight"),
        (Siren(1, 8), r"lacks layers\.3\.bias, layers\.3\.weight"),
        (Siren(2, 9), r"layers\.0\.weight is \(9, 2\) there and \(8, 2\) here"),
        (Mlp(2, 8), r"in excess encoding\.frequencies"),
        (Wire(2, 8), r"layers\.1\.weight"),
    ],
)
def test_another_network_is_refused_by_the_name_of_a_tensor(source: Model, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        merge(state(Siren(2, 8)), state(source))


def test_two_shapes_of_output_are_refused() -> None:
    grey = Siren(1, 8).build(2, 1, generator=torch.Generator().manual_seed(0)).state_dict()
    with pytest.raises(ValueError, match=r"layers\.2\.weight is \(1, 8\) there and \(3, 8\) here"):
        merge(state(Siren(1, 8)), grey)


# --- Weights and Start


def test_weights_are_cloned_and_known_by_their_content() -> None:
    source = state(Siren(1, 8))
    weights = Weights(source)
    before = canonical.text(weights)
    source["layers.0.bias"].add_(1)
    assert canonical.text(weights) == before
    assert canonical.text(Weights(source)) != before
    assert canonical.text(Weights(dict(reversed(weights.tensors.items())))) == before


def test_the_hash_sees_name_shape_type_and_layout_alike() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    same = value.T.contiguous().T  # the same numbers, laid out in memory by columns
    assert canonical.text(Weights({"a": value})) == canonical.text(Weights({"a": same}))
    others = [{"b": value}, {"a": value.reshape(3, 2)}, {"a": value.double()}, {"a": value, "b": torch.zeros(0)}]
    assert len({canonical.text(Weights(other)) for other in [{"a": value}, *others]}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "start.step names a step of another fit"),
        ({"weights": Weights({}), "step": 3}, "start.step names a step of another fit"),
        ({"weights": Weights({}), "layers": -1}, "start.layers is -1"),
        ({"layers": 2}, "start.layers says how much to take of start.weights"),
        ({"mask": Weights({"a": torch.tensor([0.0, 0.5])})}, "a has other values"),
    ],
)
def test_starts_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Start(**settings)  # type: ignore[arg-type]


# --- magnitude_mask


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    "model", [Siren(2, 16), Wire(1, 8), Mlp(1, 8, encoding=Fourier(8), norm="layer", experts=Experts(2))], ids=str
)
def test_the_largest_weights_are_kept_over_all_matrices_together(model: Model, keep: float) -> None:
    weights = state(model)
    mask = magnitude_mask(weights, keep).tensors
    trained = dict(model.network(2, 3).named_parameters())
    assert set(mask) == {name for name, value in trained.items() if value.dim() == 2}
    kept = torch.cat([weights[name].abs()[mask[name] == 1] for name in mask])
    cut = torch.cat([weights[name].abs()[mask[name] == 0] for name in mask])
    assert len(kept) == max(1, round(keep * (len(kept) + len(cut))))
    if len(cut):
        assert kept.min() >= cut.max()
    assert all(mask[name].shape == weights[name].shape for name in mask)
    Start(mask=Weights(mask))


def test_only_the_named_tensors_are_ranked() -> None:
    weights = state(Siren(2, 16))
    mask = magnitude_mask(weights, 0.5, only=["layers.1.weight", "layers.1.bias"]).tensors
    assert {name: value.shape for name, value in mask.items()} == {"layers.1.weight": (16, 16), "layers.1.bias": (16,)}
    assert sum(float(value.sum()) for value in mask.values()) == 136


def test_masks_that_cannot_be_made() -> None:
    for keep in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="keep is"):
            magnitude_mask(state(Siren(1, 8)), keep)
    with pytest.raises(ValueError, match="no tensor to prune"):
        magnitude_mask({"bias": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match=r"do not have layers\.9\.weight"):
        magnitude_mask(state(Siren(1, 8)), 0.5, only=["layers.9.weight"])


# --- from the picture


def grid_spec(problem: pf.Problem, **changes: object) -> pf.Spec:
    _, height, width = problem.shape
    levels = ((height, width, 2), (height // 2, width // 2, 2), (4, 4, 2))
    model = pf.models.Mlp(1, 16, encoding=pf.models.Grid(levels), activation="relu")
    spec = pf.Spec(problem, model, start=Start(FromPicture()), optimiser=pf.optim.Adam(1e-12), budget=pf.Steps(1))
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_a_grid_that_starts_from_the_picture_shows_it() -> None:
    photograph = pf.Problem(pf.images.load("astronaut").data[:, 40:80, 200:248].contiguous())
    drawn = pf.fit(grid_spec(photograph), device="cpu")
    random = pf.fit(grid_spec(photograph, start=Start()), device="cpu")
    assert drawn.psnr is not None
    assert random.psnr is not None
    assert drawn.psnr > 35 > 20 > random.psnr


def test_missing_pixels_are_filled_from_those_around_them() -> None:
    """What stands at held-out pixels is never seen, and smooth pictures are guessed well there."""
    row, column = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 20), indexing="ij")
    smooth = torch.stack([row, column, (row + column) / 2])
    problem = pf.Problem(smooth, held_out=0.2, seed=3)
    held_out = problem.view.held_out
    assert held_out is not None
    other = pf.Problem(torch.where(held_out, 1 - smooth, smooth), held_out=0.2, seed=3)
    first, second = (pf.fit(grid_spec(one), device="cpu") for one in (problem, other))
    for name, value in first.weights.items():
        assert torch.equal(value, second.weights[name])
    assert first.psnr is not None
    assert first.psnr > 25
    assert torch.equal(starts.filled(smooth, None), smooth)
    nothing = torch.zeros(1, 16, 20, dtype=torch.bool)
    assert bool((starts.filled(smooth, nothing) == 0.5).all())


def test_a_start_from_the_picture_is_a_value() -> None:
    problem = pf.Problem(torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1)))
    spec = grid_spec(problem)
    assert modelfile.decode_spec(json.loads(json.dumps(spec.plain)), problem) == spec
    assert spec.id != replace(spec, start=Start()).id
    with pytest.raises(ValueError, match="Siren with these settings cannot start from the picture"):
        pf.fit(replace(spec, model=pf.models.Siren(1, 8)), device="cpu")
    with pytest.raises(ValueError, match=r"start\.step names a step of another fit"):
        Start(FromPicture(), step=3)
