# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-def, untyped-decorator"
"""The device side of `pixfit.kernels.persistent`, in Triton: one program trains one network.

What the threads of a program hand to one another goes through global memory, which the caches hold, since Triton gives
no shared memory to name. One rule keeps that free of races: between two barriers no number is written that another
thread reads or writes. Each barrier says which hand-over it orders. Loops must not be pipelined (``num_stages=1``): a
load that is brought forward by an iteration would read what has not been written yet.

Shape legend: F fits, P parameters of a fit, N samples, D coordinates of a sample, C outputs, T samples of a tile,
H features of the widest hidden layer, rounded up, K of them at a time.
"""

from __future__ import annotations

from typing import get_args

import triton
import triton.language as tl

from pixfit.kernels.plan import Activation

__all__ = ["train"]

_SINE, _FINER, _FINER_EXACT, _RELU, _GELU, _SILU, _GAUSS = (
    tl.constexpr(get_args(Activation).index(name))
    for name in ("sine", "finer", "finer_exact", "relu", "gelu", "silu", "gauss")
)


@triton.jit
def _sincos(x):
    """Sine and cosine from one reduction to [−π/2, π/2]; absolute error below 2e-7 up to |x| = 1e4.

    π comes in three pieces of few bits, whose products with n are exact: so it does not matter whether the compiler
    fuses multiplications with additions. Triton's own sine is as exact, but branches at every element.
    """
    n = tl.floor(x * 0.318309886183790672 + 0.5)
    r = x - n * 3.140625
    r = r - n * 0.0009675025939941406
    r = r - n * 1.509957990978376e-07
    sign = 1.0 - 2.0 * (n - 2.0 * tl.floor(n * 0.5))  # both change sign with every odd multiple of π
    s = r * r
    p = s * 2.6000245023e-06 - 1.9806601602e-04
    p = p * s + 8.3330171046e-03
    p = p * s - 1.6666657089e-01
    q = s * -2.6076820739e-07 + 2.4761870880e-05
    q = q * s - 1.3888403226e-03
    q = q * s + 4.1666640708e-02
    q = q * s - 4.9999999549e-01
    return sign * (r + r * s * p), sign * (q * s + 1.0)


@triton.jit
def _activate(z, omega, KIND: tl.constexpr):
    """The activation of z and its slope. What is not finite stays so, or a fit that diverged would look healthy."""
    if KIND == _SINE:
        value, cosine = _sincos(omega * z)
        slope = omega * cosine
    elif KIND == _FINER or KIND == _FINER_EXACT:  # noqa: SIM109
        size = tl.abs(z)
        value, cosine = _sincos(omega * (size + 1.0) * z)
        if KIND == _FINER:
            slope = omega * (size + 1.0) * cosine
        else:
            slope = omega * (2.0 * size + 1.0) * cosine
    elif KIND == _GAUSS:
        scaled = omega * z
        value = tl.exp(-scaled * scaled)
        slope = -2.0 * omega * scaled * value
    elif KIND == _RELU:
        value = tl.where(z <= 0.0, 0.0, z)
        slope = tl.where(z <= 0.0, 0.0, 1.0)
    elif KIND == _GELU:
        share = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        value = z * share
        slope = share + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif KIND == _SILU:
        share = 1.0 / (1.0 + tl.exp(-z))
        value = z * share
        slope = share * (1.0 + z * (1.0 - share))
    else:
        value = z
        slope = z * 0.0 + 1.0
    return value, slope


@triton.jit
def _layer(shapes, number):
    """Inputs, outputs, places of weight and bias, and the length of the bias, of a layer."""
    row = shapes + 5 * number
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def _sum_up(gradient, at, tile, mask, old, new):
    """Adds what a tile gives to a gradient: reads the sum so far from one copy and writes the new one to another."""
    before = tl.load(gradient + old + at, mask=mask, other=0.0)
    tl.store(gradient + new + at, before + tile, mask=mask)


@triton.jit
def _forward_product(slot, weight, n, m, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PRODUCTS: tl.constexpr):
    """X Wᵀ of stored inputs X (T, H) and a weight W (m, n): (T, H), zero beyond column m."""
    rows, cols, inner = tl.arange(0, T)[:, None], tl.arange(0, H)[None, :], tl.arange(0, K)
    out = tl.zeros((T, H), tl.float32)
    for k in range(0, n, K):
        across, down = (k + inner)[None, :], (k + inner)[:, None]
        x = tl.load(slot + rows * H + across)
        w = tl.load(weight + cols * n + down, mask=(cols < m) & (down < n), other=0.0)
        out = tl.dot(x, w, out, input_precision=PRODUCTS)
    return out


