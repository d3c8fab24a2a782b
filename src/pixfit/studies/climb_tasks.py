"""What a recipe is worth beyond memorising: enlarging, inpainting and tomography by the same recipes, and controls."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from pixfit import classical, metrics, plots, recipes, render
from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.modelfile import Network
from pixfit.operators import Inpaint, Radon, masks
from pixfit.problem import Problem
from pixfit.recipes import RECIPES
from pixfit.result import Status
from pixfit.spec import Batches, Record, Spec
from pixfit.stopping import Budget, Steps
from pixfit.store import Store
from pixfit.studies.climb_controls import resized
from pixfit.studies.climb_scores import Key
from pixfit.studies.climb_tables import pictures_of
from pixfit.studies.study import Answer, Study, StudyError, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClimbTasks", "Task"]

_KINDS = ("represent", "upscale", "inpaint", "ct")
_RECIPES = (
    "fast", "instant", "smooth", "quality", "compact", "mlp", "siren-2020", "finer-2024", "wire-2023", "climb-final",
)  # fmt: skip


_STRENGTH = 3e-4  # of total variation in tomography; on three pictures the best of five, which favours the control


@dataclass(frozen=True)
class Task:
    """A kind of task; ``factor`` is that of enlarging."""

    kind: str
    factor: int = 1

    @property
    def title(self) -> str:
        return f"{self.kind} ×{self.factor}" if self.kind == "upscale" else self.kind


@dataclass(frozen=True)
class ClimbTasks(Study):
    """The settings of the climb's downstream tasks.

    Args:
        tasks: ``represent``: the picture itself, for comparison; ``upscale``: a network that was fitted to the picture
            made smaller by Lanczos' filter, rendered at the picture's size; ``inpaint``: from random pixels; ``ct``:
            the picture in grey from few parallel-beam views.
        recipes: names of recipes. Where a task does not see single pixels, steps see all of the picture, and starts
            from the picture are random.
        images, pictures, crop: as of the tables, see `pixfit.studies.climb_tables.ClimbTables`.
        factors: of enlarging.
        known: fraction of the pixels that inpainting sees.
        views: angles of tomography, spread evenly over the half turn.
        steps, seconds: the budget of each fit, but of those whose recipe makes no steps; both null: the recipe's own.
        seeds: how many, 0 and up, of weights and batches; masks do not change with them.
    """

    tasks: tuple[str, ...] = _KINDS
    recipes: tuple[str, ...] = _RECIPES
    images: str = "hires768"
    pictures: tuple[str, ...] = ("wiki_008", "wiki_015", "wiki_021", "wiki_027", "wiki_047")
    crop: tuple[int, ...] = ()
    factors: tuple[int, ...] = (2, 4)
    known: float = 0.2
    views: int = 24
    steps: int | None = None
    seconds: float | None = 180.0
    seeds: int = 3

    name: ClassVar[str] = "climb"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {
            "recipes": ("fast", "smooth", "siren-2020"), "images": "bundled", "pictures": ("coffee",), "crop": (32, 32),
            "factors": (2,), "steps": 10, "seconds": None, "seeds": 1,
        },
        "laptop": {
            "images": "bundled", "pictures": ("astronaut", "chelsea", "coffee"), "crop": (128, 128), "seconds": 20.0,
            "seeds": 1,
        },
        "published": {},
    }  # fmt: skip

    _specs: dict[tuple[Task, str, str, int], Spec] = field(default_factory=dict, init=False, repr=False, compare=False)
    _enlarged: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, values, allowed in (("tasks", self.tasks, _KINDS), ("recipes", self.recipes, tuple(RECIPES))):
            for one in values:
                if one not in allowed:
                    raise StudyError(f"{name} is {one!r}; it may be {', '.join(allowed)}")
        for name in ("tasks", "recipes", "pictures", "factors"):
            if not getattr(self, name):
                raise StudyError(f"{name} is empty; name at least one")
        whole = (("crop", self.crop), ("factors", self.factors), ("views", (self.views,)), ("seeds", (self.seeds,)))
        for name, numbers in whole:
            for number in numbers:
                if not is_whole(number) or number < 1:
                    raise StudyError(f"{name} is {number!r}; it must be a whole number, 1 or more")
        if len(self.crop) > 2:
            raise StudyError(f"crop is {self.crop!r}; give a width and a height, or one side")
        if not (is_number(self.known) and 0 < self.known <= 1):
            raise StudyError(f"known is {self.known!r}; it must be a fraction above 0 and up to 1")
        self._budget()

    def _budget(self) -> Budget | None:
        if self.steps is None and self.seconds is None:
            return None
        try:
            return Budget(steps=self.steps, seconds=self.seconds)
        except ValueError as error:
            raise StudyError(str(error)) from None

    # ------------------------------------------------------------------------------------------------------------ fits

    @cached_property
    def asked(self) -> tuple[Task, ...]:
        """The columns of the table."""
        found = [
            [Task(kind, factor) for factor in self.factors] if kind == "upscale" else [Task(kind)]
            for kind in self.tasks
        ]
        return tuple(task for some in found for task in some)

    @cached_property
    def truths(self) -> dict[str, Image]:
        """The pictures by name, cut to their size."""
        return pictures_of(self.images, self.pictures, self.crop)

    @cached_property
    def problems(self) -> dict[tuple[Task, str], Problem]:
        """What is fitted for each task and picture."""
        return {(task, name): self._problem(task, image) for task in self.asked for name, image in self.truths.items()}

    def _problem(self, task: Task, image: Image) -> Problem:
        if task.kind == "upscale":
            height, width = image.height // task.factor, image.width // task.factor
            if min(height, width) < 1:
                raise StudyError(f"{image.name} is too small to be made {task.factor} times smaller; lower factors")
            small = resized(self.truth(task, image.name), height, width)
            return Problem(Image((small * 255).round() / 255, name=image.name))
        if task.kind == "inpaint":
            return Problem(image, Inpaint(masks.pixels((image.height, image.width), self.known)))
        if task.kind == "ct":
            grey = image.data.mean(dim=0, keepdim=True)
            return Problem(Image(grey, name=f"{image.name}, grey", bit_depth=32), Radon(self.views))
        return Problem(image)

    def truth(self, task: Task, picture: str) -> Tensor:
        """What the answer to a task is compared with, (C, H, W)."""
        data = self.truths[picture].data
        if task.kind == "ct":
            return data.mean(dim=0, keepdim=True)
        height, width = (side // task.factor * task.factor for side in data.shape[1:])
        return data[:, :height, :width]

    def fit(self, task: Task, recipe: str, picture: str, seed: int) -> Spec:
        """The fit of a recipe for a task."""
        key = (task, recipe, picture, seed)
        if key not in self._specs:
            problem = self.problems[task, picture]
            budget = self._budget()
            if problem.operator.pointwise:
                spec = recipes.get(recipe)(problem)
                budget = None if spec.budget == Steps(0) else budget  # nothing is left to train
            else:  # a recipe may ask for batches of pixels, which such a problem does not have
                spec = recipes.get(recipe)(Problem(problem.image))
                if spec.start.weights is not None:  # it knows what to do without single pixels
                    spec = recipes.get(recipe)(problem)
                spec = replace(spec, problem=problem, batches=Batches())
            self._specs[key] = replace(spec, budget=budget or spec.budget, seed=seed)
        return self._specs[key]

    def _of(self, task: Task, recipe: str) -> Iterator[tuple[Key, Spec]]:
        for seed in range(self.seeds):
            for picture in self.truths:
                yield (picture, seed), self.fit(task, recipe, picture, seed)

    @property
    def label(self) -> str:
        return f"{self.name}-tasks"

    def fits(self, store: Store) -> list[Spec]:
        found = {spec.id: spec for task in self.asked for recipe in self.recipes for _, spec in self._of(task, recipe)}
        return list(found.values())

    def record(self, spec: Spec) -> Record:
        """The weights of networks that are to be enlarged are filed: those of the end, where some were kept."""
        return Record(keep=(0,) if spec.id in self._to_enlarge else ())

    @cached_property
    def _to_enlarge(self) -> set[str]:
        tasks = [task for task in self.asked if task.kind == "upscale"]
        return {spec.id for task in tasks for recipe in self.recipes for _, spec in self._of(task, recipe)}

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        rows = {row["id"]: row for row in store.rows()}
        found = {
            (task, recipe): self._scores(store, rows, task, recipe) for task in self.asked for recipe in self.recipes
        }
        if not any(found.values()):
            return Answer("", {}, {})
        controls = {task: self.controls[task] for task in self.asked if task in self.controls}
        means = {key: self._mean(scores) for key, scores in found.items()}
        table = Table("Recipes and tasks", self._rows(means, controls), self._notes)
        runs = Table("Runs", self._runs(found), "One row a fit, and one a control.", shown=False)
        figures: dict[str, Callable[[], Figure]] = {}
        if controls:
            figures["above_controls"] = functools.partial(self._figure, means, controls)
        return Answer(self._summary(means, controls), {"table": table, "runs": runs}, figures)

    def _scores(self, store: Store, rows: Mapping[str, Mapping[str, Any]], task: Task, recipe: str) -> dict[Key, float]:
        """PSNR in dB of the finished fits."""
        found: dict[Key, float] = {}
        for key, spec in self._of(task, recipe):
            row = rows.get(spec.id)
            if row is None or not Status(row["status"]).finished or row["metrics"].get("psnr") is None:
                continue
            if task.kind != "upscale":
                found[key] = float(row["metrics"]["psnr"])
            elif row["stored_weights"]:
                found[key] = self._zoomed(store, spec, task, key[0])
        return found

    def _zoomed(self, store: Store, spec: Spec, task: Task, picture: str) -> float:
        """PSNR of the network's rendering at the size of the truth."""
        if spec.id not in self._enlarged:
            result = store.get(spec)
            assert result is not None
            shown = render.render(Network.of(result), scale=task.factor)
            self._enlarged[spec.id] = metrics.psnr(shown, self.truth(task, picture))
        return self._enlarged[spec.id]

    @cached_property
    def controls(self) -> dict[Task, dict[str, float]]:
        """PSNR in dB of what needs no training, by task and picture; none for representing the picture itself."""
        return {
            task: {name: metrics.psnr(self._restored(task, name), self.truth(task, name)) for name in self.truths}
            for task in self.asked
            if task.kind != "represent"
        }

    def _restored(self, task: Task, picture: str) -> Tensor:
        problem, truth = self.problems[task, picture], self.truth(task, picture)
        if task.kind == "upscale":
            return resized(problem.image.data, *truth.shape[1:])
        view = problem.view
        if isinstance(view.operator, Inpaint):
            return classical.biharmonic(view.measurement, view.operator.mask)
        assert isinstance(view.operator, Radon)
        return classical.total_variation(view, _STRENGTH).clamp(0, 1)

    def _mean(self, scores: Mapping[Key, float]) -> float | None:
        """Over the seeds that have all pictures; None without one."""
        seeds = [seed for seed in range(self.seeds) if all((name, seed) in scores for name in self.truths)]
        levels = [scores[name, seed] for seed in seeds for name in self.truths]
        return float(np.mean(levels)) if levels and math.isfinite(sum(levels)) else None

    def _rows(
        self, means: Mapping[tuple[Task, str], float | None], controls: Mapping[Task, Mapping[str, float]]
    ) -> list[dict[str, Any]]:
        rows = []
        for recipe in self.recipes:
            row: dict[str, Any] = {"recipe": recipe}
            ranks = []
            for task in self.asked:
                level = means[task, recipe]
                others = [other for one in self.recipes if (other := means[task, one]) is not None]
                rank = None if level is None else 1 + sum(other > level for other in others)
                row |= {task.title: None if level is None else round(level, 2), f"rank, {task.title}": rank}
                ranks += [rank] if rank is not None and task.kind != "represent" else []
            row["mean rank"] = round(float(np.mean(ranks)), 2) if ranks else None
            rows.append(row)
        levels = {task.title: round(float(np.mean([*by_picture.values()])), 2) for task, by_picture in controls.items()}
        return [*rows, {"recipe": "control", **levels}] if controls else rows

    @property
    def _notes(self) -> str:
        return (
            "PSNR in dB against the true picture, mean over pictures and seeds, and the rank among the recipes, 1 the "
            "best; mean rank: over the tasks but representing the picture itself. Controls: Lanczos' filter for "
            f"enlarging, bi-harmonic inpainting from {self.known:.0%} of the pixels, and for {self.views} "
            "views of the picture in grey the picture of least total variation that explains them. No fit is stopped "
            "early."
        )

    def _runs(self, found: Mapping[tuple[Task, str], Mapping[Key, float]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"task": task.title, "recipe": recipe, "picture": picture, "seed": seed, "PSNR": round(level, 4)}
            for (task, recipe), scores in found.items()
            for (picture, seed), level in scores.items()
            if math.isfinite(level)
        ]
        return rows + [
            {"task": task.title, "recipe": "control", "picture": picture, "seed": None, "PSNR": round(level, 4)}
            for task, levels in self.controls.items()
            for picture, level in levels.items()
        ]

    def _summary(
        self, means: Mapping[tuple[Task, str], float | None], controls: Mapping[Task, Mapping[str, float]]
    ) -> str:
        lines = []
        for task in self.asked:
            known = {recipe: level for recipe in self.recipes if (level := means[task, recipe]) is not None}
            if not known:
                continue
            best = max(known, key=lambda recipe: known[recipe])
            line = f"* {task.title}: {best} is best with {known[best]:.2f} dB"
            if task in controls:
                control = float(np.mean([*controls[task].values()]))
                ahead = sum(level > control for level in known.values())
                line += f"; {ahead} of {len(known)} recipes are above the control, {control:.2f} dB"
            lines.append(f"{line}.")
        return "\n".join(lines)

    def _figure(
        self, means: Mapping[tuple[Task, str], float | None], controls: Mapping[Task, Mapping[str, float]]
    ) -> Figure:
        """What recipes are above their controls by."""
        bars = {task: float(np.mean([*levels.values()])) for task, levels in controls.items()}
        values = [[means[task, recipe] for task in bars] for recipe in self.recipes]
        above = np.array([[math.nan if level is None else level for level in row] for row in values]) - [*bars.values()]
        return plots.heat_maps(
            [("", above)], self.recipes, [task.title for task in bars], title="Recipes against controls",
            x="task", y="", label="dB above the control",
        )  # fmt: skip
