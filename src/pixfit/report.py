"""A finished fit as a page of pictures and numbers, and what this machine is."""

from __future__ import annotations

import html
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import pixfit
from pixfit import files, images, kernels, modelfile, plots, render
from pixfit.kernels import library
from pixfit.modelfile import Network
from pixfit.problem import Problem
from pixfit.result import Result

__all__ = ["doctor", "write_fit"]

_GAIN = "1.6 (six layers of 512) to 10 (two of 32)"  # over torch's path, measured with AVX-512 (docs/log.md)
_CROP = 96  # pixels of the source in the magnified detail


def write_fit(
    result: Result,
    folder: str | Path,
    *,
    title: str,
    zoom: int = 4,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Path:
    """Writes pictures, the curve, the model and ``index.html`` of a finished fit into a folder, and returns the page.

    Args:
        result: with its picture, of a problem whose truth is at hand.
        folder: made if it does not exist; files of these names are replaced.
        title: of the page.
        zoom: magnification of the whole picture and of the detail.
        progress: is told the fraction that is done.

    Raises:
        ValueError: a fit without a picture, or read back without its problem.
    """
    problem = result.spec.problem
    if result.estimate is None or not isinstance(problem, Problem):
        raise ValueError(f"there is nothing to show: this fit is {result.status.value} ({result.reason})")
    if result.spec.model.sizes:
        raise ValueError("a page shows one picture, and this fit has many; show Result.pictures by themselves")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth, network = problem.image.data, Network.of(result)
    size = modelfile.save(network, folder / "model.safetensors")
    images.save(problem.image, folder / "original.png", bit_depth=8)
    result.save_image(folder / "fit.png", bit_depth=8)
    files.write_bytes(folder / "error.png", plots.error_map(result.estimate, truth))
    curve = plots.fit_curve(result)
    files.write_bytes(folder / "curve.png", plots.png(curve))
    frame = render.write(
        network, folder / f"fit-{zoom}x.png", scale=zoom, bit_depth=8, progress=lambda f: progress(0.9 * f)
    )
    region = _busiest(truth, _CROP)
    _write_details(network, truth, region, zoom, folder)
    progress(1.0)
    rows = _rows(result, size)
    page = folder / "index.html"
    files.write_bytes(page, _page(title, rows, result, zoom, frame, region).encode("utf-8"))
    return page


def _write_details(network: Network, truth: Tensor, region: tuple[int, int, int, int], zoom: int, folder: Path) -> None:
    """One detail of the source magnified three ways: pixels repeated, bicubic, and by the network."""
    x, y, w, h = region
    detail = truth[None, :, y : y + h, x : x + w]
    ways = {
        "nearest": functional.interpolate(detail, scale_factor=zoom, mode="nearest")[0],
        "bicubic": functional.interpolate(detail, scale_factor=zoom, mode="bicubic", align_corners=False)[0],
        "network": render.render(network, region=(x, y, w, h), scale=zoom),
    }
    for name, picture in ways.items():
        images.save(picture.clamp(0, 1), folder / f"detail-{name}.png", bit_depth=8)


def _busiest(picture: Tensor, side: int) -> tuple[int, int, int, int]:
    """(x, y, w, h) of the square with the most gradient energy, on a coarse grid of places."""
    _, height, width = picture.shape
    side = min(side, height, width)
    energy = torch.zeros(height, width)
    grey = picture.mean(dim=0)
    energy[1:, :] += grey.diff(dim=0).square()
    energy[:, 1:] += grey.diff(dim=1).square()
    stride = max(1, side // 4)
    sums = functional.avg_pool2d(energy[None, None], side, stride)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return column * stride, row * stride, side, side


def _rows(result: Result, size: int) -> list[tuple[str, str]]:
    summary = result.summary()
    pixels = summary["width"] * summary["height"]

    def decibels(name: str) -> str:
        return "lossless" if summary[name] is None else f"{summary[name]:.2f} dB"

    return [
        ("picture", f"{summary['width']} × {summary['height']} pixels, {summary['channels']} channels"),
        ("network", f"{type(result.spec.model).__name__}, {summary['parameters']:,} parameters"),
        ("PSNR", f"{decibels('psnr')} ({decibels('psnr_8bit')} at 8 bits)"),
        ("SSIM", "not defined under 11 pixels" if summary["ssim"] is None else f"{summary['ssim']:.4f}"),
        ("parameters per pixel value", f"{summary['values_ratio']:.3f}"),
        ("model file", f"{size:,} bytes, {size * 8 / pixels:.2f} bits per pixel"),
        (
            "training",
            f"{summary['steps']} steps in {summary['seconds']:.1f} s on {summary['device']} ({summary['kernel']})",
        ),
        ("ended", f"{summary['status']} ({summary['stop_reason']})"),
        ("id", summary["id"]),
    ]


def _page(
    title: str,
    rows: list[tuple[str, str]],
    result: Result,
    zoom: int,
    frame: render.Frame,
    region: tuple[int, int, int, int],
) -> str:
    x, y, w, h = region

    def figure(name: str, caption: str) -> str:
        picture = f'<a href="{name}"><img src="{name}" alt="{html.escape(caption)}"></a>'
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"

    table = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    pictures = (
        figure("original.png", "the picture") + figure("fit.png", "the network's") + figure("error.png", "error × 10")
    )
    details = "".join(
        figure(f"detail-{name}.png", caption)
        for name, caption in (("nearest", "pixels repeated"), ("bicubic", "bicubic"), ("network", "the network"))
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #30343b; max-width: 68rem; margin: 2rem auto }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem }} figure {{ margin: 0; flex: 1 1 18rem }}
img {{ width: 100%; border-radius: 4px }} figcaption {{ color: #6b7280; font-size: 14px }}
th {{ text-align: left; font-weight: 500; padding-right: 2rem; color: #6b7280 }}
td {{ font-variant-numeric: tabular-nums }}
</style>
<h1>{html.escape(title)}</h1>
<div class="row">{pictures}</div>
<h2>How it went</h2>
<div class="row">{figure("curve.png", "PSNR on a sample of pixels, and the loss")}<table>{table}</table></div>
<h2>{zoom}× closer</h2>
<p>The {w}×{h} pixels at ({x}, {y}), magnified. Nobody told the network what lies between two pixels:
judge for yourself. The whole picture at {frame.width}×{frame.height} is
<a href="fit-{zoom}x.png">fit-{zoom}x.png</a>, rendered from
<a href="model.safetensors">model.safetensors</a> alone:
<code>pixfit render model.safetensors -o large.png --scale {zoom}</code></p>
<div class="row">{details}</div>
</html>
"""


def doctor(store: str | Path) -> dict[str, Any]:
    """What pixfit runs on: versions, devices, kernels and why, their measured speed, extras, folders.

    All values are strings or numbers, except those under ``kernels``: see `_compiled`.

    Raises:
        ValueError: ``PIXFIT_KERNEL`` names what cannot be used here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernel, loaded = kernels.kernel_name(device, 256), library.load() if device.type == "cpu" else None
    plain, chosen = _speed("torch"), _speed(kernel) if device.type == "cpu" else None
    extras = {"export": ("onnx", "onnxscript")}
    missing = [name for name, needs in extras.items() if any(importlib.util.find_spec(need) is None for need in needs)]
    return {
        "pixfit": pixfit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none found; fits run on the processor",
        "kernel": kernel if loaded is None else f"fused-{loaded.isa}",
        "why": f"{library.why()}; {_why(kernel)}" if loaded is None else library.why(),
        **({} if loaded is None else {"other fits": f"{kernel}: {_why(kernel)}"}),
        **({} if loaded is None else {"bfloat16": _bfloat16(loaded)}),
        "matrix products": f"{plain:.0f} GFLOP/s in torch"
        + ("" if chosen is None else f", {chosen:.0f} with {kernel}"),
        "kernels": _compiled(kernel),
        "extras missing": ", ".join(f'{name} (pip install "pixfit[{name}]")' for name in missing) or "none",
        "store": str(Path(store).resolve()),
        "pictures": str(images.data_folder()),
    }


def _compiled(kernel: str) -> dict[str, Any]:
    """Which compiled kernels run and why, and what the processor can do next to what torch makes of it, on one core.

    Speeds are GFLOP/s of float32 multiply-adds, and nanoseconds of one sine with its cosine. The limits are None where
    there is no compiled library to measure them.
    """
    loaded = library.load()
    meter = next(map(library.load, library.isas()), None)  # the best, whatever is chosen: it knows the limits
    with kernels.Crew(1):
        gflops, sincos = _speed(kernel if kernel == "torch-onednn" else "torch"), _sincos_time()
    cost = f"torch reaches {gflops:.0f} GFLOP/s in products and needs {sincos:.2f} ns for a sine with cosine"
    limits = (None, None) if meter is None else (meter.peak(0.2), meter.sincos_time(0.1))
    if meter is None:
        cost += f"; compiled kernels would fit {_GAIN} times faster"
    else:
        cost += f"; this processor can do {limits[0]:.0f} GFLOP/s and {limits[1]:.2f} ns (one core)"
    return {
        "path": "torch" if loaded is None else "compiled",
        "isa": None if loaded is None else loaded.isa,
        "compiler": None if loaded is None else loaded.compiler,
        "why": library.why(),
        "usable": [*library.isas(), "torch"],
        "refused": library.refused(),
        "torch_gflops": gflops,
        "torch_sincos_ns": sincos,
        "peak_gflops": limits[0],
        "sincos_ns": limits[1],
        "cost": cost,
    }


def _bfloat16(loaded: library.Library) -> str:
    if not loaded.products:
        return "not by these kernels"
    how = "by matrix units (AMX)" if loaded.products == 2 else "by dot products of vectors"
    taken = "recipes take it" if loaded.fast_bfloat16 else "slower than float32, so that only those who ask get it"
    return f"{how}; {taken}"


def _why(kernel: str) -> str:
    if kernel == "torch-onednn":
        return "oneDNN's float32 products passed the accuracy check here; used for layers of 48 or more features"
    if kernel == "torch":
        return "oneDNN's products are not available or did not pass the float32 accuracy check; torch's own are used"
    return "a GPU was found"


def _speed(kernel: str) -> float:
    """GFLOP/s of a 4096×256 by 256×256 product, the best of some rounds."""
    x, w = torch.randn(4096, 256), torch.randn(256, 256)
    best = float("inf")
    with kernels.fast_matmul(kernel):
        for _ in range(10):
            began = time.perf_counter()
            functional.linear(x, w)
            best = min(best, time.perf_counter() - began)
    return 2 * 4096 * 256 * 256 / best / 1e9


def _sincos_time() -> float:
    """Nanoseconds of one sine with its cosine in torch, in cache, the best of some rounds."""
    x = torch.rand(2**14)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        torch.sin(x)
        torch.cos(x)
        best = min(best, time.perf_counter() - began)
    return best / x.numel() * 1e9
