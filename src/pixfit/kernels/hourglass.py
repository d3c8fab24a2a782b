"""A whole hourglass, compiled, for CPUs.

Torch makes some hundreds of operations of a step, each of which reads and writes maps that were near a moment ago, and
the way there costs as much again. Here a step is two calls. Under ``torch.autocast`` in bfloat16 the operands of
convolutions are rounded to it, by processors that multiply such numbers; all else stays in float32. Other devices and
other precisions are left to torch.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pixfit.kernels import library
from pixfit.kernels.library import Library

__all__ = ["HourglassShape", "fast_maps", "hourglass_pixels", "maps_library", "maps_name"]

_NO_MEMORY = 3
_free = threading.local()


class HourglassShape(NamedTuple):
    """What an hourglass is besides its weights, see `pixfit.models.Hourglass`. ``levels``: (down, up, skip) each."""

    levels: tuple[tuple[int, int, int], ...]
    kernels: tuple[int, int, int]
    mix: bool
    nearest: bool
    reflect: bool
    slope: float
    out_features: int
    sigmoid: bool
    eps: float = 1e-5


def hourglass_pixels(
    code: Tensor,
    parameters: Sequence[Tensor],
    shape: HourglassShape,
    plain: Callable[[Tensor], Tensor],
    threads: int | None = None,
) -> Tensor:
    """The pixels (h·w, C) of a code (D, h, w), by compiled code where that serves, else by ``plain``.

    It serves float32 on a CPU, where a library was built and ``PIXFIT_KERNEL`` is not ``torch``, and bfloat16 where
    `maps_library` has a library for that. The biases of
    convolutions change nothing, since a norm follows on each; compiled code gives them no gradient, where torch gives
    them rounding errors. It has no second derivatives.

    Args:
        parameters: of the levels and of the colours, in the order of the module. Or one row of them all, whose gradient
            is then asked for: torch needs a millisecond for a hundred tensors.
        plain: the same in torch, with the same parameters.
        threads: at most; None: as many as torch has. Numbers do not depend on how many.

    Raises:
        ValueError: parameters that are not those of the shape, or a row where compiled code does not serve.
    """
    precision = _precision()
    found = maps_library(precision) if precision and all(map(_plain_float, (code, *parameters))) else None
    if found is None:
        if len(parameters) == 1:
            raise ValueError("a row of all parameters is for compiled code, which does not serve here")
        return plain(code)
    call = _Call(found, shape, threads or torch.get_num_threads(), found.products if precision == "bfloat16" else 0)
    return cast(Tensor, _Pixels.apply(call, code, *parameters))  # type: ignore[no-untyped-call]


def _precision() -> str | None:
    """What torch would compute a CPU's convolutions in; None: compiled code has no such numbers."""
    if not torch.is_autocast_enabled("cpu"):
        return "float32"
    return "bfloat16" if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None


def _plain_float(tensor: Tensor) -> bool:
    """Whether it has numbers that compiled code can read; a tensor that only tells what is done to it has none."""
    return tensor.is_cpu and tensor.dtype == torch.float32 and type(tensor) in (Tensor, torch.nn.Parameter)


def maps_library(precision: str = "float32") -> Library | None:
    """The library that hourglasses, called maps in the name of their kernel, would be computed by; None: torch.

    Raises:
        ValueError: as `pixfit.kernels.library.load`.
    """
    found = _library(os.environ.get("PIXFIT_KERNEL"), os.environ.get("PIXFIT_LIBRARY_DIR"))
    serves = precision == "float32" or (precision == "bfloat16" and found is not None and found.products)
    return found if serves else None


def fast_maps() -> bool:
    """Whether compiled hourglasses are faster in bfloat16 than in float32 here.

    Raises:
        ValueError: as `pixfit.kernels.library.load`.
    """
    found = maps_library("bfloat16")
    return found is not None and found.fast_bfloat16


def maps_name(found: Library, precision: str) -> str:
    """What results call the kernel of an hourglass."""
    means = ("", "-bfloat16", "-amx")[found.products if precision == "bfloat16" else 0]
    return f"maps-{found.isa}{means}"


@functools.cache
def _library(kernel: str | None, folder: str | None) -> Library | None:
    """As the two variables of the environment have it; they are looked at in each step."""
    return library.load()


class _Level(Structure):
    _fields_ = tuple((name, c_int64) for name in ("down", "up", "skip"))


class _Hourglass(Structure):
    _fields_ = (
        *((name, c_int64) for name in (
            "height", "width", "inputs", "outputs", "down_kernel", "up_kernel", "skip_kernel", "mix", "nearest",
            "reflect", "sigmoid", "threads", "products",
        )),
        ("eps", c_double), ("slope", c_double), ("levels", POINTER(_Level)), ("level_count", c_int64),
    )  # fmt: skip


