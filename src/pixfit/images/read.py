"""Read picture files, folders and masks. Every failure is an :class:`ImageError` of one line that names the file."""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pixfit.images.bundled import BUNDLED, bundled_path
from pixfit.images.image import ALPHA_POLICIES, Image, ImageError
from pixfit.images.source import Source, assemble

__all__ = ["MAX_PIXELS", "SUFFIXES", "load", "load_folder", "load_mask"]

MAX_PIXELS = 268_435_456
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".tga",
    ".ppm",
    ".pgm",
    ".pbm",
    ".npy",
)
_FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, TGA, PPM/PGM/PBM or .npy"
# warnings.catch_warnings changes process-wide state; two threads inside it could leave it changed for good
_WARNINGS_LOCK = threading.Lock()


def load(
    source: str | Path,
    *,
    alpha: str = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
) -> Image:
    """Read a picture file, or a bundled picture by its name, such as ``"coffee"``; a file of that name wins.

    The format is told by content, not by suffix (TGA, which has no signature, by ``.tga``). Samples keep their bit
    depth; EXIF rotation is applied; an embedded ICC profile is converted to sRGB where samples have 8 bits; the
    first frame of several is taken; what was done stands in ``notes``. Nothing is resized.

    Args:
        source: a path or a bundled name.
        alpha: ``"white"`` composites a transparent picture on white, in the file's own values and bit depth;
            ``"keep"`` keeps alpha as the last channel; ``"drop"`` ignores it.
        max_pixels: largest width x height, checked in the header before decoding.
        value_range: ``(black, white)`` for .npy and TIFF samples that do not span their type, such as floats outside
            ``[0, 1]`` or 12-bit integers.

    Raises:
        ImageError: no such file or name; not a picture; damaged, truncated or too large; NaN, infinite or
            out-of-range samples.
    """
    if alpha not in ALPHA_POLICIES:
        raise ImageError(f"alpha must be one of {', '.join(ALPHA_POLICIES)}, got {alpha!r}")
    path = _locate(source)
    with _one_line_errors(path):
        decoded = _open(path, max_pixels, value_range)
        data = assemble(decoded, alpha)
        return Image(data, path.stem, decoded.bit_depth, alpha, tuple(decoded.notes))


def load_folder(
    path: str | Path,
    *,
    alpha: str = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    on_error: Callable[[Path, ImageError], None] | None = None,
) -> list[Image]:
    """All pictures of a folder, by :data:`SUFFIXES` and not recursive, in the order of their file names.

    Hidden files are skipped. Names are the file names without suffix. The other arguments are those of :func:`load`.

    Args:
        on_error: is told of each picture that cannot be read, which is then left out; None: the first one raises.

    Raises:
        ImageError: no such folder, no picture in it, or one that cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ImageError(
            f"{folder}: {'this is a file; give the folder it is in' if folder.is_file() else 'no such folder'}"
        )
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise ImageError(f"{folder}: holds no picture ({' '.join(SUFFIXES)})")
    pictures = []
    for file in files:
        try:
            pictures.append(load(file, alpha=alpha, max_pixels=max_pixels, value_range=value_range))
        except ImageError as error:
            if on_error is None:
                raise
            on_error(file, error)
    return pictures


def load_mask(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """Read a mask for a picture of ``size`` = ``(H, W)``: white is known, black is to be filled.

    Returns:
        bool ``(H, W)``, true where the pixel is known.

    Raises:
        ImageError: unreadable; of another size; any sample other than black and white (also transparency); no known
            pixel.
    """
    height, width = size
    image = load(path, alpha="keep", max_pixels=max(MAX_PIXELS, height * width))
    if (image.height, image.width) != (height, width):
        raise ImageError(
            f"{path}: the mask is {image.width}x{image.height} but the picture is {width}x{height}; sizes must be equal"
        )
    colours = image.data[: image.channels - (image.channels in (2, 4))]
    white = (colours == 1.0).all(dim=0)
    black = (colours == 0.0).all(dim=0)
    opaque = image.channels in (1, 3) or bool((image.data[-1] == 1.0).all())
    if not opaque or not bool((white | black).all()):
        raise ImageError(f"{path}: a mask holds only white (known) and black (to be filled); threshold it first")
    if not bool(white.any()):
        raise ImageError(f"{path}: the mask is all black, so no pixel is known; white must mark what is known")
    return white


def _locate(source: str | Path) -> Path:
    path = Path(source)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # a name too long, or with a null character
        raise ImageError(f"{str(source)[:80]!r}: not a usable path ({error})") from error
    if is_folder:
        raise ImageError(f"{path}: is a folder; read it with load_folder")
    if exists:
        return path
    if isinstance(source, str) and source in BUNDLED:
        return bundled_path(source)
    close = difflib.get_close_matches(str(source).lower(), BUNDLED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"bundled pictures: {', '.join(BUNDLED)}"
    raise ImageError(f"{source}: no such file, and no bundled picture of that name; {hint}")


def _open(path: Path, max_pixels: int, value_range: tuple[float, float] | None) -> Source:
    from pixfit.images.arrays import open_npy, open_tiff
    from pixfit.images.raster import open_raster

    kind = _kind(path)
    if kind == "npy":
        return open_npy(path, max_pixels, value_range)
    decoded = open_tiff(path, max_pixels, value_range) if kind == "tiff" else None
    if decoded is not None:
        return decoded
    if value_range is not None:
        raise ImageError("value_range is for .npy and TIFF files; this format has a fixed white level")
    return open_raster(path, kind, max_pixels)


def _kind(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise ImageError("the file is empty")
    signatures = {
        b"\x89PNG\r\n\x1a\n": "png",
        b"\xff\xd8\xff": "jpeg",
        b"GIF87a": "gif",
        b"GIF89a": "gif",
        b"BM": "bmp",
        b"II*\x00": "tiff",
        b"MM\x00*": "tiff",
        b"II+\x00": "tiff",
        b"MM\x00+": "tiff",
        b"\x93NUMPY": "npy",
    }
    for signature, kind in signatures.items():
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#":
        return "ppm"
    if path.suffix.lower() == ".tga":
        return "tga"
    raise ImageError(f"is not a picture in a known format ({_FORMATS})")


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Name the file in our own errors and turn every exception and warning of a decoder into one."""
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            from PIL.Image import DecompressionBombWarning

            warnings.simplefilter("ignore")
            warnings.simplefilter("error", DecompressionBombWarning)
            with np.errstate(all="ignore"):
                yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to read it") from error
    except PermissionError as error:
        raise ImageError(f"{path}: may not be read ({error.strerror})") from error
    except Exception as error:  # decoders raise whatever their parsers stumble over
        reason = " ".join(str(error).split()).replace(str(path), "the file")[:160] or type(error).__name__
        raise ImageError(f"{path}: cannot be read, the file is damaged or truncated ({reason})") from error
