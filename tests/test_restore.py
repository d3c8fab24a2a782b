"""Restoration of one picture: it helps, keeps what is known, stops by itself, and can be interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner, Result

import pixfit as pf
from pixfit import classical, engine, images, kernels, metrics, noise_estimate, pieces, restore, run, tasks
from pixfit.cli import app
from pixfit.images import Image
from pixfit.models import Hourglass
from pixfit.noise import SaltAndPepper
from pixfit.noise_estimate import NoiseLevel
from pixfit.operators import Blur, Identity, LanczosDownsample, gaussian_kernel, masks
from pixfit.pieces import Canvas, Piece
from pixfit.problem import stream
from pixfit.restore import fits, pictures
from pixfit.stopping import HeldOut
from pixfit.studies.restore_pictures import crop
from tests.conftest import clean, counts, noisy, picture

KEYS = {"task", "status", "stop_rule", "stop_step", "steps", "seconds", "file"}
TRUTH_KEYS = {"psnr_degraded", "psnr", "psnr_last", "psnr_oracle", "ssim"}
FOLDER = Path(__file__).parents[1] / "benchmarks"


def known(image: Image) -> Tensor:
    return masks.pixels((image.height, image.width), known=0.6)


def restored(task: str, image: Image, **options: Any) -> restore.Restored:
    """Each task on what it is for: a picture damaged as it undoes it."""
    if task == "denoise":
        return restore.denoise(noisy(image), **options)
    if task == "inpaint":
        return restore.inpaint(image, known(image), **options)
    if task == "upscale":
        small = LanczosDownsample(2, lobes=3).forward(image.data).clamp(0, 1)
        return restore.upscale(Image(small), 2, **options)
    kernel = gaussian_kernel(1.0)
    return restore.deblur(Image(Blur(kernel).forward(image.data).clamp(0, 1)), kernel, **options)


every_task = pytest.mark.parametrize("task", ["denoise", "inpaint", "upscale", "deblur"])


# --- what comes out


@pytest.mark.parametrize("task", ["denoise", "inpaint", "upscale"])
def test_it_is_nearer_to_the_truth_than_what_was_given(task: str) -> None:
    image = clean()
    image = Image(image.data[:, :, :26]) if task == "upscale" else image
    done = restored(task, image, steps=40, truth=image)
    scores = done.scores(image)
    assert scores["psnr"] is not None
    assert scores["psnr_degraded"] is not None
    if task == "upscale":  # 40 steps of 1500: the control is what has to be good
        assert metrics.psnr(done.control, image.data) > scores["psnr_degraded"] + 0.3
    else:
        assert scores["psnr"] > scores["psnr_degraded"] + 0.5
        assert scores["psnr"] >= max(metrics.psnr(p, image.data) for p in (done.fitted, done.control)) - 0.3
    assert done.image.data.shape == image.data.shape
    assert (done.status, done.stop_rule) == ("done", "steps")
    assert done.steps == 40
    assert scores["psnr_oracle"] is not None
    assert scores["psnr_last"] is not None
    assert scores["psnr_oracle"] >= scores["psnr_last"] - 1e-3


@pytest.mark.parametrize("task", ["denoise", "inpaint", "deblur"])
def test_a_fit_that_is_no_use_does_no_harm(task: str) -> None:
    """Held-out pixels give a fit that was hardly begun no weight, so that the classical estimate is the answer."""
    image = clean()
    done = restored(task, image, steps=5, truth=image)
    scores = done.scores(image)
    assert done.weight < 0.1
    assert scores["psnr"] > scores["psnr_degraded"] + 3  # type: ignore[operator]
    assert scores["psnr"] > metrics.psnr(done.control, image.data) - 0.1  # type: ignore[operator]
    assert metrics.psnr(done.fitted, image.data) < scores["psnr"] - 3  # type: ignore[operator]


def test_total_variation_undoes_a_blur_with_noise() -> None:
    """Its strength is chosen by held-out pixels: more where there is noise."""
    image, kernel = clean(), gaussian_kernel(1.2)
    found = {}
    for sigma in (0.0, 0.03):
        blurred = pf.GaussianNoise(sigma)(Blur(kernel).forward(image.data), stream(0, "noise")).clamp(0, 1)
        whole = Piece(slice(None), slice(None), Blur(kernel), (3, 24, 27), blurred)
        held_out, _ = pictures._held_out(tasks.deblurring(kernel), blurred, None, 0)
        whole = dataclasses.replace(whole, held_out=held_out)
        found[sigma] = metrics.psnr(tasks.deblurring(kernel).estimate(whole, None), image.data)
        every = {s: classical.total_variation(whole.view, s) for s in tasks._STRENGTHS}
        errors = {s: whole.held_out_error(picture) for s, picture in every.items()}
        best = min(errors, key=lambda one: errors[one])
        assert best == min(every) if sigma == 0 else best > min(every)
        blind = tasks.deblurring(kernel).estimate(whole, every[best])
        assert torch.equal(blind, every[best])  # the one that does not know the held-out pixels
        assert found[sigma] > metrics.psnr(blurred, image.data) + (2 if sigma == 0 else 0.3)


@pytest.mark.slow
def test_a_fit_mends_what_is_missing_better_than_biharmonic_inpainting() -> None:
    """On a picture of some size: thirteen held-out pixels, as a picture of 27 x 24 has, prove nothing."""
    image = Image(detailed(96))
    done = restored("inpaint", image, steps=800, truth=image)
    assert done.weight > 0.1
    assert done.scores(image)["psnr"] > metrics.psnr(done.control, image.data) + 0.3  # type: ignore[operator]


@pytest.mark.slow
def test_a_denoising_fit_stops_by_itself_near_its_best_step() -> None:
    image = clean()
    done = restore.denoise(noisy(image, 0.15), truth=image, blend=False)
    assert (done.status, done.stop_rule) == ("stopped", "held_out")
    (curve,) = done.curves
    assert done.steps - done.stop_step == 150
    assert done.steps < 1500
    best = int(HeldOut(window=100).compared(curve["held_out"], 5).argmin())
    assert int(curve["step"][best]) == done.stop_step
    scores = done.scores(image)
    assert scores["psnr"] == pytest.approx(metrics.psnr(done.fitted, image.data))
    assert scores["psnr"] > scores["psnr_oracle"] - 2  # type: ignore[operator]  # 26 held-out pixels cannot tell more
    assert scores["psnr"] > scores["psnr_degraded"] + 2  # type: ignore[operator]


# --- noise that neighbours share


def shared_noise(clean: Tensor) -> Tensor:
    """The picture with noise of σ 25/255 that was blurred by 0.6 pixels."""
    blurred = Blur(gaussian_kernel(0.6)).forward(torch.randn(clean.shape, generator=stream(0, "noise")))
    return (clean + 25 / 255 * blurred / blurred.std()).clamp(0, 1)


def detailed(side: int) -> Tensor:
    return images.load("astronaut").data[:, 150 : 150 + side, 60 : 60 + side].clone()


def test_noise_that_neighbours_share_is_told_and_has_squares_held_out() -> None:
    """Without being asked; the same noise as it is brings neither a note nor squares."""
    clean = detailed(96)
    alone = Image((clean + 25 / 255 * torch.randn(clean.shape, generator=stream(0, "noise"))).clamp(0, 1))
    assert not restore.denoise(alone, steps=1).notes
    image = Image(shared_noise(clean))
    done = restore.denoise(image, steps=1)
    assert "neighbouring pixels share their noise" in done.notes[0]
    assert "squares of pixels are held out" in done.notes[0]
    assert torch.equal(restore.denoise(image, steps=1, held_out="squares").image.data, done.image.data)
    single = restore.denoise(image, steps=1, held_out="pixels")
    assert "the fit may go on for too long" in single.notes[0]
    assert not torch.equal(single.control, done.control)


def test_a_fit_sees_nothing_of_squares() -> None:
    """Whatever stands in them, between their borders and their middles, gives one fit, bit for bit."""
    image, task = noisy(clean()), tasks.denoising(NoiseLevel.white(0.1), squares=True)
    held_out, scored = pictures._held_out(task, image.data, None, 0)
    assert held_out is not None
    assert scored is not None
    assert int(held_out.sum()) == 9 * int(scored.sum()) > 0
    piece = Piece(slice(None), slice(None), Identity(), (3, 24, 27), image.data, None, held_out, scored)
    assert piece.view.use is not None
    assert torch.equal(piece.view.use, ~held_out)
    assert piece.view.held_out is scored
    other = Image(torch.where(held_out & ~scored, 0.3, image.data))
    ours, theirs = (restore.denoise(one, sigma=0.1, steps=10, held_out="squares") for one in (image, other))
    assert torch.equal(ours.fitted, theirs.fitted)
    assert torch.equal(ours.curves[0]["held_out"], theirs.curves[0]["held_out"])
    assert not torch.equal(ours.control, theirs.control)
    # In the middles it chooses by them.
    error = (ours.fitted - image.data)[scored.expand(3, -1, -1)].square().mean()
    assert float(ours.curves[0]["held_out"].min()) == pytest.approx(float(error), rel=1e-4)
    blind = task.estimate(piece, ours.fitted)
    assert torch.equal(task.estimate(dataclasses.replace(piece, measurement=other.data), ours.fitted), blind)


def test_a_fit_without_squares_keeps_its_id() -> None:
    held_out = torch.zeros(1, 16, 16, dtype=torch.bool)
    held_out[:, 3:6, 3:6] = True
    piece = Piece(slice(None), slice(None), Identity(), (3, 16, 16), picture(3, 16, 16).data, None, held_out)
    task = tasks.denoising(NoiseLevel.white(0.1))
    alone, squares = (
        task.spec(fits._sealed(task, one), steps=9) for one in (piece, dataclasses.replace(piece, scored=held_out))
    )
    assert alone.id == "bf45403aacd07447e4b8"
    assert squares.id != alone.id


def test_the_level_of_shared_noise_is_found() -> None:
    """Non-local means at the usual estimate, from the finest wavelets, leaves most of such noise where it is."""
    clean = detailed(64)
    given = shared_noise(clean)
    piece = Piece(slice(None), slice(None), Identity(), (3, 64, 64), given)
    usual, found = (metrics.psnr(tasks.denoising(squares=kind).estimate(piece, None), clean) for kind in (False, True))
    levels = (NoiseLevel.white(sigma / 255) for sigma in (16, 20, 25, 30))
    best = max(metrics.psnr(classical.nonlocal_means(given, level), clean) for level in levels)
    assert found > usual + 2
    assert found > best - 0.7
    assert restore.denoise(Image(given), steps=1).noise == NoiseLevel.white(noise_estimate.shared_level(given))


@pytest.mark.slow
def test_held_out_squares_end_a_fit_of_shared_noise_near_its_best_step() -> None:
    """Single pixels do not end it at all. (On 64 pixels a side there are 49 squares, too few on one fit in five.)"""
    clean = Image(detailed(96))
    image = Image(shared_noise(clean.data))
    done = {kind: restore.denoise(image, steps=1500, held_out=kind, truth=clean) for kind in ("squares", "pixels")}
    scores = {kind: one.scores(clean) for kind, one in done.items()}
    fitted = {kind: metrics.psnr(one.fitted, clean.data) for kind, one in done.items()}
    assert done["squares"].stop_rule == "held_out"
    assert fitted["squares"] > scores["squares"]["psnr_oracle"] - 0.4  # type: ignore[operator]
    assert done["pixels"].stop_rule == "steps"
    assert fitted["squares"] > fitted["pixels"] + 0.5
    assert scores["squares"]["psnr"] > scores["pixels"]["psnr"] + 1  # type: ignore[operator]


def tasks_fitted(monkeypatch: pytest.MonkeyPatch) -> list[tasks.Task]:
    """Those of the fits from here on."""
    found: list[tasks.Task] = []
    known_fit = pictures.fit

    def fit(task: tasks.Task, *arguments: Any, **options: Any) -> fits.Fit:
        found.append(task)
        return known_fit(task, *arguments, **options)

    monkeypatch.setattr(pictures, "fit", fit)
    return found


def test_bfloat16_is_taken_where_the_machine_is_faster_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, image = tasks_fitted(monkeypatch), noisy(clean())
    for fast in (True, False):
        monkeypatch.setattr(kernels, "fast_maps", lambda fast=fast: fast)
        restore.denoise(image, steps=2)
        restore.denoise(image, steps=2, precision="float32")
        restore.upscale(image, 2, steps=2, precision="bfloat16")
        assert restore.denoise(image, steps=2).precision == fitted.pop().precision
    chosen = [task.precision for task in fitted]
    assert chosen == ["bfloat16", "float32", "bfloat16", "float32", "float32", "bfloat16"]


def test_salt_and_pepper_are_noticed_and_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, truth = tasks_fitted(monkeypatch), clean().data * 0.9 + 0.05
    given = SaltAndPepper(0.3)(truth, stream(0, "noise"))
    auto = restore.denoise(Image(given), steps=3)
    told = restore.denoise(Image(given), noise="impulse", steps=3)
    white = restore.denoise(Image(given), noise="white", steps=3)
    assert [task.lost is not None for task in fitted] == [True, True, False]
    assert (auto.stop_rule, told.stop_rule, auto.noise) == ("steps", "steps", None)
    assert torch.equal(auto.image.data, told.image.data)
    assert not torch.equal(auto.image.data, white.image.data)
    assert "taken for impulses and filled in; the others stay as they are" in auto.notes[0]
    # What was not struck stays as it is, and nothing of what was comes through.
    whole = given == truth
    assert torch.equal(auto.image.data[whole], truth[whole])
    assert float((auto.image.data - truth)[~whole].abs().mean()) < 0.2 * float((given - truth)[~whole].abs().mean())
    assert auto.weight < 1
    assert restore.denoise(Image(given), steps=3, blend=False).weight == 1
    restore.denoise(Image(given), sigma=0.1, steps=3)  # who knows the level of white noise has told its kind
    assert fitted[-1].lost is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_picture_without_noise_stays_as_it_is(seed: int) -> None:
    """However far off the fit is: what the held-out pixels say of its weight is chance there."""
    image = crop(images.load("coffee"), 48)
    done = restore.denoise(image, steps=20, seed=seed)
    assert done.weight < 0.05
    assert metrics.psnr(done.image.data, image.data) > 38
    assert metrics.psnr(done.fitted, image.data) < 25


def test_noise_beside_salt_and_pepper_goes_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = tasks_fitted(monkeypatch)
    truth = Image(images.load("coffee").data[:, 150:198, 250:298].clone())
    given = SaltAndPepper(0.1)(noisy(truth, 0.1).data.clamp(0, 1), stream(0, "struck"))
    done = restore.denoise(Image(given), steps=150)
    assert fitted[0].lost is not None
    assert not fitted[0].exact
    assert "in the others noise of" in done.notes[0]
    assert done.noise is not None
    assert done.noise.sigma(0.5) == pytest.approx(0.1, rel=0.25)
    filled = classical.biharmonic(given, ~noise_estimate.struck(given))
    assert metrics.psnr(done.image.data, truth.data) > metrics.psnr(filled, truth.data) + 5
    assert float(done.image.data.mean()) == pytest.approx(float(truth.data.mean()), abs=0.01)


def test_so_many_impulses_that_none_stands_alone() -> None:
    truth = crop(images.load("coffee"), 48)
    given = SaltAndPepper(0.8)(truth.data, stream(0, "struck"))
    assert noise_estimate.impulses(given) < noise_estimate.IMPULSIVE
    done = restore.denoise(Image(given), noise="impulse", steps=2)
    assert "taken for impulses and filled in" in done.notes[0]
    assert metrics.psnr(done.image.data, truth.data) > metrics.psnr(given, truth.data) + 12


def test_a_picture_of_black_and_white_dots_is_not_taken_for_impulses(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, grey = tasks_fitted(monkeypatch), crop(images.load("coffee"), 48).data.mean(dim=0, keepdim=True)
    dots = (torch.rand(grey.shape, generator=stream(0, "dots")) < grey).float()
    assert restore.denoise(Image(dots), steps=2).notes == ()
    assert fitted[0].lost is None


def test_impulses_of_any_brightness_are_fitted_beside_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, image = tasks_fitted(monkeypatch), clean()
    struck = torch.rand(image.data.shape, generator=stream(0, "struck")) < 0.3
    given = Image(torch.where(struck, torch.rand(image.data.shape, generator=stream(0, "values")), image.data))
    done = restore.denoise(given, noise="impulse", steps=3)
    assert fitted[0].outliers
    assert (done.stop_rule, done.weight, done.noise) == ("steps", 1.0, None)
    assert "any brightness" in done.notes[0]
    restore.denoise(given, steps=3)
    assert not fitted[-1].outliers


@pytest.mark.slow
def test_impulses_are_removed_better_than_by_a_median_or_as_white_noise() -> None:
    image = Image(images.load("coffee").data[:, 150:198, 250:298].clone())
    given = Image(SaltAndPepper(0.4)(image.data, stream(0, "noise")))
    done, white = (restore.denoise(given, noise=noise, steps=800) for noise in ("auto", "white"))
    level = metrics.psnr(done.image.data, image.data)
    assert level > metrics.psnr(classical.median(given.data), image.data) + 6
    assert level > metrics.psnr(white.image.data, image.data) + 6
    assert level > metrics.psnr(done.control, image.data)


def test_a_fit_ends_by_its_estimated_risk_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def told(estimate: Tensor, other: Tensor, piece: Piece, sigma: float) -> float:
        assert piece.held_out is None
        assert sigma == 0.1
        seen.append((estimate, other))
        return 1e-3 * (1 + abs(len(seen) - 4))  # least at the fourth look, step 15

    monkeypatch.setattr(fits, "risk", told)
    monkeypatch.setattr(fits, "_PATIENCE", 20)
    noisy = Image((clean().data + 0.1 * torch.randn(clean().data.shape, generator=stream(0, "noise"))).clamp(0, 1))
    store = pf.Store(tmp_path)
    scores: list[float | None] = []
    done = restore.denoise(
        noisy, sigma=0.1, stop="sure", steps=60, store=store, on_progress=lambda now: scores.append(now.best)
    )
    assert (done.status, done.stop_rule, done.stop_step, done.steps) == ("stopped", "sure", 15, 36)
    torch.testing.assert_close(done.fitted, seen[3][0].clamp(0, 1), rtol=0, atol=1e-6)  # put together of pieces
    assert not torch.equal(seen[3][0], seen[3][1])  # the second fit is of another measurement
    assert done.curves[0]["step"].tolist() == [*range(0, 36, 5), 36]  # it is asked before each step
    assert max(score for score in scores if score is not None) == pytest.approx(30)
    looks = len(seen)
    again = restore.denoise(noisy, sigma=0.1, stop="sure", steps=60, store=store)
    assert len(seen) == looks
    assert (again.stop_rule, again.stop_step, again.weight) == ("sure", 15, done.weight)
    assert torch.equal(again.image.data, done.image.data)


def test_known_pixels_are_never_touched() -> None:
    image, mask = clean(), known(clean())
    broken = Image(torch.where(mask, image.data, torch.zeros(())), bit_depth=16)
    done = restore.inpaint(broken, mask, steps=10)
    assert torch.equal(done.image.data[:, mask], broken.data[:, mask])
    assert not torch.equal(done.image.data[:, ~mask], broken.data[:, ~mask])
    assert done.image.bit_depth == 16
    other = Image(torch.where(mask, image.data, torch.ones(())))  # what stands in holes must not matter
    assert torch.equal(restore.inpaint(other, mask, steps=10).image.data, done.image.data)


def test_the_alpha_channel_is_a_mask_for_inpainting_and_else_stays() -> None:
    image, mask = clean(), known(clean())
    with_alpha = Image(torch.cat([image.data, mask[None].float()]), alpha="keep")
    by_alpha, by_mask = restore.inpaint(with_alpha, steps=3), restore.inpaint(image, mask, steps=3)
    assert torch.equal(by_alpha.image.data, by_mask.image.data)
    kept = restore.denoise(with_alpha, steps=3)
    assert torch.equal(kept.image.data[-1:], with_alpha.data[-1:])
    assert torch.equal(kept.image.data[:3], restore.denoise(image, steps=3).image.data)
    large = restore.upscale(with_alpha, 2, steps=1)
    assert large.image.data.shape == (4, 48, 54)


def test_the_truth_and_watching_change_nothing() -> None:
    seen: list[restore.Progress] = []
    image = clean()
    alone = restore.denoise(noisy(image), steps=12)
    watched = restore.denoise(noisy(image), steps=12, truth=image, on_progress=seen.append)
    assert torch.equal(alone.image.data, watched.image.data)
    assert alone.last is alone.oracle is None
    assert seen[-1].step == seen[-1].steps == 12
    assert seen[-1].fraction == 1.0
    assert seen[-1].picture().shape == image.data.shape
    assert seen[-1].best is not None
    assert torch.equal(restore.denoise(noisy(image), steps=12).image.data, alone.image.data)
    assert not torch.equal(restore.denoise(noisy(image), steps=12, seed=1).fitted, alone.fitted)


def test_several_runs_are_averaged() -> None:
    image = noisy(clean())
    # The held-out pixels are those of the first seed for all runs, so single fits of other seeds are not to be had.
    both = restore.denoise(image, steps=20, runs=2, blend=False)
    first = restore.denoise(image, steps=20, blend=False)
    assert len(both.curves) == 2
    second = 2 * both.fitted - first.fitted
    assert float(second.min()) > -1e-4
    assert float(second.max()) < 1 + 1e-4
    assert float((second - first.fitted).abs().mean()) > 0.01


@every_task
def test_a_tiny_picture_is_restored_without_a_network(task: str) -> None:
    size = 5 if task == "upscale" else 8
    image = picture(3, size, size)
    done = (
        restore.upscale(image, 3)
        if task == "upscale"
        else restored(task, image, truth=image)
        if task != "deblur"
        else restore.deblur(image, gaussian_kernel(0.5))
    )
    assert (done.status, done.stop_rule, done.steps) == ("done", "classical", 0)
    assert "too small" in done.notes[0]
    assert torch.equal(done.fitted, done.control)
    assert done.image.height == (15 if task == "upscale" else 8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (1, 300)])
def test_pictures_of_a_row_or_a_pixel(height: int, width: int) -> None:
    image = picture(1, height, width)
    assert restore.denoise(image, sigma=0.1).image.data.shape == image.data.shape
    assert restore.denoise(image).noise is not None


def test_grey_pictures_and_odd_sides() -> None:
    image = picture(1, 17, 37)
    done = restore.denoise(image, steps=3)
    assert done.image.data.shape == image.data.shape
    large = restore.upscale(picture(1, 11, 13), 3, steps=2, truth=picture(1, 35, 41))
    assert large.image.data.shape == (1, 33, 39)
    assert set(large.scores(picture(1, 35, 41))) == TRUTH_KEYS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: restore.denoise(image, sigma=25), "sigma is 25"),
        (lambda image: restore.denoise(image, held_out="rows"), "held_out is 'rows'"),
        (lambda image: restore.denoise(image, stop="never"), "stop is 'never'"),
        (lambda image: restore.denoise(image, stop="sure", held_out="squares"), "nothing is held out"),
        (lambda image: restore.denoise(image, stop="sure", sigma=0.0), "above 0"),
        (lambda image: restore.denoise(image, noise="pink"), "noise is 'pink'"),
        (lambda image: restore.denoise(image, noise="impulse", sigma=0.1), "noise is impulse"),
        (lambda image: restore.denoise(image, noise="impulse", stop="sure"), "noise is impulse"),
        (lambda image: restore.denoise(image, noise="impulse", control="bm3d"), "noise is impulse|pip install bm3d"),
        (lambda image: restore.denoise(Image(torch.zeros(3, 32, 32)), stop="sure"), "no noise was found"),
        (lambda image: restore.denoise(image, runs=0), "runs is 0"),
        (lambda image: restore.denoise(image, steps=0), "steps is 0"),
        (lambda image: restore.denoise(image, precision="half"), "precision is 'half'; it may be auto"),
        (lambda image: restore.denoise(image, truth=picture(3, 24, 28)), "28×24"),
        (lambda image: restore.upscale(image, 9), "factor is 9"),
        (lambda image: restore.inpaint(image), "no alpha channel"),
        (lambda image: restore.inpaint(image, torch.ones(24, 27)), "marks every pixel"),
        (lambda image: restore.inpaint(image, torch.zeros(24, 27)), "marks no pixel"),
        (lambda image: restore.inpaint(image, torch.ones(24, 26)), "26×24"),
        (lambda image: restore.deblur(image, torch.ones(99, 99)), "reaches further"),
    ],
)
def test_what_is_refused(call: Callable[[Image], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(clean())


# --- the rule that ends a fit


def test_the_answer_is_the_picture_of_the_best_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With learning so fast that the fit goes astray at once."""
    monkeypatch.setattr(tasks, "Adam", lambda lr: pf.optim.Adam(lr=10 * lr))
    image = noisy(clean(), 0.15)
    done = restore.denoise(image, blend=False, steps=80)
    (curve,) = done.curves
    compared = HeldOut(window=100).compared(curve["held_out"], 5)
    assert curve["step"].tolist() == list(range(0, 81, 5))
    assert int(curve["step"][int(compared.argmin())]) == done.stop_step


