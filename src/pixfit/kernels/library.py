"""The compiled kernels: which instruction set this processor runs, whether a library is fit for use, and why not.

Two environment variables: ``PIXFIT_KERNEL`` names the instruction set, or ``torch`` for none; ``PIXFIT_LIBRARY_DIR`` is
a folder of libraries compiled in another way from the same sources, for sanitizers.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from dataclasses import dataclass
from pathlib import Path

from pixfit.kernels import sources

__all__ = ["ABI", "Library", "isas", "load", "refused", "why"]

ABI = 4  # of native/api.h

_FOLDER = Path(__file__).parent
_REMEDY = "with a C++ compiler at hand, run `make venv`, or `pip install` pixfit again"


@dataclass(frozen=True)
class Library:
    """Kernels for one instruction set, checked and ready to call.

    Args:
        isa: ``avx512bf16``, ``avx512``, ``avx2``, ``neon`` or ``baseline``.
        path: of the file.
        compiler: name and version.
        handle: see native/api.h for its functions.
    """

    isa: str
    path: Path
    compiler: str
    handle: ctypes.CDLL

    @property
    def products(self) -> int:
        """How it multiplies bfloat16, a PixfitProducts of native/api.h: 0 not at all, 1 by dot products of vectors,
        2 by matrix units (AMX), which the system is asked for at the first call."""
        return int(self.handle.pixfit_products())

    @property
    def fast_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 faster than float32, so that the precisions with it pay.

        Matrix units do, at many times the rate. Of dot products those of AMD's processors have twice the rate of
        float32, and Intel's half of it (a Xeon: 121 against 242 GFLOP/s a core, measured).
        """
        return self.products == 2 or (self.products == 1 and _listed("vendor_id") == ("AuthenticAMD",))

    def peak(self, seconds: float = 0.2, *, bfloat16: bool = False) -> float:
        """GFLOP/s of multiply-adds between registers, on the calling thread, measured for about that long."""
        return float(self.handle.pixfit_peak(seconds, int(bfloat16)))

    def sincos_time(self, seconds: float = 0.2) -> float:
        """Nanoseconds of one sine with its cosine, in cache, on the calling thread."""
        return float(self.handle.pixfit_sincos_time(seconds))


def isas() -> tuple[str, ...]:
    """The instruction sets that can be used here, best first; empty where no library was built."""
    return tuple(name for name, found in _candidates().items() if isinstance(found, Library))


def refused() -> dict[str, str]:
    """The other instruction sets of this machine's architecture, and what is against each."""
    return {name: found for name, found in _candidates().items() if isinstance(found, str)}


def load(isa: str | None = None) -> Library | None:
    """The kernels to run, or None where torch is to do the work.

    Args:
        isa: one of `isas`, or ``torch``; None: what ``PIXFIT_KERNEL`` names, or else the best.

    Raises:
        ValueError: that instruction set is unknown or cannot be used here, or ``PIXFIT_LIBRARY_DIR`` is no folder.
    """
    asked = isa or os.environ.get("PIXFIT_KERNEL") or next(iter(isas()), "torch")
    if asked == "torch":
        return None
    found = _candidates().get(asked, "no such kernel is known for this architecture")
    if isinstance(found, Library):
        return found
    name = "isa" if isa else "PIXFIT_KERNEL"
    raise ValueError(f"{name}={asked}: {found}; it can be {', '.join((*isas(), 'torch'))} here")


def why() -> str:
    """Why `load` gives what it gives, in a sentence; where torch runs for want of a library, also what to do.

    Raises:
        ValueError: as `load`.
    """
    library = load()
    if os.environ.get("PIXFIT_KERNEL"):
        return "asked for by PIXFIT_KERNEL"
    if library is not None:
        best = next(iter(_candidates())) == library.isa
        return "the best of this architecture" if best else "the best that can be used here"
    return f"{list(refused().values())[-1]}; {_REMEDY}"  # the last is the set that every processor runs


def _candidates() -> dict[str, Library | str]:
    """Every instruction set of this architecture, best first, with its library or what is against it."""
    folder = Path(os.environ.get("PIXFIT_LIBRARY_DIR") or _FOLDER).resolve()
    if not folder.is_dir():
        raise ValueError(f"PIXFIT_LIBRARY_DIR={folder} is not a folder")
    return {choice.name: _open(folder, choice) for choice in sources.instruction_sets()}


@functools.cache
def _open(folder: Path, choice: sources.InstructionSet) -> Library | str:
    """One library, or what is against it. The processor is asked before any code compiled for more than it has runs."""
    lacking = sorted(choice.needs - _processor())
    if lacking:
        return f"this processor has no {', '.join(lacking)}"
    path = folder / f"{sources.stem(choice.name)}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    if not path.exists():
        return "not built: no compiler worked when pixfit was installed"
    try:
        handle = ctypes.CDLL(str(path))
        handle.pixfit_abi.restype = ctypes.c_int64
        handle.pixfit_isa.restype = ctypes.c_char_p
        abi, compiled_for = handle.pixfit_abi(), handle.pixfit_isa().decode()
        if abi != ABI or compiled_for != choice.name:
            return f"{path.name} is {compiled_for} with ABI {abi}, not {choice.name} with ABI {ABI}"
        handle.pixfit_supported.restype = handle.pixfit_scratch.restype = ctypes.c_int64
        handle.pixfit_hourglass_memory.restype = handle.pixfit_products.restype = ctypes.c_int64
        handle.pixfit_source_hash.restype = handle.pixfit_compiler.restype = ctypes.c_char_p
        handle.pixfit_peak.restype = handle.pixfit_sincos_time.restype = ctypes.c_double
        handle.pixfit_peak.argtypes = [ctypes.c_double, ctypes.c_int64]
        handle.pixfit_sincos_time.argtypes = [ctypes.c_double]
    except (OSError, AttributeError) as error:
        return f"{path.name} does not load ({error})"
    if handle.pixfit_source_hash().decode() != _hash():
        return "built from other sources than those beside it"
    if not handle.pixfit_supported():
        return "this processor, or its operating system, does not run it"
    version = handle.pixfit_compiler().decode()
    return Library(choice.name, path, f"GCC {version}" if version[:1].isdigit() else version, handle)


@functools.cache
def _hash() -> str:
    return sources.source_hash(_FOLDER / "native")


def _processor() -> frozenset[str]:
    """What the processor can do, as Linux lists it; nothing elsewhere, so that only what needs nothing is used."""
    return frozenset(_listed("flags"))


@functools.cache
def _listed(wanted: str) -> tuple[str, ...]:
    """The words that Linux lists under this name for the first processor; none elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return ()
    lines = (line.partition(":") for line in text.splitlines())
    return next((tuple(value.split()) for name, _, value in lines if name.strip() == wanted), ())
