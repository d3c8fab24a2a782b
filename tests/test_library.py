"""Which compiled kernels are used: the best that fits this processor and these sources, never another, or torch."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import pixfit
from pixfit import report
from pixfit.cli import app
from pixfit.kernels import library, sources

PACKAGE = Path(pixfit.__file__).parent
NATIVE = PACKAGE / "kernels" / "native"
ROOT = PACKAGE.parents[1]
LAST = sources.instruction_sets()[-1].name  # the one that every processor of this architecture runs

STUB = """
#define API extern "C" __attribute__((visibility("default")))
API long pixfit_abi() {{ return {abi}; }}
API const char *pixfit_source_hash() {{ return "{source_hash}"; }}
API const char *pixfit_isa() {{ return "{isa}"; }}
API long pixfit_supported() {{ return {supported}; }}
API long pixfit_scratch() {{ return 0; }}
API long pixfit_hourglass_memory() {{ return 0; }}
API long pixfit_products() {{ return 1; }}
API const char *pixfit_compiler() {{ return "{compiler}"; }}
API double pixfit_peak(double seconds, long bfloat16) {{ return bfloat16 ? 2 : seconds; }}
"""
REST = "API double pixfit_sincos_time(double seconds) { return seconds; }\n"

pytestmark = pytest.mark.usefixtures("no_kernel_named")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which is not here")


def file_name(isa: str) -> str:
    return sources.stem(isa) + EXTENSION_SUFFIXES[0]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Compiles a library that has the queries only, right unless told otherwise, and has pixfit look for it there."""

    def build(*, rest: str = REST, **changes: object) -> Path:
        facts = {"abi": library.ABI, "source_hash": sources.source_hash(NATIVE), "isa": LAST, "supported": 1}
        (tmp_path / "stub.cpp").write_text(STUB.format(**{**facts, "compiler": "12.3.4", **changes}) + rest)
        built = tmp_path / file_name(LAST)
        subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "stub.cpp", "-o", built], check=True)
        monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
        return built

    return build


# --- what is fit for use


@needs_compiler
def test_a_library_of_these_sources_is_used(stub: Callable[..., Path]) -> None:
    path = stub()
    found = library.load()
    assert found is not None
    assert (found.isa, found.path, found.compiler) == (LAST, path, "GCC 12.3.4")
    assert library.isas() == (LAST,)
    assert LAST not in library.refused()
    assert found.products == 1
    assert (found.peak(0.5), found.peak(bfloat16=True), found.sincos_time(0.25)) == (0.5, 2.0, 0.25)
    assert library.why().startswith("the best")


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source_hash": "0" * 20}, "other sources"),
        ({"source_hash": ""}, "other sources"),
        ({"abi": library.ABI + 1}, f"ABI {library.ABI + 1}"),
        ({"isa": "another"}, "is another"),
        ({"supported": 0}, "processor"),
        ({"rest": ""}, "does not load.*pixfit_sincos_time"),
    ],
    ids=str,
)
def test_any_other_is_not(stub: Callable[..., Path], changes: dict[str, object], reason: str) -> None:
    stub(**changes)
    assert library.isas() == ()
    assert library.load() is None
    assert re.search(reason, library.refused()[LAST])
    assert re.search(reason, library.why())
    assert "make venv" in library.why()
    with pytest.raises(ValueError, match=reason):
        library.load(LAST)


