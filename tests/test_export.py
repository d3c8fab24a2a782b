"""Exports: the script and the ONNX file render what pixfit renders, need nothing of it, and harm no other file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pixfit as pf
from pixfit import export, modelfile, render
from pixfit.models import (
    MODELS,
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
    networks,
)

KEEP = Coordinates(aspect="keep", order="row_col")
CORNER = Coordinates("corner", "unit")
ODD = Coordinates("corner", "signed", "row_col", "keep")
UNIT_KEEP = Coordinates("center", "unit", "xy", "keep")

FAMILY: dict[str, Model] = {
    "siren": Siren(2, 24),
    "siren_widths": Siren(2, (24, 16, 8), output="sigmoid", target_range="unit", coordinates=KEEP),
    "siren_double": Siren(0, 16, first_omega_0=6.5, coordinates=ODD),
    "finer": Finer(1, 24),
    "finer_plain": Finer(1, 24, first_bias_scale=None, scale_gradient=True),
    "wire": Wire(2, 12, hidden_omega_0=5.0, scale=3.0),  # 20 magnifies the rounding of float32 to 1e-4
    "wire_shallow": Wire(0, 12, output="sigmoid", target_range="unit"),
    "gauss": Gauss(1, 24, scale=3.0, coordinates=CORNER),
    "raw": Mlp(2, 24, encoding=Raw(), coordinates=UNIT_KEEP),
    "positional": Mlp(1, 24, encoding=Positional(4), activation="gelu", norm="rms"),
    "positional_bare": Mlp(1, 24, encoding=Positional(4, include_input=False), coordinates=CORNER),
    "fourier": Mlp(2, 24, encoding=Fourier(32), activation="silu", norm="layer", skip=True),
    "fourier_trained": Mlp(2, 24, encoding=Fourier(32, trainable=True), norm="rms", norm_position="pre", skip=True),
    "gabor": Mlp(1, (24, 16), encoding=Gabor(32, freq_scale=5.0, sigma="text", trainable=True)),
    "grid": Mlp(1, 24, encoding=Grid(((5, 7, 4), (9, 14, 3)), init=1.0), coordinates=KEEP),
    "grid_hashed": Mlp(1, 24, encoding=Grid(((7, 4), (16, 2)), 64, "cubic", "corner", init=1.0), coordinates=CORNER),
    "experts": Mlp(
        1, 24, encoding=Gabor(32, freq_scale=5.0), output="linear", target_range="signed", experts=Experts(2)
    ),
    "gated": Mlp(1, 24, encoding=Raw(), norm="layer", experts=Experts(3, "layer", 16)),
}
CHANNELS = {"siren_widths": 1, "siren_double": 4, "wire_shallow": 2, "positional_bare": 1}  # the others: 3
BIT_DEPTH = {"siren_widths": 16, "finer": 16}  # the others: 8
LOUD = ("siren_double",)  # their values leave the range of pixels
DTYPE = {"siren_double": torch.float64}  # the others: float32
HEIGHT, WIDTH = 9, 14
SIZES = [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH), (1, 5)]
QUICK_ONNX = ("siren", "siren_double", "gated")


def made(name: str, seed: int = 0) -> pf.Network:
    """An untrained network of the family, as a fit of a 9 x 14 picture would leave it."""
    model, channels = FAMILY[name], CHANNELS.get(name, 3)
    samples = torch.rand(channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    image = pf.Image(samples, bit_depth=BIT_DEPTH.get(name, 8))
    generator = torch.Generator().manual_seed(seed)
    module = model.build(2, channels, generator=generator, dtype=DTYPE.get(name, torch.float32))
    weights = module.state_dict()
    if name in LOUD:
        weights["layers.1.weight"] = 20.0 * weights["layers.1.weight"]
    return pf.Network(model, weights, pf.Spec(pf.Problem(image), model).plain)


def pixels(network: pf.Network, height: int, width: int) -> Tensor:
    """By torch, as the exported programs compute: compiled kernels round in another order."""
    plain = dataclasses.replace(network, record={**network.record, "kernel": "torch"})
    return render.render(plain, size=(width, height)).clamp(0.0, 1.0)


def run(*arguments: str | Path) -> None:
    """A Python that sees no environment and no working folder; fails where the program does."""
    done = subprocess.run([sys.executable, "-I", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Blocks every package but torch, then imports the scripts of a folder as a user's program would.
RUNNER = """
import json, sys, warnings
warnings.simplefilter("ignore")  # torch says that numpy is not there
for package in ("pixfit", "safetensors", "numpy", "PIL"):
    sys.modules[package] = None
import importlib, pathlib, torch
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
found = {}
for path in sorted(folder.glob("*.py")):
    module = importlib.import_module(path.stem)
    assert isinstance(module.network, torch.nn.Module)
    parts = module.network.state_dict(keep_vars=True).items()
    found[path.stem] = {
        "sizes": [module.render(*size) for size in json.loads(sys.argv[2])],
        "plain": module.render(),
        "trained": [name for name, part in parts if isinstance(part, torch.nn.Parameter)],
        "text": repr(module.network),
    }
    path.with_suffix(".png").write_bytes(module.png(module.render()))
