"""Steps on the device: the plain step and the CUDA graph against plain loops and the engine, memory, and precision.

Without a card the same step runs plainly on the CPU, which tests its arithmetic; what a graph adds is tested on a card.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixfit import engine
from pixfit.job import Job
from pixfit.kernels import Layer, Lift, Plan, card
from pixfit.kernels.graph import Fits, GraphSteps, Inputs, _Run, step_table
from pixfit.kernels.native import Update
from pixfit.losses import L1, MSE, Huber, Loss
from pixfit.models import Experts, Finer, Fourier, Gabor, Gauss, Mlp, Model, Positional, Raw, Siren
from pixfit.optim import Adam, AdamW, Optimiser, ScheduleFreeAdamW
from pixfit.problem import Problem, stream
from pixfit.schedules import Cosine, Plateau
from pixfit.spec import Batches, MovingAverage, Spec
from pixfit.stack import Samples
from pixfit.stopping import Steps
from tests.conftest import picture
from tests.reference import train

CARD = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and there is none")
)
devices = pytest.mark.parametrize("device", ["cpu", CARD])
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and there is none")

FAMILY: list[Model] = [
    Siren(1, 12),
    Siren(0, 12, output="sigmoid", target_range="unit"),
    Finer(1, 12),
    Finer(1, 12, scale_gradient=True),
    Gauss(1, 12, scale=3.0),
    Mlp(1, 12, encoding=Raw(), activation="gelu"),
    Mlp(1, 12, encoding=Positional(4), norm="rms", activation="silu"),
    Mlp(2, 12, encoding=Fourier(16), norm="layer", norm_position="pre", skip=True),
    Mlp(1, 12, encoding=Gabor(16), norm="layer"),
    Mlp(1, 12, encoding=Fourier(16), experts=Experts(1, "layer", 5)),
]
family = pytest.mark.parametrize("model", FAMILY, ids=[f"{n}-{type(m).__name__}" for n, m in enumerate(FAMILY)])


@dataclass
class Stacked:
    """Networks of one model as the steps take them, and as plain modules."""

    plan: Plan
    places: dict[str, int]
    fits: Fits
    fixed: dict[str, Tensor]
    networks: list[nn.Module]


def stacked(model: Model, seeds: Iterable[int], channels: int = 3, device: str = "cpu", **kind: Any) -> Stacked:
    networks: list[nn.Module] = [
        model.build(2, channels, generator=torch.Generator().manual_seed(seed), **kind) for seed in seeds
    ]
    places, at = {}, 0
    for name, parameter in networks[0].named_parameters():
        places[name], at = at, at + parameter.numel()
    rows = [nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]
    weights = torch.stack(rows).to(device)
    fixed = {
        name: torch.stack([dict(network.named_buffers())[name] for network in networks]).to(device)
        for name, _ in networks[0].named_buffers()
    }
    plan = model.plan(2, channels)
    assert plan is not None
    fits = Fits(weights, torch.zeros_like(weights), torch.zeros_like(weights))
    return Stacked(plan, places, fits, fixed, networks)


def samples_of(
    fits: int, side: int, channels: int = 3, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Inputs:
    axis = torch.linspace(-1, 1, side, dtype=dtype)
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 2)
    pixels = [picture(channels, side, side, seed).data.flatten(1).T * 2 - 1 for seed in range(fits)]
    return coordinates.to(device), torch.stack(pixels).to(device, dtype), None


def rates_of(fits: int, steps: int, lr: float = 1e-4) -> Tensor:
    return torch.stack([torch.full((fits, steps), lr, dtype=torch.float64), torch.zeros(fits, steps).double()], dim=2)


def steps_of(made: Stacked, inputs: Inputs, update: Update | None = None, **options: Any) -> GraphSteps:
    return GraphSteps(
        made.plan, made.places, made.fits, made.fixed, lambda step: inputs, update or Update("adam"), MSE(), **options
    )


def psnr(losses: Tensor) -> Tensor:
    return -10 * losses.double().cpu().log10()


# --- one gradient


@devices
@family
def test_one_step_gives_the_networks_gradient(model: Model, device: str) -> None:
    """In float64, where rounding cannot hide a wrong term: Adam's first moment is (1 − β₁) times the gradient."""
    made = stacked(model, (3, 4), device=device, dtype=torch.float64)
    inputs = samples_of(2, 9, device=device, dtype=torch.float64)
    losses = steps_of(made, inputs).steps(0, rates_of(2, 1))
    for fit, network in enumerate(made.networks):
        loss = nn.functional.mse_loss(network(inputs[0][0].cpu()), inputs[1][fit].cpu())
        loss.backward()  # type: ignore[no-untyped-call]
        assert float(losses[fit, 0]) == pytest.approx(loss.item(), rel=1e-12)
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        expected = torch.cat([slope.flatten() for slope in zero])
        found = made.fits.first[fit].cpu() / 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_any_widths_any_batch(data: st.DataObject) -> None:
    size = st.integers(1, 19)
    widths = tuple(data.draw(st.lists(size, min_size=1, max_size=4)))
    dims, channels, samples, fits = (data.draw(st.integers(1, most)) for most in (4, 5, 40, 3))
    sizes = (dims, *widths, channels)
    layers = tuple(
        Layer(n, m, f"{i}.w", f"{i}.b" if data.draw(st.booleans()) else None, "none" if i == len(widths) else "silu")
        for i, (n, m) in enumerate(pairwise(sizes))
    )
    plan, at, places = Plan(dims, Lift("raw", dims), layers), data.draw(st.integers(0, 2)), {}
    for layer in layers:
        places[layer.weight], at = at, at + layer.inputs * layer.outputs
        if layer.bias is not None:
            places[layer.bias], at = at, at + layer.outputs
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    weights = torch.randn(fits, at + 1, generator=generator, dtype=torch.float64)  # numbers that nothing names, too
    x = torch.randn(data.draw(st.sampled_from((1, fits))), samples, dims, generator=generator, dtype=torch.float64)
    y = torch.randn(fits, samples, channels, generator=generator, dtype=torch.float64)
    state = Fits(weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights))
    GraphSteps(plan, places, state, {}, lambda step: (x, y, None), Update("adam"), MSE()).steps(0, rates_of(fits, 1))
    for fit in range(fits):
        row = weights[fit].clone().requires_grad_()
        h = x[min(fit, len(x) - 1)]
        for layer in layers:
            w = row[places[layer.weight] :][: layer.inputs * layer.outputs].view(layer.outputs, layer.inputs)
            h = h @ w.T + (0 if layer.bias is None else row[places[layer.bias] :][: layer.outputs])
            h = h * torch.sigmoid(h) if layer.activation == "silu" else h
        (slope,) = torch.autograd.grad((h - y[fit]).square().mean(), row)
        torch.testing.assert_close(
            state.first[fit] / 0.1, slope, rtol=0, atol=1e-11 * max(1.0, float(slope.abs().max()))
        )


