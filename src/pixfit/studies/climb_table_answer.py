"""What the fits of the climb's tables say: rows with published ones beside them, and figures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from pixfit import metrics
from pixfit.studies import climb_table_figures
from pixfit.studies.climb_compact import Score
from pixfit.studies.climb_controls import own_samples, sparse_dct
from pixfit.studies.climb_families import COMPACT, FAMILIES
from pixfit.studies.climb_published import Published
from pixfit.studies.climb_scores import Key, Run, Runs
from pixfit.studies.study import Answer, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cell", "answer", "compact", "spread"]

_BITS = 8  # of the second control


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Args:
        held: what is equal there: ``parameters``, ``seconds`` or ``steps``.
        budget: of parameters; None where they are the recipe's own.
        family: a name of `pixfit.studies.climb_families`.
    """

    held: Literal["parameters", "seconds", "steps"] | str
    budget: int | None
    family: str


def spread(runs: Runs, score: Callable[[Key, Run], float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds of the mean of a score over pictures, of seeds that have all pictures.

    None: no complete seed, a score that is missing or infinite; for the deviation, fewer than two seeds.
    """
    means: list[float] = []
    for seed in runs.seeds():
        values = [score((name, seed), runs.runs[name, seed]) for name in runs.pictures]
        means.append(math.nan if None in values else float(np.mean([value for value in values if value is not None])))
    if not means or not all(map(math.isfinite, means)):
        return None, None
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else None


# ------------------------------------------------------------------------------------------------- equal this and that


def answer(
    found: Mapping[Cell, Runs], published: Sequence[Published], about: str, compares: bool, absent: Sequence[Cell]
) -> Answer:
    """The tables ``tiger``, ``kodak`` and ``five``.

    Args:
        found: the finished runs by cell.
        published: rows to stand beside ours.
        about: what these are for.
        compares: whether they are for the same pictures.
        absent: cells that have no network.
    """
    rows = [_row(cell, runs) for cell, runs in found.items() if runs.seeds()]
    notes = (
        f"{about} Means over pictures, then over seeds, with the standard deviation over seeds (±). PSNR of the last "
        "step, and of the best point of the curve (peak), in dB over all pixels. Seconds of training, by the clock and "
        "of the processor; starts from the picture are made before. Where parameters are equal each network is the "
        f"largest within the budget, and makes equal steps; else networks are the recipes' own.{_left_out(absent)}"
    )
    table = Table("Equal parameters, seconds and steps", [*rows, *map(_published, published)], notes)
    tables = {"table": table, "runs": _runs(found)} if rows else {}
    figures: dict[str, Callable[[], Figure]] = {}
    if sized := [row for row in rows if row["equal"] == "parameters"]:
        figures["psnr_parameters"] = functools.partial(
            climb_table_figures.against_parameters, sized, published, compares
        )
    if timed := {cell.family: runs for cell, runs in found.items() if cell.held == "seconds" and runs.seeds()}:
        figures["psnr_seconds"] = functools.partial(climb_table_figures.against_seconds, timed)
    return Answer(_summary(rows), tables, figures)


def _row(cell: Cell, runs: Runs) -> dict[str, Any]:
    psnr, deviation = spread(runs, lambda key, run: run.last)
    peak, peaks = spread(runs, lambda key, run: run.best)
    ssim, _ = spread(runs, lambda key, run: run.row["ssim"])
    first = next(iter(runs.runs.values())).row
    row: dict[str, Any] = {"equal": cell.held, "budget": cell.budget, "method": cell.family}
    row |= {"parameters": round(_mean(runs, "parameters")), "values_ratio": round(_mean(runs, "values_ratio"), 3)}
    row |= {"PSNR": _short(psnr, 2), "±": _short(deviation, 2), "peak": _short(peak, 2), "peak ±": _short(peaks, 2)}
    row |= {"SSIM": _short(ssim, 4), "seconds": _short(_mean(runs, "seconds"), 2)}
    row |= {"process seconds": _short(_mean(runs, "process_seconds"), 2)}
    row |= {"steps": round(_mean(runs, "steps")), "pixels a step": first["spec"]["batches"]["pixels"] or "all"}
    row |= {"pictures": len(runs.pictures), "seeds": len(runs.seeds()), "device": first["device"]}
    return {**row, "from": f"here; {FAMILIES[cell.family].source}"}


def _published(one: Published) -> dict[str, Any]:
    row: dict[str, Any] = {"equal": "published", "budget": None, "method": one.name, "parameters": one.parameters}
    return {**row, "PSNR": one.psnr, "±": one.deviation, "seconds": one.seconds, "from": one.source}


def _runs(found: Mapping[Cell, Runs]) -> Table:
    rows = []
    for cell, runs in found.items():
        for (picture, seed), run in runs.runs.items():
            row: dict[str, Any] = {"equal": cell.held, "budget": cell.budget, "method": cell.family}
            row |= {"picture": picture, "seed": seed, "PSNR": _short(run.last, 4), "peak": _short(run.best, 4)}
            names = ("ssim", "parameters", "steps", "process_seconds", "status", "stop_reason", "device", "kernel")
            rows.append({**row, **{name: run.row[name] for name in names}, "id": run.row["id"]})
    return Table("Runs", rows, "One row a fit.", shown=False)


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each block the best methods, by their last step."""
    lines = []
    for held, budget in dict.fromkeys((row["equal"], row["budget"]) for row in rows):
        block = [row for row in rows if (row["equal"], row["budget"]) == (held, budget) and row["PSNR"] is not None]
        best = sorted(block, key=lambda row: -row["PSNR"])[:3]
        name = f"equal {held}" + (f", at most {budget:,}" if budget is not None else "")
        lines.append(f"* {name}: " + ", ".join(f"{row['method']} {row['PSNR']:.2f} dB" for row in best) + ".")
    return "\n".join(lines)


def _left_out(absent: Sequence[Cell]) -> str:
    """Which families have no network within a budget."""
    names = ", ".join(f"{cell.family} ({cell.budget:,})" for cell in absent)
    return f" No network is within the budget: {names}." if names else ""


# ------------------------------------------------------------------------------------------------- few stored numbers


def compact(
    found: Mapping[Cell, Runs],
    scores: Mapping[Cell, Mapping[Key, Score]],
    numbers: Mapping[Cell, float],
    pictures: Mapping[str, Tensor],
    absent: Sequence[Cell],
) -> Answer:
    """The table ``compact``.

    Args:
        found: the finished runs by cell.
        scores: what their networks show as they are stored.
        numbers: that each cell counts as.
        pictures: (C, H, W) by name, for the controls.
        absent: cells that have no network.
    """
    rows: list[dict[str, Any]] = []
    for budget in dict.fromkeys(cell.budget for cell in found if cell.budget is not None):
        controls = {bits: _control(pictures, budget, bits) for bits in (32, _BITS)}
        block = [
            _stored(cell, found[cell], stored, numbers[cell], controls[COMPACT[cell.family].bits]["PSNR"])
            for cell, stored in scores.items()
            if cell.budget == budget and stored
        ]
        rows += [*controls.values(), *block] if block else []
    held = [f"{name}: {own_samples(picture):,}" for name, picture in pictures.items()]
    notes = (
        "Numbers of 32 bits: fixed frequencies count, and weights in 8 bits as a quarter, with two numbers more a "
        "tensor. PSNR in dB and SSIM of what is stored, means over pictures and seeds; before rounding: with weights "
        "in 32 bits. Sparse transform: the largest cosine coefficients of blocks of 16 pixels, with value and index "
        "counted; 8bit: values are quantised, and an index takes the bits that it needs. Above the transform: the PSNR "
        "minus that of the transform with as many bits. The pictures' own 8-bit samples count as "
        f"{', '.join(held)}: a budget above that could hold the picture itself.{_left_out(absent)}"
    )
    tables = {"table": Table("Few numbers", rows, notes), "runs": _runs(found)}
    tables = {name: table for name, table in tables.items() if table.rows and rows}
    figures = {"psnr_numbers": functools.partial(climb_table_figures.against_numbers, rows)} if rows else {}
    return Answer(_beaten(rows), tables, figures)


def _control(pictures: Mapping[str, Tensor], budget: int, bits: int) -> dict[str, Any]:
    shown = {name: sparse_dct(picture, budget, None if bits == 32 else bits) for name, picture in pictures.items()}
    levels = [metrics.psnr(shown[name], picture) for name, picture in pictures.items()]
    likeness = [metrics.ssim(shown[name], picture) for name, picture in pictures.items()]
    name = "sparse transform" + ("" if bits == 32 else f" {bits}bit")
    row: dict[str, Any] = {"budget": budget, "method": name, "numbers": budget}
    row |= {"PSNR": _short(float(np.mean(levels)), 2)}
    row |= {"SSIM": None if None in likeness else _short(float(np.mean([one or 0.0 for one in likeness])), 4)}
    return {**row, "pictures": len(pictures), "from": "the control, without training"}


def _stored(
    cell: Cell, runs: Runs, scores: Mapping[Key, Score], numbers: float, control: float | None
) -> dict[str, Any]:
    kept = Runs({key: run for key, run in runs.runs.items() if key in scores}, runs.pictures)
    psnr, deviation = spread(kept, lambda key, run: scores[key].psnr)
    ssim, _ = spread(kept, lambda key, run: scores[key].ssim)
    whole, _ = spread(kept, lambda key, run: scores[key].whole)
    member = COMPACT[cell.family]
    row: dict[str, Any] = {"budget": cell.budget, "method": cell.family, "numbers": round(numbers)}
    row |= {"PSNR": _short(psnr, 2), "SSIM": _short(ssim, 4), "±": _short(deviation, 2)}
    row |= {"before rounding": None if member.bits == 32 else _short(whole, 2)}
    row |= {"above the transform": None if psnr is None or control is None else _short(psnr - control, 2)}
    row |= {"process seconds": _short(_mean(kept, "process_seconds"), 2), "steps": round(_mean(kept, "steps"))}
    row |= {"pictures": len(runs.pictures), "seeds": len(kept.seeds())}
    return {**row, "from": f"here; {member.family.source}"}


def _beaten(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each budget, with all bits and with few, what comes nearest to its control, or beats it."""
    lines = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for bits in (32, _BITS):
            block = [
                row
                for row in rows
                if row["budget"] == budget and row.get("above the transform") is not None
                and COMPACT[row["method"]].bits == bits
            ]  # fmt: skip
            best = sorted(block, key=lambda row: -row["above the transform"])[:3]
            shown = ", ".join(
                f"{row['method']} {row['PSNR']:.2f} dB ({row['above the transform']:+.2f})" for row in best
            )
            if best:
                lines.append(
                    f"* at most {budget:,} numbers, stored in {bits} bits: {shown}, against the sparse transform so."
                )
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- cells


def _mean(runs: Runs, name: str) -> float:
    return float(np.mean([run.row[name] for run in runs.runs.values()]))


def _short(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits) + 0.0  # never -0.0
