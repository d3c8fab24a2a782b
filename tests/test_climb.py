"""The climb: its published grids and sizes, the fits that it names, and what it makes of finished ones."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from typer.testing import CliRunner

import pixfit as pf
from pixfit import plots, recipes
from pixfit.cli import app
from pixfit.models import Gabor, Mlp
from pixfit.spec import Record, Spec
from pixfit.store import Store
from pixfit.studies import ClimbStudy, StudyError
from pixfit.studies.climb_films import gate_map
from pixfit.studies.climb_scores import Key, Run, Runs, judge
from pixfit.studies.climb_steps import NAMES, Claim, Point, Sweep, Values, label
from tests.conftest import picture

ONE = {"images": "bundled", "pictures": "coffee", "side": 24}


def published(**settings: Any) -> ClimbStudy:
    """The published settings on a small cut-out."""
    return ClimbStudy.of("published", ONE | settings)


def smoke(**settings: Any) -> ClimbStudy:
    return ClimbStudy.of("smoke", settings)


def named(study: ClimbStudy) -> dict[str, Sweep]:
    return {sweep.name: sweep for sweep in study.climbed}


def make(study: ClimbStudy, store: Store) -> None:
    """All fits of a study, in this process."""
    torch.set_num_threads(1)
    groups: dict[Record, list[Spec]] = {}
    for spec in study.specs(store):
        groups.setdefault(study.record(spec), []).append(spec)
    for record, specs in groups.items():
        pf.fit(specs, store, device="cpu", record=record)


def test_the_published_pictures_are_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names and in the folder that the project's own test pictures have."""
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    with pytest.raises(StudyError, match=r"hires768; set PIXFIT_DATA to the folder .* -s images=FOLDER"):
        ClimbStudy.of("published").specs(Store(tmp_path / "runs"))
    (tmp_path / "hires768").mkdir()
    for number, name in enumerate(("wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047", "retina")):
        PillowImage.new("RGB", (24, 24), (number, 0, 0)).save(tmp_path / "hires768" / f"{name}_768.png")
    for settings in ({}, {"table": "five"}, {"tasks": "upscale"}):
        study = ClimbStudy.of("published", settings)
        assert {spec.problem.image.name for spec in study.specs(Store(tmp_path / "runs"))} == {
            "wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047"
        }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClimbStudy, Store]:
    """Some sweeps of the smoke profile on one picture, finished."""
    study = smoke(sweeps="baseline,size,encoding,norm,experts,gate", first_scales="null", pictures="coffee")
    store = Store(tmp_path_factory.mktemp("climb"))
    make(study, store)
    return study, store


# --- the published steps


def test_the_published_grids() -> None:
    sweeps = named(published())
    assert list(sweeps) == [
        "baseline", "size_default", "size_50", "encoding", "adamw", "free", "trainable", "activation", "type", "norm",
        "experts", "skip", "batch", "sigma", "gate", "decay",
    ]  # fmt: skip
    steps = dict.fromkeys(sweep.step for sweep in sweeps.values())
    assert list(steps) == [*map(str, range(12)), ""]
    assert {name: len(sweep.members) for name, sweep in sweeps.items()} == {
        "baseline": 2, "size_default": 12, "size_50": 12, "encoding": 15, "adamw": 5, "free": 5, "trainable": 2,
        "activation": 3, "type": 10, "norm": 2, "experts": 18, "skip": 2, "batch": 5, "sigma": 2, "gate": 2, "decay": 2,
    }  # fmt: skip
    assert {name: label(sweep, sweep.taken) for name, sweep in sweeps.items() if sweep.step} == {
        "baseline": "scale=default", "size_default": "hidden=1024, layers=6", "size_50": "hidden=1024, layers=6",
        "encoding": "scale=80, features=256", "adamw": "lr=1e-4", "free": "lr=4e-4", "trainable": "trainable=no",
        "activation": "activation=relu", "type": "kind=Gabor, features=256", "norm": "norm=yes",
        "experts": "experts=2, hidden=1024, layers=5", "skip": "skip=no", "batch": "batch=4096",
    }  # fmt: skip


