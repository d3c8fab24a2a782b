"""Model files: a round trip without loss, nothing private inside, and one clear line for every broken file."""

from __future__ import annotations

import copy
import json
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from pixfit import canonical, modelfile, render, run
from pixfit.images import Image
from pixfit.losses import L1, Huber
from pixfit.modelfile import KINDS, ModelFileError, Network, decode, decode_spec, load, save
from pixfit.models import (
    Coordinates,
    Experts,
    Finer,
    Fourier,
    Gabor,
    Gauss,
    Grid,
    Mlp,
    Model,
    Positional,
    Raw,
    Siren,
    Wire,
)
from pixfit.operators import BoxDownsample
from pixfit.optim import SGD, Adam, AdamW, Muon, ScheduleFreeAdamW
from pixfit.problem import GaussianNoise, Problem, Sealed
from pixfit.result import Result, Status
from pixfit.schedules import Cosine, Linear, Plateau
from pixfit.spec import Batches, BestHeldOut, MovingAverage, Spec
from pixfit.starts import Start, Weights
from pixfit.stopping import Budget, Steps, TargetPSNR
from tests.conftest import picture

FAMILY: list[Model] = [
    Siren(1, 8),
    Siren(2, (8, 5, 6), coordinates=Coordinates(alignment="corner", order="row_col", aspect="keep")),
    Finer(1, 8, first_bias_scale=None),
    Gauss(1, 8),
    Wire(1, 6),
    Mlp(1, 8, encoding=Raw(), output="linear", norm="rms"),
    Mlp(1, 8, encoding=Fourier(8, trainable=True), norm="layer", skip=True),
    Mlp(1, 8, encoding=Positional(3)),
    Mlp(1, 8, encoding=Grid(((3, 2), (6, 5, 2)), entries=16, interpolation="cubic")),
    Mlp(1, 8, encoding=Gabor(8), experts=Experts(2, gate_features=4)),
]
family = pytest.mark.parametrize("model", FAMILY, ids=str)


def fitted(model: Model, *, channels: int = 3, precision: Any = "float32", name: str = "waves") -> Result:
    image = replace(picture(channels, 12, 10), name=name)
    return run.fit(Spec(Problem(image), model, budget=Steps(2), precision=precision))


@pytest.fixture(scope="module")
def result() -> Result:
    torch.set_num_threads(1)
    return fitted(Siren(1, 8))


