"""The climb's tables and tasks: budgets, controls, published rows, and that cells hold what plain fits give."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import pixfit as pf
from pixfit import classical, metrics, modelfile, plots, render
from pixfit.cli import app
from pixfit.images import Image
from pixfit.models import Coordinates, Cosines, Fourier, FrozenSiren, LowRank, Mlp, Model, Siren, Tiles
from pixfit.operators import Inpaint, Radon
from pixfit.problem import Problem
from pixfit.spec import Record, Spec
from pixfit.starts import FromPicture, Start
from pixfit.store import Store
from pixfit.studies import ClimbStudy, Study, StudyError
from pixfit.studies.climb_compact import left_over, quantised, score
from pixfit.studies.climb_controls import colours, own_samples, resized, sparse_dct
from pixfit.studies.climb_families import COMPACT, FAMILIES, counted, within
from pixfit.studies.climb_published import PUBLISHED
from pixfit.studies.climb_tables import Cell, ClimbTables
from pixfit.studies.climb_tasks import ClimbTasks, Task
from tests.conftest import picture


def make(study: Study, store: Store) -> None:
    """All fits of a study, in this process."""
    groups: dict[Record, list[Spec]] = {}
    for spec in study.specs(store):
        groups.setdefault(study.record(spec), []).append(spec)
    for record, specs in groups.items():
        pf.fit(specs, store, device="cpu", record=record)


# --- models for few numbers

NETWORKS: list[Model] = [
    Tiles(2, 3, hidden_features=5),
    Tiles(3, 2, 2, (5, 4, 3), output="sigmoid", target_range="unit"),
    Tiles(2, 2, coordinates=Coordinates("corner", "unit", "row_col")),
    FrozenSiren(1, 12, encoding=Fourier(8, 3.0)),
    FrozenSiren(2, (6, 5, 4), output="sigmoid", target_range="unit"),
    Mlp(1, 8, encoding=LowRank(7, 5, 4)),
    Mlp(0, 8, encoding=LowRank(4, 9, 3), coordinates=Coordinates(order="row_col")),
]
networks = pytest.mark.parametrize("model", NETWORKS, ids=[f"{n}-{type(m).__name__}" for n, m in enumerate(NETWORKS)])


def build(model: Model, seed: int = 0) -> nn.Module:
    return model.build(generator=torch.Generator().manual_seed(seed))


@networks
def test_networks_map_places_to_colours_and_learn_with_all_numbers(model: Model) -> None:
    network, points = build(model), model.coordinates.grid(9, 11)
    output = network(points)
    assert output.shape == (99, 3)
    torch.testing.assert_close(network(points.reshape(3, 33, 2)), output.reshape(3, 33, 3))
    torch.testing.assert_close(network(points[:7]), output[:7])
    assert sum(p.numel() for p in network.parameters()) == model.parameters_count()
    (output * torch.linspace(-1, 2, 3)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


@networks
def test_first_weights_hang_on_the_seed_alone(model: Model) -> None:
    first, again, other = (build(model, seed).state_dict() for seed in (1, 1, 2))
    fresh = build(model, 1)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.fill_(math.nan)
    fresh.reset_parameters(torch.Generator().manual_seed(1))  # type: ignore[operator]
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, fresh.state_dict()[name])
        assert not torch.equal(tensor, other[name])


@networks
def test_a_fit_does_not_depend_on_its_mates_and_comes_back_from_its_file(model: Model, tmp_path: Path) -> None:
    specs = [Spec(Problem(picture(3, 9, 11, seed)), model, budget=pf.Steps(5), seed=seed) for seed in (0, 1)]
    alone = [pf.fit(spec, device="cpu") for spec in specs]
    together = pf.fit(specs, device="cpu")
    for one, other in zip(alone, together, strict=True):
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    modelfile.save(alone[0], tmp_path / "model")
    again = modelfile.load(tmp_path / "model")
    assert again.model == model
    torch.testing.assert_close(render.render(again), render.render(alone[0]))


def test_each_tile_is_a_network_of_its_own() -> None:
    """Against a plain SIREN a tile, on that tile's own coordinates, at pixel centres and on the outer edge."""
    model = Tiles(2, 3, 1, 4, first_omega_0=5.0)
    network = build(model)
    with torch.no_grad():
        shown = network(model.coordinates.grid(8, 12)).reshape(8, 12, 3)
        for row in range(2):
            for column in range(3):
                plain = Siren(1, 4, first_omega_0=5.0).network()
                for number, layer in enumerate(plain.layers):  # type: ignore[arg-type]
                    layer.weight.copy_(network.weights[number][3 * row + column].T)  # type: ignore[index]
                    layer.bias.copy_(network.biases[number][3 * row + column])  # type: ignore[index]
                own = plain(Coordinates().grid(4, 4)).reshape(4, 4, 3)
                torch.testing.assert_close(shown[4 * row : 4 * row + 4, 4 * column : 4 * column + 4], own)
                if (row, column) == (1, 2):
                    torch.testing.assert_close(network(torch.ones(1, 2)), plain(torch.ones(1, 2)))


