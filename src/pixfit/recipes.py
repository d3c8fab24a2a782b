"""Named presets: functions that take a problem and return a spec. A variant changes two fields.

`get` looks one up by name or reads one from a JSON file, and `configure` changes settings by dotted names.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixfit import canonical, kernels, modelfile
from pixfit.kernels import library
from pixfit.models import Coordinates, Cosines, Experts, Finer, Fourier, Gabor, Grid, Mlp, Siren, Wire
from pixfit.models.coordinate import Output
from pixfit.operators import Identity
from pixfit.optim import Adam, AdamW, Muon, ScheduleFreeAdamW
from pixfit.problem import Problem
from pixfit.schedules import Constant, Cosine, Linear
from pixfit.spec import Batches, Precision, Spec
from pixfit.starts import FromPicture, Start
from pixfit.stopping import Budget, Steps

__all__ = [
    "RECIPES", "Recipe", "RecipeError", "climb_baseline", "climb_final", "compact", "configure", "describe", "fast",
    "finer_2024", "get", "instant", "mlp", "quality", "siren_2020", "smooth", "wire_2023",
]  # fmt: skip

Recipe = Callable[[Problem], Spec]


class RecipeError(ValueError):
    """A recipe, file or setting that does not exist or does not fit; the text says what is allowed."""


def fast(problem: Problem) -> Spec:
    """A good picture in seconds, from random numbers: grids of features at five resolutions and a small network.

    Parameters and batches follow the picture: about 0.94 numbers a picture value (those of small pictures have more,
    for the network), and 18 batches a pass. So many numbers could nearly hold the picture itself, and between pixels
    the picture is interpolated linearly; see `smooth` and `compact`.
    """
    optimiser = Adam(lr=0.012, betas=_BETAS, eps=_eps(problem, 2e-3), schedule=Linear())
    return _grid_spec(problem, _grid(problem), optimiser, steps=600)


def instant(problem: Problem) -> Spec:
    """As fast, but it begins as the picture: the grids store its colour planes, and training improves on them.

    Without training it shows what was put in. Where the picture was not measured pixel by pixel it starts at random.
    """
    optimiser = Adam(lr=1e-3, betas=_BETAS, eps=_eps(problem, 1e-5), schedule=Linear(warmup=0.1))
    return _from_picture(problem, _grid_spec(problem, _grid(problem), optimiser, steps=100))


def quality(problem: Problem) -> Spec:
    """As instant, with a larger network and twenty times the steps: half a minute a megapixel."""
    optimiser = Adam(lr=5e-3, betas=_BETAS, eps=_eps(problem, 1e-5), schedule=Linear(warmup=0.05))
    return _from_picture(problem, _grid_spec(problem, _grid(problem), optimiser, steps=2000, width=64))


def smooth(problem: Problem) -> Spec:
    """For enlarging: features are cubic splines between pixels, and pictures of any scale come out without steps.

    Enlarged to twice their size, photographs come on average a little nearer to the truth than by Lanczos' filter; see
    docs/log.md.
    """
    optimiser = Adam(lr=0.03, betas=_BETAS, eps=_eps(problem, 1e-3), schedule=Linear())
    grid = _grid(problem, interpolation="spline")
    return _grid_spec(problem, grid, optimiser, steps=1500, output="sigmoid")


def compact(problem: Problem) -> Spec:
    """Few numbers: cosines in tiles of 8 pixels, as many in a tile as it needs, a fifth of a number a picture value.

    Nothing is trained where every pixel was measured by itself: the best coefficients are known, and choosing them
    takes seconds. At equal numbers it is above the largest coefficients of a block transform, which are above the
    networks that were trained here, but for SIRENs of half as many numbers and less; see docs/log.md. Numbers have 32
    bits, so that a file of it is hardly smaller than the picture's own 8-bit samples. Pictures of few tiles (under 48
    pixels a side) pay more for the order of frequencies.
    """
    channels, height, width = problem.shape
    pointwise = problem.operator.pointwise
    model = Cosines.within(0.2 * channels * height * width, height, width, channels, classes=16 if pointwise else 1)
    optimiser = Adam(lr=0.01, schedule=Linear(warmup=0.02))
    batches = Batches(_batch(problem) if pointwise else None)
    spec = _from_picture(problem, Spec(problem, model, optimiser=optimiser, batches=batches, budget=Steps(1000)))
    complete = isinstance(problem.operator, Identity) and problem.held_out == 0
    return dataclasses.replace(spec, budget=Steps(0)) if complete else spec


_BETAS = (0.8, 0.97)
_BATCHES = 18  # of a pass over the picture
_LEAST_BATCH = 1024  # pixels: less is hardly faster
_MOST_NUMBERS = 2**26  # of a grid: levels of larger pictures do not grow any more
_COARSE = ((16, 4), (8, 4), (4, 4), (2, 2))


def _grid(problem: Problem, **settings: Any) -> Grid:
    """A pyramid with fewer numbers than the picture has values.

    From four features at a sixteenth of its resolution to one less than it has channels at the whole of it. A picture
    of one channel gets two levels of less than half its resolution in one direction each.
    """
    channels, height, width = problem.shape
    if channels == 1:
        return Grid(_levels(height, width, ((16, 4), (8, 2), ((1, 2.2), 1), ((2.2, 1), 1))), **settings)
    return Grid(_levels(height, width, (*_COARSE, (1, channels - 1))), **settings)


def _levels(
    height: int, width: int, parts: Sequence[tuple[float | tuple[float, float], int]]
) -> tuple[tuple[int, int, int], ...]:
    """Levels of 1 / part of a picture's resolution, or of a part for each direction, with so many features."""
    pairs = [(part if isinstance(part, tuple) else (part, part), features) for part, features in parts]
    whole = sum(features * height * width / (rows * columns) for (rows, columns), features in pairs)
    shrink = max(1.0, math.sqrt(whole / _MOST_NUMBERS))
    return tuple(
        (math.ceil(height / (shrink * rows)), math.ceil(width / (shrink * columns)), features)
        for (rows, columns), features in pairs
    )


