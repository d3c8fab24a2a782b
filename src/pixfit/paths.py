"""Paths from one picture of a memory to another: what is shown between them, depending on what is blended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pixfit import embedding
from pixfit.canonical import is_whole
from pixfit.embedding import Layer
from pixfit.modelfile import Network
from pixfit.models import Memory, RingCode
from pixfit.render import render

__all__ = ["SPACES", "Space", "arc", "blend", "blend_weights", "from_alpha", "line", "smoothness", "spaces", "through"]

Space = Literal["pixels", "hidden", "bottleneck", "code", "arc"]
SPACES: tuple[Space, ...] = get_args(Space)

_LONGEST = 4096  # frames of a path


def spaces(network: Network) -> tuple[Space, ...]:
    """The spaces of `blend` that a memory has. Raises ValueError for a model that is no memory."""
    one = network.one(0)
    found: list[Space] = ["pixels"]
    if one.model.plan(one.model.in_features, one.shape[0]) is not None:
        widths = embedding.hidden_features(one)
        found += ["hidden", *(["bottleneck"] if _narrow(widths) else [])]  # type: ignore[list-item]
    if network.codes.shape[1]:
        found.append("code")
    if isinstance(network.model, Memory) and isinstance(network.model.code, RingCode):
        found.append("arc")
    return tuple(found)


def blend(
    network: Network,
    a: int | str,
    b: int | str,
    space: Space,
    *,
    steps: int = 10,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The pictures (T, C, H, W) on the way from one picture of a memory to another, both included, not clamped.

    What is blended is (1 - t) a + t b at t = 0, 1 / (T - 1), … 1.

    Args:
        network: a memory.
        a, b: numbers or names of two of its pictures.
        space: what is blended. ``pixels``: the pictures that the network shows, the control. ``hidden``: the field of
            the last hidden layer; an affine map follows, so that it is the same but for rounding. ``bottleneck``: the
            field of the narrowest layer. ``code``: the codes, on a straight line (of a ring, the chord). ``arc``: the
            codes of a ring, along the shorter way around it. The weights of all pictures are the same but for a shift
            that is linear in the code, so that a line through the weights is that through the codes.
        steps: T, at least 2.
        size: (width, height) of the pictures, instead of their own.

    Raises:
        ValueError: a space that this memory does not have, no such picture, pictures of unequal sizes without a
            ``size``, or steps out of bounds.
    """
    ends = (network.one(a), network.one(b))
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; it may be {', '.join(SPACES)}")
    if space not in spaces(network):
        raise ValueError(f"{_MISSING[space]}; this memory has the spaces {', '.join(spaces(network))}")
    shapes = [end.shape[1:] for end in ends]
    if size is None and shapes[0] != shapes[1]:
        texts = [f"{width}x{height}" for height, width in shapes]
        raise ValueError(f"the two pictures are {texts[0]} and {texts[1]}; give one size for both")
    if space == "pixels":
        return line(render(ends[0], size=size), render(ends[1], size=size), steps)
    if space in ("hidden", "bottleneck"):
        layer: Layer = "last" if space == "hidden" else "narrowest"
        width, height = (shapes[0][1], shapes[0][0]) if size is None else size
        a_field, b_field = (embedding.field(end, layer=layer, size=size) for end in ends)
        blends = line(a_field, b_field, steps)
        return torch.stack([embedding.decode(ends[0], one, layer=layer).T.reshape(-1, height, width) for one in blends])
    first, last = (network.codes[network.number(which)] for which in (a, b))
    codes = arc(first, last, steps) if space == "arc" else line(first, last, steps)
    _check_frame(ends[0], ends[1])
    return through([network.shown(code, *shapes[0]) for code in codes], size=size)


_MISSING: dict[Space, str] = {
    "pixels": "it shows no pixels",
    "hidden": "its network is no list of layers, so that it has no hidden space",
    "bottleneck": "no hidden layer is narrower than those around it, so that it has no bottleneck",
    "code": "one picture needs no code",
    "arc": "its codes are not on a ring, so that they have no arc",
}