def test_each_step_holds_fixed_what_was_taken_before() -> None:
    """Only the optimiser changes between two steps, with its decay: from 3 to 4."""
    sweeps = [sweep for sweep in published(first_scales="50").climbed if sweep.step]
    for before, after in itertools.pairwise(sweeps):
        old, new = before.onward, after.members[after.taken]
        changed = {f.name for f in fields(Point) if getattr(old, f.name) != getattr(new, f.name)}
        assert changed <= {*after.axes} | ({"optimiser", "decay"} if after.name == "free" else set()), after.name
        for point in after.members.values():
            differs = {f.name for f in fields(Point) if getattr(point, f.name) != getattr(new, f.name)}
            assert differs <= {*after.axes}
    assert sweeps[5].point == sweeps[4].onward  # 4e-4, though 5e-4 is said to be best
    assert sweeps[4].claims[0].better == (5e-4,)


def test_the_published_parameter_counts() -> None:
    study = published(seeds=1)
    sweeps = named(study)
    points = {
        149_512: sweeps["baseline"].onward, 4_268_552: sweeps["size_default"].onward,
        4_465_160: sweeps["encoding"].onward, 4_475_400: sweeps["norm"].onward, 6_847_116: sweeps["experts"].onward,
    }  # fmt: skip
    assert {count: study.model(point).parameters_count(2, 3) for count, point in points.items()} == {
        count: count for count in points
    }


def test_the_first_and_the_last_step_are_the_recipes() -> None:
    study = published()
    first, last = named(study)["baseline"].onward, named(study)["batch"].onward
    problem = study.problems["coffee"]
    assert study.fit(first, "coffee", 0) == recipes.climb_baseline(problem)
    assert study.fit(last, "coffee", 0) == recipes.climb_final(problem)
    assert study.fit(last, "coffee", 1).seed == 1


def test_fits_that_sweeps_share_are_made_once(tmp_path: Path) -> None:
    fits = published().fits(Store(tmp_path))
    assert len({spec.id for spec in fits}) == len(fits)
    members = [point for sweep in published().climbed for point in sweep.members.values()]
    assert (len(members), len(set(members))) == (99, 87)  # each sweep after the encoding's holds a point of another
    assert len(fits) == 2 * 87


# --- what the published program does and its text does not say


def encoding(study: ClimbStudy, point: Point) -> Gabor:
    model = study.model(point)
    assert isinstance(model.encoding, Gabor)
    return model.encoding


def test_the_width_of_gabor_features_is_the_programs_or_the_texts() -> None:
    code, text = published(), published(sigma="text")
    for study, width in ((code, 1.131), (text, 0.071)):
        for name in ("type", "norm", "experts", "batch"):
            assert encoding(study, named(study)[name].onward).width == pytest.approx(width, abs=5e-4)
    grid = named(text)["type"]
    widths = [encoding(text, grid.members["Gabor", size]).width for size in (192, 256, 512)]
    np.testing.assert_allclose(widths, 0.1 * np.sqrt(np.array([96, 128, 256]) / 256))
    pair = [encoding(code, point).width for point in named(code)["sigma"].members.values()]
    np.testing.assert_allclose(pair, [1.1314, 0.0707], atol=1e-4)


def test_the_gate_is_normalised_as_published_or_not() -> None:
    def gates(study: ClimbStudy) -> set[str | None]:
        models = [study.model(sweep.onward) for sweep in study.climbed if sweep.step]
        return {model.experts.gate_norm if model.experts else None for model in models}

    assert gates(published()) == {"layer"}
    assert gates(published(gate_norm="none")) == {"none"}
    pair = [published().model(point) for point in named(published())["gate"].members.values()]
    assert [model.experts and model.experts.gate_norm for model in pair] == ["layer", "none"]