def test_held_out_ends_a_fit_after_its_patience_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    problem = pf.Problem(noisy(clean()), held_out=0.1)
    spec = pf.Spec(
        problem, Hourglass(channels=(6, 6), code_channels=4), optimiser=pf.optim.Adam(lr=0.05), budget=pf.Steps(600),
        stopping=HeldOut(6), estimate=pf.AveragedOutput(0.5, every=2),
    )  # fmt: skip
    result = run.fit(spec)
    assert (result.status, result.reason) == (pf.Status.STOPPED, "held_out")
    assert 6 < result.steps < 600
    free = run.fit(dataclasses.replace(spec, stopping=pf.Never(), budget=pf.Steps(result.steps)))
    assert torch.equal(free.curves["loss"], result.curves["loss"])
    assert free.estimate is not None
    assert result.estimate is not None
    assert torch.equal(free.estimate, result.estimate)
    assert pf.modelfile.decode_spec(spec.plain).stopping == HeldOut(6)


@pytest.mark.parametrize("estimate", [pf.AveragedOutput(0.5, every=2), pf.BestHeldOut(2)], ids=str)
def test_errors_over_a_window_choose_the_step_and_end_the_fit(estimate: Any) -> None:
    problem = pf.Problem(noisy(clean()), held_out=0.1)
    spec = pf.Spec(
        problem, Hourglass(channels=(6, 6), code_channels=4), optimiser=pf.optim.Adam(lr=0.05), budget=pf.Steps(600),
        stopping=HeldOut(20, window=12), estimate=estimate,
    )  # fmt: skip
    kept = pf.Record(keep=tuple(range(0, 600, 2)))
    result = run.fit(spec, record=kept)
    steps = result.curves["held_out_step"].tolist()
    errors = (10 ** (-result.curves["held_out_psnr"].double() / 10)).tolist()
    means = [sum(errors[max(0, k - 5) : k + 1]) / min(6, k + 1) for k in range(len(errors))]
    best = steps[min(range(len(means)), key=means.__getitem__)]
    assert (result.reason, result.steps) == ("held_out", best + 20)
    assert all(torch.equal(result.weights[name], value) for name, value in result.kept[best].items())
    assert best != steps[min(range(len(errors)), key=errors.__getitem__)]  # else the window would show nothing
    # Cut in the middle of the deciding window, it comes to the same end.
    job = run._job(spec, {}, ())
    states = {state.step: state for state in engine.fit([job], save_every=-1.0)}
    cut = max(step for step in states if step < best)
    *_, end = engine.fit([job], state=states[cut])
    assert end.outcomes is not None
    assert end.outcomes[0].steps == best + 20
    assert all(torch.equal(end.outcomes[0].weights[name], value) for name, value in result.weights.items())


