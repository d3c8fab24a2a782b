"""What restores a single damaged picture best? Networks fitted to it alone, beside what needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from pixfit.canonical import is_whole
from pixfit.images import Image
from pixfit.problem import Problem
from pixfit.spec import Record, Spec
from pixfit.store import Store
from pixfit.studies import restore_answer, restore_pictures
from pixfit.studies.restore_answer import Lines, Rows
from pixfit.studies.restore_damages import DAMAGES, piece_of
from pixfit.studies.restore_methods import METHODS
from pixfit.studies.restore_scores import Key, Score, of_control, of_fit, picture_of, restored
from pixfit.studies.study import Answer, Study, StudyError
from pixfit.tasks import LOOK

__all__ = ["RestoreStudy"]

_CROPPED = ("butterfly", "bird", "baby", "woman", "head", "zebra", "kodim05", "kodim23")
_WHOLE = (
    "butterfly", "bird", "baby", "woman", "head", "baboon", "barbara", "lenna", "pepper", "ppt3", "zebra", "F16_GT",
    "kate", "library", "vase", "image_Baboon512rgb", "image_House256rgb", "image_Lena512rgb", "image_Peppers512rgb",
)  # fmt: skip
_FEW = ("ours", "hourglass-small", "dip", "deep-decoder", "conv-decoder", "siren", "finer", "fourier")


@dataclass(frozen=True)
class RestoreStudy(Study):
    """The settings of the study of restoration: tasks by methods over pictures.

    Args:
        images: ``classic``: the data folder (``PIXFIT_DATA``) with the folders of
            `pixfit.studies.restore_pictures.FOLDERS`; ``bundled``: pictures that come with the program; or a folder.
        pictures: which, by file name without suffix; those that are not there are left out, and named.
        side: of the part that is cut from each by a fixed rule, see `pixfit.studies.restore_pictures.crop`; None:
            whole pictures but for what is beyond a multiple of 32.
        tasks: which, see `pixfit.studies.restore_damages.DAMAGES`.
        methods: which, see `pixfit.studies.restore_methods.METHODS`.
        leave_out: pairs of both that are not fitted, such as ``inpaint-50/dip``. Nor are those that do not go together,
            see `pixfit.studies.restore_methods.Method`.
        steps: of a fit at most; None: as many as the task has by default.
        seeds: how many, 0 and up; each has noise, masks, held-out pixels and networks of its own.
    """

    images: str = "classic"
    pictures: tuple[str, ...] = _WHOLE
    side: int | None = None
    tasks: tuple[str, ...] = tuple(DAMAGES)
    methods: tuple[str, ...] = tuple(METHODS)
    leave_out: tuple[str, ...] = ()
    steps: int | None = None
    seeds: int = 1

    name: ClassVar[str] = "restore"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {
            "images": "bundled", "pictures": ("coffee",), "side": 24,
            "tasks": ("denoise-25", "inpaint-50", "upscale-4", "deblur"),
            "methods": ("ours", "deep-decoder", "siren"), "steps": 10,
        },
        "laptop": {
            "pictures": _CROPPED, "side": 96, "tasks": ("denoise-25", "inpaint-50", "upscale-4"),
            "methods": _FEW,
            "leave_out": ("inpaint-50/dip", "upscale-4/dip"),
        },
        "published": {},
    }  # fmt: skip

    _specs: dict[tuple[str, str, str, int], Spec] = field(default_factory=dict, init=False, repr=False, compare=False)
    _controls: dict[tuple[str, str, int], dict[str, Score]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _scores: dict[tuple[str, bool], Score] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = tuple(f"{task}/{method}" for task in DAMAGES for method in METHODS)
        allowed = {"tasks": tuple(DAMAGES), "methods": tuple(METHODS), "leave_out": pairs}
        for name, known in allowed.items():
            for one in getattr(self, name):
                if one not in known:
                    there = "a task/method" if name == "leave_out" else ", ".join(known)
                    raise StudyError(f"{name} has {one!r}; it may have {there}")
        for name in ("tasks", "methods", "pictures"):
            value = getattr(self, name)
            if not value or len(set(value)) < len(value):
                raise StudyError(f"{name} is {', '.join(map(str, value)) or 'empty'}; name at least one, each once")
        for name in ("seeds", *(name for name in ("side", "steps") if getattr(self, name) is not None)):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)!r}; it must be a whole number, 1 or more")
        if self.side is not None and self.side < 20:
            raise StudyError(f"side is {self.side}; the networks of the study need 20 pixels or more")
        if not any(self._lines):
            raise StudyError("there is nothing to fit: no task is left that one of the methods can be fitted to")

    # ------------------------------------------------------------------------------------------------------------ fits

    @cached_property
    def images_by_name(self) -> dict[str, Image]:
        """The pictures that are there, cut as the settings say."""
        return restore_pictures.load(self.images, self.pictures, self.side)

    @cached_property
    def problems(self) -> dict[tuple[str, str, int], Problem]:
        """The damaged pictures, by task, picture and seed."""
        return {
            (task, picture, seed): DAMAGES[task].problem(image, seed)
            for task in self.tasks
            for picture, image in self.images_by_name.items()
            for seed in range(self.seeds)
        }

    def fit(self, task: str, method: str, picture: str, seed: int) -> Spec:
        """One fit of the study."""
        key = (task, method, picture, seed)
        if key not in self._specs:
            problem = self.problems[task, picture, seed]
            self._specs[key] = METHODS[method].make(problem, DAMAGES[task].task, self.steps, seed)
        return self._specs[key]

    def fits(self, store: Store) -> list[Spec]:
        every = (self.fit(*line, *key) for line in self._lines for key in self._keys)
        return list({spec.id: spec for spec in every}.values())

    def record(self, spec: Spec) -> Record:
        """A curve over all pixels, as fine as the stopping rule looks. Keeping the start keeps the end's picture."""
        _, height, width = spec.problem.shape
        return Record(every=LOOK, points=height * width, keep=(0,))

    @property
    def _lines(self) -> Iterator[tuple[str, str]]:
        """The pairs of task and method that are fitted."""
        return ((task, method) for task, method in self._pairs if f"{task}/{method}" not in self._left_out)

    @property
    def _pairs(self) -> Iterator[tuple[str, str]]:
        return ((task, method) for task in self.tasks for method in self.methods)

    @cached_property
    def _left_out(self) -> tuple[str, ...]:
        """Those that are not."""
        apart = [f"{task}/{name}" for task, name in self._pairs if DAMAGES[task].task.name not in METHODS[name].serves]
        return tuple(dict.fromkeys((*self.leave_out, *apart)))

    @property
    def _keys(self) -> Iterator[Key]:
        for seed in range(self.seeds):
            for picture in self.images_by_name:
                yield picture, seed

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        rows = {row["id"]: row for row in store.rows()}
        found: Rows = {task: {} for task in self.tasks}
        for task, method in self._lines:
            scores = {}
            for key in self._keys:
                spec = self.fit(task, method, *key)
                if spec.id in rows and (score := self._score(store, rows[spec.id], spec, task, method)) is not None:
                    scores[key] = score
            if scores:
                found[task][method] = scores
        controls = {task: self._controls_of(task, methods) for task, methods in found.items() if methods}
        found = {task: methods for task, methods in found.items() if methods}
        left_out = [name for name in self.pictures if name not in self.images_by_name]
        return restore_answer.answer(
            found, controls, self._left_out, left_out, lambda task: self._shown(store, task, found[task])
        )  # fmt: skip

    def _score(self, store: Store, row: Mapping[str, Any], spec: Spec, task: str, method: str) -> Score | None:
        """Of a fit; a finished one is scored once."""
        blend = METHODS[method].blend
        found = self._scores.get((spec.id, blend)) or of_fit(store, row, spec, DAMAGES[task], blend=blend)
        if found is not None:
            self._scores[spec.id, blend] = found
        return found

    def _controls_of(self, task: str, methods: Lines) -> Lines:
        """Scores of what needs no network, for the pictures and seeds that some fit is finished of."""
        damage = DAMAGES[task]
        found: Lines = {name: {} for name in damage.controls}
        for picture, seed in dict.fromkeys(key for scores in methods.values() for key in scores):
            key = (task, picture, seed)
            if key not in self._controls:
                problem = self.problems[key]
                piece = piece_of(problem)
                self._controls[key] = {
                    name: of_control(control(piece), problem) for name, control in damage.controls.items()
                }
            for name, score in self._controls[key].items():
                found[name][picture, seed] = score
        return found

    def _shown(self, store: Store, task: str, methods: Lines) -> list[tuple[str, Tensor]]:
        """The first picture: true, damaged, by the best control, and by every method."""
        damage, key = DAMAGES[task], next(iter(next(iter(methods.values()))))
        problem = self.problems[task, *key]
        piece = piece_of(problem)
        names = list(damage.controls)
        best = max(names[1:], key=lambda name: self._controls[task, *key][name].psnr)
        shown = [("true", problem.image.data)]
        shown += [(name, damage.controls[name](piece)) for name in (names[0], best)]
        for method, scores in methods.items():
            spec = self.fit(task, method, *key)
            if key in scores and (fitted := picture_of(store, spec)) is not None:
                assert isinstance(spec.problem, Problem)
                blend = METHODS[method].blend and damage.task.blend
                shown.append((method, restored(damage, spec.problem, fitted, blend=blend)[0]))
        return shown