def test_the_schedule_free_steps_drop_the_weight_decay() -> None:
    def decays(study: ClimbStudy) -> dict[str, float]:
        return {
            spec.optimiser.__class__.__name__: getattr(spec.optimiser, "weight_decay")  # noqa: B009
            for spec in (study.fit(named(study)[name].onward, "coffee", 0) for name in ("adamw", "free"))
        }

    assert decays(published()) == {"AdamW": 0.01, "ScheduleFreeAdamW": 0.0}
    assert decays(published(free_decay=0.01, adamw_decay="0")) == {"AdamW": 0.0, "ScheduleFreeAdamW": 0.01}
    assert [point.decay for point in named(published())["decay"].members.values()] == [0.0, 0.01]


# --- settings


def test_a_smaller_climb_divides_all_members_alike() -> None:
    study = published(divide_widths=4, divide_batches=16, divide_frequencies=2, multiply_rates=4, steps=500)
    full = published()
    for sweep, whole in zip(study.climbed, full.climbed, strict=True):
        for values, point in sweep.members.items():
            ours, theirs = study.fit(point, "coffee", 0), full.fit(whole.members[values], "coffee", 0)
            assert isinstance(ours.model, Mlp)
            assert isinstance(theirs.model, Mlp)
            assert isinstance(theirs.model.hidden_features, int)
            assert isinstance(theirs.batches.pixels, int)
            assert ours.model.hidden_features == theirs.model.hidden_features // 4
            assert ours.batches.pixels == theirs.batches.pixels // 16
            assert getattr(ours.model.encoding, "scale") == getattr(theirs.model.encoding, "scale") / 2  # noqa: B009
            assert ours.optimiser.lr == pytest.approx(4 * theirs.optimiser.lr)
            assert ours.budget.steps == 500


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_small_profiles_give_all_fits_of_a_sweep_equal_steps(profile: str, tmp_path: Path) -> None:
    study = ClimbStudy.of(profile)
    specs = study.fits(Store(tmp_path))
    assert len({(spec.budget.steps, spec.budget.epochs, spec.budget.seconds) for spec in specs}) == 1
    if profile == "laptop":
        assert (specs[0].budget.steps or 0) >= 500
        assert len(study.problems) * study.seeds >= 6  # fewer pairs are never significant
        assert {spec.problem.shape for spec in specs} == {(3, 256, 256)}