@pytest.mark.parametrize(
    ("products", "vendor", "fast"),
    [
        (2, ("GenuineIntel",), True),
        (1, ("AuthenticAMD",), True),
        (1, ("GenuineIntel",), False),
        (1, (), False),
        (0, ("AuthenticAMD",), False),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(
    products: int, vendor: tuple[str, ...], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_listed", lambda wanted: vendor if wanted == "vendor_id" else ())
    monkeypatch.setattr(library.Library, "products", products)
    assert library.Library("any", Path(), "", ctypes.CDLL(None)).fast_bfloat16 is fast


def test_a_file_that_is_no_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / file_name(LAST)).write_bytes(b"half of a fi")
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
    assert library.load() is None
    assert "does not load" in library.why()


def test_without_libraries_torch_runs_and_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
    assert library.load() is None
    assert library.isas() == ()
    assert "no compiler worked when pixfit was installed" in library.why()
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="is not a folder"):
        library.load()


def test_code_for_another_processor_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to ask it: the files here would not load."""
    if len(sources.instruction_sets()) == 1:
        pytest.skip("this architecture has one instruction set")
    for choice in sources.instruction_sets():
        (tmp_path / file_name(choice.name)).write_bytes(b"")
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
    monkeypatch.setattr(library, "_processor", lambda: frozenset({"fma"}))
    *better, (last, reason) = library.refused().items()
    assert last == LAST
    assert "does not load" in reason
    assert better
    assert all("this processor has no" in reason and "fma" not in reason for _, reason in better)


def test_a_changed_source_makes_the_libraries_stale(tmp_path: Path) -> None:
    """With a copy of the whole package: edited after it was built, it runs on torch and says so."""
    shutil.copytree(PACKAGE, tmp_path / "pixfit", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "from pixfit.kernels import library as l; print(l.__file__, l.isas(), sorted(set(l.refused().values())))"

    def told() -> str:
        told = subprocess.run(
            [sys.executable, "-c", ask], env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert told.startswith(str(tmp_path))
        return told

    built = library.isas()
    assert str(built) in told()
    if not built:
        pytest.skip(f"no libraries are here to become stale: {library.why()}")
    with (tmp_path / "pixfit" / "kernels" / "native" / "api.h").open("a") as header:
        header.write("\n")
    assert " () " in told()
    assert "built from other sources" in told()


# --- the choice


def test_the_best_comes_first() -> None:
    order = [choice.name for choice in sources.instruction_sets()]
    assert sorted({*library.isas(), *library.refused()}) == sorted(order)
    assert [name for name in order if name in library.isas()] == list(library.isas())
    found = library.load()
    assert (None if found is None else found.isa) == next(iter(library.isas()), None)


def test_each_usable_set_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in library.isas():
        monkeypatch.delenv("PIXFIT_KERNEL", raising=False)
        named = library.load(isa)
        assert named is not None
        assert named.isa == isa
        monkeypatch.setenv("PIXFIT_KERNEL", isa)
        assert library.load() == named
        assert library.why() == "asked for by PIXFIT_KERNEL"
        assert library.load("torch") is None
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    assert library.load() is None
    assert library.why() == "asked for by PIXFIT_KERNEL"
    monkeypatch.setenv("PIXFIT_KERNEL", "")
    assert library.why() != "asked for by PIXFIT_KERNEL"


@pytest.mark.parametrize("name", ["avx3", "AVX2", "torch-onednn", " "])
def test_an_unknown_kernel_is_an_error_that_says_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = re.escape(", ".join((*library.isas(), "torch")))
    monkeypatch.setenv("PIXFIT_KERNEL", name)
    for ask in (library.load, library.why):
        with pytest.raises(ValueError, match=rf"PIXFIT_KERNEL={name}: no such.*can be {allowed} here"):
            ask()
    with pytest.raises(ValueError, match=rf"isa={name}: .*can be {allowed} here"):
        library.load(name)


def test_a_set_that_cannot_be_used_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
    monkeypatch.setenv("PIXFIT_KERNEL", LAST)
    with pytest.raises(ValueError, match=f"PIXFIT_KERNEL={LAST}: not built.*can be torch here"):
        library.load()


# --- the doctor


def kernels_of(tmp_path: Path) -> dict[str, Any]:
    said = report.doctor(tmp_path / "runs")
    assert json.loads(json.dumps(said)) == said
    if said["kernels"]["path"] == "compiled":
        assert said["bfloat16"].startswith("by dot products of vectors; ")  # the stub's
    kernels: dict[str, Any] = said["kernels"]
    assert kernels["torch_gflops"] > 0
    assert kernels["torch_sincos_ns"] > 0
    return kernels


@needs_compiler
def test_the_doctor_says_what_runs_and_what_could(
    stub: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub()
    said = kernels_of(tmp_path)
    assert (said["path"], said["isa"], said["compiler"]) == ("compiled", LAST, "GCC 12.3.4")
    assert said["usable"] == [LAST, "torch"]
    assert (said["peak_gflops"], said["sincos_ns"]) == (0.2, 0.1)  # what the stub makes up
    monkeypatch.setenv("PIXFIT_KERNEL", "torch")
    said = kernels_of(tmp_path)
    assert (said["path"], said["isa"], said["why"]) == ("torch", None, "asked for by PIXFIT_KERNEL")
    assert said["peak_gflops"] == 0.2  # so that the cost of asking for torch is told


def test_the_doctor_says_what_is_missing_and_what_that_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXFIT_LIBRARY_DIR", str(tmp_path))
    said = kernels_of(tmp_path)
    assert (said["path"], said["isa"], said["peak_gflops"]) == ("torch", None, None)
    assert "no compiler worked" in said["why"]
    assert "make venv" in said["why"]
    assert "faster" in said["cost"]
    assert set(said["refused"]) == {choice.name for choice in sources.instruction_sets()}
    printed = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "runs")])
    assert printed.exit_code == 0
    assert said["why"] in printed.output
    assert re.search(r"kernel +torch", printed.output)
    assert re.search(rf"not {LAST} +not built", printed.output)
    monkeypatch.setenv("PIXFIT_KERNEL", "avx3")
    with pytest.raises(ValueError, match="it can be torch here"):
        report.doctor(tmp_path)


# --- sources


def test_both_sides_state_one_abi() -> None:
    stated = re.search(r"#define PIXFIT_ABI (\d+)", (NATIVE / "api.h").read_text("utf-8"))
    assert stated is not None
    assert int(stated[1]) == library.ABI


@given(st.dictionaries(st.from_regex(r"[a-c]\.(h|cpp|txt)", fullmatch=True), st.binary(max_size=4), max_size=4))
def test_the_hash_tells_sources_apart(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    """Names and contents enter, where one ends and the next begins, and nothing but C++."""
    folder = tmp_path_factory.mktemp("native")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    before = sources.source_hash(folder)
    assert re.fullmatch("[0-9a-f]{20}", before)
    (folder / "notes.txt").write_bytes(b"x")
    assert sources.source_hash(folder) == before
    for name, content in files.items():
        if name.endswith(".txt"):
            continue
        (folder / name).write_bytes(content + b"\n")
        assert sources.source_hash(folder) != before
        (folder / name).rename(folder / f"other-{name}")
        (folder / f"other-{name}").write_bytes(content)
        assert sources.source_hash(folder) != before
        (folder / f"other-{name}").rename(folder / name)
        assert sources.source_hash(folder) == before


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64", "riscv64", ""])
def test_every_machine_has_a_source_for_each_set_and_one_that_needs_nothing(machine: str) -> None:
    choices = sources.instruction_sets(machine)
    names = [choice.name for choice in choices]
    assert len(set(names)) == len(names)
    assert all((NATIVE / f"{name}.cpp").read_text("utf-8").startswith(f'#define PIXFIT_ISA "{name}"') for name in names)
    assert not choices[-1].needs
    assert all(better.needs > worse.needs for better, worse in itertools.pairwise(choices))


@pytest.mark.parametrize(
    ("compiler", "machine"), [("g++", "x86_64"), ("clang++", "x86_64"), ("aarch64-linux-gnu-g++", "aarch64")]
)
def test_the_sources_compile_without_a_warning(compiler: str, machine: str) -> None:
    """For every instruction set, whether or not this processor has it."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}, which is not here")
    target = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    if not target.startswith(machine):
        pytest.skip(f"{compiler} compiles for {target.strip()}, not for {machine}")
    for choice in sources.instruction_sets(machine):
        flags = ["-std=c++17", "-O1", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", '-DPIXFIT_SOURCE_HASH=""']
        command = [compiler, *choice.flags, *flags, str(NATIVE / f"{choice.name}.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# --- installing


@pytest.mark.parametrize(
    "broken",
    [{"CC": "/bin/false"}, {"CXX": "/bin/false"}, {"PATH": "", "CXX": "g++"}],
    ids=lambda broken: "+".join(broken),
)
def test_an_install_without_a_compiler_runs_on_torch(tmp_path: Path, broken: dict[str, str]) -> None:
    if not (ROOT / "setup.py").is_file():
        pytest.skip("needs the repository, not an installed package alone")
    pytest.importorskip("setuptools", "77", reason="the network may be absent, so the build needs it here")
    copied = tmp_path / "copy"
    kept = shutil.ignore_patterns("__pycache__", "_native_*", "*.egg-info")
    shutil.copytree(ROOT / "src", copied / "src", ignore=kept)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    site = tmp_path / "site"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--target", site, copied],
        env={**os.environ, **broken}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert len(re.findall("pixfit: no compiled kernels.*torch runs instead", installed.stdout + installed.stderr)) == 1
    asked = "from pixfit.kernels import library as l; print(l.__file__, l.load(), l.why())"
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert told.startswith(str(site))
    assert "None not built: no compiler worked" in told
    assert (site / "pixfit" / "kernels" / "native" / "api.h").is_file()  # the sources come along
