"""What the search draws from: encodings, sizes, activations, optimisers, schedules and batches, as one space.

Every draw is a fit that can be made, with at most the number of parameters that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pixfit.models import Encoding, Fourier, Gabor, Grid, Mlp, Positional
from pixfit.optim import Adam, AdamW, Muon, Optimiser, ScheduleFreeAdamW
from pixfit.problem import Problem
from pixfit.schedules import Constant, Cosine, Linear, Schedule
from pixfit.spec import Batches, Precision, Spec
from pixfit.stopping import Budget

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

__all__ = ["ENCODINGS", "OPTIMISERS", "Parts", "Space", "Values"]

ENCODINGS = ("fourier", "gabor", "positional", "grid", "hash")
OPTIMISERS = ("Adam", "AdamW", "ScheduleFreeAdamW", "Muon")

Values = Mapping[str, Any]
"""What was drawn, by name."""

_GRIDS = ("grid", "hash")
_RATES = {True: 0.012, False: 0.002}  # of Adam, usual with grids and without
_BETAS = {"0.9, 0.999": (0.9, 0.999), "0.9, 0.99": (0.9, 0.99), "0.8, 0.97": (0.8, 0.97)}
_BATCH = (8, 16)  # powers of two
_FEATURES = ("finest features", "finer features", "other features")  # of the levels of a pyramid
_COARSEST = 16  # vertices along a side of a hash grid's first level


@dataclass(frozen=True)
class Parts:
    """What a draw decides of a spec; the picture, the budget and the seed are the rest."""

    model: Mlp
    optimiser: Optimiser
    batches: Batches
    precision: Precision

    def spec(self, problem: Problem, budget: Budget, seed: int) -> Spec:
        return Spec(
            problem, self.model, optimiser=self.optimiser, batches=self.batches, budget=budget,
            precision=self.precision, seed=seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Space:
    """The space for pictures of about one size.

    Args:
        encodings: some of `ENCODINGS`.
        shape: (C, H, W), what frequencies, grids and batches are measured by.
        parameters: a network has at most so many trained numbers, 1000 or more.
    """

    encodings: tuple[str, ...]
    shape: tuple[int, int, int]
    parameters: int

    @property
    def pixels(self) -> int:
        return self.shape[1] * self.shape[2]

    # ------------------------------------------------------------------------------------------------------- drawing

    def draw(self, trial: Asked) -> None:
        """Asks a trial of Optuna for all that `parts` needs.

        Rates are multiples of a usual one, frequencies are in cycles a pixel, numbers are a part of the limit, and eps
        is that of a sum of gradients over a batch: so each means about the same to all encodings.
        """
        grid = trial.suggest_categorical("encoding", self.encodings) in _GRIDS
        trial.suggest_float("numbers", 1 / 16, 1, log=True)
        trial.suggest_categorical("activation", ("relu", "gelu", "silu"))
        trial.suggest_categorical("norm", ("none", "layer"))
        trial.suggest_categorical("output", ("linear", "sigmoid"))
        optimiser = trial.suggest_categorical("optimiser", OPTIMISERS)
        trial.suggest_float("rate", 1 / 16, 16, log=True)
        trial.suggest_categorical("betas", tuple(_BETAS))
        trial.suggest_float("eps", 1e-6, 1e-2, log=True)
        trial.suggest_int("batch", *self._batches)
        if optimiser == "ScheduleFreeAdamW":
            trial.suggest_int("warm-up steps", 0, 100)
        else:
            trial.suggest_float("warm-up", 0, 0.2)
            if trial.suggest_categorical("schedule", ("constant", "cosine", "linear")) == "linear":
                trial.suggest_float("hold", 0, 0.8)
        if optimiser == "AdamW":
            trial.suggest_float("decay", 1e-6, 0.1, log=True)
        if optimiser == "Muon":
            trial.suggest_float("Muon's rate", 0.005, 0.1, log=True)
        (self._draw_grid if grid else self._draw_network)(trial)

    def _draw_grid(self, trial: Asked) -> None:
        trial.suggest_int("grid's layers", 0, 2)
        trial.suggest_int("width", 16, 128, log=True)
        if trial.params["encoding"] == "grid":
            trial.suggest_int("levels", 2, 6)
            for name, most in zip(_FEATURES, (4, 4, 8), strict=True):
                trial.suggest_int(name, 1, most)
        else:
            trial.suggest_int("hash levels", 4, 16)
            trial.suggest_float("finest", 0.25, 2, log=True)
            trial.suggest_categorical("hash features", (1, 2, 4))

    def _draw_network(self, trial: Asked) -> None:
        trial.suggest_int("layers", 1, 5)
        trial.suggest_categorical("precision", ("float32", "bfloat16-backward"))
        if trial.params["encoding"] == "positional":
            most = math.ceil(math.log2(max(self.shape[1:]))) + 1  # the last octave is that of the pixels
            trial.suggest_int("octaves", min(3, most), most)
            return
        trial.suggest_int("pairs", 16, 256, log=True)
        trial.suggest_float("frequency", 0.01, 0.25, log=True)
        if trial.params["encoding"] == "gabor":
            trial.suggest_float("sigma", 0.03, 1.5, log=True)

    @property
    def _batches(self) -> tuple[int, int]:
        """The least and the largest exponent of a batch; the largest sees all pixels of a small picture."""
        most = min(_BATCH[1], math.ceil(math.log2(self.pixels)))
        return min(_BATCH[0], most), most

    def known(self) -> list[dict[str, Any]]:
        """Draws that are near to the presets ``fast`` and ``mlp``, and a coarser grid: where the search begins."""
        low, high = self._batches
        batch = min(high, max(low, round(math.log2(max(1024, self.pixels / 18)))))
        fast: dict[str, Any] = {
            "encoding": "grid", "numbers": 1.0, "activation": "relu", "norm": "none", "output": "linear",
            "optimiser": "Adam", "rate": 1.0, "betas": "0.8, 0.97", "eps": 2e-3, "warm-up": 0.0, "batch": batch,
            "schedule": "linear", "hold": 0.6, "grid's layers": 0, "width": 32, "levels": 5,
        }  # fmt: skip
        fast |= dict(zip(_FEATURES, (2, 2, 4), strict=True))
        coarse = fast | {"output": "sigmoid", "rate": 2.5, "eps": 1e-5, "width": 128, "levels": 4}
        coarse |= dict(zip(_FEATURES, (2, 4, 4), strict=True))
        mlp = {
            "encoding": "fourier", "numbers": 1.0, "activation": "silu", "norm": "none", "output": "sigmoid",
            "optimiser": "Muon", "rate": 10.0, "betas": "0.9, 0.999", "eps": 1e-4, "warm-up": 0.02,
            "batch": max(low, min(high, 12)), "schedule": "linear", "hold": 0.2, "Muon's rate": 0.04, "layers": 2,
            "precision": "float32", "pairs": 128, "frequency": 0.06,
        }  # fmt: skip
        return [values for values in (fast, coarse, mlp) if values["encoding"] in self.encodings]

    # ------------------------------------------------------------------------------------------------------ decoding

    def parts(self, values: Values) -> Parts:
        """The settings of a draw, its numbers rounded to three digits, so that a recipe can be read."""
        values = {name: _round(value) if isinstance(value, float) else value for name, value in values.items()}
        batch = None if 2 ** values["batch"] >= self.pixels else 2 ** values["batch"]
        encoding, layers, width = (self._grid if values["encoding"] in _GRIDS else self._network)(values)
        model = Mlp(
            hidden_layers=layers, hidden_features=width, encoding=encoding, activation=values["activation"],
            norm=values["norm"], output=values["output"],
        )  # fmt: skip
        optimiser = _optimiser(values, (batch or self.pixels) * self.shape[0])
        return Parts(model, optimiser, Batches(batch), values.get("precision", "float32"))

    def _network(self, values: Values) -> tuple[Encoding, int, int]:
        """The encoding, the hidden layers, and the largest width that the numbers allow."""
        encoding: Encoding
        if values["encoding"] == "positional":
            encoding = Positional(values["octaves"])
        else:
            scale = _round(values["frequency"] * math.sqrt(self.pixels))
            encoding = Fourier(2 * values["pairs"], scale)
            if values["encoding"] == "gabor":
                encoding = Gabor(2 * values["pairs"], scale, sigma=values["sigma"])
        limit = values["numbers"] * self.parameters
        width = _largest(lambda width: self._maps(values, encoding, values["layers"], width) <= limit, 2**12)
        return encoding, values["layers"], width

    def _grid(self, values: Values) -> tuple[Grid, int, int]:
        """The largest grid that the numbers allow beside its network, which has at most half of them."""
        layers = max(values["grid's layers"], int(values["optimiser"] == "Muon"))  # Muon needs a hidden matrix
        limit = values["numbers"] * self.parameters
        make = self._dense if values["encoding"] == "grid" else self._hash
        least = make(values, 1)
        width = _largest(lambda width: self._maps(values, least, layers, width) <= limit / 2, values["width"])
        left = limit - self._maps(values, least, layers, width)
        most = max(self.shape[1:]) if values["encoding"] == "grid" else 24
        size = _largest(lambda size: _vertices(make(values, size)) <= left, most)
        return make(values, size), layers, width

    def _dense(self, values: Values, size: int) -> Grid:
        """A pyramid whose finest level has a vertex every ``part`` pixels, and each other one half as many as the next.

        The part is whole, so that vertices lie alike to all pixels around them, and the less the larger the size is.
        """
        _, height, width = self.shape
        part = max(height, width) + 1 - size
        levels = []
        for octave in reversed(range(values["levels"])):
            sides = (math.ceil(side / (part * 2**octave)) for side in (height, width))
            levels.append((*sides, values[_FEATURES[min(octave, 2)]]))
        return Grid(tuple(levels))

    def _hash(self, values: Values, exponent: int) -> Grid:
        """Square levels up to ``finest`` of the picture's longer side, in tables of 2^exponent entries."""
        finest = max(2, round(values["finest"] * max(self.shape[1:])))
        coarsest = min(_COARSEST, finest)
        features = values["hash features"]
        return Grid.geometric(coarsest, finest, values["hash levels"], features, entries=2**exponent)

    def _maps(self, values: Values, encoding: Encoding, layers: int, width: int) -> int:
        """Trained numbers of the linear maps and norms."""
        inputs, channels = encoding.out_features(2), self.shape[0]
        norms = 2 * (layers + 1) * width if values["norm"] == "layer" else 0
        return (inputs + 1) * width + layers * (width + 1) * width + (width + 1) * channels + norms


