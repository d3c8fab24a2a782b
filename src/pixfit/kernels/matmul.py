"""Strict float32 matrix products at the processor's speed.

On CPUs that are not Intel's, torch hands float32 products to a library that takes its AVX2 path, which is less than
half of what an AVX-512 core can do. The switch below sends them to oneDNN instead. Its name speaks of bfloat16, because
on machines with matrix units (AMX) it really rounds; so it is used only where a check finds float32 accuracy.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["fast_bfloat16", "fast_matmul", "kernel_name"]

_NARROWEST = 48  # products this narrow are too small for the switch to pay
_SETTING: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_lock = threading.Lock()
_switched: dict[str, Any] = {"bodies": 0, "before": None}  # those that run with the switch, and what it was before
_ACCURATE = 5e-6  # largest relative error of a float32 product that counts as float32


def kernel_name(device: torch.device, width: int, policy: str = "auto") -> str:
    """The kernel that a fit of that width runs on: a rule of device, instruction set and shape, never of timing."""
    if device.type != "cpu":
        return f"torch-{device.type}"
    if policy == "auto" and width >= _NARROWEST and _accurate():
        return "torch-onednn"
    return "torch"


def fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware: a GPU, or a CPU that says so. Elsewhere it is emulated."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported is not None and supported())


@contextlib.contextmanager
def fast_matmul(kernel: str) -> Iterator[None]:
    """Runs the body with the matrix products that ``kernel`` names; the user's setting comes back afterwards."""
    if kernel != "torch-onednn":
        yield
        return
    with _lock:  # the switch is the process's, whose threads come and go
        if not _switched["bodies"]:
            _switched["before"], _SETTING.fp32_precision = _SETTING.fp32_precision, "bf16"
        _switched["bodies"] += 1
    try:
        yield
    finally:
        with _lock:
            _switched["bodies"] -= 1
            if not _switched["bodies"]:
                _SETTING.fp32_precision = _switched["before"]


@functools.cache
def _accurate() -> bool:
    """Whether the switch keeps float32 accuracy on this machine, in the three products that a linear layer needs."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(256, 96, generator=generator)
    w = torch.randn(96, 96, generator=generator)
    with fast_matmul("torch-onednn"):
        products = (torch.nn.functional.linear(x, w), x @ w, x.T @ x)
    exact = (x.double() @ w.double().T, x.double() @ w.double(), x.double().T @ x.double())
    return all(float((p - e).abs().max() / e.abs().max()) < _ACCURATE for p, e in zip(products, exact, strict=True))
