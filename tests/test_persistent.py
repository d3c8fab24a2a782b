"""The persistent Triton kernel against the plain step: on a card where there is one, else in Triton's interpreter.

The interpreter runs one thread, so it cannot show a race; the tests of identical fits can, on a card. That the kernel
compiles for real cards, without loops that prefetch, is tested anywhere.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixfit.kernels import Layer, Lift, Plan
from pixfit.kernels.graph import Fits, GraphSteps, Inputs
from pixfit.kernels.native import Update
from pixfit.kernels.persistent import PersistentSteps
from pixfit.losses import MSE
from pixfit.models import Siren
from tests.reference import train
from tests.test_graph import psnr, rates_of, samples_of, stacked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # is read when Triton is first imported
triton = pytest.importorskip("triton", reason="needs Triton, which is not installed")
tl = pytest.importorskip("triton.language")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton's interpreter, and Triton was imported without it", allow_module_level=True)

ACTIVATIONS = {
    "sine": 9.0,
    "finer": 4.0,
    "finer_exact": 4.0,
    "gauss": 2.0,
    "relu": 1.0,
    "gelu": 1.0,
    "silu": 1.0,
    "none": 1.0,
}


def plan_of(
    sizes: tuple[int, ...], activation: Any, omega: float, *, bias: bool = True, output: Any = "linear"
) -> Plan:
    layers = [
        Layer(n, m, f"{i}.w", f"{i}.b" if bias else None, activation, omega) for i, (n, m) in enumerate(pairwise(sizes))
    ]
    layers[-1] = replace(layers[-1], activation="none", omega=1.0)
    return Plan(sizes[0], Lift("raw", sizes[0]), tuple(layers), output)


def problem(plan: Plan, fits: int, samples: int, seed: int = 0) -> tuple[dict[str, int], Tensor, Inputs]:
    """Places, weights with a spread of 1/√inputs, and random samples."""
    generator, places, parts, at = torch.Generator().manual_seed(seed), {}, [], 0
    for layer in plan.layers:
        for name, size in ((layer.weight, layer.inputs * layer.outputs), (layer.bias, layer.outputs)):
            if name is not None:
                places[name], at = at, at + size
                spread = 1 / math.sqrt(layer.inputs) / layer.omega
                parts.append((torch.rand(fits, size, generator=generator) * 2 - 1) * spread)
    x = torch.rand(1 if seed % 2 else fits, samples, plan.in_features, generator=generator) * 2 - 1
    y = torch.rand(fits, samples, plan.out_features, generator=generator)
    return places, torch.cat(parts, dim=1), (x.to(DEVICE), y.to(DEVICE), None)


def fits_of(weights: Tensor, lr: float | None = None) -> Fits:
    weights = weights.clone().to(DEVICE)
    count = len(weights)
    state = torch.tensor([[math.inf, 0, 1, 0, 0]] * count, dtype=torch.float64, device=DEVICE)
    base = torch.full((count,), lr or 1.0, dtype=torch.float64, device=DEVICE)
    plateau = {} if lr is None else {"plateau": state, "plateau_base": base}
    return Fits(weights, torch.zeros_like(weights), torch.zeros_like(weights), **plateau)


def agree(plan: Plan, fits: int, samples: int, seed: int, steps: int = 3, rtol: float = 2e-5) -> None:
    """Losses, gradients, moments and weights after a few steps, against the plain step in float64."""
    places, weights, inputs = problem(plan, fits, samples, seed)
    update, rates = Update("adam", betas=(0.8, 0.95), weight_decay=0.1), rates_of(fits, steps, 1e-4)
    ours, exact = fits_of(weights), fits_of(weights.double())
    wide = (inputs[0].double(), inputs[1].double(), None)
    losses = PersistentSteps(plan, places, ours, inputs, update).steps(0, rates)
    truth = GraphSteps(plan, places, exact, {}, lambda step: wide, update, MSE()).steps(0, rates)
    torch.testing.assert_close(losses.double(), truth, rtol=rtol, atol=0)
    for name in ("first", "second"):
        found, wanted = getattr(ours, name).double(), getattr(exact, name)
        torch.testing.assert_close(found, wanted, rtol=0, atol=rtol * float(wanted.abs().max()))
    torch.testing.assert_close(ours.weights.double(), exact.weights, rtol=0, atol=0.02 * steps * 1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    agree(plan_of((2, 20, 12, 3), activation, ACTIVATIONS[activation]), 2, 70, seed=1)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 4), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 150),
    st.booleans(), st.sampled_from(["linear", "sigmoid"]), st.integers(0, 99),
)  # fmt: skip
def test_any_network(
    dims: int, widths: list[int], channels: int, samples: int, bias: bool, output: str, seed: int
) -> None:
    """Odd widths, one feature, one sample, one to three tiles, one hidden layer, no bias, shared or own coordinates."""
    agree(plan_of((dims, *widths, channels), "silu", 1.0, bias=bias, output=output), 2, samples, seed)


def test_the_widest_network() -> None:
    agree(plan_of((2, 128, 100, 3), "sine", 5.0), 1, 40, seed=0, steps=2)


def test_a_hundred_steps_are_the_plain_loops() -> None:
    """Within 0.01 dB of PyTorch's own optimiser and scheduler, whose rate falls on the way, in two calls."""
    made, inputs = stacked(Siren(1, 16), (0,), device=DEVICE), samples_of(1, 8, device=DEVICE)
    fits = fits_of(made.fits.weights, lr=2e-3)
    kernel = PersistentSteps(made.plan, made.places, fits, inputs, Update("adam", plateau=(0.5, 0.3, 0.0, 1e-8, 4)))
    losses = torch.cat([kernel.steps(0, rates_of(1, 37, 2e-3)), kernel.steps(37, rates_of(1, 64, 2e-3))], dim=1)
    for fit, network in enumerate(made.networks):
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=4, threshold=0.3)
        curve = train(network, inputs[0][0].cpu(), inputs[1][fit].cpu(), optimiser, 101, scheduler=scheduler)
        assert (psnr(losses[fit]) - psnr(torch.tensor(curve))).abs().max() < 0.01
        assert fits.plateau is not None
        assert float(fits.plateau[fit, 2]) == pytest.approx(optimiser.param_groups[0]["lr"] / 2e-3)
        assert fits.plateau[fit, 2] < 1


