"""The recipes' cards: how good, in what time, with how many numbers, and what as many numbers do without a network."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixfit import images, metrics, modelfile, recipes, render, run
from pixfit.images import Image
from pixfit.problem import Problem
from pixfit.result import Result, json_number
from pixfit.spec import Record, Spec
from pixfit.stopping import Seconds
from pixfit.studies.climb_controls import colours, resized, sparse_dct

__all__ = ["card", "main", "stored_planes"]

_EXAMPLES = (
    "presets.py --pictures photos --recipes fast,instant",
    "presets.py --pictures photos --recipes mlp,climb-final --crop 256 --seconds 20",
    "presets.py --pictures coffee,astronaut --json",
)
_RECIPES = "fast,instant,smooth,quality,compact,mlp"
_QUIET = Record(every=10**9, points=1)  # nothing is drawn while the clock runs


# ------------------------------------------------------------------------------------------------------------- controls


def stored_planes(picture: Tensor) -> tuple[float, int]:
    """PSNR and numbers of principal colours stored as they are: all but the last, and that one at half the size.

    The last one is averaged over squares of 2 by 2 pixels and comes back by bilinear interpolation.
    """
    basis, mean = colours(picture)
    _, height, width = picture.shape
    planes = torch.einsum("ck,chw->khw", basis, picture.double() - mean[:, None, None])
    half = torch.nn.functional.interpolate(planes[None, -1:], (-(-height // 2), -(-width // 2)), mode="area")
    planes[-1:] = torch.nn.functional.interpolate(half, (height, width), mode="bilinear", align_corners=False)[0]
    shown = torch.einsum("ck,khw->chw", basis, planes) + mean[:, None, None]
    return metrics.psnr(shown, picture), (len(planes) - 1) * height * width + half.numel() + basis.numel() + len(mean)


# ---------------------------------------------------------------------------------------------------------------- cards


def card(recipe: str, image: Image, seconds: float | None, *, zoom: bool) -> dict[str, Any]:
    """What one recipe does with one picture.

    Args:
        recipe: its name.
        image: the picture.
        seconds: the budget, of wall time; None: the recipe's own.
        zoom: whether to fit the picture reduced to half its size, too, and to compare its rendering at twice that size
            with Lanczos' filter.
    """
    result, spent = _fitted(recipe, image, seconds)
    row: dict[str, Any] = {
        "recipe": recipe,
        "picture": image.name,
        "width": image.width,
        "height": image.height,
        "psnr": json_number(result.psnr),
        "psnr_8bit": json_number(result.metrics["psnr_8bit"]),
        "process_seconds": round(spent, 3),
        "steps": result.steps,
        "parameters": result.parameters,
        "values_ratio": round(result.values_ratio, 4),
        "bits_per_pixel": round(8 * modelfile.size_in_bytes(modelfile.Network.of(result)) / _pixels(image), 3),
        "kernel": result.kernel,
        "sparse_dct_psnr": json_number(metrics.psnr(sparse_dct(image.data, result.parameters), image.data)),
    }
    planes, numbers = stored_planes(image.data)
    row |= {"stored_planes_psnr": json_number(planes), "stored_planes_ratio": round(numbers / image.data.numel(), 4)}
    if zoom and image.width >= 2 and image.height >= 2:
        row |= _zoomed(recipe, image, seconds)
    return row


def _pixels(image: Image) -> int:
    return image.width * image.height


def _fitted(recipe: str, image: Image, seconds: float | None) -> tuple[Result, float]:
    """The finished fit, and the processor's seconds that it took: for its first weights, and in training."""
    problem = Problem(image)
    spec: Spec = recipes.get(recipe)(problem)
    if seconds is not None:
        spec = dataclasses.replace(spec, budget=Seconds(seconds))
    began = time.process_time()
    run.first_weights(spec)
    first = time.process_time() - began
    result = run.fit(spec, record=_QUIET, device="cpu")
    return result, first + result.process_seconds


def _zoomed(recipe: str, image: Image, seconds: float | None) -> dict[str, Any]:
    height, width = image.height // 2, image.width // 2
    truth = image.data[:, : 2 * height, : 2 * width]
    small = (resized(truth, height, width) * 255).round() / 255
    result, _ = _fitted(recipe, Image(small, name=image.name), seconds)
    shown = render.render(result, scale=2)
    return {
        "half_psnr": json_number(result.psnr),
        "zoom_psnr": json_number(metrics.psnr(shown, truth)),
        "lanczos_psnr": json_number(metrics.psnr(resized(small, 2 * height, 2 * width), truth)),
    }


