"""What the commands share: their common options, error lines, progress bars and JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

__all__ = [
    "MAX_PIXELS", "STORE", "Alpha", "Device", "Json", "MaxPixels", "Quiet", "Seed", "StoreDir", "bar",
    "check_model_file", "command", "emit", "fail", "numbers", "picture_of", "say", "say_kernel", "settings_of", "sides",
]  # fmt: skip

_P = ParamSpec("_P")
_R = TypeVar("_R")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; notes go to standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
StoreDir = Annotated[
    Path,
    typer.Option("--store", envvar="PIXFIT_STORE", help="Folder that keeps finished fits.", show_default="pixfit-runs"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights and the batches.")]
Alpha = Annotated[str, typer.Option(help="What to do with transparency: white (put on white), keep, or drop.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse larger pictures.")]
STORE = Path("pixfit-runs")
MAX_PIXELS = 268_435_456


def fail(message: str, code: int = 2) -> NoReturn:
    """One clear line on standard error, and the exit code: 2 for bad input, 1 where the work failed."""
    print(f"pixfit: {message}", file=sys.stderr)
    raise typer.Exit(code)


def command(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns the errors that a user can cause into one line and an exit code; a bug still shows its traceback."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            fail(" ".join(str(error).split()))
        except FileExistsError as error:
            fail(str(error))
        except (ImportError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None
            fail(str(error), 1)
        except MemoryError as error:
            fail(f"not enough memory ({error}); use a smaller picture, or --region", 1)
        except KeyboardInterrupt:
            print("pixfit: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def say(quiet: bool, *notes: str) -> None:
    for note in () if quiet else notes:
        print(note, file=sys.stderr)


def say_kernel(quiet: bool) -> None:
    """Nobody should wait several times longer than need be without a word."""
    from pixfit.kernels import library

    if not library.isas():
        say(quiet, f"torch makes the steps, several times slower than compiled kernels would: {library.why()}")


def check_model_file(output: Path | None) -> None:
    """Fails now where a model file could not be written under this name after the work."""
    if output is None:
        return
    if output.is_dir() or not output.parent.is_dir():
        fail(f"-o {output}: {'this is a folder' if output.is_dir() else 'its folder does not exist'}; give a file name")
    if output.suffix != ".safetensors":
        fail(f"-o {output}: a model file ends in .safetensors; `pixfit render` makes pictures of it")


def picture_of(text: str, names: Sequence[str]) -> int | str:
    """How a picture of a memory was asked for: by its name, or else by its number."""
    return int(text) if text.isdecimal() and text not in names else text


def emit(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


@contextlib.contextmanager
def bar(quiet: bool, title: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error, told a fraction and a note. Nothing is drawn where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield lambda fraction, note: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=28), TaskProgressColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0, note="")
        yield lambda fraction, note: progress.update(task, completed=fraction, note=note)


def settings_of(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            fail(f"-s takes KEY=VALUE, such as -s model.hidden_features=128; got {pair!r}")
        settings[key.strip()] = value.strip()
    return settings


def sides(text: str | None) -> tuple[int, int] | None:
    """What ``--size WxH`` means: width and height."""
    pair = numbers(text, "x", 2, "--size", "WxH, such as 1920x1080")
    if pair is None:
        return None
    if any(side != int(side) for side in pair):
        fail(f"--size takes whole numbers, got {text!r}")
    return int(pair[0]), int(pair[1])


def numbers(text: str | None, separator: str, count: int, option: str, form: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        fail(f"{option} takes {form}, got {text!r}")
    return numbers
