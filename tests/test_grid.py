"""The feature grid: what it interpolates, where its vertices lie, and that module and reference are one thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pixfit as pf
from pixfit import modelfile, recipes, render
from pixfit.kernels.grid import grid_features
from pixfit.models import Coordinates, Experts, Grid, Mlp
from pixfit.optim import Adam
from pixfit.schedules import Cosine
from tests.conftest import picture

CONVENTIONS = [
    Coordinates(alignment, span, order)  # type: ignore[arg-type]
    for alignment, span, order in product(("center", "corner"), ("signed", "unit"), ("xy", "row_col"))
]
conventions = pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: f"{c.alignment}-{c.range}-{c.order}")
interpolations = pytest.mark.parametrize("interpolation", ["linear", "cubic", "spline"])
through_vertices = pytest.mark.parametrize("interpolation", ["linear", "cubic"])


def built(grid: Grid, convention: Coordinates, seed: int = 0) -> Any:
    """The grid's module in float64, its numbers U(±1)."""
    network = replace(grid, init=1.0).network(2, convention)
    network.reset_parameters(torch.Generator().manual_seed(seed))
    return network.double()


def positions(convention: Coordinates, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(row, column), each (N,) and from 0 to 1 along the picture, of its samples."""
    x = convention.grid(rows, columns, dtype=torch.float64)
    t = (x - convention.low) / (convention.high - convention.low)
    return (t[:, 1], t[:, 0]) if convention.order == "xy" else (t[:, 0], t[:, 1])


def points(convention: Coordinates, count: int, seed: int = 1, margin: float = 0.0) -> Tensor:
    """Coordinates (N, 2) anywhere in the range but for a margin, given as a part of the range, at its ends."""
    t = torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return convention.low + (margin + (1.0 - 2.0 * margin) * t) * (convention.high - convention.low)


def filled(convention: Coordinates, interpolation: str, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A grid of 12 x 9 vertices, one number each: a function of their row and column from 0 to 1."""
    grid = Grid(((12, 9, 1),), interpolation=interpolation, alignment=convention.alignment)  # type: ignore[arg-type]
    network = built(grid, convention)
    with torch.no_grad():
        network.tables[0].copy_(function(*positions(convention, 12, 9))[:, None])
    return network


# What it interpolates


@conventions
@through_vertices
def test_a_vertex_has_its_own_features(convention: Coordinates, interpolation: str) -> None:
    """The samples of a picture of the level's size are its vertices, rows along rows, in both orders of coordinates."""
    grid = Grid(((5, 7, 3), (6, 4, 2)), interpolation=interpolation, alignment=convention.alignment)  # type: ignore[arg-type]
    network = built(grid, convention)
    for table, (rows, columns, _), part in zip(network.tables, grid.levels, (slice(0, 3), slice(3, 5)), strict=True):
        features = network(convention.grid(rows, columns, dtype=torch.float64))
        torch.testing.assert_close(features[:, part], table, rtol=0, atol=1e-12)


@conventions
@interpolations
def test_planes_are_reproduced_between_the_outer_vertices(convention: Coordinates, interpolation: str) -> None:
    def plane(row: Tensor, column: Tensor) -> Tensor:
        return 0.3 + 2.0 * row - 5.0 * column

    network = filled(convention, interpolation, plane)
    x = points(convention, 200, margin=0.2)
    t = (x - convention.low) / (convention.high - convention.low)
    row, column = (t[:, 1], t[:, 0]) if convention.order == "xy" else (t[:, 0], t[:, 1])
    torch.testing.assert_close(network(x)[:, 0], plane(row, column))


@conventions
def test_cubic_reproduces_quadratics_and_is_smooth(convention: Coordinates) -> None:
    def bowl(row: Tensor, column: Tensor) -> Tensor:
        return row**2 - 3.0 * row * column + 2.0 * column**2 - column

    network = filled(convention, "cubic", bowl)
    x = points(convention, 200, margin=0.2)
    t = (x - convention.low) / (convention.high - convention.low)
    row, column = (t[:, 1], t[:, 0]) if convention.order == "xy" else (t[:, 0], t[:, 1])
    torch.testing.assert_close(network(x)[:, 0], bowl(row, column))
    assert not torch.allclose(filled(convention, "linear", bowl)(x)[:, 0], bowl(row, column), atol=1e-4)


@pytest.mark.parametrize(
    ("interpolation", "near", "far"),
    [
        ("cubic", lambda s: 1.5 * s**3 - 2.5 * s**2 + 1, lambda s: -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2),
        ("spline", lambda s: 0.5 * s**3 - s**2 + 2 / 3, lambda s: (2 - s) ** 3 / 6),
    ],
)
def test_an_impulse_at_a_vertex_shows_the_published_kernel(
    interpolation: Any, near: Callable[[Tensor], Tensor], far: Callable[[Tensor], Tensor]
) -> None:
    """Keys (1981) with a = -1/2; the cubic B-spline (Hou and Andrews 1978)."""
    network = built(Grid(((1, 9, 1),), interpolation=interpolation), Coordinates(range="unit"))
    with torch.no_grad():
        network.tables[0].copy_(torch.eye(9, dtype=torch.float64)[:, 4:5])
    distance = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)
    s = distance.abs()
    kernel = torch.where(s <= 1, near(s), far(s)) * (s < 2)
    x = torch.stack([(4.5 + distance) / 9, torch.full_like(s, 0.5)], dim=-1)
    torch.testing.assert_close(network(x)[:, 0], kernel)


