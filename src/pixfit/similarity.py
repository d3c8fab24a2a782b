"""How alike a memory's pictures are to its network: embeddings, all pairs of them, and the pairs that stand out."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pixfit import embedding
from pixfit.canonical import is_whole
from pixfit.embedding import Layer
from pixfit.modelfile import Network

__all__ = ["MEASURES", "Measure", "embeddings", "greedy_pairs", "matrix", "nearest", "published_pairs"]

Measure = Literal["cosine", "euclidean", "dot"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

_COLUMNS = 2**16  # of the embeddings that are multiplied at a time, in float64
_MOST = 2**30  # numbers of all embeddings together
_SUPPRESSED = 2  # pairs that the published rule leaves out


def embeddings(
    network: Network, *, layer: Layer = "last", pooled: bool = False, size: tuple[int, int] | None = None
) -> Tensor:
    """One row for each picture of a memory that is no copy: (N, H·W·K) of its whole field, or (N, K) of its mean.

    The published embedding is the whole field of the last hidden layer: its activations at each pixel, so that pictures
    are compared place by place.

    Args:
        network: a memory.
        layer: whose activations, see `pixfit.embedding.Layer`.
        pooled: whether to take the mean over the pixels.
        size: (width, height) of the samples, instead of each picture's own.

    Raises:
        ValueError: a model that is no memory, fields of unequal sizes or of more than 2^30 numbers, or as of
            `pixfit.embedding.field`.
    """
    if not network.model.sizes:
        raise ValueError(f"the model {type(network.model).__name__} is no memory of many pictures")
    count = network.originals
    sizes = {size} if size is not None else {(width, height) for height, width in network.model.sizes[:count]}
    if not pooled and len(sizes) != 1:
        raise ValueError(
            f"the pictures of this memory have {len(sizes)} sizes, and fields are compared place by place; give one "
            "size for all, or use pooled embeddings"
        )
    rows = torch.empty(0)
    for number in range(count):
        field = embedding.field(network.one(number), layer=layer, size=size)
        if not pooled and count * field.numel() > _MOST:
            raise ValueError(
                f"the fields of {count} pictures have {count * field.numel():,} numbers, and {_MOST:,} are taken; use "
                "pooled embeddings, or a smaller size"
            )
        row = embedding.pooled(field) if pooled else field.flatten()
        rows = rows if number else torch.empty(count, len(row), dtype=row.dtype)  # hundreds of megabytes, once
        rows[number] = row
    return rows


def matrix(embeddings: Tensor, measure: Measure = "cosine") -> Tensor:
    """Similarities (N, N) of all pairs, float64 and symmetric; a larger one is more alike by every measure.

    Args:
        embeddings: (N, K).
        measure: ``cosine`` of the angle, from -1 to 1, 0 with an embedding of zeros; ``dot``, the inner product;
            ``euclidean``, minus the distance.

    Raises:
        ValueError: no such measure, or embeddings that are no matrix.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; it may be {', '.join(MEASURES)}")
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings: got {tuple(embeddings.shape)}, allowed (pictures, numbers)")
    count = len(embeddings)
    products = torch.zeros(count, count, dtype=torch.float64)
    for part in torch.split(embeddings, _COLUMNS, dim=1):
        wide = part.double().cpu()
        products += wide @ wide.T
    products = (products + products.T) / 2
    squares = products.diagonal()
    if measure == "dot":
        return products
    if measure == "euclidean":
        return 0.0 - (squares[:, None] + squares - 2 * products).clamp(min=0).fill_diagonal_(0).sqrt()
    norms = torch.where(squares > 0, squares, 1.0).sqrt()
    return products / (norms[:, None] * norms)


def published_pairs(matrix: Tensor, most: bool) -> list[tuple[int, int]]:
    """The three most or least similar pairs by the rule of the exercise of 100 icons, the extreme one first.

    The diagonal becomes the mean of the matrix. Twice, all entries that equal the least one become that mean, too: the
    two least similar pairs are left out, also of the most similar ones. Then, of the six largest or smallest entries,
    every second one is taken, since each pair stands there twice. A picture may be in several pairs.

    Args:
        matrix: similarities (N, N), symmetric.
        most: the most similar ones, else the least similar.

    Returns:
        At most three pairs (i, j) with i < j; fewer where the mean is itself among the six, as with few pictures.

    Raises:
        ValueError: a matrix that is not symmetric.
    """
    _check(matrix)
    values = matrix.double().clone()
    mean = values.mean()
    replaced = torch.eye(len(values), dtype=torch.bool)
    values.fill_diagonal_(float(mean))
    for _ in range(_SUPPRESSED):
        least = values == values.min()
        replaced |= least
        values[least] = mean
    order = values.flatten().argsort(descending=most, stable=True)[:6:2]
    places = [divmod(int(place), len(values)) for place in order]
    pairs = [(min(place), max(place)) for place in places if not bool(replaced[place])]
    return list(dict.fromkeys(pairs))


def greedy_pairs(matrix: Tensor, most: bool, count: int = 3) -> list[tuple[int, int]]:
    """Pairs of distinct pictures: the most or least similar one, then the one of the pictures that remain, and so on.

    Args:
        matrix: similarities (N, N), symmetric.
        most: the most similar ones, else the least similar.
        count: of the pairs.

    Returns:
        ``count`` pairs (i, j) with i < j, or N // 2 where there are no more.

    Raises:
        ValueError: a matrix that is not symmetric, or a count below 0.
    """
    _check(matrix)
    if not (is_whole(count) and count >= 0):
        raise ValueError(f"count is {count!r}; it must be a whole number, 0 or more")
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1).tolist()
    order = matrix[rows, columns].argsort(descending=most, stable=True).tolist()
    taken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for place in order:
        pair = (rows[place], columns[place])
        if len(pairs) < count and taken.isdisjoint(pair):
            taken.update(pair)
            pairs.append(pair)
    return pairs


def nearest(matrix: Tensor, number: int, count: int = 5) -> list[int]:
    """The pictures most similar to one, itself left out, the most similar first: at most ``count``.

    Raises:
        ValueError: a matrix that is not symmetric, or no such picture.
    """
    _check(matrix)
    if not (is_whole(number) and 0 <= number < len(matrix)):
        raise ValueError(f"number is {number!r}; the pictures are those from 0 to {len(matrix) - 1}")
    order = matrix[number].argsort(descending=True, stable=True).tolist()
    return [other for other in order if other != number][:count]


def _check(matrix: Tensor) -> None:
    if matrix.ndim != 2 or not torch.equal(matrix, matrix.T):
        raise ValueError(f"matrix: got {tuple(matrix.shape)}, allowed symmetric (N, N), as `matrix` makes it")
