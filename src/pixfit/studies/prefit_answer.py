"""What the curves of the pre-fit study say: scores of each arm, paired comparisons, the published values, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixfit.studies.prefit_figures import figures
from pixfit.studies.prefit_published import FINGERPRINTS, PUBLISHED, auc_tolerance
from pixfit.studies.prefit_scores import Levels, Pairs, Results, common, pairs, place
from pixfit.studies.statistics import Paired, crossover, paired
from pixfit.studies.study import Answer, Table

__all__ = ["answer"]

_GOALS = (30.0, 40.0, 50.0)


def answer(results: Results, levels: Levels) -> Answer:
    """The answer from the finished runs by size and arm, sizes in order."""
    results = {size: {arm: runs for arm, runs in arms.items() if runs.triples} for size, arms in results.items()}
    results = {size: arms for size, arms in results.items() if arms}
    found = pairs(results)
    tables = {
        "crossover": _crossovers(found), "pairs": _pair_table(found), "arms": _arms(results, levels),
        "published": _against_published(results), "pictures": _fingerprints(results, levels),
    }  # fmt: skip
    tables = {name: table for name, table in tables.items() if table.rows}
    return Answer(_summary(results, found), tables, figures(results, found))


# ------------------------------------------------------------------------------------------------------------ numbers


def _arms(results: Results, levels: Levels) -> Table:
    rows = []
    for size, arms in results.items():
        for arm, runs in arms.items():
            scores = runs.scores()
            row: dict[str, Any] = {"size": size, "arm": arm, "runs": len(runs.triples)}
            row |= {"AUC median": _k(np.median(scores["AUC"])), "AUC mean": _k(scores["AUC"].mean())}
            row |= {"AUC std": _k(scores["AUC"].std()), "AUC60 mean": _k(scores["AUC60"].mean())}
            for goal in _GOALS:
                middle = float(np.median(runs.epochs_to(goal)))
                row[f"to {goal:.0f} dB"] = round(middle) if math.isfinite(middle) else None
            row |= {"final mean": _db(scores["final"].mean()), "final std": _db(scores["final"].std())}
            rows.append({**row, "collapsed": runs.collapsed(levels.flat), "diverged": runs.diverged})
    notes = (
        "AUC: area under the PSNR curve in thousands of dB × epochs; AUC60: with the PSNR cut at 60 dB; to … dB: "
        "median epoch, empty where fewer than half of the runs reach it; final: PSNR before the last step, in dB."
    )
    return Table("Every arm", rows, notes)


def _pair_table(found: Pairs) -> Table:
    rows = []
    for (arm, other), sizes in found.items():
        for size, scores in sizes.items():
            row: dict[str, Any] = {"size": size, "arm": arm, "minus": other, "pairs": scores["AUC"].pairs}
            for score, one in scores.items():
                row |= {score: _k(one.mean), f"{score} low": _k(one.low), f"{score} high": _k(one.high)}
                row |= {f"{score} p": round(one.p, 5)}
            rows.append(row)
    notes = "Mean differences over the same triples, with 95 % bootstrap intervals and Wilcoxon's p."
    return Table("Paired differences", rows, notes)


def _crossovers(found: Pairs) -> Table:
    rows = []
    for (arm, other), sizes in found.items():
        ones = [scores["AUC"] for scores in sizes.values()]
        products = [place(size)[0] for size in sizes]
        at = crossover(products, [math.copysign(1, one.median) if one.median else 0 for one in ones])
        better = [size for size, one in zip(sizes, ones, strict=True) if one.sign > 0]
        worse = [size for size, one in zip(sizes, ones, strict=True) if one.sign < 0]
        row = {"arm": arm, "against": other, "sizes": len(ones), "better": len(better), "worse": len(worse)}
        row |= {"worse at": " ".join(worse), "crossover": None if at is None else round(at)}
        rows.append(row)
    notes = (
        "Sizes at which the 95 % interval of the paired AUC difference lies above (better) or below (worse) zero. "
        "Crossover: the product layers × features above which the arm loses, where there is one."
    )
    return Table("Where an arm wins", rows, notes)


def _against_published(results: Results) -> Table:
    rows = []
    for size, arms in results.items():
        if size not in PUBLISHED or next(iter(arms.values())).curves.shape[1] != 2000:
            continue
        areas, finals = PUBLISHED[size]
        for index, name in enumerate(("random", "same", "different")):
            for arm in dict.fromkeys((name, name if name == "random" else f"{name} chained")):
                if arm not in arms:
                    continue
                scores = arms[arm].scores()
                ours, allowed = (
                    float(np.median(scores["AUC"])),
                    auc_tolerance(int(size.split("x")[1]), index, areas[index]),
                )
                row: dict[str, Any] = {"size": size, "arm": arm, "AUC": _k(ours), "published AUC": areas[index]}
                row |= {
                    "tolerance": round(allowed, 1),
                    "within": "yes" if abs(ours - areas[index]) <= allowed else "no",
                }
                row |= {"final": _db(scores["final"].mean()), "published final": finals[index]}
                rows.append(row)
    notes = (
        "Medians of the AUC in thousands, means of the final PSNR in dB. Which of copied and chained drew the "
        "published figures is not known; the tolerances are for the published pictures, others differ by more."
    )
    return Table("Against the published values", rows, notes)


def _fingerprints(results: Results, levels: Levels) -> Table:
    first = [arms["random"].curves[:, 0] for arms in results.values() if "random" in arms]
    ours = {
        "untrained": np.concatenate(first) if first else np.empty(0), "PSNR(A, same)": levels.same,
        "PSNR(A, different)": levels.different, "best constant": levels.flat,
    }  # fmt: skip
    rows = [
        {"level": name, "dB": _db(values.mean()), "std": _db(values.std()), "published": FINGERPRINTS[name]}
        for name, values in ours.items()
        if len(values) and np.isfinite(values).all()
    ]
    return Table("The pictures", rows, "Means over triples of levels that need no training.")


# -------------------------------------------------------------------------------------------------------------- words


def _pooled(results: Results, arm: str, other: str) -> tuple[Paired, int] | None:
    """The relative difference of AUC in per cent, mean over sizes for each triple; and the number of sizes."""
    logs: dict[int, list[float]] = {}
    sizes = 0
    for arms in results.values():
        if arm not in arms or other not in arms:
            continue
        sizes += 1
        both, rows, others = common(arms[arm], arms[other])
        ratios = np.log(arms[arm].scores()["AUC"][rows] / arms[other].scores()["AUC"][others])
        for triple, ratio in zip(both, ratios, strict=True):
            logs.setdefault(triple, []).append(float(ratio))
    complete = [100 * math.expm1(sum(each) / sizes) for each in logs.values() if len(each) == sizes]
    one = paired(complete)
    return None if one is None else (one, sizes)


def _summary(results: Results, found: Pairs) -> str:
    questions = (
        ("same", "random", "A pre-fit to the same class, from copied weights, against a random start"),
        ("different", "random", "A pre-fit to a different class, from copied weights, against a random start"),
        ("different", "same", "Different class against same class, both from copied weights: the class itself"),
        ("different chained", "same chained", "Different class against same class, chained: the class and the order"),
        ("same chained", "same", "The same class chained against copied: having seen the target once"),
        ("different chained", "different", "The different class chained against copied: having seen the target twice"),
        ("mean", "random", "A pre-fit to the mean picture against a random start"),
        ("reptile", "random", "A start meta-learned by Reptile against a random start"),
        ("maml", "random", "A start meta-learned by MAML against a random start"),
        ("meta-sgd", "random", "A start meta-learned by Meta-SGD against a random start"),
    )  # fmt: skip
    lines = []
    for arm, other, question in questions:
        pooled = _pooled(results, arm, other)
        if pooled is None:
            continue
        one, count = pooled
        signs = [scores["AUC"].sign for scores in found.get((arm, other), {}).values()]
        lines.append(
            f"* {question}: AUC {one.mean:+.1f} % [{one.low:+.1f}, {one.high:+.1f}], p = {one.p:.2g} over {one.pairs} "
            f"triples (mean over {count} size{'s' * (count > 1)}); "
            f"better at {signs.count(1)} sizes, worse at {signs.count(-1)}."
        )
    if (drew := _which_was_published(_against_published(results).rows)) is not None:
        lines.append(drew)
    return "\n".join(lines)


def _which_was_published(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """How far the published medians of the two pre-fit arms are from either way of running them."""
    found = {(row["size"], row["arm"]): row for row in rows}
    apart: dict[str, list[float]] = {"copied": [], "chained": []}
    for (size, arm), row in found.items():
        if arm in ("same", "different") and (size, f"{arm} chained") in found:
            for way, ours in (("copied", row), ("chained", found[size, f"{arm} chained"])):
                apart[way].append(abs(ours["AUC"] - row["published AUC"]))
    if not apart["copied"]:
        return None
    copied, chained = (sum(values) / len(values) for values in apart.values())
    nearer = sum(two < one for one, two in zip(apart["copied"], apart["chained"], strict=True))
    return (
        f"* The published medians of the two pre-fit arms, in thousands: copied weights are {copied:.1f} away on "
        f"average, chained ones {chained:.1f}; chained is nearer in {nearer} of {len(apart['copied'])} cases."
    )


def _k(value: float) -> float:
    return round(float(value), 3)


def _db(value: float) -> float:
    return round(float(value), 2)
