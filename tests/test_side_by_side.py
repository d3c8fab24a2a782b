"""Several fits of one restoration side by side, a thread each."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
import torch

from pixfit import restore
from pixfit.restore import pictures
from tests.conftest import clean, noisy


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
    assert torch.get_num_threads() == 3
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
def test_an_error_in_one_of_several_fits_ends_all() -> None:
    class Broken(Exception):
        pass

    seen: list[int] = []

    def broken(at: restore.Progress) -> None:
        seen.append(at.step)
        if len(seen) == 5:
            raise Broken

    torch.set_num_threads(2)
    began = time.monotonic()
    with pytest.raises(Broken):
        restore.denoise(noisy(clean()), steps=100_000, on_progress=broken)
    assert time.monotonic() - began < 60
    assert not [one for one in threading.enumerate() if one.name.startswith("pixfit")]


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
