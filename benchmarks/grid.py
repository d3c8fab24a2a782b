"""A grid of features with a small network on random pixels: the plain loop with `grid_sample`, pixfit, the kernel."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import measure
import paths
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixfit.kernels import library
from pixfit.kernels.library import Library
from pixfit.models import Grid, Mlp

__all__ = ["main"]

_EXAMPLES = ("grid.py --seconds 40 --json", "grid.py --side 256 --batch 16384", "grid.py --save before.json")
_UPDATE = 8  # of P numbers each: weights, two moments and gradient are read, all but the last written, which is cleared


class _Sampled(nn.Module):
    """The same network by `torch.nn.functional.grid_sample`."""

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.levels = nn.ParameterList([1e-4 * torch.randn(1, n, rows, columns) for rows, columns, n in grid.levels])
        self.first, self.last = nn.Linear(grid.out_features(2), width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = (2.0 * x - 1.0)[None, None]
        features = [F.grid_sample(v, places, padding_mode="border", align_corners=False)[0, :, 0] for v in self.levels]
        return torch.sigmoid(self.last(F.relu(self.first(torch.cat(features).T))))


def _split(task: paths.Task, compiled: Library, seconds: float) -> dict[str, float]:
    """Milliseconds of the parts of a fused step; each is the difference to a run that lacks it."""
    kernel, weights = paths.kernel_of(task, compiled)
    points = task.coordinates[task.order()[0]]

    def order(epochs: int) -> float:
        begin = time.process_time()
        for _ in range(epochs):
            task.order()
        return time.process_time() - begin

    def forward(epochs: int) -> float:
        begin = time.process_time()
        for _ in range(epochs * task.steps):
            kernel.forward(weights[0], points)
        return time.process_time() - begin

    runs = {
        "order": order,
        "forward": forward,
        "gradient": paths.fused(task, compiled, rule="gradient"),
        "step": paths.fused(task, compiled),
    }
    ms = {name: 1e3 * spent / task.steps for name, spent in measure.medians(runs, seconds).items()}
    return {
        "draw_pixels": ms["order"],
        "forward": ms["forward"],
        "backward": ms["gradient"] - ms["forward"] - ms["order"],
        "update": ms["step"] - ms["gradient"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = measure.options(
        "µs per epoch of a grid of five levels (a sixteenth to the whole of the picture's resolution, 16 features) "
        "with one hidden layer, in batches of random pixels, with the milliseconds of a step and of its parts. The "
        "limit is that of the products at the peak rate and of the bytes of Adam at the memory's.",
        _EXAMPLES,
        seconds=40.0,
    )
    parser.add_argument("--side", type=int, default=768, help="of the picture, default %(default)s")
    parser.add_argument("--batch", type=int, default=16384, help="pixels of a step, default %(default)s")
    parser.add_argument("--width", type=int, default=16, help="of the hidden layer, default %(default)s")
    given = measure.parse(parser, arguments)
    try:
        grid = Grid.pyramid(given.side, given.side)
        task = paths.Task(f"grid {given.side}", Mlp(0, given.width, encoding=grid), given.side, given.batch)
    except ValueError as error:
        parser.error(str(error))
    compiled = library.load()
    runs = paths.runs_of(task, compiled)
    runs["plain"] = paths.plain(task, _Sampled(grid, given.width))
    times = measure.medians(runs, 0.7 * given.seconds)
    found = measure.machine(compiled, 0.05 * given.seconds)
    moved = 4e-3 * _UPDATE * task.model.parameters_count() * task.steps / found.memory_gb_s
    rows, notes = paths.rows_of(task, times, found, bytes_us=moved), paths.missing(compiled)
    for row in rows:
        row["ms_per_step"] = round(1e-3 * row["us_per_epoch"] / task.steps, 3)
    notes.append("ms per step: " + ", ".join(f"{row['path']} {row['ms_per_step']:.2f}" for row in rows))
    if compiled is not None:
        split = _split(task, compiled, 0.25 * given.seconds)
        rows[-2]["ms_of"] = {name: round(value, 3) for name, value in split.items()}
        notes.append("ms of fused-fp32: " + ", ".join(f"{name} {value:.2f}" for name, value in split.items()))
    return measure.report(given, found, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
