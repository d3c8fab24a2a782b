"""The families that the climb's tables compare: recipes whose networks can be made as large as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from pixfit import recipes
from pixfit.models import (
    Coordinates,
    Cosines,
    Finer,
    Fourier,
    FrozenSiren,
    Gauss,
    Grid,
    LowRank,
    Mlp,
    Model,
    Siren,
    Tiles,
)
from pixfit.optim import Adam
from pixfit.problem import Problem
from pixfit.recipes import Recipe
from pixfit.schedules import Cosine, Linear
from pixfit.spec import Batches, Spec
from pixfit.stopping import Steps

__all__ = ["COMPACT", "FAMILIES", "Compact", "Count", "Family", "Sizer", "counted", "within"]

Count = Callable[[Model], float]
"""How many numbers a model counts as."""

Sizer = Callable[[Problem, Model, Count, float], Model | None]
"""The model of a family that comes nearest to a budget and is not above it; None where even the smallest is."""

_WIDEST = 2**14
_FEWEST_LEVELS, _MOST_LEVELS = 6, 16  # of a hash grid
_COARSEST = 16  # vertices along its coarsest side
_LARGEST_TABLE = 24  # entries, as a power of two


@dataclass(frozen=True)
class Family:
    """A recipe with what makes its network larger or smaller.

    Args:
        recipe: the settings, with a network of the family's own size.
        sized: chooses the network for a budget of numbers.
        source: the publication, or what it is.
    """

    recipe: Recipe
    sized: Sizer
    source: str


def within(family: Family, problem: Problem, budget: float, count: Count) -> Spec | None:
    """The family's recipe with the network that comes nearest to a budget; None where none is within it."""
    spec = family.recipe(problem)
    model = family.sized(problem, spec.model, count, budget)
    return None if model is None else replace(spec, model=model)


# -------------------------------------------------------------------------------------------------------------- sizers


def _by(grown: Callable[[Problem, Any, int], Model], most: int = _WIDEST) -> Sizer:
    """Bisection on a whole number, 1 to ``most``, with which the count of numbers grows."""

    def sized(problem: Problem, model: Model, count: Count, budget: float) -> Model | None:
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(grown(problem, model, middle)) <= budget else (low, middle)
        return grown(problem, model, low) if low else None

    return sized


def _width(problem: Problem, model: Any, number: int) -> Model:
    return cast(Model, replace(model, hidden_features=number))


