"""The study of memories: its pictures, its designs, the fits that it names, and what it says of them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from typer.testing import CliRunner

import pixfit as pf
from pixfit import embedding, images, metrics, render
from pixfit.cli import app
from pixfit.images import Image
from pixfit.models import BinaryCode, Coordinates, Hyper, Memory, Siren
from pixfit.problem import Copies, Gallery
from pixfit.spec import PictureBatches
from pixfit.store import Store
from pixfit.studies import STUDIES, MemorizeStudy, StudyError, memorize_pictures
from pixfit.studies.memorize_acceptance import Facts, acceptance
from pixfit.studies.memorize_designs import DESIGNS, HYPER
from pixfit.studies.memorize_pictures import doubled
from pixfit.studies.memorize_scores import completed, network_at
from pixfit.studies.memorize_upsampling import CONVENTIONS, FILTERS, Quality, resized, sampled
from pixfit.studies.study import Answer
from tests.conftest import picture

FEW = "published,ring,bottleneck,doubled,hyper-set"


def smoke(**settings: Any) -> MemorizeStudy:
    return MemorizeStudy.of("smoke", settings)


def make(study: MemorizeStudy, store: Store) -> None:
    """All fits of a study, in this process."""
    torch.set_num_threads(1)
    for spec in study.specs(store):
        pf.fit(spec, store, device="cpu", record=study.record(spec))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemorizeStudy, Store, Answer]:
    """The smoke profile with few designs, finished, and its answer."""
    study, store = smoke(designs=FEW), Store(tmp_path_factory.mktemp("memorize"))
    make(study, store)
    return study, store, study.answer(store)


# --- pictures


def folders(path: Path, *, count: int = 3, small: int = 8, large: int = 24) -> dict[str, str]:
    """Two folders of pictures, whose names pair in their order."""
    for name, side in (("small", small), ("large", large)):
        (path / name).mkdir()
        for number in range(count):
            data = picture(3, side, side, seed=number).data
            images.save(data, path / name / f"{'cab'[number % 3]}_{number}-{side}.png")
    return {"images": str(path / "small"), "large": str(path / "large")}


def test_small_and_large_pictures_pair_in_the_order_of_names(tmp_path: Path) -> None:
    study = smoke(**folders(tmp_path), unseen="1")
    pairs = [(a.name, b.name) for a, b in zip(study.pictures.small, study.pictures.large, strict=True)]
    assert pairs == [("a_1-8", "a_1-24"), ("b_2-8", "b_2-24"), ("c_0-8", "c_0-24")]
    assert len(smoke(**{"images": study.images, "large": study.large, "count": "2"}).pictures.large) == 2
    assert smoke(images=study.images).pictures.large == ()
    (tmp_path / "large" / "a_1-24.png").unlink()
    with pytest.raises(StudyError, match="3 small and 2 large"):
        smoke(images=study.images, large=study.large).fits(Store(tmp_path))
    images.save(picture(3, 24, 12).data, tmp_path / "large" / "a_1-24.png")
    with pytest.raises(StudyError, match="has the shape of its small one"):
        smoke(images=study.images, large=study.large).fits(Store(tmp_path))
    with pytest.raises(StudyError, match="lower count"):
        smoke(images=study.images, count="4").fits(Store(tmp_path))


def test_pictures_that_are_not_there_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    with pytest.raises(StudyError, match="set PIXFIT_DATA"):
        MemorizeStudy.of("laptop").fits(Store(tmp_path))
    with pytest.raises(StudyError, match="large pictures of its own"):
        smoke(large=str(tmp_path)).fits(Store(tmp_path))


def test_bundled_small_pictures_are_means_of_the_large_ones() -> None:
    found = smoke().pictures
    assert len(found.small) == len(found.large) == 6
    for small, large in zip(found.small, found.large, strict=True):
        side = large.height // small.height
        assert torch.allclose(small.data[:, 3, 5], large.data[:, 3 * side : 4 * side, 5 * side : 6 * side].mean((1, 2)))


def test_the_icons(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(shared_data))
    study = MemorizeStudy.of("laptop")
    found = study.pictures
    assert [picture.data.shape for picture in found.small] == [(3, 48, 48)] * 100
    assert [picture.data.shape for picture in found.large] == [(3, 256, 256)] * 100
    names = [[one.name.rpartition("-")[0] for one in pictures] for pictures in (found.small, found.large)]
    assert names[0] == names[1]
    published = study.fit("published")
    assert published.model.parameters_count() == 698_883
    assert study.record(published).keep == (350, 5250, 5607)
    assert study.chosen == tuple(range(0, 100, 7))
    # The published training sees colours under alpha, the compared designs see them on white.
    both = zip(study.dropped.small, found.small, strict=True)
    assert any(not torch.equal(bare.data, white.data) for bare, white in both)
    assert study.dropped.large is found.large
    by_hand = Gallery(images.load_folder(shared_data / "exercise_multi_image" / "48", alpha="drop"))
    assert isinstance(published.problem, Gallery)
    assert published.problem.image == by_hand.image
    # The levels that others have measured, of every seventh icon on white.
    for name, level in (("nearest", 27.4), ("bilinear", 26.1), ("bicubic", 26.9)):
        made = [(resized(found.small[i].data, (256, 256), name), found.large[i].data) for i in study.chosen]
        assert np.mean([metrics.psnr(*both) for both in made]) == pytest.approx(level, abs=0.06)


def test_doubled_pictures_show_the_small_ones_between_their_samples() -> None:
    small = picture(3, 16, 12)
    (large,) = doubled((small,))
    assert (large.height, large.width) == (32, 24)
    by_pillow = PillowImage.fromarray(small.data[0].numpy()).resize((24, 32), PillowImage.Resampling.LANCZOS)
    assert np.allclose(large.data[0].numpy(), np.asarray(by_pillow).clip(0, 1), atol=1e-5)


# --- up-sampling


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_of_picture_programs(name: str) -> None:
    data = picture(3, 12, 9).data
    method = PillowImage.Resampling[name.upper()]
    for size in ((64, 48), (12, 9), (36, 9)):
        made = resized(data, size, name)
        for channel, wanted in zip(made, data, strict=True):
            by_pillow = PillowImage.fromarray(wanted.numpy()).resize((size[1], size[0]), method)
            assert np.allclose(channel.numpy(), np.asarray(by_pillow), atol=1e-5)


def test_filters_with_corners_keep_the_corner_pixels() -> None:
    data = picture(3, 12, 9).data
    for name in FILTERS:
        made = resized(data, (61, 33), name, "corners")
        torch.testing.assert_close(made[:, [0, 0, -1, -1], [0, -1, 0, -1]], data[:, [0, 0, -1, -1], [0, -1, 0, -1]])
    bilinear = torch.nn.functional.interpolate(data[None], (61, 33), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(resized(data, (61, 33), "bilinear", "corners"), bilinear, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alignment", ["corner", "center"])
@pytest.mark.parametrize("order", ["row_col", "xy"])
def test_networks_are_sampled_in_both_conventions(alignment: Any, order: Any) -> None:
    """In a network's own convention as `pixfit.render` does it; in the other one, where a plain formula says."""
    gallery = Gallery([picture(3, 6, 9), picture(3, 6, 9, seed=1)])
    inner = Siren(1, 8, coordinates=Coordinates(alignment, order=order))
    spec = pf.Spec(gallery, Memory(inner, BinaryCode(), gallery.sizes), budget=pf.Steps(1))
    one = pf.Network.of(pf.fit(spec, device="cpu")).one(1)
    own, other = ("corners", "edges") if alignment == "corner" else ("edges", "corners")
    torch.testing.assert_close(sampled(one, (13, 20), own), render.render(one, size=(20, 13)))  # type: ignore[arg-type]
    torch.testing.assert_close(sampled(one, (6, 9), other), render.render(one))  # type: ignore[arg-type]
    made = sampled(one, (13, 20), other)  # type: ignore[arg-type]
    for i, j in ((0, 0), (4, 7), (12, 19)):
        if other == "edges":
            at = [2 * ((k + 0.5) * n / count - 0.5) / (n - 1) - 1 for k, n, count in ((i, 6, 13), (j, 9, 20))]
        else:
            at = [2 * (k * (n - 1) / (count - 1) + 0.5) / n - 1 for k, n, count in ((i, 6, 13), (j, 9, 20))]
        point = torch.tensor([at if order == "row_col" else at[::-1]])
        torch.testing.assert_close(made[:, i, j], one.model.to_pixels(one.module()(point))[0])


