"""Other views of pictures: as further pictures of a memory, and drawn anew in each step for what learns from tiles."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor

import pixfit as pf
from pixfit import augmentation, engine, images, memorize, render, run
from pixfit.augmentation import COPIES, corner, drawn, turned
from pixfit.models import BinaryCode, ConvEncoder, Coordinates, Hyper, Maml, Memory, SetEncoder, Siren
from pixfit.optim import Adam
from pixfit.problem import Copies, Gallery, stream
from pixfit.spec import AugmentedBatches, Batches, PictureBatches
from pixfit.stack import Samples
from pixfit.store import Store
from pixfit.studies import MemorizeStudy, StudyError
from pixfit.studies.memorize_designs import HYPER
from tests.conftest import picture
from tests.test_cli import as_json, one_line, pixfit

SIZES = ((6, 9), (5, 5), (12, 4))
PICTURES = tuple(replace(picture(3, *size, seed=i), name=f"picture {i}") for i, size in enumerate(SIZES))
KINDS: Any = pytest.mark.parametrize("by", COPIES)


# --- views of a picture


def test_turns_are_the_eight_flips_and_turns() -> None:
    data = picture(3, 5, 7).data
    made = [turned(data, copy) for copy in range(8)]
    assert torch.equal(made[0], data)
    assert torch.equal(made[4], data.flip(2))
    assert torch.equal(made[2], data.flip(1, 2))
    assert made[1].shape == (3, 7, 5)
    assert torch.equal(made[1][:, -1, 0], data[:, 0, 0])  # to the left: what was above left is below left
    assert len({(tuple(one.shape), one.flatten().numpy().tobytes()) for one in made}) == 8
    by_name = [view(data) for view in COPIES["turns"].values()]
    assert all(map(torch.equal, by_name, made))


def test_crops_are_the_four_corners() -> None:
    data = picture(3, 8, 6).data
    made = {name: view(data) for name, view in COPIES["crops"].items()}
    assert list(made) == ["", "top left", "top right", "bottom left", "bottom right"]
    assert torch.equal(made[""], data)
    assert torch.equal(made["top left"], data[:, :6, :5])  # three quarters of 6 are 4.5
    assert torch.equal(made["top right"], data[:, :6, 1:])
    assert torch.equal(made["bottom left"], data[:, 2:, :5])
    assert torch.equal(made["bottom right"], data[:, 2:, 1:])
    assert corner(torch.zeros(1, 1, 1), bottom=True, right=True).shape == (1, 1, 1)


@KINDS
def test_the_first_view_is_the_picture_and_names_tell_views_apart(by: str) -> None:
    names = list(COPIES[by])
    assert names[0] == ""
    assert len(set(names)) == len(names)
    assert all(names[1:])
    assert torch.equal(COPIES[by][""](PICTURES[0].data), PICTURES[0].data)


# --- copies with numbers of their own


@KINDS
@pytest.mark.parametrize("rule", ["published", "drawn"])
def test_a_pixel_held_out_in_a_picture_is_held_out_in_its_copies(by: Any, rule: str) -> None:
    settings: dict[str, Any] = {"held_out": 0.2, "rule": rule, "seed": 3}
    copies, plain = Copies.of(PICTURES, by=by, **settings), Gallery(PICTURES, **settings)
    views = list(COPIES[by].values())
    assert copies.view.held_out is not None
    assert plain.view.held_out is not None
    assert len(copies.pictures) == len(set(copies.names)) == 3 * len(views)
    assert copies.names[:3] == plain.names
    assert (copies.originals, plain.originals) == (3, 3)
    masks, wanted = copies.split(copies.view.held_out), plain.split(plain.view.held_out)
    data = copies.split(copies.image.data)
    for number in range(3 * len(views)):
        copy, original = divmod(number, 3)
        assert torch.equal(masks[number], views[copy](wanted[original]))
        assert torch.equal(data[number], views[copy](PICTURES[original].data))
    assert torch.equal(copies.view.use, ~copies.view.held_out)  # type: ignore[arg-type]


@KINDS
def test_no_held_out_pixel_is_in_the_loss(by: Any) -> None:
    """Each pixel has a colour of its own, so that it is known wherever it is seen."""
    colours = torch.rand(3, 1, 60, generator=stream(0, "x"))
    originals = [pf.Image(colours[:, :, :24].reshape(3, 4, 6)), pf.Image(colours[:, :, 24:].reshape(3, 6, 6))]
    held_out, kept = set(), set()
    view = Gallery(originals, held_out=0.3).view
    assert view.held_out is not None
    for place, hidden in enumerate(view.held_out.flatten().tolist()):
        (held_out if hidden else kept).add(tuple(colours[:, 0, place].tolist()))
    copies = Copies.of(originals, by=by, held_out=0.3)
    _, fitted, _ = copies.view.samples()
    assert {tuple(one) for one in fitted.tolist()} == kept
    assert kept.isdisjoint(held_out)
    # And in the batches of a fit.
    model = Memory(Siren(1, 8), BinaryCode(), copies.sizes)
    samples = Samples(
        model, [copies.view], [0], None, pictures=PictureBatches(3, "shuffled"), dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    seen: Counter[tuple[float, ...]] = Counter()
    for step in range(samples.per_epoch):
        seen.update(tuple(one) for one in model.to_pixels(samples.batch(step)[1][0]).mul(2**12).round().tolist())
    assert set(seen) == {tuple((torch.tensor(one) * 2**12).round().tolist()) for one in kept}
    assert sum(seen.values()) == len(fitted)


def test_what_copies_refuse() -> None:
    for make, says in (
        (lambda: Copies(PICTURES), "got 3 pictures, allowed multiples of 8; use Copies.of"),
        (lambda: Copies(PICTURES, by="crops"), "allowed multiples of 5"),
        (lambda: Copies(PICTURES, by="colours"), "by is 'colours'; it may be turns or crops"),  # type: ignore[arg-type]
        (lambda: Copies.of(PICTURES, by="colours"), "by is 'colours'"),  # type: ignore[arg-type]
        (lambda: Copies.of([], by="crops"), "needs at least one picture, got none"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    # Of eight pixels one is left, and no crop at another corner has it.
    tiny = Copies.of([replace(picture(3, 8, 1), name="tiny")], by="crops", held_out=0.99)
    with pytest.raises(
        ValueError, match=r"held_out = 0\.99 leaves no pixel of 'tiny (top|bottom) \w+' to fit; lower it"
    ):
        _ = tiny.view


def test_ids_of_copies() -> None:
    forms = {by: Copies.of(PICTURES, by=by).canonical_value() for by in COPIES}  # type: ignore[arg-type]
    assert "by" not in forms["turns"]  # as they were filed when there were no other copies
    assert (forms["turns"]["kind"], forms["crops"]["kind"], forms["crops"]["by"]) == ("Copies", "Copies", "crops")
    plain = Gallery(PICTURES).canonical_value()
    assert set(forms["turns"]) == set(plain) == set(forms["crops"]) - {"by"}


# --- drawn views


def plainly(tile: Tensor, generator: torch.Generator, crop: float) -> Tensor:
    """What `drawn` makes of one picture (1, C, H, W) with turns, by Pillow's filter in place of ours."""
    side = tile.shape[2]
    way = int(torch.randint(8, (1,), generator=generator))
    made = turned(tile[0], way)
    share = float(crop + (1 - crop) * torch.rand(1, 1, generator=generator))
    top, left = ((1 - share) * side * torch.rand(2, 1, 1, generator=generator)).flatten().tolist()
    box = (left, top, left + share * side, top + share * side)
    rows = [
        np.asarray(PillowImage.fromarray(channel.numpy()).transform(
            (side, side), PillowImage.Transform.EXTENT, box, PillowImage.Resampling.BILINEAR
        ))
        for channel in made
    ]  # fmt: skip
    return torch.from_numpy(np.stack(rows))


