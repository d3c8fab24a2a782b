"""Files that are whole or not there: written under a temporary name in the same folder, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["TEMPORARY", "whole_file", "write_bytes"]

TEMPORARY = ".pixfit-tmp"
"""How the names of unfinished files end; `pixfit gc` removes those that a killed program left."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes ``path`` when the block ends without an exception, and vanishes otherwise.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    # At most 50 characters of the name: the systems' limit is 255 bytes, and a character may take four.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """``data`` as the whole content of ``path``."""
    with whole_file(path) as stream:
        stream.write(data)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last through a power cut, where the system can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
