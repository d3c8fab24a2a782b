"""One network's fit to a piece of a picture: watched, ended, and kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pixfit import canonical, engine, metrics, run
from pixfit.images import Image
from pixfit.job import Job, Moment
from pixfit.operators import Inpaint
from pixfit.pieces import Piece
from pixfit.problem import Sealed
from pixfit.result import Result, Status
from pixfit.spec import Spec
from pixfit.stopping import HeldOut, Never
from pixfit.store import Store, StoreError
from pixfit.tasks import LOOK, Task, risk

__all__ = ["Fit", "Watch", "fit", "pace"]

_TRIED = 4  # steps that tell the pace
_PATIENCE = 150  # steps without a lower risk, after which a fit ends


@dataclass(eq=False)
class Watch:
    """Sees the average every few steps: tells how far the fit is, and keeps what is only for reporting.

    Args:
        piece: what is fitted.
        limit: steps at most.
        sigma: of the noise, where the fit goes by its `pixfit.tasks.risk`, and a second one by its side is fitted to
            the measurement with the probe; None: it goes by held-out pixels, if by anything.
        truth: (C, H, W) of the piece, for reporting only.
        tell: gets the watch and the step, about ten times a second.
    """

    piece: Piece
    limit: int
    sigma: float | None = None
    truth: Tensor | None = None
    tell: Callable[[Watch, int], None] | None = None
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    latest: Tensor | None = None
    oracle: Tensor | None = None
    nearest: float = math.inf
    best: tuple[int, Tensor, Tensor | None] | None = None

    def look(self, moment: Moment) -> None:
        height, width = self.piece.shape[1:]
        shown = moment.predict(torch.arange(height * width))
        self._see(moment.step, *(_as_picture(one, self.piece.shape) for one in shown))

    @property
    def over(self) -> bool:
        """Whether the risk has not become less for long enough."""
        return self.sigma is not None and self.best is not None and self.steps[-1] - self.best[0] >= _PATIENCE

    def close(self, step: int, last: Tensor) -> None:
        """The engine's own last look was at the answer, not at the last step's picture."""
        if self.steps and self.steps[-1] == step:
            del self.steps[-1], self.errors[-1]
        self._see(step, last)

    def _see(self, step: int, picture: Tensor, probed: Tensor | None = None) -> None:
        self.latest = picture.clamp(0, 1)
        self.steps.append(step)
        if self.sigma is not None and probed is not None:
            error = risk(picture, probed, self.piece, self.sigma)
            if self.best is None or error < min(self.errors):
                self.best = (step, picture, probed)
        else:
            error = math.nan if self.piece.held_out is None else self.piece.held_out_error(self.latest)
        self.errors.append(error)
        if self.truth is not None and (error := metrics.mse(self.latest, self.truth)) < self.nearest:
            self.nearest, self.oracle = error, self.latest

    @property
    def curve(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.steps), "held_out": torch.tensor(self.errors)}

    def tick(self, step: int, fraction: float, losses: Sequence[float]) -> None:
        if self.tell is not None:
            self.tell(self, step)


@dataclass(frozen=True, eq=False)
class Fit:
    """How a fit ended, and its pictures (C, H, W): the answer, that of the last step, and the one nearest to the truth.

    A fit that comes from a store has but the answer, and a fit without a truth no nearest picture: then the others
    stand for it. ``limit`` are the steps that it is meant to take; ``probed`` is what the second fit shows at the
    answer's step, where there is one.
    """

    status: Status
    reason: str
    steps: int
    stop_step: int
    fitted: Tensor
    last: Tensor
    oracle: Tensor
    curve: Mapping[str, Tensor]
    limit: int
    probed: Tensor | None = None

    @property
    def answered(self) -> bool:
        """Whether it is of use: one that was interrupted early is not, where no score tells how good it is."""
        early = self.status is Status.CANCELLED and 2 * self.steps < self.limit
        untold = bool(self.curve["held_out"].isnan().all())
        return self.status not in (Status.DIVERGED, Status.COLLAPSED) and not (early and untold)


def fit(
    task: Task,
    piece: Piece,
    watch: Watch,
    *,
    seed: int,
    device: torch.device,
    interrupted: Callable[[], bool],
    store: Store | None = None,
    name: str = "",
) -> Fit:
    """Fits the task's network to a piece, or takes the finished fit from the store."""
    spec = task.spec(_sealed(task, piece), steps=watch.limit, seed=seed)
    if store is not None and watch.truth is None and (found := _kept(store, spec)) is not None:
        return found
    views = [piece.view] if task.sigma is None else [piece.view, piece.probed().view]
    jobs = [Job(spec, view, run.first_weights(spec)) for view in views]
    for state in engine.fit(
        jobs, device=device, watch=watch, every=LOOK, interrupt=lambda: watch.over or interrupted()
    ):
        end = state
    assert end.outcomes is not None
    outcome = end.outcomes[0]
    picture = outcome.picture
    assert picture is not None
    last = _as_picture(end.tensors["shown"][0].reshape(-1, piece.shape[0]), piece.shape).clamp(0, 1)
    probed = None
    if watch.best is not None:
        stop_step, picture, probed = watch.best
        outcome = replace(outcome, picture=picture)
        if watch.over:
            outcome = replace(outcome, verdict=Status.STOPPED.value, reason="sure")
    else:
        watch.close(outcome.steps, last)
        stop_step = end.scalars["best_step"][0] if isinstance(task.stopping, HeldOut) else outcome.steps
    seen = watch.curve | ({} if probed is None else {"probed": probed})
    result = run.result_of(spec, outcome, {f"looks/{key}": value for key, value in seen.items()}, device)
    if store is not None and result.status.finished:
        _keep(store, result, task, name)
    oracle = last if watch.oracle is None else watch.oracle
    return Fit(
        result.status, outcome.reason, outcome.steps, stop_step, picture.clamp(0, 1), last, oracle, watch.curve,
        min(watch.limit, task.steps(*piece.shape[1:])), probed,
    )  # fmt: skip


