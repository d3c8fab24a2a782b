"""What a fit gave: a frozen value with its spec, how it ended, its curves, weights and picture."""

from __future__ import annotations

import base64
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixfit import images
from pixfit.problem import Problem
from pixfit.spec import Spec

__all__ = ["Result", "Status", "json_number"]


class Status(enum.Enum):
    """How a fit ended. `remedy` says what to do about it."""

    DONE = "done"
    STOPPED = "stopped"
    OUT_OF_BUDGET = "out_of_budget"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def remedy(self) -> str:
        return _REMEDIES[self]

    @property
    def finished(self) -> bool:
        """Whether running the same fit again would give the same end; false for failed and cancelled fits."""
        return self not in (Status.FAILED, Status.CANCELLED)


_REMEDIES = {
    Status.DONE: "",
    Status.STOPPED: "",
    Status.OUT_OF_BUDGET: "the budget ended before the stopping rule was met; raise the budget or lower the target",
    Status.DIVERGED: "the loss became infinite; lower optimiser.lr, or set optimiser.clip_norm=1",
    Status.COLLAPSED: "the network fell to about one colour; lower optimiser.lr, warm up, or use fewer layers",
    Status.FAILED: "an error ended it; the message says which",
    Status.CANCELLED: "it was interrupted; run the same command again to go on",
}


@dataclass(frozen=True, eq=False)
class Result:
    """One finished, stopped or failed fit.

    Args:
        spec: what was fitted.
        status: how it ended, with ``reason`` as the limit, rule or error that ended it.
        weights: the network's tensors by name (parameters and fixed buffers): those the spec's estimate chose. Empty
            for a failed fit.
        steps, epochs: updates made, passes over the samples completed.
        seconds, process_seconds: of wall and of process time in the training loop, synchronised with the device;
            ``evaluation_seconds`` of wall time went to watching and scoring and is not in them.
        curves: ``loss`` (steps,), the loss before each step in the network's target range; ``psnr_step`` (K,) and
            ``psnr`` (K,), the PSNR in dB against the truth on a fixed sample of pixels, where the truth was at hand;
            ``psnr_filled`` (K,), the same with known pixels put in, where the picture has holes and no noise;
            where the spec's estimate looks at held-out pixels, ``held_out_step``, ``held_out_loss`` (the spec's loss
            there, as in training) and ``held_out_psnr`` (L,), of the weights that would be the answer without it.
        kept: weights at the steps that were asked for, by step.
        metrics: ``psnr``, ``psnr_8bit``, ``ssim`` against the truth over all pixels, and ``psnr_measured`` against the
            fitted samples; what could not be computed is absent.
        estimate: the picture (C, H, W) that the weights give at the original size, not clamped; None until rendered.
            With the spec's estimate `AveragedOutput` it is a picture of its own, kept beside the weights.
        spread: (C, H, W), how sure the estimate `PosteriorMean` is at each value: the standard deviation of what it
            averaged, in units of pixels; None with other estimates.
        device, kernel, threads, versions: what it ran on.
    """

    spec: Spec
    status: Status
    reason: str
    weights: Mapping[str, Tensor]
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    process_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    estimate: Tensor | None = None
    spread: Tensor | None = None
    device: str = "cpu"
    kernel: str = "torch"
    threads: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def psnr(self) -> float | None:
        """Against the truth, over all pixels, in dB; infinite when equal; None where the truth is not at hand."""
        return self.metrics.get("psnr")

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return self.spec.model.parameters_count(out_features=self.spec.problem.shape[0])

    @property
    def values_ratio(self) -> float:
        """Parameters per value of the picture (pixels × channels). Above about a half a good PSNR says little."""
        channels, height, width = self.spec.problem.shape
        return self.parameters / (channels * height * width)

    @property
    def pictures(self) -> list[Tensor]:
        """What the weights give: windows (C, H, W) on `estimate`, one for each picture; none where it is None."""
        if self.estimate is None:
            return []
        return self._cut(self.estimate)

    def _cut(self, flat: Tensor) -> list[Tensor]:
        sizes = self.spec.model.sizes
        if not sizes:
            return [flat]
        parts = torch.split(flat, [height * width for height, width in sizes], dim=-1)
        return [part.view(-1, *size) for part, size in zip(parts, sizes, strict=True)]

    def _whole(self, flat: Tensor) -> Tensor:
        """As one picture: of a gallery a contact sheet."""
        return images.contact_sheet(self._cut(flat)) if self.spec.model.sizes else flat

    def save_image(self, path: str | Path, *, bit_depth: int | None = None) -> None:
        """Writes the fitted picture at its original size, or a sheet of all. Raises ValueError where there is none.

        Args:
            path: the suffix chooses the format, see `pixfit.images.save`.
            bit_depth: by default 16 for PNG and TIFF of a picture deeper than 8 bits, 32 for .npy, otherwise 8.
        """
        if self.estimate is None:
            raise ValueError(
                f"this fit has no picture: it is {self.status.value} ({self.reason}). {self.status.remedy}"
            )
        if bit_depth is None and Path(path).suffix.lower() in (".png", ".tif", ".tiff"):
            bit_depth = 16 if self.spec.plain["problem"]["image"]["bit_depth"] > 8 else 8
        images.save(self._whole(self.estimate), path, bit_depth=bit_depth)

    def summary(self) -> dict[str, Any]:
        """What a table or JSON says of it; an infinite PSNR is null beside ``"lossless": true``."""
        channels, height, width = self.spec.problem.shape
        scores = {name: json_number(self.metrics.get(name)) for name in ("psnr", "psnr_8bit", "ssim")}
        return {
            "id": self.id,
            "status": self.status.value,
            "stop_reason": self.reason,
            **scores,
            "lossless": math.inf in (self.metrics.get("psnr"), self.metrics.get("psnr_8bit")),
            "seconds": self.seconds,
            "process_seconds": self.process_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "steps": self.steps,
            "epochs": self.epochs,
            "parameters": self.parameters,
            "values_ratio": self.values_ratio,
            "width": width,
            "height": height,
            "channels": channels,
            "device": self.device,
            "kernel": self.kernel,
        }

    def __repr__(self) -> str:
        psnr = "" if self.psnr is None else f", {self.psnr:.2f} dB"
        return f"Result({self.id}, {self.status.value}{psnr}, {self.steps} steps, {self.seconds:.1f} s)"

    def _repr_png_(self) -> bytes | None:
        if self.estimate is None:
            return None
        return images.Image(self._whole(self.estimate).clamp(0, 1).float().cpu())._repr_png_()

    def _repr_html_(self) -> str:
        """The picture, its error map and the curve, for notebooks."""
        from pixfit import plots

        parts = []
        if self.estimate is not None:
            parts.append(("fit", self._repr_png_()))
            if isinstance(self.spec.problem, Problem):
                shown, truth = self._whole(self.estimate), self._whole(self.spec.problem.image.data)
                parts.append(("error × 10", plots.error_map(shown, truth)))
        if self.spread is not None:
            parts.append(("spread × 10", images.Image((10 * self.spread).clamp(0, 1))._repr_png_()))
        if len(self.curves.get("loss", ())):
            parts.append(("", plots.png(plots.fit_curve(self))))
        figures = "".join(
            f'<figure style="display:inline-block;margin:4px"><img style="max-height:260px" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}"><figcaption>{name}</figcaption></figure>'
            for name, data in parts
            if data is not None
        )
        return f"<div>{figures}<div><code>{self!r}</code></div></div>"


def json_number(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
