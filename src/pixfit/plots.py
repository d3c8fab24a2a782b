"""Arrays in, pictures and matplotlib figures out. No window is ever opened."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Style", "curve_bands", "error_map", "fit_curve", "grouped_boxes", "heat_maps", "intervals", "png", "side_by_side",
    "svg",
]  # fmt: skip

_INK, _ACCENT = "#30343b", "#3b6fb6"
_POINTS = 500  # of a line over steps


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
) -> Figure:
    """Panels of numbers by row and column (R, C) in colours around zero; NaN is left white."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(6.4, (1.1 + 0.62 * len(columns)) * len(panels)), 1.6 + 0.5 * len(rows)), layout="constrained"
    )
    figure.suptitle(title)
    finite = np.concatenate([np.abs(values[np.isfinite(values)]) for _, values in panels])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    drawn = None
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(all_axes, panels, strict=True):
        drawn = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * limit else _INK
                axes.text(column, row, f"{value:+.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(x)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
    all_axes[0].set_ylabel(y)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(all_axes), label=label)
    return figure


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
