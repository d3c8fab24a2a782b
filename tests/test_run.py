"""Running lists of specs: order, independence, failures, stopping, checkpoints, and what Ctrl-C and kill -9 leave."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pixfit as pf
from pixfit import engine, run
from pixfit import job as jobs
from pixfit.models import Mlp, Siren
from pixfit.optim import OPTIMISERS, SGD, Adam, ScheduleFreeAdamW
from pixfit.schedules import Cosine, Plateau
from pixfit.store import StoreError
from tests.conftest import picture

TINY = Siren(hidden_layers=1, hidden_features=8)


def spec_of(image: pf.Image, seed: int = 0, steps: int = 40, **settings: object) -> pf.Spec:
    settings = {"model": TINY, "optimiser": Adam(lr=1e-3), **settings}
    return pf.Spec(pf.Problem(image), budget=settings.pop("budget", pf.Steps(steps)), seed=seed, **settings)  # type: ignore[arg-type]


def same(a: pf.Result, b: pf.Result) -> bool:
    """Bit for bit: the weights and the losses."""
    return torch.equal(a.curves["loss"], b.curves["loss"]) and all(
        torch.equal(value, b.weights[name]) for name, value in a.weights.items()
    )


def test_the_first_example_of_the_readme(tmp_path: Path, small: pf.Image) -> None:
    result = pf.fit(spec_of(small))
    result.save_image(tmp_path / "out.png")
    again = pf.images.load(tmp_path / "out.png")
    assert (again.width, again.height) == (small.width, small.height)
    assert result.status is pf.Status.DONE
    assert result.reason == "steps"
    assert result.steps == 40
    assert result.psnr is not None
    assert result.metrics["psnr"] == pytest.approx(pf.metrics.psnr(result.estimate, small.data))


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_one_spec_is_one_result(small: pf.Image, name: str) -> None:
    spec = spec_of(small, optimiser=OPTIMISERS[name](lr=1e-3), batches=pf.Batches(32))
    assert same(pf.fit(spec), pf.fit(spec))
    assert not same(pf.fit(spec), pf.fit(dataclasses.replace(spec, seed=1)))


def test_a_fit_does_not_depend_on_its_mates(small: pf.Image, grey: pf.Image) -> None:
    specs = [
        spec_of(small),
        spec_of(grey, seed=3, steps=17),
        spec_of(small, seed=1, model=Mlp(1, 8, output="linear"), optimiser=SGD(lr=1e6)),  # diverges at once
        spec_of(small, seed=2, steps=70, optimiser=Adam(lr=1e-2, schedule=Cosine(warmup=0.1))),
    ]
    together = pf.fit(specs)
    for spec, result in zip(specs, together, strict=True):
        assert same(result, pf.fit(spec))
    shuffled = pf.fit(specs[::-1])
    assert all(same(a, b) for a, b in zip(together, shuffled[::-1], strict=True))


def test_looking_changes_nothing(small: pf.Image) -> None:
    spec = spec_of(small, optimiser=ScheduleFreeAdamW(lr=1e-3), batches=pf.Batches(32))
    plain = pf.fit(spec)
    watched = pf.fit(spec, record=pf.Record(every=1, points=10, keep=(0, 5)), on_progress=lambda at: None)
    assert same(plain, watched)
    assert len(watched.curves["psnr"]) == 41
    assert set(watched.kept) == {0, 5}


def test_a_watcher_cannot_answer(small: pf.Image) -> None:
    class Meddler:
        def tick(self, *arguments: object) -> bool:
            return True

        def look(self, moment: jobs.Moment) -> str:
            moment.predict(torch.arange(4)).fill_(math.nan)
            torch.manual_seed(5)
            return "stop"

    spec = spec_of(small)
    job = run._job(spec, {}, ())
    (outcome,) = list(engine.fit([job], watch=Meddler(), every=1))[-1].outcomes  # type: ignore[misc, arg-type]
    assert torch.equal(outcome.losses, pf.fit(spec).curves["loss"])


def test_no_subnormal_numbers_in_a_fit(small: pf.Image) -> None:
    """They would make it many times slower. What runs around it has its own setting back."""
    halves = []

    class Halver:
        def tick(self, *arguments: object) -> None: ...

        def look(self, moment: jobs.Moment) -> None:
            halves.append(float(torch.tensor([1e-39]) * 0.5))

    list(engine.fit([run._job(spec_of(small), {}, ())], watch=Halver(), every=1))
    assert halves
    assert not any(halves)
    assert float(torch.tensor([1e-39]) * 0.5) > 0
    # Also of two that take turns, and between two states of one.
    runs = [engine.fit([run._job(spec_of(small), {}, ())], watch=Halver(), save_every=-1) for _ in range(2)]
    halves.clear()
    for _ in itertools.zip_longest(*runs):
        assert float(torch.tensor([1e-39]) * 0.5) > 0
    assert not any(halves)
    assert float(torch.tensor([1e-39]) * 0.5) > 0


def test_children_start_where_their_parents_ended_and_change_nothing(small: pf.Image) -> None:
    other = picture(3, 12, 10, seed=9)
    parent = spec_of(small)
    child = spec_of(other, start=pf.Start(weights=parent))
    grandchild = spec_of(small, start=pf.Start(weights=child))
    results = pf.fit([grandchild, child, parent])
    assert [result.id for result in results] == [grandchild.id, child.id, parent.id]
    assert same(results[2], pf.fit(parent))  # fits that start from it left it alone
    begun = pf.fit(dataclasses.replace(child, budget=pf.Steps(0)))
    assert all(torch.equal(begun.weights[name], value) for name, value in results[2].weights.items())


def test_a_start_may_be_a_step_or_some_layers_of_another_fit(small: pf.Image) -> None:
    parent = spec_of(small)
    full = pf.fit(parent, record=pf.Record(keep=(7,)))
    early = pf.fit(spec_of(small, steps=0, start=pf.Start(weights=parent, step=7)))
    assert all(torch.equal(early.weights[name], value) for name, value in full.kept[7].items())
    part = pf.fit(spec_of(small, seed=5, steps=0, start=pf.Start(weights=parent, layers=1)))
    fresh = pf.fit(spec_of(small, seed=5, steps=0))
    assert torch.equal(part.weights["layers.0.weight"], full.weights["layers.0.weight"])
    assert torch.equal(part.weights["layers.1.weight"], fresh.weights["layers.1.weight"])
    with pytest.raises(ValueError, match="never reached step 99"):
        pf.fit(spec_of(small, start=pf.Start(weights=parent, step=99)))


def test_a_mask_holds_weights_at_zero(small: pf.Image) -> None:
    whole = pf.fit(spec_of(small))
    mask = pf.starts.magnitude_mask(whole.weights, 0.5)
    sparse = pf.fit(spec_of(small, start=pf.Start(mask=mask)))
    for name, kept in mask.tensors.items():
        assert bool((sparse.weights[name][kept == 0] == 0).all())
        assert bool((sparse.weights[name][kept == 1] != 0).any())


def test_failures_are_rows_in_a_list_and_errors_alone(small: pf.Image, tmp_path: Path) -> None:
    wrong = spec_of(small, model=Mlp(1, 8), start=pf.Start(weights=spec_of(small)))
    fine = spec_of(small, seed=4)
    store = pf.Store(tmp_path / "runs")
    first, second = pf.fit([wrong, fine], store)
    assert first.status is pf.Status.FAILED
    assert "another network" in first.reason
    assert second.status is pf.Status.DONE
    assert {row["status"] for row in store.rows()} == {"failed", "done"}
    with pytest.raises(ValueError, match="another network"):
        pf.fit(wrong)
    orphan = spec_of(small, start=pf.Start(weights=wrong))
    assert "its start" in pf.fit([orphan])[0].reason


def test_divergence_is_reported_and_the_last_good_weights_come_back(small: pf.Image) -> None:
    spec = spec_of(small, model=Mlp(1, 8, output="linear"), optimiser=SGD(lr=1e6), steps=200)
    result = pf.fit(spec)
    assert result.status is pf.Status.DIVERGED
    assert "not finite at step" in result.reason
    assert result.steps < 200
    assert all(bool(value.isfinite().all()) for value in result.weights.values())
    assert "lower optimiser.lr" in result.status.remedy


def test_collapse_is_reported(small: pf.Image) -> None:
    result = pf.fit(spec_of(small, model=Mlp(2, 16), optimiser=Adam(lr=3.0), steps=600))
    assert result.status is pf.Status.COLLAPSED
    assert "lower optimiser.lr" in result.status.remedy
    constant = pf.Image(torch.full((3, 6, 6), 0.5))
    assert pf.fit(spec_of(constant, steps=600)).status is pf.Status.DONE  # one colour is what it should show


def test_noise_that_is_hard_to_fit_is_no_collapse() -> None:
    noise = pf.Image(torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1)))
    result = pf.fit(spec_of(noise, steps=600))
    assert result.psnr is not None
    assert result.psnr < pf.metrics.best_constant_psnr(noise.data) + 1
    assert result.status is pf.Status.DONE


def test_nothing_that_the_loop_gets_holds_the_truth(small: pf.Image) -> None:
    spec = pf.Spec(pf.Problem(small, noise=pf.GaussianNoise(0.1)), TINY, start=pf.Start(weights=spec_of(small)))
    job = run._job(spec, {spec.start.weights.id: pf.fit(spec.start.weights)}, ())
    seen: set[int] = set()

    def tensors(value: object) -> list[torch.Tensor]:
        if id(value) in seen:
            return []
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            return [value]
        inner = (
            list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple)) else []
        )
        return (
            [tensor for item in [*inner, *vars(value).values()] for tensor in tensors(item)]
            if hasattr(value, "__dict__")
            else [tensor for item in inner for tensor in tensors(item)]
        )

    assert not any(t.shape == small.data.shape and torch.equal(t, small.data) for t in tensors(job))


def test_a_full_disk_does_not_end_a_healthy_fit(
    small: pf.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: pf.Store, *arguments: object) -> None:
        raise StoreError("no space left")

    monkeypatch.setattr(run, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(pf.Store, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="the fit goes on: no space left"):
        result = pf.fit(spec_of(small), pf.Store(tmp_path / "runs"))
    assert result.status is pf.Status.DONE


def test_stopping_at_a_target(small: pf.Image) -> None:
    reached = pf.fit(spec_of(small, steps=5000, stopping=pf.TargetPSNR(psnr=18.0, every=10)))
    assert reached.status is pf.Status.STOPPED
    assert reached.reason == "target_psnr"
    assert reached.steps % 10 == 0
    assert reached.steps < 5000
    assert reached.psnr is not None
    assert reached.psnr >= 18
    missed = pf.fit(spec_of(small, steps=20, stopping=pf.TargetPSNR(psnr=80.0)))
    assert missed.status is pf.Status.OUT_OF_BUDGET
    assert "raise the budget" in missed.status.remedy


def test_budgets(small: pf.Image) -> None:
    epochs = pf.fit(spec_of(small, budget=pf.Epochs(3), batches=pf.Batches(50)))  # 120 pixels: 50, 50 and 20
    assert (epochs.steps, epochs.epochs, epochs.reason) == (9, 3.0, "epochs")
    both = pf.fit(spec_of(small, budget=pf.Budget(steps=4, epochs=3), batches=pf.Batches(50)))
    assert (both.steps, both.reason) == (4, "steps")
    several = [pf.fit(spec_of(small, budget=pf.Seconds(0.2))) for _ in range(3)]  # the machine may be busy
    assert all(timed.reason == "seconds" and timed.seconds >= 0.2 for timed in several)
    assert min(timed.seconds for timed in several) < 0.6
    assert max(timed.steps for timed in several) > 10
    slow_look = pf.fit(spec_of(small, steps=10), record=pf.Record(every=1), on_progress=lambda at: time.sleep(0.05))
    assert slow_look.seconds < 1.0
    none = pf.fit(spec_of(small, steps=0))
    assert none.steps == 0
    assert none.estimate is not None


def test_time_that_watching_takes_is_not_training(small: pf.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    look = run._Watch.look

    def slowly(self: run._Watch, moment: jobs.Moment) -> None:
        time.sleep(0.02)
        look(self, moment)

    monkeypatch.setattr(run._Watch, "look", slowly)
    several = [pf.fit(spec_of(small, steps=20), record=pf.Record(every=1)) for _ in range(3)]
    assert min(result.evaluation_seconds for result in several) > 0.4
    assert min(result.seconds for result in several) < 0.3  # the machine may be busy


def test_every_pixel_once_an_epoch(small: pf.Image) -> None:
    from pixfit.stack import Samples

    place = {"dtype": torch.float32, "device": torch.device("cpu")}
    samples = Samples(TINY, [pf.Problem(small).view], [3], 50, **place)  # type: ignore[arg-type]
    for epoch in range(2):
        seen = torch.cat([samples.batch(3 * epoch + place)[0][0] for place in range(3)])
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, samples.at(samples.places[0]).tolist()))
    assert not torch.equal(samples.batch(0)[0], samples.batch(3)[0])


def test_estimates(small: pf.Image) -> None:
    last = pf.fit(spec_of(small, optimiser=SGD(lr=0.1)), record=pf.Record(keep=tuple(range(41))))
    averaged = pf.fit(spec_of(small, optimiser=SGD(lr=0.1), estimate=pf.MovingAverage(decay=0.5)))
    mean = dict(last.kept[0])
    for step in range(1, 41):
        mean = {name: 0.5 * value + 0.5 * last.kept[step][name] for name, value in mean.items()}
    for name, value in averaged.weights.items():
        torch.testing.assert_close(value, mean[name], rtol=1e-4, atol=1e-6)
    # The best by held-out pixels: here the network memorises noise, so the end is not the best.
    noisy = pf.Problem(pf.Image(torch.full((3, 16, 16), 0.5)), noise=pf.GaussianNoise(0.2), held_out=0.3)
    wide = Siren(1, 64, first_omega_0=60.0)
    settings = {"optimiser": Adam(lr=1e-2), "budget": pf.Steps(300), "model": wide}
    end = pf.fit(pf.Spec(noisy, **settings))  # type: ignore[arg-type]
    best = pf.fit(pf.Spec(noisy, estimate=pf.BestHeldOut(every=5), **settings))  # type: ignore[arg-type]
    held_out = noisy.view.held_out
    assert held_out is not None
    assert end.estimate is not None
    assert best.estimate is not None

    def error(estimate: torch.Tensor) -> float:
        return float((estimate.clamp(0, 1) - noisy.view.measurement)[:, held_out[0]].square().mean())

    assert error(best.estimate) < 0.85 * error(end.estimate)
    with pytest.raises(ValueError, match="needs held-out pixels"):
        spec_of(small, estimate=pf.BestHeldOut())


def test_the_truth_never_reaches_the_loop(small: pf.Image) -> None:
    """Two pictures that are measured alike are fitted alike, and each is scored against its own truth."""
    mask = torch.zeros(12, 10, dtype=torch.bool)
    mask[:, :5] = True
    data = small.data.clone()
    data[:, :, 5:] = 1 - data[:, :, 5:]
    other = pf.Image(data)
    operator = pf.operators.Inpaint(mask)
    a, b = (pf.fit(pf.Spec(pf.Problem(i, operator), TINY, budget=pf.Steps(60))) for i in (small, other))
    assert same(a, b)
    assert a.psnr != b.psnr
    assert a.metrics["psnr_measured"] == b.metrics["psnr_measured"]


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_precisions(small: pf.Image, precision: str) -> None:
    plain, other = pf.fit(spec_of(small)), pf.fit(spec_of(small, precision=precision))
    assert other.psnr == pytest.approx(plain.psnr, abs=1.0)
    assert next(iter(other.weights.values())).dtype == (torch.float64 if precision == "float64" else torch.float32)


def test_finished_fits_are_taken_from_the_store(small: pf.Image, tmp_path: Path) -> None:
    store, spec = pf.Store(tmp_path / "runs"), spec_of(small)
    steps: list[int] = []
    first = pf.fit(spec, store)

    def note(at: run.Progress) -> None:
        if at.stage == "fitting":
            steps.append(at.step)

    second = pf.fit(spec, store, on_progress=note)
    assert not steps
    assert same(first, second)
    assert second.estimate is not None
    assert torch.equal(first.estimate, second.estimate)
    assert second.summary() == first.summary()
    third = pf.fit(spec, store, again=True, on_progress=note)
    assert steps
    assert same(first, third)
    # A child that wants a step which was not kept makes its parent run again.
    child = pf.fit(spec_of(small, steps=0, start=pf.Start(weights=spec, step=3)), store)
    assert child.status is pf.Status.DONE


RESUMABLE = {
    "adam": {"optimiser": Adam(lr=1e-3, schedule=Plateau(patience=3, threshold=0.1))},
    "batches": {"optimiser": Adam(clip_norm=0.5), "batches": pf.Batches(32), "estimate": pf.MovingAverage(0.9)},
    "schedule-free": {"optimiser": ScheduleFreeAdamW(lr=1e-3, warmup_steps=20), "batches": pf.Batches(32)},
    "muon": {"optimiser": OPTIMISERS["Muon"](lr=1e-2, schedule=Cosine()), "model": Mlp(2, 16)},
    "sgd": {"optimiser": SGD(lr=1e-2, momentum=0.9, nesterov=True)},
}  # fmt: skip


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("name", sorted(RESUMABLE))
def test_a_fit_that_is_resumed_ends_bit_identical(small: pf.Image, name: str, kernel: Any) -> None:
    job = run._job(spec_of(small, steps=150, kernel=kernel, **RESUMABLE[name]), {}, (10, 100))
    (whole,) = list(engine.fit([job]))[-1].outcomes  # type: ignore[misc]
    for stop in (5, 32, 77) if whole.kernel.startswith("torch") else (2, 10, 30):
        calls = iter(range(10**6))
        state = list(engine.fit([job], interrupt=lambda calls=calls, stop=stop: next(calls) >= stop))[-1]  # type: ignore[misc]
        # A compiled kernel may make several steps between two questions.
        assert state.step == stop or (not whole.kernel.startswith("torch") and stop < state.step < 150)
        assert state.outcomes is not None
        assert state.outcomes[0].verdict == "cancelled"
        (resumed,) = list(engine.fit([job], state=state))[-1].outcomes  # type: ignore[misc]
        assert torch.equal(resumed.losses, whole.losses)
        assert all(torch.equal(resumed.weights[key], value) for key, value in whole.weights.items())
        assert all(torch.equal(resumed.kept[100][key], value) for key, value in whole.kept[100].items())


SCRIPT = """
import sys, time, torch, pixfit as pf
from pixfit import run
from tests.conftest import picture
torch.set_num_threads(1)
run._SAVE_EVERY = 0.05
def slow(at):
    time.sleep(0.02)
    print(at.step, flush=True)
