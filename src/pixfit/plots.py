"""Arrays in, pictures and matplotlib figures out. No window is ever opened."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Style", "bars", "captioned", "curve_bands", "curves", "error_map", "fields", "film", "fit_curve", "grouped_boxes",
    "heat_maps", "intervals", "pair_matrix", "png", "side_by_side", "svg",
]  # fmt: skip

_INK, _ACCENT = "#30343b", "#3b6fb6"
_POINTS = 500  # of a line over steps
_NAMED = 60  # rows of a matrix that are still named


def fit_curve(result: Any, *, seconds: bool = False) -> Figure:
    """Loss and PSNR of a `pixfit.Result` over its steps; two axes, the PSNR on the left."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    loss = result.curves["loss"]
    right = axes.twinx()
    right.semilogy(range(len(loss)), loss.clamp(min=1e-14), color="#c9ced6", linewidth=0.8, zorder=1)
    right.set_ylabel("loss", color="#8a919c")
    right.tick_params(colors="#8a919c")
    if "psnr" in result.curves:
        axes.plot(result.curves["psnr_step"], result.curves["psnr"], color=_ACCENT, linewidth=2, zorder=3)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("PSNR in dB", color=_ACCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in (axes, right):
        side.spines["top"].set_visible(False)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def error_map(estimate: Tensor, truth: Tensor, *, gain: float = 10.0) -> bytes:
    """PNG of the absolute error of two pictures (C, H, W), mean over channels, times ``gain``; black is no error."""
    error = (estimate.cpu().double().clamp(0, 1) - truth.cpu().double()).abs().mean(dim=0, keepdim=True) * gain
    return images.Image(error.clamp(0, 1).float())._repr_png_()


def side_by_side(*pictures: Tensor, gap: int = 8) -> Tensor:
    """Pictures (C, H, W) of one height in a row with white gaps; grey ones are shown as RGB."""
    height = pictures[0].shape[-2]
    if any(picture.shape[-2] != height for picture in pictures):
        raise ValueError(f"pictures of one height go side by side, got heights {[p.shape[-2] for p in pictures]}")
    colour = [picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture[:3] for picture in pictures]
    spaced = [part for picture in colour for part in (picture, torch.ones(3, height, gap))]
    return torch.cat(spaced[:-1], dim=2)


def svg(figure: Figure) -> bytes:
    """The figure as the bytes of an SVG file, the same for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "pixfit"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class Style:
    """How one series of a study is drawn: its name in the legend, its colour, and whether its line is dashed."""

    label: str
    colour: str
    dashed: bool = False


def curve_bands(
    panels: Sequence[tuple[str, Mapping[Style, NDArray[np.floating]]]], *, title: str, x: str, y: str
) -> Figure:
    """Panels side by side of mean curves with bands of ± one standard deviation.

    Args:
        panels: of each panel its title and its series, runs by steps (R, S).
    """
    from matplotlib.figure import Figure

    width = 12.8 if len(panels) == 1 else 7.0 * len(panels)
    figure = Figure(figsize=(width, 7.2), layout="constrained")
    figure.suptitle(title)
    for axes, (name, series) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for style, curves in series.items():
            # More points than the picture can show would only make the file large.
            steps = np.unique(np.linspace(0, curves.shape[1] - 1, _POINTS).round().astype(int))
            mean, spread = curves[:, steps].mean(axis=0), curves[:, steps].std(axis=0)
            axes.fill_between(steps, mean - spread, mean + spread, color=style.colour, alpha=0.18, linewidth=0)
            axes.plot(steps, mean, color=style.colour, label=style.label, linestyle="--" if style.dashed else "-")
        _tidy(axes, name, x, y)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(series), frameon=True)
    return figure


def grouped_boxes(
    groups: Sequence[str], series: Mapping[Style, Sequence[NDArray[np.floating]]], *, title: str, y: str
) -> Figure:
    """A slim box for every series in every group, whiskers to the extremes.

    Args:
        series: of each the values of every group, in the order of ``groups``; an empty array draws nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(max(7.0, 0.38 * len(groups) + 3.2), 9.7), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(series))
    for place, (style, values) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * width
        drawn = [(index + shift, one) for index, one in enumerate(values) if len(one)]
        if drawn:
            axes.boxplot(
                [one for _, one in drawn], positions=[at for at, _ in drawn], widths=0.8 * width, whis=(0, 100),
                patch_artist=True, showfliers=False, manage_ticks=False,
                boxprops={"facecolor": style.colour, "edgecolor": style.colour, "hatch": "//" if style.dashed else ""},
                medianprops={"color": "black"}, whiskerprops={"color": style.colour}, capprops={"color": style.colour},
            )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right", rotation_mode="anchor")
    _tidy(axes, title, "", y)
    handles = [Patch(facecolor=style.colour, hatch="//" if style.dashed else "", label=style.label) for style in series]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, max(1, len(handles))))
    return figure


