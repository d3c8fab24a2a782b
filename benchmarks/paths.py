"""The ways to train one network on one picture: the loop everyone writes, pixfit's torch path, the fused kernel."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import measure
import torch
from torch import Tensor, nn

from pixfit import engine
from pixfit.images import Image
from pixfit.job import Job
from pixfit.kernels import Plan, library
from pixfit.kernels.library import Library
from pixfit.kernels.native import Fused, Rows, Update
from pixfit.models import Model
from pixfit.models.networks import Network
from pixfit.optim import Adam
from pixfit.problem import Problem, stream
from pixfit.spec import Batches, Precision, Spec
from pixfit.stopping import Budget

__all__ = ["Task", "fused", "kernel_of", "missing", "plain", "rows_of", "runs_of", "through_engine", "use_kernel"]

_LR = 1e-4


@dataclass(frozen=True)
class Task:
    """What is trained: a network on a square colour picture with Adam.

    Args:
        name: of the rows.
        model: the network's settings.
        side: of the picture, in pixels.
        batch: pixels of a step, which divide the picture's evenly; None: all.
    """

    name: str
    model: Model
    side: int = 32
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.side**2 % self.per_step:
            raise ValueError(f"batches of {self.batch} pixels do not divide the {self.side**2} of the picture")

    @property
    def per_step(self) -> int:
        """Pixels of a step."""
        return self.side**2 if self.batch is None else self.batch

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.side**2 // self.per_step

    @property
    def plan(self) -> Plan:
        """The network for the fused kernel."""
        plan = self.model.plan()
        if plan is None:
            raise ValueError(f"{self.model} has no plan for a fused kernel")
        return plan

    @property
    def coordinates(self) -> Tensor:
        """(N, 2)."""
        return self.model.coordinates.grid(self.side, self.side)

    @property
    def picture(self) -> Tensor:
        """(3, side, side) in [0, 1]: waves and noise."""
        t = torch.linspace(0, 4, self.side)
        waves = [torch.sin((1 + c) * t + c)[:, None] * torch.cos((2 - 0.5 * c) * t) for c in range(3)]
        noise = torch.randn(3, self.side, self.side, generator=stream(0, "picture"))
        return (0.5 + 0.4 * torch.stack(waves) + 0.05 * noise).clamp(0, 1)

    @property
    def targets(self) -> Tensor:
        """(N, 3) in the network's range."""
        return self.model.to_target(self.picture).reshape(3, -1).T.contiguous()

    def network(self, seed: int = 0) -> Network:
        """The plain module with its initial weights."""
        return self.model.build(generator=stream(seed, "weights"))

    def order(self) -> Tensor:
        """(steps, batch): which pixels each step of an epoch sees."""
        return torch.randperm(self.side**2).reshape(self.steps, self.per_step)