def test_identical_fits_stay_identical_and_mates_do_not_matter() -> None:
    """Bit for bit, between programs, calls and runs: on a card a race between threads would break it."""
    copies = 3 if DEVICE == "cpu" else 300
    plan = plan_of((2, 33, 20, 3), "sine", 9.0)
    places, weights, (x, y, _) = problem(plan, 1, 70 if DEVICE == "cpu" else 1000, seed=1)
    weights, y = weights.repeat(copies, 1), y.repeat(copies, 1, 1)
    weights[0] = math.nan
    runs = []
    for cuts in ((4,), (1, 3)):
        fits = fits_of(weights)
        kernel, at, parts = PersistentSteps(plan, places, fits, (x, y, None), Update("adam")), 0, []
        for steps in cuts:
            parts.append(kernel.steps(at, rates_of(copies, steps, 1e-3)))
            at += steps
        runs.append((torch.cat(parts, dim=1), fits.weights))
    for ours in (*runs[0], *runs[1]):
        assert ours[0].isnan().all()
        assert torch.equal(ours[1:], ours[1:2].expand_as(ours[1:]))
        assert ours[1].isfinite().all()
    assert torch.equal(runs[0][0][1:], runs[1][0][1:])
    assert torch.equal(runs[0][1][1:], runs[1][1][1:])


@pytest.mark.parametrize("activation", ["relu", "sine", "gauss"])
def test_a_fit_that_diverged_shows_it(activation: str) -> None:
    plan = plan_of((2, 8, 8, 3), activation, 1.0)
    places, weights, inputs = problem(plan, 1, 20)
    weights[0, 0] = math.nan
    assert (
        PersistentSteps(plan, places, fits_of(weights), inputs, Update("adam")).steps(0, rates_of(1, 1)).isnan().all()
    )


def test_sine_and_cosine() -> None:
    from pixfit.kernels import persistent_kernel

    sincos = persistent_kernel._sincos

    @triton.jit  # type: ignore[untyped-decorator]
    def run(x, sine, cosine, N: tl.constexpr):  # type: ignore[no-untyped-def, name-defined]
        at = tl.arange(0, N)
        s, c = sincos(tl.load(x + at))
        tl.store(sine + at, s)
        tl.store(cosine + at, c)

    run.fn.__globals__["sincos"] = sincos
    for limit in (1.0, 60.0, 1e3, 1e4):
        x = ((torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 2 - 1) * limit).to(DEVICE)
        sine, cosine = torch.empty_like(x), torch.empty_like(x)
        run[(1,)](x, sine, cosine, N=4096)
        assert float((sine - x.double().sin()).abs().max()) < 2e-7
        assert float((cosine - x.double().cos()).abs().max()) < 2e-7


