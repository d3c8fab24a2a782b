"""Write picture files: whole, or band by band. A file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from pixfit import files
from pixfit.images.encoders import PngEncoder, TiffEncoder
from pixfit.images.image import Image, ImageError
from pixfit.images.quantise import quantise

__all__ = ["BandWriter", "check_writable", "save"]

_DEPTHS = {
    ".png": (8, 16),
    ".tif": (8, 16, 32),
    ".tiff": (8, 16, 32),
    ".jpg": (8,),
    ".jpeg": (8,),
    ".webp": (8,),
    ".npy": (8, 16, 32),
}
_BAND_SUFFIXES = (".png", ".tif", ".tiff")
_MAX_SIDE = {".png": 2**31 - 1, ".tif": 2**32 - 1, ".jpg": 65535, ".webp": 16383}
_BAND_BYTES = 1 << 24
_JPEG_QUALITY = 95


class BandWriter:
    """Write a large PNG or TIFF top to bottom with memory for one band of rows; use it in a ``with`` statement.

    The file is written under a temporary name in the same folder and renamed when the block ends without an
    exception and all rows have come; otherwise the temporary file is removed.

    Args:
        path: ends in ``.png``, ``.tif`` or ``.tiff``; the folder must exist.
        width, height: in pixels.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        bit_depth: 8 or 16, for TIFF also 32 (float).

    Raises:
        ImageError: a setting outside the above, rows of the wrong shape, too many or too few rows, NaN, or a
            file that cannot be written.
    """

    def __init__(self, path: str | Path, *, width: int, height: int, channels: int, bit_depth: int = 8) -> None:
        self.path = Path(path)
        suffix = _check_target(self.path, bit_depth, _BAND_SUFFIXES)
        _check_size(self.path, width, height)
        if channels not in (1, 2, 3, 4):
            raise ImageError(f"{self.path}: channels must be from 1 to 4, got {channels}")
        self.width, self.height, self.channels, self.bit_depth = width, height, channels, bit_depth
        self._encoder_class = PngEncoder if suffix == ".png" else TiffEncoder
        self._encoder: PngEncoder | TiffEncoder | None = None
        self._file: contextlib.ExitStack | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        if self._file is not None:
            raise ImageError(f"{self.path}: a BandWriter writes one file once; make a new one")
        self._file = contextlib.ExitStack()
        with _os_errors_named(self.path):
            stream = self._file.enter_context(files.whole_file(self.path))
            size = {"width": self.width, "height": self.height, "channels": self.channels}
            try:
                self._encoder = self._encoder_class(stream, bit_depth=self.bit_depth, **size)
            except BaseException:
                self._file.__exit__(*sys.exc_info())
                raise
        return self

    def write(self, rows: torch.Tensor) -> None:
        """Append rows below those written so far: floats ``(C, h, W)``, clamped to ``[0, 1]`` and rounded."""
        if self._encoder is None:
            raise ImageError(f"{self.path}: write rows inside the with statement")
        if rows.ndim != 3 or rows.shape[0] != self.channels or rows.shape[2] != self.width:
            raise ImageError(f"{self.path}: rows must be ({self.channels}, h, {self.width}), got {tuple(rows.shape)}")
        count = int(rows.shape[1])
        if self._rows + count > self.height:
            raise ImageError(f"{self.path}: got {self._rows + count} rows for a height of {self.height}")
        step = max(1, _BAND_BYTES // (4 * self.width * self.channels))
        for start in range(0, count, step):
            band = quantise(rows[:, start : start + step], self.bit_depth)
            with _os_errors_named(self.path):
                self._encoder.write(band)
        self._rows += count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is None or self._file is None:
            return
        if error is not None:
            self._file.__exit__(kind, error, traceback)
            return
        with _os_errors_named(self.path), self._file:
            if self._rows != self.height:
                raise ImageError(f"{self.path}: got {self._rows} of {self.height} rows; nothing was written")
            encoder.finish()


def save(image: Image | torch.Tensor, path: str | Path, *, bit_depth: int | None = None) -> None:
    """Write a picture; the suffix chooses the format: .png .tif .tiff .jpg .jpeg .webp .npy.

    Values are clamped to ``[0, 1]`` and rounded to the nearest level, halves upwards. PNG, TIFF, WebP (lossless)
    and .npy keep every level; JPEG is written at quality 95 without chroma subsampling. The second and fourth
    channel are alpha. A .npy holds ``(H, W)`` or ``(H, W, C)``. The file appears under its name only when complete.

    Args:
        image: an :class:`Image`, or floats ``(C, H, W)`` or ``(H, W)``.
        path: the folder must exist; a file of that name is replaced.
        bit_depth: 8, 16 (PNG, TIFF, npy) or 32 (float; TIFF, npy). Default: the image's own where the format
            holds it, otherwise 8; a tensor: 8, and 32 in .npy.

    Raises:
        ImageError: unknown suffix, a depth, size or alpha channel that the format cannot hold, NaN, or a file that
            cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    data = image.data if isinstance(image, Image) else image
    data = data[None] if data.ndim == 2 else data
    if data.ndim != 3 or not 1 <= data.shape[0] <= 4 or data.numel() == 0:
        raise ImageError(f"{path}: expected (C, H, W) or (H, W) with 1 to 4 channels, got {tuple(data.shape)}")
    channels, height, width = (int(side) for side in data.shape)
    if bit_depth is None:
        own = image.bit_depth if isinstance(image, Image) else 32 if suffix == ".npy" else 8
        bit_depth = own if own in _DEPTHS.get(suffix, ()) else 8
    suffix = _check_target(path, bit_depth, tuple(_DEPTHS))
    _check_size(path, width, height)
    if suffix in _BAND_SUFFIXES:
        with BandWriter(path, width=width, height=height, channels=channels, bit_depth=bit_depth) as writer:
            writer.write(data)
        return
    if suffix in (".jpg", ".jpeg") and channels in (2, 4):
        raise ImageError(f"{path}: JPEG has no alpha channel; save as .png, or load with alpha='white' or 'drop'")
    rows = quantise(data, bit_depth)
    with _os_errors_named(path), files.whole_file(path) as stream:
        if suffix == ".npy":
            np.save(stream, rows[..., 0] if channels == 1 else rows, allow_pickle=False)
        else:
            stream.write(_encode_with_pillow(rows, suffix))