@triton.jit
def _backward_product(delta, weight, n, m, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PRODUCTS: tl.constexpr):
    """Δ W of a stored Δ (T, H) and a weight W (m, n): (T, H), zero beyond column n."""
    rows, cols, inner = tl.arange(0, T)[:, None], tl.arange(0, H)[None, :], tl.arange(0, K)
    out = tl.zeros((T, H), tl.float32)
    for k in range(0, m, K):
        across, down = (k + inner)[None, :], (k + inner)[:, None]
        d = tl.load(delta + rows * H + across)
        w = tl.load(weight + down * n + cols, mask=(down < m) & (cols < n), other=0.0)
        out = tl.dot(d, w, out, input_precision=PRODUCTS)
    return out


@triton.jit
def _weight_product(delta, slot, T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PRODUCTS: tl.constexpr):
    """Δᵀ X of a stored Δ (T, H) and stored inputs X (T, H): (H, H)."""
    rows, cols, inner = tl.arange(0, H)[:, None], tl.arange(0, H)[None, :], tl.arange(0, K)
    out = tl.zeros((H, H), tl.float32)
    for k in range(0, T, K):
        d = tl.load(delta + (k + inner)[None, :] * H + rows)
        x = tl.load(slot + (k + inner)[:, None] * H + cols)
        out = tl.dot(d, x, out, input_precision=PRODUCTS)
    return out


