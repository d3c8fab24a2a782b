"""The search beyond the published climb: a recipe for some pictures and a budget, by Optuna's TPE and halving.

The course of a search is a pure function of its settings and of the finished fits in a store: every trial is asked for
anew from the results of those before it, so that a search that was killed goes on where it was, and fits side by side
may end in any order.

Trials come in rounds. The first begins with draws that are near to presets. Those of a round are drawn together by the
tree-structured Parzen estimator (Bergstra et al. 2011), which knows all rounds before, and a third of them in part
only, near to the best so far. Then they are halved (Jamieson and Talwalkar 2016): all are fitted with the shortest
budget, the best of them with a longer one, and so on up to the whole. A longer fit begins anew: schedules run over the
whole of a budget, so that a shorter fit has spent its learning rate and cannot be gone on with.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixfit import files, recipes
from pixfit.canonical import is_number, is_whole
from pixfit.problem import Problem
from pixfit.result import Status
from pixfit.spec import Spec
from pixfit.stopping import Budget
from pixfit.store import Store
from pixfit.studies.climb_search_space import ENCODINGS, Parts, Space, Values
from pixfit.studies.study import StudyError

if TYPE_CHECKING:
    from types import ModuleType

    from optuna.distributions import BaseDistribution

__all__ = ["RECIPE", "RIVALS", "ClimbSearch", "Course", "Search", "Trial"]

RIVALS = ("fast", "mlp")
"""The presets that the found recipe is compared with."""

RECIPE = "recipe.json"
"""The file of the found recipe in the folder of a report."""

_SEED = 0  # of the fits of all trials; the comparison takes others
_FEW = 50  # trials: what is said of their best tenth needs five of those
_FREED = 4  # settings that are drawn anew beside the best trial
_DRAWS = 10  # at most, for a recipe that was not tried before
_REGIME = 5  # trials that a setting must have been drawn for


@dataclass(frozen=True)
class Search:
    """The settings of a search; there is one where ``seconds`` or ``steps`` are given.

    Args:
        seconds, steps: the budget of a fit that the recipe is for; whichever is reached first ends it.
        parameters: the most trained numbers of a network, 1000 or more; None: half a number a picture value, above
            which a good PSNR says little.
        trials: how many recipes are tried.
        together: how many are drawn at once, from the results of those before: more of them can be fitted side by side,
            fewer learn more from one another.
        rungs: budgets that a trial may climb, the last of them whole; 1: no halving. With three a trial is first judged
            by a ninth of the budget, where recipes can be in quite another order.
        reduction: what a rung's trials and the next one's budget differ by.
        encodings: those to be tried, see `pixfit.studies.climb_search_space.ENCODINGS`.
    """

    seconds: float | None = None
    steps: int | None = None
    parameters: int | None = None
    trials: int = 72
    together: int = 9
    rungs: int = 2
    reduction: int = 3
    encodings: tuple[str, ...] = ENCODINGS

    def __post_init__(self) -> None:
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise StudyError(f"search.seconds is {self.seconds!r}; it must be a number above 0")
        least = {"trials": 1, "together": 1, "rungs": 1, "reduction": 2}
        least |= {name: 1 for name in ("steps",) if self.steps is not None}
        least |= {name: 1000 for name in ("parameters",) if self.parameters is not None}
        for name, low in least.items():
            if not (is_whole(getattr(self, name)) and getattr(self, name) >= low):
                raise StudyError(
                    f"search.{name} is {getattr(self, name)!r}; it must be a whole number, {low} or more"
                )  # fmt: skip
        if not isinstance(self.encodings, tuple) or not self.encodings:
            raise StudyError("search.encodings is empty; name at least one")
        for name in self.encodings:
            if name not in ENCODINGS:
                raise StudyError(f"search.encodings names {name!r}; it may name {', '.join(ENCODINGS)}")
        if len(set(self.encodings)) < len(self.encodings):
            raise StudyError(f"search.encodings names an encoding twice: {', '.join(self.encodings)}")

    def __str__(self) -> str:
        if not self.on:
            return "none"
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        given["encodings"] = ",".join(self.encodings)
        return ", ".join(f"{name}={value}" for name, value in given.items())

    @property
    def on(self) -> bool:
        """Whether there is a budget to search for."""
        return self.seconds is not None or self.steps is not None

    def budget(self, rung: int) -> Budget:
        """Of the fits of a rung, 0 up to ``rungs``."""
        part = self.reduction ** (self.rungs - 1 - rung)
        seconds = None if self.seconds is None else self.seconds / part
        return Budget(steps=None if self.steps is None else math.ceil(self.steps / part), seconds=seconds)


@dataclass(frozen=True)
class Trial:
    """One recipe that is tried.

    Args:
        number: from 0.
        values, distributions: what was drawn, and from what.
        parts: the settings that this means.
        scores: the mean PSNR over the pictures, in dB, of every rung that it has climbed; NaN where a fit of it
            diverged or failed, which ends it.
    """

    number: int
    values: Values
    distributions: Mapping[str, BaseDistribution]
    parts: Parts
    scores: tuple[float, ...] = ()

    @property
    def lost(self) -> bool:
        return any(math.isnan(score) for score in self.scores)


@dataclass(frozen=True)
class Course:
    """How far a search is.

    Args:
        trials: those asked for, with the scores that are known.
        fits: every fit that is known to be needed, those of the comparison included.
        over: whether all trials have ended.
        best: the best of those that have been fitted with the whole budget; None before there is one.
    """

    trials: Sequence[Trial]
    fits: Sequence[Spec]
    over: bool
    best: Trial | None


@dataclass(frozen=True)
class ClimbSearch:
    """A search over some pictures.

    Args:
        problems: the pictures by name.
        seeds: how many the comparison with the presets takes, from 1 up; the trials had 0.
    """

    search: Search
    problems: Mapping[str, Problem]
    seeds: int

    _asked: dict[tuple[tuple[float, ...], ...], list[Trial]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _made: dict[tuple[Parts, int], list[Spec]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) that the space is measured by: the most channels and the mean sides of the pictures."""
        channels, heights, widths = zip(*(problem.shape for problem in self.problems.values()), strict=True)
        return max(channels), round(sum(heights) / len(heights)), round(sum(widths) / len(widths))

    @cached_property
    def space(self) -> Space:
        limit = self.search.parameters
        return Space(self.search.encodings, self.shape, limit or max(1000, math.prod(self.shape) // 2))

    def values_ratio(self, parameters: int) -> float:
        """Parameters a picture value."""
        return parameters / math.prod(self.shape)

    @property
    def size(self) -> tuple[int, float]:
        """How many fits the search makes if none diverges, and their budgets added up, in whole budgets."""
        search, fits, budgets = self.search, 0, 0.0
        for first in range(0, search.trials, search.together):
            alive = min(search.together, search.trials - first)
            for rung in range(search.rungs):
                fits += alive
                budgets += alive / search.reduction ** (search.rungs - 1 - rung)
                alive = max(1, alive // search.reduction)
        compared = (1 + len(RIVALS)) * self.seeds
        return (fits + compared) * len(self.problems), (budgets + compared) * len(self.problems)

    # -------------------------------------------------------------------------------------------------------- course

    def course(self, store: Store) -> Course:
        """What the finished fits in the store make of the search."""
        scores = _scores(store)
        trials: list[Trial] = []
        wanted: list[Spec] = []
        over = True
        while over and len(trials) < self.search.trials:
            asked = {trial.number: trial for trial in self._ask(trials)}
            alive = list(asked)
            for rung in range(self.search.rungs):
                specs = {number: self.fits(asked[number], rung) for number in alive}
                wanted += [spec for each in specs.values() for spec in each]
                found = {number: _mean([scores.get(spec.id) for spec in each]) for number, each in specs.items()}
                for number, score in found.items():
                    if score is not None:
                        asked[number] = replace(asked[number], scores=(*asked[number].scores, score))
                if over := None not in found.values():
                    alive = self._survivors([asked[number] for number in alive])
                if not over or not alive:
                    break
            trials += asked.values()
        best = self._best(trials)
        if over and best is not None:
            wanted += [spec for fits in self.comparison(best).values() for spec in fits.values()]
        return Course(trials, list({spec.id: spec for spec in wanted}.values()), over, best)

    def comparison(self, best: Trial) -> dict[str, dict[tuple[str, int], Spec]]:
        """The fits of the found recipe (``found``) and of the presets at the same budget, by picture and seed."""
        budget = self.search.budget(self.search.rungs - 1)
        fits: dict[str, dict[tuple[str, int], Spec]] = {name: {} for name in ("found", *RIVALS)}
        for seed in range(_SEED + 1, _SEED + 1 + self.seeds):
            for picture, problem in self.problems.items():
                fits["found"][picture, seed] = best.parts.spec(problem, budget, seed)
                for name in RIVALS:
                    fits[name][picture, seed] = replace(recipes.get(name)(problem), budget=budget, seed=seed)
        return fits

    def fits(self, trial: Trial, rung: int) -> list[Spec]:
        """Those of a trial in a rung, one a picture."""
        if (trial.parts, rung) not in self._made:
            budget = self.search.budget(rung)
            specs = [trial.parts.spec(problem, budget, _SEED) for problem in self.problems.values()]
            self._made[trial.parts, rung] = specs
        return self._made[trial.parts, rung]

    def _survivors(self, trials: Sequence[Trial]) -> list[int]:
        """The numbers of the best of a rung, one of ``reduction`` but at least one."""
        ranked = sorted((trial for trial in trials if not trial.lost), key=lambda trial: -trial.scores[-1])
        return [trial.number for trial in ranked[: max(1, len(trials) // self.search.reduction)]]

    # -------------------------------------------------------------------------------------------------------- Optuna

    def _ask(self, told: Sequence[Trial]) -> list[Trial]:
        """The next round, from all that has ended; asked once for the same results."""
        known = tuple(trial.scores for trial in told)
        if known in self._asked:
            return self._asked[known]
        optuna = _optuna()
        first, rung = len(told), self.search.reduction
        sampler = optuna.samplers.TPESampler(seed=first, n_startup_trials=self.search.together)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in told:
            whole = len(trial.scores) == self.search.rungs and not trial.lost
            # A lost trial counts as the worst of all, not as one that was good enough for its last rung.
            levels = {0: math.nan} if trial.lost else {rung**step: score for step, score in enumerate(trial.scores)}
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.PRUNED,
                    value=trial.scores[-1] if whole else None, params=dict(trial.values),
                    distributions=dict(trial.distributions), intermediate_values=levels,
                )
            )  # fmt: skip
        for values in self._near(told) if told else self.space.known():
            study.enqueue_trial(values)
        asked: list[Trial] = []
        seen = {trial.parts for trial in told}
        for number in range(first, min(first + self.search.together, self.search.trials)):
            for _ in range(_DRAWS):
                one = study.ask()
                self.space.draw(one)
                parts = self.space.parts(one.params)
                if parts not in seen:
                    break
            seen.add(parts)
            asked.append(Trial(number, one.params, one.distributions, parts))
        self._asked[known] = asked
        return asked

    def _near(self, told: Sequence[Trial]) -> list[dict[str, Any]]:
        """A third of a round: the best so far without a few of its settings, which Optuna draws anew.

        In so many dimensions draws of the estimator alone stay far from the best for long.
        """
        best = self._best(told)
        if best is None:
            return []
        chance = random.Random(len(told))
        names = sorted(best.values)
        freed = [set(chance.sample(names, _FREED)) for _ in range(self.search.together // 3)]
        return [{name: value for name, value in best.values.items() if name not in free} for free in freed]

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        """Of those that were fitted with the whole budget."""
        whole = [trial for trial in trials if len(trial.scores) == self.search.rungs and not trial.lost]
        return max(whole, key=lambda trial: (trial.scores[-1], -trial.number), default=None)

    def importance(self, trials: Sequence[Trial]) -> dict[str, float]:
        """What each of the drawn settings matters for a good PSNR with the shortest budget, most first; they add to 1.

        By PED-ANOVA (Watanabe et al. 2023), over the trials that were not lost: those of the longer budgets are few.
        Empty where they are fewer than fifty.
        """
        optuna = _optuna()
        told = [trial for trial in trials if trial.scores and not trial.lost]
        if len(told) < _FEW:
            return {}
        study = optuna.create_study(direction="maximize")
        for trial in told:
            study.add_trial(
                optuna.trial.create_trial(
                    value=trial.scores[0], params=dict(trial.values), distributions=dict(trial.distributions)
                )
            )
        drawn = Counter(name for trial in told for name in trial.values)
        common = sorted(name for name, count in drawn.items() if count >= _REGIME)
        with warnings.catch_warnings():  # of settings that all trials but one have, where the one is left out
            warnings.filterwarnings("ignore", "Some regimes", UserWarning)
            return dict(optuna.importance.get_param_importances(study, params=common))

    # -------------------------------------------------------------------------------------------------------- recipe

    def recipe(self, best: Trial) -> dict[str, Any]:
        """The recipe of a trial in the form that ``pixfit fit --recipe FILE`` reads."""
        spec = self.fits(best, self.search.rungs - 1)[0]
        return {name: value for name, value in spec.plain.items() if name not in ("problem", "start")}

    def write(self, store: Store, folder: str | Path) -> list[Path]:
        """Writes the recipe of the best trial so far, where there is one.

        Raises:
            OSError: the folder cannot be written.
        """
        best = self.course(store).best
        if best is None:
            return []
        path = Path(folder) / RECIPE
        files.write_bytes(path, (json.dumps(self.recipe(best), indent=2, ensure_ascii=False) + "\n").encode())
        return [path]


def _scores(store: Store) -> dict[str, float]:
    """PSNR of all fits that have ended, by id; NaN of those that diverged or failed."""
    found = {}
    for row in store.rows():
        status, psnr = Status(row["status"]), row["metrics"].get("psnr")
        if status in (Status.DIVERGED, Status.FAILED) or (status.finished and psnr is None):
            found[row["id"]] = math.nan
        elif status.finished:
            found[row["id"]] = float(psnr)
    return found


def _mean(scores: Sequence[float | None]) -> float | None:
    """None until all are known; NaN where one is."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return math.nan if any(math.isnan(score) for score in known) else sum(known) / len(known)


def _optuna() -> ModuleType:
    """Optuna, without its log of every trial.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError('the search for a recipe needs optuna; pip install "pixfit[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