def _batch(problem: Problem) -> int:
    """Pixels of a step."""
    _, height, width = problem.shape
    return min(height * width, max(_LEAST_BATCH, math.ceil(height * width / _BATCHES)))


def _eps(problem: Problem, scale: float) -> float:
    """Of Adam: gradients of a mean shrink as the batch grows, and the feature of a pixel has only that pixel's.

    It lets steps shrink with the error of a pixel instead of jumping around it.
    """
    return scale / (_batch(problem) * problem.shape[0])


def _grid_spec(
    problem: Problem, grid: Grid, optimiser: Adam, *, steps: int, width: int = 32, output: Output = "linear"
) -> Spec:
    model = Mlp(hidden_layers=0, hidden_features=width, encoding=grid, output=output)
    batches = Batches(_batch(problem) if problem.operator.pointwise else None)
    return Spec(problem, model, optimiser=optimiser, batches=batches, budget=Steps(steps))


def _from_picture(problem: Problem, spec: Spec) -> Spec:
    return dataclasses.replace(spec, start=Start(FromPicture())) if problem.operator.pointwise else spec


def mlp(problem: Problem) -> Spec:
    """A network without a grid: Fourier features and a perceptron, trained by Muon on batches of pixels.

    The precision is float32, or bfloat16 where the machine multiplies that faster, in the backward products alone where
    compiled kernels run. The frequencies grow with the picture. Chosen by trial, see docs/log.md.
    """
    _, height, width = problem.shape
    model = Mlp(
        hidden_layers=2,
        hidden_features=256,
        encoding=Fourier(features=256, freq_scale=0.06 * math.sqrt(height * width)),
        activation="silu",
        output="sigmoid",
        coordinates=Coordinates(range="unit"),
    )
    optimiser = Muon(lr=0.04, adam_lr=0.02, schedule=Linear(warmup=0.02, hold=0.2))
    return Spec(
        problem, model, optimiser=optimiser, batches=Batches(4096), budget=Steps(1000), precision=_fast_precision()
    )


