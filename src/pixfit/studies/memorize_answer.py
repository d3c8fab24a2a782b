"""What the study of memories says: designs, families of up-sampling, spaces, and the published training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pixfit.studies import memorize_figures as draw
from pixfit.studies.memorize_acceptance import Facts, acceptance, similar
from pixfit.studies.memorize_designs import DESIGNS, HYPER
from pixfit.studies.memorize_drawings import Drawings
from pixfit.studies.memorize_scores import Score
from pixfit.studies.memorize_upsampling import CONVENTIONS, Controls, Convention, Quality
from pixfit.studies.study import Answer, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["answer"]

_OWN = ("arc", "latent", "bottleneck", "code")
"""Of a design's spaces the one whose numbers the first table has: the first of these that it has."""


def answer(
    scores: Mapping[str, Score],
    controls: Controls,
    published: Facts | None,
    missing: Sequence[str],
    pixels: int,
    shown: Drawings,
) -> Answer:
    """The answer from the scores of finished fits.

    Args:
        scores: by design.
        published: of the published training, where it is finished.
        missing: designs that were asked for and have no score.
        pixels: of a picture.
        shown: figures and films that show pictures; empty where these may not be shown.
    """
    compared = {name: score for name, score in scores.items() if name != "published"}
    tables = {"designs": _designs(scores), "upsampling": _upsampling(scores, controls), "spaces": _spaces(scores)}
    tables["contexts"] = _contexts(scores)
    figures: dict[str, Callable[[], Figure]] = {}
    if "published" in scores:
        figures["published_curves"] = partial(draw.curves, scores["published"])
    if any(score.held_out_curve is not None for score in compared.values()):
        figures["held_out"] = partial(draw.held_out, compared)
    if any(score.upsampled for score in scores.values()):
        figures["upsampling"] = partial(draw.upsampling, controls, scores)
    if any(score.between for score in scores.values()):
        figures["half_way"] = partial(draw.distances, scores)
    if any(score.completed for score in scores.values()):
        figures["contexts"] = partial(draw.completions, scores, pixels)
    if published is not None:
        tables |= {"published": acceptance(published), "similar": similar(published)}
        figures["similarity"] = partial(draw.similarities, published.matrices["cosine"], "cosine")
    tables["runs"] = _runs(scores)
    tables = {name: table for name, table in tables.items() if table.rows}
    summary = _summary(scores, controls, published, missing)
    return Answer(summary, tables, {**figures, **shown.figures}, shown.films)


# ------------------------------------------------------------------------------------------------------------- tables


def _designs(scores: Mapping[str, Score]) -> Table:
    rows = []
    for name, score in scores.items():
        edges, space = score.upsampled.get("edges"), _own(score)
        row: dict[str, Any] = {"design": name, "memorised": _db(score.memorised), "held out": _db(score.held_out)}
        row |= {"up-sampled": _db(edges.psnr if edges else None), "SSIM": _short(edges.ssim if edges else None)}
        row |= {"stopped early": _db(score.early.psnr if score.early else None), "blended": space}
        between = score.between[space] if space else None
        row |= {"from alpha": _short(between.middle if between else None)}
        row |= {"smoothness": _short(between.smoothness if between else None)}
        row |= {"parameters": score.row["parameters"], "steps": score.row["steps"]}
        rows.append({**row, "process seconds": _short(score.row["process_seconds"])})
    kinds = "; ".join(f"{name}: {_title(name)}" for name in scores)
    notes = (
        "Means over pictures of PSNR in dB: over fitted pixels, over held-out ones, and of the picture with more "
        "pixels, its edges on those of the true large one, which SSIM is of, too; stopped early: the same of the "
        "weights that were best on held-out pixels. All others are of the last weights. From alpha: root mean square "
        "distance, in units of [0, 1], of the half-way picture from the mean of both ends, where what the column "
        "before says is blended; smoothness: of second differences along the path. Hypernetworks see all pixels of a "
        "picture here, are trained with fewer pictures, and have held-out pictures instead (see contexts). The rows "
        "published and those of hypernetworks have budgets of their own; all others make equally many steps on about "
        f"as many pixels. {kinds}."
    )
    return Table("Designs", rows, notes)


def _upsampling(scores: Mapping[str, Score], controls: Controls) -> Table:
    best = _best(controls)
    rows: list[dict[str, Any]] = []
    for name, by in controls.items():
        rows.append({"by": name, "family": "filter", **_conventions(by), "early": None, "over": _over(by, None, best)})
    for name, score in scores.items():
        family = DESIGNS[name].family if name in DESIGNS else "as published" if name == "published" else ""
        if score.upsampled and family:
            row = {"by": name, "family": family, **_conventions(score.upsampled)}
            row["early"] = _db(score.early.psnr if score.early else None)
            rows.append({**row, "over": _over(score.upsampled, score.early, best)})
    notes = (
        "PSNR in dB and SSIM against the true large pictures, composited on white, means over pictures. Edges: both "
        "pictures have the same edges; corners: the centres of their corner pixels lie on each other, as published. "
        "Early: edges, of the weights that were best on held-out pixels, a family of its own. Over: the best PSNR of "
        "the row minus that of the best filter. The row published shows pictures without their alpha where they had "
        "any, the others as the setting alpha says. A penalty on the Laplacian at random points is not among the "
        "families: what the loop minimises here compares a sample with its target and sees no derivatives."
    )
    return Table("Up-sampling", rows, notes)