# --- the first hundred steps


@devices
def test_a_hundred_steps_are_the_plain_loops(device: str) -> None:
    """A stack of three with the pre-fit protocol: within 0.01 dB of PyTorch's own optimiser and scheduler."""
    made, inputs = stacked(Siren(2, 32), (0, 1, 2), device=device), samples_of(3, 24, device=device)
    rule = (0.5, 1e-4, 0.0, 1e-8, 30)
    plateau = torch.tensor([[math.inf, 0, 1, 0, 0]] * 3, dtype=torch.float64, device=device)
    made.fits = replace(made.fits, plateau=plateau, plateau_base=torch.full((3,), 1e-3, dtype=torch.float64).to(device))
    kernel = steps_of(made, inputs, Update("adam", plateau=rule))
    losses = torch.cat([kernel.steps(0, rates_of(3, 7, 1e-3)), kernel.steps(7, rates_of(3, 94, 1e-3))], dim=1)
    for fit, network in enumerate(made.networks):
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=30)
        curve = train(network, inputs[0][0].cpu(), inputs[1][fit].cpu(), optimiser, 101, scheduler=scheduler)
        assert curve[100] < 0.7 * curve[0]
        assert (psnr(losses[fit]) - psnr(torch.tensor(curve))).abs().max() < 0.01
        assert float(plateau[fit, 2]) == pytest.approx(optimiser.param_groups[0]["lr"] / 1e-3)
    if device == "cuda":
        assert all(run._graph is not None for run in kernel._runs.values())


