"""The figures of the climb's tables: PSNR against parameters, against seconds and against stored numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pixfit import plots
from pixfit.plots import Style
from pixfit.studies.climb_published import Published
from pixfit.studies.climb_scores import Curve, Run, Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["against_numbers", "against_parameters", "against_seconds"]

_MOST = 400  # points of a mean curve

_Points = dict[str, list[tuple[float, float]]]
"""Places (x, PSNR) by method."""


def against_parameters(rows: Sequence[Mapping[str, Any]], published: Sequence[Published], compares: bool) -> Figure:
    """PSNR of each method over its networks of equal parameters, and the published ones as crosses.

    Args:
        compares: whether the published ones are for the same pictures; the legend says so.
    """
    label = "published" if compares else "published, other pictures"
    others: _Points = {}
    for one in published:
        if one.parameters is not None:
            others.setdefault(f"{one.name}, {label}", []).append((one.parameters, one.psnr))
    return _points(_by_method(rows, "parameters"), others, "At equal parameters and equal steps", "parameters")


def against_numbers(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """PSNR of each method over its stored numbers, the controls as crosses."""
    controls = [row for row in rows if row["from"].startswith("the control")]
    ours = [row for row in rows if row not in controls]
    return _points(
        _by_method(ours, "numbers"), _by_method(controls, "numbers"), "At equal stored numbers", "numbers of 32 bits"
    )


def against_seconds(found: Mapping[str, Runs]) -> Figure:
    """The mean curves of the PSNR over processor seconds of training, by method."""
    series: dict[Style, Curve] = {}
    for (name, runs), colour in zip(found.items(), _colours(len(found)), strict=True):
        if curves := [_over_seconds(run) for run in runs.runs.values() if len(run.psnr[0])]:
            ends = max(float(curve[0][-1]) for curve in curves)
            across = np.linspace(0, ends, min(_MOST, max(2, *(len(curve[0]) for curve in curves))))
            series[Style(name, colour)] = across, np.mean([np.interp(across, *curve) for curve in curves], axis=0)
    title = "At equal seconds: PSNR over all pixels, mean over pictures and seeds"
    return plots.curves(series, title=title, x="processor seconds of training", y="PSNR in dB")


def _over_seconds(run: Run) -> Curve:
    """Steps are alike, so that seconds grow with them."""
    epochs, levels = run.psnr
    return epochs * (run.row["process_seconds"] / max(run.row["epochs"], 1e-12)), levels


def _by_method(rows: Sequence[Mapping[str, Any]], across: str) -> _Points:
    found: _Points = {}
    for row in rows:
        if row["PSNR"] is not None:
            found.setdefault(row["method"], []).append((row[across], row["PSNR"]))
    return found


def _points(ours: _Points, others: _Points, title: str, x: str) -> Figure:
    """Places of methods, joined by lines; others as crosses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, places), colour in zip(ours.items(), _colours(len(ours)), strict=True):
        axes.plot(*zip(*sorted(places), strict=True), "o-", color=colour, label=name, linewidth=1, markersize=4)
    for name, places in others.items():
        axes.plot(*zip(*sorted(places), strict=True), "x--", color="#30343b", label=name, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel("PSNR in dB")
    axes.grid(alpha=0.25, which="both")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _colours(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0.05, 0.95, count))]
