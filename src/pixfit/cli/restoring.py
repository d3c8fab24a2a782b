"""The commands that restore one picture: ``pixfit restore denoise``, ``inpaint``, ``upscale`` and ``deblur``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixfit.cli.options import MAX_PIXELS, Device, Json, MaxPixels, Quiet, bar, command, emit, fail, say

if TYPE_CHECKING:
    from pixfit.images import Image
    from pixfit.restore import Progress, Restored

__all__ = ["deblur", "denoise", "inpaint", "upscale"]

_PREVIEW_EVERY = 3.0  # seconds
_LONG = 60.0  # seconds of work that are announced

_Picture = Annotated[str, typer.Argument(metavar="IMAGE", help="The picture to restore.")]
_Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="Picture to write: .png, .tif, .jpg, .webp or .npy.")
]
_Truth = Annotated[
    Path | None, typer.Option(metavar="CLEAN", help="The true picture, for reporting only; it changes nothing.")
]
_Preview = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Picture that shows the state, replaced every few seconds.")
]
_Runs = Annotated[int, typer.Option(min=1, max=64, help="Fits that are averaged: slower and better.")]
_Updates = Annotated[
    int | None, typer.Option(min=1, help="Updates of a fit at most; by default by the picture's size.")
]
_NoBlend = Annotated[bool, typer.Option("--no-blend", help="The network's picture alone, without a classical part.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of the networks and the held-out pixels.")]
_Precision = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="Number format of products; auto takes bfloat16 where the processor is faster with it.",
    ),
]
_Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Folder that keeps finished fits: the same command goes on where an interrupted one ended.",
        show_default="nothing is kept",
    ),
]


@command
def denoise(
    picture: _Picture,
    output: _Output,
    noise: Annotated[
        str,
        typer.Option(
            metavar="auto|white|impulse", help="Every value is a little wrong, or some are wholly (salt and pepper)."
        ),
    ] = "auto",
    sigma: Annotated[
        float | None,
        typer.Option(min=0, max=255, help="Standard deviation of white noise, of 255.", show_default="estimated"),
    ] = None,
    stop: Annotated[
        str,
        typer.Option(
            metavar="held-out|sure",
            help="What ends the fit: pixels that it does not see, or Stein's risk estimate, in twice the time.",
        ),
    ] = "held-out",
    held_out: Annotated[
        str,
        typer.Option(
            metavar="auto|pixels|squares",
            help="What tells when to stop: single pixels, or squares of them for noise that neighbours share.",
        ),
    ] = "auto",
    control: Annotated[
        str,
        typer.Option(
            metavar="nlm|bm3d",
            help="What the answer is blended with: non-local means, or BM3D, better, if you have installed bm3d.",
        ),
    ] = "nlm",
    no_blend: _NoBlend = False,
    runs: _Runs = 1,
    steps: _Updates = None,
    truth: _Truth = None,
    preview: _Preview = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    store: _Store = None,
    device: Device = "auto",
    precision: _Precision = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Removes noise. It stops by itself, by pixels that it holds out.

    Salt and pepper are noticed, and removed in another way: what they struck is filled in.

    JPEG and resizing smear noise over neighbouring pixels. Where that shows, whole squares are held out: such noise is
    harder to tell from the picture, and more of it stays.

    Example:  pixfit restore denoise noisy.png -o clean.png
              pixfit restore denoise noisy.png -o clean.png --sigma 25 --runs 2 --preview now.png
    """
    from pixfit import restore

    image = _load(picture, output, max_pixels, quiet)

    def work(**options: Any) -> Restored:
        level = None if sigma is None else sigma / 255
        return restore.denoise(
            image, noise=noise, sigma=level, stop=stop.replace("-", "_"), held_out=held_out, control=control,
            blend=not no_blend, **options,
        )  # fmt: skip

    options = _options(runs, steps, seed, device, precision, store)
    _restore(work, options, image, output, truth, preview, max_pixels, as_json=as_json, quiet=quiet)