@devices
def test_batch_mates_do_not_matter(device: str) -> None:
    """Bit for bit on a CPU; on a card to rounding. One of the mates has diverged."""
    together, alone = stacked(Siren(1, 16), (5, 6, 7), device=device), stacked(Siren(1, 16), (6,), device=device)
    inputs = samples_of(3, 16, device=device)
    together.fits.weights[0] = math.nan
    many = steps_of(together, inputs).steps(0, rates_of(3, 40))
    one = steps_of(alone, (inputs[0], inputs[1][1:2].contiguous(), None)).steps(0, rates_of(1, 40))
    assert many[0].isnan().all()
    assert many[1:].isfinite().all()
    if device == "cpu":
        assert torch.equal(many[1], one[0])
        assert torch.equal(together.fits.weights[1], alone.fits.weights[0])
    assert (psnr(many[1]) - psnr(one[0])).abs().max() < 0.01


@devices
def test_how_steps_are_asked_for_does_not_matter(device: str) -> None:
    """Across the length of the table of rates, and with a rate of its own at every step."""
    inputs, runs = samples_of(2, 5, device=device), []
    rates = rates_of(2, 300)
    rates[0, :, 0] *= torch.linspace(0, 1, 300)
    for cuts in ((0, 300), (0, 1, 255, 256, 257, 300)):
        made = stacked(Siren(0, 6), (0, 1), device=device)
        kernel = steps_of(made, inputs)
        parts = [kernel.steps(a, rates[:, a:b]) for a, b in pairwise(cuts)]
        runs.append((torch.cat(parts, dim=1), made.fits.weights))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0].shape == (2, 300)