# --- fits


def test_settings_are_checked() -> None:
    for settings, message in (
        ({"designs": "binarry"}, "binarry"), ({"designs": "ring,ring"}, "each once"), ({"designs": ""}, "empty"),
        ({"epochs": "0"}, "epochs is 0"), ({"batch": "1.5"}, "whole number"), ({"alpha": "keep"}, "white or drop"),
        ({"precision": "float16"}, "precision is"), ({"show": "maybe"}, "true or false"), ({"count": "0"}, "count is"),
        ({"contexts": "10,-1"}, "contexts is"), ({"shown": "null"}, "shown is"), ({"features": "8"}, "bottleneck"),
        ({"seed": "-1"}, "seed is"), ({"hyper_lr": "0"}, "above 0"), ({"hyper_width": "5"}, "even"),
        ({"widht": "3"}, "no setting"),
    ):  # fmt: skip
        with pytest.raises(StudyError, match=message):
            smoke(**settings)
    with pytest.raises(StudyError, match="lower unseen"):
        smoke(unseen="6").fits(Store("nowhere"))
    assert STUDIES["memorize"] is MemorizeStudy


def test_every_design_has_a_fit_with_the_same_budget() -> None:
    study = smoke()
    specs = {name: study.fit(name) for name in study.designs}
    assert set(specs) == {"published", *DESIGNS, *HYPER}
    assert len({spec.id for spec in specs.values()}) == len(specs) == len(study.fits(Store("nowhere")))
    assert {specs[name].budget for name in DESIGNS} == {pf.Steps(20)}
    for name, spec in specs.items():
        assert pf.modelfile.decode_spec(spec.plain, spec.problem) == spec  # type: ignore[arg-type]
        if isinstance(spec.problem, Gallery):
            assert spec.problem.pictures[:6] == (*study.pictures.small,) or name == "doubled"
    assert isinstance(specs["copies"].problem, Copies)
    assert len({DESIGNS[name].family for name in DESIGNS if DESIGNS[name].family}) >= 6
    assert specs["binary"] == study.fit("binary")
    # What cannot be rounded backward is fitted in full precision.
    rounded = smoke(precision="bfloat16-backward")
    assert {name for name in DESIGNS if rounded.fit(name).precision == "float32"} == {"learned", "spline"}