def intervals(groups: Sequence[str], series: Mapping[Style, NDArray[np.floating]], *, title: str, y: str) -> Figure:
    """Means with their confidence intervals by group, beside a line at zero.

    Args:
        series: of each (G, 3): mean, lower and upper end of every group; NaN draws nothing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, 0.34 * len(groups) + 3.2), 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=_INK, linewidth=0.8)
    for place, (style, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (place - (len(series) - 1) / 2) * 0.7 / max(1, len(series))
        mean, low, high = values.T
        axes.errorbar(
            at, mean, yerr=[mean - low, high - mean], color=style.colour, label=style.label,
            fmt="s" if style.dashed else "o", markersize=4, capsize=2, linewidth=1.2,
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right", rotation_mode="anchor")
    _tidy(axes, title, "", y)
    figure.legend(loc="outside upper center", ncols=min(4, max(1, len(series))))
    return figure


def heat_maps(
    panels: Sequence[tuple[str, NDArray[np.floating]]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x: str,
    y: str,
    label: str,
    around_zero: bool = True,
) -> Figure:
    """Panels of numbers by row and column (R, C); NaN is left white.

    Args:
        around_zero: colours and signs are of differences; False: colours span the values there are.
    """
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(6.4, (1.1 + 0.62 * len(columns)) * len(panels)), 1.6 + 0.5 * len(rows)), layout="constrained"
    )
    figure.suptitle(title)
    finite = np.concatenate([values[np.isfinite(values)] for _, values in panels])
    limit = float(np.abs(finite).max()) if np.abs(finite).any() else 1.0
    low, high = (
        (-limit, limit) if around_zero else (float(finite.min()), float(finite.max())) if finite.size else (0, 1)
    )
    drawn = None
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(all_axes, panels, strict=True):
        drawn = axes.imshow(values, cmap="RdBu" if around_zero else "viridis", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * limit if around_zero else value < 0.5 * (low + high)
                shown = f"{value:+.0f}" if around_zero else f"{value:.1f}"
                axes.text(
                    column, row, shown, ha="center", va="center", fontsize=8, color="white" if dark else _INK
                )  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(x)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
    all_axes[0].set_ylabel(y)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(all_axes), label=label)
    return figure


def bars(groups: Sequence[str], series: Mapping[Style, NDArray[np.floating]], *, title: str, y: str) -> Figure:
    """Bars with error bars by group, on an axis that begins a little below the lowest.

    Args:
        series: of each (G, 2): the height and its error; a NaN height draws nothing, a NaN error no error bar.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.1 * len(groups) + 2.4), 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(series))
    for place, (style, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (place - (len(series) - 1) / 2) * width
        axes.bar(
            at, values[:, 0], 0.9 * width, yerr=values[:, 1], capsize=3, color=style.colour, label=style.label,
            hatch="//" if style.dashed else "",
        )  # fmt: skip
    heights = np.concatenate([values[:, 0] for values in series.values()])
    if np.isfinite(heights).any():
        low, high = np.nanmin(heights), np.nanmax(heights)
        axes.set_ylim(low - max(0.5, 0.4 * (high - low)), high + max(0.5, 0.25 * (high - low)))
    axes.set_xticks(range(len(groups)), groups)
    _tidy(axes, title, "", y)
    figure.legend(loc="outside upper center", ncols=min(4, max(1, len(series))))
    return figure


def curves(
    series: Mapping[Style, tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
) -> Figure:
    """Lines (x, y) in one panel; ``log`` makes the upright axis logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for style, (across, up) in series.items():
        axes.plot(across, up, color=style.colour, label=style.label, linestyle="--" if style.dashed else "-")
    if log:
        axes.set_yscale("log")
    _tidy(axes, title, x, y)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def fields(rows: Sequence[Sequence[tuple[str, NDArray[np.floating]]]], *, title: str, label: str) -> Figure:
    """Rows of titled maps (H, W) of values in [0, 1], all on one scale of colours."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.2 + 2.2 * columns, 0.8 + 2.4 * len(rows)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, places in zip(rows, panels, strict=True):
        for (name, values), axes in zip(row, places, strict=False):
            drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name, fontsize=8)
    figure.colorbar(drawn, ax=panels, label=label, shrink=0.8)
    return figure


def pair_matrix(values: NDArray[np.floating], names: Sequence[str], *, title: str, label: str) -> Figure:
    """A number for each pair of things (N, N) as colours; NaN is left white. Up to 60 things are named."""
    from matplotlib.figure import Figure

    side = 3.0 + 0.09 * min(len(names), _NAMED)
    figure = Figure(figsize=(side + 1.4, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(values, cmap="viridis", interpolation="nearest")
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_title(title)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    return figure


def captioned(picture: Tensor, caption: str, *, above: bool = False) -> Tensor:
    """The picture (C, H, W) as RGB with a line of text on a dark strip, as wide as the picture allows.

    The strip lies on the top of the picture, or stands ``above`` it and makes it taller. Alpha is left out.
    """
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    colour = picture[:1].expand(3, -1, -1) if picture.shape[0] < 3 else picture[:3]
    length = ImageFont.load_default(100).getlength(caption)
    size = min(20.0, 100 * 0.96 * picture.shape[2] / length)
    if above:
        colour = torch.nn.functional.pad(colour, (0, 0, math.ceil(1.4 * size), 0))
    sheet = PillowImage.fromarray(_bytes(colour))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, sheet.width, 1.4 * size), fill=(24, 26, 30))
    draw.text((0.02 * sheet.width, 0.1 * size), caption, fill=(255, 255, 255), font=ImageFont.load_default(size))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def film(
    frames: Sequence[Tensor], *, per_second: float, kind: Literal["webp", "gif"] = "webp", lossless: bool = False
) -> bytes:
    """Pictures (3, H, W) in [0, 1] of one size as an animated file that plays for ever; the last one stays.

    A WebP file may be ``lossless``. A GIF has 256 colours a frame, and shows frames that are equal as one.
    """
    from PIL import Image as PillowImage

    pictures = [PillowImage.fromarray(_bytes(frame)) for frame in frames]
    duration = [round(1000 / per_second)] * (len(pictures) - 1) + [2000]
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"quality": 90, "lossless": lossless} if kind == "webp" else {}
    pictures[0].save(
        buffer, kind.upper(), save_all=True, append_images=pictures[1:], duration=duration, loop=0, **settings
    )  # fmt: skip
    return buffer.getvalue()


def _bytes(picture: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] as (H, W, 3) bytes."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