def test_a_low_rank_encoding_is_a_sum_of_outer_products() -> None:
    encoding = LowRank(6, 4, 3)
    network = encoding.network(2, Coordinates())
    network.reset_parameters(torch.Generator().manual_seed(0))
    down, across = network.state_dict().values()
    features = network(Coordinates().grid(6, 4)).reshape(6, 4, 3)
    torch.testing.assert_close(features, torch.einsum("ir,jr->ijr", down, across))
    assert Mlp(1, 8, encoding=encoding).parameters_count() == 3 * (6 + 4) + (3 * 8 + 8) + (8 * 8 + 8) + (8 * 3 + 3)


def test_frozen_frequencies_stay_as_they_were_drawn() -> None:
    model = FrozenSiren(1, 12, encoding=Fourier(8, 3.0))
    spec = Spec(Problem(picture(3, 16, 16)), model, budget=pf.Steps(20))
    result = pf.fit(spec, device="cpu")
    start = pf.run.first_weights(spec)
    assert torch.equal(result.weights["encoding.frequencies"], start["encoding.frequencies"])
    assert not torch.equal(result.weights["layers.0.weight"], start["layers.0.weight"])
    assert model.stored_numbers() == model.parameters_count() + 8
    plain = pf.fit(replace(spec, kernel="torch"), device="cpu")
    torch.testing.assert_close(result.curves["loss"], plain.curves["loss"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="trainable"):
        FrozenSiren(encoding=Fourier(trainable=True))


def test_tiles_and_products_take_pictures_alone() -> None:
    for model in (Tiles(), Mlp(encoding=LowRank())):
        with pytest.raises(ValueError, match="2 coordinates of a picture"):
            model.network(3, 3)


# --- controls


def level(shown: Tensor, truth: Tensor) -> float:
    return metrics.psnr(shown, truth)


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 19, 33), (4, 16, 5)])
def test_the_sparse_transform_counts_values_and_indices(shape: tuple[int, int, int]) -> None:
    image = picture(*shape).data
    blocks = math.ceil(shape[1] / 16) * math.ceil(shape[2] / 16) * 256 * shape[0]
    basis = shape[0] * (shape[0] + 1)
    mean = image.double().mean(dim=(1, 2))[:, None, None].expand_as(image)
    torch.testing.assert_close(sparse_dct(image, basis + 1), mean)  # no pair of value and index is left
    assert level(sparse_dct(image, basis + blocks // 2), image) > level(mean, image)
    assert level(sparse_dct(image, basis + 2 * blocks), image) > 100


def test_the_sparse_transform_keeps_the_largest_coefficients() -> None:
    """By Parseval what is lost is the sum of the squares of the others, on a picture of whole blocks."""
    from scipy import fft

    image = picture(1, 32, 48).data
    planes = (image - image.mean()).double().numpy().reshape(2, 16, 3, 16)
    squares = np.sort(fft.dctn(planes, axes=(1, 3), norm="ortho").reshape(-1) ** 2)
    shown = sparse_dct(image, 2 + 2 * 40)
    lost = float((shown - image).square().sum())
    assert lost == pytest.approx(squares[:-40].sum(), rel=1e-5)


def test_fewer_bits_a_value_show_more_with_as_many_numbers() -> None:
    image = pf.images.load("coffee").data[:, 100:196, 200:296]
    levels = [level(sparse_dct(image, 5000, bits), image) for bits in (None, 8, 3)]
    assert levels[1] > levels[0] + 2
    assert levels[1] > levels[2]


def test_principal_colours_are_orthogonal_and_ordered() -> None:
    image = picture(3, 20, 30).data
    basis, mean = colours(image)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    planes = torch.einsum("ck,chw->khw", basis, image.double() - mean[:, None, None])
    spreads = planes.flatten(1).std(dim=1).tolist()
    assert spreads == sorted(spreads, reverse=True)


def test_lanczos_keeps_a_picture_of_its_size() -> None:
    image = picture(3, 13, 9).data
    torch.testing.assert_close(resized(image, 13, 9), image)
    assert resized(image, 26, 18).shape == (3, 26, 18)
    torch.testing.assert_close(resized(image, 26, 18), classical.enlarged(image, 2))


# --- families within budgets

SHAPES = ((3, 96, 128), (1, 61, 90))


def sizes(problem: Problem, bits: int = 32) -> Any:
    return lambda model: counted(model, problem.shape[0], bits)


def whole(model: Model, channels: int) -> bool:
    """Whether it holds every coefficient that there is, and cannot grow."""
    return isinstance(model, Cosines) and model.values == model.tiles * channels * model.side**2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_above_its_budget_nor_far_below(name: str, shape: tuple[int, int, int]) -> None:
    problem = Problem(picture(*shape))
    for budget in (8_000, 30_000):
        spec = within(FAMILIES[name], problem, budget, lambda model: model.parameters_count(out_features=shape[0]))
        if spec is None:
            assert name == "hash"
            continue
        number = spec.model.parameters_count(out_features=shape[0])
        assert 0.88 * budget < number <= budget or (whole(spec.model, shape[0]) and number <= budget)
        assert type(spec.model) is type(FAMILIES[name].recipe(problem).model)
    assert within(FAMILIES[name], problem, 5, lambda model: model.parameters_count(out_features=shape[0])) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COMPACT)
def test_no_compact_network_is_above_its_budget_nor_far_below(name: str, shape: tuple[int, int, int]) -> None:
    problem, member = Problem(picture(*shape)), COMPACT[name]
    for budget in (4_000, 12_000):
        spec = within(member.family, problem, budget, sizes(problem, member.bits))
        assert spec is not None
        number = counted(spec.model, shape[0], member.bits)
        assert 0.85 * budget < number <= budget or (whole(spec.model, shape[0]) and number <= budget)


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(20, 40_000), name=st.sampled_from(sorted({"siren", "fast", "climb-final", "wire"})))
def test_the_next_larger_network_is_above_the_budget(budget: int, name: str) -> None:
    problem = Problem(picture(3, 40, 30))
    spec = within(FAMILIES[name], problem, budget, Model.parameters_count)
    if spec is None:
        return
    assert spec.model.parameters_count() <= budget
    if name != "fast":
        model: Any = spec.model
        assert replace(model, hidden_features=model.hidden_features + 1).parameters_count() > budget