def test_a_drawn_crop_is_enlarged_as_picture_programs_do_it() -> None:
    """Inside: at the border they differ in what lies outside the picture."""
    whole = torch.nn.functional.pad(picture(3, 12, 12).data[None], (2, 2, 2, 2), mode="replicate")
    for seed in range(6):
        made = drawn(whole, stream(seed, "x"), turns=True, crop=0.4)[0]
        wanted = plainly(whole, stream(seed, "x"), 0.4)
        torch.testing.assert_close(made[:, 2:-2, 2:-2], wanted[:, 2:-2, 2:-2], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "ways"), [((4, 4), range(8)), ((4, 6), range(0, 8, 2))])
def test_drawn_turns_are_all_ways_that_keep_the_shape(size: tuple[int, int], ways: Sequence[int]) -> None:
    one = picture(3, *size).data
    made = drawn(one.expand(800, -1, -1, -1), stream(0, "x"), turns=True, crop=1.0)
    assert made.shape == (800, 3, *size)
    names = {turned(one, way).numpy().tobytes(): way for way in ways}
    counts = Counter(names[each.contiguous().numpy().tobytes()] for each in made)
    expected = 800 / len(ways)
    assert set(counts) == set(ways)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())


def test_drawn_crops_lie_inside_and_are_of_all_sizes() -> None:
    """Of a ramp a crop shows where it begins and ends, along each side."""
    rows, columns = torch.meshgrid((torch.arange(20) + 0.5) / 20, (torch.arange(30) + 0.5) / 30, indexing="ij")
    ramps = torch.stack([rows, columns]).expand(500, -1, -1, -1)
    made = drawn(ramps, stream(1, "x"), turns=False, crop=0.5)
    assert made.shape == ramps.shape
    down, across = made[:, 0].mean(dim=2), made[:, 1].mean(dim=1)
    slopes = [(down[:, 11] - down[:, 8]) * 20 / 3, (across[:, 16] - across[:, 13]) * 30 / 3]
    middles = [(down[:, 9] + down[:, 10]) / 2, (across[:, 14] + across[:, 15]) / 2]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=0)  # both sides have one share
    for slope, middle in zip(slopes, middles, strict=True):
        assert 0.5 - 1e-4 < float(slope.min()) < 0.52
        assert 0.98 < float(slope.max()) < 1 + 1e-4
        assert abs(float(slope.mean()) - 0.75) < 0.03
        assert abs(float(middle.mean()) - 0.5) < 0.03
        place = (middle - slope / 2) / (1 - slope)  # of what is free, uniform from 0 to 1
        place = place[slope < 0.95]
        assert -1e-3 < float(place.min()) < 0.02
        assert 0.98 < float(place.max()) < 1 + 1e-3