@command
def inpaint(
    picture: _Picture,
    output: _Output,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="M", help="Picture of the same size: white is known, black is to be filled."),
    ] = None,
    no_blend: _NoBlend = False,
    runs: _Runs = 1,
    steps: _Updates = None,
    truth: _Truth = None,
    preview: _Preview = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    store: _Store = None,
    device: Device = "auto",
    precision: _Precision = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fills missing pixels and leaves known ones as they are. Without --mask, what is transparent is missing.

    Example:  pixfit restore inpaint scratched.png -o whole.png --mask mask.png
              pixfit restore inpaint erased.png -o whole.png
    """
    from pixfit import restore

    image = _load(picture, output, max_pixels, quiet, keep_alpha=True)
    if mask is None and image.channels in (1, 3):
        fail(f"{picture} has no transparency that says what is missing; give --mask, a picture that is black there")
    known = None if mask is None else _load_mask(mask, image, max_pixels, quiet)

    def work(**options: Any) -> Restored:
        return restore.inpaint(image, known, blend=not no_blend, **options)

    options = _options(runs, steps, seed, device, precision, store)
    _restore(work, options, image, output, truth, preview, max_pixels, as_json=as_json, quiet=quiet)


@command
def upscale(
    picture: _Picture,
    output: _Output,
    factor: Annotated[int, typer.Option(min=2, max=8, help="How many times larger.")],
    runs: _Runs = 1,
    steps: _Updates = None,
    truth: _Truth = None,
    preview: _Preview = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    store: _Store = None,
    device: Device = "auto",
    precision: _Precision = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Makes a small picture larger, so that Lanczos' filter makes the small one of it again.

    Example:  pixfit restore upscale small.png -o large.png --factor 4
    """
    from pixfit import restore

    image = _load(picture, output, max_pixels, quiet)
    if image.pixels * factor**2 > max_pixels:
        fail(f"the result would have {image.pixels * factor**2} pixels; --max-pixels allows {max_pixels}")

    def work(**options: Any) -> Restored:
        return restore.upscale(image, factor, **options)

    options = _options(runs, steps, seed, device, precision, store)
    _restore(work, options, image, output, truth, preview, max_pixels, as_json=as_json, quiet=quiet)


@command
def deblur(
    picture: _Picture,
    output: _Output,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The blur's kernel: a grey picture, or a .npy array.")
    ] = None,
    sigma_blur: Annotated[
        float | None, typer.Option(help="Or: a Gaussian blur of so many pixels of standard deviation.")
    ] = None,
    no_blend: _NoBlend = False,
    runs: _Runs = 1,
    steps: _Updates = None,
    truth: _Truth = None,
    preview: _Preview = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    store: _Store = None,
    device: Device = "auto",
    precision: _Precision = "auto",
    seed: _Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Undoes a blur that is known.

    Example:  pixfit restore deblur blurred.png -o sharp.png --sigma-blur 1.6
              pixfit restore deblur blurred.png -o sharp.png --kernel motion.png
    """
    from pixfit import operators, restore

    if (kernel is None) == (sigma_blur is None):
        fail("what blurred the picture? give either --kernel FILE or --sigma-blur PIXELS")
    if kernel is not None:
        blur = operators.read_kernel(kernel)
    else:
        assert sigma_blur is not None
        blur = operators.gaussian_kernel(sigma_blur)
    image = _load(picture, output, max_pixels, quiet)

    def work(**options: Any) -> Restored:
        return restore.deblur(image, blur, blend=not no_blend, **options)

    options = _options(runs, steps, seed, device, precision, store)
    _restore(work, options, image, output, truth, preview, max_pixels, as_json=as_json, quiet=quiet)


def _load(picture: str, output: Path, max_pixels: int, quiet: bool, *, keep_alpha: bool = False) -> Image:
    """The picture, and a check of the output's name before any work is done. JPEG files have no alpha channel."""
    from pixfit import images

    drops = output.suffix.lower() in (".jpg", ".jpeg") and not keep_alpha
    image = images.load(picture, alpha="white" if drops else "keep", max_pixels=max_pixels)
    images.check_writable(output, width=image.width, height=image.height)
    say(quiet, *(f"{picture}: {note}" for note in image.notes))
    return image


def _options(
    runs: int, steps: int | None, seed: int, device: str, precision: str, folder: Path | None
) -> dict[str, Any]:
    from pixfit.store import Store

    store = None if folder is None else Store(folder)
    return {"runs": runs, "steps": steps, "seed": seed, "device": device, "precision": precision, "store": store}


def _load_mask(path: Path, image: Image, max_pixels: int, quiet: bool) -> Any:
    from pixfit import images

    grey = images.load(path, alpha="white", max_pixels=max_pixels).data.mean(dim=0)
    if grey.shape != image.data.shape[1:]:
        fail(
            f"{path}: the mask is {grey.shape[1]}×{grey.shape[0]}, the picture {image.width}×{image.height}; both must "
            "have one size"
        )
    between = int(((grey > 0) & (grey < 1)).sum())
    if between:
        say(quiet, f"{path}: {between} pixels are neither black nor white; from half grey on they count as white")
    return grey >= 0.5


