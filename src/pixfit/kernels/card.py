"""What a CUDA card can take: how it rounds float32 products, how many fits fit its memory, and which path may run.

All figures of speed and memory here are rules of thumb with room to spare; nothing is decided by timing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import torch

from pixfit.kernels.plan import Plan

__all__ = ["compile_reason", "float32_products", "graph_reason", "persistent_reason", "stack_limit", "steps_at_once"]

_USABLE = 0.7  # of the free memory; the rest is for libraries, fragments and looks at the picture
_NARROW = 4  # coordinates and outputs that the persistent kernel sums one by one
_WIDEST = 128  # features whose gradient matrix fits the registers of a program
_COMPILING = 2e14  # floating-point operations that take about as long as compiling, half a minute
_CALL = 2e12  # floating-point operations that take about a fifth of a second


@contextlib.contextmanager
def float32_products(policy: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Runs the body with that precision of a card's float32 matrix products; the user's setting comes back afterwards.

    ``ieee`` is strict; ``tf32`` rounds the operands to 11 bits. A captured graph keeps what it was captured with.

    Raises:
        ValueError: another policy.
    """
    if policy not in ("ieee", "tf32"):
        raise ValueError(f"products: got {policy!r}, allowed 'ieee' or 'tf32'")
    setting: Any = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = policy
    try:
        yield
    finally:
        setting.fp32_precision = before


def stack_limit(plan: Plan, samples: int, free_bytes: int, *, bytes_per_number: int = 4) -> int:
    """How many fits of ``samples`` samples a step can take in a memory with that much free; 0: not even one.

    A fit needs its rows (weights, gradient, two moments and copies that the loop keeps) and, at every sample, what the
    backward pass reads again: input, pre-activation and output of each layer.
    """
    parameters = plan.products + sum(4 * layer.outputs for layer in plan.layers)
    parameters += sum(level.entries * level.features for level in plan.lift.levels)
    widest = max(max(layer.inputs, layer.outputs) for layer in plan.layers)
    # A norm keeps its input and output too. FINER, GELU and SiLU make two numbers more on the way to the output.
    kept = sum((5 if layer.norm == "none" else 8) * layer.outputs for layer in plan.layers)
    kept += 6 * plan.lift.features + sum(64 + 20 * level.features for level in plan.lift.levels)
    numbers = 12 * parameters + samples * (kept + 3 * widest + 6 * plan.out_features + 2 * plan.in_features)
    return int(_USABLE * free_bytes) // (bytes_per_number * numbers)


def steps_at_once(plan: Plan, samples: int, fits: int) -> int:
    """How many steps a caller should ask for at once to hear from a card about five times a second, 1 to 4,096."""
    return max(1, min(4096, int(_CALL / _operations(plan, samples, fits))))


def graph_reason(plan: Plan, samples: int, fits: int, device: torch.device) -> str | None:
    """Why a step of these fits cannot be a CUDA graph on that device; None: it can.

    Losses of whole pictures, autocast and optimisers that need a look at the weights are for the caller to keep away.
    """
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and this is {device}"
    free, _ = torch.cuda.mem_get_info(device)
    limit = stack_limit(plan, samples, free)
    if limit < fits:
        return (
            f"{fits} fits of {samples:,} samples at once need more memory than is free on {device} "
            f"({free / 2**30:.1f} GiB, enough for {limit}); use smaller batches"
        )
    return None


def compile_reason(plan: Plan, samples: int, fits: int, steps: float) -> str | None:
    """Why the step of a graph should not be compiled for a card here; None: it should."""
    if importlib.util.find_spec("triton") is None:
        return "compiling for a card needs Triton, which is not installed; install torch's build for CUDA"
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "Triton needs a C compiler, and none was found; install gcc, or set CC"
    if _operations(plan, samples, fits) * steps < _COMPILING:
        return "the fits are over sooner than a compiler would be"
    return None


def persistent_reason(plan: Plan) -> str | None:
    """Why a network cannot run in a persistent kernel, whatever the fit; None: it can."""
    *hidden, last = plan.layers
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton, which is not installed; install torch's build for CUDA"
    if plan.lift.kind != "raw":
        return f"it takes raw coordinates, and this network has the encoding {plan.lift.kind!r}"
    if not hidden or last.activation != "none":
        return "it needs a hidden layer, and a last layer without activation"
    if max(plan.in_features, plan.out_features) > _NARROW:
        return (
            f"it takes up to {_NARROW} coordinates and outputs, and this network has {plan.in_features} and "
            f"{plan.out_features}"
        )
    widest = max(layer.outputs for layer in hidden)
    if widest > _WIDEST:
        return f"it takes layers of up to {_WIDEST} features, and this network has {widest}"
    if len({layer.activation for layer in hidden}) > 1:
        return "its hidden layers must have one activation, and this network has several"
    if any(layer.norm != "none" or layer.skip for layer in plan.layers):
        return "it knows no norms and no skip connections"
    return None


def _operations(plan: Plan, samples: int, fits: int) -> float:
    """Of a step: three products of two operations a multiply-add."""
    return 6.0 * fits * samples * max(1, plan.products)
