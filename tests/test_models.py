"""Models: sizes, formulas, initial weights, number formats, batching over parameters, and the coordinate grids."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pixfit.models
import pixfit.models.networks
from pixfit.models import (
    ENCODINGS,
    MODELS,
    Coordinates,
    Encoding,
    Experts,
    Finer,
    Fourier,
    Gabor,
    Gauss,
    Grid,
    Mlp,
    Model,
    Positional,
    Raw,
    Siren,
    Wire,
)

FAMILY: list[Model] = [
    Siren(2, 24),
    Siren(0, 16, first_omega_0=6.0),
    Siren(2, (24, 16, 8), output="sigmoid", target_range="unit"),
    Finer(2, 24),
    Finer(1, 24, first_bias_scale=None, scale_gradient=True),
    Wire(2, 12),
    Wire(0, 12, output="sigmoid", target_range="unit"),
    Gauss(2, 24, scale=3.0),
    Mlp(2, 24, encoding=Raw()),
    Mlp(2, 24, encoding=Positional(4)),
    Mlp(2, 24, encoding=Positional(4, include_input=False), activation="gelu"),
    Mlp(2, 24, encoding=Fourier(32), activation="silu", norm="rms"),
    Mlp(2, 24, encoding=Fourier(32, trainable=True), norm="rms", norm_position="pre", skip=True),
    Mlp(2, 24, encoding=Gabor(32), norm="layer", skip=True),
    Mlp(2, (24, 16, 8), encoding=Gabor(32, sigma="text", trainable=True), norm="layer", norm_position="pre"),
    Mlp(1, 24, encoding=Grid(((5, 7, 4), (9, 11, 3)), init=1.0)),
    Mlp(1, 24, encoding=Grid(((7, 4), (16, 2)), 64, "cubic", init=1.0), coordinates=Coordinates("corner")),
    Mlp(1, 24, encoding=Gabor(32, sigma=0.5), output="linear", target_range="signed", experts=Experts(2, "none")),
    Mlp(1, 24, encoding=Raw(), norm="layer", experts=Experts(3, "layer", 16)),
]
IDS = [f"{number}-{type(model).__name__}" for number, model in enumerate(FAMILY)]
family = pytest.mark.parametrize("model", FAMILY, ids=IDS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(model: Model, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    return model.build(generator=seeded(seed), dtype=dtype)


def coordinates(model: Model, dtype: torch.dtype = torch.float32) -> Tensor:
    return model.coordinates.grid(9, 11, dtype=dtype)


# The family


def test_the_list_has_every_model_and_every_encoding() -> None:
    assert {type(model) for model in FAMILY} == set(MODELS.values())
    assert {type(model.encoding) for model in FAMILY if isinstance(model, Mlp)} == set(ENCODINGS.values())
    assert all(name == kind.__name__ for name, kind in (*MODELS.items(), *ENCODINGS.items()))


@family
def test_maps_samples_to_colours(model: Model) -> None:
    x = coordinates(model)
    network = build(model)
    assert network(x).shape == (99, 3)
    assert network(x.reshape(3, 33, 2)).shape == (3, 33, 3)
    inputs = 2 if isinstance(model, Mlp) and isinstance(model.encoding, Grid) else 9
    assert model.build(inputs, 4, generator=seeded(0))(torch.rand(5, inputs)).shape == (5, 4)
    torch.testing.assert_close(network(x[:7]), network(x)[:7])


@family
def test_gradients_reach_every_parameter(model: Model) -> None:
    network = build(model)
    (network(coordinates(model)) * torch.linspace(-1, 2, 3)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@family
def test_weights_come_from_the_generator_alone(model: Model) -> None:
    before = torch.get_rng_state()
    first, again, other = build(model, 1), build(model, 1), build(model, 2)
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        if tensor.unique().numel() > 1:  # norms start as constants
            assert not torch.equal(tensor, other.state_dict()[name]), name


@family
def test_reset_sets_every_number(model: Model) -> None:
    network, fresh = build(model, 3), build(model, 3)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(math.nan)
    network.reset_parameters(seeded(3))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


@family
def test_one_seed_is_the_same_network_in_double_precision(model: Model) -> None:
    single, double = build(model), build(model, dtype=torch.float64)
    for name, tensor in double.state_dict().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, single.state_dict()[name].double()), name
    x = coordinates(model, torch.float64)
    output = double(x)
    assert output.dtype == torch.float64
    torch.testing.assert_close(single(x.float()).double(), output, atol=2e-3, rtol=2e-3)
    # More than single precision all through: a float32 step inside would show at 1e-7.
    shifted = double(x + 1e-12)
    assert 0 < (shifted - output).abs().max() < 1e-8


@family
def test_state_loads_into_a_network_made_on_meta(model: Model) -> None:
    network = build(model)
    with torch.device("meta"):
        other = model.network()
    other.load_state_dict(network.state_dict(), assign=True)
    x = coordinates(model)
    assert torch.equal(network(x), other(x))


@family
def test_counts(model: Model) -> None:
    network = build(model)
    assert model.parameters_count() == sum(parameter.numel() for parameter in network.parameters())
    assert model.stored_numbers() == sum(tensor.numel() for tensor in network.state_dict().values())
    fixed = sum(buffer.numel() for buffer in network.buffers())
    assert model.stored_numbers() - model.parameters_count() == fixed


@family
def test_autocast_is_close(model: Model) -> None:
    network, x = build(model), coordinates(model)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
    assert torch.isfinite(rough).all()
    assert not torch.equal(rough.float(), exact)
    assert (rough - exact).abs().max() < 0.15 * exact.abs().max()


@pytest.mark.parametrize(
    "encoding", [Fourier(64, 80.0), Gabor(64, 80.0), Positional(10), Raw()], ids=lambda e: type(e).__name__
)
def test_autocast_keeps_the_phase_exact(encoding: Encoding) -> None:
    network = encoding.network(2)
    network.to_empty(device="cpu").reset_parameters(seeded(0))
    x = Coordinates(range="unit").grid(7, 500)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), exact)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Siren(0, 16), "layers.0"),
        (Finer(0, 16), "layers.0"),
        (Gauss(0, 16), "layers.0"),
        (Wire(0, 16), "layers.0"),
        (Mlp(0, 16, encoding=Raw()), "layers.0"),
        (Mlp(0, 16, encoding=Raw(), experts=Experts(2)), "experts.1.layers.0"),
        (Mlp(0, 16, encoding=Fourier(8), experts=Experts(2)), "gate.layers.0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else value,
)
def test_autocast_keeps_maps_of_coordinates_exact(model: Model, layer: str) -> None:
    module, x = build(model).get_submodule(layer), Coordinates().grid(1, 1000)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), exact)


@family
def test_stacked_parameters_equal_a_loop(model: Model) -> None:
    networks = [build(model, seed) for seed in range(3)]
    x = torch.stack([coordinates(model), coordinates(model).flip(0), 0.5 * coordinates(model)])
    parameters, buffers = torch.func.stack_module_state(networks)
    skeleton = model.network().to("meta")

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(parameters, buffers, x)
    for number, network in enumerate(networks):
        network(x[number]).square().sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name][number], parameter.grad, atol=1e-3, rtol=2e-3, msg=name)


@family
def test_exports_to_onnx_for_any_number_of_samples(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, x = build(model).eval(), coordinates(model)
    samples = torch.export.Dim("samples", min=2)
    with warnings.catch_warnings():  # the exporter warns about its own dependencies' future
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=({0: samples},), verbose=False)
    assert program is not None
    program.save(str(tmp_path / "network.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for part in (x, x[:50]):
        (output,) = session.run(None, {name: part.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), network(part).detach(), atol=1e-4, rtol=1e-3)


# Sizes


@pytest.mark.parametrize(
    ("model", "in_features", "count"),
    [
        (Siren(2, 32), 2, 2_307),
        (Siren(4, 128), 2, 66_819),
        (Siren(8, 1024), 2, 8_402_947),
        (Siren(4, 256), 2, 264_707),
        (Siren(3, 480), 9, 698_883),
        (Mlp(2, 256, encoding=Fourier(64), experts=Experts(1, "layer")), 2, 149_512),
        (Mlp(4, 1024, encoding=Fourier(64), experts=Experts(1, "layer")), 2, 4_268_552),
        (Mlp(4, 1024, encoding=Fourier(256), experts=Experts(1, "layer")), 2, 4_465_160),
        (Mlp(4, 1024, encoding=Gabor(256), norm="layer", experts=Experts(1, "layer")), 2, 4_475_400),
        (Mlp(3, 1024, encoding=Gabor(256), norm="layer", experts=Experts(2, "layer")), 2, 6_847_116),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else str(value),
)
def test_published_parameter_counts(model: Model, in_features: int, count: int) -> None:
    assert model.parameters_count(in_features) == count


def test_siren_parameter_counts_follow_the_formula() -> None:
    for h, w in product((2, 3, 4, 5, 6, 7, 8), (32, 64, 128, 256, 512, 1024)):
        assert Siren(h, w).parameters_count() == (2 * w + w) + h * (w * w + w) + (3 * w + 3)


def test_wire_counts_real_numbers() -> None:
    # real first map, complex hidden map, complex output whose imaginary bias has no effect
    assert Wire(1, 10).parameters_count() == (2 * 10 + 10) + 2 * (10 * 10 + 10) + (2 * 10 * 3 + 3)


def test_fixed_frequencies_are_stored_but_not_trained() -> None:
    fixed, trained = Mlp(1, 8, encoding=Fourier(16)), Mlp(1, 8, encoding=Fourier(16, trainable=True))
    assert fixed.stored_numbers() == trained.stored_numbers() == trained.parameters_count()
    assert trained.parameters_count() - fixed.parameters_count() == 2 * 8


# Initial weights


def spread(tensor: Tensor, bound: float) -> None:
    """The numbers are uniform on [-bound, bound]."""
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.97 * bound
    assert float(tensor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("model", [Siren(2, 400, hidden_omega_0=20.0), Finer(2, 400, hidden_omega_0=20.0)], ids=repr)
def test_siren_initial_weights(model: Model) -> None:
    state = build(model).state_dict()
    spread(state["layers.0.weight"], 1 / 2)
    spread(state["layers.0.bias"], 1 / math.sqrt(2) if isinstance(model, Siren) else 5.0)
    for number in (1, 2, 3):
        spread(state[f"layers.{number}.weight"], math.sqrt(6 / 400) / 20.0)
    spread(state["layers.1.bias"], 1 / math.sqrt(400))


@pytest.mark.parametrize("model", [Wire(1, 400), Gauss(1, 400), Mlp(1, 400, encoding=Fourier(64))], ids=repr)
def test_default_initial_weights(model: Model) -> None:
    for name, tensor in build(model).state_dict().items():
        if name.startswith("layers.1"):
            spread(tensor, 1 / math.sqrt(400))
        if name == "layers.0.weight":
            spread(tensor, 1 / math.sqrt(tensor.shape[1]))


def test_encoding_scales() -> None:
    assert Fourier(64).scale == pytest.approx(6.4, abs=0.05)
    assert Fourier(256).scale == pytest.approx(25.5, abs=0.05)
    assert Gabor(256).width == pytest.approx(1.131, abs=5e-4)
    assert Gabor(64).width == Gabor(256).width
    assert Gabor(256, sigma="text").width == pytest.approx(0.071, abs=5e-4)
    assert Gabor(256, sigma=0.3).width == 0.3
    frequencies = build(Mlp(1, 8, encoding=Fourier(4096, 80.0))).state_dict()["encoding.frequencies"]
    assert float(frequencies.std()) == pytest.approx(80.0, rel=0.05)


@pytest.mark.parametrize("span", ["signed", "unit"])
def test_gabor_centres_cover_the_coordinates(span: str) -> None:
    model = Mlp(1, 8, encoding=Gabor(4096), coordinates=Coordinates(range=span))
    centres = build(model).state_dict()["encoding.centres"]
    assert float(centres.min()) == pytest.approx(model.coordinates.low, abs=0.01)
    assert float(centres.max()) == pytest.approx(model.coordinates.high, abs=0.01)


# Formulas, each against one written independently in float64


def weights(model: Model, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    network = build(model, seed, torch.float64)
    x = coordinates(model, torch.float64)
    return network.state_dict(), x, network(x).detach()


def affine(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def test_siren_formula() -> None:
    state, x, output = weights(Siren(2, 16, first_omega_0=7.0, hidden_omega_0=5.0))
    for number, omega in enumerate((7.0, 5.0, 5.0)):
        x = torch.sin(omega * affine(state, f"layers.{number}", x))
    torch.testing.assert_close(output, affine(state, "layers.3", x))


def test_finer_formula_and_its_two_gradients() -> None:
    for scale_gradient in (False, True):
        model = Finer(0, 8, 3.0, first_bias_scale=1.0, scale_gradient=scale_gradient)
        network = build(model, dtype=torch.float64)
        x = coordinates(model, torch.float64)
        network(x).sum().backward()
        first, last = network.layers
        z = x @ first.weight.T + first.bias
        torch.testing.assert_close(network(x), torch.sin(3 * (z.abs() + 1) * z) @ last.weight.T + last.bias)
        slope = 2 * z.abs() + 1 if scale_gradient else z.abs() + 1
        by_hand = (last.weight.sum(0) * torch.cos(3 * (z.abs() + 1) * z) * 3 * slope).sum(0)
        torch.testing.assert_close(first.bias.grad, by_hand)


def test_gauss_formula() -> None:
    state, x, output = weights(Gauss(1, 16, scale=2.0))
    for number in (0, 1):
        x = torch.exp(-((2.0 * affine(state, f"layers.{number}", x)) ** 2))
    torch.testing.assert_close(output, affine(state, "layers.2", x))


def test_wire_equals_complex_arithmetic() -> None:
    state, x, output = weights(Wire(2, 16, first_omega_0=6.0, hidden_omega_0=4.0, scale=1.5))
    z = affine(state, "layers.0", x).to(torch.complex128)
    h = torch.exp(1j * 6.0 * z - (1.5 * z).abs().square())
    for number in (1, 2):
        weight = torch.complex(state[f"layers.{number}.weight_real"], state[f"layers.{number}.weight_imag"])
        bias = torch.complex(state[f"layers.{number}.bias_real"], state[f"layers.{number}.bias_imag"])
        z = h @ weight.T + bias
        h = torch.exp(1j * 4.0 * z - (1.5 * z).abs().square())
    weight = torch.complex(state["layers.3.weight_real"], state["layers.3.weight_imag"])
    torch.testing.assert_close(output, (h @ weight.T).real + state["layers.3.bias_real"])


def test_fourier_mlp_formula() -> None:
    state, x, output = weights(Mlp(1, 16, encoding=Fourier(8)))
    angle = 2 * math.pi * x @ state["encoding.frequencies"]
    h = torch.cat([angle.cos(), angle.sin()], 1)
    h = affine(state, "layers.0", h).clamp(min=0)
    h = affine(state, "layers.1", h).clamp(min=0)
    torch.testing.assert_close(output, 1 / (1 + torch.exp(-affine(state, "layers.2", h))))


def test_gabor_formula() -> None:
    encoding = Gabor(8, 2.0, "text")
    state, x, output = weights(Mlp(0, 16, encoding=encoding, output="linear", activation="silu"))
    d = x[:, :, None] - state["encoding.centres"]
    angle = 2 * math.pi * (d * state["encoding.frequencies"]).sum(1)
    envelope = torch.exp(-d.square().sum(1) / (2 * 0.1**2 * (4 / 256)))
    h = affine(state, "layers.0", torch.cat([envelope * angle.cos(), envelope * angle.sin()], 1))
    torch.testing.assert_close(output, affine(state, "layers.1", h / (1 + torch.exp(-h))))


def test_positional_formula() -> None:
    state, x, output = weights(Mlp(0, 16, encoding=Positional(3), output="linear", activation="gelu"))
    angles = [2**k * math.pi * x[:, axis] for axis in (0, 1) for k in range(3)]
    gamma = torch.stack([x[:, 0], x[:, 1], *map(torch.sin, angles), *map(torch.cos, angles)], 1)
    h = affine(state, "layers.0", gamma)
    torch.testing.assert_close(output, affine(state, "layers.1", h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))))


@pytest.mark.parametrize(("norm", "position", "skip"), list(product(["layer", "rms"], ["pre", "post"], [False, True])))
def test_norm_and_skip_formula(norm: str, position: str, skip: bool) -> None:
    model = Mlp(2, 16, Raw(), "relu", norm, position, skip, output="linear")
    state, x, output = weights(model)

    def normalise(h: Tensor, name: str) -> Tensor:
        if norm == "rms":
            return h / torch.sqrt(h.square().mean(1, keepdim=True) + 1e-5) * state[f"{name}.weight"]
        h = h - h.mean(1, keepdim=True)
        h = h / torch.sqrt(h.square().mean(1, keepdim=True) + 1e-5)
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    h = x
    for number in range(3):
        new = affine(state, f"layers.{number}", h)
        if position == "pre":
            new = normalise(new, f"norms.{number}").clamp(min=0)
        else:
            new = normalise(new.clamp(min=0), f"norms.{number}")
        h = (new + h) / math.sqrt(2) if skip and number > 0 else new
    torch.testing.assert_close(output, affine(state, "layers.3", h))


def test_experts_formula() -> None:
    state, x, output = weights(Mlp(0, 16, encoding=Fourier(8), experts=Experts(2, "none", 12)))
    angle = 2 * math.pi * x @ state["encoding.frequencies"]
    gamma = torch.cat([angle.cos(), angle.sin()], 1)
    gate = torch.softmax(affine(state, "gate.layers.1", F.gelu(affine(state, "gate.layers.0", x))), 1)
    experts = [
        affine(state, f"experts.{k}.layers.1", affine(state, f"experts.{k}.layers.0", gamma).clamp(min=0))
        for k in range(2)
    ]
    mixed = gate[:, :1] * experts[0] + gate[:, 1:] * experts[1]
    torch.testing.assert_close(output, 1 / (1 + torch.exp(-mixed)))


def test_a_single_expert_ignores_its_gate() -> None:
    network = build(Mlp(1, 16, encoding=Fourier(8), experts=Experts(1)))
    x = Coordinates(range="unit").grid(5, 5)
    assert torch.allclose(network.gate(x), torch.ones(25, 1))


def test_layer_norm_leaves_the_gate_only_the_side_of_the_diagonal() -> None:
    network = build(Mlp(0, 4, encoding=Fourier(8), experts=Experts(2, "layer")))
    x = Coordinates(range="unit", alignment="corner").grid(768, 768)
    x = x[(x[:, 0] - x[:, 1]).abs() > 40 / 767]
    side = torch.sign(x[:, :1] - x[:, 1:])
    torch.testing.assert_close(network.gate.norm(x), side * torch.tensor([1.0, -1.0]), atol=0.02, rtol=0)


# Networks without pixfit


def test_siren_weights_load_into_a_hand_written_network() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = torch.sin(30.0 * layer(x))
            return self.layers[-1](x)

    network, by_hand = build(Siren(2, 16)), ByHand()
    by_hand.load_state_dict(network.state_dict())
    x = Coordinates().grid(5, 6)
    assert torch.equal(network(x), by_hand(x))


def test_the_networks_file_runs_on_its_own() -> None:
    source = inspect.getsource(pixfit.models.networks)
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in imported} <= set(sys.stdlib_module_names) | {"torch"}
    copy: dict[str, Any] = {"__name__": "copy"}
    exec(compile(source, "copy.py", "exec"), copy)
    fourier = copy["FourierEncoding"](2, 32, 1.0)
    pairs = [
        (Siren(2, 24), copy["SirenNetwork"](2, 3, (24, 24, 24))),
        (Wire(1, 12), copy["WireNetwork"](2, 3, (12, 12))),
        (
            Mlp(0, 24, encoding=Fourier(32), norm="rms"),
            copy["MlpNetwork"](32, 3, (24,), norm="rms", output="sigmoid", encoding=fourier),
        ),
    ]
    for model, plain in pairs:
        network, x = build(model), coordinates(model)
        plain.load_state_dict(network.state_dict())
        assert torch.equal(plain(x), network(x))


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Siren(hidden_layers=10**9), r"Siren\.hidden_layers: got 1000000000, allowed whole numbers from 0"),
        (lambda: Siren(hidden_layers=True), r"Siren\.hidden_layers"),
        (lambda: Siren(hidden_features=0), r"Siren\.hidden_features: got 0"),
        (lambda: Siren(hidden_features=2**17), r"Siren\.hidden_features"),
        (lambda: Siren(2, (8, 8)), r"got 2 widths, allowed one width or hidden_layers \+ 1 = 3"),
        (lambda: Siren(1, (8, 0)), r"Siren\.hidden_features: got 0"),
        (lambda: Siren(hidden_features=[8]), r"Siren\.hidden_features"),
        (lambda: Siren(first_omega_0=math.nan), r"Siren\.first_omega_0: got nan"),
        (lambda: Siren(hidden_omega_0=0.0), r"Siren\.hidden_omega_0: got 0.0, allowed numbers above 0"),
        (lambda: Siren(output="tanh"), r"Siren\.output: got 'tanh', allowed 'linear' or 'sigmoid'"),
        (lambda: Siren(output="sigmoid"), r"Siren\.output.*target_range 'signed'"),
        (lambda: Siren(coordinates="signed"), r"Siren\.coordinates: got 'signed', allowed Coordinates"),
        (lambda: Finer(first_bias_scale=-1.0), r"Finer\.first_bias_scale"),
        (lambda: Finer(scale_gradient=1), r"Finer\.scale_gradient: got 1, allowed bool"),
        (lambda: Wire(scale="10"), r"Wire\.scale: got '10'"),
        (lambda: Gauss(scale=math.inf), r"Gauss\.scale"),
        (lambda: Mlp(encoding=None), r"Mlp\.encoding: got None, allowed Encoding"),
        (lambda: Mlp(activation="sine"), r"Mlp\.activation"),
        (lambda: Mlp(norm="batch"), r"Mlp\.norm: got 'batch', allowed 'none' or 'layer' or 'rms'"),
        (lambda: Mlp(norm_position="mid"), r"Mlp\.norm_position"),
        (lambda: Mlp(1, (8, 16), skip=True), r"Mlp\.skip.*needs equal widths"),
        (lambda: Mlp(experts=2), r"Mlp\.experts: got 2, allowed Experts or None"),
        (lambda: Experts(257), r"Experts\.count"),
        (lambda: Experts(gate_norm="rms"), r"Experts\.gate_norm"),
        (lambda: Fourier(7), r"Fourier\.features: got 7, allowed even numbers"),
        (lambda: Fourier(freq_scale=-1), r"Fourier\.freq_scale"),
        (lambda: Gabor(sigma="wide"), r"Gabor\.sigma: got 'wide'"),
        (lambda: Gabor(sigma=0), r"Gabor\.sigma"),
        (lambda: Positional(octaves=0), r"Positional\.octaves"),
        (lambda: Coordinates(alignment="edge"), r"Coordinates\.alignment"),
        (lambda: Coordinates(order="yx"), r"Coordinates\.order: got 'yx', allowed 'xy' or 'row_col'"),
        (lambda: Siren().network(0, 3), r"in_features: got 0"),
        (lambda: Mlp().network(2, 10**6), r"out_features: got 1000000"),
    ],
)
def test_settings_out_of_bounds_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_settings_are_equal_values() -> None:
    assert Siren(first_omega_0=30) == Siren() == replace(Siren(hidden_layers=2), hidden_layers=4)
    assert hash(Mlp(encoding=Gabor(sigma=1))) == hash(Mlp(encoding=Gabor(sigma=1.0)))
    assert repr(Fourier(freq_scale=80)) == repr(Fourier(freq_scale=80.0))


def test_targets_are_undone_by_pixels() -> None:
    pixels = torch.linspace(0, 1, 256)
    assert torch.equal(Siren().to_target(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(Siren(target_range="unit").to_target(pixels), pixels)
    for model in FAMILY:
        torch.testing.assert_close(model.to_pixels(model.to_target(pixels)), pixels)
    assert float(Siren().to_pixels(torch.tensor(1.5))) == 1.25  # not clamped


# Coordinates

sides = st.integers(1, 40)
conventions = st.builds(
    Coordinates,
    st.sampled_from(["center", "corner"]),
    st.sampled_from(["signed", "unit"]),
    st.sampled_from(["xy", "row_col"]),
    st.sampled_from(["stretch", "keep"]),
)


@given(side=st.integers(2, 500))
def test_pixel_positions_follow_the_formulas(side: int) -> None:
    index = torch.arange(side, dtype=torch.float64)
    expected = {
        ("center", "signed"): (2 * index + 1) / side - 1,
        ("center", "unit"): (index + 0.5) / side,
        ("corner", "signed"): -1 + 2 * index / (side - 1),
        ("corner", "unit"): index / (side - 1),
    }
    for (alignment, span), positions in expected.items():
        rows, columns = Coordinates(alignment, span).axes(side, side + 1, dtype=torch.float64)
        assert columns.shape == (side + 1,)
        torch.testing.assert_close(rows, positions, atol=1e-15, rtol=1e-15)


@given(convention=conventions, height=sides, width=sides, scale=st.integers(1, 4))
@settings(deadline=None)
def test_grids_are_symmetric_and_in_range(convention: Coordinates, height: int, width: int, scale: int) -> None:
    grid = convention.grid(height, width, samples=(scale * height, scale * width))
    assert grid.shape == (scale * height * scale * width, 2)
    assert grid.dtype == torch.float32
    mirrored = -grid if convention.range == "signed" else 1 - grid.double()
    exact = convention.range == "signed"
    torch.testing.assert_close(grid.flip(0), mirrored.float(), atol=0 if exact else 1e-7, rtol=0)
    assert grid.min() >= convention.low
    assert grid.max() <= convention.high


@given(convention=conventions, height=sides, width=sides, data=st.data())
@settings(deadline=None)
def test_bands_equal_slices_of_the_grid(convention: Coordinates, height: int, width: int, data: st.DataObject) -> None:
    rows, columns = convention.axes(height, width)
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first + 1, height))
    band = convention.mesh(rows[first:last], columns)
    assert torch.equal(band, convention.grid(height, width)[first * width : last * width])


@given(convention=conventions, height=sides, width=sides, scale=st.integers(1, 5), data=st.data())
@settings(deadline=None)
def test_regions_equal_slices_of_the_whole(
    convention: Coordinates, height: int, width: int, scale: int, data: st.DataObject
) -> None:
    x = data.draw(st.integers(0, width - 1))
    y = data.draw(st.integers(0, height - 1))
    w = data.draw(st.integers(1, width - x))
    h = data.draw(st.integers(1, height - y))
    whole_rows, whole_columns = convention.axes(height, width, samples=(scale * height, scale * width))
    rows, columns = convention.axes(height, width, region=(x, y, w, h), samples=(scale * h, scale * w))
    assert torch.equal(rows, whole_rows[scale * y : scale * (y + h)])
    assert torch.equal(columns, whole_columns[scale * x : scale * (x + w)])


def test_column_order() -> None:
    xy, row_col = Coordinates().grid(2, 3), Coordinates(order="row_col").grid(2, 3)
    assert torch.equal(xy, row_col.flip(1))
    assert torch.equal(xy[:3, 0], xy[3:, 0])  # row-major: x runs fastest
    assert torch.equal(xy[:3, 1], torch.full((3,), -0.5))


def test_twice_the_samples() -> None:
    rows, _ = Coordinates().axes(2, 2, samples=(4, 4))
    assert torch.equal(rows, torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    rows, _ = Coordinates("corner", "unit").axes(2, 2, samples=(4, 4))
    torch.testing.assert_close(rows, torch.tensor([0, 1 / 3, 2 / 3, 1]))


def test_one_pixel_is_in_the_middle() -> None:
    for alignment, aspect in product(["center", "corner"], ["stretch", "keep"]):
        assert torch.equal(Coordinates(alignment, "signed", aspect=aspect).grid(1, 1), torch.zeros(1, 2))
        assert torch.equal(Coordinates(alignment, "unit", aspect=aspect).grid(1, 1), torch.full((1, 2), 0.5))
    rows, columns = Coordinates("corner").axes(1, 3)
    assert rows.tolist() == [0.0]
    assert columns.tolist() == [-1.0, 0.0, 1.0]


def test_kept_aspect_has_square_pixels() -> None:
    rows, columns = Coordinates(aspect="keep").axes(10, 40, dtype=torch.float64)
    torch.testing.assert_close(rows.diff()[:1], columns.diff()[:1])
    assert float(columns[0]) == -39 / 40
    assert float(rows[0]) == -9 / 40
    rows, _ = Coordinates("corner", "unit", aspect="keep").axes(10, 40)
    torch.testing.assert_close(rows[[0, -1]], torch.tensor([0.375, 0.625]))


def test_fractional_regions() -> None:
    rows, columns = Coordinates(range="unit").axes(8, 8, region=(0.5, 1.25, 2.5, 0.5), samples=(1, 5))
    assert rows.tolist() == [1.5 / 8]
    torch.testing.assert_close(columns, (0.5 + torch.arange(5) * 0.5 + 0.25) / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"region": (0, 0, 9, 4)}, "region: got"),
        ({"region": (-1, 0, 2, 2)}, "region: got"),
        ({"region": (0, 0, 0, 2)}, "region: got"),
        ({"region": (math.nan, 0, 1, 1)}, "region: got"),
        ({"region": (0, 0, 1.5, 1)}, "fractional size needs samples"),
        ({"samples": (0, 4)}, "samples"),
        ({"samples": (4, 2**30)}, "samples"),
    ],
)
def test_regions_and_samples_out_of_bounds_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Coordinates().grid(8, 8, **arguments)


def test_pictures_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="height: got 0"):
        Coordinates().grid(0, 8)


@pytest.mark.parametrize("order", ["xy", "row_col"])
def test_picked_samples_are_those_of_the_mesh(order: str) -> None:
    coordinates = Coordinates(order=order)  # type: ignore[arg-type]
    rows, columns = coordinates.axes(7, 11)
    index = torch.tensor([[0, 10, 11], [76, 40, 40]])
    assert torch.equal(coordinates.pick(rows, columns, index), coordinates.mesh(rows, columns)[index])
