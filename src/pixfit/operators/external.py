"""Operators from elsewhere: objects with ``A`` and ``A_adjoint``, as the physics of the library deepinv have them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .base import Operator, Shape, fingerprint, linear

__all__ = ["External", "Physics"]

_TOLERANCE = 1e-3  # of the norms: what float32 and long sums may cost; a wrong adjoint is off by far more


class Physics(Protocol):
    """A linear map that somebody else wrote, on batches of pictures."""

    def A(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) to measurements (N, ...)."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Measurements (N, ...) to pictures (N, C, H, W)."""


@dataclass(frozen=True, eq=False)
class External(Operator):
    """An object with ``A`` and ``A_adjoint`` as an operator. `Problem` makes one of every such object that it is given.

    ``A`` takes pictures (N, C, H, W) to measurements (N, ...) of one to three dimensions each, which count as
    (1, 1, m), (1, H', W') or (C', H', W'). Both methods must be linear, and take the precision of the fit (float32 by
    default). A module of torch is copied to the device of what it is given; any other object must take what comes.
    Gradients come from ``A_adjoint``, so ``A`` need not be differentiable. Noise that the object may add is not used.

    Args:
        physics: the object. It must not change afterwards.
        shape: (C, H, W) of the pictures that it takes.
        name: what it is called in ids of fits: two objects of one name and shape are one operator, which the name
            vouches for. Without a name its id is a hash of what it makes of one fixed random picture, bit by bit: no
            two operators are confused, but another machine, or another number of threads, may give the same one
            another id, so that finished fits are not found again.

    Raises:
        TypeError: an object without these methods.
        ValueError: one that is not linear, or whose ``A_adjoint`` is not the adjoint of ``A`` (both are tried on random
            pictures), or whose measurements have another number of dimensions.
    """

    physics: Physics
    shape: Shape
    name: str = ""
    measured: tuple[int, ...] = field(init=False, repr=False)
    """The shape that ``A`` gives one measurement."""
    response: str = field(init=False, repr=False)
    """Hash of the measurement of a fixed random picture."""

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.physics, method, None)) for method in ("A", "A_adjoint")):
            raise TypeError(
                f"the operator is a {type(self.physics).__name__}; it must be one of pixfit.operators, "
                "or an object with A and A_adjoint"
            )
        if not isinstance(self.name, str):
            raise ValueError(f"name is {self.name!r}; it must be a text")
        object.__setattr__(self, "shape", tuple(self.shape))
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.randn(1, *self.shape, generator=generator, device="cpu")
        with torch.no_grad():
            y = _on(self.physics, x.device).A(x)
            if not 2 <= y.dim() <= 4 or len(y) != 1:
                raise ValueError(
                    f"{self._label}.A makes {tuple(y.shape)} of one picture {tuple(x.shape)}; "
                    "it must keep the first dimension, and have one to three more"
                )
            object.__setattr__(self, "measured", tuple(y.shape[1:]))
            object.__setattr__(self, "response", fingerprint(y))
            self._check(x, y, torch.randn(y.shape, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._measure, self._back)

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        return linear(y, self._back, self._measure)

    def output_shape(self, shape: Shape) -> Shape:
        if tuple(shape) != self.shape:
            raise ValueError(f"{self._label} takes pictures (C, H, W) = {self.shape}, got {tuple(shape)}")
        channels, height, width = (1, 1, *self.measured)[-3:]
        return channels, height, width

    def canonical_value(self) -> dict[str, Any]:
        identity = {"name": self.name} if self.name else {"response": self.response}
        return {"kind": "External", **identity, "shape": list(self.shape)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, External) and self.canonical_value() == other.canonical_value()

    def __hash__(self) -> int:
        return hash(str(self.canonical_value()))

    @property
    def _label(self) -> str:
        return self.name or type(self.physics).__name__

    def _measure(self, x: Tensor) -> Tensor:
        y = _on(self.physics, x.device).A(x.reshape(-1, *self.shape))
        return y.reshape(*x.shape[:-3], *self.output_shape(self.shape)).clone()  # it may have handed out its argument

    def _back(self, y: Tensor) -> Tensor:
        x = _on(self.physics, y.device).A_adjoint(y.reshape(-1, *self.measured))
        return x.reshape(*y.shape[:-3], *self.shape).clone()

    def _check(self, x: Tensor, y: Tensor, other: Tensor) -> None:
        physics = _on(self.physics, x.device)
        scale = float(y.norm())
        if float((physics.A(-2 * x) + 2 * y).norm()) > _TOLERANCE * scale:
            raise ValueError(f"{self._label}.A is not linear; an operator must be, without noise or clipping")
        other = y + other * (scale / float(other.norm()))
        back = physics.A_adjoint(other)
        if back.shape != x.shape:
            raise ValueError(f"{self._label}.A_adjoint makes {tuple(back.shape)} of what came from {tuple(x.shape)}")
        there, here = float((y * other).sum()), float((x * back).sum())
        if abs(there - here) > _TOLERANCE * scale * float(other.norm()):
            raise ValueError(
                f"{self._label}.A_adjoint is not the adjoint of its A: ⟨Ax, y⟩ = {there:.6g}, but ⟨x, A*y⟩ = {here:.6g}"
            )


_COPIES: WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]] = WeakKeyDictionary()


def _on(physics: Physics, device: torch.device) -> Physics:
    """The object itself, or its copy on the device if it is a module with tensors elsewhere."""
    if not isinstance(physics, nn.Module):
        return physics
    if all(tensor.device == device for tensor in chain(physics.parameters(), physics.buffers())):
        return physics
    copies = _COPIES.setdefault(physics, {})
    if device not in copies:
        copies[device] = copy.deepcopy(physics).to(device)
    return cast(Physics, copies[device])
