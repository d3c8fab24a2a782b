"""The published picture sets: where they lie on disk, whether they are what they should be, how to fetch them.

A set lives in ``data_folder()/NAME``, or in any folder given. Pictures may be in any lossless format as long as the
stem is right and the samples are the published ones: their checksum is :attr:`Image.hash`. CIFAR files are checked by
MD5, as their publishers do. Where no checksum is known only the size is checked, and the result says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pixfit.images.image import Image, ImageError
from pixfit.images.read import SUFFIXES, load

__all__ = ["SETS", "DataSet", "FoundSet", "SetFile", "data_folder", "find_set", "load_set"]

_TIMEOUT = 60.0  # seconds without any byte
_BLOCK = 1 << 20


@dataclass(frozen=True)
class SetFile:
    """One file of a set.

    ``checksum`` is ``"pixels:HEX"`` (the hash of the picture as loaded), ``"md5:HEX"`` (of the file), or None where no
    trustworthy one is known; ``size`` is a picture's ``(width, height)``.
    """

    name: str
    url: str
    checksum: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class DataSet:
    """A published set: pictures, or for CIFAR one archive with the files ``members`` in the folder ``inner``."""

    name: str
    title: str
    files: tuple[SetFile, ...]
    inner: str = ""
    members: tuple[SetFile, ...] = ()


@dataclass(frozen=True)
class FoundSet:
    """A set on disk: ``path`` is the folder of its pictures or of its unpacked files, or its archive."""

    data: DataSet
    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def data_folder() -> Path:
    """Where sets are looked for and fetched to: ``$PIXFIT_DATA``, or ``pixfit`` in the user's cache folder."""
    own = os.environ.get("PIXFIT_DATA")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixfit"


