"""The pictures of the climb: from a folder, by the beginnings of their names, or bundled ones; cut to a square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pixfit import images
from pixfit.images import BUNDLED, Image
from pixfit.studies.study import StudyError

__all__ = ["load"]


def load(source: str, names: Sequence[str], side: int | None) -> dict[str, Image]:
    """The pictures by name, in the order that was asked for.

    Args:
        source: ``bundled``, ``hires768`` (the folder of this name in the data folder), or a folder.
        names: see `pixfit.studies.ClimbStudy`; ``("all",)`` for all there are.
        side: of the square that is cut from the middle; None: whole.

    Raises:
        StudyError: no such folder or picture, or one that is smaller than the square.
        ImageError: a picture that cannot be read.
    """
    found = _bundled(names) if source == "bundled" else _of_folder(_folder(source), names)
    every = [image.name for image in found]
    if twice := [name for name in every if every.count(name) > 1]:
        raise StudyError(f"two pictures are called {twice[0]!r}; rename one, or change pictures")
    return {image.name: _middle(image, side) for image in found}


def _folder(source: str) -> Path:
    folder = images.data_folder() / "hires768" if source == "hires768" else Path(source).expanduser()
    if not folder.is_dir():
        raise StudyError(
            f"the pictures of the climb are not part of pixfit, and there is no folder {folder}; set PIXFIT_DATA to "
            "the folder that has hires768, name another one with -s images=FOLDER, or take -s images=bundled "
            "-s pictures=astronaut,chelsea,coffee"
        )
    return folder


def _bundled(names: Sequence[str]) -> list[Image]:
    wrong = [name for name in names if name not in BUNDLED]
    if wrong and tuple(names) != ("all",):
        raise StudyError(f"no bundled picture is called {wrong[0]!r}; there are {', '.join(BUNDLED)}")
    return [images.load(name) for name in (BUNDLED if tuple(names) == ("all",) else names)]


def _of_folder(folder: Path, names: Sequence[str]) -> list[Image]:
    """The pictures of a folder that are called so, or so with more behind an underscore; under these names."""
    every = images.load_folder(folder)
    if tuple(names) == ("all",):
        return every
    found = []
    for name in names:
        alike = [image for image in every if image.name == name] or [
            image for image in every if image.name.startswith(f"{name}_")
        ]
        if len(alike) != 1:
            there = ", ".join(image.name for image in alike or every)
            count = "several pictures are" if alike else "no picture is"
            raise StudyError(f"{count} called {name!r} in {folder}; there are {there}; change pictures, or take all")
        found.append(replace(alike[0], name=name))
    return found


def _middle(image: Image, side: int | None) -> Image:
    """The square of this side in the middle of the picture."""
    if side is None:
        return image
    if min(image.height, image.width) < side:
        raise StudyError(f"side is {side}, but {image.name} has {image.width}×{image.height} pixels; lower side")
    top, left = (image.height - side) // 2, (image.width - side) // 2
    return replace(image, data=image.data[:, top : top + side, left : left + side].contiguous())
