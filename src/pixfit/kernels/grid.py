"""Features of a multi-resolution grid in plain torch: what every fused kernel must agree with.

Shape legend: F fits, B samples of a batch, T vertices along an axis that a sample lies between (2 or 4).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pixfit.kernels.plan import Level, Lift

__all__ = ["grid_features", "neighbours"]

_PRIME = 2654435761  # of the spatial hash (Teschner et al., VMV 2003); the column's factor is 1


def grid_features(lift: Lift, tensors: Mapping[str, Tensor], coordinates: Tensor) -> Tensor:
    """Features (F, B, lift.features) at coordinates (1 or F, B, 2), with gradients for tables and coordinates.

    Formulas and sources: `pixfit.models.Grid`.

    Args:
        lift: of the kind ``grid``.
        tensors: at least the tables that the levels name, each of F fits: (F, entries, features).
        coordinates: one table for all fits, or one each; those outside the range count as on its ends.

    Raises:
        KeyError: a level names a table that is not there.
    """
    t = ((coordinates - lift.low) / (lift.high - lift.low)).clamp(0.0, 1.0)
    return torch.cat([_level(lift, level, tensors[level.table], t) for level in lift.levels], dim=-1)


def _level(lift: Lift, level: Level, table: Tensor, t: Tensor) -> Tensor:
    """Features (F, B, features) of one level, added up corner by corner."""
    rows, row_weights = neighbours(lift, t[..., lift.row_axis], level.rows)
    columns, column_weights = neighbours(lift, t[..., 1 - lift.row_axis], level.columns)
    fits = torch.arange(len(table), device=table.device)[:, None]
    features = table.new_zeros(())
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            corner = table[fits, _entry(level, row, column)]  # (F, B, features)
            features = features + (row_weight * column_weight)[..., None] * corner
    return features


def neighbours(lift: Lift, t: Tensor, vertices: int) -> tuple[list[Tensor], list[Tensor]]:
    """Numbers and weights of the T vertices of a side that lie around samples: each as t in [0, 1] along the side."""
    position = t * vertices - 0.5 if lift.alignment == "center" else t * (vertices - 1)
    first = position.floor()
    f = position - first
    if lift.interpolation == "linear":
        offsets, weights = [0, 1], [1 - f, f]
    elif lift.interpolation == "spline":
        offsets = [-1, 0, 1, 2]
        weights = [
            (1 - f) ** 3 / 6,
            (3 * f**3 - 6 * f**2 + 4) / 6,
            (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
            f**3 / 6,
        ]
    else:
        offsets = [-1, 0, 1, 2]
        weights = [
            (-(f**3) + 2 * f**2 - f) / 2,
            (3 * f**3 - 5 * f**2 + 2) / 2,
            (-3 * f**3 + 4 * f**2 + f) / 2,
            (f**3 - f**2) / 2,
        ]
    return [(first.long() + offset).clamp(0, vertices - 1) for offset in offsets], weights


def _entry(level: Level, row: Tensor, column: Tensor) -> Tensor:
    """Which entry of the table a vertex has."""
    if level.hashed:
        return (column ^ (row * _PRIME % 2**32)) % level.entries
    return row * level.columns + column
