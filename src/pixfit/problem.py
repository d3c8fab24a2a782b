"""The keeper of the truth: a picture, how it was measured, and the little of it that a fit may see.

`Problem` holds the picture. Its `view` is all that the training loop gets: the measurement, the operator and which
samples it may use. Scores against the truth are computed elsewhere, by watchers that cannot talk back to the loop.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.noise import GaussianNoise as GaussianNoise  # it is importable from here, too
from pixfit.noise import Noise
from pixfit.operators import External, Identity, Operator

__all__ = ["Problem", "Sealed", "View", "stream"]


def stream(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each use of one seed: drawing more from one stream never shifts another.

    Args:
        seed: any integer from 0 to 2^63 − 1.
        name: what the numbers are for, such as ``"weights"`` or ``"noise"``.
    """
    if not (is_whole(seed) and 0 <= seed < 2**63):
        raise ValueError(f"seed is {seed!r}; it must be 0 to 2^63 - 1")
    mixed = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(mixed[:7], "big"))


@dataclass(frozen=True)
class View:
    """All that a fit sees of a problem.

    Args:
        measurement: (C', H', W') float32, in units of the picture's range [0, 1] (noise may lead out of it).
        operator: how a picture becomes the measurement.
        shape: (C, H, W) of the picture that is sought.
        use: bool (1 or C', H', W'), the samples the loss may use; None: all.
        held_out: bool (1 or C', H', W'), measured samples kept out of the loss, for choosing; None: no such.
    """

    measurement: Tensor
    operator: Operator
    shape: tuple[int, int, int]
    use: Tensor | None = None
    held_out: Tensor | None = None

    def samples(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The fitted samples of a pointwise operator, one a pixel: index, targets and weights.

        Returns:
            index: (N,) places in row-major order of the pixels with at least one channel in use.
            targets: (N, C) in [0, 1].
            weights: (N, C) of 0 and 1 where some channels of these pixels are not in use, else None.
        """
        channels = self.measurement.shape[0]
        flat = self.measurement.reshape(channels, -1).T.contiguous()
        if self.use is None:
            return torch.arange(flat.shape[0]), flat, None
        use = self.use.expand(channels, -1, -1).reshape(channels, -1).T
        index = use.any(dim=1).nonzero()[:, 0]
        weights = use[index].to(flat.dtype)
        return index, flat[index], None if bool((weights == 1).all()) else weights


@dataclass(frozen=True, eq=False)
class Problem:
    """A picture to be represented or restored.

    Args:
        image: the true picture; a tensor (C, H, W) or an array (H, W, C) is taken by `Image.from_array`.
        operator: how it was measured; by default it is seen as it is. Any object with ``A`` and ``A_adjoint`` is taken
            as `pixfit.operators.External`.
        noise: what was added to the measurement (`pixfit.noise`); None for nothing.
        held_out: fraction in [0, 1) of the measured pixels that is kept out of the loss, drawn with ``seed``.
        seed: of the noise and of the held-out pixels.

    Raises:
        TypeError: what is no picture, operator or noise.
        ValueError: an operator that does not fit the picture, or nothing left to fit.
    """

    image: Image  # in the constructor also a tensor or an array
    operator: Operator = field(default_factory=Identity)  # in the constructor also an object with A and A_adjoint
    noise: Noise | None = None
    held_out: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.image, (Tensor, np.ndarray)):
            object.__setattr__(self, "image", Image.from_array(self.image))
        if not isinstance(self.image, Image):
            raise TypeError(
                f"a problem needs a pixfit.images.Image, got {type(self.image).__name__}; "
                "load one with pixfit.images.load, or make one with pixfit.images.Image.from_array"
            )
        if not (is_number(self.held_out) and 0 <= self.held_out < 1):
            raise ValueError(f"held_out is {self.held_out!r}; it is a fraction from 0 up to, but not including, 1")
        operator: Any = self.operator
        if not isinstance(operator, Operator):
            object.__setattr__(self, "operator", External(operator, self.shape))
        noise: Any = self.noise
        if noise is not None and not isinstance(noise, Noise):
            raise TypeError(f"the noise is {noise!r}; it must be one of pixfit.noise, such as GaussianNoise(25 / 255)")
        self.operator.output_shape(self.shape)
        stream(self.seed, "held-out")  # refuses what is no seed, now rather than at the first view

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the picture."""
        return (self.image.channels, self.image.height, self.image.width)

    @cached_property
    def view(self) -> View:
        """What the fit may see; computed once."""
        y = self.operator.measure(self.image.data)
        if self.noise is not None:
            y = self.noise(y, stream(self.seed, "noise"))
        known = self.operator.known(self.shape)
        if self.held_out == 0:
            return View(y, self.operator, self.shape, known)
        if known is not None:
            y = y * known
        measured = torch.ones(1, *y.shape[1:], dtype=torch.bool) if known is None else known.any(dim=0, keepdim=True)
        draw = torch.rand(measured.shape, generator=stream(self.seed, "held-out"))
        chosen = measured & (draw < self.held_out)
        held_out = chosen if known is None else known & chosen
        use = (measured if known is None else known) & ~chosen
        if not bool(use.any()):
            raise ValueError(f"held_out = {self.held_out} leaves no pixel to fit; lower it")
        if not bool(held_out.any()):
            raise ValueError(f"held_out = {self.held_out} holds out none of {int(measured.sum())} pixels; raise it")
        return View(y, self.operator, self.shape, use, held_out)


@dataclass(frozen=True)
class Sealed:
    """A problem known by its record alone: what a stored fit or a model file says of the picture it was fitted to."""

    record: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        image = self.record["image"]
        return (int(image["channels"]), int(image["height"]), int(image["width"]))

    @property
    def view(self) -> View:
        raise ValueError(
            "this fit was read from a file, which never holds the picture; make the problem again from the picture"
        )

    def canonical_value(self) -> dict[str, Any]:
        return self.record
