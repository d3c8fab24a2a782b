"""A plan in plain torch: what every fused kernel must agree with, short enough to check by eye.

Shape legend: F fits, B samples of a batch, D coordinates of a sample, C outputs, n and m features of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pixfit.kernels.grid import grid_features
from pixfit.kernels.plan import Activation, Layer, Lift, Plan

__all__ = ["forward"]

_Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def forward(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    coordinates: Tensor,
    *,
    backward: Literal["float32", "bfloat16"] = "float32",
) -> Tensor:
    """Outputs (F, B, C) of F networks at coordinates (1 or F, B, D), with gradients for every tensor.

    Args:
        plan: the network.
        tensors: all that the plan names, each of F fits: (F, *shape). They give the number format of the result.
        coordinates: one table for all fits, or one each.
        backward: ``bfloat16`` rounds the operands of both backward products of a linear layer, dU W and dUᵀ X, to
            bfloat16 and adds up in the format of the tensors; dU is the gradient at U = X Wᵀ + b, and W and b hold the
            omega of sine and gauss already. The forward pass, the sums of dU that are the gradient of b, and the first
            layer where it takes raw coordinates are as with ``float32``, which rounds nothing.

    Raises:
        KeyError: the plan names a tensor that is not there.
        ValueError: another ``backward``.
    """
    if backward not in ("float32", "bfloat16"):
        raise ValueError(f"backward: got {backward!r}, allowed 'float32' or 'bfloat16'")
    x = _lift(plan.lift, tensors, coordinates)
    for number, layer in enumerate(plan.layers):
        exact = backward == "float32" or (number == 0 and plan.lift.kind == "raw")
        x = _layer(layer, tensors, x, _linear if exact else _rounded_linear)
    return torch.sigmoid(x) if plan.output == "sigmoid" else x


def _lift(lift: Lift, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Features (1 or F, B, n) of coordinates (1 or F, B, D); formulas and sources: `pixfit.models.encodings`."""
    if lift.kind == "raw":
        return x
    if lift.kind == "grid":
        return grid_features(lift, tensors, x)
    if lift.kind == "positional":
        bands = math.pi * torch.exp2(torch.arange(lift.octaves, dtype=x.dtype, device=x.device))
        phase = (x[..., None] * bands).flatten(-2)  # the octaves of one coordinate lie side by side
        waves = [torch.sin(phase), torch.cos(phase)]
        return torch.cat([x, *waves] if lift.include_input else waves, dim=-1)
    # Fourier and Gabor: sums over the D coordinates and not matrix products, which TF32 would round to a few bits.
    assert lift.frequencies is not None
    offset = x[..., None]  # (1 or F, B, D, 1)
    if lift.centres is not None:
        offset = offset - tensors[lift.centres][:, None]
    phase = (offset * (2.0 * math.pi * tensors[lift.frequencies][:, None])).sum(dim=-2)
    waves = [torch.cos(phase), torch.sin(phase)]
    if lift.kind == "gabor":
        envelope = torch.exp(offset.square().sum(dim=-2) * (-0.5 / lift.sigma**2))
        waves = [envelope * wave for wave in waves]
    return torch.cat(waves, dim=-1)


def _layer(layer: Layer, tensors: Mapping[str, Tensor], x: Tensor, linear: _Linear) -> Tensor:
    """(1 or F, B, n) to (F, B, m)."""
    weight, bias = tensors[layer.weight], None if layer.bias is None else tensors[layer.bias]
    if layer.activation in ("sine", "gauss"):
        weight, bias = layer.omega * weight, None if bias is None else layer.omega * bias
    u = linear(x.expand(len(weight), -1, -1), weight, bias)
    if layer.norm_first:
        y = _activate(layer.activation, layer.omega, _normalise(layer, tensors, u))
    else:
        y = _normalise(layer, tensors, _activate(layer.activation, layer.omega, u))
    return (y + x) * math.sqrt(0.5) if layer.skip else y


def _activate(activation: Activation, omega: float, u: Tensor) -> Tensor:
    """Of u = ω (W x + b) for sine and gauss, of u = W x + b for the others."""
    match activation:
        case "none":
            return u
        case "sine":
            return torch.sin(u)
        case "finer":
            return torch.sin(omega * (u.abs() + 1.0).detach() * u)
        case "finer_exact":
            return torch.sin(omega * (u.abs() + 1.0) * u)
        case "gauss":
            return torch.exp(-u.square())
        case "relu":
            return F.relu(u)
        case "gelu":
            return F.gelu(u)
        case "silu":
            return F.silu(u)


def _normalise(layer: Layer, tensors: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """Over the features of each sample."""
    if layer.norm == "layer":
        y = F.layer_norm(y, (layer.outputs,), eps=layer.eps)
    elif layer.norm == "rms":
        y = F.rms_norm(y, (layer.outputs,), eps=layer.eps)
    if layer.gain is not None:
        y = y * tensors[layer.gain][:, None]
    return y if layer.shift is None else y + tensors[layer.shift][:, None]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (F, B, n), weight (F, m, n) and bias (F, m) to (F, B, m)."""
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def _rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same forward; backward from operands rounded to bfloat16."""
    return cast(Tensor, _RoundedBackward.apply(x, weight, bias))  # type: ignore[no-untyped-call]


class _RoundedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        (du,) = slopes
        rounded = _rounded(du)
        dx = torch.bmm(rounded, _rounded(weight)) if ctx.needs_input_grad[0] else None
        dweight = torch.bmm(rounded.mT, _rounded(x))
        return dx, dweight, du.sum(dim=1) if ctx.biased else None


def _rounded(operand: Tensor) -> Tensor:
    # Kept wide: products of two such numbers are exact in float32, so that only their sum is rounded.
    return operand.to(torch.bfloat16).to(operand.dtype)
