"""The study of restoration: its pictures, its damages and methods, the fits that it names, and what it says of them."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pixfit as pf
from pixfit import classical, images, metrics, noise_estimate, tasks
from pixfit.cli import app
from pixfit.images import Image
from pixfit.models import DoublyOverparameterised, PicturePrior, Siren
from pixfit.noise_estimate import NoiseLevel
from pixfit.operators import Identity, Inpaint, LanczosDownsample
from pixfit.spec import PosteriorMean, Spec
from pixfit.store import Store
from pixfit.studies import STUDIES, RestoreStudy, StudyError, restore_damages, restore_figures, restore_pictures
from pixfit.studies.restore_damages import DAMAGES, piece_of
from pixfit.studies.restore_methods import METHODS
from pixfit.studies.restore_scores import Score, of_fit, restored
from tests.conftest import picture

SIDE = 24
PAIRS = [(task, name) for task in DAMAGES for name in METHODS if DAMAGES[task].task.name in METHODS[name].serves]
UNSTOPPED = {"hourglass-last", "dip-l1", "doip", "sgld"}


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


def test_the_rule_cuts_the_part_that_a_plain_search_finds() -> None:
    for name in ("coffee", "camera"):
        data = images.load(name).data[:, 40:130, 60:171]
        grey, found = data.double().mean(dim=0).numpy(), {}
        for top in range(0, 90 - 40 + 1, 8):
            for left in range(0, 111 - 40 + 1, 8):
                part = grey[top : top + 40, left : left + 40]
                down, right = part[1:, :-1] - part[:-1, :-1], part[:-1, 1:] - part[:-1, :-1]
                found[top, left] = float((down**2 + right**2).mean())
        wanted = np.quantile(list(found.values()), 0.8)
        top, left = min(found, key=lambda place: abs(found[place] - wanted))
        part = restore_pictures.crop(Image(data, name), 40)
        assert torch.equal(part.data, data[:, top : top + 40, left : left + 40])
        assert part.name == name
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
    assert study.methods == (
        "ours", "hourglass-small", "dip", "deep-decoder", "conv-decoder", "siren", "finer", "fourier",
    )  # fmt: skip
    assert RestoreStudy.of("published").methods == tuple(METHODS)
    # On noisy and on small pictures ours is a fit of the small hourglass, and both are one.
    assert len(study.fits(Store("nowhere"))) == 8 * (3 * 8 - 2 - 2)


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
    seen = problem
    if method == "ours" and DAMAGES[task].task.lost is not None:
        lost = noise_estimate.struck(problem.view.measurement)
        seen = replace(problem, operator=Inpaint(~lost), held_out=0.04)
        kept = ~lost & ~seen.view.held_out  # type: ignore[operator]
        assert torch.equal(seen.view.measurement[kept], problem.view.measurement[kept])
    assert spec.id == replace(spec, problem=seen).id
    result = pf.fit(spec, device="cpu")
    assert result.estimate is not None
    assert result.estimate.shape == (3, 24, 28)
    assert pf.modelfile.decode_spec(spec.plain, spec.problem) == spec


def test_the_picture_shown_is_the_one_that_is_scored(tmp_path: Path) -> None:
    """Also where the fit has another problem than its mates."""
    study = RestoreStudy.of("smoke", {"tasks": ("impulse-20",), "methods": ("ours",)})
    store = Store(tmp_path)
    pf.fit(study.fits(store), store, record=study.record(study.fits(store)[0]), device="cpu")
    study.answer(store)
    key, spec = next(iter(study._keys)), study.fits(store)[0]
    score = of_fit(store, store.rows()[0], spec, DAMAGES["impulse-20"], blend=True)
    assert score is not None
    shown = dict(study._shown(store, "impulse-20", {"ours": {key: score}}))
    assert metrics.psnr(shown["ours"], shown["true"]) == pytest.approx(score.psnr)


@pytest.mark.parametrize("task", ["inpaint-50", "impulse-50"])
def test_ours_is_what_the_command_does(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's default fit and blend, on one measurement, give the picture of `pixfit.restore`."""
    image = Image(images.load("coffee").data[:, 100:124, 220:247].clone())
    damage = DAMAGES[task]
    given = damage.problem(image, 0)
    spec = METHODS["ours"].make(given, damage.task, 12, 0)
    problem = spec.problem
    assert isinstance(problem, pf.Problem)
    known, held_out = problem.view.operator.known(problem.shape), problem.view.held_out
    assert known is not None
    assert held_out is not None
    monkeypatch.setattr(pf.restore.pictures, "_held_out", lambda *arguments: (held_out, None))
    if task == "inpaint-50":
        done = pf.restore.inpaint(image, known[0], steps=12, device="cpu")
    else:
        done = pf.restore.denoise(Image(given.view.measurement), steps=12, device="cpu")
    result = pf.fit(spec, device="cpu")
    assert result.estimate is not None
    answer, weight = restored(damage, problem, result.estimate, blend=True)
    torch.testing.assert_close(answer, done.image.data)
    assert weight == pytest.approx(done.weight)
    kept = known.expand(3, -1, -1)
    assert torch.equal(answer[kept], given.view.measurement[kept])


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
    """What differs between two lines of a table is the network, its rate, and how its answer and its held-out errors
    are averaged; some say that they are never stopped, and are not."""
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    for damage in DAMAGES.values():
        problem = damage.problem(image, 0)
        every: dict[str, Spec] = {name: method.make(problem, damage.task, None, 0) for name, method in METHODS.items()}
        assert len({spec.budget for spec in every.values()}) == 1
        specs = {name: spec for name, spec in every.items() if name not in UNSTOPPED}
        priors = [spec for spec in specs.values() if isinstance(spec.model, PicturePrior)]
        assert len({getattr(spec.stopping, "patience", None) for spec in specs.values()}) == 1
        assert len({(spec.stopping, spec.estimate) for spec in priors}) == 1
        assert {every[name].stopping for name in UNSTOPPED} == {pf.Never()}
        assert {every[name].estimate for name in UNSTOPPED - {"sgld"}} == {pf.AveragedOutput()}
        mean = every["sgld"].estimate
        assert isinstance(mean, PosteriorMean)
        assert mean.burn_in == pytest.approx(0.35 * (every["sgld"].budget.steps or 0), abs=0.5)  # as published
    assert {name for name, method in METHODS.items() if "never stopped" in method.title} == UNSTOPPED


