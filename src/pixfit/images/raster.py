"""Decode PNG, JPEG, WebP, GIF, BMP, PPM/PGM/PBM, TGA and 8-bit TIFF through Pillow, at the file's own bit depth."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as PillowImage

from pixfit.images.image import ImageError
from pixfit.images.source import Source, check_pixels

__all__ = ["open_raster"]

# The plugin classes are called by name instead of PIL.Image.open: only the formats listed here can ever be tried, and
# PIL's process-wide MAX_IMAGE_PIXELS need not be changed for max_pixels to hold (the classes leave that check to open;
# GIF and WebP alone apply it themselves, so a GIF above 89 or a WebP above 178 megapixels is refused).
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "ppm": PpmImagePlugin.PpmImageFile,
    "tga": TgaImagePlugin.TgaImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
# 16-bit samples that Pillow would cut to their high bytes: the raw mode it announces, its channels, and the raw mode
# that yields the low bytes of the same samples. Grey and alpha come out as four plain bytes per pixel instead.
_TWO_HALVES = {
    "RGB;16B": (3, "RGB;16L"),
    "RGB;16L": (3, "RGB;16B"),
    "RGBA;16B": (4, "RGBA;16L"),
    "RGBA;16L": (4, "RGBA;16B"),
}
# Pillow modes to what is handed over; all others (palette, CMYK, YCbCr, ...) become RGB
_TARGET_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
_PPM_HEADER = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")


def open_raster(path: Path, kind: str, max_pixels: int) -> Source:
    """Read the header, check the size, decode.

    Args:
        path: the file.
        kind: a key of the plugin table: png, jpeg, webp, gif, bmp, ppm, tga or tiff.
        max_pixels: the largest width x height.

    Raises:
        ImageError: too large, or a layout that cannot be read at its own bit depth. Pillow's own exceptions pass
            through; the caller names the file and wraps them.
    """
    if kind == "webp":
        check_pixels(*_webp_size(path), max_pixels)  # Pillow allocates the canvas on opening
    if kind == "ppm":
        deep = _open_deep_ppm(path, max_pixels)
        if deep is not None:
            return deep
    try:
        with path.open("rb") as stream, path.open("rb") as again:
            picture = _PLUGINS[kind](stream)
            check_pixels(*picture.size, max_pixels)
            source = _decode(picture, again, kind)
            frames = _frames(picture, again, kind)
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise ImageError("has a frame larger than Pillow decodes in this format; convert it to PNG") from error
    if frames > 1:
        source.notes.insert(0, f"first of {frames} frames")
    return source


def _frames(picture: ImageFile.ImageFile, again: BinaryIO, kind: str) -> int:
    with contextlib.suppress(Exception):  # a damaged later frame does not spoil the first
        if kind in ("gif", "tiff"):  # counting seeks, which would undo the decoded first frame
            again.seek(0)
            picture = _PLUGINS[kind](again)
        return int(getattr(picture, "n_frames", 1))
    return 1


def _decode(picture: ImageFile.ImageFile, again: BinaryIO, kind: str) -> Source:
    raw_mode = _raw_mode(picture)
    deep = kind in ("png", "tiff") and "16" in raw_mode
    if deep and raw_mode in _TWO_HALVES:
        source = _two_halves(picture, again, kind, raw_mode)
    elif deep and kind == "png" and raw_mode == "LA;16B":
        _set_raw_mode(picture, "RGBA")
        picture.load()
        source = Source(picture.height, picture.width, 2, 16, lambda a, b: _band(picture, a, b).view(">u2"))
    elif picture.mode.startswith("I;16"):
        picture.load()
        source = Source(picture.height, picture.width, 1, 16, lambda a, b: _band(picture, a, b)[..., None])
    elif deep or picture.mode in ("I", "F"):
        raise ImageError(f"stores samples as {raw_mode or picture.mode}, which cannot be read at full depth; use PNG")
    else:
        return _eight_bit(picture, raw_mode)
    if source.channels in (1, 3) and "transparency" in picture.info:
        source = _with_key(source, picture.info["transparency"])
    source.orientation = _orientation(picture, source)
    if "icc_profile" in picture.info and not _is_srgb(picture.info["icc_profile"]):
        source.notes.append("ICC profile ignored: samples deeper than 8 bits are left as stored")
    return source


def _two_halves(picture: ImageFile.ImageFile, again: BinaryIO, kind: str, raw_mode: str) -> Source:
    channels, low_mode = _TWO_HALVES[raw_mode]
    low = _PLUGINS[kind](again)
    _set_raw_mode(low, low_mode)
    picture.load()
    low.load()

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        rows = _band(picture, start, stop).astype(np.uint16)
        rows <<= 8
        rows |= _band(low, start, stop)
        return rows

    return Source(picture.height, picture.width, channels, 16, read)


def _eight_bit(picture: ImageFile.ImageFile, raw_mode: str) -> Source:
    picture.load()
    info = picture.info
    mode = picture.mode
    target = _TARGET_MODES.get(mode, "RGB")
    if mode == "P" and "transparency" in info:
        target = "RGBA"
    channels = len(target)
    notes: list[str] = []
    transform = None
    if info.get("icc_profile"):
        transform = _to_srgb(info["icc_profile"], mode if mode == "CMYK" else "RGB" if channels >= 3 else "L", notes)
    elif mode == "CMYK":
        notes.append("CMYK converted to RGB by the plain formula (no ICC profile)")

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        band = picture.crop((0, start, picture.width, stop))
        if transform is not None and mode == "CMYK":
            return np.asarray(transform(band))
        rows = np.asarray(band if band.mode == target else band.convert(target))
        rows = rows[..., None] if rows.ndim == 2 else rows
        if transform is None:
            return rows
        colours = 1 if channels <= 2 else 3
        plain = np.ascontiguousarray(rows[..., 0] if colours == 1 else rows[..., :3])
        converted = np.asarray(transform(PillowImage.fromarray(plain)))[..., :colours]
        return np.concatenate([converted, rows[..., colours:]], axis=-1)

    source = Source(picture.height, picture.width, channels, 8, read, notes=notes)
    if channels in (1, 3) and mode in ("1", "L", "RGB") and "transparency" in info:
        # Pillow scales grey samples of 2 and 4 bits to 8 but leaves their transparent value as stored
        scale = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
        key = info["transparency"]
        source = _with_key(source, key * scale if isinstance(key, int) else key)
    source.orientation = _orientation(picture, source)
    return source


def _with_key(source: Source, key: Any) -> Source:
    """Add an alpha channel that is 0 where all samples equal the transparent value of a PNG's tRNS chunk."""
    levels = np.atleast_1d(np.asarray(key))
    if levels.dtype.kind not in "iu" or levels.shape != (source.channels,):
        return source
    opaque = 255 if source.bit_depth == 8 else 65535
    plain = source.read

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        rows = plain(start, stop)
        hidden = (rows == levels).all(axis=-1, keepdims=True)
        return np.concatenate([rows, np.where(hidden, 0, opaque).astype(rows.dtype)], axis=-1)

    return Source(
        source.height, source.width, source.channels + 1, source.bit_depth, read, source.orientation, source.notes
    )


