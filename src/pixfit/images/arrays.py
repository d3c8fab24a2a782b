"""Decode .npy arrays and TIFF files of 16-bit or float samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from pixfit.images.image import ImageError, to_unit
from pixfit.images.source import Source, check_pixels

__all__ = ["open_npy", "open_tiff"]

# tifffile reports damage through its logger; without any handler Python would print it beside our one-line error
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_OWN_COMPRESSIONS = (1, 8, 32773, 32946)  # what tifffile decodes without further packages: none, deflate, PackBits


def open_npy(path: Path, max_pixels: int, value_range: tuple[float, float] | None) -> Source:
    """A .npy of ``(H, W)``, ``(H, W, C)`` or, where only that fits, ``(C, H, W)``; pickled arrays are refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" in str(error):
            raise ImageError("holds Python objects, which are never unpickled; save plain numbers") from error
        raise
    notes: list[str] = []
    if array.ndim == 3 and array.shape[2] > 4 and array.shape[0] <= 4:
        array = np.moveaxis(array, 0, -1)
        notes.append("array read as (C, H, W)")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4:
        raise ImageError(f"holds an array {array.shape}; expected (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels")
    check_pixels(array.shape[1], array.shape[0], max_pixels)
    return _from_array(array, value_range, notes)


def open_tiff(path: Path, max_pixels: int, value_range: tuple[float, float] | None) -> Source | None:
    """The first page of a TIFF, or None where it has 8-bit samples or fewer and Pillow reads more compressions."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        width, height = int(page.imagewidth), int(page.imagelength)
        check_pixels(width, height, max_pixels)
        if int(page.imagedepth) != 1:
            raise ImageError("is a volume, not a picture")
        photometric = int(page.photometric)
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        compression = int(page.compression)
        if value_range is None and int(page.sampleformat) == 1 and (bits <= 8 or compression not in _OWN_COMPRESSIONS):
            return None
        if photometric not in (0, 1, 2):
            raise ImageError(f"has {bits}-bit samples of a colour model other than grey and RGB; save as RGB")
        if compression not in _OWN_COMPRESSIONS:
            raise ImageError(f"has {bits}-bit samples in a compression that is not read; save it with deflate or none")
        if int(page.predictor) not in (1, 2):
            raise ImageError("uses the floating-point predictor, which is not read; save it with deflate or none")
        if int(page.samplesperpixel) > 16:
            raise ImageError(f"has {page.samplesperpixel} samples per pixel; save it as grey or RGB")
        if not all(page.databytecounts):  # tifffile would fill such strips with zeros
            raise ImageError("lacks some of its strips or tiles; the file is damaged")
        if 1 in page.extrasamples:
            raise ImageError("has premultiplied alpha at more than 8 bits; save it with straight alpha")
        array = np.asarray(page.asarray())
        planar, samples = int(page.planarconfig), int(page.samplesperpixel)
        tag = page.tags.get(274)
        orientation = tag.value if tag is not None else 1
        frames = len(file.pages)
    array = array.reshape((samples, height, width) if planar == 2 else (height, width, samples))
    array = np.moveaxis(array, 0, -1) if planar == 2 else array
    colours = 3 if photometric == 2 else 1
    notes = [f"first of {frames} frames"] if frames > 1 else []
    if samples > colours + 1:
        notes.append(f"{samples - colours - 1} extra channels ignored")
    source = _from_array(array[..., : colours + 1], value_range, notes)
    if photometric == 0:
        source.read = _inverted(source.read, source.bit_depth)
    source.orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return source


def _from_array(array: np.ndarray[Any, Any], value_range: tuple[float, float] | None, notes: list[str]) -> Source:
    height, width, channels = array.shape
    if value_range is None and array.dtype in (np.uint8, np.uint16):
        depth = 8 * array.dtype.itemsize
        return Source(height, width, channels, depth, lambda a, b: array[a:b], notes=notes)
    unit, depth = to_unit(array, value_range)
    if value_range is not None:
        notes.append(f"values {value_range[0]:g} to {value_range[1]:g} mapped to 0 to 1")
    if depth == 8:  # booleans
        return Source(height, width, channels, 8, lambda a, b: array[a:b].astype(np.uint8) * 255, notes=notes)
    return Source(height, width, channels, 32, lambda a, b: unit[a:b], notes=notes)


def _inverted(read: Any, bit_depth: int) -> Any:
    """TIFF's "white is zero": grey counts downwards, alpha does not."""
    peak = {8: 255, 16: 65535, 32: 1.0}[bit_depth]

    def inverted(start: int, stop: int) -> np.ndarray[Any, Any]:
        rows = np.array(read(start, stop))
        rows[..., 0] = peak - rows[..., 0]
        return rows

    return inverted
