"""One text for one meaning, and ids that never change unnoticed."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixfit import canonical
from pixfit.images import Image
from pixfit.losses import L1, Huber
from pixfit.models import Coordinates, Experts, Finer, Fourier, Gabor, Mlp, Siren, Wire
from pixfit.operators import BoxDownsample, Inpaint
from pixfit.optim import SGD, Adam, AdamW, Muon, ScheduleFreeAdamW
from pixfit.problem import GaussianNoise, Problem, Sealed
from pixfit.schedules import Cosine, Linear, Plateau
from pixfit.spec import Batches, BestHeldOut, MovingAverage, Spec
from pixfit.starts import Start, Weights
from pixfit.stopping import Budget, Epochs, Seconds, Steps, TargetPSNR
from tests.conftest import picture

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=15)


@dataclass(frozen=True)
class Inner:
    pair: tuple[float, float] = (1, 2)
    counts: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    lr: float = 1e-4
    limit: float | None = None
    steps: int = 10
    width: int | tuple[int, ...] = 8
    either: int | float = 1
    inner: Inner = field(default_factory=Inner)
    free: Any = None


# --- values and their text


@given(values)
def test_the_text_is_json_that_reads_back(value: object) -> None:
    assert json.loads(canonical.text(value)) == value
    assert canonical.text(json.loads(canonical.text(value))) == canonical.text(value)


@given(st.dictionaries(st.text(), values), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, object], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical.text(dict(items)) == canonical.text(value)


@given(finite)
def test_floats_are_their_shortest_text_and_zero_has_no_sign(value: float) -> None:
    text = canonical.text(value)
    assert float(text) == value
    assert text == repr(value + 0.0)
    assert canonical.text([-0.0, {"x": -0.0}]) == '[0.0,{"x":0.0}]'
    assert canonical.text(Outer(lr=-0.0, either=-0.0)) == canonical.text(Outer(lr=0.0, either=0.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": v}}, lambda v: Outer(lr=v)])
def test_what_is_not_finite_is_refused(value: float, wrap: Any) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        canonical.text(wrap(value))


def test_errors_name_the_place() -> None:
    with pytest.raises(ValueError, match=r"Inner\.pair\[1\] is nan"):
        canonical.plain(Outer(inner=Inner(pair=(1.0, math.nan))))
    with pytest.raises(TypeError, match=r"Outer\.free\.x is a set, which has no canonical form"):
        canonical.plain(Outer(free={"x": {1}}))


@given(st.integers(-(2**53), 2**53))
def test_the_annotation_tells_integers_from_floats(number: int) -> None:
    as_float = canonical.plain(Outer(lr=number, limit=number, inner=Inner(pair=(number, number))))
    for value in (as_float["lr"], as_float["limit"], *as_float["inner"]["pair"]):
        assert isinstance(value, float)
        assert value == number
    as_int = canonical.plain(Outer(steps=float(number), width=(number, float(number))))  # type: ignore[arg-type]
    for value in (as_int["steps"], *as_int["width"]):
        assert isinstance(value, int)
        assert value == number
    assert canonical.text(Outer(lr=number)) == canonical.text(Outer(lr=float(number)))


def test_a_field_of_either_type_keeps_the_difference() -> None:
    assert canonical.text(Outer(either=1)) != canonical.text(Outer(either=1.0))
    assert canonical.text(Outer(free=1)) != canonical.text(Outer(free=1.0))


def test_a_fraction_where_a_whole_number_belongs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Outer\.steps is 2\.5; it must be a whole number"):
        canonical.plain(Outer(steps=2.5))  # type: ignore[arg-type]


def test_every_default_is_written_out() -> None:
    assert canonical.plain(Outer()) == {
        "kind": "Outer", "lr": 1e-4, "limit": None, "steps": 10, "width": 8, "either": 1, "free": None,
        "inner": {"kind": "Inner", "pair": [1.0, 2.0], "counts": [1, 2]},
    }  # fmt: skip
    assert canonical.text(Outer()) == canonical.text(Outer(lr=1e-4, inner=Inner()))


def test_enumerations_are_their_values_and_settings_show_their_class() -> None:
    class Colour(enum.Enum):
        RED = "red"

    assert canonical.plain([Colour.RED]) == ["red"]
    assert canonical.text(Siren()) != canonical.text(Finer())


def test_the_digest_is_of_the_text() -> None:
    assert canonical.digest({"a": 1}) == "015abd7f5cc57a2dd94b"
    assert canonical.digest({"a": 1}, length=8) == "015abd7f"


# --- the ids


def image() -> Image:
    """Two rows of three RGB pixels, written down."""
    levels = [[[0, 51, 102], [153, 204, 255]], [[255, 0, 0], [17, 34, 68]], [[1, 2, 3], [128, 127, 126]]]
    return Image(torch.tensor(levels, dtype=torch.float32) / 255)


def mask() -> torch.Tensor:
    return torch.tensor([[1, 0, 1], [1, 1, 0]])


def specs() -> dict[str, Spec]:
    """Fits whose settings are all written here, so that a changed default shows up as a changed id too."""
    plain = Spec(Problem(image()), Siren(1, 8))
    full = Spec(
        Problem(image(), Inpaint(mask()), noise=GaussianNoise(0.1), held_out=0.2, seed=3),
        Mlp(
            1,
            8,
            encoding=Fourier(8, freq_scale=2.0),
            norm="layer",
            experts=Experts(2),
            coordinates=Coordinates(range="unit"),
        ),
        loss=Huber(0.2),
        optimiser=AdamW(lr=1e-3, schedule=Cosine(warmup=0.1, final=0.01), clip_norm=1.0),
        batches=Batches(pixels=2),
        budget=Budget(epochs=20, seconds=1.5),
        stopping=TargetPSNR(30.0, every=5),
        estimate=MovingAverage(0.99),
        precision="bfloat16",
        kernel="torch",
        seed=7,
    )
    prefit = Spec(
        Problem(image()),
        Siren(2, 32, coordinates=Coordinates(alignment="corner", order="row_col")),
        optimiser=Adam(lr=1e-4, schedule=Plateau(decay=0.5, patience=500)),
        budget=Steps(2000),
    )
    ramp = Image(torch.arange(24.0).reshape(1, 4, 6) / 255)
    weights = Weights({"layers.0.weight": torch.tensor([[1.0, -2.0]]), "layers.0.bias": torch.tensor([0.5])})
    return {
        "defaults": plain,
        "every setting": full,
        "prefit": prefit,
        "child": replace(prefit, start=Start(weights=prefit, step=500, layers=2), seed=1),
        "grandchild": replace(
            plain, start=Start(weights=Spec(Problem(image()), Siren(1, 8), start=Start(weights=plain)))
        ),
        "from weights": replace(plain, start=Start(weights=weights, mask=Weights({"layers.0.bias": torch.zeros(8)}))),
        "muon": Spec(Problem(image()), Wire(1, 8), optimiser=Muon(), loss=L1(), budget=Seconds(2)),
        "schedule-free": Spec(Problem(image()), Mlp(1, 8, encoding=Gabor(8)), optimiser=ScheduleFreeAdamW()),
        "box": Spec(Problem(ramp, BoxDownsample(2)), Finer(1, 8), optimiser=SGD(schedule=Linear()), budget=Epochs(3)),
    }


GOLDEN = {
    "defaults": "bc1a4d746cd9ad7213a4",
    "every setting": "0421306a24e446d94394",
    "prefit": "ab6cd2815c84265306a2",
    "child": "ff4725f3887b75147a54",
    "grandchild": "615e9e761ddc78915122",
    "from weights": "c6e297168efeae3a2bc9",
    "muon": "bc31ef60b5efcb1c4570",
    "schedule-free": "b73f65d60fe285420a1e",
    "box": "d5850bd9d14a83478552",
}

GOLDEN_TEXT = (
    '{"batches":{"kind":"Batches","pixels":null},"budget":{"epochs":null,"kind":"Budget","seconds":null,"steps":2'
    '000},"estimate":{"kind":"Last"},"kernel":"auto","kind":"Spec","loss":{"kind":"MSE"},"model":{"coordinates":{'
    '"alignment":"corner","aspect":"stretch","kind":"Coordinates","order":"row_col","range":"signed"},"first_omeg'
    'a_0":30.0,"hidden_features":32,"hidden_layers":2,"hidden_omega_0":30.0,"kind":"Siren","output":"linear","tar'
    'get_range":"signed"},"optimiser":{"betas":[0.9,0.999],"clip_norm":null,"eps":1e-08,"kind":"Adam","lr":0.0001'
    ',"schedule":{"decay":0.5,"eps":1e-08,"kind":"Plateau","min_lr":0.0,"patience":500,"threshold":0.0001,"warmup'
    '":0.0}},"precision":"float32","problem":{"held_out":0.0,"image":{"bit_depth":8,"channels":3,"hash":"95e13772'
    '387b16bff7a2f86a41db44bbf4e6b7446a9e40952644f8022bc759af","height":2,"width":3},"kind":"Problem","noise":nul'
    'l,"operator":{"kind":"Identity"},"seed":0},"seed":0,"start":{"kind":"Start","layers":null,"mask":null,"step"'
    ':null,"weights":null},"stopping":{"kind":"Never"}}'
)


@pytest.mark.parametrize("name", specs())
def test_golden_ids(name: str) -> None:
    """If one of these fails, stored fits are no longer found: raise `canonical.SCHEMA` and add a migration."""
    assert specs()[name].id == GOLDEN[name]


def test_golden_text() -> None:
    """The same in full for one spec, so that a difference can be read."""
    assert canonical.text(specs()["prefit"].plain) == GOLDEN_TEXT


def test_different_fits_have_different_ids() -> None:
    assert len({spec.id for spec in specs().values()}) == len(specs()) == len(GOLDEN)


def test_every_field_of_every_setting_is_in_the_form() -> None:
    def check(value: Any, form: Any) -> None:
        names = {f.name for f in fields(value)}
        assert set(form) == names | {"kind"}
        for name in names:
            inner = getattr(value, name)
            if hasattr(inner, "__dataclass_fields__") and not hasattr(inner, "canonical_value"):
                check(inner, form[name])

    for name, spec in specs().items():
        if not isinstance(spec.start.weights, Spec):
            check(spec, spec.plain)
        assert all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(Spec)[2:]), name


def test_names_and_notes_do_not_enter() -> None:
    renamed = replace(image(), name="somewhere/else.png", notes=("alpha composited on white",))
    assert Spec(Problem(renamed), Siren(1, 8)).id == specs()["defaults"].id
    assert "somewhere" not in canonical.text(Spec(Problem(renamed), Siren(1, 8)).plain)


def test_integers_for_floats_are_one_fit() -> None:
    problem = Problem(image())
    assert Spec(problem, Siren(first_omega_0=30), budget=Steps(5)).id == Spec(problem, Siren(), budget=Steps(5)).id
    assert Spec(problem, Siren(), optimiser=Adam(lr=1)).id == Spec(problem, Siren(), optimiser=Adam(lr=1.0)).id
    assert Spec(problem, Siren(), budget=Seconds(3)).id == Spec(problem, Siren(), budget=Seconds(3.0)).id


CHANGES: list[dict[str, Any]] = [
    {"seed": 1}, {"precision": "float64"}, {"kernel": "torch"}, {"loss": L1()}, {"budget": Steps(2001)},
    {"batches": Batches(5)}, {"estimate": MovingAverage()}, {"stopping": TargetPSNR()}, {"optimiser": Adam(lr=2e-4)},
    {"optimiser": AdamW(weight_decay=0.0)}, {"model": Siren(1, 9)}, {"problem": Problem(picture(3, 2, 3))},
    {"problem": Problem(image(), seed=1)}, {"problem": Problem(image(), held_out=0.1)},
    {"problem": Problem(image(), noise=GaussianNoise(0.1))}, {"problem": Problem(image(), Inpaint(mask()))},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_counts(change: dict[str, Any]) -> None:
    assert replace(specs()["defaults"], **change).id != specs()["defaults"].id


def test_a_child_depends_on_its_parent_and_equal_parents_are_one() -> None:
    parent, other = specs()["prefit"], replace(specs()["prefit"], seed=5)
    child = replace(parent, start=Start(weights=parent))
    assert child.plain["start"]["weights"] == {"kind": "Spec", "id": parent.id}
    assert child.id == replace(parent, start=Start(weights=specs()["prefit"])).id
    assert len({parent.id, child.id, replace(parent, start=Start(weights=other)).id}) == 3
    assert child.id != replace(parent, start=Start(weights=parent, step=10)).id


def test_a_problem_read_from_a_file_gives_the_same_id() -> None:
    for name in ("defaults", "every setting", "box"):
        spec = specs()[name]
        sealed = Sealed(json.loads(json.dumps(spec.plain["problem"])))
        assert sealed.shape == spec.problem.shape
        if not isinstance(spec.estimate, BestHeldOut):
            assert replace(spec, problem=sealed).id == spec.id


def test_specs_are_equal_by_id() -> None:
    assert specs()["child"] == specs()["child"]
    assert len({specs()["child"], specs()["child"], specs()["prefit"]}) == 2
    assert specs()["prefit"] != "prefit"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "precision is 'float16'; it may be float32, float64, bfloat16"),
        ({"kernel": "fast"}, "kernel is 'fast'; it may be auto, torch"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is"),
        ({"estimate": BestHeldOut()}, "give the problem held_out=0.1"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec(Problem(image()), Siren(1, 8), **settings)


def test_batches_of_pixels_need_an_operator_that_acts_on_pixels() -> None:
    problem = Problem(picture(3, 4, 4), BoxDownsample(2))
    with pytest.raises(
        ValueError, match=r"BoxDownsample needs the whole picture in every step; set batches\.pixels to null"
    ):
        Spec(problem, Siren(1, 8), batches=Batches(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batches(0), "batches.pixels is 0"),
        (lambda: MovingAverage(1.0), "estimate.decay is 1.0"),
        (lambda: MovingAverage(-0.1), "estimate.decay"),
        (lambda: BestHeldOut(0), "estimate.every is 0"),
    ],
)
def test_values_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_per_epoch() -> None:
    assert [Batches(4).steps_per_epoch(n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert Batches().steps_per_epoch(9) == 1
