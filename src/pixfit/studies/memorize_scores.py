"""What a finished memory is worth: its own pixels, those held out, more pixels, and what lies between two pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixfit import metrics, paths
from pixfit.images import Image
from pixfit.modelfile import Network
from pixfit.models import Hyper
from pixfit.problem import Gallery, stream
from pixfit.result import Result
from pixfit.studies.memorize_pictures import Pictures
from pixfit.studies.memorize_upsampling import CONVENTIONS, Convention, Quality, quality, sampled

__all__ = [
    "FRAMES", "Between", "Curve", "Score", "completed", "enlarged", "network_at", "of_hyper", "of_memory", "one_of",
    "routes",
]  # fmt: skip

FRAMES = 11
"""Pictures of a path whose numbers are reported; the middle one is half of each end."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Epochs and PSNR in dB."""


@dataclass(frozen=True)
class Between:
    """What lies between two pictures, means over pairs of pictures; distances are root mean squares in [0, 1].

    Args:
        middle: the middle picture's distance from the mean of both ends.
        largest: that of the picture farthest from the blend of the ends with its weights.
        smoothness: of the path, see `pixfit.paths.smoothness`.
    """

    middle: float
    largest: float
    smoothness: float


@dataclass(frozen=True)
class Score:
    """What one finished fit is worth; PSNR in dB, means over pictures.

    Args:
        memorised: over the fitted pixels.
        held_out: over the held-out pixels; None where there are none.
        upsampled: against the large pictures by convention of coordinates; empty without large ones.
        early: with the edges in one place, of the weights that are best by held-out pixels.
        early_step: the step of those.
        between: by the space that is blended.
        train, held_out_curve: PSNR by epoch of the losses in training and on held-out pixels, all pixels of all
            pictures together, not clamped.
        row: what the store's index says of the fit.
        completed: PSNR of unseen pictures by how many of their pixels a hypernetwork was shown; None: all.
    """

    memorised: float
    held_out: float | None
    upsampled: Mapping[Convention, Quality]
    between: Mapping[str, Between]
    train: Curve
    row: Mapping[str, Any]
    held_out_curve: Curve | None = None
    early: Quality | None = None
    early_step: int | None = None
    completed: Mapping[int | None, float] = field(default_factory=dict)


def network_at(result: Result, step: int | None = None) -> Network | None:
    """The network of the answer, or of the weights kept at a step; None where they were not kept, or are not finite."""
    weights = result.weights if step is None else result.kept.get(step, {})
    if not weights or not all(bool(value.isfinite().all()) for value in weights.values()):
        return None
    names = result.spec.problem.names if isinstance(result.spec.problem, Gallery) else ()
    return Network(result.spec.model, weights, result.spec.plain, names=names)


def of_memory(
    result: Result, last: int, pictures: Pictures, chosen: Sequence[int], pairs: Sequence[tuple[int, int]], per: int,
    row: Mapping[str, Any],
) -> Score | None:  # fmt: skip
    """The score of a finished fit of a gallery that begins with these pictures; None where it left no last weights.

    Args:
        last: its last step, at which weights were kept.
        chosen: numbers of the pictures that are compared with their large ones.
        pairs: of pictures, between which paths are measured.
        per: steps of an epoch of the published batches, the unit of the curves.
    """
    network = network_at(result, last)
    gallery = result.spec.problem
    if network is None or not isinstance(gallery, Gallery):
        return None
    shown = [sampled(network.one(i), _size(picture)) for i, picture in enumerate(pictures.small)]
    masks: list[Tensor | None] = [None] * len(shown)
    if gallery.held_out:
        assert gallery.view.held_out is not None
        masks = [*gallery.split(gallery.view.held_out)[: len(shown)]]
    truths = [picture.data for picture in pictures.small]
    inside = [_level(a, b, None if m is None else ~m) for a, b, m in zip(shown, truths, masks, strict=True)]
    outside = [_level(a, b, m) for a, b, m in zip(shown, truths, masks, strict=True) if m is not None and bool(m.any())]
    best, early_step = None, None
    if "held_out_loss" in result.curves:
        early_step = int(result.curves["held_out_step"][int(result.curves["held_out_psnr"].argmax())])
        best = network_at(result)
    early = None
    if best is not None and pictures.large:
        early = quality(enlarged(best.one, pictures, chosen, "edges"), _large(pictures, chosen))
    return Score(
        memorised=float(np.mean(inside)), held_out=float(np.mean(outside)) if outside else None,
        upsampled=_upsampled(network.one, pictures, chosen), between=_between(network, pictures, pairs),
        train=_train(result, per), row=row, held_out_curve=_held_out(result, per), early=early,
        early_step=early_step,
    )  # fmt: skip


def of_hyper(
    result: Result, pictures: Pictures, trained: int, chosen: Sequence[int], pairs: Sequence[tuple[int, int]],
    contexts: Sequence[int | None], seed: int, per: int, row: Mapping[str, Any],
) -> Score | None:  # fmt: skip
    """The score of a finished hypernetwork, of codes made of all pixels of each picture.

    Args:
        trained: it was trained on so many pictures, from the first; the others are unseen.
        contexts: how many pixels of each unseen picture are shown, drawn with ``seed``; None: all.
    """
    network = network_at(result)
    if network is None:
        return None
    one = partial(one_of, network, pictures.small)
    levels = [
        metrics.psnr(sampled(one(i), _size(picture)), picture.data)
        for i, picture in enumerate(pictures.small[:trained])
    ]
    unseen = pictures.small[trained:]
    found = {count: float(np.mean([completed(network, p, count, seed + i)[1] for i, p in enumerate(unseen)]))
             for count in contexts if unseen}  # fmt: skip
    return Score(
        memorised=float(np.mean(levels)), held_out=None, upsampled=_upsampled(one, pictures, chosen),
        between=_between(network, pictures, pairs), train=_train(result, per), row=row, completed=found,
    )  # fmt: skip