spec = pf.Spec(pf.Problem(picture(3, 24, 24)), pf.models.Siren(1, 16), optimiser=pf.optim.Adam(lr=1e-3),
               batches=pf.Batches(100), budget=pf.Steps(30000))
result = pf.fit(spec, pf.Store(sys.argv[1]), on_progress=slow)
print(result.status.value, result.steps, flush=True)
torch.save((dict(result.weights), result.curves["loss"]), sys.argv[1] + ".pt")
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _ended(folder: Path, process: subprocess.Popen[str]) -> tuple[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    output = process.communicate(timeout=120)[0]
    return output.splitlines()[-1], torch.load(f"{folder}.pt", weights_only=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_killed_program_goes_on_and_ends_bit_identical(tmp_path: Path, how: signal.Signals) -> None:
    last, (weights, losses) = _ended(tmp_path / "whole", _start(tmp_path / "whole"))
    assert last == "done 30000"
    folder = tmp_path / "broken"
    process = _start(folder)
    assert process.stdout is not None
    checkpoints = folder / "checkpoints"
    while process.poll() is None and not (checkpoints.is_dir() and list(checkpoints.glob("*.safetensors"))):
        process.stdout.readline()
    process.send_signal(how)
    process.communicate(timeout=60)
    store = pf.Store(folder)
    if how == signal.SIGKILL:
        (flight,) = store.flights()
        assert not flight.alive
        assert store.rows() == []
    else:
        assert [row["status"] for row in store.rows()] == ["cancelled"]
    last, (again, losses_again) = _ended(folder, _start(folder))
    assert last == "done 30000"
    assert torch.equal(losses, losses_again)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [row["status"] for row in store.rows()] == ["done"]
    assert store.flights() == []


def test_who_stops_the_scoring_does_not_lose_the_fit(
    small: pf.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SLOW_TO_SCORE", 0)
    store, spec = pf.Store(tmp_path / "runs"), spec_of(small)
    seen: list[tuple[str, int]] = []

    def stop(at: run.Progress) -> None:
        if at.stage == "scoring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pf.fit(spec, store, on_progress=stop)
    assert store.rows() == []
    result = pf.fit(spec, store, on_progress=lambda at: seen.append((at.stage, at.step)))
    assert {step for stage, step in seen if stage == "fitting"} == {40}  # it was at its end already
    assert same(result, pf.fit(spec))
    assert result.psnr is not None


def test_an_interrupt_after_the_last_step_is_not_swallowed(
    small: pf.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssim = pf.metrics.ssim

    def pressed(*pictures: torch.Tensor) -> float | None:
        os.kill(os.getpid(), signal.SIGINT)
        return ssim(*pictures)

    monkeypatch.setattr(pf.metrics, "ssim", pressed)
    store = pf.Store(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        pf.fit(spec_of(small), store)
    assert [row["status"] for row in store.rows()] == ["done"]


def test_progress_of_a_running_fit_is_seen_by_others(tmp_path: Path) -> None:
    process = _start(tmp_path / "runs")
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    (flight,) = pf.Store(tmp_path / "runs").flights()
    assert flight.alive
    assert 0 <= flight.fraction <= 1
    process.kill()
    process.communicate()


def test_devices(small: pf.Image) -> None:
    assert run.choose_device("cpu").type == "cpu"
    assert run.choose_device(None).type in ("cpu", "cuda")
    for name in ("quantum", "cuda:99"):
        with pytest.raises(ValueError, match="cannot be used here"):
            run.choose_device(name)
