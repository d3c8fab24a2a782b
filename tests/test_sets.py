"""Published sets: found, checked, fetched; damage and a missing network are one clear line."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from pixfit.images import SETS, DataSet, ImageError, SetFile, data_folder, find_set, load, load_set

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test pictures are not there")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of two pictures "published" at file: addresses; only the first has a checksum."""
    origin = tmp_path / "origin"
    origin.mkdir()
    files = []
    for k, name in enumerate(("a.png", "b.png")):
        PillowImage.fromarray(np.full((4, 5), 50 * k, np.uint8)).save(origin / name)
        checksum = f"pixels:{load(origin / name).hash}" if k == 0 else None
        files.append(SetFile(name, (origin / name).as_uri(), checksum, (5, 4)))
    monkeypatch.setitem(SETS, "small", DataSet("small", "two pictures", tuple(files)))
    return origin


@pytest.fixture
def small_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    archive = tmp_path / "arrays.zip"
    archive.write_bytes(b"archive")
    md5 = hashlib.md5(b"archive", usedforsecurity=False).hexdigest()
    member = hashlib.md5(b"member", usedforsecurity=False).hexdigest()
    file = SetFile(archive.name, archive.as_uri(), f"md5:{md5}")
    members = (SetFile("test_batch", file.url, f"md5:{member}"),)
    monkeypatch.setitem(SETS, "arrays", DataSet("arrays", "arrays", (file,), "inner", members))
    return archive


def test_download_checks_and_reports(small_set: Path, own_cache: Path) -> None:
    with pytest.raises(ImageError, match="lacks 2 of 2 files"):
        find_set("small")
    seen: list[tuple[str, int, int | None]] = []
    found = find_set("small", download=True, progress=lambda *report: seen.append(report))
    assert found.path == own_cache / "small"
    assert sorted(os.listdir(found.path)) == ["a.png", "b.png"]
    assert found.notes == ("b.png: no checksum is known, only its size was checked",)
    assert [name for name, *_ in seen] == ["a.png", "b.png"]
    assert all(done == total for _, done, total in seen)
    shutil.rmtree(small_set)
    loaded = load_set("small")  # from disk now
    assert [image.name for image in loaded] == ["a", "b"]
    assert loaded[1].notes == ("no checksum is known, only the size was checked",)


def test_wrong_download_is_not_kept(small_set: Path, own_cache: Path) -> None:
    PillowImage.new("L", (5, 4), 9).save(small_set / "a.png")
    with pytest.raises(ImageError, match=r"could not download a\.png .*not the published.* by hand from file:"):
        find_set("small", download=True)
    PillowImage.new("L", (6, 4), 9).save(small_set / "a.png")
    with pytest.raises(ImageError, match="is 6x4, expected 5x4"):
        find_set("small", download=True)
    (small_set / "a.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ImageError, match="could not download"):
        find_set("small", download=True)
    assert os.listdir(own_cache / "small") == []


def test_folder_by_hand_in_another_format(small_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a", "b"):
        PillowImage.open(small_set / f"{name}.png").save(folder / f"{name}.bmp")
    assert find_set("small", folder).files == (folder / "a.bmp", folder / "b.bmp")
    PillowImage.new("L", (5, 4), 200).save(folder / "a.bmp")
    with pytest.raises(ImageError, match="not the published ones"):
        find_set("small", folder)


def test_no_network_names_file_address_and_folder(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def offline(*args: object, **options: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for name, data in SETS.items():
        with pytest.raises(ImageError) as caught:
            find_set(name, download=True)
        text = str(caught.value)
        for part in (data.files[0].name, data.files[0].url, str(own_cache / name), "name resolution"):
            assert part in text
        assert "\n" not in text


def test_archive_and_unpacked_folder(small_archive: Path, own_cache: Path) -> None:
    found = find_set("arrays", download=True)
    assert found.path == own_cache / "arrays" / "arrays.zip"
    found.path.write_bytes(b"damaged")
    with pytest.raises(ImageError, match="MD5 is"):
        find_set("arrays")
    inner = own_cache / "arrays" / "inner"
    inner.mkdir()
    (inner / "test_batch").write_bytes(b"member")
    assert find_set("arrays").path == inner
    assert find_set("arrays", inner).path == inner
    (inner / "test_batch").write_bytes(b"membre")
    with pytest.raises(ImageError, match="MD5 is"):
        find_set("arrays")
    with pytest.raises(ImageError, match="archive of arrays"):
        load_set("arrays")


def test_unknown_set_and_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(ImageError, match="no set 'kodac'; there are kodak"):
        find_set("kodac")
    assert data_folder() == own_cache
    monkeypatch.delenv("PIXFIT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "pixfit"


def test_every_set_is_well_formed() -> None:
    for name, data in SETS.items():
        assert data.name == name
        assert len({file.name for file in data.files}) == len(data.files)
        for file in (*data.files, *data.members):
            assert file.url.startswith("https://")
            assert file.checksum is not None or file.size is not None
            kind, _, value = (file.checksum or "none:").partition(":")
            assert len(value) == {"pixels": 64, "md5": 32, "none": 0}[kind]
            assert dataclasses.replace(file) == file
    assert {name: len(data.files) for name, data in SETS.items() if not data.inner} == {
        "kodak": 24,
        "set5": 5,
        "set14": 14,
    }


@needs_data
def test_set5_on_disk_is_the_published_one() -> None:
    found = find_set("set5", DATA / "set5")
    assert found.notes == ()
    assert [image.name for image in load_set("set5", DATA / "set5")] == ["baby", "bird", "butterfly", "head", "woman"]


@needs_data
@pytest.mark.parametrize("name", ["kodak", "set14"])
def test_known_checksums_hold(name: str) -> None:
    checked = 0
    for file in SETS[name].files:
        path = DATA / name / file.name
        if path.is_file():
            image = load(path)
            assert f"pixels:{image.hash}" == file.checksum
            assert (image.width, image.height) == file.size
            checked += 1
    assert checked >= 7
