"""What a network makes of a place on its way to a colour: activations as embeddings, and the way on from them.

An embedding of a picture is a field: the activations of one layer at each of its pixels. From the last hidden layer to
the colour the way is affine, so that blends of such embeddings are blends of the pictures, whatever the network; from a
narrower or earlier layer it is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pixfit.kernels import Lift, Plan, twin
from pixfit.modelfile import Network

__all__ = ["Layer", "decode", "field", "hidden_features", "pooled"]

Layer = int | Literal["last", "narrowest"]
"""A hidden layer: its number from 0, the last one, or (of several the first) the one with the fewest features."""

_POINTS = 2**14  # samples that pass at a time


def hidden_features(network: Network) -> tuple[int, ...]:
    """Features of each hidden layer.

    Raises:
        ValueError: a network that is no list of layers (a model without a `pixfit.kernels.Plan`).
    """
    return tuple(layer.outputs for layer in _plan(network).layers[:-1])


def field(network: Network, *, layer: Layer = "last", size: tuple[int, int] | None = None) -> Tensor:
    """The activations (H·W, K) of a hidden layer, after its nonlinearity, at the pixels in row-major order.

    Args:
        network: of one picture, such as `Network.one` takes from a memory.
        layer: see `Layer`.
        size: (width, height) of the samples to take instead of the picture's own.

    Raises:
        ValueError: no such layer, a memory as a whole, or a network that is no list of layers.
    """
    plan, number = _plan(network), _number(network, layer)
    if network.model.sizes:
        raise ValueError("a memory has an embedding for each of its pictures; take one with Network.one")
    _, height, width = network.shape
    samples = None if size is None else (size[1], size[0])
    dtype = next(iter(network.weights.values())).dtype
    points = network.model.coordinates.grid(height, width, samples=samples, dtype=dtype)
    return _run(network, replace(plan, layers=plan.layers[: number + 1], output="linear"), points)


def pooled(field: Tensor) -> Tensor:
    """The mean (K,) of a field (H·W, K) over the pixels: an embedding that does not know the picture's size."""
    return field.mean(dim=0)


def decode(network: Network, embedding: Tensor, *, layer: Layer = "last") -> Tensor:
    """Pixels (N, C), not clamped, from activations (N, K) of a hidden layer: the opposite of `field`.

    For a whole picture of H × W pixels ``decode(...).T.reshape(-1, H, W)``.

    Raises:
        ValueError: activations of another number of features, or as of `field`.
    """
    plan, number = _plan(network), _number(network, layer)
    features = plan.layers[number].outputs
    if embedding.ndim != 2 or embedding.shape[1] != features:
        raise ValueError(f"embedding: got {tuple(embedding.shape)}, allowed (pixels, {features}) of layer {layer!r}")
    rest = Plan(features, Lift("raw", features), plan.layers[number + 1 :], plan.output)
    return network.model.to_pixels(_run(network, rest, embedding))


def _plan(network: Network) -> Plan:
    plan = network.model.plan(network.model.in_features, network.shape[0])
    if plan is None:
        raise ValueError(
            f"a {type(network.model).__name__} with these settings is no list of layers, so that it has no embeddings; "
            "use a Siren, Finer or Gauss, or an Mlp"
        )
    return plan


def _number(network: Network, layer: Layer) -> int:
    widths = hidden_features(network)
    if layer == "last":
        return len(widths) - 1
    if layer == "narrowest":
        return widths.index(min(widths))
    if not isinstance(layer, int) or not 0 <= layer < len(widths):
        raise ValueError(f"layer is {layer!r}; it may be last, narrowest, or a number from 0 to {len(widths) - 1}")
    return layer


def _run(network: Network, plan: Plan, points: Tensor) -> Tensor:
    tensors = {name: value[None] for name, value in network.weights.items()}
    with torch.no_grad():
        return torch.cat([twin.forward(plan, tensors, part[None])[0] for part in torch.split(points, _POINTS)])
