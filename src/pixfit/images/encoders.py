"""Streaming encoders: PNG (ISO/IEC 15948) and TIFF 6.0 / BigTIFF, a band of rows at a time."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

__all__ = ["PngEncoder", "TiffEncoder"]

_PNG_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_ZLIB_LEVEL = 6
_STRIP_BYTES = 1 << 20  # uncompressed size of a TIFF strip, about
_CLASSIC_TIFF_LIMIT = 0xF000_0000  # 32-bit offsets, less room for the directory and for incompressible data


class PngEncoder:
    """Rows to a PNG stream, 8 or 16 bits, marked as sRGB; the stream need not seek.

    Each row is filtered by *sub* or *up*, whichever leaves the smaller sum of absolute differences.
    """

    def __init__(self, stream: BinaryIO, *, width: int, height: int, channels: int, bit_depth: int) -> None:
        self._stream = stream
        self._step = channels * bit_depth // 8
        self._above = np.zeros((1, width * self._step), np.uint8)
        self._deflate = zlib.compressobj(_ZLIB_LEVEL)
        stream.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, _PNG_COLOUR_TYPE[channels], 0, 0, 0))
        self._chunk(b"sRGB", b"\x00")

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        """Append rows ``(h, W, C)``, uint8 or uint16."""
        raw = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder(">"))).view(np.uint8).reshape(len(rows), -1)
        up = raw - np.concatenate([self._above, raw[:-1]])
        sub = raw.copy()
        sub[:, self._step :] -= raw[:, : -self._step]
        use_up = _cost(up) < _cost(sub)
        filtered = np.empty((len(raw), raw.shape[1] + 1), np.uint8)
        filtered[:, 0] = np.where(use_up, 2, 1)
        filtered[:, 1:] = np.where(use_up[:, None], up, sub)
        self._above = raw[-1:].copy()
        self._data(self._deflate.compress(filtered.data))

    def finish(self) -> None:
        """Write what is pending and the end of the file."""
        self._data(self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _data(self, data: bytes) -> None:
        if data:
            self._chunk(b"IDAT", data)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._stream.write(struct.pack(">I", len(data)) + kind)
        self._stream.write(data)
        self._stream.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


class TiffEncoder:
    """Rows to a little-endian TIFF in deflated strips; BigTIFF when the samples may pass 4 GB. Needs a seekable stream.

    Integers use the horizontal predictor; float32 samples are deflated as they are.
    """

    def __init__(self, stream: BinaryIO, *, width: int, height: int, channels: int, bit_depth: int) -> None:
        self._stream = stream
        self._shape = (height, width, channels)
        self._bits = bit_depth
        row_bytes = width * channels * bit_depth // 8
        self._big = row_bytes * height > _CLASSIC_TIFF_LIMIT
        self._strip_rows = min(height, max(1, _STRIP_BYTES // row_bytes))
        self._pending: list[np.ndarray[Any, Any]] = []
        self._offsets: list[int] = []
        self._counts: list[int] = []
        stream.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if self._big else struct.pack("<2sHI", b"II", 42, 0))

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        """Append rows ``(h, W, C)``, uint8, uint16 or float32."""
        rows = np.concatenate([*self._pending, rows]) if self._pending else rows
        whole = len(rows) - len(rows) % self._strip_rows
        for start in range(0, whole, self._strip_rows):
            self._strip(rows[start : start + self._strip_rows])
        self._pending = [rows[whole:].copy()] if whole < len(rows) else []

    def finish(self) -> None:
        """Write what is pending and the directory."""
        for rows in self._pending:
            self._strip(rows)
        self._pending = []
        self._directory()

    def _strip(self, rows: np.ndarray[Any, Any]) -> None:
        samples = rows.astype(rows.dtype.newbyteorder("<"))
        if self._bits < 32:
            samples[:, 1:] -= rows[:, :-1]
        data = zlib.compress(np.ascontiguousarray(samples).data, _ZLIB_LEVEL)
        self._offsets.append(self._stream.tell())
        self._counts.append(len(data))
        self._stream.write(data + b"\x00" * (len(data) % 2))  # offsets must be even

    def _directory(self) -> None:
        height, width, channels = self._shape
        wide = "Q" if self._big else "I"
        tags: list[tuple[int, str, list[int]]] = [
            (256, "I", [width]),
            (257, "I", [height]),
            (258, "H", [self._bits] * channels),
            (259, "H", [8]),  # deflate
            (262, "H", [2 if channels >= 3 else 1]),  # RGB, or grey with 0 = black
            (273, wide, self._offsets),
            (277, "H", [channels]),
            (278, "I", [self._strip_rows]),
            (279, wide, self._counts),
            (284, "H", [1]),  # samples of a pixel stand together
            (317, "H", [2 if self._bits < 32 else 1]),
        ]
        if channels in (2, 4):
            tags.append((338, "H", [2]))  # straight alpha
        tags.append((339, "H", [3 if self._bits == 32 else 1] * channels))
        types = {"H": 3, "I": 4, "Q": 16}
        room = 8 if self._big else 4
        entries = b""
        for tag, code, values in tags:
            data = struct.pack(f"<{len(values)}{code}", *values)
            if len(data) > room:
                where = self._stream.tell()
                self._stream.write(data + b"\x00" * (len(data) % 2))
                data = struct.pack(f"<{wide}", where)
            entries += struct.pack(f"<HH{wide}", tag, types[code], len(values)) + data.ljust(room, b"\x00")
        where = self._stream.tell()
        count = struct.pack("<Q" if self._big else "<H", len(tags))
        self._stream.write(count + entries + struct.pack(f"<{wide}", 0))
        self._stream.seek(8 if self._big else 4)
        self._stream.write(struct.pack(f"<{wide}", where))


def _cost(filtered: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Per row, the sum of the differences' absolute values; a byte above 127 is a negative difference."""
    absolute = np.minimum(filtered, 0 - filtered)
    return np.asarray(absolute.sum(axis=1, dtype=np.int64))
