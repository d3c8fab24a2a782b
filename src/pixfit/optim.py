"""Optimisers and clipping, on stacked weights.

Shape legend: F fits, P parameters of one fit. A stack of fits keeps weights and gradients as matrices (F, P), so one
update serves all fits and a learning rate is a vector (F,). Settings are frozen dataclasses; ``start(weights, layout)``
makes the working object, whose ``tensors()`` and ``scalars()`` are its whole state, for checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixfit.canonical import is_number, is_whole
from pixfit.kernels import Crew
from pixfit.models import Descent
from pixfit.schedules import Constant, Schedule

__all__ = [
    "OPTIMISERS", "SGD", "Adam", "AdamW", "Backtracking", "Entry", "Langevin", "Muon", "Optimiser", "Rule",
    "ScheduleFreeAdamW", "Stepper", "clip_rows", "with_descents",
]  # fmt: skip


class Entry(NamedTuple):
    """Where one named parameter lies in a row of P numbers."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Rule(NamedTuple):
    """An update that compiled kernels know: ``adam`` (weight decay decoupled) or ``schedule_free``."""

    name: str
    betas: tuple[float, float]
    eps: float
    weight_decay: float


@dataclass(frozen=True)
class Optimiser:
    """Base of the optimisers' settings.

    Args:
        lr: learning rate.
        schedule: its course over the budget.
        clip_norm: gradients of a fit whose norm is above this are scaled down to it; None: never.
    """

    lr: float = 1e-4
    schedule: Schedule = field(default_factory=Constant)
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "lr")
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"optimiser.schedule is {self.schedule!r}; it must be a schedule, such as Cosine()")
        if self.clip_norm is not None and not (is_number(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"optimiser.clip_norm is {self.clip_norm!r}; it must be above 0, or null for no clipping")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        """The working object for ``weights`` (F, P), which it will update in place."""
        raise NotImplementedError


class Stepper:
    """A working optimiser. ``update`` changes the weights in place; the state is all in ``tensors`` and ``scalars``.

    ``crew`` may be set to threads that share what an update can do side by side, ``seeds`` to whole numbers, one a fit,
    of what an update draws at random.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.crew = Crew(0)
        self.seeds: Sequence[int] = [0] * len(weights)
        self.state: dict[str, Tensor] = {}
        self.count = 0

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        """One step. ``gradient``: (F, P); ``lr``: (F, 1), schedule included."""
        raise NotImplementedError

    def notice(self, losses: Tensor) -> Tensor | None:
        """Is told the losses (F,) that the next update's gradient belongs to.

        Returns bool (F,), the fits that have gone back to other weights, so that their gradient means nothing; None for
        no fit. `update` knows them by itself.
        """
        return None

    def evaluation_weights(self) -> Tensor:
        """The weights (F, P) that a prediction should use: for most optimisers the trained ones themselves."""
        return self.weights

    def rule(self) -> Rule | None:
        """What a compiled kernel may do in place of `update`; None: only `update` can."""
        return None

    def moments(self) -> tuple[Tensor, Tensor]:
        """The two (F, P) matrices that the rule's update changes beside the weights."""
        first, second = self.state.values()
        return first, second

    def table(self, lr: Tensor) -> Tensor:
        """What the rule needs of the next S steps at learning rates (F, S) in float64: (F, S, 2)."""
        return torch.stack([lr, torch.zeros_like(lr)], dim=2)

    def advance(self, lr: Tensor) -> None:
        """Notes that a kernel made S updates with the rates (F, S)."""
        self.count += lr.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        return self.state

    def scalars(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Takes a state that `tensors` and `scalars` gave."""
        for name, value in self.state.items():
            value.copy_(tensors[name])
        self.count = int(scalars["count"])


@dataclass(frozen=True)
class SGD(Optimiser):
    """Gradient descent with momentum (Nesterov's form if asked)."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self.momentum)
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"optimiser.nesterov is {self.nesterov!r}; it must be true or false")
        if self.nesterov and not self.momentum:
            raise ValueError("optimiser.nesterov is a form of momentum; set optimiser.momentum above 0, such as 0.9")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _SGDStepper(self, weights)


class _SGDStepper(Stepper):
    def __init__(self, settings: SGD, weights: Tensor) -> None:
        super().__init__(weights)
        self.settings = settings
        self.state = {"momentum": torch.zeros_like(weights)} if settings.momentum else {}

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        self.count += 1
        if self.settings.momentum:
            momentum = self.state["momentum"].mul_(self.settings.momentum).add_(gradient)
            gradient = gradient + self.settings.momentum * momentum if self.settings.nesterov else momentum
        self.weights.sub_(gradient * lr)


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (Kingma and Ba 2015) with bias correction and no weight decay."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.betas)
        _check_numbers(self, "eps")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _AdamStepper(weights, self.betas, self.eps, weight_decay=0.0)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "weight_decay")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _AdamStepper(weights, self.betas, self.eps, self.weight_decay)


class _AdamStepper(Stepper):
    def __init__(self, weights: Tensor, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(weights)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.state = {"first": torch.zeros_like(weights), "second": torch.zeros_like(weights)}
        self._work = torch.empty_like(weights)

    def rule(self) -> Rule | None:
        return Rule("adam", self.betas, self.eps, self.weight_decay)

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        self.count += 1
        beta1, beta2 = self.betas
        if self.weight_decay:
            self.weights.mul_(1 - lr * self.weight_decay)
        first = self.state["first"].lerp_(gradient, 1 - beta1)
        second = self.state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        torch.sqrt(second, out=self._work)
        self._work.div_(math.sqrt(1 - beta2**self.count)).add_(self.eps)
        torch.div(first, self._work, out=self._work)
        self.weights.sub_(self._work.mul_(lr / (1 - beta1**self.count)))


@dataclass(frozen=True)
class Langevin(AdamW):
    """AdamW with normal noise on every kernel and matrix after each step (as in Cheng et al., CVPR 2019, GP-DIP).

    It makes the weights wander about the posterior instead of settling, so that the mean of what the network shows
    after a while needs no stopping rule. The authors' program, too, makes Adam's steps, which is no exact Langevin
    dynamics; its settings are the defaults (there the decay goes through the moments), with 20,000 steps of which the
    first 7,000 do not count.

    Args:
        noise: its standard deviation over the learning rate (schedule included).
    """

    lr: float = 0.01
    weight_decay: float = 5e-8
    noise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "noise")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _LangevinStepper(self, weights, layout)


class _LangevinStepper(_AdamStepper):
    def __init__(self, settings: Langevin, weights: Tensor, layout: list[Entry]) -> None:
        super().__init__(weights, settings.betas, settings.eps, settings.weight_decay)
        self._noise = settings.noise
        self._kernels = [entry for entry in layout if len(entry.shape) > 1 and entry.name.endswith("weight")]
        self._drawn = torch.empty(sum(entry.stop - entry.start for entry in self._kernels), device=weights.device)

    def rule(self) -> None:
        return None

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        super().update(gradient, lr)
        for row, seed, rate in zip(self.weights, self.seeds, lr[:, 0].tolist(), strict=True):
            generator = torch.Generator(row.device).manual_seed((seed + self.count) % 2**63)
            self._drawn.normal_(0.0, 1.0, generator=generator)
            at = 0
            for entry in self._kernels:
                size = entry.stop - entry.start
                row[entry.start : entry.stop].add_(self._drawn[at : at + size], alpha=self._noise * rate)
                at += size


@dataclass(frozen=True)
class Backtracking(AdamW):
    """AdamW that goes back when the loss jumps: to the weights and moments that it keeps every so many steps.

    The deep image prior's program (Ulyanov et al., CVPR 2018) has such a guard at 5 dB on the PSNR of what is fitted,
    but keeps Adam's moments, and goes on with the gradient of the weights that it has just left. Here that step is left
    out, and weights, moments and the count of the bias correction are as they were kept. A fit without anything random
    in its steps would take the same way again; the noise on the code of a deep image prior leads another.

    Args:
        jump: factor on the kept weights' own loss at which they are taken back; 10^0.5, which is 5 dB.
        every: steps between two that are kept, unless the loss has jumped.
    """

    lr: float = 0.01
    weight_decay: float = 0.0
    jump: float = 10**0.5
    every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "jump")
        if not self.jump > 1:
            raise ValueError(f"optimiser.jump is {self.jump!r}; it must be above 1, a factor on the loss")
        if not (is_whole(self.every) and self.every >= 1):
            raise ValueError(f"optimiser.every is {self.every!r}; it must be a whole number, 1 or more steps")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _BacktrackingStepper(self, weights)


