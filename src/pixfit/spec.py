"""A fit as a value: everything that decides its numbers, and the id made from it.

What to record on the way stands beside it (`Record`), because looking at a fit must not change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from torch import Generator, Tensor

from pixfit import augmentation, canonical
from pixfit.canonical import is_number, is_whole
from pixfit.losses import MSE, Loss
from pixfit.models import Model, PicturePrior
from pixfit.optim import Adam, Optimiser, ScheduleFreeAdamW
from pixfit.problem import Gallery, Problem, Sealed
from pixfit.starts import Start
from pixfit.stopping import Budget, MovingVariance, Never, Steps, Stopping, WindowVariance

__all__ = [
    "BATCHES", "ESTIMATES", "AugmentedBatches", "AveragedOutput", "Batches", "Batching", "BestHeldOut", "Estimate",
    "Kernel", "Last", "MovingAverage", "PictureBatches", "PosteriorMean", "Precision", "Record", "Shown", "Spec",
]  # fmt: skip

Precision = Literal["float32", "float64", "bfloat16", "bfloat16-backward"]
Kernel = Literal["auto", "torch", "graph"]


class Batching:
    """Base of the rules that say which samples a step sees."""

    @property
    def pixels(self) -> int | None:
        """How many at the most, where that is a setting; None: all, or as many as some pictures have."""
        return None

    def steps_per_epoch(self, samples: int, pictures: int = 1) -> int:
        """Steps until each of so many samples, of so many pictures, was seen once."""
        raise NotImplementedError

    def per_step(self, samples: int, pictures: int = 1) -> int:
        """About how many of these samples a step sees."""
        return -(-samples // self.steps_per_epoch(samples, pictures))


@dataclass(frozen=True)
class Batches(Batching):
    """Batches of pixels.

    Args:
        pixels: so many pixels, drawn without replacement until an epoch has seen each once (its last batch may be
            smaller); None: all of them in every step.
    """

    pixels: int | None = None

    def __post_init__(self) -> None:
        if self.pixels is not None and not (is_whole(self.pixels) and self.pixels >= 1):
            raise ValueError(
                f"batches.pixels is {self.pixels!r}; it must be a whole number, 1 or more, or null for full batches"
            )

    def steps_per_epoch(self, samples: int, pictures: int = 1) -> int:
        return 1 if self.pixels is None else -(-samples // self.pixels)

    def per_step(self, samples: int, pictures: int = 1) -> int:
        return min(samples, self.pixels or samples)


@dataclass(frozen=True)
class PictureBatches(Batching):
    """Batches of whole pictures of a `pixfit.problem.Gallery`: all their fitted pixels, whatever their sizes.

    Args:
        pictures: so many in a step; the last of an epoch may have fewer.
        order: ``fixed`` takes them in the gallery's order in every epoch; ``shuffled`` in one drawn for each epoch.
    """

    pictures: int = 16
    order: Literal["fixed", "shuffled"] = "fixed"

    def __post_init__(self) -> None:
        if not (is_whole(self.pictures) and self.pictures >= 1):
            raise ValueError(f"batches.pictures is {self.pictures!r}; it must be a whole number, 1 or more")
        if not isinstance(self.order, str) or self.order not in ("fixed", "shuffled"):
            raise ValueError(f"batches.order is {self.order!r}; it may be fixed or shuffled")

    def steps_per_epoch(self, samples: int, pictures: int = 1) -> int:
        return -(-pictures // self.pictures)


@dataclass(frozen=True)
class AugmentedBatches(Batches):
    """Batches of whole tiles of a mosaic, each shown in a view that is drawn anew in every step.

    The model must learn from tiles, as a `pixfit.models.Hyper` does, or a meta-learned start. A tile's new pixels are
    both what the network is given and what it is to show; places keep their coordinates. The draws hang on the fit's
    seed and the step alone.

    Args:
        pixels: as of `Batches`, a multiple of a tile's.
        turns: whether tiles are flipped and turned by quarters, all ways alike often; those that are not square only in
            the four ways that keep their shape.
        crop: the least share of both sides that is shown, above 0; 1: all of the tile. The share is uniform from there
            to 1, the place uniform, and what is shown is enlarged to the whole tile by bilinear interpolation.
    """

    turns: bool = True
    crop: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.turns, bool):
            raise ValueError(f"batches.turns is {self.turns!r}; it must be true or false")
        if not (is_number(self.crop) and 0 < self.crop <= 1):
            raise ValueError(f"batches.crop is {self.crop!r}; it must be above 0 and at most 1")
        if not self.turns and self.crop == 1:
            raise ValueError("batches with turns false and crop 1 change nothing; use Batches")

    def shown(self, tiles: Tensor, generator: Generator) -> Tensor:
        """Tiles (T, H, W, C) as a step shows them, drawn with a generator on the CPU."""
        return augmentation.drawn(tiles.movedim(3, 1), generator, turns=self.turns, crop=self.crop).movedim(1, 3)


BATCHES: dict[str, type[Batching]] = {
    "Batches": Batches, "PictureBatches": PictureBatches, "AugmentedBatches": AugmentedBatches,
}  # fmt: skip


class Estimate:
    """Base of the rules that say which weights of a finished fit are its answer."""


@dataclass(frozen=True)
class Last(Estimate):
    """The weights after the last step."""


@dataclass(frozen=True)
class MovingAverage(Estimate):
    """The exponential moving average of the weights: ``decay`` of the old and 1 − ``decay`` of the new at each step."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"estimate.decay is {self.decay!r}; it must be 0 up to 1")