def _fast_precision() -> Precision:
    """The fastest on this machine that costs no quality: not every processor gains by bfloat16."""
    compiled = None if torch.cuda.is_available() else library.load()
    if compiled is not None:
        return "bfloat16-backward" if compiled.fast_bfloat16 else "float32"
    return "bfloat16" if kernels.fast_bfloat16() else "float32"


def siren_2020(problem: Problem) -> Spec:
    """SIREN as published (Sitzmann et al. 2020): 256 features, five sine layers, full batches, Adam 1e-4."""
    model = Siren(hidden_layers=4, hidden_features=256, coordinates=Coordinates(alignment="corner"))
    return Spec(problem, model, optimiser=Adam(lr=1e-4), budget=Steps(500))


def finer_2024(problem: Problem) -> Spec:
    """FINER (Liu et al. 2024): SIREN with variable-periodic sines, which reach higher frequencies; Adam 5e-4."""
    model = Finer(hidden_layers=4, hidden_features=256, coordinates=Coordinates(alignment="corner"))
    return Spec(problem, model, optimiser=Adam(lr=5e-4, schedule=Cosine(final=0.1)), budget=Steps(500))


def wire_2023(problem: Problem) -> Spec:
    """WIRE (Saragadam et al. 2023): complex Gabor wavelets as activations; Adam 5e-3 with decay."""
    model = Wire(hidden_layers=2, hidden_features=181, coordinates=Coordinates(alignment="corner"))
    return Spec(problem, model, optimiser=Adam(lr=5e-3, schedule=Cosine(final=0.1)), budget=Steps(500))


def climb_baseline(problem: Problem) -> Spec:
    """The first step of the published recipe climb: 64 Fourier features, four linear maps of 256, ReLU, AdamW 1e-4."""
    model = Mlp(
        hidden_layers=2,
        hidden_features=256,
        encoding=Fourier(features=64),
        experts=Experts(count=1, gate_norm="layer"),
        coordinates=_CLIMB,
    )
    return Spec(problem, model, optimiser=AdamW(lr=1e-4), batches=Batches(4096), budget=Budget(epochs=200, seconds=180))


def climb_final(problem: Problem) -> Spec:
    """The last step of the published recipe climb (47.15 dB in 3 minutes on a GPU): two Gabor experts of 1024."""
    model = Mlp(
        hidden_layers=3,
        hidden_features=1024,
        encoding=Gabor(features=256, freq_scale=80.0, sigma="code"),
        norm="layer",
        experts=Experts(count=2, gate_norm="layer"),
        coordinates=_CLIMB,
    )
    optimiser = ScheduleFreeAdamW(lr=4e-4, schedule=Constant())
    return Spec(problem, model, optimiser=optimiser, batches=Batches(4096), budget=Budget(epochs=200, seconds=180))


_CLIMB = Coordinates(alignment="corner", range="unit")

RECIPES: dict[str, Recipe] = {
    "fast": fast,
    "instant": instant,
    "smooth": smooth,
    "quality": quality,
    "compact": compact,
    "mlp": mlp,
    "siren-2020": siren_2020,
    "climb-baseline": climb_baseline,
    "climb-final": climb_final,
    "finer-2024": finer_2024,
    "wire-2023": wire_2023,
}