def test_numbers_are_counted_as_they_are_stored() -> None:
    model = FrozenSiren(1, 12, encoding=Fourier(8))
    numbers = model.parameters_count() + 8
    assert counted(model, 3) == numbers
    assert counted(model, 3, 8) == numbers / 4 + 2 * 7  # six tensors of three maps, and the frequencies
    assert own_samples(torch.zeros(3, 5, 5)) == 19


def test_cosines_are_stored_with_a_step_for_each_coefficient() -> None:
    """And what says which they are, in whole bits, stays as it is."""
    image = picture(3, 40, 30)
    model = Cosines.within(1500, 40, 30, 3)
    spec = Spec(Problem(image), model, start=Start(FromPicture()), budget=pf.Steps(0))
    weights = pf.fit(spec, device="cpu").weights
    stored, which = quantised(model, weights, 8), model.kept(weights)
    assert all(torch.equal(stored[name], weights[name]) for name in weights if name != "values")
    for one in which.unique():
        own, rounded = weights["values"][which == one], stored["values"][which == one]
        step = own.abs().max() / 127
        assert float((own - rounded).abs().max()) <= 0.5001 * float(step)
        torch.testing.assert_close(rounded / step, (rounded / step).round(), rtol=0, atol=1e-3)
    told = model.tiles * math.ceil(math.log2(model.classes * 193)) + model.classes * 192 * 8
    assert counted(model, 3, 8) == (8 * model.values + told) / 32 + 192 + 12
    assert counted(model, 3) == model.stored_numbers() == 1500