# --- on the fly

ROWS = COLUMNS = 6
PIXELS = ROWS * COLUMNS
INNER = Siren(1, 8, coordinates=Coordinates(alignment="corner", order="row_col"))
SHAPE: dict[str, Any] = {"hidden_features": 12, "height": ROWS, "width": COLUMNS, "context": (4, 20)}
LEARNERS: dict[str, Any] = {
    "conv": Hyper(INNER, ConvEncoder(8, 1), **SHAPE), "set": Hyper(INNER, SetEncoder(8, 2), **SHAPE),
    "maml": Maml(INNER, ROWS, COLUMNS, lr=0.1),
}  # fmt: skip
TILES = [picture(3, ROWS, COLUMNS, seed=seed).data for seed in range(4)]
MOSAIC = pf.Problem(torch.cat([torch.cat(TILES[:2], dim=2), torch.cat(TILES[2:], dim=2)], dim=1))
HALF, TURNED, CROPPED = 2 * PIXELS, AugmentedBatches(2 * PIXELS), AugmentedBatches(2 * PIXELS, crop=0.5)


def spec_of(name: str, **changes: Any) -> pf.Spec:
    spec = pf.Spec(MOSAIC, LEARNERS[name], optimiser=Adam(1e-3), batches=TURNED, budget=pf.Steps(6), seed=4)
    return replace(spec, **changes)