@conventions
@interpolations
def test_the_edge_goes_on_outside(convention: Coordinates, interpolation: str) -> None:
    network = built(Grid(((4, 6, 2),), interpolation=interpolation), convention)  # type: ignore[arg-type]
    low, high = convention.low, convention.high
    x = torch.tensor([[low, low], [high, high], [low, high], [low, 0.4]], dtype=torch.float64)
    outside = x + torch.tensor([[-1.0, -9.0], [0.1, 3.0], [-0.5, 0.5], [-2.0, 0.0]], dtype=torch.float64)
    assert torch.equal(network(outside), network(x))


@conventions
def test_linear_keeps_the_outermost_vertex_up_to_the_edge(convention: Coordinates) -> None:
    network = built(Grid(((4, 6, 2),)), convention)  # vertices at the centres of 4 x 6 parts
    low, span = convention.low, convention.high - convention.low
    x = low + span * torch.tensor([[0.0, 0.0], [0.5 / 6, 0.5 / 6], [1.0, 1.0], [1 - 0.5 / 6, 1 - 0.5 / 6]]).double()
    corners = network.tables[0][[0, 0, 23, 23]]
    torch.testing.assert_close(network(x), corners)


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (2, 1), (3, 2)])
@interpolations
@pytest.mark.parametrize("alignment", ["center", "corner"])
def test_sides_of_few_vertices(sides: tuple[int, int], interpolation: str, alignment: str) -> None:
    """The weights add up to 1 there too, so that equal vertices give one constant; one vertex is that everywhere."""
    grid = Grid(((*sides, 2),), interpolation=interpolation, alignment=alignment)  # type: ignore[arg-type]
    network = built(grid, Coordinates())
    x = points(Coordinates(), 50)
    if sides == (1, 1):
        torch.testing.assert_close(network(x), network.tables[0].expand(50, 2))
    with torch.no_grad():
        network.tables[0].fill_(0.7)
    torch.testing.assert_close(network(x), torch.full((50, 2), 0.7, dtype=torch.float64))


# Hashed levels


@conventions
def test_vertices_share_entries_as_the_formula_says(convention: Coordinates) -> None:
    rows, columns = 40, 23
    network = built(Grid(((rows, columns, 2),), entries=64, alignment=convention.alignment), convention)
    features = network(convention.grid(rows, columns, dtype=torch.float64))
    numbers = [(c ^ (r * 2654435761 % 2**32)) % 64 for r in range(rows) for c in range(columns)]
    assert len(set(numbers)) == 64
    torch.testing.assert_close(features, network.tables[0][numbers])


def test_only_levels_with_more_vertices_than_entries_share_them() -> None:
    grid = Grid(((4, 4, 2), (8, 8, 2), (9, 8, 3)), entries=64)
    assert [tuple(table.shape) for table in built(grid, Coordinates()).tables] == [(16, 2), (64, 2), (64, 3)]
    assert [level.hashed for level in grid.lift(2, Coordinates()).levels] == [False, False, True]
    dense = built(replace(grid, levels=grid.levels[:2], entries=None), Coordinates())
    x = points(Coordinates(), 30)
    torch.testing.assert_close(built(replace(grid, levels=grid.levels[:2]), Coordinates())(x), dense(x))


