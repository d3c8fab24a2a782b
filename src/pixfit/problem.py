"""The keeper of the truth: one picture or many, how they were measured, and the little of it that a fit may see.

`Problem` holds the picture. Its `view` is all that the training loop gets: the measurement, the operator and which
samples it may use. Scores against the truth are computed elsewhere, by watchers that cannot talk back to the loop.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pixfit.augmentation import COPIES
from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.noise import GaussianNoise as GaussianNoise  # it is importable from here, too
from pixfit.noise import Noise
from pixfit.operators import External, Identity, Operator

__all__ = ["Copies", "Gallery", "Problem", "Sealed", "View", "stream"]

_MOST = 2**24  # pixels of all pictures of a gallery


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
        held_out: bool (1 or C', H', W'), measured samples kept out of the loss, for choosing; None: no such. There may
            be others that are kept out and of no use, such as those around them.
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


@dataclass(frozen=True, eq=False)
class Gallery(Problem):
    """Many pictures, of any sizes, to be held by one network (`pixfit.models.Memory`).

    They are laid out as one flat picture ``image`` (C, 1, N), one after the other, row-major each; so views, curves and
    scores over all pixels are those of any problem. `split` takes such a row apart again.

    Args:
        pictures: with the same number of channels. Their names are kept, and are not in a fit's id.
        held_out: fraction in [0, 1) of the pixels of each picture, rounded down, that is kept out of the loss.
        seed: of the held-out pixels.
        rule: which pixels those are. ``drawn``: by a stream of ``seed`` for each picture. ``published``: for picture i
            those of ``random.Random(i).sample(range(H * W), n)``, whatever the seed, as in the exercise of 100 icons.

    Raises:
        TypeError: what is no picture.
        ValueError: no picture, pictures of unequal channels, more than 2^24 pixels, or nothing held out.
    """

    image: Image = field(init=False)
    operator: Operator = field(init=False, default_factory=Identity)
    noise: Noise | None = field(init=False, default=None)
    held_out: float = field(default=0.1, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    pictures: Sequence[Image]
    rule: Literal["drawn", "published"] = "drawn"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))
        for picture in self.pictures:
            if not isinstance(picture, Image):
                raise TypeError(
                    f"a gallery needs pictures as pixfit.images.Image, got {type(picture).__name__}; "
                    "pixfit.images.load_folder loads those of a folder"
                )
        channels = sorted({picture.channels for picture in self.pictures})
        if len(channels) != 1:
            raise ValueError(
                f"the pictures of a gallery need one number of channels, got {channels}; load all with the same alpha "
                "policy, and grey ones apart from those in colour"
                if channels
                else "a gallery needs at least one picture, got none"
            )
        if (total := sum(picture.pixels for picture in self.pictures)) > _MOST:
            raise ValueError(f"the pictures have {total:,} pixels in all, and a gallery takes {_MOST:,}; use fewer")
        if self.rule not in ("drawn", "published"):
            raise ValueError(f"rule is {self.rule!r}; it may be drawn or published")
        flat = torch.cat([picture.data.flatten(1) for picture in self.pictures], dim=1)[:, None]
        depth = max(picture.bit_depth for picture in self.pictures)
        object.__setattr__(self, "image", Image(flat, bit_depth=depth, alpha=self.pictures[0].alpha))
        super().__post_init__()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each picture."""
        return tuple((picture.height, picture.width) for picture in self.pictures)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures, as they were loaded."""
        return tuple(picture.name for picture in self.pictures)

    @property
    def originals(self) -> int:
        """How many pictures, from the first, are no copies of others."""
        return len(self.pictures)

    @cached_property
    def view(self) -> View:
        """What the fit may see; computed once. All pictures have at least one pixel in the loss."""
        y = self.image.data.clone()
        if self.held_out == 0:
            return View(y, self.operator, self.shape)
        held_out = torch.zeros(1, 1, y.shape[2], dtype=torch.bool)
        for number, mask in enumerate(self.split(held_out)):
            mask.view(-1)[self._chosen(number, mask.numel())] = True
        if not bool(held_out.any()):
            raise ValueError(f"held_out = {self.held_out} holds out none of {held_out.numel()} pixels; raise it")
        return View(y, self.operator, self.shape, ~held_out, held_out)

    def _chosen(self, number: int, pixels: int) -> Tensor:
        """The held-out pixels of a picture, by their row-major numbers."""
        count = min(int(self.held_out * pixels), pixels - 1)
        if self.rule == "published":
            return torch.tensor(random.Random(number).sample(range(pixels), count), dtype=torch.int64)
        return torch.randperm(pixels, generator=stream(self.seed, f"held-out/{number}"))[:count]

    def split(self, flat: Tensor) -> list[Tensor]:
        """The pictures (C, H, W) of a flat one (C, 1, N), such as a result's ``estimate`` or the view's ``held_out``:
        windows on it, not copies."""
        parts = torch.split(flat, [height * width for height, width in self.sizes], dim=-1)
        return [part.view(-1, *size) for part, size in zip(parts, self.sizes, strict=True)]

    def canonical_value(self) -> dict[str, Any]:
        """The pixels by the hash of the flat picture, and where one picture ends and the next begins."""
        return {
            "kind": "Gallery", "image": self.image, "sizes": self.sizes, "held_out": float(self.held_out),
            "rule": self.rule, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Copies(Gallery):
    """Pictures and other views of each, every one with a number of its own: all pictures as they are first, then the
    first copy of each, and so on.

    A pixel that is held out in a picture is held out in all of its copies that show it. `of` makes the copies.

    Args:
        by: what the copies are, see `pixfit.augmentation.COPIES`: ``turns``, seven flips and quarter turns of each
            picture; ``crops``, three quarters of its sides at each of its corners.

    Raises:
        ValueError: no such kind, or pictures that are no multiple of 8 (of 5 with crops).
    """

    by: Literal["turns", "crops"] = field(default="turns", kw_only=True)

    def __post_init__(self) -> None:
        if self.by not in COPIES:
            raise ValueError(f"by is {self.by!r}; it may be {' or '.join(COPIES)}")
        super().__post_init__()
        if len(self.pictures) % len(COPIES[self.by]):
            raise ValueError(
                f"got {len(self.pictures)} pictures, allowed multiples of {len(COPIES[self.by])}; use Copies.of"
            )

    @classmethod
    def of(
        cls, pictures: Sequence[Image], *, by: Literal["turns", "crops"] = "turns", **settings: Any
    ) -> Copies:  # fmt: skip
        """Of pictures, with the other settings of a `Gallery`. A copy's name is the picture's and that of the view."""
        views = COPIES.get(by, {}).items()
        if (total := sum(one.pixels for one in pictures)) * len(views) > 2 * _MOST:
            raise ValueError(
                f"the pictures have {total:,} pixels in all, with {len(views)} views of each, and a gallery takes "
                f"{_MOST:,}; use fewer or smaller ones, or no copies"
            )
        made = [
            replace(one, data=view(one.data), name=f"{one.name} {name}" if name else one.name)
            for name, view in views
            for one in pictures
        ]
        return cls(made, by=by, **settings)

    @property
    def originals(self) -> int:
        return len(self.pictures) // len(COPIES[self.by])

    def _chosen(self, number: int, pixels: int) -> Tensor:
        copy, original = divmod(number, self.originals)
        mask = torch.zeros(1, *self.sizes[original], dtype=torch.bool)
        mask.view(-1)[super()._chosen(original, mask.numel())] = True
        chosen = list(COPIES[self.by].values())[copy](mask).flatten().nonzero()[:, 0]
        if len(chosen) == pixels:  # a picture keeps one of its pixels, but its crop need not show that one
            raise ValueError(f"held_out = {self.held_out} leaves no pixel of {self.names[number]!r} to fit; lower it")
        return chosen

    def canonical_value(self) -> dict[str, Any]:
        # Fits of turns were filed before there were other copies.
        return {**super().canonical_value(), "kind": "Copies", **({} if self.by == "turns" else {"by": self.by})}


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
