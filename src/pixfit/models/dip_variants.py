"""Deep image priors with something beside the network: outliers, a penalty on the picture, or a code that is learned.

Each stands around another prior (`inner`), of which it takes all that it does not change, and is fitted by the same
loop. A penalty has its gradient added to that of the loss; the loss that a fit shows is without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from .base import TargetRange, check_integer, check_kind, check_number
from .conv import Descent, Hourglass, Perturbation, PicturePrior
from .conv_networks import PictureNetwork

__all__ = [
    "VARIANTS", "AutoencodingSequential", "DoublyOverparameterised", "PriorVariant", "SelfGuided", "TotalVariation",
    "VariantNetwork",
]  # fmt: skip

_HOURGLASS = Hourglass()
_STILL = Hourglass(perturbation=Perturbation(0.0))
_SHAKEN = Hourglass(perturbation=Perturbation(0.25))
_CHANNELS = 4  # of a picture, at most
_INNER = "inner."


class PriorVariant(PicturePrior):
    """What the variants share; not a model by itself.

    inner  the prior inside, whose code, perturbation, output and size are theirs.

    Parameters are counted as those of the network inside: what stands for pixels beside it is not.
    """

    inner: PicturePrior

    def __post_init__(self) -> None:
        check_kind(self, "inner", PicturePrior)

    @property
    def code_scale(self) -> float:  # type: ignore[override]
        return self.inner.code_scale

    @property
    def perturbation(self) -> Perturbation:  # type: ignore[override]
        return self.inner.perturbation

    @property
    def output(self) -> Literal["sigmoid", "linear"]:  # type: ignore[override]
        return self.inner.output

    @property
    def size(self) -> tuple[int, int] | None:  # type: ignore[override]
        return self.inner.size

    @property
    def target_range(self) -> TargetRange:  # type: ignore[override]
        return self.inner.target_range

    def sized(self, height: int, width: int) -> Self:
        return replace(self, inner=self.inner.sized(height, width))  # type: ignore[type-var]

    @property
    def code_shape(self) -> tuple[int, int, int]:
        return self.inner.code_shape

    @property
    def descents(self) -> tuple[Descent, ...]:
        return tuple(descent._replace(name=_INNER + descent.name) for descent in self.inner.descents)

    def explained(self, measured: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return self.inner.explained(measured, self.heir(weights))

    def heir(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inner network's tensors, for a fit of the inner prior that goes on from here."""
        return {name.removeprefix(_INNER): value for name, value in weights.items() if name.startswith(_INNER)}

    def check_size(self, height: int, width: int) -> None:
        self.inner.check_size(height, width)

    def parameters_count(self, in_features: int | None = None, out_features: int = 3) -> int:
        return self.inner.parameters_count(2, out_features)


class VariantNetwork(PictureNetwork):
    """A network around another one, which is its part ``inner``."""

    def __init__(self, inner: PictureNetwork) -> None:
        nn.Module.__init__(self)  # it has no code of its own
        self.inner, self.height, self.width = inner, inner.height, inner.width

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.inner.reset_parameters(generator)

    def forward(self, noise: Tensor) -> Tensor:
        shown: Tensor = self.inner(noise)
        return shown

    def as_picture(self, shown: Tensor) -> Tensor:
        """Pixels (H·W, C) as (C, H, W)."""
        return shown.T.reshape(-1, self.height, self.width)


