"""Studies: their settings, the fits they name, and what they make of finished ones; above all the pre-fit study."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import pixfit as pf
from pixfit import plots, workers
from pixfit.cli import app
from pixfit.kernels import library
from pixfit.problem import stream
from pixfit.schedules import Plateau
from pixfit.spec import Spec
from pixfit.store import Store
from pixfit.studies import STUDIES, PrefitStudy, StudyError, Table, prefit_answer
from pixfit.studies.prefit_published import PUBLISHED
from pixfit.studies.prefit_scores import Levels, Runs, place, psnr_of_loss
from pixfit.studies.statistics import crossover, paired, seeded
from tests.reference import train


def smoke(**settings: Any) -> PrefitStudy:
    return PrefitStudy.of("smoke", settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrefitStudy, Store]:
    """The smoke profile with all its fits made."""
    study, store = smoke(), Store(tmp_path_factory.mktemp("store"))
    torch.set_num_threads(1)
    pf.fit(study.specs(store), store)
    return study, store


# --- settings


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_three_profiles(name: str) -> None:
    study = STUDIES[name]
    assert study.name == name
    assert set(study.profiles) == {"smoke", "laptop", "published"}
    for profile in study.profiles:
        assert study.of(profile).profile == profile


def test_settings_are_typed_as_on_a_command_line() -> None:
    study = smoke(sizes="3x16,2x16", triples="1", epochs="7", arms="random", reset="copy", seed="5")
    assert study.sizes == ("2x16", "3x16")
    assert (study.triples, study.epochs, study.seed, study.arms, study.reset) == (1, 7, 5, ("random",), ("copy",))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("sizs", "2x32", "did you mean 'sizes'"),
        ("nonsense", "1", "there are images, draw"),
        ("sizes", "2-32", "LAYERSxFEATURES"),
        ("sizes", "", "sizes is empty"),
        ("sizes", "2x0", "2x0 is not possible"),
        ("triples", "0", "whole number, 1 or more"),
        ("epochs", "ten", "epochs is 'ten'"),
        ("arms", "random,sam", "arms is 'sam'"),
        ("reset", "none", "copy, chained"),
        ("draw", "any", "distinct, original, threes"),
        ("seed", "-1", "seed is -1"),
        ("layers", "0", "layers is (0,)"),
        ("epochs.more", "1", "'epochs' is 30 and has no settings of its own"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(setting: str, value: str, says: str) -> None:
    with pytest.raises(StudyError) as error:
        PrefitStudy.of("smoke", {setting: value})
    assert says in str(error.value)


def test_a_wrong_profile_says_which_there_are() -> None:
    with pytest.raises(StudyError, match="smoke, laptop, published"):
        PrefitStudy.of("quick")


# --- the fits of the pre-fit study


def chain(spec: Spec) -> list[Spec]:
    """A fit and all that it starts from, itself last."""
    found = [spec]
    while isinstance(parent := found[0].start.weights, Spec):
        found.insert(0, parent)
    return found


def test_the_protocol() -> None:
    published = PrefitStudy.of("published")
    assert len(published.sizes) == 42
    assert (published.triples, published.epochs, published.draw) == (20, 2000, "original")
    assert [place(size) for size in published.sizes] == sorted(place(size) for size in published.sizes)
    study = smoke(sizes="2x32,4x128,8x1024")
    counts = {size: study.fit(size, 0, "random").model.parameters_count(2, 3) for size in study.sizes}
    assert counts == {"2x32": 2307, "4x128": 66819, "8x1024": 8402947}
    spec = study.fit("2x32", 1, "different")
    assert spec.optimiser == pf.optim.Adam(lr=1e-4, schedule=Plateau(decay=0.5, patience=500, threshold=1e-4))
    assert (spec.batches.pixels, spec.budget.steps, spec.loss) == (None, 30, pf.losses.MSE())
    coordinates = spec.model.coordinates.grid(32, 32)
    assert coordinates[0].tolist() == [-1, -1]
    torch.testing.assert_close(coordinates[1], torch.tensor([-1.0, -1 + 2 / 31]))  # the row comes first


def test_what_each_arm_fits_one_after_the_other() -> None:
    study = smoke()
    paths = {
        "random": "A", "same": "SA", "different": "DA", "same chained": "ASA", "different chained": "ASADA",
        "mean": "MA", "first 1": "DA", "first 2": "DA",
    }  # fmt: skip
    assert study.arm_names("2x8") == [*paths, "reptile", "maml", "meta-sgd"]
    assert study.arm_names("3x8") == list(paths)[:5]
    for arm, letters in paths.items():
        specs = chain(study.fit("2x8", 1, arm))
        assert [spec.problem for spec in specs] == [study.picture(1, letter) for letter in letters]
        assert {spec.seed for spec in specs} == {study.drawn[1].seed}
        assert specs[0].start.weights is None
        assert specs[-1].start.layers == (int(arm[-1]) if arm.startswith("first") else None)


def test_what_meta_learned_starts_learn_from() -> None:
    study = smoke()
    for arm, lr in (("reptile", 1e-5), ("maml", 1e-5), ("meta-sgd", 5e-5)):
        learned, fit = chain(study.fit("2x8", 1, arm))
        assert learned == chain(study.fit("2x8", 0, arm))[0]  # one start serves all triples
        assert fit.problem == study.picture(1, "A")
        assert isinstance(learned.model, pf.models.MetaModel)
        assert (learned.model.inner, learned.model.tile) == (fit.model, (32, 32))
        assert (learned.optimiser, learned.batches.pixels, learned.budget.steps) == (pf.optim.Adam(lr), 3 * 1024, 8)
    mosaic = learned.problem.image.data  # type: ignore[union-attr]
    tiles = set(map(_bytes, mosaic.split(32, dim=1)))
    taken = {index for one in study.drawn for index in (one.target, one.same, one.different)}
    assert tiles == {_bytes(study.pictures.image(i).data) for i in range(len(study.pictures)) if i not in taken}
    few = smoke(meta_pictures=4).fit("2x8", 0, "maml").start.weights
    assert isinstance(few, Spec)
    assert few.problem.shape == (3, 4 * 32, 32)
    with pytest.raises(StudyError, match="meta-learning needs 3 pictures"):
        smoke(meta_pictures=2).fit("2x8", 0, "maml")


def _bytes(picture: torch.Tensor) -> bytes:
    return picture.contiguous().numpy().tobytes()


def test_pre_fits_are_shared_and_never_named_twice(tmp_path: Path) -> None:
    study = smoke(triples="1", sizes="2x8")
    ids = [spec.id for spec in study.fits(Store(tmp_path))]
    # A, S, SA, D, DA, AS, ASA, ASAD, ASADA; M, MA; two partial starts from D; three learned starts and a fit of each
    assert len(ids) == len(set(ids)) == 19
    # More triples add fits to those that there are; a learned start alone must not have seen the new pictures either.
    some = "random,same,different,mean,partial"
    few, more = (smoke(triples=count, sizes="2x8", arms=some).fits(Store(tmp_path)) for count in ("1", "2"))
    assert {spec.id for spec in few} < {spec.id for spec in more}


def test_the_mean_picture_has_not_seen_the_target() -> None:
    study = smoke(triples="2")
    others = [index for index in range(len(study.pictures)) if index != study.drawn[1].target]
    mean = torch.stack([study.pictures.image(index).data.double() for index in others]).mean(dim=0).float()
    torch.testing.assert_close(study.picture(1, "M").image.data, mean)


def test_the_mean_of_pictures_of_any_set(tmp_path: Path, square: pf.Image) -> None:
    """A folder of classes, whose pictures are read when asked for, gives what an array of them gives."""
    for index in range(8):
        folder = tmp_path / f"class {index % 2}"
        folder.mkdir(exist_ok=True)
        pf.images.save(pf.Image((square.data * (1 - index / 10) * 255).round() / 255), folder / f"{index}.png")
    study = smoke(images=str(tmp_path), triples="1")
    others = [index for index in range(8) if index != study.drawn[0].target]
    mean = torch.stack([study.pictures.image(index).data.double() for index in others]).mean(dim=0).float()
    torch.testing.assert_close(study.picture(0, "M").image.data, mean)


def test_consecutive_pictures_of_a_folder_without_classes(tmp_path: Path, square: pf.Image) -> None:
    for index in range(7):
        pf.images.save(pf.Image((square.data * (1 - index / 10) * 255).round() / 255), tmp_path / f"{index}.png")
    study = smoke(images=str(tmp_path), draw="threes")
    assert [(t.target, t.same, t.different, t.seed) for t in study.drawn] == [(0, 1, 2, 100), (3, 4, 5, 101)]
    with pytest.raises(StudyError, match="need 9"):
        _ = smoke(images=str(tmp_path), draw="threes", triples=3).drawn


def test_pictures_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"ciFAIR-10\.zip"):
        PrefitStudy.of("laptop").fits(Store(tmp_path))


@pytest.mark.parametrize("count", [1, 2])
def test_the_protocol_is_that_of_the_plain_loop(count: int, tmp_path: Path) -> None:
    """The first hundred epochs of a fit and of its child, by the kernel in worker processes, against the plain loop."""
    study = smoke(sizes="2x32,4x64", triples="1", arms="random,same", reset="copy,chained", epochs="100")
    store = Store(tmp_path)
    with workers.Pool(count, store, device="cpu") as pool:
        assert pool.fit(study.specs(store)).failed == 0
    for size, arm in itertools.product(study.sizes, ("random", "same", "same chained")):
        fits = chain(study.fit(size, 0, arm))
        network = fits[0].model.build(2, 3, generator=stream(fits[0].seed, "weights"))
        for spec in fits:
            image = spec.problem.image.data  # type: ignore[union-attr]
            optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
            halving = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=500)
            losses = train(
                network, spec.model.coordinates.grid(32, 32), 2 * image.flatten(1).T - 1, optimiser, 100,
                scheduler=halving,
            )  # fmt: skip
            curve = store.curve(spec.id)
            assert curve is not None
            assert np.abs(psnr_of_loss(curve) - psnr_of_loss(torch.tensor(losses))).max() < 0.01
        found = store.get(fits[-1])
        assert found is not None
        assert found.kernel.startswith("fused" if library.isas() else "torch")


# --- scores


def test_psnr_comes_from_the_loss_of_a_signed_network(square: pf.Image) -> None:
    spec = Spec(pf.Problem(square), pf.models.Siren(2, 16), budget=pf.Steps(1), seed=1)
    result = pf.fit(spec)
    first = pf.fit(Spec(spec.problem, spec.model, budget=pf.Steps(0), seed=1))
    assert first.estimate is not None
    error = (first.estimate.double() - square.data.double()).square().mean()  # not clamped
    assert psnr_of_loss(result.curves["loss"])[0] == pytest.approx(float(-10 * error.log10()), abs=1e-3)


def runs(*curves: list[float]) -> Runs:
    return Runs(np.array(curves), tuple(range(len(curves))), 0)


def test_scores_of_a_curve() -> None:
    one = runs([20.0, 30.0, 70.0, 50.0], [10.0, 10.0, 10.0, 45.0])
    scores = one.scores()
    np.testing.assert_allclose(scores["AUC"], [0.170, 0.075])
    np.testing.assert_allclose(scores["AUC60"], [0.160, 0.075])
    np.testing.assert_allclose(scores["final"], [50, 45])
    assert one.epochs_to(30).tolist() == [1, 3]
    assert one.epochs_to(50).tolist() == [2, math.inf]


def test_a_run_at_the_level_of_one_colour_has_collapsed() -> None:
    levels = np.array([14.0, 14.0, 14.0])
    flat, good, spike = [14.9] * 600, [30.0] * 600, [30.0] * 550 + [10.0] * 30 + [31.0] * 20
    assert runs(flat, good, spike).collapsed(levels) == 1
    assert runs(flat[:100], good[:100]).collapsed(levels) == 0  # too early to tell


def test_a_diverged_run_goes_on_at_its_last_value(tmp_path: Path, square: pf.Image) -> None:
    store = Store(tmp_path)
    spec = Spec(pf.Problem(square), pf.models.Siren(2, 16), optimiser=pf.optim.SGD(lr=1e6), budget=pf.Steps(20))
    store.put(pf.fit([spec])[0])
    entries = store.entries()
    assert entries[spec.id].status is pf.Status.DIVERGED
    found = Runs.read(store, entries, {4: spec.id, 5: "absent"}, 20)
    assert (found.triples, found.diverged, found.curves.shape) == ((4,), 1, (1, 20))
    assert np.isfinite(found.curves).all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_a_paired_mean_lies_in_its_interval(differences: list[float]) -> None:
    one = paired(differences)
    assert one is not None
    assert one.low - 1e-9 <= one.mean <= one.high + 1e-9
    assert 0 <= one.p <= 1
    assert paired(differences) == one


@pytest.mark.parametrize(("pictures", "seeds", "spread"), [(3, 2, 0.2), (3, 2, 1.0), (5, 3, 0.5)])
def test_differences_over_seeds_cry_wolf_one_time_in_twenty(pictures: int, seeds: int, spread: float) -> None:
    """Where other seeds would give no difference on these pictures, whatever these are like."""
    chance = np.random.default_rng(0)
    shifts = chance.normal(size=pictures)
    shifts -= shifts.mean()
    cried = 0
    for _ in range(1000):
        noise = chance.normal(scale=spread, size=(pictures, seeds))
        one = seeded({(str(p), q): shifts[p] + noise[p, q] for p in range(pictures) for q in range(seeds)})
        assert one is not None
        assert one.low <= one.mean <= one.high
        cried += one.sign != 0
    assert 30 < cried < 75


def test_differences_over_seeds_by_hand() -> None:
    one = seeded({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0, ("b", 1): 5.0, ("c", 0): -1.0})
    assert one is not None
    assert (one.pairs, one.agree) == (5, (2, 3))
    assert one.mean == pytest.approx((2 + 5 - 1) / 3)
    assert one.error == pytest.approx(math.sqrt(2 / 2 * (1 / 2 + 1 / 2 + 1)) / 3)
    lone = seeded({("a", 0): 5.0})
    assert lone is not None
    assert (lone.sign, lone.error, lone.p) == (0, math.inf, 1.0)
    assert seeded({}) is None
    assert seeded({("a", 0): math.nan}) is None
    same = seeded({("a", 0): 2.0, ("a", 1): 2.0})
    assert same is not None
    assert (same.sign, same.p, same.low) == (1, 0.0, 2.0)


def test_paired_differences_tell_a_clear_case_from_a_doubtful_one() -> None:
    clear, doubtful = paired(np.linspace(1, 2, 20)), paired(np.linspace(-2, 2, 20))
    assert clear is not None
    assert doubtful is not None
    assert (clear.sign, doubtful.sign) == (1, 0)
    assert clear.p < 1e-4
    assert doubtful.p > 0.8
    few = paired([1.0, 1.1])
    assert few is not None
    assert few.sign == 0
    assert paired([]) is None
    nothing = paired([0.0, 0.0])
    assert nothing is not None
    assert nothing.p == 1


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ([1, 1, -1, -1], math.sqrt(200 * 400)),
        ([1, 1, 1, 1], None),
        ([-1, -1], None),
        ([-1, 1, 1, -1], math.sqrt(400 * 800)),
    ],
)
def test_crossover(signs: list[int], expected: float | None) -> None:
    found = crossover([100, 200, 400, 800][: len(signs)], signs)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_published_crossover_is_where_its_text_says() -> None:
    """Near 1500 to 2000: even at 3x512, then worse for 512 features and more."""
    sizes = sorted(PUBLISHED, key=place)
    gains = [PUBLISHED[size][0][2] - PUBLISHED[size][0][0] for size in sizes]
    found = crossover([place(size)[0] for size in sizes], gains)
    assert found is not None
    assert 1280 <= found <= 2560


# --- answers


def test_reading_and_declaring_need_no_engine() -> None:
    needed = (
        "import pixfit.studies, sys; print([m for m in ('run', 'engine', 'workers') if 'pixfit.' + m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", needed], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_finished_study_answers_every_question(finished: tuple[PrefitStudy, Store]) -> None:
    study, store = finished
    assert study.specs(store) == []
    counts = study.counts(store)
    assert (counts.fits, counts.done, counts.failed) == (53, 53, 0)
    tables = study.tables(store)
    arms = {(row["size"], row["arm"]): row for row in tables["arms"].rows}
    assert len(arms) == 11 + 5
    curves = np.stack(
        [psnr_of_loss(store.curve(study.fit("3x8", t, "same").id)) for t in range(2)]  # type: ignore[arg-type]
    )
    assert arms["3x8", "same"]["AUC mean"] == pytest.approx(curves.sum(axis=1).mean() / 1000, abs=1e-3)
    assert arms["3x8", "same"]["runs"] == 2
    compared = {(row["arm"], row["minus"]) for row in tables["pairs"].rows}
    assert {("same", "random"), ("different", "same"), ("different chained", "same chained")} <= compared
    assert "published" not in tables  # 30 epochs are not to be compared


def test_the_published_values_tell_which_way_they_were_run() -> None:
    """Curves at the level of a published median, for the chained arms; 10 thousand below it for the copied ones."""
    areas, _ = PUBLISHED["4x64"]
    levels = {"random": areas[0], "same": areas[1] - 10, "different": areas[2] - 10}
    levels |= {"same chained": areas[1], "different chained": areas[2] + 1}
    arms = {arm: Runs(np.full((2, 2000), level / 2), (0, 1), 0) for arm, level in levels.items()}
    flat = Levels(np.full(2, 14.7), np.full(2, 10.6), np.full(2, 8.4))
    found = prefit_answer.answer({"4x64": arms}, flat)
    assert "copied weights are 10.0 away on average, chained ones 0.5; chained is nearer in 2 of 2" in found.summary
    rows = {row["arm"]: row for row in found.tables["published"].rows}
    assert rows["random"]["AUC"] == pytest.approx(areas[0])
    assert {row["within"] for row in rows.values()} == {"yes"}


def test_an_unfinished_study_answers_what_it_can(finished: tuple[PrefitStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    part = Store(tmp_path)
    empty = study.answer(part)
    assert (empty.summary, dict(empty.figures)) == ("", {})
    assert study.report(part, tmp_path / "empty")[0].read_text("utf-8").startswith("# Prefit study")
    for spec in study.fits(store)[:5]:
        result = store.get(spec)
        assert result is not None
        part.put(result)
    assert study.counts(part).done == 5
    assert len(study.specs(part)) == 48
    assert len(study.tables(part)["arms"].rows) > 0


def test_a_parent_without_weights_is_wanted_again(finished: tuple[PrefitStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    part = Store(tmp_path)
    child = study.fit("2x8", 0, "same")
    parent = chain(child)[0]
    for spec in (child, parent):
        result = store.get(spec)
        assert result is not None
        part.enter(part.write(result, weights=False))
    assert not {child.id, parent.id} & {spec.id for spec in study.specs(part)}  # both finished: nothing needs them
    alone = Store(tmp_path / "alone")
    result = store.get(parent)
    assert result is not None
    alone.enter(alone.write(result, weights=False))
    assert {child.id, parent.id} <= {spec.id for spec in study.specs(alone)}
    kept = alone.get(parent)
    assert kept is not None
    assert not kept.weights
    assert torch.equal(kept.curves["loss"], result.curves["loss"])


def test_a_report_has_its_page_tables_and_figures(finished: tuple[PrefitStudy, Store], tmp_path: Path) -> None:
    study, store = finished
    written = study.report(store, tmp_path)
    assert all(path.is_file() for path in written)
    page = written[0].read_text("utf-8")
    assert "53 of 53 fits are finished" in page
    assert re.findall(r"^\* `(\w+)` = ", page, re.MULTILINE) == list(study.settings())
    assert not any(name.startswith("_") for name in study.settings())
    assert len(page) < 50_000
    for name in ("auc", "heat_map", "class_or_order", "difference_auc", "other_starts_final", "2hls_8hfs", "3hls_8hfs"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / "figures" / f"{name}.svg").read_bytes()
        assert f"figures/{name}.png" in page
    with (tmp_path / "pairs.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {"size", "arm", "minus", "AUC low", "AUC p"} <= set(rows[0])


def test_the_same_figure_is_the_same_file(finished: tuple[PrefitStudy, Store]) -> None:
    """So that a report that is made again shows no change."""
    study, store = finished
    first, second = (study.answer(store).figures["heat_map"]() for _ in range(2))
    assert plots.svg(first) == plots.svg(second)


def test_a_table_as_text() -> None:
    table = Table("Title", [{"a": 1, "b": 2.5}, {"a": None, "b": math.pi, "c": "x|y"}], "Note.")
    assert table.csv() == f"a,b,c\n1,2.5,\n,{math.pi},x|y\n"
    assert table.markdown().splitlines()[4] == "| a | b | c |"
    assert "|  | 3.142 | x\\|y |" in table.markdown()


# --- the command


def pixfit(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["study", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_the_command_from_plan_to_report(tmp_path: Path) -> None:
    few = ("--profile", "smoke", "-s", "sizes=2x8", "-s", "triples=1", "-s", "arms=random,same", "-s", "reset=copy")
    place = ("--store", str(tmp_path), "--device", "cpu")
    plan = json.loads(pixfit("prefit", "plan", *few, *place, "--json").stdout)
    assert (plan["fits"], plan["done"], plan["wanted"]) == (3, 0, 3)
    assert plan["estimated_seconds"] > 0
    assert "0 of 3 done" in pixfit("prefit", "status", *few, *place).stdout
    ran = json.loads(pixfit("prefit", "run", *few, *place, "--workers", "1", "--json").stdout)
    assert list(ran) == ["study", "profile", "fits", "done", "failed", "seconds", "tables", "figures"]
    assert (ran["study"], ran["profile"], ran["fits"], ran["done"], ran["failed"]) == ("prefit", "smoke", 3, 3, 0)
    again = json.loads(pixfit("prefit", "run", *few, *place, "--workers", "1", "--json").stdout)
    assert again["seconds"] < ran["seconds"]
    report = json.loads(pixfit("prefit", "report", *few, *place, "-o", str(tmp_path / "page"), "--json").stdout)
    assert Path(report["page"]) == tmp_path / "page" / "report.md"
    assert all(Path(path).is_file() for path in report["figures"])
    assert {row["arm"] for row in report["tables"]["arms"]} == {"random", "same"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prefits", "plan"), "there are prefit"),
        (("prefit", "start"), "plan, run, status, report"),
        (("prefit", "plan", "--profile", "tiny"), "smoke, laptop, published"),
        (("prefit", "plan", "-s", "epoch=3"), "did you mean 'epochs'"),
        (("prefit", "plan", "--profile", "smoke", "-s", "triples=100"), "triples can be drawn"),
    ],
)
def test_wrong_words_on_the_command_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in pixfit(*arguments, "--store", str(tmp_path), code=2).stderr


# --- real pictures


def test_real_pictures_have_the_published_levels(shared_data: Path) -> None:
    """Over all 300, which are other pictures of the set: an untrained network is about mid-grey."""
    study = smoke(
        images=str(shared_data / "cifar10_test_0000_0299" / "cifar-10-batches-py"), triples="60", sizes="2x32"
    )
    spec = study.fit("2x32", 0, "random")
    network = spec.model.build(2, 3, generator=stream(spec.seed, "weights"))
    with torch.no_grad():
        untrained = (network(spec.model.coordinates.grid(32, 32)) / 2 + 0.5).T.reshape(3, 32, 32)
    pictures = [study.pictures.image(index).data for index in range(300)]
    assert np.mean([pf.metrics.psnr(untrained, one) for one in pictures]) == pytest.approx(12.9, abs=1)
    assert np.mean([pf.metrics.best_constant_psnr(one) for one in pictures]) == pytest.approx(14.7, abs=1)
    levels = [[study.picture(t, letter).image.data for letter in "ASD"] for t in range(60)]
    assert Levels.of(levels).different.mean() == pytest.approx(8.4, abs=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kodak_crops_give_the_areas_of_the_plain_loop(shared_data: Path, tmp_path: Path) -> None:
    """2x32 on 8 triples of consecutive crops, against a plain loop's 72.9, 69.0, 70.3, 71.7, 72.4 thousand."""
    study = PrefitStudy.of(
        "laptop",
        {"images": str(shared_data / "kodak_crops32"), "draw": "threes", "triples": 8, "sizes": "2x32",
         "arms": "random,same,different"},
    )  # fmt: skip
    store = Store(tmp_path)
    pf.fit(study.specs(store), store)
    areas = {row["arm"]: row["AUC mean"] for row in study.tables(store)["arms"].rows}
    expected = {"random": 72.9, "same": 69.0, "different": 70.3, "same chained": 71.7, "different chained": 72.4}
    assert areas == pytest.approx(expected, abs=1.5)
