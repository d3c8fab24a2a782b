"""Many pictures in one network: codes, the gallery's held-out pixels, batches of pictures, and what comes out again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pixfit as pf
from pixfit import canonical, embedding, engine, export, modelfile, render, report, run
from pixfit.kernels import library
from pixfit.models import (
    CODES,
    AxisCode,
    BinaryCode,
    Code,
    Coordinates,
    Experts,
    Finer,
    Fourier,
    Gauss,
    Grid,
    LearnedCode,
    Memory,
    Mlp,
    Raw,
    RingCode,
    Siren,
    Tiles,
    Wire,
)
from pixfit.optim import Adam
from pixfit.problem import Gallery, stream
from pixfit.spec import BATCHES, AugmentedBatches, Batches, Batching, PictureBatches
from pixfit.stack import Samples
from tests.conftest import picture

compiled = pytest.mark.skipif(
    not library.isas(), reason="no compiled kernels here: " + "; ".join(library.refused().values())
)

PUBLISHED = Coordinates("corner", order="row_col")
SIZES = ((7, 9), (12, 10), (1, 5), (12, 10), (6, 6), (9, 4), (3, 3))
PICTURES = [replace(picture(3, *size, seed=number), name=f"picture {number}") for number, size in enumerate(SIZES)]
CODED: dict[str, Code] = {
    "binary": BinaryCode(), "axis": AxisCode(4.0), "ring": RingCode(2.0), "learned": LearnedCode(5, 0.5),
}  # fmt: skip
INNER = {
    "siren": Siren(1, 20, coordinates=PUBLISHED),
    "bottleneck": Siren.bottleneck(30, coordinates=Coordinates(order="row_col")),
    "finer": Finer(1, 20),
    "gauss": Gauss(1, 20, scale=3.0),
    "wire": Wire(1, 12),
    "raw": Mlp(1, 20, encoding=Raw(), activation="silu"),
    "fourier": Mlp(1, 20, encoding=Fourier(16), norm="layer", skip=True),
    "grid": Mlp(1, 20, encoding=Grid(((4, 2), (8, 2)), init=0.5)),
}


def gallery(**settings: Any) -> Gallery:
    return Gallery(PICTURES, **{"held_out": 0.2, **settings})


def spec_of(code: str = "binary", inner: str = "siren", **changes: Any) -> pf.Spec:
    model = Memory(INNER[inner], CODED[code], SIZES)
    settings: dict[str, Any] = {
        "batches": PictureBatches(3), "optimiser": Adam(1e-3), "budget": pf.Steps(100), "seed": 3, **changes,
    }  # fmt: skip
    return pf.Spec(settings.pop("problem", None) or gallery(), model, **settings)


def decibels(losses: Tensor) -> Tensor:
    return -10 * torch.log10(losses.double())


# --- parameters


def test_the_published_network() -> None:
    model = Memory(Siren(3, 480, coordinates=PUBLISHED), BinaryCode(), ((48, 48),) * 100)
    assert (model.in_features, model.parameters_count(), model.stored_numbers()) == (9, 698_883, 698_883)
    assert Memory(Siren(3, 480), LearnedCode(7), ((48, 48),) * 100).parameters_count() == 698_883 + 700


def test_the_bottleneck() -> None:
    narrow = Siren.bottleneck(480)
    widths = [9, 480, 480, 48, 480, 480, 3]
    assert narrow.widths == tuple(widths[1:-1])
    count = sum(a * b + b for a, b in pairwise(widths))
    assert Memory(narrow, BinaryCode(), ((48, 48),) * 100).parameters_count() == count == 514_611
    assert Siren.bottleneck(64, 4, first_omega_0=20.0) == Siren(4, (64, 64, 16, 64, 64), 20.0)
    network = narrow.build(9, 3, generator=stream(0, "weights"))
    for number, fan_in in enumerate(widths[:-1]):  # each layer's own fan-in
        bound = 1 / fan_in if number == 0 else math.sqrt(6 / fan_in) / 30
        weight, bias = (network.get_parameter(f"layers.{number}.{part}") for part in ("weight", "bias"))
        assert 0.95 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= 1 / math.sqrt(fan_in)
    for wrong in ({"features": 0}, {"ratio": 0}, {"features": 5, "ratio": 6}):
        with pytest.raises(ValueError, match="allowed whole numbers"):
            Siren.bottleneck(**wrong)


# --- codes


def written_out(code: Code, count: int) -> list[list[float]] | None:
    """The table's formulas once more, number by number; None where codes are learned."""
    rows: list[list[float]] = []
    for i in range(count):
        if isinstance(code, BinaryCode):
            bits = math.ceil(math.log2(count))
            rows.append([float(digit) for digit in f"{i:0{bits}b}"] if bits else [])
        elif isinstance(code, AxisCode):
            rows.append([code.scale * (-1 + 2 * i / (count - 1) if count > 1 else 0.0)])
        elif isinstance(code, RingCode):
            z = -1 + 2 * i / count
            rows.append([code.radius * math.sin(math.pi * z), code.radius * math.cos(math.pi * z)])
        else:
            return None
    return rows


