"""The figures and films of the study of memories that show the pictures themselves, or what networks make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from pixfit import render
from pixfit.modelfile import Network
from pixfit.problem import Gallery
from pixfit.studies.memorize_designs import HYPER
from pixfit.studies.memorize_figures import film, strips
from pixfit.studies.memorize_pictures import Pictures
from pixfit.studies.memorize_scores import enlarged, one_of, routes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawings", "Find", "drawings"]

_ACROSS = 8  # pictures in a row
_PAIRS = 3  # of pictures, between which paths are drawn
_CODED = ("binary", "axis", "axis-25", "ring", "learned", "bottleneck")
"""Designs that differ in what is blended between two pictures, beside hypernetworks."""

Find = Callable[[str, int | None], Network | None]
"""The network of a design at a step, None: its last; None where it was not kept."""


@dataclass(frozen=True)
class Drawings:
    """Figures, and films as the bytes of WebP files, by file name; made when called."""

    figures: Mapping[str, Callable[[], Figure]]
    films: Mapping[str, Callable[[], bytes]]


def drawings(
    find: Find, pictures: Mapping[str, Pictures], chosen: Sequence[int], pairs: Sequence[tuple[int, int]],
    published: Gallery | None, steps: Mapping[str, int],
) -> Drawings:  # fmt: skip
    """All that may be drawn of finished fits.

    Args:
        find: their networks.
        pictures: by design what it memorised, of the finished ones.
        chosen: numbers of the pictures that are shown.
        pairs: of pictures, between which paths are shown.
        published: what the published training was fitted to; None where that is not finished.
        steps: of that training, by what they are called, whose pictures are shown.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    films: dict[str, Callable[[], bytes]] = {}
    chosen = chosen[:_ACROSS]
    if published is not None:
        rows = partial(_epochs, find, published, chosen, {**steps, "at the end": None})
        figures["published_epochs"] = lambda: strips("The published training", rows())
    compared = {name: found for name, found in pictures.items() if name in HYPER or name in _CODED}
    if compared and pairs:
        for number, pair in enumerate(pairs[:_PAIRS]):
            figures[f"between_{number}"] = partial(_between, find, compared, pair)
        films["between"] = lambda: film(_routes(find, compared, pairs[0]))
    if any(found.large for found in pictures.values()):
        figures["larger"] = partial(_larger, find, pictures, chosen)
    return Drawings(figures, films)


def _epochs(
    find: Find, gallery: Gallery, chosen: Sequence[int], steps: Mapping[str, int | None]
) -> Iterator[tuple[str, list[Tensor]]]:
    """True and masked pictures, held-out pixels in black, and what the network shows at some steps."""
    assert gallery.view.held_out is not None
    true, masked = gallery.split(gallery.image.data), gallery.split(gallery.image.data * ~gallery.view.held_out)
    yield "true", [true[i] for i in chosen]
    yield "masked", [masked[i] for i in chosen]
    for name, step in steps.items():
        if (network := find("published", step)) is not None:
            yield name, [render.render(network.one(i)) for i in chosen]


def _between(find: Find, pictures: Mapping[str, Pictures], pair: tuple[int, int]) -> Figure:
    return strips("Between two pictures", _routes(find, pictures, pair))


def _routes(
    find: Find, pictures: Mapping[str, Pictures], pair: tuple[int, int]
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """The paths (T, C, H, W) in every space of every design; of pixels and hidden layers only the first design's, since
    those of all others look like it."""
    seen: set[str] = set()
    for name, found in pictures.items():
        if (network := find(name, None)) is None:
            continue
        for space, path in routes(network, found.small, *pair):
            if space not in seen or space not in ("pixels", "hidden"):
                seen.add(space)
                yield f"{name}: {space}", path


def _larger(find: Find, pictures: Mapping[str, Pictures], chosen: Sequence[int]) -> Figure:
    """Rows of the large pictures, the small ones, and what each network shows in the size of the large ones."""
    found = [*pictures.values()][-1]
    rows = [
        ("true, large", [found.large[i].data for i in chosen]), ("true, small", [found.small[i].data for i in chosen]),
    ]  # fmt: skip
    for name, own in pictures.items():
        if (network := find(name, None)) is not None:
            rows.append((name, enlarged(partial(one_of, network, own.small), own, chosen, "edges")))
    return strips("Up-sampled", rows)
