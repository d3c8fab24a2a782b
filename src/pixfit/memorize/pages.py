"""How well a memory holds its pictures: scores of each, and pages of pictures and curves from its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pixfit import files, images, metrics, plots
from pixfit.memorize.recipes import steps_per_epoch
from pixfit.modelfile import Network
from pixfit.problem import Gallery
from pixfit.render import render
from pixfit.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Scores", "scores", "write_pages"]

_SHOWN = 8  # pictures of a page
_SIDE = 96  # pixels that the sides of small pictures are enlarged to, about
_GREY = 0.5  # of pixels that are held out
_FITTED, _HELD_OUT = plots.Style("in the loss", "#8a919c"), plots.Style("held out", "#3b6fb6")


@dataclass(frozen=True)
class Scores:
    """PSNR in dB of each picture, clamped to [0, 1]: of the pixels in the loss, of those held out (NaN where none is),
    and of all. Infinite where the pixels are equal. Copies of pictures have none."""

    names: tuple[str, ...]
    fitted: tuple[float, ...]
    held_out: tuple[float, ...]
    whole: tuple[float, ...]

    def order(self) -> list[int]:
        """The pictures from the worst to the best, by held-out pixels where all pictures have some."""
        levels = self.whole if any(map(math.isnan, self.held_out)) else self.held_out
        return sorted(range(len(levels)), key=levels.__getitem__)


def scores(result: Result) -> Scores:
    """Of a finished fit of a gallery. Raises ValueError where it has no picture, or was read from a file."""
    gallery = _gallery(result)
    held_out = gallery.view.held_out
    masks = [None] * len(gallery.sizes) if held_out is None else gallery.split(held_out)
    levels: list[tuple[float, float, float]] = []
    parts = list(zip(result.pictures, gallery.split(gallery.image.data), masks, strict=True))
    for shown, truth, mask in parts[: gallery.originals]:
        errors = (shown.double().clamp(0, 1) - truth.double()).square().mean(dim=0)
        kept = torch.zeros_like(errors, dtype=torch.bool) if mask is None else mask[0]
        levels.append((_level(errors[~kept]), _level(errors[kept]), _level(errors)))
    fitted, apart, whole = zip(*levels, strict=True)
    return Scores(gallery.names[: gallery.originals], fitted, apart, whole)


def write_pages(result: Result, folder: str | Path, *, shown: int = _SHOWN) -> list[Path]:
    """Pictures and curves of a finished fit of a gallery, as PNG files.

    ``step-….png`` for each step whose weights were kept, and ``answer.png`` for the answer: a row of what the network
    shows, one of what it was fitted to, held-out pixels in grey, and one of the true pictures. ``curves.png``: the mean
    loss of each epoch, and the loss on held-out pixels.

    Args:
        folder: is made where it does not exist.
        shown: pictures of a page, evenly spaced among those that are no copies.

    Raises:
        ValueError: as of `scores`.
        OSError: a folder that cannot be made or written.
    """
    gallery, folder = _gallery(result), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, gallery.originals - 1, min(shown, gallery.originals)).round().astype(int).tolist()
    per_epoch = steps_per_epoch(result.spec)
    written = []
    for step, weights in sorted(result.kept.items()):
        network = Network(result.spec.model, weights, result.spec.plain)
        pictures = [render(network.one(number)) for number in chosen]
        written.append(folder / f"step-{step:06d}.png")
        images.save(_page(gallery, chosen, pictures, f"epoch {step / per_epoch:.4g}"), written[-1])
    written.append(folder / "answer.png")
    pictures = [result.pictures[number] for number in chosen]
    images.save(_page(gallery, chosen, pictures, "the answer"), written[-1])
    if len(result.curves["loss"]) >= per_epoch:
        written.append(folder / "curves.png")
        files.write_bytes(written[-1], plots.png(_curves(result, per_epoch)))
    return written


def _gallery(result: Result) -> Gallery:
    gallery = result.spec.problem
    if not isinstance(gallery, Gallery):
        raise ValueError("this fit is not of a gallery of pictures, or was read from a file, which never holds them")
    if not result.pictures:
        raise ValueError(f"this fit has no pictures: it is {result.status.value} ({result.reason})")
    return gallery


def _level(errors: Tensor) -> float:
    return metrics.psnr_of_mse(float(errors.mean())) if errors.numel() else math.nan


def _page(gallery: Gallery, chosen: Sequence[int], pictures: Sequence[Tensor], when: str) -> Tensor:
    truths = gallery.split(gallery.image.data)
    rows = [[picture.clamp(0, 1) for picture in pictures]]
    if gallery.view.held_out is not None:
        masks = gallery.split(gallery.view.held_out)
        rows.append([torch.where(masks[number], _GREY, truths[number]) for number in chosen])
    rows.append([truths[number] for number in chosen])
    zoom = max(1, _SIDE // max(max(truths[number].shape[1:]) for number in chosen))
    cells = [one.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2) for row in rows for one in row]
    names = ["shown by the network", *(["fitted to"] if len(rows) == 3 else []), "true"]
    sheet = images.contact_sheet(cells, columns=len(chosen))
    return plots.captioned(sheet, f"{when}: {', '.join(names)}", above=True)


def _curves(result: Result, per_epoch: int) -> Figure:
    losses = result.curves["loss"].double()
    epochs = len(losses) // per_epoch
    means = losses[: epochs * per_epoch].view(epochs, per_epoch).mean(dim=1)
    series = {_FITTED: (np.arange(epochs) + 0.5, means.numpy())}
    if "held_out_loss" in result.curves:
        steps = result.curves["held_out_step"].double() / per_epoch
        series[_HELD_OUT] = (steps.numpy(), result.curves["held_out_loss"].double().numpy())
    span = "[-1, 1]" if result.spec.model.target_range == "signed" else "[0, 1]"
    name = type(result.spec.loss).__name__
    return plots.curves(
        series, title="Memorising", x="epoch", y=f"{name} of values in {span}", log=bool((means > 0).all())
    )
