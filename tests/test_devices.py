"""Fits keep their tensors on their device, and their results come back: on a device that is not there.

No GPU is needed: `tests.elsewhere` says of tensors that they lie elsewhere, and refuses what mixes them with others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pixfit as pf
from pixfit import engine, recipes, render, restore, run
from pixfit.job import State
from pixfit.losses import LOSSES
from pixfit.models import (
    AxisCode,
    BinaryCode,
    Grid,
    Hourglass,
    LearnedCode,
    Maml,
    Memory,
    Mlp,
    Reptile,
    RingCode,
    Siren,
)
from pixfit.optim import OPTIMISERS, Adam, Langevin
from pixfit.schedules import SCHEDULES
from pixfit.spec import AugmentedBatches, AveragedOutput, BestHeldOut, MovingAverage, PictureBatches, PosteriorMean
from pixfit.stopping import HeldOut, MovingVariance, TargetPSNR, WindowVariance
from tests import test_conv, test_dip_variants, test_export, test_hyper, test_operators
from tests.conftest import picture
from tests.elsewhere import ELSEWHERE, Elsewhere

IMAGE = picture(3, 24, 20)
PLAIN = pf.Spec(pf.Problem(IMAGE), Siren(1, 8), optimiser=Adam(1e-3), budget=pf.Steps(5))
HELD_OUT = replace(PLAIN, problem=pf.Problem(IMAGE, noise=pf.GaussianNoise(0.1), held_out=0.1))
PRIOR = test_dip_variants.spec_of(precision="float32")
GALLERY = pf.Gallery([picture(3, 8, 9, seed=seed) for seed in range(4)], held_out=0.1)
TILES = {"problem": test_hyper.MOSAIC, "batches": pf.Batches(2 * test_hyper.PIXELS)}
META = {"height": test_hyper.ROWS, "width": test_hyper.COLUMNS}


def _of_model(name: str) -> pf.Spec:
    image = picture(test_export.CHANNELS.get(name, 3), 24, 20)
    return replace(PLAIN, problem=pf.Problem(image), model=test_export.FAMILY[name])


def _of_code(code: Any) -> pf.Spec:
    model = Memory(Siren(1, 8), code, GALLERY.sizes)
    return replace(PLAIN, problem=GALLERY, model=model, batches=PictureBatches(2), estimate=BestHeldOut(2))


def _of_grid(interpolation: Any) -> pf.Spec:
    return replace(PLAIN, model=Mlp(1, 8, encoding=Grid.pyramid(24, 20, interpolation=interpolation)))


def _of_operator(name: str) -> pf.Spec:
    image = picture(3, 12, 12)
    return replace(PLAIN, problem=pf.Problem(image, test_operators.FAMILY[name]((3, 12, 12))))


Make = Callable[[], pf.Spec]
CASES: dict[str, Make] = {
    "batches": lambda: replace(PLAIN, batches=pf.Batches(100)),
    "bfloat16": lambda: replace(PLAIN, precision="bfloat16"),
    "bfloat16-backward": lambda: replace(PLAIN, precision="bfloat16-backward"),
    "float64": lambda: replace(PLAIN, precision="float64"),
    "moving-average": lambda: replace(HELD_OUT, estimate=MovingAverage()),
    "best-held-out": lambda: replace(HELD_OUT, estimate=BestHeldOut(2)),
    "target": lambda: replace(HELD_OUT, stopping=TargetPSNR(3.0)),
    "held-out": lambda: replace(
        PRIOR, stopping=HeldOut(4), estimate=AveragedOutput(0.9, every=2), budget=pf.Steps(20)
    ),
    "window": lambda: replace(PRIOR, stopping=WindowVariance(3, 5, 2), estimate=AveragedOutput(0.5)),
    "moving": lambda: replace(PRIOR, stopping=MovingVariance(0.1, 5, 2), estimate=AveragedOutput(0.5)),
    "posterior": lambda: replace(PRIOR, optimiser=Langevin(), estimate=PosteriorMean(2, 2)),
    "from-picture": lambda: replace(_of_grid("linear"), start=pf.Start(pf.starts.FromPicture())),
    "maml": lambda: replace(PLAIN, model=Maml(Siren(1, 8), **META), **TILES),
    "reptile": lambda: replace(PLAIN, model=Reptile(Siren(1, 8), **META), **TILES),
    "crops": lambda: replace(
        test_hyper.spec_of("conv"), batches=AugmentedBatches(2 * test_hyper.PIXELS, turns=False, crop=0.5)
    ),
    **{f"model {name}": lambda name=name: _of_model(name) for name in test_export.FAMILY},
    **{f"grid {one}": lambda one=one: _of_grid(one) for one in ("linear", "cubic", "spline")},
    **{f"code {type(one).__name__}": lambda one=one: _of_code(one) for one in (
        BinaryCode(), AxisCode(), RingCode(), LearnedCode(4),
    )},
    **{f"hyper {name}": lambda name=name: test_hyper.spec_of(name) for name in test_hyper.FAMILY},
    **{f"prior {name}": lambda model=model: replace(PRIOR, model=model) for name, model in (
        *zip(test_conv.IDS, test_conv.FAMILY, strict=True),
        *zip(test_dip_variants.IDS, test_dip_variants.FAMILY, strict=True),
    )},
    # A foreign operator in NumPy works on the CPU alone.
    **{f"operator {name}": lambda name=name: _of_operator(name) for name in test_operators.FAMILY
       if name != "external object"},
    **{f"optimiser {name}": lambda kind=kind: replace(PLAIN, optimiser=kind()) for name, kind in OPTIMISERS.items()},
    **{f"schedule {name}": lambda kind=kind: replace(PLAIN, optimiser=Adam(1e-3, schedule=kind()))
       for name, kind in SCHEDULES.items()},
    **{f"loss {name}": lambda kind=kind: replace(PLAIN, loss=kind()) for name, kind in LOSSES.items()},
    **{f"recipe {name}": lambda make=make: replace(make(pf.Problem(IMAGE)), budget=pf.Steps(1))
       for name, make in recipes.RECIPES.items()},
}  # fmt: skip


def here(value: Tensor | None) -> bool:
    return value is not None and type(value) is Tensor and value.device.type == "cpu"


@pytest.mark.parametrize("name", CASES)
def test_a_fit_keeps_to_its_device_and_comes_out_as_on_the_cpu(name: str) -> None:
    spec = CASES[name]()
    plain = pf.fit(replace(spec, kernel="torch"), device="cpu")
    with Elsewhere() as away:
        done = pf.fit(spec, device=ELSEWHERE)
    assert (done.device, done.status, done.steps) == (str(ELSEWHERE), plain.status, plain.steps)
    assert away.calls > 50
    assert here(done.estimate)
    assert all(map(here, (*done.weights.values(), *done.curves.values())))
    torch.testing.assert_close(done.curves["loss"], plain.curves["loss"], rtol=2e-3, atol=1e-6)
    assert done.estimate is not None
    assert plain.estimate is not None
    torch.testing.assert_close(done.estimate, plain.estimate, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["batches", "held-out", "posterior", "crops", "prior 0-Hourglass", "model fourier"])
def test_fits_side_by_side_keep_to_their_device(name: str) -> None:
    specs = [replace(CASES[name](), seed=seed) for seed in (1, 2, 3)]
    plain = [pf.fit(replace(spec, kernel="torch"), device="cpu") for spec in specs]
    with Elsewhere():
        together = pf.fit(specs, device=ELSEWHERE)
    for ours, theirs in zip(together, plain, strict=True):
        assert (ours.status, ours.steps) == (theirs.status, theirs.steps)
        torch.testing.assert_close(ours.curves["loss"], theirs.curves["loss"], rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["batches", "held-out", "optimiser Muon", "schedule Plateau", "crops"])
def test_an_interrupted_fit_goes_on_there(name: str, tmp_path: Path) -> None:
    jobs, kept = [run._job(CASES[name](), {}, ())], pf.Store(tmp_path)
    with Elsewhere():
        states = {state.step: state for state in engine.fit(jobs, device=ELSEWHERE, save_every=-1.0)}
        kept.save_checkpoint("one", states[2].tensors, states[2].scalars)
        found = kept.load_checkpoint("one")
        assert found is not None
        (*_, ended) = engine.fit(jobs, device=ELSEWHERE, state=State(2, *found))
    whole = states[max(states)]
    assert ended.outcomes is not None
    assert whole.outcomes is not None
    assert torch.equal(ended.outcomes[0].losses, whole.outcomes[0].losses)
    assert all(torch.equal(ended.outcomes[0].weights[key], value) for key, value in whole.outcomes[0].weights.items())


@pytest.mark.parametrize("model", [Siren(1, 8), Hourglass(channels=(6, 6), code_channels=4)], ids=["siren", "prior"])
def test_a_picture_is_rendered_there(model: Any) -> None:
    result = pf.fit(replace(PLAIN, model=model))
    with Elsewhere() as away:
        shown = render.render(result, device=ELSEWHERE)
    assert away.calls > 5
    assert here(shown)
    torch.testing.assert_close(shown, render.render(result), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["denoise", "impulse", "inpaint"])
def test_a_picture_is_restored_there(task: str) -> None:
    image = pf.images.Image(picture(3, 30, 26).data)
    known = torch.ones(30, 26, dtype=torch.bool)
    known[10:14, 3:9] = False
    calls: dict[str, Callable[..., restore.Restored]] = {
        "denoise": lambda **options: restore.denoise(image, **options),
        "impulse": lambda **options: restore.denoise(image, noise="impulse", **options),
        "inpaint": lambda **options: restore.inpaint(image, known, **options),
    }
    plain = calls[task](steps=4, device="cpu", precision="float32", truth=None)
    with Elsewhere() as away:
        done = calls[task](steps=4, device=ELSEWHERE, truth=None)
    assert away.calls > 50
    torch.testing.assert_close(done.image.data, plain.image.data, rtol=0, atol=2e-3)


def test_the_device_that_is_not_there_tells_what_is_mixed() -> None:
    with Elsewhere():
        away = torch.ones(3, device=ELSEWHERE)
        assert (away + 1).device == ELSEWHERE
        assert (away * torch.tensor(2.0)).sum().item() == 6  # a single number may come from the CPU
        with pytest.raises(RuntimeError, match="and on the CPU"):
            away + torch.ones(3)
        with pytest.raises(RuntimeError, match=r"numpy"):
            away.numpy()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=ELSEWHERE)
