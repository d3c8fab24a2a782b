"""Which cosines a tile needs: classes of tiles that share an order of frequencies, and how far along it each tile goes.

A sparse transform spends as many numbers on saying which of its coefficients it keeps as on these. Tiles that look
alike keep about the same ones: so a class says in which order they come, and a tile says its class and how many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["choose", "cosine_matrix", "zigzag"]

_ROUNDS = 5  # of learning the orders
_TRIES = 80  # of prices, at most
_STRIDE = 1.5  # between tries that are all too low or too high
_ABOUT, _NEAR = 0.98, 0.998  # of the values wanted; what is left at the end goes to the tiles that gain most
_LEAST = 1e-18  # a price of nothing, so that all coefficients with any energy are taken
_LEARNT_FROM = 4096  # tiles at most
_CHUNK = 2048  # tiles at a time
_STRONG = 50.0  # prices, above which a coefficient counts no more for its order: it is kept anyway


def cosine_matrix(side: int) -> Tensor:
    """The orthonormal cosine transform (side, side) of a row of pixels, float64: frequencies by pixels."""
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    matrix = torch.cos(torch.arange(side, dtype=torch.float64)[:, None] * at) * math.sqrt(2.0 / side)
    matrix[0] *= math.sqrt(0.5)
    return matrix


def zigzag(channels: int, side: int) -> Tensor:
    """The rank (channels · side²) of each coefficient in the order of rising frequency, the first channel first."""
    down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    keys = [
        (int(sum_), channel, number)
        for channel in range(channels)
        for number, sum_ in enumerate((down + across).flatten())
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    ranks = torch.empty(len(keys), dtype=torch.int64)
    ranks[torch.tensor(order)] = torch.arange(len(keys))
    return ranks


def choose(coefficients: Tensor, values: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classes, lengths and orders that keep the most energy in so many coefficients.

    By turns, as in vector quantisation: each tile takes the class and the length with the most energy kept, less a
    price for every coefficient; each class orders its coefficients by what they are worth to its tiles. The price is
    the one at which the lengths add up to ``values``. It begins with classes of equal size by energy, so that nothing
    is drawn at random.

    Args:
        coefficients: (T, n), of an orthonormal transform of T tiles.
        values: that may be kept in all, T · n at most.
        classes: how many, 1 or more.

    Returns:
        orders: int64 (classes, n), the coefficients of a class, the most important first.
        chosen: int64 (T,), the class of each tile.
        lengths: int64 (T,), how many it keeps; they add up to ``values``.
    """
    energies = coefficients.float().square()
    some = energies[:: -(-len(energies) // _LEARNT_FROM)]
    share = values / len(energies)  # coefficients a tile
    groups = some.sum(dim=1).argsort().chunk(classes)
    orders = torch.stack([_ordered(some[groups[min(k, len(groups) - 1)]], math.inf) for k in range(classes)])
    price = float(some.mean())
    for _ in range(_ROUNDS):
        chosen, _, price = _taken(some, orders, share * len(some), price, _ABOUT)
        for number in range(classes):
            own = some[chosen == number]
            if len(own):
                orders[number] = _ordered(own, _STRONG * price)
    chosen, lengths, _ = _taken(energies, orders, float(values), price, _NEAR)
    return orders, chosen, _filled(energies, orders, chosen, lengths, values)


def _ordered(energies: Tensor, most: float) -> Tensor:
    """The coefficients by their mean energy, none of it counted above ``most``."""
    return energies.clamp(max=most).mean(dim=0).argsort(descending=True, stable=True)


def _taken(energies: Tensor, orders: Tensor, values: float, price: float, near: float) -> tuple[Tensor, Tensor, float]:
    """Classes and lengths (T,) whose lengths add up to ``near`` · ``values`` up to ``values``, and their price.

    Args:
        price: from which to look.
    """
    price = max(price, _LEAST)
    low, high, ends = 0.0, math.inf, [0.0, 0.0]  # prices that are too low and high enough, and what is taken there
    best = None
    for _ in range(_TRIES):
        found = _at(energies, orders, price)
        total = float(found[1].sum())
        if total > values:
            low, ends[0] = price, total
        else:
            high, ends[1], best = price, total, found
            if total >= near * values or price <= _LEAST:
                break
        if low == 0 or math.isinf(high):
            price = price / _STRIDE if low == 0 else price * _STRIDE
        else:  # what is taken is nearly linear in the price's logarithm
            part = (ends[0] - 0.5 * (1 + near) * values) / (ends[0] - ends[1])
            price = low * (high / low) ** min(0.9, max(0.1, part))
        price = max(price, _LEAST)
    return (*best, high) if best is not None else (*_at(energies, orders, math.inf), price)


def _at(energies: Tensor, orders: Tensor, price: float) -> tuple[Tensor, Tensor]:
    """The class and the length of each tile at a price."""
    chosen, lengths = [], []
    for part in energies.split(_CHUNK):  # type: ignore[no-untyped-call]
        gains = torch.stack([(part[:, order] - price).cumsum(dim=1).max(dim=1).values for order in orders])
        own = gains.argmax(dim=0)
        net = (part.gather(1, orders[own]) - price).cumsum(dim=1)
        gain, at = net.max(dim=1)
        chosen.append(own)
        lengths.append(torch.where(gain > 0, at + 1, 0))
    return torch.cat(chosen), torch.cat(lengths)


def _filled(energies: Tensor, orders: Tensor, chosen: Tensor, lengths: Tensor, values: int) -> Tensor:
    """The lengths made longer where the next coefficients are largest, until they add up to ``values``."""
    lengths, most = lengths.clone(), energies.shape[1]
    while (left := values - int(lengths.sum())) > 0:
        following = orders[chosen, lengths.clamp(max=most - 1)]
        worth = energies.gather(1, following[:, None])[:, 0].masked_fill(lengths >= most, -1.0)
        room = worth.topk(min(left, int((lengths < most).sum()))).indices
        lengths[room] += 1
    return lengths