def test_the_published_budget() -> None:
    spec = published().fit(Point(), "coffee", 0)
    assert (spec.budget.epochs, spec.budget.seconds, spec.budget.steps) == (200, 180, None)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("sweps", "norm", "did you mean 'sweeps'"),
        ("sweeps", "norm,lr", "sweeps is 'lr'; it may be baseline, size"),
        ("sweeps", "", "sweeps is empty"),
        ("sigma", "wide", "sigma is 'wide'; it may be code, text"),
        ("gate_norm", "rms", "gate_norm is 'rms'; it may be layer, none"),
        ("seeds", "0", "seeds is 0; it must be a whole number"),
        ("side", "0", "side is 0; it must be a whole number"),
        ("film", "-1", "film is -1"),
        ("free_decay", "-0.1", "free_decay is -0.1"),
        ("divide_frequencies", "0", "divide_frequencies is 0; it must be a number above 0"),
        ("multiply_rates", "fast", "multiply_rates is 'fast'"),
        ("first_scales", "null,-3", "first_scales is -3"),
        ("first_scales", "50,50", "names a scale twice"),
        ("steps", "null", "a budget needs a limit"),
        ("steps", "ten", "budget.steps is 'ten'"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(setting: str, value: str, says: str) -> None:
    with pytest.raises(StudyError) as error:
        smoke(**{setting: value})
    assert says in str(error.value)


# --- pictures


def folder_of(tmp_path: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        pf.images.save(picture(3, 20, 30, seed=index), tmp_path / f"{name}.png")
    return tmp_path


def test_pictures_are_found_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a_768", "b", "b_768", "c_1", "c_2")
    study = smoke(images=str(folder), pictures="b,a", side="8")
    assert list(study.problems) == ["b", "a"]
    whole = picture(3, 20, 30, seed=1).data
    torch.testing.assert_close(study.problems["b"].image.data, whole[:, 6:14, 11:19])  # the middle
    uncut = smoke(images=str(folder), pictures="all", side="null")
    assert list(uncut.problems) == ["a_768", "b", "b_768", "c_1", "c_2"]
    assert {problem.shape for problem in uncut.problems.values()} == {(3, 20, 30)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pictures": "d", "side": "8"}, "no picture is called 'd'"),
        ({"pictures": "c", "side": "8"}, "several pictures are called 'c'"),
        ({"pictures": "b", "side": "21"}, "side is 21, but b has 30×20 pixels"),
        ({"images": "bundled", "pictures": "wiki_008"}, "no bundled picture is called 'wiki_008'; there are astronaut"),
        ({"images": "nowhere"}, "there is no folder nowhere"),
        ({"images": "bundled", "pictures": "coffee,coffee"}, "two pictures are called 'coffee'"),
    ],
)
def test_pictures_that_are_not_there(settings: dict[str, str], says: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a_768", "b", "c_1", "c_2")
    with pytest.raises(StudyError) as error:
        _ = smoke(**({"images": str(folder)} | settings)).problems
    assert says in str(error.value)


def test_the_five_pictures(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(shared_data))
    study = ClimbStudy.of("published")
    assert list(study.problems) == ["wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047"]
    assert {problem.shape for problem in study.problems.values()} == {(3, 768, 768)}
    spec = study.fit(named(study)["batch"].onward, "wiki_027", 0)
    record = study.record(spec)
    assert (record.every, record.points) == (144, 768**2)  # once an epoch, as published, over the whole picture
    assert record.keep == tuple(range(0, 28_800, 5 * 144))


# --- what is written down


def test_every_epoch_is_scored_over_all_pixels_and_few_fits_are_filmed(tmp_path: Path) -> None:
    study = smoke(evaluate=2)
    sweeps = named(study)
    for batch, point in sweeps["batch"].members.items():
        spec = study.fit(point, "coffee", 0)
        epoch = math.ceil(24 * 24 / (batch[0] // 32))
        assert study.record(spec).every == 2 * epoch
        assert study.record(spec).points == 24 * 24
    keep = {
        name: study.record(study.fit(sweeps[name].onward, "coffee", 0)).keep
        for name in ("baseline", "adamw", "norm", "batch")
    }
    assert keep == {"baseline": (0, 5, 10), "adamw": (), "norm": (), "batch": (0, 5, 10)}
    assert study.record(study.fit(sweeps["gate"].members[("none",)], "coffee", 0)).keep == (0,)
    mapped = smoke(sweeps="experts,batch", film=0)
    keeps = {
        name: mapped.record(mapped.fit(point, "coffee", 0)).keep
        for name, point in (("final", sweeps["batch"].onward), ("other", sweeps["batch"].members[(8192,)]))
    }
    assert keeps == {"final": (0,), "other": ()}
    silent = smoke(film=0)
    assert silent.record(silent.fit(sweeps["baseline"].onward, "coffee", 0)).keep == ()
    assert silent.record(silent.fit(sweeps["batch"].onward, "coffee", 0)).keep == (0,)
    timed = smoke(steps="null", seconds=1)
    assert len(timed.record(timed.fit(sweeps["baseline"].onward, "coffee", 0)).keep) == 200


# --- scores and verdicts


def run(last: float, *levels: float, **row: Any) -> Run:
    across = np.arange(len(levels), dtype=np.float64)
    return Run(last, (across, np.array(levels)), (across, np.array(levels)), {"epochs": 9.0, "status": "done", **row})


def runs(levels: Mapping[Key, float], *pictures: str) -> Runs:
    return Runs({key: run(level) for key, level in levels.items()}, pictures)


def test_a_run_has_a_last_and_a_best_epoch() -> None:
    fallen = run(20.0, 5.0, 30.0, 25.0)
    assert (fallen.best, fallen.best_epoch, fallen.mse) == (30, 1, pytest.approx(1e-3))
    risen = run(31.0, 5.0, 30.0)
    assert (risen.best, risen.best_epoch) == (31, 9)


def test_the_standard_error_is_over_seeds_of_the_mean_over_pictures() -> None:
    some = runs({("a", 0): 10, ("b", 0): 20, ("a", 1): 13, ("b", 1): 21, ("a", 2): 99}, "a", "b")
    assert some.seeds() == [0, 1]  # the third lacks a picture
    mean, error = some.level()
    assert mean == pytest.approx(16)
    assert error == pytest.approx(1.0)  # 15 and 17: a deviation of √2, over √2
    assert some.of_picture("b") == 20.5
    assert all(map(math.isnan, runs({("a", 0): 1}, "a", "b").level()))


def test_curves_of_unequal_length_have_a_mean() -> None:
    both = Runs({("a", 0): run(3, 1.0, 2.0, 3.0), ("b", 0): run(5, 5.0)}, ("a", "b"))
    curve = both.curve("psnr")
    assert curve is not None
    np.testing.assert_allclose(curve, [[0, 1, 2], [3, 3.5, 4]])
    assert Runs({}, ("a",)).curve("psnr") is None


KEYS = [(name, seed) for name in "abc" for seed in (0, 1)]


def sweep_of(*claims: Claim) -> Sweep:
    return Sweep("norm", "8", {"lr": (1e-4, 2e-4, 3e-4)}, Point(), (1e-4,), claims)


@pytest.mark.parametrize(
    ("gains", "said", "even", "expected"),
    [
        ([1.0, 1.2, 0.8, 1.1, 0.9, 1.0], "best", False, "same order"),
        ([-1.0, -1.2, -0.8, -1.1, -0.9, -1.0], "best", False, "other order"),
        ([1.0, -1.2, 0.8, -1.1, 0.9, -1.0], "best", False, "not significant"),
        ([1.0, 1.2, 0.8, 1.1, 0.9, 1.0], "", False, "first is better (none stated)"),
        ([1.0, 1.2, 0.8, 1.1, 0.9, 1.0], "even", True, "not even: first is better"),
        ([1.0, -1.2, 0.8, -1.1, 0.9, -1.0], "even", True, "not told apart, as said"),
        ([3.0, 3.1, -1.0, -0.9, -1.0, -1.1], "best", False, "same order"),  # of these pictures, on the mean
    ],
)
def test_verdicts(gains: list[float], said: str, even: bool, expected: str) -> None:
    base = {key: 20.0 + index for index, key in enumerate(KEYS)}
    claim = Claim((1e-4,), (2e-4,), said, even)
    members: dict[Values, Runs] = {
        (1e-4,): runs({key: base[key] + gain for key, gain in zip(KEYS, gains, strict=True)}, *"abc"),
        (2e-4,): runs(base, *"abc"),
    }
    verdict = judge(sweep_of(claim), claim, members)
    assert verdict is not None
    assert verdict.order == expected
    assert verdict.differences.mean == pytest.approx(np.mean(gains))
    apart = np.array(gains).reshape(3, 2)
    error = math.sqrt(((apart - apart.mean(axis=1, keepdims=True)) ** 2).sum() / 3 / 6)
    assert verdict.differences.error == pytest.approx(error)


def test_the_best_is_compared_with_the_best_of_the_others() -> None:
    claim = Claim((1e-4,), None, "best")
    members: dict[Values, Runs] = {
        (1e-4,): runs(dict.fromkeys(KEYS, 30.0), *"abc"),
        (2e-4,): runs(dict.fromkeys(KEYS, 28.0) | {("a", 0): 33.0, ("a", 1): 31.0}, *"abc"),
        (3e-4,): runs({("a", 0): 50.0}, *"abc"),  # hardly begun: not to be compared yet
    }
    verdict = judge(sweep_of(claim), claim, members)
    assert verdict is not None
    assert verdict.worse == (2e-4,)
    assert verdict.differences.agree == (2, 3)
    assert judge(sweep_of(claim), claim, {(1e-4,): members[(1e-4,)]}) is None
    assert judge(sweep_of(claim), claim, {(2e-4,): members[(2e-4,)]}) is None


# --- answers


def test_a_finished_climb_answers(finished: tuple[ClimbStudy, Store]) -> None:
    study, store = finished
    counts = study.counts(store)
    assert (counts.fits, counts.done, counts.failed) == (48, 48, 0)
    answer = study.answer(store)
    sweeps = named(study)
    climbed = {row["sweep"]: row for row in answer.tables["climb"].rows}
    assert list(climbed) == ["baseline", "size_default", "encoding", "norm", "experts", "gate"]
    assert climbed["experts"]["published PSNR"] == 47.15
    final = store.get(study.fit(sweeps["experts"].onward, "coffee", 0))
    assert final is not None
    assert climbed["experts"]["PSNR"] == pytest.approx(final.psnr, abs=0.006)
    assert len(answer.tables["members"].rows) == sum(len(sweep.members) for sweep in study.climbed)
    assert [row["check"] for row in answer.tables["checks"].rows] == [
        "gain from size_default to encoding", "LayerNorm raises the PSNR of the last step", "two experts against one",
    ]  # fmt: skip
    said = {row["verdict"].partition(" (")[0] for row in answer.tables["verdicts"].rows}
    assert said == {"not significant", "not told apart, as said"}  # with one seed
    assert not answer.tables["runs"].shown
    for row in answer.tables["runs"].rows:  # how each run ended
        assert (row["stop_reason"], row["steps"], row["device"]) == ("steps", 12, "cpu")
        assert row["seconds"] > 0
        assert row["evaluation_seconds"] > 0
        assert row["best PSNR"] >= row["PSNR"]
    json.dumps([list(table.rows) for table in answer.tables.values()], allow_nan=False)


def test_a_climb_under_way_answers_what_it_can(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    part = Store(tmp_path)
    assert (study.answer(part).summary, dict(study.answer(part).tables)) == ("", {})
    for spec in study.fits(store)[:9]:
        result = store.get(spec)
        assert result is not None
        part.enter(part.write(result, weights=False))
    answer = study.answer(part)
    assert list(answer.films) == []  # without weights
    assert [row["sweep"] for row in answer.tables["climb"].rows] == ["baseline", "size_default"]
    for name in ("size_default", "size_default_psnr"):
        assert plots.png(answer.figures[name]()).startswith(b"\x89PNG")


def test_a_report_has_its_figures_and_films(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    answer = study.answer(store)
    assert list(answer.films) == ["film_baseline", "film_final"]
    for name in ("baseline", "experts", "experts_loss", "gate_maps"):
        assert plots.png(answer.figures[name]()).startswith(b"\x89PNG")
    few, own = smoke(sweeps="baseline", first_scales="null"), Store(tmp_path / "store")
    make(few, own)
    written = few.report(own, tmp_path)
    page = written[0].read_text("utf-8")
    assert "figures/film_baseline.webp" in page
    assert "## Runs" not in page
    with (tmp_path / "runs.csv").open(encoding="utf-8") as stream:
        assert [row["picture"] for row in csv.DictReader(stream)] == ["astronaut", "coffee"]
    with PillowImage.open(tmp_path / "figures" / "film_baseline.webp") as film:
        assert film.n_frames == 4  # after 0, 1 and 2 epochs, and at the end
        assert film.size == (2 * 384 + 8, 2 * 384 + 8)


def test_a_normalised_gate_sees_the_side_of_the_diagonal_alone(finished: tuple[ClimbStudy, Store]) -> None:
    study, store = finished
    maps = {}
    for (gate,), point in named(study)["gate"].members.items():
        result = store.get(study.fit(point, "coffee", 0))
        assert result is not None
        maps[gate] = gate_map(result)
        assert maps[gate].shape == (2, 24, 24)
        np.testing.assert_allclose(maps[gate].sum(axis=0), 1, atol=1e-6)
    above, below = np.triu_indices(24, 1), np.tril_indices(24, -1)
    for side in (above, below):
        assert np.ptp(maps["layer"][0][side]) < 0.05 * np.ptp(maps["layer"][0])
        assert np.ptp(maps["none"][0][side]) > 0.2 * np.ptp(maps["none"][0])


# --- pictures of numbers


def test_a_caption_covers_the_top_alone() -> None:
    grey = torch.full((1, 200, 300), 0.5)
    shown = plots.captioned(grey, "Epoch 5 | MSE=1.00e-03 | PSNR=30.00 dB")
    assert shown.shape == (3, 200, 300)
    assert float(shown[:, :20].max()) == 1
    torch.testing.assert_close(shown[:, 40:], torch.full((3, 160, 300), 128 / 255))


def test_heat_maps_of_levels_and_of_nothing() -> None:
    levels = np.array([[20.0, math.nan], [21.5, 30.0]])
    for values in (levels, np.full((2, 2), math.nan)):
        figure = plots.heat_maps(
            [("", values)], ["a", "b"], ["c", "d"], title="t", x="x", y="y", label="dB", around_zero=False
        )
        assert plots.png(figure).startswith(b"\x89PNG")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == []


# --- the command


def pixfit(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["study", "climb", *arguments, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_from_plan_to_report(tmp_path: Path) -> None:
    few = ("--profile", "smoke", "-s", "sweeps=baseline,gate", "-s", "pictures=coffee", "-s", "first_scales=null")
    place = ("--store", str(tmp_path), "--device", "cpu")
    plan = pixfit("plan", *few, *place)
    assert (plan["fits"], plan["wanted"]) == (3, 3)
    assert plan["estimated_seconds"] > 0
    ran = pixfit("run", *few, *place, "--workers", "1")
    assert (ran["done"], ran["failed"]) == (3, 0)
    study = smoke(sweeps="baseline,gate", pictures="coffee", first_scales="null")
    store = Store(tmp_path)
    for spec in study.fits(store):  # the workers wrote down what the study asks for
        record, result = study.record(spec), store.get(spec)
        assert result is not None
        assert tuple(sorted(result.kept)) == record.keep
        assert bool(result.weights) == bool(record.keep)
        assert result.curves["psnr_step"].tolist() == [0, 5, 10, 12]
    report = pixfit("report", *few, *place, "-o", str(tmp_path / "page"))
    assert any(path.endswith("film_baseline.webp") for path in report["figures"])
    assert all(Path(path).is_file() for path in report["figures"])


def test_a_plan_counts_curves_over_all_pixels(small: pf.Image) -> None:
    """A point of the curve at every step, over ten times the pixels of a step, takes more than the steps do."""
    from pixfit import workers

    spec = Spec(pf.Problem(small), pf.models.Siren(2, 32), batches=pf.Batches(12), budget=pf.Steps(10**6))
    plain = workers.estimate([spec], device="cpu", seconds=0.5)
    watched = workers.estimate([spec], device="cpu", seconds=0.5, record=lambda one: Record(every=1, points=120))
    assert watched > 2 * plain


# --- real pictures


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_climb_climbs_on_real_pictures(shared_data: Path, tmp_path: Path) -> None:
    """The encoding gains over the size alone, and LayerNorm after that, on cut-outs of two of the five pictures."""
    folder = str(shared_data / "hires768")
    study = ClimbStudy.of("laptop", {"images": folder, "pictures": "wiki_008,wiki_047", "seeds": 1})
    sweeps = named(study)
    levels = {}
    for name in ("size_default", "encoding", "norm"):
        specs = [study.fit(sweeps[name].onward, picture, 0) for picture in study.problems]
        levels[name] = np.array([result.psnr for result in pf.fit(specs, device="cpu")], dtype=np.float64)
    assert (levels["encoding"] > levels["size_default"]).all(), levels
    assert (levels["norm"] > levels["encoding"]).all(), levels


def test_every_name_of_a_sweep_is_one(tmp_path: Path) -> None:
    for name in NAMES:
        study = published(sweeps=name)
        assert {sweep.name.partition("_")[0] for sweep in study.climbed} == {name}
        assert study.fits(Store(tmp_path))
