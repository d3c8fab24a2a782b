"""Several fits of one restoration side by side, a thread each."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import pixfit as pf
from pixfit import restore
from pixfit.kernels import matmul
from pixfit.pieces import Canvas
from pixfit.restore import pictures
from tests.conftest import clean, noisy


def in_a_new_thread(ask: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result()


@pytest.mark.usefixtures("four_pieces")
@pytest.mark.parametrize("settings", [{}, {"runs": 2}, {"sigma": 0.1, "stop": "sure"}])
def test_fits_side_by_side_are_those_one_after_another(settings: dict[str, Any]) -> None:
    image = noisy(clean())
    torch.set_num_threads(1)
    alone = restore.denoise(image, steps=12, **settings)
    torch.set_num_threads(3)
    seen: list[tuple[restore.Progress, str]] = []
    together = restore.denoise(
        image, steps=12, on_progress=lambda at: seen.append((at, threading.current_thread().name)), **settings
    )
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
    assert torch.equal(together.image.data, alone.image.data)
    assert (together.stop_step, together.steps, together.stop_rule) == (alone.stop_step, alone.steps, alone.stop_rule)
    for ours, theirs in zip(together.curves, alone.curves, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len({name for _, name in seen if name.startswith("pixfit")}) == 3
    fractions = [at.fraction for at, _ in seen]
    assert fractions == sorted(fractions)
    assert {at.fit for at, _ in seen} == set(range(1, 1 + len(alone.curves)))
    assert torch.equal(seen[0][0].picture(), image.data)
    assert not torch.equal(seen[-1][0].picture(), image.data)
    assert not [one for one in threading.enumerate() if one.name.startswith("pixfit")]


@pytest.mark.usefixtures("four_pieces")
@pytest.mark.parametrize("number", [1, 2])
def test_an_error_in_one_of_several_fits_ends_all(number: int) -> None:
    """Those before it and those after it, long before they would end."""

    class Broken(Exception):
        pass

    seen: dict[int, int] = {}

    def broken(at: restore.Progress) -> None:
        seen[at.fit] = at.step
        if at.fit == number and at.step > 10:
            raise Broken

    torch.set_num_threads(2)
    with pytest.raises(Broken):
        restore.denoise(noisy(clean()), steps=100_000, on_progress=broken)
    assert set(seen) <= {1, 2}
    assert max(seen.values()) < 50_000
    assert not [one for one in threading.enumerate() if one.name.startswith("pixfit")]


def test_what_is_ahead_is_the_fullest_lane() -> None:
    canvas = Canvas((3, 8, 8), 2)
    report = pictures._Report(lambda at: None, 0.0, 3, [12] * 4, canvas, torch.zeros(3, 8, 8), pace=1.0)
    assert report._longest() == 24
    report.finish(0)
    assert report._longest() == 12
    for number in (1, 2, 3):
        report.finish(number)
    assert report._longest() == 0


@pytest.mark.usefixtures("four_pieces")
def test_products_are_as_they_were_when_several_fits_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines where a switch of the process makes torch's products faster."""
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    monkeypatch.setattr(matmul, "_accurate", lambda: True)
    torch.set_num_threads(3)
    before = matmul._SETTING.fp32_precision
    mask = torch.rand(24, 27, generator=torch.Generator().manual_seed(0)) > 0.5
    done = restore.inpaint(clean(), mask, steps=6)
    assert len(done.curves) == 4
    assert matmul._SETTING.fp32_precision == before
    first, second = matmul.fast_matmul("torch-onednn"), matmul.fast_matmul("torch-onednn")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert matmul._SETTING.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert matmul._SETTING.fp32_precision == before


@pytest.mark.usefixtures("four_pieces")
def test_a_fit_among_several_counts_its_own_time(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    store = pf.Store(tmp_path)
    began = time.process_time()
    restore.denoise(noisy(clean()), steps=60, store=store)
    whole = time.process_time() - began
    assert 0 < sum(row["process_seconds"] for row in store.rows()) < whole


@pytest.mark.usefixtures("four_pieces")
def test_an_interrupt_ends_several_fits_with_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = threading.Event()
    monkeypatch.setattr(pictures.run, "interruptible", lambda: contextlib.nullcontext(pressed.is_set))

    def press(at: restore.Progress) -> None:
        if at.fit == 2 and at.step > 20:
            pressed.set()

    torch.set_num_threads(2)
    done = restore.denoise(noisy(clean()), steps=5_000, on_progress=press)
    assert (done.status, done.stop_rule) == ("cancelled", "interrupted")
    assert len(done.curves) == 2
    assert not torch.equal(done.fitted, done.degraded)