# -------------------------------------------------------------------------------------------------------------- reports


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the pictures of one recipe; of a PSNR without a number (lossless) there is none."""
    found: dict[str, Any] = {"recipe": rows[0]["recipe"], "pictures": len(rows)}
    for name, value in rows[0].items():
        if (isinstance(value, (int, float)) and name not in ("width", "height")) or name.endswith("psnr"):
            values = [row.get(name) for row in rows]
            found[name] = None if None in values else round(statistics.fmean(values), 4)
    levels = [row["psnr"] for row in rows]
    found["least_psnr"] = None if None in levels else min(levels)
    return found


_COLUMNS = (
    ("PSNR", "psnr", ".2f"), ("least", "least_psnr", ".2f"), ("8-bit", "psnr_8bit", ".2f"),
    ("process s", "process_seconds", ".2f"), ("parameters", "parameters", ",.0f"), ("ratio", "values_ratio", ".3f"),
    ("bits/pixel", "bits_per_pixel", ".2f"), ("half", "half_psnr", ".2f"), ("zoomed", "zoom_psnr", ".2f"),
    ("Lanczos", "lanczos_psnr", ".2f"), ("sparse DCT", "sparse_dct_psnr", ".2f"),
)  # fmt: skip


def _table(rows: Sequence[dict[str, Any]], first: str) -> str:
    cells = [[first, *(title for title, _, _ in _COLUMNS)]]
    for row in rows:
        found = [row.get(key) for _, key, _ in _COLUMNS]
        cells.append([row[first], *("-" if v is None else f"{v:{c[2]}}" for v, c in zip(found, _COLUMNS, strict=True))])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def _pictures(names: str, crop: int | None) -> list[Image]:
    found: list[Image] = []
    for name in names.split(","):
        found += images.load_folder(name) if Path(name).is_dir() else [images.load(name)]
    return [_cropped(image, crop) for image in found]


def _cropped(image: Image, crop: int | None) -> Image:
    """The middle of a picture, where it is larger."""
    if crop is None:
        return image
    top, left = max(0, image.height - crop) // 2, max(0, image.width - crop) // 2
    return dataclasses.replace(image, data=image.data[:, top : top + crop, left : left + crop].clone())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=textwrap.fill(
            "For each recipe, on one thread: PSNR in dB of what the network shows (and of its 8 bits), the processor's "
            "seconds for first weights and training, parameters, parameters a picture value, bits a pixel of the model "
            "file; then the PSNR of the picture at half its size and of that network's rendering at twice that size, "
            "beside Lanczos' filter; and the PSNR of as many numbers spent on values and indices of a block cosine "
            "transform.",
            100,
        ),
        epilog="examples:\n" + "\n".join(f"  python benchmarks/{example}" for example in _EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--pictures",
        default="coffee,astronaut",
        metavar="FOLDER",
        help="folders, files or bundled names, by default %(default)s",
    )
    parser.add_argument("--recipes", default=_RECIPES, help="by default %(default)s")
    parser.add_argument("--seconds", type=_positive, help="budget of each fit in wall time; default: the recipe's own")
    parser.add_argument("--crop", type=int, metavar="N", help="take the middle N by N pixels of each picture")
    parser.add_argument("--no-zoom", action="store_true", help="leave out the fits of pictures at half their size")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, the tables on stderr")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a time; give seconds above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = given.recipes.split(",")
    if given.crop is not None and given.crop < 1:
        parser.error(f"--crop is {given.crop}; give 1 or more pixels")
    try:
        for name in names:
            recipes.get(name)
        pictures = _pictures(given.pictures, given.crop)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if given.save is not None and not given.save.resolve().parent.is_dir():
        parser.error(f"--save: {given.save.resolve().parent} is not a folder")
    torch.set_num_threads(1)
    out = sys.stderr if given.json else sys.stdout
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += [card(name, image, given.seconds, zoom=not given.no_zoom) for image in pictures]
        print(_table(rows[-len(pictures) :], "picture"), file=out)
        print(file=out, flush=True)
    means = [_means([row for row in rows if row["recipe"] == name]) for name in names]
    print(_table(means, "recipe"), file=out)
    planes = {row["picture"]: row for row in rows}.values()
    levels = [row["stored_planes_psnr"] for row in planes]
    level = "lossless" if None in levels else f"{statistics.fmean(levels):.2f} dB"
    ratio = statistics.fmean(row["stored_planes_ratio"] for row in planes)
    print(
        f"principal colours stored as they are, the last at half the size: {level} at a ratio of {ratio:.3f}", file=out
    )
    document = {"rows": rows, "means": means}
    text = json.dumps(document, indent=1, allow_nan=False)
    if given.save is not None:
        given.save.write_text(text + "\n", "utf-8")
    if given.json:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