def _bottlenecks(problem: Problem, model: Siren, number: int) -> Model:
    """Every second layer has a quarter of the width."""
    widths = (number if layer % 2 == 0 else max(1, number // 4) for layer in range(model.hidden_layers + 1))
    return replace(model, hidden_features=tuple(widths))


def _resolution(problem: Problem, model: Mlp, number: int) -> Model:
    """All levels of a grid finer or coarser alike, in steps of a thousandth of their sides."""
    grid = cast(Grid, model.encoding)
    scale = number / 1000
    levels = tuple(
        (max(1, round(rows * scale)), max(1, round(columns * scale)), size) for rows, columns, size in grid.levels
    )
    return replace(model, encoding=replace(grid, levels=levels))


def _cosines(problem: Problem, model: Model, count: Count, budget: float) -> Model | None:
    """As many classes as suit the budget, and as many values as it allows then."""
    channels, height, width = problem.shape
    made = Cosines.within(budget, height, width, channels)

    def grown(problem: Problem, model: Model, number: int) -> Model:
        return replace(made, values=number)

    return _by(grown, most=made.tiles * channels * made.side**2)(problem, made, count, budget)


def _rank(problem: Problem, model: Mlp, number: int) -> Model:
    return replace(model, encoding=replace(cast(LowRank, model.encoding), rank=number))


def _tiles(problem: Problem, model: Tiles, number: int) -> Model:
    """So many tiles or a few less, about square ones."""
    _, height, width = problem.shape
    square = math.sqrt(number * height / width)
    pairs = [(rows, number // rows) for rows in (math.floor(square), math.ceil(square)) if 1 <= rows <= number]
    rows, columns = max(pairs or [(1, number)], key=math.prod)
    return replace(model, rows=rows, columns=columns)


def _hashed(problem: Problem, model: Model, count: Count, budget: float) -> Model | None:
    """Tables of a power of two, and levels from 16 vertices a side to the picture's; the pair that comes nearest."""
    finest = max(_COARSEST, *problem.shape[1:])
    found: list[Model] = []
    for levels in range(_FEWEST_LEVELS, _MOST_LEVELS + 1):

        def tables(problem: Problem, model: Mlp, power: int, levels: int = levels) -> Model:
            return replace(model, encoding=Grid.geometric(_COARSEST, finest, levels, entries=2**power))

        one = _by(tables, most=_LARGEST_TABLE)(problem, model, count, budget)
        found += [] if one is None else [one]
    return max(found, key=count, default=None)


# ------------------------------------------------------------------------------------------------------------ families


def _gauss(problem: Problem) -> Spec:
    model = Gauss(hidden_layers=4, hidden_features=256, coordinates=Coordinates(alignment="corner"))
    return Spec(problem, model, optimiser=Adam(lr=1e-3, schedule=Cosine(final=0.1)), budget=Steps(500))


def _fourier(problem: Problem) -> Spec:
    """256 frequencies of 10 cycles a side, four linear maps, ReLU and a sigmoid."""
    encoding = Fourier(features=512, freq_scale=10.0)
    model = Mlp(hidden_layers=2, hidden_features=256, encoding=encoding, output="sigmoid")
    return Spec(problem, model, optimiser=Adam(lr=1e-3), budget=Steps(2000))


def _hash(problem: Problem) -> Spec:
    grid = Grid.geometric(_COARSEST, max(_COARSEST, *problem.shape[1:]), _MOST_LEVELS, entries=2**14)
    model = Mlp(hidden_layers=1, hidden_features=64, encoding=grid, output="linear")
    optimiser = Adam(lr=1e-2, betas=(0.9, 0.99), eps=1e-15, schedule=Linear())
    return Spec(problem, model, optimiser=optimiser, batches=_pixels(problem), budget=Steps(1000))


def _small_hash(problem: Problem) -> Spec:
    """Its network is as small as those of the grids of the recipes."""
    spec = _hash(problem)
    return replace(spec, model=replace(cast(Mlp, spec.model), hidden_features=32))


def _tiled(problem: Problem) -> Spec:
    optimiser = Adam(lr=5e-3, betas=(0.9, 0.99), schedule=Cosine())
    return Spec(problem, Tiles(), optimiser=optimiser, batches=_pixels(problem), budget=Steps(2000))


def _low_rank(problem: Problem) -> Spec:
    _, height, width = problem.shape
    model = Mlp(hidden_layers=1, hidden_features=32, encoding=LowRank(height, width))
    optimiser = Adam(lr=1e-2, betas=(0.9, 0.99), schedule=Cosine())
    return Spec(problem, model, optimiser=optimiser, batches=_pixels(problem), budget=Steps(2000))


def _frozen(problem: Problem) -> Spec:
    _, height, width = problem.shape
    encoding = Fourier(features=128, freq_scale=0.06 * math.sqrt(height * width))
    model = FrozenSiren(hidden_layers=2, hidden_features=256, encoding=encoding)
    return Spec(problem, model, optimiser=_SINE, batches=_pixels(problem), budget=Steps(2000))


def _coarse(problem: Problem) -> Spec:
    """Four levels, none finer than half the picture's resolution."""
    _, height, width = problem.shape
    parts = ((16, 4), (8, 4), (4, 4), (2, 2))
    grid = Grid(tuple((math.ceil(height / part), math.ceil(width / part), features) for part, features in parts))
    model = Mlp(hidden_layers=0, hidden_features=128, encoding=grid, output="sigmoid")
    batch = min(height * width, max(1024, math.ceil(height * width / 18)))
    optimiser = Adam(lr=0.03, betas=(0.8, 0.97), eps=1e-5 / (batch * problem.shape[0]), schedule=Linear())
    return Spec(problem, model, optimiser=optimiser, batches=Batches(batch), budget=Steps(3500))


def _sines(model: Siren | Finer) -> Recipe:
    return lambda problem: Spec(problem, model, optimiser=_SINE, batches=_pixels(problem), budget=Steps(2000))


_SINE = Adam(lr=1e-3, betas=(0.9, 0.99), schedule=Cosine())


def _pixels(problem: Problem) -> Batches:
    """16,384 pixels a step, where there are more."""
    return Batches(min(16384, problem.shape[1] * problem.shape[2]))


FAMILIES: dict[str, Family] = {
    "siren": Family(recipes.siren_2020, _by(_width), "Sitzmann et al., NeurIPS 2020"),
    "finer": Family(recipes.finer_2024, _by(_width), "Liu et al., CVPR 2024"),
    "gauss": Family(_gauss, _by(_width), "Ramasinghe and Lucey, ECCV 2022"),
    "wire": Family(recipes.wire_2023, _by(_width), "Saragadam et al., CVPR 2023"),
    "fourier": Family(_fourier, _by(_width), "Tancik et al., NeurIPS 2020"),
    "climb-final": Family(recipes.climb_final, _by(_width), "the published climb's last step"),
    "hash": Family(_hash, _hashed, "Müller et al., SIGGRAPH 2022"),
    "fast": Family(recipes.fast, _by(_resolution), "recipe fast: grids of features"),
    "instant": Family(recipes.instant, _by(_resolution), "recipe instant: grids that start from the picture"),
    "smooth": Family(recipes.smooth, _by(_resolution), "recipe smooth: grids with splines between pixels"),
    "quality": Family(recipes.quality, _by(_resolution), "recipe quality: grids that start from the picture"),
    "compact": Family(recipes.compact, _cosines, "recipe compact: cosines of tiles, chosen by classes"),
    "mlp": Family(recipes.mlp, _by(_width), "recipe mlp: Fourier features and a perceptron"),
}
"""By name, what the tables ``tiger``, ``kodak`` and ``five`` compare: networks of any size."""


# ------------------------------------------------------------------------------------------------------------- compact


@dataclass(frozen=True)
class Compact:
    """A member of the table of few numbers.

    Args:
        family: the networks.
        bits: that each weight is stored with after the fit; see `counted`.
        transform: half of the numbers go to a sparse block transform, and the network is fitted to what that leaves.
    """

    family: Family
    bits: int = 32
    transform: bool = False


def counted(model: Model, channels: int, bits: int = 32) -> float:
    """How many numbers of 32 bits the stored tensors of a network count as: fixed frequencies, too.

    With fewer bits each tensor has two numbers more, its least value and its step. Of `Cosines` only the values have
    fewer, with a step for each coefficient; what says which they are takes the bits that it needs.
    """
    numbers = model.stored_numbers(out_features=channels)
    if bits == 32:
        return numbers
    if isinstance(model, Cosines):
        coefficients = channels * model.side**2
        told = model.tiles * math.ceil(math.log2(model.classes * (coefficients + 1)))
        told += model.classes * coefficients * math.ceil(math.log2(coefficients))
        return (model.values * bits + told) / 32 + coefficients + channels * (channels + 1)
    return numbers * bits / 32 + 2 * _tensors(model, channels)


def _tensors(model: Model, channels: int) -> int:
    import torch

    with torch.device("meta"):
        return len(model.network(2, channels).state_dict())


_SIREN = Siren(hidden_layers=4, hidden_features=256)
_TILED = Family(_tiled, _by(_tiles, most=2**16), "a SIREN of 2 layers of 12 for each tile, after Reiser et al. 2021")
_HASH = Family(_small_hash, _hashed, "Müller et al., SIGGRAPH 2022")
_COARSE = Family(_coarse, _by(_resolution), "grids of features without fine levels")
_FAST = FAMILIES["fast"]
_PLAIN = Family(_sines(_SIREN), _by(_width), "Sitzmann et al., NeurIPS 2020; Adam 1e-3, β₂ 0.99, cosine")

COMPACT: dict[str, Compact] = {
    "tiles": Compact(_TILED),
    "hash": Compact(_HASH),
    "low-rank": Compact(Family(_low_rank, _by(_rank, most=2**12), "after Chen et al. (TensoRF), ECCV 2022")),
    "siren": Compact(_PLAIN),
    "frozen-siren": Compact(Family(_frozen, _by(_width), "Novello et al. 2024; Adam 1e-3, β₂ 0.99, cosine")),
    "finer": Compact(Family(_sines(Finer(4, 256)), _by(_width), "Liu et al., CVPR 2024; Adam 1e-3, β₂ 0.99, cosine")),
    "bottleneck": Compact(Family(_sines(_SIREN), _by(_bottlenecks), "SIREN, every second layer a quarter as wide")),
    "compact": Compact(FAMILIES["compact"]),
    "compact-8bit": Compact(FAMILIES["compact"], bits=8),
    "grid": Compact(_COARSE),
    "transform+grid": Compact(_COARSE, transform=True),
    "tiles-8bit": Compact(_TILED, bits=8),
    "hash-8bit": Compact(_HASH, bits=8),
    "siren-8bit": Compact(_PLAIN, bits=8),
    "grid-8bit": Compact(_COARSE, bits=8),
    "fast-8bit": Compact(_FAST, bits=8),
}
"""By name, what the table ``compact`` compares."""
