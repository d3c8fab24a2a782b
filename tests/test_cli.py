"""The commands as a person types them: what they print, what they write, and how they fail."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pixfit import images
from pixfit.cli import app
from tests.conftest import picture

FIT_KEYS = {
    "id", "recipe", "status", "stop_reason", "psnr", "psnr_8bit", "ssim", "seconds", "process_seconds", "steps",
    "parameters", "values_ratio", "bits_per_pixel", "width", "height", "channels", "device", "kernel", "model",
}  # fmt: skip
SMALL = ("-s", "model.hidden_features=16", "-s", "batches.pixels=64", "--steps", "5")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with three pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXFIT_STORE", raising=False)
    images.save(picture(3, 20, 30), tmp_path / "photo.png")
    (tmp_path / "album").mkdir()
    images.save(picture(1, 16, 12), tmp_path / "album" / "b.png")
    images.save(picture(3, 9, 14), tmp_path / "album" / "a.jpg")
    return tmp_path


def pixfit(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(pixfit(*arguments, "--json", code=code).stdout)


def one_line(result: Result) -> str:
    """The single line that a failed command says."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pixfit: ")
    return lines[0]


def test_fit_then_render(elsewhere: Path) -> None:
    said = as_json("fit", "photo.png", "-o", "photo.safetensors", *SMALL)
    assert set(said) >= FIT_KEYS
    assert (said["width"], said["height"], said["channels"], said["steps"]) == (30, 20, 3, 5)
    assert said["status"] == "done"
    size = (elsewhere / "photo.safetensors").stat().st_size
    assert said["bits_per_pixel"] == pytest.approx(size * 8 / 600)
    assert said["values_ratio"] == pytest.approx(said["parameters"] / 1800)
    pixfit("render", "photo.safetensors", "-o", "large.png", "--scale", "4")
    assert (images.load("large.png").width, images.load("large.png").height) == (120, 80)
    made = as_json(
        "render", "photo.safetensors", "-o", "part.tif", "--region", "3,4,10,8", "--size", "50x40", "--bits", "16"
    )
    assert (made["width"], made["height"]) == (50, 40)
    assert images.load("part.tif").bit_depth == 16


def test_what_a_person_reads(elsewhere: Path) -> None:
    text = pixfit("fit", "photo.png", *SMALL).stdout
    for word in ("PSNR", "dB", "at 8 bits", "SSIM", "parameters", "per pixel value", "bits per pixel", "done (steps)"):
        assert word in text
    assert "5 steps" in pixfit("fit", "photo.png", *SMALL).stdout  # from the store


def test_a_folder_is_a_list(elsewhere: Path) -> None:
    said = as_json("fit", "album", "-o", "networks", *SMALL)
    assert [Path(one["model"]).name for one in said] == ["a.safetensors", "b.safetensors"]
    assert [one["channels"] for one in said] == [3, 1]
    assert all((elsewhere / one["model"]).is_file() for one in said)


def test_a_bundled_name_and_a_dry_run(elsewhere: Path) -> None:
    plan = as_json("fit", "coffee", "--dry-run", "--seed", "7")
    assert plan["spec"]["seed"] == 7
    assert plan["spec"]["problem"]["image"]["width"] == 600
    assert plan["id"] == as_json("fit", "coffee", "--dry-run", "--seed", "7")["id"]
    assert plan["id"] != as_json("fit", "coffee", "--dry-run")["id"]
    assert not (elsewhere / "pixfit-runs").exists()


def test_start_goes_on_from_a_saved_network(elsewhere: Path) -> None:
    first = as_json("fit", "photo.png", "-o", "one.safetensors", *SMALL)
    second = as_json("fit", "photo.png", "--start", "one.safetensors", "--steps", "0")
    assert second["psnr"] == first["psnr"]
    assert second["parameters"] == first["parameters"]
    assert second["id"] != first["id"]


