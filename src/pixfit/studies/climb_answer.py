"""What the fits of the climb say: the climb itself, every sweep's verdict beside the published one, every member."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixfit.studies.climb_figures import figures
from pixfit.studies.climb_scores import Results, Run, Runs, Verdict, judge
from pixfit.studies.climb_steps import Point, Sweep, label, text
from pixfit.studies.study import Answer, Table

__all__ = ["answer"]

_ENDS = ("status", "stop_reason", "epochs", "steps", "seconds", "evaluation_seconds", "device", "kernel", "id")


def answer(sweeps: Sequence[Sweep], results: Results, sizes: Mapping[Point, int]) -> Answer:
    """The answer without its films, from the finished runs by sweep and member.

    Args:
        sizes: the number of parameters of every point.
    """
    sweeps = [sweep for sweep in sweeps if any(runs.runs for runs in results[sweep.name].values())]
    verdicts = [
        verdict
        for sweep in sweeps
        for claim in sweep.claims
        if (verdict := judge(sweep, claim, results[sweep.name])) is not None
    ]
    tables = {
        "climb": _climb(sweeps, results, sizes, verdicts), "verdicts": _verdicts(verdicts),
        "checks": _checks(sweeps, results), "members": _members(sweeps, results, sizes), "runs": _runs(sweeps, results),
    }  # fmt: skip
    tables = {name: table for name, table in tables.items() if table.rows}
    return Answer(_summary(verdicts), tables, figures(sweeps, results))


# ------------------------------------------------------------------------------------------------------------- tables


def _climb(sweeps: Sequence[Sweep], results: Results, sizes: Mapping[Point, int], verdicts: Sequence[Verdict]) -> Table:
    rows = []
    for sweep in sweeps:
        members = results[sweep.name]
        mean, error = members[sweep.taken].level()
        levels = {values: runs.level()[0] for values, runs in members.items()}
        known = {values: level for values, level in levels.items() if math.isfinite(level)}
        best = max(known, key=lambda values: known[values], default=None)
        first = next((verdict for verdict in verdicts if verdict.sweep is sweep), None)
        row: dict[str, Any] = {"step": sweep.step, "sweep": sweep.name, "taken": label(sweep, sweep.taken)}
        row |= {"parameters": sizes[sweep.onward], "PSNR": _db(mean), "s.e.": _db(error)}
        row |= {"best MSE": _short(members[sweep.taken].level(lambda run: run.mse)[0])}
        row |= {"published PSNR": sweep.psnr, "best here": None if best is None else label(sweep, best)}
        row |= {"its PSNR": _db(math.nan if best is None else known[best])}
        rows.append({**row, "said": sweep.claims[0].said, "here": None if first is None else first.order})
    notes = (
        "Each step holds fixed what was taken in the published climb, whatever is best here. PSNR: of the last step, "
        "in dB, mean over pictures, then over seeds; s.e.: its standard error over seeds; best MSE: of the best epoch. "
        "Sizes, rates and scales are named as published; the settings say what they are divided by. The published "
        "values are for other pictures."
    )
    return Table("The climb", rows, notes)


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    rows = []
    for one in verdicts:
        row: dict[str, Any] = {"step": one.sweep.step, "sweep": one.sweep.name, "said": one.claim.said}
        row |= {"first": label(one.sweep, one.claim.better), "second": label(one.sweep, one.worse)}
        found = one.differences
        row |= {"pairs": found.pairs, "difference": _db(found.mean), "s.e.": _db(found.error)}
        row |= {"low": _db(found.low), "high": _db(found.high), "p": float(f"{found.p:.2g}")}
        row |= {"pictures that agree": f"{found.agree[0]} of {found.agree[1]}", "verdict": one.order}
        rows.append(row)
    notes = (
        "First minus second, PSNR of the last step in dB, mean over pictures of paired runs, with its standard error "
        "over seeds, the 95 % interval and p by Student's t, from how much the seeds of a picture differ. So a verdict "
        "is about these pictures; how many of them agree says how far others may. The order is that of an interval on "
        "one side of zero. Where the first was published as the best, the second is the best of the others here, which "
        "favours it by chance. Where steps are equal, larger batches see more pixels."
    )
    return Table("Verdicts", rows, notes)


def _members(sweeps: Sequence[Sweep], results: Results, sizes: Mapping[Point, int]) -> Table:
    rows = []
    for sweep in sweeps:
        points = sweep.members
        for values, runs in results[sweep.name].items():
            if not runs.runs:
                continue
            mean, error = runs.level()
            row: dict[str, Any] = {"sweep": sweep.name, "member": label(sweep, values), "runs": len(runs.runs)}
            row |= {"parameters": sizes[points[values]], "PSNR": _db(mean), "s.e.": _db(error)}
            row |= {"best PSNR": _db(runs.level(lambda run: run.best)[0])}
            row |= {"best MSE": _short(runs.level(lambda run: run.mse)[0])}
            row |= {"fall": _db(runs.level(lambda run: run.best - run.last)[0])}
            row |= {"epochs": _mean(runs, "epochs"), "seconds": _mean(runs, "seconds")}
            row |= {"evaluation": _mean(runs, "evaluation_seconds"), "ended by": _reasons(runs)}
            row |= {"diverged": sum(run.diverged for run in runs.runs.values())}
            rows.append({**row, **{f"PSNR of {name}": _db(runs.of_picture(name)) for name in runs.pictures}})
    notes = (
        "PSNR of the last step and of the best epoch in dB; fall: what is lost between the two, mean over runs; epochs "
        "and seconds of training and of evaluation: means of a run. PSNR of a picture: mean over seeds."
    )
    return Table("Members", rows, notes)


def _runs(sweeps: Sequence[Sweep], results: Results) -> Table:
    rows = []
    for sweep in sweeps:
        for values, runs in results[sweep.name].items():
            for (picture, seed), run in runs.runs.items():
                row: dict[str, Any] = {"sweep": sweep.name, "member": label(sweep, values), "picture": picture}
                row |= {"seed": seed, "PSNR": _db(run.last), "best PSNR": _db(run.best), "best epoch": run.best_epoch}
                row |= {"best MSE": run.mse}
                names = (
                    "status",
                    "stop_reason",
                    "epochs",
                    "steps",
                    "seconds",
                    "evaluation_seconds",
                    "device",
                    "kernel",
                )
                rows.append({**row, **{name: run.row[name] for name in names}, "id": run.row["id"]})
    return Table("Runs", rows, "A fit that several sweeps share stands under each.", shown=False)


def _checks(sweeps: Sequence[Sweep], results: Results) -> Table:
    """What the reproduction of the climb was promised to show."""
    named = {sweep.name: sweep for sweep in sweeps}
    rows: list[dict[str, Any]] = []

    def check(what: str, published: str, wanted: str, found: str, met: bool) -> None:
        rows.append(
            {"check": what, "published": published, "wanted": wanted, "found": found, "met": "yes" if met else "no"}
        )

    for name, sweep in named.items():
        if name.startswith("size") and "encoding" in named:
            ours = results["encoding"][named["encoding"].taken].minus(results[name][sweep.taken])
            if ours:
                gain = float(np.mean([*ours.values()]))
                check(f"gain from {name} to encoding", "26 to 35 dB", "5 dB or more", f"{gain:+.2f} dB", gain >= 5)
    for name, what, wanted in (
        ("norm", "LayerNorm raises the PSNR of the last step", "on four pictures of five"),
        ("experts", "two experts against one", "within 0.5 dB"),
    ):
        if name not in named:
            continue
        one = judge(named[name], named[name].claims[-1], results[name])
        if one is None:
            continue
        if name == "norm":
            agree, count = one.differences.agree
            check(what, "a big gain", wanted, f"on {agree} of {count}", agree >= 0.8 * count)
        else:
            difference, error = one.differences.mean, one.differences.error
            check(what, "not significant", wanted, f"{difference:+.2f} dB ± {error:.2f}", abs(difference) <= 0.5)
    return Table(
        "Checks", rows, "Differences are paired over pictures and seeds. Wanted at the published sizes and budget."
    )


def _summary(verdicts: Sequence[Verdict]) -> str:
    lines = []
    for one in verdicts:
        found, said = one.differences, f"published: {one.claim.said}" if one.claim.said else "no order published"
        lines.append(
            f"* {one.sweep.name}, {label(one.sweep, one.claim.better)} against {label(one.sweep, one.worse)} ({said}): "
            f"{found.mean:+.2f} dB ± {found.error:.2f} over {found.pairs} pairs: {one.order}."
        )
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- cells


def _db(value: float) -> float | None:
    return round(value, 2) + 0.0 if math.isfinite(value) else None  # never -0.0


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _mean(runs: Runs, name: str) -> float:
    return round(float(np.mean([run.row[name] for run in runs.runs.values()])), 2)


def _reasons(runs: Runs) -> str:
    counts = Counter(_reason(run) for run in runs.runs.values())
    return ", ".join(f"{reason} ×{count}" for reason, count in counts.most_common())


def _reason(run: Run) -> str:
    return "divergence" if run.diverged else text(run.row["stop_reason"])