def check_writable(path: str | Path, *, width: int, height: int, bit_depth: int | None = None) -> None:
    """Raises ImageError now where `save` would after the work: a wrong suffix, folder, depth, or too large a side."""
    path = Path(path)
    if bit_depth is None:
        bit_depth = 32 if path.suffix.lower() == ".npy" else 8
    _check_target(path, bit_depth, tuple(_DEPTHS))
    _check_size(path, width, height)


def _encode_with_pillow(rows: np.ndarray[Any, Any], suffix: str) -> bytes:
    from PIL import Image as PillowImage

    picture = PillowImage.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows)
    buffer = io.BytesIO()
    if suffix == ".webp":
        picture = picture.convert("RGBA" if picture.mode == "LA" else "RGB" if picture.mode == "L" else picture.mode)
        picture.save(buffer, "WEBP", lossless=True, exact=True)
    else:
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _check_target(path: Path, bit_depth: int, suffixes: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise ImageError(f"{path}: the suffix chooses the format and must be one of {' '.join(suffixes)}")
    if bit_depth not in _DEPTHS[suffix]:
        allowed = " or ".join(str(depth) for depth in _DEPTHS[suffix])
        raise ImageError(f"{path}: {suffix} holds a bit depth of {allowed}, not {bit_depth}")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder")
    return suffix


def _check_size(path: Path, width: int, height: int) -> None:
    suffix = {".tiff": ".tif", ".jpeg": ".jpg"}.get(path.suffix.lower(), path.suffix.lower())
    limit = _MAX_SIDE.get(suffix, 2**63)
    if not (1 <= width <= limit and 1 <= height <= limit):
        raise ImageError(f"{path}: {suffix} holds sides from 1 to {limit} pixels, got {width}x{height}")


@contextlib.contextmanager
def _os_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"{path}: could not be written ({error.strerror or error})") from error