def completed(network: Network, picture: Image, count: int | None, seed: int) -> tuple[Tensor, float]:
    """What a hypernetwork makes (C, H, W) of so many pixels of a picture, drawn with a seed or all, and its PSNR."""
    model = network.model
    assert isinstance(model, Hyper)
    seen = None
    if count is not None:
        seen = torch.zeros(picture.pixels, dtype=torch.bool)
        seen[torch.randperm(picture.pixels, generator=stream(seed, "context"))[:count]] = True
        seen = seen.view(_size(picture))
    code = model.encode(network.weights, picture.data, seen)
    shown = sampled(network.shown(code, *_size(picture)), _size(picture))
    return shown, metrics.psnr(shown, picture.data)


def one_of(network: Network, pictures: Sequence[Image], which: int) -> Network:
    """The network of one picture; a hypernetwork makes it of all of the picture's pixels."""
    if not isinstance(network.model, Hyper):
        return network.one(which)
    code = network.model.encode(network.weights, pictures[which].data)
    return network.shown(code, *_size(pictures[which]))


def enlarged(
    one: Callable[[int], Network], pictures: Pictures, chosen: Sequence[int], convention: Convention
) -> list[Tensor]:
    """Some pictures in the sizes of their large ones, by the network of each."""
    return [sampled(one(i), _size(pictures.large[i]), convention) for i in chosen]


def routes(network: Network, picture: Sequence[Image], a: int, b: int) -> Iterator[tuple[str, Tensor]]:
    """The paths (T, C, H, W) between two of the pictures, by the name of what is blended."""
    size = (picture[a].width, picture[a].height)
    if not isinstance(network.model, Hyper):
        for space in paths.spaces(network):
            yield space, paths.blend(network, a, b, space, steps=FRAMES, size=size)
        return
    ends = [one_of(network, picture, which) for which in (a, b)]
    shown = [sampled(end, _size(picture[a])) for end in ends]
    yield "pixels", paths.line(shown[0], shown[1], FRAMES)
    first, last = (network.model.encode(network.weights, picture[which].data) for which in (a, b))
    codes = paths.line(first, last, FRAMES)
    yield "latent", paths.through([network.shown(code, *_size(picture[a])) for code in codes])
    yield "weights", paths.blend_weights(ends[0], ends[1], steps=FRAMES)


# --------------------------------------------------------------------------------------------------------------- parts


def _size(picture: Image) -> tuple[int, int]:
    return (picture.height, picture.width)


def _large(pictures: Pictures, chosen: Sequence[int]) -> list[Tensor]:
    return [pictures.large[i].data for i in chosen]


def _level(shown: Tensor, true: Tensor, mask: Tensor | None) -> float:
    """PSNR in dB over the pixels of a mask (1, H, W), or over all."""
    if mask is None:
        return metrics.psnr(shown, true)
    return metrics.psnr(shown[:, mask[0]][:, None], true[:, mask[0]][:, None])


def _upsampled(
    one: Callable[[int], Network], pictures: Pictures, chosen: Sequence[int]
) -> dict[Convention, Quality]:  # fmt: skip
    if not pictures.large:
        return {}
    true = _large(pictures, chosen)
    return {name: quality(enlarged(one, pictures, chosen, name), true) for name in CONVENTIONS}


def _between(network: Network, pictures: Pictures, pairs: Sequence[tuple[int, int]]) -> dict[str, Between]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for a, b in pairs:
        for space, path in routes(network, pictures.small, a, b):
            away = paths.from_alpha(path, path[0], path[-1])
            numbers = (float(away[FRAMES // 2]), float(away.max()), paths.smoothness(path))
            found.setdefault(space, []).append(numbers)
    return {space: Between(*map(float, np.mean(rows, axis=0))) for space, rows in found.items()}


def _train(result: Result, per: int) -> Curve:
    """Means of the losses over the steps of each epoch."""
    loss = result.curves["loss"].double()
    whole = len(loss) // per * per
    means = loss[:whole].view(-1, per).mean(dim=1) if whole else loss[:0]
    return np.arange(len(means), dtype=np.float64), _decibels(result, means)


def _held_out(result: Result, per: int) -> Curve | None:
    if "held_out_loss" not in result.curves:
        return None
    steps = result.curves["held_out_step"].double().numpy() / per
    return steps, _decibels(result, result.curves["held_out_loss"].double())


def _decibels(result: Result, losses: Tensor) -> NDArray[np.float64]:
    """PSNR in dB of mean squared errors in the network's target range."""
    peak = 4.0 if result.spec.model.target_range == "signed" else 1.0
    levels: NDArray[np.float64] = (10 * torch.log10(peak / losses.clamp(min=1e-30))).numpy()
    return levels
