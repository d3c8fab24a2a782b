"""What a finished fit says of itself: in a table, as JSON, in a notebook and as a picture file."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from pixfit import images, metrics, modelfile, plots, run
from pixfit.images import Image
from pixfit.models import Siren
from pixfit.operators import BoxDownsample
from pixfit.problem import Problem
from pixfit.result import Result, Status, json_number
from pixfit.spec import Spec
from pixfit.stopping import Steps
from tests.conftest import picture


def fitted(image: Image, steps: int = 3, **settings: Any) -> Result:
    return run.fit(Spec(Problem(image), Siren(1, 8), budget=Steps(steps), **settings))


@pytest.fixture(scope="module")
def result() -> Result:
    torch.set_num_threads(1)
    return fitted(picture(3, 12, 10))


@pytest.fixture
def failed(result: Result) -> Result:
    return Result(result.spec, Status.FAILED, "RuntimeError: no", {})


# --- the summary


def test_the_summary_is_what_was_asked_and_found(result: Result) -> None:
    said = result.summary()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["id"] == result.id == result.spec.id
    assert (said["status"], said["stop_reason"]) == ("done", result.reason)
    assert (said["width"], said["height"], said["channels"]) == (10, 12, 3)
    assert (said["steps"], said["epochs"]) == (3, 3)
    assert said["parameters"] == 2 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3 == 123
    assert said["values_ratio"] == pytest.approx(123 / 360)
    assert said["lossless"] is False
    assert said["psnr"] == result.psnr
    assert all(said[name] >= 0 for name in ("seconds", "process_seconds", "evaluation_seconds"))


def test_the_scores_are_those_of_the_picture_shown(result: Result) -> None:
    assert result.estimate is not None
    assert isinstance(result.spec.problem, Problem)
    truth = result.spec.problem.image.data
    error = (result.estimate.double().clamp(0, 1) - truth.double()).square().mean()
    assert result.psnr == pytest.approx(-10 * math.log10(float(error)), abs=1e-9)
    assert result.metrics["psnr_8bit"] == metrics.psnr_8bit(result.estimate, truth)
    assert result.metrics["psnr_measured"] == pytest.approx(result.psnr, abs=1e-4)


def test_ssim_is_null_where_it_is_not_defined(small: Image) -> None:
    assert fitted(small).summary()["ssim"] is None  # 10 pixels wide
    said = fitted(picture(1, 11, 11)).summary()
    assert -1 <= said["ssim"] <= 1


@pytest.mark.parametrize(
    ("found", "psnr", "psnr_8bit", "lossless"),
    [
        ({"psnr": math.inf, "psnr_8bit": math.inf}, None, None, True),
        ({"psnr": 60.0, "psnr_8bit": math.inf}, 60.0, None, True),
        ({"psnr": 60.0, "psnr_8bit": 59.0}, 60.0, 59.0, False),
        ({"psnr": math.nan}, None, None, False),
        ({}, None, None, False),
    ],
)
def test_json_has_no_infinity(
    found: dict[str, float], psnr: float | None, psnr_8bit: float | None, lossless: bool, result: Result
) -> None:
    said = replace(result, metrics=found).summary()
    assert (said["psnr"], said["psnr_8bit"], said["lossless"]) == (psnr, psnr_8bit, lossless)
    json.dumps(said, allow_nan=False)


def test_json_numbers() -> None:
    assert [json_number(value) for value in (1.5, 0.0, None, math.inf, -math.inf, math.nan)] == [
        1.5, 0.0, None, None, None, None,
    ]  # fmt: skip


def test_the_summary_of_a_fit_that_failed(failed: Result) -> None:
    said = failed.summary()
    assert (said["status"], said["stop_reason"], said["psnr"], said["steps"]) == ("failed", "RuntimeError: no", None, 0)
    json.dumps(said, allow_nan=False)


def test_a_summary_needs_no_problem(result: Result) -> None:
    sealed = replace(result, spec=modelfile.decode_spec(result.spec.plain))
    assert sealed.summary() == result.summary()
    assert sealed._repr_html_()


@pytest.mark.parametrize("status", list(Status))
def test_every_end_has_a_remedy_or_needs_none(status: Status) -> None:
    good = status in (Status.DONE, Status.STOPPED)
    assert bool(status.remedy) is not good
    assert status.finished is (status not in (Status.FAILED, Status.CANCELLED))


# --- as text and in a notebook


def test_repr_is_one_short_line(result: Result, failed: Result) -> None:
    assert repr(result) == f"Result({result.id}, done, {result.psnr:.2f} dB, 3 steps, {result.seconds:.1f} s)"
    assert repr(failed) == f"Result({failed.id}, failed, 0 steps, 0.0 s)"
    assert "inf dB" in repr(replace(result, metrics={"psnr": math.inf}))


def test_a_result_is_frozen(result: Result) -> None:
    with pytest.raises(FrozenInstanceError):
        result.status = Status.FAILED  # type: ignore[misc]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_notebook_shows_the_picture(channels: int) -> None:
    data = torch.rand(channels, 12, 10, generator=torch.Generator().manual_seed(0))
    fit = fitted(Image(data, alpha="keep"))
    png = fit._repr_png_()
    assert png is not None
    assert fit.estimate is not None
    shown = np.asarray(PillowImage.open(io.BytesIO(png))).reshape(12, 10, channels)
    expected = fit.estimate.clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - expected).max() <= 0.51


class _Tags(HTMLParser):
    """Fails where elements are not closed in order; collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name == "src"]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_notebooks_html_holds_three_pictures(result: Result) -> None:
    text = result._repr_html_()
    parser = _Tags()
    parser.feed(text)
    assert not parser.open
    assert len(parser.sources) == 3
    sizes = []
    for source in parser.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        with PillowImage.open(io.BytesIO(base64.b64decode(data, validate=True))) as shown:
            shown.load()
            sizes.append(shown.size)
    assert sizes[:2] == [(10, 12), (10, 12)]
    assert re.search(r"<code>Result\(\w{20}, done", text)