def test_the_table_of_few_numbers_has_the_families_that_it_should() -> None:
    names = {"tiles", "hash", "low-rank", "frozen-siren", "finer", "bottleneck", "transform+grid"}
    assert names <= set(COMPACT)
    problem = Problem(picture(3, 96, 96))
    frozen = within(COMPACT["frozen-siren"].family, problem, 9000, sizes(problem))
    assert frozen is not None
    optimiser: Any = frozen.optimiser
    assert (optimiser.lr, optimiser.betas, type(optimiser.schedule).__name__) == (1e-3, (0.9, 0.99), "Cosine")
    narrow = within(COMPACT["bottleneck"].family, problem, 9000, sizes(problem))
    assert narrow is not None
    widths = narrow.model.widths  # type: ignore[attr-defined]
    assert widths == (widths[0], widths[0] // 4) * 2 + (widths[0],)


# --- what is stored


def test_weights_in_few_bits_take_few_values() -> None:
    weights = {"a": torch.randn(40, 50, generator=torch.Generator().manual_seed(0)), "b": torch.full((3,), 0.7)}
    stored = quantised(Siren(), weights, 8)
    step = float(weights["a"].max() - weights["a"].min()) / 255
    assert len(stored["a"].unique()) <= 256
    assert float((stored["a"] - weights["a"]).abs().max()) <= 0.501 * step
    assert (stored["a"].min(), stored["a"].max()) == (weights["a"].min(), pytest.approx(float(weights["a"].max())))
    assert torch.equal(stored["b"], weights["b"])
    assert quantised(Siren(), weights, 32) == weights


def test_what_a_transform_leaves_over_and_the_transform_are_the_picture() -> None:
    image = picture(3, 20, 24)
    rest = left_over(image, 300)
    torch.testing.assert_close(sparse_dct(image.data, 300) + 2 * rest.image.data.double() - 1, image.data.double())
    result = pf.fit(Spec(rest, Siren(1, 16), budget=pf.Steps(30)), device="cpu")
    found = score(result, image.data, transform=300)
    assert result.estimate is not None
    # Both parts together err by twice the network's error, but for what clamping to [0, 1] takes away.
    alone = metrics.psnr(result.estimate, rest.image.data)
    assert found.psnr == pytest.approx(alone - 20 * math.log10(2), abs=0.2)
    assert found.whole == found.psnr
    rounded = score(result, image.data, 3, transform=300)
    assert rounded.whole == found.psnr
    assert rounded.psnr < found.psnr


# --- tables


@pytest.fixture(scope="module")
def tiger(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClimbTables, Store]:
    """The smoke profile of a table with two seeds and two pictures, finished."""
    study = ClimbTables.of(
        "smoke", {"table": "tiger", "families": "siren,fast,hash", "seeds": "2", "pictures": "chelsea,coffee"}
    )
    study = study.changed({"crop": "24,20", "parameters": "2600"})
    store = Store(tmp_path_factory.mktemp("tiger"))
    torch.set_num_threads(1)
    make(study, store)
    return study, store


def rows_of(study: Study, store: Store) -> list[Mapping[str, Any]]:
    return list(study.tables(store)["table"].rows)


def test_a_row_is_what_plain_fits_give(tiger: tuple[ClimbTables, Store]) -> None:
    study, store = tiger
    cell = Cell("parameters", 2600, "siren")
    results = {}
    for seed in (0, 1):
        for name in ("chelsea", "coffee"):
            spec = study.fit(cell, name, seed)
            assert spec is not None
            assert (spec.budget.steps, spec.batches.pixels, spec.seed) == (12, None, seed)
            results[name, seed] = pf.fit(spec, device="cpu")
    levels = np.array([[results[name, seed].psnr for name in ("chelsea", "coffee")] for seed in (0, 1)], dtype=float)
    row = next(row for row in rows_of(study, store) if (row["equal"], row["method"]) == ("parameters", "siren"))
    first = results["chelsea", 0]
    assert row["PSNR"] == pytest.approx(levels.mean(), abs=0.006)
    assert row["±"] == pytest.approx(levels.mean(axis=1).std(ddof=1), abs=0.006)
    assert row["SSIM"] == pytest.approx(np.mean([result.metrics["ssim"] for result in results.values()]), abs=1e-4)
    assert row["parameters"] == first.parameters <= 2600
    assert row["values_ratio"] == pytest.approx(first.values_ratio, abs=1e-3)
    assert row["peak"] >= row["PSNR"]
    assert (row["steps"], row["pixels a step"], row["pictures"], row["seeds"]) == (12, "all", 2, 2)
    stored = {one["id"]: one for one in store.rows()}
    for column, name in (("seconds", "seconds"), ("process seconds", "process_seconds")):
        taken = [stored[result.id][name] for result in results.values()]
        assert row[column] == pytest.approx(np.mean(taken), abs=0.006)


def test_three_things_are_held_equal(tiger: tuple[ClimbTables, Store]) -> None:
    study, _ = tiger
    for held, family in (("seconds", "fast"), ("steps", "fast"), ("seconds", "siren")):
        spec = study.fit(Cell(held, None, family), "coffee", 1)
        assert spec is not None
        assert spec.model == FAMILIES[family].recipe(study.problems["coffee"]).model
        assert (spec.budget.seconds, spec.budget.steps) == ((0.1, None) if held == "seconds" else (None, 12))
    cells = [Cell("parameters", 2600, "fast"), Cell("seconds", None, "fast"), Cell("steps", None, "fast")]
    for one, sizes in ((study, [None, 480, 480]), (study.changed({"batches": "own"}), [480, 480, 480])):
        specs = [one.fit(cell, "coffee", 0) for cell in cells]
        assert [spec and spec.batches.pixels for spec in specs] == sizes


def test_published_rows_are_marked(tiger: tuple[ClimbTables, Store]) -> None:
    study, store = tiger
    answer = study.answer(store)
    rows = answer.tables["table"].rows
    published = [row for row in rows if row["equal"] == "published"]
    assert [(row["PSNR"], row["±"], row["parameters"]) for row in published] == [
        (53.71, 0.04, 129_841), (63.73, 0.15, 214_001),
    ]  # fmt: skip
    assert all(row["from"].startswith("published") for row in published)
    assert all(row["from"].startswith("here; ") for row in rows if row not in published)
    assert "only our own rows compare" in answer.tables["table"].notes
    assert "No network is within the budget: hash (2,600)." in answer.tables["table"].notes
    assert "SASNet" not in answer.summary
    assert len(answer.tables["runs"].rows) == (2 + 3 + 3) * 4
    json.dumps([list(table.rows) for table in answer.tables.values()], allow_nan=False)
    for name in ("psnr_parameters", "psnr_seconds"):
        assert plots.png(answer.figures[name]()).startswith(b"\x89PNG")
    legend = answer.figures["psnr_parameters"]().legends[0]
    assert "SASNet / FDHO, published, other pictures" in [text.get_text() for text in legend.get_texts()]


def test_the_published_figures() -> None:
    """As they were stated; those of one method by name."""
    found = {(one.name, one.parameters): one for rows in PUBLISHED.values() for one in rows}
    assert {name: one.psnr for (name, _), one in found.items() if one.parameters is None} == {
        "GaussianImage": 44.08, "I-NGP": 43.88, "SIREN": 40.83,
    }  # fmt: skip
    assert found["GaussianImage", None].seconds == 107
    assert {key: found[key].psnr for key in (("CARA", 471_000), ("CARA", 205_000), ("MetricGrids", 533_000))} == {
        ("CARA", 471_000): 48.00, ("CARA", 205_000): 40.03, ("MetricGrids", 533_000): 45.77,
    }  # fmt: skip
    assert all("published" in one.source for one in found.values())


def test_some_pictures_of_kodak_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kodak").mkdir()
    pf.images.save(pf.images.load("coffee"), tmp_path / "kodak" / "kodim03.png")
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    settings = {"table": "kodak", "images": "kodak", "pictures": "kodim03"}
    assert list(ClimbTables.of("smoke", settings).problems) == ["kodim03"]
    with pytest.raises(StudyError, match="no picture is called 'kodim04'"):
        _ = ClimbTables.of("smoke", settings | {"pictures": "kodim04"}).problems


def test_only_the_whole_of_kodak_compares_with_published_rows() -> None:
    study = ClimbTables.of("published", {"table": "kodak"})
    shapes = [(3, 512, 768)] * 18 + [(3, 768, 512)] * 6
    for count, said in ((24, "for the same 24 pictures"), (23, "only our own rows compare")):
        some = study.changed({"seeds": count})
        problems = {
            str(n): Problem(Image(torch.zeros(1, 1, 1).expand(shape))) for n, shape in enumerate(shapes[:count])
        }
        vars(some)["problems"] = problems
        assert said in some._notes
        assert some._compares == (count == 24)


def test_a_table_under_way_answers_what_it_can(tiger: tuple[ClimbTables, Store], tmp_path: Path) -> None:
    study, store = tiger
    part = Store(tmp_path)
    assert dict(study.answer(part).tables) == {}
    for spec in study.fits(store)[:3]:
        result = store.get(spec)
        assert result is not None
        part.put(result)
    rows = [row for row in rows_of(study, part) if row["equal"] != "published"]
    assert [(row["method"], row["seeds"], row["±"]) for row in rows] == [("siren", 1, None)]


def test_protocols_of_the_tables() -> None:
    published, laptop = (ClimbTables.of(profile, {"table": "tiger"}) for profile in ("published", "laptop"))
    assert (published.crop, published.steps, published.seeds, published.batches) == ((317, 256), 10_000, 10, "all")
    assert published.parameters == (129_841, 214_001)
    assert (laptop.steps, laptop.seeds) == (1000, 1)
    for table in ("kodak", "five", "compact"):
        assert ClimbTables.of("laptop", {"table": table}).steps == 1000
        assert ClimbTables.of("laptop", {"table": table}).seeds == 1
    spec = published.fit(Cell("parameters", 129_841, "siren"), "chelsea", 9)
    assert spec is not None
    assert (spec.problem.shape, spec.batches.pixels, spec.budget.steps) == ((3, 256, 317), None, 10_000)
    assert 129_841 - 1_500 < spec.model.parameters_count() <= 129_841
    ratio = 500_000 / (3 * 768**2)
    small = ClimbTables.of("laptop", {"table": "compact"})
    assert small.parameters[-1] / (3 * 256**2) == pytest.approx(ratio, rel=0.01)


def test_any_picture_may_be_put_in_place(tmp_path: Path) -> None:
    pf.images.save(picture(3, 40, 50), tmp_path / "tiger.png")
    settings = {"table": "tiger", "images": str(tmp_path), "pictures": "tiger"}
    study = ClimbTables.of("smoke", {**settings, "crop": "[]"})
    assert study.problems["tiger"].shape == (3, 40, 50)
    assert ClimbTables.of("smoke", {**settings, "crop": "10"}).problems["tiger"].shape == (3, 10, 10)
    wide = ClimbTables.of("smoke", {**settings, "crop": "20,8"}).problems["tiger"].image.data
    torch.testing.assert_close(wide, study.problems["tiger"].image.data[:, 16:24, 15:35])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClimbTables, Store]:
    study = ClimbTables.of("smoke", {"table": "compact", "seeds": "2"})
    store = Store(tmp_path_factory.mktemp("few"))
    torch.set_num_threads(1)
    make(study, store)
    return study, store