class _BacktrackingStepper(Stepper):
    """One Adam a row, since each fit goes back at its own time, the count of its bias correction too."""

    def __init__(self, settings: Backtracking, weights: Tensor) -> None:
        super().__init__(weights)
        self._settings = settings
        names = ("first", "second")
        self.state = {name: torch.zeros_like(weights) for name in names}
        self.state |= {f"kept_{name}": torch.zeros_like(weights) for name in names} | {"kept": weights.clone()}
        betas, eps, decay = settings.betas, settings.eps, settings.weight_decay
        self._rows = [_AdamStepper(row[None], betas, eps, decay) for row in weights]
        for index, row in enumerate(self._rows):
            row.state = {name: self.state[name][index : index + 1] for name in names}
        self._marks = [_Mark() for _ in self._rows]
        self._back: Tensor | None = None

    def notice(self, losses: Tensor) -> Tensor | None:
        back = torch.zeros(len(self._rows), dtype=torch.bool)
        for index, (row, mark, loss) in enumerate(zip(self._rows, self._marks, losses.tolist(), strict=True)):
            live, kept = [row.weights[0], *(value[0] for value in row.state.values())], self._kept(index)
            if mark.loss is not None and not loss <= self._settings.jump * mark.loss:
                for value, old in zip(live, kept, strict=True):
                    value.copy_(old)
                row.count, back[index] = mark.count, True
                mark.returns += 1
            elif mark.loss is None or row.count - mark.count >= self._settings.every:
                for value, old in zip(live, kept, strict=True):
                    old.copy_(value)
                mark.count, mark.loss = row.count, loss
        self._back = back
        return back

    def _kept(self, index: int) -> list[Tensor]:
        return [self.state[name][index] for name in ("kept", "kept_first", "kept_second")]

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        self.count += 1
        for index, row in enumerate(self._rows):
            if self._back is None or not self._back[index]:
                row.update(gradient[index : index + 1], lr[index : index + 1])
        self._back = None

    def scalars(self) -> dict[str, Any]:
        rows = zip(self._rows, self._marks, strict=True)
        return {"count": self.count, "rows": [{"count": row.count, "mark": vars(mark).copy()} for row, mark in rows]}

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        super().restore(tensors, scalars)
        for index, saved in enumerate(scalars["rows"]):
            self._rows[index].count, self._marks[index] = int(saved["count"]), _Mark(**saved["mark"])