def test_recipes(elsewhere: Path) -> None:
    listed = as_json("recipes")
    published = ["siren-2020", "climb-baseline", "climb-final", "finer-2024", "wire-2023"]
    assert list(listed) == ["fast", "instant", "smooth", "quality", "compact", "mlp", *published]
    assert all(len(sentence) > 20 and "\n" not in sentence for sentence in listed.values())
    (elsewhere / "mine.json").write_text(pixfit("recipes", "siren-2020").stdout)
    said = as_json("fit", "photo.png", "--recipe", "mine.json", "--steps", "2", "-s", "model.hidden_features=8")
    assert said["recipe"] == "mine.json"
    named = as_json("fit", "photo.png", "--recipe", "siren-2020", "--steps", "2", "-s", "model.hidden_features=8")
    assert named["id"] == said["id"]


def test_ls_show_and_gc(elsewhere: Path) -> None:
    assert "no fits" in pixfit("ls").stdout
    assert not (elsewhere / "pixfit-runs").exists()
    said = as_json("fit", "photo.png", *SMALL)
    assert said["id"][:10] in pixfit("ls").stdout
    (row,) = as_json("ls")["fits"]
    assert (row["id"], row["name"], row["recipe"]) == (said["id"], "photo", "fast")
    shown = as_json("show", said["id"][:6], "-o", "again.safetensors")
    assert shown["spec"]["model"]["hidden_features"] == 16
    pixfit("render", "again.safetensors", "-o", "x.png")
    assert "no fit" in one_line(pixfit("show", "zzz", code=2))
    assert as_json("gc", "--dry-run") == {"files": [], "bytes": 0, "dry_run": True}


def test_export(elsewhere: Path) -> None:
    pixfit("fit", "photo.png", "-o", "photo.safetensors", *SMALL)
    pixfit("export", "photo.safetensors", "-o", "script.py")
    assert (elsewhere / "script.py").is_file()
    assert ".onnx" in one_line(pixfit("export", "photo.safetensors", "-o", "model.tflite", code=2))


def test_a_folder_is_fitted_several_at_a_time_and_names_its_pictures(elsewhere: Path) -> None:
    from pixfit import images

    (elsewhere / "many").mkdir()
    for seed in range(6):
        images.save(picture(3, 12, 12, seed).data, elsewhere / "many" / f"p{seed}.png")
    done = pixfit(
        "fit", "many", "-o", "nets", "--recipe", "siren-2020", "-s", "model.hidden_features=8", "--steps", "9"
    )
    assert [f"p{seed}" in done.stdout for seed in range(6)] == [True] * 6
    assert len(list((elsewhere / "nets").glob("*.safetensors"))) == 6
    assert len(as_json("ls")["fits"]) == 6


def test_doctor_and_data(elsewhere: Path) -> None:
    found = as_json("doctor")
    torch_path = found.get("other fits", found["kernel"]).partition(":")[0]
    assert torch_path in found["matrix products"] or torch_path.startswith("torch")
    assert "GFLOP/s" in found["matrix products"]
    assert found["why"]
    assert "coffee" in as_json("data", "list")["bundled"]
    assert "kodak" in pixfit("data", "list").stdout


def test_transparency_is_said_in_one_line(elsewhere: Path) -> None:
    image = images.Image(picture(4, 8, 8).data, alpha="keep")
    images.save(image, "clear.png")
    result = pixfit("fit", "clear.png", *SMALL)
    assert sum("white" in line for line in result.stderr.splitlines()) == 1
    assert as_json("fit", "clear.png", "--alpha", "keep", "-o", "clear.safetensors", *SMALL)["channels"] == 4
    pixfit("render", "clear.safetensors", "-o", "out.png")
    assert images.load("out.png", alpha="keep").channels == 4