@dataclass(frozen=True)
class BestHeldOut(Estimate):
    """The weights with the least error on the problem's held-out pixels, looked at every ``every`` steps."""

    every: int = 50

    def __post_init__(self) -> None:
        if not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"estimate.every is {self.every!r}; it must be a whole number, 1 or more steps")


class Shown(Estimate):
    """Base of the rules whose answer is an average of what the steps showed, kept beside the weights.

    The model must be a `pixfit.models.PicturePrior`, which makes the whole picture in each step.
    """

    def weight(self, step: int) -> float:
        """Of what a step shows, counted from 0, in the new average, where that of the old one is 1 less this."""
        raise NotImplementedError


@dataclass(frozen=True)
class AveragedOutput(Shown):
    """The exponential moving average of the pictures that the steps of training show: ``decay`` of the old and
    1 − ``decay`` of the new (Ulyanov et al. 2018, for deep image priors).

    The average begins with the first step's picture. It is kept as a picture, since no weights show it; the weights
    kept with it are those of the same step. The model must be a `pixfit.models.PicturePrior`, which makes the whole
    picture in each step.

    Args:
        decay: see above.
        every: steps between two looks at the average's error on the problem's held-out pixels; the answer is the one
            with the least. None: the last.
    """

    decay: float = 0.99
    every: int | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"estimate.decay is {self.decay!r}; it must be 0 up to 1")
        if self.every is not None and not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"estimate.every is {self.every!r}; it must be a whole number, 1 or more steps, or null")

    def weight(self, step: int) -> float:
        return 1 - self.decay if step else 1.0


@dataclass(frozen=True)
class PosteriorMean(Shown):
    """The mean of what some steps showed after a burn-in, and its standard deviation, which tells how sure it is.

    For optimisers that wander about the posterior, such as `pixfit.optim.Langevin`; the defaults are of Cheng et al.
    (CVPR 2019), with 20,000 steps. Before the burn-in ends the answer is what the last step showed.

    Args:
        burn_in: first steps, which do not count.
        every: steps between two that count.
    """

    burn_in: int = 7000
    every: int = 50

    def __post_init__(self) -> None:
        if not (is_whole(self.burn_in) and self.burn_in >= 0):
            raise ValueError(f"estimate.burn_in is {self.burn_in!r}; it must be a whole number, 0 or more steps")
        if not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"estimate.every is {self.every!r}; it must be a whole number, 1 or more steps")

    def weight(self, step: int) -> float:
        number, rest = divmod(step - self.burn_in, self.every)
        return 1.0 if number < 0 else 0.0 if rest else 1 / (number + 1)


