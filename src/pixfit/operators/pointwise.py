"""Operators that leave each pixel at its place: the picture itself, and a part of its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Operator, Shape

__all__ = ["Identity", "Inpaint"]


@dataclass(frozen=True)
class Identity(Operator):
    """The picture itself."""

    pointwise: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        return y


@dataclass(frozen=True, eq=False)
class Inpaint(Operator):
    """Keeps known pixels and blanks the others. `pixfit.operators.masks` makes masks.

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

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
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