@triton.jit(do_not_specialize=["steps", "fits", "parameters", "samples", "coordinate_stride", "depth"])
def train(
    weights, first, second, gradient, scratch, coordinates, targets, table, losses, shapes, omegas,
    plateau, base, rule,
    steps, fits, parameters, samples, coordinate_stride, depth, keep1, keep2, new1, new2, eps, weight_decay,
    KIND: tl.constexpr, SIGMOID: tl.constexpr, PLATEAU: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PRODUCTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``steps`` steps of fit number program_id(0), with hidden layers 0 … depth − 1 and the output layer ``depth``."""
    SLOT: tl.constexpr = T * H
    fit = tl.program_id(0).to(tl.int64)
    weights += fit * parameters
    first += fit * parameters
    second += fit * parameters
    gradient += fit * 3 * parameters
    # Slots (T, H): z's gradient of one layer, then output and slope of every hidden layer but the last.
    delta = scratch + fit * (2 * depth - 1) * SLOT
    slots = delta + SLOT
    coordinates += fit * coordinate_stride
    targets += fit * samples * C
    losses += fit * steps
    cols = tl.arange(0, H)
    tile = tl.arange(0, T)
    cell = tile[:, None] * H + cols[None, :]
    scale = 1.0 / (samples * C)
    _, first_width, first_weight, first_bias, first_biased = _layer(shapes, 0)
    last_width, _, last_weight, last_bias, last_biased = _layer(shapes, depth)
    if PLATEAU:
        plateau += fit * 5
        lowest, waited, factor = tl.load(plateau), tl.load(plateau + 1), tl.load(plateau + 2)
        full = tl.load(base + fit)
        decay, threshold, least = tl.load(rule), tl.load(rule + 1), tl.load(rule + 2)
        least_change, patience = tl.load(rule + 3), tl.load(rule + 4)

    for _ in range(steps):
        loss = 0.0
        old, new = parameters * 0, parameters  # copies of the gradient: zeros that stay zeros, and two that take turns
        for start in range(0, samples, T):
            places = start + tile
            used = places < samples

            # Forward. The last hidden layer's output and slope stay in registers, the others' are stored on the way.
            z = tl.zeros((T, H), tl.float32)
            for d in tl.static_range(D):
                x = tl.load(coordinates + places * D + d, mask=used, other=0.0)
                w = tl.load(weights + first_weight + cols * D + d, mask=cols < first_width, other=0.0)
                z += x[:, None] * w[None, :]
            z += tl.load(weights + first_bias + cols, mask=cols < first_biased, other=0.0)[None, :]
            value, slope = _activate(z, tl.load(omegas), KIND)
            for layer in range(1, depth):
                slot = slots + (2 * layer - 2) * SLOT
                tl.store(slot + cell, value)  # last read by the tile before, which ended with a barrier
                tl.store(slot + SLOT + cell, slope)
                tl.debug_barrier()  # whole rows are there before the product reads them
                n, m, weight, bias, biased = _layer(shapes, layer)
                z = _forward_product(slot, weights + weight, n, m, T, H, K, PRODUCTS)
                z += tl.load(weights + bias + cols, mask=cols < biased, other=0.0)[None, :]
                value, slope = _activate(z, tl.load(omegas + layer), KIND)

            # Output, loss, and their gradients.
            back = tl.zeros((T, H), tl.float32)
            for c in tl.static_range(C):
                at = last_weight + c * last_width + cols
                w = tl.load(weights + at, mask=cols < last_width, other=0.0)
                out = tl.sum(value * w[None, :], 1)
                out += tl.load(weights + last_bias + c, mask=c < last_biased, other=0.0)
                if SIGMOID:
                    out = 1.0 / (1.0 + tl.exp(-out))
                error = tl.where(used, out - tl.load(targets + places * C + c, mask=used, other=0.0), 0.0)
                loss += tl.sum(error * error, 0)
                d_out = 2.0 * scale * error
                if SIGMOID:
                    d_out *= out * (1.0 - out)
                _sum_up(gradient, at, tl.sum(d_out[:, None] * value, 0), cols < last_width, old, new)
                _sum_up(gradient, last_bias + c, tl.sum(d_out, 0), c < last_biased, old, new)
                back += d_out[:, None] * w[None, :]
            dz = back * slope

            # Backward through the hidden layers, last to first.
            for up in range(1, depth):
                layer = depth - up
                slot = slots + (2 * layer - 2) * SLOT
                n, m, weight, bias, biased = _layer(shapes, layer)
                _sum_up(gradient, bias + cols, tl.sum(dz, 0), cols < biased, old, new)
                tl.debug_barrier()  # the layer above has read its `delta`
                tl.store(delta + cell, dz)
                tl.debug_barrier()  # and this one's is whole
                product = _weight_product(delta, slot, T, H, K, PRODUCTS)
                inside = (cols[:, None] < m) & (cols[None, :] < n)
                _sum_up(gradient, weight + cols[:, None] * n + cols[None, :], product, inside, old, new)
                back = _backward_product(delta, weights + weight, n, m, T, H, K, PRODUCTS)
                dz = back * tl.load(slot + SLOT + cell)
            _sum_up(gradient, first_bias + cols, tl.sum(dz, 0), cols < first_biased, old, new)
            for d in tl.static_range(D):
                x = tl.load(coordinates + places * D + d, mask=used, other=0.0)
                at = first_weight + cols * D + d
                _sum_up(gradient, at, tl.sum(dz * x[:, None], 0), cols < first_width, old, new)
            old = new
            new = 3 * parameters - new
            # The sums are whole before the next tile, or the update, reads them; slots and weights have been read
            # before the next tile, or the update, writes them.
            tl.debug_barrier()

        loss *= scale
        tl.store(losses, loss)
        losses += 1
        rate = tl.load(table + fit)
        if PLATEAU:
            rate *= factor.to(tl.float32)
        size = tl.div_rn(rate, tl.load(table + 2 * fits))
        root = tl.load(table + 2 * fits + 1)
        table += 2 * fits + 3
        for start in range(0, parameters, BLOCK):
            # Element by element: a block has one for each thread at least, so each reads and writes its own.
            at = start + tl.arange(0, BLOCK)
            inside = at < parameters
            g = tl.load(gradient + old + at, mask=inside, other=0.0)
            w = tl.load(weights + at, mask=inside, other=0.0)
            mean = keep1 * tl.load(first + at, mask=inside, other=0.0) + new1 * g
            square = keep2 * tl.load(second + at, mask=inside, other=0.0) + new2 * g * g
            w = w * (1.0 - rate * weight_decay)
            w -= tl.div_rn(mean, tl.div_rn(tl.sqrt_rn(square), root) + eps) * size
            tl.store(first + at, mean, mask=inside)
            tl.store(second + at, square, mask=inside)
            tl.store(weights + at, w, mask=inside)
        tl.debug_barrier()  # the next step reads the new weights, and writes over the sums that were read here

        if PLATEAU:  # see pixfit.schedules.PlateauState; with full batches a step is an epoch
            found = loss.to(tl.float64)
            better = found < lowest * (1.0 - threshold)
            lowest = tl.where(better, found, lowest)
            waited = tl.where(better, 0.0, waited + 1.0)
            due = waited > patience
            lower = tl.maximum(factor * full * decay, least)
            factor = tl.where(due & (factor * full - lower > least_change), lower / full, factor)
            waited = tl.where(due, 0.0, waited)
    if PLATEAU:
        tl.store(plateau, lowest)
        tl.store(plateau + 1, waited)
        tl.store(plateau + 2, factor)
