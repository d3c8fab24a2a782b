"""Other members of the family at 4x128: each against its own plain loop and its own limit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import measure
import paths

from pixfit.kernels import library
from pixfit.models import Finer, Fourier, Gabor, Gauss, Mlp, Model, Siren

__all__ = ["main"]

_EXAMPLES = (
    "family.py --seconds 60 --json",
    "family.py --members finer,gelu --width 256",
    "family.py --save before.json",
)
_MEMBERS = ("finer", "gauss", "layernorm", "gelu", "silu", "gabor", "skip", "batches")


def _task(member: str, layers: int, width: int) -> paths.Task:
    fourier, gabor = Fourier(2 * width), Gabor(2 * width)
    models: dict[str, Model] = {
        "finer": Finer(layers, width),
        "gauss": Gauss(layers, width),
        "layernorm": Mlp(layers, width, encoding=fourier, norm="layer"),
        "gelu": Mlp(layers, width, encoding=fourier, activation="gelu"),
        "silu": Mlp(layers, width, encoding=fourier, activation="silu"),
        "gabor": Mlp(layers, width, encoding=gabor),
        "skip": Mlp(layers, width, encoding=fourier, norm="layer", skip=True),
        "batches": Siren(layers, width),
    }
    name = f"{member} {layers}x{width}"
    return paths.Task(name, models[member], *((256, 4096) if member == "batches" else ()))


def _members(text: str) -> list[str]:
    members = text.split(",")
    for member in members:
        if member not in _MEMBERS:
            raise argparse.ArgumentTypeError(f"{member!r} is not known; it can be {', '.join(_MEMBERS)}")
    return members


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = measure.options(
        "µs per epoch of a fit to 32 by 32 pixels (times as fast as its own plain loop, share of its own limit in "
        "float32). The limit is that of the products at the peak rate, and of a sine with cosine for each sine, "
        "Gaussian, GELU and SiLU and each Fourier phase, two for a Gabor phase; norms do not count. layernorm, gelu, "
        "silu and skip have Fourier features, twice the width; layernorm, gabor and skip have ReLU; skip has LayerNorm "
        "too. batches is a SIREN on 256 by 256 pixels in steps of 4,096.",
        _EXAMPLES,
        seconds=60.0,
    )
    parser.add_argument("--members", type=_members, default=",".join(_MEMBERS), help="default %(default)s")
    parser.add_argument("--hidden-layers", type=int, default=4, help="hidden-to-hidden maps, default %(default)s")
    parser.add_argument("--width", type=int, default=128, help="of the layers, default %(default)s")
    given = measure.parse(parser, arguments)
    try:
        tasks = [_task(member, given.hidden_layers, given.width) for member in given.members]
    except ValueError as error:
        parser.error(str(error))
    compiled = library.load()
    times = {t: measure.medians(paths.runs_of(t, compiled), 0.95 * given.seconds / len(tasks)) for t in tasks}
    found = measure.machine(compiled, 0.05 * given.seconds)
    rows = [row for task in tasks for row in paths.rows_of(task, times[task], found)]
    return measure.report(given, found, rows, paths.missing(compiled))


if __name__ == "__main__":
    sys.exit(main())
