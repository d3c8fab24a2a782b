"""The triples of the pre-fit study: the published draw exactly, and ours without a picture twice."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixfit.studies.triples import Triple, distinct, original

LABELS = [(index * 7 + index // 13) % 10 for index in range(50_000)]
FIRST = (41905, 38443, 17087, 6498528202505966381)  # target, same, different, seed


def as_published(labels: list[int], count: int) -> list[tuple[int, int, int, int]]:
    """The draw as the notebook makes it, with the module's own generator and dictionaries from which pictures go."""
    before = random.getstate()
    try:
        random.seed(42)
        targets = random.sample(list(range(len(labels))), count)
        left_for_different = dict(enumerate(labels))
        left_for_same = dict(enumerate(labels))
        drawn = []
        for a in targets:
            b = random.sample([key for key, label in left_for_different.items() if label != labels[a]], 1)[0]
            del left_for_different[b]
            c = random.sample([key for key, label in left_for_same.items() if label == labels[a] and key != a], 1)[0]
            del left_for_same[c]
            drawn.append((a, c, b))
        seeds = random.sample(range(1, 2**63 - 1), count)
    finally:
        random.setstate(before)
    return [(*triple, seed) for triple, seed in zip(drawn, seeds, strict=True)]


def as_tuples(triples: tuple[Triple, ...]) -> list[tuple[int, int, int, int]]:
    return [(triple.target, triple.same, triple.different, triple.seed) for triple in triples]


def test_the_published_draw() -> None:
    triples = original(LABELS)
    assert as_tuples(triples) == as_published(LABELS, 20)
    assert as_tuples(triples)[0] == FIRST
    assert [triple.target for triple in triples[:4]] == [41905, 7296, 1639, 48598]  # the labels do not enter
    assert original(torch.tensor(LABELS)) == triples


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 20))
def test_the_published_draw_of_few_pictures(labels: list[int], count: int) -> None:
    """Where pictures are few, the same one may be target here and pre-fitted there; when they run out, both stop."""
    try:
        expected = as_published(labels, count)
    except ValueError:
        with pytest.raises(ValueError, match=rf"only \d+ of {count} triples"):
            original(labels, count)
    else:
        assert as_tuples(original(labels, count)) == expected


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = random.getstate()
    original(LABELS[:500])
    distinct(LABELS[:500], 20, seed=1)
    assert random.getstate() == before


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 5), max_size=40), st.integers(0, 2**64), st.randoms())
def test_distinct_triples(count: int, more: list[int], seed: int, shuffle: random.Random) -> None:
    """Two classes of three pictures for each triple are always enough, whatever else there is."""
    labels = [1] * (3 * count) + [4] * (3 * count) + more
    shuffle.shuffle(labels)
    triples = distinct(labels, count, seed)
    assert len(triples) == count
    assert len({index for triple in triples for index in (triple.target, triple.same, triple.different)}) == 3 * count
    for triple in triples:
        assert labels[triple.target] == labels[triple.same] != labels[triple.different]
        assert 1 <= triple.seed < 2**63 - 1
    assert distinct(labels, count, seed) == triples
    assert distinct(labels, 1, seed) == triples[:1]  # a smaller study is part of a larger one


def test_seeds_draw_differently() -> None:
    drawn = {distinct(LABELS[:1000], 5, seed) for seed in range(20)}
    assert len(drawn) == 20
    assert len({triple.seed for triples in drawn for triple in triples}) == 100


def test_every_class_becomes_a_target() -> None:
    labels = [index % 3 for index in range(60)]
    targets = [labels[triples[0].target] for triples in (distinct(labels, 1, seed) for seed in range(60))]
    assert min(targets.count(label) for label in range(3)) >= 8


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        ([0, 1, 2, 3], 1, "only 0 of 1 triples .* no class has two pictures"),
        ([0, 0, 0, 0], 1, "only 0 of 1 triples .* no picture of another class"),
        ([0, 0, 1, 1], 2, "only 1 of 2 triples"),
        ([], 1, "only 0 of 1"),
        ([0, 0, 1], 0, "count is 0; it must be at least 1"),
    ],
)
def test_too_few_pictures(labels: list[int], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distinct(labels, count, 0)


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        ([0, 1, 2, 3], 1, r"no picture of class \d is left"),
        ([5, 5, 5], 2, "no picture outside class 5 is left"),
        ([0, 1], 3, "there are 2 pictures"),
        ([0, 0, 1], -1, "count is -1"),
    ],
)
def test_too_few_pictures_for_the_published_draw(labels: list[int], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        original(labels, count)
