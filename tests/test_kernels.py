"""The switches of the processor: exact enough, by rule, and never left on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pixfit import kernels
from pixfit.kernels import matmul

CPU = torch.device("cpu")
SETTING = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def users_setting() -> Iterator[None]:
    before = SETTING.fp32_precision
    yield
    SETTING.fp32_precision = before


def accurate() -> bool:
    return matmul._accurate()


def test_the_rule() -> None:
    assert kernels.kernel_name(torch.device("cuda"), 256) == "torch-cuda"
    assert kernels.kernel_name(torch.device("cuda"), 8, "torch") == "torch-cuda"
    assert kernels.kernel_name(CPU, 47) == "torch"
    assert kernels.kernel_name(CPU, 256, "torch") == "torch"
    expected = "torch-onednn" if accurate() else "torch"
    assert kernels.kernel_name(CPU, 48) == kernels.kernel_name(CPU, 256) == expected


def test_the_rule_asks_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, name in ((True, "torch-onednn"), (False, "torch")):
        monkeypatch.setattr(matmul, "_accurate", lambda answer=answer: answer)
        assert kernels.kernel_name(CPU, 256) == name
        assert kernels.kernel_name(CPU, 256, "torch") == "torch"


@pytest.mark.parametrize("users", ["ieee", "bf16", "none"])
@pytest.mark.parametrize("kernel", ["torch-onednn", "torch", "torch-cuda"])
def test_the_users_setting_comes_back(kernel: str, users: str) -> None:
    SETTING.fp32_precision = users
    before = SETTING.fp32_precision
    with kernels.fast_matmul(kernel):
        assert SETTING.fp32_precision == ("bf16" if kernel == "torch-onednn" else before)
    assert SETTING.fp32_precision == before
    with pytest.raises(KeyError), kernels.fast_matmul(kernel):
        raise KeyError
    assert SETTING.fp32_precision == before


def halved() -> float:
    """Half of a number that is no normal one: 0 where those do not count."""
    return float(torch.tensor([1e-39]) * 0.5)


@pytest.mark.parametrize("users", [False, True])
def test_subnormal_numbers_do_not_count_meanwhile(users: bool) -> None:
    torch.set_flush_denormal(users)
    try:
        with kernels.without_subnormals():
            assert halved() == 0
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(halved).result() == 0
        assert (halved() == 0) == users
        with pytest.raises(KeyError), kernels.without_subnormals():
            raise KeyError
        assert (halved() == 0) == users
    finally:
        torch.set_flush_denormal(False)


def test_the_accuracy_check_leaves_no_trace() -> None:
    before, random = SETTING.fp32_precision, torch.get_rng_state()
    matmul._accurate.cache_clear()
    accurate()
    assert SETTING.fp32_precision == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("rows", "width"), [(1000, 48), (333, 192), (4096, 256)])
def test_a_linear_layer_under_the_chosen_kernel_is_float32(rows: int, width: int) -> None:
    """Forward and backward, against float64, under whatever the rule gives on this machine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(width, width, generator=generator, requires_grad=True)
    slope = torch.randn(rows, width, generator=generator)
    with kernels.fast_matmul(kernels.kernel_name(CPU, width)):
        output = torch.nn.functional.linear(x, weight)
        output.backward(slope)
    exact = x.detach().double() @ weight.detach().double().T
    pairs = [
        (output.detach(), exact),
        (x.grad, slope.double() @ weight.detach().double()),
        (weight.grad, slope.double().T @ x.detach().double()),
    ]
    for ours, truth in pairs:
        assert ours is not None
        assert float((ours - truth).abs().max() / truth.abs().max()) < 5e-6
