"""How good the fits are, against a plain loop and against the bars that the project set itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pixfit as pf
from pixfit.problem import stream
from tests.reference import train


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_siren_2020_reaches_what_a_plain_loop_reaches(shared_data: Path) -> None:
    """256 × 5 on central 128² crops: step by step at first, and within 0.05 dB after 500 steps where Adam is calm.

    It is not on every picture: on kodim05 the plain loop's loss jumps by a factor of 2.5 in its last ten steps, and
    float32 and float64 part by more than that (docs/log.md). There only the level before the jump is compared.
    """
    torch.set_num_threads(2)
    calm = 0
    for name in ("kodim05", "kodim15"):
        whole = pf.images.load(shared_data / "kodak" / f"{name}.png").data
        top, left = (whole.shape[1] - 128) // 2, (whole.shape[2] - 128) // 2
        image = pf.Image(whole[:, top : top + 128, left : left + 128].clone())
        spec = pf.recipes.siren_2020(pf.Problem(image))
        plain = spec.model.build(generator=stream(spec.seed, "weights"))
        result = pf.fit(spec)
        coordinates, targets = spec.model.coordinates.grid(128, 128), image.data.flatten(1).T * 2 - 1
        adam = torch.optim.Adam(plain.parameters(), lr=1e-4)
        curves = [
            result.curves["loss"].double(),
            torch.tensor(train(plain, coordinates, targets, adam, steps=500)).double(),
        ]
        ours, reference = (10 * torch.log10(4 / curve) for curve in curves)
        torch.testing.assert_close(ours[:100], reference[:100], atol=0.01, rtol=0)
        assert float(ours[-50:].max()) > float(reference[-50:].max()) - 0.3
        if all(float(curve[-100:].max() / curve[-100:].median()) < 1.5 for curve in curves):
            calm += 1
            with torch.no_grad():
                picture = (plain(coordinates) / 2 + 0.5).T.reshape(3, 128, 128)
            assert result.psnr == pytest.approx(pf.metrics.psnr(picture, image.data), abs=0.05)
    assert calm >= 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fast_on_coffee() -> None:
    """Seconds, not minutes: measured 50.2 dB in 1.8 processor seconds with compiled kernels."""
    torch.set_num_threads(2)
    result = pf.fit(pf.recipes.fast(pf.Problem(pf.images.load("coffee"))))
    assert result.psnr is not None
    assert result.psnr >= 48
    if result.kernel.startswith("fused-avx512"):
        assert result.process_seconds < 10


@pytest.mark.parametrize("name", pf.recipes.RECIPES)
def test_recipes_learn(name: str) -> None:
    """Every recipe, made small, takes a smooth picture well above its best single colour."""
    from tests.conftest import picture

    spec = pf.recipes.RECIPES[name](pf.Problem(picture(3, 24, 24)))
    small = {"budget": {"kind": "Budget", "steps": 150}, "batches.pixels": None}
    if hasattr(spec.model, "hidden_features"):
        small["model.hidden_features"] = 32
    spec = pf.recipes.configure(spec, small)
    if "climb" in name:
        spec = pf.recipes.configure(spec, {"optimiser.lr": 2e-3, "model.encoding.freq_scale": 2.0})
    result = pf.fit(spec)
    assert result.psnr is not None
    assert result.psnr > pf.metrics.best_constant_psnr(picture(3, 24, 24).data) + 3
