"""Whole fits on the compiled kernel against the same fits in torch: every optimiser, schedule, estimate and batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pixfit as pf
from pixfit import engine, run
from pixfit.kernels import library
from pixfit.losses import L1, Huber, Loss
from pixfit.models import Finer, Fourier, Grid, Mlp, Siren, Wire
from pixfit.optim import SGD, Adam, AdamW, Muon, ScheduleFreeAdamW
from pixfit.schedules import Cosine, Linear, Plateau
from pixfit.spec import Batches, BestHeldOut, MovingAverage
from pixfit.starts import Start, magnitude_mask
from tests.conftest import picture

compiled = pytest.mark.skipif(
    not library.isas(), reason="no compiled kernels here: " + "; ".join(library.refused().values())
)

MODEL = Siren(2, 24)
HOLES = torch.rand(1, 12, 20, generator=torch.Generator().manual_seed(5)) > 0.4
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam-betas": {"optimiser": Adam(5e-4, betas=(0.8, 0.99), eps=1e-6)},
    "adamw": {"optimiser": AdamW(1e-3, weight_decay=0.3)},
    "schedule-free": {"optimiser": ScheduleFreeAdamW(1e-3, warmup_steps=7, weight_decay=0.1)},
    "sgd": {"optimiser": SGD(3e-3, momentum=0.9, nesterov=True)},
    "muon": {"optimiser": Muon(3e-4, adam_lr=1e-4)},
    "clip": {"optimiser": Adam(3e-4, clip_norm=0.01)},
    "cosine": {"optimiser": Adam(3e-3, schedule=Cosine(warmup=0.2, final=0.1))},
    "linear": {"optimiser": Adam(3e-3, schedule=Linear(hold=0.3))},
    "plateau": {"optimiser": Adam(1e-3, schedule=Plateau(patience=3, threshold=0.4))},
    "plateau-batches": {
        "optimiser": Adam(1e-3, schedule=Plateau(patience=2, threshold=0.5, min_lr=1e-4)), "batches": Batches(70),
    },
    "average": {"estimate": MovingAverage(0.9)},
    "held-out": {"problem": {"held_out": 0.2}, "estimate": BestHeldOut(7)},
    "batches": {"batches": Batches(100)},
    "one-batch-an-epoch": {"batches": Batches(240)},
    "l1": {"loss": L1(), "optimiser": Adam(2e-4)},
    "huber": {"loss": Huber(0.2), "optimiser": Adam(3e-4)},
    "finer": {"model": Finer(2, 24), "optimiser": Adam(1e-4)},
    "mlp": {"model": Mlp(2, 24, encoding=Fourier(16), norm="layer", activation="gelu"), "optimiser": Adam(2e-3)},
    "grid": {"model": Mlp(1, 8, encoding=Grid(((6, 8, 2), (12, 20, 2)), init=0.1)), "optimiser": Adam(1e-2)},
    "grid-batches": {
        "model": Mlp(1, 8, encoding=Grid(((6, 8, 2), (12, 20, 2)), entries=64, init=0.1)),
        "optimiser": Adam(1e-2), "batches": Batches(64),
    },
    "inpaint": {"problem": {"operator": pf.operators.Inpaint(HOLES)}},
}  # fmt: skip


def spec_of(name: str, *, steps: int = 100, **changes: Any) -> pf.Spec:
    settings = {**VARIANTS[name], **changes}
    problem = pf.Problem(picture(3, 12, 20), **settings.pop("problem", {}))
    defaults: dict[str, Any] = {"model": MODEL, "optimiser": Adam(1e-3), "budget": pf.Steps(steps), "seed": 3}
    return pf.Spec(problem, **{**defaults, **settings})


def decibels(losses: torch.Tensor) -> torch.Tensor:
    return -10 * torch.log10(losses.double())


@compiled
@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_hundred_steps_are_those_of_torch(name: str) -> None:
    fused, plain = pf.fit(spec_of(name)), pf.fit(spec_of(name, kernel="torch"))
    assert fused.kernel == f"fused-{library.isas()[0]}"
    assert plain.kernel.startswith("torch")
    assert fused.status == plain.status
    assert fused.steps == plain.steps == 100
    apart = (decibels(fused.curves["loss"]) - decibels(plain.curves["loss"])).abs().max()
    assert apart < 0.01
    assert abs(fused.metrics["psnr"] - plain.metrics["psnr"]) < 0.02  # type: ignore[operator]


GRAPHED = sorted(set(VARIANTS) - {"sgd", "muon"})


@pytest.mark.parametrize("name", GRAPHED)
def test_the_steps_of_graphs_are_those_of_torch(name: str) -> None:
    """On a machine without a card the same steps run plainly, which tests all but the capture."""
    graph, plain = pf.fit(spec_of(name, kernel="graph")), pf.fit(spec_of(name, kernel="torch"))
    assert graph.kernel.startswith("cuda-graph" if torch.cuda.is_available() else "torch-step")
    assert graph.steps == plain.steps == 100
    assert (decibels(graph.curves["loss"]) - decibels(plain.curves["loss"])).abs().max() < 0.01


def test_what_graphs_cannot_run_is_refused() -> None:
    for name, changes in (
        ("sgd", {}),
        ("muon", {}),
        ("adam", {"model": Wire(1, 8)}),
        ("adam", {"precision": "float64"}),
    ):
        with pytest.raises(ValueError, match="kernel is graph"):
            pf.fit(spec_of(name, kernel="graph", **changes))


@compiled
def test_the_plateaus_of_these_tests_come() -> None:
    steady = pf.fit(spec_of("adam")).curves["loss"]
    assert not torch.equal(steady, pf.fit(spec_of("plateau")).curves["loss"])
    steady = pf.fit(spec_of("adam", batches=Batches(70))).curves["loss"]
    assert not torch.equal(steady, pf.fit(spec_of("plateau-batches")).curves["loss"])


@compiled
@pytest.mark.parametrize("name", ["adam", "schedule-free", "batches", "grid", "plateau"])
def test_a_mask_keeps_its_zeros(name: str) -> None:
    spec = spec_of(name)
    fresh = spec.model.build(2, 3, generator=pf.problem.stream(3, "weights")).state_dict()
    names = [n for n in fresh if n.endswith("weight")]
    mask = magnitude_mask({n: fresh[n] for n in names}, 0.5)
    fused, plain = (pf.fit(replace(spec, start=Start(mask=mask), kernel=kernel)) for kernel in ("auto", "torch"))  # type: ignore[arg-type]
    assert (decibels(fused.curves["loss"]) - decibels(plain.curves["loss"])).abs().max() < 0.01
    for n, kept in mask.tensors.items():
        assert bool((fused.weights[n][kept == 0] == 0).all())
        assert bool((fused.weights[n][kept != 0] != 0).any())


@compiled
@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"held-out"}))
def test_a_fit_does_not_depend_on_its_mates(name: str) -> None:
    specs = [replace(spec_of(name, steps=40), seed=seed, budget=pf.Steps(30 + seed)) for seed in range(3)]
    jobs = [run._job(spec, {}, ()) for spec in specs]
    together = list(engine.fit(jobs))[-1].outcomes
    assert together is not None
    for job, outcome in zip(jobs, together, strict=True):
        (alone,) = list(engine.fit([job]))[-1].outcomes  # type: ignore[misc]
        assert outcome.kernel == alone.kernel
        assert outcome.steps == alone.steps
        assert torch.equal(outcome.losses, alone.losses)
        assert all(torch.equal(outcome.weights[key], value) for key, value in alone.weights.items())


@compiled
def test_lists_of_small_fits_are_stacked_and_equal_single_ones(tmp_path: Path) -> None:
    specs = [replace(spec_of("adam"), seed=seed) for seed in range(6)]
    many = pf.fit(specs)
    for spec, result in zip(specs, many, strict=True):
        assert torch.equal(result.curves["loss"], pf.fit(spec).curves["loss"])


@compiled
def test_a_list_that_was_stopped_goes_on_with_other_mates(tmp_path: Path) -> None:
    """Some of a stack's fits are done, others not: each goes on from where it was."""
    specs = [replace(spec_of("adam", steps=4000), seed=seed) for seed in range(3)]
    whole = pf.fit(specs)
    store = pf.Store(tmp_path / "runs")
    jobs = [run._job(spec, {}, ()) for spec in specs]
    calls = iter(range(10**6))
    state = list(engine.fit(jobs, interrupt=lambda: next(calls) >= 20))[-1]
    assert 0 < state.step < 4000
    runner = run._Runner(store, torch.device("cpu"), pf.Record(), None, {}, "")
    for spec, one in list(zip(specs, state.split(), strict=True))[1:]:  # the first one's was lost
        runner._checkpoint(spec.id, one, {"watch": {"steps": [], "psnr": []}})
    again = pf.fit(specs, store)
    for before, after in zip(whole, again, strict=True):
        assert torch.equal(before.curves["loss"], after.curves["loss"])
        assert all(torch.equal(before.weights[n], after.weights[n]) for n in before.weights)


