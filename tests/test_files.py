"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixfit import files


def test_a_written_file_is_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")
    files.write_bytes(target, b"new content")
    assert target.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [target]


def test_the_name_is_taken_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with files.whole_file(target) as stream:
        stream.write(b"half")
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.name.endswith(files.TEMPORARY)
    assert target.read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_file_and_cleans_up(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")

    def fail() -> None:
        with files.whole_file(target) as stream:
            stream.write(b"half of the ne")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["a" * 255, "画" * 85, "😀" * 63], ids=["ascii", "three bytes", "four bytes"])
def test_the_longest_names_that_the_system_allows(tmp_path: Path, name: str) -> None:
    files.write_bytes(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_bytes(tmp_path / "nowhere" / "a.bin", b"x")
