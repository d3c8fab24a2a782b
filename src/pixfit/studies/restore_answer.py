"""What the study of restoration says: tasks by methods, each task by picture, and what was promised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from pixfit.studies.restore_damages import DAMAGES
from pixfit.studies.restore_figures import curves, gains, gallery
from pixfit.studies.restore_methods import METHODS
from pixfit.studies.restore_scores import Key, Score
from pixfit.studies.statistics import Paired, paired
from pixfit.studies.study import Answer, Table

__all__ = ["Lines", "Rows", "answer"]

Lines = dict[str, dict[Key, Score]]
"""Scores by method or control, and by picture and seed."""

Rows = dict[str, Lines]
"""Lines by task."""

_HONEST = {"denoise": "non-local means", "inpaint": "bi-harmonic", "upscale": "total variation"}
_ENDS = ("status", "stop_reason", "steps", "seconds", "process_seconds", "parameters", "device", "kernel", "id")


def answer(
    found: Rows,
    controls: Rows,
    leave_out: Sequence[str],
    missing: Sequence[str],
    shown: Callable[[str], Sequence[tuple[str, Tensor]]],
) -> Answer:
    """The answer from the scores of finished fits and of their controls.

    Args:
        leave_out: pairs of task and method that were not to be fitted.
        missing: pictures that were not there.
        shown: named pictures of a task, drawn when called.
    """
    tables = {"tasks": _overview(found, controls), "methods": _methods(found, controls)}
    tables |= {"checks": _checks(found, controls)}
    tables |= {task: _pictures(task, lines, controls[task]) for task, lines in found.items()}
    tables["runs"] = _runs(found, controls)
    figures = {}
    for task, lines in found.items():
        title, control = DAMAGES[task].title, _best(controls[task])
        figures[f"{task}_gains"] = partial(gains, f"{title}: above {control}", lines, controls[task][control])
        figures[f"{task}_curves"] = partial(curves, title, lines)
        figures[f"{task}_pictures"] = partial(gallery, title, partial(shown, task))
    tables = {name: table for name, table in tables.items() if table.rows}
    return Answer(_summary(found, controls, leave_out, missing), tables, figures)


# ------------------------------------------------------------------------------------------------------------- tables


def _overview(found: Rows, controls: Rows) -> Table:
    """Mean PSNR, lines by tasks."""
    names = dict.fromkeys(name for group in (controls, found) for lines in group.values() for name in lines)
    rows = []
    for name in names:
        row: dict[str, Any] = {"method": name}
        for task in found:
            scores = controls[task].get(name) or found[task].get(name)
            row[task] = _db(_mean(scores, "psnr")) if scores else None
        rows.append(row)
    notes = (
        "Mean PSNR of the answer in dB over the pictures that were finished, which the next table counts. Lines "
        "without a network come first."
    )
    return Table("Tasks and methods", rows, notes)


def _methods(found: Rows, controls: Rows) -> Table:
    rows = []
    for task, lines in found.items():
        best = _best(controls[task])
        for name, scores in {**controls[task], **lines}.items():
            over = _minus(scores, controls[task][best])
            row: dict[str, Any] = {"task": task, "method": name, "pictures": len(scores)}
            row |= {"PSNR": _db(_mean(scores, "psnr")), "last": _db(_mean(scores, "last"))}
            row |= {"oracle": _db(_mean(scores, "oracle")), "SSIM": _short(_mean(scores, "ssim"))}
            row |= {"over control": _db(float(np.mean(over))), "worst": _db(min(over))}
            row |= {"stop step": _whole(_mean(scores, "stop_step")), "steps": _whole(_mean(scores, "steps"))}
            row |= {"seconds": _short(_mean(scores, "seconds")), "weight": _short(_mean(scores, "weight"))}
            first = next(iter(scores.values())).row
            rows.append({**row, "parameters": None if first is None else first["parameters"]})
    names = dict.fromkeys(name for lines in found.values() for name in lines)
    kinds = "; ".join(f"{name}: {METHODS[name].title}" for name in names)
    notes = (
        "Means over pictures and seeds. PSNR in dB and SSIM of the answer, which knows no truth; last: PSNR of the fit "
        "at its last step, up to five steps early where held-out pixels stopped it; oracle: at its best step, which "
        "only the truth tells. Of ours the answer is a blend, and last and oracle are of its fit alone. Over "
        "control: PSNR minus that of the best line without a network in the mean, and on the worst picture. Seconds "
        "are of wall time in training, perhaps with other fits beside it; weight: of the fit in the blend. Known "
        f"pixels of pictures with holes are kept in all of these. {kinds}."
    )
    return Table("Every task and method", rows, notes)


def _pictures(task: str, lines: Lines, controls: Lines) -> Table:
    """PSNR of the answers by picture."""
    rows = []
    for name, scores in {**controls, **lines}.items():
        row: dict[str, Any] = {"method": name}
        for picture in dict.fromkeys(picture for picture, _ in scores):
            row[picture] = _db(float(np.mean([score.psnr for (one, _), score in scores.items() if one == picture])))
        rows.append({**row, "mean": _db(_mean(scores, "psnr"))})
    return Table(f"{task}: {DAMAGES[task].title}", rows, "PSNR of the answer in dB, mean over seeds.")


def _runs(found: Rows, controls: Rows) -> Table:
    rows = []
    for task in found:
        for name, scores in {**controls[task], **found[task]}.items():
            for (picture, seed), score in scores.items():
                row: dict[str, Any] = {"task": task, "method": name, "picture": picture, "seed": seed}
                row |= {"PSNR": _db(score.psnr), "SSIM": _short(score.ssim), "last": _db(score.last)}
                row |= {"oracle": _db(score.oracle), "stop step": score.stop_step, "weight": _short(score.weight)}
                rows.append({**row, **{end: None if score.row is None else score.row[end] for end in _ENDS}})
    return Table("Runs", rows, "A fit that two methods share stands under each.", shown=False)


def _checks(found: Rows, controls: Rows) -> Table:
    """What the default was promised to reach on the eight crops of 96 pixels."""
    rows: list[dict[str, Any]] = []

    def check(task: str, what: str, values: Sequence[float], mean: float, worst: float | None) -> None:
        if not values:
            return
        low, average = min(values), float(np.mean(values))
        wanted = f"mean {mean:+.2f} dB or more" + ("" if worst is None else f", worst {worst:+.2f} dB or more")
        met = average >= mean and (worst is None or low >= worst)
        row = {"task": task, "check": what, "wanted": wanted, "mean": _db(average), "worst": _db(low)}
        rows.append({**row, "of": len(values), "met": "yes" if met else "no"})

    for task, lines in found.items():
        small, ours = lines.get("hourglass-small", {}), lines.get("ours", {})
        kind = task.partition("-")[0]
        control = controls[task].get(_HONEST.get(kind, ""), {})
        if task == "denoise-25":
            gaps = [gap for score in small.values() if (gap := score.gap) is not None]
            above = _oracles(small, lines.get("dip", {}))
            check(task, "one stopped fit minus its best step", gaps, -0.15, -0.5)
            check(task, "best step minus that of the published network", above, -0.2, None)
            check(task, "one stopped fit minus non-local means", _minus(small, control), 0.4, None)
            check(task, "ours minus non-local means", _minus(ours, control), 0.8, 0.0)
        elif task == "inpaint-50":
            check(task, "ours minus bi-harmonic", _minus(ours, control), 1.2, 0.0)
        elif task == "inpaint-text":
            check(task, "ours minus bi-harmonic", _minus(ours, control), 0.0, None)
        elif task == "upscale-4":
            check(task, "ours minus total variation", _minus(ours, control), 0.8, None)
        elif task in ("impulse-20", "impulse-50"):
            over = _minus(lines.get("doip", {}), lines.get("hourglass-last", {}))
            check(task, "double over-parameterisation minus a plain prior, both never stopped", over, 3.0, None)
    return Table("Checks", rows, "Wanted of the eight crops of 96 pixels, with two seeds.")


def _summary(found: Rows, controls: Rows, leave_out: Sequence[str], missing: Sequence[str]) -> str:
    lines = []
    for task, methods in found.items():
        best = _best(controls[task])
        for name in ("ours", max(methods, key=lambda method: _mean(methods[method], "psnr") or -math.inf)):
            over = paired(np.array(_minus(methods.get(name, {}), controls[task][best])))
            if over is not None:
                line = f"* {task}: {name} {_mean(methods[name], 'psnr'):.2f} dB, {_said(over)} against {best}."
                lines.append(line)
    if leave_out:
        lines.append(f"* Not fitted: {', '.join(leave_out)}.")
    every = [name for name in METHODS if found and not any(name in methods for methods in found.values())]
    if every:
        lines.append(f"* Nothing is finished of the methods {', '.join(every)}.")
    if others := [task for task in DAMAGES if task not in found]:
        lines.append(f"* Nothing is finished of the tasks {', '.join(others)}.")
    if any("non-local means" in each and "BM3D" not in each for each in controls.values()):
        lines.append(
            "* BM3D is not among the controls: the package bm3d, free for non-commercial use, is not installed."
        )
    if missing:
        lines.append(f"* These pictures were not there: {', '.join(missing)}.")
    return "\n".join(dict.fromkeys(lines))


def _said(over: Paired) -> str:
    """The mean difference with its bootstrap interval, over pictures and seeds."""
    return f"{over.mean:+.2f} dB ({over.low:+.2f} to {over.high:+.2f}) over {over.pairs} pairs"


# -------------------------------------------------------------------------------------------------------------- cells


def _best(controls: Mapping[str, Mapping[Key, Score]]) -> str:
    """The control of the best mean PSNR."""
    return max(controls, key=lambda name: _mean(controls[name], "psnr") or -math.inf)


def _minus(scores: Mapping[Key, Score], control: Mapping[Key, Score]) -> list[float]:
    return [score.psnr - control[key].psnr for key, score in scores.items() if key in control]


def _oracles(scores: Mapping[Key, Score], others: Mapping[Key, Score]) -> list[float]:
    both = [(score.oracle, others[key].oracle) for key, score in scores.items() if key in others]
    return [ours - theirs for ours, theirs in both if ours is not None and theirs is not None]


def _mean(scores: Mapping[Key, Score], name: str) -> float | None:
    """Of the scores that have such a value; None where none has."""
    values = [value for score in scores.values() if (value := getattr(score, name)) is not None]
    return float(np.mean(values)) if values else None


def _db(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2) + 0.0  # never -0.0


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
