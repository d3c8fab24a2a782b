"""The presets of the project: what follows the picture, what they reach, and the benchmark that prints their cards."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image as Pillow

import pixfit as pf
from pixfit import operators, recipes, render, run
from pixfit.images import Image
from pixfit.models import Cosines, Grid, Mlp
from pixfit.starts import FromPicture
from pixfit.studies.climb_controls import resized, sparse_dct
from tests.conftest import picture

FOLDER = Path(__file__).parents[1] / "benchmarks"
GRIDS = ("fast", "instant", "smooth", "quality")
each = pytest.mark.parametrize("name", GRIDS)
every = pytest.mark.parametrize("name", [*GRIDS, "compact"])
channels = pytest.mark.parametrize("channels", [1, 2, 3, 4])


def spec_of(name: str, image: Image, *operator: operators.Operator) -> pf.Spec:
    return recipes.get(name)(pf.Problem(image, *operator))


def grid_of(spec: pf.Spec) -> Grid:
    assert isinstance(spec.model, Mlp)
    assert isinstance(spec.model.encoding, Grid)
    return spec.model.encoding


def photograph(top: int, left: int, side: int) -> Image:
    """A part of a bundled photograph."""
    data = pf.images.load("astronaut").data[:, top : top + side, left : left + side]
    return Image(data.clone(), name="part")


# --- what follows the picture


@every
@channels
@pytest.mark.parametrize(("height", "width"), [(128, 128), (100, 333), (61, 800)])
def test_presets_have_fewer_numbers_than_the_picture_has_values(
    name: str, channels: int, height: int, width: int
) -> None:
    spec = spec_of(name, picture(channels, height, width))
    ratio = spec.model.parameters_count(2, channels) / (channels * height * width)
    assert 0.5 < ratio < 1 + 400 / (height * width) if name != "compact" else 0.15 < ratio <= 0.2


def test_fast_has_the_numbers_that_it_says_at_768() -> None:
    spec = spec_of("fast", Image(torch.zeros(3, 768, 768)))
    assert grid_of(spec) == Grid.pyramid(768, 768)
    assert spec.model.parameters_count(2, 3) == 1_668_739
    assert spec.batches.pixels == 32768


@each
def test_presets_take_pictures_of_any_size(name: str) -> None:
    """From one pixel to more than fit into memory; the settings alone are made for those."""
    sizes = {(1, 1): 1, (8, 8): 64, (7, 300): 1024, (3000, 4000): 666667, (16384, 16384): 14913081}
    for (height, width), batch in sizes.items():
        spec = spec_of(name, Image(torch.zeros(1, 1, 1).expand(3, height, width)))
        assert spec.batches.pixels == batch
        numbers = sum(rows * columns * features for rows, columns, features in grid_of(spec).levels)
        assert numbers < 1.05 * 2**26
        assert numbers / (3 * height * width) > 0.05


@every
def test_presets_take_every_operator(name: str) -> None:
    """Where one measures more than a pixel, steps see the whole picture, and starts are random."""
    spec = recipes.get(name)(pf.Problem(picture(3, 24, 24), operators.BoxDownsample(2)))
    assert spec.batches.pixels is None
    assert spec.start.weights is None
    assert run.fit(replace(spec, budget=pf.Steps(2))).steps == 2


@every
def test_presets_repeat_themselves_bit_for_bit(name: str) -> None:
    spec = replace(spec_of(name, picture(3, 40, 30)), budget=pf.Steps(20))
    first, second = run.fit(spec), run.fit(spec)
    assert all(torch.equal(value, second.weights[key]) for key, value in first.weights.items())


def test_schedules_follow_the_budget_in_seconds() -> None:
    """The rate comes down with the fraction of the budget that is spent, whatever the budget is of."""
    spec = replace(spec_of("fast", photograph(60, 180, 64)), budget=pf.Seconds(0.3))
    timed = run.fit(spec)
    held = run.fit(replace(spec, budget=pf.Steps(timed.steps), optimiser=replace(spec.optimiser, schedule=_CONSTANT)))
    stepped = run.fit(replace(spec, budget=pf.Steps(timed.steps)))
    assert timed.psnr is not None
    assert stepped.psnr is not None
    assert held.psnr is not None
    assert abs(timed.psnr - stepped.psnr) < abs(timed.psnr - held.psnr)


_CONSTANT = pf.schedules.Constant()


# --- what they reach, on a part of a photograph


def test_a_step_budget_of_fast_brings_a_good_picture() -> None:
    image = photograph(0, 150, 128)
    result = run.fit(spec_of("fast", image))
    assert result.psnr is not None
    assert result.psnr > 44
    assert result.values_ratio < 1


def test_instant_begins_as_the_picture_and_gets_better() -> None:
    spec = spec_of("instant", photograph(0, 150, 128))
    assert spec.start.weights == FromPicture()
    still = run.fit(replace(spec, budget=pf.Steps(0)))
    result = run.fit(spec)
    assert still.psnr is not None
    assert result.psnr is not None
    assert still.psnr > 40
    assert result.psnr > still.psnr + 0.1


def test_smooth_enlarges_better_than_bicubic_interpolation() -> None:
    """By PSNR against the photograph that was made smaller."""
    truth = photograph(0, 150, 192).data
    small = resized(truth, 96, 96)
    shown = {name: render.render(run.fit(spec_of(name, Image(small))), scale=2) for name in ("smooth", "fast")}
    bicubic = torch.nn.functional.interpolate(small[None], scale_factor=2, mode="bicubic", align_corners=False)[0]
    levels = {name: pf.metrics.psnr(value, truth) for name, value in (*shown.items(), ("bicubic", bicubic))}
    assert levels["smooth"] > levels["bicubic"] > levels["fast"]


@pytest.mark.parametrize("place", [(0, 150, 128), (300, 100, 200), (201, 333, 120)])
def test_compact_is_better_than_as_many_numbers_of_a_sparse_transform(place: tuple[int, int, int]) -> None:
    """Which spends half of them on saying which coefficients it keeps."""
    image = photograph(*place)
    result = run.fit(spec_of("compact", image))
    assert result.psnr is not None
    assert result.parameters <= 0.2 * image.data.numel()
    assert result.psnr > pf.metrics.psnr(sparse_dct(image.data, result.parameters), image.data) + 0.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (7, 300), (3000, 4000), (16384, 16384)])
def test_compact_takes_pictures_of_any_size(height: int, width: int) -> None:
    spec = spec_of("compact", Image(torch.zeros(1, 1, 1).expand(3, height, width)))
    assert isinstance(spec.model, Cosines)
    numbers = spec.model.parameters_count(2, 3)
    assert numbers <= 0.2 * 3 * height * width or (height * width < 3000 and spec.model.classes == 1)


def test_compact_is_trained_where_not_every_pixel_was_seen() -> None:
    """To begin with, the others are filled in from those around them: known pixels are not shown well then."""
    image = photograph(0, 150, 64)
    known = operators.masks.pixels((64, 64), 0.2)
    spec = spec_of("compact", image, operators.Inpaint(known))
    assert spec.budget == pf.Steps(1000)
    still, result = run.fit(replace(spec, budget=pf.Steps(0))), run.fit(replace(spec, budget=pf.Steps(100)))

    def error(result: pf.Result) -> float:
        assert result.estimate is not None
        return float((result.estimate - image.data)[known.expand(3, -1, -1)].square().mean())

    assert error(result) < 0.7 * error(still)


# --- the benchmark


def _benchmark(name: str) -> ModuleType:
    import sys

    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def main() -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = _benchmark("presets").main
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, channels in enumerate((3, 1)):
        data = (picture(channels, 20, 23).data * 255).round().byte()
        Pillow.fromarray(data.permute(1, 2, 0).squeeze(-1).numpy()).save(tmp_path / f"{number}.png")
    return tmp_path


def test_cards_as_json(main: Callable[[list[str]], int], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pictures", str(folder), "--recipes", "instant,mlp", "--seconds", "0.1", "--json"]
    assert main([*arguments, "--crop", "16", "--save", str(folder / "cards.json")]) == 0
    out, table = capsys.readouterr()
    document: dict[str, Any] = json.loads(out)
    assert document == json.loads((folder / "cards.json").read_text("utf-8"))
    assert [(row["recipe"], row["picture"]) for row in document["rows"]] == [
        ("instant", "0"), ("instant", "1"), ("mlp", "0"), ("mlp", "1"),
    ]  # fmt: skip
    for row in document["rows"]:
        assert (row["width"], row["height"]) == (16, 16)
        for name in ("psnr", "psnr_8bit", "process_seconds", "half_psnr", "zoom_psnr", "lanczos_psnr"):
            assert math.isfinite(row[name])
        assert row["values_ratio"] == pytest.approx(row["parameters"] / (256 * (3, 1)[int(row["picture"])]), abs=1e-4)
        assert row["bits_per_pixel"] > 32 * row["parameters"] / 256
    means = {row["recipe"]: row for row in document["means"]}
    assert means["instant"]["pictures"] == 2
    assert means["instant"]["least_psnr"] == min(row["psnr"] for row in document["rows"][:2])
    assert means["mlp"]["psnr"] == pytest.approx(sum(row["psnr"] for row in document["rows"][2:]) / 2, abs=1e-3)
    assert "principal colours" in table
    assert "instant" in table


def test_cards_without_enlarging(
    main: Callable[[list[str]], int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--pictures", str(folder / "0.png"), "--recipes", "fast", "--seconds", "0.05", "--no-zoom"]) == 0
    out, errors = capsys.readouterr()
    assert not errors
    assert "fast" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipes", "fats"], "did you mean 'fast'"),
        (["--pictures", "nowhere.png"], "nowhere.png"),
        (["--seconds", "0"], "--seconds"),
        (["--crop", "0"], "--crop is 0"),
        (["--save", "no/such/folder/x.json"], "--save"),
    ],
)
def test_bad_options_end_before_anything_is_fitted(
    main: Callable[[list[str]], int], arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--pictures", str(folder), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_stored_planes_lose_the_last_colour_alone() -> None:
    """A picture whose last principal colour is flat over squares of 2 by 2 pixels comes back, in the middle of them."""
    presets = _benchmark("presets")
    two = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    data = torch.cat([two, torch.full((1, 16, 16), 0.5)])
    level, numbers = presets.stored_planes(data)
    assert level > 100
    assert numbers == 2 * 256 + 64 + 9 + 3
    assert presets.stored_planes(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))[0] < 30
