"""Compiled hourglasses of every instruction set against the module in torch, and what is left to torch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pixfit as pf
from pixfit import engine, run
from pixfit.job import Job
from pixfit.kernels import hourglass, library
from pixfit.models import DeepDecoder, DoublyOverparameterised, Hourglass, SelfGuided
from pixfit.models.conv_networks import HourglassNetwork
from pixfit.noise import GaussianNoise
from pixfit.optim import Adam
from tests.conftest import picture

ISAS = library.isas()
pytestmark = [
    pytest.mark.skipif(not ISAS, reason="no compiled kernels here: " + "; ".join(library.refused().values())),
    pytest.mark.usefixtures("no_kernel_named"),
]
each_isa = pytest.mark.parametrize("isa", ISAS or ["none"])


@st.composite
def hourglasses(draw: st.DrawFn, deepest: int = 3) -> Hourglass:
    levels = draw(st.integers(1, deepest))
    features = st.lists(st.integers(1, 40), min_size=levels, max_size=levels).map(tuple)
    skips = st.lists(st.integers(0, 9), min_size=levels, max_size=levels).map(tuple)
    kernel, code = st.sampled_from((1, 3, 5)), draw(st.integers(1, 9))
    model = Hourglass(
        channels=draw(features), up_channels=draw(st.none() | features), skip_channels=draw(skips),
        down_kernel=draw(kernel), up_kernel=draw(kernel), skip_kernel=draw(kernel), mix=draw(st.booleans()),
        upsampling=draw(st.sampled_from(("bilinear", "nearest"))), slope=draw(st.sampled_from((0.0, 0.2, 1.0))),
        padding=draw(st.sampled_from(("reflection", "zeros"))), code_channels=code,
        output=draw(st.sampled_from(("sigmoid", "linear"))),
    )  # fmt: skip
    least = 2**levels * (1 + max(model.down_kernel, model.up_kernel, model.skip_kernel) // 2) + 1
    return model.sized(draw(st.integers(least, 2 * least + 5)), draw(st.integers(least, 2 * least + 5)))


def network_of(model: Hourglass, seed: int = 0, out_features: int = 3) -> HourglassNetwork:
    """With gains, shifts and biases that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    network = model.build(2, out_features, generator=generator)
    assert isinstance(network, HourglassNetwork)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def gradients(network: HourglassNetwork, code: Tensor, slope: Tensor, *, plain: bool) -> tuple[Tensor, list[Tensor]]:
    threads, network.threads = network.threads, 0 if plain else network.threads
    shown = network.pixels(code)
    network.threads = threads
    assert ("_Pixels" in type(shown.grad_fn).__name__) is not plain
    return shown.detach(), list(torch.autograd.grad(shown, [code, *network.parameters()], slope.to(shown)))


