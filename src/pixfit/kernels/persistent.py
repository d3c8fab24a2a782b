"""Many small networks on a CUDA card, trained for many steps in one launch: a persistent kernel, one program a fit.

Fits are independent, so programs never meet: each takes its picture tile by tile through all layers, forward and
backward, and then updates its own weights, step after step. It needs Triton, which comes with torch's builds for CUDA.

Shape legend: F fits, P parameters of a fit, N samples, D coordinates of a sample, C outputs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pixfit.kernels.card import persistent_reason
from pixfit.kernels.graph import Fits, Inputs, check_update, step_table, tensor_shapes
from pixfit.kernels.native import Update
from pixfit.kernels.plan import Activation, Plan

__all__ = ["PersistentSteps"]

_TILE = 64  # samples
_CHUNK = 16  # inner features that a product takes at a time; longer ones need more registers than there are
_BLOCK = 1024  # parameters that an update takes at a time, more than a program has threads


class PersistentSteps:
    """Steps of F fits, full batches of squared errors, in one launch for as many steps as a call asks for.

    Args:
        plan: the network; `persistent_reason` says which can run.
        places: where each tensor of the plan begins in a row of P numbers, by name.
        fits: the state, in float32, without mask and moving average; it is read and written in place.
        inputs: coordinates, targets and no weights, the same at every step.
        update: what is done with a gradient; its rule is ``adam``, without clipping.
        products: ``ieee`` is strict float32; ``tf32x3`` makes three products of TF32 on the matrix units of a card and
            loses about two bits; ``tf32`` makes one, and rounds operands to 11 bits.

    Raises:
        ValueError: what `persistent_reason` says, or settings, state and inputs that do not go together.
    """

    def __init__(
        self,
        plan: Plan,
        places: Mapping[str, int],
        fits: Fits,
        inputs: Inputs,
        update: Update,
        *,
        products: Literal["ieee", "tf32x3", "tf32"] = "ieee",
    ) -> None:
        coordinates, targets, use = inputs
        against = persistent_reason(plan) or _against_fit(fits, update, use)
        if against is not None:
            raise ValueError(f"these fits cannot run in a persistent kernel: {against}")
        check_update(update, fits, ("adam",))
        if products not in ("ieee", "tf32x3", "tf32"):
            raise ValueError(f"products: got {products!r}, allowed 'ieee', 'tf32x3' or 'tf32'")
        (count, parameters), device, samples = fits.weights.shape, fits.weights.device, targets.shape[1]
        tables = count if coordinates.shape[0] == count else 1
        _check("coordinates", coordinates, (tables, samples, plan.in_features), device)
        _check("targets", targets, (count, samples, plan.out_features), device)
        hidden = plan.layers[:-1]
        self.fits, self.update, self.products = fits, update, products
        self._samples, self._depth = samples, len(hidden)
        self._coordinates, self._targets = coordinates.contiguous(), targets.contiguous()
        self._stride = samples * plan.in_features if tables > 1 else 0
        self._shapes = torch.tensor(_shapes(plan, places, parameters), dtype=torch.int32, device=device)
        self._omegas = torch.tensor([layer.omega for layer in hidden], device=device)
        width, tile = max(layer.outputs for layer in hidden), min(_TILE, samples)
        self._constants: dict[str, Any] = {
            "KIND": get_args(Activation).index(hidden[0].activation), "SIGMOID": plan.output == "sigmoid",
            "PLATEAU": update.plateau is not None, "D": plan.in_features, "C": plan.out_features,
            "T": _round_up(tile), "H": _round_up(width), "K": _CHUNK, "PRODUCTS": products, "BLOCK": _BLOCK,
        }  # fmt: skip
        self._gradient = torch.zeros(count, 3, parameters, device=device)
        self._scratch = torch.empty(count, 2 * len(hidden) - 1, _round_up(tile), _round_up(width), device=device)
        self._rule = torch.tensor(update.plateau or [0.0] * 5, dtype=torch.float64, device=device)
        absent = self._rule  # never read
        self._plateau = [absent if value is None else value for value in (fits.plateau, fits.plateau_base)]

    @property
    def name(self) -> str:
        """For the record of a fit."""
        return "triton-persistent" if self.products == "ieee" else f"triton-persistent-{self.products}"

    def steps(self, first_step: int, rates: Tensor) -> Tensor:
        """Makes S steps and returns their losses (F, S), on the device, without waiting for it.

        Args:
            first_step: number of the first of them; so many updates were made before.
            rates: (F, S, 2) in float64 on the CPU: learning rates, schedule included but not the plateau's factor. The
                second column is not read.

        Raises:
            ValueError: rates of another shape.
        """
        from pixfit.kernels import persistent_kernel

        fits, update = self.fits, self.update
        (count, parameters), device = fits.weights.shape, fits.weights.device
        table = step_table(first_step, rates, fits, update).float().to(device)
        losses = torch.empty(count, len(table), device=device)
        (beta1, beta2), kernel = update.betas, persistent_kernel.train
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(count,)](
                fits.weights, fits.first, fits.second, self._gradient, self._scratch, self._coordinates, self._targets,
                table, losses, self._shapes, self._omegas, *self._plateau, self._rule,
                len(table), count, parameters, self._samples, self._stride, self._depth,
                beta1, beta2, 1 - beta1, 1 - beta2, update.eps, update.weight_decay,
                **self._constants, **_options(self._constants["H"]),
            )  # fmt: skip
        return losses


def _against_fit(fits: Fits, update: Update, use: Tensor | None) -> str | None:
    if fits.weights.dtype != torch.float32:
        return f"it computes in torch.float32, not in {fits.weights.dtype}"
    if fits.mask is not None or fits.average is not None or use is not None:
        return "it knows no masks, no moving averages and no weights of samples"
    if update.clip_norm is not None:
        return "it does not clip gradients"
    return None


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or tensor.device != device:
        raise ValueError(
            f"{name}: got {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}, allowed {shape} of torch.float32 "
            f"on {device}"
        )


def _shapes(plan: Plan, places: Mapping[str, int], parameters: int) -> list[list[int]]:
    """A row a layer: inputs, outputs, places of weight and bias, and the length of the bias.

    The kernel trusts these numbers with its addresses, so they are checked here.
    """
    for name, shape in tensor_shapes(plan).items():
        start = places.get(name, -1)
        if not 0 <= start <= parameters - math.prod(shape):
            raise ValueError(f"places: {name} {shape} begins at {start}, and a row has {parameters} numbers")
    if any(a.outputs != b.inputs for a, b in pairwise(plan.layers)) or plan.layers[0].inputs != plan.in_features:
        raise ValueError("plan: a layer does not take as many inputs as the one before it gives")
    return [
        [
            layer.inputs,
            layer.outputs,
            places[layer.weight],
            0 if layer.bias is None else places[layer.bias],
            0 if layer.bias is None else layer.outputs,
        ]
        for layer in plan.layers
    ]


def _options(width: int) -> dict[str, Any]:
    """How the kernel is compiled: loops must not be pipelined (see there); products may be fused with sums."""
    return {"num_warps": 4 if width <= 32 else 8, "num_stages": 1, "enable_fp_fusion": True}


def _round_up(number: int) -> int:
    """To a power of two from 16 on, which is what a matrix product takes."""
    return max(16, 1 << (number - 1).bit_length())
