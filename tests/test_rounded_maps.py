"""Compiled hourglasses with bfloat16 operands against torch's convolutions of rounded numbers, summed in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pixfit as pf
from pixfit import run
from pixfit.kernels import hourglass, library
from pixfit.models import Hourglass, conv_networks
from pixfit.noise import GaussianNoise
from pixfit.optim import Adam
from tests.conftest import picture
from tests.test_native_maps import gradients, hourglasses, network_of

FOUND = library.load() if library.isas() else None
BEST = 0 if FOUND is None else FOUND.products
pytestmark = [
    pytest.mark.skipif(not BEST, reason="no compiled kernel multiplies bfloat16 here"),
    pytest.mark.usefixtures("no_kernel_named"),
]
each_way = pytest.mark.parametrize(
    "products", [pytest.param(1, id="vectors"), pytest.param(2, id="matrix units")][: max(1, BEST)]
)


def nearest(x: Tensor) -> Tensor:
    return x.float().bfloat16().to(x.dtype)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
        x, weight = nearest(x), nearest(weight)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        how, dy = (ctx.stride, ctx.padding), nearest(dy)
        dx = torch.nn.grad.conv2d_input(x.shape, weight, dy, *how)
        return dx, torch.nn.grad.conv2d_weight(x, weight.shape, dy, *how), None, None


def apart(model: Hourglass, seed: int, products: int, colours: int = 3) -> float:
    """How far pixels and gradients are from those of the same network with rounded operands, in float64."""
    assert model.size is not None
    network = network_of(model, seed, colours)
    generator = torch.Generator().manual_seed(seed + 1)
    code = torch.randn(model.code_channels, *model.size, generator=generator)
    slope = torch.randn(model.size[0] * model.size[1], colours, generator=generator)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(library.Library, "products", products)
        shown, found = gradients(network, code.requires_grad_(), slope, plain=False)

    def convolved(self: Any, x: Tensor) -> Tensor:
        if self is network.colours:
            return F.conv2d(x, self.weight, self.bias)
        if self.border:
            x = F.pad(x, (self.border,) * 4, mode="reflect")
        return _Rounded.apply(x, self.weight, self.stride, self.padding) + self.bias[:, None, None]  # type: ignore[no-untyped-call, no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_networks._Convolution, "forward", convolved)
        exact, wanted = gradients(network.double(), code.detach().double().requires_grad_(), slope, plain=True)
    whole = sum(float(each.square().sum()) for each in wanted) ** 0.5
    away = max(float((ours - theirs).norm()) for ours, theirs in zip(found, wanted, strict=True))
    return max(float((shown - exact).abs().max()), away / whole)


@each_way
@settings(max_examples=25, deadline=None)
@given(model=hourglasses(2), colours=st.integers(1, 40))
def test_pixels_and_gradients_are_those_of_rounded_operands(products: int, model: Hourglass, colours: int) -> None:
    """Where float32 puts a number on the other side of what rounds up, all that follows is a little different. With one
    set of weights or another that does not happen, or hardly."""
    assert model.size is not None
    small = replace(model, size=(min(model.size[0], 26), min(model.size[1], 26)))
    assert any(apart(small, seed, products, colours) < 1e-3 for seed in range(12))


@each_way
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((40, 100), {"channels": (40,)}),
        ((33, 161), {"channels": (16,), "down_kernel": 5}),
        ((64, 64), {"channels": (32,), "padding": "zeros"}),
        ((9, 300), {"channels": (70,), "up_kernel": 1}),
        ((600, 20), {"channels": (24,)}),
        ((30, 30), {"channels": (33, 18), "mix": False}),
        ((20, 34), {"channels": (65,), "skip_kernel": 3}),
    ],
)
def test_sides_of_every_length(products: int, size: tuple[int, int], settings: dict[str, Any]) -> None:
    """Several tiles, and what is left of them; bands of rows that are summed one after another."""
    model = Hourglass(skip_channels=(5,) * len(settings["channels"]), code_channels=7, **settings).sized(*size)
    assert min(apart(model, seed, products) for seed in range(8)) < 2e-3


@each_way
def test_numbers_do_not_depend_on_threads(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.Library, "products", products)
    network = network_of(Hourglass(channels=(64, 48), skip_channels=(4, 3)).sized(131, 120))  # worth several threads
    code = torch.randn(32, 131, 120, requires_grad=True)
    slope = torch.randn(131 * 120, 3)
    found = []
    for network.threads in (1, 2, 3, 7):
        with torch.autocast("cpu", torch.bfloat16):
            shown, slopes = gradients(network, code, slope, plain=False)
        found.append([shown, *slopes])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@each_way
def test_a_fit_in_bfloat16_is_as_good_as_one_in_float32(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.Library, "products", products)
    spec = pf.Spec(
        pf.Problem(picture(3, 33, 40), noise=GaussianNoise(0.1), held_out=0.05), Hourglass(channels=(16, 16, 16)),
        optimiser=Adam(lr=1e-3), budget=pf.Steps(120), estimate=pf.AveragedOutput(0.9, every=5),
    )  # fmt: skip
    exact = run.fit(spec)
    found = [run.fit(replace(spec, precision="bfloat16")) for _ in range(2)]
    name = ("", "bfloat16", "amx")[products]
    assert found[0].kernel == f"maps-avx512bf16-{name}"
    assert torch.equal(found[0].curves["loss"], found[1].curves["loss"])
    assert not torch.equal(found[0].curves["loss"], exact.curves["loss"])
    assert float(found[0].curves["psnr"][-1]) == pytest.approx(float(exact.curves["psnr"][-1]), abs=0.3)


def test_other_number_formats_and_libraries_leave_it_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(Hourglass(channels=(8, 8), code_channels=4).sized(12, 14))
    code = torch.randn(4, 12, 14)

    def compiled(dtype: torch.dtype) -> bool:
        with torch.autocast("cpu", dtype):
            return "_Pixels" in type(network.pixels(code).grad_fn).__name__

    assert compiled(torch.bfloat16)
    assert not compiled(torch.float16)
    for isa in library.isas():
        monkeypatch.setenv("PIXFIT_KERNEL", isa)
        assert compiled(torch.bfloat16) is (isa == "avx512bf16")
        assert (hourglass.maps_library("bfloat16") is None) is (isa != "avx512bf16")
    assert hourglass.maps_library("float64") is None


def test_a_way_to_multiply_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(Hourglass(channels=(8, 8), code_channels=4).sized(12, 14))
    monkeypatch.setattr(library.Library, "products", 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="cannot be"):
        network.pixels(torch.randn(4, 12, 14))


@each_way
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_what_memory_held_before_does_not_matter(products: int, kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read that was not written in this pass."""
    monkeypatch.setattr(library.Library, "products", products)
    model = Hourglass(channels=(5, 18), skip_channels=(3, 0), down_kernel=kernel, up_kernel=kernel, code_channels=3)
    network = network_of(model.sized(19, 43))
    code, slope = torch.randn(3, 19, 43, requires_grad=True), torch.randn(19 * 43, 3)
    found = []
    for before in (0.0, float("nan")):
        with torch.autocast("cpu", torch.bfloat16):
            network.pixels(code.detach())
            assert hourglass._free.shelf
            for tensor in hourglass._free.shelf:
                tensor.fill_(before)
            shown, slopes = gradients(network, code, slope, plain=False)
        found.append([shown, *slopes])
    assert all(map(torch.equal, *found))
