"""Read a pickled dictionary of arrays, numbers and strings without running it.

A pickle is a program. Even with ``find_class`` closed, Python's own reader can be made to fill the memory (nine bytes
suffice: a huge memo index) or to crash (the hash of a deeply nested tuple). So the program is only looked at here, one
instruction at a time, and those few that build plain values are carried out.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixfit.images.image import ImageError

__all__ = ["MAX_INSTRUCTIONS", "read_pickle"]

MAX_INSTRUCTIONS = 2_000_000  # a batch of 10,000 pictures with file names has up to 80,000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_OLD_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Python 2's str: bytes
_STORE = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GLOBALS = {
    "_codecs.encode": "bytes",
    **{f"{module}.bytes": "bytes" for module in ("__builtin__", "builtins")},  # b"" in old protocols
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    **{f"numpy.{core}.multiarray._reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "buffer" for core in ("core", "_core")},
}
"""What a pickle may name, and what is understood by it. None of these is ever called."""


class _Mark:
    """Where a group of values begins on the stack."""


@dataclass(frozen=True)
class _Global:
    meaning: str


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str = "="


@dataclass(eq=False)
class _Array:
    """An array whose shape and samples come in a later instruction."""

    value: np.ndarray[Any, Any] | None = None


def read_pickle(data: bytes) -> dict[str, Any]:
    """The dictionary that a pickle of any protocol holds, with all keys as text.

    Values are None, bool, int, float, str, bytes, tuples, lists and dictionaries; a value that is an array (of bool,
    int or float) comes as a read-only numpy array. What Python 2 wrote as ``str`` comes as bytes.

    Raises:
        ImageError: damaged, larger than it says, not a dictionary, or a pickle that asks for anything else; the message
            names what.
    """
    try:
        found = _Reader(len(data)).read(data)
        return _with_text_keys(found)
    except ImageError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError(f"is a damaged pickle, or none ({reason})") from error


class _Reader:
    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._encodable = size  # so that a short pickle cannot multiply one long string

    def read(self, data: bytes) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if count == MAX_INSTRUCTIONS:
                raise ImageError(f"is a pickle of more than {MAX_INSTRUCTIONS} instructions, which is not read")
            self._carry_out(instruction.name, argument)
        if len(self._stack) != 1:
            raise ValueError(f"{len(self._stack)} values at the end")
        return self._stack[0]

    def _carry_out(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _STORE:
            self._memo[argument] = stack[-1]
        elif name in _FETCH:
            stack.append(self._memo[argument])
        elif name in _OLD_STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_Mark())
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "TUPLE":
            stack.append(tuple(self._group()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "LIST":
            stack.append(self._group())
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._group()
            _typed(stack[-1], list).extend(items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "DICT":
            stack.append(_pairs(self._group()))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._group()
            _typed(stack[-1], dict).update(_pairs(items))
        elif name == "GLOBAL":
            stack.append(_named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            stack.append(_named(f"{_typed(module, str)}.{_typed(attribute, str)}"))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._made(_typed(function, _Global).meaning, _typed(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self._pop(1)
            _complete(stack[-1], _typed(state, tuple))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ImageError(f"is a pickle with the instruction {name}, which is not read; nothing of it was executed")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count or any(isinstance(item, _Mark) for item in self._stack[-count:]):
            raise ValueError("a value is missing")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _group(self) -> list[Any]:
        """All values above the last mark, which goes too."""
        items: list[Any] = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        items.reverse()
        return items

    def _made(self, meaning: str, arguments: tuple[Any, ...]) -> Any:
        """What stands for the object that the call of a global would have made."""
        match meaning, arguments:
            case "bytes", (str() as text, str("latin1" | "latin-1")):
                self._encodable -= len(text)
                if self._encodable < 0:
                    raise ImageError("is a pickle that unpacks to more than its own size, which is not read")
                return text.encode("latin-1")
            case "bytes", ():
                return b""
            case "dtype", (str() as code, *_):
                return _Dtype(code)
            case "dtype", (bytes() as code, *_):
                return _Dtype(code.decode("ascii"))
            case "array", (_Global("ndarray"), *_):
                return _Array()
            case "buffer", ((bytes() | bytearray()) as samples, _Dtype() as dtype, tuple() as shape, str() as order):
                return _Array(_array(samples, dtype, shape, order == "F"))
        raise ValueError(f"{meaning} of something else than in an array's pickle")


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__.strip('_')} where {kind.__name__.strip('_')} belongs")
    return value


def _pairs(items: list[Any]) -> dict[str | bytes, Any]:
    keys, values = items[::2], items[1::2]
    if not all(isinstance(key, str | bytes) for key in keys):
        raise ImageError("is a pickle of a dictionary whose keys are not all text, which is not read")
    return dict(zip(keys, values, strict=True))


def _named(name: str) -> _Global:
    if name not in _GLOBALS:
        shown = "".join(character if character.isprintable() else "?" for character in name[:80])
        raise ImageError(f"is a pickle that asks for {shown}, which is not read; nothing of it was executed")
    return _Global(_GLOBALS[name])


def _complete(target: Any, state: tuple[Any, ...]) -> None:
    match target, state:
        case _Dtype(), (int(), str() | bytes() as order, None, None, None, *_):
            target.order = order if isinstance(order, str) else order.decode("ascii")
        case _Array(value=None), (
            int(),
            tuple() as shape,
            _Dtype() as dtype,
            bool() | int() as fortran,
            bytes() as raw,
        ):
            target.value = _array(raw, dtype, shape, bool(fortran))
        case _:
            raise ImageError("is a pickle with an array of objects or records, which is not read; save plain numbers")


def _array(samples: bytes | bytearray, dtype: _Dtype, shape: tuple[Any, ...], fortran: bool) -> np.ndarray[Any, Any]:
    """A view of the samples: nothing is allocated, so a false shape costs nothing."""
    kind, width = dtype.code[:1], dtype.code[1:]
    if kind not in ("b", "u", "i", "f") or width not in ("1", "2", "4", "8") or dtype.order not in ("|", "<", ">", "="):
        raise ImageError(
            f"is a pickle with an array of type {dtype.code[:20]!r}, which is not read; save plain numbers"
        )
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array's shape is no shape")
    if math.prod(shape) * int(width) != len(samples):
        raise ValueError(f"an array of {len(samples)} bytes does not fill its shape")
    view = np.frombuffer(samples, np.dtype(dtype.order + dtype.code)).reshape(shape, order="F" if fortran else "C")
    view.flags.writeable = False
    return view


def _with_text_keys(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ImageError(f"is a pickle of {type(found).__name__.strip('_')}, not of a dictionary")
    texts = [key if isinstance(key, str) else key.decode("latin-1") for key in found]
    if len(set(texts)) != len(texts):
        raise ImageError("is a pickle of a dictionary that holds a key twice, as bytes and as text")
    values = (value.value if isinstance(value, _Array) else value for value in found.values())
    return dict(zip(texts, values, strict=True))