@pytest.mark.parametrize("changing", [False, True])
def test_a_graph_is_fed_with_every_batch(changing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the card's graph: three plain steps, one capture that computes nothing, and replays."""
    captured: list[Inputs] = []
    seen: list[float] = []
    recording = False

    class Graph:
        def replay(self) -> None:
            seen.append(float(captured[0][1].sum()))

    @contextlib.contextmanager
    def capture(graph: Graph, **options: Any) -> Iterator[None]:
        assert options["stream"] == "a stream"
        nonlocal recording
        recording = True
        yield
        recording = False

    def step(inputs: Inputs) -> None:
        if recording:
            captured.append(inputs)
        else:
            seen.append(float(inputs[1].sum()))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    same: Inputs = (torch.zeros(1, 2, 2), torch.ones(1, 2, 3), None)
    fresh: list[Inputs] = [
        (torch.zeros(1, 2, 2), torch.full((1, 2, 3), float(n)), torch.ones(1, 2, 3)) for n in range(8)
    ]
    run = _Run(step, "a stream")
    for batch in fresh if changing else [same] * 8:
        run(batch)
    assert seen == [6.0 * n if changing else 6.0 for n in range(8)]
    assert len(captured) == 1
    assert all(float(batch[1].sum()) == 6.0 * n for n, batch in enumerate(fresh))  # nobody's batch was written over
    assert (captured[0][1] is same[1]) != changing


# --- against the engine's own step


def spec_of(small: Any, **changes: Any) -> Spec:
    changes = {"precision": "float64", "budget": Steps(25), "kernel": "torch", **changes}
    return Spec(Problem(small), Siren(1, 12), **changes)


SPECS: list[dict[str, Any]] = [
    {"optimiser": AdamW(lr=3e-3, weight_decay=0.1, schedule=Cosine(warmup=0.2)), "batches": Batches(50)},
    {"optimiser": Adam(lr=3e-3, clip_norm=0.05), "estimate": MovingAverage(0.9), "loss": L1()},
    {"optimiser": Adam(lr=3e-3, schedule=Plateau(patience=1, threshold=0.5)), "batches": Batches(33)},
    {"optimiser": ScheduleFreeAdamW(lr=3e-3, weight_decay=0.1, warmup_steps=7), "loss": Huber(0.05)},
]


def averaging(optimiser: Optimiser, steps: int) -> Tensor:
    """Rates and averaging weights of schedule-free AdamW by its paper: c is γ²/Σγ², with γ the largest rate so far."""
    out, total = torch.zeros(1, steps, 2, dtype=torch.float64), 0.0
    assert isinstance(optimiser, ScheduleFreeAdamW)
    for k in range(steps):
        rate = optimiser.lr * min(1.0, (k + 1) / optimiser.warmup_steps)
        total += rate**2
        out[0, k] = torch.tensor([rate, rate**2 / total])
    return out


@devices
@pytest.mark.parametrize("changes", SPECS, ids=["batches", "average", "plateau", "free"])
def test_a_step_is_the_engines(changes: dict[str, Any], device: str, small: Any) -> None:
    spec = spec_of(small, **changes)
    network = spec.model.build(2, 3, generator=stream(spec.seed, "weights"))
    outcomes = list(engine.fit([Job(spec, spec.problem.view, network.state_dict())]))[-1].outcomes
    assert outcomes is not None
    optimiser, schedule, loss = spec.optimiser, spec.optimiser.schedule, spec.loss
    samples = Samples(
        spec.model,
        [spec.problem.view],
        [spec.seed],
        spec.batches.pixels,
        dtype=torch.float64,
        device=torch.device(device),
    )
    made = stacked(spec.model, (0,), device=device, dtype=torch.float64)
    made.fits.weights[0] = nn.utils.parameters_to_vector(network.parameters()).detach().double()
    free, average = isinstance(optimiser, ScheduleFreeAdamW), isinstance(spec.estimate, MovingAverage)
    if free:
        made.fits.first.copy_(made.fits.weights)
    limits = None
    if isinstance(schedule, Plateau):
        limits = (schedule.decay, schedule.threshold, schedule.min_lr, schedule.eps, schedule.patience)
    fits = replace(
        made.fits,
        average=made.fits.weights.clone() if average else None,
        plateau=torch.tensor([[math.inf, 0, 1, 0, 0]], dtype=torch.float64, device=device) if limits else None,
        plateau_base=torch.tensor([optimiser.lr], dtype=torch.float64, device=device) if limits else None,
    )
    assert isinstance(optimiser, (Adam, ScheduleFreeAdamW))
    assert isinstance(loss, Loss)
    update = Update(
        "schedule_free" if free else "adam", optimiser.betas, optimiser.eps, getattr(optimiser, "weight_decay", 0.0),
        optimiser.clip_norm, 0.9 if average else None, limits,
    )  # fmt: skip
    kernel = GraphSteps(
        made.plan, made.places, fits, made.fixed, samples.batch, update, loss, per_epoch=samples.per_epoch
    )
    rates = rates_of(1, 25, optimiser.lr)
    if free:
        rates = averaging(optimiser, 25)
    else:
        rates[0, :, 0] *= torch.tensor([schedule.factor(step / 25) for step in range(25)], dtype=torch.float64)
    losses = kernel.steps(0, rates)[0].cpu()
    torch.testing.assert_close(losses.float(), outcomes[0].losses, rtol=1e-6, atol=0)
    weights = fits.weights if fits.average is None else fits.average
    if free:  # the answer is the average x = y + (z − y)(1 − 1/β₁)
        weights = fits.weights.lerp(fits.first, 1 - 1 / optimiser.betas[0])
    for name, value in outcomes[0].weights.items():
        at = made.places[name]
        found = weights[0, at : at + value.numel()].view(value.shape).cpu()
        torch.testing.assert_close(found, value.double(), rtol=0, atol=1e-8)
    if limits:
        assert fits.plateau is not None
        assert fits.plateau[0, 2] < 1


@devices
def test_masks_and_weights_of_samples(device: str, small: Any) -> None:
    made = stacked(Siren(1, 12), (0,), device=device, dtype=torch.float64)
    coordinates, targets, _ = samples_of(1, 8, device=device, dtype=torch.float64)
    use = (torch.rand(1, 64, 3, generator=torch.Generator().manual_seed(0)) > 0.4).double().to(device)
    mask = (torch.rand(made.fits.weights.shape, generator=torch.Generator().manual_seed(1)) > 0.3).double().to(device)
    fits = replace(made.fits, mask=mask)
    kernel = GraphSteps(
        made.plan, made.places, fits, made.fixed, lambda step: (coordinates, targets, use),
        Update("adam", weight_decay=0.1, clip_norm=0.01), MSE(),
    )  # fmt: skip
    loss = kernel.steps(0, rates_of(1, 1))
    network = made.networks[0]
    error = (network(coordinates[0].cpu()) - targets[0].cpu()).square() * use[0].cpu()
    expected = error.sum() / use.sum().cpu()
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    slope = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]) * mask[0].cpu()
    slope *= 0.01 / (slope.norm() + 1e-6)
    torch.testing.assert_close(fits.first[0].cpu() / 0.1, slope, rtol=0, atol=1e-12)
    assert not fits.weights[mask == 0].any()