def get(name: str) -> Recipe:
    """A recipe by its name, or from a JSON file: the canonical form of a spec.

    Its problem is ignored, and so is its start, unless that is from the picture.

    Raises:
        RecipeError: no such recipe or file, or a file that is not one; with the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if not os.path.isfile(path):  # Path.is_file raises on names that the system finds too long
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(RECIPES)}, or give a JSON file"
        raise RecipeError(f"no recipe or file is called {name!r}; {hint}")
    try:
        plain = json.loads(path.read_text("utf-8"))
        if not isinstance(plain, dict) or "model" not in plain:
            raise ValueError("a recipe is a JSON object with at least a model, as `pixfit recipes fast` prints one")
        modelfile.decode(plain["model"])
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not a recipe ({error})") from None

    def from_file(problem: Problem) -> Spec:
        try:
            return modelfile.decode_spec(plain, problem)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path}: {error}") from None

    return from_file


def describe(name: str) -> str:
    """One sentence on a recipe."""
    return (RECIPES[name].__doc__ or "").strip().partition("\n")[0]


def configure(spec: Spec, settings: Mapping[str, Any], *, recipe: str = "this recipe") -> Spec:
    """The spec with settings changed by dotted names, such as ``{"model.hidden_features": "128"}``.

    Values may be texts as typed on a command line: numbers, ``true``, ``null`` and lists are read as JSON, and the name
    of a class (``optimiser=AdamW``) puts that class with its defaults in place.

    Raises:
        RecipeError: a name that does not exist (with the nearest one), or a value that the setting refuses.
    """
    plain = json.loads(json.dumps(spec.plain))
    for dotted, value in sorted(settings.items(), key=lambda item: item[0].count(".")):  # a class before its settings
        _change(plain, dotted, _value(value), recipe)
    try:
        changed = modelfile.decode_spec(plain, spec.problem if isinstance(spec.problem, Problem) else None)
        return dataclasses.replace(changed, start=spec.start)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{error}") from None


def _change(plain: dict[str, Any], dotted: str, value: Any, recipe: str) -> None:
    *path, last = dotted.split(".")
    place = plain
    for depth, name in enumerate([*path, last]):
        known = [key for key in place if key != "kind" and not (depth == 0 and key in ("problem", "start"))]
        if name not in known:
            hint = _hint(plain, dotted, place, [*path, last][:depth])
            raise RecipeError(f"no setting {dotted!r} in recipe {recipe!r}; {hint}")
        if depth < len(path):
            if not isinstance(place[name], dict):
                raise RecipeError(f"{'.'.join(path[: depth + 1])!r} is {place[name]!r} and has no settings of its own")
            place = place[name]
    parts = isinstance(place[last], dict)
    if isinstance(value, str) and (parts or value in modelfile.KINDS):
        value = {"kind": value}
    if isinstance(value, dict):
        try:
            value = dict(canonical.plain(modelfile.decode(value)))  # with its defaults, for settings that follow
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{dotted}: {error}") from None
    elif parts and value is not None:
        inside = [f"{dotted}.{key}" for key in place[last] if key != "kind"]
        raise RecipeError(
            f"{dotted} takes the name of a class, not {value!r}" + (f"; or set {', '.join(inside)}" if inside else "")
        )
    place[last] = value


def _hint(plain: Mapping[str, Any], dotted: str, place: Mapping[str, Any], above: list[str]) -> str:
    """The nearest name there is, by its last part first: people mistype that, or forget where a setting lives."""
    names = _dotted(plain)
    wanted = dotted.rpartition(".")[2]
    lasts = [name.rpartition(".")[2] for name in names]
    close = difflib.get_close_matches(wanted, lasts, n=1, cutoff=0.6)
    if close:
        return f"did you mean {names[lasts.index(close[0])]!r}?"
    here = [".".join([*above, key]) for key in place if key != "kind" and (above or key not in ("problem", "start"))]
    return f"there are {', '.join(here)}"


def _dotted(plain: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in plain.items():
        if key == "kind" or (not prefix and key in ("problem", "start")):
            continue
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _dotted(value, f"{prefix}{key}.")
    return names


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