def test_few_numbers_stand_beside_their_controls(few: tuple[ClimbTables, Store]) -> None:
    study, store = few
    answer = study.answer(store)
    rows = {row["method"]: row for row in answer.tables["table"].rows}
    truth = study.problems["chelsea"].image.data
    assert list(rows)[:2] == ["sparse transform", "sparse transform 8bit"]
    for name, bits in (("sparse transform", None), ("sparse transform 8bit", 8)):
        assert rows[name]["PSNR"] == pytest.approx(level(sparse_dct(truth, 5600, bits), truth), abs=0.006)
    for name, row in rows.items():
        assert row["numbers"] <= 5600
        if name.startswith("sparse"):
            continue
        control = rows["sparse transform 8bit" if "8bit" in name else "sparse transform"]
        assert row["above the transform"] == pytest.approx(row["PSNR"] - control["PSNR"], abs=0.011)
        assert (row["before rounding"] is None) == ("8bit" not in name)
    assert "own 8-bit samples count as chelsea: 1,440" in answer.tables["table"].notes
    assert "against the sparse transform" in answer.summary
    assert plots.png(answer.figures["psnr_numbers"]()).startswith(b"\x89PNG")
    json.dumps([list(table.rows) for table in answer.tables.values()], allow_nan=False)


def test_a_compact_row_is_what_the_stored_network_shows(few: tuple[ClimbTables, Store]) -> None:
    study, store = few
    rows = {row["method"]: row for row in rows_of(study, store)}
    truth, levels = study.problems["chelsea"].image.data, []
    for seed in (0, 1):
        spec = study.fit(Cell("parameters", 5600, "grid-8bit"), "chelsea", seed)
        assert spec is not None
        result = pf.fit(spec, device="cpu")
        weights = quantised(spec.model, result.weights, 8)
        levels.append(level(render.render(modelfile.Network(spec.model, weights, spec.plain)), truth))
    assert rows["grid-8bit"]["PSNR"] == pytest.approx(np.mean(levels), abs=0.006)
    mixed = study.fit(Cell("parameters", 5600, "transform+grid"), "chelsea", 0)
    assert mixed is not None
    assert mixed.problem.shape == truth.shape
    assert counted(mixed.model, 3) <= 2800
    assert isinstance(mixed.problem, Problem)
    torch.testing.assert_close(mixed.problem.image.data, left_over(Image(truth), 2800).image.data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"table": "tigre"}, "table is 'tigre'; it may be tiger, kodak, five, compact"),
        ({"families": "siren,sirens"}, "families is 'sirens'; it may be siren, finer"),
        ({"table": "compact", "families": "gauss"}, "families is 'gauss'; it may be tiles"),
        ({"at": "time"}, "at is 'time'; it may be parameters, seconds, steps"),
        ({"at": ""}, "at is empty"),
        ({"table": "compact", "at": "seconds"}, "holds numbers equal"),
        ({"parameters": "0"}, "parameters is 0; it must be a whole number"),
        ({"steps": "1.5"}, "steps is 1.5; it must be a whole number"),
        ({"seeds": "0"}, "seeds is 0"),
        ({"seconds": "0"}, "seconds is 0; it must be a number above 0"),
        ({"batches": "half"}, "batches is 'half'; it may be all, own"),
        ({"crop": "3,4,5"}, "give a width and a height"),
        ({"step": "5"}, "no setting 'step' in the study climb; did you mean 'steps'"),
        ({"sweeps": "norm"}, "no setting 'sweeps' in the study climb"),
    ],
)
def test_a_wrong_setting_of_a_table_says_what_is_allowed(changes: dict[str, str], says: str) -> None:
    with pytest.raises(StudyError) as error:
        ClimbTables.of("smoke", {"table": "tiger"} | changes)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crop": "4000"}, "crop is 4000×4000, but chelsea has 451×300 pixels"),
        ({"images": "kodak"}, "the set kodak lacks"),
        ({"images": "nowhere"}, "there is no folder nowhere"),
        ({"pictures": "tiger"}, "no bundled picture is called 'tiger'"),
    ],
)
def test_pictures_of_a_table_that_are_not_there(
    changes: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path))
    with pytest.raises(StudyError) as error:
        _ = ClimbTables.of("smoke", {"table": "tiger"} | changes).problems
    assert says in str(error.value)


