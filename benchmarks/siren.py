"""SIREN on a 32 by 32 picture, all pixels in a step: the plain loop, pixfit with torch, and the fused kernel."""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from collections.abc import Sequence

import measure
import paths

from pixfit.kernels import library
from pixfit.kernels.library import Library
from pixfit.models import Siren

__all__ = ["BIG", "MANY", "main", "parse_sizes"]

MANY = paths.Task("16 fits of 4x64", Siren(hidden_layers=4, hidden_features=64))
BIG = paths.Task("4x256 on 256x256", Siren(hidden_layers=4, hidden_features=256), side=256)

_EXAMPLES = (
    "siren.py --sizes 2x32,4x128 --seconds 40 --json",
    "siren.py --save before.json",
    "siren.py --baseline before.json --strict",
    "siren.py --threads",
)
_PAIRS = 5


def parse_sizes(text: str) -> list[paths.Task]:
    """SIRENs of sizes such as ``2x32,4x128``: hidden-to-hidden maps and width."""
    tasks = []
    for size in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)", size.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{size!r} is not a size; give hidden layers x width, such as 2x32,4x128")
        try:
            model = Siren(hidden_layers=int(match[1]), hidden_features=int(match[2]))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        tasks.append(paths.Task(match[0], model))
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = measure.options(
        "µs per epoch of a fit (times as fast as the plain loop, share of the float32 limit). An epoch is one step on "
        "1,024 pixels; 4x64 is 4 hidden-to-hidden maps of width 64.",
        _EXAMPLES,
        seconds=40.0,
    )
    parser.add_argument("--sizes", type=parse_sizes, default="2x32,4x64,4x128,4x256,6x512", help="default %(default)s")
    parser.add_argument(
        "--engine", action="store_true", help="also pixfit's whole training loop with the kernel that it chooses"
    )
    parser.add_argument(
        "--threads",
        action="store_true",
        help="instead: wall time with two threads against one, of 16 fits of 4x64 and of 4x256 on 256 by 256 pixels, "
        "the best of five pairs; the machine's own gain on multiply-adds is measured beside them",
    )
    given = measure.parse(parser, arguments)
    compiled = library.load()
    notes = paths.missing(compiled)
    if given.threads:
        return _threads(given, compiled, notes)
    times = {}
    for task in given.sizes:
        runs = paths.runs_of(task, compiled)
        if given.engine:
            runs["engine-fp32"] = paths.through_engine(task)
            if compiled is not None:
                runs["engine-bf16-backward"] = paths.through_engine(task, precision="bfloat16-backward")
        times[task] = measure.medians(runs, 0.95 * given.seconds / len(given.sizes))
    found = measure.machine(compiled, 0.05 * given.seconds)
    rows = [row for task in given.sizes for row in paths.rows_of(task, times[task], found)]
    return measure.report(given, found, rows, notes)


# ------------------------------------------------------------------------------------------------------------- threads


def _threads(given: argparse.Namespace, compiled: Library | None, notes: list[str]) -> int:
    """Rows of one and two threads, whose ratio is the gain in wall time of the best pair, and the machine's own gain.

    An epoch is one of all 16 fits.
    """
    found = measure.machine(compiled, 0.05 * given.seconds)
    if compiled is None:
        return measure.report(given, found, [], notes)
    part = 0.95 * given.seconds / (3 * (_PAIRS + 1))
    runs, epochs = {}, {}
    for task, fits in ((MANY, 16), (BIG, 1)):
        runs[task] = [paths.fused(task, compiled, fits=fits, threads=n, clock=time.perf_counter) for n in (1, 2)]
        epochs[task] = max(1, int(part / sum(run(1) for run in runs[task])))
    controls: list[float] = []
    pairs: dict[paths.Task, list[tuple[float, float]]] = {task: [] for task in runs}
    for _ in range(_PAIRS):
        controls.append(_control(compiled, part))
        for task, (one, two) in runs.items():
            pairs[task].append((one(epochs[task]) / epochs[task], two(epochs[task]) / epochs[task]))
    rows: list[measure.Row] = []
    for task, fits in ((MANY, 16), (BIG, 1)):
        first, second = max(pairs[task], key=lambda pair: pair[0] / pair[1])
        least = fits * measure.limit(found, task.plan, task.side**2)
        rows.append(measure.row(task.name, "threads-1", first, first, least))
        rows.append(measure.row(task.name, "threads-2", second, first, least / 2))
    listed = ", ".join(f"{gain:.2f}" for gain in controls)
    notes.append(f"multiply-adds alone gain {max(controls):.2f}x from a second thread (pair by pair: {listed})")
    return measure.report(given, found, rows, notes)


def _control(compiled: Library, seconds: float) -> float:
    """What two threads of nothing but multiply-adds do over one: their rates, and the share of two cores they got."""
    one = compiled.peak(seconds / 2)
    rates = [0.0, 0.0]

    def work(number: int) -> None:
        rates[number] = compiled.peak(seconds / 2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    wall, process = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cores = (time.process_time() - process) / (time.perf_counter() - wall)
    return cores * sum(rates) / 2 / one


if __name__ == "__main__":
    sys.exit(main())