def _optimiser(values: Values, summed: int) -> Optimiser:
    """The optimiser with its schedule.

    Args:
        summed: values that the loss is a mean of: its gradients are so much smaller than those of a sum.
    """
    rate = _round(_RATES[values["encoding"] in _GRIDS] * values["rate"])
    betas, eps = _BETAS[values["betas"]], _round(values["eps"] / summed)
    if values["optimiser"] == "ScheduleFreeAdamW":
        return ScheduleFreeAdamW(lr=rate, betas=betas, eps=eps, warmup_steps=values["warm-up steps"])
    schedule: Schedule = Constant(values["warm-up"])
    if values["schedule"] == "cosine":
        schedule = Cosine(values["warm-up"])
    elif values["schedule"] == "linear":
        schedule = Linear(values["warm-up"], hold=values["hold"])
    if values["optimiser"] == "AdamW":
        return AdamW(lr=rate, schedule=schedule, betas=betas, eps=eps, weight_decay=values["decay"])
    if values["optimiser"] == "Muon":
        return Muon(lr=values["Muon's rate"], adam_lr=rate, schedule=schedule, betas=betas, eps=eps)
    return Adam(lr=rate, schedule=schedule, betas=betas, eps=eps)


def _vertices(grid: Grid) -> int:
    """Trained numbers of a grid."""
    sizes = [(rows * columns, features) for rows, columns, features in grid.levels]
    return sum((size if grid.entries is None else min(size, grid.entries)) * features for size, features in sizes)


def _largest(allowed: Callable[[int], bool], most: int) -> int:
    """The largest whole number, 1 to ``most``, that is allowed, where all below an allowed one are; else 1."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle - 1)
    return low


def _round(value: float) -> float:
    return float(f"{value:.3g}")
