"""The picture as a value: samples, name, source bit depth and content hash."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

__all__ = ["ALPHA_POLICIES", "PEAKS", "Image", "ImageError", "to_unit"]

ALPHA_POLICIES = ("white", "keep", "drop")
PEAKS = {8: 255, 16: 65535}
_HASH_CHUNK = 1 << 22  # samples converted at a time while hashing
_PREVIEW_SIDE = 2048  # the notebook preview takes every k-th pixel so that no side exceeds this


class ImageError(ValueError):
    """A picture could not be read, made or written; the message is one line that says what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A picture. Equality and ``hash()`` go by content (:attr:`hash`), not by name or notes.

    Args:
        data: float32 ``(C, H, W)`` in ``[0, 1]``; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        name: free text; does not enter the hash.
        bit_depth: of the source's samples: 8, 16, or 32 (float).
        alpha: the policy under which it was read: ``"white"`` (composited on white), ``"keep"`` or ``"drop"``.
        notes: one-line statements of what reading did, such as ``"alpha composited on white"``.

    Raises:
        ImageError: wrong dtype, shape, bit depth or alpha policy; samples not finite or outside ``[0, 1]``.
    """

    data: torch.Tensor
    name: str = ""
    bit_depth: int = 8
    alpha: str = "white"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        data = self.data
        if data.dtype != torch.float32 or data.ndim != 3 or not 1 <= data.shape[0] <= 4 or data.numel() == 0:
            raise ImageError(
                f"image data must be float32 (C, H, W) with C from 1 to 4 and no empty side, "
                f"got {str(data.dtype).removeprefix('torch.')} {tuple(data.shape)}; use Image.from_array to convert"
            )
        if self.bit_depth not in (8, 16, 32):
            raise ImageError(f"bit_depth must be 8, 16 or 32, got {self.bit_depth!r}")
        if self.alpha not in ALPHA_POLICIES:
            raise ImageError(f"alpha must be one of {', '.join(ALPHA_POLICIES)}, got {self.alpha!r}")
        low, high = (float(bound) for bound in torch.aminmax(data.detach()))
        if not (low >= 0.0 and high <= 1.0):  # also true for NaN
            raise ImageError(
                f"image data must be finite and in [0, 1], found {_range_text(low, high)}; clamp or rescale"
            )

    @property
    def channels(self) -> int:
        """Number of channels C, alpha included."""
        return int(self.data.shape[0])

    @property
    def height(self) -> int:
        """Rows H."""
        return int(self.data.shape[1])

    @property
    def width(self) -> int:
        """Columns W."""
        return int(self.data.shape[2])

    @property
    def pixels(self) -> int:
        """H·W."""
        return self.height * self.width

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 over decoded samples at source bit depth, shape, bit depth and alpha policy.

        Samples that do not lie on the grid of the stated bit depth are hashed as float32, so pictures that
        differ at all never share a hash.
        """
        peak = PEAKS.get(self.bit_depth)
        if peak is not None and not all(_on_grid(chunk, peak) for chunk in self._chunks()):
            peak = None
        kind = "float32" if peak is None else f"uint{self.bit_depth}"
        header = f"pixfit image 1 {kind} {self.channels} {self.height} {self.width} {self.bit_depth} {self.alpha}\n"
        digest = hashlib.sha256(header.encode())
        for chunk in self._chunks():
            if peak is None:
                samples = (chunk + np.float32(0.0)).astype("<f4")  # -0.0 counts as 0.0
            else:
                samples = np.rint(chunk * np.float32(peak)).astype(f"<u{self.bit_depth // 8}")
            digest.update(samples.tobytes())
        return digest.hexdigest()

    def canonical_value(self) -> dict[str, Any]:
        """What identifies the picture, for hashing into ids: no name, no notes."""
        return {
            "hash": self.hash,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "bit_depth": self.bit_depth,
        }

    @classmethod
    def from_array(
        cls,
        array: np.ndarray[Any, Any] | torch.Tensor,
        name: str = "",
        bit_depth: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Image:
        """Make an image from samples in memory.

        Args:
            array: a torch tensor ``(C, H, W)`` or ``(H, W)``, or a numpy array ``(H, W, C)`` or ``(H, W)``;
                uint8, uint16 or bool over their full range, or floats in ``[0, 1]``.
            name: free text.
            bit_depth: 8, 16 or 32; by default that of the dtype (floats: 32).
            value_range: ``(lo, hi)`` maps lo..hi to 0..1 instead of the dtype's own range; any real dtype.

        Raises:
            ImageError: a shape, dtype or value that does not fit the above.
        """
        if isinstance(array, torch.Tensor):
            tensor = array.detach().cpu()
            samples: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            layout = "(C, H, W)"
        else:
            samples = np.asarray(array)
            samples = np.moveaxis(samples, -1, 0) if samples.ndim == 3 else samples
            layout = "(H, W, C)"
        if samples.ndim == 2:
            samples = samples[None]
        if samples.ndim != 3 or not 1 <= samples.shape[0] <= 4 or samples.size == 0:
            raise ImageError(
                f"expected {layout} or (H, W) with 1 to 4 channels and no empty side, got {tuple(array.shape)}"
            )
        unit, depth = to_unit(samples, value_range)
        return cls(torch.from_numpy(unit), name=name, bit_depth=depth if bit_depth is None else bit_depth)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        kind = "float" if self.bit_depth == 32 else f"{self.bit_depth}-bit"
        return f"Image({name}{self.width}x{self.height}, {self.channels} channels, {kind})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self is other or (self.data.shape == other.data.shape and self.hash == other.hash)

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def _repr_png_(self) -> bytes:
        from pixfit.images.encoders import PngEncoder
        from pixfit.images.quantise import quantise

        step = math.ceil(max(self.height, self.width) / _PREVIEW_SIDE)
        rows = quantise(self.data[:, ::step, ::step], 8)
        stream = io.BytesIO()
        encoder = PngEncoder(stream, width=rows.shape[1], height=rows.shape[0], channels=rows.shape[2], bit_depth=8)
        encoder.write(rows)
        encoder.finish()
        return stream.getvalue()

    def _chunks(self) -> Iterator[np.ndarray[Any, Any]]:
        flat = self.data.detach().reshape(-1)
        for start in range(0, flat.numel(), _HASH_CHUNK):
            yield flat[start : start + _HASH_CHUNK].cpu().numpy()


def to_unit(
    samples: np.ndarray[Any, Any], value_range: tuple[float, float] | None = None
) -> tuple[np.ndarray[Any, Any], int]:
    """Samples of any real dtype as a fresh contiguous float32 array in ``[0, 1]`` and their bit depth.

    Raises:
        ImageError: not real numbers, not finite, or outside the range.
    """
    dtype = samples.dtype
    if dtype.kind not in "buif":
        raise ImageError(f"samples must be real numbers, got dtype {dtype}")
    if value_range is None and dtype in (np.uint8, np.uint16, np.bool_):
        out = np.empty(samples.shape, np.float32)
        peak = np.float32(1 if dtype == np.bool_ else np.iinfo(dtype).max)
        np.divide(samples, peak, out=out, casting="unsafe")
        return out, 16 if dtype == np.uint16 else 8
    low, high = float(samples.min()), float(samples.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("samples must be finite, found NaN or infinity; repair or mask them first")
    if value_range is None:
        if dtype.kind != "f":
            raise ImageError(f"{dtype} samples have no agreed white level; give value_range=(black, white)")
        if low < 0.0 or high > 1.0:
            raise ImageError(
                f"float samples must lie in [0, 1], found {_range_text(low, high)}; give value_range=(black, white)"
            )
        # + 0.0 turns -0.0 into 0.0, and the copy detaches the image from the caller's array
        return np.ascontiguousarray(samples.astype(np.float32) + np.float32(0.0)), 32
    black, white = (float(bound) for bound in value_range)
    if not (math.isfinite(black) and math.isfinite(white) and black < white):
        raise ImageError(f"value_range must be (black, white) with black < white, got {value_range!r}")
    if low < black or high > white:
        raise ImageError(f"samples must lie in value_range [{black:g}, {white:g}], found {_range_text(low, high)}")
    scaled = (samples.astype(np.float64) - black) / (white - black)
    return np.ascontiguousarray(np.clip(scaled, 0.0, 1.0).astype(np.float32)), 32


def _range_text(low: float, high: float) -> str:
    return "NaN" if math.isnan(low) or math.isnan(high) else f"values from {low:.6g} to {high:.6g}"


def _on_grid(chunk: np.ndarray[Any, Any], peak: int) -> bool:
    scale = np.float32(peak)
    return bool(np.array_equal(np.rint(chunk * scale) / scale, chunk))