def _conventions(by: Mapping[Convention, Quality]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in CONVENTIONS:
        found |= {f"{name} PSNR": _db(by[name].psnr), f"{name} SSIM": _short(by[name].ssim)}
    return found


def _spaces(scores: Mapping[str, Score]) -> Table:
    rows = [
        {
            "design": name, "blended": space, "half-way": _short(one.middle), "farthest": _short(one.largest),
            "smoothness": _short(one.smoothness),
        }
        for name, score in scores.items()
        for space, one in score.between.items()
    ]  # fmt: skip
    notes = (
        "Means over drawn pairs of pictures, in units of [0, 1]: how far the half-way and the farthest picture of a "
        "path are from alpha blending of its ends, and the root mean square of its second differences. Pixels are the "
        "control; hidden is the last hidden layer, from which the way on is affine."
    )
    return Table("What lies between two pictures", rows, notes)


def _contexts(scores: Mapping[str, Score]) -> Table:
    rows = []
    for name, score in scores.items():
        if score.completed:
            row: dict[str, Any] = {"design": name}
            row |= {"all" if count is None else str(count): _db(level) for count, level in score.completed.items()}
            rows.append(row)
    notes = "PSNR in dB, over all pixels, of pictures that were not trained on, by how many of their pixels were shown."
    return Table("Unseen pictures", rows, notes)


def _runs(scores: Mapping[str, Score]) -> Table:
    keep = ("status", "steps", "seconds", "process_seconds", "parameters", "device", "kernel", "id")
    rows = [
        {"design": name, "best step": score.early_step, **{key: score.row[key] for key in keep}}
        for name, score in scores.items()
    ]
    return Table("Every fit", rows, shown=False)


# -------------------------------------------------------------------------------------------------------------- words


def _summary(
    scores: Mapping[str, Score], controls: Controls, published: Facts | None, missing: Sequence[str]
) -> str:  # fmt: skip
    lines = []
    same = {name: score for name, score in scores.items() if name in DESIGNS}
    if same:
        best = max(same, key=lambda name: same[name].memorised)
        lines.append(
            f"* Of {len(same)} designs with equal budgets {best} memorises best: {same[best].memorised:.2f} dB."
        )
    held = {name: score.held_out for name, score in same.items() if score.held_out is not None}
    if held:
        best = max(held, key=lambda name: held[name])
        lines.append(f"* On held-out pixels {best} is best: {held[best]:.2f} dB.")
    filters, families = _best(controls), {}
    for name, score in same.items():
        if score.upsampled and DESIGNS[name].family:
            levels = [one.psnr for one in score.upsampled.values()]
            families[name] = max([*levels, *([score.early.psnr] if score.early else [])])
    if filters is not None and families:
        best = max(families, key=lambda name: families[name])
        kinds = len({DESIGNS[name].family for name in families})
        bicubic = max(one.psnr for one in controls["bicubic"].values())
        lines.append(
            f"* Up-sampling: of {kinds} families and early stopping {best} comes nearest to the large pictures, "
            f"{families[best]:.2f} dB; bicubic has {bicubic:.2f} dB, the best filter {filters:.2f} dB. "
            f"{'It beats bicubic.' if families[best] > bicubic else 'None beats bicubic.'}"
        )
    for name, score in scores.items():
        if (space := _own(score)) in ("bottleneck", "latent"):
            value = score.between[space].middle
            lines.append(f"* {name}: half-way in the space {space} is {value:.3g} from alpha blending (RMS in [0, 1]).")
    if published is not None:
        verdicts = [row["within"] for row in acceptance(published).rows if row["within"] is not None]
        lines.append(
            f"* The published training: {verdicts.count('yes')} of {len(verdicts)} checks are within their tolerance."
            if verdicts
            else "* The published training has other settings or pictures here than as published: no verdicts."
        )
    if missing:
        lines.append(f"* Not finished, or without a finite network: {', '.join(missing)}.")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- cells


def _title(name: str) -> str:
    if name == "published":
        return "the published training, whole"
    return DESIGNS[name].title if name in DESIGNS else HYPER[name].title


def _own(score: Score) -> str | None:
    return next((space for space in _OWN if space in score.between), None)


def _best(controls: Controls) -> float | None:
    return max((one.psnr for by in controls.values() for one in by.values()), default=None)


def _over(by: Mapping[Convention, Quality], early: Quality | None, best: float | None) -> float | None:
    levels = [*(one.psnr for one in by.values()), *([early.psnr] if early else [])]
    return None if best is None or not levels else _db(max(levels) - best)


def _db(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2) + 0.0  # never -0.0


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
