"""The study of restoration: its pictures, its damages and methods, the fits that it names, and what it says of them."""

from __future__ import annotations

import csv
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pixfit as pf
from pixfit import images, metrics, tasks
from pixfit.cli import app
from pixfit.images import Image
from pixfit.models import PicturePrior
from pixfit.spec import Spec
from pixfit.store import Store
from pixfit.studies import STUDIES, RestoreStudy, StudyError, restore_pictures
from pixfit.studies.restore_damages import DAMAGES, piece_of
from pixfit.studies.restore_methods import METHODS
from pixfit.studies.restore_scores import of_fit, restored
from tests.conftest import picture

FOLDER = Path(__file__).parents[1] / "benchmarks"
SIDE = 24
PAIRS = [(task, method) for task in DAMAGES for method in METHODS]


def smoke(**settings: Any) -> RestoreStudy:
    return RestoreStudy.of("smoke", settings)


def make(study: RestoreStudy, store: Store) -> None:
    """All fits of a study, in this process."""
    torch.set_num_threads(1)
    for spec in study.specs(store):
        pf.fit(spec, store, device="cpu", record=study.record(spec))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RestoreStudy, Store]:
    """The smoke profile, finished."""
    study, store = smoke(), Store(tmp_path_factory.mktemp("restore"))
    make(study, store)
    return study, store


# --- pictures


def test_the_rule_cuts_the_part_that_the_benchmark_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("restore")
    for name in ("coffee", "camera"):
        image = images.load(name)
        assert torch.equal(restore_pictures.crop(image, 40).data, script.crop(image, 40).data)
    busy = torch.zeros(1, 64, 64)
    busy[:, ::2, 32:] = 1  # only the right half has any energy, which a fifth of the parts lies in
    part = restore_pictures.crop(Image(busy), 32)
    assert 0 < float(part.data.mean()) < 0.5


def test_pictures_that_are_not_there_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    with pytest.raises(StudyError, match="set PIXFIT_DATA"):
        RestoreStudy.of("laptop").fits(Store(tmp_path))
    for folder in ("set5", "dip/sr"):
        (tmp_path / folder).mkdir(parents=True)
    images.save(picture(3, 33, 70), tmp_path / "set5" / "bird.png")
    images.save(picture(3, 40, 40), tmp_path / "dip" / "sr" / "zebra.png")
    study = RestoreStudy.of("laptop", {"side": 24})
    assert list(study.images_by_name) == ["bird", "zebra"]
    assert "not there: butterfly, baby" in study.answer(Store(tmp_path)).summary
    whole = restore_pictures.load("classic", ("bird",), None)["bird"]
    assert whole.data.shape == (3, 32, 64)
    assert torch.equal(whole.data, images.load(tmp_path / "set5" / "bird.png").data[:, :32, 3:67])
    with pytest.raises(StudyError, match="lower side"):
        restore_pictures.load("classic", ("bird",), 48)


def test_the_laptop_profile_takes_the_eight_crops(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(shared_data))
    study = RestoreStudy.of("laptop")
    assert list(study.images_by_name) == [
        "butterfly", "bird", "baby", "woman", "head", "zebra", "kodim05", "kodim23",
    ]  # fmt: skip
    assert {image.data.shape for image in study.images_by_name.values()} == {(3, 96, 96)}
    assert study.tasks == ("denoise-25", "inpaint-50", "upscale-4")
    assert len(study.methods) >= 6
    # On noisy pictures ours is a fit of the small hourglass, and both are one.
    assert len(study.fits(Store("nowhere"))) == 8 * (3 * 8 - 2 - 1)


# --- damages and methods


@pytest.mark.parametrize("task", DAMAGES)
def test_damages_are_values_with_controls_that_help(task: str) -> None:
    image = restore_pictures.crop(images.load("coffee"), 32)
    damage = DAMAGES[task]
    problem, again, other = damage.problem(image, 0), damage.problem(image, 0), damage.problem(image, 1)
    assert torch.equal(problem.view.measurement, again.view.measurement)
    if not task.startswith("upscale"):  # which has nothing random
        assert not torch.equal(problem.view.measurement, other.view.measurement) or task == "deblur"
    assert float(problem.view.measurement.min()) >= -0.1
    piece = piece_of(problem)
    levels = {name: metrics.psnr(control(piece), image.data) for name, control in damage.controls.items()}
    assert next(iter(levels)) == "degraded"
    assert max(levels.values()) > levels["degraded"] + (0.0 if task.startswith("upscale") else 1.0)
    for name, control in damage.controls.items():
        made = control(piece)
        assert made.shape == image.data.shape
        assert float(made.min()) >= 0, name
        assert float(made.max()) <= 1, name
        assert torch.equal(control(piece), made)