def _band(picture: PillowImage.Image, start: int, stop: int) -> np.ndarray[Any, Any]:
    return np.asarray(picture.crop((0, start, picture.width, stop)))


def _raw_mode(picture: ImageFile.ImageFile) -> str:
    """The first tile's raw mode, "" where the decoder has none."""
    if not picture.tile:
        return ""
    args = picture.tile[0].args
    first = args[0] if isinstance(args, tuple) and args else args
    native = ";16L" if sys.byteorder == "little" else ";16B"
    return (first if isinstance(first, str) else "").replace(";16N", native)


def _set_raw_mode(picture: ImageFile.ImageFile, raw_mode: str) -> None:
    picture.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in picture.tile
    ]


def _orientation(picture: ImageFile.ImageFile, source: Source) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # any damage: Pillow parses EXIF lazily and raises as it finds
        source.notes.append("EXIF data unreadable, no rotation applied")
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_srgb(profile: bytes) -> bool:
    with contextlib.suppress(Exception):
        return "srgb" in ImageCms.getProfileDescription(ImageCms.getOpenProfile(io.BytesIO(profile))).lower()
    return False


def _to_srgb(profile: bytes, mode: str, notes: list[str]) -> Any:
    """A function from Pillow pictures of ``mode`` to sRGB ones, or None where nothing is to be done."""
    if mode != "CMYK" and _is_srgb(profile):
        return None
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(opened).split()) or "without a name"
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # damaged, or for another colour space
        notes.append("ICC profile unusable, colours left as stored")
        return _naive_rgb if mode == "CMYK" else None
    notes.append(f"ICC profile {name} converted to sRGB")
    return lambda picture: ImageCms.applyTransform(picture, transform)


def _naive_rgb(picture: PillowImage.Image) -> PillowImage.Image:
    return picture.convert("RGB")


def _webp_size(path: Path) -> tuple[int, int]:
    with path.open("rb") as stream:
        head = stream.read(30).ljust(30, b"\x00")
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _open_deep_ppm(path: Path, max_pixels: int) -> Source | None:
    """A binary PGM or PPM of more than 8 bits, which Pillow would cut to 8; None for any other file."""
    with path.open("rb") as stream:
        match = _PPM_HEADER.match(stream.read(4096))
        if match is None:
            return None
        width, height, white = (int(match[group][:20]) for group in (2, 3, 4))
        if not 255 < white < 65536:
            return None
        check_pixels(width, height, max_pixels)
        channels = 1 if match[1] == b"5" else 3
        samples = _read_samples(stream, match.end(), width * height * channels)

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        rows = samples.reshape(height, width, channels)[start:stop]
        if rows.max() > white:
            raise ImageError(f"holds samples above its own white level {white}; the file is damaged")
        return rows if white == 65535 else ((rows.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)

    notes = [] if white == 65535 else [f"samples 0 to {white} scaled to 16 bits"]
    return Source(height, width, channels, 16, read, notes=notes)


def _read_samples(stream: BinaryIO, offset: int, count: int) -> np.ndarray[Any, Any]:
    stream.seek(offset)
    data = stream.read(2 * count)
    if len(data) < 2 * count:
        raise ImageError("holds fewer samples than its header says; the file is truncated")
    return np.frombuffer(data, ">u2")