def test_a_prior_that_is_never_stopped_is_one_fit_with_that_of_a_task_without_a_rule() -> None:
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    for task in ("upscale-4", "denoise-25"):
        problem, alike = DAMAGES[task].problem(image, 0), task == "upscale-4"
        specs = [
            METHODS[name].make(problem, DAMAGES[task].task, 1, 0) for name in ("hourglass-small", "hourglass-last")
        ]
        assert (specs[0].estimate == specs[1].estimate) is (specs[0].stopping == specs[1].stopping) is alike


def test_what_does_not_go_together_is_left_out_and_named(tmp_path: Path) -> None:
    """Outliers of each sample of the picture have no place where fewer samples were measured."""
    study = smoke(tasks="denoise-25,upscale-4", methods="doip,siren", leave_out="denoise-25/siren")
    fitted = [(type(spec.model), type(spec.problem.view.operator)) for spec in study.fits(Store(tmp_path))]
    assert fitted == [(DoublyOverparameterised, Identity), (Siren, LanczosDownsample)]
    assert "Not fitted: denoise-25/siren, upscale-4/doip." in study.answer(Store(tmp_path)).summary
    with pytest.raises(StudyError, match="nothing to fit"):
        smoke(tasks="upscale-4", methods="doip")


def test_double_over_parameterisation_is_checked_against_a_plain_prior(tmp_path: Path) -> None:
    study = smoke(tasks="impulse-50", methods="hourglass-last,doip,dip-l1", steps="2")
    make(study, store := Store(tmp_path))
    (row,) = study.answer(store).tables["checks"].rows
    rows = {row["method"]: row for row in study.answer(store).tables["methods"].rows}
    assert row["wanted"] == "mean +3.00 dB or more"
    assert row["mean"] == pytest.approx(rows["doip"]["PSNR"] - rows["hourglass-last"]["PSNR"], abs=0.011)
    assert row["met"] == "no"  # after two steps