@pytest.mark.parametrize(("task", "method"), PAIRS)
def test_every_method_fits_every_damage(task: str, method: str) -> None:
    """At a size that is no multiple of anything but of the factor; one step, and its picture."""
    problem = DAMAGES[task].problem(Image(images.load("coffee").data[:, 100:124, 220:248].clone()), 0)
    spec = METHODS[method].make(problem, DAMAGES[task].task, 1, 3)
    assert spec.seed == 3
    assert METHODS[method].make(problem, DAMAGES[task].task, None, 3).budget.steps == DAMAGES[task].task.steps(24, 28)
    assert spec == METHODS[method].make(problem, DAMAGES[task].task, 1, 3)
    assert spec.problem == problem
    result = pf.fit(spec, device="cpu")
    assert result.estimate is not None
    assert result.estimate.shape == (3, 24, 28)
    assert pf.modelfile.decode_spec(spec.plain, problem) == spec


def test_ours_is_what_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's default fit and blend, on one measurement, give the picture of `pixfit.restore`."""
    image = Image(images.load("coffee").data[:, 100:124, 220:247].clone())
    damage = DAMAGES["inpaint-50"]
    problem = damage.problem(image, 0)
    known, held_out = problem.view.operator.known(problem.shape), problem.view.held_out
    assert known is not None
    assert held_out is not None
    monkeypatch.setattr(pf.restore.pictures, "_held_out", lambda *arguments: held_out)
    done = pf.restore.inpaint(image, known[0], steps=12, device="cpu")
    result = pf.fit(METHODS["ours"].make(problem, damage.task, 12, 0), device="cpu")
    assert result.estimate is not None
    answer, weight = restored(damage, problem, result.estimate, blend=True)
    torch.testing.assert_close(answer, done.image.data)
    assert weight == pytest.approx(done.weight)
    assert torch.equal(answer[:, known[0]], image.data[:, known[0]])


def test_settings_are_checked() -> None:
    for settings, message in (
        ({"tasks": "denoise-26"}, "denoise-26"), ({"methods": "ours,ours"}, "each once"), ({"methods": ""}, "empty"),
        ({"leave_out": "deblur/nothing"}, "a task/method"), ({"seeds": "0"}, "seeds is 0"),
        ({"side": "8"}, "20 pixels"), ({"steps": "0.5"}, "whole number"),
    ):  # fmt: skip
        with pytest.raises(StudyError, match=message):
            smoke(**settings)
    assert STUDIES["restore"] is RestoreStudy


# --- fits and answers


def test_the_fits_are_the_tasks_by_the_methods(tmp_path: Path) -> None:
    study = smoke(seeds="2", leave_out="deblur/siren")
    fits = study.fits(Store(tmp_path))
    assert len(fits) == 2 * (4 * 3 - 1)
    assert len({spec.id for spec in fits}) == len(fits)
    seeds = [study.problems["denoise-25", "coffee", seed].view.measurement for seed in (0, 1)]
    assert not torch.equal(*seeds)


def test_the_answer_scores_the_pictures_that_the_fits_left(finished: tuple[RestoreStudy, Store]) -> None:
    study, store = finished
    assert study.specs(store) == []
    tables = study.answer(store).tables
    rows = {(row["task"], row["method"]): row for row in tables["methods"].rows}
    assert {name for task, name in rows if task == "denoise-25"} == {*DAMAGES["denoise-25"].controls, *study.methods}
    for (task, method), row in rows.items():
        if method not in METHODS:
            continue
        spec = study.fit(task, method, "coffee", 0)
        result, truth = store.get(spec), study.images_by_name["coffee"].data
        assert result is not None
        shown = pf.render.render(result) if result.estimate is None else result.estimate
        if task.startswith("inpaint"):
            known = study.problems[task, "coffee", 0].operator.known(spec.problem.shape)
            assert known is not None
            shown = torch.where(known, truth, shown)
        level = metrics.psnr(shown, truth)
        if method != "ours":
            assert row["PSNR"] == pytest.approx(level, abs=0.006)
        # Few steps, so that the answer is the last picture, and the best one.
        assert row["oracle"] == pytest.approx(level, abs=0.02)
        assert row["last"] <= row["oracle"] + 1e-9
        assert row["steps"] == 10
    control = rows["denoise-25", "non-local means"]
    assert rows["denoise-25", "ours"]["PSNR"] >= control["PSNR"] - 0.05  # the blend is never much below
    assert control["over control"] == 0
    overview = {row["method"]: row for row in tables["tasks"].rows}
    assert overview["ours"]["denoise-25"] == rows["denoise-25", "ours"]["PSNR"]
    assert overview["median"]["deblur"] is None
    assert {row["task"] for row in tables["checks"].rows} == {"denoise-25", "inpaint-50", "upscale-4"}
    assert "Nothing is finished of the tasks denoise-15" in study.answer(store).summary


