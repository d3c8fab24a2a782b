"""Plans: each is its model's network, and the twin that runs them in plain torch gives that network's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixfit.kernels import Layer, Lift, Plan, twin
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

WIDTHS = (1, 3, 17, 33)
LEVELS = ((3, 5, 4), (7, 4, 2), (16, 16, 1))

SERVED: list[Model] = [
    Siren(2, 33),
    Siren(1, 33, output="sigmoid", target_range="unit"),
    Finer(2, 33),
    Finer(2, 33, scale_gradient=True),
    Gauss(2, 33, scale=3.0),
    Mlp(2, 33, encoding=Raw()),
    Mlp(2, 33, encoding=Positional(4), activation="gelu", skip=True),
    Mlp(2, 33, encoding=Positional(4, include_input=False), activation="silu", norm="rms"),
    Mlp(2, 33, encoding=Fourier(34), norm="layer"),
    Mlp(2, 33, encoding=Fourier(34), norm="rms", norm_position="pre", skip=True),
    Mlp(2, 33, encoding=Gabor(34, 3.0), activation="gelu", norm="layer", skip=True),
    Mlp(2, 33, encoding=Fourier(34), norm="layer", experts=Experts(1, "layer", 5)),
    Mlp(1, 33, encoding=Grid(LEVELS, 64, "cubic")),
]
NOT_SERVED: list[Model] = [
    Wire(1, 8),
    Mlp(1, 8, encoding=Fourier(8, trainable=True)),
    Mlp(1, 8, encoding=Gabor(8, trainable=True)),
    Mlp(1, 8, encoding=Fourier(8), experts=Experts(2)),
]
served = pytest.mark.parametrize("model", SERVED, ids=[f"{n}-{type(m).__name__}" for n, m in enumerate(SERVED)])


def plan_of(model: Model, in_features: int = 2, out_features: int = 3) -> Plan:
    plan = model.plan(in_features, out_features)
    assert plan is not None
    return plan


def trained(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of the trainable tensors that the plan names."""
    shapes: dict[str, tuple[int, ...]] = {level.table: (level.entries, level.features) for level in plan.lift.levels}
    for layer in plan.layers:
        shapes[layer.weight] = (layer.outputs, layer.inputs)
        shapes |= {name: (layer.outputs,) for name in (layer.bias, layer.gain, layer.shift) if name is not None}
    return shapes