class _Beside(torch.autograd.Function):
    """Passes its first argument through, and has its second, a number, minimised beside what the first goes into."""

    @staticmethod
    def forward(ctx: Any, shown: Tensor, penalty: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        return slopes[0], slopes[0].new_ones(())


def _beside(shown: Tensor, penalty: Tensor) -> Tensor:
    passed: Tensor = _Beside.apply(shown, penalty)  # type: ignore[no-untyped-call]
    return passed


# --------------------------------------------------------------------------------------------------------- outliers


@dataclass(frozen=True)
class DoublyOverparameterised(PriorVariant):
    """A prior beside outliers g∘g − h∘h, for impulse noise of unknown rate (You et al., NeurIPS 2020).

    What is fitted to the measurement is the picture and the outliers; what is shown is the picture. g and h have a
    value for each sample, start equal and tiny, and go down their own gradients, by which they grow as powers: first
    where the network goes on failing to explain a sample. So they stay sparse, and no penalty has to be weighed. It
    serves where a measured sample is a sample of the picture, as in denoising and inpainting. Let it take all its
    steps: squared errors at held-out pixels, which are struck too, are least for a picture that is too grey.

    rate   of the descent of g and h, see `Descent`: an outlier of size r takes about ln(√r / start) / (4 · rate · r)
           steps to appear. The authors' program has 500 on the mean over 512 x 512 pixels in three channels, which is
           6.4e-4, beside gradient descent of rate 1 for the network and 150,000 steps; the default was measured beside
           Adam(lr=0.01) and some hundred steps.
    start  of g and h; theirs are normal with the standard deviation 1e-5.
    """

    inner: PicturePrior = _HOURGLASS
    rate: float = 0.05
    start: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "rate", 0.0, 1.0, exclusive=True)
        check_number(self, "start", 0.0, 1.0, exclusive=True)

    @property
    def descents(self) -> tuple[Descent, ...]:
        return (*super().descents, Descent("plus", self.rate), Descent("minus", self.rate))

    def explained(self, measured: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        plus, minus = weights["plus"], weights["minus"]
        if measured.shape != plus.shape:
            raise ValueError(
                f"DoublyOverparameterised has an outlier for each sample of the picture, {tuple(plus.shape)}, but what "
                f"is measured of it is {tuple(measured.shape)}; use {type(self.inner).__name__} by itself"
            )
        return super().explained(measured, weights) + plus.square() - minus.square()

    def picture_network(self, height: int, width: int, out_features: int) -> VariantNetwork:
        inner = self.inner.picture_network(height, width, out_features)
        return _OutlierNetwork(inner, (out_features, height, width), self.start)


class _OutlierNetwork(VariantNetwork):
    def __init__(self, inner: PictureNetwork, shape: tuple[int, int, int], start: float) -> None:
        super().__init__(inner)
        self.start = start
        self.plus, self.minus = (nn.Parameter(torch.empty(shape)) for _ in range(2))

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.constant_(self.plus, self.start)
        nn.init.constant_(self.minus, self.start)


# ---------------------------------------------------------------------------------------------------------- penalties


@dataclass(frozen=True)
class TotalVariation(PriorVariant):
    """A prior whose picture has little total variation (Rudin et al. 1992; with a deep image prior Liu et al. 2019).

    strength  times the mean over samples of the length of the gradient is added to the loss, in units of the target
              range; the gradient is the differences to the next row and the next column, a channel at a time.
    rounding  the length of a gradient v is √(|v|² + rounding²), so that it has a slope everywhere.
    """

    inner: PicturePrior = _HOURGLASS
    strength: float = 0.01
    rounding: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "strength", 0.0, 1e3)
        check_number(self, "rounding", 0.0, 1.0, exclusive=True)

    def picture_network(self, height: int, width: int, out_features: int) -> VariantNetwork:
        return _SmoothNetwork(self.inner.picture_network(height, width, out_features), self.strength, self.rounding)


class _SmoothNetwork(VariantNetwork):
    def __init__(self, inner: PictureNetwork, strength: float, rounding: float) -> None:
        super().__init__(inner)
        self.strength, self.rounding = strength, rounding

    def forward(self, noise: Tensor) -> Tensor:
        shown = super().forward(noise)
        if not shown.requires_grad:
            return shown
        picture = self.as_picture(shown)
        down = nn.functional.pad(picture[:, 1:] - picture[:, :-1], (0, 0, 0, 1))
        right = nn.functional.pad(picture[:, :, 1:] - picture[:, :, :-1], (0, 1))
        lengths = (down.square() + right.square() + self.rounding**2).sqrt()
        return _beside(shown, self.strength * lengths.mean())


# ------------------------------------------------------------------------------------------------------ learned codes


