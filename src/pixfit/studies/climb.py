"""How far does a coordinate network climb when its settings are tuned one after the other? The published climb."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pixfit import models, optim
from pixfit.canonical import is_number, is_whole
from pixfit.problem import Problem
from pixfit.spec import Batches, Record, Spec
from pixfit.stopping import Budget
from pixfit.store import Store
from pixfit.studies import climb_answer, climb_films, climb_pictures, climb_search_answer
from pixfit.studies.climb_scores import Key, Run, Runs
from pixfit.studies.climb_search import ClimbSearch, Search
from pixfit.studies.climb_steps import NAMES, Point, Sweep, Values, climb
from pixfit.studies.climb_tables import ClimbTables
from pixfit.studies.climb_tasks import ClimbTasks
from pixfit.studies.study import Answer, Study, StudyError

__all__ = ["ClimbStudy"]

_PICTURES = ("wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047")
_FILMED = {"baseline": "baseline", "experts": "final"}  # by sweep, the films of what is taken from it
_EPOCHS = 200  # that a film covers where only seconds end a fit


@dataclass(frozen=True)
class ClimbStudy(Study):
    """The settings of the climb. Sizes, rates and scales of its grids are the published ones, changed as said here.

    Args:
        images: a folder of pictures; ``hires768``: the folder of this name in the data folder (``PIXFIT_DATA``), where
            you put the five that the settings name, or others; ``bundled``: pictures that come with the program.
        pictures: which of them, by file name without suffix, or the part of it before an underscore; ``all``.
        side: of the square that is cut from the middle of each; None: pictures as they are.
        sweeps: which, see `pixfit.studies.climb_steps.NAMES`.
        first_scales: frequency scales of the steps 0 and 1, in cycles per image side, which the publication does not
            tell; null: its program's default, 6.4.
        sigma: width of Gabor features: ``code`` 1.131 of a side, as the published program computes it, so that they are
            nearly Fourier features; ``text`` 0.1·√(features / 512), as its text says.
        gate_norm: ``layer`` as published, which leaves the gate of the experts only the side of the diagonal; ``none``.
        adamw_decay, free_decay: weight decay with AdamW and with ScheduleFreeAdamW; the publication changed both.
        divide_widths, divide_batches: what the published widths and batch sizes are divided by.
        divide_frequencies: what the published frequency scales are divided by, so that a cut-out shows as many cycles a
            pixel as the whole picture.
        multiply_rates: what the published learning rates are multiplied by: with Adam the rate that suits a network is
            about inverse to its width (Yang et al. 2021, "Tensor Programs V").
        seeds: how many, 0 and up.
        epochs, seconds, steps: the budget of each fit; whichever is reached first ends it. Seconds are of training
            alone; the published clock also ran while pictures were evaluated, about a quarter of the time.
        evaluate: epochs between two points of the PSNR curve, which is over all pixels.
        film: epochs between two pictures of a film; 0: no films.
        search: a budget and limits to find a recipe for these pictures, in place of the climb; see
            `pixfit.studies.climb_search.Search`.
    """

    images: str = "hires768"
    pictures: tuple[str, ...] = _PICTURES
    side: int | None = None
    sweeps: tuple[str, ...] = NAMES
    first_scales: tuple[float | None, ...] = (None, 50.0)
    sigma: Literal["code", "text"] = "code"
    gate_norm: Literal["layer", "none"] = "layer"
    adamw_decay: float = 0.01
    free_decay: float = 0.0
    divide_widths: int = 1
    divide_batches: int = 1
    divide_frequencies: float = 1.0
    multiply_rates: float = 1.0
    seeds: int = 2
    epochs: int | None = 200
    seconds: float | None = 180.0
    steps: int | None = None
    evaluate: int = 1
    film: int = 5
    search: Search = field(default_factory=Search)

    name: ClassVar[str] = "climb"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {
            "images": "bundled", "pictures": ("astronaut", "coffee"), "side": 24, "divide_widths": 64,
            "divide_batches": 32, "divide_frequencies": 32.0, "seeds": 1, "epochs": None, "seconds": None, "steps": 12,
            "film": 1,
        },
        "laptop": {
            "images": "bundled", "pictures": ("astronaut", "chelsea", "coffee"), "side": 256, "divide_widths": 4,
            "divide_batches": 16, "divide_frequencies": 3.0, "multiply_rates": 4.0, "epochs": None, "seconds": None,
            "steps": 1536, "film": 1,
        },
        "published": {},
    }  # fmt: skip

    _specs: dict[tuple[Point, str, int], Spec] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, profile: str = "laptop", settings: Mapping[str, Any] | None = None) -> Self:
        """As of every study. A ``table`` or ``tasks`` among the settings asks for these in place of the climb: they are
        studies with settings of their own, `pixfit.studies.climb_tables.ClimbTables` and
        `pixfit.studies.climb_tasks.ClimbTasks`."""
        for name, kind in (("table", ClimbTables), ("tasks", ClimbTasks)):
            if name in (settings or {}):
                return kind.of(profile, settings)  # type: ignore[return-value]
        return super().of(profile, settings)

    def __post_init__(self) -> None:
        for name, allowed in (("sweeps", NAMES), ("sigma", ("code", "text")), ("gate_norm", ("layer", "none"))):
            value = getattr(self, name)
            for one in (value,) if isinstance(value, str) else value:
                if one not in allowed:
                    raise StudyError(f"{name} is {one!r}; it may be {', '.join(allowed)}")
        for name in ("sweeps", "pictures", "first_scales"):
            if not getattr(self, name):
                raise StudyError(f"{name} is empty; name at least one")
        for name in (
            "divide_widths",
            "divide_batches",
            "seeds",
            "evaluate",
            *(["side"] if self.side is not None else []),
        ):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)!r}; it must be a whole number, 1 or more")
        if not (is_whole(self.film) and self.film >= 0):
            raise StudyError(f"film is {self.film!r}; it must be a whole number of epochs, or 0 for no films")
        for name in ("adamw_decay", "free_decay"):
            if not (is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise StudyError(f"{name} is {getattr(self, name)!r}; it must be a number, 0 or more")
        positive = [(name, getattr(self, name)) for name in ("divide_frequencies", "multiply_rates")]
        positive += [("first_scales", scale) for scale in self.first_scales if scale is not None]
        for name, number in positive:
            if not (is_number(number) and number > 0):
                raise StudyError(f"{name} is {number!r}; it must be a number above 0")
        if len(set(self.first_scales)) < len(self.first_scales):
            raise StudyError(f"first_scales names a scale twice: {self.first_scales}")
        self._budget()
        if not isinstance(self.search, Search):
            raise StudyError(f"search is {self.search!r}; set search.seconds or search.steps")
        if not self.search.on and self.search != Search():
            raise StudyError("a search needs the budget of a fit: set search.seconds, or search.steps")

    # -------------------------------------------------------------------------------------------------------- pictures

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The pictures by name, cut to their side."""
        found = climb_pictures.load(self.images, self.pictures, self.side)
        return {name: Problem(image) for name, image in found.items()}

    # ------------------------------------------------------------------------------------------------------------ fits

    @cached_property
    def climbed(self) -> tuple[Sweep, ...]:
        """The sweeps that were asked for, in the published order."""
        every = climb(
            self.first_scales, sigma=self.sigma, gate=self.gate_norm, adamw_decay=self.adamw_decay,
            free_decay=self.free_decay,
        )  # fmt: skip
        return tuple(sweep for sweep in every if sweep.name.partition("_")[0] in self.sweeps)

    def model(self, point: Point) -> models.Mlp:
        """The network of a point, divided as the settings say."""
        scale = point.scale
        if self.divide_frequencies != 1:
            scale = models.Fourier(features=point.features, freq_scale=scale).scale / self.divide_frequencies
        encoding: models.Encoding = models.Fourier(point.features, scale, point.trainable)
        if point.kind == "Gabor":
            encoding = models.Gabor(point.features, scale, sigma=point.sigma, trainable=point.trainable)
        return models.Mlp(
            hidden_layers=point.layers - 2,
            hidden_features=max(1, point.hidden // self.divide_widths),
            encoding=encoding,
            activation=point.activation,
            norm="layer" if point.norm else "none",
            skip=point.skip,
            experts=models.Experts(count=point.experts, gate_norm=point.gate),
            coordinates=models.Coordinates(alignment="corner", range="unit"),
        )

    def fit(self, point: Point, picture: str, seed: int) -> Spec:
        """The fit of a point to a picture."""
        key = (point, picture, seed)
        if key not in self._specs:
            rate = point.lr * self.multiply_rates
            optimiser = optim.AdamW if point.optimiser == "AdamW" else optim.ScheduleFreeAdamW
            self._specs[key] = Spec(
                self.problems[picture], self.model(point), optimiser=optimiser(lr=rate, weight_decay=point.decay),
                batches=Batches(max(1, point.batch // self.divide_batches)), budget=self._budget(), seed=seed,
            )  # fmt: skip
        return self._specs[key]

    @cached_property
    def _points(self) -> list[Point]:
        """Every point of every sweep, each once: several sweeps share some."""
        return list(dict.fromkeys(point for sweep in self.climbed for point in sweep.members.values()))

    def _budget(self) -> Budget:
        try:
            return Budget(steps=self.steps, epochs=self.epochs, seconds=self.seconds)
        except ValueError as error:
            raise StudyError(str(error)) from None

    def _of(self, point: Point) -> Iterator[tuple[Key, Spec]]:
        for seed in range(self.seeds):
            for picture in self.problems:
                yield (picture, seed), self.fit(point, picture, seed)

    @cached_property
    def searching(self) -> ClimbSearch | None:
        """What is made in place of the climb where a search was asked for."""
        return ClimbSearch(self.search, self.problems, self.seeds) if self.search.on else None

    @property
    def label(self) -> str:
        return f"{self.name}-search" if self.search.on else self.name

    def fits(self, store: Store) -> list[Spec]:
        if self.searching is not None:
            return list(self.searching.course(store).fits)
        found = {spec.id: spec for point in self._points for _, spec in self._of(point)}
        return list(found.values())

    def record(self, spec: Spec) -> Record:
        """A curve over all pixels, a point in some epochs, and what films and maps of the gate need."""
        if self.searching is not None:
            return Record(points=1024)  # a fit may be shorter than forty looks at more of them
        _, height, width = spec.problem.shape
        epoch = spec.batches.steps_per_epoch(height * width)
        keep: tuple[int, ...] = ()
        if spec.id in self._filmed:
            keep = tuple(range(0, spec.budget.step_limit(epoch) or _EPOCHS * epoch, self.film * epoch))
        elif spec.id in self._mapped:
            keep = (0,)  # the weights of the end are filed where some were kept
        return Record(every=self.evaluate * epoch, points=height * width, keep=keep)

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        if self.searching is not None:
            return climb_search_answer.answer(self.searching, store)
        found = climb_answer.answer(self.climbed, self._results(store), self._sizes)
        entries = store.entries()

        def there(specs: Mapping[str, Spec]) -> bool:
            known = [entries.get(spec.id) for spec in specs.values()]
            return all(entry is not None and entry.status.finished and entry.weights for entry in known)

        maps = {name: specs for name, specs in self._maps.items() if there(specs)}
        films = {
            f"film_{name}": functools.partial(
                climb_films.film, store, list(specs.values()), [self.problems[name].image.data for name in specs]
            )
            for name, specs in self._films.items()
            if there(specs)
        }
        figures = {**found.figures, **({"gate_maps": lambda: climb_films.gate_maps(store, maps)} if maps else {})}
        return Answer(found.summary, found.tables, figures, films)

    def report(
        self, store: Store, folder: str | Path, progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Path]:
        """As of every study; that of a search has the recipe's file, too."""
        written = super().report(store, folder, progress)
        return written if self.searching is None else [*written, *self.searching.write(store, folder)]

    def _results(self, store: Store) -> dict[str, dict[Values, Runs]]:
        """By sweep and member, the finished runs."""
        rows = {row["id"]: row for row in store.rows()}
        runs: dict[Point, Runs] = {}
        for point in self._points:
            found: dict[Key, Run] = {}
            for key, spec in self._of(point):
                _, height, width = spec.problem.shape
                epoch = spec.batches.steps_per_epoch(height * width)
                if spec.id in rows and (run := Run.read(store, rows[spec.id], epoch)) is not None:
                    found[key] = run
            runs[point] = Runs(found, tuple(self.problems))
        return {sweep.name: {values: runs[point] for values, point in sweep.members.items()} for sweep in self.climbed}

    @cached_property
    def _sizes(self) -> dict[Point, int]:
        channels = next(iter(self.problems.values())).shape[0]
        return {point: self.model(point).parameters_count(2, channels) for point in self._points}

    @cached_property
    def _films(self) -> dict[str, dict[str, Spec]]:
        """The fits that films show, of the first seed, by name of the film and picture."""
        points = {sweep.name: sweep.onward for sweep in self.climbed if self.film and sweep.name in _FILMED}
        return {_FILMED[name]: self._first(point) for name, point in points.items()}

    @cached_property
    def _maps(self) -> dict[str, dict[str, Spec]]:
        """The fits that maps of the gate show, of the first seed, by title and picture."""
        named = {sweep.name: sweep for sweep in self.climbed}
        points = [named["experts"].onward] if "experts" in named else []
        points += named["gate"].members.values() if "gate" in named else []
        return {f"gate_norm {gate}": self._first(point) for gate, point in {one.gate: one for one in points}.items()}

    def _first(self, point: Point) -> dict[str, Spec]:
        return {picture: self.fit(point, picture, 0) for picture in self.problems}

    @cached_property
    def _filmed(self) -> set[str]:
        return {spec.id for specs in self._films.values() for spec in specs.values()}

    @cached_property
    def _mapped(self) -> set[str]:
        return {spec.id for specs in self._maps.values() for spec in specs.values()}