def pace(task: Task, piece: Piece, device: torch.device) -> float:
    """Seconds of wall time that a step of such a fit takes, from some steps of one that is thrown away."""
    spec = task.spec(_sealed(task, piece), steps=_TRIED)
    seconds = math.inf
    fits = 1 if task.sigma is None else 2
    jobs = [Job(replace(spec, stopping=Never()), piece.view, run.first_weights(spec))] * fits
    for _ in range(2):  # the first one finds everything cold
        *_, end = engine.fit(jobs, device=device)
        assert end.outcomes is not None
        seconds = min(seconds, end.outcomes[0].seconds / _TRIED)
    return seconds


def _sealed(task: Task, piece: Piece) -> Sealed:
    """What is fitted, for the fit's id. The picture that is sought is known to nobody, only what was measured of it."""
    _, height, width = piece.shape
    masks = {"known": piece.known, "held_out": piece.held_out}
    if piece.scored is not None:
        masks["scored"] = piece.scored
    record: dict[str, Any] = {
        "kind": "Measured",
        "image": {**Image(piece.measurement).canonical_value(), "height": height, "width": width},
        "operator": task.operator,
        **{name: None if mask is None else Inpaint(mask) for name, mask in masks.items()},
    }
    if task.sigma is not None:
        assert piece.probe is not None
        record |= {"sigma": task.sigma, "probe": Inpaint(piece.probe > 0)}
    return Sealed(canonical.plain(record))


def _kept(store: Store, spec: Spec) -> Fit | None:
    """The finished fit of an earlier call."""
    found = store.get(spec)
    if found is None or not found.status.finished or found.estimate is None:
        return None
    curve = {key: found.curves[f"looks/{key}"] for key in ("step", "held_out")}
    stop_step = found.steps
    if isinstance(spec.stopping, HeldOut):  # the rule did not see a last step between two looks
        looks = curve["step"] % LOOK == 0
        compared = spec.stopping.compared(curve["held_out"][looks], LOOK)
        stop_step = int(curve["step"][looks][int(compared.argmin())])
    elif found.reason == "sure":
        stop_step = int(curve["step"][int(curve["held_out"].argmin())])
    assert found.estimate is not None
    picture, probed = found.estimate.clamp(0, 1), found.curves.get("looks/probed")
    return Fit(
        found.status, found.reason, found.steps, stop_step, picture, picture, picture, curve, found.steps, probed
    )  # fmt: skip


def _keep(store: Store, result: Result, task: Task, name: str) -> None:
    """Files a fit; a disk that is full must not end a healthy restoration."""
    try:
        store.put(result, name=name, recipe=f"restore {task.name}")
    except StoreError as error:
        warnings.warn(f"a finished fit could not be kept, the restoration goes on: {error}", stacklevel=2)


def _as_picture(samples: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(H·W, C) as (C, H, W) on the CPU."""
    return samples.T.reshape(shape).float().cpu()
