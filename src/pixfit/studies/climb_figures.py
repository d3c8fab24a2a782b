"""The figures of the climb: bars, heat maps and curves of every sweep."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pixfit import plots
from pixfit.plots import Style
from pixfit.studies.climb_scores import Curve, Results, Runs
from pixfit.studies.climb_steps import Sweep, Values, label, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]

_LAST, _BEST = Style("last step", "#3b6fb6"), Style("best epoch", "#c9ced6")


def figures(sweeps: Sequence[Sweep], results: Results) -> dict[str, Callable[[], Figure]]:
    """Every figure by file name, drawn when called."""
    drawn: dict[str, Callable[[], Figure]] = {}
    for sweep in sweeps:
        members = results[sweep.name]
        grid = _bars if len(sweep.axes) == 1 else _maps
        drawn[sweep.name] = functools.partial(grid, sweep, members)
        drawn[f"{sweep.name}_psnr"] = functools.partial(_curves, sweep, members, "psnr")
        drawn[f"{sweep.name}_loss"] = functools.partial(_curves, sweep, members, "loss")
    return drawn


def _title(sweep: Sweep) -> str:
    return f"Step {sweep.step}: {sweep.name}" if sweep.step else sweep.name


def _bars(sweep: Sweep, members: Mapping[Values, Runs]) -> Figure:
    series = {
        style: np.array([runs.level(score) for runs in members.values()])
        for style, score in ((_BEST, lambda run: run.best), (_LAST, lambda run: run.last))
    }
    names = [label(sweep, values) for values in members]
    return plots.bars(names, series, title=f"{_title(sweep)}, with standard errors over seeds", y="mean PSNR in dB")


def _maps(sweep: Sweep, members: Mapping[Values, Runs]) -> Figure:
    """A heat map over the last two axes, beside one another along the axis before them."""
    *first, (rows, down), (columns, across) = sweep.axes.items()
    panels = []
    for fixed in itertools.product(*(values for _, values in first)):
        grid = np.array([[members[*fixed, row, column].level()[0] for column in across] for row in down])
        name = ", ".join(f"{axis}={text(value)}" for (axis, _), value in zip(first, fixed, strict=True))
        panels.append((name, grid))
    return plots.heat_maps(
        panels, [text(value) for value in down], [text(value) for value in across],
        title=f"{_title(sweep)}, PSNR of the last step", x=columns, y=rows, label="mean PSNR in dB", around_zero=False,
    )  # fmt: skip


def _curves(sweep: Sweep, members: Mapping[Values, Runs], name: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = colormaps["viridis"](np.linspace(0, 0.92, len(members)))
    series: dict[Style, Curve] = {}
    for (values, runs), colour in zip(members.items(), colours, strict=True):
        if (curve := runs.curve(name)) is not None:
            series[Style(label(sweep, values), to_hex(colour))] = curve
    shown = {"psnr": ("PSNR", "PSNR in dB"), "loss": ("training loss", "mean squared error")}[name]
    return plots.curves(
        series, title=f"{_title(sweep)}: {shown[0]}, mean over runs", x="epoch", y=shown[1], log=name == "loss"
    )  # fmt: skip