def test_the_list_has_every_code() -> None:
    assert {type(code) for code in CODED.values()} == set(CODES.values()) == set(Code.__subclasses__())
    assert all(name == kind.__name__ for name, kind in CODES.items())


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 100])
def test_a_code_for_each_picture(name: str, count: int) -> None:
    code, expected = CODED[name], written_out(CODED[name], count)
    if expected is None:
        assert code.learned
        with pytest.raises(ValueError, match="among the network's weights"):
            code.table(count)
        return
    assert not code.learned
    assert code.table(count).shape == (count, code.features(count))
    torch.testing.assert_close(code.table(count), torch.tensor(expected, dtype=torch.float64).view(count, -1))
    assert len({tuple(row) for row in code.table(count).tolist()}) == count


def test_learned_codes_are_drawn_and_trained() -> None:
    spec = spec_of("learned", budget=pf.Steps(30), batches=PictureBatches(2))
    first, last = (pf.fit(replace(spec, budget=pf.Steps(steps))) for steps in (0, 30))
    before, after = (modelfile.Network.of(result).codes for result in (first, last))
    assert before.shape == (7, 5)
    assert 0.3 < float(before.std()) < 0.7
    assert bool(((after - before).abs().amax(dim=1) > 1e-3).all())  # every picture's


@pytest.mark.parametrize("inner", INNER)
def test_points_are_a_code_and_a_place(inner: str) -> None:
    """Each picture has its own grid, as if it were alone."""
    for code in CODED.values():
        model = Memory(INNER[inner], code, SIZES)
        points = model.coordinates.grid(1, sum(h * w for h, w in SIZES))
        at = 0
        table = written_out(code, len(SIZES)) or [[float(number)] for number in range(len(SIZES))]
        for own, size in zip(table, SIZES, strict=True):
            part = points[at : at + size[0] * size[1]]
            at += len(part)
            torch.testing.assert_close(part[:, :-2], torch.tensor(own).expand(len(part), -1))
            assert torch.equal(part[:, -2:], INNER[inner].coordinates.grid(*size))
        assert at == len(points)
        assert points.shape[1] == model.in_features


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AxisCode(0), r"AxisCode\.scale"),
        (lambda: RingCode(-1.0), r"RingCode\.radius"),
        (lambda: LearnedCode(0), r"LearnedCode\.size"),
        (lambda: LearnedCode(std=-1), r"LearnedCode\.std"),
        (lambda: Memory(Tiles()), "allowed Siren or Finer or Gauss or Wire or Mlp"),
        (lambda: Memory(Mlp(encoding=Raw(), experts=Experts())), "whose gate a code cannot pass"),
        (lambda: Memory(sizes=()), r"Memory\.sizes: got \(\)"),
        (lambda: Memory(sizes=((4, 5, 6),)), r"allowed \(height, width\) of each picture"),  # type: ignore[arg-type]
        (lambda: Memory(sizes=((4, 0),)), r"Memory\.sizes: got 0"),
        (lambda: Memory(sizes=((4096, 4096), (1, 1))), "got 16,777,217 pixels in all"),
        (lambda: Memory().network(9), "got 9; this memory takes 2"),
        (lambda: PictureBatches(0), r"batches\.pictures is 0"),
        (lambda: PictureBatches(2, "random"), r"batches\.order is 'random'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# --- the gallery


def test_pictures_lie_one_after_the_other() -> None:
    shown = gallery()
    assert shown.shape == (3, 1, sum(h * w for h, w in SIZES))
    assert shown.sizes == SIZES
    assert shown.names == tuple(one.name for one in PICTURES)
    for part, whole in zip(shown.split(shown.image.data), PICTURES, strict=True):
        assert torch.equal(part, whole.data)
    assert shown.view.measurement.data_ptr() != shown.image.data.data_ptr()


def test_what_is_in_the_id_of_a_gallery() -> None:
    spec = spec_of()
    assert spec.id == "c12bc46256b4c9cea9d0"
    renamed = [replace(one, name="x") for one in PICTURES]
    assert spec_of(problem=Gallery(renamed, held_out=0.2)).id == spec.id
    assert "picture 1" not in canonical.text(spec.plain)
    others = [
        gallery(held_out=0.3), gallery(seed=1), gallery(rule="published"),
        Gallery([*PICTURES[:-1], picture(3, 3, 3, seed=99)], held_out=0.2),
    ]  # fmt: skip
    assert len({spec.id, *(spec_of(problem=other).id for other in others)}) == 5
    back = modelfile.decode_spec(json.loads(json.dumps(spec.plain)))
    assert (back.id, back.model, back.batches, back.problem.shape) == (
        spec.id, spec.model, spec.batches, spec.problem.shape,
    )  # fmt: skip
    # The same pixels cut into other pictures are another problem.
    turned = pf.Image(PICTURES[1].data.flatten(1).view(3, 10, 12))
    other = Gallery([*PICTURES[:1], turned, *PICTURES[2:]], held_out=0.2)
    assert other.image.hash == gallery().image.hash
    assert canonical.digest(other) != canonical.digest(gallery())


@pytest.mark.parametrize("rule", ["drawn", "published"])
def test_held_out_pixels_of_each_picture(rule: Any) -> None:
    shown = gallery(rule=rule, seed=4)
    view = shown.view
    assert view.use is not None
    assert view.held_out is not None
    assert not bool((view.use & view.held_out).any())
    assert bool((view.use | view.held_out).all())
    for number, (mask, size) in enumerate(zip(shown.split(view.held_out), SIZES, strict=True)):
        pixels = size[0] * size[1]
        assert int(mask.sum()) == int(0.2 * pixels)
        if rule == "published":
            chosen = random.Random(number).sample(range(pixels), int(0.2 * pixels))
            assert sorted(chosen) == mask.flatten().nonzero()[:, 0].tolist()
    other = gallery(rule=rule, seed=5).view.held_out
    assert other is not None
    assert torch.equal(view.held_out, other) == (rule == "published")
    index, targets, weights = view.samples()
    assert weights is None
    assert not bool(view.held_out.flatten()[index].any())
    assert torch.equal(targets, shown.image.data[:, 0, index].T)


def test_the_published_pixels_are_those_of_the_exercise() -> None:
    """Written out, since Python might change how it draws."""
    found = Gallery([picture(1, 48, 48)] * 2, rule="published").view.held_out
    assert found is not None
    first, second = (half.nonzero()[:, 0].tolist() for half in found.flatten().split(48 * 48))  # type: ignore[no-untyped-call]
    assert (len(first), len(second)) == (230, 230)
    assert first[:6] == [0, 4, 6, 9, 13, 50]
    assert second[:6] == [6, 8, 23, 34, 37, 50]


def test_every_picture_keeps_a_pixel() -> None:
    shown = Gallery([picture(3, 1, 1), picture(3, 2, 1), picture(3, 4, 4)], held_out=0.999)
    assert shown.view.use is not None
    assert [int(part.sum()) for part in shown.split(shown.view.use)] == [1, 1, 1]
    assert Gallery([picture(3, 1, 1)], held_out=0).view.held_out is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gallery([]), "at least one picture"),
        (lambda: Gallery([picture(3, 4, 4), picture(1, 4, 4)]), r"one number of channels, got \[1, 3\]"),
        (lambda: Gallery([picture(3, 4, 4)], held_out=1.0), "held_out is 1.0"),
        (lambda: Gallery([picture(3, 4, 4)], rule="fixed"), "rule is 'fixed'"),  # type: ignore[arg-type]
        (lambda: Gallery([picture(3, 3, 3)]).view, "holds out none of 9 pixels; raise it"),
        (lambda: spec_of(problem=pf.Problem(PICTURES[0])), "holds many pictures; give it a Gallery"),
        (lambda: spec_of(problem=Gallery(PICTURES[1:])), "gallery of 6 pictures, and the model Memory is of 7"),
        (lambda: pf.Spec(gallery(), Siren()), r"the model Siren is of one picture; use Memory\(inner"),
        (lambda: pf.Spec(pf.Problem(PICTURES[0]), Siren(), batches=PictureBatches()), "the model Siren has one"),
    ],
)  # fmt: skip
def test_what_a_gallery_refuses(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_what_is_no_picture() -> None:
    with pytest.raises(TypeError, match=r"got Tensor; pixfit\.images\.load_folder"):
        Gallery([PICTURES[0].data])  # type: ignore[list-item]


# --- batches


def samples_of(spec: pf.Spec, batch: PictureBatches, seeds: Sequence[int] = (3,)) -> Samples:
    place: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    return Samples(spec.model, [spec.problem.view] * len(seeds), seeds, None, pictures=batch, **place)


def used(number: int) -> list[int]:
    """Places in the flat picture of the fitted pixels of a picture."""
    shown = gallery()
    assert shown.view.use is not None
    first = sum(h * w for h, w in SIZES[:number])
    return [first + place for place in shown.split(shown.view.use)[number].flatten().nonzero()[:, 0].tolist()]


def test_the_list_of_batches() -> None:
    assert {Batches, PictureBatches} == set(Batching.__subclasses__())
    assert {AugmentedBatches} == set(Batches.__subclasses__())
    assert set(BATCHES.values()) == {Batches, PictureBatches, AugmentedBatches}
    assert PictureBatches(16).steps_per_epoch(230_400, 100) == 7
    assert [Batches(100).per_step(240), Batches().per_step(240), Batches(300).per_step(240)] == [100, 240, 240]


@pytest.mark.parametrize("pictures", [1, 2, 3, 7, 16])
def test_whole_pictures_in_their_order(pictures: int) -> None:
    spec = spec_of()
    samples = samples_of(spec, PictureBatches(pictures))
    assert samples.per_epoch == math.ceil(7 / pictures)
    for step in range(2 * samples.per_epoch):
        at = step % samples.per_epoch
        expected = [place for number in range(7)[at * pictures : (at + 1) * pictures] for place in used(number)]
        index, made = samples.rows(step, 1)
        assert index is not None
        assert made == 1
        assert samples.places[0, index[0, 0]].tolist() == expected
        assert len(expected) <= samples.per_step
        points, targets, weights = samples.batch(step)
        assert weights is None
        assert torch.equal(points, samples.at(torch.tensor([expected])))
        assert torch.equal(targets[0], 2 * gallery().image.data[:, 0, expected].T - 1)


def test_steps_of_one_size_are_made_at_once() -> None:
    same = Gallery([picture(3, 5, 4, seed=seed) for seed in range(7)], held_out=0.2)
    spec = pf.Spec(same, Memory(Siren(1, 8), sizes=same.sizes))
    samples = samples_of(spec, PictureBatches(2))
    sizes = [
        (tuple(index.shape), made)
        for step in (0, 1, 3, 4)
        for index, made in [samples.rows(step, 9)]
        if index is not None
    ]
    assert sizes == [((1, 3, 32), 3), ((1, 2, 32), 2), ((1, 1, 16), 1), ((1, 3, 32), 3)]


def test_shuffled_pictures_come_once_an_epoch() -> None:
    spec = spec_of()
    samples = samples_of(spec, PictureBatches(3, "shuffled"))
    epochs = []
    for epoch in range(3):
        order = torch.randperm(7, generator=stream(3, f"batches/{epoch}")).tolist()
        epochs.append(order)
        for step in range(3):
            index, _ = samples.rows(3 * epoch + step, 1)
            assert index is not None
            expected = [place for number in order[3 * step : 3 * step + 3] for place in used(number)]
            assert samples.places[0, index[0, 0]].tolist() == expected
            assert len(expected) <= samples.per_step
    assert len({tuple(order) for order in epochs}) == 3


# --- fits


def plain(spec: pf.Spec, steps: int) -> list[float]:
    """Pictures, codes and batches by hand: the losses of a plain loop."""
    assert isinstance(spec.problem, Gallery)
    assert isinstance(spec.model, Memory)
    assert isinstance(spec.batches, PictureBatches)
    network = spec.model.build(generator=stream(spec.seed, "weights"))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    table = written_out(spec.model.code, 7)
    grids = [spec.model.inner.coordinates.grid(*size) for size in SIZES]
    assert spec.problem.view.use is not None
    uses = [mask.flatten() for mask in spec.problem.split(spec.problem.view.use)]
    losses: list[float] = []
    while len(losses) < steps:
        order = list(range(7))
        if spec.batches.order == "shuffled":
            order = torch.randperm(7, generator=stream(spec.seed, f"batches/{len(losses) // 3}")).tolist()
        for first in (0, 3, 6):
            errors = []
            for number in order[first : first + 3]:
                own = [float(number)] if table is None else table[number]
                points = torch.cat([torch.tensor(own).expand(len(grids[number]), -1), grids[number]], dim=1)
                target = 2 * PICTURES[number].data.flatten(1).T - 1
                errors.append((network(points) - target)[uses[number]].square())
            loss = torch.cat(errors).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses[:steps]


@pytest.mark.parametrize(
    ("code", "order", "kernel"),
    [*((code, order, "auto") for code in CODED for order in ("fixed", "shuffled")), ("binary", "shuffled", "torch")],
)
def test_a_fit_is_that_of_the_plain_loop(code: str, order: Any, kernel: Any) -> None:
    spec = spec_of(code, batches=PictureBatches(3, order), kernel=kernel, budget=pf.Steps(60))
    result = pf.fit(spec, device="cpu")
    assert result.status is pf.Status.DONE, result.reason
    fused = kernel == "auto" and code != "learned" and library.isas()
    assert result.kernel == (f"fused-{library.isas()[0]}" if fused else "torch")
    assert (decibels(result.curves["loss"]) - decibels(torch.tensor(plain(spec, 60)))).abs().max() < 0.01


@compiled
@pytest.mark.parametrize("inner", sorted(set(INNER) - {"wire", "fourier", "grid"}))
def test_networks_of_raw_coordinates_run_on_the_kernel(inner: str) -> None:
    fused, slow = (pf.fit(spec_of(inner=inner, kernel=kernel, optimiser=Adam(3e-4))) for kernel in ("auto", "torch"))
    assert fused.kernel == f"fused-{library.isas()[0]}"
    assert slow.kernel == "torch"
    assert (decibels(fused.curves["loss"]) - decibels(slow.curves["loss"])).abs().max() < 0.01


@compiled
def test_rounded_backward_products() -> None:
    rounded, full = (pf.fit(spec_of(precision=precision)) for precision in ("bfloat16-backward", "float32"))
    found = library.load()
    assert found is not None
    assert full.kernel == f"fused-{found.isa}"
    assert rounded.kernel == full.kernel + ("-amx" if found.products == 2 else "")
    assert float(rounded.curves["loss"][0]) == pytest.approx(float(full.curves["loss"][0]), rel=1e-5)
    assert 0 < (decibels(rounded.curves["loss"]) - decibels(full.curves["loss"])).abs().max() < 0.5
    with pytest.raises(ValueError, match="bfloat16-backward, which Memory"):
        spec_of("learned", precision="bfloat16-backward")


@pytest.mark.parametrize("inner", ["wire", "fourier", "grid"])
@pytest.mark.parametrize("code", ["binary", "learned"])
def test_networks_that_no_kernel_serves_learn_the_pictures(inner: str, code: str) -> None:
    rate = Adam(1e-2 if isinstance(INNER[inner], Mlp) else 1e-3)
    result = pf.fit(spec_of(code, inner, optimiser=rate, budget=pf.Steps(60)))
    assert result.kernel == "torch"
    assert result.status is pf.Status.DONE, result.reason
    assert result.curves["loss"][-3:].mean() < 0.9 * result.curves["loss"][:3].mean()


def test_no_held_out_pixel_is_ever_in_the_loss() -> None:
    """Other values there change nothing but the scores."""
    shown = gallery()
    assert shown.view.held_out is not None
    spoiled = shown.image.data.clone()
    spoiled[:, shown.view.held_out[0]] = 1 - spoiled[:, shown.view.held_out[0]]
    other = Gallery([pf.Image(part.contiguous()) for part in shown.split(spoiled)], held_out=0.2)
    a, b = (pf.fit(spec_of(problem=problem, budget=pf.Steps(20))) for problem in (shown, other))
    assert a.id != b.id
    assert torch.equal(a.curves["loss"], b.curves["loss"])
    assert all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())