def plain(task: Task, network: nn.Module | None = None) -> measure.Run:
    """The loop everyone writes: a module (the task's own, or another), autograd, `torch.optim.Adam`."""
    network = task.network() if network is None else network
    coordinates, targets = task.coordinates, task.targets
    optimiser = torch.optim.Adam(network.parameters(), lr=_LR)

    def step(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def run(epochs: int) -> float:
        begin = time.process_time()
        for _ in range(epochs):
            if task.batch is None:
                step(coordinates, targets)
                continue
            for index in task.order():
                step(coordinates[index], targets[index])
        return time.process_time() - begin

    return run


def through_engine(task: Task, kernel: str | None = None, precision: Precision = "float32") -> measure.Run:
    """pixfit's own loop, as it counts its time.

    Args:
        kernel: as of the variable ``PIXFIT_KERNEL``: ``torch`` is what runs where nothing was compiled; None: the loop
            chooses.
        precision: ``float32`` or ``bfloat16-backward``.
    """
    problem = Problem(Image(task.picture))

    def run(epochs: int) -> float:
        batches, budget = Batches(task.batch), Budget(epochs=epochs)
        spec = Spec(problem, task.model, optimiser=Adam(lr=_LR), batches=batches, budget=budget, precision=precision)
        job = Job(spec, problem.view, task.network().state_dict())
        with use_kernel(kernel):
            *_, last = engine.fit([job], every=10**9, save_every=math.inf)
        assert last.outcomes is not None
        return last.outcomes[0].process_seconds

    return run


@contextlib.contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """Sets the variable ``PIXFIT_KERNEL`` for the body; None leaves it as it is."""
    before = os.environ.get("PIXFIT_KERNEL")
    if name is not None:
        os.environ["PIXFIT_KERNEL"] = name
    try:
        yield
    finally:
        if before is not None:
            os.environ["PIXFIT_KERNEL"] = before
        elif name is not None:
            del os.environ["PIXFIT_KERNEL"]


def kernel_of(task: Task, compiled: Library, *, backward: str = "float32", fits: int = 1) -> tuple[Fused, Tensor]:
    """The compiled kernel for a task, and the initial weights (F, P) of as many fits."""
    networks = [task.network(seed) for seed in range(fits)]
    places, at = {}, 0
    for name, parameter in networks[0].named_parameters():
        places[name], at = at, at + parameter.numel()
    weights = torch.stack([torch.cat([p.detach().reshape(-1) for p in network.parameters()]) for network in networks])
    buffers = [dict(network.named_buffers()) for network in networks]
    fixed = {name: torch.stack([each[name] for each in buffers]) for name in buffers[0]}
    return Fused(compiled, task.plan, places, at, fixed, backward=backward), weights


def fused(
    task: Task,
    compiled: Library,
    *,
    backward: str = "float32",
    rule: str = "adam",
    fits: int = 1,
    threads: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> measure.Run:
    """The compiled kernel on as many fits, without the loop around it; an epoch is one of all of them."""
    kernel, weights = kernel_of(task, compiled, backward=backward, fits=fits)
    gradient, moments = torch.zeros_like(weights), (torch.zeros_like(weights), torch.zeros_like(weights))
    samples = Rows(task.coordinates[None], task.targets.expand(fits, -1, -1).contiguous())
    made = 0

    def run(epochs: int) -> float:
        nonlocal made
        begin = clock()
        steps = epochs * task.steps
        rates = torch.full((fits, steps, 2), _LR, dtype=torch.float64)
        orders = [torch.cat([task.order() for _ in range(epochs)]) for _ in range(fits if task.batch else 0)]
        index = torch.stack(orders) if orders else None
        kernel.steps(
            Update(rule), samples, weights, gradient, rates, moments=moments, index=index, count=made, threads=threads
        )
        made += steps
        return clock() - begin

    return run


def runs_of(task: Task, compiled: Library | None) -> dict[str, measure.Run]:
    """Every path by its name; without a compiled kernel those of torch alone."""
    runs = {"plain": plain(task), "torch": through_engine(task, "torch")}
    if compiled is not None:
        runs["fused-fp32"] = fused(task, compiled)
        runs["fused-bf16-backward"] = fused(task, compiled, backward="bfloat16")
    return runs


def rows_of(
    task: Task, times: Mapping[str, float], found: measure.Machine, *, bytes_us: float = 0.0
) -> list[measure.Row]:
    """A row for each path.

    Args:
        times: seconds of an epoch by path, of which ``plain`` is one.
        bytes_us: added to the limit, where moving bytes takes a part of the time that counts.
    """
    least = measure.limit(found, task.plan, task.side**2) + bytes_us
    return [measure.row(task.name, path, spent, times["plain"], least) for path, spent in times.items()]


def missing(compiled: Library | None) -> list[str]:
    """What to say of the paths that are not measured."""
    if compiled is not None:
        return []
    return [f"no fused rows and no shares of the limit: {library.why()}"]