@pytest.fixture(scope="module")
def good(result: Result, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound model file."""
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    save(result, path)
    return path.read_bytes()


# --- round trip


@family
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_comes_back(model: Model, channels: int, tmp_path: Path) -> None:
    fit = fitted(model, channels=channels)
    size = save(fit, tmp_path / "m.safetensors")
    assert size == (tmp_path / "m.safetensors").stat().st_size == modelfile.size_in_bytes(Network.of(fit))
    network = load(tmp_path / "m.safetensors")
    assert network.model == model
    assert network.record == json.loads(json.dumps(fit.spec.plain))
    assert network.shape == (channels, 12, 10)
    assert network.bit_depth == 8
    assert set(network.weights) == set(fit.weights)
    assert all(torch.equal(value, network.weights[name]) for name, value in fit.weights.items())
    assert fit.estimate is not None
    assert torch.equal(render.render(network), fit.estimate)


def test_double_precision_stays_double(tmp_path: Path) -> None:
    fit = fitted(Siren(1, 8), precision="float64")
    save(fit, tmp_path / "m.safetensors")
    network = load(tmp_path / "m.safetensors")
    assert {value.dtype for value in network.weights.values()} == {torch.float64}
    assert fit.estimate is not None
    assert torch.equal(render.render(network), fit.estimate)


def test_one_network_is_one_sequence_of_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    save(fitted(Mlp(1, 8)), files[0])
    save(fitted(Mlp(1, 8)), files[1])
    save(load(files[0]), files[2])
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


@family
def test_the_tensors_are_the_plain_state_dict(model: Model, tmp_path: Path) -> None:
    """Whoever has the module and safetensors needs nothing else of pixfit."""
    fit = fitted(model)
    save(fit, tmp_path / "m.safetensors")
    module = model.network(2, 3)
    module.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    coordinates = model.coordinates.grid(12, 10)
    assert fit.estimate is not None
    with torch.no_grad():
        outputs = model.to_pixels(module(coordinates))
    torch.testing.assert_close(outputs.T.reshape(3, 12, 10), fit.estimate, rtol=0, atol=1e-5)


def test_the_file_says_nothing_of_the_picture_but_its_hash_and_size(tmp_path: Path) -> None:
    folder = tmp_path / "holidays-in-secret"
    folder.mkdir()
    image = picture(3, 12, 10)
    from pixfit import images

    images.save(image, folder / "auntie-rosa.png")
    loaded = images.load(folder / "auntie-rosa.png")
    fit = run.fit(Spec(Problem(loaded), Siren(1, 8), budget=Steps(1)))
    save(fit, folder / "out.safetensors")
    data = (folder / "out.safetensors").read_bytes()
    for private in ("auntie", "rosa", "holidays", "secret", str(tmp_path)):
        assert private.encode() not in data
    assert loaded.hash[:20].encode() in data
    raw = (image.data * 255).round().to(torch.uint8)
    assert raw.numpy().tobytes()[:30] not in data
    assert image.data.numpy().tobytes()[:60] not in data


def test_the_module_computes_without_gradients_and_does_not_change(result: Result) -> None:
    network = Network.of(result)
    module = network.module()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module(torch.zeros(5, 2)).shape == (5, 3)


def test_fits_that_left_no_network(result: Result, tmp_path: Path) -> None:
    failed = Result(result.spec, Status.FAILED, "RuntimeError: no", {})
    diverged = replace(
        result, status=Status.DIVERGED, weights={n: torch.full_like(v, torch.nan) for n, v in result.weights.items()}
    )
    for fit in (failed, diverged):
        with pytest.raises(ValueError, match=f"this fit has no network: it is {fit.status.value}"):
            save(fit, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_places_where_nothing_can_be_saved(result: Result, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="this is a folder; give a file name"):
        save(result, tmp_path)
    with pytest.raises(ModelFileError, match="its folder does not exist"):
        save(result, tmp_path / "nowhere" / "m.safetensors")


# --- files that are broken, foreign or hostile


def refused(path: Path, *, within: float = 2.0) -> str:
    """The one line that a file is refused with, soon and without a large allocation."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert time.process_time() - began < within
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # in kB
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 600
    return text.removeprefix(f"{path}: ")


def forged(path: Path, good: bytes, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a sound file with its description (schema, spec) and tensors changed."""
    source = path.with_suffix(".source")
    source.write_bytes(good)
    network = load(source)
    about: dict[str, Any] = {"schema": canonical.SCHEMA, "spec": copy.deepcopy(dict(network.record))}
    tensors = {name: value.clone() for name, value in network.weights.items()}
    changed = change(about, tensors)
    text = changed if isinstance(changed, str) else json.dumps(about)
    path.write_bytes(to_safetensors(tensors, {"pixfit": text}))
    return path


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file; `pixfit fit PICTURE -o a.safetensors` makes one" in refused(tmp_path / "a.safetensors")
    assert "no such file" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / ("x" * 300))


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 8, b"\0" * 5000, b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"{}"])
def test_no_safetensors_at_all(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert "not a readable safetensors file" in refused(tmp_path / "a")


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"x": torch.zeros(3), "bomb": _Bomb()}, "a.pt")
    for name in ("a.pkl", "a.pt"):
        assert "not a readable safetensors file" in refused(Path(name))
    assert not Path("executed").exists()


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(to_safetensors({"weight": torch.zeros(3)}))
    assert "not one of pixfit's" in refused(tmp_path / "a")
    (tmp_path / "a").write_bytes(to_safetensors({"weight": torch.zeros(3)}, {"format": "pt"}))
    assert "not one of pixfit's" in refused(tmp_path / "a")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_anywhere(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
    refused(tmp_path / "a")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_load_or_are_refused(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    broken = bytearray(good)
    header = 8 + int.from_bytes(good[:8], "little")
    places = st.integers(0, header - 1) | st.integers(0, len(good) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        broken[place] = byte
    (tmp_path / "a").write_bytes(broken)
    try:
        network = load(tmp_path / "a")
    except ModelFileError:
        refused(tmp_path / "a")
        return
    assert all(bool(value.isfinite().all()) for value in network.weights.values())
    assert network.module()(torch.zeros(1, 2, dtype=next(iter(network.weights.values())).dtype)).shape[0] == 1


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(about: dict[str, Any], tensors: Any) -> None:
        place = about
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def _drop(*keys: str) -> Callable[[dict[str, Any], Any], None]:
    def change(about: dict[str, Any], tensors: Any) -> None:
        place = about
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


_MODEL = ("spec", "model")
_IMAGE = ("spec", "problem", "image")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("schema", to=canonical.SCHEMA + 1), "made by a newer pixfit (schema 2); update pixfit to read it"),
        (_set("schema", to="1"), "its description is not a spec"),
        (_set("spec", to=[]), "its description is not a spec"),
        (_drop("spec"), "its description is not a spec"),
        (_drop(*_MODEL), "its description is damaged"),
        (_drop(*_IMAGE), "its description is damaged"),
        (_set("spec", "problem", to=7), "its description is damaged"),
        (_set(*_MODEL, "kind", to="Sirren"), "no settings are called 'Sirren'; did you mean 'Siren'?"),
        (_set(*_MODEL, "kind", to=["Siren"]), "no settings are called"),
        (_set(*_MODEL, "kind", to="os.system"), "no settings are called 'os.system'"),
        (_set(*_MODEL, "kind", to="Adam"), "Adam has no setting"),
        (_set(*_MODEL, "kind", to="X" * 100_000), "no settings are called 'XXX"),
        (_set(*_MODEL, to={"kind": "Adam"}), "its model is a Adam, which is no network"),
        (_set(*_MODEL, to="Siren"), "its model is a str, which is no network"),
        (_set(*_MODEL, "hiden_layers", to=3), "Siren has no setting 'hiden_layers'; did you mean 'hidden_layers'?"),
        (_set(*_MODEL, "__class__", to=3), "Siren has no setting '__class__'"),
        (_set(*_MODEL, "hidden_layers", to=-1), "hidden_layers"),
        (_set(*_MODEL, "hidden_features", to=-8), "hidden_features"),
        (_set(*_MODEL, "hidden_features", to=8.0), "hidden_features"),
        (_set(*_MODEL, "hidden_features", to=[8, -8]), "hidden_features"),
        (_set(*_MODEL, "hidden_features", to=None), "hidden_features"),
        (_set(*_MODEL, "hidden_features", to=10**30), "hidden_features"),
        (_set(*_MODEL, "first_omega_0", to=float("nan")), "first_omega_0"),
        (_set(*_MODEL, "coordinates", to={"kind": "Siren"}), "coordinates"),
        (_set(*_MODEL, "hidden_layers", to=2), "fewer tensors|its tensors are not those of the Siren"),
        (_set(*_MODEL, "hidden_features", to=65536), "its tensors are not those of the Siren"),
        (_set(*_MODEL, to={"kind": "Siren", "hidden_features": 65536, "hidden_layers": 256}), "fewer tensors"),
        (
            _set(*_MODEL, to={"kind": "Mlp", "hidden_layers": 250, "experts": {"kind": "Experts", "count": 256}}),
            "fewer tensors",
        ),
        (
            _set(*_MODEL, to={"kind": "Mlp", "hidden_layers": 0, "experts": {"kind": "Experts", "count": 256}}),
            "its tensors are not those of the Mlp",
        ),
        (_set(*_IMAGE, "width", to=10**9), "a picture of impossible size"),
        (_set(*_IMAGE, "width", to=-10), "a picture of impossible size"),
        (_set(*_IMAGE, "height", to=0), "a picture of impossible size"),
        (_set(*_IMAGE, "height", to=12.5), "a picture of impossible size"),
        (_set(*_IMAGE, "channels", to=5), "a picture of impossible size"),
        (_set(*_IMAGE, "channels", to=1), "its tensors are not those of the Siren"),
        (_set(*_IMAGE, "bit_depth", to="8"), "bit depth"),
        (_set(*_IMAGE, "bit_depth", to=0), "bit depth"),
        (lambda about, tensors: '{"schema":' * 100_000, "its description is damaged"),
        (lambda about, tensors: json.dumps({"schema": 1, "spec": _nested(900)}), "description is damaged|is a tuple"),
        (lambda about, tensors: "[" * 500 + "]" * 500, "its description is not a spec"),
        (lambda about, tensors: "", "its description is damaged"),
        (lambda about, tensors: "null", "its description is not a spec"),
        (lambda about, tensors: json.dumps(about) + " " * 2**21, "longer than any spec"),
    ],
)  # fmt: skip
def test_forged_descriptions(change: Any, said: str, good: bytes, tmp_path: Path) -> None:
    text = refused(forged(tmp_path / "a", good, change))
    assert any(part in text for part in said.split("|"))


def _nested(depth: int) -> dict[str, Any]:
    """A spec whose model is lists in lists, shallow enough for JSON and too deep for recursion to be harmless."""
    inner: Any = 0
    for _ in range(depth):
        inner = [inner]
    return {"model": inner, "problem": {"image": {"height": 12, "width": 10, "channels": 3, "bit_depth": 8}}}


def _tensor(name: str, value: torch.Tensor) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    return lambda about, tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_tensor("layers.0.bias", torch.zeros(8, dtype=torch.int32)), "all be float32 or all float64"),
        (_tensor("layers.0.bias", torch.zeros(8, dtype=torch.float64)), "all be float32 or all float64"),
        (_tensor("layers.0.bias", torch.zeros(8, dtype=torch.bool)), "all be float32 or all float64"),
        (_tensor("layers.0.bias", torch.zeros(8, dtype=torch.complex64)), "all be float32 or all float64"),
        (_tensor("layers.0.bias", torch.zeros(8).to(torch.float8_e4m3fn)), "all be float32 or all float64"),
        (_tensor("layers.0.bias", torch.full((8,), torch.nan)), "not finite numbers"),
        (_tensor("layers.0.bias", torch.full((8,), -torch.inf)), "not finite numbers"),
        (_tensor("layers.0.bias", torch.zeros(9)), "its tensors are not those of the Siren"),
        (_tensor("layers.0.bias", torch.zeros(8, 1)), "its tensors are not those of the Siren"),
        (_tensor("layers.9.bias", torch.zeros(8)), "its tensors are not those of the Siren"),
        (lambda about, tensors: tensors.__delitem__("layers.2.bias"), "its tensors are not those of the Siren"),
        (lambda about, tensors: tensors.clear(), "fewer tensors"),
    ],
)
def test_tensors_that_are_not_the_networks(change: Any, said: str, good: bytes, tmp_path: Path) -> None:
    assert said in refused(forged(tmp_path / "a", good, change))


# --- decode


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Budget"}))
def test_every_class_of_the_table_comes_back_from_its_defaults(kind: str) -> None:
    value = KINDS[kind]()
    plain = json.loads(canonical.text(value))
    assert plain["kind"] == kind
    back = decode(plain)
    assert type(back) is KINDS[kind]
    assert canonical.text(back) == canonical.text(value)
    assert kind == "Start" or back == value


def test_budgets_come_back() -> None:
    for budget in (Budget(steps=3), Budget(epochs=2, seconds=1.5)):
        assert decode(json.loads(canonical.text(budget))) == budget
    with pytest.raises(ValueError, match="a budget needs a limit"):
        decode({"kind": "Budget"})


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({}, "no settings are called 'None'"),
        ({"kind": "Spec"}, "no settings are called 'Spec'"),
        ({"kind": {}}, "no settings are called"),
        ({"kind": "AdamW", "weight_decai": 0}, "AdamW has no setting 'weight_decai'; did you mean 'weight_decay'?"),
        ({"kind": "Adam", "lr": {"kind": "Cosine"}}, "optimiser.lr is Cosine"),
        ({"kind": "Adam", "betas": 3}, "optimiser.betas is 3"),
        ({"kind": "Mlp", "encoding": None}, "Mlp.encoding"),
        ({"kind": "Start", "weights": None, "layers": "x"}, "start.layers"),
    ],
)
def test_what_decode_refuses_is_a_value_error(plain: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.").replace("?", r"\?")):
        decode(plain)


def _specs(image: Image) -> list[Spec]:
    held_out = Problem(image, held_out=0.2, seed=3)
    return [
        Spec(Problem(image), Siren(1, 8)),
        Spec(
            Problem(image, noise=GaussianNoise(0.1), seed=5),
            Mlp(2, (8, 6, 4), encoding=Gabor(8, freq_scale=None, sigma=0.3), experts=Experts(3, "layer", 7)),
            loss=Huber(0.2), optimiser=ScheduleFreeAdamW(betas=(0.95, 0.99), warmup_steps=5), batches=Batches(7),
            budget=Budget(epochs=3, seconds=2), stopping=TargetPSNR(33.0, every=7),
            precision="float64", kernel="torch", seed=2**63 - 1,
        ),
        Spec(held_out, Finer(1, 8), loss=L1(), optimiser=SGD(momentum=0.9, nesterov=True, schedule=Linear(hold=0.5)),
             estimate=BestHeldOut(9)),
        Spec(Problem(image, BoxDownsample(2)), Wire(1, 6), optimiser=Muon(schedule=Cosine(warmup=0.1, final=0.2))),
        Spec(Problem(image), Gauss(1, 8), optimiser=AdamW(clip_norm=1, schedule=Plateau(patience=3))),
        Spec(Problem(image), Mlp(1, 8, encoding=Positional(2, include_input=False)), optimiser=Adam(lr=0),
             estimate=MovingAverage(0.9)),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(6))
def test_a_spec_of_every_kind_of_part_keeps_its_id(number: int) -> None:
    spec = _specs(picture(3, 12, 10))[number]
    plain = json.loads(json.dumps(spec.plain))
    assert isinstance(spec.problem, Problem)
    back = decode_spec(plain, spec.problem)
    assert back.id == spec.id
    assert back == spec
    for name in ("model", "loss", "optimiser", "batches", "budget", "stopping", "estimate", "precision", "kernel"):
        assert getattr(back, name) == getattr(spec, name)
    sealed = decode_spec(plain)
    assert isinstance(sealed.problem, Sealed)
    assert sealed.id == spec.id
    assert sealed.problem.shape == spec.problem.shape


def test_a_start_from_other_weights_comes_back_as_a_random_one(small: Image) -> None:
    weights = Weights(Siren(1, 8).build(2, 3, generator=torch.Generator().manual_seed(0)).state_dict())
    spec = Spec(
        Problem(small), Siren(1, 8), start=Start(weights=weights, mask=Weights({"layers.0.bias": torch.ones(8)}))
    )
    assert decode_spec(json.loads(json.dumps(spec.plain)), Problem(small)) == Spec(Problem(small), Siren(1, 8))


def test_a_setting_that_a_spec_does_not_have(small: Image) -> None:
    plain = {**Spec(Problem(small), Siren(1, 8)).plain, "optimizer": {"kind": "Adam"}}
    with pytest.raises(ValueError, match="a spec has no setting 'optimizer'; did you mean 'optimiser'"):
        decode_spec(plain, Problem(small))
