"""A device that is not there: tensors that say they lie on it, and that no operation mixes with tensors of the CPU.

A program that has never seen a GPU can show so that it keeps its tensors together. What is computed is computed on the
CPU, by torch's own code.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["ELSEWHERE", "Elsewhere"]

ELSEWHERE = torch.device("lazy", 0)
"""A kind of device that torch knows the name of, and that no build of it has."""

_CPU = torch.device("cpu")


class _Away(Tensor):
    """A tensor that says that it lies elsewhere; its numbers are in ``inner``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Away:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: _Away) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Elsewhere(contextlib.ExitStack):
    """While it is entered, tensors can be made `ELSEWHERE`. ``calls`` counts the operations that were done there."""

    calls = 0

    def __enter__(self) -> Elsewhere:
        super().__enter__()
        self.enter_context(_Functions())
        self.enter_context(_Operations(self))
        # What torch makes for devices that it has only: generators, and the types of autocast.
        generator, autocast, enabled = torch.Generator, torch.autocast, torch.is_autocast_enabled

        class Generator:  # a type, since torch makes unions of it
            def __new__(cls, device: torch.device | str = "cpu") -> Any:
                return generator(_real(device))

        self.enter_context(mock.patch("torch.Generator", Generator))
        self.enter_context(mock.patch("torch.autocast", lambda kind, *more, **named: autocast(
            "cpu" if kind == ELSEWHERE.type else kind, *more, **named
        )))  # fmt: skip
        self.enter_context(mock.patch("torch.is_autocast_enabled", lambda kind: enabled(
            "cpu" if kind == ELSEWHERE.type else kind
        )))  # fmt: skip
        return self


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:  # it asks no mode where it makes the tensor
            wanted = kwargs.pop("device")
            return func(*args, **kwargs).to(wanted)
        if func is Tensor.tolist and isinstance(args[0], _Away):  # which torch refuses of tensors that only say so
            return args[0].inner.tolist()
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __init__(self, counter: Elsewhere) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _run(func, args, kwargs or {})
        self.counter.calls += any(isinstance(one, _Away) for one in tree_flatten(made)[0])
        return made


def _real(device: torch.device | str) -> torch.device:
    chosen = torch.device(device)
    return _CPU if chosen.type == ELSEWHERE.type else chosen


_MIXES = {
    torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default,
}  # fmt: skip
"""What torch allows between a GPU and the CPU: copies, and indices that lie on the CPU."""


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, form = tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, Tensor)]
    away = any(isinstance(one, _Away) for one in tensors)
    here = any(not isinstance(one, _Away) and one.ndim > 0 and one.device == _CPU for one in tensors)
    if away and here and func not in _MIXES:
        raise RuntimeError(f"{func}: tensors on {ELSEWHERE} and on the CPU")
    wanted = kwargs.get("device")
    plain, given = tree_unflatten([one.inner if isinstance(one, _Away) else one for one in flat], form)
    if wanted is not None:
        away, given["device"] = torch.device(wanted).type == ELSEWHERE.type, _real(wanted)
    if func is torch.ops.aten._conj.default and away:  # the mark "to be conjugated" is seen above, and not in here
        func = torch.ops.aten.conj_physical.default
    out = func(*plain, **given)
    if not away:
        return out
    own = {id(one.inner): one for one in tensors if isinstance(one, _Away)}
    parts, shape = tree_flatten(out)

    def placed(part: Any) -> Any:
        return own[id(part)] if id(part) in own else _Away(part) if isinstance(part, Tensor) else part

    return tree_unflatten([placed(part) for part in parts], shape)
