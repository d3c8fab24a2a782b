"""Where a fit's weights come from: random, a file, or another fit, transformed; and masks that keep weights at zero.

A start is a value. What it names is looked up by `pixfit.run` and cloned by the engine, so no fit can change the start
of another (a published study got this wrong by keeping a reference to live weights).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixfit.canonical import is_whole

__all__ = ["FromPicture", "Start", "Weights", "filled", "magnitude_mask", "merge"]


@dataclass(frozen=True, eq=False)
class Weights:
    """Named tensors as a value, known by the hash of their content."""

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "tensors", {name: value.detach().cpu().clone() for name, value in self.tensors.items()}
        )

    def canonical_value(self) -> dict[str, Any]:
        mixed = hashlib.sha256()
        for name in sorted(self.tensors):
            value = self.tensors[name].contiguous()
            mixed.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            mixed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        return {"kind": "Weights", "hash": mixed.hexdigest()[:20]}


@dataclass(frozen=True)
class FromPicture:
    """The picture itself, as it was measured: the model makes weights of it that show it (`Model.from_picture`).

    Pixels that were not measured, or are held out, are filled in from those around them first.
    """


@dataclass(frozen=True, eq=False)
class Start:
    """The weights and the mask that a fit begins with.

    Args:
        weights: None for random ones drawn with the spec's seed; a `pixfit.Spec` for the end of that fit, which is
            then run first; `Weights`, such as those of a finished result or a model file; or `FromPicture()`.
        step: with a spec, the step of that fit to take instead of its end.
        layers: take only the first that many parameter groups (``layers.0``, ``layers.1``, …) and draw the rest at
            random; None takes all.
        mask: `Weights` of 0 and 1 for some or all parameters; where it is 0 the weight is held at zero. None: no mask.
    """

    weights: Any = None
    step: int | None = None
    layers: int | None = None
    mask: Weights | None = field(default=None)

    def __post_init__(self) -> None:
        alone = self.weights is None or isinstance(self.weights, (Weights, FromPicture))
        if not (alone or hasattr(self.weights, "plain")):
            got = type(self.weights).__name__
            raise TypeError(
                f"start.weights is a {got}; give the spec of another fit, Weights(named tensors), or FromPicture()"
            )
        if self.step is not None and alone:
            raise ValueError("start.step names a step of another fit; give that fit's spec as start.weights")
        if self.layers is not None and self.weights is None:
            raise ValueError("start.layers says how much to take of start.weights; give those, or leave layers out")
        for name in ("layers", "step"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value >= 0):
                raise ValueError(f"start.{name} is {value!r}; it must be a whole number, 0 or more")
        if self.mask is not None and not isinstance(self.mask, Weights):
            raise ValueError(f"start.mask is a {type(self.mask).__name__}; give pixfit.Weights of 0 and 1, or None")
        for name, value in ({} if self.mask is None else self.mask.tensors).items():
            if not bool(((value == 0) | (value == 1)).all()):
                raise ValueError(f"start.mask holds only 0 (held at zero) and 1 (trained), but {name} has other values")


def merge(fresh: Mapping[str, Tensor], source: Mapping[str, Tensor], *, layers: int | None = None) -> dict[str, Tensor]:
    """The random weights ``fresh`` with those of ``source`` in their place, all cloned.

    Args:
        fresh: every tensor of the network.
        source: the tensors to take; names and shapes must be the network's.
        layers: take only those of the first that many layers, counted as the leading groups of ``fresh``'s names.

    Raises:
        ValueError: a name that the network does not have, or another shape: the two networks differ.
    """
    groups = list(dict.fromkeys(_group(name) for name in fresh))
    wanted = groups if layers is None else groups[:layers]
    missing = sorted(name for name in fresh if _group(name) in wanted and name not in source)
    foreign = sorted(set(source) - set(fresh))
    if missing or foreign:
        raise ValueError(
            f"the start belongs to another network: it lacks {_some(missing)} and has in excess {_some(foreign)}"
        )
    taken = {name: source[name] if _group(name) in wanted else value for name, value in fresh.items()}
    for name, value in taken.items():
        if value.shape != fresh[name].shape:
            raise ValueError(
                f"the start belongs to another network: {name} is {tuple(value.shape)} there and "
                f"{tuple(fresh[name].shape)} here; use the same model settings"
            )
    return {name: value.detach().clone().to(fresh[name].dtype) for name, value in taken.items()}


def filled(picture: Tensor, known: Tensor | None) -> Tensor:
    """A picture (C, H, W) whose unknown samples are means of the known ones around them.

    Means over squares of 2, 4, 8, … pixels; where a square knows nothing the next larger ones are interpolated (pull
    and push; Gortler et al., SIGGRAPH 1996).

    Args:
        picture: what stands at unknown samples does not matter.
        known: bool (1 or C, H, W); None: all of it, and the picture is returned as it is. A channel of which nothing
            is known becomes 1/2.
    """
    if known is None:
        return picture
    weights = known.expand_as(picture).to(picture.dtype)
    return _pulled(torch.where(weights > 0, picture, 0.0), weights)


def _pulled(sums: Tensor, weights: Tensor) -> Tensor:
    means = sums / weights.clamp(min=1.0)
    if bool((weights > 0).all()):
        return means
    height, width = sums.shape[1:]
    if height == width == 1:
        return torch.where(weights > 0, means, 0.5)
    margin = (0, width % 2, 0, height % 2)
    parts = [4.0 * F.avg_pool2d(F.pad(value, margin)[None], 2)[0] for value in (sums, weights)]
    coarse = _pulled(parts[0], parts[1])[None]
    pushed = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return torch.where(weights > 0, means, pushed)


def magnitude_mask(weights: Mapping[str, Tensor], keep: float, *, only: Iterable[str] | None = None) -> Weights:
    """A mask that keeps the fraction ``keep`` of largest weights, ranked over all named tensors together.

    Global magnitude pruning (Han et al. 2015; Frankle and Carbin 2019). By default every weight of a linear map is
    ranked, which leaves biases, norms and the frequencies of an encoding whole.

    Raises:
        ValueError: ``keep`` out of range, or a name in ``only`` that ``weights`` does not have.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}; it is a fraction above 0 and up to 1")
    names = list(only) if only is not None else [name for name, value in weights.items() if _is_matrix(name, value)]
    if not names:
        raise ValueError("there is no tensor to prune")
    if missing := sorted(set(names) - set(weights)):
        raise ValueError(f"the weights do not have {_some(missing)}; they have {', '.join(weights)}")
    ranked = torch.cat([weights[name].abs().flatten() for name in names])
    kept = torch.zeros_like(ranked)
    kept[ranked.topk(max(1, round(keep * ranked.numel()))).indices] = 1
    sizes = [weights[name].numel() for name in names]
    parts = kept.split(sizes)  # type: ignore[no-untyped-call]
    return Weights({name: part.view_as(weights[name]) for name, part in zip(names, parts, strict=True)})


def _group(name: str) -> str:
    """``layers.0`` of ``layers.0.weight``: the tensor's name without its last part."""
    return name.rpartition(".")[0]


def _is_matrix(name: str, value: Tensor) -> bool:
    return value.dim() >= 2 and name.rpartition(".")[2].startswith("weight")


def _some(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