# --- compiled: torch's compiler warns of torch's own ageing parts


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.slow
def test_the_compiled_step_is_the_plain_one() -> None:
    curves = []
    for compiled in (False, True):
        made, inputs = stacked(Siren(2, 32), (0, 1)), samples_of(2, 16)
        kernel = steps_of(made, inputs, Update("adam", weight_decay=0.01, clip_norm=1.0), compiled=compiled)
        curves.append(kernel.steps(0, rates_of(2, 100)))
        assert kernel.name == ("torch-step-compiled" if compiled else "torch-step")
    assert (psnr(curves[0]) - psnr(curves[1])).abs().max() < 0.01


@needs_card
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("backward", ["float32", "bfloat16"])
def test_the_compiled_graph_is_the_plain_step(backward: str) -> None:
    curves = []
    for device, compiled in (("cpu", False), ("cuda", True)):
        made, inputs = stacked(Siren(2, 32), (0, 1), device=device), samples_of(2, 16, device=device)
        kernel = steps_of(made, inputs, compiled=compiled, backward=backward)
        curves.append(kernel.steps(0, rates_of(2, 100)))
    assert (psnr(curves[0]) - psnr(curves[1])).abs().max() < (0.01 if backward == "float32" else 0.1)


# --- precision


@pytest.mark.parametrize("users", ["ieee", "tf32", "none"])
def test_the_users_precision_comes_back(users: str) -> None:
    setting: Any = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = users
        for policy in ("ieee", "tf32"):
            with contextlib.suppress(KeyError), card.float32_products(policy):
                assert setting.fp32_precision == policy
                raise KeyError
            assert setting.fp32_precision == users
        made, inputs = stacked(Siren(0, 6), (0,)), samples_of(1, 5)
        steps_of(made, inputs).steps(0, rates_of(1, 2))
        assert setting.fp32_precision == users
    finally:
        setting.fp32_precision = before
    with pytest.raises(ValueError, match="'ieee' or 'tf32'"), card.float32_products("fp16"):  # type: ignore[arg-type]
        pass


@needs_card
def test_tf32_only_where_it_is_asked_for() -> None:
    """The gradient of one step against float64, with the user's own setting at its coarsest."""
    setting: Any = torch.backends.cuda.matmul
    before, errors = setting.fp32_precision, {}
    try:
        setting.fp32_precision = "tf32"
        for products in ("ieee", "tf32"):
            exact, made = stacked(Siren(2, 128), (0,), dtype=torch.float64), stacked(Siren(2, 128), (0,), device="cuda")
            steps_of(exact, samples_of(1, 32, dtype=torch.float64)).steps(0, rates_of(1, 1))
            steps_of(made, samples_of(1, 32, device="cuda"), products=products).steps(0, rates_of(1, 5, 0.0)[:, :1])
            truth = exact.fits.first
            errors[products] = float((made.fits.first.cpu() - truth).norm() / truth.norm())
    finally:
        setting.fp32_precision = before
    assert errors["ieee"] < 2e-5
    assert errors["tf32"] > 5 * errors["ieee"]


# --- memory, and what is refused


