"""The figures of the pre-fit study: in the published form, and those that show differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pixfit import plots
from pixfit.plots import Style
from pixfit.studies.prefit_scores import Pairs, Results, Runs
from pixfit.studies.statistics import Paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]

_STYLES = {
    "random": Style("random", "cornflowerblue"), "same": Style("same class", "orange"),
    "different": Style("different class", "mediumseagreen"),
    "same chained": Style("same class, chained", "peru", dashed=True),
    "different chained": Style("different class, chained", "seagreen", dashed=True),
    "mean": Style("mean picture", "mediumpurple"), "reptile": Style("Reptile", "slategray"),
    "maml": Style("MAML", "crimson"), "meta-sgd": Style("Meta-SGD", "black"),
}  # fmt: skip

_PUBLISHED = ("random", "same", "different", "same chained", "different chained")
"""Arms of the published study, as told and as run; the others are run at few sizes."""


def _style(arm: str) -> Style:
    return _STYLES.get(arm) or Style(arm + " layers", "firebrick" if arm.endswith("1") else "palevioletred")


def figures(results: Results, pairs: Pairs) -> dict[str, Callable[[], Figure]]:
    """Every figure by file name, drawn when called."""
    if not results:
        return {}
    sizes = list(results)
    labels = [_long(size) for size in sizes]
    drawn: dict[str, Callable[[], Figure]] = {}
    values = {
        _style(arm): [results[s][arm].scores()["AUC"] if arm in results[s] else np.empty(0) for s in sizes]
        for arm in _PUBLISHED
        if any(arm in found for found in results.values())
    }
    epochs = next(iter(results[sizes[0]].values())).curves.shape[1]
    title = f"Area under PSNR curves for differently sized SIRENs fit on a random image A for {epochs} epochs"
    drawn["auc"] = lambda: plots.grouped_boxes(labels, values, title=title, y="Area under the Curve (AUC), thousands")
    others = [size for size in sizes if not set(results[size]) <= set(_PUBLISHED)]
    for score, y in (
        ("AUC", "AUC difference, thousands"),
        ("AUC60", "difference of AUC cut at 60 dB, thousands"),
        ("final", "difference of final PSNR, dB"),
    ):
        for name, among, published in (("difference", sizes, True), ("other_starts", others, False)):
            series = _against(pairs, among, "random", score, published=published)
            if series:
                drawn[f"{name}_{score.lower()}"] = functools.partial(
                    plots.intervals, [_long(size) for size in among], series,
                    title="Against a random start, with 95 % intervals", y=y,
                )  # fmt: skip
    if any(key in pairs for key in (("different", "same"), ("different chained", "same chained"))):
        drawn["class_or_order"] = lambda: plots.intervals(
            labels,
            _class_or_order(pairs, sizes),
            title="Different class minus same class",
            y="AUC difference, thousands",
        )
    maps = [
        (arm, _grid(pairs, (arm, "random"), sizes))
        for arm in ("same", "different", "same chained", "different chained")
        if (arm, "random") in pairs
    ]
    if maps:
        rows, columns = _axes(sizes)
        drawn["heat_map"] = lambda: plots.heat_maps(
            [(_style(arm).label, grid) for arm, grid in maps], rows, columns,
            title="AUC difference to a random start, thousands", label="thousands",
            x="hidden features", y="hidden layers",
        )  # fmt: skip
    for size in sizes:
        drawn[_long(size)] = functools.partial(_curves, size, results[size])
    return drawn


def _long(size: str) -> str:
    layers, _, features = size.partition("x")
    return f"{layers}hls_{features}hfs"


def _curves(size: str, arms: Mapping[str, Runs]) -> Figure:
    families = {
        "weights copied": ("random", "same", "different"),
        "chained": ("random", "same chained", "different chained"),
        "other starts": ("random", "mean", *(arm for arm in arms if arm.startswith("first "))),
        "meta-learned starts": ("random", "reptile", "maml", "meta-sgd"),
    }
    panels: list[tuple[str, dict[Style, NDArray[np.float64]]]] = []
    for name, wanted in families.items():
        series = {_style(arm): arms[arm].curves for arm in wanted if arm in arms}
        if len(series) > 1 or (series and not panels and name == "weights copied" and len(arms) == 1):
            panels.append((name, series))
    if not panels:
        panels = [("", {_style(arm): runs.curves for arm, runs in arms.items()})]
    count = max(len(runs.triples) for runs in arms.values())
    title = f"{_long(size)}\nPSNR vs epochs (num of triples={count})"
    return plots.curve_bands(panels, title=title, x="epochs", y="PSNR")


def _row(scores: Mapping[str, Paired] | None, score: str) -> tuple[float, float, float]:
    return (
        (math.nan, math.nan, math.nan)
        if scores is None
        else (scores[score].mean, scores[score].low, scores[score].high)
    )


def _against(
    pairs: Pairs, sizes: Sequence[str], other: str, score: str, *, published: bool
) -> dict[Style, NDArray[np.float64]]:
    """Differences and their intervals (sizes, 3), of the published arms or of the others."""
    return {
        _style(arm): np.array([_row(found.get(size), score) for size in sizes])
        for (arm, against), found in pairs.items()
        if against == other and (arm in _PUBLISHED) == published and any(size in found for size in sizes)
    }


def _class_or_order(pairs: Pairs, sizes: Sequence[str]) -> dict[Style, NDArray[np.float64]]:
    drawn = {}
    for key, style in (
        (("different", "same"), Style("weights copied: the class", "mediumseagreen")),
        (("different chained", "same chained"), Style("chained: the class and the order", "seagreen", dashed=True)),
    ):
        if key in pairs:
            drawn[style] = np.array([_row(pairs[key].get(size), "AUC") for size in sizes])
    return drawn


def _axes(sizes: Sequence[str]) -> tuple[list[str], list[str]]:
    layers, features = zip(*(map(int, size.split("x")) for size in sizes), strict=True)
    return [str(value) for value in sorted(set(layers))], [str(value) for value in sorted(set(features))]


def _grid(pairs: Pairs, key: tuple[str, str], sizes: Sequence[str]) -> NDArray[np.float64]:
    rows, columns = _axes(sizes)
    grid = np.full((len(rows), len(columns)), math.nan)
    for size, scores in pairs[key].items():
        layers, _, features = size.partition("x")
        grid[rows.index(layers), columns.index(features)] = scores["AUC"].mean
    return grid
