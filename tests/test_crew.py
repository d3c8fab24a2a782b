"""Threads that share a step: the same numbers every time, whatever they are, and torch's own setting left alone."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch

import pixfit as pf
from pixfit import engine, kernels, run
from pixfit.job import Blind
from pixfit.models import Mlp, Siren
from pixfit.optim import Adam, Muon
from tests.conftest import picture

WIDE = [Siren(1, 256), Mlp(2, 256, norm="layer", output="sigmoid")]


def test_results_come_in_order_and_the_thread_count_comes_back() -> None:
    torch.set_num_threads(2)
    with kernels.Crew(2) as crew:
        assert torch.get_num_threads() == 1
        assert crew.map(lambda part: (time.sleep(0.02 * (3 - part)), part)[1], 3) == [0, 1, 2]
        names = set(crew.map(lambda part: (time.sleep(0.05), threading.current_thread().name)[1], 2))
        assert len(names) == 2
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), kernels.Crew(2) as crew:
        crew.map(lambda part: 1 // part, 2)
    assert torch.get_num_threads() == 2
    with kernels.Crew(0) as crew:
        assert torch.get_num_threads() == 2
        assert crew.map(abs, 3) == [0, 1, 2]


def test_the_rule_of_its_size() -> None:
    torch.set_num_threads(2)
    assert kernels.crew_size(1024, 32) == 1  # too little work to share
    assert kernels.crew_size(4096, 256) == 2
    torch.set_num_threads(1)
    assert kernels.crew_size(2**20, 1024) == 1


@pytest.mark.parametrize("model", WIDE, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_threads_repeat_themselves_and_agree_with_one(model: pf.models.Model, precision: str) -> None:
    spec = pf.Spec(
        pf.Problem(picture(3, 60, 70), held_out=0.1),
        model,
        optimiser=Muon(adam_lr=1e-3) if isinstance(model, Mlp) else Adam(lr=1e-4),
        budget=pf.Steps(12),
        precision=precision,  # type: ignore[arg-type]
        kernel="torch",
    )
    torch.set_num_threads(1)
    alone = pf.fit(spec, record=pf.Record(every=3))
    torch.set_num_threads(2)
    first, second = (pf.fit(spec, record=pf.Record(every=3)) for _ in range(2))
    assert torch.equal(first.curves["loss"], second.curves["loss"])
    assert torch.equal(first.curves["psnr"], second.curves["psnr"])
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    strict = precision == "float32" and isinstance(model, Siren)  # Muon rounds to bfloat16 inside
    torch.testing.assert_close(first.curves["loss"], alone.curves["loss"], rtol=1e-4 if strict else 2e-2, atol=0)


def test_looking_beside_the_step_disturbs_no_thread() -> None:
    """A busy machine once met a look in the middle of a step: other weights were in the module, and gradients lost."""
    spec = pf.Spec(pf.Problem(picture(3, 64, 64)), Siren(1, 256), budget=pf.Steps(30), kernel="torch")
    torch.set_num_threads(2)
    plain = pf.fit(spec, record=pf.Record(every=10**6))
    watched = pf.fit(spec, record=pf.Record(every=1, points=4096))
    assert torch.equal(plain.curves["loss"], watched.curves["loss"])


def test_parts_and_tiles_make_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from pixfit.stack import Stack

    spec = pf.Spec(pf.Problem(picture(3, 50, 41)), Siren(1, 256), budget=pf.Steps(1), precision="float64")
    job = run._job(spec, {}, ())

    def gradient(threads: int, tile: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        monkeypatch.setattr(Stack, "tile", tile)
        loop = engine._Loop([job], torch.device("cpu"), Blind(), None)
        assert loop.crew.size == threads
        with loop.crew:
            return loop._backward()[1]

    whole = gradient(1, 10**6)
    for threads, tile in ((1, 7), (2, 10**6), (2, 100)):
        torch.testing.assert_close(gradient(threads, tile), whole, rtol=1e-10, atol=1e-14)


def test_small_nets_keep_to_one_thread() -> None:
    torch.set_num_threads(2)
    spec = pf.Spec(pf.Problem(picture(3, 32, 32)), Siren(2, 32), budget=pf.Steps(2))
    two = pf.fit(dataclasses.replace(spec))
    torch.set_num_threads(1)
    assert torch.equal(two.curves["loss"], pf.fit(spec).curves["loss"])
