"""The figures of the study of restoration: scores, curves, and pictures side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pixfit import plots
from pixfit.plots import Style
from pixfit.studies.restore_scores import Curve, Key, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "gains", "gallery"]

_ANSWER, _LAST, _BEST = Style("answer", "#3b6fb6"), Style("last step", "#c9ced6"), Style("best step", "#e0a458")
_POINTS = 400  # of a mean curve


def gains(title: str, methods: Mapping[str, Mapping[Key, Score]], control: Mapping[Key, Score]) -> Figure:
    """Of each method the mean PSNR above that of a control: of the answer, the last step, and the best one."""
    series = {_ANSWER: [], _LAST: [], _BEST: []}  # type: dict[Style, list[tuple[float, float]]]
    for scores in methods.values():
        for style, name in ((_ANSWER, "psnr"), (_LAST, "last"), (_BEST, "oracle")):
            values = [(getattr(score, name), control[key].psnr) for key, score in scores.items()]
            over = [value - base for value, base in values if value is not None]
            error = float(np.std(over, ddof=1) / np.sqrt(len(over))) if len(over) > 1 else np.nan
            series[style].append((float(np.mean(over)) if over else np.nan, error))
    arrays = {style: np.array(values) for style, values in series.items()}
    return plots.bars([*methods], arrays, title=title, y="PSNR above the control in dB")


def curves(title: str, methods: Mapping[str, Mapping[Key, Score]]) -> Figure:
    """Mean PSNR over the steps of each method's fits; a fit that ended sooner goes on at its answer."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    name, count = ("tab10", 10) if len(methods) <= 10 else ("tab20", 20)
    colours = colormaps[name](np.arange(len(methods)) % count)
    series: dict[Style, Curve] = {}
    for (name, scores), colour in zip(methods.items(), colours, strict=True):
        found = [score.curve for score in scores.values() if score.curve is not None]
        if found:
            across = np.linspace(0, max(curve[0][-1] for curve in found), _POINTS)
            up = np.mean([np.interp(across, *curve) for curve in found], axis=0)
            series[Style(name, to_hex(colour))] = (across, up)
    return plots.curves(series, title=title, x="step", y="mean PSNR in dB")


def gallery(title: str, pictures: Callable[[], Sequence[tuple[str, Tensor]]]) -> Figure:
    """Named pictures (C, H, W) of one size, four in a row."""
    from matplotlib.figure import Figure

    shown = pictures()
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(10, 0.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, 4, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (name, picture) in zip(panels.flat, shown, strict=False):
        colour = picture.clamp(0, 1).expand(3, -1, -1).movedim(0, -1).numpy()
        axes.imshow(colour, interpolation="nearest")
        axes.set_title(name, fontsize=9)
    return figure
