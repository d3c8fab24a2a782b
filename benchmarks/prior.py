"""A step of a deep image prior: the loop that everyone writes, pixfit in torch and compiled, and both in bfloat16."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import measure
import paths
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pixfit import engine, kernels, run, tasks
from pixfit.images import Image
from pixfit.job import Job
from pixfit.kernels import library
from pixfit.noise import Clipped, GaussianNoise
from pixfit.noise_estimate import NoiseLevel
from pixfit.problem import Problem

__all__ = ["main"]

_EXAMPLES = (
    "prior.py --seconds 60 --json", "prior.py --sizes 32x5@96,64x5@128", "prior.py --sizes 128x5@256 --save before.json"
)  # fmt: skip
_CODE = 32  # channels


class _Plain(nn.Module):
    """The published network as notebooks have it: one kind of layer after another, a norm behind each."""

    def __init__(self, channels: int, levels: int, inputs: int = _CODE, skip: int = 4) -> None:
        super().__init__()
        wide, self.inner = skip + channels, None
        self.across = self._layer(inputs, skip, 1)
        self.down = nn.Sequential(self._layer(inputs, channels, 3, 2), self._layer(channels, channels, 3))
        if levels > 1:
            self.inner = _Plain(channels, levels - 1, channels, skip)
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear")
        self.join = nn.BatchNorm2d(wide)
        self.up = nn.Sequential(self._layer(wide, channels, 3), self._layer(channels, channels, 1))

    @staticmethod
    def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect")
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        below = self.down(x)
        below = self.grow(below if self.inner is None else self.inner(below))[..., : x.shape[2], : x.shape[3]]
        return self.up(self.join(torch.cat([self.across(x), below], dim=1)))


def _plain(channels: int, levels: int, noisy: Tensor) -> measure.Run:
    """20 lines of anybody's notebook."""
    network = nn.Sequential(_Plain(channels, levels), nn.Conv2d(channels, noisy.shape[0], 1), nn.Sigmoid())
    code = 0.1 * torch.rand(1, _CODE, *noisy.shape[1:])
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)

    def steps(count: int) -> float:
        begin = time.process_time()
        for _ in range(count):
            optimiser.zero_grad()
            loss = F.mse_loss(network(code + torch.randn_like(code) / 30), noisy[None])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return time.process_time() - begin

    return steps


def _pixfit(channels: int, levels: int, problem: Problem, *, compiled: bool, precision: str = "float32") -> measure.Run:
    """The default fit of `pixfit restore denoise`, with its averages and its looks at held-out pixels."""
    task = replace(tasks.denoising(NoiseLevel.white(0.1)), channels=channels)

    def steps(count: int) -> float:
        spec = task.spec(problem, steps=count)
        prior = replace(spec.model, channels=(channels,) * levels)  # type: ignore[type-var]
        spec = replace(spec, model=prior, precision=precision)
        environment = {} if compiled else {"PIXFIT_KERNEL": "torch"}
        with mock.patch.dict(os.environ, environment):
            *_, end = engine.fit([Job(spec, problem.view, run.first_weights(spec))])
        return float(end.scalars["clock"][1])

    return steps


def _sizes(text: str) -> list[tuple[str, int, int, int]]:
    found = []
    for part in text.split(","):
        try:
            network, side = part.split("@")
            channels, levels = network.split("x")
            one = (part, int(channels), int(levels), int(side))
        except ValueError:
            one = (part, 0, 0, 0)
        if min(one[1:]) < 1 or one[3] <= 2 ** one[2]:
            raise argparse.ArgumentTypeError(f"{part} is not CHANNELSxLEVELS@SIDE, such as 32x5@96")
        found.append(one)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code."""
    parser = measure.options(
        "µs per step of the hourglass of a deep image prior on one noisy picture of three colours: the plain loop, "
        "the fit of `pixfit restore denoise` in torch and compiled, in float32 and in bfloat16. The "
        "limit is that of three products for each convolution at the peak rate in float32.",
        _EXAMPLES,
        seconds=60.0,
    )
    parser.add_argument(
        "--sizes", type=_sizes, default=_sizes("32x5@96,64x5@96,128x5@96"), metavar="LIST",
        help="CHANNELSxLEVELS@SIDE of picture, with commas, default 32x5@96,64x5@96,128x5@96",
    )  # fmt: skip
    given = measure.parse(parser, arguments)
    compiled = library.load()
    rows = []
    times = {}
    for size, channels, levels, side in given.sizes:
        clean = Image(torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)), "noise")
        problem = Problem(clean, noise=Clipped(GaussianNoise(0.1)), held_out=0.04)
        runs = {
            "plain": _plain(channels, levels, problem.view.measurement),
            "torch": _pixfit(channels, levels, problem, compiled=False),
        }
        if kernels.fast_bfloat16():
            runs["torch-bf16"] = _pixfit(channels, levels, problem, compiled=False, precision="bfloat16")
        if compiled is not None:
            runs["fused-fp32"] = _pixfit(channels, levels, problem, compiled=True)
            if compiled.products:
                runs["fused-bf16"] = _pixfit(channels, levels, problem, compiled=True, precision="bfloat16")
        times[size] = measure.medians(runs, 0.9 * given.seconds / len(given.sizes))
    found = measure.machine(compiled, 0.1 * given.seconds)
    for size, channels, levels, side in given.sizes:
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            nn.Sequential(_Plain(channels, levels), nn.Conv2d(channels, 3, 1))(torch.empty(1, _CODE, side, side))
        rate = found.peak_fp32_gflops
        least = math.nan if rate is None else 3e-3 * counter.get_total_flops() / rate
        rows += [measure.row(size, path, each, times[size]["plain"], least) for path, each in times[size].items()]
    return measure.report(given, found, rows, paths.missing(compiled))


if __name__ == "__main__":
    sys.exit(main())
