"""How the processor counts while torch computes a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["without_subnormals"]


@contextlib.contextmanager
def without_subnormals() -> Iterator[None]:
    """Takes numbers below the smallest normal one for 0, in this thread and in those that it starts meanwhile.

    Gaussian activations and old moments of Adam make many of them, and a processor takes a hundred times as long over
    each. Compiled kernels do likewise. The user's setting comes back afterwards; a processor that cannot be told goes
    on as it is.
    """
    before = not float(torch.tensor([1e-39]) * 0.5)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
