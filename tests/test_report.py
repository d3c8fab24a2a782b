"""The page of a fit: whole, readable, and of this fit; and what the doctor says of this machine."""

from __future__ import annotations

import html
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PillowImage
from torch.nn import functional

from pixfit import images, modelfile, render, report, run
from pixfit.images import Image
from pixfit.models import Coordinates, Siren
from pixfit.operators import BoxDownsample, Inpaint
from pixfit.problem import Problem
from pixfit.result import Result, Status
from pixfit.spec import Spec
from pixfit.stopping import Steps

_CLOSED_BY_NOBODY = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """The links, pictures and text of a page; elements must be closed in order, and no attribute left open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert len(named) == len(attrs)
        if tag == "a":
            self.links.append(named["href"] or "")
        if tag == "img":
            self.pictures.append(named["src"] or "")
            assert named["alt"]
        if tag not in _CLOSED_BY_NOBODY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def fitted(image: Image, steps: int = 3, **settings: Any) -> Result:
    return run.fit(Spec(Problem(image), Siren(1, 8), budget=Steps(steps), **settings))


def written(result: Result, folder: Path, **settings: Any) -> Page:
    """Writes the page and checks what every page must keep."""
    done: list[float] = []
    path = report.write_fit(result, folder, **{"title": "waves", **settings}, progress=done.append)
    assert path == folder / "index.html"
    assert done == sorted(done)
    assert done[-1] == 1
    page = Page(path)
    assert page.pictures
    assert {*page.links, *page.pictures, "index.html"} == {file.name for file in folder.iterdir()}
    for name in {*page.links, *page.pictures} - {"model.safetensors"}:
        with PillowImage.open(folder / name) as shown:
            shown.load()
    modelfile.load(folder / "model.safetensors")
    return page


def test_the_page_of_a_fit(small: Image, tmp_path: Path) -> None:
    result = fitted(small)
    page = written(result, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert (images.load(folder / "original.png").data == small.data).all()
    assert result.estimate is not None
    torch.testing.assert_close(
        images.load(folder / "fit.png").data, result.estimate.clamp(0, 1), rtol=0, atol=0.6 / 255
    )
    whole = images.load(folder / "fit-4x.png").data
    torch.testing.assert_close(whole, render.render(result, scale=4).clamp(0, 1), rtol=0, atol=0.6 / 255)
    assert images.load(folder / "error.png").data.shape == (1, 12, 10)
    size = (folder / "model.safetensors").stat().st_size
    for said in (
        "10 × 12 pixels, 3 channels", "Siren, 123 parameters", f"{result.psnr:.2f} dB", "not defined under 11 pixels",
        f"{size:,} bytes, {size * 8 / 120:.2f} bits per pixel", "3 steps in", result.id, "done", "40×48",
        "pixfit render model.safetensors",
    ):  # fmt: skip
        assert said in page.text


def test_the_details_are_one_place_magnified_three_ways(tmp_path: Path) -> None:
    """The busy corner of a picture that is flat elsewhere."""
    data = torch.full((3, 130, 140), 0.5)
    data[:, 4:90, 40:130] = torch.rand(3, 86, 90, generator=torch.Generator().manual_seed(0))
    result = fitted(Image(data))
    page = written(result, tmp_path, zoom=2)
    x, y = 24, 0
    assert f"The 96×96 pixels at ({x}, {y})" in page.text
    part = data[:, y : y + 96, x : x + 96]
    near = images.load(tmp_path / "detail-nearest.png").data
    torch.testing.assert_close(near[:, ::2, ::2], part, rtol=0, atol=0.6 / 255)
    cubic = functional.interpolate(part[None], scale_factor=2, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    torch.testing.assert_close(images.load(tmp_path / "detail-bicubic.png").data, cubic, rtol=0, atol=0.6 / 255)
    whole = images.load(tmp_path / "fit-2x.png").data
    detail = images.load(tmp_path / "detail-network.png").data
    torch.testing.assert_close(detail, whole[:, 2 * y : 2 * y + 192, 2 * x : 2 * x + 192], rtol=0, atol=1.1 / 255)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 1, 9), (1, 9, 1), (2, 5, 4), (4, 12, 130)])
def test_pages_of_odd_pictures(channels: int, height: int, width: int, tmp_path: Path) -> None:
    data = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))
    page = written(fitted(Image(data, alpha="keep")), tmp_path)
    assert f"{width} × {height} pixels, {channels} channels" in page.text


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_other_zooms(zoom: int, small: Image, tmp_path: Path) -> None:
    page = written(fitted(small), tmp_path, zoom=zoom)
    with PillowImage.open(tmp_path / f"fit-{zoom}x.png") as shown:
        assert shown.size == (10 * zoom, 12 * zoom)
    assert f"{zoom}× closer" in page.text


def test_pages_of_unusual_fits(small: Image, square: Image, tmp_path: Path) -> None:
    result = fitted(small)
    corner = Siren(1, 8, coordinates=Coordinates(alignment="corner"))
    for number, fit in enumerate([
        fitted(small, steps=0),
        fitted(small, precision="float64"),
        fitted(replace(small, bit_depth=16)),
        run.fit(Spec(Problem(small), corner, budget=Steps(1))),
        run.fit(Spec(Problem(square, BoxDownsample(2)), Siren(1, 8), budget=Steps(2))),
        run.fit(Spec(Problem(square, Inpaint(square.data.mean(0) > 0.5)), Siren(1, 8), budget=Steps(2))),
        replace(result, curves={**result.curves, "psnr": torch.full_like(result.curves["psnr"], torch.inf)}),
    ]):  # fmt: skip
        written(fit, tmp_path / str(number))


def test_a_lossless_fit_is_called_so(small: Image, tmp_path: Path) -> None:
    page = written(replace(fitted(small), metrics={"psnr": math.inf, "psnr_8bit": math.inf, "ssim": 1.0}), tmp_path)
    assert "lossless (lossless at 8 bits)" in page.text
    assert "SSIM 1.0000" in page.text


def test_what_people_call_their_pictures_does_not_break_the_page(small: Image, tmp_path: Path) -> None:
    title = '<script>alert("x")</script> & "waves"'
    result = replace(fitted(small), reason="<b>steps</b> & more")
    page = written(result, tmp_path, title=title)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count(html.escape(title)) == 2
    assert title in page.text
    assert "<b>steps</b> & more" in page.text


def test_the_page_needs_nothing_from_elsewhere(small: Image, tmp_path: Path) -> None:
    page = written(fitted(small), tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert not any(far in text for far in ("http:", "https:", "//cdn", "<script", "@import"))
    assert not any("/" in name for name in page.links + page.pictures)
    assert str(tmp_path) not in text


def test_a_page_written_again_is_replaced(small: Image, tmp_path: Path) -> None:
    written(fitted(small), tmp_path, title="first")
    (tmp_path / "fit.png").write_bytes(b"broken")
    assert "second" in written(fitted(small), tmp_path, title="second").text


def test_fits_that_cannot_be_shown(small: Image, tmp_path: Path) -> None:
    result = fitted(small)
    for fit in (
        Result(result.spec, Status.FAILED, "no", {}),
        replace(result, estimate=None),
        replace(result, spec=modelfile.decode_spec(result.spec.plain)),
    ):
        with pytest.raises(ValueError, match="nothing to show"):
            report.write_fit(fit, tmp_path / "page", title="x")
    assert not list(tmp_path.iterdir())


# --- the doctor


def test_the_doctor_says_what_this_machine_is(tmp_path: Path) -> None:
    said = report.doctor(tmp_path / "runs")
    assert json.loads(json.dumps(said)) == said
    assert said["torch"] == torch.__version__
    assert said["threads"] == 1
    assert Path(said["store"]) == (tmp_path / "runs").resolve()
    assert all(isinstance(name, str) and value not in ("", None) for name, value in said.items())
    assert said["kernel"].startswith(("torch", "fused-"))
    assert ("other fits" in said) == said["kernel"].startswith("fused-")
    assert "GFLOP/s" in said["matrix products"]
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_the_line_that_installs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else object())
    assert 'pip install "pixfit[export]"' in report.doctor(tmp_path)["extras missing"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert report.doctor(tmp_path)["extras missing"] == "none"