class _AutoencodingVariant(PriorVariant):
    """What the two variants share whose code is a picture itself; `Start(FromPicture())` has it start from what was
    measured, as published, else it starts as the inner prior's code does."""

    inner: Hourglass
    strength: float

    def __post_init__(self) -> None:
        check_kind(self, "inner", Hourglass)
        if self.inner.code != "uniform":
            raise ValueError(
                f"{type(self).__name__}.inner.code: got {self.inner.code!r}, allowed 'uniform': the code is learned, "
                "and is a picture"
            )
        check_number(self, "strength", 0.0, 1e6)

    def from_picture(self, picture: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        code = self.to_target(picture).to(weights["inner.code"].dtype)
        return {**weights, "inner.code": code.clone()}

    def parameters_count(self, in_features: int | None = None, out_features: int = 3) -> int:
        return self._with_code(out_features).parameters_count(2, out_features)

    def _with_code(self, channels: int) -> Hourglass:
        return replace(self.inner, code_channels=channels)


@dataclass(frozen=True)
class SelfGuided(_AutoencodingVariant):
    """A prior f whose code u is learned, as a picture that it denoises (Liang et al., IEEE TCI 2025, self-guided DIP).

    Fitted are the weights and u, to ‖A E f(u + η) − y‖² + strength · ‖E f(u + η) − u‖², both means. The expectation is
    the mean over some draws of η, the inner prior's perturbation; the answer is best the average of what is shown
    (`pixfit.AveragedOutput`). The code has as many channels as the picture.

    strength  see above.
    draws     of η in a step, each a pass through the network. The published number and size of η could not be checked.

    η must be large beside the noise of the picture, or f learns to pass its code through: with a standard deviation of
    1/30 the noise of 25/255 came in almost at once, with 0.25 it did not.
    """

    inner: Hourglass = _SHAKEN
    strength: float = 1.0
    draws: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "draws", 1, 64)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Of the noise: room for a picture of any kind in each draw, of which the picture's own channels are taken."""
        _, rows, columns = super().code_shape
        return (self.draws * _CHANNELS, rows, columns)

    def picture_network(self, height: int, width: int, out_features: int) -> VariantNetwork:
        inner = self._with_code(out_features).picture_network(height, width, out_features)
        return _GuidedNetwork(inner, self.strength)


class _GuidedNetwork(VariantNetwork):
    def __init__(self, inner: PictureNetwork, strength: float) -> None:
        super().__init__(inner)
        self.strength = strength
        inner.learn_code()

    def forward(self, noise: Tensor) -> Tensor:
        code = self.inner.code
        if len(noise) == 1:
            shown = self.inner.pixels(code + noise)
        else:
            draws = noise.reshape(-1, _CHANNELS, *noise.shape[1:])[:, : len(code)]
            shown = torch.stack([self.inner.pixels(code + drawn) for drawn in draws]).mean(dim=0)
        if not shown.requires_grad:
            return shown
        return _beside(shown, self.strength * (self.as_picture(shown) - code).square().mean())


@dataclass(frozen=True)
class AutoencodingSequential(_AutoencodingVariant):
    """A prior f whose code u becomes what it shows every few steps (Alkhouri et al., NeurIPS 2024, aSeqDIP).

    Fitted are the weights, to ‖A f(u) − y‖² + strength · ‖f(u) − u‖², both means; after so many steps (`every`), u
    becomes f(u). The inner prior's perturbation is added to u, too; theirs has none. The code has as many channels as
    the picture. As published, with `Adam(lr=1e-4)`: strength 1, every 2, some thousand steps.
    """

    inner: Hourglass = _STILL
    strength: float = 1.0
    every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "every", 1, 10**6)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Of the noise, of which the picture's own channels are taken."""
        _, rows, columns = super().code_shape
        return (_CHANNELS, rows, columns)

    @property
    def descents(self) -> tuple[Descent, ...]:
        return (*super().descents, Descent("inner.code", 1.0, self.every))

    def picture_network(self, height: int, width: int, out_features: int) -> VariantNetwork:
        inner = self._with_code(out_features).picture_network(height, width, out_features)
        return _SequentialNetwork(inner, self.strength)


class _SequentialNetwork(VariantNetwork):
    def __init__(self, inner: PictureNetwork, strength: float) -> None:
        super().__init__(inner)
        self.strength = strength
        inner.learn_code()

    def forward(self, noise: Tensor) -> Tensor:
        code = self.inner.code
        shown = self.inner.pixels(code.detach() + noise[: len(code)])
        if not shown.requires_grad:
            return shown
        away = self.as_picture(shown) - code.detach()
        # The slope of the second term is the mean's of u − f(u), so that a descent of rate 1 on the sum puts u on f(u).
        step = 0.5 * (code - self.as_picture(shown).detach()).square().mean()
        return _beside(shown, self.strength * away.square().mean() + step)


VARIANTS: dict[str, type[PriorVariant]] = {
    "DoublyOverparameterised": DoublyOverparameterised, "TotalVariation": TotalVariation, "SelfGuided": SelfGuided,
    "AutoencodingSequential": AutoencodingSequential,
}  # fmt: skip
