"""A SIREN with five sine layers to pixels: a plain module, pixfit's render with torch and as it chooses, the kernel."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import measure
import paths
import torch

from pixfit import modelfile, render
from pixfit.images import Image
from pixfit.kernels import library
from pixfit.kernels.library import Library
from pixfit.models import Siren
from pixfit.problem import Problem
from pixfit.spec import Spec

__all__ = ["main"]

_EXAMPLES = ("render.py --megapixels 4 --seconds 120", "render.py --json", "render.py --baseline before.json --strict")
_CHUNK = 2**14  # points of the plain module at a time: the fastest of powers of two


def _plain(task: paths.Task) -> measure.Run:
    network, chunks = task.network(), torch.split(task.coordinates, _CHUNK)

    def run(epochs: int) -> float:
        begin = time.process_time()
        with torch.no_grad():
            for _ in range(epochs):
                torch.cat([network(points) for points in chunks])
        return time.process_time() - begin

    return run


def _render(task: paths.Task, kernel: str | None) -> measure.Run:
    """`pixfit.render`, the coordinates and the picture's layout included."""
    spec = Spec(Problem(Image(torch.rand(3, 8, 8))), task.model)
    network = modelfile.Network(task.model, task.network().state_dict(), spec.plain)

    def run(epochs: int) -> float:
        begin = time.process_time()
        with paths.use_kernel(kernel):
            for _ in range(epochs):
                render.render(network, size=(task.side, task.side))
        return time.process_time() - begin

    return run


def _fused(task: paths.Task, compiled: Library) -> measure.Run:
    (kernel, weights), coordinates = paths.kernel_of(task, compiled), task.coordinates

    def run(epochs: int) -> float:
        begin = time.process_time()
        for _ in range(epochs):
            kernel.forward(weights[0], coordinates)
        return time.process_time() - begin

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = measure.options(
        "µs per picture of a SIREN (times as fast as the plain module, share of the limit of the products alone at the "
        "peak rate; JSON rows also have share_with_sines, of products and sines).",
        _EXAMPLES,
        seconds=40.0,
    )
    parser.add_argument("--megapixels", type=float, default=1.0, help="of the square picture, default %(default)g")
    parser.add_argument("--hidden-layers", type=int, default=4, help="hidden-to-hidden maps, default %(default)s")
    parser.add_argument("--width", type=int, default=256, help="of the layers, default %(default)s")
    given = measure.parse(parser, arguments)
    if not 0 < given.megapixels <= 1000:
        parser.error(f"--megapixels is {given.megapixels:g}; give more than 0 and at most 1000")
    try:
        model = Siren(given.hidden_layers, given.width)
    except ValueError as error:
        parser.error(str(error))
    side = max(1, round((given.megapixels * 1e6) ** 0.5))
    task = paths.Task(f"{given.hidden_layers + 1} layers of {given.width}, {side}x{side}", model, side)
    compiled = library.load()
    runs = {"plain": _plain(task), "torch": _render(task, "torch"), "render": _render(task, None)}
    if compiled is not None:
        runs["fused-fp32"] = _fused(task, compiled)
    times = measure.medians(runs, 0.95 * given.seconds)
    found = measure.machine(compiled, 0.05 * given.seconds)
    least = measure.limit(found, task.plan, side**2, forward_only=True, products_only=True)
    whole = measure.limit(found, task.plan, side**2, forward_only=True)
    rows, notes = [], paths.missing(compiled)
    for path, spent in times.items():
        row = measure.row(task.name, path, spent, times["plain"], least)
        if compiled is not None:
            row["share_with_sines"] = round(1e-6 * whole / spent, 4)
            notes.append(
                f"{path}: {1e-6 * side**2 / spent:.3f} megapixels a second, {1e-6 * whole / spent:.0%} with sines"
            )
        rows.append(row)
    return measure.report(given, found, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
