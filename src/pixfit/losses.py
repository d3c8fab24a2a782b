"""What the loop may minimise: elementwise distances, which the engine averages over samples and channels.

They are computed in the network's own target range (`pixfit.models`), so ``MSE`` of a network with the range [−1, 1]
is four times that of the same picture in [0, 1], as in the publications (see docs/conventions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from pixfit.canonical import is_number

__all__ = ["L1", "LOSSES", "MSE", "Huber", "Loss"]


class Loss:
    """Base of all losses: ``(prediction, target)`` of one shape to a tensor of that shape."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class MSE(Loss):
    """Squared error."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square()


@dataclass(frozen=True)
class L1(Loss):
    """Absolute error: robust to outliers such as impulse noise."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs()


@dataclass(frozen=True)
class Huber(Loss):
    """Squared below ``delta``, linear above (Huber 1964), in units of the target range."""

    delta: float = 0.1

    def __post_init__(self) -> None:
        if not (is_number(self.delta) and self.delta > 0):
            raise ValueError(f"loss.delta is {self.delta!r}; it must be a number above 0")

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.huber_loss(prediction, target, reduction="none", delta=self.delta)


LOSSES: dict[str, type[Loss]] = {"MSE": MSE, "L1": L1, "Huber": Huber}
