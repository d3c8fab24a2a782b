"""A stack of fits in training, step by step on the device: a step is compiled, captured as a CUDA graph and replayed.

Small networks on a card wait for launches: a step is some fifty kernels of a few microseconds each. A graph launches
them as one, and nothing in it comes from the host: learning rates are read from a table by a counter on the device, and
losses are written by the same counter. On a CPU the same step runs plainly, so that its arithmetic is tested anywhere.

Shape legend: F fits, P parameters of a fit, S steps, B samples of a batch, D coordinates of a sample, C outputs.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pixfit.kernels import card, twin
from pixfit.kernels.native import Update
from pixfit.kernels.plan import Plan

__all__ = ["Fits", "GraphSteps", "Inputs", "check_update", "step_table", "tensor_shapes"]

Inputs = tuple[Tensor, Tensor, Tensor | None]
"""Coordinates (1 or F, B, D), targets (F, B, C) and weights (F, B, C) of a step."""

_ROWS = 256  # steps between two copies of learning rates to the device
_PLAIN = 3  # steps of a shape that run before it is captured: libraries set themselves up in the first ones


@dataclass(frozen=True)
class Fits:
    """What a step changes, in place, and the mask. Matrices are (F, P), of one number format and device.

    Args:
        weights: in training.
        first, second: moments of Adam; z and the second moment of schedule-free.
        mask: of zeros and ones, or None.
        average: moving average of the weights, or None.
        plateau: (F, 5) in float64: best, bad, factor, total, steps (`pixfit.schedules.PlateauState`); or None.
        plateau_base: (F,) in float64: learning rates that the plateau's factor works on.

    Raises:
        ValueError: tensors that do not go together.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    mask: Tensor | None = None
    average: Tensor | None = None
    plateau: Tensor | None = None
    plateau_base: Tensor | None = None

    def __post_init__(self) -> None:
        shape, kind = tuple(self.weights.shape), self.weights.dtype
        for name in ("weights", "first", "second", "mask", "average"):
            self._check(name, shape, kind)
        for name, columns in (("plateau", (5,)), ("plateau_base", ())):
            self._check(name, (shape[0], *columns), torch.float64)
        if (self.plateau is None) != (self.plateau_base is None):
            raise ValueError("plateau and plateau_base belong together: give both or none")

    def _check(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> None:
        value, device = getattr(self, name), self.weights.device
        right = value is None or (tuple(value.shape) == shape and value.dtype == kind and value.device == device)
        if not right or (value is not None and not value.is_contiguous()):
            raise ValueError(
                f"{name}: got {tuple(value.shape)} of {value.dtype} on {value.device}, allowed contiguous {shape} of "
                f"{kind} on {device}"
            )


class GraphSteps:
    """Steps of F fits on one device.

    Args:
        plan: the network.
        places: where each trainable tensor begins in a row of P numbers, by name. The gradient of what the plan does
            not name is 0.
        fits: the state; it is read and written in place, and its tensors must stay where they are.
        fixed: the plan's other tensors (F, *shape), by name.
        batch: the inputs of a step, by its number. Where it gives the same tensors at every step nothing is copied.
        update: what is done with a gradient; its rule is ``adam`` or ``schedule_free``.
        loss: elementwise distance of outputs and targets.
        per_epoch: steps of an epoch, for the plateau.
        products: see `pixfit.kernels.card.float32_products`.
        backward: see `pixfit.kernels.twin.forward`.
        compiled: whether the step is compiled (see `pixfit.kernels.card.compile_reason`), once for each batch size.

    Raises:
        ValueError: settings and state that do not go together.
    """

    def __init__(
        self,
        plan: Plan,
        places: Mapping[str, int],
        fits: Fits,
        fixed: Mapping[str, Tensor],
        batch: Callable[[int], Inputs],
        update: Update,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        per_epoch: int = 1,
        products: Literal["ieee", "tf32"] = "ieee",
        backward: Literal["float32", "bfloat16"] = "float32",
        compiled: bool = False,
    ) -> None:
        check_update(update, fits, ("adam", "schedule_free"))
        self.plan, self.fits, self.update, self.loss = plan, fits, update, loss
        self.per_epoch, self.products, self.backward, self.compiled = per_epoch, products, backward, compiled
        self._batch = batch
        count, parameters = fits.weights.shape
        self._shapes = tensor_shapes(plan)
        self._pieces = _pieces(places, self._shapes, parameters)
        device, kind = fits.weights.device, fits.weights.dtype
        given = {
            "weights": fits.weights, "first": fits.first, "second": fits.second, "mask": fits.mask,
            "average": fits.average, "plateau": fits.plateau, "base": fits.plateau_base,
            **{f"fixed/{name}": value for name, value in fixed.items()},
        }  # fmt: skip
        self._state = {
            **{name: value for name, value in given.items() if value is not None},
            "table": torch.zeros(_ROWS, 2 * count + 3, dtype=kind, device=device),
            "losses": torch.zeros(count, _ROWS, dtype=kind, device=device),
            "at": torch.zeros(1, dtype=torch.int64, device=device),
        }
        self._runs: dict[tuple[int, ...], _Run] = {}
        # One stream for plain steps, capture and replay: libraries keep handles and workspaces for each stream.
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        """For the record of a fit."""
        kind = "torch-step" if self._stream is None else "cuda-graph"
        parts = [kind, "compiled" * self.compiled, self.products * (self.products != "ieee")]
        return "-".join(filter(None, parts))

    def steps(self, first_step: int, rates: Tensor) -> Tensor:
        """Makes S steps and returns their losses (F, S), on the device, without waiting for it.

        Args:
            first_step: number of the first of them; so many updates were made before.
            rates: (F, S, 2) in float64 on the CPU: learning rates, schedule included but not the plateau's factor, and
                the averaging weights c of schedule-free.

        Raises:
            ValueError: rates of another shape.
        """
        table = step_table(first_step, rates, self.fits, self.update, self.per_epoch)
        losses = self._state["losses"].new_empty(len(self.fits.weights), len(table))
        with torch.no_grad(), card.float32_products(self.products), self._streamed():
            for start in range(0, len(table), _ROWS):
                part = table[start : start + _ROWS]
                self._state["table"][: len(part)].copy_(part)
                self._state["at"].zero_()
                for step in range(first_step + start, first_step + start + len(part)):
                    self._one(self._batch(step))
                losses[:, start : start + len(part)] = self._state["losses"][:, : len(part)]
        return losses

    def _one(self, inputs: Inputs) -> None:
        shape = tuple(inputs[1].shape)
        if shape not in self._runs:
            self._runs[shape] = _Run(self._function(inputs), self._stream)
        self._runs[shape](inputs)

    @contextlib.contextmanager
    def _streamed(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def _function(self, inputs: Inputs) -> Callable[[Inputs], None]:
        """One step for inputs of that shape."""
        state = self._state
        if not self.compiled:
            return lambda inputs: self._step(state, inputs)
        # Traced through autograd, so that forward, backward and update are compiled as one. Fake tensors: the trace
        # itself must not train.
        traced = make_fx(lambda state, inputs: self._step(state, inputs), tracing_mode="fake")(state, inputs)
        whole = torch.compile(traced, fullgraph=True, dynamic=False)

        def run(inputs: Inputs) -> None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores .* not enabled")
                whole(state, inputs)

        return run

    def _step(self, state: Mapping[str, Tensor], inputs: Inputs) -> None:
        """One update of every fit: what `pixfit.engine` does in its plain step, without a question to the device."""
        update, weights, at = self.update, state["weights"], state["at"]
        losses, gradient = self._gradient(state, inputs)
        row, count = state["table"].index_select(0, at)[0], len(weights)
        rates, pulls = row[:count, None], row[count : 2 * count, None]
        correction1, correction2, last = row[-3], row[-2], row[-1] > 0
        if update.plateau is not None:
            rates = rates * state["plateau"][:, 2:3].to(rates.dtype)
        if "mask" in state:
            gradient = gradient * state["mask"]
        if update.clip_norm is not None:
            norms = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (update.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        (beta1, beta2), first = update.betas, state["first"]
        second = state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = second.sqrt() / correction2 + update.eps
        if update.rule == "adam":
            first.lerp_(gradient, 1 - beta1)
            weights.mul_(1 - rates * update.weight_decay).sub_(first / size * (rates / correction1))
        else:  # the weights are y, the first moment is z, and a pull is the averaging weight c
            gradient = gradient / size + update.weight_decay * weights
            weights.lerp_(first, pulls).add_(gradient * (rates * (beta1 * (1 - pulls) - 1)))
            first.sub_(gradient * rates)
        if "mask" in state:
            weights.mul_(state["mask"])
        if update.average_decay is not None:
            state["average"].lerp_(weights, 1 - update.average_decay)
        state["losses"].index_copy_(1, at, losses[:, None])
        at.add_(1)
        if update.plateau is not None:
            _watch_plateau(update.plateau, state["plateau"], state["base"], losses, last)

    @torch.enable_grad()
    def _gradient(self, state: Mapping[str, Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The losses (F,), means over the values in use, and their gradient (F, P)."""
        coordinates, targets, use = inputs
        weights = state["weights"].detach()
        tensors = {name.removeprefix("fixed/"): value for name, value in state.items() if name.startswith("fixed/")}
        # A leaf for each tensor: the gradient of a slice of the whole row would be a whole row, once a tensor.
        leaves = {
            name: weights[:, start:stop].view(-1, *self._shapes[name]).requires_grad_()
            for name, start, stop in self._pieces
            if name in self._shapes
        }
        error = self.loss(twin.forward(self.plan, tensors | leaves, coordinates, backward=self.backward), targets)
        if use is None:
            losses = error.flatten(1).sum(dim=1) / float(targets[0].numel())
        else:
            losses = (error * use).flatten(1).sum(dim=1) / use.flatten(1).sum(dim=1).clamp(min=1)
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        found = {name: slope.flatten(1) for name, slope in zip(leaves, slopes, strict=True)}
        parts = [
            found[name] if name in found else weights.new_zeros(len(weights), stop - start)
            for name, start, stop in self._pieces
        ]
        return losses.detach(), torch.cat(parts, dim=1)


class _Run:
    """A step for inputs of one shape: plain at first, then as a graph on a card."""

    def __init__(self, function: Callable[[Inputs], None], stream: Any) -> None:
        self._function, self._stream = function, stream
        self._made = 0
        self._inputs: Inputs | None = None
        self._graph: Any = None

    def __call__(self, inputs: Inputs) -> None:
        if self._graph is None and (self._stream is None or self._made < _PLAIN):
            self._function(inputs)
            self._made, self._inputs = self._made + 1, inputs
            return
        if self._graph is None:
            self._capture(inputs)
        assert self._inputs is not None
        for ours, new in zip(self._inputs, inputs, strict=True):
            if ours is not None and new is not None and ours is not new:
                ours.copy_(new)
        self._graph.replay()

    def _capture(self, inputs: Inputs) -> None:
        """Records the step on inputs that stay where they are; nothing is computed yet."""
        assert self._inputs is not None
        if not all(before is now for before, now in zip(self._inputs, inputs, strict=True)):
            coordinates, targets, use = inputs
            inputs = (coordinates.clone(), targets.clone(), None if use is None else use.clone())
        graph = torch.cuda.CUDAGraph()
        # Threads of the program that use the card for something else meanwhile do not disturb.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._function(inputs)
        self._graph, self._inputs = graph, inputs


def _watch_plateau(
    settings: tuple[float, float, float, float, int], state: Tensor, base: Tensor, losses: Tensor, last: Tensor
) -> None:
    """`pixfit.schedules.PlateauState.update` on (F, 5) in place; ``last`` () says whether the epoch ends here."""
    decay, threshold, min_lr, eps, patience = settings
    best, bad, factor, total, steps = state.unbind(1)
    total.add_(losses)
    steps.add_(1)
    mean = total / steps
    better = last & (mean < best * (1 - threshold))
    best.copy_(torch.where(better, mean, best))
    bad.copy_(torch.where(better, 0.0, bad + last))
    due = last & (bad > patience)
    old = factor * base
    new = (old * decay).clamp(min=min_lr)
    factor.copy_(torch.where(due & (old - new > eps), new / base, factor))
    bad.copy_(torch.where(due, 0.0, bad))
    total.mul_(~last)
    steps.mul_(~last)


def step_table(first_step: int, rates: Tensor, fits: Fits, update: Update, per_epoch: int = 1) -> Tensor:
    """What steps need from the host, (S, 2 F + 3) in float64 on the CPU, from rates (F, S, 2) as in `GraphSteps.steps`.

    A row holds the learning rates (F), the averaging weights (F), the bias corrections 1 − β₁ᵗ and √(1 − β₂ᵗ) of Adam,
    and 1 where an epoch ends.

    Raises:
        ValueError: rates of another shape, number format or place, or of no step.
    """
    count, steps = len(fits.weights), rates.shape[1] if rates.ndim == 3 else 0
    if steps < 1 or tuple(rates.shape) != (count, steps, 2) or rates.dtype != torch.float64 or rates.is_cuda:
        raise ValueError(
            f"rates: got {tuple(rates.shape)} of {rates.dtype} on {rates.device}, allowed ({count}, steps, 2) of "
            "torch.float64 on the CPU"
        )
    beta1, beta2 = update.betas
    rows = [
        (1 - beta1**t, math.sqrt(1 - beta2**t), float(t % per_epoch == 0))
        for t in range(first_step + 1, first_step + 1 + steps)
    ]
    return torch.cat([rates[..., 0].T, rates[..., 1].T, torch.tensor(rows, dtype=torch.float64)], dim=1)


def tensor_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape, without the axis of fits, of every tensor that a plan names."""
    shapes: dict[str | None, tuple[int, ...]] = {}
    for layer in plan.layers:
        shapes[layer.weight] = (layer.outputs, layer.inputs)
        shapes |= dict.fromkeys((layer.bias, layer.gain, layer.shift), (layer.outputs,))
    shapes |= dict.fromkeys((plan.lift.frequencies, plan.lift.centres), (plan.in_features, plan.lift.features // 2))
    shapes |= {level.table: (level.entries, level.features) for level in plan.lift.levels}
    return {name: shape for name, shape in shapes.items() if name is not None}


def _pieces(
    places: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], parameters: int
) -> list[tuple[str, int, int]]:
    """The row of P numbers from end to end: name (empty where the plan names nothing), start and stop."""
    pieces, at = [], 0
    for name in sorted(shapes.keys() & places.keys(), key=lambda name: places[name]):
        start, stop = places[name], places[name] + math.prod(shapes[name])
        if start < at or stop > parameters:
            raise ValueError(
                f"places: {name} {shapes[name]} from {start} overlaps another or leaves {parameters} numbers"
            )
        pieces += [("", at, start)] * (start > at) + [(name, start, stop)]
        at = stop
    return pieces + [("", at, parameters)] * (parameters > at)


def check_update(update: Update, fits: Fits, rules: tuple[str, ...]) -> None:
    """That settings and state go together; raises ValueError."""
    if update.rule not in rules:
        raise ValueError(f"update.rule: got {update.rule!r}, allowed {' or '.join(map(repr, rules))}")
    for one, other, name in (
        (update.average_decay, fits.average, "average"),
        (update.plateau, fits.plateau, "plateau"),
    ):
        if (one is None) != (other is None):
            raise ValueError(f"give the state fits.{name} together with its settings in update, or neither")
