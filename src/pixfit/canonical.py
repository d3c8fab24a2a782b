"""Canonical JSON: one text for one meaning, and the ids made from it.

Settings are frozen dataclasses. Their canonical form is a mapping with the class name under ``"kind"`` and every field
written out, defaults included, so that two programs that mean the same fit write the same bytes. This module only
encodes; `pixfit.modelfile` decodes, by a literal table.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import re
from typing import Any, TypeGuard

__all__ = ["SCHEMA", "digest", "is_number", "is_whole", "plain", "text"]

SCHEMA = 1
"""Version of the canonical form. It goes up when a field is added or renamed; `pixfit.store` then looks ids up under
every older version too, so that finished fits stay findable."""


def plain(value: Any) -> Any:
    """The canonical form of a value as JSON types.

    Integers and floats are told apart by the *annotation* of the dataclass field they stand in, so ``lr=1`` and
    ``lr=1.0`` are one setting. An object with a method ``canonical_value()`` is encoded as what that returns: a picture
    as its content hash, a parent fit as its id.

    Raises:
        ValueError: a float that is not finite (JSON has no word for it), or not whole where an integer belongs.
        TypeError: a value of a type that has no canonical form.
    """
    return _plain(value, annotation="", where="value")


def text(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, floats as their shortest round-trip text, −0.0 as 0.0."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any, *, length: int = 20) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(text(value).encode("ascii")).hexdigest()[:length]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a setting that is a number may hold the value: any finite int or float, but no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a setting that counts something may hold the value: an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any, annotation: str, where: str) -> Any:
    if hasattr(value, "canonical_value"):
        return _plain(value.canonical_value(), "", where)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (int, float)):
        return _number(value, set(re.findall(r"\w+", annotation)), where)
    if isinstance(value, dict):
        return {str(key): _plain(item, annotation, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, annotation, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        fields = {
            f.name: _plain(getattr(value, f.name), str(f.type), f"{kind}.{f.name}") for f in dataclasses.fields(value)
        }
        return {"kind": kind, **fields}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no canonical form; use settings, numbers, texts or lists"
    )


def _number(value: int | float, annotation: set[str], where: str) -> int | float:
    """The number in the type of its field, where that is one of the two."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; settings must be finite numbers")
    if "float" in annotation and "int" not in annotation:
        return float(value) + 0.0  # turns −0.0 into 0.0
    if "int" in annotation and "float" not in annotation:
        if value != int(value):
            raise ValueError(f"{where} is {value}; it must be a whole number")
        return int(value)
    return value + 0.0 if isinstance(value, float) else value