def test_doubled_pictures_give_a_step_as_many_pixels() -> None:
    study = smoke(batch="4")
    counts = {name: study.fit(name).batches.pictures for name in ("binary", "doubled", "copies", "crops")}  # type: ignore[attr-defined]
    assert counts == {"binary": 4, "doubled": 1, "copies": 4, "crops": 6}


def test_the_published_training_is_the_published_one() -> None:
    study = MemorizeStudy.of("laptop", {"images": "bundled", "unseen": "1"})
    gallery = Gallery(study.pictures.small, held_out=0.1, rule="published")
    inner = Siren(3, 480, coordinates=Coordinates("corner", order="row_col"))
    expected = pf.Spec(
        gallery, Memory(inner, BinaryCode(), gallery.sizes), batches=PictureBatches(16), optimiser=pf.optim.Adam(1e-4),
        budget=pf.Epochs(801), estimate=pf.BestHeldOut(1),
    )  # fmt: skip
    assert study.fit("published") == expected


def test_pictures_of_several_sizes_have_no_hypernetwork(tmp_path: Path) -> None:
    place = folders(tmp_path)
    images.save(picture(3, 9, 12).data, tmp_path / "small" / "d-8.png")
    study = smoke(images=place["images"], designs="binary,hyper-set,copies", pairs="5")
    store = Store(tmp_path / "store")
    assert study.possible == ("binary", "copies")
    make(study, store)
    answer = study.answer(store)
    assert [row["design"] for row in answer.tables["designs"].rows] == ["binary", "copies"]
    assert "without a finite network: hyper-set" in answer.summary
    assert "upsampling" not in answer.tables  # there are no large pictures
    assert answer.tables["designs"].rows[0]["up-sampled"] is None
    (pair,) = study.drawn_pairs
    assert len({study.pictures.small[number].data.shape for number in pair}) == 1


# --- answers