WRONG = {
    "no file": (["fit", "nope.png"], "no such file"),
    "a typo of a bundled name": (["fit", "cofee"], "coffee"),
    "a typo of a setting": (["fit", "photo.png", "-s", "model.hidden_featurs=3"], "mean 'model.hidden_features'"),
    "a setting without its place": (["fit", "photo.png", "-s", "lr=3"], "did you mean 'optimiser.lr'"),
    "a wrong value": (["fit", "photo.png", "-s", "model.hidden_features=-3"], "hidden_features"),
    "a setting that is a text": (["fit", "photo.png", "-s", "optimiser.lr=fast"], "lr"),
    "not a pair": (["fit", "photo.png", "-s", "lr"], "KEY=VALUE"),
    "no recipe": (["fit", "photo.png", "--recipe", "fsat"], "did you mean 'fast'"),
    "a start that is a picture": (["fit", "photo.png", "--start", "photo.png"], "photo.png"),
    "a folder for a model": (["fit", "photo.png", "-o", "album"], "folder"),
    "a model in no folder": (["fit", "photo.png", "-o", "none/x.safetensors"], "does not exist"),
    "a model named as a picture": (["fit", "photo.png", "-o", "x.png"], "pixfit render"),
    "a wrong alpha": (["fit", "photo.png", "--alpha", "blue"], "white, keep or drop"),
    "a wrong range": (["fit", "photo.png", "--range", "0"], "LO,HI"),
    "a device that is not here": (["fit", "photo.png", "--device", "tpu9"], "device"),
    "too many pixels": (["fit", "photo.png", "--max-pixels", "10"], "600"),
    "an empty folder": (["fit", "pixfit-empty"], "pixfit-empty"),
    "a model that is none": (["render", "photo.png", "-o", "x.png"], "photo.png"),
    "no model": (["render", "none.safetensors", "-o", "x.png"], "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_line_and_writes_nothing(elsewhere: Path, case: str) -> None:
    arguments, words = WRONG[case]
    (elsewhere / "pixfit-empty").mkdir()
    before = sorted(path for path in elsewhere.rglob("*") if path.is_file())
    assert words in one_line(pixfit(*arguments, code=2))
    assert sorted(path for path in elsewhere.rglob("*") if path.is_file()) == before


RENDER_WRONG = [
    ("--scale", "0"), ("--scale", "-2"), ("--scale", "nan"), ("--size", "0x5"), ("--size", "5"), ("--size", "2.5x4"),
    ("--region", "1,2,3"), ("--region", "0,0,99,5"), ("--region", "0,0,-1,5"), ("--bits", "12"),
    ("--size", "9999999999x9999999999"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", RENDER_WRONG, ids=" ".join)
def test_wrong_sizes(elsewhere: Path, wrong: tuple[str, str]) -> None:
    pixfit("fit", "photo.png", "-o", "photo.safetensors", *SMALL)
    one_line(pixfit("render", "photo.safetensors", "-o", "x.png", *wrong, code=2))
    assert not (elsewhere / "x.png").exists()


def test_divergence_is_an_exit_code_and_writes_no_model(elsewhere: Path) -> None:
    settings = ("-s", "optimiser=SGD", "-s", "optimiser.lr=1e6", "-s", "model.output=linear", "-s", "model.norm=none")
    result = pixfit("fit", "photo.png", "-o", "x.safetensors", *SMALL, "--steps", "100", *settings, code=1)
    assert "diverged" in result.stdout
    assert "lower optimiser.lr" in result.stderr
    assert not (elsewhere / "x.safetensors").exists()


def test_every_command_has_help_with_an_example(elsewhere: Path) -> None:
    for command in ("demo", "fit", "render", "export", "recipes", "ls", "show", "gc", "doctor"):
        assert "Example:" in pixfit(command, "--help").stdout
    for command in ("list", "get"):
        assert "Example:" in pixfit("data", command, "--help").stdout


def test_awkward_files_end_as_expected(elsewhere: Path, shared_data: Path) -> None:
    """Every listed file through the command itself: done, or one line, exit code 2 and nothing written."""
    with open(shared_data / "awkward" / "EXPECTATIONS.csv", newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if "mask_" not in row["path"]]
    assert len(rows) > 40
    for row in rows:
        path = shared_data / row["path"]
        arguments = ("fit", str(path), "-o", "out.safetensors", *SMALL, "--steps", "1")
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), row
        assert result.exit_code in {"ok": (0,), "error": (2,), "ok-or-refuse": (0, 2)}[row["expected"]], row
        if result.exit_code == 2:
            one_line(result)
        assert (elsewhere / "out.safetensors").exists() == (result.exit_code == 0), row
        (elsewhere / "out.safetensors").unlink(missing_ok=True)


def test_demo_writes_a_page(elsewhere: Path) -> None:
    said = as_json("demo", "--picture", "photo.png", "--steps", "5")
    page = elsewhere / said["page"]
    assert page.name == "index.html"
    assert images.load(page.parent / "fit-4x.png").width == 120


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pixfit", *arguments]


def test_help_and_import_are_quick() -> None:
    """Neither may import torch; the limit in seconds is generous, the modules are the point."""
    heavy = ("torch", "numpy", "PIL", "matplotlib")
    code = f"import sys, pixfit, pixfit.cli; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    taken = []
    for _ in range(3):  # something else may keep the machine busy
        began = time.monotonic()
        subprocess.run(_program("--help"), capture_output=True, check=True)
        taken.append(time.monotonic() - began)
    assert min(taken) < 3


def test_interrupt_then_go_on(elsewhere: Path) -> None:
    command = _program("fit", "photo.png", "-o", "x.safetensors", *SMALL, "--steps", "5000000", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not as_json("ls")["in_flight"]:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    said = json.loads(output)
    assert said["status"] == "cancelled"
    assert said["model"] is None
    assert "run the same command again" in errors
    assert not (elsewhere / "x.safetensors").exists()
    assert [row["status"] for row in as_json("ls")["fits"]] == ["cancelled"]
    assert list((elsewhere / "pixfit-runs" / "checkpoints").iterdir())


def test_a_closed_pipe_is_no_traceback(elsewhere: Path) -> None:
    shell = f"{sys.executable} -m pixfit recipes fast | head -c 10"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={**os.environ}, check=False)
    assert "Traceback" not in done.stderr


def test_the_default_limit_is_the_library_s() -> None:
    """Written twice, because the help must not import the library."""
    from pixfit.cli import options

    assert options.MAX_PIXELS == images.MAX_PIXELS


def test_a_broken_picture_in_a_folder_is_a_row(elsewhere: Path) -> None:
    (elsewhere / "album" / "c.png").write_bytes(b"no picture")
    said = as_json("fit", "album", *SMALL, code=1)
    assert [row["status"] for row in said] == ["done", "done", "failed"]
    assert said[2]["name"] == "c"
    assert "c.png" in said[2]["stop_reason"]


def test_a_fit_from_the_store_says_so(elsewhere: Path) -> None:
    pixfit("fit", "photo.png", *SMALL)
    assert "--again" in pixfit("fit", "photo.png", *SMALL).stderr


def test_a_start_keeps_the_saved_settings_unless_told(elsewhere: Path) -> None:
    pixfit(
        "fit",
        "photo.png",
        "-o",
        "s.safetensors",
        "--recipe",
        "siren-2020",
        "--steps",
        "2",
        "-s",
        "model.hidden_features=8",
    )
    again = as_json("fit", "photo.png", "--start", "s.safetensors", "--steps", "3", "--dry-run")
    assert again["spec"]["optimiser"]["kind"] == "Adam"
    other = as_json("fit", "photo.png", "--start", "s.safetensors", "--recipe", "finer-2024", "--dry-run")
    assert other["spec"]["model"]["kind"] == "Siren"
    assert other["spec"]["optimiser"]["lr"] == 5e-4


def test_the_version_is_the_packages(elsewhere: Path) -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    assert pixfit("--version").stdout.strip() == f"pixfit {project['version']}"
