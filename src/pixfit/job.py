"""What goes into the training loop and what comes out of it: jobs, states, outcomes, and who may watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pixfit.problem import View
from pixfit.spec import Spec
from pixfit.starts import Weights

__all__ = ["Blind", "Job", "Moment", "Outcome", "State", "Watch"]


@dataclass(frozen=True)
class Job:
    """One fit as the loop sees it: the spec's settings without its problem, the view in its place.

    Args:
        spec: the settings; `pixfit.run` seals its problem and drops its start, so that no truth is in reach.
        view: what may be seen of the problem.
        weights: every tensor of the network, by name. The engine clones them.
        mask: of parameters that stay zero, by name; None for no mask.
        keep: steps whose weights are kept.
    """

    spec: Spec
    view: View
    weights: Mapping[str, Tensor]
    mask: Weights | None = None
    keep: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How one fit ended.

    ``reason`` names the limit or rule; ``verdict`` is done, stopped, out_of_budget, diverged, collapsed or cancelled.
    ``process_seconds`` is its share of those of its stack. ``picture`` (C, H, W) is the answer, in units of pixels,
    where it is not what the weights show. ``looks`` are the curves ``held_out_…`` of `pixfit.Result`. ``spread``
    (C, H, W) is the standard deviation of what was averaged, of a `pixfit.spec.PosteriorMean`.
    """

    verdict: str
    reason: str
    steps: int
    epochs: float
    weights: Mapping[str, Tensor]
    kept: Mapping[int, Mapping[str, Tensor]]
    losses: Tensor
    psnr_measured: float
    seconds: float
    process_seconds: float
    evaluation_seconds: float
    kernel: str
    picture: Tensor | None = None
    looks: Mapping[str, Tensor] = field(default_factory=dict)
    spread: Tensor | None = None


@dataclass(frozen=True)
class State:
    """All that the loop needs to go on, as a value: ``tensors`` for safetensors, ``scalars`` for JSON.

    ``outcomes`` is None on the way; the last state that a fit yields has one outcome a fit.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]
    outcomes: tuple[Outcome, ...] | None = None

    def split(self) -> list[State]:
        """The states of the fits one by one: any of them may go on without its mates."""
        fits = len(self.scalars["ended"])

        def part(value: Any, fit: int) -> Any:
            if isinstance(value, Mapping):
                return {name: part(inner, fit) for name, inner in value.items()}
            return [value[fit]] if isinstance(value, list) else value

        wall, process, evaluation = self.scalars["clock"]
        clock = (wall, process / fits, evaluation)
        return [
            State(
                self.step,
                {name: value[fit : fit + 1] for name, value in self.tensors.items()},
                {**part({**self.scalars, "clock": None}, fit), "clock": list(clock)},
            )
            for fit in range(fits)
        ]

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """The opposite of `split`, of states that stand at one step."""

        def merged(values: Sequence[Any]) -> Any:
            if isinstance(values[0], Mapping):
                return {name: merged([value[name] for value in values]) for name in values[0]}
            return [item for value in values for item in value] if isinstance(values[0], list) else values[0]

        clocks = [state.scalars["clock"] for state in states]
        clock = [max(c[0] for c in clocks), sum(c[1] for c in clocks), max(c[2] for c in clocks)]
        scalars = merged([{**state.scalars, "clock": None} for state in states])
        tensors = {name: torch.cat([state.tensors[name] for state in states]) for name in states[0].tensors}
        return State(states[0].step, tensors, {**scalars, "clock": clock})


@dataclass(frozen=True)
class Moment:
    """What a watcher may look at. ``predict(index)`` gives (F, n, C) pixels at row-major places of the picture."""

    step: int
    seconds: float
    predict: Callable[[Tensor], Tensor]


class Watch(Protocol):
    """Sees a fit and cannot answer: what these return is not read."""

    def tick(self, step: int, fraction: float, losses: Sequence[float]) -> None:
        """A sign of life, ten times a second: the step, the fraction of the budget spent, the last losses (F)."""

    def look(self, moment: Moment) -> None:
        """A point of the curve."""


class Blind:
    """A watch that sees nothing."""

    def tick(self, step: int, fraction: float, losses: Sequence[float]) -> None:
        pass

    def look(self, moment: Moment) -> None:
        pass