def fixed(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of the fixed tensors that the plan names."""
    shape = (plan.in_features, plan.lift.features // 2)
    return {name: shape for name in (plan.lift.frequencies, plan.lift.centres) if name is not None}


@dataclass
class Case:
    """F networks of one model with points (1 or F, B, D) and slopes (F, B, C) of a loss at their outputs."""

    networks: Sequence[nn.Module]
    points: Tensor
    slopes: Tensor

    def of(self, dtype: torch.dtype) -> Case:
        return Case([network.to(dtype) for network in self.networks], self.points.to(dtype), self.slopes.to(dtype))

    def by_module(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (F, B, C) and gradients (F, *shape) of each parameter from the networks themselves."""
        points = self.points.expand(len(self.networks), -1, -1)
        outputs = [network(x) for network, x in zip(self.networks, points, strict=True)]
        losses = [(output * slope).sum() for output, slope in zip(outputs, self.slopes, strict=True)]
        each = [
            torch.autograd.grad(loss, list(network.parameters()))
            for loss, network in zip(losses, self.networks, strict=True)
        ]
        names = [name for name, _ in self.networks[0].named_parameters()]
        gradients = {name: torch.stack(parts) for name, parts in zip(names, zip(*each, strict=True), strict=True)}
        return torch.stack(outputs).detach(), gradients

    def by_twin(self, plan: Plan, backward: Any = "float32") -> tuple[Tensor, dict[str, Tensor]]:
        states = [network.state_dict() for network in self.networks]
        names = [*trained(plan), *fixed(plan)]
        tensors = {name: torch.stack([state[name] for state in states]) for name in names}
        leaves = {name: tensors[name].requires_grad_(True) for name in trained(plan)}
        output = twin.forward(plan, tensors, self.points, backward=backward)
        gradients = torch.autograd.grad((output * self.slopes).sum(), list(leaves.values()))
        return output.detach(), dict(zip(leaves, gradients, strict=True))


def case(
    model: Model,
    in_features: int = 2,
    out_features: int = 3,
    *,
    fits: int = 3,
    samples: int = 37,
    shared: bool = False,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    networks = [model.build(in_features, out_features, generator=generator) for _ in range(fits)]
    with torch.no_grad():
        for network in networks:
            for name, parameter in network.named_parameters():
                if "norm" in name or "tables" in name:  # the initial 1, 0 and nearly 0 would hide mistakes
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    low, high = model.coordinates.low, model.coordinates.high
    points = low + (high - low) * torch.rand(1 if shared else fits, samples, in_features, generator=generator)
    slopes = torch.randn(fits, samples, out_features, generator=generator)
    return Case(networks, points, slopes)


def distance(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Norm of the differences of all tensors, in units of the norm of all."""
    difference = sum(float((ours[name].double() - truth[name].double()).square().sum()) for name in ours)
    return math.sqrt(difference / sum(float(truth[name].double().square().sum()) for name in ours))


@st.composite
def architectures(draw: st.DrawFn) -> Model:
    """Any model that a plan serves, small."""
    depth = draw(st.integers(0, 3))
    width = draw(st.sampled_from(WIDTHS))
    unequal = draw(st.tuples(*[st.sampled_from(WIDTHS)] * (depth + 1)))
    widths = draw(st.sampled_from([width, unequal]))
    kind = draw(st.sampled_from([Siren, Finer, Gauss, Mlp]))
    common: dict[str, Any] = {"hidden_layers": depth, "hidden_features": widths}
    common |= draw(st.sampled_from([{"output": "linear"}, {"output": "sigmoid", "target_range": "unit"}]))
    if kind is Gauss:
        return Gauss(**common, scale=draw(st.sampled_from([1.0, 3.0, 10.0])))
    if kind in (Siren, Finer):
        omegas = st.sampled_from([1.0, 6.0, 30.0])
        common |= {"first_omega_0": draw(omegas), "hidden_omega_0": draw(omegas)}
        return Siren(**common) if kind is Siren else Finer(**common, scale_gradient=draw(st.booleans()))
    model = Mlp(
        **common,
        encoding=draw(encodings),
        activation=draw(st.sampled_from(["relu", "gelu", "silu"])),
        norm=draw(st.sampled_from(["none", "layer", "rms"])),
        norm_position=draw(st.sampled_from(["post", "pre"])),
        experts=draw(st.sampled_from([None, None, Experts(1, "none", 3)])),
        coordinates=draw(st.builds(Coordinates, range=st.sampled_from(["unit", "signed"]), order=orders)),
    )
    return replace(model, skip=len(set(model.widths)) == 1 and draw(st.booleans()))


orders = st.sampled_from(["xy", "row_col"])
encodings: st.SearchStrategy[Encoding] = st.one_of(
    st.just(Raw()),
    st.builds(Fourier, st.sampled_from([2, 6, 34]), st.sampled_from([0.5, 5.0])),
    st.builds(Gabor, st.sampled_from([2, 6, 34]), st.sampled_from([0.5, 5.0]), st.sampled_from(["code", 0.3])),
    st.builds(Positional, st.integers(1, 5), st.booleans()),
    st.builds(
        Grid,
        st.sampled_from([LEVELS, LEVELS[:1]]),
        st.sampled_from([None, 8]),
        st.sampled_from(["linear", "cubic", "spline"]),
        st.sampled_from(["center", "corner"]),
    ),
)


@st.composite
def sized(draw: st.DrawFn) -> tuple[Model, int, int]:
    """A model with numbers of coordinates and outputs that it takes."""
    model = draw(architectures())
    pair = isinstance(model, Mlp) and isinstance(model.encoding, Grid)
    return model, 2 if pair else draw(st.integers(1, 5)), draw(st.integers(1, 4))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, Case]:
    model, in_features, out_features = draw(sized())
    made = case(
        model,
        in_features,
        out_features,
        fits=draw(st.sampled_from([1, 3])),
        samples=draw(st.sampled_from([1, 2, 37])),
        shared=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    return plan_of(model, in_features, out_features), made


# --- what a plan says


def test_the_lists_have_every_model_and_every_encoding() -> None:
    models = [*SERVED, *NOT_SERVED]
    assert {type(model) for model in models} == set(MODELS.values())
    assert {type(model.encoding) for model in models if isinstance(model, Mlp)} == set(ENCODINGS.values())


@pytest.mark.parametrize("model", NOT_SERVED, ids=[f"{n}-{type(m).__name__}" for n, m in enumerate(NOT_SERVED)])
def test_models_that_no_fused_kernel_serves_have_no_plan(model: Model) -> None:
    assert model.plan() is None
    assert model.plan(9, 1) is None


@settings(max_examples=200, deadline=None)
@given(made=sized())
def test_a_plan_names_all_tensors_of_its_network(made: tuple[Model, int, int]) -> None:
    model, in_features, out_features = made
    plan = plan_of(model, in_features, out_features)
    with torch.device("meta"):
        network = model.network(in_features, out_features)
    # The gate of a single expert is 1 whatever its parameters, so that a plan leaves it out.
    parameters = {
        name: tuple(value.shape) for name, value in network.named_parameters() if not name.startswith("gate.")
    }
    assert trained(plan) == parameters
    assert fixed(plan) == {name: tuple(value.shape) for name, value in network.named_buffers()}
    assert (plan.in_features, plan.out_features) == (in_features, out_features)
    assert [layer.inputs for layer in plan.layers] == [plan.lift.features, *(la.outputs for la in plan.layers[:-1])]
    assert all(layer.inputs == layer.outputs for layer in plan.layers if layer.skip)


def test_parameters_that_a_plan_leaves_out_have_no_gradient() -> None:
    model = Mlp(1, 17, encoding=Fourier(6), experts=Experts(1, "layer", 5))
    _, gradients = case(model).by_module()
    left_out = set(gradients) - set(trained(plan_of(model)))
    assert {name.split(".")[0] for name in left_out} == {"gate"}
    assert all(not gradients[name].any() for name in left_out)


def test_a_plan_spells_the_network_out() -> None:
    model = Mlp(1, 5, encoding=Gabor(6, sigma=0.5), activation="silu", norm="layer", norm_position="pre", skip=True)
    hidden = Layer(
        6, 5, "layers.0.weight", "layers.0.bias", "silu",
        norm="layer", norm_first=True, gain="norms.0.weight", shift="norms.0.bias",
    )  # fmt: skip
    second = replace(
        hidden, inputs=5, weight="layers.1.weight", bias="layers.1.bias", gain="norms.1.weight", shift="norms.1.bias",
        skip=True,
    )  # fmt: skip
    assert model.plan() == Plan(
        in_features=2,
        lift=Lift("gabor", 6, "encoding.frequencies", "encoding.centres", sigma=0.5),
        layers=(hidden, second, Layer(5, 3, "layers.2.weight", "layers.2.bias")),
        output="sigmoid",
    )
    assert [layer.omega for layer in plan_of(Siren(2, 8, 6.0, 5.0)).layers] == [6.0, 5.0, 5.0, 1.0]


def test_sizes_out_of_bounds_are_refused() -> None:
    for model in SERVED:
        with pytest.raises(ValueError, match="in_features: got 0"):
            model.plan(0, 3)


# --- the twin is the network


@settings(max_examples=150, deadline=None)
@given(made=cases())
def test_the_twin_is_the_network_in_double_precision(made: tuple[Plan, Case]) -> None:
    plan, exact = made[0], made[1].of(torch.float64)
    expected, slopes = exact.by_module()
    output, gradients = exact.by_twin(plan)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    scale = max(float(slope.abs().max()) for slope in slopes.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, slopes[name], atol=1e-10 * scale, rtol=1e-10, msg=name)


@settings(max_examples=100, deadline=None)
@given(made=cases())
def test_the_twin_is_the_network_in_single_precision(made: tuple[Plan, Case]) -> None:
    plan, single = made
    (near, by_module), (output, gradients) = single.by_module(), single.by_twin(plan)
    truth, slopes = single.of(torch.float64).by_module()
    # Steep networks, such as narrow Gaussians in a row, magnify rounding: then the network itself is as far off.
    assert distance({"": output}, {"": truth}) < 10 * distance({"": near}, {"": truth}) + 1e-4
    kept = {name: by_module[name] for name in gradients}
    assert distance(gradients, slopes) < 10 * distance(kept, slopes) + 1e-4


@served
@pytest.mark.parametrize("fits", [1, 3])
def test_the_twin_rounds_as_little_as_the_network(model: Model, fits: int) -> None:
    single = case(model, fits=fits)
    (near, by_module), (output, gradients) = single.by_module(), single.by_twin(plan_of(model))
    truth, slopes = single.of(torch.float64).by_module()
    assert output.dtype == torch.float32
    assert distance({"": output}, {"": truth}) < 3 * distance({"": near}, {"": truth}) + 1e-6
    kept = {name: by_module[name] for name in gradients}
    assert distance(gradients, slopes) < 3 * distance(kept, slopes) + 1e-6


def test_missing_tensors_and_unknown_precisions_are_refused() -> None:
    plan = plan_of(Siren(0, 8))
    tensors = {name: torch.zeros(1, *shape) for name, shape in trained(plan).items()}
    points = torch.zeros(1, 4, 2)
    assert twin.forward(plan, tensors, points).shape == (1, 4, 3)
    with pytest.raises(ValueError, match="backward: got 'float16', allowed 'float32' or 'bfloat16'"):
        twin.forward(plan, tensors, points, backward="float16")  # type: ignore[arg-type]
    del tensors["layers.1.weight"]
    with pytest.raises(KeyError, match=r"layers\.1\.weight"):
        twin.forward(plan, tensors, points)


# --- bfloat16 in the backward products


@served
def test_the_rounded_backward_leaves_the_forward_alone(model: Model) -> None:
    plan, made = plan_of(model), case(model)
    output, gradients = made.by_twin(plan)
    same, rounded = made.by_twin(plan, "bfloat16")
    assert torch.equal(output, same)
    assert 5e-4 < distance(rounded, gradients) < 2e-2
    last = plan.layers[-1].bias
    assert last is not None
    assert torch.equal(rounded[last], gradients[last])  # a sum of the loss's own slopes


@pytest.mark.parametrize("encoding", [None, Positional(3)], ids=["raw", "encoded"])
def test_the_rounded_backward_by_hand(encoding: Encoding | None) -> None:
    """One hidden layer, written out: the omega of sine is in the weight before it is rounded."""
    model: Model = Siren(1, 17, 6.0, 5.0) if encoding is None else Mlp(1, 17, encoding=encoding, output="linear")
    made = case(model, fits=1)
    _, gradients = made.by_twin(plan_of(model), "bfloat16")
    state = made.networks[0].state_dict()
    weights, biases = ([state[f"layers.{n}.{name}"] for n in range(3)] for name in ("weight", "bias"))
    omegas = (6.0, 5.0, 1.0) if encoding is None else (1.0, 1.0, 1.0)

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().double()

    x = made.points[0] if encoding is None else made.networks[0].get_submodule("encoding")(made.points[0])
    inputs, slopes = [], []
    for weight, bias, omega in list(zip(weights, biases, omegas, strict=True))[:2]:
        inputs.append(x)
        u = x @ (omega * weight).T + omega * bias
        x, slope = (u.sin(), u.cos()) if encoding is None else (u.relu(), (u > 0).float())
        slopes.append(slope)
    du = made.slopes[0]
    for number in (2, 1, 0):
        exact = number == 0 and encoding is None
        operands = (du.double(), inputs[0].double()) if exact else (rounded(du), rounded([*inputs, x][number]))
        by_hand = omegas[number] * operands[0].T @ operands[1]
        torch.testing.assert_close(gradients[f"layers.{number}.weight"][0].double(), by_hand, atol=2e-5, rtol=2e-4)
        by_hand = omegas[number] * du.double().sum(dim=0)
        torch.testing.assert_close(gradients[f"layers.{number}.bias"][0].double(), by_hand, atol=2e-5, rtol=2e-4)
        if number:
            dx = rounded(du) @ rounded(omegas[number] * weights[number])
            du = dx.float() * slopes[number - 1]
