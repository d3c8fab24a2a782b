"""The search for a recipe: its settings, what it draws, how results steer it, and the recipe that it ends with."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import torch
from typer.testing import CliRunner

import pixfit as pf
from pixfit import images, models, optim, plots, recipes
from pixfit.canonical import digest
from pixfit.cli import app
from pixfit.models import Grid, Mlp
from pixfit.problem import Problem
from pixfit.spec import Spec
from pixfit.store import Store
from pixfit.studies import Answer, ClimbStudy, StudyError
from pixfit.studies.climb_search import ClimbSearch, Course, Search, Trial
from pixfit.studies.climb_search_answer import answer
from pixfit.studies.climb_search_space import ENCODINGS, OPTIMISERS, Space
from tests.conftest import picture

FEW = {"search.steps": "9", "search.trials": "5", "search.together": "3", "search.rungs": "2"}


def smoke(**settings: Any) -> ClimbStudy:
    return ClimbStudy.of("smoke", {"pictures": "coffee"} | FEW | settings)


def searching(study: ClimbStudy) -> ClimbSearch:
    assert study.searching is not None
    return study.searching


def make(study: ClimbStudy, store: Store, most: int | None = None) -> None:
    """The fits that the study wants by now, in this process, until it wants no more; or a few of them."""
    torch.set_num_threads(1)
    while wanted := study.specs(store)[:most]:
        pf.fit(wanted, store, device="cpu")
        if most is not None:
            return


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClimbStudy, Store]:
    study, store = smoke(), Store(tmp_path_factory.mktemp("search"))
    make(study, store)
    return study, store


Score = Callable[[Spec], float]


class Imagined:
    """A store that knows how fits would have ended, and of how many it has been asked."""

    def __init__(self, score: Score, statuses: Callable[[Spec], str] = lambda spec: "done") -> None:
        self.score, self.statuses = score, statuses
        self.fits: dict[str, dict[str, Any]] = {}

    def make(self, specs: list[Spec]) -> None:
        for spec in specs:
            count = spec.model.parameters_count(2, spec.problem.shape[0])
            self.fits[spec.id] = {
                "id": spec.id, "status": self.statuses(spec), "metrics": {"psnr": self.score(spec)},
                "parameters": count, "values_ratio": 0.1, "steps": spec.budget.steps, "seconds": 1.0,
            }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        return list(self.fits.values())


def run(search: ClimbSearch, imagined: Imagined) -> Course:
    """The search with imagined fits, to its end."""
    while True:
        course = search.course(cast(Store, imagined))
        wanted = [spec for spec in course.fits if spec.id not in imagined.fits]
        if not wanted:
            return course
        imagined.make(wanted)


def said(search: ClimbSearch, imagined: Imagined) -> Answer:
    return answer(search, cast(Store, imagined))


def noise(spec: Spec) -> float:
    """A level in dB that means nothing, the same for the same fit."""
    return 20 + int(digest(spec.id)[:6], 16) / 16**6


# --- settings


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("search.seconds", "0", "above 0"), ("search.seconds", "soon", "above 0"),
        ("search.steps", "0", "1 or more"),
        ("search.parameters", "10", "1000 or more"), ("search.trials", "1.5", "whole number"),
        ("search.together", "0", "1 or more"), ("search.rungs", "0", "1 or more"),
        ("search.reduction", "1", "2 or more"),
        ("search.encodings", "", "empty"), ("search.encodings", "fourier,fuorier", "fourier, gabor"),
        ("search.encodings", "grid,grid", "twice"), ("search.second", "5", "did you mean 'search.seconds'"),
        ("search", "5", "search.seconds"),
    ],
)  # fmt: skip
def test_bad_settings_name_what_is_allowed(setting: str, value: str, words: str) -> None:
    with pytest.raises(StudyError, match="search") as error:
        smoke(**{setting: value})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_search_needs_a_budget() -> None:
    with pytest.raises(StudyError, match=r"search\.seconds, or search\.steps"):
        ClimbStudy.of("smoke", {"search.trials": "4"})


def test_without_a_budget_the_study_is_the_climb(tmp_path: Path) -> None:
    climb = ClimbStudy.of("smoke")
    assert climb.searching is None
    assert str(climb.search) == "none"
    ids = {spec.id for spec in climb.fits(Store(tmp_path))}
    assert ids.isdisjoint(spec.id for spec in smoke(pictures="astronaut,coffee").fits(Store(tmp_path)))


def test_budgets_grow_to_the_whole() -> None:
    search = Search(seconds=5, steps=100, rungs=3, reduction=3)
    assert [search.budget(rung).steps for rung in range(3)] == [12, 34, 100]
    assert [search.budget(rung).seconds for rung in range(3)] == pytest.approx([5 / 9, 5 / 3, 5])
    assert [Search(seconds=5, rungs=1).budget(0).seconds] == [5]


# --- what is drawn


def draws(space: Space, count: int) -> list[dict[str, Any]]:
    """Values from all over the space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        space.draw(trial)
        found.append(trial.params)
    return found


