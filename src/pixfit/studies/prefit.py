"""Does a network that was fitted to another picture fit a new one faster? The published protocol and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from pixfit import images, losses, models, optim, schedules, stopping
from pixfit.canonical import is_whole
from pixfit.images import Image, LabelledSet
from pixfit.problem import Problem, stream
from pixfit.spec import Batches, Spec
from pixfit.starts import Start
from pixfit.store import Store
from pixfit.studies import prefit_answer, triples
from pixfit.studies.prefit_scores import Levels, Runs, place
from pixfit.studies.study import Answer, Study, StudyError
from pixfit.studies.triples import Triple

__all__ = ["PrefitStudy"]

_LAYERS, _FEATURES = (2, 3, 4, 5, 6, 7, 8), (32, 64, 128, 256, 512, 1024)
_SIZES = tuple(f"{layers}x{features}" for layers in _LAYERS for features in _FEATURES)
_LAPTOP = tuple(size for size in _SIZES if int(size.partition("x")[2]) <= 128)
_ARMS = ("random", "same", "different", "mean", "partial", "reptile", "maml", "meta-sgd")
_PATHS = {
    "random": "A", "same": "SA", "different": "DA", "same chained": "ASA", "different chained": "ASADA", "mean": "MA",
}  # fmt: skip
"""The pictures that each arm fits one after the other: the target A, one of its class, one of another, the mean."""
_META_LR = {"reptile": 1e-5, "maml": 1e-5, "meta-sgd": 5e-5}
"""The outer learning rates of the meta-learned starts: Tancik et al. 2021, and Strümpler et al. 2022 for the last."""
_META_PICTURES = 3  # of a step of meta-learning
_CROP, _CROPS = 32, 6  # side of a crop of a bundled picture, and how many rows and columns of them


@dataclass(frozen=True)
class PrefitStudy(Study):
    """The settings of the pre-fit study.

    Args:
        images: ``cifair10``, ``cifar10`` (their training pictures), ``bundled`` (crops of bundled pictures, a class
            each), or a path: an archive laid out like CIFAR-10, or a folder of class subfolders.
        draw: of the triples: ``distinct`` (no picture twice), ``original`` (as published), or ``threes`` (three
            pictures after another, in a folder without classes, so that same and different mean second and third).
        triples: how many.
        sizes: ``LAYERSxFEATURES``, hidden layers and hidden features of the SIREN.
        arms: ``random``, ``same`` and ``different`` as published; ``mean`` starts from a fit of the mean of all others,
            ``partial`` takes only the first layers of the fit of the different class, ``reptile``, ``maml`` and
            ``meta-sgd`` start from weights that were meta-learned on pictures of no triple, see `pixfit.models.Maml`.
        reset: ``copy`` (every pre-fit starts from the initial weights, the experiment as published in words),
            ``chained`` (A, same, A, different, A in one chain, as the published notebook runs it), or both.
        extra_sizes: the sizes at which the arms after ``different`` are run.
        layers: how many first layers the arm ``partial`` takes.
        meta_steps: of meta-learning, three pictures each; one meta-learned start serves all triples.
        meta_pictures: how many pictures it learns from at most.
        epochs: of each fit; an epoch is one step on all pixels.
        seed: of the draw ``distinct``; the other draws have their own.
    """

    images: str = "cifair10"
    draw: str = "distinct"
    triples: int = 20
    sizes: tuple[str, ...] = _SIZES
    arms: tuple[str, ...] = _ARMS
    reset: tuple[str, ...] = ("copy", "chained")
    extra_sizes: tuple[str, ...] = ("2x32", "4x64", "4x128")
    layers: tuple[int, ...] = (1, 2)
    meta_steps: int = 20_000
    meta_pictures: int = 2000
    epochs: int = 2000
    seed: int = 42

    name: ClassVar[str] = "prefit"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {
            "images": "bundled",
            "triples": 2,
            "sizes": ("2x8", "3x8"),
            "extra_sizes": ("2x8",),
            "epochs": 30,
            "meta_steps": 8,
        },
        "laptop": {"sizes": _LAPTOP, "meta_steps": 3000},
        "published": {"draw": "original"},
    }

    _specs: dict[tuple[str, int, str], Spec] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("draw", ("distinct", "original", "threes")),
            ("arms", _ARMS),
            ("reset", ("copy", "chained")),
        ):
            value = getattr(self, name)
            for one in (value,) if isinstance(value, str) else value:
                if one not in allowed:
                    raise StudyError(f"{name} is {one!r}; it may be {', '.join(allowed)}")
            if not value:
                raise StudyError(f"{name} is empty; it may be {', '.join(allowed)}")
        for name in ("triples", "epochs", "meta_steps", "meta_pictures"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)!r}; it must be a whole number, 1 or more")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**63):
            raise StudyError(f"seed is {self.seed!r}; it must be 0 to 2^63 - 1")
        if not all(is_whole(count) and count >= 1 for count in self.layers):
            raise StudyError(f"layers is {self.layers!r}; it must be whole numbers, 1 or more, such as 1,2")
        for size in (*self.sizes, *self.extra_sizes):
            _model(size)
        if not self.sizes:
            raise StudyError("sizes is empty; give some, such as 2x32,4x64")
        ordered = sorted(dict.fromkeys(self.sizes), key=place)
        object.__setattr__(self, "sizes", tuple(ordered))

    # -------------------------------------------------------------------------------------------------------- pictures

    @cached_property
    def pictures(self) -> LabelledSet:
        """The set of pictures that the triples are drawn from."""
        if self.images == "bundled":
            return _crops()
        if self.draw == "threes":
            found = images.load_folder(self.images)
            data = torch.stack([(image.data * 255).round().to(torch.uint8) for image in found])
            return LabelledSet(data, torch.zeros(len(found), dtype=torch.int64), ("picture",), Path(self.images).name)
        return images.load_labelled(self.images)

    @cached_property
    def drawn(self) -> tuple[Triple, ...]:
        """The triples, in order."""
        try:
            if self.draw == "original":
                return triples.original(self.pictures.labels, self.triples)
            if self.draw == "distinct":
                return triples.distinct(self.pictures.labels, self.triples, self.seed)
        except ValueError as error:
            raise StudyError(str(error)) from None
        if 3 * self.triples > len(self.pictures):
            raise StudyError(
                f"{self.triples} triples of consecutive pictures need {3 * self.triples}, {self.images} has "
                f"{len(self.pictures)}; lower triples"
            )
        return tuple(Triple(3 * t, 3 * t + 1, 3 * t + 2, 100 + t) for t in range(self.triples))

    @cached_property
    def _problems(self) -> dict[int, Problem]:
        chosen = {index for one in self.drawn for index in (one.target, one.same, one.different)}
        return {index: Problem(self.pictures.image(index)) for index in sorted(chosen)}

    @cached_property
    def _total(self) -> torch.Tensor:
        """The sum of all pictures (C, H, W) in [0, 1]."""
        pictures = self.pictures.pictures
        if isinstance(pictures, torch.Tensor):
            return pictures.sum(dim=0, dtype=torch.int64).double() / 255
        return sum((self.pictures.image(index).data.double() for index in range(len(pictures))), torch.zeros(()))

    @cached_property
    def _means(self) -> tuple[Problem, ...]:
        """For each triple the mean of all pictures but its target, so that it has not seen what is to be fitted."""
        means = []
        for one in self.drawn:
            mean = (self._total - self._problems[one.target].image.data.double()) / (len(self.pictures) - 1)
            means.append(Problem(Image(mean.clamp(0, 1).float(), name="mean picture", bit_depth=32)))
        return tuple(means)

    @cached_property
    def _mosaic(self) -> Problem:
        """Pictures of no triple, one below the other: what the meta-learned starts learn from."""
        taken = {index for one in self.drawn for index in (one.target, one.same, one.different)}
        free = [index for index in range(len(self.pictures)) if index not in taken]
        drawn = torch.randperm(len(free), generator=stream(self.seed, "meta-learning"))[: self.meta_pictures]
        chosen = [self.pictures.image(free[place]) for place in drawn.sort().values.tolist()]
        if len(chosen) < _META_PICTURES or len({picture.data.shape for picture in chosen}) > 1:
            raise StudyError(
                f"meta-learning needs {_META_PICTURES} pictures or more of one size in no triple, {self.images} has "
                f"{len(chosen)} others; lower triples, or leave {', '.join(_META_LR)} out of arms"
            )
        depth = max(picture.bit_depth for picture in chosen)
        return Problem(Image(torch.cat([picture.data for picture in chosen], dim=1), name="mosaic", bit_depth=depth))

    def picture(self, triple: int, letter: str) -> Problem:
        """The target (A), the one of its class (S), the one of another (D), or the mean picture (M)."""
        if letter == "M":
            return self._means[triple]
        one = self.drawn[triple]
        return self._problems[{"A": one.target, "S": one.same, "D": one.different}[letter]]

    # ------------------------------------------------------------------------------------------------------------ fits

    def arm_names(self, size: str) -> list[str]:
        """The arms of a size, by the names that tables show."""
        names = ["random"] if "random" in self.arms else []
        for reset, suffix in (("copy", ""), ("chained", " chained")):
            names += [arm + suffix for arm in ("same", "different") if arm in self.arms and reset in self.reset]
        if size in self.extra_sizes:
            names += ["mean"] if "mean" in self.arms else []
            if "partial" in self.arms:
                names += [f"first {k}" for k in self.layers if k <= _model(size).hidden_layers + 1]
            names += [arm for arm in _META_LR if arm in self.arms]
        return names

    def fit(self, size: str, triple: int, arm: str) -> Spec:
        """The last fit of an arm, that of the target; its parents are the pre-fits."""
        if arm.startswith("first "):
            start = Start(weights=self._along(size, triple, "D"), layers=int(arm.removeprefix("first ")))
            return self._one(size, triple, f"{arm}/A", start)
        if arm in _META_LR:
            return self._one(size, triple, f"{arm}/A", Start(weights=self._meta(size, arm)))
        return self._along(size, triple, _PATHS[arm])

    def _along(self, size: str, triple: int, path: str) -> Spec:
        start = Start(weights=self._along(size, triple, path[:-1])) if len(path) > 1 else Start()
        return self._one(size, triple, path, start)

    def _one(self, size: str, triple: int, path: str, start: Start) -> Spec:
        key = (size, triple, path)
        if key not in self._specs:
            self._specs[key] = Spec(
                self.picture(triple, path[-1]), _model(size), start=start, loss=losses.MSE(),
                optimiser=optim.Adam(lr=1e-4, schedule=schedules.Plateau(decay=0.5, patience=500, threshold=1e-4)),
                budget=stopping.Steps(self.epochs), seed=self.drawn[triple].seed,
            )  # fmt: skip
        return self._specs[key]

    def _meta(self, size: str, arm: str) -> Spec:
        """The fit that meta-learns the start of an arm."""
        key = (size, -1, arm)
        if key not in self._specs:
            _, height, width = self.picture(0, "A").shape
            inner = _model(size)
            made: dict[str, models.MetaModel] = {
                "reptile": models.Reptile(inner, height, width), "maml": models.Maml(inner, height, width),
                "meta-sgd": models.Maml(inner, height, width, steps=3, lr=1e-5, rates="learned"),
            }  # fmt: skip
            self._specs[key] = Spec(
                self._mosaic, made[arm], optimiser=optim.Adam(lr=_META_LR[arm]), seed=self.seed,
                batches=Batches(_META_PICTURES * height * width), budget=stopping.Steps(self.meta_steps),
            )  # fmt: skip
        return self._specs[key]

    def fits(self, store: Store) -> list[Spec]:
        found: dict[str, Spec] = {}
        for size in self.sizes:
            for triple in range(self.triples):
                for arm in self.arm_names(size):
                    chain = [self.fit(size, triple, arm)]
                    while isinstance(parent := chain[-1].start.weights, Spec):
                        chain.append(parent)
                    found.update((spec.id, spec) for spec in reversed(chain))
        return list(found.values())

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        return prefit_answer.answer(self._runs(store), self._levels())

    def _runs(self, store: Store) -> dict[str, dict[str, Runs]]:
        """By size and arm, the finished runs."""
        entries, found = store.entries(), {}
        for size in self.sizes:
            found[size] = {
                arm: Runs.read(store, entries, {t: self.fit(size, t, arm).id for t in range(self.triples)}, self.epochs)
                for arm in self.arm_names(size)
            }
        return found

    def _levels(self) -> Levels:
        """What is known of the triples without any training."""
        return Levels.of([[self.picture(t, letter).image.data for letter in "ASD"] for t in range(self.triples)])


def _model(size: str) -> models.Siren:
    layers, cross, features = size.partition("x") if isinstance(size, str) else ("", "", "")
    if not (cross and layers.isdecimal() and features.isdecimal()):
        raise StudyError(f"a size is LAYERSxFEATURES, such as 4x64, got {size!r}")
    try:
        return models.Siren(
            hidden_layers=int(layers), hidden_features=int(features),
            coordinates=models.Coordinates(alignment="corner", order="row_col"),
        )  # fmt: skip
    except ValueError as error:
        raise StudyError(f"the size {size} is not possible: {error}") from None


def _crops() -> LabelledSet:
    """Crops of bundled colour pictures, shrunk by 4 and cut on a grid; the picture they come from is their class."""
    classes = ("astronaut", "chelsea", "coffee", "rocket")
    cut, labels = [], []
    for label, name in enumerate(classes):
        whole = images.load(name).data[:3]
        small = torch.nn.functional.avg_pool2d(whole[None], 4)[0]
        rows, columns = (min(_CROPS, side // _CROP) for side in small.shape[1:])
        for row in range(rows):
            for column in range(columns):
                part = small[:, row * _CROP : (row + 1) * _CROP, column * _CROP : (column + 1) * _CROP]
                cut.append((part * 255).round().to(torch.uint8))
                labels.append(label)
    return LabelledSet(torch.stack(cut), torch.tensor(labels), classes, "bundled crops")
