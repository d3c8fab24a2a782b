"""Recipes for every picture, as files, and changed by settings typed on a command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pixfit import canonical, modelfile, recipes, run
from pixfit.images import Image
from pixfit.models import Coordinates, Experts, Finer, Fourier, Grid, Mlp, Siren
from pixfit.optim import Adam, AdamW, Muon
from pixfit.problem import Problem
from pixfit.recipes import RECIPES, RecipeError, configure, get
from pixfit.schedules import Cosine, Linear
from pixfit.spec import Batches, MovingAverage, Record, Spec
from pixfit.starts import Start
from pixfit.stopping import Steps, TargetPSNR
from tests.conftest import picture

every = pytest.mark.parametrize("name", list(RECIPES))


@pytest.fixture
def spec(small: Image) -> Spec:
    return Spec(Problem(small), Siren(1, 8), budget=Steps(3))


def printed(spec: Spec) -> str:
    """What ``pixfit recipes NAME`` prints."""
    left_out = ("problem", "start") if spec.start.weights is None else ("problem",)
    return json.dumps({key: value for key, value in spec.plain.items() if key not in left_out}, indent=2)


# --- the recipes


@every
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 1, 1), (3, 1, 7), (1, 9, 4), (3, 12, 10)])
def test_every_recipe_fits_every_picture(name: str, channels: int, height: int, width: int) -> None:
    full = get(name)(Problem(picture(channels, height, width)))
    assert isinstance(full.id, str)
    small: dict[str, Any] = {"budget.steps": 2}
    if hasattr(full.model, "hidden_features"):
        small["model.hidden_features"] = "8"
    if isinstance(full.model, Mlp) and not isinstance(full.model.encoding, Grid):
        small["model.encoding.features"] = "8"
    result = run.fit(configure(full, small, recipe=name))
    assert result.steps == 2
    assert result.psnr is not None
    assert result.estimate is not None
    assert result.estimate.shape == (channels, height, width)


@pytest.mark.parametrize(("name", "parameters"), [("climb-baseline", 149_512), ("climb-final", 6_847_116)])
def test_the_climb_has_the_published_sizes(name: str, parameters: int) -> None:
    spec = get(name)(Problem(picture(3, 12, 10)))
    assert spec.model.parameters_count(2, 3) == parameters


@every
def test_every_recipe_says_in_a_sentence_what_it_is(name: str) -> None:
    sentence = recipes.describe(name)
    assert 20 < len(sentence) < 140
    assert "\n" not in sentence


# --- by name and from files


@every
def test_a_recipe_as_a_file_is_the_recipe(name: str, small: Image, tmp_path: Path) -> None:
    spec = get(name)(Problem(small))
    (tmp_path / "mine.json").write_text(printed(spec))
    assert get(str(tmp_path / "mine.json"))(Problem(small)).id == spec.id


def test_a_file_serves_other_pictures_and_may_leave_things_out(small: Image, grey: Image, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(Spec(Problem(small), Siren(1, 8), start=Start(), seed=4).plain))
    assert get(str(path))(Problem(grey)) == Spec(Problem(grey), Siren(1, 8), seed=4)
    path.write_text('{"model": {"kind": "Siren", "hidden_layers": 1, "hidden_features": 8}}')
    assert get(str(path))(Problem(grey)) == Spec(Problem(grey), Siren(1, 8))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fats", "no recipe or file is called 'fats'; did you mean 'fast'?"),
        ("siren", "no recipe or file is called 'siren'; did you mean 'siren-2020'?"),
        ("none.json", "no recipe or file is called 'none.json'; there are fast, instant, smooth"),
        ("", "no recipe or file is called ''"),
        (".", "no recipe or file is called '.'"),
        ("x" * 300, "no recipe or file is called 'xxx"),
    ],
)
def test_recipes_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        get(name)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"3", b"null", b'"fast"', b"{}", b'{"optimiser": {"kind": "Adam"}}', b"\xff\xfe", b"\0" * 9,
        b'{"model": {"kind": "Sirren"}}', b'{"model": {"kind": []}}', b'{"model": {}}', b"[" * 100_000,
        b'{"model": {"kind": "Siren", "hidden_layers": -1}}', b'{"model": {"kind": "Siren", "width": 3}}',
        b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)  # fmt: skip
def test_files_that_are_no_recipe(data: bytes, small: Image, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(data)
    with pytest.raises(RecipeError, match=r"mine\.json: ") as caught:
        get(str(tmp_path / "mine.json"))(Problem(small))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"optimizer": {}}, "a spec has no setting 'optimizer'; did you mean 'optimiser'?"),
        ({"model": 3}, "model is 3"),
        ({"model": {"kind": "Adam"}}, "model is Adam"),
        ({"loss": None}, "loss is None"),
        ({"budget": {"kind": "Budget"}}, "a budget needs a limit"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"optimiser": {"kind": "Adam", "lr": "1e-4"}}, "optimiser.lr is '1e-4'"),
        ({"estimate": {"kind": "BestHeldOut"}}, "needs held-out pixels"),
    ],
)
def test_a_file_with_a_wrong_part(more: dict[str, Any], said: str, small: Image, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"model": {"kind": "Siren"}, **more}))
    with pytest.raises(RecipeError) as caught:
        get(str(path))(Problem(small))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


# --- settings


def test_nothing_changed_is_the_same_fit(spec: Spec) -> None:
    assert configure(spec, {}) == spec
    for name in RECIPES:
        full = get(name)(spec.problem)  # type: ignore[arg-type]
        assert configure(full, {}) == full


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.hidden_features": "16"}, {"model": Siren(1, 16)}),
        ({"model.hidden_features": 16}, {"model": Siren(1, 16)}),
        ({"model.hidden_features": "[8, 4]"}, {"model": Siren(1, (8, 4))}),
        ({"model.first_omega_0": "10"}, {"model": Siren(1, 8, first_omega_0=10.0)}),
        ({"model.first_omega_0": "1e1"}, {"model": Siren(1, 8, first_omega_0=10.0)}),
        ({"model.coordinates.alignment": "corner"}, {"model": Siren(1, 8, coordinates=Coordinates("corner"))}),
        ({"model.coordinates": "Coordinates"}, {}),
        ({"model": "Finer"}, {"model": Finer()}),
        ({"optimiser": "AdamW"}, {"optimiser": AdamW()}),
        ({"optimiser": '{"kind": "AdamW", "lr": 0.5}'}, {"optimiser": AdamW(lr=0.5)}),
        ({"optimiser": {"kind": "AdamW", "lr": 0.5}}, {"optimiser": AdamW(lr=0.5)}),
        ({"optimiser": "AdamW", "optimiser.weight_decay": "0.5"}, {"optimiser": AdamW(weight_decay=0.5)}),
        (
            {"optimiser": "Muon", "optimiser.schedule": "Linear", "optimiser.schedule.hold": "0.25"},
            {"optimiser": Muon(schedule=Linear(hold=0.25))},
        ),
        (
            {"optimiser": '{"kind": "Muon"}', "optimiser.schedule": '{"kind": "Linear"}', "optimiser.schedule.hold": 0},
            {"optimiser": Muon(schedule=Linear(hold=0.0))},
        ),
        ({"optimiser.schedule": "Cosine"}, {"optimiser": Adam(schedule=Cosine())}),
        ({"optimiser.betas": "[0.8, 0.99]"}, {"optimiser": Adam(betas=(0.8, 0.99))}),
        ({"optimiser.clip_norm": "1"}, {"optimiser": Adam(clip_norm=1.0)}),
        ({"optimiser.clip_norm": "null"}, {}),
        ({"batches.pixels": "7"}, {"batches": Batches(7)}),
        ({"batches.pixels": "7", "budget.steps": "null", "budget.epochs": "2"}, None),
        ({"estimate": "MovingAverage", "estimate.decay": "0.5"}, {"estimate": MovingAverage(0.5)}),
        ({"stopping": "TargetPSNR", "stopping.psnr": "30"}, {"stopping": TargetPSNR(30.0)}),
        ({"seed": "5"}, {"seed": 5}),
        ({"precision": "float64"}, {"precision": "float64"}),
        ({"kernel": "torch"}, {"kernel": "torch"}),
    ],
)
def test_settings_as_they_are_typed(settings: dict[str, Any], expected: dict[str, Any] | None, spec: Spec) -> None:
    changed = configure(spec, settings)
    if expected is None:
        assert (changed.batches.pixels, changed.budget.steps, changed.budget.epochs) == (7, None, 2)
    else:
        assert canonical.text(changed.plain) == canonical.text(dataclasses.replace(spec, **expected).plain)
    assert changed.problem is spec.problem


def test_parts_that_may_be_absent(small: Image) -> None:
    spec = Spec(Problem(small), Mlp(1, 8))
    assert configure(spec, {"model.experts": "Experts"}).model == Mlp(1, 8, experts=Experts())
    many = configure(spec, {"model.experts": "Experts", "model.experts.count": "3"})
    assert many.model == Mlp(1, 8, experts=Experts(3))
    assert configure(many, {"model.experts": "null"}) == spec
    assert configure(spec, {"model.encoding": "Fourier", "model.encoding.trainable": "true"}).model == Mlp(
        1, 8, encoding=Fourier(trainable=True)
    )


def test_the_start_stays_and_cannot_be_changed(spec: Spec, small: Image) -> None:
    child = Spec(Problem(small), Siren(1, 8), start=Start(weights=spec, step=1))
    changed = configure(child, {"optimiser.lr": 0.5})
    assert changed.start is child.start
    assert changed == dataclasses.replace(child, optimiser=Adam(lr=0.5))
    for name in ("start", "start.step", "problem", "problem.seed", "problem.image.hash", "kind", "model.kind"):
        with pytest.raises(RecipeError, match="no setting"):
            configure(child, {name: "3"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.hidden_featurs", "no setting 'model.hidden_featurs' in recipe 'fast'; did you mean 'model.hidden_feat"),
        ("hidden_features", "did you mean 'model.hidden_features'?"),
        ("lr", "did you mean 'optimiser.lr'?"),
        ("optimizer.lr", "did you mean 'optimiser.lr'?"),
        ("optimiser.warmup", "did you mean 'optimiser.schedule.warmup'?"),
        ("model.features", "did you mean 'model.hidden_features'?"),
        ("sede", "did you mean 'seed'?"),
        ("steps", "did you mean 'budget.steps'?"),
        ("", "there are model, loss, optimiser"),
        (".", "there are model, loss, optimiser"),
        ("model.", "there are model.hidden_layers"),
        ("..model", "did you mean 'model'?"),
        ("xyzzy", "there are model, loss, optimiser"),
        ("model.xyzzy", "there are model.hidden_layers, model.hidden_features"),
        ("seed.x", "'seed' is 0 and has no settings of its own"),
        ("optimiser.clip_norm.x", "'optimiser.clip_norm' is None and has no settings of its own"),
    ],
)  # fmt: skip
def test_wrong_names(name: str, said: str, spec: Spec) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(spec, {name: "1"}, recipe="fast")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.hidden_features", "abc", "Siren.hidden_features: got 'abc', allowed whole numbers"),
        ("model.hidden_features", "1.5", "Siren.hidden_features: got 1.5"),
        ("model.hidden_features", "[8]", "Siren.hidden_features: got 1 widths"),
        ("model.hidden_features", '{"kind": "Siren"}', "Siren.hidden_features"),
        ("model.hidden_layers", "null", "Siren.hidden_layers: got None"),
        ("model.hidden_layers", "1" + "0" * 5000, "Siren.hidden_layers"),
        ("model.output", "tanh", "Siren.output: got 'tanh', allowed 'linear' or 'sigmoid'"),
        ("model.coordinates", "corner", "model.coordinates: no settings are called 'corner'"),
        ("model.coordinates", "3", "model.coordinates takes the name of a class, not 3"),
        ("model.coordinates", "null", "Siren.coordinates: got None"),
        ("model", "Sirne", "no settings are called 'Sirne'; did you mean 'Siren'?"),
        ("model", "AdamW", "model is AdamW("),
        ("model", "null", "model is None"),
        ("optimiser.lr", "abc", "optimiser.lr is 'abc'; it must be from 0 to 1e6"),
        ("optimiser.lr", "-1", "optimiser.lr is -1"),
        ("optimiser.lr", "NaN", "optimiser.lr is nan"),
        ("optimiser.lr", "Infinity", "optimiser.lr is inf"),
        ("optimiser.lr", "true", "optimiser.lr is True"),
        ("optimiser.lr", "[1]", "optimiser.lr is (1,)"),
        ("optimiser.lr", "AdamW", "optimiser.lr is AdamW("),
        ("optimiser.lr", "", "optimiser.lr is ''"),
        ("optimiser.eps", "-1", "optimiser.eps is -1"),
        ("optimiser.betas", "3", "optimiser.betas is 3; it must be two numbers"),
        ("optimiser.betas", "[0.9]", "optimiser.betas is (0.9,)"),
        ("optimiser.betas", '["a", "b"]', "optimiser.betas is ('a', 'b')"),
        ("optimiser.clip_norm", "x", "optimiser.clip_norm is 'x'"),
        ("optimiser.schedule", "0.5", "optimiser.schedule takes the name of a class, not 0.5; or set optimiser"),
        ("optimiser.schedule", "null", "optimiser.schedule is None"),
        ("optimiser.schedule", "Cosin", "no settings are called 'Cosin'; did you mean 'Cosine'?"),
        ("optimiser.schedule", "MSE", "optimiser.schedule is MSE()"),
        ("optimiser.schedule.warmup", "x", "schedule.warmup is 'x'"),
        ("optimiser", '{"kind": "Adam", "learning_rate": 1}', "optimiser: Adam has no setting 'learning_rate'"),
        ("optimiser", "[]", "optimiser takes the name of a class, not []"),
        ("batches.pixels", "1.5", "batches.pixels is 1.5; it must be a whole number"),
        ("batches.pixels", "0", "batches.pixels is 0"),
        ("batches", "64", "batches takes the name of a class, not 64; or set batches.pixels"),
        ("budget", "5", "or set budget.steps, budget.epochs, budget.seconds"),
        ("budget", "Budget", "a budget needs a limit"),
        ("budget.steps", "null", "a budget needs a limit"),
        ("budget.steps", "many", "budget.steps is 'many'; it must be a whole number"),
        ("budget.steps", "2.5", "budget.steps is 2.5"),
        ("budget.seconds", "x", "budget.seconds is 'x'; it must be a number"),
        ("loss", "3", "loss takes the name of a class, not 3"),
        ("loss", "BestHeldOut", "loss is BestHeldOut("),
        ("estimate", "BestHeldOut", "needs held-out pixels"),
        ("seed", "-1", "seed is -1; it must be 0 to 2^63 - 1"),
        ("seed", "abc", "seed is 'abc'"),
        ("seed", "1.5", "seed is 1.5"),
        ("precision", "float16", "precision is 'float16'; it may be float32, float64, bfloat16"),
        ("precision", "[1]", "precision is (1,)"),
        ("kernel", "null", "kernel is None"),
    ],
)  # fmt: skip
def test_values_that_a_setting_refuses(name: str, value: str, said: str, spec: Spec) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(spec, {name: value})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("instances of", "has no len", "unhashable", "__init__"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"estimate": "MovingAverage", "estimate.decay": "x"}, "estimate.decay is 'x'"),
        ({"stopping": "TargetPSNR", "stopping.psnr": "high"}, "stopping.psnr is 'high'"),
        ({"stopping": "TargetPSNR", "stopping.every": "x"}, "stopping.every is 'x'"),
        ({"loss": "Huber", "loss.delta": "x"}, "loss.delta is 'x'"),
        ({"optimiser": "SGD", "optimiser.momentum": "x"}, "optimiser.momentum is 'x'"),
        ({"optimiser": "SGD", "optimiser.nesterov": "1"}, "optimiser.nesterov is 1; it must be true or false"),
        ({"optimiser": "Muon", "optimiser.adam_lr": "x"}, "optimiser.adam_lr is 'x'"),
        ({"optimiser": "AdamW", "optimiser.weight_decay": "x"}, "optimiser.weight_decay is 'x'"),
        ({"optimiser": "ScheduleFreeAdamW", "optimiser.warmup_steps": "0.1"}, "optimiser.warmup_steps is 0.1"),
        ({"optimiser.schedule": "Plateau", "optimiser.schedule.patience": "0.5"}, "schedule.patience is 0.5"),
        ({"optimiser.schedule": "Plateau", "optimiser.schedule.min_lr": "x"}, "schedule.min_lr is 'x'"),
        ({"optimiser.schedule": "Linear", "optimiser.schedule.hold": "x"}, "schedule.hold is 'x'"),
    ],
)
def test_values_that_a_setting_of_a_new_class_refuses(settings: dict[str, str], said: str, spec: Spec) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(spec, settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", sorted(set(modelfile.KINDS) - {"Start"}))
def test_every_setting_of_every_class_refuses_other_types(kind: str) -> None:
    """By ValueError, when the settings are made: not in the middle of a fit."""
    required = {"steps": 3} if kind == "Budget" else {}
    for field in dataclasses.fields(modelfile.KINDS[kind]):
        for wrong in ("~", ((),), float("nan"), object(), Adam):
            with pytest.raises(ValueError):
                modelfile.KINDS[kind](**{**required, field.name: wrong})
        if field.type in ("float", "int", "int | None", "float | None"):
            with pytest.raises(ValueError):
                modelfile.KINDS[kind](**{**required, field.name: True})


def test_every_part_of_a_spec_and_a_record_refuses_other_types(spec: Spec) -> None:
    for field in dataclasses.fields(Spec):
        for wrong in (None, "~", 1.5, (1,), Siren):
            with pytest.raises(ValueError, match=f"{field.name} is "):
                dataclasses.replace(spec, **{field.name: wrong})
    for field in dataclasses.fields(Record):
        for wrong in ("~", 1.5, 0 if field.name != "keep" else (-1,), True):
            with pytest.raises(ValueError, match=rf"record\.{field.name} is "):
                Record(**{field.name: wrong})