def test_fits_side_by_side_are_those_alone() -> None:
    for code in ("ring", "learned"):
        specs = [replace(spec_of(code), seed=seed, problem=gallery(seed=seed), budget=pf.Steps(20)) for seed in (4, 5)]
        *_, last = engine.fit([run._job(spec, {}, ()) for spec in specs])
        assert last.outcomes is not None
        for spec, outcome in zip(specs, last.outcomes, strict=True):
            alone = pf.fit(spec, device="cpu")
            torch.testing.assert_close(outcome.losses, alone.curves["loss"], rtol=1e-4, atol=1e-6)
    shuffled = [run._job(replace(spec, batches=PictureBatches(3, "shuffled")), {}, ()) for spec in specs]
    assert len({engine.stack_key(job) for job in shuffled}) == 2


# --- the held-out curve


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_the_held_out_curve_stands_beside_the_loss(kernel: Any) -> None:
    spec = spec_of(estimate=pf.BestHeldOut(3), budget=pf.Steps(31), kernel=kernel)
    result = pf.fit(spec, record=pf.Record(keep=(0, 6, 31)))
    assert result.curves["held_out_step"].tolist() == list(range(0, 31, 3))
    assert isinstance(spec.problem, Gallery)
    assert spec.problem.view.held_out is not None
    mask = spec.problem.view.held_out[0]
    for step in (0, 6):
        weights = modelfile.Network(spec.model, result.kept[step], spec.plain)
        shown = render.render(weights)[:, mask] - spec.problem.image.data[:, mask]
        assert float(result.curves["held_out_loss"][step // 3]) == pytest.approx(
            4 * float(shown.square().mean()), rel=1e-3
        )
        clamped = (render.render(weights)[:, mask].clamp(0, 1) - spec.problem.image.data[:, mask]).square().mean()
        assert float(result.curves["held_out_psnr"][step // 3]) == pytest.approx(-10 * math.log10(clamped), rel=1e-3)
    assert result.estimate is not None
    best = (result.estimate[:, mask].clamp(0, 1) - spec.problem.image.data[:, mask]).square().mean()
    assert -10 * math.log10(best) == pytest.approx(float(result.curves["held_out_psnr"].max()), abs=1e-2)
    assert set(result.kept) == {0, 6, 31}  # the last weights stand beside the best ones


def test_an_interrupted_fit_goes_on_as_if_nothing_had_been() -> None:
    for step in (6, 7):  # at a look, and between two
        job = run._job(spec_of("learned", estimate=pf.BestHeldOut(3), budget=pf.Steps(20)), {}, ())
        *_, undisturbed = engine.fit([job])
        asked = iter([False] * step + [True])
        *_, stopped = engine.fit([job], interrupt=lambda asked=asked: next(asked, True))  # type: ignore[misc]
        assert stopped.step == step
        assert stopped.outcomes is not None
        assert len(stopped.outcomes[0].looks["held_out_step"]) == 3
        *_, resumed = engine.fit([job], state=stopped)
        assert undisturbed.outcomes is not None
        assert resumed.outcomes is not None
        ours, theirs = resumed.outcomes[0], undisturbed.outcomes[0]
        assert torch.equal(ours.losses, theirs.losses)
        assert ours.looks.keys() == theirs.looks.keys()
        assert all(torch.equal(value, theirs.looks[name]) for name, value in ours.looks.items())
        assert all(torch.equal(value, theirs.weights[name]) for name, value in ours.weights.items())


def test_a_stored_fit_has_its_curves(tmp_path: Path) -> None:
    spec, store = spec_of(estimate=pf.BestHeldOut(3), budget=pf.Steps(6)), pf.Store(tmp_path / "runs")
    result = pf.fit(spec, store)
    found = store.get(spec)
    assert found is not None
    assert torch.equal(found.curves["held_out_loss"], result.curves["held_out_loss"])
    again = pf.fit(spec, store)
    assert again.estimate is not None
    assert result.estimate is not None
    assert torch.equal(again.estimate, result.estimate)


# --- pictures out of a memory


def fitted(code: str = "binary", inner: str = "siren", steps: int = 5) -> tuple[pf.Result, pf.Network]:
    result = pf.fit(spec_of(code, inner, budget=pf.Steps(steps)))
    return result, pf.Network.of(result)


def evaluated(network: pf.Network, code: Tensor, places: Tensor) -> Tensor:
    """Pixels (N, C) of a memory's own module, given the codes themselves."""
    module = network.module()
    inner = module.inner if isinstance(network.model, Memory) and network.model.code.learned else module
    assert isinstance(inner, nn.Module)
    with torch.no_grad():
        return network.model.to_pixels(inner(torch.cat([code.expand(len(places), -1), places], dim=1)))


MADE = [*((code, "siren") for code in CODED), *((code, inner) for inner in INNER for code in ("binary", "learned"))]
made = pytest.mark.parametrize(("code", "inner"), sorted(set(MADE)))


@made
def test_one_picture_is_an_ordinary_network(code: str, inner: str) -> None:
    result, network = fitted(code, inner)
    assert [tuple(shown.shape) for shown in result.pictures] == [(3, *size) for size in SIZES]
    for number, shown in enumerate(result.pictures):
        alone = network.one(number)
        assert alone.model == INNER[inner]
        assert alone.shape == (3, *SIZES[number])
        torch.testing.assert_close(render.render(alone), shown, rtol=0, atol=3e-5)


@made
def test_any_code_at_any_size(code: str, inner: str) -> None:
    _, network = fitted(code, inner)
    codes = network.codes
    assert codes.shape[0] == 7
    blend = 0.3 * codes[1] + 0.7 * codes[4]
    shown = network.shown(blend, 8, 5)
    for size in (None, (21, 16)):
        wanted = size or (5, 8)
        places = INNER[inner].coordinates.grid(8, 5, samples=(wanted[1], wanted[0]))
        expected = evaluated(network, blend, places).T.view(3, wanted[1], wanted[0])
        torch.testing.assert_close(render.render(shown, size=size), expected, rtol=0, atol=3e-5)
    with pytest.raises(ValueError, match=r"code: got \(9,\) numbers"):
        network.shown(torch.zeros(9), 8, 5)


def test_the_file_of_a_memory(tmp_path: Path) -> None:
    result = pf.fit(spec_of("learned", budget=pf.Steps(5), estimate=pf.BestHeldOut(3), stopping=pf.HeldOut(4)))
    network = pf.Network.of(result)
    size = modelfile.save(result, tmp_path / "memory.safetensors")
    assert size == modelfile.size_in_bytes(network)
    back = modelfile.load(tmp_path / "memory.safetensors")
    assert back.names == network.names == tuple(f"picture {number}" for number in range(7))
    assert back.model == result.spec.model
    assert result.estimate is not None
    assert torch.equal(render.render(back), result.estimate)
    assert torch.equal(render.render(back.one("picture 3")), render.render(network.one(3)))
    modelfile.save(back.one(3), tmp_path / "one.safetensors")
    alone = modelfile.load(tmp_path / "one.safetensors")
    assert torch.equal(render.render(alone, scale=2), render.render(network.one(3), scale=2))
    go_on = modelfile.decode_spec(alone.record, pf.Problem(PICTURES[3]))
    child = replace(go_on, start=pf.Start(weights=pf.Weights(alone.weights)), budget=pf.Steps(1))
    assert pf.fit(child).status is pf.Status.DONE
    for which, says in (
        ("picture 33", r"none of its 7 pictures is called 'picture 33'; did you mean 'picture 3'"),
        (7, "those from 0 to 6"), (-1, "those from 0 to 6"), (True, "those from 0 to 6"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            back.one(which)
    twice = replace(back, names=("x",) * 7)
    with pytest.raises(ValueError, match="several of its 7 pictures is called 'x'; give the number"):
        twice.one("x")
    with pytest.raises(ValueError, match="only a Memory has several"):
        alone.one(0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda about: about.update(pictures=["a"]), "it names 1 of 7 pictures"),
        (lambda about: about.update(pictures=[1] * 7), "names that are no texts"),
        (lambda about: about["spec"]["model"]["sizes"].__setitem__(0, [7, 8]), "not of the sizes that it names"),
        (lambda about: about["spec"]["model"].update(code={"kind": "RingCode"}), "tensors are not those of the Memory"),
    ],
)
def test_forged_memories(change: Any, says: str, tmp_path: Path) -> None:
    from safetensors.torch import save as to_safetensors

    _, network = fitted()
    about = {"schema": 1, "spec": json.loads(json.dumps(network.record)), "pictures": list(network.names)}
    change(about)
    (tmp_path / "m.safetensors").write_bytes(to_safetensors(dict(network.weights), {"pixfit": json.dumps(about)}))
    with pytest.raises(modelfile.ModelFileError, match=says):
        modelfile.load(tmp_path / "m.safetensors")


def test_names_that_no_file_could_hold(tmp_path: Path) -> None:
    _, network = fitted()
    with pytest.raises(modelfile.ModelFileError, match="use fewer pictures, or shorter names"):
        modelfile.save(replace(network, names=("x" * 2**18,) * 7), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_memory_as_one_file_of_pixels(tmp_path: Path) -> None:
    result, network = fitted()
    frame = render.write(network, tmp_path / "sheet.png", scale=2)
    assert (frame.width, frame.height) == (3 * 22 + 2, 3 * 26 + 2)
    sheet = pf.images.load(tmp_path / "sheet.png").data
    assert tuple(sheet.shape) == (3, frame.height, frame.width)
    second = render.render(network.one(1), scale=2).clamp(0, 1)
    assert (sheet[:, 2:26, 24:44] - second).abs().max() < 0.51 / 255
    result.save_image(tmp_path / "fit.png")
    assert pf.images.load(tmp_path / "fit.png").data.shape == (3, 3 * 14 + 2, 3 * 12 + 2)
    assert result._repr_png_() is not None
    assert "error" in str(result._repr_html_())
    for wanted in ({"scale": 2}, {"size": (20, 20)}, {"region": (0, 0, 4, 1)}):
        with pytest.raises(ValueError, match=r"holds 7 pictures; take one with Network\.one"):
            render.render(network, **wanted)  # type: ignore[arg-type]
    for name in ("m.onnx", "m.py"):
        with pytest.raises(ValueError, match="a memory holds many pictures; export one"):
            export.write(network, tmp_path / name)
    assert export.write(network.one(1), tmp_path / "m.py")
    with pytest.raises(ValueError, match="a page shows one picture"):
        report.write_fit(result, tmp_path / "page", title="x")


def test_a_contact_sheet() -> None:
    sheet = pf.images.contact_sheet([torch.zeros(1, 2, 4), torch.full((1, 4, 2), 0.5), torch.zeros(1, 1, 1)], gap=1)
    assert sheet.shape == (1, 11, 11)
    assert sheet[0, 2:4, 1:5].eq(0).all()
    assert sheet[0, 1:5, 7:9].eq(0.5).all()
    assert int((sheet != 1).sum()) == 8 + 8 + 1
    assert pf.images.contact_sheet([torch.zeros(3, 2, 2)] * 5, columns=5, gap=0).shape == (3, 2, 10)
    for shapes, columns in (((), None), (((1, 2, 2), (3, 2, 2)), None), (((1, 2, 2),), 0)):
        with pytest.raises(ValueError, match=r"one number of channels|columns is 0"):
            pf.images.contact_sheet([torch.zeros(shape) for shape in shapes], columns=columns)


# --- embeddings


@pytest.mark.parametrize("inner", sorted(set(INNER) - {"wire"}))
def test_activations_and_the_way_on(inner: str) -> None:
    _, network = fitted("ring", inner)
    one, widths = network.one(1), INNER[inner].widths
    assert embedding.hidden_features(one) == widths
    for layer, features in (("last", widths[-1]), ("narrowest", min(widths)), (0, widths[0])):
        if layer != "last" and getattr(INNER[inner], "skip", False):
            continue
        field = embedding.field(one, layer=layer)  # type: ignore[arg-type]
        assert field.shape == (120, features)
        shown = embedding.decode(one, field, layer=layer)  # type: ignore[arg-type]
        torch.testing.assert_close(shown.T.view(3, 12, 10), render.render(one), rtol=0, atol=3e-5)
    assert embedding.pooled(field).shape == (features,)
    larger = embedding.field(one, size=(20, 24))
    torch.testing.assert_close(
        embedding.decode(one, larger).T.view(3, 24, 20), render.render(one, size=(20, 24)), rtol=0, atol=3e-5
    )


def test_the_activations_are_those_of_the_module() -> None:
    _, network = fitted("binary", "bottleneck")
    one, seen = network.one(3), []
    module = one.module()
    layers = module.layers
    assert isinstance(layers, nn.ModuleList)
    layers[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(one.model.coordinates.grid(*SIZES[3]))
    torch.testing.assert_close(embedding.field(one, layer="narrowest"), seen[0], rtol=0, atol=1e-5)
    assert seen[0].shape == (120, 3)


def test_blends_of_the_last_layer_are_blends_of_pictures() -> None:
    """An affine map follows, so that nothing else is possible; from the bottleneck it is not."""
    _, network = fitted("binary", "bottleneck", steps=100)
    a, b = network.one(1), network.one(3)
    mixed = {}
    for layer in ("last", "narrowest"):
        fields = [embedding.field(one, layer=layer) for one in (a, b)]  # type: ignore[arg-type]
        shown = embedding.decode(a, 0.25 * fields[0] + 0.75 * fields[1], layer=layer)  # type: ignore[arg-type]
        alpha = 0.25 * render.render(a) + 0.75 * render.render(b)
        mixed[layer] = float((shown.T.view(3, 12, 10) - alpha).square().mean().sqrt())
    assert mixed["last"] < 1e-5
    assert mixed["narrowest"] > 0.01


def test_what_has_no_embedding() -> None:
    _, network = fitted("binary", "wire")
    with pytest.raises(ValueError, match="Wire with these settings is no list of layers"):
        embedding.field(network.one(0))
    _, network = fitted()
    with pytest.raises(ValueError, match=r"take one with Network\.one"):
        embedding.field(network)
    with pytest.raises(ValueError, match="layer is 2; it may be last, narrowest, or a number from 0 to 1"):
        embedding.field(network.one(0), layer=2)
    with pytest.raises(ValueError, match=r"allowed \(pixels, 20\) of layer 'last'"):
        embedding.decode(network.one(0), torch.zeros(4, 19))


# --- the exercise


def test_a_folder_of_icons(shared_data: Path) -> None:
    icons = pf.images.load_folder(shared_data / "exercise_multi_image" / "48", alpha="drop")[:5]
    shown = Gallery(icons, rule="published")
    model = Memory(Siren(3, 48, coordinates=PUBLISHED), BinaryCode(), shown.sizes)
    result = pf.fit(pf.Spec(shown, model, batches=PictureBatches(2), budget=pf.Epochs(1), estimate=pf.BestHeldOut(3)))
    assert result.steps == 3
    assert pf.Network.of(result).names[0] == "apartment-48"
    assert shown.view.held_out is not None
    assert int(shown.view.held_out.sum()) == 5 * 230
