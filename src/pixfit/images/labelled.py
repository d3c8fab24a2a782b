"""Pictures with class labels: CIFAR-10, ciFAIR-10, archives laid out like them, and folders of class subfolders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixfit.images.archives import read_members
from pixfit.images.image import Image, ImageError
from pixfit.images.pickles import read_pickle
from pixfit.images.read import SUFFIXES, load
from pixfit.images.sets import SETS, find_set

__all__ = ["SPLITS", "LabelledSet", "load_labelled"]

SPLITS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
"""The files of each part of CIFAR-10, in the order in which they count (that of torchvision)."""

_META = "batches.meta"
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)  # a row of a batch: all red samples, then green, then blue, each row by row


@dataclass(frozen=True, eq=False, repr=False)
class LabelledSet:
    """Pictures in a fixed order, each with the number of its class.

    Args:
        pictures: uint8 ``(N, C, H, W)``, or the paths of N picture files of any sizes, read when asked for.
        labels: int64 ``(N,)``, indices into ``classes``.
        classes: the names of the classes.
        name: what this is, such as ``"cifar10 train"``.

    Raises:
        ImageError: no picture; wrong dtype or shape; not one label for each picture; a label without a class.
    """

    pictures: torch.Tensor | tuple[Path, ...]
    labels: torch.Tensor
    classes: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        pictures, labels = self.pictures, self.labels
        if isinstance(pictures, torch.Tensor) and (pictures.dtype != torch.uint8 or pictures.ndim != 4):
            raise ImageError(
                "pictures must be uint8 (N, C, H, W), "
                f"got {str(pictures.dtype).removeprefix('torch.')} {tuple(pictures.shape)}"
            )
        if not len(pictures) or labels.dtype != torch.int64 or tuple(labels.shape) != (len(pictures),):
            raise ImageError(
                f"a labelled set needs pictures and one int64 label for each, got {len(pictures)} pictures and "
                f"{str(labels.dtype).removeprefix('torch.')} labels {tuple(labels.shape)}"
            )
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= len(self.classes):
            raise ImageError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"LabelledSet({name}{len(self)} pictures, {len(self.classes)} classes)"

    def image(self, index: int) -> Image:
        """The picture ``index`` from 0, named by class and number, or by its file.

        Raises:
            IndexError: no such picture.
            ImageError: its file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no picture {index} in {self!r}; there are 0 to {len(self) - 1}")
        if isinstance(self.pictures, torch.Tensor):
            label = self.classes[int(self.labels[index])]
            return Image.from_array(self.pictures[index], name=f"{label} {index}")
        return load(self.pictures[index])


