"""The benchmarks with tiny settings: what they print, what is in it, and how it is compared with a baseline."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pixfit.kernels import library

FOLDER = Path(__file__).parents[1] / "benchmarks"
KEYS = ("size", "path", "us_per_epoch", "ratio", "share_of_limit")
FUSED = ("fused-fp32", "fused-bf16-backward")
TINY = {
    "siren": ["--sizes", "1x8,2x16", "--seconds", "0.5"],
    "family": ["--hidden-layers", "1", "--width", "8", "--seconds", "0.5"],
    "render": ["--hidden-layers", "1", "--width", "8", "--megapixels", "0.01", "--seconds", "0.3"],
    "prior": ["--sizes", "4x2@16", "--seconds", "0.5"],
    "grid": ["--side", "32", "--batch", "256", "--seconds", "0.4"],
}
Document = dict[str, Any]
Run = Callable[..., Document]

each = pytest.mark.parametrize("script", TINY)
needs_kernel = pytest.mark.skipif(library.load() is None, reason=f"needs a compiled kernel: {library.why()}")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script as a module, with the others of its folder in reach."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def run(load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with its tiny settings and more, and reads its JSON."""

    def call(script: str, *arguments: str, code: int = 0) -> Document:
        assert load(script).main([*TINY[script], "--json", *arguments]) == code
        found: Document = json.loads(capsys.readouterr().out)
        return found

    return call


def check(document: Document, *, kernel: bool) -> None:
    for name, value in document["machine"].items():
        if isinstance(value, float):
            assert math.isfinite(value), name
            assert value > 0 or name == "peak_bf16_gflops"
    assert (document["machine"]["kernel"] is not None) == kernel
    assert document["rows"]
    for row in document["rows"]:
        assert all(key in row for key in KEYS)
        assert row["us_per_epoch"] > 0
        assert row["ratio"] > 0
        if kernel:
            assert math.isfinite(row["share_of_limit"])
            assert row["share_of_limit"] > 0
        else:
            assert row["share_of_limit"] is None
        if row["path"] == "plain":
            assert row["ratio"] == 1


@needs_kernel
@each
def test_a_script_prints_its_table_as_json(run: Run, script: str) -> None:
    document = run(script)
    check(document, kernel=True)
    paths = {row["path"] for row in document["rows"]}
    assert {"plain", "torch", "fused-fp32"} <= paths
    if script not in ("render", "prior"):  # rendering has no backward pass
        assert set(FUSED) <= paths
    found = library.load()
    assert found is not None
    assert ("fused-bf16" in paths) is (script == "prior" and found.products > 0)


@needs_kernel
def test_sirens_have_exactly_the_promised_keys(run: Run) -> None:
    document = run("siren")
    assert list(document) == ["machine", "rows"]
    assert [row["size"] for row in document["rows"]] == ["1x8"] * 4 + ["2x16"] * 4
    assert all(tuple(row) == KEYS for row in document["rows"])


