"""The pictures of the study of restoration: the classic ones, bundled ones, or a folder; whole, or the part of each
that a fixed rule takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F

from pixfit import images
from pixfit.images import BUNDLED, Image
from pixfit.studies.study import StudyError

__all__ = ["FOLDERS", "crop", "load"]

FOLDERS = (
    "set5", "set14", "denoising_color", "kodak", "dip/denoising", "dip/inpainting", "dip/sr", "dip/restoration",
)  # fmt: skip
"""Of the data folder, where classic pictures are looked for, in this order."""

_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp", ".bmp")
_WHOLE = 32  # whole pictures lose what is beyond a multiple of this, as published


def load(source: str, names: Sequence[str], side: int | None) -> dict[str, Image]:
    """Those of the pictures that are there, by name, in the order that was asked for.

    Args:
        source: ``classic``: the data folder's `FOLDERS`; ``bundled``; or a folder.
        names: file names without suffix.
        side: see `crop`; None: whole but for the rows and columns beyond a multiple of 32, lost on both sides.

    Raises:
        StudyError: none of them is there, or one is smaller than the part.
        ImageError: a picture that cannot be read.
    """
    found = {}
    for name in names:
        path = name if source == "bundled" and name in BUNDLED else _path(source, name)
        if path is not None:
            image = replace(images.load(path, alpha="drop"), name=name)
            found[name] = _whole(image) if side is None else crop(image, side)
    if not found:
        where = images.data_folder() if source == "classic" else source
        raise StudyError(
            f"none of the pictures {', '.join(names)} is in {where}; set PIXFIT_DATA to the folder that has "
            f"{', '.join(FOLDERS[:4])}, or take -s images=bundled -s pictures=astronaut,coffee"
        )
    return found


def crop(image: Image, side: int) -> Image:
    """The part of ``side`` by ``side`` pixels at the 80th percentile of gradient energy.

    Of all parts whose corner lies on every eighth row and column: the energy is the mean of the squared differences to
    the next row and to the next column of the mean of the colour channels. The part nearest to the 80th percentile
    (linear interpolation) of all is taken, the first in reading order of equals.

    Raises:
        StudyError: a picture that is smaller.
    """
    if min(image.height, image.width) < side:
        raise StudyError(f"side is {side}, but {image.name} has {image.width}×{image.height} pixels; lower side")
    grey = image.data.double().mean(dim=0)
    down, right = (grey[1:, :-1] - grey[:-1, :-1]).square(), (grey[:-1, 1:] - grey[:-1, :-1]).square()
    energies = F.avg_pool2d((down + right)[None], side - 1, stride=8)[0]
    place = int((energies - energies.flatten().quantile(0.8)).abs().argmin())
    top, left = (8 * step for step in divmod(place, energies.shape[1]))
    return replace(image, data=image.data[:, top : top + side, left : left + side].contiguous())


def _path(source: str, name: str) -> Path | None:
    if source == "bundled":
        return None
    places = [images.data_folder() / folder for folder in FOLDERS] if source == "classic" else [Path(source)]
    paths = (place.expanduser() / f"{name}{suffix}" for place in places for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _whole(image: Image) -> Image:
    height, width = (side - side % _WHOLE for side in (image.height, image.width))
    if not height or not width:
        raise StudyError(f"{image.name} has {image.width}×{image.height} pixels; a side must have {_WHOLE} or more")
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return replace(image, data=image.data[:, top : top + height, left : left + width].contiguous())