def test_the_numbers_of_a_row_are_those_of_the_finished_network(
    finished: tuple[MemorizeStudy, Store, Answer],
) -> None:
    """Computed once more from the weights, with `render`, `metrics` and loops over pixels' masks."""
    study, store, answer = finished
    assert study.specs(store) == []
    row = {row["design"]: row for row in answer.tables["designs"].rows}["bottleneck"]
    spec = study.fit("bottleneck")
    result, gallery = store.get(spec), spec.problem
    assert result is not None
    assert isinstance(gallery, Gallery)
    network = pf.Network(spec.model, result.kept[20], spec.plain, names=gallery.names)
    inside, outside = [], []
    for number, true in enumerate(study.pictures.small):
        shown = render.render(network.one(number)).clamp(0, 1).double()
        mask = gallery.split(gallery.view.held_out)[number][0]  # type: ignore[arg-type]
        error = (shown - true.data.double()).square().mean(dim=0)
        inside.append(-10 * math.log10(float(error[~mask].mean())))
        outside.append(-10 * math.log10(float(error[mask].mean())))
    assert row["memorised"] == pytest.approx(np.mean(inside), abs=0.006)
    assert row["held out"] == pytest.approx(np.mean(outside), abs=0.006)
    assert study.chosen == (0, 3)
    larger = [sampled(network.one(i), (64, 64)) for i in (0, 3)]
    true_large = [study.pictures.large[i].data for i in (0, 3)]
    level = np.mean([metrics.psnr(*both) for both in zip(larger, true_large, strict=True)])
    assert row["up-sampled"] == pytest.approx(level, abs=0.006)
    assert row["blended"] == "bottleneck"
    away = []
    for a, b in study.drawn_pairs:
        ends = [network.one(a), network.one(b)]
        fields = [embedding.field(end, layer="narrowest") for end in ends]
        half = embedding.decode(ends[0], (fields[0] + fields[1]) / 2, layer="narrowest").T.reshape(3, 16, 16)
        both = (render.render(ends[0]) + render.render(ends[1])) / 2
        away.append(float((half - both).double().square().mean().sqrt()))
    assert row["from alpha"] == pytest.approx(np.mean(away), rel=0.02)
    assert row["parameters"] == result.parameters
    assert row["process seconds"] == pytest.approx(result.process_seconds, rel=0.01)


def test_up_sampling_stands_beside_the_filters(finished: tuple[MemorizeStudy, Store, Answer]) -> None:
    study, _, answer = finished
    rows = {row["by"]: row for row in answer.tables["upsampling"].rows}
    assert list(rows)[:4] == ["nearest", "bilinear", "bicubic", "lanczos"]
    levels = [metrics.psnr(resized(study.pictures.small[i].data, (64, 64), "bicubic"), study.pictures.large[i].data)
              for i in study.chosen]  # fmt: skip
    assert rows["bicubic"]["edges PSNR"] == pytest.approx(np.mean(levels), abs=0.006)
    assert max(row["over"] for name, row in rows.items() if name in FILTERS) == 0
    assert {"published", "doubled"} <= set(rows)
    assert "ring" not in rows  # which is about codes
    assert rows["doubled"]["early"] is None  # it has no held-out pixels
    assert all(math.isfinite(row[f"{way} {score}"]) for row in rows.values() for way in CONVENTIONS
               for score in ("PSNR", "SSIM"))  # fmt: skip


def test_the_spaces_of_each_design(finished: tuple[MemorizeStudy, Store, Answer]) -> None:
    rows = {(row["design"], row["blended"]): row for row in finished[2].tables["spaces"].rows}
    assert set(rows) == {
        *((name, space) for name in ("published", "ring", "bottleneck", "doubled")
          for space in ("pixels", "hidden", "code")),
        ("ring", "arc"), ("bottleneck", "bottleneck"),
        *(("hyper-set", space) for space in ("pixels", "latent", "weights")),
    }  # fmt: skip
    for (_, space), row in rows.items():
        affine = space in ("pixels", "hidden")
        assert (row["half-way"] < 1e-5) == (row["smoothness"] < 1e-5) == affine
        assert row["half-way"] <= row["farthest"]


def test_unseen_pictures_are_completed(finished: tuple[MemorizeStudy, Store, Answer]) -> None:
    study, store, answer = finished
    spec = study.fit("hyper-set")
    assert isinstance(spec.model, Hyper)
    assert spec.problem.shape == (3, 4 * 16, 16)  # four of six pictures
    (row,) = answer.tables["contexts"].rows
    result = store.get(spec)
    assert result is not None
    network = network_at(result)
    assert network is not None
    for count, name in ((10, "10"), (None, "all")):
        levels = [completed(network, one, count, i)[1] for i, one in enumerate(study.pictures.small[4:])]
        assert row[name] == pytest.approx(np.mean(levels), abs=0.006)
    seen = spec.model.encode(network.weights, study.pictures.small[4].data)
    shown = render.render(network.shown(seen, 16, 16))
    level = completed(network, study.pictures.small[4], None, 0)[1]
    assert level == pytest.approx(metrics.psnr(shown, study.pictures.small[4].data), abs=1e-4)


def test_the_published_training_is_measured(finished: tuple[MemorizeStudy, Store, Answer]) -> None:
    study, store, answer = finished
    rows = {row["check"]: row for row in answer.tables["published"].rows}
    assert {row["within"] for row in rows.values()} == {None}  # other pictures, another network
    assert rows["midpoint of the last hidden layer"]["ours"] < 1e-5
    assert rows["training error at epoch 50"]["ours"] is None
    result = store.get(study.fit("published"))
    assert result is not None
    assert set(result.kept) == {10, 20, 24}  # epochs 5 and 10, and the last
    assert "no verdicts" in answer.summary
    assert {(row["measure"], row["rule"]) for row in answer.tables["similar"].rows} == {
        (measure, rule) for measure in ("cosine", "euclidean", "dot") for rule in ("published", "greedy")
    }


