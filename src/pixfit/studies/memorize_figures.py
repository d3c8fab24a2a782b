"""The figures of the study of memories: curves and scores, and, where they may be shown, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pixfit import images, plots
from pixfit.plots import Style
from pixfit.studies.memorize_scores import Curve, Score
from pixfit.studies.memorize_upsampling import CONVENTIONS, Convention, Quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["completions", "curves", "distances", "film", "held_out", "similarities", "strips", "upsampling"]

_STYLES = {"edges": Style("edges on edges", "#3b6fb6"), "corners": Style("corners on corners", "#9aa1ab")}
_EARLY = Style("edges, stopped early", "#e0a458")


def curves(score: Score) -> Figure:
    """PSNR of the training and the held-out losses of one fit by epoch."""
    series = {Style("training", "#3b6fb6"): score.train}
    if score.held_out_curve is not None:
        series[Style("held out", "#e0a458")] = score.held_out_curve
    return plots.curves(series, title="The published training", x="epoch", y="PSNR in dB")


def held_out(scores: Mapping[str, Score]) -> Figure:
    """PSNR on held-out pixels of every design by epoch."""
    found = {name: score.held_out_curve for name, score in scores.items() if score.held_out_curve is not None}
    return plots.curves(_coloured(found), title="Held-out pixels", x="epoch", y="PSNR in dB")


def completions(scores: Mapping[str, Score], pixels: int) -> Figure:
    """PSNR of unseen pictures that hypernetworks complete, by the pixels that are shown; None of them: all."""
    found: dict[str, Curve] = {}
    for name, score in scores.items():
        points = sorted((pixels if count is None else count, level) for count, level in score.completed.items())
        if points:
            across, up = zip(*points, strict=True)
            found[name] = (np.array(across, dtype=np.float64), np.array(up))
    return plots.curves(_coloured(found), title="Unseen pictures", x="pixels shown", y="PSNR in dB")


def upsampling(controls: Mapping[str, Mapping[Convention, Quality]], scores: Mapping[str, Score]) -> Figure:
    """PSNR against the large pictures, of filters and of networks."""
    rows: list[tuple[str, Mapping[Convention, Quality], Quality | None]]
    rows = [(name, by, None) for name, by in controls.items()]
    rows += [(name, score.upsampled, score.early) for name, score in scores.items() if score.upsampled]
    series = {_STYLES[name]: [by[name].psnr for _, by, _ in rows] for name in CONVENTIONS}
    series[_EARLY] = [np.nan if early is None else early.psnr for _, _, early in rows]
    return _dots([name for name, _, _ in rows], series, title="Against the large pictures", x="PSNR in dB")


def distances(scores: Mapping[str, Score]) -> Figure:
    """How far the middle of each design's paths is from alpha blending, by the space that is blended."""
    spaces = dict.fromkeys(space for score in scores.values() for space in score.between)
    series = {
        Style(space, colour): [
            score.between[space].middle if space in score.between else np.nan for score in scores.values()
        ]
        for space, colour in zip(spaces, _palette(len(spaces)), strict=True)
    }
    return _dots([*scores], series, title="Half-way pictures", x="RMS distance from alpha blending")


def _dots(names: Sequence[str], series: Mapping[Style, Sequence[float]], *, title: str, x: str) -> Figure:
    """A line of dots for each name; a value that is NaN draws nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.6 + 0.26 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for style, values in series.items():
        axes.plot(values, range(len(names)), "o", color=style.colour, label=style.label, markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def similarities(matrix: Tensor, measure: str) -> Figure:
    """A matrix (N, N) of similarities of N pictures; the diagonal is left white."""
    from matplotlib.figure import Figure

    values = matrix.clone()
    values.fill_diagonal_(float("nan"))
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(values.numpy(), cmap="viridis", interpolation="nearest")
    axes.set_title(f"Similarity of the pictures: {measure}")
    axes.set_xlabel("picture")
    axes.set_ylabel("picture")
    figure.colorbar(drawn, ax=axes)
    return figure


def strips(title: str, rows: Iterable[tuple[str, Sequence[Tensor] | Tensor]]) -> Figure:
    """Named rows of pictures (C, H, W), those of a row alike in height; all rows are drawn equally high."""
    from matplotlib.figure import Figure

    found = [(name, plots.side_by_side(*pictures, gap=max(1, pictures[0].shape[1] // 16))) for name, pictures in rows]
    widest = max(row.shape[2] / row.shape[1] for _, row in found)
    figure = Figure(figsize=(1.8 + 0.9 * widest, 0.5 + 1.0 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for number, (_, row) in enumerate(found):
        wide, low = row.shape[2] / row.shape[1], number + 0.94
        axes.imshow(row.clamp(0, 1).movedim(0, -1).numpy(), extent=(0, wide, low, number), interpolation="nearest")
    axes.set_xlim(0, widest)
    axes.set_ylim(len(found), 0)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([number + 0.47 for number in range(len(found))], [name for name, _ in found], fontsize=8)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    return figure


def film(rows: Iterable[tuple[str, Tensor]], *, scale: int = 3) -> bytes:
    """Named paths (T, C, H, W) of one length and size side by side, to the other end and back, as a WebP file."""
    found = list(rows)
    frames = []
    for t in range(len(found[0][1])):
        cells = []
        for name, path in found:
            large = path[t].clamp(0, 1).repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
            strip = torch.ones(len(large), max(8, large.shape[2] // 8), large.shape[2])
            cells.append(plots.captioned(torch.cat([strip, large], dim=1), name))
        frames.append(images.contact_sheet(cells))
    return plots.film([*frames, *frames[-2:0:-1]], per_second=8)


def _palette(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["tab20"](np.arange(count) % 20)]


def _coloured(found: Mapping[str, Curve]) -> dict[Style, Curve]:
    pairs = zip(found.items(), _palette(len(found)), strict=True)
    return {Style(name, colour): curve for (name, curve), colour in pairs}