class _Loan:
    """Memory for one pass forward and back. When both are over, or forgotten, the next pass of the thread takes it:
    new memory of this size costs as much as half of the work that is done in it."""

    def __init__(self, floats: int) -> None:
        self._shelf: list[Tensor] = _free.__dict__.setdefault("shelf", [])
        fitting = [place for place, one in enumerate(self._shelf) if one.numel() == floats]
        self.memory: Tensor | None = None  # what follows may find none
        self.memory = self._shelf.pop(fitting[0]) if fitting else torch.empty(floats, dtype=torch.float32)

    def __del__(self) -> None:
        if self.memory is not None:
            self._shelf[1:] = []
            self._shelf.insert(0, self.memory)


class _Call(NamedTuple):
    found: Library
    shape: HourglassShape
    threads: int
    products: int  # PixfitProducts of native/api.h


class _Pixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, code: Tensor, *parameters: Tensor) -> Tensor:
        code = code.permute(1, 2, 0).contiguous()
        own = [one.contiguous() for one in parameters]
        net, floats = _net(call, code, own)
        loan = _Loan(floats)
        pixels = torch.empty(code.shape[0] * code.shape[1], call.shape.out_features, dtype=torch.float32)
        _run(call.found, "pixfit_hourglass", net, code, _pointers(own, call.shape, code), pixels, loan.memory)
        ctx.save_for_backward(code, *own)
        ctx.call, ctx.loan = call, loan
        return pixels

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "compiled hourglasses have no second derivatives; torch has: set PIXFIT_KERNEL=torch"
            )
        code, *parameters = ctx.saved_tensors
        dy = dy.contiguous()
        call = ctx.call
        net, _ = _net(call, code, parameters)
        dcode = torch.empty_like(code) if ctx.needs_input_grad[1] else None
        row = torch.empty(sum(one.numel() for one in parameters), dtype=torch.float32)
        _run(
            call.found, "pixfit_hourglass_back", net, dy, _pointers(parameters, call.shape, code), dcode,
            _pointers([row], call.shape, code), ctx.loan.memory,
        )  # fmt: skip
        parts = torch.split(row, [one.numel() for one in parameters])
        gradients = [part.view(one.shape) for part, one in zip(parts, parameters, strict=True)]
        return None, None if dcode is None else dcode.permute(2, 0, 1), *gradients


def _net(call: _Call, code: Tensor, parameters: Sequence[Tensor]) -> tuple[_Hourglass, int]:
    """The hourglass as compiled code knows it, and the floats of memory that it needs."""
    shape, (height, width, inputs) = call.shape, code.shape
    sizes = _sizes(shape, inputs)
    if [one.numel() for one in parameters] not in (sizes, [sum(sizes)]):
        raise ValueError(
            f"{len(parameters)} parameters on a code {(inputs, height, width)} are not an hourglass of {shape}"
        )
    levels = (_Level * len(shape.levels))(*(_Level(*level) for level in shape.levels))
    net = _Hourglass(
        height, width, inputs, shape.out_features, *shape.kernels, shape.mix, shape.nearest, shape.reflect,
        shape.sigmoid, call.threads, call.products,
        shape.eps, shape.slope, levels, len(levels),
    )  # fmt: skip
    count = c_int64()
    floats = call.found.handle.pixfit_hourglass_memory(ctypes.byref(net), ctypes.byref(count))
    if floats < 0 or count.value != len(sizes):
        raise ValueError(f"{shape} cannot be on a code {(inputs, height, width)}")
    return net, floats


@functools.cache
def _sizes(shape: HourglassShape, inputs: int) -> list[int]:
    """Numbers of each parameter, in the order of the module."""
    sizes: list[int] = []
    down_kernel, up_kernel, skip_kernel = shape.kernels

    def block(features: int, outputs: int, kernel: int) -> None:
        sizes.extend((features * outputs * kernel**2, outputs, outputs, outputs))

    for number, (down, up, skip) in enumerate(shape.levels):
        below = shape.levels[number + 1][1] if number + 1 < len(shape.levels) else down
        if skip:
            block(inputs, skip, skip_kernel)
        block(inputs, down, down_kernel)
        block(down, down, down_kernel)
        sizes.extend((skip + below, skip + below))
        block(skip + below, up, up_kernel)
        if shape.mix:
            block(up, up, 1)
        inputs = down
    top = shape.levels[0][1]
    return [*sizes, top * shape.out_features, shape.out_features]


def _pointers(tensors: Sequence[Tensor], shape: HourglassShape, code: Tensor) -> Any:
    """To each parameter, of tensors of one each, or of one row of all."""
    if len(tensors) == 1:
        sizes = _sizes(shape, code.shape[2])
        first, width = tensors[0].data_ptr(), tensors[0].element_size()
        places = [first + width * start for start in itertools.accumulate(sizes[:-1], initial=0)]
    else:
        places = [tensor.data_ptr() for tensor in tensors]
    return (c_void_p * len(places))(*places)


def _run(found: Library, name: str, net: _Hourglass, *given: Any) -> None:
    memory = given[-1]
    pointers = (c_void_p(one.data_ptr()) if isinstance(one, Tensor) else one for one in given)
    code = getattr(found.handle, name)(ctypes.byref(net), *pointers, c_int64(memory.numel()))
    if code == _NO_MEMORY:
        raise MemoryError(f"{name} of {found.path.name} found no memory")
    if code:
        raise ValueError(f"{name} of {found.path.name} refuses its arguments")
