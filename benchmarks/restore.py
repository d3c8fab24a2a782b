"""Denoising by `pixfit.restore` of crops with noise: non-local means, one stopped fit, its best step, and the blend."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from pixfit import classical, images, metrics, noise_estimate, restore
from pixfit.images import Image
from pixfit.noise import GaussianNoise
from pixfit.noise_estimate import NoiseLevel
from pixfit.problem import stream
from pixfit.studies.restore_pictures import crop
from pixfit.tasks import Control

__all__ = ["main"]

_EXAMPLES = "examples:\n  restore.py butterfly.png zebra.png\n  restore.py *.png --sigma 15 --side 128 --json"
_COLUMNS = ("noisy", "nlm", "stopped", "oracle", "blend")


def _row(clean: Image, sigma: float, given: argparse.Namespace) -> dict[str, Any]:
    noise = GaussianNoise(sigma)(clean.data, stream(given.seed, "noise"))
    noisy = Image(noise.clamp(0, 1), clean.name)
    begin = time.process_time()
    done = restore.denoise(
        noisy, sigma=sigma, control=given.control, runs=given.runs, steps=given.steps, precision=given.precision,
        seed=given.seed, device="cpu", truth=clean,
    )  # fmt: skip
    seconds, scores = time.process_time() - begin, done.scores(clean)
    means = classical.nonlocal_means(noisy.data, NoiseLevel.white(sigma))
    estimated = noise_estimate.noise_level(noisy.data).sigma(float(noisy.data.mean()))
    row = {} if given.control == "nlm" else {given.control: metrics.psnr(done.control, clean.data)}
    return {
        "picture": clean.name, "noisy": scores["psnr_degraded"], "nlm": metrics.psnr(means, clean.data),
        "stopped": metrics.psnr(done.fitted, clean.data), "oracle": scores["psnr_oracle"], "blend": scores["psnr"],
        "weight": done.weight, "sigma_estimated": estimated, "stop_step": done.stop_step,
        "steps": done.steps, "process_seconds": seconds, **row,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = argparse.ArgumentParser(
        description="PSNR in dB over whole crops, white noise clipped to [0, 1], its level known: non-local means "
        "(patch 5, distance 8, h 0.8 sigma), one fit stopped by itself, the best step of that fit, and the default "
        "answer, a blend of both. The crops are the parts of the pictures at the 80th percentile of gradient energy, "
        "as the study of restoration takes them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="a picture file")
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, of 255, default %(default)g")
    parser.add_argument(
        "--side", type=int, default=96, help="of the crops, default %(default)s; smaller pictures stay whole"
    )
    parser.add_argument("--runs", type=int, default=1, help="fits that are averaged, default %(default)s")
    parser.add_argument(
        "--control",
        choices=get_args(Control),
        default="nlm",
        help="what the fit is blended with, default %(default)s; another one has a column of its own",
    )
    parser.add_argument("--steps", type=int, help="at most; by default as the command has it")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the fits, default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and networks, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch, default %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    given = parser.parse_args(arguments)
    if not 0 < given.sigma <= 255 or given.side < 16 or given.threads < 1:
        parser.error("--sigma is above 0 and up to 255, --side 16 or more, --threads 1 or more")
    torch.set_num_threads(given.threads)
    columns = _COLUMNS if given.control == "nlm" else (*_COLUMNS, given.control)
    rows = []
    try:
        for path in given.pictures:
            image = images.load(path, alpha="drop")
            part = crop(image, given.side) if min(image.height, image.width) > given.side else image
            rows.append(_row(part, given.sigma / 255, given))
            if not given.json:
                row = rows[-1]
                if len(rows) == 1:
                    print(f"{'picture':<14}" + "".join(f"{name:>9}" for name in columns) + "   weight  stop  seconds")
                levels = "".join(f"{row[name]:9.2f}" for name in columns)
                print(
                    f"{row['picture']:<14}{levels}   {row['weight']:6.2f} {row['stop_step']:5} "
                    f"{row['process_seconds']:8.1f}",
                    flush=True,
                )
    except ValueError as error:
        parser.error(str(error))
    means = {name: sum(row[name] for row in rows) / len(rows) for name in columns}
    if given.json:
        settings = {
            name: getattr(given, name) for name in ("sigma", "side", "control", "runs", "precision", "seed", "threads")
        }
        print(json.dumps({**settings, "torch": torch.__version__, "rows": rows, "means": means}, indent=2))
    else:
        print(f"{'mean':<14}" + "".join(f"{means[name]:9.2f}" for name in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
