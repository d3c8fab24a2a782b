"""Convolutional image priors: sizes, published counts, plain references, fits with noise on the code, averages."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import pixfit as pf
from pixfit import canonical, engine, export, modelfile, render, run, starts
from pixfit.losses import L1
from pixfit.models import (
    PRIORS,
    ConvDecoder,
    Coordinates,
    DeepDecoder,
    Hourglass,
    Perturbation,
    PicturePrior,
    Siren,
)
from pixfit.operators import BoxDownsample, Inpaint
from pixfit.optim import SGD, Adam
from pixfit.problem import stream
from pixfit.spec import AveragedOutput, BestHeldOut
from tests.conftest import picture

TEXT = Hourglass(skip_channels=128, upsampling="nearest")
VASE = Hourglass(code="mesh", code_channels=2, skip_channels=0, upsampling="nearest")
LIBRARY = Hourglass(
    channels=(16, 32, 64, 128, 128, 128), skip_channels=0, down_kernel=5, mix=False, upsampling="nearest",
    code_channels=1, perturbation=Perturbation(0),
)  # fmt: skip
SNAIL = Hourglass(channels=(8, 16, 32, 64, 128), skip_channels=(0, 0, 0, 4, 4), code_channels=3)

FAMILY: list[PicturePrior] = [
    Hourglass(channels=(6, 7), code_channels=5, slope=0.1),
    Hourglass(
        channels=(5, 6, 7), up_channels=(4, 5, 6), skip_channels=(0, 2, 0), down_kernel=5, skip_kernel=3, mix=False,
        upsampling="nearest", padding="zeros", code="mesh", code_channels=2,
    ),
    Hourglass(channels=(6,), up_kernel=5, output="linear", target_range="signed"),
    DeepDecoder(channels=6, doublings=2),
    DeepDecoder(channels=6, doublings=3, resize="before", upsampling="nearest", output="linear"),
    ConvDecoder(channels=5, layers=4, code_size=(3, 4)),
    ConvDecoder(channels=5, layers=2, kernel=5, code_size=(4, 4), upsampling="bilinear"),
]  # fmt: skip
IDS = [f"{number}-{type(model).__name__}" for number, model in enumerate(FAMILY)]
family = pytest.mark.parametrize("model", FAMILY, ids=IDS)

TINY = Hourglass(channels=(6, 6), code_channels=4)
"""Fast, and of the usual kind."""


def built(
    model: PicturePrior, size: tuple[int, int] = (19, 22), *, seed: int = 0, channels: int = 3, **options: Any
) -> nn.Module:
    return model.sized(*size).build(2, channels, generator=torch.Generator().manual_seed(seed), **options)


def nothing(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, 1, 1, dtype=dtype)


# --- the family


def test_the_list_has_every_prior() -> None:
    assert {type(model) for model in FAMILY} == set(PRIORS.values())
    assert all(name == kind.__name__ for name, kind in PRIORS.items())


@family
def test_makes_one_picture_of_the_size(model: PicturePrior) -> None:
    for size, channels in (((19, 22), 3), ((16, 17), 1)):
        output = built(model, size, channels=channels)(nothing())
        assert output.shape == (size[0] * size[1], channels)
        assert output.std() > 0
        if model.output == "sigmoid":
            assert 0 < output.min() < output.max() < 1


@family
def test_gradients_reach_every_parameter(model: PicturePrior) -> None:
    network = built(model, dtype=torch.float64)
    (network(nothing(torch.float64)) * torch.linspace(-1, 2, 3)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # What a convolution adds to all pixels alike, the norm after it takes away (zeros at the border let it pass).
        if name.endswith("norm.bias") or not name.endswith("bias") or name == "colours.bias":
            assert parameter.grad.abs().max() > 0, name


@family
def test_weights_and_code_come_from_the_generator_alone(model: PicturePrior) -> None:
    before = torch.get_rng_state()
    first, again, other = (built(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    drawn = [name for name in first if "norm" not in name and not (name == "code" and model == FAMILY[1])]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@family
def test_reset_sets_every_number(model: PicturePrior) -> None:
    network, fresh = built(model, seed=3), built(model, seed=3)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(math.nan)
    network.reset_parameters(torch.Generator().manual_seed(3))  # type: ignore[operator]
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in network.state_dict().items())


@family
def test_one_seed_is_the_same_network_in_double_precision(model: PicturePrior) -> None:
    single, double = built(model), built(model, dtype=torch.float64)
    for name, value in double.state_dict().items():
        assert torch.equal(value, single.state_dict()[name].double()), name
    exact = double(nothing(torch.float64))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(single(nothing()).double(), exact, atol=1e-4, rtol=1e-4)


@family
def test_autocast_is_close_and_its_colours_are_in_full_precision(model: PicturePrior) -> None:
    network = built(model, (33, 38))
    exact = network(nothing())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(nothing())
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.2 * exact.abs().max()
    assert not torch.equal(rough, rough.bfloat16().float())


@family
def test_counts(model: PicturePrior) -> None:
    network = built(model)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert model.parameters_count() == model.sized(19, 22).parameters_count() == parameters
    assert model.sized(19, 22).stored_numbers() == parameters + math.prod(model.sized(19, 22).code_shape)


@family
def test_settings_survive_json(model: PicturePrior) -> None:
    for each in (model, model.sized(19, 22)):
        assert modelfile.decode(json.loads(canonical.text(each))) == each


@family
def test_state_loads_into_a_network_made_on_meta(model: PicturePrior) -> None:
    network = built(model)
    with torch.device("meta"):
        other = model.sized(19, 22).network()
    other.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(network(nothing()), other(nothing()))


# --- published sizes


@pytest.mark.parametrize(
    ("model", "channels", "count"),
    [
        (Hourglass(), 3, 2_217_831),
        (Hourglass(), 1, 2_217_831 - 2 * 129),
        (TEXT, 3, 3_002_627),
        (VASE, 3, 2_157_955),
        (LIBRARY, 3, 2_996_467),
        (SNAIL, 3, 572_827),
        (Hourglass.small(96, 96), 3, 152_199),
        (DeepDecoder(64), 3, 25_536),
        (DeepDecoder(128), 3, 100_224),
        (DeepDecoder(256), 3, 397_056),
        (DeepDecoder(320), 3, 619_200),
        (ConvDecoder(), 3, 6 * (9 * 64**2 + 2 * 64) + 3 * 64),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PicturePrior) else str(value),
)
def test_published_parameter_counts(model: PicturePrior, channels: int, count: int) -> None:
    assert model.parameters_count(out_features=channels) == count


def test_the_hourglass_of_the_experiments() -> None:
    """26 convolutions with 2,208,768 weights, which are what a magnitude mask ranks; 38.75 GFLOP at 256 x 256."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        network = Hourglass().sized(256, 256).network()
        assert network(torch.zeros(1, 1, 1)).shape == (256 * 256, 3)
    assert counter.get_total_flops() == pytest.approx(38.75e9, rel=2e-4)
    kernels = [module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert (len(kernels), sum(kernels)) == (26, 2_208_768)
    mask = starts.magnitude_mask(built(Hourglass(), (33, 33)).state_dict(), 0.8)
    assert sum(part.numel() for part in mask.tensors.values()) == 2_208_768
    assert sum(int(part.sum()) for part in mask.tensors.values()) == 1_767_014


def test_initial_weights_and_code() -> None:
    state = built(Hourglass(channels=(64, 64)), (40, 40)).state_dict()
    for name, value in state.items():
        if "norm" in name:
            assert bool((value == (1 if name.endswith("weight") else 0)).all())
        elif name.endswith("weight"):
            bound = 1 / math.sqrt(value[0].numel())
            assert 0.9 * bound < value.abs().max() <= bound, name
    weight, bias = state["levels.1.deepen.weight"], state["levels.1.deepen.bias"]
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(64 * 9 * 3), rel=0.02)
    assert bias.abs().max() <= 1 / math.sqrt(64 * 9)
    code = state["code"]
    assert code.shape == (32, 40, 40)
    assert 0 <= code.min() < 1e-4 < 0.0999 < code.max() <= 0.1
    assert float(code.mean()) == pytest.approx(0.05, abs=1e-3)