torch.save(found, folder / "found.pt")
"""


Scripts = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """All scripts of the family in one folder, and what one bare Python makes of them."""
    folder = tmp_path_factory.mktemp("scripts")
    for name in FAMILY:
        path = folder / f"{name}_net.py"
        assert export.write(made(name), path) == (path, path.with_suffix(".safetensors"))
    run("-c", RUNNER, folder, json.dumps(SIZES))
    found = torch.load(folder / "found.pt", weights_only=True)
    return folder, {name.removesuffix("_net"): value for name, value in found.items()}


def test_the_family_has_every_network() -> None:
    built = {type(part).__name__ for name in FAMILY for part in made(name).module().modules()}
    assert {name for name in networks.__all__ if name != "Network"} <= built
    assert {type(model).__name__ for model in FAMILY.values()} == set(MODELS)


@pytest.mark.parametrize("name", FAMILY)
def test_scripts_render_what_pixfit_renders(name: str, scripts: Scripts) -> None:
    network = made(name)
    for (height, width), got in zip(SIZES, scripts[1][name]["sizes"], strict=True):
        want = pixels(network, height, width)
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert torch.equal(scripts[1][name]["plain"], scripts[1][name]["sizes"][0])
    assert float(want.std()) > 0
    if name in LOUD:
        assert float(render.render(network).min()) < 0.0
        assert float(render.render(network).max()) > 1.0


@pytest.mark.parametrize("name", FAMILY)
def test_scripts_build_the_same_module(name: str, scripts: Scripts) -> None:
    module = made(name).module()
    got = scripts[1][name]
    assert got["trained"] == [key for key, _ in module.named_parameters()]
    assert got["text"] == repr(module)


@pytest.mark.parametrize("name", FAMILY)
def test_scripts_say_how_the_network_was_called(name: str, scripts: Scripts) -> None:
    """Every setting of the constructor, those for training too, is that of the network: run the call and compare."""
    text = (scripts[0] / f"{name}_net.py").read_text(encoding="utf-8")
    call = text.split("    network = ", 1)[1].split("\nnetwork.load_state_dict", 1)[0]
    with torch.device("meta"):
        rebuilt = eval(call, vars(networks).copy())

    def settings(module: nn.Module) -> list[dict[str, Any]]:
        return [{key: value for key, value in vars(part).items() if key[0] != "_"} for part in module.modules()]

    assert settings(rebuilt) == settings(FAMILY[name].network(2, CHANNELS.get(name, 3)))


@pytest.mark.parametrize("name", FAMILY)
def test_scripts_write_the_picture_that_pixfit_writes(name: str, scripts: Scripts, tmp_path: Path) -> None:
    render.write(made(name), tmp_path / "want.png")
    want = pf.images.load(tmp_path / "want.png", alpha="keep")
    got = pf.images.load(scripts[0] / f"{name}_net.png", alpha="keep")
    assert got.bit_depth == want.bit_depth == BIT_DEPTH.get(name, 8)
    torch.testing.assert_close(got.data, want.data, rtol=0, atol=1.01 / (2**want.bit_depth - 1))


def test_scripts_run_from_the_command_line(scripts: Scripts, tmp_path: Path) -> None:
    run(scripts[0] / "siren_net.py", tmp_path / "out.png", "--scale", "2")
    got = pf.images.load(tmp_path / "out.png")
    torch.testing.assert_close(got.data, pixels(made("siren"), 2 * HEIGHT, 2 * WIDTH), rtol=0, atol=0.51 / 255 + 1e-6)


def test_scripts_name_nothing_they_do_not_use(scripts: Scripts) -> None:
    siren = (scripts[0] / "siren_net.py").read_text(encoding="utf-8")
    assert "class SirenNetwork" in siren
    for word in ("GaborEncoding", "ExpertsNetwork", "functional as F", "import pixfit", "$"):
        assert word not in siren


def test_a_model_file_becomes_a_script_beside_it(tmp_path: Path) -> None:
    modelfile.save(made("siren"), tmp_path / "photo.safetensors")
    before = (tmp_path / "photo.safetensors").stat().st_mtime_ns
    export.write(tmp_path / "photo.safetensors", str(tmp_path / "photo.py"))
    assert (tmp_path / "photo.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.py", "photo.safetensors"]


def test_the_weights_of_another_fit_are_never_replaced(tmp_path: Path) -> None:
    place = tmp_path / "photo.safetensors"
    for other in (made("siren", seed=1), made("wire")):
        modelfile.save(other, place)
        before = place.read_bytes()
        with pytest.raises(FileExistsError, match="holds something else"):
            export.write(made("siren"), tmp_path / "photo.py")
        assert place.read_bytes() == before
    place.write_bytes(b"my notes")
    with pytest.raises(FileExistsError, match="holds something else"):
        export.write(made("siren"), tmp_path / "photo.py")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.safetensors"]


def test_a_script_refuses_the_weights_of_another_fit(tmp_path: Path) -> None:
    export.write(made("siren"), tmp_path / "photo.py")
    modelfile.save(made("siren", seed=1), tmp_path / "photo.safetensors")
    with pytest.raises(AssertionError, match="not the file that this script was made for"):
        run(tmp_path / "photo.py", tmp_path / "out.png")


@pytest.mark.parametrize("stem", ['x"""; raise SystemExit', "a b", "1st", "$digest"])
def test_no_file_name_becomes_code(stem: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    export.write(made("siren"), tmp_path / "a" / f"{stem}.py")
    export.write(made("siren"), tmp_path / "script.py")
    assert (tmp_path / "a" / f"{stem}.py").read_bytes() == (tmp_path / "script.py").read_bytes()


@pytest.mark.parametrize("name", ["photo.pt", "photo", "photo.onnx.txt"])
def test_unknown_suffixes_name_both_formats(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.onnx.*\.py"):
        export.write(made("siren"), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["torch.py", "json.py", "none/photo.py", "none/photo.onnx"])
def test_names_that_cannot_work_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would hide|does not exist"):
        export.write(made("siren"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "pixfit\[export\]"'):
        export.write(made("siren"), tmp_path / "photo.onnx")
    assert not list(tmp_path.iterdir())


def test_a_broken_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(modelfile.ModelFileError, match="broken"):
        export.write(tmp_path / "broken.safetensors", tmp_path / "photo.py")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


# ONNX


def session(path: Path) -> tuple[Callable[[Any], Any], Any]:
    """Pixels (N, C) from coordinates (N, 2) by onnxruntime, and the file's metadata."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime reads the exported files back")
    loaded = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda points: loaded.run(["pixels"], {"coordinates": points})[0], loaded.get_modelmeta()


def grid(metadata: dict[str, str]) -> Any:
    """The grid (H * W, 2) that the metadata of an ONNX file describe, written anew from the description."""
    convention = json.loads(metadata["coordinates"])
    sides = {"x": int(metadata["width"]), "y": int(metadata["height"])}
    axes = {}
    for name, n in sides.items():
        i = np.arange(n, dtype=np.float64)
        t = (i + 0.5) / n if convention["alignment"] == "center" else i / (n - 1)
        position = 2 * t - 1
        if convention["aspect"] == "keep":
            position = position * n / max(sides.values())
        axes[name] = position if convention["range"] == "signed" else (position + 1) / 2
    y, x = np.meshgrid(axes["y"], axes["x"], indexing="ij")
    columns = (x, y) if convention["order"] == "xy" else (y, x)
    return np.stack(columns, axis=-1).reshape(-1, 2).astype(np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_ONNX else pytest.mark.slow) for name in FAMILY]
)
def test_onnx_gives_the_same_pixels_for_any_number_of_points(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript")
    network = made(name)
    assert export.write(network, tmp_path / "net.onnx") == (tmp_path / "net.onnx",)
    run_network, metadata = session(tmp_path / "net.onnx")
    points = grid(metadata.custom_metadata_map)
    want = pixels(network, HEIGHT, WIDTH).permute(1, 2, 0).reshape(HEIGHT * WIDTH, -1).numpy()
    for count in (HEIGHT * WIDTH, 1, 50):
        np.testing.assert_allclose(run_network(points[:count]), want[:count], rtol=0, atol=1e-5)


def test_onnx_files_are_the_same_every_time_and_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="reads the exported file back")
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript")
    network = made("siren_double")
    export.write(network, tmp_path / "a.onnx")
    export.write(network, tmp_path / "b.onnx")
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert b".py" not in data
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "format": "pixfit",
        "width": "14",
        "height": "9",
        "channels": "4",
        "coordinates": '{"alignment": "corner", "aspect": "keep", "order": "row_col", "range": "signed"}',
    }
    assert "clamped" in model.doc_string
    assert "9 / 14" in model.doc_string


def test_export_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript")
    network = made("siren_double")
    before = {name: value.clone() for name, value in network.weights.items()}
    export.write(network, tmp_path / "net.onnx")
    export.write(network, tmp_path / "net.py")
    assert all(value.dtype == torch.float64 for value in network.weights.values())
    assert all(torch.equal(value, before[name]) for name, value in network.weights.items())


def test_a_finished_fit_is_exported_and_one_without_a_network_refused(tmp_path: Path) -> None:
    network = made("siren")
    spec = pf.Spec(pf.Problem(pf.Image(torch.rand(3, 4, 4))), network.model)
    failed = pf.Result(spec, pf.Status.FAILED, "a test", weights={})
    with pytest.raises(ValueError, match="no network"):
        export.write(failed, tmp_path / "photo.py")
    assert not list(tmp_path.iterdir())
    export.write(replace(failed, status=pf.Status.DONE, weights=network.weights), tmp_path / "photo.py")
    assert "4 x 4 pixels" in (tmp_path / "photo.py").read_text(encoding="utf-8")
    assert pf.load(tmp_path / "photo.safetensors").shape == (3, 4, 4)