def _restore(
    work: Callable[..., Restored],
    options: dict[str, Any],
    image: Image,
    output: Path,
    truth: Path | None,
    preview: Path | None,
    max_pixels: int,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from pixfit import images

    clean = None if truth is None else images.load(truth, alpha="drop", max_pixels=max_pixels)
    if preview is not None:
        images.check_writable(preview, width=image.width, height=image.height)
        if preview.resolve() == output.resolve():
            fail(f"--preview and -o are both {output}; give the preview a name of its own")
    with bar(quiet, image.name or "restore") as show:
        done = work(**options, truth=clean, on_progress=_teller(show, preview, quiet))
    images.save(done.image, output)
    say(quiet, *done.notes)
    scores = {} if clean is None else done.scores(clean)
    report = {
        "task": done.task, "status": done.status, "stop_rule": done.stop_rule, "stop_step": done.stop_step,
        "steps": done.steps, "seconds": done.seconds, "file": str(output), **scores,
    }  # fmt: skip
    if as_json:
        from pixfit.result import json_number

        emit({**report, **{name: json_number(value) for name, value in scores.items()}})
    else:
        _print(done, report, clean)
    if done.status == "cancelled":
        say(quiet, f"interrupted: {output} is the best so far")
        raise typer.Exit(130)


def _teller(show: Callable[[float, str], None], preview: Path | None, quiet: bool) -> Callable[[Progress], None]:
    """What is told of the progress: the bar, the preview, and once what is ahead."""
    from pixfit import images

    written, announced = 0.0, False

    def tell(at: Progress) -> None:
        nonlocal written, announced
        if not announced and at.ahead is not None:
            announced = True
            if at.ahead > _LONG:
                say(
                    quiet,
                    f"{at.fits} {'fit' if at.fits == 1 else 'fits'} of up to {at.steps} steps: at most about "
                    f"{_duration(at.ahead)}; --steps lowers it, Ctrl-C keeps the best so far",
                )
        score = "" if at.score is None else f", score {at.score:.2f} dB (best {at.best:.2f})"
        fit = "" if at.fits == 1 else f"fit {at.fit} of {at.fits}, "
        show(at.fraction, f"{fit}step {at.step}{score}")
        if preview is not None and time.monotonic() - written >= _PREVIEW_EVERY:
            images.save(at.picture(), preview)
            written = time.monotonic()

    return tell


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _print(done: Restored, report: dict[str, Any], clean: Image | None) -> None:
    rule = {
        "held_out": "by the held-out pixels", "sure": "by the estimated risk", "steps": "after all steps",
        "classical": "without a fit",
    }  # fmt: skip
    ended = f"{done.status} {rule.get(done.stop_rule, '')}".strip()
    step = f"step {done.stop_step} of {done.steps} is taken"
    numbers = f" in {done.precision}" if done.steps else ""
    print(f"{'ended':<11} {ended}, {step}, {done.seconds:.1f} s{numbers}")
    if done.weight < 1:
        print(f"{'blend':<11} {done.weight:.2f} of the fit, {1 - done.weight:.2f} of the classical estimate")
    if done.noise is not None:
        grey = done.degraded.mean(dim=0).flatten().sort().values
        places = (float(done.degraded.mean()), *(float(grey[round(at * (len(grey) - 1))]) for at in (0.05, 0.95)))
        usual, dark, bright = (255 * done.noise.sigma(at) for at in places)
        span = f", {dark:.1f} in its dark parts and {bright:.1f} in its bright ones" if done.noise.slope else ""
        print(f"{'noise':<11} standard deviation {usual:.1f} of 255{span}")
    if clean is not None:
        names = {"psnr_degraded": "given", "psnr": "restored", "psnr_last": "last step", "psnr_oracle": "best step"}
        levels = [f"{name} {report[key]:.2f} dB" for key, name in names.items() if report[key] is not None]
        ssim = "" if report["ssim"] is None else f", SSIM {report['ssim']:.4f}"
        print(f"{'PSNR':<11} {', '.join(levels)}{ssim}")
    print(f"{'picture':<11} {report['file']}  {done.image.width}×{done.image.height}")