def test_the_mesh_is_the_pixels_coordinates() -> None:
    code = built(VASE, (66, 35)).state_dict()["code"]
    grid = Coordinates(alignment="corner", range="unit", order="xy").grid(66, 35)
    assert torch.equal(code.flatten(1).T, grid)
    assert VASE.coordinates.grid(66, 35).equal(grid)


def test_one_seed_has_the_same_weights_at_every_size_and_the_same_code_for_every_network() -> None:
    small, large = built(TINY, (12, 12)).state_dict(), built(TINY, (20, 12)).state_dict()
    assert all(torch.equal(value, large[name]) for name, value in small.items() if name != "code")
    other = built(Hourglass(channels=(9, 4), code_channels=4), (12, 12)).state_dict()
    assert torch.equal(small["code"], other["code"])


# --- plain references


def plain_hourglass(model: Hourglass, state: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """The network of the deep image prior written level in level, (1, D, H, W) to (1, C, H, W)."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        border = [(weight.shape[-1] - 1) // 2] * 4
        padded = F.pad(x, border, mode="reflect" if model.padding == "reflection" else "constant")
        return F.conv2d(padded, weight, state[f"{name}.bias"], stride)

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        scaled = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def block(name: str, x: Tensor, stride: int = 1) -> Tensor:
        x = norm(f"{name}_norm", conv(name, x, stride))
        return torch.where(x > 0, x, model.slope * x)

    def cropped(x: Tensor, height: int, width: int) -> Tensor:
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]

    def level(number: int, x: Tensor) -> Tensor:
        name = f"levels.{number}"
        deep = block(f"{name}.deepen", block(f"{name}.halve", x, 2))
        if number + 1 < len(model.channels):
            deep = level(number + 1, deep)
        deep = nn.Upsample(scale_factor=2, mode=model.upsampling)(deep)
        deep = cropped(deep, *x.shape[2:])
        both = torch.cat([block(f"{name}.skip", x), deep], dim=1) if model.skips[number] else deep
        up = block(f"{name}.merge", norm(f"{name}.join_norm", both))
        return block(f"{name}.mix", up) if model.mix else up

    colours = conv("colours", level(0, z))
    return colours.sigmoid() if model.output == "sigmoid" else colours


def plain_decoder(model: DeepDecoder | ConvDecoder, state: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Both decoders as a sequence of modules, (1, k, h, w) to a picture (1, C, H, W) that may be larger."""
    k, parts, convolutions = model.channels, [], []
    width = model.kernel if isinstance(model, ConvDecoder) else 1

    def stage(*order: nn.Module) -> None:
        parts.extend([*order, nn.ReLU(), nn.BatchNorm2d(k, track_running_stats=False)])

    def conv() -> nn.Module:
        convolutions.append(nn.Conv2d(k, k, width, padding=width // 2, bias=False))
        return convolutions[-1]

    if isinstance(model, ConvDecoder):
        assert model.size is not None
        rates = [(n / c) ** (1 / (model.layers - 1)) for n, c in zip(model.size, model.code_size, strict=True)]
        for number in range(1, model.layers):
            sides = [math.ceil(c * rate**number - 1e-6) for c, rate in zip(model.code_size, rates, strict=True)]
            stage(nn.Upsample(size=tuple(sides), mode=model.upsampling), conv())
        stage(conv())
    else:
        double = nn.Upsample(scale_factor=2, mode=model.upsampling)
        if model.resize == "before":
            stage(conv())
        for _ in range(model.doublings):
            stage(*([double, conv()] if model.resize == "before" else [conv(), double]))
        if model.resize == "after":
            stage(conv())
    colours = nn.Conv2d(k, state["colours.weight"].shape[0], 1, bias=False)
    network = nn.Sequential(*parts, colours).to(z)
    norms = [part for part in parts if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        colours.weight.copy_(state["colours.weight"])
        for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
            convolution.get_parameter("weight").copy_(state[f"stages.{number}.weight"])
            norm.weight.copy_(state[f"norms.{number}.weight"])
            norm.bias.copy_(state[f"norms.{number}.bias"])
    output: Tensor = network(z)
    return output.sigmoid() if model.output == "sigmoid" else output


@family
@pytest.mark.parametrize("size", [(16, 24), (17, 22), (23, 19)], ids=str)
def test_the_networks_are_their_plain_references(model: PicturePrior, size: tuple[int, int]) -> None:
    network, model = built(model, size, dtype=torch.float64), model.sized(*size)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():  # norms that are not 1 and 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    noise = 0.03 * torch.randn(model.code_shape, generator=generator, dtype=torch.float64)
    state = {name: value.detach() for name, value in network.state_dict().items()}
    plain = plain_hourglass if isinstance(model, Hourglass) else plain_decoder
    expected = plain(model, state, (state["code"] + noise)[None])  # type: ignore[arg-type]
    top, left = (expected.shape[2] - size[0]) // 2, (expected.shape[3] - size[1]) // 2
    expected = expected[0, :, top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(network(noise).T.reshape(3, *size), expected, rtol=0, atol=1e-9)


def test_a_picture_that_a_decoder_makes_larger_is_cut_from_the_middle() -> None:
    model = DeepDecoder(channels=4, doublings=3)
    assert model.sized(17, 30).code_shape == (4, 3, 4)  # of 24 x 32
    assert model.sized(16, 32).code_shape == (4, 2, 4)


# --- sizes that work, and settings that do not


def allowed(model: PicturePrior, size: tuple[int, int]) -> bool:
    try:
        model.check_size(*size)
    except ValueError:
        return False
    return True


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    levels=st.integers(1, 4),
    skip=st.sampled_from([0, 2]),
    kernels=st.tuples(*[st.sampled_from([1, 3, 5, 9])] * 3),
    padding=st.sampled_from(["reflection", "zeros"]),
)
def test_every_size_that_is_allowed_works(
    size: tuple[int, int], levels: int, skip: int, kernels: tuple[int, int, int], padding: Any
) -> None:
    """And one that is refused would not, where borders are reflected."""
    model = Hourglass((3,) * levels, None, skip, *kernels, padding=padding, code_channels=2)
    network = model.picture_network(*size, 3)
    if allowed(model, size):
        assert network(nothing()).shape == (size[0] * size[1], 3)
    elif padding == "reflection" and kernels[0] > 1:
        with pytest.raises((RuntimeError, ValueError)):
            network(nothing())
    assert allowed(Hourglass.small(*size), size)


@pytest.mark.parametrize(
    ("model", "size"),
    [(Hourglass(), (514, 514)), (VASE, (50, 50)), (LIBRARY, (320, 448)), (SNAIL, (33, 257))],
    ids=["defaults", "vase", "library", "snail"],
)
def test_sizes_of_the_experiments(model: PicturePrior, size: tuple[int, int]) -> None:
    with FakeTensorMode():
        assert model.sized(*size).network()(torch.zeros(1, 1, 1)).shape == (size[0] * size[1], 3)


def test_small_has_as_many_levels_as_the_picture_allows() -> None:
    assert [len(Hourglass.small(side, 500).channels) for side in (3, 4, 5, 16, 17, 32, 33, 400)] == [
        1, 1, 2, 3, 4, 4, 5, 5,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hourglass().sized(32, 40), "makes pictures from 33 x 33 pixels, this one is 40 x 32; give it fewer"),
        (lambda: LIBRARY.sized(128, 400), "from 129 x 129"),
        (lambda: DeepDecoder().sized(96, 32), "from 33 x 33 pixels, this one is 32 x 96; lower doublings"),
        (lambda: ConvDecoder().sized(15, 40), "code_size: got 16 x 16 .* more than the picture's 40 x 15; lower it"),
        (lambda: Hourglass(size=(20, 20)), "makes pictures from 33 x 33"),
        (lambda: Hourglass(size=(64, 40)).sized(40, 64), "got 40 x 64 .* for a picture of 64 x 40; leave size at None"),
        (lambda: Hourglass(size=(64,)), "size: got .64,.*allowed .height, width. or None"),
        (lambda: Hourglass(size=(64.0, 64)), "size: got 64.0"),
        (lambda: Hourglass().network(), r"size is None: .* use Hourglass\(...\).sized\(height, width\)"),
        (lambda: Hourglass().stored_numbers(), "size is None"),
        (lambda: Hourglass(channels=()), "channels: got .*, allowed a tuple of 1 to 12 whole numbers"),
        (lambda: Hourglass(channels=128), "channels: got 128"),
        (lambda: Hourglass(channels=(4, 0)), "channels: got 0"),
        (lambda: Hourglass(up_channels=(4, 4)), "up_channels: got .4, 4., allowed a tuple of 5, one a level"),
        (lambda: Hourglass(skip_channels=(4, 4)), "skip_channels"),
        (lambda: Hourglass(skip_channels=-1), "skip_channels"),
        (lambda: Hourglass(down_kernel=4), "down_kernel: got 4, allowed odd numbers"),
        (lambda: Hourglass(code="mesh"), "code_channels: got 32 with code 'mesh', which has 2"),
        (lambda: Hourglass(code_scale=0), "code_scale"),
        (lambda: Hourglass(padding="circular"), "padding: got 'circular', allowed 'reflection' or 'zeros'"),
        (lambda: Hourglass(target_range="signed"), "use target_range 'unit' or output 'linear'"),
        (lambda: Hourglass(perturbation=0.03), "perturbation: got 0.03, allowed Perturbation"),
        (lambda: Hourglass.small(2, 40), "height: got 2"),
        (lambda: Perturbation(-1), "std: got -1"),
        (lambda: Perturbation(every=0), "every: got 0"),
        (lambda: ConvDecoder(kernel=2), "kernel: got 2, allowed odd numbers"),
        (lambda: ConvDecoder(code_size=(1, 4)), "code_size: got 1"),
        (lambda: DeepDecoder(doublings=0), "doublings: got 0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_perturbation_decays() -> None:
    steady, fading = Perturbation(0.03), Perturbation(0.005, decay=0.7, every=500)
    assert [steady.at(step) for step in (0, 10**6)] == [0.03, 0.03]
    assert [fading.at(step) for step in (0, 499, 500, 1500)] == pytest.approx([0.005, 0.005, 0.0035, 0.005 * 0.7**3])


# --- fits


def spec_of(problem: pf.Problem | pf.Image, model: PicturePrior = TINY, **changes: Any) -> pf.Spec:
    problem = problem if isinstance(problem, pf.Problem) else pf.Problem(problem)
    options = {"optimiser": Adam(lr=0.01), "budget": pf.Steps(12), "seed": 5, **changes}
    return pf.Spec(problem, model, **options)


def plain_fit(spec: pf.Spec) -> tuple[nn.Module, list[float], list[Tensor]]:
    """The same fit by a plain loop: the network at its end, the losses, and the pictures (C, H, W) of the steps."""
    model, (channels, height, width) = spec.model, spec.problem.shape
    assert isinstance(model, PicturePrior)
    dtype = torch.float64 if spec.precision == "float64" else torch.float32
    sized = model.sized(height, width)
    network = sized.build(2, channels, generator=stream(spec.seed, "weights"), dtype=dtype)
    optimiser: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=spec.optimiser.lr)
    if isinstance(spec.optimiser, SGD):
        optimiser = torch.optim.SGD(network.parameters(), lr=spec.optimiser.lr)
    view, losses, pictures = spec.problem.view, [], []
    use = torch.ones_like(view.measurement) if view.use is None else view.use.expand_as(view.measurement)
    features, rows, columns = sized.code_shape
    for step in range(spec.budget.steps or 0):
        generator = stream(spec.seed, f"perturbation/{step}")
        drawn = torch.randn(rows, columns, features, generator=generator).permute(2, 0, 1)
        optimiser.zero_grad()
        output = network((model.perturbation.at(step) * drawn).to(dtype)).T.reshape(channels, height, width)
        pictures.append(model.to_pixels(output).detach().clone())
        measured = view.operator.forward(model.to_pixels(output))
        error = spec.loss(model.to_target(measured), model.to_target(view.measurement.to(dtype)))
        loss = error[use.bool()].mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return network, losses, pictures


def mask_of(height: int, width: int) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(3)) < 0.6


FITS: dict[str, pf.Spec] = {
    "denoise": spec_of(pf.Problem(picture(3, 13, 10), noise=pf.GaussianNoise(0.1), held_out=0.1)),
    "inpaint": spec_of(pf.Problem(picture(3, 13, 10), Inpaint(mask_of(13, 10))), loss=L1()),
    "upscale": spec_of(pf.Problem(picture(3, 12, 16), BoxDownsample(2)), seed=2),
    "grey": spec_of(picture(1, 9, 11), Hourglass(channels=(6,), output="linear", target_range="signed")),
    "decoder": spec_of(picture(3, 9, 11), DeepDecoder(6, 2, perturbation=Perturbation(0.1, decay=0.5, every=3))),
    "descent": spec_of(picture(3, 13, 10), FAMILY[1], optimiser=SGD(lr=0.5)),
    "still": spec_of(picture(3, 13, 10), dataclasses.replace(TINY, perturbation=Perturbation(0.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_the_plain_loop(name: str) -> None:
    """Losses of every step with the noise of that step, and a prediction without noise at the end."""
    spec = dataclasses.replace(FITS[name], precision="float64")
    network, losses, _ = plain_fit(spec)
    result = pf.fit(spec)
    assert result.curves["loss"].tolist() == pytest.approx(losses, rel=1e-5)
    shown = spec.model.to_pixels(network(nothing(torch.float64))).T.reshape(spec.problem.shape).detach()
    assert result.estimate is not None
    torch.testing.assert_close(result.estimate.double(), shown, rtol=0, atol=1e-4)
    assert result.kernel.startswith("torch")
    assert result.parameters == spec.model.parameters_count(out_features=spec.problem.shape[0])


def test_one_gradient_is_exact() -> None:
    """In one step of descent at rate 1 nothing can be hidden by Adam."""
    spec = dataclasses.replace(FITS["inpaint"], precision="float64", optimiser=SGD(lr=1.0), budget=pf.Steps(1))
    network, _, _ = plain_fit(spec)
    for name, value in pf.fit(spec).weights.items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=0, atol=1e-11, msg=name)


def test_noise_is_drawn_anew_in_each_step_of_each_seed() -> None:
    still, noisy = FITS["still"], dataclasses.replace(FITS["still"], model=TINY)
    first, second = pf.fit(noisy), pf.fit(dataclasses.replace(noisy, seed=6))
    flat = [pf.fit(dataclasses.replace(s, optimiser=SGD(lr=0.0))).curves["loss"] for s in (still, noisy)]
    assert len(flat[0].unique()) == 1
    assert len(flat[1].unique()) == len(flat[1])
    assert not torch.equal(first.curves["loss"], second.curves["loss"])
    assert first.weights["code"].equal(pf.fit(noisy).weights["code"])
    assert not first.weights["code"].equal(second.weights["code"])


def test_one_spec_is_one_result() -> None:
    spec = FITS["denoise"]
    first, again = pf.fit(spec), pf.fit(spec)
    assert torch.equal(first.curves["loss"], again.curves["loss"])
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    assert first.estimate is not None
    assert again.estimate is not None
    assert torch.equal(first.estimate, again.estimate)


@pytest.mark.parametrize("estimate", [pf.Last(), AveragedOutput(0.8), AveragedOutput(0.8, every=1)], ids=str)
def test_fits_of_one_stack_are_those_fits_alone(estimate: Any) -> None:
    """`run` fits these one by one, but the engine takes stacks of them like any."""
    specs = [dataclasses.replace(FITS["denoise"], seed=seed, estimate=estimate) for seed in (1, 2)]
    jobs = [run._job(spec, {}, ()) for spec in specs]
    assert len({engine.stack_key(job) for job in jobs}) == 1
    assert engine.stack_limit(jobs[0], torch.device("cpu")) == 1
    assert run.side_by_side(specs[0], torch.device("cpu")) == 1
    together = list(engine.fit(jobs))[-1].outcomes
    assert together is not None
    for outcome, spec in zip(together, specs, strict=True):
        alone = pf.fit(spec)
        torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-4, atol=0)
        if outcome.picture is not None:
            assert alone.estimate is not None
            torch.testing.assert_close(outcome.picture, alone.estimate, rtol=0, atol=1e-3)


def test_a_mask_keeps_weights_at_zero_through_a_fit() -> None:
    weights = run._job(FITS["denoise"], {}, ()).weights
    mask = starts.magnitude_mask(weights, 0.5)
    result = pf.fit(dataclasses.replace(FITS["denoise"], start=pf.Start(mask=mask)))
    for name, kept in mask.tensors.items():
        assert bool((result.weights[name][kept == 0] == 0).all())
    assert sum(int((result.weights[name] == 0).sum()) for name in mask.tensors) == sum(
        int((kept == 0).sum()) for kept in mask.tensors.values()
    )


def test_a_child_starts_where_its_parent_ended_with_its_code() -> None:
    parent = dataclasses.replace(FITS["denoise"], estimate=AveragedOutput())
    child = pf.fit(dataclasses.replace(FITS["denoise"], seed=9, start=pf.Start(weights=parent), budget=pf.Steps(0)))
    end = pf.fit(parent)
    assert all(torch.equal(value, end.weights[name]) for name, value in child.weights.items())


def test_a_short_fit_denoises_and_its_average_does_so_better() -> None:
    """A bundled photograph with noise of 25/255, at sides that no power of two divides."""
    clean = pf.images.load("coffee").data[:, 100:135, 220:257].clone()
    problem = pf.Problem(pf.Image(clean), noise=pf.GaussianNoise(25 / 255), held_out=0.04)
    spec = spec_of(problem, Hourglass(channels=(12, 12, 12), code_channels=8), budget=pf.Steps(120), seed=2)
    last, averaged = (pf.fit(dataclasses.replace(spec, estimate=rule)) for rule in (pf.Last(), AveragedOutput(0.9)))
    assert last.psnr is not None
    assert averaged.psnr is not None
    assert last.psnr > pf.metrics.psnr(problem.view.measurement, clean) + 3
    assert averaged.psnr > last.psnr + 0.3
    assert torch.equal(last.curves["loss"], averaged.curves["loss"])  # averaging changes nothing in the fit


# --- the average of what the steps show


def averages(spec: pf.Spec, decay: float) -> list[Tensor]:
    """By the plain loop, after each step."""
    _, _, pictures = plain_fit(spec)
    kept = [pictures[0]]
    for shown in pictures[1:]:
        kept.append(decay * kept[-1] + (1 - decay) * shown)
    return kept


@pytest.mark.parametrize("name", ["denoise", "inpaint", "upscale", "grey"])
def test_the_average_is_the_plain_loops(name: str) -> None:
    spec = dataclasses.replace(FITS[name], precision="float64", estimate=AveragedOutput(0.7))
    result = pf.fit(spec, record=pf.Record(every=4))
    assert result.estimate is not None
    expected = averages(spec, 0.7)
    torch.testing.assert_close(result.estimate.double(), expected[-1], rtol=0, atol=1e-4)
    truth = spec.problem.image.data  # type: ignore[union-attr]
    assert result.psnr == pytest.approx(pf.metrics.psnr(expected[-1].float(), truth), abs=0.02)
    # The curve shows the average too; before the first step it shows the network.
    levels = [pf.metrics.psnr(expected[step - 1].float(), truth) for step in (4, 8, 12)]
    assert result.curves["psnr"][1:].tolist() == pytest.approx(levels, abs=0.02)
    last = pf.fit(dataclasses.replace(spec, estimate=pf.Last()))
    assert all(torch.equal(value, last.weights[key]) for key, value in result.weights.items())
    view = spec.problem.view
    use = torch.ones_like(view.measurement) if view.use is None else view.use.expand_as(view.measurement)
    error = (view.operator.forward(expected[-1]).clamp(0, 1) - view.measurement)[use.bool()].square().mean()
    assert result.metrics["psnr_measured"] == pytest.approx(-10 * math.log10(float(error)), abs=1e-3)


def test_the_average_with_the_least_held_out_error_is_the_answer() -> None:
    spec = dataclasses.replace(FITS["denoise"], precision="float64", optimiser=Adam(lr=0.05), budget=pf.Steps(60))
    spec = dataclasses.replace(spec, estimate=AveragedOutput(0.5, every=3))
    view = spec.problem.view
    assert view.held_out is not None
    wanted = view.held_out.expand_as(view.measurement)
    kept = averages(spec, 0.5)
    errors = {
        step: float((kept[step - 1].clamp(0, 1) - view.measurement)[wanted].square().mean()) for step in range(3, 61, 3)
    }
    best = min(errors, key=lambda step: errors[step])
    assert best != 60  # else this test would show nothing
    result = pf.fit(spec, record=pf.Record(keep=(best,)))
    assert result.estimate is not None
    torch.testing.assert_close(result.estimate.double(), kept[best - 1], rtol=0, atol=1e-3)
    assert all(torch.equal(value, result.kept[best][name]) for name, value in result.weights.items())


def test_without_a_step_the_answer_is_the_network() -> None:
    spec = dataclasses.replace(FITS["denoise"], budget=pf.Steps(0))
    plain, averaged = pf.fit(spec), pf.fit(dataclasses.replace(spec, estimate=AveragedOutput()))
    assert plain.estimate is not None
    assert averaged.estimate is not None
    torch.testing.assert_close(averaged.estimate, plain.estimate, rtol=0, atol=1e-6)


def test_a_fit_that_diverges_keeps_the_last_good_average() -> None:
    model = dataclasses.replace(TINY, output="linear")
    spec = spec_of(picture(3, 12, 12), model, optimiser=SGD(lr=1e6), estimate=AveragedOutput(0.5))
    result = pf.fit(dataclasses.replace(spec, budget=pf.Steps(100)))
    assert result.status is pf.Status.DIVERGED
    assert result.estimate is not None
    assert bool(result.estimate.isfinite().all())


# --- going on


@pytest.mark.parametrize("estimate", [pf.Last(), AveragedOutput(0.9), AveragedOutput(0.9, every=4)], ids=str)
@pytest.mark.parametrize("fits", [1, 2])
def test_a_fit_that_goes_on_ends_bit_identical(estimate: Any, fits: int) -> None:
    model = dataclasses.replace(TINY, perturbation=Perturbation(0.05, decay=0.7, every=10))
    spec = spec_of(FITS["denoise"].problem, model, estimate=estimate, budget=pf.Steps(40))  # type: ignore[arg-type]
    jobs = [run._job(dataclasses.replace(spec, seed=seed), {}, (3, 35)) for seed in range(fits)]
    states = {state.step: state for state in engine.fit(jobs, save_every=-1.0)}
    whole = states[40].outcomes
    assert whole is not None
    for step in (1, 32, 37):
        saved = dataclasses.replace(states[step], scalars=json.loads(json.dumps(states[step].scalars)))
        again = list(engine.fit(jobs, state=type(saved).join(saved.split())))[-1].outcomes
        assert again is not None
        for ours, theirs in zip(again, whole, strict=True):
            assert torch.equal(ours.losses, theirs.losses)
            assert all(torch.equal(ours.weights[name], value) for name, value in theirs.weights.items())
            assert all(torch.equal(ours.kept[35][name], value) for name, value in theirs.kept[35].items())
            assert (ours.picture is None) == (theirs.picture is None) == isinstance(estimate, pf.Last)
            if ours.picture is not None and theirs.picture is not None:
                assert torch.equal(ours.picture, theirs.picture)


def test_an_interrupted_fit_goes_on_from_the_store(tmp_path: Path) -> None:
    spec = spec_of(FITS["denoise"].problem, estimate=AveragedOutput(0.9), budget=pf.Steps(40))  # type: ignore[arg-type]
    whole = pf.fit(spec)
    store = pf.Store(tmp_path / "runs")

    def press(at: run.Progress) -> None:
        if at.stage == "fitting" and at.step == 0:
            os.kill(os.getpid(), signal.SIGINT)

    assert pf.fit(spec, store, on_progress=press).status is pf.Status.CANCELLED
    resumed = pf.fit(spec, store)
    assert resumed.status is pf.Status.DONE
    assert torch.equal(resumed.curves["loss"], whole.curves["loss"])
    assert resumed.estimate is not None
    assert whole.estimate is not None
    assert torch.equal(resumed.estimate, whole.estimate)


# --- keeping and rendering


@pytest.mark.parametrize("estimate", [pf.Last(), AveragedOutput(0.7), BestHeldOut(5)], ids=str)
def test_stores_and_model_files_hold_the_answer(estimate: Any, tmp_path: Path) -> None:
    spec = dataclasses.replace(FITS["denoise"], estimate=estimate)
    store = pf.Store(tmp_path / "runs")
    result = pf.fit(spec, store)
    assert result.estimate is not None
    taken = pf.fit(spec, store)
    assert taken.estimate is not None
    assert torch.equal(taken.estimate, result.estimate)
    assert taken.summary() == result.summary()
    size = modelfile.save(result, tmp_path / "model.safetensors")
    assert size == (tmp_path / "model.safetensors").stat().st_size
    network = modelfile.load(tmp_path / "model.safetensors")
    assert network.model == spec.model
    assert torch.equal(render.render(network), result.estimate)
    assert torch.equal(render.render(network, region=(2, 3, 5, 4)), result.estimate[:, 3:7, 2:7])
    render.write(network, tmp_path / "out.png")
    assert pf.images.load(tmp_path / "out.png").data.shape == result.estimate.shape
    again = modelfile.decode_spec(network.record, spec.problem)  # type: ignore[arg-type]
    assert again.id == spec.id
    started = dataclasses.replace(spec, start=pf.Start(weights=pf.Weights(network.weights)), budget=pf.Steps(1))
    assert pf.fit(started).status is pf.Status.DONE


def test_rendering_in_bands_is_rendering_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result = pf.fit(FITS["denoise"])
    whole = render.render(result)
    monkeypatch.setattr(render, "_POINTS", 35)
    network = modelfile.Network.of(result)
    bands = list(render.bands(network, render.frame(network)))
    assert [band.shape[1] for band in bands] == [3, 3, 3, 3, 1]
    assert torch.equal(torch.cat(bands, dim=1), whole)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    result = pf.fit(FITS["denoise"])
    for wrong in ({"scale": 2}, {"size": (20, 26)}, {"region": (0.5, 0, 2, 2)}, {"region": (0, 0, 5, 5), "scale": 2}):
        with pytest.raises(ValueError, match="makes one picture of 10×13; it cannot be rendered at another size"):
            render.render(result, **wrong)  # type: ignore[arg-type]
    for suffix in ("onnx", "py"):
        with pytest.raises(ValueError, match="a Hourglass knows no coordinates, it makes one picture"):
            export.write(result, tmp_path / f"model.{suffix}")


def test_a_model_file_of_another_size_is_damaged(tmp_path: Path) -> None:
    result = pf.fit(dataclasses.replace(FITS["denoise"], estimate=AveragedOutput(), budget=pf.Steps(1)))
    network = modelfile.Network.of(result)
    image = {**network.record["problem"]["image"], "width": 11}
    problem = {**network.record["problem"], "image": image}
    broken = dataclasses.replace(network, record={**network.record, "problem": problem})
    missing = dataclasses.replace(network, picture=None)
    for number, wrong in enumerate((broken, missing)):
        path = tmp_path / f"{number}.safetensors"
        modelfile.save(wrong, path)
        with pytest.raises(modelfile.ModelFileError, match="its tensors are not those of the Hourglass"):
            modelfile.load(path)


# --- specs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": pf.Batches(20)}, "Hourglass makes the whole picture in every step; set batches.pixels to null"),
        ({"model": Hourglass()}, "makes pictures from 33 x 33 pixels, this one is 10 x 13"),
        ({"model": Hourglass(channels=(4,), size=(10, 13))}, "for a picture of 10 x 13; leave size at None"),
        ({"model": Siren(1, 8), "estimate": AveragedOutput()}, "whole picture in every step, which a Siren does not"),
        ({"problem": pf.Problem(picture(3, 13, 10)), "estimate": AveragedOutput(every=5)}, "AveragedOutput needs held"),
        ({"precision": "bfloat16-backward"}, "which Hourglass with these settings cannot have"),
    ],
)  # fmt: skip
def test_wrong_specs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FITS["denoise"], **changes)


def test_wrong_averages_are_refused() -> None:
    for wrong in ({"decay": 1.0}, {"decay": -0.1}, {"every": 0}, {"every": 2.5}):
        with pytest.raises(ValueError, match=f"estimate.{next(iter(wrong))} is"):
            AveragedOutput(**wrong)  # type: ignore[arg-type]


def test_a_graph_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel is graph, which runs models that have a plan"):
        pf.fit(dataclasses.replace(FITS["denoise"], kernel="graph"))


def test_bfloat16_is_close() -> None:
    spec = dataclasses.replace(FITS["denoise"], estimate=AveragedOutput(0.7))
    exact, rounded = pf.fit(spec), pf.fit(dataclasses.replace(spec, precision="bfloat16"))
    assert rounded.curves["loss"].tolist() == pytest.approx(exact.curves["loss"].tolist(), rel=0.1)
    assert not torch.equal(rounded.curves["loss"], exact.curves["loss"])
    assert all(value.dtype == torch.float32 for value in rounded.weights.values())


def test_ids_of_other_fits_stay() -> None:
    image = pf.Image(torch.arange(48).reshape(3, 4, 4) / 47.0)
    assert pf.Spec(pf.Problem(image), Siren()).id == "884fea45238632bee1fe"