@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 1, 300), (4, 24, 24), (3, 768, 512)])
@pytest.mark.parametrize("parameters", [1000, 50_000])
def test_every_draw_is_a_recipe_within_the_limit(shape: tuple[int, int, int], parameters: int) -> None:
    space = Space(ENCODINGS, shape, parameters)
    every = [space.parts(values) for values in draws(space, 60)]
    for parts in every:
        count = parts.model.parameters_count(2, shape[0])
        assert 0 < count <= parameters
        assert (parts.batches.pixels or 0) <= shape[1] * shape[2]
    assert {type(parts.optimiser).__name__ for parts in every} == set(OPTIMISERS)
    kinds = {type(parts.model.encoding) for parts in every}
    assert kinds == {models.Fourier, models.Gabor, models.Positional, Grid}
    assert {parts.model.encoding.entries is None for parts in every if isinstance(parts.model.encoding, Grid)} == {
        True, False,
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_larger_limit_is_used(encoding: str) -> None:
    """A network of a draw that may have ten times the numbers has more of them, and most of what it may have."""
    for values in draws(Space((encoding,), (3, 256, 256), 1000), 12):
        counts = []
        for limit in (5_000, 50_000):
            full = Space((encoding,), (3, 256, 256), limit).parts({**values, "numbers": 1.0})
            counts.append(full.model.parameters_count(2, 3))
        assert counts[0] < counts[1] <= 50_000
        if encoding not in ("grid", "hash"):
            assert counts[1] > 40_000


def test_draws_of_all_kinds_can_be_fitted() -> None:
    image = picture(3, 12, 10)
    space = Space(ENCODINGS, (3, 12, 10), 1000)
    kinds: dict[tuple[str, str], Spec] = {}
    for values in draws(space, 120):
        spec = space.parts(values).spec(Problem(image), pf.Steps(2), 0)
        kinds.setdefault((values["encoding"], values["optimiser"]), spec)
    assert len(kinds) == len(ENCODINGS) * len(OPTIMISERS)
    for result in pf.fit(list(kinds.values()), device="cpu"):
        assert result.status.value == "done", result.reason
        assert result.psnr is not None


def test_the_search_begins_near_the_presets() -> None:
    problem = Problem(picture(3, 64, 48))
    space = Space(ENCODINGS, problem.shape, 10_000)
    found = [space.parts(values) for values in space.known()]
    assert found[0].model == recipes.fast(problem).model
    assert isinstance(found[1].optimiser, optim.Adam)
    wide = Space(ENCODINGS, problem.shape, 10**6).parts(space.known()[2]).model
    preset = recipes.mlp(problem).model
    assert isinstance(preset, Mlp)
    assert (wide.activation, wide.output, wide.hidden_layers) == (
        preset.activation,
        preset.output,
        preset.hidden_layers,
    )
    assert isinstance(wide.encoding, models.Fourier)
    assert isinstance(preset.encoding, models.Fourier)
    assert wide.encoding.features == preset.encoding.features
    assert wide.encoding.scale == pytest.approx(preset.encoding.scale, rel=0.01)
    assert [values["encoding"] for values in Space(("fourier",), problem.shape, 10_000).known()] == ["fourier"]
    for values in Space(ENCODINGS, (3, 2, 3), 1000).known():
        Space(ENCODINGS, (3, 2, 3), 1000).parts(values)


def test_grids_follow_the_pixels() -> None:
    """Every level of a pyramid has a vertex every so many pixels, a whole number of them."""
    space = Space(("grid",), (3, 90, 64), 4000)
    for values in draws(space, 40):
        grid = space.parts(values).model.encoding
        assert isinstance(grid, Grid)
        parts = [next(part for part in range(1, 10**4) if fits(part, level)) for level in reversed(grid.levels)]
        assert [math.ceil(90 / (parts[0] * 2**octave)) for octave in range(len(parts))] == [
            rows for rows, *_ in reversed(grid.levels)
        ]


def fits(part: int, level: tuple[int, ...]) -> bool:
    return level[:2] == (math.ceil(90 / part), math.ceil(64 / part))


# --- how results steer it


def test_the_best_of_a_rung_get_the_longer_budget() -> None:
    search = searching(smoke(**{"search.trials": 18, "search.together": 9, "search.rungs": 3, "search.steps": 90}))
    course = run(search, Imagined(noise))
    assert [len(trial.scores) for trial in course.trials].count(3) == 2
    for first in (0, 9):
        ranked = sorted(course.trials[first : first + 9], key=lambda trial: -trial.scores[0])
        assert {len(trial.scores) for trial in ranked[3:]} == {1}
        climbed = sorted(ranked[:3], key=lambda trial: -trial.scores[1])
        assert [len(trial.scores) for trial in climbed] == [3, 2, 2]
    assert [search.fits(course.trials[0], rung)[0].budget.steps for rung in range(3)] == [10, 30, 90]
    best = max(trial.scores[2] for trial in course.trials if len(trial.scores) == 3)
    assert course.best is not None
    assert course.best.scores[2] == best
    assert len(course.fits) == search.size[0] == 2 * (9 + 3 + 1) + 3
    assert search.size[1] == 2 * 3 + 3


def test_draws_follow_the_results() -> None:
    """Where a sigmoid is worth 20 dB, most of the later trials have one."""

    def score(spec: Spec) -> float:
        return noise(spec) + (20 if isinstance(spec.model, Mlp) and spec.model.output == "sigmoid" else 0)

    settings = {"search.trials": 63, "search.together": 9}
    search = searching(smoke(**settings))
    course = run(search, Imagined(score))
    sigmoids = [trial.parts.model.output == "sigmoid" for trial in course.trials]
    assert sum(sigmoids[18:]) > 0.8 * len(sigmoids[18:])
    importance = search.importance(course.trials)
    assert sum(importance.values()) == pytest.approx(1)
    assert list(importance.values()) == sorted(importance.values(), reverse=True)
    assert search.importance(course.trials[:40]) == {}
    other = run(searching(smoke(**settings | {"search.trials": 18})), Imagined(noise))
    assert [trial.values for trial in other.trials[:9]] == [trial.values for trial in course.trials[:9]]
    assert [trial.values for trial in other.trials[9:]] != [trial.values for trial in course.trials[9:18]]


def test_no_recipe_is_tried_twice() -> None:
    course = run(searching(smoke(**{"search.trials": 45, "search.together": 9})), Imagined(noise))
    assert len({trial.parts for trial in course.trials}) == 45


def test_a_longer_search_goes_on_from_a_shorter_one() -> None:
    imagined = Imagined(noise)
    short = run(searching(smoke(**{"search.trials": 6})), imagined)
    made = len(imagined.fits)
    long = run(searching(smoke(**{"search.trials": 9})), imagined)
    assert [trial.values for trial in long.trials[:6]] == [trial.values for trial in short.trials]
    assert len(imagined.fits) <= made + 3 + 1 + 3


def diverging(spec: Spec) -> str:
    return "diverged" if isinstance(spec.model, Mlp) and isinstance(spec.model.encoding, Grid) else "done"


def test_what_diverges_is_lost_and_the_search_goes_on() -> None:
    search = searching(smoke(**{"search.trials": 18, "search.together": 9}))
    imagined = Imagined(lambda spec: 99.0 if diverging(spec) == "diverged" else noise(spec), diverging)
    course = run(search, imagined)
    assert len(course.trials) == 18
    lost = [trial for trial in course.trials if trial.lost]
    assert lost
    assert {trial.values["encoding"] for trial in lost} == {"grid", "hash"}
    assert all(len(trial.scores) == 1 for trial in lost)
    assert course.best is not None
    assert not course.best.lost
    rows = said(search, imagined).tables["trials"].rows
    assert [row["ended"] == "diverged" for row in rows] == [trial.lost for trial in course.trials]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_search_in_which_all_is_lost_ends(status: str) -> None:
    search = searching(smoke())
    imagined = Imagined(noise, lambda spec: status)
    course = run(search, imagined)
    assert (len(course.trials), course.over, course.best) == (5, True, None)
    assert "No recipe was found" in said(search, imagined).summary


def test_interrupted_fits_are_wanted_again() -> None:
    search = searching(smoke())
    imagined = Imagined(noise)
    first = search.course(cast(Store, imagined)).fits
    imagined.make(list(first))
    imagined.fits[first[0].id]["status"] = "cancelled"
    course = search.course(cast(Store, imagined))
    assert not course.over
    assert [spec.id for spec in course.fits] == [spec.id for spec in first]
    assert [len(trial.scores) for trial in course.trials] == [0, 1, 1]


# --- real fits


def told(trials: list[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.values, trial.scores) for trial in trials]


def test_the_same_store_gives_the_same_next_trials(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    part = Store(tmp_path)
    for spec in searching(study).course(store).fits[:4]:  # the first round: three trials, and the best again
        result = store.get(spec)
        assert result is not None
        part.enter(part.write(result, weights=False))
    wanted = [smoke().specs(part) for _ in range(2)]
    assert [spec.id for spec in wanted[0]] == [spec.id for spec in wanted[1]]
    assert len(wanted[0]) == 2
    assert not searching(study).course(part).over
    under_way = study.answer(part)
    assert "so far" in under_way.summary
    assert "presets" not in under_way.tables


def test_a_killed_search_ends_as_an_undisturbed_one(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    other = Store(tmp_path)
    for _ in range(4):
        make(smoke(), other, most=2)  # a program each, that is killed after two fits
    make(smoke(), other)
    ends = [searching(one).course(place) for one, place in ((study, store), (smoke(), other))]
    assert told(list(ends[0].trials)) == told(list(ends[1].trials))
    assert sorted(store.entries()) == sorted(other.entries())
    assert study.counts(store).done == len(ends[0].fits) == study.counts(store).fits


def test_a_finished_search_answers(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    course = searching(study).course(store)
    best = course.best
    assert best is not None
    found = study.answer(store)
    presets = {row["recipe"]: row for row in found.tables["presets"].rows}
    assert list(presets) == ["found", "fast", "mlp"]
    for name, fits in searching(study).comparison(best).items():
        result = store.get(fits["coffee", 1])
        assert result is not None
        assert presets[name]["PSNR"] == pytest.approx(result.psnr, abs=0.006)
        assert (presets[name]["steps"], presets[name]["parameters"]) == (9, result.parameters)
    assert len(found.tables["trials"].rows) == 5
    assert found.tables["best_trials"].rows[0]["trial"] == best.number
    assert found.tables["best_trials"].rows[0]["PSNR at 9 steps"] == pytest.approx(best.scores[-1], abs=0.006)
    assert list(found.figures) == ["history"]  # too few trials to tell what mattered
    assert "Against the preset fast" in found.summary
    json.dumps([list(table.rows) for table in found.tables.values()], allow_nan=False)


def test_many_numbers_are_worth_a_warning() -> None:
    for limit, warned in ((3000, False), (7500, True)):  # 6912 values
        search = searching(smoke(**{"side": 48, "search.parameters": limit, "search.encodings": "grid"}))
        imagined = Imagined(lambda spec: spec.model.parameters_count(2, 3) / 100)
        run(search, imagined)
        assert ("Warning" in said(search, imagined).summary) == warned


def test_all_figures_of_a_long_search() -> None:
    search = searching(smoke(**{"search.trials": 54, "search.together": 27, "search.rungs": 3}))
    imagined = Imagined(noise)
    run(search, imagined)
    found = said(search, imagined)
    assert list(found.figures) == ["history", "importance"]
    for draw in found.figures.values():
        assert plots.png(draw()).startswith(b"\x89PNG")
    assert len(found.tables["best_trials"].rows) == 10


def test_pictures_of_all_sizes_get_one_recipe(tmp_path: Path) -> None:
    for name, shape in (("wide", (3, 20, 40)), ("grey", (1, 40, 30))):
        images.save(picture(*shape), tmp_path / f"{name}.png")
    study = smoke(images=str(tmp_path), pictures="all", side="null")
    search = searching(study)
    assert search.shape == (3, 30, 35)
    for trial in search.course(Store(tmp_path / "store")).trials:
        specs = search.fits(trial, 0)
        assert len({json.dumps(spec.plain["model"]) for spec in specs}) == 1
        assert [spec.problem.shape for spec in specs] == [(1, 40, 30), (3, 20, 40)]


# --- the command


def pixfit(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def options(store: Path) -> list[str]:
    """Of a search over the pictures that lie beside the store."""
    settings = {"pictures": "all", "images": str(store.parent), "side": "null", **FEW}
    few = [part for name, value in settings.items() for part in ("-s", f"{name}={value}")]
    return ["--profile", "smoke", *few, "--store", str(store), "--device", "cpu"]


def test_the_command_ends_with_a_recipe_that_fit_takes(tmp_path: Path) -> None:
    """What is fitted with the recipe's file is the fit of the best trial, which the store has."""
    images.save(picture(3, 14, 18), tmp_path / "waves.png")
    store = tmp_path / "store"
    plan = pixfit("study", "climb", "plan", *options(store))
    assert "in all about" in plan.stdout
    study = smoke(images=str(tmp_path), pictures="all", side="null")
    make(study, Store(store))
    shown = pixfit("study", "climb", "run", *options(store), "--workers", "1").stdout
    path = store / "studies" / "climb-search-smoke" / "recipe.json"
    assert f"recipe      {path}" in shown
    assert (path.parent / "report.md").is_file()
    with (path.parent / "trials.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 5
    told = json.loads(pixfit("study", "climb", "report", *options(store), "--json").stdout)
    assert told["recipe"] == str(path)
    best = searching(study).course(Store(store)).best
    assert best is not None
    place = ["--recipe", str(path), "--store", str(store), "--json", "--device", "cpu"]
    fitted = json.loads(pixfit("fit", str(tmp_path / "waves.png"), *place).stdout)
    assert fitted["id"] == searching(study).fits(best, 1)[0].id
    assert fitted["psnr"] == pytest.approx(best.scores[-1])
    assert fitted["steps"] == 9
    images.save(picture(1, 30, 11), tmp_path / "other.png")
    other = json.loads(pixfit("fit", str(tmp_path / "other.png"), *place).stdout)
    assert (other["status"], other["channels"], other["steps"]) == ("done", 1, 9)


def test_without_optuna_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    place = ["--profile", "smoke", "--store", str(tmp_path)]
    for verb in ("plan", "run", "status", "report"):
        result = pixfit("study", "climb", verb, *place, "-s", "search.steps=9", code=1)
        assert result.stderr.strip().splitlines()[-1] == (
            'pixfit: the search for a recipe needs optuna; pip install "pixfit[tune]"'
        )
    pixfit("study", "climb", "status", *place)


@pytest.mark.slow
def test_workers_and_one_process_make_the_same_search(finished: tuple[ClimbStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    few = [part for name, value in FEW.items() for part in ("-s", f"{name}={value}")]
    place = ["--store", str(tmp_path), "--device", "cpu", "--workers", "2"]
    pixfit("study", "climb", "run", "--profile", "smoke", "-s", "pictures=coffee", *few, *place)
    ends = [searching(study).course(place) for place in (store, Store(tmp_path))]
    assert told(list(ends[0].trials)) == told(list(ends[1].trials))