def test_held_out_needs_an_estimate_that_looks() -> None:
    problem = pf.Problem(noisy(clean()), held_out=0.1)
    spec = pf.Spec(problem, Hourglass(channels=(6, 6), code_channels=4), budget=pf.Steps(2), stopping=HeldOut())
    with pytest.raises(ValueError, match="looks at held-out pixels"):
        run.fit(spec)


# --- pieces


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(16, 40), overlap=st.integers(1, 8),
    factor=st.integers(1, 4),
)  # fmt: skip
def test_pieces_put_a_picture_together_again(height: int, width: int, side: int, overlap: int, factor: int) -> None:
    small = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    shape = (2, height * factor, width * factor)
    answer = small.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    held_out = torch.rand(1, height, width) < 0.5
    scored = held_out & (torch.rand(1, height, width) < 0.5)
    whole = Piece(slice(None), slice(None), Identity(), shape, small, held_out=held_out, scored=scored)
    canvas = Canvas(shape, overlap)
    parts = pieces.cut(whole, side=side, least=side, overlap=overlap, factor=factor)
    for part in parts:
        assert max(part.shape[1:]) <= max(side, 2 * (-(-overlap // factor)) * factor)
        assert part.held_out is not None
        assert part.scored is not None
        assert part.held_out.shape[1:] == part.scored.shape[1:] == part.measurement.shape[1:]
        assert not bool((part.scored & ~part.held_out).any())
        canvas.add(part, answer[:, part.rows, part.columns])
    torch.testing.assert_close(canvas.picture(), answer, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("four_pieces")
def test_large_pictures_are_restored_in_pieces_without_seams() -> None:
    image = clean()
    done = restore.denoise(noisy(image), steps=20, truth=image)
    assert len(done.curves) == 4
    scores = done.scores(image)
    assert scores["psnr"] > scores["psnr_degraded"] + 2  # type: ignore[operator]
    # A piece that has no hole needs no fit.
    mask = torch.ones(24, 27, dtype=torch.bool)
    mask[2:5, 2:5] = False
    assert len(restore.inpaint(image, mask, steps=2).curves) == 1
    large = restore.upscale(Image(image.data[:, ::2, ::2].clone()), 2, steps=2)
    assert len(large.curves) == 4
    assert large.image.data.shape == (3, 24, 28)


@pytest.mark.usefixtures("four_pieces")
def test_what_a_large_picture_takes_is_told_before_it_begins() -> None:
    seen: list[restore.Progress] = []
    restore.denoise(noisy(clean()), steps=12, on_progress=seen.append)
    first = seen[0]
    assert (first.fit, first.fits, first.step, first.steps, first.fraction) == (1, 4, 0, 12, 0.0)
    assert first.seconds < seen[1].seconds
    assert torch.equal(first.picture(), noisy(clean()).data)
    assert first.ahead is not None
    assert first.ahead > 0
    assert seen[-1].ahead == 0.0
    assert seen[-1].fraction == 1.0
    assert all(at.ahead is not None for at in seen)


@pytest.mark.usefixtures("four_pieces")
def test_with_a_store_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def kill(at: restore.Progress) -> None:
        if at.fit == 3:
            raise Killed

    made: list[int] = []
    real = engine.fit

    def counted(*jobs: Any, **options: Any) -> Any:
        made.append(1)
        return real(*jobs, **options)

    image, store = noisy(clean()), pf.Store(tmp_path)
    whole = restore.denoise(image, steps=6)
    with pytest.raises(Killed):
        restore.denoise(image, steps=6, store=store, on_progress=kill)
    monkeypatch.setattr(fits.engine, "fit", counted)
    done = restore.denoise(image, steps=6, store=store)
    assert len(made) == 2
    assert torch.equal(done.image.data, whole.image.data)
    assert [row["recipe"] for row in store.rows()] == ["restore denoise"] * 4
    again = restore.denoise(image, steps=6, store=store)
    assert len(made) == 2
    assert torch.equal(again.image.data, whole.image.data)
    assert (again.stop_step, again.steps, again.stop_rule) == (whole.stop_step, whole.steps, whole.stop_rule)
    for ours, theirs in zip(again.curves, whole.curves, strict=True):
        assert torch.equal(ours["step"], theirs["step"])
        torch.testing.assert_close(ours["held_out"], theirs["held_out"])
    # Another seed, picture, limit or task is another fit; with a truth all are made anew.
    restore.denoise(image, steps=6, store=store, seed=1)
    restore.denoise(clean(), steps=6, store=store)
    restore.denoise(image, steps=5, store=store)
    restore.denoise(image, steps=6, store=store, truth=clean())
    assert len(made) == 2 + 4 * 4
    restore.inpaint(image, known(image), steps=6, store=store)
    before = len(made)
    restore.inpaint(image, known(image).flip(0), steps=6, store=store)
    assert len(made) == before + 4
    assert len({row["id"] for row in store.rows()}) == len(store.rows()) == 4 * 6


def test_a_store_that_cannot_be_written_does_not_end_a_restoration(tmp_path: Path) -> None:
    (tmp_path / "fits").write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be kept"):
        done = restore.denoise(noisy(clean()), steps=3, store=pf.Store(tmp_path))
    assert torch.equal(done.image.data, restore.denoise(noisy(clean()), steps=3).image.data)


def test_the_kind_of_noise_is_told_and_used(elsewhere: Path) -> None:
    truth = crop(images.load("astronaut"), 48)
    images.save(counts(truth, 30), Path("counted.png"))
    done = restore.denoise(images.load("counted.png"), steps=1)
    assert done.noise is not None
    assert done.noise.sigma(1.0) > 2 * done.noise.sigma(0.0)
    assert metrics.psnr(done.control, truth.data) > metrics.psnr(done.degraded, truth.data) + 3
    shown = pixfit("denoise", "counted.png", "-o", "a.png", "--steps", "1").stdout
    dark, bright = (
        float(part)
        for part in re.search(r"of 255, (.*) in its dark parts and (.*) in its bright", shown).groups()  # type: ignore[union-attr]
    )
    assert 1 < 2 * dark < bright < 255 * done.noise.sigma(1.0)


# --- the command


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a true picture, a noisy one, one with holes, and a mask."""
    monkeypatch.chdir(tmp_path)
    image = clean()
    images.save(image, "clean.png")
    images.save(noisy(image), "noisy.png")
    mask = known(image)
    images.save(mask[None].float(), "mask.png")
    images.save(torch.cat([image.data * mask, mask[None].float()]), "holes.png", bit_depth=16)
    return tmp_path


def pixfit(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["restore", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


COMMANDS = {
    "denoise": ("noisy.png", "--no-blend"),
    "inpaint": ("clean.png", "--mask", "mask.png"),
    "upscale": ("noisy.png", "--factor", "2"),
    "deblur": ("clean.png", "--sigma-blur", "0.8"),
}


@pytest.mark.parametrize("task", COMMANDS)
def test_every_command_writes_a_picture_and_says_how(task: str, elsewhere: Path) -> None:
    arguments = (task, *COMMANDS[task], "--steps", "4", "-o")
    said = json.loads(pixfit(*arguments, "a.png", "--json").stdout)
    assert set(said) == KEYS
    assert (said["task"], said["status"], said["stop_rule"], said["steps"]) == (task, "done", "steps", 4)
    assert said["file"] == "a.png"
    assert (images.load("a.png").width, images.load("a.png").height) == ((54, 48) if task == "upscale" else (27, 24))
    text = pixfit(*arguments, "b.png").stdout
    assert "a.png" not in text
    assert "b.png" in text
    assert (elsewhere / "a.png").read_bytes() == (elsewhere / "b.png").read_bytes()
    if task == "denoise":
        for number, other in enumerate((("--seed", "1"), ("--precision", "bfloat16"), ("--precision", "float32"))):
            pixfit(*arguments, f"c{number}.npy", *other, "--steps", "60")
        assert len({(elsewhere / f"c{number}.npy").read_bytes() for number in range(3)}) == 3
    assert "Example:" in pixfit(task, "--help").stdout


def test_with_a_truth_it_tells_how_near_it_is(elsewhere: Path) -> None:
    arguments = ("denoise", "noisy.png", "-o", "a.png", "--steps", "12", "--truth", "clean.png")
    said = json.loads(pixfit(*arguments, "--json").stdout)
    assert set(said) == KEYS | TRUTH_KEYS
    assert said["psnr"] == pytest.approx(
        metrics.psnr(images.load("a.png").data, images.load("clean.png").data), abs=0.1
    )
    assert said["psnr_degraded"] == pytest.approx(20.5, abs=1)
    printed = pixfit(*arguments, "--precision", "bfloat16").stdout
    assert "restored" in printed
    assert "s in bfloat16" in printed


def test_a_kind_of_noise_may_be_asked_for(elsewhere: Path) -> None:
    arguments = ("denoise", "noisy.png", "--steps", "4", "--json", "-o")
    assert set(json.loads(pixfit(*arguments, "a.png", "--noise", "impulse").stdout)) == KEYS
    pixfit(*arguments, "b.png", "--noise", "white")
    pixfit(*arguments, "c.png")
    one, other, auto = ((elsewhere / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert one != other
    assert auto == other


def test_a_fit_may_go_by_its_risk(elsewhere: Path) -> None:
    arguments = ("denoise", "noisy.png", "--steps", "12", "--json", "-o")
    assert set(json.loads(pixfit(*arguments, "a.png", "--stop", "sure").stdout)) == KEYS
    pixfit(*arguments, "b.png", "--stop", "held-out")
    assert (elsewhere / "a.png").read_bytes() != (elsewhere / "b.png").read_bytes()


def test_squares_may_be_asked_for(elsewhere: Path) -> None:
    arguments = ("denoise", "noisy.png", "--steps", "4", "--json", "-o")
    assert set(json.loads(pixfit(*arguments, "a.png", "--held-out", "squares").stdout)) == KEYS
    pixfit(*arguments, "b.png", "--held-out", "pixels")
    pixfit(*arguments, "c.png")  # the picture is too small to show what its noise is like
    one, other, auto = ((elsewhere / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert one != other
    assert auto == other


def test_holes_may_be_transparent_and_deep(elsewhere: Path) -> None:
    pixfit("inpaint", "holes.png", "-o", "whole.png", "--steps", "2")
    whole, holes = images.load("whole.png"), images.load("holes.png", alpha="keep")
    assert whole.bit_depth == 16
    assert whole.channels == 3
    mask = holes.data[-1] == 1
    assert torch.equal(whole.data[:, mask], holes.data[:3, mask])


def test_a_mask_may_be_any_picture(elsewhere: Path) -> None:
    grey = 0.2 + 0.6 * images.load("mask.png").data
    images.save(grey, "grey.jpg")
    result = pixfit("inpaint", "clean.png", "--mask", "grey.jpg", "-o", "a.png", "--steps", "2")
    assert "neither black nor white" in result.stderr
    pixfit("inpaint", "clean.png", "--mask", "mask.png", "-o", "b.png", "--steps", "2")
    mask = images.load("mask.png").data[0] == 1
    assert torch.equal(images.load("a.png").data[:, mask], images.load("b.png").data[:, mask])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("denoise", "nothing.png", "-o", "a.png"), "no such file"),
        (("denoise", "noisy.png", "-o", "a.bmp"), "suffix"),
        (("denoise", "noisy.png", "-o", "no/a.png"), "does not exist"),
        (("denoise", "noisy.png", "-o", "a.png", "--truth", "small.png"), "one size"),
        (("denoise", "noisy.png", "-o", "a.png", "--preview", "a.png"), "name of its own"),
        (("denoise", "noisy.png", "-o", "a.png", "--device", "nonsense"), "cannot be used"),
        (("denoise", "noisy.png", "-o", "a.png", "--held-out", "rows"), "it may be auto, pixels or squares"),
        (("inpaint", "noisy.png", "-o", "a.png"), "--mask"),
        (("inpaint", "noisy.png", "-o", "a.png", "--mask", "small.png"), "one size"),
        (("deblur", "noisy.png", "-o", "a.png"), "--kernel"),
        (("deblur", "noisy.png", "-o", "a.png", "--kernel", "nothing.npy"), "no kernel"),
        (("deblur", "noisy.png", "-o", "a.png", "--sigma-blur", "0"), "sigma is 0"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, elsewhere: Path) -> None:
    images.save(picture(3, 8, 8), "small.png")
    result = pixfit(*arguments, code=2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert not (elsewhere / "a.png").exists()


def test_interrupting_writes_the_best_so_far(elsewhere: Path) -> None:
    command = (
        sys.executable, "-m", "pixfit", "restore", "denoise", "noisy.png", "-o", "out.png", "--preview", "now.png",
        "--steps", "1000000", "--json", "--truth", "clean.png", "--sigma", "25",
    )  # fmt: skip
    # The held-out rule would end it in its own time; the signal comes with the first preview.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (elsewhere / "now.png").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    said = json.loads(output)
    assert (said["status"], said["stop_rule"]) == ("cancelled", "interrupted")
    assert said["steps"] < 1000000
    assert "out.png is the best so far" in errors
    assert images.load("now.png").data.shape == clean().data.shape
    assert metrics.psnr(images.load("out.png").data, clean().data) > said["psnr_degraded"] + 2


@pytest.mark.parametrize(("task", "asked", "useful"), [
    ("upscale", 6, False), ("upscale", 18, True), ("impulse", 6, False), ("denoise", 6, True),
])  # fmt: skip
def test_a_fit_interrupted_early_stands_back_where_no_score_tells_how_good_it_is(
    task: str, asked: int, useful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def pressed_soon() -> Iterator[Callable[[], bool]]:
        calls = itertools.count()
        yield lambda: next(calls) >= asked

    monkeypatch.setattr(run, "interruptible", pressed_soon)
    noise = "impulse" if task == "impulse" else "white"
    even = Image(clean().data[:, :, :26])
    done = restored(task, even, steps=20) if task == "upscale" else restore.denoise(even, noise=noise, steps=20)
    assert (done.status, done.stop_rule) == ("cancelled", "interrupted")
    assert torch.equal(done.fitted, done.control) is not useful
    assert (done.stop_step > 0) is useful
    assert any("the classical estimate stands in" in note for note in done.notes) is not useful


def test_the_cost_is_told_and_fits_are_kept(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixfit.cli import restoring

    monkeypatch.setattr(restoring, "_LONG", -1.0)
    arguments = ("denoise", "noisy.png", "--steps", "12", "--store", "kept", "-o")
    first = pixfit(*arguments, "a.png")
    assert "1 fit of up to 12 steps: at most about" in first.stderr
    second = pixfit(*arguments, "b.png")
    assert "steps: at most" not in second.stderr
    assert (elsewhere / "a.png").read_bytes() == (elsewhere / "b.png").read_bytes()
    assert len(pf.Store("kept").rows()) == 1
    assert not (elsewhere / "pixfit-runs").exists()


# --- the benchmark


def test_the_benchmark_prints_its_table(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("restore")
    assert script.main(["clean.png", "noisy.png", "--side", "20", "--steps", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["rows"]) == 2
    assert set(said["means"]) == {"noisy", "nlm", "stopped", "oracle", "blend"}
    part, whole = crop(clean(), 20).data, clean().data
    noise = [torch.randn(each.shape, generator=stream(0, "noise")) for each in (part, whole)]
    levels = [
        metrics.psnr((each + 25 / 255 * own).clamp(0, 1), each) for each, own in zip((part, whole), noise, strict=True)
    ]
    assert said["rows"][0]["noisy"] == pytest.approx(levels[0], abs=0.05)
    assert script.main(["clean.png", "--side", "64", "--steps", "3", "--json"]) == 0  # a smaller picture as it is
    assert json.loads(capsys.readouterr().out)["rows"][0]["noisy"] == pytest.approx(levels[1], abs=0.05)
    assert script.main(["clean.png", "--side", "20", "--steps", "3"]) == 0
    assert "mean" in capsys.readouterr().out
