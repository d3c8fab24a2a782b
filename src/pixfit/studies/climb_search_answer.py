"""What a search says: the recipe it found beside the presets, all its trials, and which settings mattered."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pixfit import plots
from pixfit.models import Grid
from pixfit.optim import Muon
from pixfit.plots import Style
from pixfit.result import Status
from pixfit.store import Store
from pixfit.studies.climb_search import RECIPE, ClimbSearch, Course, Search, Trial
from pixfit.studies.statistics import seeded
from pixfit.studies.study import Answer, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Ends", "Rows", "answer"]

_MUCH = 0.5  # numbers a picture value
_SHOWN = 12  # settings in the figure of what mattered
_COLOURS = ("#c9ced6", "#7fa3d1", "#3b6fb6", "#24487d", "#122641")

Rows = Mapping[str, Mapping[str, Any]]
"""The index of a store by id."""

Ends = Mapping[tuple[str, int], Mapping[str, Any]]
"""What the index says of finished fits, by picture and seed."""


def answer(search: ClimbSearch, store: Store) -> Answer:
    """The answer at any moment, from the finished fits."""
    course = search.course(store)
    rows = {row["id"]: row for row in store.rows()}
    compared = _compared(search, course, rows)
    ranked = _ranked(course)
    importance = search.importance(course.trials)
    tables = {
        "found": _found(search, course), "presets": _presets(search, compared),
        "best_trials": _trials(search, course, ranked[:10], rows, "Best trials"),
        "trials": _trials(search, course, course.trials, rows, "Trials", shown=False),
        "importance": _importance(importance),
    }  # fmt: skip
    figures: dict[str, Callable[[], Figure]] = {}
    if course.trials and course.trials[0].scores:
        figures["history"] = functools.partial(_history_figure, search.search, course.trials)
    if importance:
        figures["importance"] = functools.partial(_importance_figure, search.search, importance)
    tables = {name: table for name, table in tables.items() if table.rows}
    return Answer(_summary(search, course, compared), tables, figures)


# ------------------------------------------------------------------------------------------------------------ summary


def _summary(search: ClimbSearch, course: Course, compared: Mapping[str, Ends]) -> str:
    settings, best = search.search, course.best
    ended = [trial for trial in course.trials if trial.scores]
    lines = [f"* {len(ended)} of {settings.trials} trials have results; {sum(t.lost for t in ended)} of them diverged."]
    if best is None:
        if course.over:
            lines.append("* No recipe was found: no trial came through the whole budget. Try more of them.")
        return "\n".join(lines)
    count = _parameters(search, best)
    ratio = search.values_ratio(count)
    whole = _label(settings, settings.rungs - 1)
    lines.append(
        f"* The best {'' if course.over else 'so far '}is trial {best.number}: {_describe(search, best)}; "
        f"{best.scores[-1]:.2f} dB at {whole}, mean over the pictures."
    )
    for name in [name for name in compared if name != "found"]:
        ours, theirs = compared["found"], compared[name]
        if (one := seeded({key: _psnr(ours[key]) - _psnr(theirs[key]) for key in ours if key in theirs})) is None:
            continue
        error = f" ± {one.error:.2f}" if math.isfinite(one.error) else ""
        order = {1: "it is better", -1: "it is worse", 0: "too few or too even to tell"}[one.sign]
        lines.append(
            f"* Against the preset {name} ({_numbers(theirs):,} parameters) at the same budget, with seeds that the "
            f"search did not use: {one.mean:+.2f} dB{error} over {one.pairs} pairs of picture and seed: {order}."
        )
    if ratio > _MUCH:
        lines.append(
            f"* Warning: it has {ratio:.2f} numbers a picture value. Above about {_MUCH} a good PSNR says little, for "
            "so many numbers could nearly hold the picture itself; lower search.parameters."
        )
    if isinstance(best.parts.model.encoding, Grid):
        _, height, width = search.shape
        lines.append(f"* Its grid is made for pictures of about {width}×{height} pixels; search again for other sizes.")
    lines.append(f"* The recipe is the file {RECIPE} of the report: `pixfit fit PICTURE --recipe {RECIPE}` takes it.")
    return "\n".join(lines)


def _describe(search: ClimbSearch, trial: Trial) -> str:
    parts = trial.parts
    batch = "all pixels" if parts.batches.pixels is None else f"{parts.batches.pixels} pixels"
    return (
        f"{trial.values['encoding']} encoding, {_parameters(search, trial):,} parameters, "
        f"{type(parts.optimiser).__name__}, {batch} a step"
    )


# ------------------------------------------------------------------------------------------------------------- tables


def _found(search: ClimbSearch, course: Course) -> Table:
    """The recipe in dotted settings, as ``pixfit fit -s`` takes them."""
    if course.best is None:
        return Table("The recipe", [])
    recipe = search.recipe(course.best)
    rows = [
        {"setting": name, "value": value}
        for part in ("model", "optimiser", "batches", "budget")
        for name, value in _dotted(part, recipe[part])
    ]
    rows.append({"setting": "precision", "value": recipe["precision"]})
    return Table("The recipe", rows, f"As it stands in {RECIPE}; settings of the coordinates are the usual ones.")


def _dotted(name: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(name, "null" if value is None else str(value))]
    inner = [pair for key, item in value.items() if key not in ("kind", "coordinates") for pair in _dotted(key, item)]
    return [(name, value["kind"]), *((f"{name}.{key}", text) for key, text in inner)]


def _compared(search: ClimbSearch, course: Course, rows: Rows) -> dict[str, Ends]:
    """The finished fits of the found recipe and of the presets; empty before each has some."""
    if course.best is None or not course.over:
        return {}
    found: dict[str, Ends] = {
        name: {
            key: rows[spec.id]
            for key, spec in fits.items()
            if spec.id in rows and Status(rows[spec.id]["status"]).finished and rows[spec.id]["metrics"].get("psnr")
        }
        for name, fits in search.comparison(course.best).items()
    }
    return found if all(found.values()) else {}


def _presets(search: ClimbSearch, compared: Mapping[str, Ends]) -> Table:
    table = []
    for name, ends in compared.items():
        seeds = [seed for seed in range(search.seeds + 1) if all((one, seed) in ends for one in search.problems)]
        means = [np.mean([_psnr(ends[picture, seed]) for picture in search.problems]) for seed in seeds]
        error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else None
        row: dict[str, Any] = {"recipe": name, "PSNR": _db(np.mean(means) if means else None), "s.e.": _db(error)}
        for column, digits in (("parameters", 0), ("values_ratio", 3), ("steps", 0), ("seconds", 2)):
            value = float(np.mean([end[column] for end in ends.values()]))
            row[column] = round(value, digits or None)
        row["diverged"] = sum(end["status"] == Status.DIVERGED.value for end in ends.values())
        for picture in search.problems:
            levels = [_psnr(end) for (one, _), end in ends.items() if one == picture]
            row[f"PSNR of {picture}"] = _db(np.mean(levels) if levels else None)
        table.append(row)
    notes = (
        "The same budget for all, with seeds that the search did not use. PSNR of the last step in dB, mean over "
        "pictures, then over seeds, with its standard error over seeds. values_ratio: parameters a picture value; "
        "steps and seconds are of training; all are means of a fit. The recipe was chosen on these pictures, the "
        "presets on others."
    )
    return Table("Beside the presets", table, notes)


def _trials(
    search: ClimbSearch, course: Course, trials: Sequence[Trial], rows: Rows, title: str, *, shown: bool = True
) -> Table:
    settings = search.search
    table = []
    for trial in trials:
        parts = trial.parts
        row: dict[str, Any] = {"trial": trial.number, "round": trial.number // settings.together}
        row |= {"encoding": trial.values["encoding"], "parameters": _parameters(search, trial)}
        row |= {"layers": parts.model.hidden_layers, "width": parts.model.hidden_features}
        row |= {"activation": parts.model.activation, "norm": parts.model.norm, "output": parts.model.output}
        row |= {"optimiser": type(parts.optimiser).__name__, "rate": parts.optimiser.lr}
        row |= {"Adam's rate": parts.optimiser.adam_lr if isinstance(parts.optimiser, Muon) else None}
        row |= {"schedule": type(parts.optimiser.schedule).__name__, "batch": parts.batches.pixels or "all"}
        for rung in range(settings.rungs):
            score = trial.scores[rung] if rung < len(trial.scores) else None
            row[f"PSNR at {_label(settings, rung)}"] = _db(score)
        row["ended"] = _end(settings, course, trial)
        if not shown:
            last = search.fits(trial, max(0, len(trial.scores) - 1))
            ends = [rows[spec.id] for spec in last if spec.id in rows]
            row["steps"] = round(float(np.mean([end["steps"] for end in ends]))) if ends else None
            row |= {name: value for name, value in trial.values.items() if name not in row}
            row["fits"] = " ".join(spec.id for spec in last)
        table.append(row)
    notes = (
        "In the order of the longest budget that a trial has climbed to, then of its PSNR there: the mean over the "
        f"pictures, with seed 0. All {len(course.trials)} trials, with all that was drawn, stand in trials.csv."
    )
    return Table(title, table, notes if shown else "", shown=shown)


def _importance(importance: Mapping[str, float]) -> Table:
    rows = [{"setting": name, "importance": round(value, 4)} for name, value in importance.items()]
    notes = (
        "What each drawn setting matters for being among the best tenth of all trials at the shortest budget "
        "(PED-ANOVA, Watanabe et al. 2023); the sum is 1. Later trials are drawn near to good ones, so that this is of "
        "the search, not of the settings in general. Settings that few trials have are left out."
    )
    return Table("What mattered", rows, notes)


def _ranked(course: Course) -> list[Trial]:
    known = [trial for trial in course.trials if trial.scores and not trial.lost]
    return sorted(known, key=lambda trial: (-len(trial.scores), -trial.scores[-1], trial.number))


# ------------------------------------------------------------------------------------------------------------ figures


def _history_figure(search: Search, trials: Sequence[Trial]) -> Figure:
    """The best PSNR so far at every budget, and that of each trial at the shortest."""
    series: dict[Style, tuple[Any, Any]] = {}
    first = [(trial.number, trial.scores[0]) for trial in trials if trial.scores and not math.isnan(trial.scores[0])]
    series[Style(f"each trial at {_label(search, 0)}", _COLOURS[0], dashed=True)] = _line(first)
    for rung in range(search.rungs):
        known = [(trial.number, trial.scores[rung]) for trial in trials if len(trial.scores) > rung]
        known = [(number, score) for number, score in known if not math.isnan(score)]
        best = [(number, max(score for _, score in known[: place + 1])) for place, (number, _) in enumerate(known)]
        if best:
            colour = _COLOURS[1 + rung % (len(_COLOURS) - 1)]
            series[Style(f"best so far at {_label(search, rung)}", colour)] = _line(
                [*best, (trials[-1].number, best[-1][1])]
            )
    return plots.curves(series, title="The course of the search", x="trial", y="mean PSNR in dB")


def _line(points: Sequence[tuple[int, float]]) -> tuple[Any, Any]:
    return np.array([number for number, _ in points]), np.array([score for _, score in points])


def _importance_figure(search: Search, importance: Mapping[str, float]) -> Figure:
    shown = dict(list(importance.items())[:_SHOWN])
    heights = np.array([[value, math.nan] for value in shown.values()])
    names = [name.replace(" ", "\n") for name in shown]
    style = Style(f"of PSNR at {_label(search, 0)}", _COLOURS[2])
    figure = plots.bars(names, {style: heights}, title="What mattered among the best tenth", y="importance")
    figure.axes[0].set_ylim(bottom=0, top=1.1 * float(heights[:, 0].max()))
    return figure


# -------------------------------------------------------------------------------------------------------------- cells


def _label(search: Search, rung: int) -> str:
    budget = search.budget(rung)
    parts = [f"{budget.seconds:.3g} s"] if budget.seconds is not None else []
    parts += [f"{budget.steps} steps"] if budget.steps is not None else []
    return " or ".join(parts)


def _end(search: Search, course: Course, trial: Trial) -> str | None:
    """How far a trial came; None while it is under way."""
    if trial.lost:
        return "diverged"
    if len(trial.scores) == search.rungs:
        return "whole budget"
    last = course.trials[-1].number // search.together
    return None if not course.over and trial.number // search.together == last else "halved"


def _parameters(search: ClimbSearch, trial: Trial) -> int:
    return trial.parts.model.parameters_count(2, search.shape[0])


def _numbers(ends: Ends) -> int:
    """Parameters, those of pictures of several sizes averaged."""
    return round(float(np.mean([end["parameters"] for end in ends.values()])))


def _psnr(end: Mapping[str, Any]) -> float:
    return float(end["metrics"]["psnr"])


def _db(value: Any) -> float | None:
    return round(float(value), 2) + 0.0 if value is not None and math.isfinite(value) else None
