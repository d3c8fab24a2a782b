"""What the native kernels are compiled from and for.

``setup.py`` runs this file by its path, before pixfit or torch can be imported: the standard library only.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import NamedTuple

__all__ = ["InstructionSet", "instruction_sets", "source_hash", "stem"]


class InstructionSet(NamedTuple):
    """One way to compile the kernels.

    Args:
        name: of the set, and of its source file.
        flags: of the compiler.
        needs: what ``/proc/cpuinfo`` lists for a processor that runs it.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_AVX2 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"])
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# Spelled out, because compilers of 2020 do not know the names x86-64-v3 and x86-64-v4.
_PLAIN = ("-march=x86-64",)
_THREE = (*_PLAIN, "-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-mfma", "-mlzcnt", "-mmovbe")
_FOUR = (*_THREE, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")

_SETS = {
    "x86_64": (
        InstructionSet("avx512bf16", (*_FOUR, "-mavx512bf16"), _AVX512 | {"avx512_bf16"}),
        InstructionSet("avx512", _FOUR, _AVX512),
        InstructionSet("avx2", _THREE, _AVX2),
        InstructionSet("baseline", _PLAIN, frozenset()),
    ),
    "aarch64": (InstructionSet("neon", (), frozenset()),),
}
_OTHERS = (InstructionSet("baseline", (), frozenset()),)
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


def instruction_sets(machine: str | None = None) -> tuple[InstructionSet, ...]:
    """The sets of a machine's architecture, as ``platform.machine()`` names it (by default this one's), best first."""
    name = (platform.machine() if machine is None else machine).lower()
    return _SETS.get(_SAME.get(name, name), _OTHERS)


def source_hash(folder: Path) -> str:
    """20 hexadecimal digits of the SHA-256 over names and contents of the C++ files in a folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.h"), *folder.glob("*.cpp")], key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:20]


def stem(name: str) -> str:
    """File name of the library for an instruction set, without the ending of extensions."""
    return f"_native_{name}"