def blend_weights(a: Network, b: Network, *, steps: int = 10, size: tuple[int, int] | None = None) -> Tensor:
    """The pictures (T, C, H, W) of the networks on the straight line between the weights of two, not clamped.

    Meant for networks that one hypernetwork made, or that were fitted from one start: the weights of others lie too far
    apart for anything to be seen between them.

    Raises:
        ValueError: networks of unequal settings or sizes, or steps out of bounds.
    """
    if a.model != b.model or a.shape != b.shape:
        raise ValueError("weights are blended between networks with the same settings, of pictures of one size")
    weights = {name: line(value, b.weights[name], steps) for name, value in a.weights.items()}
    networks = [replace(a, weights={name: value[t] for name, value in weights.items()}) for t in range(steps)]
    return through(networks, size=size)


def through(networks: Sequence[Network], *, size: tuple[int, int] | None = None) -> Tensor:
    """What each of some networks of one picture shows (T, C, H, W), at a (width, height) other than its own, if given.

    Not clamped.
    """
    return torch.stack([render(network, size=size) for network in networks])


def line(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(T, …) of (1 - t) a + t b at t = 0, 1 / (T - 1), … 1, for tensors of one shape.

    Raises:
        ValueError: other than 2 to 4096 steps.
    """
    t = _places(steps).to(a.dtype).view(-1, *[1] * a.ndim)
    return (1 - t) * a + t * b


def arc(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(T, 2) of places on the circle around 0 between two places (2,) on it, by the shorter way, in equal angles.

    Raises:
        ValueError: a place at 0, or other than 2 to 4096 steps.
    """
    (x, y), (u, v) = a.tolist(), b.tolist()
    radius, other = math.hypot(x, y), math.hypot(u, v)
    if not radius or not other:
        raise ValueError("an arc goes around 0, and one of its ends is there")
    t = _places(steps)
    turn = math.remainder(math.atan2(v, u) - math.atan2(y, x), 2 * math.pi)
    angle = math.atan2(y, x) + t * turn
    places = ((1 - t) * radius + t * other)[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
    return places.to(a.dtype)


def from_alpha(path: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """How far each picture of a path is from the blend of its ends: root mean squares (T,), in units of [0, 1].

    Args:
        path: (T, C, H, W).
        a, b: (C, H, W), what is shown at t = 0 and at t = 1.
    """
    errors = path.double() - line(a.double(), b.double(), len(path))
    return errors.square().flatten(1).mean(dim=1).sqrt()


def smoothness(path: Tensor) -> float:
    """Root mean square of the second differences x[t - 1] - 2 x[t] + x[t + 1] of a path (T, C, H, W): 0 on a straight
    line. It shrinks with the square of the number of steps, so that only paths of one length can be compared.

    Raises:
        ValueError: a path of fewer than 3 pictures.
    """
    if len(path) < 3:
        raise ValueError(f"the smoothness of a path needs at least 3 pictures, got {len(path)}")
    wide = path.double()
    return float((wide[:-2] - 2 * wide[1:-1] + wide[2:]).square().mean().sqrt())


def _places(steps: int) -> Tensor:
    if not (is_whole(steps) and 2 <= steps <= _LONGEST):
        raise ValueError(f"steps is {steps!r}; it must be a whole number from 2 to {_LONGEST}")
    return torch.arange(steps, dtype=torch.float64) / (steps - 1)


def _narrow(widths: tuple[int, ...]) -> bool:
    """Whether the narrowest layer has wider ones before and after it."""
    at = widths.index(min(widths))
    return max(widths[:at], default=0) > widths[at] < max(widths[at + 1 :], default=0)


def _check_frame(a: Network, b: Network) -> None:
    """A code says nothing of its picture's sides, which coordinates that keep their ratio depend on."""
    (_, height, width), (_, rows, columns) = a.shape, b.shape
    if a.model.coordinates.aspect == "keep" and height * columns != rows * width:
        raise ValueError(
            f"the two pictures are {width}x{height} and {columns}x{rows}, and the coordinates here keep the ratio of "
            "the sides, so that no code leads from one to the other; take pictures of one shape"
        )