# --- tasks


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClimbTasks, Store]:
    study = ClimbTasks.of("smoke", {"tasks": "represent,upscale,inpaint,ct", "crop": "33,26"})
    study = study.changed({"recipes": "fast,mlp", "steps": "10"})
    store = Store(tmp_path_factory.mktemp("tasks"))
    torch.set_num_threads(1)
    make(study, store)
    return study, store


def test_tasks_are_scored_against_the_truth(done: tuple[ClimbTasks, Store]) -> None:
    study, store = done
    rows = {row["recipe"]: row for row in rows_of(study, store)}
    truth = study.truths["coffee"].data
    assert list(rows) == ["fast", "mlp", "control"]
    small = store.get(study.fit(Task("upscale", 2), "mlp", "coffee", 0))
    assert small is not None
    assert small.spec.problem.shape == (3, 13, 16)
    assert rows["mlp"]["upscale ×2"] == pytest.approx(
        level(render.render(small, scale=2), truth[:, :26, :32]), abs=0.006
    )
    for kind in ("represent", "inpaint", "ct"):
        result = pf.fit(study.fit(Task(kind), "mlp", "coffee", 0), device="cpu")
        assert rows["mlp"][kind] == pytest.approx(result.psnr, abs=0.006)
        assert {rows["mlp"][f"rank, {kind}"], rows["fast"][f"rank, {kind}"]} == {1, 2}
    better = max(("mlp", "fast"), key=lambda name: rows[name]["ct"])
    assert rows[better]["rank, ct"] == 1


