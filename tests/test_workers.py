"""Worker processes: the same results whatever their number, and what happens when one dies or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pixfit as pf
from pixfit import workers
from pixfit.models import Siren
from pixfit.spec import Spec
from pixfit.starts import Start
from pixfit.store import Store
from pixfit.studies import PrefitStudy
from pixfit.workers import Forecast, Pool, Tally
from tests.conftest import picture


def family(seed: int = 0, steps: int = 40) -> list[Spec]:
    """A fit, its child on another picture, and the child of that."""
    problems = [pf.Problem(picture(3, 16, 16, seed=seed + index)) for index in range(2)]
    first = Spec(problems[0], Siren(2, 16), budget=pf.Steps(steps), seed=seed)
    second = replace(first, problem=problems[1], start=Start(weights=first))
    return [first, second, replace(first, start=Start(weights=second))]


def weights(store: Store, spec: Spec) -> torch.Tensor:
    found = store.get(spec)
    assert found is not None
    return torch.cat([value.flatten() for value in found.weights.values()])


def test_a_forecast_learns_what_each_kind_takes() -> None:
    """Two kinds of one size, of which one takes a hundred times as long; sizes of a kind count in proportion."""
    problem = pf.Problem(picture(3, 16, 16))
    quick = [Spec(problem, Siren(2, 16), budget=pf.Steps(steps), seed=seed) for seed, steps in enumerate((10, 10, 20))]
    slow = [replace(spec, model=pf.models.Wire(2, 16)) for spec in quick]
    forecast = Forecast([*quick, *slow])
    assert forecast.fraction([], {}) == 0
    forecast.learn(quick[0].id, 1.0)
    forecast.learn(slow[0].id, 100.0)
    assert forecast.fraction([quick[0].id, slow[0].id], {}) == pytest.approx(101 / 404)
    assert forecast.fraction([quick[0].id, slow[0].id], {slow[2].id: 0.5}) == pytest.approx(201 / 404)
    assert forecast.fraction([spec.id for spec in (*quick, *slow)], {}) == pytest.approx(1)


def test_a_forecast_of_fits_in_seconds_counts_these() -> None:
    problem = pf.Problem(picture(3, 16, 16))
    short, long = (Spec(problem, Siren(2, 16), budget=pf.Seconds(seconds)) for seconds in (1.0, 3.0))
    assert Forecast([short, long]).fraction([short.id], {}) == pytest.approx(0.25)


@pytest.mark.parametrize("count", [1, 2])
def test_workers_give_what_one_thread_in_this_process_gives(count: int, tmp_path: Path) -> None:
    specs = [spec for seed in (1, 2, 3) for spec in family(seed)]
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    pf.fit(specs, here, device="cpu")
    seen: list[Tally] = []
    with Pool(count, there, device="cpu", weights=True) as pool:
        tally = pool.fit(specs, seen.append, recipe="mine")
        assert (tally.fits, tally.done, tally.failed) == (9, 9, 0)
        assert pool.fit(specs) == Tally(0, 0, 0, {}, 1.0)  # all are finished
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert all(0 <= one.fraction <= 1 for one in seen)
    assert {row["recipe"] for row in there.rows()} == {"mine"}
    assert there.flights() == []
    for spec in specs:
        assert torch.equal(weights(here, spec), weights(there, spec))
        assert torch.equal(here.curve(spec.id), there.curve(spec.id))  # type: ignore[arg-type]


def test_weights_are_kept_where_a_fit_starts_from_them(tmp_path: Path) -> None:
    first, second, third = family()
    store = Store(tmp_path)
    with Pool(1, store, device="cpu") as pool:
        pool.fit([second])
        assert {spec.id: store.entries()[spec.id].weights for spec in (first, second)} == {
            first.id: True,
            second.id: False,
        }
        # A new child wants the weights of the second, which is then fitted again; the first is not.
        before = (tmp_path / "fits" / f"{first.id}.safetensors").stat().st_mtime_ns
        assert pool.fit([third]).fits == 2
        assert (tmp_path / "fits" / f"{first.id}.safetensors").stat().st_mtime_ns == before
    assert store.entries()[second.id].weights
    other = Store(tmp_path / "other")
    pf.fit(third, other, device="cpu")
    assert torch.equal(store.curve(third.id), other.curve(third.id))  # type: ignore[arg-type]


def test_a_fit_that_cannot_be_made_is_a_row(tmp_path: Path) -> None:
    good = family()[0]
    foreign = replace(family(7)[0], start=Start(weights=pf.Weights({"nothing": torch.zeros(1)})))
    with Pool(1, Store(tmp_path), device="cpu") as pool:
        tally = pool.fit([foreign, good])
    assert (tally.done, tally.failed) == (2, 1)
    entry = Store(tmp_path).entries()[foreign.id]
    assert entry.status is pf.Status.FAILED
    assert "another network" in entry.reason


def test_a_pool_needs_a_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(0, Store(tmp_path))


def kill_at(pool: Pool, times: int, when: Callable[[Tally], bool]) -> Callable[[Tally], None]:
    """Kills a worker that is at work, so many times."""
    left = [times]

    def on_progress(at: Tally) -> None:
        busy = [worker.process for worker in pool._workers if worker.task is not None and worker.process.is_alive()]
        if left[0] and busy and when(at):
            left[0] -= 1
            busy[0].kill()
            busy[0].join()

    return on_progress


def test_the_fits_of_a_killed_worker_are_made_by_another(tmp_path: Path) -> None:
    specs = family(steps=60) + family(5, steps=60)
    undisturbed = Store(tmp_path / "undisturbed")
    pf.fit(specs, undisturbed, device="cpu")
    store = Store(tmp_path / "store")
    with Pool(2, store, device="cpu", weights=True) as pool:
        tally = pool.fit(specs, kill_at(pool, 1, lambda at: True))
    assert (tally.fits, tally.done, tally.failed) == (6, 6, 0)
    for spec in specs:
        assert torch.equal(weights(store, spec), weights(undisturbed, spec))


def test_a_fit_that_kills_every_worker_has_failed(tmp_path: Path) -> None:
    deadly, good = family(steps=1_000_000)[0], family(3)[0]
    with Pool(1, Store(tmp_path), device="cpu") as pool:
        tally = pool.fit([deadly, good], kill_at(pool, 3, lambda at: at.done == 0 and bool(at.current)))
    assert (tally.done, tally.failed) == (2, 1)
    entries = Store(tmp_path).entries()
    assert "died 3 times, at last with exit code -9" in entries[deadly.id].reason
    assert entries[good.id].status is pf.Status.DONE
    assert Store(tmp_path).flights() == []


_STUDY = ("study", "prefit", "run", "--profile", "smoke", "-s", "sizes=2x32", "-s", "arms=random", "-s", "epochs=20000")


def command(store: Path) -> list[str]:
    return [sys.executable, "-m", "pixfit", *_STUDY, "--workers", "2", "--device", "cpu", "--store", str(store)]


def start(store: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, with both of its workers at work."""
    process = subprocess.Popen(
        command(store), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(Store(store).flights()) < 2:
        assert time.monotonic() < deadline, "it never began"
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    return process


def group(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the session that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def all_gone(process: subprocess.Popen[str]) -> bool:
    """Whether no process of the session is left within a fair time."""
    deadline = time.monotonic() + 30
    while group(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not group(process)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")


@needs_proc
def test_ctrl_c_saves_where_it_is_and_the_next_run_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert all_gone(process)
    checkpoints = list((tmp_path / "checkpoints").glob("*.safetensors"))
    assert len(checkpoints) == 2
    entries = Store(tmp_path).entries()
    assert [entry.status for entry in entries.values()] == [pf.Status.CANCELLED] * 2
    assert all(0 < entry.steps < 20000 for entry in entries.values())
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, check=True)
    assert "2 of 2 done" in again.stdout
    study = PrefitStudy.of("smoke", {"sizes": "2x32", "arms": "random", "epochs": 20000})
    undisturbed = pf.fit(study.fit("2x32", 1, "random"), device="cpu")
    assert torch.equal(undisturbed.curves["loss"], Store(tmp_path).curve(undisturbed.id))  # type: ignore[arg-type]


@needs_proc
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert len(group(process)) >= 3
    process.kill()
    process.communicate(timeout=60)
    assert all_gone(process)


def test_an_estimate_is_near_what_it_takes(tmp_path: Path) -> None:
    specs = [Spec(pf.Problem(picture(3, 32, 32)), Siren(2, 32), budget=pf.Steps(1500), seed=seed) for seed in range(4)]
    expected = workers.estimate(specs, device="cpu", seconds=1.0)
    began = time.process_time()
    pf.fit(specs, device="cpu")
    taken = time.process_time() - began
    assert taken / 4 < expected < taken * 4
    assert workers.estimate([], device="cpu") == 0
    assert workers.estimate([replace(specs[0], budget=pf.Seconds(7))], device="cpu") == 7
