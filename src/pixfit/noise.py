"""What is added to a measurement: noise as frozen values, drawn from the problem's own stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pixfit.canonical import is_number

__all__ = ["NOISES", "Clipped", "GaussianNoise", "Noise", "PoissonNoise", "SaltAndPepper"]


class Noise:
    """Base of all noise: a measurement (C', H', W') to one of its shape, with numbers from the generator alone."""

    def __call__(self, y: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """White noise of standard deviation ``sigma``, in units of the range [0, 1] (25/255 ≈ 0.098 is a usual test)."""

    sigma: float

    def __post_init__(self) -> None:
        if not (is_number(self.sigma) and 0 <= self.sigma <= 10):
            raise ValueError(
                f"noise.sigma is {self.sigma!r}; it must be 0 to 10, in units of the picture's range [0, 1]"
            )

    def __call__(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return y + self.sigma * torch.randn(y.shape, generator=generator)


@dataclass(frozen=True)
class PoissonNoise(Noise):
    """Counting noise: a sample y becomes Poisson(peak · y) / peak, of the mean y and the variance y / peak.

    ``peak`` is the mean count at white (1.0): the lower, the noisier; 30 is a usual test. What an operator may leave
    below 0 counts as 0.
    """

    peak: float

    def __post_init__(self) -> None:
        if not (is_number(self.peak) and 0 < self.peak <= 1e6):
            raise ValueError(f"noise.peak is {self.peak!r}; it is the count at white, above 0 and up to 1000000")

    def __call__(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.peak * y.clamp(min=0), generator=generator) / self.peak


@dataclass(frozen=True)
class SaltAndPepper(Noise):
    """Impulse noise: samples are replaced by 1 or by 0, either with probability ``rate`` / 2.

    Args:
        rate: fraction in [0, 1] of the samples that are replaced.
        pixels: whether all channels of a pixel are replaced by one value; else each sample by itself.
    """

    rate: float
    pixels: bool = False

    def __post_init__(self) -> None:
        if not (is_number(self.rate) and 0 <= self.rate <= 1):
            raise ValueError(f"noise.rate is {self.rate!r}; it is the fraction of samples that are replaced, 0 to 1")
        if not isinstance(self.pixels, bool):
            raise ValueError(f"noise.pixels is {self.pixels!r}; it must be True (whole pixels) or False")

    def __call__(self, y: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.rand((1, *y.shape[1:]) if self.pixels else y.shape, generator=generator)
        return torch.where(draw < self.rate, (draw < self.rate / 2).to(y.dtype), y)


@dataclass(frozen=True)
class Clipped(Noise):
    """Other noise, and then everything is clipped to [0, 1], as in most published denoising tests."""

    noise: Noise

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Noise):
            raise ValueError(f"noise.noise is {self.noise!r}; it must be noise, such as GaussianNoise(25 / 255)")

    def __call__(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.noise(y, generator).clamp(0, 1)


NOISES: dict[str, type[Noise]] = {
    "GaussianNoise": GaussianNoise, "PoissonNoise": PoissonNoise, "SaltAndPepper": SaltAndPepper, "Clipped": Clipped,
}  # fmt: skip