@dataclass
class _Mark:
    """When a row was last kept: after ``count`` of its updates, with the loss that it had there; and its returns."""

    count: int = 0
    loss: float | None = None
    returns: int = 0


@dataclass(frozen=True)
class ScheduleFreeAdamW(Optimiser):
    """Schedule-free AdamW (Defazio et al. 2024), by the authors' package ``schedulefree``.

    It needs no decay of the learning rate; predictions use the running average x of the iterates, training the point y
    between. Give the schedule `Constant`: the warm-up is the package's own, in steps.
    """

    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.betas)
        _check_numbers(self, "eps", "weight_decay")
        if not (is_whole(self.warmup_steps) and self.warmup_steps >= 0):
            raise ValueError(f"optimiser.warmup_steps is {self.warmup_steps!r}; it must be a whole number, 0 or more")
        if not self.betas[0]:
            raise ValueError("optimiser.betas[0] is 0; schedule-free averaging needs it above 0, such as 0.9")
        if self.schedule != Constant():
            raise ValueError(
                "ScheduleFreeAdamW takes the schedule Constant() without warm-up; use optimiser.warmup_steps"
            )

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _ScheduleFreeStepper(self, weights)


class _ScheduleFreeStepper(Stepper):
    """One package optimiser a row, since its averaging weights depend on the learning rate of the fit."""

    def __init__(self, settings: ScheduleFreeAdamW, weights: Tensor) -> None:
        import schedulefree

        super().__init__(weights)
        self._settings = settings
        self._rows = [torch.nn.Parameter(row) for row in weights]
        self._optimisers = [
            schedulefree.AdamWScheduleFree(
                [row], lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay,
                warmup_steps=settings.warmup_steps, foreach=False,
            )
            for row in self._rows
        ]  # fmt: skip
        self.state = {"z": weights.clone(), "exp_avg_sq": torch.zeros_like(weights)}
        for optimiser, row, z, second in zip(self._optimisers, self._rows, *self.state.values(), strict=True):
            optimiser.train()
            optimiser.state[row] = {"z": z, "exp_avg_sq": second}  # rows of our own, so that the state is (F, P) too

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        self.count += 1
        for optimiser, row, slope, rate in zip(self._optimisers, self._rows, gradient, lr[:, 0].tolist(), strict=True):
            optimiser.param_groups[0]["lr"] = rate
            row.grad = slope
            optimiser.step()
            row.grad = None

    def rule(self) -> Rule:
        settings = self._settings
        return Rule("schedule_free", settings.betas, settings.eps, settings.weight_decay)

    def table(self, lr: Tensor) -> Tensor:
        rows = [
            _averaging(dict(optimiser.param_groups[0]), rates)
            for optimiser, rates in zip(self._optimisers, lr.tolist(), strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def advance(self, lr: Tensor) -> None:
        super().advance(lr)
        for optimiser, rates in zip(self._optimisers, lr.tolist(), strict=True):
            _averaging(optimiser.param_groups[0], rates)

    def evaluation_weights(self) -> Tensor:
        """x, computed beside y: the package's own switch works in place and would round y at every look."""
        averages = []
        for optimiser, row in zip(self._optimisers, self._rows, strict=True):
            kept = row.detach().clone()
            optimiser.eval()
            averages.append(row.detach().clone())
            row.data.copy_(kept)
            optimiser.param_groups[0]["train_mode"] = True
        return torch.stack(averages)

    def scalars(self) -> dict[str, Any]:
        names = ("k", "lr_max", "weight_sum", "scheduled_lr")
        groups = [{n: o.param_groups[0][n] for n in names if n in o.param_groups[0]} for o in self._optimisers]
        return {"count": self.count, "groups": groups}

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        super().restore(tensors, scalars)
        for optimiser, group in zip(self._optimisers, scalars["groups"], strict=True):
            optimiser.param_groups[0].update(group)


def _averaging(group: dict[str, Any], rates: Sequence[float]) -> list[tuple[float, float]]:
    """The package's scalars for steps with these rates: (rate, c) of each. ``group`` is left as after the last one."""
    steps = []
    for rate in rates:
        count = group["k"] + 1
        lr = rate * (count / group["warmup_steps"] if count <= group["warmup_steps"] else 1.0)
        group["lr"], group["scheduled_lr"], group["lr_max"] = rate, lr, max(lr, group["lr_max"])
        weight = count ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
        group["weight_sum"] += weight
        group["k"] = count
        steps.append((lr, weight / group["weight_sum"] if group["weight_sum"] else 0.0))
    return steps


@dataclass(frozen=True)
class Muon(Optimiser):
    """Muon (Jordan et al. 2024) on the hidden matrices, AdamW on all else.

    The momentum of each hidden matrix (``….layers.K.weight``, neither the first nor the last of its list of layers) is
    orthogonalised by five Newton–Schulz steps in bfloat16, and scaled by √max(1, rows/columns).

    Args:
        lr: of the hidden matrices.
        momentum: of the hidden matrices; Nesterov's form.
        adam_lr: of all other parameters; the schedule and warm-up work on both.
        betas, eps, weight_decay: of AdamW; the decay is used on all parameters with their own rate.
    """

    lr: float = 0.02
    momentum: float = 0.95
    adam_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.betas)
        _check_numbers(self, "adam_lr", "eps", "weight_decay")
        _check_momentum(self.momentum)
        if not self.lr:
            raise ValueError("optimiser.lr is 0; Muon needs it above 0, since adam_lr follows the schedule through it")

    def start(self, weights: Tensor, layout: list[Entry]) -> Stepper:
        return _MuonStepper(self, weights, layout)


class _MuonStepper(Stepper):
    def __init__(self, settings: Muon, weights: Tensor, layout: list[Entry]) -> None:
        super().__init__(weights)
        self._settings = settings
        self._hidden = _hidden_matrices(layout)
        if not self._hidden:
            raise ValueError("this network has no hidden matrices for Muon; use Adam, or more hidden layers")
        # Parameters that Adam leaves alone have a zero gradient there, so its moments stay zero and nothing moves.
        self._others = torch.ones(weights.shape[1], device=weights.device, dtype=weights.dtype)
        for entry in self._hidden:
            self._others[entry.start : entry.stop] = 0
        self._adam = _AdamStepper(weights, settings.betas, settings.eps, weight_decay=0.0)
        self.state = {"momentum": torch.zeros_like(weights), **self._adam.state}

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        settings = self._settings
        self.count += 1
        momentum = self.state["momentum"].lerp_(gradient, 1 - settings.momentum)
        adam_lr = lr * (settings.adam_lr / settings.lr)
        if settings.weight_decay:
            rates = torch.where(self._others > 0, adam_lr, lr)
            self.weights.mul_(1 - rates * settings.weight_decay)
        self._adam.update(gradient * self._others, adam_lr)

        def turn(index: int) -> None:
            entry = self._hidden[index]
            part = slice(entry.start, entry.stop)
            with torch.no_grad():
                step = torch.lerp(gradient[:, part], momentum[:, part], settings.momentum).reshape(-1, *entry.shape)
                step = _orthogonal(step) * max(1.0, entry.shape[0] / entry.shape[1]) ** 0.5
                self.weights[:, part].sub_(step.reshape(-1, part.stop - part.start) * lr)

        self.crew.map(turn, len(self._hidden))

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        super().restore(tensors, scalars)
        self._adam.count = self.count


def _hidden_matrices(layout: list[Entry]) -> list[Entry]:
    lists: dict[str, list[Entry]] = {}
    for entry in layout:
        layer = re.fullmatch(r"(.*\blayers\.)\d+\.weight", entry.name)
        if layer and len(entry.shape) == 2:
            lists.setdefault(layer[1], []).append(entry)
    return [entry for matrices in lists.values() for entry in matrices[1:-1]]


def _orthogonal(matrices: Tensor) -> Tensor:
    """Newton–Schulz: (F, rows, columns) to roughly orthogonal ones, with the quintic's published coefficients."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    size: Tensor = x.norm(dim=(-2, -1), keepdim=True)
    x = x / size.clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


OPTIMISERS: dict[str, type[Optimiser]] = {
    "SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Langevin": Langevin, "Backtracking": Backtracking,
    "ScheduleFreeAdamW": ScheduleFreeAdamW, "Muon": Muon,
}  # fmt: skip


def with_descents(stepper: Stepper, layout: list[Entry], descents: Sequence[Descent]) -> Stepper:
    """The same optimiser for all parameters but those that a model moves by plain descent (`pixfit.models.Descent`)."""
    return _DescendingStepper(stepper, layout, descents) if descents else stepper


class _DescendingStepper(Stepper):
    """Its state is that of the optimiser inside, for which these parameters have no gradient."""

    def __init__(self, inner: Stepper, layout: list[Entry], descents: Sequence[Descent]) -> None:
        super().__init__(inner.weights)
        self._inner = inner
        places = {entry.name: slice(entry.start, entry.stop) for entry in layout}
        self._parts = [(places[descent.name], descent) for descent in descents]
        self._back: Tensor | None = None

    def notice(self, losses: Tensor) -> Tensor | None:
        self._back = self._inner.notice(losses)
        return self._back

    def update(self, gradient: Tensor, lr: Tensor) -> None:
        self.count += 1
        self._inner.crew, self._inner.seeds = self.crew, self.seeds
        moved = []
        for part, descent in self._parts:
            rate = descent.rate * (part.stop - part.start) if self.count % descent.every == 0 else 0.0
            moved.append(self.weights[:, part] - rate * gradient[:, part])
            gradient[:, part] = 0
        self._inner.update(gradient, lr)
        for (part, _), value in zip(self._parts, moved, strict=True):
            own = self.weights[:, part]  # as the optimiser's weight decay has left it, or a return has
            own.copy_(value if self._back is None else torch.where(self._back.to(own.device)[:, None], own, value))
        self._back = None

    def evaluation_weights(self) -> Tensor:
        weights = self._inner.evaluation_weights()
        if weights is not self.weights:
            for part, _ in self._parts:
                weights[:, part] = self.weights[:, part]
        return weights

    def tensors(self) -> dict[str, Tensor]:
        return self._inner.tensors()

    def scalars(self) -> dict[str, Any]:
        return self._inner.scalars()

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self._inner.restore(tensors, scalars)
        self.count = int(scalars["count"])


def clip_rows(gradient: Tensor, limit: float) -> None:
    """Scales each row of (F, P) whose norm is above ``limit`` down to it, in place."""
    norms = gradient.norm(dim=1, keepdim=True)
    gradient.mul_((limit / (norms + 1e-6)).clamp(max=1.0))


def _check_numbers(optimiser: Optimiser, *names: str) -> None:
    for name in names:
        value = getattr(optimiser, name)
        if not (is_number(value) and 0 <= value <= 1e6):
            raise ValueError(f"optimiser.{name} is {value!r}; it must be from 0 to 1e6")


def _check_momentum(momentum: float) -> None:
    if not (is_number(momentum) and 0 <= momentum < 1):
        raise ValueError(f"optimiser.momentum is {momentum!r}; it must be 0 up to 1")


def _check_betas(betas: tuple[float, float]) -> None:
    pair = isinstance(betas, tuple) and len(betas) == 2
    if not (pair and all(is_number(beta) and 0 <= beta < 1 for beta in betas)):
        raise ValueError(f"optimiser.betas is {betas!r}; it must be two numbers from 0 up to 1")
