"""Films of the climb's fits, and maps of what the gate of its experts does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pixfit import metrics, modelfile, plots, render
from pixfit.result import Result
from pixfit.spec import Spec
from pixfit.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["film", "gate_map", "gate_maps"]

_WIDTH = 384  # pixels of a picture in a film, about
_SIDE = 192  # samples along a side of a map
_PER_SECOND = 10


def film(store: Store, specs: Sequence[Spec], pictures: Sequence[Tensor]) -> bytes:
    """The targets above what was fitted to them, snapshot after snapshot, with epoch, MSE and PSNR; a WebP file.

    Args:
        specs: finished fits of one point, a picture each; snapshots are the weights that they kept, and their end.
        pictures: what they were fitted to, (C, H, W).
    """
    columns = [_snapshots(store, spec, picture) for spec, picture in zip(specs, pictures, strict=True)]
    targets = plots.side_by_side(*_level([_sized(picture) for picture in pictures]))
    frames = []
    for index in range(max(map(len, columns))):
        row = plots.side_by_side(*_level([column[min(index, len(column) - 1)] for column in columns]))
        frames.append(torch.cat([targets, torch.ones(3, 8, targets.shape[2]), row], dim=1))
    return plots.film(frames, per_second=_PER_SECOND)


def _snapshots(store: Store, spec: Spec, truth: Tensor) -> list[Tensor]:
    """What the fit showed at each of its snapshots, with its caption."""
    result = _finished(store, spec)
    epoch = spec.batches.steps_per_epoch(truth.shape[1] * truth.shape[2])
    shots = [(step, weights) for step, weights in sorted(result.kept.items()) if step < result.steps]
    frames = []
    for step, weights in (*shots, (result.steps, result.weights)):
        network = modelfile.Network(spec.model, weights, spec.plain)
        shown = render.render(network, device="cuda" if torch.cuda.is_available() else "cpu").clamp(0, 1)
        error = metrics.mse(shown, truth)
        caption = f"Epoch {step / epoch:.4g} | MSE={error:.2e} | PSNR={metrics.psnr_of_mse(error):.2f} dB"
        frames.append(plots.captioned(_sized(shown), caption))
    return frames


def _finished(store: Store, spec: Spec) -> Result:
    result = store.get(spec)
    assert result is not None
    return result


def _sized(picture: Tensor) -> Tensor:
    """The picture as RGB, made smaller or larger by a whole factor, to be shown."""
    colour = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture[:3]
    width = picture.shape[2]
    if width > _WIDTH:
        return F.avg_pool2d(colour[None], -(-width // _WIDTH))[0]
    return F.interpolate(colour[None], scale_factor=_WIDTH // width, mode="nearest")[0]


def _level(pictures: Sequence[Tensor]) -> list[Tensor]:
    """The pictures at one height, with white below the lower ones."""
    height = max(picture.shape[1] for picture in pictures)
    return [F.pad(picture, (0, 0, 0, height - picture.shape[1]), value=1.0) for picture in pictures]


def gate_maps(store: Store, fits: Mapping[str, Mapping[str, Spec]]) -> Figure:
    """What weight the gate gives to the first expert over each picture.

    Args:
        fits: finished fits with experts, by title of their row, then by picture.
    """
    rows = [
        [(f"{name}, {picture}", gate_map(_finished(store, spec))[0]) for picture, spec in specs.items()]
        for name, specs in fits.items()
    ]
    return plots.fields(rows, title="The gate over the picture", label="weight of the first expert")


def gate_map(result: Result) -> NDArray[np.float64]:
    """The weights of the experts over the picture, (experts, rows, columns), on at most 192 samples a side."""
    network = modelfile.Network.of(result)
    _, height, width = network.shape
    samples = (min(height, _SIDE), min(width, _SIDE))
    points = network.model.coordinates.grid(height, width, samples=samples)
    with torch.no_grad():
        weights: Tensor = network.module().get_submodule("gate")(points)
    return np.asarray(weights.T.reshape(-1, *samples).double().numpy())
