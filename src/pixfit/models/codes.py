"""Codes: how a network that holds many pictures is told which of them to show.

A code is a vector of some numbers for each of N pictures, in their order. The network takes it beside the coordinates
of a pixel. Blends of two codes show what lies between two pictures, or would if the network had learned to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import check_integer, check_number

__all__ = ["CODES", "AxisCode", "BinaryCode", "Code", "LearnedCode", "RingCode"]


class Code(ABC):
    """Base of all codes."""

    @property
    def learned(self) -> bool:
        """Whether the vectors are parameters of the network, which `table` then does not know."""
        return False

    @abstractmethod
    def features(self, count: int) -> int:
        """How many numbers the code of each of `count` pictures has."""

    @abstractmethod
    def table(self, count: int) -> Tensor:
        """The codes (count, features) in float64 of pictures 0 to count - 1."""


@dataclass(frozen=True)
class BinaryCode(Code):
    """The picture's number in binary: ceil(log2 N) numbers of 0 and 1, most significant first."""

    def features(self, count: int) -> int:
        return (count - 1).bit_length()

    def table(self, count: int) -> Tensor:
        places = torch.arange(self.features(count) - 1, -1, -1)
        return ((torch.arange(count)[:, None] >> places) & 1).double()


@dataclass(frozen=True)
class AxisCode(Code):
    """One further coordinate, scale (-1 + 2 i / (N - 1)) for picture i; 0 for a single one.

    With the scale 1 and a hundred pictures, neighbours lie 0.02 apart: in a SIREN with omega 30 their phases in the
    first layer differ by 0.2 at the most when it begins, so that they show through each other. A larger scale is a
    higher frequency along this axis.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "scale", 0.0, 1e6, exclusive=True)

    def features(self, count: int) -> int:
        return 1

    def table(self, count: int) -> Tensor:
        index = torch.arange(count, dtype=torch.float64)
        return (self.scale * (2.0 * index - (count - 1)) / max(count - 1, 1))[:, None]


@dataclass(frozen=True)
class RingCode(Code):
    """A place on a circle, radius (sin pi z, cos pi z) with z = -1 + 2 i / N for picture i: closed."""

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "radius", 0.0, 1e6, exclusive=True)

    def features(self, count: int) -> int:
        return 2

    def table(self, count: int) -> Tensor:
        angle = math.pi * (2.0 * torch.arange(count, dtype=torch.float64) / count - 1.0)
        return self.radius * torch.stack((torch.sin(angle), torch.cos(angle)), dim=1)


@dataclass(frozen=True)
class LearnedCode(Code):
    """A vector for each picture that is trained with the network (auto-decoder; Park et al., DeepSDF, CVPR 2019).

    size  how many numbers.
    std   they start as N(0, std^2).
    """

    size: int = 16
    std: float = 0.01

    def __post_init__(self) -> None:
        check_integer(self, "size", 1, 65536)
        check_number(self, "std", 0.0, 1e3)

    @property
    def learned(self) -> bool:
        return True

    def features(self, count: int) -> int:
        return self.size

    def table(self, count: int) -> Tensor:
        """Raises ValueError: the codes are among the network's weights."""
        raise ValueError("learned codes are among the network's weights; take them with Memory.codes(weights)")


CODES: dict[str, type[Code]] = {
    "BinaryCode": BinaryCode, "AxisCode": AxisCode, "RingCode": RingCode, "LearnedCode": LearnedCode,
}  # fmt: skip