def load_labelled(
    source: str | Path,
    split: str | None = None,
    *,
    download: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> LabelledSet:
    """Read a labelled set: ``"cifar10"``, ``"cifair10"``, or anything laid out like them, or a folder of classes.

    Args:
        source: the name of a set, whose files are checked as :func:`find_set` does; or the path of

            * the batches of CIFAR-10 in Python's format, in a folder or in the folder within it, or in a .zip, .tar or
              .tar.gz. Keys may be bytes or text; file names and ``batches.meta`` may be missing. Not checked against
              the published set, for it may be a part of it.
            * a folder of class subfolders: classes in the order of their names, in each the pictures in the order of
              theirs, not recursive; hidden ones are skipped. They are read when asked for.
        split: ``"train"`` or ``"test"``; a folder of classes is all training set. None means ``"train"``, except that
            of batches in a path without any training batch it means ``"test"``.
        download: fetch a named set that is not on disk.
        progress: see :func:`find_set`.

    Raises:
        ImageError: no such set or path; not on disk (the message names the URL and where to put it); damaged, or
            another layout. Pickles are read without being executed; what they ask for beyond arrays, numbers and
            strings is refused by its name.
    """
    if split is not None and split not in SPLITS:
        raise ImageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if isinstance(source, str) and source in SETS:
        if not SETS[source].inner:
            labelled = ", ".join(name for name, data in SETS.items() if data.inner)
            raise ImageError(f"the set {source} has no labels; those with labels are {labelled}")
        found = find_set(source, download=download, progress=progress)
        return replace(_batches(found.path, split or "train"), name=f"{source} {split or 'train'}")
    try:
        return _read(Path(source).expanduser(), split)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{str(source)[:80]!r}: cannot be read ({error})") from error  # too long a name, no permission


def _read(path: Path, split: str | None) -> LabelledSet:
    if not path.exists():
        named = ", ".join(name for name, data in SETS.items() if data.inner)
        raise ImageError(f"{path}: no such file or folder, and no labelled set of that name; there are {named}")
    if not path.is_dir():
        return _batches(path, split)
    folders = _batch_folders(path)
    if len(folders) > 1:
        raise ImageError(f"{path}: holds {' and '.join(folder.name for folder in folders)}; name one of them")
    return _batches(folders[0], split) if folders else _class_folders(path, split)


def _batch_folders(path: Path) -> list[Path]:
    """Where the batches lie: in the folder itself, or in those of its subfolders that are named as in an archive."""
    names = [name for files in SPLITS.values() for name in files]
    inner = [path / data.inner for data in SETS.values() if data.inner]
    return [folder for folder in (path, *inner) if any((folder / name).is_file() for name in names)]


def _batches(path: Path, split: str | None) -> LabelledSet:
    names = [name for part, files in SPLITS.items() if split in (None, part) for name in files]
    members = read_members(path, {*names, _META})
    if split is None:
        split = "train" if any(name in members for name in SPLITS["train"]) else "test"
    files = SPLITS[split]
    missing = [name for name in files if name not in members]
    if missing:
        raise ImageError(f"{path}: lacks {', '.join(missing)}, which the {split} split of CIFAR-10 consists of")
    samples, labels = [], []
    for name in files:
        with _about(path, name):
            rows, numbers = _batch(read_pickle(members[name]))
        samples.append(rows)
        labels.extend(numbers)
    with _about(path, _META):
        classes = _classes(read_pickle(members[_META])) if _META in members else _CIFAR10
    pictures = torch.from_numpy(np.concatenate(samples).reshape(-1, *_SHAPE))
    with _about(path):
        return LabelledSet(pictures, torch.tensor(labels, dtype=torch.int64), classes, f"{path.name} {split}")


@contextmanager
def _about(path: Path, name: str = "") -> Iterator[None]:
    """Name the file in our own errors."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {name}{' ' if name else ''}{error}") from error.__cause__


def _batch(content: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[int]]:
    missing = {"data", "labels"} - content.keys()
    if missing:
        raise ImageError(f"is no batch of CIFAR-10: it lacks {' and '.join(sorted(missing))}")
    data, labels = content["data"], content["labels"]
    width = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != width:
        kind = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ImageError(f"is no batch of CIFAR-10: its data must be a uint8 array (N, {width}), got {kind}")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list | tuple) or not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise ImageError("is no batch of CIFAR-10: its labels must be a list of class numbers")
    if len(labels) != len(data):
        raise ImageError(f"has {len(data)} pictures but {len(labels)} labels")
    return data, list(labels)


def _classes(content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise ImageError("must hold a list label_names of class names")
    return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)


def _class_folders(path: Path, split: str | None) -> LabelledSet:
    if split == "test":
        raise ImageError(f"{path}: a folder of class subfolders is all training set; name another folder to test on")
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise ImageError(
            f"{path}: is no labelled set: it has neither the batches of CIFAR-10 nor a subfolder of pictures per class"
        )
    pictures: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not files:
            raise ImageError(f"{folder}: the class holds no picture ({' '.join(SUFFIXES)})")
        pictures += files
        labels += [label] * len(files)
    names = tuple(folder.name for folder in folders)
    return LabelledSet(tuple(pictures), torch.tensor(labels, dtype=torch.int64), names, path.name)
