"""The climb's tables: recipes and published families at equal parameters, equal seconds and equal steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pixfit import images
from pixfit.canonical import is_number, is_whole
from pixfit.images import Image, ImageError
from pixfit.problem import Problem
from pixfit.spec import Batches, Record, Spec
from pixfit.stopping import Budget, Steps
from pixfit.store import Store
from pixfit.studies import climb_compact, climb_pictures, climb_table_answer
from pixfit.studies.climb_compact import Score
from pixfit.studies.climb_families import COMPACT, FAMILIES, counted, within
from pixfit.studies.climb_published import PUBLISHED
from pixfit.studies.climb_scores import Key, Run, Runs
from pixfit.studies.climb_table_answer import Cell
from pixfit.studies.study import Answer, Study, StudyError

__all__ = ["ClimbTables", "pictures_of"]

_HELD = ("parameters", "seconds", "steps")
_NUMBERS = ("parameters",)
_SHORT = ("parameters", "seconds")  # steps are equal where parameters are
_FIVE = {
    "images": "hires768", "pictures": ("wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047"), "crop": (),
    "steps": 10_000, "seconds": 180.0, "seeds": 3, "batches": "own",
}  # fmt: skip
_THREE = {
    "images": "bundled", "pictures": ("astronaut", "chelsea", "coffee"), "crop": (256, 256), "steps": 1000,
    "seconds": 20.0, "seeds": 1, "batches": "own",
}  # fmt: skip
_TINY = {
    "images": "bundled", "pictures": ("chelsea",), "crop": (48, 40), "parameters": (5600,), "steps": 12,
    "seconds": 0.1, "seeds": 1,
}  # fmt: skip
_FEW = ("siren", "finer", "hash", "fast", "instant")
_PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "tiger": {
        "smoke": {**_TINY, "families": _FEW},
        "laptop": {"steps": 1000, "seconds": 20.0, "seeds": 1, "parameters": (129_841,), "at": _SHORT},
        "published": {},
    },
    "kodak": {
        "smoke": {**_TINY, "families": _FEW, "batches": "own"},
        # a sixth of the pixels of a whole picture, and of the numbers
        "laptop": {
            **_THREE, "images": "kodak", "pictures": ("kodim03", "kodim15", "kodim23"), "parameters": (34_167, 78_500),
            "at": _SHORT,
        },
        "published": {
            **_FIVE, "images": "kodak", "pictures": ("all",), "parameters": (205_000, 471_000), "seconds": 107.0,
        },
    },
    "five": {
        "smoke": {**_TINY, "families": _FEW, "batches": "own"},
        "laptop": {**_THREE, "parameters": (16_700, 55_600), "at": _SHORT},  # a ninth, likewise
        "published": {**_FIVE, "parameters": (150_000, 500_000, 1_670_000)},
    },
    "compact": {
        "smoke": {
            **_TINY, "at": _NUMBERS, "families": ("tiles", "compact", "transform+grid", "grid-8bit"),
            "batches": "own",
        },
        "laptop": {**_THREE, "at": _NUMBERS, "parameters": (16_700, 55_600)},
        "published": {**_FIVE, "at": _NUMBERS, "parameters": (150_000, 500_000)},
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClimbTables(Study):
    """The settings of one table of the climb. Their defaults are those of the table ``tiger`` as published; the others
    have their own, see `of`.

    Args:
        table: ``tiger``: one picture of 256×317, full batches; ``kodak``: the mean over a set; ``five``: the climb's
            own pictures; ``compact``: few numbers, counted as they are stored.
        images: a folder of pictures; ``bundled``; ``hires768`` or ``kodak``: the one of this name in the data folder.
            The published Tiger is not at hand; any picture may be put in its place.
        pictures: which of them, by file name without suffix; ``all``.
        crop: width and height of what is cut from the middle of each; one number: a square; empty: nothing is cut.
        families: which, see `pixfit.studies.climb_families`; empty: all of the table.
        at: what is held equal: ``parameters`` (each family's network comes as near to the budgets as it can, and makes
            ``steps`` steps), ``seconds`` and ``steps`` (networks and batches are the recipes' own).
        parameters: the budgets; of the table ``compact`` of stored numbers of 32 bits, else of trained ones.
        steps, seconds: of each fit, but of those whose recipe makes no steps.
        batches: where parameters are equal; ``all``: every step sees all pixels; ``own``: as each recipe has it.
        seeds: how many, 0 and up.
    """

    table: str = "tiger"
    images: str = "bundled"
    pictures: tuple[str, ...] = ("chelsea",)
    crop: tuple[int, ...] = (317, 256)
    families: tuple[str, ...] = ()
    at: tuple[str, ...] = _HELD
    parameters: tuple[int, ...] = (129_841, 214_001)
    steps: int = 10_000
    seconds: float = 60.0
    batches: Literal["all", "own"] = "all"
    seeds: int = 10

    name: ClassVar[str] = "climb"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "laptop": {}, "published": {}}

    _templates: dict[tuple[Cell, tuple[int, ...]], Spec | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _scores: dict[str, Score] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, profile: str = "laptop", settings: Mapping[str, Any] | None = None) -> Self:
        """The table that ``settings["table"]`` names, as the profile has it, with the other settings changed."""
        settings = dict(settings or {})
        table, study = settings.pop("table", "tiger"), super().of(profile)
        if table not in _PROTOCOLS:
            raise StudyError(f"table is {table!r}; it may be {', '.join(_PROTOCOLS)}")
        return replace(study, table=table, **_PROTOCOLS[table][profile]).changed(settings)

    def __post_init__(self) -> None:
        known = COMPACT if self.table == "compact" else FAMILIES
        choices = [("table", (self.table,), tuple(_PROTOCOLS)), ("families", self.families, tuple(known))]
        choices += [("at", self.at, _HELD), ("batches", (self.batches,), ("all", "own"))]
        for name, values, allowed in choices:
            for one in values:
                if one not in allowed:
                    raise StudyError(f"{name} is {one!r}; it may be {', '.join(allowed)}")
        for name in ("pictures", "at", "parameters"):
            if not getattr(self, name):
                raise StudyError(f"{name} is empty; name at least one")
        whole = (
            ("parameters", self.parameters),
            ("crop", self.crop),
            ("steps", (self.steps,)),
            ("seeds", (self.seeds,)),
        )
        for name, numbers in whole:
            for number in numbers:
                if not is_whole(number) or number < 1:
                    raise StudyError(f"{name} is {number!r}; it must be a whole number, 1 or more")
        if not (is_number(self.seconds) and self.seconds > 0):
            raise StudyError(f"seconds is {self.seconds!r}; it must be a number above 0")
        if len(self.crop) > 2:
            raise StudyError(f"crop is {self.crop!r}; give a width and a height, or one side")
        if self.table == "compact" and self.at != _NUMBERS:
            raise StudyError("the table compact holds numbers equal, and nothing else; leave at as it is")

    # ------------------------------------------------------------------------------------------------------------ fits

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The pictures by name, cut to their size."""
        return {name: Problem(image) for name, image in pictures_of(self.images, self.pictures, self.crop).items()}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every combination of what is held equal, budget and family."""
        known = COMPACT if self.table == "compact" else FAMILIES
        families = self.families or tuple(known)
        budgets = {held: self.parameters if held == "parameters" else (None,) for held in self.at}
        return tuple(Cell(held, budget, family) for held in self.at for budget in budgets[held] for family in families)

    def fit(self, cell: Cell, picture: str, seed: int) -> Spec | None:
        """The fit of a cell to a picture; None where the family has no network within the budget."""
        problem = self.problems[picture]
        template = self._template(cell, problem)
        if template is None:
            return None
        transform = self._transform(cell)
        if transform is not None:
            problem = self._left_over[picture, transform]
        return replace(template, problem=problem, seed=seed)

    def _template(self, cell: Cell, problem: Problem) -> Spec | None:
        """The fit but for its picture and seed: networks depend on the picture's size alone."""
        key = (cell, problem.shape)
        if key not in self._templates:
            spec = self._sized(cell, problem)
            if spec is not None:
                budget = Budget(seconds=self.seconds) if cell.held == "seconds" else Budget(steps=self.steps)
                budget = spec.budget if spec.budget == Steps(0) else budget  # nothing is left to train
                whole = self.batches == "all" and cell.held == "parameters"
                spec = replace(spec, budget=budget, batches=Batches() if whole else spec.batches)
            self._templates[key] = spec
        return self._templates[key]

    def _sized(self, cell: Cell, problem: Problem) -> Spec | None:
        channels = problem.shape[0]
        if self.table == "compact":
            member = COMPACT[cell.family]
            budget = (cell.budget or 0) - (self._transform(cell) or 0.0)
            return within(member.family, problem, budget, lambda model: counted(model, channels, member.bits))
        family = FAMILIES[cell.family]
        if cell.budget is None:
            return family.recipe(problem)
        return within(family, problem, cell.budget, lambda model: model.parameters_count(out_features=channels))

    def _transform(self, cell: Cell) -> float | None:
        """How many numbers a block transform takes of the budget; None where there is none."""
        if self.table != "compact" or not COMPACT[cell.family].transform:
            return None
        return (cell.budget or 0) / 2

    @cached_property
    def _left_over(self) -> dict[tuple[str, float], Problem]:
        """By picture and numbers, what block transforms leave over."""
        wanted = {transform for cell in self.cells if (transform := self._transform(cell)) is not None}
        return {
            (name, numbers): climb_compact.left_over(problem.image, numbers)
            for name, problem in self.problems.items()
            for numbers in wanted
        }

    def _of(self, cell: Cell) -> Iterator[tuple[Key, Spec]]:
        for seed in range(self.seeds):
            for picture in self.problems:
                if (spec := self.fit(cell, picture, seed)) is not None:
                    yield (picture, seed), spec

    @property
    def label(self) -> str:
        return f"{self.name}-{self.table}"

    def fits(self, store: Store) -> list[Spec]:
        found = {spec.id: spec for cell in self.cells for _, spec in self._of(cell)}
        return list(found.values())

    def record(self, spec: Spec) -> Record:
        """A curve over all pixels; the weights of the end are filed where some were kept."""
        _, height, width = spec.problem.shape
        return Record(points=height * width, keep=(0,) if self.table == "compact" else ())

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        rows = {row["id"]: row for row in store.rows()}
        found = {cell: self._runs(store, rows, cell) for cell in self.cells}
        if self.table == "compact":
            scores = {cell: self._stored(store, cell, runs) for cell, runs in found.items()}
            pictures = {name: problem.image.data for name, problem in self.problems.items()}
            return climb_table_answer.compact(found, scores, self._counted, pictures, self._absent)
        return climb_table_answer.answer(found, PUBLISHED[self.table], self._notes, self._compares, self._absent)

    def _runs(self, store: Store, rows: Mapping[str, Mapping[str, Any]], cell: Cell) -> Runs:
        runs: dict[Key, Run] = {}
        for key, spec in self._of(cell):
            epoch = spec.batches.steps_per_epoch(spec.problem.shape[1] * spec.problem.shape[2])
            if spec.id in rows and (run := Run.read(store, rows[spec.id], epoch)) is not None:
                runs[key] = run
        return Runs(runs, tuple(self.problems))

    def _stored(self, store: Store, cell: Cell, runs: Runs) -> dict[Key, Score]:
        """What the networks show as they are stored, of the runs whose weights are kept."""
        found = {}
        for key, run in runs.runs.items():
            identity = run.row["id"]
            if identity not in self._scores and run.row["stored_weights"]:
                spec = self.fit(cell, *key)
                result = None if spec is None else store.get(spec)
                assert result is not None
                truth = self.problems[key[0]].image.data
                bits, transform = COMPACT[cell.family].bits, self._transform(cell)
                self._scores[identity] = climb_compact.score(result, truth, bits, transform)
            if identity in self._scores:
                found[key] = self._scores[identity]
        return found

    @cached_property
    def _counted(self) -> dict[Cell, float]:
        """The numbers of each cell of the table ``compact``, those of its block transform included."""
        found: dict[Cell, float] = {}
        for cell in self.cells:
            for problem in self.problems.values():
                if (spec := self._template(cell, problem)) is not None:
                    numbers = counted(spec.model, problem.shape[0], COMPACT[cell.family].bits)
                    found[cell] = max(found.get(cell, 0.0), numbers + (self._transform(cell) or 0.0))
        return found

    @property
    def _absent(self) -> list[Cell]:
        """The cells that have no network within their budget, for some picture at least."""
        every = self.problems.values()
        return [cell for cell in self.cells if any(self._template(cell, problem) is None for problem in every)]

    @property
    def _compares(self) -> bool:
        """Whether the published rows are for these pictures."""
        whole = [problem.shape in ((3, 512, 768), (3, 768, 512)) for problem in self.problems.values()]
        return self.table == "kodak" and all(whole) and len(whole) == 24

    @property
    def _notes(self) -> str:
        """What the published rows are for."""
        if self._compares:
            return "The published rows are for the same 24 pictures, by their own protocols."
        others = {
            "tiger": f"The picture Tiger is not at hand: {', '.join(self.problems)} stands in its place",
            "kodak": "The published rows are for the 24 whole pictures, ours are not",
            "five": "The published row is for five other photographs",
        }
        return f"{others[self.table]}, so that only our own rows compare."


def pictures_of(source: str, names: tuple[str, ...], crop: tuple[int, ...]) -> dict[str, Image]:
    """The pictures by name, the middle of each.

    Args:
        source, names: see `ClimbTables`.
        crop: (width, height), or (side,); empty: nothing is cut.

    Raises:
        StudyError: no such folder or picture, or one that is smaller than the crop.
    """
    try:
        folder = images.data_folder() / "kodak"
        if source == "kodak" and names != ("all",) and folder.is_dir():  # some of them are enough
            found = climb_pictures.load(str(folder), names, None)
        elif source == "kodak":
            every = {image.name: image for image in images.load_set("kodak")}
            missing = [name for name in names if name not in every and name != "all"]
            if missing:
                raise StudyError(f"no picture of kodak is called {missing[0]!r}; there are {', '.join(every)}")
            found = every if tuple(names) == ("all",) else {name: every[name] for name in names}
        else:
            found = climb_pictures.load(source, names, None)
    except ImageError as error:
        raise StudyError(str(error)) from None
    return {name: _middle(image, crop) for name, image in found.items()}


def _middle(image: Image, crop: tuple[int, ...]) -> Image:
    if not crop:
        return image
    width, height = crop[0], crop[-1]
    if image.width < width or image.height < height:
        raise StudyError(
            f"crop is {width}×{height}, but {image.name} has {image.width}×{image.height} pixels; lower crop"
        )
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return replace(image, data=image.data[:, top : top + height, left : left + width].contiguous())
