"""Read chosen files of a folder, a zip or a tar archive, by their names, into memory: nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from pixfit.images.image import ImageError

__all__ = ["MAX_ARCHIVE", "MAX_MEMBER", "read_members"]

MAX_MEMBER = 1 << 27  # bytes of one file; a batch of 10,000 pictures has 31 MB
MAX_ARCHIVE = 1 << 31  # bytes of all files in an archive, read or not
_MAX_MEMBERS = 100_000


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The files called ``names`` (without folders) that lie in a folder or anywhere in an archive.

    Args:
        path: a folder, of which only the files right in it count; or a .zip, .tar or .tar.gz, told by its content.
        names: file names; those that are not there are left out.

    Raises:
        ImageError: neither folder nor archive; damaged; a name that leads out of the archive; a link; a name twice;
            more than :data:`MAX_MEMBER` or :data:`MAX_ARCHIVE` bytes, which is checked before they are read.
    """
    with _one_line_errors(path):
        if path.is_dir():
            return {name: _read_file(path / name) for name in names if (path / name).is_file()}
        with path.open("rb") as stream:
            head = stream.read(2)
            stream.seek(0)
            if head == b"PK":
                members = _zip_members(stream, names)
            elif head == b"\x1f\x8b":
                members = _tar_members(cast(IO[bytes], gzip.GzipFile(fileobj=stream)), names)
            else:
                members = _tar_members(stream, names)
            found: dict[str, bytes] = {}
            for name, data in members:
                if name in found:
                    raise ImageError(f"holds {name} twice; unpack the right one into a folder of its own")
                found[name] = data
            return found


def _read_file(path: Path) -> bytes:
    _check_size(path.name, path.stat().st_size)
    with path.open("rb") as stream:
        data = stream.read(MAX_MEMBER + 1)
    _check_size(path.name, len(data))  # a pipe or a growing file says 0 first
    return data


def _zip_members(stream: IO[bytes], names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        total = 0
        for count, member in enumerate(archive.infolist()):
            total += member.file_size
            name = _checked(member.filename, count, total)
            if name in names and not member.is_dir():
                _check_size(name, member.file_size)
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ImageError(f"holds {name} encrypted or in a rare compression; unpack it into a folder")
                with archive.open(member) as content:
                    # with a size, for without one it decompresses all that is there, whatever the header says
                    yield name, _whole(name, content.read(member.file_size), member.file_size)


def _tar_members(stream: IO[bytes], names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=cast(IO[bytes], _Capped(stream)), mode="r:") as archive:
        total = 0
        for count, member in enumerate(archive):
            total += member.size
            name = _checked(member.name, count, total)
            if name in names and not member.isdir():
                if not member.isreg():
                    raise ImageError(f"holds {name} as a link or device, which is not followed")
                _check_size(name, member.size)
                content = archive.extractfile(member)
                yield name, _whole(name, content.read() if content is not None else b"", member.size)


class _Capped:
    """A stream that hands out no more than a member at once: any header of a tar archive may claim any size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_MEMBER:
            raise ImageError(f"holds a header of more than {MAX_MEMBER} bytes")
        return self._stream.read(size)


def _checked(path: str, count: int, total: int) -> str:
    """The last part of a member's path, after a look at all that may be wrong with it."""
    if count >= _MAX_MEMBERS or total > MAX_ARCHIVE:
        raise ImageError(
            f"is too large: at most {_MAX_MEMBERS} files and {MAX_ARCHIVE >> 20} MB are read; "
            "unpack what is wanted into a folder"
        )
    windows = PureWindowsPath(path)
    if windows.drive or windows.root or ".." in windows.parts:
        raise ImageError(f"holds {path[:80]!a}, a path that leads out of the archive; it is not to be trusted")
    return PurePosixPath(path).name


def _whole(name: str, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ImageError(f"is damaged: {name} ends after {len(data)} of {size} bytes")
    return data


def _check_size(name: str, size: int) -> None:
    if size > MAX_MEMBER:
        raise ImageError(f"{name} has {size} bytes, at most {MAX_MEMBER} are read")


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file or folder") from error
    except PermissionError as error:
        raise ImageError(f"{path}: may not be read ({error.strerror})") from error
    except (
        OSError,  # also gzip.BadGzipFile
        EOFError,
        ValueError,
        RuntimeError,
        OverflowError,
        KeyError,
        IndexError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError(f"{path}: is no folder, zip or tar archive, or a damaged one ({reason})") from error