def test_block_matching_is_a_control_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a package in its place: in colour and in grey it gets pixels as (H, W, C) and the level, and what it
    gives is clipped. Who asks for it in a blend gets it, or hears what to do."""
    monkeypatch.setitem(sys.modules, "bm3d", None)
    assert not classical.has_block_matching()
    picture = restore_pictures.crop(images.load("coffee"), SIDE)
    with pytest.raises(ValueError, match="pip install bm3d"):
        pf.restore.denoise(picture, control="bm3d")
    with pytest.raises(ValueError, match="pip install bm3d"):
        classical.block_matching(picture.data, NoiseLevel.white(0.1))
    with pytest.raises(ValueError, match="nlm or bm3d"):
        pf.restore.denoise(picture, control="BM4D")
    (tmp_path / "bm3d.py").write_text(
        "def bm3d_rgb(samples, sigma):\n    return samples * [0.0, 0.0, 1.0] + [0.0, sigma, 1.0]\n"
        "def bm3d(samples, sigma):\n    return samples[..., 0] * sigma\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bm3d")
    assert classical.has_block_matching()
    image = restore_pictures.crop(images.load("coffee"), SIDE)
    damage = restore_damages._denoise("noise", pf.GaussianNoise(0.1), NoiseLevel.white(0.1))
    made = damage.controls["BM3D"](piece_of(damage.problem(image, 0)))
    wanted = torch.tensor([0.0, 0.1, 1.0])[:, None, None].expand(3, SIDE, SIDE)
    torch.testing.assert_close(made, wanted)
    grey = image.data[:1]
    torch.testing.assert_close(classical.block_matching(grey, NoiseLevel.white(0.2)), 0.2 * grey)
    assert torch.equal(classical.block_matching(grey, NoiseLevel(0.0)), grey)
    done = pf.restore.denoise(image, sigma=0.1, control="bm3d", steps=2, device="cpu")
    torch.testing.assert_close(done.control, wanted)
    struck = Image(pf.SaltAndPepper(0.2)(image.data, torch.Generator().manual_seed(0)))
    assert "bm3d has no part in that" in pf.restore.denoise(struck, control="bm3d", steps=2, device="cpu").notes


def test_the_report_says_when_block_matching_was_not_run(
    finished: tuple[RestoreStudy, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = finished
    controls = {name: control for name, control in DAMAGES["denoise-25"].controls.items() if name != "BM3D"}
    absent = replace(DAMAGES["denoise-25"], controls=controls)
    present = replace(absent, controls={**controls, "BM3D": controls["median"]})
    for damage in (absent, present):
        monkeypatch.setitem(DAMAGES, "denoise-25", damage)
        said = replace(study, tasks=("denoise-25",)).answer(store)
        assert ("bm3d, free for non-commercial use, is not installed" in said.summary) is (damage is absent)
        assert ("BM3D" in {row["method"] for row in said.tables["methods"].rows}) is (damage is present)


def test_every_line_of_a_figure_has_its_own_colour() -> None:
    curve = (np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    for count in (3, len(METHODS)):
        lines = {f"method {number}": {("one", 0): Score(1.0, None, curve=curve)} for number in range(count)}
        (axes,) = restore_figures.curves("title", lines).axes
        assert len({str(line.get_color()) for line in axes.get_lines()}) == count
