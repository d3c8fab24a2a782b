"""Large pictures in pieces that overlap: cut, restored one by one, and put together without seams."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pixfit.operators import Operator
from pixfit.problem import View

__all__ = ["Canvas", "Piece", "cut"]


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a measurement, and its place in the answer.

    Args:
        rows, columns: of the answer.
        operator: how the part of the answer becomes the part of the measurement.
        shape: (C, H, W) of that part of the answer.
        measurement: (C, h, w).
        known: bool (1, h, w), or (C, h, w) by channels, what was measured; None: everything.
        held_out: bool, likewise, what was measured of pixels that no estimate may use; None: no such.
        scored: bool (1, h, w), those of them at which errors are compared; None: all of them.
        probe: (C, h, w), noise that is added to the measurement to see how far an estimate follows it; None: none is.
    """

    rows: slice
    columns: slice
    operator: Operator
    shape: tuple[int, int, int]
    measurement: Tensor
    known: Tensor | None = None
    held_out: Tensor | None = None
    scored: Tensor | None = None
    probe: Tensor | None = None

    def probed(self, scale: float = 1.0) -> Piece:
        """The same with so much of the probe, which there must be, added to the measurement."""
        assert self.probe is not None
        return replace(self, measurement=self.measurement + scale * self.probe)

    @property
    def view(self) -> View:
        """What a fit may see; its held-out samples are those that are scored."""
        use = self.known
        if self.held_out is not None:
            use = ~self.held_out if use is None else use & ~self.held_out
        scored = self.held_out if self.scored is None else self.scored
        return View(self.measurement, self.operator, self.shape, use, scored)

    def held_out_error(self, picture: Tensor) -> float:
        """Mean squared error of a picture (C, H, W) at the held-out pixels that are scored, which there must be."""
        scored = self.view.held_out
        assert scored is not None
        wanted = scored.expand_as(self.measurement)
        return float((self.operator.forward(picture.clamp(0, 1)) - self.measurement)[wanted].square().mean())


class Canvas:
    """The answer as it is put together: the mean of the pieces, in overlaps with weights that rise linearly.

    Args:
        shape: (C, H, W).
        overlap: pixels that neighbouring pieces share at least. The outermost quarter of it, where a piece knows least
            of what is around, counts next to nothing.
    """

    def __init__(self, shape: Sequence[int], overlap: int) -> None:
        self._sums, self._weights, self._overlap = torch.zeros(*shape), torch.zeros(1, *shape[1:]), overlap
        self._lock = threading.Lock()  # a preview may be asked for by another thread

    def add(self, piece: Piece, picture: Tensor) -> None:
        rows, columns = (self._ramp(side) for side in picture.shape[1:])
        weight = rows[:, None] * columns
        with self._lock:
            self._sums[:, piece.rows, piece.columns] += weight * picture
            self._weights[:, piece.rows, piece.columns] += weight

    def picture(self, base: Tensor | None = None) -> Tensor:
        """(C, H, W); where no piece is yet, the base, by default black."""
        with self._lock:
            made = self._sums / self._weights.clamp(min=1e-12)
            return made if base is None else torch.where(self._weights > 0, made, base)

    def _ramp(self, side: int) -> Tensor:
        places = torch.arange(1, side + 1, dtype=torch.float32)
        inside = torch.minimum(places, places.flip(0)) - self._overlap / 4
        return (inside / (self._overlap / 2)).clamp(1e-3, 1.0)


def cut(whole: Piece, *, side: int, least: int, overlap: int, factor: int = 1) -> list[Piece]:
    """The parts of a piece, in reading order; one that is small enough stays whole.

    Args:
        side: of the parts, in pixels of the answer.
        least: sides up to this are not cut.
        overlap: of neighbours, at least.
        factor: pixels of the answer for one of the measurement, along a side.
    """
    channels, height, width = whole.measurement.shape
    shared = -(-overlap // factor)
    part, limit = max(side // factor, 2 * shared), max(least // factor, 2 * shared)
    found = []
    for rows in _parts(height, part, limit, shared):
        for columns in _parts(width, part, limit, shared):
            measured = whole.measurement[:, rows, columns].contiguous()
            maps = (whole.known, whole.held_out, whole.scored, whole.probe)
            own = (None if one is None else one[:, rows, columns] for one in maps)
            down, right = (slice(s.start * factor, s.stop * factor) for s in (rows, columns))
            shape = (channels, measured.shape[1] * factor, measured.shape[2] * factor)
            found.append(Piece(down, right, whole.operator, shape, measured, *own))
    return found


def _parts(side: int, part: int, limit: int, overlap: int) -> list[slice]:
    """Equal parts of one side."""
    if side <= limit:
        return [slice(0, side)]
    count = -(-(side - overlap) // (part - overlap))
    return [slice(start, start + part) for start in (round(i * (side - part) / (count - 1)) for i in range(count))]
