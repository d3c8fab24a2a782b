"""The commands that fit: ``pixfit demo`` and ``pixfit fit``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixfit.cli.options import (
    MAX_PIXELS,
    STORE,
    Alpha,
    Device,
    Json,
    MaxPixels,
    Quiet,
    Seed,
    StoreDir,
    bar,
    check_model_file,
    command,
    emit,
    fail,
    numbers,
    say,
    say_kernel,
    settings_of,
)

if TYPE_CHECKING:
    from pixfit.images import Image
    from pixfit.result import Result
    from pixfit.run import Progress
    from pixfit.spec import Spec

__all__ = ["demo", "fit"]

_DEMO = "smooth"  # the page magnifies


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures and index.html.")] = Path(
        "demo"
    ),
    picture: Annotated[str, typer.Option(help="A bundled picture's name, or a file.")] = "coffee",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the fit, instead of the recipe's.")] = None,
    store: StoreDir = STORE,
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
    spec = dataclasses.replace(recipes.RECIPES[_DEMO](Problem(image)), seed=seed)
    if steps is not None:
        spec = dataclasses.replace(spec, budget=Steps(steps))
    say(quiet, f"fitting {image.name} ({image.width}×{image.height}) with the recipe {_DEMO!r}")
    (result,) = _fit_some([spec], store, device, quiet, names=[image.name], recipe=_DEMO, again=False)
    with bar(quiet, "rendering") as show:
        page = report.write_fit(
            result, output, title=f"pixfit: {image.name} as a network", zoom=4, progress=lambda f: show(f, "")
        )
    _finish([_report(result, _DEMO, None)], as_json=as_json, single=True, quiet=quiet, extra={"page": str(page)})
    say(quiet or as_json, f"open {page}")


@command
def fit(
    picture: Annotated[
        str,
        typer.Argument(metavar="IMAGE|FOLDER", help="A picture, a folder of them, or a bundled name such as coffee."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="MODEL", help="Model file (for a folder: folder) to write.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="See `pixfit recipes`.", show_default="fast; with --start as saved"),
    ] = None,
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
    max_pixels: MaxPixels = MAX_PIXELS,
    store: StoreDir = STORE,
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

    from pixfit import modelfile, recipes, run, starts
    from pixfit.problem import Problem
    from pixfit.stopping import Budget

    broken: list[dict[str, Any]] = []
    span = numbers(value_range, ",", 2, "--range", "LO,HI")
    folder, pictures = _pictures(picture, alpha, max_pixels, span, broken)
    network = None if start is None else modelfile.load(start)
    make: recipes.Recipe
    if network is not None and recipe is None:
        recipe, make = str(start), functools.partial(modelfile.decode_spec, network.record)
    else:
        recipe = recipe or "fast"
        make = recipes.get(recipe)
    specs = []
    for image in pictures:
        spec = dataclasses.replace(make(Problem(image)), seed=seed)
        if network is not None:
            begin = starts.Start(weights=starts.Weights(network.weights))
            spec = dataclasses.replace(spec, model=network.model, start=begin)
        if steps is not None or seconds is not None:
            spec = dataclasses.replace(spec, budget=Budget(steps=steps, seconds=seconds))
        specs.append(recipes.configure(spec, settings_of(settings or []), recipe=recipe))
        if network is not None:
            rate = f"{type(spec.optimiser).__name__} from the rate {specs[-1].optimiser.lr:g}"
            say(quiet, f"{image.name}: going on from {start} with {rate}; -s optimiser.lr=... changes it")
    if dry_run:
        plans = [{"id": spec.id, "recipe": recipe, "spec": spec.plain} for spec in specs]
        emit(plans if folder else plans[0])
        return
    targets = _targets(output, pictures, folder)
    reports: list[dict[str, Any]] = []
    chosen = run.choose_device(device)
    say_kernel(quiet)
    together = run.side_by_side(specs[0], chosen) if folder and specs else 1
    for first in range(0, len(specs), together):
        part = slice(first, first + together)
        for image in pictures[part]:
            say(quiet, *(f"{image.name}: {note}" for note in image.notes))
        names = [image.name for image in pictures[part]]
        label = f"{first + len(names)} of {len(specs)}" if folder else names[0]
        try:
            results = _fit_some(specs[part], store, device, quiet, names=names, recipe=recipe, again=again, label=label)
        except ValueError as error:
            if not folder:
                raise
            broken.extend(_broken(name, str(error)) for name in names)
            continue
        for name, result, target in zip(names, results, targets[part], strict=True):
            if result.status.value == "failed":
                broken.append(_broken(name, result.reason))
                continue
            sound = result.status.value not in ("diverged", "collapsed", "cancelled")
            if target is not None and sound:
                modelfile.save(result, target)
            reports.append({"name": name, **_report(result, recipe, target if sound else None)})
        if any(result.status.value == "cancelled" for result in results):
            break
    _finish([*reports, *broken], as_json=as_json, single=not folder, quiet=quiet)


def _broken(name: str, reason: str) -> dict[str, Any]:
    """The row of a picture in a folder that could not be fitted."""
    return {"name": name, "status": "failed", "stop_reason": " ".join(reason.split()), "model": None, "remedy": ""}


def _pictures(
    picture: str, alpha: str, max_pixels: int, value_range: tuple[float, ...] | None, broken: list[dict[str, Any]]
) -> tuple[bool, list[Image]]:
    """Whether it is a folder, and its pictures; those that cannot be read become rows of ``broken``."""
    from pixfit import images

    if alpha not in ("white", "keep", "drop"):
        fail(f"--alpha is white, keep or drop, got {alpha!r}")
    span = None if value_range is None else (value_range[0], value_range[1])
    if Path(picture).is_dir():

        def note(path: Path, error: images.ImageError) -> None:
            broken.append(_broken(path.stem, str(error)))

        found = images.load_folder(picture, alpha=alpha, max_pixels=max_pixels, value_range=span, on_error=note)
        return True, found
    return False, [images.load(picture, alpha=alpha, max_pixels=max_pixels, value_range=span)]


def _targets(output: Path | None, pictures: list[Image], folder: bool) -> list[Path | None]:
    """Where the model files go; checked before any work is done."""
    if output is None:
        return [None] * len(pictures)
    if folder:
        if output.exists() and not output.is_dir():
            fail(f"-o {output} is a file; for a folder of pictures give a folder")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"-o {output}: cannot be made ({error.strerror or error})")
        return [output / f"{image.name}.safetensors" for image in pictures]
    check_model_file(output)
    return [output]


def _fit_some(
    specs: list[Spec],
    store: Path,
    device: str,
    quiet: bool,
    *,
    names: list[str],
    recipe: str,
    again: bool,
    label: str | None = None,
) -> list[Result]:
    """Fits one spec, whose failure is an error, or several at once, where a failure is a result."""
    from pixfit import run
    from pixfit.store import Store

    chosen = run.choose_device(device)
    for spec, name in zip(specs, names, strict=True):
        found = None if again else Store(store).get(spec)
        if found is not None and found.status.finished:
            say(quiet, f"{name}: taken from {store}, where it was fitted before; --again fits it anew")
    with bar(quiet, label or names[0] or "fit") as show:

        def on_progress(at: Progress) -> None:
            psnr = "" if at.psnr is None else f", {at.psnr:.1f} dB"
            show(at.fraction, f"step {at.step}{psnr}" if at.stage == "fitting" else "scoring")

        options: dict[str, Any] = {
            "device": chosen, "on_progress": on_progress, "recipe": recipe, "again": again,
            "names": {spec.id: name for spec, name in zip(specs, names, strict=True)},
        }  # fmt: skip
        return (
            run.fit(specs, Store(store), **options) if len(specs) > 1 else [run.fit(specs[0], Store(store), **options)]
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
        emit(reports[0] if single else reports)
    else:
        for report in reports:
            if report["status"] != "failed":
                _print_report(report)
    for report, remedy in zip(reports, remedies, strict=True):
        if report["status"] == "failed":
            print(f"pixfit: {report['stop_reason']}", file=sys.stderr)
        elif remedy:
            print(f"pixfit: {report['status']} ({report['stop_reason']}): {remedy}", file=sys.stderr)
    statuses = {report["status"] for report in reports}
    if "cancelled" in statuses:
        raise typer.Exit(130)
    if "failed" in statuses or (single and statuses & {"diverged", "collapsed"}):
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
    steps = f"{report['steps']} step{'' if report['steps'] == 1 else 's'}"
    lines = [
        ("fit", f"{report['id']}  {report['recipe']}, {report['width']}×{report['height']}×{report['channels']}"),
        *([("picture", report["name"])] if report.get("name") else []),
        ("ended", f"{report['status']} ({report['stop_reason']}) after {steps}"),
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