def test_controls_see_what_the_fits_see(done: tuple[ClimbTasks, Store]) -> None:
    study, store = done
    control = rows_of(study, store)[-1]
    truth = study.truths["coffee"].data
    small = study.problems[Task("upscale", 2), "coffee"].image.data
    assert control["upscale ×2"] == pytest.approx(level(classical.enlarged(small, 2), truth[:, :26, :32]), abs=0.006)
    hidden = study.problems[Task("inpaint"), "coffee"]
    assert isinstance(hidden.operator, Inpaint)
    assert float(hidden.operator.mask.float().mean()) == pytest.approx(0.2, abs=0.06)
    shown = classical.biharmonic(hidden.view.measurement, hidden.operator.mask)
    assert control["inpaint"] == pytest.approx(level(shown, truth), abs=0.006)
    scan = study.problems[Task("ct"), "coffee"]
    assert scan.shape == (1, 26, 33)
    assert isinstance(scan.operator, Radon)
    assert scan.operator.angles == 24
    shown = classical.total_variation(scan.view, 3e-4).clamp(0, 1)
    assert control["ct"] == pytest.approx(level(shown, truth.mean(dim=0, keepdim=True)), abs=0.006)
    assert "represent" not in control


def test_the_answer_to_tasks(done: tuple[ClimbTasks, Store], tmp_path: Path) -> None:
    study, store = done
    answer = study.answer(store)
    assert "of 2 recipes are above the control" in answer.summary
    assert plots.png(answer.figures["above_controls"]()).startswith(b"\x89PNG")
    json.dumps([list(table.rows) for table in answer.tables.values()], allow_nan=False)
    assert dict(study.answer(Store(tmp_path)).tables) == {}
    specs = {task: study.fit(task, "fast", "coffee", 0) for task in study.asked}
    assert {task.kind: study.record(spec).keep for task, spec in specs.items()} == {
        "represent": (), "upscale": (0,), "inpaint": (), "ct": (),
    }  # fmt: skip