def test_a_stopped_fit_is_scored_at_its_stop(tmp_path: Path) -> None:
    """Against the curve: the answer's PSNR is that of the step where the held-out error was least."""
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    damage, store = DAMAGES["denoise-50"], Store(tmp_path)
    problem = damage.problem(image, 0)
    task = replace(damage.task, stopping=tasks.HeldOut(20))
    spec = METHODS["siren"].make(problem, task, 300, 0)
    record = smoke().record(spec)
    result = pf.fit(spec, store, device="cpu", record=record)
    assert (result.status, result.reason) == (pf.Status.STOPPED, "held_out")
    (row,) = store.rows()
    score = of_fit(store, row, spec, damage, blend=False)
    assert score is not None
    assert score.steps == result.steps
    assert score.stop_step == result.steps - 20
    at = result.curves["psnr_step"].tolist().index(score.stop_step)
    assert score.psnr == pytest.approx(float(result.curves["psnr"][at]), abs=1e-3)
    assert score.last == pytest.approx(float(result.curves["psnr"][-2]))
    assert score.oracle == pytest.approx(float(result.curves["psnr"].max()))
    assert score.gap is not None
    assert score.gap <= 1e-3


def test_known_pixels_are_put_into_the_curve_of_a_picture_with_holes() -> None:
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    problem = DAMAGES["inpaint-50"].problem(image, 0)
    spec = METHODS["deep-decoder"].make(problem, DAMAGES["inpaint-50"].task, 4, 0)
    result = pf.fit(spec, device="cpu", record=pf.Record(every=2))
    known = problem.operator.known(problem.shape)
    assert known is not None
    assert result.estimate is not None
    filled = torch.where(known, image.data, result.estimate)
    assert float(result.curves["psnr_filled"][-1]) == pytest.approx(metrics.psnr(filled, image.data), abs=1e-3)
    assert float(result.curves["psnr"][-1]) == pytest.approx(metrics.psnr(result.estimate, image.data), abs=1e-3)
    noisy = pf.Problem(image, problem.operator, pf.GaussianNoise(0.1), held_out=0.1)
    assert "psnr_filled" not in pf.fit(replace(spec, problem=noisy), device="cpu").curves


def test_an_answer_of_nothing_is_empty(tmp_path: Path) -> None:
    answer = smoke().answer(Store(tmp_path))
    assert answer.tables == {}
    assert answer.figures == {}


def test_the_report_has_its_tables_and_figures(finished: tuple[RestoreStudy, Store], tmp_path: Path) -> None:
    study, store = replace(finished[0], tasks=("denoise-25", "upscale-4")), finished[1]
    paths = {path.name: path for path in study.report(store, tmp_path)}
    assert {"report.md", "tasks.csv", "methods.csv", "denoise-25.csv", "runs.csv"} <= set(paths)
    for task in study.tasks:
        assert {f"{task}_gains.png", f"{task}_curves.svg", f"{task}_pictures.png"} <= set(paths)
    rows = list(csv.DictReader(paths["runs.csv"].read_text("utf-8").splitlines()))
    assert len(rows) == sum(len(DAMAGES[task].controls) + len(study.methods) for task in study.tasks)
    assert all(math.isfinite(float(row["PSNR"])) for row in rows)


def test_the_command_runs_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["study", "restore", "run", "--profile", "smoke", "--workers", "1", "--device", "cpu", "--json", "-q"]
    arguments += ["-s", "tasks=denoise-25", "-s", "methods=ours,siren", "-s", "steps=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["fits"], said["done"], said["failed"]) == (2, 2, 0)
    methods = [row["method"] for row in said["tables"]["methods"]]
    assert methods[-2:] == ["ours", "siren"]
    assert np.isfinite([row["PSNR"] for row in said["tables"]["methods"]]).all()


def test_priors_share_the_stopping_of_their_task() -> None:
    """What differs between two lines of a table is the network, its rate, and how its answer is averaged."""
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    for damage in DAMAGES.values():
        problem = damage.problem(image, 0)
        specs: dict[str, Spec] = {name: method.make(problem, damage.task, None, 0) for name, method in METHODS.items()}
        assert len({spec.stopping for spec in specs.values()}) == 1
        assert len({spec.budget for spec in specs.values()}) == 1
        assert len({spec.estimate for spec in specs.values() if isinstance(spec.model, PicturePrior)}) == 1
