"""What a memory shows between two of its pictures, and which of them are alike to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pixfit import files, images, paths, plots, similarity
from pixfit.embedding import Layer
from pixfit.modelfile import Network
from pixfit.paths import Space
from pixfit.similarity import Measure

__all__ = ["Neighbours", "Walk", "check_drawable", "draw", "neighbours", "walk"]

_PER_SECOND = 10.0  # frames of an animation
_LONGEST_GIF = 65535  # pixels along a side


@dataclass(frozen=True, eq=False)
class Walk:
    """A path between two pictures of a memory.

    Args:
        space: what was blended, see `pixfit.paths.blend`.
        pictures: (T, C, H, W), not clamped.
        from_alpha: (T,), see `pixfit.paths.from_alpha`; the ends are those of the control.
        smoothness: see `pixfit.paths.smoothness`; None of a path of two pictures.
    """

    space: Space
    pictures: Tensor
    from_alpha: Tensor
    smoothness: float | None

    @property
    def farthest(self) -> float:
        """The largest distance from alpha blending."""
        return float(self.from_alpha.max())


def walk(
    network: Network, a: int | str, b: int | str, space: Space, *, steps: int = 10, size: tuple[int, int] | None = None
) -> Walk:
    """A path and its numbers. Arguments and errors are those of `pixfit.paths.blend`."""
    pictures = paths.blend(network, a, b, space, steps=steps, size=size)
    control = pictures if space == "pixels" else paths.blend(network, a, b, "pixels", steps=2, size=size)
    away = paths.from_alpha(pictures, control[0], control[-1])
    return Walk(space, pictures, away, paths.smoothness(pictures) if steps > 2 else None)


def check_drawable(path: str | Path, *, width: int = 1, height: int = 1) -> None:
    """Raises ValueError now where `draw` would after the work: a wrong suffix or folder, or too large a side."""
    path = Path(path)
    if path.suffix.lower() != ".gif":
        images.check_writable(path, width=width, height=height)
    elif path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: {'this is a folder' if path.is_dir() else 'its folder does not exist'}; name a file")
    elif max(width, height) > _LONGEST_GIF:
        raise ValueError(f"{path}: a GIF holds sides of up to {_LONGEST_GIF} pixels, got {width}x{height}")


def draw(walks: Sequence[Walk], path: str | Path) -> tuple[int, int]:
    """Writes paths as a picture, and returns its width and height.

    One path is a row of pictures; several are rows below one another, each with a line on it. With the suffix ``.gif``
    or ``.webp`` it is an animation, in which several paths go side by side; the last frame stays for two seconds.

    Raises:
        ValueError: no path, or a file that cannot be written under this name.
    """
    path = Path(path)
    shown = [walk.pictures.clamp(0, 1) for walk in walks]
    if path.suffix.lower() in (".gif", ".webp"):
        if len(shown) == 1:
            frames = list(shown[0])
        else:
            frames = [images.contact_sheet(parts, columns=len(parts)) for parts in zip(*shown, strict=True)]
        check_drawable(path, width=frames[0].shape[2], height=frames[0].shape[1])
        colour = [_rgb(frame) for frame in frames]
        gif = path.suffix.lower() == ".gif"
        film = plots.film(colour, per_second=_PER_SECOND, kind="gif" if gif else "webp", lossless=True)
        files.write_bytes(path, film)
        return frames[0].shape[2], frames[0].shape[1]
    strips = [images.contact_sheet(list(pictures), columns=len(pictures)) for pictures in shown]
    if len(walks) > 1:
        strips = [plots.captioned(strip, _line(walk), above=True) for walk, strip in zip(walks, strips, strict=True)]
    sheet = torch.cat(strips, dim=1)
    images.save(sheet, path)
    return sheet.shape[2], sheet.shape[1]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """How alike the pictures of a memory are by one measure.

    Args:
        names: of the pictures; their numbers where names are not known.
        measure: see `pixfit.similarity.matrix`.
        matrix: (N, N), a larger one is more alike.
        count: of the greedy pairs.
    """

    names: tuple[str, ...]
    measure: Measure
    matrix: Tensor
    count: int = 3

    @cached_property
    def most(self) -> list[tuple[int, int]]:
        """The most similar pairs of distinct pictures."""
        return similarity.greedy_pairs(self.matrix, True, self.count)

    @cached_property
    def least(self) -> list[tuple[int, int]]:
        """The least similar pairs of distinct pictures."""
        return similarity.greedy_pairs(self.matrix, False, self.count)

    @cached_property
    def published_most(self) -> list[tuple[int, int]]:
        """The most similar pairs by the published rule."""
        return similarity.published_pairs(self.matrix, True)

    @cached_property
    def published_least(self) -> list[tuple[int, int]]:
        """The least similar pairs by the published rule."""
        return similarity.published_pairs(self.matrix, False)

    @property
    def pairs(self) -> Tensor:
        """The measure's own values of all pairs i < j; Euclidean distances are positive here."""
        rows, columns = torch.triu_indices(len(self.matrix), len(self.matrix), offset=1)
        return self.value(self.matrix[rows, columns])

    def value(self, similarity: Tensor) -> Tensor:
        """Entries of the matrix as people know the measure: a Euclidean distance without its minus."""
        return similarity.abs() if self.measure == "euclidean" else similarity

    def drawn(self) -> bytes:
        """The matrix as a PNG file, the diagonal left white."""
        values = self.value(self.matrix).clone().fill_diagonal_(torch.nan)
        label = "distance" if self.measure == "euclidean" else self.measure
        return plots.png(plots.pair_matrix(values.numpy(), self.names, title="All pairs of pictures", label=label))


def neighbours(
    network: Network,
    measures: Sequence[Measure] = similarity.MEASURES,
    *,
    pooled: bool = False,
    layer: Layer = "last",
    size: tuple[int, int] | None = None,
    count: int = 3,
) -> list[Neighbours]:
    """How alike the pictures of a memory are, by each measure. Copies of pictures are left out.

    Args:
        network: a memory of at least two pictures.
        pooled, layer, size: of the embeddings, see `pixfit.similarity.embeddings`.
        count: of the greedy pairs.

    Raises:
        ValueError: a memory of one picture, or as of `pixfit.similarity.embeddings`.
    """
    pictures = network.originals
    if pictures < 2:
        raise ValueError("this memory holds one picture, which has no neighbours")
    names = network.names[:pictures] or tuple(map(str, range(pictures)))
    found = similarity.embeddings(network, layer=layer, pooled=pooled, size=size)
    return [Neighbours(names, measure, similarity.matrix(found, measure), count) for measure in measures]


def _line(walk: Walk) -> str:
    smooth = "" if walk.smoothness is None else f", second differences {walk.smoothness:.4f}"
    return f"{walk.space}: up to {walk.farthest:.4f} from alpha blending{smooth}"


def _rgb(picture: Tensor) -> Tensor:
    return picture[:1].expand(3, -1, -1) if picture.shape[0] < 3 else picture[:3]