@compiled
def test_fits_that_went_on_alone_go_on_together(tmp_path: Path) -> None:
    """Alone a fit looks at its losses less often than in a large stack, and may have kept more steps."""
    specs = [replace(spec_of("adam", steps=3000), seed=seed) for seed in range(4)]
    whole = pf.fit(specs)
    store = pf.Store(tmp_path / "runs")
    runner = run._Runner(store, torch.device("cpu"), pf.Record(), None, {}, "")
    for number, spec in enumerate(specs):
        job = run._job(spec, {}, (5,) if number == 0 else ())
        calls = iter(range(10**6))
        state = list(engine.fit([job], interrupt=lambda calls=calls: next(calls) >= 12))[-1]  # type: ignore[misc]
        runner._checkpoint(spec.id, state, {"watch": {"steps": [], "psnr": []}})
    for before, after in zip(whole, pf.fit(specs, store), strict=True):
        assert after.status is before.status
        assert torch.equal(before.curves["loss"], after.curves["loss"])


@compiled
def test_a_fit_may_go_on_with_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    job = run._job(spec_of("adam", steps=400), {}, ())
    state = next(s for s in engine.fit([job], save_every=0.0) if s.scalars["filled"] > 32)
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    (outcome,) = list(engine.fit([job], state=state))[-1].outcomes  # type: ignore[misc]
    assert (outcome.verdict, outcome.steps, outcome.kernel) == ("done", 400, "torch")
    assert len(outcome.losses) == 400


