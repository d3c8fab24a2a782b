"""Writing: what is saved is read back; nothing is ever half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from pixfit.images import BandWriter, Image, ImageError, load, save
from pixfit.images import encoders as encoders_module

LOSSLESS = [
    (suffix, depth, channels)
    for suffix, depths in ((".png", (8, 16)), (".tif", (8, 16, 32)), (".npy", (8, 16, 32)))
    for depth in depths
    for channels in (1, 2, 3, 4)
]


def random_image(seed: int, channels: int, height: int, width: int, depth: int) -> Image:
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] * 0.01 + rng.random((height, width, channels))
    unit = np.clip(smooth / 2, 0, 1)
    samples = unit.astype(np.float32) if depth == 32 else (unit * (2**depth - 1)).astype(f"u{depth // 8}")
    return Image.from_array(samples)


@pytest.mark.parametrize(("suffix", "depth", "channels"), LOSSLESS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_round_trip(suffix: str, depth: int, channels: int, height: int, width: int, seed: int, tmp_path: Path) -> None:
    image = random_image(seed, channels, height, width, depth)
    path = tmp_path / f"a{suffix}"
    save(image, path)
    again = load(path, alpha="keep")
    assert again.bit_depth == depth
    assert torch.equal(again.data, image.data)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_other_programs_read_the_same(suffix: str, tmp_path: Path) -> None:
    image = random_image(0, 3, 33, 41, 8)
    save(image, tmp_path / f"a{suffix}")
    with PillowImage.open(tmp_path / f"a{suffix}") as picture:
        samples = np.asarray(picture.convert("RGB")).astype(int)
    error = np.abs(samples - np.rint(image.data.permute(1, 2, 0).numpy() * 255))
    assert error.max() == 0 if suffix != ".jpg" else error.mean() < 6


@pytest.mark.parametrize("depth", [8, 16, 32])
def test_tiff_is_read_by_tifffile_over_many_strips(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders_module, "_STRIP_BYTES", 400)
    image = random_image(1, 3, 29, 17, depth)
    for limit in (1 << 40, 100):  # the second makes a BigTIFF
        monkeypatch.setattr(encoders_module, "_CLASSIC_TIFF_LIMIT", limit)
        save(image, tmp_path / "a.tif")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.is_bigtiff == (limit == 100)
            assert len(file.pages.first.dataoffsets) > 3
            samples = file.asarray()
        assert np.array_equal(Image.from_array(samples).data, image.data)
        assert torch.equal(load(tmp_path / "a.tif").data, image.data)


def test_png_is_marked_srgb_and_compressed(tmp_path: Path) -> None:
    save(load("coffee"), tmp_path / "a.png")
    with PillowImage.open(tmp_path / "a.png") as picture:
        picture.load()
        assert picture.info["srgb"] == 0
    assert (tmp_path / "a.png").stat().st_size < 0.8 * 600 * 400 * 3


def test_kept_alpha_comes_back_transparent(tmp_path: Path) -> None:
    image = random_image(2, 4, 5, 6, 8)
    for suffix in (".png", ".webp"):
        save(image, tmp_path / f"a{suffix}")
        assert torch.equal(load(tmp_path / f"a{suffix}", alpha="keep").data, image.data)
    with pytest.raises(ImageError, match="no alpha channel"):
        save(image, tmp_path / "a.jpg")


def test_rounding_and_clamping(tmp_path: Path) -> None:
    data = torch.tensor([[-0.5, 0.0, 0.49 / 255, 0.5 / 255, 1.5 / 255, 254.5 / 255, 2.0]])
    save(data, tmp_path / "a.png")
    assert np.rint(load(tmp_path / "a.png").data[0, 0].numpy() * 255).tolist() == [0, 0, 0, 1, 2, 255, 255]


def test_default_depths(tmp_path: Path) -> None:
    deep = random_image(3, 1, 4, 4, 16)
    expected = {".png": 16, ".tif": 16, ".webp": 8, ".jpg": 8, ".npy": 16}
    for suffix, depth in expected.items():
        save(deep, tmp_path / f"a{suffix}")
        assert load(tmp_path / f"a{suffix}").bit_depth == depth, suffix
    save(deep.data, tmp_path / "b.png")
    assert load(tmp_path / "b.png").bit_depth == 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.jpg", {"bit_depth": 16}, "bit depth of 8, not 16"),
        ("a.png", {"bit_depth": 32}, "bit depth of 8 or 16"),
        ("a.xyz", {}, "suffix"),
        ("a", {}, "suffix"),
        ("none/a.png", {}, "does not exist"),
        ("folder.png", {}, "is a folder"),
    ],
)
def test_refused_targets(name: str, options: dict[str, int], message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=message):
        save(torch.zeros(3, 2, 2), tmp_path / name, **options)
    assert os.listdir(tmp_path) == ["folder.png"]


def test_refused_samples_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(torch.zeros(1, 2, 2), path)
    before = path.read_bytes()
    for bad in (torch.full((1, 2, 2), torch.nan), torch.zeros(5, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int32)):
        with pytest.raises(ImageError):
            save(bad, path)
    for suffix in (".webp", ".npy"):
        with pytest.raises(ImageError, match="NaN"):
            save(torch.full((1, 2, 2), torch.nan), tmp_path / f"b{suffix}")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_too_wide_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="1 to 16383"):
        save(torch.zeros(1, 1, 16384), tmp_path / "a.webp")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heights=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), depth=st.sampled_from([8, 16]))
def test_bands_of_any_height_make_the_same_file(suffix: str, heights: list[int], depth: int, tmp_path: Path) -> None:
    image = random_image(4, 3, sum(heights), 7, depth)
    path = tmp_path / f"a{suffix}"
    with BandWriter(path, width=7, height=sum(heights), channels=3, bit_depth=depth) as writer:
        for band in torch.split(image.data, heights, dim=1):
            writer.write(band)
    assert torch.equal(load(path).data, image.data)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_band_writer_failures_leave_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rows = torch.zeros(1, 2, 3)

    def writing(rows: list[torch.Tensor], error: Exception | None = None) -> None:
        with BandWriter(path, width=3, height=4, channels=1) as writer:
            for band in rows:
                writer.write(band)
            if error is not None:
                raise error

    with pytest.raises(ImageError, match="2 of 4 rows"):
        writing([rows])
    with pytest.raises(ImageError, match="6 rows for a height of 4"):
        writing([rows] * 3)
    with pytest.raises(ImageError, match=r"must be \(1, h, 3\)"):
        writing([torch.zeros(1, 2, 4)])
    with pytest.raises(ImageError, match="NaN"):
        writing([rows + torch.nan])
    with pytest.raises(FileNotFoundError, match="the caller's own"):
        writing([rows], FileNotFoundError("the caller's own"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(ImageError, match="with statement"):
        BandWriter(path, width=3, height=4, channels=1).write(rows)
    with pytest.raises(ImageError, match="suffix"):
        BandWriter(tmp_path / "a.jpg", width=3, height=4, channels=1)
    with pytest.raises(ImageError, match="channels"):
        BandWriter(path, width=3, height=4, channels=5)


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for suffix in (".png", ".tif", ".jpg", ".npy"):
        with pytest.raises(ImageError, match="No space left"):
            save(torch.zeros(1, 2, 2), tmp_path / f"a{suffix}")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_writing_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, torch\n"
        "from pixfit.images import BandWriter\n"
        "with BandWriter(sys.argv[1], width=64, height=64, channels=3) as writer:\n"
        "    writer.write(torch.rand(3, 32, 64))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "a.png"
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(source)})
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 1  # the temporary file, which shows that writing had begun


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_wide_picture_is_written_in_little_memory(suffix: str, tmp_path: Path) -> None:
    width, height, step = 16384, 512, 16  # 25 MB of samples, bands of 3 MB as floats
    row = torch.linspace(0, 1, width).expand(3, step, width)
    tracemalloc.start()
    try:
        with BandWriter(tmp_path / f"a{suffix}", width=width, height=height, channels=3) as writer:
            for _ in range(0, height, step):
                writer.write(row)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6
    with PillowImage.open(tmp_path / f"a{suffix}") as picture:
        assert picture.size == (width, height)
        corner = picture.crop((width - 1, height - 1, width, height))
        assert corner.getpixel((0, 0)) == (255, 255, 255)
