"""The published training of a hundred icons: what was reported of it, what ours gives, and whether both agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixfit import embedding, similarity
from pixfit.modelfile import Network
from pixfit.models import BinaryCode, Memory
from pixfit.result import Result
from pixfit.studies.memorize_scores import Score
from pixfit.studies.memorize_upsampling import Quality
from pixfit.studies.study import Table

__all__ = ["Facts", "acceptance", "facts", "similar"]

_LOSSES = ((50, 0.096, 1.4), (200, 0.033, 1.4), (800, 0.004, 2.0))  # epoch, published mean squared error, factor
_ICONS, _PARAMETERS, _EPOCHS, _BATCH = 100, 698_883, 801, 16
_SIMILAR = (
    frozenset({"shopping_cart", "shopping_cart_loaded"}), frozenset({"buy", "return_purchase"}),
    frozenset({"gift", "hospital"}),
)  # fmt: skip
_TOP = 10


@dataclass(frozen=True, eq=False)
class Facts:
    """What is measured of the finished published training, at its last step.

    Args:
        names: of the pictures.
        parameters: of the network.
        batch: pictures in a step.
        losses: mean squared errors in [-1, 1], mean over the steps of each epoch.
        held_out: the mean squared error in [-1, 1] over all held-out pixels.
        midpoint: the largest difference between the half-way picture of the last hidden layer and the mean of both
            pictures, over all values of the pairs' pictures, in units of [0, 1].
        matrices: similarities (N, N) by measure, of the last hidden layer's fields (of their means, where pictures have
            several sizes).
        upsampled, bicubic: with corners on corners, as published, and of bicubic with edges on edges; None without
            large pictures.
    """

    names: tuple[str, ...]
    parameters: int
    batch: int
    losses: tuple[float, ...]
    held_out: float
    midpoint: float
    matrices: dict[str, Tensor]
    upsampled: Quality | None
    bicubic: Quality | None

    @property
    def comparable(self) -> bool:
        """Whether these are the icons, the published network and batches; the length is not asked for."""
        icons = len(self.names) == _ICONS and frozenset().union(*_SIMILAR) <= frozenset(self.names)
        return icons and (self.parameters, self.batch) == (_PARAMETERS, _BATCH)


def facts(
    result: Result, network: Network, score: Score, pairs: Sequence[tuple[int, int]], per: int, batch: int,
    bicubic: Quality | None,
) -> Facts:  # fmt: skip
    """Of the finished fit and its network at the last step.

    Args:
        pairs: of pictures of one size, of which the midpoints are looked at.
        per: steps of an epoch.
    """
    loss = result.curves["loss"].double()
    assert isinstance(network.model, Memory)
    fields = similarity.embeddings(network, pooled=len(set(network.model.sizes)) > 1)
    return Facts(
        names=tuple(name.removesuffix("-48") for name in network.names), parameters=result.parameters, batch=batch,
        losses=tuple(loss[: len(loss) // per * per].view(-1, per).mean(dim=1).tolist()),
        held_out=float(result.curves["held_out_loss"][-1]), midpoint=_midpoint(network, pairs),
        matrices={measure: similarity.matrix(fields, measure) for measure in similarity.MEASURES},
        upsampled=score.upsampled.get("corners"), bicubic=bicubic,
    )  # fmt: skip


def _midpoint(network: Network, pairs: Sequence[tuple[int, int]]) -> float:
    """The largest distance of the decoded mean of two fields from the mean of both decoded."""
    largest = 0.0
    for a, b in pairs:
        one = network.one(a)
        first, second = embedding.field(one), embedding.field(network.one(b))
        half = embedding.decode(one, 0.5 * first + 0.5 * second)
        both = 0.5 * embedding.decode(one, first) + 0.5 * embedding.decode(one, second)
        largest = max(largest, float((half - both).abs().max()))
    return largest


def acceptance(found: Facts) -> Table:
    """The published values, ours, what is accepted, and a verdict where ours was trained on as many pictures with the
    published network and batches."""
    rows: list[dict[str, Any]] = []

    def add(check: str, value: float | None, reference: str, accept: str, holds: Callable[[float], bool]) -> None:
        verdict = None if value is None or not found.comparable else "yes" if holds(value) else "no"
        shown = None if value is None else float(f"{value:.4g}") if isinstance(value, float) else value
        rows.append({"check": check, "ours": shown, "published": reference, "accepted": accept, "within": verdict})

    codes = Memory(code=BinaryCode(), sizes=((1, 1),) * len(found.names)).code_features
    add("parameters", found.parameters, f"{_PARAMETERS:,}", "equal", lambda value: value == _PARAMETERS)
    add("numbers of a code", codes, "7", "equal", lambda value: value == 7)
    for epoch, published, factor in _LOSSES:
        value = found.losses[epoch] if epoch < len(found.losses) else None

        def near(value: float, published: float = published, factor: float = factor) -> bool:
            return published / factor <= value <= published * factor

        add(f"training error at epoch {epoch}", value, f"{published:g}", f"×/÷ {factor:g}", near)
    whole = len(found.losses) >= _EPOCHS
    held_out = _decibels(found.held_out) if whole else None
    gap = _decibels(found.losses[-1]) - _decibels(found.held_out) if whole else None
    add("held-out PSNR after 801 epochs", held_out, "24 to 27 dB", "± 1.5 dB", lambda value: 22.5 <= value <= 28.5)
    add("training minus held-out PSNR", gap, "5.4 dB", "at least 4 dB", lambda value: value >= 4)
    add("midpoint of the last hidden layer", found.midpoint, "0", "below 1e-5", lambda value: value < 1e-5)
    if whole or not found.comparable:
        above = torch.triu_indices(len(found.names), len(found.names), offset=1)
        cosines = found.matrices["cosine"][above[0], above[1]]
        mean, low, high = float(cosines.mean()), float(cosines.min()), float(cosines.max())
        add("mean cosine", mean, "0.194", "0.19 ± 0.05", lambda value: abs(value - 0.19) <= 0.05)
        add("least cosine", low, "0.057", "0.06 ± 0.05", lambda value: abs(value - 0.06) <= 0.05)
        add("largest cosine", high, "0.348", "0.35 ± 0.05", lambda value: abs(value - 0.35) <= 0.05)
        pairs = [
            frozenset(found.names[int(place)] for place in above[:, rank]) for rank in cosines.argsort().flip(0)[:_TOP]
        ]
        expected = sum(pair in pairs for pair in _SIMILAR)
        add("expected pairs among the 10 most similar", expected, "3", "at least 2", lambda value: value >= 2)
        if found.upsampled is not None and found.bicubic is not None:
            level, below = found.upsampled.psnr, found.bicubic.psnr - found.upsampled.psnr
            add("up-sampled PSNR", level, "20.4 dB", "20 ± 2 dB", lambda value: abs(value - 20) <= 2)
            add("bicubic minus that", below, "6.5 dB", "above 0", lambda value: value > 0)
    notes = (
        "Errors are means of squares of pixels in [-1, 1]. Verdicts are given where the hundred icons were trained "
        "with the published network and batches, and of values after 801 epochs where there were as many. Up-sampled "
        "with corners on corners as published, against large pictures on white; bicubic with edges on edges, of small "
        "pictures whose alpha is as the setting says."
    )
    return Table("The published training", rows, notes)


def similar(found: Facts) -> Table:
    """The most and least similar pairs, by each measure and rule."""
    rows = []
    for measure, matrix in found.matrices.items():
        for rule in ("published", "greedy"):
            row: dict[str, Any] = {"measure": measure, "rule": rule}
            for name, most in (("most similar", True), ("least similar", False)):
                pairs = (
                    similarity.published_pairs(matrix, most)
                    if rule == "published"
                    else similarity.greedy_pairs(matrix, most, 3)
                )
                row[name] = "; ".join(f"{found.names[a]} – {found.names[b]}" for a, b in pairs)
            rows.append(row)
    notes = (
        "Of the last hidden layer's activations at all pixels. The published rule first leaves out the two least "
        "similar pairs and may name a picture twice; the greedy one takes the extreme pair, then that of the pictures "
        "that remain."
    )
    return Table("Similar pictures", rows, notes)


def _decibels(error: float) -> float:
    return float(10 * np.log10(4 / error)) if error > 0 else float("inf")
