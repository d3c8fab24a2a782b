"""The fused CPU kernel: plans, weights and samples handed to compiled code through ctypes.

`native/api.h` states the interface; the structures below mirror it field by field. Compiled code cannot check what a
pointer leads to, so every tensor is checked here: type, shape, contiguity, device, and the range of every index.

Shape legend: F fits, P parameters of a fit, N samples, B of them in a batch, D coordinates, C channels, S steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from ctypes import Structure, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixfit.kernels.library import ABI, Library
from pixfit.kernels.plan import Plan

__all__ = ["Fused", "Rows", "Update"]

_ACTIVATIONS = ("none", "sine", "finer", "finer_exact", "relu", "gelu", "silu", "gauss")
_NORMS = ("none", "layer", "rms")
_LIFTS = ("raw", "fourier", "gabor", "positional", "grid")
_OUTPUTS = ("linear", "sigmoid")
_LOSSES = ("MSE", "L1", "Huber")
_INTERPOLATIONS = ("linear", "cubic", "spline")
_RULES = ("gradient", "adam", "schedule_free")
_BACKWARDS = ("float32", "bfloat16")
_STOPPED, _NO_MEMORY = 1, 3
_SHORT = 2.0e10  # multiply-adds of a call that is over before anyone could wish to interrupt it
_ASK = 0.1  # seconds between two questions whether to stop a longer one


class _Layer(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("inputs", "outputs", "weight", "bias", "gain", "shift")),
        *((name, c_double) for name in ("omega", "eps")),
        *((name, c_int64) for name in ("activation", "norm", "norm_first", "skip")),
    )  # fmt: skip


class _Level(Structure):
    _fields_ = tuple((name, c_int64) for name in ("rows", "columns", "features", "entries", "hashed", "table"))


class _Plan(Structure):
    _fields_ = (
        *((n, c_int64) for n in ("abi", "in_features", "out_features", "parameters", "lift", "lift_features")),
        ("frequencies", c_int64), ("centres", c_int64), ("sigma", c_double), ("octaves", c_int64),
        ("include_input", c_int64), ("levels", c_void_p), ("level_count", c_int64), ("interpolation", c_int64),
        ("corner", c_int64), ("row_axis", c_int64), ("low", c_double), ("high", c_double), ("layers", c_void_p),
        ("layer_count", c_int64), ("output", c_int64), ("backward", c_int64),
    )  # fmt: skip


class _Fit(Structure):
    _fields_ = (
        *((name, c_void_p) for name in (
            "coordinates", "targets", "weights", "fixed", "index", "parameters", "gradient", "first", "second",
            "average", "mask", "rates", "plateau", "losses",
        )),
        ("base_rate", c_double), ("rows", c_int64), ("count", c_int64),
    )  # fmt: skip


class _Update(Structure):
    _fields_ = (
        ("optimiser", c_int64),
        *((name, c_double) for name in (
            "beta1", "beta2", "eps", "weight_decay", "clip_norm", "average_decay", "plateau_decay",
            "plateau_threshold", "plateau_min_lr", "plateau_eps",
        )),
        *((name, c_int64) for name in ("plateau_patience", "steps_per_epoch", "epoch_step")),
    )  # fmt: skip


@dataclass(frozen=True)
class Update:
    """What the kernel does with a gradient.

    Args:
        rule: ``gradient`` leaves it to the caller; ``adam`` (Adam, AdamW) or ``schedule_free``.
        betas, eps, weight_decay: of the rule, as in `pixfit.optim`.
        clip_norm: None for no clipping.
        average_decay: of the moving average of the weights; None for no average.
        plateau: (decay, threshold, min_lr, eps, patience) of `pixfit.schedules.Plateau`; None for none.
    """

    rule: str
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    average_decay: float | None = None
    plateau: tuple[float, float, float, float, int] | None = None


@dataclass(frozen=True)
class Rows:
    """The samples of F fits.

    Args:
        coordinates: (1 or F, N, D) float32.
        targets: (F, N, C) float32, in the network's range.
        weights: (F, N, C) float32, or None.
    """

    coordinates: Tensor
    targets: Tensor
    weights: Tensor | None = None


class Fused:
    """A plan on one library: trains F fits, and computes outputs. One call at a time: calls share scratch memory.

    Args:
        library: of the instruction set to use.
        plan: the network.
        places: where each parameter of the network begins in a row of P numbers, by name.
        parameters: P.
        fixed: the network's fixed tensors by name, each (F, …).
        backward: ``float32``, or ``bfloat16`` for the operands of the two backward products of each layer.

    Raises:
        ValueError: a plan with more or less than this kernel's families.
    """

    def __init__(
        self,
        library: Library,
        plan: Plan,
        places: Mapping[str, int],
        parameters: int,
        fixed: Mapping[str, Tensor] | None = None,
        *,
        backward: str = "float32",
    ) -> None:
        self.library, self.plan, self.parameters = library, plan, parameters
        lift, fixed = plan.lift, fixed or {}
        names = [name for name in (lift.frequencies, lift.centres) if name is not None]
        tables = [fixed[name] for name in names]
        for name, table in zip(names, tables, strict=True):
            wanted = (plan.in_features, lift.features // 2)
            if tuple(table.shape[1:]) != wanted:
                raise ValueError(f"{name} is {tuple(table.shape)}; the plan needs (fits, {wanted[0]}, {wanted[1]})")
        rows = [table.reshape(table.shape[0], -1).float() for table in tables]
        self.fixed = torch.cat(rows, dim=1).contiguous() if rows else None
        offsets, at = {}, 0
        for name, table in zip(names, tables, strict=True):
            offsets[name] = at
            at += table[0].numel()

        def place(name: str | None) -> int:
            return -1 if name is None else places[name]

        products = max(1, library.products) if _BACKWARDS.index(backward) else 0
        self._sizes: dict[tuple[int, int, int], int] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._layers = (_Layer * len(plan.layers))(
            *(
                _Layer(
                    layer.inputs, layer.outputs, place(layer.weight), place(layer.bias), place(layer.gain),
                    place(layer.shift), layer.omega, layer.eps, _ACTIVATIONS.index(layer.activation),
                    _NORMS.index(layer.norm), layer.norm_first, layer.skip,
                )
                for layer in plan.layers
            )
        )  # fmt: skip
        self._levels = (_Level * len(lift.levels))(
            *(_Level(v.rows, v.columns, v.features, v.entries, v.hashed, place(v.table)) for v in lift.levels)
        )
        self._plan = _Plan(
            abi=ABI, in_features=plan.in_features, out_features=plan.out_features, parameters=parameters,
            lift=_LIFTS.index(lift.kind), lift_features=lift.features,
            frequencies=offsets.get(lift.frequencies or "", -1), centres=offsets.get(lift.centres or "", -1),
            sigma=lift.sigma, octaves=lift.octaves, include_input=lift.include_input,
            levels=ctypes.addressof(self._levels), level_count=len(lift.levels),
            interpolation=_INTERPOLATIONS.index(lift.interpolation), corner=lift.alignment == "corner",
            row_axis=lift.row_axis, low=lift.low, high=lift.high,
            layers=ctypes.addressof(self._layers), layer_count=len(plan.layers), output=_OUTPUTS.index(plan.output),
            backward=products,
        )  # fmt: skip

    def steps(
        self,
        update: Update,
        rows: Rows,
        weights: Tensor,
        gradient: Tensor,
        rates: Tensor,
        *,
        loss: str = "MSE",
        delta: float = 1.0,
        moments: tuple[Tensor, Tensor] | None = None,
        average: Tensor | None = None,
        mask: Tensor | None = None,
        plateau: Tensor | None = None,
        plateau_base: Tensor | None = None,
        index: Tensor | None = None,
        count: int = 0,
        steps_per_epoch: int = 1,
        epoch_step: int = 0,
        threads: int = 1,
        interrupt: Callable[[], bool] = lambda: False,
    ) -> tuple[Tensor, int]:
        """S steps of all F fits, in place.

        Args:
            update: the rule; with ``gradient`` the weights stay and ``gradient`` is the result.
            rows: the samples.
            weights, gradient: (F, P) float32. Parameters that the plan does not name keep their gradient.
            rates: (F, S, 2) float64: learning rate, and the averaging weight c of schedule-free.
            loss, delta: ``MSE``, ``L1`` or ``Huber`` with its delta.
            moments: two (F, P): first and second of Adam; z and second of schedule-free.
            average: (F, P), the moving average, or None.
            mask: (F, P) of 0 and 1, or None.
            plateau: (F, 5) float64: best, bad, factor, total, steps; None without that schedule.
            plateau_base: (F,) learning rates that the plateau's factor works on.
            index: (F, S, B) int64, rows of each step; None: all N in every step.
            count: updates made before.
            steps_per_epoch, epoch_step: for the plateau.
            threads: how many to use at most; numbers do not depend on it.
            interrupt: asked ten times a second in long calls of one fit; True ends the call after the last whole step.

        Returns:
            (F, S) float32 losses, those of steps that were not made are NaN, and how many steps were made.

        Raises:
            ValueError: a tensor of another shape, type or layout, or an index outside the samples.
            MemoryError: no memory for the kernel's buffers.
        """
        fits, steps, channels = weights.shape[0], rates.shape[1], self.plan.out_features
        samples, dimensions = rows.targets.shape[1], self.plan.in_features
        batch = samples if index is None else index.shape[2]
        shared = rows.coordinates.shape[0] == 1
        _check("weights", weights, (fits, self.parameters))
        _check("gradient", gradient, (fits, self.parameters))
        _check("rates", rates, (fits, steps, 2), torch.float64)
        _check("coordinates", rows.coordinates, (1 if shared else fits, samples, dimensions))
        _check("targets", rows.targets, (fits, samples, channels))
        for name, tensor in (("sample weights", rows.weights),):
            if tensor is not None:
                _check(name, tensor, (fits, samples, channels))
        for name, tensor in (("average", average), ("mask", mask), *(("moment", m) for m in moments or ())):
            if tensor is not None:
                _check(name, tensor, (fits, self.parameters))
        if update.rule != "gradient" and moments is None:
            raise ValueError(f"the rule {update.rule} needs its two moments")
        if (update.average_decay is None) != (average is None):
            raise ValueError("give a moving average together with its decay")
        if (update.plateau is None) != (plateau is None) or (plateau is None) != (plateau_base is None):
            raise ValueError("give a plateau's state and rates together with its settings")
        if plateau is not None:
            _check("plateau", plateau, (fits, 5), torch.float64)
        if index is not None:
            _check("index", index, (fits, steps, batch), torch.int64)
            if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < samples):
                raise ValueError(f"index reaches from {int(index.min())} to {int(index.max())}, of {samples} samples")
        if self.fixed is not None and self.fixed.shape[0] != fits:
            raise ValueError(f"the fixed tensors are those of {self.fixed.shape[0]} fits, not of {fits}")
        losses = torch.full((fits, steps), torch.nan, dtype=torch.float64)
        done = torch.zeros(fits, dtype=torch.int64)
        if steps == 0 or batch == 0:
            raise ValueError(f"there is nothing to do in {steps} steps of {batch} samples")

        decay, threshold, min_lr, eps, patience = update.plateau or (1.0, 0.0, 0.0, 0.0, 0)
        settings = _Update(
            optimiser=_RULES.index(update.rule), beta1=update.betas[0], beta2=update.betas[1], eps=update.eps,
            weight_decay=update.weight_decay, clip_norm=update.clip_norm or 0.0,
            average_decay=update.average_decay or 0.0, plateau_decay=decay, plateau_threshold=threshold,
            plateau_min_lr=min_lr, plateau_eps=eps, plateau_patience=patience, steps_per_epoch=steps_per_epoch,
            epoch_step=epoch_step,
        )  # fmt: skip
        scratch = self._memory(fits, batch, threads)
        bases = [1.0] * fits if plateau_base is None else plateau_base.tolist()
        first, second = moments if moments is not None else (None, None)
        each = (_Fit * fits)(
            *(
                _Fit(
                    _at(rows.coordinates, 0 if shared else fit), _at(rows.targets, fit), _at(rows.weights, fit),
                    _at(self.fixed, fit), _at(index, fit), _at(weights, fit), _at(gradient, fit), _at(first, fit),
                    _at(second, fit), _at(average, fit), _at(mask, fit), _at(rates, fit), _at(plateau, fit),
                    _at(losses, fit), bases[fit], samples, count,
                )
                for fit in range(fits)
            )
        )  # fmt: skip

        def run(stop: Any) -> int:
            return self._call(
                "pixfit_steps", ctypes.byref(self._plan), ctypes.byref(settings), c_int64(_LOSSES.index(loss)),
                c_double(delta), each, c_int64(fits), c_int64(batch), c_int64(steps), c_int64(threads), *scratch, stop,
                c_void_p(done.data_ptr()),
            )  # fmt: skip

        # A stack is not interrupted: some of its fits would be some steps ahead of others.
        work = 3.0 * self.plan.products * batch * steps
        _interruptible(run, interrupt, short=fits > 1 or work < _SHORT)
        return losses.float(), int(done.min())

    def forward(self, weights: Tensor, coordinates: Tensor, fit: int = 0, *, threads: int = 1) -> Tensor:
        """Outputs (n, C) at coordinates (n, D) of one fit's weights (P); arguments and errors as of `steps`.

        ``fit`` says whose fixed tensors to use.
        """
        count = coordinates.shape[0]
        _check("weights", weights, (self.parameters,))
        _check("coordinates", coordinates, (count, self.plan.in_features))
        if self.fixed is not None and not 0 <= fit < self.fixed.shape[0]:
            raise ValueError(f"fit is {fit}; there are fixed tensors of {self.fixed.shape[0]} fits")
        outputs = torch.empty(count, self.plan.out_features)
        if count == 0:
            return outputs
        scratch = self._memory(1, count, threads)
        one = _Fit(
            coordinates=coordinates.data_ptr(), fixed=_at(self.fixed, fit), parameters=weights.data_ptr(), rows=count
        )
        self._call(
            "pixfit_forward", ctypes.byref(self._plan), ctypes.byref(one), c_int64(count),
            c_void_p(outputs.data_ptr()), c_int64(threads), *scratch, None,
        )  # fmt: skip
        return outputs

    def _memory(self, fits: int, samples: int, threads: int) -> tuple[c_void_p, c_int64]:
        """Scratch memory, kept from call to call."""
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be 1 or more")
        if (fits, samples, threads) not in self._sizes:
            plan = ctypes.byref(self._plan)
            needed = self.library.handle.pixfit_scratch(plan, c_int64(fits), c_int64(samples), c_int64(threads))
            if needed < 0:
                raise ValueError(f"the kernel refuses this plan: {self.plan}")
            self._sizes[fits, samples, threads] = needed
        needed = self._sizes[fits, samples, threads]
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return c_void_p(self._scratch.data_ptr()), c_int64(self._scratch.numel())

    def _call(self, name: str, *arguments: Any) -> int:
        code: int = getattr(self.library.handle, name)(*arguments)
        if code == _NO_MEMORY:
            raise MemoryError("there is not enough memory for the kernel's buffers; use smaller batches or fewer fits")
        if code not in (0, _STOPPED):
            raise ValueError(f"{name} of {self.library.path.name} refuses its arguments; the plan is {self.plan}")
        return code


def _at(tensor: Tensor | None, row: int) -> int | None:
    """The address of a row: plain arithmetic, since tensors of one row are made slowly."""
    return None if tensor is None else tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; the kernel needs {dtype} {shape}")
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.data_ptr() % tensor.element_size():
        raise ValueError(f"{name} is on {tensor.device} with strides {tensor.stride()}; give a contiguous CPU tensor")


def _interruptible(run: Callable[[Any], int], interrupt: Callable[[], bool], *, short: bool) -> None:
    """Runs compiled code so that Ctrl-C is heard: in this thread while it is short, else beside it."""
    stop = c_int32(0)
    if short:
        run(None)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="pixfit") as pool:
        future = pool.submit(run, ctypes.byref(stop))
        try:
            while not wait([future], timeout=_ASK).done:
                if interrupt():
                    stop.value = 1
        finally:
            stop.value = 1  # whatever went wrong here, the call ends before its tensors do
        future.result()
