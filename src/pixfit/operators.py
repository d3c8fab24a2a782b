"""How a picture becomes a measurement: linear operators with exact adjoints.

An operator is a frozen value. ``forward`` takes pictures ``(..., C, H, W)`` in [0, 1] to measurements, ``adjoint``
takes measurements back; ``⟨forward(x), y⟩ = ⟨x, adjoint(y)⟩`` for all x and y, which one test checks for every member
of `OPERATORS`. To add one, write a frozen dataclass with these methods and put it into the table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pixfit.canonical import is_whole

__all__ = ["OPERATORS", "BoxDownsample", "Identity", "Inpaint", "Operator", "Shape"]

Shape = tuple[int, int, int]


class Operator:
    """Base of all operators: a linear map from a picture (C, H, W) to a measurement (C', H', W')."""

    pointwise: ClassVar[bool] = False
    """Whether a measured sample depends on the pixel at its place alone; only then can a fit draw batches of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def output_shape(self, shape: Shape) -> Shape:
        """The measurement's (C', H', W') for a picture of ``shape`` (C, H, W). Raises ValueError if it does not fit."""
        return shape

    def known(self, shape: Shape) -> Tensor | None:
        """Bool (1, H', W') or (C', H', W'), True where a sample was measured; None: everywhere."""
        return None


@dataclass(frozen=True)
class Identity(Operator):
    """The picture itself."""

    pointwise: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True, eq=False)
class Inpaint(Operator):
    """Keeps known pixels and blanks the others.

    Args:
        mask: (H, W) for whole pixels, or (C, H, W) per channel; bool, or numbers that are all 0 or 1.
            1 (white) is known, 0 (black) is to be filled.

    Raises:
        ValueError: other shapes or values, or a mask that knows nothing.
    """

    mask: Tensor
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask)
        if mask.dim() not in (2, 3):
            raise ValueError(f"a mask has shape (H, W) or (C, H, W), got {tuple(mask.shape)}")
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("a mask holds only 0 (to be filled) and 1 (known); threshold it first, as in mask > 0.5")
        mask = mask.bool().clone()
        if not bool(mask.any()):
            raise ValueError("the mask marks no pixel as known (white); nothing could be fitted")
        object.__setattr__(self, "mask", mask if mask.dim() == 3 else mask[None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.device, x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask.to(y.device, y.dtype)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = self.mask.shape
        if (height, width) != tuple(shape[1:]) or channels not in (1, shape[0]):
            raise ValueError(
                f"the mask is {width}×{height} with {channels} channel(s), "
                f"the picture {shape[2]}×{shape[1]} with {shape[0]}; both must have one size"
            )
        return shape

    def known(self, shape: Shape) -> Tensor | None:
        self.output_shape(shape)
        return self.mask

    def canonical_value(self) -> dict[str, Any]:
        bits = self.mask.to(torch.uint8).cpu().numpy().tobytes()
        return {"kind": "Inpaint", "mask": hashlib.sha256(bits).hexdigest()[:20], "shape": list(self.mask.shape)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inpaint) and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash(str(self.canonical_value()))


@dataclass(frozen=True)
class BoxDownsample(Operator):
    """The mean over blocks of ``factor`` × ``factor`` pixels. The sides must be multiples of the factor."""

    factor: int = 2

    def __post_init__(self) -> None:
        if not (is_whole(self.factor) and 1 <= self.factor <= 64):
            raise ValueError(f"factor is {self.factor!r}; it may be 1 to 64")

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = self.output_shape((x.shape[-3], x.shape[-2], x.shape[-1]))
        k = self.factor
        return x.reshape(*x.shape[:-3], channels, height, k, width, k).mean(dim=(-3, -1))

    def adjoint(self, y: Tensor) -> Tensor:
        k = self.factor
        return y.repeat_interleave(k, dim=-2).repeat_interleave(k, dim=-1) / (k * k)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"a {width}×{height} picture cannot be cut into {self.factor}×{self.factor} blocks; crop it first"
            )
        return channels, height // self.factor, width // self.factor


OPERATORS: dict[str, type[Operator]] = {"Identity": Identity, "Inpaint": Inpaint, "BoxDownsample": BoxDownsample}
