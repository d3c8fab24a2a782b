"""The commands that look at recipes, finished fits, pictures and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixfit.cli.options import STORE, Json, Quiet, StoreDir, bar, command, emit, fail, say

__all__ = ["data_get", "data_list", "doctor", "gc", "ls", "show", "show_recipes"]


@command
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
            emit(listed)
        else:
            for key, sentence in listed.items():
                print(f"{key:<15} {sentence}")
        return
    spec = recipes.get(name)(Problem(images.load("coffee")))
    left_out = ("problem", "start") if spec.start.weights is None else ("problem",)
    emit({key: value for key, value in spec.plain.items() if key not in left_out})


@command
def ls(store: StoreDir = STORE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Lists the fits in the store, and those under way.

    Example:  pixfit ls
    """
    import dataclasses

    from pixfit.store import Store

    kept = Store(store)
    rows, flights = kept.rows(), kept.flights()
    if as_json:
        emit({"fits": rows, "in_flight": [dataclasses.asdict(flight) for flight in flights]})
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


@command
def show(
    identity: Annotated[str, typer.Argument(metavar="ID", help="An id from `pixfit ls`, or the beginning of one.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="MODEL", help="Also write its model file.")
    ] = None,
    store: StoreDir = STORE,
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
        fail(f"no fit in {store} begins with {identity!r}; `pixfit ls` lists them")
    if output is not None:
        modelfile.save(result, output)
    about = {"remedy": result.status.remedy, "threads": result.threads, "versions": dict(result.versions)}
    emit({**result.summary(), **about, "spec": result.spec.plain})


@command
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    store: StoreDir = STORE,
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
        emit(
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


@command
def doctor(store: StoreDir = STORE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Says what pixfit runs on here: versions, devices, the kernel and why, and what that kernel costs or gains.

    Example:  pixfit doctor
    """
    from pixfit import report

    found = report.doctor(store)
    if as_json:
        emit(found)
        return
    compiled = found.pop("kernels")
    for name, value in found.items():
        print(f"{name:<20} {value}")
    if compiled["compiler"]:
        print(f"{'compiled by':<20} {compiled['compiler']}")
    print(f"{'kernels here':<20} {', '.join(compiled['usable'])}: the variable PIXFIT_KERNEL names one")
    for name, reason in compiled["refused"].items():
        print(f"{'  not ' + name:<20} {reason}")
    print(f"{'speed':<20} {compiled['cost']}")


@command
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
        emit({"bundled": list(images.BUNDLED), "sets": sets, "folder": str(images.data_folder())})
        return
    print("bundled   " + ", ".join(images.BUNDLED))
    for name, row in sets.items():
        print(f"{name:<9} {row['title']}; {row['path'] or f'not on disk, `pixfit data get {name}` fetches it'}")


@command
def data_get(
    name: Annotated[str, typer.Argument(help="A set's name from `pixfit data list`.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Downloads a set, checks it, and says where it lies.

    Example:  pixfit data get kodak
    """
    from pixfit import images

    with bar(quiet, name) as show_progress:

        def progress(file: str, done: int, total: int | None) -> None:
            show_progress(done / total if total else 0.0, file)

        found = images.find_set(name, download=True, progress=progress)
    say(quiet, *found.notes)
    if as_json:
        emit({"name": name, "path": str(found.path), "files": [str(path) for path in found.files]})
    else:
        print(found.path)