def samples_of(spec: pf.Spec, seeds: Sequence[int] = (4,), dtype: torch.dtype = torch.float32) -> Samples:
    assert isinstance(spec.batches, AugmentedBatches)
    return Samples(
        spec.model, [spec.problem.view] * len(seeds), seeds, spec.batches.pixels, augmented=spec.batches, dtype=dtype,
        device=torch.device("cpu"),
    )  # fmt: skip


def tiles_of(samples: Samples, step: int) -> list[Tensor]:
    """The pictures (C, H, W) that a step of the first fit is given."""
    targets = samples.model.to_pixels(samples.batch(step)[1][0])
    return list(targets.reshape(-1, ROWS, COLUMNS, 3).movedim(3, 1))


@pytest.mark.parametrize("pixels", [HALF, None])
def test_a_step_shows_its_tiles_turned(pixels: int | None) -> None:
    samples = samples_of(spec_of("set", batches=AugmentedBatches(pixels)))
    points = LEARNERS["set"].inner.coordinates.grid(ROWS, COLUMNS)
    ways = set()
    for step in range(8):
        epoch, at = divmod(step, samples.per_epoch)
        order = list(range(4))
        if pixels is not None:
            order = torch.randperm(4, generator=stream(4, f"batches/{epoch}"))[2 * at : 2 * at + 2].tolist()
        made = tiles_of(samples, step)
        assert len(made) == len(order)
        for index, one in zip(order, made, strict=True):
            found = [way for way in range(8) if torch.allclose(one, turned(TILES[index], way), atol=1e-6)]
            assert len(found) == 1
            ways.add(found[0])
        for own in samples.batch(step)[0][0].split(PIXELS):  # places stay where they are
            torch.testing.assert_close(own, points)
    assert len(ways) > 4


def test_draws_hang_on_the_seed_and_the_step_alone() -> None:
    for batches in (TURNED, CROPPED):
        spec = spec_of("conv", batches=batches)
        together = samples_of(spec, seeds=(4, 5, 4))
        for step in (3, 0, 2):
            alone = [samples_of(spec, seeds=(seed,)).batch(step)[1][0] for seed in (4, 5, 4)]
            assert torch.equal(together.batch(step)[1], torch.stack(alone))
            assert not torch.equal(alone[0], alone[1])
        one, *others = [together.batch(step)[1] for step in range(0, 12, 2)]
        assert not any(torch.equal(one, other) for other in others)
        torch.testing.assert_close(samples_of(spec, dtype=torch.float64).batch(2)[1].float(), together.batch(2)[1][:1])


def test_what_the_encoder_sees_is_what_it_is_to_show() -> None:
    samples = samples_of(spec_of("conv", batches=CROPPED))
    targets = samples.batch(1)[1]
    given = samples.given(targets, 1)
    assert torch.equal(given[..., :3], targets)
    assert torch.equal(given[..., 3], LEARNERS["conv"].seen(HALF, stream(4, "seen/1")).T.float())