@each_isa
@settings(max_examples=25, deadline=None)
@given(model=hourglasses(), colours=st.integers(1, 40), seed=st.integers(0, 99))
def test_pixels_and_gradients_are_those_of_torch(isa: str, model: Hourglass, colours: int, seed: int) -> None:
    """To what float32 itself is away from float64: small norms are over few pixels, and multiply every rounding. Where
    the activation has a corner, a value that rounding puts on its other side moves whole gradients a little."""
    assert model.size is not None
    network = network_of(model, seed, colours)
    generator = torch.Generator().manual_seed(seed + 1)
    code = torch.randn(model.code_channels, *model.size, generator=generator).requires_grad_()
    slope = torch.randn(model.size[0] * model.size[1], colours, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXFIT_KERNEL", isa)
        shown, found = gradients(network, code, slope, plain=False)
    alike, rounded = gradients(network, code, slope, plain=True)
    exact, wanted = gradients(network.double(), code.detach().double().requires_grad_(), slope, plain=True)
    assert shown.shape == exact.shape
    own = float((alike - exact).abs().max())
    assert float((shown - exact).abs().max()) <= 10 * own + 1e-5
    top = max(float(each.abs().max()) for each in wanted)
    whole = sum(float(each.square().sum()) for each in wanted) ** 0.5
    for number, (ours, theirs, true) in enumerate(zip(found, rounded, wanted, strict=True)):
        if model.slope == 1.0:
            away = float((theirs - true).abs().max())
            assert float((ours - true).abs().max()) <= 20 * away + 3e-5 * top
            continue
        apart = float((ours - true).norm())
        if apart > 20 * float((theirs - true).norm()) + 2e-3 * whole:
            assert apart < 4 * _corner(network, code, slope, number)


def _corner(network: HourglassNetwork, code: Tensor, slope: Tensor, number: int) -> float:
    """How far one of the gradients jumps where the code moves by what is hardly more than rounding."""
    generator = torch.Generator().manual_seed(0)
    exact = code.detach().double()
    slopes = []
    for size in (0.0, *[1e-5] * 12):
        moved = exact + size * torch.randn(exact.shape, generator=generator, dtype=torch.float64)
        slopes.append(gradients(network, moved.requires_grad_(), slope, plain=True)[1][number])
    return max(float((each - slopes[0]).norm()) for each in slopes[1:])


@each_isa
def test_a_whole_fit_follows_torchs_curve(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as rounding has not taken the two apart."""
    spec = pf.Spec(
        pf.Problem(picture(3, 33, 40), noise=GaussianNoise(0.1), held_out=0.05), Hourglass(channels=(16, 16, 16)),
        optimiser=Adam(lr=1e-3), budget=pf.Steps(40), estimate=pf.AveragedOutput(0.9, every=5),
    )  # fmt: skip
    monkeypatch.setenv("PIXFIT_KERNEL", isa)
    fused = run.fit(spec)
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    plain = run.fit(spec)
    assert (fused.kernel, plain.kernel) == (f"maps-{isa}", "torch")
    for name in ("loss", "psnr", "held_out_psnr"):
        torch.testing.assert_close(fused.curves[name], plain.curves[name], rtol=1e-3, atol=1e-3)
    assert fused.estimate is not None
    assert plain.estimate is not None
    assert float((fused.estimate - plain.estimate).abs().mean()) < 1e-3
    monkeypatch.setenv("PIXFIT_KERNEL", isa)
    again = run.fit(spec)
    assert torch.equal(again.curves["loss"], fused.curves["loss"])


def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, best = pf.Problem(picture(3, 17, 17)), f"maps-{ISAS[0]}"
    small = Hourglass(channels=(8, 8))

    def kernel(model: Any, **settings: Any) -> str:
        return run.fit(pf.Spec(problem, model, budget=pf.Steps(2), **settings)).kernel

    assert kernel(small) == kernel(DoublyOverparameterised(small)) == best
    assert kernel(small, kernel="torch") == kernel(small, precision="float64") == "torch"
    assert kernel(DeepDecoder(8, doublings=2)) == "torch"
    together = run.fit([pf.Spec(problem, small, budget=pf.Steps(2), seed=seed) for seed in (0, 1)])
    assert [result.kernel for result in together] == [best, best]
    network, code = network_of(small.sized(17, 17)), torch.randn(32, 17, 17, requires_grad=True)
    assert "_Pixels" in type(network.pixels(code).grad_fn).__name__
    network.threads = 0
    assert "_Pixels" not in type(network.pixels(code).grad_fn).__name__


@each_isa
@pytest.mark.parametrize("side", [40, 131])  # the larger one is worth several threads
def test_numbers_do_not_depend_on_threads(isa: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_KERNEL", isa)
    model = Hourglass(channels=(64, 48), skip_channels=(4, 3)).sized(side, side + 3)
    network = network_of(model)
    code = torch.randn(32, side, side + 3, requires_grad=True)
    slope = torch.randn(side * (side + 3), 3)
    found = []
    for network.threads in (1, 2, 3, 5):
        shown, slopes = gradients(network, code, slope, plain=False)
        found.append([shown, *slopes])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_two_passes_at_once_and_one_twice_do_not_share_their_memory() -> None:
    model = Hourglass(channels=(8, 8), code_channels=4).sized(12, 14)
    network = network_of(model)
    codes = [torch.randn(4, 12, 14, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    weights = list(network.parameters())

    def alone(code: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(network.pixels(code).square().sum(), weights))

    wanted = [alone(code) for code in codes]
    first, second = (network.pixels(code).square().sum() for code in codes)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(second, weights), wanted[1], strict=True))
    for _ in range(2):
        found = torch.autograd.grad(first, weights, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted[0], strict=True))
    # Threads side by side, each many times.
    wrong: list[int] = []

    def many(number: int) -> None:
        torch.set_num_threads(1)
        made = [alone(codes[number]) for _ in range(20)]
        wrong.extend(number for each in made if not all(map(torch.equal, each, wanted[number])))

    threads = [threading.Thread(target=many, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_used_again() -> None:
    model = Hourglass(channels=(8, 8), code_channels=4).sized(12, 14)
    network, code = network_of(model), torch.randn(4, 12, 14)

    def place() -> int:
        shown = network.pixels(code)
        assert shown.grad_fn is not None
        return int(shown.grad_fn.loan.memory.data_ptr())  # type: ignore[attr-defined]

    first = place()
    gc.collect()
    assert place() == first
    with torch.no_grad():
        network.pixels(code)
    assert len(hourglass._free.shelf) <= 2


def test_second_derivatives_are_torchs() -> None:
    model = Hourglass(channels=(4, 4), code_channels=2).sized(12, 12)
    network, code = network_of(model), torch.randn(2, 12, 12)
    weights = list(network.parameters())
    with pytest.raises(NotImplementedError, match="PIXFIT_KERNEL=torch"):
        torch.autograd.grad(network.pixels(code).square().sum(), weights, create_graph=True)
    network.threads = 0
    slopes = torch.autograd.grad(network.pixels(code).square().sum(), weights, create_graph=True)
    assert torch.autograd.grad(sum(slope.square().sum() for slope in slopes), weights, allow_unused=True)[0] is not None


@each_isa
@settings(max_examples=10, deadline=None)
@given(model=hourglasses(), seed=st.integers(0, 99))
def test_one_row_of_all_parameters_has_their_gradients(isa: str, model: Hourglass, seed: int) -> None:
    assert model.size is not None
    network = network_of(model, seed)
    code = torch.randn(model.code_channels, *model.size, generator=torch.Generator().manual_seed(seed))
    slope = torch.randn(model.size[0] * model.size[1], 3, generator=torch.Generator().manual_seed(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXFIT_KERNEL", isa)
        shown, (wanted, *each) = gradients(network, code.requires_grad_(), slope, plain=False)
        network.row = torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).requires_grad_()
        pixels = network.pixels(code)
        dcode, drow = torch.autograd.grad(pixels, [code, network.row], slope)
        assert torch.equal(pixels, shown)
        assert torch.equal(dcode, wanted)
        assert torch.equal(drow, torch.cat([one.flatten() for one in each]))
        patch.setenv("PIXFIT_KERNEL", "torch")
        with pytest.raises(ValueError, match="does not serve here"):
            network.pixels(code)


def test_a_fit_asks_for_the_gradient_of_one_row_where_compiled_code_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And else for that of each parameter; a row left where torch computes would get no gradient."""
    problem, small = pf.Problem(picture(3, 17, 17)), Hourglass(channels=(8, 8))

    def rows(**settings: Any) -> list[bool]:
        seen: list[bool] = []
        whole = HourglassNetwork.pixels

        def pixels(network: HourglassNetwork, code: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(network.row is not None)
            return whole(network, code)

        model = settings.pop("model", small)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HourglassNetwork, "pixels", pixels)
            losses = run.fit(pf.Spec(problem, model, budget=pf.Steps(3), **settings)).curves["loss"]
        assert losses[-1] < losses[0]
        return seen

    assert all(rows())
    assert not any(rows(kernel="torch"))
    assert not any(rows(precision="float64"))
    assert not any(rows(model=SelfGuided(small)))
    assert not any(rows(model=DoublyOverparameterised(small)))
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    assert not any(rows())


def test_a_model_that_explains_with_its_weights_gets_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a compiled fit asks for that of one row."""

    @dataclass(frozen=True)
    class Shifted(Hourglass):
        def explained(self, measured: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
            return 0 * measured + weights["colours.bias"][:, None, None]

    problem = pf.Problem(picture(3, 17, 17))
    spec = pf.Spec(problem, Shifted(channels=(8, 8)), optimiser=Adam(lr=1e-2), budget=pf.Steps(200))

    def loss() -> float:
        job = Job(spec, problem.view, run.first_weights(spec))
        *_, end = engine.fit([job])
        assert end.outcomes is not None
        return float(end.outcomes[0].losses[-1])

    compiled = loss()
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    assert compiled == pytest.approx(loss(), rel=1e-4)
    constant = problem.image.data.flatten(1)
    assert compiled == pytest.approx(float((constant - constant.mean(dim=1, keepdim=True)).square().mean()), rel=1e-2)


def test_the_users_settings_of_torch_do_not_matter() -> None:
    spec = pf.Spec(pf.Problem(picture(3, 17, 17)), Hourglass(channels=(8, 8)), budget=pf.Steps(5))
    wanted = run.fit(spec)
    with torch.autocast("cpu"):
        found = run.fit(spec)
    assert found.kernel == wanted.kernel
    assert torch.equal(found.curves["loss"], wanted.curves["loss"])
    torch.set_default_dtype(torch.float64)
    try:
        network = network_of(Hourglass(channels=(8, 8), code_channels=4).sized(12, 14)).float()
        code = torch.randn(4, 12, 14, dtype=torch.float32)
        shown = network.pixels(code)
        (slope,) = torch.autograd.grad(shown.sum(), [network.colours.bias])
    finally:
        torch.set_default_dtype(torch.float32)
    assert shown.dtype == slope.dtype == torch.float32
    assert "_Pixels" in type(shown.grad_fn).__name__
    network.threads = 0
    torch.testing.assert_close(shown, network.pixels(code))


def test_parameters_that_do_not_fit_are_refused() -> None:
    network = network_of(Hourglass(channels=(8, 8), code_channels=4).sized(12, 14))
    shape, own = network._shape, [getattr(module, name) for module, name in network._owners]
    code = torch.randn(4, 12, 14)

    def never(code: Tensor) -> Tensor:
        raise AssertionError("torch was asked")

    for wrong in (own[:-1], [*own, own[-1]], [own[0][:, :1].contiguous(), *own[1:]], [*own[:-1], torch.zeros(2)]):
        with pytest.raises(ValueError, match="are not an hourglass of"):
            hourglass.hourglass_pixels(code, wrong, shape, never)
    with pytest.raises(ValueError, match="are not an hourglass of"):
        hourglass.hourglass_pixels(torch.randn(5, 12, 14), own, shape, never)
    with pytest.raises(ValueError, match="cannot be on a code"):  # borders cannot be reflected in it
        hourglass.hourglass_pixels(torch.randn(4, 1, 1), own, shape, never)