def test_recipes_take_every_task() -> None:
    """Those that ask for batches of pixels, or start from the picture, too."""
    study = ClimbTasks.of("smoke", {"tasks": "ct,inpaint", "recipes": ",".join(ClimbTasks().recipes)})
    for recipe in study.recipes:
        scan, holes = (study.fit(Task(kind), recipe, "coffee", 0) for kind in ("ct", "inpaint"))
        assert (scan.batches.pixels, scan.start.weights) == (None, None)
        assert holes.start.weights == pf.recipes.get(recipe)(study.problems[Task("inpaint"), "coffee"]).start.weights
        if scan.model.parameters_count(out_features=1) < 10_000:
            assert pf.fit(replace(scan, budget=pf.Steps(1)), device="cpu").steps == 1


def test_tasks_have_their_own_budget_or_the_recipes() -> None:
    plain = ClimbTasks.of("smoke", {"tasks": "represent", "steps": "null"})
    assert plain.fit(Task("represent"), "smooth", "coffee", 0).budget == pf.Steps(1500)
    timed = ClimbTasks.of("laptop", {"tasks": "represent"})
    assert timed.fit(Task("represent"), "smooth", "coffee", 0).budget == pf.Seconds(20.0)
    two = ClimbTasks.of("published", {"tasks": "upscale", "factors": "2,4"})
    assert [task.title for task in two.asked] == ["upscale ×2", "upscale ×4"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": "upscale,denoise"}, "tasks is 'denoise'; it may be represent, upscale, inpaint, ct"),
        ({"tasks": ""}, "tasks is empty"),
        ({"recipes": "fats"}, "recipes is 'fats'; it may be fast"),
        ({"known": "0"}, "known is 0; it must be a fraction"),
        ({"views": "0"}, "views is 0"),
        ({"factors": "2,0"}, "factors is 0"),
        ({"steps": "-1"}, "budget.steps is -1"),
        ({"crop": "1,2,3"}, "give a width and a height"),
        ({"table": "tiger"}, "no setting 'table' in the study climb"),
    ],
)
def test_a_wrong_setting_of_tasks_says_what_is_allowed(changes: dict[str, str], says: str) -> None:
    with pytest.raises(StudyError) as error:
        ClimbTasks.of("smoke", {"tasks": "ct"} | changes)
    assert says in str(error.value)


def test_a_picture_too_small_to_be_made_smaller() -> None:
    study = ClimbTasks.of("smoke", {"tasks": "upscale", "crop": "3", "factors": "4"})
    with pytest.raises(StudyError, match="too small to be made 4 times smaller"):
        _ = study.problems


# --- from the climb


def test_the_climb_hands_over_to_its_tables_and_tasks() -> None:
    assert type(ClimbStudy.of("smoke", {"table": "kodak"})) is ClimbTables
    assert type(ClimbStudy.of("smoke", {"tasks": "ct"})) is ClimbTasks
    assert type(ClimbStudy.of("smoke")) is ClimbStudy
    with pytest.raises(StudyError, match="no profile 'big'"):
        ClimbStudy.of("big", {"table": "tiger"})


def test_the_command_from_run_to_report(tmp_path: Path) -> None:
    """In a worker process, which keeps the weights that the table needs."""
    few = ("--profile", "smoke", "-s", "table=compact", "-s", "families=grid-8bit")
    place = ("--store", str(tmp_path), "--device", "cpu", "--json")

    def pixfit(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["study", "climb", *arguments, *few, *place])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    ran = pixfit("run", "--workers", "1")
    assert (ran["done"], ran["failed"]) == (1, 0)
    row = ran["tables"]["table"][-1]
    assert row["method"] == "grid-8bit"
    assert row["PSNR"] == pytest.approx(row["before rounding"], abs=1)
    report = pixfit("report", "-o", str(tmp_path / "page"))
    assert (tmp_path / "page" / "table.csv").is_file()
    assert any(path.endswith("psnr_numbers.png") for path in report["figures"])
