"""What the benchmarks share: the limits of the machine, interleaved medians, options, tables and baselines.

Times are processor seconds of this process (user and system, all threads), so that other programs disturb them less;
they still take turns with the caches and the clock rate, so ratios and shares of one run are what to compare.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from pixfit.kernels import Plan
from pixfit.kernels.library import Library

__all__ = ["Machine", "Row", "Run", "elementary", "limit", "machine", "medians", "options", "parse", "report", "row"]

Run = Callable[[int], float]
"""Does the work of so many epochs and returns the seconds that it took."""

Row = dict[str, Any]
"""``size``, ``path``, ``us_per_epoch``, ``ratio`` over plain, ``share_of_limit`` (or None), and what a script adds."""

_SLOWER = 0.15  # fraction by which a row may be slower than its baseline
_ROUNDS = 8  # that are aimed at
_BYTES = 2**23  # of an array that does not fit in the cache of one core


@dataclass(frozen=True)
class Machine:
    """Limits of one core, one thread; None where no compiled kernel is there to measure them.

    Args:
        processor, torch: names and versions.
        kernel, compiler: of the compiled kernel in use.
        peak_fp32_gflops, peak_bf16_gflops: multiply-adds between registers, each counted as two; bf16 is 0 where the
            instruction set has none.
        sincos_ns: one sine with its cosine.
        torch_mm_gflops: ``torch.mm`` of two float32 matrices of side 1024.
        memory_gb_s: ``torch.add`` of arrays of 8 MiB, read and written.
    """

    processor: str
    torch: str
    kernel: str | None
    compiler: str | None
    peak_fp32_gflops: float | None
    peak_bf16_gflops: float | None
    sincos_ns: float | None
    torch_mm_gflops: float
    memory_gb_s: float


def machine(library: Library | None, seconds: float) -> Machine:
    """Measures the limits for about that long.

    After the paths, not before: large arrays, once freed, make the C library keep memory, which speeds plain torch up.
    """
    part = seconds / 5
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    x, y = torch.rand(_BYTES // 4), torch.rand(_BYTES // 4)
    z = torch.empty_like(x)
    found: dict[str, Any] = {
        "processor": _processor(),
        "torch": torch.__version__,
        "torch_mm_gflops": 2e-9 * 1024**3 / _median(lambda: torch.mm(a, b), part),
        "memory_gb_s": 3e-9 * _BYTES / _median(lambda: torch.add(x, y, out=z), part),
    }
    if library is None:
        return Machine(
            **found, kernel=None, compiler=None, peak_fp32_gflops=None, peak_bf16_gflops=None, sincos_ns=None
        )
    return Machine(
        **found,
        kernel=library.isa,
        compiler=library.compiler,
        peak_fp32_gflops=library.peak(part),
        peak_bf16_gflops=library.peak(part, bfloat16=True),
        sincos_ns=library.sincos_time(part),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _median(work: Callable[[], object], seconds: float) -> float:
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def medians(runs: Mapping[str, Run], seconds: float) -> dict[str, float]:
    """Seconds per epoch of each, from rounds over all of them: what disturbs the machine disturbs all alike.

    Takes about ``seconds`` of wall time, but never less than two rounds. The first warms up, and counts only where
    there are no more than these two.
    """
    end = time.perf_counter() + seconds
    turn = seconds / (_ROUNDS * len(runs))
    epochs = dict.fromkeys(runs, 1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in itertools.count(1):
        begin = time.perf_counter()
        for name, run in runs.items():
            started = time.perf_counter()
            times[name].append(run(epochs[name]) / epochs[name])
            epochs[name] = max(1, int(turn * epochs[name] / (time.perf_counter() - started)))
        now = time.perf_counter()
        if round_number >= 2 and now + (now - begin) > end:
            break
    return {name: statistics.median(found[1:] if len(found) > 2 else found) for name, found in times.items()}


def elementary(plan: Plan) -> int:
    """Elementary functions of a sample: pairs of sine and cosine, activations and envelopes with an exponential."""
    half = plan.lift.features // 2
    lifted = {"fourier": half, "gabor": 2 * half, "positional": plan.in_features * plan.lift.octaves}
    curved = [layer.outputs for layer in plan.layers if layer.activation not in ("none", "relu")]
    return lifted.get(plan.lift.kind, 0) + sum(curved)


def limit(
    found: Machine, plan: Plan, samples: int, *, forward_only: bool = False, products_only: bool = False
) -> float:
    """Microseconds that a training step on so many samples takes at the least in float32; NaN where it is not known.

    The products at the peak rate and then the elementary functions, without overlap. A step has three products a layer,
    forward, for the weights and for the layer's input, but for the input of the first layer where nothing is trained
    before it. Each elementary function counts as a sine with its cosine; norms, loss and update do not count.
    """
    if found.peak_fp32_gflops is None or found.sincos_ns is None:
        return math.nan
    products = plan.products
    if not forward_only:
        fixed = 0 if plan.lift.kind == "grid" else plan.layers[0].inputs * plan.layers[0].outputs
        products = 3 * products - fixed
    us = 2e-3 * products * samples / found.peak_fp32_gflops
    return us if products_only else us + 1e-3 * samples * elementary(plan) * found.sincos_ns


def row(size: str, path: str, seconds: float, plain: float, limit_us: float, **more: Any) -> Row:
    """Of a path that takes ``seconds`` an epoch, where the plain loop takes ``plain``."""
    us = 1e6 * seconds
    share = None if math.isnan(limit_us) else round(limit_us / us, 4)
    return {
        "size": size, "path": path, "us_per_epoch": round(us, 2), "ratio": round(plain / seconds, 3),
        "share_of_limit": share, **more,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ options, tables


def options(description: str, examples: Sequence[str], *, seconds: float) -> argparse.ArgumentParser:
    """A parser with what every script takes; `parse` reads it."""
    epilog = "examples:\n" + "\n".join(f"  python benchmarks/{example}" for example in examples)
    parser = argparse.ArgumentParser(
        description=textwrap.fill(description, 100), epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=_positive, default=seconds, help=f"wall time of the whole, by default {seconds:g}"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout, the table on stderr")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON there too, as a baseline")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with what --save wrote")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit with 1 where a row is over {_SLOWER:.0%}% slower than the baseline"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a time; give seconds above 0")
    return value


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the baseline read (None where there is none); one thread from here on."""
    given = parser.parse_args(arguments)
    if given.strict and given.baseline is None:
        parser.error("--strict compares with a baseline; give --baseline FILE")
    if given.baseline is not None:
        try:
            given.baseline = json.loads(given.baseline.read_text("utf-8"))
            _times(given.baseline["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--baseline: not a file that --save wrote ({error!r})")
    if given.save is not None and not given.save.resolve().parent.is_dir():
        parser.error(f"--save: {given.save.resolve().parent} is not a folder")
    torch.set_num_threads(1)
    return given


def report(given: argparse.Namespace, found: Machine, rows: Sequence[Row], notes: Sequence[str] = ()) -> int:
    """Prints, saves and compares as the options say. The exit code."""
    document = {"machine": asdict(found), "rows": list(rows)}
    text = json.dumps(document, indent=1, allow_nan=False)
    out = sys.stderr if given.json else sys.stdout
    limits = {name: value for name, value in asdict(found).items() if value is not None}
    print(", ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in limits.items()), file=out)
    _print_table(rows, out)
    for note in notes:
        print(note, file=out)
    if given.save is not None:
        given.save.write_text(text + "\n", "utf-8")
    slower = False if given.baseline is None else _compare(given.baseline, document, out)
    if given.json:
        print(text)
    return 1 if slower and given.strict else 0


def _print_table(rows: Sequence[Row], out: TextIO) -> None:
    """A line a size: µs per epoch (times as fast as plain, share of the limit) of each path."""
    sizes, names = list(dict.fromkeys(r["size"] for r in rows)), list(dict.fromkeys(r["path"] for r in rows))
    cells = [["µs per epoch", "limit", *names]]
    for size in sizes:
        here = {r["path"]: r for r in rows if r["size"] == size}
        shares = [r["share_of_limit"] * r["us_per_epoch"] for r in here.values() if r["share_of_limit"] is not None]
        line = [size, f"{statistics.median(shares):.0f}" if shares else "-"]
        for name in names:
            if name not in here:
                line.append("-")
                continue
            r = here[name]
            share = "" if r["share_of_limit"] is None else f" {r['share_of_limit']:.0%}"
            line.append(f"{r['us_per_epoch']:.{0 if r['us_per_epoch'] >= 100 else 1}f} {r['ratio']:.2f}x{share}")
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *padded]), file=out)


def _times(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    return {(r["size"], r["path"]): float(r["us_per_epoch"]) for r in rows}


def _compare(baseline: Mapping[str, Any], document: Mapping[str, Any], out: TextIO) -> bool:
    """Prints the change of every row; whether one is much slower."""
    before, after = _times(baseline["rows"]), _times(document["rows"])
    slower = False
    for name in ("processor", "kernel", "torch"):
        old, new = baseline["machine"].get(name), document["machine"][name]
        if old != new:
            print(f"the baseline has another {name}: {old}, now {new}", file=out)
    for (size, path), us in after.items():
        if (size, path) not in before:
            print(f"{size} {path}: {us:.1f} µs, not in the baseline", file=out)
            continue
        change = us / before[size, path] - 1
        much = change > _SLOWER
        slower = slower or much
        print(
            f"{size} {path}: {before[size, path]:.1f} to {us:.1f} µs, {change:+.1%}{' SLOWER' if much else ''}",
            file=out,
        )
    for size, path in sorted(set(before) - set(after)):
        print(f"{size} {path}: in the baseline alone", file=out)
    return slower