@pytest.mark.parametrize("batches", [TURNED, CROPPED], ids=["turned", "cropped"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_fit_is_that_of_the_plain_loop(name: str, batches: AugmentedBatches) -> None:
    """Whole mosaics as a plain loop would turn them, each a fit of one step from the same weights."""
    spec = spec_of(name, batches=batches, budget=pf.Steps(3))
    result = pf.fit(spec, device="cpu")
    assert result.status is pf.Status.DONE, result.reason
    model, network = LEARNERS[name], LEARNERS[name].build(generator=stream(4, "weights"))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    points = model.inner.coordinates.grid(ROWS, COLUMNS).repeat(2, 1)
    losses = []
    for step in range(3):
        epoch, at = divmod(step, 2)
        order = torch.randperm(4, generator=stream(4, f"batches/{epoch}"))[2 * at : 2 * at + 2].tolist()
        shown = drawn(
            torch.stack([TILES[index] for index in order]), stream(4, f"augmentation/{step}"), turns=True,
            crop=batches.crop,
        )  # fmt: skip
        targets = model.to_target(shown.flatten(2).mT.flatten(0, 1))
        seen = model.seen(HALF, stream(4, f"seen/{step}"))
        given = targets if seen is None else torch.cat([targets, seen.to(targets)], dim=1)
        loss = (network(points, given) - targets).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(result.curves["loss"], torch.tensor(losses), rtol=1e-4, atol=1e-6)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(result.weights[key], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_fits_side_by_side_are_those_alone(name: str) -> None:
    """As a card fits them: F at once, each with the views that it would draw alone."""
    specs = [spec_of(name, batches=CROPPED, seed=seed) for seed in (4, 5)]
    *_, last = engine.fit([run._job(spec, {}, ()) for spec in specs])
    assert last.outcomes is not None
    for spec, outcome in zip(specs, last.outcomes, strict=True):
        alone = pf.fit(spec, device="cpu")
        torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batches", [TURNED, CROPPED, AugmentedBatches(crop=0.7, turns=False)], ids=str)
def test_an_interrupted_fit_goes_on_as_if_nothing_had_been(batches: AugmentedBatches) -> None:
    job = run._job(spec_of("conv", batches=batches), {}, ())
    *_, undisturbed = engine.fit([job])
    asked = iter([False] * 3 + [True])
    *_, stopped = engine.fit([job], interrupt=lambda: next(asked, True))
    assert 0 < stopped.step < 6
    *_, resumed = engine.fit([job], state=stopped)
    assert undisturbed.outcomes is not None
    assert resumed.outcomes is not None
    assert torch.equal(undisturbed.outcomes[0].losses, resumed.outcomes[0].losses)
    for key, value in undisturbed.outcomes[0].weights.items():
        assert torch.equal(value, resumed.outcomes[0].weights[key])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and there is none")
@pytest.mark.parametrize("batches", [TURNED, CROPPED], ids=["turned", "cropped"])
def test_a_card_sees_the_same_views(batches: AugmentedBatches) -> None:
    losses = [
        pf.fit(spec_of("conv", batches=batches), device=device).curves["loss"].cpu() for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


def test_turned_pictures_teach_what_turns_have_in_common() -> None:
    """Two pictures, both brighter above, to be shown from a look at all of them, and pictures brighter on the left."""
    ramp = torch.linspace(0, 1, ROWS)[:, None].expand(ROWS, COLUMNS)
    pictures = [torch.stack([a * ramp, b * ramp, 1 - ramp]) for a, b in ((0.2, 0.9), (0.9, 0.3))]
    model = Hyper(
        Siren(1, 16, first_omega_0=5.0, hidden_omega_0=5.0), SetEncoder(16, 2, 3.0), hidden_features=16, height=ROWS,
        width=COLUMNS, context=None, latent_weight=0.0, weight_weight=0.0, init="inner",
    )  # fmt: skip
    errors = {}
    for batches in (Batches(), AugmentedBatches()):
        spec = pf.Spec(
            pf.Problem(torch.cat(pictures, dim=1)), model, optimiser=Adam(2e-3), batches=batches, budget=pf.Steps(100),
            seed=1,
        )  # fmt: skip
        result = pf.fit(spec, device="cpu")
        network, unseen = pf.Network.of(result), torch.stack([turned(one, 1) for one in pictures])
        shown = [render.render(network.shown(code, ROWS, COLUMNS)) for code in model.encode(result.weights, unseen)]
        errors[type(batches)] = float((torch.stack(shown) - unseen).square().mean())
    assert errors[AugmentedBatches] < 0.2 * errors[Batches]


def test_settings_of_augmented_batches() -> None:
    made: list[tuple[Callable[[], object], str]] = [
        (lambda: AugmentedBatches(turns=1), r"batches\.turns is 1; it must be true or false"),  # type: ignore[arg-type]
        (lambda: AugmentedBatches(crop=0), r"batches\.crop is 0; it must be above 0"),
        (lambda: AugmentedBatches(crop=1.5), r"batches\.crop is 1\.5"),
        (lambda: AugmentedBatches(crop=math.nan), r"batches\.crop is nan"),
        (lambda: AugmentedBatches(turns=False), "change nothing; use Batches"),
        (lambda: AugmentedBatches(0), r"batches\.pixels is 0"),
        (lambda: pf.Spec(MOSAIC, Siren(), batches=TURNED), "the model Siren does not learn from any; use Batches"),
        (
            lambda: pf.Spec(Gallery(PICTURES), Memory(INNER, BinaryCode(), SIZES), batches=TURNED),
            r"the model Memory does not learn from any; give it a Gallery with pixfit\.problem\.Copies",
        ),
        (lambda: pf.fit(spec_of("set", batches=AugmentedBatches(50))), "trained on whole pictures"),
    ]
    for make, says in made:
        with pytest.raises(ValueError, match=says):
            make()
    assert TURNED == AugmentedBatches(2 * PIXELS, True, 1) != Batches(2 * PIXELS)
    spec = spec_of("set", batches=CROPPED)
    assert pf.modelfile.decode_spec(json.loads(json.dumps(spec.plain)), MOSAIC) == spec
    ids = {spec_of("set", batches=batches).id for batches in (Batches(HALF), TURNED, CROPPED)}
    assert len(ids) == 3


# --- the study


def test_the_study_runs_with_augmented_designs(tmp_path: Path) -> None:
    augmented = [name for name in HYPER if HYPER[name].turns]
    assert len(augmented) == 3
    study = MemorizeStudy.of("smoke", {"designs": ",".join(["crops", *augmented]), "epochs": "2"})
    store = Store(tmp_path)
    for spec in study.specs(store):
        result = pf.fit(spec, store, device="cpu", record=study.record(spec))
        assert result.status is pf.Status.DONE, result.reason
    answer = study.answer(store)
    assert [row["design"] for row in answer.tables["designs"].rows] == ["crops", *augmented]
    assert [row["design"] for row in answer.tables["contexts"].rows] == augmented
    assert all(math.isfinite(row["memorised"]) for row in answer.tables["designs"].rows)
    assert answer.tables["designs"].rows[0]["held out"] is not None
    crops = study.fit("crops").problem
    assert isinstance(crops, Copies)
    assert (crops.by, crops.originals, len(crops.pictures)) == ("crops", 6, 30)
    assert crops.pictures[:6] == study.pictures.small
    with pytest.raises(StudyError, match="hyper-conv-turned needs an even one"):
        MemorizeStudy.of("smoke", {"designs": "hyper-conv-turned", "hyper_width": "5"})


def test_augmented_hypernetworks_differ_in_their_batches_alone() -> None:
    study = MemorizeStudy.of("smoke")
    for name, crop in (("hyper-conv-turned", 1.0), ("hyper-set-turned", 1.0), ("hyper-set-cropped", 0.5)):
        plain = study.fit("hyper-conv" if "conv" in name else "hyper-set")
        assert isinstance(plain.batches, Batches)
        assert study.fit(name) == replace(plain, batches=AugmentedBatches(plain.batches.pixels, True, crop))


# --- a person's memory with copies

SIDE = 8
ICONS = [replace(picture(3, SIDE, SIDE, seed=number), name=f"icon-{number}") for number in range(3)]
SMALL = {"model.inner.hidden_features": "16"}


@KINDS
@pytest.mark.parametrize("recipe", memorize.RECIPES)
def test_recipes_take_copies_in_as_many_steps(recipe: str, by: Any) -> None:
    plain, made = (memorize.spec(ICONS, recipe=recipe, augment=augment) for augment in (None, by))
    assert isinstance(plain.problem, Gallery)
    assert isinstance(made.problem, Copies)
    assert plain.budget.step_limit(memorize.steps_per_epoch(plain)) == made.budget.steps
    expected = Copies.of(ICONS, by=by, held_out=0.1, rule=plain.problem.rule)
    assert made.problem.canonical_value() == expected.canonical_value()
    assert made.model.sizes == made.problem.sizes
    assert made.estimate == pf.BestHeldOut(memorize.steps_per_epoch(made))
    assert replace(made, problem=plain.problem, model=plain.model, batches=plain.batches, budget=plain.budget,
                   estimate=plain.estimate) == plain  # fmt: skip
    if isinstance(made.batches, PictureBatches):
        assert made.batches == replace(plain.batches, order="shuffled")  # type: ignore[type-var]
    assert memorize.spec(ICONS, recipe=recipe, augment=by, held_out=0).estimate == pf.Last()


def test_unknown_copies_are_told_of() -> None:
    with pytest.raises(ValueError, match="no augmentation for memories is called 'turn'; did you mean 'turns'"):
        memorize.spec(ICONS, augment="turn")


@KINDS
def test_copies_have_names_and_are_not_scored(by: Any, tmp_path: Path) -> None:
    result = pf.fit(memorize.spec(ICONS, augment=by, settings=SMALL, budget=pf.Steps(4)), device="cpu")
    views = list(COPIES[by])
    network = pf.Network.of(result)
    assert network.names == tuple(f"{one.name} {view}".strip() for view in views for one in ICONS)
    assert network.originals == 3
    assert len(result.pictures) == 3 * len(views)
    found = memorize.scores(result)
    assert found.names == ("icon-0", "icon-1", "icon-2")
    assert found.whole[1] == pytest.approx(pf.metrics.psnr(result.pictures[1], ICONS[1].data), abs=1e-6)
    copied = render.render(network.one(f"icon-1 {views[2]}"))
    assert torch.equal(copied, render.render(network.one(7)))
    pf.save(network, tmp_path / "m.safetensors")
    assert pf.load(tmp_path / "m.safetensors").originals == 3
    # Fields of pictures of one size, though their crops have another.
    for near in memorize.neighbours(network):
        assert near.names == found.names
        assert near.matrix.shape == (3, 3)
    pages = memorize.write_pages(result, tmp_path / "pages")
    page = images.load(pages[0])
    assert page.width < 4 * 96 + 100  # three pictures across
    damaged = replace(network, record={**network.record, "problem": {"kind": "Copies", "by": ["what"]}})
    assert damaged.originals == len(network.names)
    with pytest.raises(ValueError, match="only a Memory has several"):
        _ = network.one(0).originals


def test_memorize_with_copies_as_a_person_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXFIT_STORE", raising=False)
    (tmp_path / "icons").mkdir()
    for one in ICONS:
        images.save(one, tmp_path / "icons" / f"{one.name}.png")
    command = ("memorize", "icons", "-o", "m.safetensors", "-s", "model.inner.hidden_features=16", "--steps", "8")
    said = as_json(*command, "--augment", "turns", "--pages", "pages")
    assert (said["pictures"], said["copies"], said["steps"]) == (3, 21, 8)
    assert [row["name"] for row in said["scores"]] == ["icon-0", "icon-1", "icon-2"]
    assert "3 pictures and 21 copies of 1,536 pixels" in pixfit(*command, "--augment", "turns").stdout
    as_json("render", "m.safetensors", "-o", "one.png", "--picture", "icon-2 mirrored")
    as_json("interpolate", "m.safetensors", "icon-0", "icon-0 turned 180", "-o", "strip.png", "--steps", "3")
    near = as_json("neighbours", "m.safetensors", "--of", "icon-1")
    assert (near["pictures"], near["embedding"]) == (3, "field")
    assert {row["name"] for row in near["of"]["neighbours"]} == {"icon-0", "icon-2"}
    assert "this is a copy" in one_line(pixfit("neighbours", "m.safetensors", "--of", "icon-1 mirrored", code=2))
    assert "did you mean 'crops'" in one_line(pixfit(*command, "--augment", "crop", code=2))
    assert as_json(*command)["copies"] == 0
    crops = as_json(*command, "--augment", "crops")
    assert crops["copies"] == 12
    assert as_json("neighbours", "m.safetensors")["embedding"] == "field"
    assert augmentation.COPIES["crops"].keys() - {""} == {
        name.removeprefix("icon-0 ") for name in pf.load("m.safetensors").names if name.startswith("icon-0 ")
    }