@family
@pytest.mark.parametrize("samples", [64, 1024])
def test_the_memory_rule_covers_what_a_step_keeps(model: Model, samples: int) -> None:
    """Counted: all that autograd keeps for the backward pass, once for each storage."""
    side = math.isqrt(samples)
    made, inputs = stacked(model, (0, 1)), samples_of(2, side)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        steps_of(made, inputs).steps(0, rates_of(2, 1))
    per_fit = sum(kept.values()) / 2
    assert card.stack_limit(made.plan, side**2, int(10 * per_fit)) <= 10


def test_the_memory_rule_is_a_rule_of_size() -> None:
    plan = Siren(3, 256).plan(2, 3)
    assert card.stack_limit(plan, 1024, 0) == 0
    limits = [card.stack_limit(plan, samples, 8 * 2**30) for samples in (2**8, 2**12, 2**16, 2**24)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > 100
    assert limits[-1] == 0
    assert card.stack_limit(plan, 1024, 16 * 2**30) >= 2 * card.stack_limit(plan, 1024, 8 * 2**30)
    assert card.steps_at_once(plan, 2**24, 100) == 1
    assert card.steps_at_once(Siren(1, 8).plan(2, 3), 64, 1) == 4096


@needs_card
def test_a_full_stack_stays_within_the_memory() -> None:
    room, side, model = 2**30, 64, Siren(3, 64)
    fits = card.stack_limit(model.plan(2, 3), side**2, room)
    made, inputs = stacked(model, range(fits), device="cuda"), samples_of(fits, side, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel = steps_of(made, inputs)
    kernel.steps(0, rates_of(fits, 6))
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < room


def test_reasons_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Siren(2, 32).plan(2, 3)
    reason = card.graph_reason(plan, 1024, 4, torch.device("cpu"))
    assert reason is not None
    assert "CUDA device" in reason
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    reason = card.graph_reason(plan, 2**20, 4, torch.device("cuda"))
    assert reason is not None
    assert "smaller batches" in reason
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    assert card.graph_reason(plan, 2**20, 4, torch.device("cuda")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for reason in (card.compile_reason(plan, 2**20, 4, 1e9), card.persistent_reason(plan)):
        assert reason is not None
        assert "Triton" in reason
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: "/bin/" + name)
    assert card.compile_reason(plan, 2**20, 4, 1e9) is None
    reason = card.compile_reason(plan, 16, 1, 10)
    assert reason is not None
    assert "sooner" in reason
    assert card.persistent_reason(plan) is None
    for model in (Siren(2, 129), Mlp(1, 12), Mlp(1, 12, encoding=Raw(), norm="layer"), Siren(1, 8)):
        refused = model.plan(2, 5 if isinstance(model, Siren) and model.hidden_layers == 1 else 3)
        assert refused is not None
        assert card.persistent_reason(refused) is not None


def test_what_does_not_go_together_is_refused() -> None:
    made, inputs = stacked(Siren(0, 6), (0, 1)), samples_of(2, 5)
    weights = made.fits.weights
    with pytest.raises(ValueError, match="first: got"):
        Fits(weights, weights[:1], weights)
    with pytest.raises(ValueError, match="contiguous"):
        Fits(weights, weights, torch.zeros(weights.shape[::-1]).T)
    with pytest.raises(ValueError, match="belong together"):
        Fits(weights, weights, weights, plateau=torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="rule"):
        steps_of(made, inputs, Update("gradient"))
    for update in (Update("adam", average_decay=0.9), Update("adam", plateau=(0.5, 0.0, 0.0, 0.0, 1))):
        with pytest.raises(ValueError, match="together with its settings"):
            steps_of(made, inputs, update)
    for places in ({**made.places, "layers.1.weight": 0}, {**made.places, "layers.1.bias": weights.shape[1] - 1}):
        made.places = places
        with pytest.raises(ValueError, match="overlaps another or leaves"):
            steps_of(made, inputs)
    for rates in (rates_of(1, 3), rates_of(2, 0), rates_of(2, 3).float(), rates_of(2, 3)[..., 0]):
        with pytest.raises(ValueError, match="rates: got"):
            step_table(0, rates, made.fits, Update("adam"))
