"""The commands about many pictures in one network: ``pixfit memorize``, ``interpolate`` and ``neighbours``."""

from __future__ import annotations

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
    picture_of,
    say,
    say_kernel,
    settings_of,
    sides,
)

if TYPE_CHECKING:
    from pixfit.memorize import Neighbours, Scores, Walk
    from pixfit.result import Result
    from pixfit.run import Progress

__all__ = ["interpolate", "memorize", "neighbours"]

_NAMED = 5  # pictures that are named as the worst and the best

_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file of `pixfit memorize`.")]
_Size = Annotated[
    str | None, typer.Option(metavar="WxH", help="Size in pixels, instead of that of the pictures, at which they meet.")
]


@command
def memorize(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of pictures, of any number and sizes.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="MODEL", help="Model file to write.")] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="quick, bottleneck (to interpolate in), or exercise-published.")
    ] = "quick",
    code: Annotated[str, typer.Option(help="How pictures are told apart: binary, axis, ring or learned.")] = "binary",
    settings: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Fraction of each picture's pixels that is kept out of the loss; 0 for none.")
    ] = 0.1,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Fit copies of each picture, too: turns (flips and quarter turns), or crops.",
            show_default="none",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Budget in epochs, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Budget in updates, instead of the recipe's.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Budget in seconds, instead of the recipe's.")] = None,
    pages: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for curves, and pictures at some epochs.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="EPOCHS", help="Those epochs, such as 50,750.", show_default="1/16, 1/4 and all"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Fit anew even if the store has this fit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the full settings and the id, and stop.")] = False,
    alpha: Alpha = "white",
    max_pixels: MaxPixels = MAX_PIXELS,
    store: StoreDir = STORE,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fits one network to all pictures of a folder. It keeps the weights that do best on held-out pixels.

    An interrupted fit goes on where it ended when the same command is given again.

    Example:  pixfit memorize icons -o icons.safetensors --pages pages
              pixfit memorize icons -o published.safetensors --recipe exercise-published --alpha drop
    """
    from pixfit import images, memorize, modelfile, run
    from pixfit.stopping import Budget
    from pixfit.store import Store

    check_model_file(output)
    pictures = images.load_folder(folder, alpha=alpha, max_pixels=max_pixels)
    limits = (epochs, steps, seconds)
    budget = None if all(limit is None for limit in limits) else Budget(epochs=epochs, steps=steps, seconds=seconds)
    spec = memorize.spec(
        pictures, recipe=recipe, code=code, held_out=held_out, augment=augment, settings=settings_of(settings or []),
        budget=budget, seed=seed,
    )  # fmt: skip
    if dry_run:
        emit({"id": spec.id, "recipe": recipe, "spec": spec.plain})
        return
    record = memorize.record(spec, None if at is None else _epochs(at))
    say(quiet, *_notes(pictures))
    say_kernel(quiet)
    kept = Store(store)
    found = None if again else kept.get(spec)
    if found is not None and found.status.finished:
        if all(step in found.kept or step > found.steps for step in record.keep):
            say(quiet, f"{folder}: taken from {store}, where it was fitted before; --again fits it anew")
        else:
            say(quiet, f"{folder}: fitted anew, because {store} has it without the weights at the epochs of --at")
    with bar(quiet, folder.name) as show:
        result = run.fit(
            spec, kept, device=device, record=record, on_progress=lambda now: show(now.fraction, _told(now)),
            again=again, names={spec.id: folder.resolve().name}, recipe=recipe,
        )  # fmt: skip
    sound = result.status.value not in ("diverged", "collapsed", "cancelled")
    if output is not None and sound:
        modelfile.save(result, output)
    scores = memorize.scores(result) if result.pictures else None
    written = [] if pages is None or scores is None else memorize.write_pages(result, pages)
    report = {
        **_report(result, len(pictures), scores, recipe, code),
        "model": None if output is None or not sound else str(output),
        "pages": [str(path) for path in written],
    }
    if as_json:
        emit(report)
    else:
        _print(result, scores, report)
    if result.status.remedy:
        print(f"pixfit: {result.status.value} ({result.reason}): {result.status.remedy}", file=sys.stderr)
    if not sound:
        raise typer.Exit(130 if result.status.value == "cancelled" else 1)


@command
def interpolate(
    model: _Model,
    a: Annotated[str, typer.Argument(metavar="A", help="A picture's name, or its number from 0.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Strip of pictures; with .gif or .webp an animation.")
    ],
    space: Annotated[
        str, typer.Option(help="What is blended: pixels, hidden, bottleneck, code, arc (of a ring), or all of them.")
    ] = "code",
    steps: Annotated[int, typer.Option(min=2, help="Pictures on the way, both ends included.")] = 10,
    size: _Size = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shows what a network of many pictures has between two of them, and how far that is from blending their pixels.

    Example:  pixfit interpolate icons.safetensors apple-48 pear-48 -o strip.png --space all
              pixfit interpolate icons.safetensors 0 8 -o film.gif --steps 30 --size 256x256
    """
    from pixfit import memorize, modelfile, paths

    network = modelfile.load(model)
    ends = [picture_of(text, network.names) for text in (a, b)]
    spaces: Any = paths.spaces(network) if space == "all" else (space,)
    memorize.check_drawable(output)
    walks: list[Walk] = []
    with bar(quiet, "rendering") as show:
        for number, one in enumerate(spaces):
            show(number / len(spaces), one)
            walks.append(memorize.walk(network, ends[0], ends[1], one, steps=steps, size=sides(size)))
    width, height = memorize.draw(walks, output)
    if as_json:
        rows = {
            walk.space: {
                "from_alpha": walk.from_alpha.tolist(), "from_alpha_max": walk.farthest, "smoothness": walk.smoothness,
            }
            for walk in walks
        }  # fmt: skip
        emit({"file": str(output), "width": width, "height": height, "steps": steps, "spaces": rows})
        return
    print(f"{'space':<11} {'from alpha blending':<27} second differences")
    print(f"{'':<11} {'largest':<13} {'middle':<13}")
    for walk in walks:
        middle = float(walk.from_alpha[steps // 2])
        smooth = "" if walk.smoothness is None else f"{walk.smoothness:.3g}"
        print(f"{walk.space:<11} {walk.farthest:<13.3g} {middle:<13.3g} {smooth}")
    print(f"{output}  {width}×{height}")


@command
def neighbours(
    model: _Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PNG", help="Picture of the matrix of all pairs.")
    ] = None,
    of: Annotated[str | None, typer.Option(metavar="NAME", help="A picture whose neighbours are listed.")] = None,
    measure: Annotated[
        str, typer.Option(help="Of the matrix and of --of: cosine, euclidean or dot. Pairs are shown by all three.")
    ] = "cosine",
    embedding: Annotated[
        str | None,
        typer.Option(
            help="field: activations place by place; pooled: their mean.",
            show_default="field, of unequal sizes pooled",
        ),
    ] = None,
    layer: Annotated[str, typer.Option(help="Hidden layer: last, narrowest, or a number from 0.")] = "last",
    size: _Size = None,
    count: Annotated[int, typer.Option(min=1, help="Pairs, and neighbours of --of.")] = 3,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Says which pictures are alike to a network of many: pairs of distinct pictures, and those of the published rule.

    Example:  pixfit neighbours icons.safetensors -o matrix.png
              pixfit neighbours icons.safetensors --of apple-48 --count 10
    """
    from pixfit import files, memorize, modelfile, similarity

    if measure not in similarity.MEASURES:
        fail(f"--measure is {', '.join(similarity.MEASURES)}, got {measure!r}")
    if embedding not in (None, "field", "pooled"):
        fail(f"--embedding is field or pooled, got {embedding!r}")
    if output is not None and (output.suffix.lower() != ".png" or not output.parent.is_dir()):
        fail(f"-o {output}: the matrix is drawn as a .png file in a folder that exists")
    network, wanted = modelfile.load(model), sides(size)
    if embedding is None:
        sizes = network.model.sizes[: network.originals] if network.model.sizes else ()
        embedding = "field" if wanted is not None or len(set(sizes)) == 1 else "pooled"
    number = None if of is None else network.number(picture_of(of, network.names))
    if number is not None and number >= network.originals:
        fail(f"--of {of}: this is a copy of another picture, and copies are not compared; name the picture itself")
    found = memorize.neighbours(
        network, pooled=embedding == "pooled", size=wanted, count=count,
        layer=int(layer) if layer.isdecimal() else layer,  # type: ignore[arg-type]
    )  # fmt: skip
    (chosen,) = (one for one in found if one.measure == measure)
    if output is not None:
        files.write_bytes(output, chosen.drawn())
    report: dict[str, Any] = {
        "pictures": len(chosen.names), "embedding": embedding, "layer": layer,
        "measures": {one.measure: _measured(one) for one in found},
        "of": None if number is None else _nearest(chosen, number, count),
        "file": None if output is None else str(output),
    }  # fmt: skip
    if as_json:
        emit(report)
    else:
        _print_neighbours(report)


def _epochs(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        fail(f"--at takes epochs, such as 50,750; got {text!r}")
    return [int(part) for part in parts]


def _notes(pictures: list[Any]) -> list[str]:
    """What reading did, once for all pictures that it did it to."""
    counts: dict[str, int] = {}
    for picture in pictures:
        for note in picture.notes:
            counts[note] = counts.get(note, 0) + 1
    notes = [f"{count} of {len(pictures)} pictures: {note}" for note, count in counts.items()]
    if len({picture.channels for picture in pictures}) > 1:
        notes.append("the pictures have unequal channels; grey ones become coloured, opaque ones get an alpha channel")
    return notes


def _told(now: Progress) -> str:
    if now.stage != "fitting":
        return "scoring"
    if now.fitted is not None and now.held_out is not None:
        return f"step {now.step}, {now.fitted:.1f} dB, held out {now.held_out:.1f} dB"
    return f"step {now.step}" + ("" if now.psnr is None else f", {now.psnr:.1f} dB")


def _report(result: Result, pictures: int, scores: Scores | None, recipe: str, code: str) -> dict[str, Any]:
    """What `pixfit memorize` prints of so many pictures, as the keys of its JSON."""
    from pixfit.result import json_number

    summary = result.summary()
    levels: list[dict[str, Any]] = []
    means: dict[str, float | None] = {"psnr_fitted": None, "psnr_held_out": None, "psnr": None}
    if scores is not None:
        columns = dict(zip(means, (scores.fitted, scores.held_out, scores.whole), strict=True))
        means = {key: json_number(sum(values) / len(values)) for key, values in columns.items()}
        levels = [
            {"name": name, **{key: json_number(values[number]) for key, values in columns.items()}}
            for number, name in enumerate(scores.names)
        ]
    keys = (
        "steps", "epochs", "seconds", "process_seconds", "evaluation_seconds", "parameters", "values_ratio", "device",
        "kernel",
    )  # fmt: skip
    return {
        "id": result.id, "recipe": recipe, "code": code, "pictures": pictures,
        "copies": len(result.spec.model.sizes) - pictures,
        "status": summary["status"], "stop_reason": summary["stop_reason"], **means,
        **{key: summary[key] for key in keys}, "scores": levels,
    }  # fmt: skip


def _print(result: Result, scores: Scores | None, report: dict[str, Any]) -> None:
    pixels = result.spec.problem.shape[2]
    length = f"{report['steps']} steps, {report['epochs']:.4g} epochs"
    held = f"{report['pictures']} pictures" + (f" and {report['copies']} copies" if report["copies"] else "")
    lines = [
        ("memory", f"{report['id']}  {report['recipe']}, {held} of {pixels:,} pixels in all"),
        ("ended", f"{report['status']} ({report['stop_reason']}) after {length}"),
    ]
    if scores is not None:
        parts = {"psnr_fitted": "in the loss", "psnr_held_out": "held out", "psnr": "in all"}
        levels = [f"{report[key]:.2f} dB {name}" for key, name in parts.items() if report[key] is not None]
        lines.append(("PSNR", f"{', '.join(levels)}; means of the pictures"))
        key = "psnr" if report["psnr_held_out"] is None else "psnr_held_out"
        named = [(row["name"], row[key]) for row in (report["scores"][number] for number in scores.order())]
        texts = [name if level is None else f"{name} {level:.1f}" for name, level in named]
        count = min(_NAMED, len(texts) // 2)
        lines += [("worst", ", ".join(texts[:count])), ("best", ", ".join(texts[::-1][:count]))]
    lines.append(("parameters", f"{report['parameters']:,}, {report['values_ratio']:.3f} per pixel value"))
    lines.append(
        (
            "time",
            f"{report['seconds']:.1f} s training ({report['process_seconds']:.1f} s of processor), "
            f"{report['evaluation_seconds']:.1f} s scoring, on {report['device']} with {report['kernel']}",
        )
    )
    lines += [("model", report["model"])] if report["model"] else []
    lines += [("pages", f"{len(report['pages'])} in {Path(report['pages'][0]).parent}")] if report["pages"] else []
    for name, value in lines:
        print(f"{name:<11} {value}")


def _measured(found: Neighbours) -> dict[str, Any]:
    """One measure's numbers and pairs."""
    values = found.pairs

    def rows(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        names = found.names
        return [{"a": names[i], "b": names[j], "value": float(found.value(found.matrix[i, j]))} for i, j in pairs]

    return {
        "mean": float(values.mean()), "sd": float(values.std(correction=0)), "min": float(values.min()),
        "max": float(values.max()), "most_similar": rows(found.most), "least_similar": rows(found.least),
        "published_most_similar": rows(found.published_most), "published_least_similar": rows(found.published_least),
    }  # fmt: skip


def _nearest(found: Neighbours, number: int, count: int) -> dict[str, Any]:
    from pixfit import similarity

    others = similarity.nearest(found.matrix, number, count)
    rows = [{"name": found.names[one], "value": float(found.value(found.matrix[number, one]))} for one in others]
    return {"name": found.names[number], "measure": found.measure, "neighbours": rows}


def _print_neighbours(report: dict[str, Any]) -> None:
    print(f"{'embedding':<11} {report['embedding']} of the layer {report['layer']}, {report['pictures']} pictures")
    titles = {
        "most_similar": "most alike", "least_similar": "least", "published_most_similar": "most, by the published rule",
        "published_least_similar": "least, by the published rule",
    }  # fmt: skip
    for measure, found in report["measures"].items():
        name = "distance" if measure == "euclidean" else measure
        spread = f"mean {found['mean']:.4g}, sd {found['sd']:.4g}, {found['min']:.4g} to {found['max']:.4g}"
        print(f"{name:<11} {spread}")
        for key, title in titles.items():
            pairs = ", ".join(f"{pair['a']}–{pair['b']} {pair['value']:.4g}" for pair in found[key])
            print(f"{'':<11} {title}: {pairs or 'none'}")
    if report["of"] is not None:
        nearest = ", ".join(f"{one['name']} {one['value']:.4g}" for one in report["of"]["neighbours"])
        print(f"{'neighbours':<11} of {report['of']['name']} by {report['of']['measure']}: {nearest}")
    if report["file"]:
        print(f"{'matrix':<11} {report['file']}")