# The module and the reference of the kernels

sides = st.integers(1, 12)
grids = st.builds(
    Grid,
    st.lists(st.tuples(sides, sides, st.integers(1, 5)), min_size=1, max_size=4).map(tuple),
    st.sampled_from([None, 1, 4, 32]),
    st.sampled_from(["linear", "cubic", "spline"]),
    st.sampled_from(["center", "corner"]),
)


@given(grid=grids, convention=st.sampled_from(CONVENTIONS), count=st.integers(1, 20), shared=st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_module_equals_the_kernels_reference(grid: Grid, convention: Coordinates, count: int, shared: bool) -> None:
    networks = [built(grid, convention, seed) for seed in range(2)]
    x = torch.stack([points(convention, count, seed, margin=-0.1) for seed in range(1 if shared else 2)])
    lift = grid.lift(2, convention)
    names = [level.table for level in lift.levels]
    tensors = {
        f"encoding.tables.{n}": torch.stack([net.tables[n].detach() for net in networks]) for n in range(len(names))
    }
    assert list(tensors) == names
    assert [tuple(tensors[level.table].shape[1:]) for level in lift.levels] == [
        (level.entries, level.features) for level in lift.levels
    ]
    for tensor in tensors.values():
        tensor.requires_grad_()
    features = grid_features(lift, tensors, x)
    assert features.shape == (2, count, lift.features) == (2, count, grid.out_features(2))
    want = torch.stack([net(x[0] if shared else x[fit]) for fit, net in enumerate(networks)])
    torch.testing.assert_close(features, want, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 2, features.numel(), dtype=torch.float64).reshape(features.shape)
    (features * weights).sum().backward()
    (want * weights).sum().backward()
    for fit, net in enumerate(networks):
        for number, table in enumerate(net.tables):
            torch.testing.assert_close(tensors[names[number]].grad[fit], table.grad, rtol=0, atol=1e-12)


@interpolations
@pytest.mark.parametrize("entries", [None, 16])
def test_gradients(interpolation: str, entries: int | None) -> None:
    grid = Grid(((3, 4, 2), (6, 5, 1)), entries, interpolation)  # type: ignore[arg-type]
    network, lift = built(grid, Coordinates()), grid.lift(2, Coordinates())
    x = points(Coordinates(), 6).requires_grad_()
    tables = [table.detach().requires_grad_() for table in network.tables]

    def module(x: Tensor, *tables: Tensor) -> Tensor:
        named = {f"tables.{number}": table for number, table in enumerate(tables)}
        return torch.func.functional_call(network, named, (x,))

    def reference(x: Tensor, *tables: Tensor) -> Tensor:
        named = {f"encoding.tables.{number}": table[None] for number, table in enumerate(tables)}
        return grid_features(lift, named, x[None])

    assert torch.autograd.gradcheck(module, (x, *tables))
    assert torch.autograd.gradcheck(reference, (x, *tables))


@interpolations
def test_stacked_grids_equal_single_ones(interpolation: str) -> None:
    grid = Grid(((3, 4, 2), (6, 5, 1)), entries=16, interpolation=interpolation)  # type: ignore[arg-type]
    networks: list[nn.Module] = [built(grid, Coordinates(), seed) for seed in range(3)]
    x = points(Coordinates(), 12)
    tensors, _ = torch.func.stack_module_state(networks)

    def one(tensors: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(networks[0], tensors, (x,))

    torch.testing.assert_close(torch.func.vmap(one)(tensors), torch.stack([network(x) for network in networks]))


def test_features_are_exact_under_autocast() -> None:
    network = built(Grid(((50, 60, 4), (500, 600, 2)), entries=2**14, interpolation="cubic"), Coordinates()).float()
    x = points(Coordinates(), 100).float()
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), exact)


def test_leading_dimensions_pass_through() -> None:
    network = built(Grid(((3, 4, 2),)), Coordinates())
    x = points(Coordinates(), 12)
    assert torch.equal(network(x.reshape(2, 6, 2)), network(x).reshape(2, 6, 2))
    assert network(x[:0]).shape == (0, 2)


# In a fit