def test_verdicts_are_given_for_the_published_settings_alone() -> None:
    """A training that went as published, but for what is changed."""
    known = ("shopping_cart", "shopping_cart_loaded", "buy", "return_purchase", "gift", "hospital")
    names = (*known, *(f"picture {number}" for number in range(94)))
    upper = torch.linspace(0.06, 0.33, 100 * 100).view(100, 100).triu(1)
    cosine = upper + upper.T + torch.eye(100)
    cosine[0, 1] = cosine[1, 0] = cosine[2, 3] = cosine[3, 2] = 0.348
    losses = [0.5] * 801
    losses[50], losses[200], losses[800] = 0.1, 0.04, 0.0045
    good = Facts(
        names, 698_883, 16, tuple(losses), 0.0145, 2e-7, {"cosine": cosine.double()},
        Quality(20.0, None), Quality(26.9, None),
    )  # fmt: skip
    assert {row["check"]: row["within"] for row in acceptance(good).rows if row["within"] != "yes"} == {}
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"parameters": 698_884}, ""), ({"names": names[1:]}, ""), ({"names": (*names[1:], "other")}, ""),
        ({"batch": 8}, ""), ({"held_out": 0.05}, "held-out PSNR after 801 epochs"),
        ({"midpoint": 1e-4}, "midpoint of the last hidden layer"), ({"upsampled": Quality(27.0, None)}, "bicubic"),
    )  # fmt: skip
    for change, failed in changes:
        if "names" in change and len(change["names"]) != 100:
            change = {**change, "matrices": {"cosine": good.matrices["cosine"][1:, 1:]}}
        within = {row["check"]: row["within"] for row in acceptance(replace(good, **change)).rows}
        if failed:
            assert any(name.startswith(failed) and verdict == "no" for name, verdict in within.items())
        else:
            assert set(within.values()) == {None}
    short = replace(good, losses=good.losses[:100])
    within = {row["check"]: row["within"] for row in acceptance(short).rows}
    assert within["training error at epoch 50"] == "yes"
    assert within["training error at epoch 200"] is within["held-out PSNR after 801 epochs"] is None
    assert "mean cosine" not in within


def test_an_answer_of_nothing_is_empty(tmp_path: Path) -> None:
    answer = smoke(show="true").answer(Store(tmp_path))
    assert (dict(answer.tables), dict(answer.figures), dict(answer.films)) == ({}, {}, {})
    assert "Not finished, or without a finite network: published, binary" in answer.summary


def test_pictures_are_shown_only_where_they_may(
    finished: tuple[MemorizeStudy, Store, Answer], tmp_path: Path
) -> None:  # fmt: skip
    study, store, answer = finished
    shown = {"published_epochs", "between_0", "between_1", "larger"}
    assert set(answer.figures) == {
        "published_curves", "held_out", "upsampling", "half_way", "contexts", "similarity",
    }  # fmt: skip
    assert answer.films == {}
    few = replace(study, show=True, designs=("published", "bottleneck"))
    paths = {path.name: path for path in few.report(store, tmp_path)}
    assert {f"{name}.png" for name in shown} | {"between.webp", "report.md", "designs.csv", "runs.csv"} <= set(paths)
    with PillowImage.open(paths["between.webp"]) as film:
        assert getattr(film, "n_frames", 1) > 5
    rows = list(csv.DictReader(paths["designs.csv"].read_text("utf-8").splitlines()))
    assert [row["design"] for row in rows] == ["published", "bottleneck"]


def test_the_command_runs_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker process, which files weights because the last ones are kept."""
    monkeypatch.chdir(tmp_path)
    arguments = ["study", "memorize", "run", "--profile", "smoke", "--workers", "1", "--device", "cpu", "--json", "-q"]
    arguments += ["-s", "designs=copies,learned", "-s", "epochs=2", "-s", "count=3", "-s", "upsampled=1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["fits"], said["done"], said["failed"]) == (2, 2, 0)
    rows = said["tables"]["designs"]
    assert [row["design"] for row in rows] == ["copies", "learned"]
    assert np.isfinite([row["memorised"] for row in rows]).all()


def test_crops_lie_inside_the_bundled_pictures() -> None:
    assert all(isinstance(one, Image) and one.data.shape == (3, 64, 64) for one in smoke().pictures.large)
    assert memorize_pictures.load("bundled", "", "white", 2).small[1].name == smoke().pictures.small[1].name