def find_set(
    name: str,
    folder: str | Path | None = None,
    *,
    download: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> FoundSet:
    """Find a set on disk and check every file of it; with ``download`` fetch what is missing first.

    Args:
        name: a key of :data:`SETS`.
        folder: where it lies; default ``data_folder()/name``.
        download: fetch missing files over the network, each under a temporary name until it is checked.
        progress: called as ``progress(file name, bytes so far, bytes in all or None)`` while downloading.

    Raises:
        ImageError: no such set; a file missing (the message names its URL and where to put it), damaged, or not
            fetched.
    """
    data = _set_named(name)
    place = Path(folder).expanduser() if folder is not None else data_folder() / name
    unpacked = _unpacked(data, place)
    if unpacked is not None:
        return unpacked
    paths: list[Path] = []
    notes: list[str] = []
    missing = [file for file in data.files if _on_disk(file, place) is None]
    if missing and not download:
        first = missing[0]
        raise ImageError(
            f"the set {name} lacks {len(missing)} of {len(data.files)} files in {place}: "
            f"download it, or put {first.name} there from {first.url}"
        )
    for file in missing:
        _fetch(file, place, progress)
    for file in data.files:
        path = _on_disk(file, place)
        if path is None:
            raise ImageError(f"{place / file.name}: vanished while it was checked")
        _check(path, file)
        paths.append(path)
        if file.checksum is None:
            notes.append(f"{file.name}: no checksum is known, only its size was checked")
    return FoundSet(data, place if not data.inner else paths[0], tuple(paths), tuple(notes))


def load_set(
    name: str,
    folder: str | Path | None = None,
    *,
    download: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Image]:
    """The pictures of a set, in its own order, named by their stems; for sets of picture files only.

    Raises:
        ImageError: as :func:`find_set`; or the set is an archive of arrays (CIFAR), which ``load_labelled`` reads.
    """
    if _set_named(name).inner:
        raise ImageError(f"the set {name} is an archive of arrays, not of picture files; read it with load_labelled")
    found = find_set(name, folder, download=download, progress=progress)
    images = []
    for file, path in zip(found.data.files, found.files, strict=True):
        image = replace(load(path), name=Path(file.name).stem)
        if file.checksum is None:
            image = replace(image, notes=(*image.notes, "no checksum is known, only the size was checked"))
        images.append(image)
    return images


def _set_named(name: str) -> DataSet:
    if name not in SETS:
        raise ImageError(f"no set {name!r}; there are {', '.join(SETS)}")
    return SETS[name]


def _on_disk(file: SetFile, place: Path) -> Path | None:
    suffixes = [""] if file.size is None else ["", *SUFFIXES]
    for suffix in suffixes:
        path = place / file.name
        path = path.with_suffix(suffix) if suffix else path
        if path.is_file():
            return path
    return None


def _unpacked(data: DataSet, place: Path) -> FoundSet | None:
    """A CIFAR archive unpacked by hand, in ``place`` or its inner folder."""
    if not data.inner:
        return None
    for folder in (place / data.inner, place):
        paths = tuple(folder / member.name for member in data.members)
        if all(path.is_file() for path in paths):
            for path, member in zip(paths, data.members, strict=True):
                _check(path, member)
            return FoundSet(data, folder, paths)
    return None


def _check(path: Path, file: SetFile) -> None:
    kind, _, expected = (file.checksum or "").partition(":")
    if kind == "md5":
        actual = _md5(path)
        if actual != expected:
            raise ImageError(f"{path}: MD5 is {actual}, expected {expected}; delete it and fetch it from {file.url}")
        return
    image = load(path)
    if file.size is not None and (image.width, image.height) != file.size:
        raise ImageError(f"{path}: is {image.width}x{image.height}, expected {file.size[0]}x{file.size[1]}")
    if kind == "pixels" and image.hash != expected:
        raise ImageError(f"{path}: its samples are not the published ones; fetch it from {file.url}")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what the publishers give; it guards against damage, not malice
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(file: SetFile, place: Path, progress: Callable[[str, int, int | None], None] | None) -> None:
    temporary = place / f".pixfit-{secrets.token_hex(8)}{Path(file.name).suffix}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(file.url, headers={"User-Agent": "pixfit"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, temporary.open("xb") as stream:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            done = 0
            while block := answer.read(_BLOCK):
                stream.write(block)
                done += len(block)
                if progress is not None:
                    progress(file.name, done, total)
            if total is not None and done != total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            _check(temporary, file)
        except ImageError as error:
            raise OSError(
                f"what came is not the published file: {str(error).replace(str(temporary), file.name)}"
            ) from error
        os.replace(temporary, place / file.name)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise ImageError(
            f"could not download {file.name} ({reason}); put it into {place} by hand from {file.url}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _kodak() -> DataSet:
    portrait = {4, 9, 10, 17, 18, 19}
    pixels = {
        1: "cf34063cf6e776b95759ff77f36ae0633772d5344099f3abb83fe4b53e3e4262",
        3: "41fab6c997c44ed98588af31e5b0a9aa30f543acf362d1277860d7ca8e1b638f",
        5: "e44917fcab8f5ecd0972542215b641758c9b086ac10d744363969cc3a15169ea",
        7: "a187b2aad2b279e713dd4a34628585d9103fb4390a3bc821dc941df5d95e167d",
        9: "664f592b06d9604a5a8b199668a253efa0db5f9bb1562b4d78431f11a590576e",
        11: "fd22fee244481946dda2362046df6d96086fa8e53f255c3295cd8d2fd29e4d97",
        13: "cf18f632975cdb3bbe54bef3a6695c431aac0e0c7866c0b3b4d4c6697aaf11df",
        15: "e1de3a2c1e2f8a2f7c1411155ae736286c9841639f993ed58dbcbb7d06f7bf29",
        17: "6f6fdf3cb11f46d72977367232c741c1b5c0e026b56b73591eb077e771b45ab6",
        19: "a03b87f68453f7a13f5b7aac50ac9a9fa53728a36e874e51c0cb0496bd2a81a9",
        21: "aa9df406a3320596169c3ad21f8fd540bc690068098fbe37070eb69ac2545a0f",
        23: "2949ec9c413f7ad4f483a96cbbdd538757ea610926819be99215cfbcabaaa9d4",
    }
    files = tuple(
        SetFile(
            f"kodim{number:02d}.png",
            f"https://r0k.us/graphics/kodak/kodak/kodim{number:02d}.png",
            f"pixels:{pixels[number]}" if number in pixels else None,
            (512, 768) if number in portrait else (768, 512),
        )
        for number in range(1, 25)
    )
    return DataSet("kodak", "Kodak Lossless True Color Image Suite, 24 pictures of 768x512", files)


_COLLECTION = (
    "https://raw.githubusercontent.com/majedelhelou/denoising_datasets/d3636716c8e3fb806f4395bbb3f2e4c0fde50700"
)


def _collected(name: str, folder: str, title: str, pictures: dict[str, tuple[int, int, str | None]]) -> DataSet:
    files = tuple(
        SetFile(
            f"{stem}.png", f"{_COLLECTION}/{folder}/{stem}.png", f"pixels:{pixels}" if pixels else None, (width, height)
        )
        for stem, (width, height, pixels) in pictures.items()
    )
    return DataSet(name, title, files)


def _cifar(name: str, title: str, archive: SetFile, inner: str, test_md5: str) -> DataSet:
    # ciFAIR's five training files are CIFAR-10's, unchanged
    md5 = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": test_md5,
    }
    members = tuple(SetFile(member, archive.url, f"md5:{value}") for member, value in md5.items())
    return DataSet(name, title, (archive,), inner, members)


SETS: dict[str, DataSet] = {
    "kodak": _kodak(),
    "set5": _collected(
        "set5",
        "Set5",
        "Set5 (Bevilacqua et al., 2012), 5 pictures",
        {
            "baby": (512, 512, "3cbd25ded80fc1fe08a5cd3d78a22e536a9a3d69c1b252d80c16a650bae3f4a6"),
            "bird": (288, 288, "ed0824a71244af473f291f2d5fb0edf3d5fd2f56e9192c3dd3b7e3eaa93ee93a"),
            "butterfly": (256, 256, "dc9e0c56309f76718dd7aa137060d93cd49d63f1120bc6a2123be360b12d8c42"),
            "head": (280, 280, "cc5e1332720fe1fff81d8b3330ffcdf081658d04524282bea2ee633fe6c1116c"),
            "woman": (228, 344, "2ddb8645d804b664c5da474c75c0668ce4f7a962a67463d7cf77e3bdafca0ce9"),
        },
    ),
    "set14": _collected(
        "set14",
        "Set14",
        "Set14 (Zeyde et al., 2010), 14 pictures",
        {
            "baboon": (500, 480, "b2dfbadfafdbdf5c60d963d75004ecefadbd64ecac261b6638e5783161f4881f"),
            "barbara": (720, 576, "a923665a26a5d7fa4187f5bb23ff0b138ed2293fd167e2e8a808e793ef8eb2f7"),
            "bridge": (512, 512, None),
            "coastguard": (352, 288, None),
            "comic": (250, 361, None),
            "face": (276, 276, "eff2f3f117960e902309feec9b6ac94275797c50e342951e9bb712ab4c80156e"),
            "flowers": (500, 362, None),
            "foreman": (352, 288, None),
            "lenna": (512, 512, "5e5d132bb379e17a8b5bc83195619dc0553d41437afcf054fd32e5b3575c77a0"),
            "man": (512, 512, None),
            "monarch": (768, 512, None),
            "pepper": (512, 512, "4b26cb02c07bd42b4295babb21ad7b9c4339f05f826eecb05f8307f09a54d7d8"),
            "ppt3": (529, 656, "6ce6acdc9213a272632934488f04c13a6773e0a0d86ac27de15ad60350b1716e"),
            "zebra": (586, 391, "64adeb2b502d4b4f8a047d5a13b9a5e19859b9014601e7a3c7154e6349a640b5"),
        },
    ),
    "cifar10": _cifar(
        "cifar10",
        "CIFAR-10 (Krizhevsky, 2009), 60000 pictures of 32x32",
        SetFile(
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
        ),
        "cifar-10-batches-py",
        "40351d587109b95175f43aff81a1287e",
    ),
    "cifair10": _cifar(
        "cifair10",
        "ciFAIR-10 (Barz and Denzler, 2020): CIFAR-10 without near-duplicates in the test set",
        SetFile(
            "ciFAIR-10.zip",
            "https://github.com/cvjena/cifair/releases/download/v1.0/ciFAIR-10.zip",
            "md5:ca08fd390f0839693d3fc45c4e49585f",
        ),
        "ciFAIR-10",
        "01290e6b622a1977a000eff13650aca2",
    ),
}