def test_the_notebook_copes_with_what_is_missing(result: Result, failed: Result) -> None:
    assert failed._repr_png_() is None
    for fit, pictures in (
        (failed, 0),
        (replace(result, estimate=None), 1),
        (replace(result, curves={}), 2),
        (replace(result, curves={"loss": torch.ones(3)}), 3),
        (replace(result, curves={**result.curves, "psnr": torch.full((4,), torch.inf)}), 3),
        (replace(result, curves={"loss": torch.tensor([1.0, torch.inf, torch.nan])}), 3),
        (fitted(picture(3, 12, 10), steps=0), 2),
    ):
        parser = _Tags()
        parser.feed(fit._repr_html_())
        assert len(parser.sources) == pictures


def test_the_error_map_is_ten_times_the_mean_error() -> None:
    truth = torch.zeros(3, 2, 2)
    estimate = truth.clone()
    estimate[0, 0, 0] = 0.09  # a mean of 0.03
    estimate[:, 1, 1] = -5.0  # clamped to the truth
    estimate[:, 1, 0] = 0.5
    shown = np.asarray(PillowImage.open(io.BytesIO(plots.error_map(estimate, truth))))
    assert shown.tolist() == [[77, 0], [255, 0]] or shown.tolist() == [[76, 0], [255, 0]]


def test_a_restored_picture_is_shown_at_its_own_size(square: Image) -> None:
    fit = run.fit(Spec(Problem(square, BoxDownsample(2)), Siren(1, 8), budget=Steps(2)))
    assert fit.estimate is not None
    assert fit.estimate.shape == (3, 32, 32)
    assert fit._repr_html_()


# --- as a file


@pytest.mark.parametrize(
    ("name", "asked", "source", "depth"),
    [
        ("a.png", None, 8, 8), ("a.png", None, 16, 16), ("a.png", None, 32, 16), ("a.png", 8, 16, 8),
        ("a.PNG", 16, 8, 16), ("a.tif", None, 16, 16), ("a.tif", 32, 8, 32), ("a.webp", None, 16, 8),
        ("a.jpg", None, 16, 8),
    ],
)  # fmt: skip
def test_the_fitted_picture_as_a_file(name: str, asked: int | None, source: int, depth: int, tmp_path: Path) -> None:
    """16 bits stay 16 bits, as in `pixfit.render.write`."""
    fit = fitted(replace(picture(3, 12, 10), bit_depth=source))
    fit.save_image(tmp_path / name, bit_depth=asked)
    saved = images.load(tmp_path / name)
    assert fit.estimate is not None
    assert saved.bit_depth == depth
    tolerance = 0.1 if name == "a.jpg" else {8: 0.6 / 255, 16: 0.6 / 65535, 32: 0}[depth]
    torch.testing.assert_close(saved.data, fit.estimate.clamp(0, 1), rtol=0, atol=tolerance)


def test_the_picture_as_an_array(result: Result, tmp_path: Path) -> None:
    result.save_image(str(tmp_path / "a.npy"))
    assert result.estimate is not None
    assert np.array_equal(np.load(tmp_path / "a.npy"), result.estimate.clamp(0, 1).permute(1, 2, 0).numpy())


def test_a_fit_without_a_picture_says_why_and_what_to_do(failed: Result, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture: it is failed \(RuntimeError: no\)\. an error ended it"):
        failed.save_image(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
