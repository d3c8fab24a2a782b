"""Compiles the native kernels, one library per instruction set; all else about the package is in pyproject.toml.

The libraries are no Python modules: `pixfit.kernels.library` chooses one at run time and loads it with ctypes. Every
one is optional: where no compiler works, the package installs without them and torch does the work.

CC and CXX name the compiler, CXXFLAGS and LDFLAGS go before and after our own flags.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("src/pixfit/kernels")
NATIVE = KERNELS / "native"
SOURCES = runpy.run_path(str(KERNELS / "sources.py"))
SETS = {f"pixfit.kernels.{SOURCES['stem'](choice.name)}": choice for choice in SOURCES["instruction_sets"]()}
MUST = ("-std=c++17", "-O3", "-fPIC", "-shared")
MAY = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread")


class BuildKernels(build_ext):
    """Each library by one call of the compiler, several at once, without the flags the interpreter was built with."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count() or 1

    def run(self) -> None:
        for extension in self.extensions:  # what an earlier build left behind must not look like this one's
            output = self.output(extension)
            output.unlink(missing_ok=True)
            if self.inplace:
                (KERNELS / output.name).unlink(missing_ok=True)
        super().run()

    def build_extensions(self) -> None:
        why = "they did not compile"
        try:
            self.command = compile_command()
            super().build_extensions()
        except CompileError as error:
            why = str(error)
        built = [SETS[extension.name].name for extension in self.extensions if self.output(extension).exists()]
        if built:
            print(f"pixfit: compiled kernels for {', '.join(built)}")
        else:
            print(f"pixfit: no compiled kernels, {why}; torch runs instead, `pixfit doctor` says what that costs")

    def build_extension(self, extension: Extension) -> None:
        output = self.output(extension)
        output.parent.mkdir(parents=True, exist_ok=True)
        macro = f'-DPIXFIT_SOURCE_HASH="{SOURCES["source_hash"](NATIVE)}"'
        flags = [*SETS[extension.name].flags, macro, *extension.sources, "-o", str(output)]
        done = run([*self.command, *flags, *from_environment("LDFLAGS")])
        if done.returncode:
            output.unlink(missing_ok=True)
            raise CompileError(f"{shlex.join(done.args)} returned {done.returncode}\n{done.stderr[-4000:]}")

    def output(self, extension: Extension) -> Path:
        return Path(self.build_lib, self.get_ext_filename(extension.name))


def compile_command() -> list[str]:
    """A working C++ compiler with the flags that it knows.

    Raises:
        CompileError: there is none, or one that the environment names does not work.
    """
    if os.name == "nt":
        raise CompileError("they are not built on Windows")
    c, cxx = from_environment("CC"), from_environment("CXX")
    if c and not works(c, ".c"):
        raise CompileError(f"CC={shlex.join(c)} does not compile")
    configured = shlex.split(sysconfig.get_config_var("CXX") or "c++")
    for candidate in [cxx] if cxx else [configured, ["c++"], ["g++"], ["clang++"]]:
        command = [*candidate, *from_environment("CXXFLAGS"), *MUST]
        if works(command):
            return [*command, *(flag for flag in MAY if works([*command, flag]))]
    raise CompileError(f"CXX={shlex.join(cxx)} does not compile" if cxx else "no C++ compiler works")


def works(command: list[str], suffix: str = ".cpp") -> bool:
    """Whether it compiles a file with nothing to it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"empty{suffix}")
        source.write_text("int pixfit_nothing;\n")
        return run([*command, "-c", str(source), "-o", str(Path(folder, "empty.o"))]).returncode == 0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:  # not there, or not a program
        return subprocess.CompletedProcess(command, 127, "", str(error))


def from_environment(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


headers = sorted(map(str, [*NATIVE.glob("*.h"), KERNELS / "sources.py"]))
setup(
    ext_modules=[
        Extension(name, [str(NATIVE / f"{choice.name}.cpp")], depends=headers, language="c++", optional=True)
        for name, choice in SETS.items()
    ],
    cmdclass={"build_ext": BuildKernels},
)