def test_what_it_cannot_do_is_refused() -> None:
    plan = plan_of((2, 8, 3), "relu", 1.0)
    places, weights, inputs = problem(plan, 2, 20)
    fits, update = fits_of(weights), Update("adam")
    average, clip = Update("adam", average_decay=0.9), Update("adam", clip_norm=1.0)
    x, y, _ = inputs
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("128 features", (plan_of((2, 129, 3), "relu", 1.0), places, fits, inputs, update)),
        ("float32, not", (plan, places, fits_of(weights.double()), inputs, update)),
        ("no masks", (plan, places, replace(fits, mask=torch.ones_like(fits.weights)), inputs, update)),
        ("no masks", (plan, places, replace(fits, average=torch.ones_like(fits.weights)), inputs, average)),
        ("no masks", (plan, places, fits, (x, y, torch.ones_like(y)), update)),
        ("clip", (plan, places, fits, inputs, clip)),
        ("rule", (plan, places, fits, inputs, Update("schedule_free"))),
        ("coordinates: got", (plan, places, fits, (x[:, :5], y, None), update)),
        ("targets: got", (plan, places, fits, (x, y[:1], None), update)),
        ("begins at -1", (plan, {"0.w": 0}, fits, inputs, update)),
        ("begins at 9", (plan, {**places, "0.w": weights.shape[1] - 15}, fits, inputs, update)),
        ("as many inputs", (replace(plan, layers=(replace(plan.layers[0], inputs=1), plan.layers[1])), places, fits,
                            inputs, update)),
    ]  # fmt: skip
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message if message != "begins at 9" else "begins at"):
            PersistentSteps(*arguments)
    with pytest.raises(ValueError, match="allowed 'ieee'"):
        PersistentSteps(plan, places, fits, inputs, update, products="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rates: got"):
        PersistentSteps(plan, places, fits, inputs, update).steps(0, rates_of(1, 2))


COMPILE = """
import re, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from pixfit.kernels.persistent import _options
from pixfit.kernels.persistent_kernel import train

architecture, width, products = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
constants = dict(KIND=1, SIGMOID=False, PLATEAU=True, D=2, C=3, T=64, H=width, K=16, PRODUCTS=products, BLOCK=1024)
kinds = {"shapes": "*i32", "plateau": "*fp64", "base": "*fp64", "rule": "*fp64"}
kinds |= dict.fromkeys(("steps", "fits", "parameters", "samples", "coordinate_stride", "depth"), "i32")
kinds |= dict.fromkeys(("keep1", "keep2", "new1", "new2", "eps", "weight_decay"), "fp32")
kinds |= dict.fromkeys(constants, "constexpr")
names = train.arg_names
source = ASTSource(
    fn=train, signature={name: kinds.get(name, "*fp32") for name in names},
    constexprs={(names.index(name),): value for name, value in constants.items()},
)
built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=_options(width))
text = built.asm["ttgir"]
assert len(re.findall(r"barrier", text)) >= 5, "a barrier is gone"
assert "async_copy" not in text and "cp.async" not in built.asm["ptx"], "a loop prefetches what it has yet to write"
assert ("fma" in built.asm["ptx"]) and ("mma" in built.asm["ptx"]) == (products != "ieee"), "other products"
assert built.metadata.shared <= 96 * 1024, "shared memory"
print("compiled")
"""


@pytest.mark.parametrize(
    ("architecture", "width", "products"),
    [
        (80, 32, "ieee"),
        pytest.param(90, 128, "ieee", marks=pytest.mark.slow),
        pytest.param(90, 64, "tf32x3", marks=pytest.mark.slow),
        pytest.param(90, 128, "tf32", marks=pytest.mark.slow),
    ],
)
def test_it_compiles_for_cards(architecture: int, width: int, products: str, tmp_path: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    run = subprocess.run(
        [sys.executable, str(script), str(architecture), str(width), products],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.stdout.strip().endswith("compiled"), run.stderr[-2000:]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA card: the interpreter computes every product in float32")
@pytest.mark.parametrize(("products", "error"), [("ieee", 2e-5), ("tf32x3", 1e-4), ("tf32", 5e-2)])
def test_products_are_as_exact_as_they_say(products: Any, error: float) -> None:
    plan = plan_of((2, 128, 128, 128, 3), "sine", 9.0)
    places, weights, inputs = problem(plan, 4, 1000, seed=1)
    ours, exact = fits_of(weights), fits_of(weights.double())
    wide = (inputs[0].double(), inputs[1].double(), None)
    PersistentSteps(plan, places, ours, inputs, Update("adam"), products=products).steps(0, rates_of(4, 1))
    GraphSteps(plan, places, exact, {}, lambda step: wide, Update("adam"), MSE()).steps(0, rates_of(4, 1))
    found = float((ours.first.double() - exact.first).norm() / exact.first.norm())
    assert found < error
    if products == "tf32":
        assert found > 2e-5
