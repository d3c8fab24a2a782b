"""Threads that share the samples of one step, instead of the elements of every operation.

Torch's own threads meet after each operation, many hundred times a step, and wait spinning. That gains less than half
of a second core on networks as small as ours, and it loses where anything else runs on the machine: one busy core made
a step nine times slower (docs/log.md, 2026-11-20). Threads that each take a part of the samples through the whole
network meet once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

__all__ = ["Crew", "crew_size"]

_R = TypeVar("_R")

_WORTH = 2**18  # samples × features that make a part worth a thread of its own


def crew_size(samples: int, width: int) -> int:
    """How many threads share that many samples of a network that wide: a rule of shape and torch's thread count."""
    return max(1, min(torch.get_num_threads(), samples * width // _WORTH))


class Crew:
    """Runs parts of a step at once; inside the ``with`` block each torch operation keeps to one thread.

    The split is fixed and results come in order, so numbers depend on the size alone, not on which thread was first.

    Args:
        size: threads; 0 leaves the parts in a row and the operations to torch's own threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._before = 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._before = torch.get_num_threads()
        if self.size > 0:
            torch.set_num_threads(1)
        if self.size > 1:
            self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="pixfit")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        torch.set_num_threads(self._before)

    def map(self, work: Callable[[int], _R], parts: int) -> list[_R]:
        """``work(part)`` of every part, in order."""
        return list(map(work, range(parts)) if self._pool is None else self._pool.map(work, range(parts)))
