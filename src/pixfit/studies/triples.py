"""Triples of the pre-fit study: a picture to fit, one of its class and one of another, and a seed of the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Triple", "distinct", "original"]

_SEEDS = range(1, 2**63 - 1)  # of the published study


@dataclass(frozen=True)
class Triple:
    """Indices of three pictures of a labelled set, and the seed of the weights that all arms start from.

    Args:
        target: the picture that every arm fits in the end.
        same: the one to pre-fit of the target's class.
        different: the one to pre-fit of another class.
        seed: of the initial weights, 1 to 2^63 − 2.
    """

    target: int
    same: int
    different: int
    seed: int


def distinct(labels: Sequence[int] | torch.Tensor, count: int = 20, seed: int = 0) -> tuple[Triple, ...]:
    """Random triples of which no two share a picture: 3·count different pictures.

    The first k of n triples are the k triples of the same seed, so a smaller study is part of a larger one.

    Args:
        labels: the class of each picture, ``(N,)``.
        count: how many triples.
        seed: of the draw; any integer.

    Raises:
        ValueError: no triple asked for, or pictures run out; three times ``count`` in each of two classes always do.
    """
    unused = _by_class(labels, count)
    generator = random.Random(seed)
    triples: list[Triple] = []
    for _ in range(count):
        targets = [index for members in unused.values() if len(members) > 1 for index in members]
        if not targets:
            raise _run_out(len(triples), count, "no class has two pictures left")
        target = generator.choice(targets)
        own = next(members for members in unused.values() if target in members)
        own.remove(target)
        same = generator.choice(own)
        own.remove(same)
        others = [index for members in unused.values() if members is not own for index in members]
        if not others:
            raise _run_out(len(triples), count, "no picture of another class is left")
        different = generator.choice(others)
        next(members for members in unused.values() if different in members).remove(different)
        triples.append(Triple(target, same, different, generator.randrange(_SEEDS.start, _SEEDS.stop)))
    return tuple(triples)


def original(labels: Sequence[int] | torch.Tensor, count: int = 20) -> tuple[Triple, ...]:
    """The draw of the published study: Python's generator seeded with 42, in the same order of draws.

    For the labels of CIFAR-10's training set and 20 triples these are its pictures and seeds (which seed met which
    triple is not known). The targets differ among each other, and so do the pictures of the same class and those of
    another; but a picture may be the target of one triple and pre-fitted in another.

    Args:
        labels: the class of each picture, ``(N,)``.
        count: how many triples.

    Raises:
        ValueError: no triple asked for, or pictures run out.
    """
    by_class = _by_class(labels, count)
    classes = {index: label for label, members in by_class.items() for index in members}
    generator = random.Random(42)
    if count > len(classes):
        raise _run_out(len(classes), count, f"there are {len(classes)} pictures")
    pairs: list[tuple[int, int]] = []
    targets = generator.sample(range(len(classes)), count)
    used_same: set[int] = set()
    used_different: set[int] = set()
    for target in targets:
        own = classes[target]
        others = [index for index in range(len(classes)) if classes[index] != own and index not in used_different]
        mates = [index for index in by_class[own] if index != target and index not in used_same]
        if not others or not mates:
            raise _run_out(len(pairs), count, f"no picture {'of' if others else 'outside'} class {own} is left")
        # samples of one, as published, and not choice: the two need not draw alike
        different = generator.sample(others, 1)[0]
        same = generator.sample(mates, 1)[0]
        used_different.add(different)
        used_same.add(same)
        pairs.append((same, different))
    seeds = generator.sample(_SEEDS, count)
    return tuple(Triple(target, *pair, seed) for target, pair, seed in zip(targets, pairs, seeds, strict=True))


def _by_class(labels: Sequence[int] | torch.Tensor, count: int) -> dict[int, list[int]]:
    """The indices of each class in their order, classes in theirs."""
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    numbers = labels.tolist() if isinstance(labels, torch.Tensor) else list(labels)
    members: dict[int, list[int]] = {label: [] for label in sorted(set(numbers))}
    for index, label in enumerate(numbers):
        members[label].append(index)
    return members


def _run_out(done: int, count: int, why: str) -> ValueError:
    return ValueError(f"only {done} of {count} triples can be drawn: {why}; ask for fewer or give more pictures")
