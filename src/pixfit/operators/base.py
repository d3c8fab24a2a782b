"""What all operators share: the interface, linear maps whose gradient is their adjoint, and hashes of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Operator", "Shape", "fingerprint", "linear", "shape_of", "working_dtype"]

Shape = tuple[int, int, int]


class Operator:
    """Base of all operators: a linear map from a picture (C, H, W) to a measurement (C', H', W').

    Leading dimensions pass through, any float type and device is taken, and `forward` is differentiable.
    """

    pointwise: ClassVar[bool] = False
    """Whether a measured sample depends on the pixel at its place alone; only then can a fit draw batches of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (..., C, H, W) to measurements (..., C', H', W')."""
        raise NotImplementedError

    def adjoint(self, y: Tensor, shape: Shape | None = None) -> Tensor:
        """Measurements (..., C', H', W') to pictures (..., C, H, W).

        Args:
            shape: (C, H, W) of the picture, for operators whose measurement does not tell it.
        """
        raise NotImplementedError

    def measure(self, x: Tensor) -> Tensor:
        """The measurement that a problem is made of; `forward`, unless a protocol models another map than it uses."""
        return self.forward(x)

    def output_shape(self, shape: Shape) -> Shape:
        """The measurement's (C', H', W') for a picture of ``shape`` (C, H, W). Raises ValueError if it does not fit."""
        return shape

    def known(self, shape: Shape) -> Tensor | None:
        """Bool (1, H', W') or (C', H', W'), True where a sample was measured; None: everywhere."""
        return None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        return there(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return linear(gradient, ctx.back, ctx.there), None, None


def linear(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """``there(x)``, whose gradient is ``back``: nothing is kept for the way back, and it may be differentiated again.

    Args:
        there: a linear map.
        back: its adjoint.
    """
    result: Tensor = _Linear.apply(x, there, back)  # type: ignore[no-untyped-call]
    return result


def shape_of(x: Tensor) -> Shape:
    """(C, H, W) of pictures or measurements (..., C, H, W)."""
    return (x.shape[-3], x.shape[-2], x.shape[-1])


def working_dtype(x: Tensor) -> torch.dtype:
    """The type to compute in: that of ``x``, but float32 for the half types, whose sums would be rounded too early."""
    return torch.promote_types(x.dtype, torch.float32)


def fingerprint(tensor: Tensor) -> str:
    """20 hexadecimal digits, of the SHA-256 of the numbers as float64; −0.0 counts as 0.0. The shape does not enter."""
    numbers = (tensor.detach().double().cpu() + 0.0).contiguous().numpy().astype("<f8", copy=False)
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:20]