@needs_kernel
def test_two_threads_are_compared_with_one(
    run: Run, load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    siren = load("siren")
    monkeypatch.setattr(siren, "BIG", replace(siren.MANY, name="not so big"))  # the real one takes a second a step
    document = run("siren", "--threads")
    check(document, kernel=True)
    assert {row["path"] for row in document["rows"]} == {"threads-1", "threads-2"}


@each
def test_without_a_compiled_kernel_torch_is_measured_and_said_to_be_alone(
    load: Callable[[str], ModuleType],
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    arguments = ["--members", "finer,batches"] if script == "family" else []
    assert load(script).main([*TINY[script], "--json", *arguments]) == 0
    out, table = capsys.readouterr()
    check(json.loads(out), kernel=False)
    assert "no fused rows" in table
    assert not any(path in table for path in FUSED)


def test_the_table_goes_to_stdout_where_no_json_is_wanted(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    assert load("siren").main(TINY["siren"]) == 0
    out, errors = capsys.readouterr()
    assert not errors
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["µs", "1x8", "2x16"]
    assert "1.00x" in out


# ------------------------------------------------------------------------------------------------------------ baselines


def test_a_baseline_shows_what_changed(
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    main, file = load("siren").main, tmp_path / "before.json"
    assert main([*TINY["siren"], "--save", str(file)]) == 0
    saved = json.loads(file.read_text("utf-8"))
    check(saved, kernel=False)
    for row in saved["rows"]:  # far from what any disturbance can do
        row["us_per_epoch"] *= 1000.0 if row["size"] == "1x8" else 0.001
    saved["rows"].append({**saved["rows"][0], "size": "9x9"})
    saved["machine"]["processor"] = "an abacus"
    file.write_text(json.dumps(saved), "utf-8")
    capsys.readouterr()

    given = [*TINY["siren"], "--baseline", str(file)]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "an abacus" in text
    assert "9x9 plain: in the baseline alone" in text
    lines = {line.split(":")[0]: line for line in text.splitlines() if ", " in line and "µs" in line}
    assert float(lines["1x8 plain"].split(", ")[-1].removesuffix("%")) < -90.0
    assert "SLOWER" not in lines["1x8 plain"]
    assert lines["2x16 plain"].endswith("SLOWER")
    assert main([*given, "--strict"]) == 1


@pytest.mark.parametrize(("us", "slower"), [(114.0, False), (116.0, True), (50.0, False)])
def test_slower_means_by_more_than_15_percent(
    load: Callable[[str], ModuleType], us: float, slower: bool, tmp_path: Path
) -> None:
    measure = load("measure")
    found = measure.Machine("p", "t", None, None, None, None, None, 100.0, 10.0)
    parser = measure.options("", [], seconds=1.0)
    before, after = (measure.row("1x8", "plain", 1e-6 * time, 1e-4, math.nan) for time in (100.0, us))
    file = tmp_path / "before.json"
    assert measure.report(measure.parse(parser, ["--save", str(file)]), found, [before]) == 0
    given = measure.parse(parser, ["--baseline", str(file), "--strict"])
    assert measure.report(given, found, [after]) == int(slower)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--strict"], ["--baseline", "nowhere.json"], ["--save", "no/such/folder/x.json"], ["--seconds", "0"],
        ["--sizes", "4"], ["--sizes", "4x0"],
    ],
)  # fmt: skip
def test_bad_options_end_before_anything_is_measured(
    load: Callable[[str], ModuleType], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load("siren").main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- measurements


def test_limits_are_those_of_the_specification(load: Callable[[str], ModuleType]) -> None:
    """The row "limit" of the table for a SIREN: 2·1024·(3 L h² + 13 h) operations at 262 GFLOP/s, 0.146 ns a sincos."""
    measure, siren = load("measure"), load("siren")
    found = measure.Machine("p", "t", "avx512", "c", 262.0, 525.0, 0.146, 100.0, 40.0)
    sizes = {"2x32": 66, "4x64": 439, "4x128": 1646, "4x256": 6365, "6x512": 37472}
    for size, expected in sizes.items():
        (task,) = siren.parse_sizes(size)
        assert measure.limit(found, task.plan, 1024) == pytest.approx(expected, rel=0.01)


def test_medians_take_turns_and_forget_the_warm_up(load: Callable[[str], ModuleType]) -> None:
    order: list[str] = []

    def pretended(name: str, seconds: float) -> Callable[[int], float]:
        def work(epochs: int) -> float:
            order.append(name)
            time.sleep(1e-4 * epochs)
            return epochs * (100.0 if order.count(name) == 1 else seconds)

        return work

    found = load("measure").medians({"a": pretended("a", 1.0), "b": pretended("b", 2.0)}, 0.05)
    assert order[:4] == ["a", "b", "a", "b"]
    assert order.count("a") == order.count("b") >= 3
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(2.0)}


@each
def test_help_shows_examples(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script}.py" in done.stdout
    assert "over 15% slower than the baseline" in " ".join(done.stdout.split())
