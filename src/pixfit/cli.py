"""The command line: each verb is one or two library calls, imported inside it so that ``--help`` is instant."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from pixfit.images import Image
    from pixfit.result import Result
    from pixfit.run import Progress
    from pixfit.spec import Spec

__all__ = ["app", "main"]

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Fit neural networks to single images.

A photo becomes a network; the network renders it at any size.

Example:  pixfit fit photo.jpg -o photo.safetensors
          pixfit render photo.safetensors -o large.png --scale 4""",
)
data_app = typer.Typer(
    no_args_is_help=True, help="Pictures and sets: bundled, downloadable, on disk.", rich_markup_mode="rich"
)
app.add_typer(data_app, name="data")

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
_STORE = Path("pixfit-runs")
_MAX_PIXELS = 268_435_456


def main() -> None:
    """The program ``pixfit``."""
    app()


# ------------------------------------------------------------------------------------------------------------ plumbing


def _fail(message: str, code: int = 2) -> NoReturn:
    """One clear line on standard error, and the exit code: 2 for bad input, 1 where the work failed."""
    print(f"pixfit: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _command(function: Callable[P, R]) -> Callable[P, R]:
    """Turns the errors that a user can cause into one line and an exit code; a bug still shows its traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            _fail(" ".join(str(error).split()))
        except FileExistsError as error:
            _fail(str(error))
        except (ImportError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None
            _fail(str(error), 1)
        except MemoryError as error:
            _fail(f"not enough memory ({error}); use a smaller picture, or --region", 1)
        except KeyboardInterrupt:
            print("pixfit: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def _say(quiet: bool, *notes: str) -> None:
    for note in () if quiet else notes:
        print(note, file=sys.stderr)


def _emit(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


@contextlib.contextmanager
def _bar(quiet: bool, title: str) -> Iterator[Callable[[float, str], None]]:
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


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            _fail(f"-s takes KEY=VALUE, such as -s model.hidden_features=128; got {pair!r}")
        settings[key.strip()] = value.strip()
    return settings


def _numbers(text: str | None, separator: str, count: int, option: str, form: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        _fail(f"{option} takes {form}, got {text!r}")
    return numbers


# ----------------------------------------------------------------------------------------------------------- the verbs


@app.command()
@_command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures and index.html.")] = Path(
        "demo"
    ),
    picture: Annotated[str, typer.Option(help="A bundled picture's name, or a file.")] = "coffee",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the fit, instead of the recipe's.")] = None,
    store: StoreDir = _STORE,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A tour: fits a bundled picture, renders it at 4×, and writes a page with the pictures and the curve.

    Example:  pixfit demo && open demo/index.html
    """
    import dataclasses

    from pixfit import images, recipes, report
    from pixfit.problem import Problem
    from pixfit.stopping import Steps

    image = images.load(picture)
    spec = dataclasses.replace(recipes.RECIPES["fast"](Problem(image)), seed=seed)
    if steps is not None:
        spec = dataclasses.replace(spec, budget=Steps(steps))
    _say(quiet, f"fitting {image.name} ({image.width}×{image.height}) with the recipe 'fast'")
    result = _fit_one(spec, store, device, quiet, name=image.name, recipe="fast", again=False)
    with _bar(quiet, "rendering") as show:
        page = report.write_fit(
            result, output, title=f"pixfit: {image.name} as a network", zoom=4, progress=lambda f: show(f, "")
        )
    _finish([_report(result, "fast", None)], as_json=as_json, single=True, quiet=quiet, extra={"page": str(page)})
    _say(quiet or as_json, f"open {page}")


@app.command()
@_command
def fit(
    picture: Annotated[
        str,
        typer.Argument(metavar="IMAGE|FOLDER", help="A picture, a folder of them, or a bundled name such as coffee."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="MODEL", help="Model file (for a folder: folder) to write.")
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `pixfit recipes`.")] = "fast",
    start: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Go on from a saved network, with its model settings.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Budget in seconds, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Budget in updates, instead of the recipe's.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Fit anew even if the store has this fit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the full settings and the id, and stop.")] = False,
    alpha: Alpha = "white",
    value_range: Annotated[
        str | None, typer.Option("--range", metavar="LO,HI", help="Values of a float picture that become 0 and 1.")
    ] = None,
    max_pixels: MaxPixels = _MAX_PIXELS,
    store: StoreDir = _STORE,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fits a network to a picture and says how well.

    Example:  pixfit fit photo.jpg -o photo.safetensors
              pixfit fit coffee --recipe siren-2020 --steps 300 -s model.hidden_features=128
    """
    import dataclasses

    from pixfit import modelfile, recipes, starts
    from pixfit.problem import Problem
    from pixfit.stopping import Budget

    folder, pictures = _pictures(picture, alpha, max_pixels, _numbers(value_range, ",", 2, "--range", "LO,HI"))
    make = recipes.get(recipe)
    network = None if start is None else modelfile.load(start)
    specs = []
    for image in pictures:
        spec = dataclasses.replace(make(Problem(image)), seed=seed)
        if network is not None:
            begin = starts.Start(weights=starts.Weights(network.weights))
            spec = dataclasses.replace(spec, model=network.model, start=begin)
        if steps is not None or seconds is not None:
            spec = dataclasses.replace(spec, budget=Budget(steps=steps, seconds=seconds))
        specs.append(recipes.configure(spec, _settings(settings or []), recipe=recipe))
    if dry_run:
        plans = [{"id": spec.id, "recipe": recipe, "spec": spec.plain} for spec in specs]
        _emit(plans if folder else plans[0])
        return
    targets = _targets(output, pictures, folder)
    reports = []
    for image, spec, target in zip(pictures, specs, targets, strict=True):
        _say(quiet, *(f"{image.name}: {note}" for note in image.notes))
        result = _fit_one(spec, store, device, quiet, name=image.name, recipe=recipe, again=again)
        sound = result.status.value not in ("diverged", "collapsed", "failed", "cancelled")
        if target is not None and sound:
            modelfile.save(result, target)
        reports.append(_report(result, recipe, target if sound else None))
        if result.status.value == "cancelled":
            break
    _finish(reports, as_json=as_json, single=not folder, quiet=quiet)


def _pictures(
    picture: str, alpha: str, max_pixels: int, value_range: tuple[float, ...] | None
) -> tuple[bool, list[Image]]:
    from pixfit import images

    if alpha not in ("white", "keep", "drop"):
        _fail(f"--alpha is white, keep or drop, got {alpha!r}")
    span = None if value_range is None else (value_range[0], value_range[1])
    if Path(picture).is_dir():
        return True, images.load_folder(picture, alpha=alpha, max_pixels=max_pixels, value_range=span)
    return False, [images.load(picture, alpha=alpha, max_pixels=max_pixels, value_range=span)]


def _targets(output: Path | None, pictures: list[Image], folder: bool) -> list[Path | None]:
    """Where the model files go; checked before any work is done."""
    if output is None:
        return [None] * len(pictures)
    if folder:
        if output.exists() and not output.is_dir():
            _fail(f"-o {output} is a file; for a folder of pictures give a folder")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _fail(f"-o {output}: cannot be made ({error.strerror or error})")
        return [output / f"{image.name}.safetensors" for image in pictures]
    if output.is_dir() or not output.parent.is_dir():
        _fail(
            f"-o {output}: {'this is a folder' if output.is_dir() else 'its folder does not exist'}; give a file name"
        )
    if output.suffix != ".safetensors":
        _fail(f"-o {output}: a model file ends in .safetensors; `pixfit render` makes pictures of it")
    return [output]


def _fit_one(spec: Spec, store: Path, device: str, quiet: bool, *, name: str, recipe: str, again: bool) -> Result:
    from pixfit import run
    from pixfit.store import Store

    chosen = run.choose_device(device)
    with _bar(quiet, name or "fit") as show:

        def on_progress(at: Progress) -> None:
            psnr = "" if at.psnr is None else f", {at.psnr:.1f} dB"
            show(at.fraction, f"step {at.step}{psnr}" if at.stage == "fitting" else "scoring")

        return run.fit(
            spec,
            Store(store),
            device=chosen,
            on_progress=on_progress,
            names={spec.id: name},
            recipe=recipe,
            again=again,
        )


def _report(result: Result, recipe: str, target: Path | None) -> dict[str, Any]:
    """What `pixfit fit` prints, as the keys of its JSON."""
    from pixfit.modelfile import Network, size_in_bytes

    summary = result.summary()
    size = size_in_bytes(Network.of(result)) if result.weights else None
    pixels = summary["width"] * summary["height"]
    keys = (
        "id", "status", "stop_reason", "psnr", "psnr_8bit", "ssim", "lossless", "seconds", "process_seconds",
        "evaluation_seconds", "steps", "parameters", "values_ratio",
    )  # fmt: skip
    return {
        **{key: summary[key] for key in keys[:1]},
        "recipe": recipe,
        **{key: summary[key] for key in keys[1:]},
        "bits_per_pixel": None if size is None else size * 8 / pixels,
        **{key: summary[key] for key in ("width", "height", "channels", "device", "kernel")},
        "model": None if target is None else str(target),
        "remedy": result.status.remedy,
    }


def _finish(
    reports: list[dict[str, Any]], *, as_json: bool, single: bool, quiet: bool, extra: dict[str, Any] | None = None
) -> None:
    """Prints what came out, and ends with the exit code that it deserves."""
    reports = [{**report, **(extra or {})} for report in reports]
    remedies = [report.pop("remedy") for report in reports]
    if as_json:
        _emit(reports[0] if single else reports)
    else:
        for report in reports:
            _print_report(report)
    for report, remedy in zip(reports, remedies, strict=True):
        if remedy:
            print(f"pixfit: {report['status']} ({report['stop_reason']}): {remedy}", file=sys.stderr)
    statuses = {report["status"] for report in reports}
    if "cancelled" in statuses:
        raise typer.Exit(130)
    if single and statuses & {"diverged", "collapsed", "failed"}:
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    def decibels(value: float | None) -> str:
        return (
            "lossless" if value is None and report["lossless"] else "not known" if value is None else f"{value:.2f} dB"
        )

    ratio = report["values_ratio"]
    caution = "; above about 0.5 a good PSNR says little" if ratio > 0.5 else ""
    ssim = "" if report["ssim"] is None else f", SSIM {report['ssim']:.4f}"
    size = "" if report["bits_per_pixel"] is None else f", {report['bits_per_pixel']:.2f} bits per pixel"
    lines = [
        ("fit", f"{report['id']}  {report['recipe']}, {report['width']}×{report['height']}×{report['channels']}"),
        ("ended", f"{report['status']} ({report['stop_reason']}) after {report['steps']} steps"),
        ("PSNR", f"{decibels(report['psnr'])} ({decibels(report['psnr_8bit'])} at 8 bits){ssim}"),
        ("parameters", f"{report['parameters']:,}, {ratio:.3f} per pixel value{size}{caution}"),
        (
            "time",
            f"{report['seconds']:.1f} s training ({report['process_seconds']:.1f} s of processor), "
            f"{report['evaluation_seconds']:.1f} s scoring, on {report['device']} with {report['kernel']}",
        ),
    ]
    if report["model"]:
        lines.append(("model", report["model"]))
    for name, value in lines:
        print(f"{name:<11} {value}")


@app.command()
@_command
def render(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file of `pixfit fit`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Picture to write: .png, .tif, .jpg, .webp or .npy.")
    ],
    scale: Annotated[float | None, typer.Option(help="Output pixels per source pixel, such as 4 or 0.5.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Output size instead of a scale.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Part of the picture, in source pixels.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 16; by default those of the source.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Renders a model file at any size; large pictures are written band by band.

    Example:  pixfit render photo.safetensors -o large.png --scale 4
              pixfit render photo.safetensors -o detail.png --region 100,80,64,64 --size 1024x1024
    """
    from pixfit import modelfile, run
    from pixfit import render as rendering

    wh = _numbers(size, "x", 2, "--size", "WxH, such as 1920x1080")
    if wh is not None and any(side != int(side) for side in wh):
        _fail(f"--size takes whole numbers, got {size!r}")
    xywh = _numbers(region, ",", 4, "--region", "X,Y,W,H in source pixels")
    if bits not in (None, 8, 16):
        _fail(f"--bits is 8 or 16, got {bits}")
    network = modelfile.load(model)
    with _bar(quiet, "rendering") as show:
        frame = rendering.write(
            network, output, scale=scale, size=None if wh is None else (int(wh[0]), int(wh[1])),
            region=None if xywh is None else (xywh[0], xywh[1], xywh[2], xywh[3]), bit_depth=bits,
            device=run.choose_device(device), progress=lambda fraction: show(fraction, ""),
        )  # fmt: skip
    if as_json:
        _emit({"file": str(output), "width": frame.width, "height": frame.height, "region": frame.region})
    else:
        print(f"{output}  {frame.width}×{frame.height}")


@app.command()
@_command
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file of `pixfit fit`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help=".onnx, or .py for a plain-PyTorch script.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Writes a model for programs that do not have pixfit: ONNX, or a script that needs only PyTorch.

    Example:  pixfit export photo.safetensors -o photo.onnx
              pixfit export photo.safetensors -o photo.py && python photo.py photo.png
    """
    from pixfit import export as exporting

    written = exporting.write(model, output)
    if as_json:
        _emit({"files": [str(path) for path in written]})
    else:
        _say(False, *(str(path) for path in written))


@app.command(name="recipes")
@_command
def show_recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one in full, as JSON that `--recipe FILE` takes.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Lists the recipes, or prints one in full (for the picture coffee, 600×400, where a setting depends on the size).

    Example:  pixfit recipes fast > mine.json; pixfit fit photo.jpg --recipe mine.json
    """
    from pixfit import images, recipes
    from pixfit.problem import Problem

    if name is None:
        listed = {key: recipes.describe(key) for key in recipes.RECIPES}
        if as_json:
            _emit(listed)
        else:
            for key, sentence in listed.items():
                print(f"{key:<15} {sentence}")
        return
    plain = dict(recipes.get(name)(Problem(images.load("coffee"))).plain)
    _emit({key: value for key, value in plain.items() if key not in ("problem", "start")})


@app.command()
@_command
def ls(store: StoreDir = _STORE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Lists the fits in the store, and those under way.

    Example:  pixfit ls
    """
    import dataclasses

    from pixfit.store import Store

    kept = Store(store)
    rows, flights = kept.rows(), kept.flights()
    if as_json:
        _emit({"fits": rows, "in_flight": [dataclasses.asdict(flight) for flight in flights]})
        return
    if not rows and not flights:
        print(f"no fits in {store} yet; `pixfit fit coffee` makes one")
        return
    print(f"{'id':<12} {'status':<14} {'PSNR':>9} {'steps':>8} {'seconds':>8}  {'recipe':<15} name")
    for row in rows:
        psnr = "lossless" if row["lossless"] else "" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
        numbers = f"{psnr:>9} {row['steps']:>8} {row['seconds']:>8.1f}"
        print(f"{row['id'][:10]:<12} {row['status']:<14} {numbers}  {row['recipe']:<15} {row['name']}")
    for flight in flights:
        psnr = "" if flight.psnr is None else f"{flight.psnr:.2f} dB"
        status = f"running {flight.fraction:.0%}" if flight.alive else "interrupted"
        print(f"{flight.id[:10]:<12} {status:<14} {psnr:>9} {flight.step:>8} {'':>8}  {'':<15} {flight.name}")


@app.command()
@_command
def show(
    identity: Annotated[str, typer.Argument(metavar="ID", help="An id from `pixfit ls`, or the beginning of one.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="MODEL", help="Also write its model file.")
    ] = None,
    store: StoreDir = _STORE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prints one fit in full: how it ended, its scores and every setting.

    Example:  pixfit show 3fa9 -o photo.safetensors
    """
    from pixfit import modelfile
    from pixfit.store import Store

    result = Store(store).get(identity)
    if result is None:
        _fail(f"no fit in {store} begins with {identity!r}; `pixfit ls` lists them")
    if output is not None:
        modelfile.save(result, output)
    about = {"remedy": result.status.remedy, "threads": result.threads, "versions": dict(result.versions)}
    _emit({**result.summary(), **about, "spec": result.spec.plain})


@app.command()
@_command
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    store: StoreDir = _STORE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deletes what no fit needs: unfinished files, old checkpoints, files without a row; says what it frees.

    Example:  pixfit gc --dry-run
    """
    from pixfit.store import Store

    kept = Store(store)
    found = kept.trash() if dry_run else kept.gc()
    freed = sum(item.bytes for item in found)
    if as_json:
        _emit(
            {
                "files": [{"path": str(item.path), "why": item.why, "bytes": item.bytes} for item in found],
                "bytes": freed,
                "dry_run": dry_run,
            }
        )
        return
    for item in found:
        print(f"{item.path}  {item.bytes:,} bytes, {item.why}")
    print(f"{'would free' if dry_run else 'freed'} {freed:,} bytes in {len(found)} files")


@app.command()
@_command
def doctor(store: StoreDir = _STORE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Says what pixfit runs on here: versions, devices, the kernel and why, and what that kernel costs or gains.

    Example:  pixfit doctor
    """
    from pixfit import report

    found = report.doctor(store)
    if as_json:
        _emit(found)
        return
    for name, value in found.items():
        print(f"{name:<20} {value}")


@data_app.command("list")
@_command
def data_list(as_json: Json = False, quiet: Quiet = False) -> None:
    """Lists the bundled pictures and the downloadable sets, and which of those are on disk.

    Example:  pixfit data list
    """
    from pixfit import images

    sets: dict[str, dict[str, str | None]] = {}
    for name, entry in images.SETS.items():
        try:
            sets[name] = {"title": entry.title, "path": str(images.find_set(name).path)}
        except images.ImageError:
            sets[name] = {"title": entry.title, "path": None}
    if as_json:
        _emit({"bundled": list(images.BUNDLED), "sets": sets, "folder": str(images.data_folder())})
        return
    print("bundled   " + ", ".join(images.BUNDLED))
    for name, row in sets.items():
        print(f"{name:<9} {row['title']}; {row['path'] or f'not on disk, `pixfit data get {name}` fetches it'}")


@data_app.command("get")
@_command
def data_get(
    name: Annotated[str, typer.Argument(help="A set's name from `pixfit data list`.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Downloads a set, checks it, and says where it lies.

    Example:  pixfit data get kodak
    """
    from pixfit import images

    with _bar(quiet, name) as show_progress:

        def progress(file: str, done: int, total: int | None) -> None:
            show_progress(done / total if total else 0.0, file)

        found = images.find_set(name, download=True, progress=progress)
    _say(quiet, *found.notes)
    if as_json:
        _emit({"name": name, "path": str(found.path), "files": [str(path) for path in found.files]})
    else:
        print(found.path)