def memorising(height: int, width: int, **settings: Any) -> Mlp:
    grid = Grid(((height, width, 4),), **settings)
    return Mlp(0, 16, encoding=grid, activation="silu", output="linear", coordinates=Coordinates(range="unit"))


@pytest.mark.parametrize(
    "convention", [Coordinates(), Coordinates("corner", "unit", "row_col")], ids=["center-xy", "corner-row_col"]
)
@interpolations
def test_a_full_resolution_grid_stores_the_picture(convention: Coordinates, interpolation: str) -> None:
    image = pf.Image(torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(0)))
    model = replace(
        memorising(7, 11, interpolation=interpolation, alignment=convention.alignment), coordinates=convention
    )
    spec = pf.Spec(pf.Problem(image), model, optimiser=Adam(lr=3e-2, schedule=Cosine()), budget=pf.Steps(600))
    result = pf.fit(spec)
    assert result.psnr is not None
    assert result.psnr > (80.0 if interpolation == "spline" else 100.0)  # its vertices answer for each other


@conventions
@interpolations
@pytest.mark.parametrize("size", [(12, 9), (5, 4), (17, 12)])
@pytest.mark.parametrize("aspect", ["stretch", "keep"])
def test_nearest_is_the_solution_of_least_squares(
    convention: Coordinates, interpolation: Any, size: tuple[int, int], aspect: Any
) -> None:
    """Against the general solver on the module's own features: fewer vertices than pixels, as many, and more."""
    convention = replace(convention, aspect=aspect)
    grid = Grid(((3, 4, 2), (*size, 1)), interpolation=interpolation, alignment=convention.alignment)
    network = built(grid, convention)
    plane = torch.rand(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = convention.grid(12, 9, dtype=torch.float64)
    with torch.no_grad():
        network.tables[1].copy_(grid.nearest(1, plane, convention).reshape(-1, 1))
        found = network(x)[:, 2] - plane.flatten()
    table = network.tables[1].detach()
    matrix = torch.func.jacrev(lambda t: torch.func.functional_call(network, {"tables.1": t}, (x,))[:, 2])(table)[
        ..., 0
    ]
    best = matrix @ torch.linalg.lstsq(matrix, plane.reshape(-1, 1), driver="gelsd").solution - plane.reshape(-1, 1)
    assert float(found.square().sum()) == pytest.approx(float(best.square().sum()), rel=1e-3, abs=1e-6)


def test_features_that_store_numbers_of_their_own_finest_first() -> None:
    grid = Grid(((4, 4, 2), (9, 8, 1), (6, 6, 2)), entries=64)
    assert grid.stores == ((2, 0), (2, 1), (0, 0), (0, 1))
    assert replace(grid, entries=None).stores[0] == (1, 0)


def test_a_fit_with_a_grid_is_saved_loaded_and_rendered(tmp_path: Path) -> None:
    model = replace(memorising(6, 5), encoding=Grid(((3, 2), (6, 5, 1)), entries=8, interpolation="cubic"))
    result = pf.fit(pf.Spec(pf.Problem(picture(3, 12, 10)), model, budget=pf.Steps(3)))
    pf.save(result, tmp_path / "grid.safetensors")
    network = pf.load(tmp_path / "grid.safetensors")
    assert network.model == model
    assert {name for name in network.weights if name.startswith("encoding.")} == {
        "encoding.tables.0",
        "encoding.tables.1",
    }
    assert torch.equal(render.render(tmp_path / "grid.safetensors"), render.render(result))
    assert render.render(network, scale=2).shape == (3, 24, 20)


def test_grids_as_they_are_typed() -> None:
    spec = pf.Spec(pf.Problem(picture(3, 12, 10)), Mlp(1, 8))
    assert recipes.configure(spec, {"model.encoding": "Grid"}).model == Mlp(1, 8, encoding=Grid())
    typed = {
        "model.encoding": "Grid",
        "model.encoding.levels": "[[4, 2], [12, 10, 3]]",
        "model.encoding.entries": "16",
        "model.encoding.interpolation": "cubic",
    }
    expected = Grid(((4, 4, 2), (12, 10, 3)), 16, "cubic")
    changed = recipes.configure(spec, typed)
    assert changed.model == Mlp(1, 8, encoding=expected)
    assert modelfile.decode(json.loads(json.dumps(changed.plain["model"]))) == changed.model
    with pytest.raises(recipes.RecipeError, match=r"Grid\.entries: got 100, allowed powers of two"):
        recipes.configure(spec, {"model.encoding": "Grid", "model.encoding.entries": "100"})


# Settings


def test_a_pyramid_follows_the_picture() -> None:
    assert Grid.pyramid(768, 512).levels == ((48, 32, 4), (96, 64, 4), (192, 128, 4), (384, 256, 2), (768, 512, 2))
    assert Grid.pyramid(1, 20, interpolation="cubic") == Grid(
        ((1, 2, 4), (1, 3, 4), (1, 5, 4), (1, 10, 2), (1, 20, 2)), interpolation="cubic"
    )
    assert Grid.pyramid(256, 256) == Grid()


def test_a_geometric_pyramid_grows_by_one_factor() -> None:
    grid = Grid.geometric(16, 512, 6, entries=2**14)
    assert grid.levels == tuple((side, side, 2) for side in (16, 32, 64, 128, 256, 512))
    assert grid.entries == 2**14
    assert [level[0] for level in Grid.geometric(10, 10, 3, 1).levels] == [10, 10, 10]


def test_equal_grids_are_equal_values() -> None:
    assert Grid(((4, 2), (8, 2))) == Grid(((4, 4, 2), (8, 8, 2)), init=1e-4)
    assert hash(Grid(((4, 2),), init=1)) == hash(Grid(((4, 4, 2),), init=1.0))


def test_numbers_start_uniform() -> None:
    network = Grid(((40, 50, 4),), init=0.01).network(2)
    network.reset_parameters(torch.Generator().manual_seed(0))
    table = network.get_parameter("tables.0").detach()
    assert 0.0098 < float(table.abs().max()) <= 0.01
    assert float(table.std()) == pytest.approx(0.01 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(()), r"Grid\.levels: got \(\), allowed a tuple of 1 to 32 levels"),
        (lambda: Grid(((4, 2),) * 33), r"Grid\.levels"),
        (lambda: Grid([[4, 2]]), r"Grid\.levels"),
        (lambda: Grid((4, 2)), r"Grid\.levels: got 4, allowed \(rows, columns, features\) or \(side, features\)"),
        (lambda: Grid(((4,),)), r"Grid\.levels"),
        (lambda: Grid(((4, 4, 4, 2),)), r"Grid\.levels"),
        (lambda: Grid(((0, 2),)), r"Grid\.levels \(vertices along a side\): got 0"),
        (lambda: Grid(((4, 2**21, 2),)), r"Grid\.levels \(vertices along a side\)"),
        (lambda: Grid(((4, 0),)), r"Grid\.levels \(features\): got 0"),
        (lambda: Grid(((4, 2.5),)), r"Grid\.levels \(features\)"),
        (lambda: Grid(entries=0), r"Grid\.entries"),
        (lambda: Grid(entries=48), r"Grid\.entries: got 48, allowed powers of two, or None for no limit"),
        (
            lambda: Grid(interpolation="nearest"),
            r"Grid\.interpolation: got 'nearest', allowed 'linear' or 'cubic' or 'spline'",
        ),
        (lambda: Grid(alignment="edge"), r"Grid\.alignment"),
        (lambda: Grid(init=-1), r"Grid\.init"),
        (lambda: Grid.pyramid(0, 4), r"height: got 0"),
        (lambda: Grid.geometric(16, 8, 3), r"finest: got 8"),
        (lambda: Grid.geometric(16, 32, 1), r"count: got 1"),
        (lambda: Mlp(encoding=Grid()).network(3, 3), r"in_features: got 3; a Grid takes the 2 coordinates"),
        (lambda: Grid().lift(1, Coordinates()), r"in_features: got 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_kernels_know_single_grids() -> None:
    plan = Mlp(1, 8, encoding=Grid(), coordinates=Coordinates("corner", "unit", "row_col")).plan(2, 3)
    assert plan is not None
    assert (plan.lift.kind, plan.lift.features, plan.lift.row_axis) == ("grid", 16, 0)
    assert (plan.lift.low, plan.lift.high, plan.lift.alignment) == (0.0, 1.0, "center")
    assert Mlp(1, 8, encoding=Grid(), experts=Experts(2)).plan(2, 3) is None
