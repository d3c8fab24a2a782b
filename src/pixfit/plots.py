"""Arrays in, pictures and matplotlib figures out. No window is ever opened."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixfit import images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["error_map", "fit_curve", "png", "side_by_side"]

_INK, _ACCENT = "#30343b", "#3b6fb6"


def fit_curve(result: Any, *, seconds: bool = False) -> Figure:
    """Loss and PSNR of a `pixfit.Result` over its steps; two axes, the PSNR on the left."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    loss = result.curves["loss"]
    right = axes.twinx()
    right.semilogy(range(len(loss)), loss.clamp(min=1e-14), color="#c9ced6", linewidth=0.8, zorder=1)
    right.set_ylabel("loss", color="#8a919c")
    right.tick_params(colors="#8a919c")
    if "psnr" in result.curves:
        axes.plot(result.curves["psnr_step"], result.curves["psnr"], color=_ACCENT, linewidth=2, zorder=3)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("PSNR in dB", color=_ACCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in (axes, right):
        side.spines["top"].set_visible(False)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def error_map(estimate: Tensor, truth: Tensor, *, gain: float = 10.0) -> bytes:
    """PNG of the absolute error of two pictures (C, H, W), mean over channels, times ``gain``; black is no error."""
    error = (estimate.cpu().double().clamp(0, 1) - truth.cpu().double()).abs().mean(dim=0, keepdim=True) * gain
    return images.Image(error.clamp(0, 1).float())._repr_png_()


def side_by_side(*pictures: Tensor, gap: int = 8) -> Tensor:
    """Pictures (C, H, W) of one height in a row with white gaps; grey ones are shown as RGB."""
    height = pictures[0].shape[-2]
    if any(picture.shape[-2] != height for picture in pictures):
        raise ValueError(f"pictures of one height go side by side, got heights {[p.shape[-2] for p in pictures]}")
    colour = [picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture[:3] for picture in pictures]
    spaced = [part for picture in colour for part in (picture, torch.ones(3, height, gap))]
    return torch.cat(spaced[:-1], dim=2)
