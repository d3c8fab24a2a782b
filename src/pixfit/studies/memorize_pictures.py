"""The pictures of the study of memories: small ones to learn, and large ones to compare with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F

from pixfit import images
from pixfit.images import Image, ImageError
from pixfit.studies.memorize_upsampling import resized
from pixfit.studies.study import StudyError

__all__ = ["Pictures", "doubled", "load", "without_alpha"]

_ICONS = "exercise_multi_image"
_CROPS = (
    ("astronaut", 0, 180), ("astronaut", 150, 40), ("coffee", 60, 220), ("coffee", 200, 300), ("chelsea", 90, 120),
    ("rocket", 240, 280),
)  # fmt: skip
_SIDE, _SMALLER = 64, 4  # side of a bundled crop in pixels, and what its small picture is smaller by


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the study is about.

    Args:
        small: pictures to be memorised.
        large: the same pictures in more pixels, in the same order; empty where they are not known.
    """

    small: tuple[Image, ...]
    large: tuple[Image, ...]


def load(source: str, large: str, alpha: str, count: int | None) -> Pictures:
    """The pictures that a study's settings name.

    Args:
        source: ``icons``: the data folder's ``exercise_multi_image/48`` and ``/256``; ``bundled``: crops of bundled
            pictures, whose small versions are means over 4 × 4 pixels; or a folder of small pictures.
        large: with a folder, the one of the large pictures, which pair with the small ones in the order of file
            names; empty: there are none.
        alpha: policy for the small ones. The large ones are always composited on white.
        count: so many, from the first; None: all.

    Raises:
        StudyError: folders that are missing or do not pair, fewer pictures than asked for, or unequal channels.
    """
    if source in ("icons", "bundled") and large:
        raise StudyError(f"large is {large!r}, but {source} has large pictures of its own; name a folder in images")
    if source == "bundled":
        found = _crops()
    else:
        large = str(_icons("256")) if source == "icons" else large
        try:
            little = images.load_folder(_folder(source), alpha=alpha)
            big = images.load_folder(large) if large else []
        except ImageError as error:
            raise StudyError(
                f"{error}; name a folder with -s images=FOLDER (and -s large=FOLDER), set PIXFIT_DATA to the folder "
                f"that has {_ICONS}, or take -s images=bundled"
            ) from None
        found = Pictures(tuple(little), tuple(big))
    if count is not None and count > len(found.small):
        raise StudyError(f"count is {count}, but there are {len(found.small)} pictures; lower count")
    if found.large:
        _check_pairs(found)
    channels = {picture.channels for picture in (*found.small, *found.large)}
    if len(channels) > 1:
        raise StudyError(f"the pictures have {sorted(channels)} channels; grey pictures and those in colour do not mix")
    return Pictures(found.small[:count], found.large[:count])


def without_alpha(source: str, found: Pictures) -> Pictures:
    """The pictures that were loaded from a source, with the stored colours of the small ones and not their alpha."""
    if source == "bundled":
        return found
    return replace(found, small=tuple(images.load_folder(_folder(source), alpha="drop")[: len(found.small)]))


def _folder(source: str) -> Path:
    return _icons("48") if source == "icons" else Path(source)


def _icons(side: str) -> Path:
    return images.data_folder() / _ICONS / side


def _check_pairs(found: Pictures) -> None:
    if len(found.small) != len(found.large):
        raise StudyError(
            f"there are {len(found.small)} small and {len(found.large)} large pictures; they pair in the order of "
            "their file names, so that both folders need one number of pictures"
        )
    for small, large in zip(found.small, found.large, strict=True):
        tall, wide = large.height / small.height, large.width / small.width
        if min(tall, wide) < 1 or abs(tall - wide) > max(tall / small.height, wide / small.width):
            raise StudyError(
                f"{large.name} has {large.width}×{large.height} pixels and pairs with {small.name} of "
                f"{small.width}×{small.height}, in the order of file names; a large picture has the shape of its small "
                "one"
            )


def _crops() -> Pictures:
    large, small = [], []
    for name, top, left in _CROPS:
        data = images.load(name).data[:3, top : top + _SIDE, left : left + _SIDE].contiguous()
        large.append(Image(data, name=f"{name} {top},{left}"))
        small.append(Image(F.avg_pool2d(data[None], _SMALLER)[0], name=f"{name} {top},{left}", bit_depth=32))
    return Pictures(tuple(small), tuple(large))


def doubled(pictures: tuple[Image, ...]) -> list[Image]:
    """The pictures with twice the rows and columns, by Lanczos: what a network is shown between pixels, too."""
    return [
        replace(one, data=resized(one.data, (2 * one.height, 2 * one.width), "lanczos").clamp(0, 1), bit_depth=32)
        for one in pictures
    ]