@compiled
@pytest.mark.parametrize("fits", [1, 2])
def test_bfloat16_backward(fits: int) -> None:
    spec = spec_of("adam", precision="bfloat16-backward")
    jobs = [run._job(replace(spec, seed=seed), {}, ()) for seed in range(fits)]
    slow = [run._job(replace(spec, seed=seed, kernel="torch"), {}, ()) for seed in range(fits)]
    full = [run._job(replace(spec, seed=seed, precision="float32"), {}, ()) for seed in range(fits)]
    ours, twins, exact = ([o.losses for o in list(engine.fit(j))[-1].outcomes or ()] for j in (jobs, slow, full))
    for a, b, c in zip(ours, twins, exact, strict=True):
        assert a[0] == pytest.approx(float(c[0]), rel=1e-5)  # the forward pass is float32
        assert not torch.equal(a, c)
        assert (decibels(a) - decibels(b)).abs()[:15].max() < 0.01
        assert (decibels(a) - decibels(c)).abs().max() < 0.5


def test_bfloat16_backward_needs_a_plan() -> None:
    with pytest.raises(ValueError, match="bfloat16-backward, which Wire"):
        spec_of("adam", model=Wire(1, 8), precision="bfloat16-backward")


def test_models_without_a_plan_run_in_torch() -> None:
    assert pf.fit(spec_of("adam", model=Wire(1, 8), steps=3)).kernel.startswith("torch")
    assert pf.fit(spec_of("adam", precision="float64", steps=3)).kernel.startswith("torch")


@dataclass(frozen=True)
class Cubed(Loss):
    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).abs() ** 3


@dataclass(frozen=True)
class Shifted(Siren):
    """A network that is not the one whose plan it would inherit."""

    def network(self, in_features: int = 2, out_features: int = 3) -> Any:
        network = super().network(in_features, out_features)
        network.register_forward_hook(lambda module, inputs, output: output + 5.0)
        return network


def test_what_users_add_runs_in_torch_until_it_has_a_plan() -> None:
    assert pf.fit(spec_of("adam", loss=Cubed(), steps=3)).kernel.startswith("torch")
    assert Shifted().plan() is None
    result = pf.fit(spec_of("adam", model=Shifted(1, 8), steps=1))
    assert result.kernel.startswith("torch")
    assert float(result.curves["loss"][0]) > 16


@pytest.mark.parametrize("isa", [*library.isas(), "torch"])
def test_the_environment_names_the_kernel(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_KERNEL", isa)
    result = pf.fit(spec_of("adam", steps=3))
    assert result.kernel == (f"fused-{isa}" if isa != "torch" else "torch")


@compiled
def test_rendering_is_that_of_torch() -> None:
    for name in ("adam", "mlp", "grid", "finer"):
        result = pf.fit(spec_of(name))
        fused = pf.render.render(result, scale=3)
        network = pf.modelfile.Network.of(result)
        record = {**network.record, "kernel": "torch"}
        assert (fused - pf.render.render(replace(network, record=record), scale=3)).abs().max() < 1e-3


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(("layers", "features"), [(2, 32), (4, 64)])
def test_mean_area_under_the_curve_over_twenty_seeds(layers: int, features: int, shared_data: Path) -> None:
    """Single curves part late, as float32 and float64 do; their mean must not."""
    paths = sorted((shared_data / "kodak_crops32").glob("*.png"))[:20]
    means = []
    for kernel in ("auto", "torch"):
        specs = [
            pf.Spec(
                pf.Problem(pf.images.load(path)), Siren(layers, features), optimiser=Adam(1e-4, schedule=Plateau()),
                budget=pf.Steps(2000), seed=seed, kernel=kernel,  # type: ignore[arg-type]
            )
            for seed, path in enumerate(paths)
        ]  # fmt: skip
        curves = torch.stack([-10 * torch.log10(r.curves["loss"].double() / 4) for r in pf.fit(specs)])
        means.append(float(curves.mean()))
    assert abs(means[0] - means[1]) < 0.1
    assert math.isfinite(means[0])
