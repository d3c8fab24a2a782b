"""Networks to pixels: every way to cut a picture shows the same picture, and memory does not grow with it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pixfit import images, modelfile, render, run
from pixfit.images import Image, ImageError
from pixfit.modelfile import Network
from pixfit.models import Coordinates, Experts, Fourier, Gabor, Mlp, Model, Siren, Wire
from pixfit.problem import Problem
from pixfit.result import Result
from pixfit.spec import Spec
from pixfit.stopping import Steps
from tests.conftest import picture

CORNER = Coordinates(alignment="corner", order="row_col", range="unit", aspect="keep")
FAMILY: list[Model] = [
    Siren(1, 8),
    Siren(1, 8, coordinates=CORNER),
    Siren(1, 64),  # wide enough for the fast products
    Wire(1, 6),
    Mlp(1, 8, encoding=Fourier(8, freq_scale=2.0)),
    Mlp(1, 8, encoding=Gabor(8, freq_scale=2.0), norm="layer", experts=Experts(2)),
]
family = pytest.mark.parametrize("model", FAMILY, ids=lambda m: f"{type(m).__name__}-{m.coordinates.alignment}")


def fitted(model: Model, image: Image | None = None, **settings: Any) -> Result:
    problem = Problem(picture(3, 12, 10) if image is None else image)
    return run.fit(Spec(problem, model, budget=Steps(2), **settings))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.set_num_threads(1)
    return Network.of(fitted(Siren(1, 8)))


# --- values


@family
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_at_its_own_size_a_network_shows_the_fit(model: Model, channels: int, tmp_path: Path) -> None:
    fit = fitted(model, Image(torch.cat([picture(3, 12, 10).data, torch.ones(1, 12, 10)])[-channels:], alpha="keep"))
    modelfile.save(fit, tmp_path / "m.safetensors")
    assert fit.estimate is not None
    assert fit.estimate.shape == (channels, 12, 10)
    for source in (fit, Network.of(fit), tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        assert torch.equal(render.render(source), fit.estimate)
        assert torch.equal(render.render(source, scale=1), fit.estimate)
        assert torch.equal(render.render(source, size=(10, 12)), fit.estimate)
        assert torch.equal(render.render(source, region=(0, 0, 10, 12)), fit.estimate)


def positions(
    count: int, side: int, start: float, length: float, alignment: str, low: float, scale: float = 1.0
) -> torch.Tensor:
    """Where ``count`` samples of a part of an axis of ``side`` pixels lie, by the words of the design alone."""
    index = torch.arange(count, dtype=torch.float64)
    if alignment == "center":
        t = (start + (index + 0.5) * length / count) / side
    else:
        whole = side * count / length  # samples of the whole axis at this scale, the first and the last on its ends
        t = (start * count / length + index) / (whole - 1)
    return low + (1 - low) * (0.5 + scale * (t - 0.5))


@pytest.mark.parametrize("alignment", ["center", "corner"])
@pytest.mark.parametrize("reach", ["signed", "unit"])
@pytest.mark.parametrize(
    ("scale", "region"), [(1, (0, 0, 10, 12)), (3, (0, 0, 10, 12)), (2, (3, 4, 5, 6)), (4, (9, 11, 1, 1))]
)
def test_samples_lie_where_the_convention_says(
    alignment: Literal["center", "corner"],
    reach: Literal["signed", "unit"],
    scale: int,
    region: tuple[int, int, int, int],
) -> None:
    model = Siren(1, 8, coordinates=Coordinates(alignment=alignment, range=reach))
    fit = fitted(model, precision="float64")
    x, y, w, h = region
    low = -1.0 if reach == "signed" else 0.0
    columns = positions(w * scale, 10, x, w, alignment, low)
    rows = positions(h * scale, 12, y, h, alignment, low)
    grid = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], dim=-1)
    module = model.network(2, 3).double()
    module.load_state_dict(dict(fit.weights))
    with torch.no_grad():
        expected = (module(grid.reshape(-1, 2)).T.reshape(3, h * scale, w * scale) + 1) / 2
    found = render.render(fit, scale=scale, region=region)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)


def test_the_corners_of_a_large_render_are_the_ends_of_the_range() -> None:
    assert positions(24, 12, 0, 12, "corner", -1.0)[[0, -1]].tolist() == [-1, 1]
    assert positions(24, 12, 0, 12, "center", -1.0)[[0, -1]].tolist() == pytest.approx([-1 + 1 / 24, 1 - 1 / 24])


@family
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("region", [(0, 0, 10, 12), (2, 3, 5, 7), (9, 0, 1, 12), (0, 11, 10, 1)])
def test_a_region_is_that_part_of_the_whole(model: Model, scale: int, region: tuple[int, int, int, int]) -> None:
    source = Network.of(fitted(model))
    x, y, w, h = (scale * side for side in region)
    part, whole = render.render(source, scale=scale, region=region), render.render(source, scale=scale)
    assert whole.shape == (3, 12 * scale, 10 * scale)
    torch.testing.assert_close(part, whole[:, y : y + h, x : x + w], rtol=0, atol=1e-6)


@family
@pytest.mark.parametrize("points", [1, 7, 10, 95, 2**16])
def test_bands_are_the_whole_however_it_is_cut(model: Model, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Network.of(fitted(model))
    whole = render.render(source, scale=2)
    monkeypatch.setattr(render, "_POINTS", points)
    bands = list(render.bands(source, render.frame(source, scale=2)))
    assert len(bands) == -(-24 // max(1, points // 20))
    assert all(not band.requires_grad for band in bands)
    torch.testing.assert_close(torch.cat(bands, dim=1), whole, rtol=0, atol=1e-6)


def test_size_and_scale_are_two_ways_to_say_one_thing(network: Network) -> None:
    assert render.frame(network, scale=2.5) == render.frame(network, size=(25, 30))
    assert torch.equal(render.render(network, scale=2.5), render.render(network, size=(25, 30)))
    assert render.frame(network, size=(7, 3)) == render.Frame(3, 7, (0, 0, 10, 12))
    assert render.render(network, size=(7, 3)).shape == (3, 3, 7)
    assert render.frame(network, scale=0.001) == render.Frame(1, 1, (0, 0, 10, 12))
    assert render.frame(network, scale=4, region=(1.5, 2, 2.5, 1)) == render.Frame(4, 10, (1.5, 2, 2.5, 1))


def test_one_wide_picture_of_one_row(network: Network) -> None:
    """Wider than what passes through the network at a time."""
    wide = render.render(network, size=(70_000, 1))
    assert wide.shape == (3, 1, 70_000)
    end = render.render(network, size=(7_000, 1), region=(9, 0, 1, 12))
    torch.testing.assert_close(wide[:, :, -7_000:], end, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("coordinates", [Coordinates(), CORNER])
def test_pictures_of_one_pixel_or_row(height: int, width: int, coordinates: Coordinates) -> None:
    fit = fitted(Siren(1, 8, coordinates=coordinates), picture(1, height, width))
    assert fit.estimate is not None
    assert torch.equal(render.render(fit), fit.estimate)
    large = render.render(fit, scale=3)
    assert large.shape == (1, 3 * height, 3 * width)
    assert bool(large.isfinite().all())


# --- files


@pytest.mark.parametrize(
    ("name", "asked", "source", "depth"),
    [
        ("a.png", None, 8, 8), ("a.png", None, 16, 16), ("a.png", None, 32, 16), ("a.PNG", 8, 16, 8),
        ("a.png", 16, 8, 16), ("a.tif", None, 8, 8), ("a.tif", None, 16, 16), ("a.tiff", 16, 8, 16),
        ("a.jpg", None, 16, 8), ("a.webp", None, 16, 8), ("a.npy", None, 8, 32), ("a.tif", 32, 8, 32),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_what_was_rendered(
    name: str, asked: int | None, source: int, depth: int, channels: int, tmp_path: Path
) -> None:
    fit = fitted(Siren(1, 8), replace(picture(channels, 12, 10), bit_depth=source))
    done: list[float] = []
    wanted = render.write(fit, tmp_path / name, scale=2, region=(1, 2, 8, 9), bit_depth=asked, progress=done.append)
    assert (wanted.width, wanted.height) == (16, 18)
    expected = render.render(fit, scale=2, region=(1, 2, 8, 9)).clamp(0, 1)
    if name.endswith(".npy"):
        array = np.load(tmp_path / name)
        assert array.dtype == np.float32
        found = torch.from_numpy(array.reshape(18, 16, channels)).permute(2, 0, 1)
    else:
        image = images.load(tmp_path / name)
        assert image.bit_depth == depth
        found = image.data[:channels]
    tolerance = {8: 0.6 / 255, 16: 0.6 / 65535, 32: 0}[depth] if "jpg" not in name else 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert done == sorted(done)
    assert done[-1] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_alpha_is_kept_in_png_and_refused_in_jpeg(tmp_path: Path) -> None:
    fit = fitted(Siren(1, 8), Image(torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(0)), alpha="keep"))
    render.write(fit, tmp_path / "a.png")
    found = images.load(tmp_path / "a.png", alpha="keep").data
    torch.testing.assert_close(found, render.render(fit).clamp(0, 1), rtol=0, atol=0.6 / 255)
    with pytest.raises(ImageError, match="JPEG has no alpha channel"):
        render.write(fit, tmp_path / "a.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_progress_is_told_band_by_band(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_POINTS", 100)
    done: list[float] = []
    render.write(network, tmp_path / "a.png", scale=3, progress=done.append)
    assert len(done) == 12
    assert done == sorted(set(done))
    assert done[-1] == 1


def test_an_interrupted_render_leaves_the_old_file(network: Network, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render.write(network, tmp_path / "a.png", progress=interrupt)
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


# --- what is refused

_NAN, _INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"scale": 0}, "scale is 0; it must be above 0"),
        ({"scale": -1}, "scale is -1; it must be above 0"),
        ({"scale": _NAN}, "scale is nan"),
        ({"scale": _INF}, "scale is inf"),
        ({"scale": 2**21}, "scale is 2097152; it must be above 0 and at most 1048576"),
        ({"scale": "2"}, "scale is '2'"),
        ({"scale": 2, "size": (3, 3)}, "either a scale or a size, not both"),
        ({"size": (0, 5)}, "size 0×5 cannot be rendered"),
        ({"size": (5, -1)}, "size 5×-1 cannot be rendered"),
        ({"size": (2.5, 3)}, r"size 2\.5×3 cannot be rendered; sides are whole numbers"),
        ({"size": (_NAN, 3)}, "size nan×3 cannot be rendered"),
        ({"size": (2**24 + 1, 1)}, "size 16777217×1 cannot be rendered; sides are whole numbers from 1 to 2.24"),
        ({"size": (2**23, 2**23)}, "at most 2.40 pixels in all"),
        ({"size": (10**30, 10**30)}, "cannot be rendered"),
        ({"scale": 2**20, "region": (0, 0, 10, 12)}, "at most 2.40 pixels in all"),
        ({"size": (5,)}, "size is"),
        ({"size": (5, 5, 3)}, "size is"),
        ({"region": (0, 0, 11, 12)}, "region 0,0,11,12 is not inside the 10×12 picture; give X,Y,W,H in its pixels"),
        ({"region": (-1, 0, 5, 5)}, "region -1,0,5,5 is not inside"),
        ({"region": (0, 0, 0, 5)}, "region 0,0,0,5 is not inside"),
        ({"region": (5, 5, -2, 2)}, "region 5,5,-2,2 is not inside"),
        ({"region": (10, 0, 1, 1)}, "region 10,0,1,1 is not inside"),
        ({"region": (0, 0, _NAN, 5)}, "region 0,0,nan,5 is not inside"),
        ({"region": (0, 0, 5, _INF)}, "region 0,0,5,inf is not inside"),
        ({"region": (0, 0, 5)}, "region is .*; give four numbers"),
    ],
)
def test_impossible_frames(wanted: dict[str, Any], said: str, network: Network, tmp_path: Path) -> None:
    for call in (
        lambda: render.frame(network, **wanted),
        lambda: render.render(network, **wanted),
        lambda: render.write(network, tmp_path / "a.png", **wanted),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert not list(tmp_path.iterdir())


def test_impossible_files(network: Network, tmp_path: Path) -> None:
    for path, depth, said in (
        (tmp_path / "a.bmp", None, "the suffix chooses the format"),
        (tmp_path / "nowhere" / "a.png", None, "does not exist; make it first"),
        (tmp_path / "a.png", 32, "a bit depth of 8 or 16, not 32"),
        (tmp_path / "a.png", 0, "a bit depth of 8 or 16, not 0"),
        (tmp_path / "a.jpg", 16, "a bit depth of 8, not 16"),
    ):
        with pytest.raises(ImageError, match=said):
            render.write(network, path, bit_depth=depth)
    with pytest.raises(modelfile.ModelFileError, match="no such file"):
        render.render(tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())


# --- memory


_MEASURED = """
import resource, sys
import torch
torch.set_num_threads(2)
from pixfit import modelfile, render
small, large = int(sys.argv[2]), int(sys.argv[3])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
network = modelfile.load(sys.argv[1])
render.write(network, sys.argv[1] + ".small.png", size=(small, small))
before = peak()
render.write(network, sys.argv[1] + ".png", size=(large, large))
print(before, peak())
"""


def peaks(hidden_features: int, folder: Path, small: int, large: int) -> Iterator[int]:
    """The most memory in MiB that a program of its own held after a small render, and after a large one too."""
    modelfile.save(fitted(Siren(2, hidden_features)), folder / "m.safetensors")
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEASURED), str(folder / "m.safetensors"), str(small), str(large)],
        env={**os.environ, "PYTHONPATH": str(Path(render.__file__).parents[1])}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    with open(folder / "m.safetensors.png", "rb") as stream:
        header = stream.read(24)
    assert int.from_bytes(header[16:20], "big") == int.from_bytes(header[20:24], "big") == large
    return (int(text) // 1024 for text in process.stdout.split())


def test_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    before, after = peaks(4, tmp_path, 256, 1400)
    assert after - before < 12  # the picture has 22 MiB in float32


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_picture_of_268_megapixels_needs_less_than_a_gibibyte(tmp_path: Path) -> None:
    _, after = peaks(32, tmp_path, 256, 16384)
    assert after < 1024