ESTIMATES: dict[str, type[Estimate]] = {
    "Last": Last, "MovingAverage": MovingAverage, "BestHeldOut": BestHeldOut, "AveragedOutput": AveragedOutput,
    "PosteriorMean": PosteriorMean,
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What to write down during a fit. It never changes the fit's numbers and is not in its id.

    Args:
        every: steps between two points of the PSNR curve; None: about 40 points, however long the fit is.
        points: pixels in the fixed random sample on which that curve is measured. The final score uses all pixels.
        keep: steps whose weights are kept, for starts and films (0 is the start).
    """

    every: int | None = None
    points: int = 8192
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.every is not None and not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"record.every is {self.every!r}; it must be a whole number, 1 or more steps, or None")
        if not (is_whole(self.points) and self.points >= 1):
            raise ValueError(f"record.points is {self.points!r}; it must be a whole number, 1 or more pixels")
        if not isinstance(self.keep, tuple) or not all(is_whole(step) and step >= 0 for step in self.keep):
            raise ValueError(f"record.keep is {self.keep!r}; it must be a tuple of steps, such as (0, 100)")


_PARTS: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("problem", (Problem, Sealed), "Problem(image)"), ("model", Model, "Siren()"), ("start", Start, "Start()"),
    ("loss", Loss, "MSE()"), ("optimiser", Optimiser, "Adam()"), ("batches", Batching, "Batches(pixels=2048)"),
    ("budget", Budget, "Steps(2000)"), ("stopping", Stopping, "Never()"), ("estimate", Estimate, "Last()"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Spec:
    """One fit.

    Args:
        problem: what is fitted.
        model: the network's settings.
        start: where its weights come from.
        loss: what is minimised.
        optimiser: how, with its schedule and clipping.
        batches: which samples a step sees.
        budget: when it ends at the latest.
        stopping: what may end it earlier.
        estimate: which weights are the answer.
        precision: ``float32``; ``float64`` for checks; ``bfloat16`` for autocast, with float32 master weights and
            encodings, and for compiled hourglasses the operands of convolutions alone; ``bfloat16-backward`` rounds
            only the operands of the backward products, so that the forward pass, and with it every score, is that of a
            float32 network. The model must have a `pixfit.kernels.Plan`.
        kernel: ``auto`` for compiled kernels where they serve this fit; ``torch`` for the plain path everywhere;
            ``graph`` for CUDA graphs and persistent kernels, which have not been measured on a card yet.
        seed: of the weights and the batches, 0 to 2^63 − 1.
    """

    problem: Problem | Sealed
    model: Model
    start: Start = field(default_factory=Start)
    loss: Loss = field(default_factory=MSE)
    optimiser: Optimiser = field(default_factory=Adam)
    batches: Batching = field(default_factory=Batches)
    budget: Budget = field(default_factory=lambda: Steps(2000))
    stopping: Stopping = field(default_factory=Never)
    estimate: Estimate = field(default_factory=Last)
    precision: Precision = "float32"
    kernel: Kernel = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, example in _PARTS:
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be settings, such as {example}")
        for name, value, allowed in (
            ("precision", self.precision, get_args(Precision)),
            ("kernel", self.kernel, get_args(Kernel)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it may be {', '.join(allowed)}")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**63):
            raise ValueError(f"seed is {self.seed!r}; it must be 0 to 2^63 - 1")
        if self.precision == "bfloat16-backward" and self.model.plan(self.model.in_features, 3) is None:
            raise ValueError(
                f"precision is bfloat16-backward, which {type(self.model).__name__} with these settings cannot have; "
                "use float32 or bfloat16"
            )
        if isinstance(self.estimate, MovingAverage) and isinstance(self.optimiser, ScheduleFreeAdamW):
            raise ValueError("ScheduleFreeAdamW averages the weights itself; use the estimate Last with it")
        looks = isinstance(self.estimate, BestHeldOut | AveragedOutput) and self.estimate.every is not None
        if looks and isinstance(self.problem, Problem) and self.problem.held_out == 0:
            name = type(self.estimate).__name__
            raise ValueError(f"the estimate {name} needs held-out pixels; give the problem held_out=0.1")
        operator = self.problem.operator if isinstance(self.problem, Problem) else None
        if self.batches.pixels is not None and operator is not None and not operator.pointwise:
            raise ValueError(
                f"batches.pixels is {self.batches.pixels}, but {type(operator).__name__} needs the whole picture in "
                "every step; set batches.pixels to null"
            )
        self._check_prior()
        self._check_gallery()

    def _check_gallery(self) -> None:
        sizes, name = self.model.sizes, type(self.model).__name__
        if isinstance(self.problem, Gallery) and sizes != self.problem.sizes:
            raise ValueError(
                f"the problem is a gallery of {len(self.problem.sizes)} pictures, and the model {name} is of "
                f"{f'{len(sizes)} pictures of other sizes' if sizes else 'one picture'}; use "
                "Memory(inner, code, gallery.sizes)"
            )
        if sizes and isinstance(self.problem, Problem) and not isinstance(self.problem, Gallery):
            raise ValueError(f"the model {name} holds many pictures; give it a Gallery of pictures, not a Problem")
        if isinstance(self.batches, PictureBatches) and not sizes:
            raise ValueError(f"PictureBatches are of whole pictures, and the model {name} has one; use Batches")
        if isinstance(self.batches, AugmentedBatches) and self.model.tile is None:
            instead = "give it a Gallery with pixfit.problem.Copies" if sizes else "use Batches"
            raise ValueError(
                f"AugmentedBatches are of whole tiles, and the model {name} does not learn from any; {instead}"
            )

    def _check_prior(self) -> None:
        if not isinstance(self.model, PicturePrior):
            for name, value in (("estimate", self.estimate), ("stopping rule", self.stopping)):
                if isinstance(value, Shown | WindowVariance | MovingVariance):
                    raise ValueError(
                        f"the {name} {type(value).__name__} needs the whole picture in every step, which a "
                        f"{type(self.model).__name__} does not make; use MovingAverage, or a model such as Hourglass"
                    )
            return
        if self.batches.pixels is not None:
            raise ValueError(
                f"batches.pixels is {self.batches.pixels}, but {type(self.model).__name__} makes the whole picture in "
                "every step; set batches.pixels to null"
            )
        if isinstance(self.problem, Problem):
            self.model.sized(*self.problem.shape[1:])

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """The canonical form, every default written out; a parent fit stands in it as its id."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        form: Mapping[str, Any] = canonical.plain({"kind": "Spec", **fields})
        return form

    def canonical_value(self) -> dict[str, Any]:
        """A spec that stands in another one, as its parent, is known by its id."""
        return {"kind": "Spec", "id": self.id}

    @cached_property
    def id(self) -> str:
        """20 hexadecimal digits, the same on every machine, from the canonical form."""
        return canonical.digest({"schema": canonical.SCHEMA, "spec": self.plain})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)
