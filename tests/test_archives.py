"""Labelled sets: both pickled layouts of CIFAR-10 in folders and archives, folders of classes, and hostile files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from pixfit.images import SETS, DataSet, ImageError, LabelledSet, SetFile, load, load_labelled, load_set
from pixfit.images.archives import MAX_MEMBER, read_members
from pixfit.images.labelled import SPLITS
from pixfit.images.pickles import MAX_INSTRUCTIONS, read_pickle

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BAD = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in the text of random pickles


def batch(rows: np.ndarray[Any, Any] = ROWS, labels: Any = (3, 8, 0, 6), *, keys: type = str) -> dict[Any, Any]:
    content = {"batch_label": "a batch", "labels": list(labels), "data": rows, "filenames": ["a.png"] * len(rows)}
    return content if keys is str else {key.encode(): value for key, value in content.items()}


def written_by_python_2(rows: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """Byte for byte how the published batches are laid out: protocol 2, 8-bit strings, the module of old numpy."""
    short = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x07a batchq\x03U\x06labelsq\x04]q\x05("
        + short
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        + b"(K\x01M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1])
        + b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tbu."
    )  # fmt: skip


def fill(folder: Path, names: tuple[str, ...] = (*SPLITS["train"], *SPLITS["test"])) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(pickle.dumps(batch(ROWS + np.uint8(number), [number] * 4)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES), "num_vis": 3072}, 2))
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


PACKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {"a.zip": zipped, "a.tar.gz": tarred, "a.tar": tarred}
packed = pytest.mark.parametrize("name", PACKERS)


def complaint(read: Callable[..., object], *arguments: Any) -> str:
    """Why something is not read, or nothing where it is; any other error than this one passes through."""
    try:
        assert isinstance(read(*arguments), dict)
    except ImageError as error:
        return str(error)
    return ""


class Reduces:
    """Pickles to a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


# the real pictures


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", "ciFAIR-10"])
def test_the_real_pictures_in_both_layouts(layout: str, shared_data: Path) -> None:
    folder = shared_data / "cifar10_test_0000_0299"
    found = load_labelled(folder / layout, "test")
    assert (len(found), found.classes) == (300, CLASSES)
    assert found.name == f"{layout} test"
    files = sorted((folder / "png").iterdir())
    for index in (0, 1, 57, 299):
        picture = found.image(index)
        assert picture == load(files[index])
        assert files[index].stem == f"{index:05d}_{picture.name.split()[0]}"
    assert [CLASSES[label] for label in found.labels] == [file.stem.split("_")[1] for file in files]


def test_a_folder_with_both_layouts_asks_for_one(shared_data: Path) -> None:
    with pytest.raises(ImageError, match="cifar-10-batches-py and ciFAIR-10; name one"):
        load_labelled(shared_data / "cifar10_test_0000_0299")


# what is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, bytes])
def test_keys_and_protocols(protocol: int, keys: type, tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(keys=keys), protocol))
    found = load_labelled(tmp_path, "test")
    assert torch.equal(found.pictures, torch.from_numpy(ROWS.reshape(4, 3, 32, 32).copy()))  # type: ignore[arg-type]
    assert found.labels.tolist() == [3, 8, 0, 6]
    assert found.classes == CLASSES  # without batches.meta


def test_python_2_batch(tmp_path: Path) -> None:
    data = written_by_python_2(ROWS, [1, 2, 3, 4])
    assert pickle.loads(data, encoding="bytes")[b"labels"] == [1, 2, 3, 4]  # the test's own pickle is a sound one
    (tmp_path / "test_batch").write_bytes(data)
    picture = load_labelled(tmp_path).image(1)
    assert (picture.name, picture.bit_depth, picture.data.dtype) == ("bird 1", 8, torch.float32)
    assert torch.equal(picture.data, torch.from_numpy(ROWS[1].reshape(3, 32, 32) / np.float32(255)))


def test_keys_may_lack_names_and_label(tmp_path: Path) -> None:
    content = batch()
    del content["filenames"], content["batch_label"]
    content["labels"] = np.array(content["labels"])
    content["data"] = np.asfortranarray(ROWS)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
    assert torch.equal(
        load_labelled(tmp_path).image(3).data, torch.from_numpy(ROWS[3] / np.float32(255)).view(3, 32, 32)
    )


def test_training_batches_come_in_their_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "cifar-10-batches-py")
    found = load_labelled(tmp_path)  # the folder within
    assert found.labels.tolist() == [number for number in range(5) for _ in range(4)]
    assert found.labels.dtype == torch.int64
    assert load_labelled(tmp_path, "test").labels.tolist() == [5] * 4
    (folder / "data_batch_3").unlink()
    with pytest.raises(ImageError, match="lacks data_batch_3"):
        load_labelled(folder)


@packed
def test_archives(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "files")
    files = {f"inside/{file.name}": file.read_bytes() for file in sorted(folder.iterdir(), reverse=True)}
    found = load_labelled(PACKERS[name](tmp_path / name, {**files, "inside/readme.html": b"<p>"}))
    unpacked = load_labelled(folder)
    assert torch.equal(found.pictures, unpacked.pictures)  # type: ignore[arg-type]
    assert torch.equal(found.labels, unpacked.labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "files"])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 "published" at a file: address, the cache empty."""
    folder = fill(tmp_path / "files")
    md5 = {
        file.name: hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        for file in sorted(folder.iterdir())
    }
    archive = tarred(tmp_path / "c.tar.gz", {f"inner/{name}": (folder / name).read_bytes() for name in md5})
    whole = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    file = SetFile(archive.name, archive.as_uri(), f"md5:{whole}")
    members = tuple(SetFile(name, file.url, f"md5:{value}") for name, value in md5.items() if name != "batches.meta")
    monkeypatch.setitem(SETS, "cifar10", DataSet("cifar10", "pictures", (file,), "inner", members))
    monkeypatch.setenv("PIXFIT_DATA", str(tmp_path / "cache"))
    return archive


def test_by_name(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"download it, or put c\.tar\.gz there"):
        load_labelled("cifar10")
    found = load_labelled("cifar10", download=True)
    assert (found.name, len(found)) == ("cifar10 train", 20)
    assert load_labelled("cifar10", "test").name == "cifar10 test"
    (tmp_path / "cache" / "cifar10" / published.name).write_bytes(b"damaged")
    with pytest.raises(ImageError, match="MD5"):
        load_labelled("cifar10")


def test_unpacked_by_hand(published: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "cache" / "cifar10" / "inner")
    assert len(load_labelled("cifar10")) == 20
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch()))
    with pytest.raises(ImageError, match="MD5"):
        load_labelled("cifar10")


def test_picture_sets_and_labelled_sets_know_each_other() -> None:
    with pytest.raises(ImageError, match="no labels; those with labels are cifar10, cifair10"):
        load_labelled("kodak")
    with pytest.raises(ImageError, match="load_labelled"):
        load_set("cifair10")


def test_folder_of_classes(tmp_path: Path) -> None:
    for folder, name, side in (("dog", "b.png", 5), ("cat", "z.bmp", 6), ("dog", "a.png", 7)):
        (tmp_path / folder).mkdir(exist_ok=True)
        PillowImage.new("RGB", (side, 4), (side, 0, 0)).save(tmp_path / folder / name)
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    found = load_labelled(str(tmp_path))
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [0, 1, 1])
    assert [found.image(index).name for index in range(3)] == ["z", "a", "b"]
    assert [found.image(index).width for index in range(3)] == [6, 7, 5]
    with pytest.raises(ImageError, match="all training set"):
        load_labelled(tmp_path, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: the class holds no picture"):
        load_labelled(tmp_path)


def test_index_and_text(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch()))
    found = load_labelled(tmp_path)
    assert repr(found).endswith("test', 4 pictures, 10 classes)")
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"no picture {index} .* 0 to 3"):
            found.image(index)


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one int64 label"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "one int64 label"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "got 0 pictures"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), "labels run from 0 to 2"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), "labels run from -1 to 0"),
    ],
)
def test_sets_made_by_hand_are_checked(pictures: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        LabelledSet(pictures, labels, ("a", "b"))


# wrong files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": ROWS}, "lacks labels"),
        ({"fine_labels": [1], "coarse_labels": [1]}, "lacks data and labels"),
        (batch(ROWS[:, :-1]), r"uint8 array \(N, 3072\), got uint8 \(4, 3071\)"),
        (batch(ROWS.astype(np.float32)), r"got float32 \(4, 3072\)"),
        (batch(ROWS.reshape(4, 3, 32, 32)), r"got uint8 \(4, 3, 32, 32\)"),
        ({"data": "text", "labels": [1]}, "got str"),
        (batch(labels=[1, 2, 3]), "4 pictures but 3 labels"),
        (batch(labels=[1, 2, 3, 10]), "labels run from 1 to 10"),
        (batch(labels=[1, 2, 3, -1]), "list of class numbers"),
        (batch(labels=[1, 2, 3, True]), "list of class numbers"),
        (batch(labels=[1, 2, 3, 2**70]), "list of class numbers"),
        (batch(ROWS[:0], []), "got 0 pictures"),
        ({**batch(), b"data": ROWS}, "a key twice"),
        ({**batch(), 3: 4}, "keys are not all text"),
        ({**batch(), (3, 4): 4}, "keys are not all text"),
        ([1, 2], "a pickle of list, not of a dictionary"),
        (ROWS, "a pickle of Array, not of a dictionary"),
        (batch(np.array([["a"] * 3072])), "array of type 'U1'"),
        (batch(np.array([[None] * 3072])), "array of objects"),
        (batch(np.zeros(4, "i4,f4")), "array of"),
    ],
)
def test_wrong_contents(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ImageError, match=message) as caught:
        load_labelled(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_wrong_class_names(tmp_path: Path) -> None:
    fill(tmp_path / "a", SPLITS["test"])
    for names in ([], "cat", [1, 2], None):
        (tmp_path / "a" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
        with pytest.raises(ImageError, match=r"batches\.meta must hold a list label_names"):
            load_labelled(tmp_path / "a")


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no such file or folder, and no labelled set .* cifar10, cifair10"):
        load_labelled("cifar-10")
    with pytest.raises(ImageError, match="neither the batches of CIFAR-10 nor a subfolder"):
        load_labelled(tmp_path)
    with pytest.raises(ImageError, match="split must be one of train, test, got 'valid'"):
        load_labelled(tmp_path, "valid")
    with pytest.raises(ImageError, match="cannot be read"):
        load_labelled("x" * 5000)
    for name, data in (("a.txt", b"text"), ("empty", b""), ("half.zip", b"PK\x03\x04"), ("half.gz", b"\x1f\x8b\x08")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match="no folder, zip or tar archive, or a damaged one"):
            load_labelled(tmp_path / name)


# hostile pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("echo harmed > {path}",), f"{os.name}.system"),
        (eval, ("open({path!r}, 'w')",), "eval"),
        (np.fromfile, ("{path}",), "fromfile"),
        (getattr, ("text", "__class__"), "getattr"),
        (bytearray, (10**12,), "bytearray"),
        (np.ndarray, ((10**12,),), "ndarray of something else"),
    ],
)
def test_calls_are_refused_by_name(
    protocol: int, function: Any, arguments: tuple[Any, ...], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "harmed"
    given = [text.format(path=str(path)) if isinstance(text, str) else text for text in arguments]
    (tmp_path / "test_batch").write_bytes(pickle.dumps({**batch(), "more": Reduces(function, *given)}, protocol))
    with pytest.raises(ImageError, match=named):
        load_labelled(tmp_path)
    assert not path.exists()


def test_persistent_objects_and_instances_are_refused() -> None:
    for data, named in (
        (b"\x80\x02U\x01aQ.", "BINPERSID"),
        (b"Pabc\n.", "PERSID"),
        (b"(iposix\nsystem\n.", "INST"),
        (b"\x80\x02(cposix\nsystem\nU\x02lso.", "posix.system"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ):
        with pytest.raises(ImageError, match=rf"\b{named}, which is not read; nothing of it was executed"):
            read_pickle(data)


def array_pickle(shape: bytes, raw: bytes = b"abc", code: bytes = b"u1") -> bytes:
    """A dictionary with one array, its shape given as instructions."""
    return (
        b"\x80\x03}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R(K\x03U\x01|NNNK\x00K\x00K\x00tb\x89C"
        + bytes([len(raw)]) + raw + b"tbs."
    )  # fmt: skip


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    assert read_pickle(array_pickle(b"K\x03\x85"))["a"].tolist() == [97, 98, 99]
    huge = b"J" + struct.pack("<i", 2**31 - 1)
    for shape in (
        b"K\x04\x85",
        huge + huge + b"\x86",
        b"J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86",
        b"K\x03\x88\x86",
        b")",
    ):
        with pytest.raises(ImageError, match="shape"):
            read_pickle(array_pickle(shape))
    for code in (b"O8", b"V3", b"u16", b"u", b"S3", b"|u1"):
        with pytest.raises(ImageError, match="save plain numbers"):
            read_pickle(array_pickle(b"K\x03\x85", code=code))
    with pytest.raises(ImageError, match="damaged"):
        read_pickle(b"\x80\x04}\x8e" + struct.pack("<Q", 2**62) + b"abc.")
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\x7f.") == {}  # Python's own reader takes 32 GB for this memo


def test_a_short_pickle_cannot_become_large() -> None:
    text = b"X" + struct.pack("<i", 10_000) + b"x" * 10_000
    start = b"\x80\x02}U\x01a](c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02\x86R"
    read_pickle(start + b"es.")
    with pytest.raises(ImageError, match="more than its own size"):
        read_pickle(start + b"h\x00h\x01h\x02\x86R" * 100 + b"es.")
    with pytest.raises(ImageError, match=f"more than {MAX_INSTRUCTIONS} instructions"):
        read_pickle(b"\x80\x02}U\x01a](" + b"N" * MAX_INSTRUCTIONS + b"es.")


def test_nested_keys_are_not_hashed() -> None:
    """Python's own reader crashes on the first and takes 2^60 steps for the second."""
    for nested in (b")" + b"\x85" * 1_000_000, b")" + b"q\x00h\x00\x86" * 60):
        with pytest.raises(ImageError, match="not all text"):
            read_pickle(b"\x80\x02}" + nested + b"Ns.")


@BAD
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200).map(lambda tail: b"\x80\x04}" + tail) | st.binary(max_size=200))
def test_random_bytes_end_in_one_line_or_a_dictionary(data: bytes) -> None:
    assert "\n" not in complaint(read_pickle, data)


INSTRUCTIONS = st.sampled_from(
    [b"(", b".", b"0", b"1", b"2", b"N", b"K\x01", b"K\x00", b"]", b"}", b")", b"t", b"l", b"d", b"a", b"e", b"s", b"u",
     b"R", b"b", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x93", b"\x94", b"q\x00", b"h\x00", b"h\x01", b"C\x01a",
     b"X\x01\x00\x00\x00a", b"U\x02u1", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
     b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.numeric\n_frombuffer\n", b"cposix\nsystem\n", b"I1\n",
     b"\x8a\x01\x05", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(INSTRUCTIONS, max_size=40))
def test_random_instructions_end_in_one_line_or_a_dictionary(program: list[bytes]) -> None:
    assert "\n" not in complaint(read_pickle, b"\x80\x04" + b"".join(program) + b".")


SMALL = pickle.dumps(batch(ROWS[:1, :6], [1]), 2)


@BAD
@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_damage_never_shows_as_another_error(place: int, byte: int) -> None:
    assert "damaged" in complaint(read_pickle, SMALL[:place])
    assert "\n" not in complaint(read_pickle, SMALL[:place] + bytes([byte]) + SMALL[place + 1 :])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=4), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_python_reads_them(content: dict[str, Any], protocol: int) -> None:
    assert read_pickle(pickle.dumps(content, protocol)) == content


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["u1", "i8", "<u2", ">f4", "f8", "?", "f2"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_arrays_are_read_as_numpy_reads_them(code: str, shape: list[int], fortran: bool, protocol: int) -> None:
    values = np.random.default_rng(1).integers(0, 2, shape).astype(code)
    array = np.asfortranarray(values) if fortran else values
    found = read_pickle(pickle.dumps({"a": array, "b": array}, protocol))
    for key in ("a", "b"):
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
        assert not found[key].flags.writeable


# hostile archives


@packed
@pytest.mark.parametrize(
    "evil", ["../test_batch", "a/../../test_batch", "/etc/test_batch", "C:/test_batch", "..\\test_batch", "../other"]
)
def test_paths_that_lead_out_are_refused(name: str, evil: str, tmp_path: Path) -> None:
    path = PACKERS[name](tmp_path / name, {"good/test_batch": pickle.dumps(batch()), evil: b"x"})
    with pytest.raises(ImageError, match=r"a path that leads out of the archive"):
        load_labelled(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@packed
def test_a_file_twice_is_refused(name: str, tmp_path: Path) -> None:
    path = PACKERS[name](tmp_path / name, {"a/test_batch": b"1", "b/test_batch": b"2"})
    with pytest.raises(ImageError, match="holds test_batch twice"):
        load_labelled(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("test_batch")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ImageError, match="link or device"):
        load_labelled(tmp_path / "a.tar")


def test_a_link_in_a_zip_is_only_its_text(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("test_batch")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ImageError, match="damaged pickle"):
        load_labelled(tmp_path / "a.zip")


def test_claimed_sizes_are_refused_unread(tmp_path: Path) -> None:
    member = tarfile.TarInfo("test_batch")
    member.size = MAX_MEMBER + 1
    (tmp_path / "a.tar").write_bytes(member.tobuf())
    with pytest.raises(ImageError, match=f"test_batch has {MAX_MEMBER + 1} bytes"):
        read_members(tmp_path / "a.tar", ["test_batch"])
    member.size = 2**40
    member.name = "other"
    (tmp_path / "b.tar").write_bytes(member.tobuf())
    with pytest.raises(ImageError, match="is too large"):
        read_members(tmp_path / "b.tar", ["test_batch"])
    member.size, member.type = 2**30, tarfile.XHDTYPE  # an extended header, which tarfile would read whole
    (tmp_path / "c.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ImageError, match="a header of more than"):
        read_members(tmp_path / "c.tar", ["test_batch"])
    member.size, member.type, member.name = 100, tarfile.REGTYPE, "test_batch"
    (tmp_path / "d.tar").write_bytes(member.tobuf() + b"only this")
    with pytest.raises(ImageError, match=r"d\.tar: is .*damaged"):
        read_members(tmp_path / "d.tar", ["test_batch"])


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"test_batch": bytes(1 << 20)})
    for lie in (100, 1 << 21):
        data = path.read_bytes().replace(struct.pack("<I", 1 << 20), struct.pack("<I", lie))
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(ImageError, match="damaged"):
            read_members(tmp_path / "b.zip", ["test_batch"])
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("test_batch", bytes(100))
    with pytest.raises(ImageError, match="rare compression"):
        read_members(tmp_path / "c.zip", ["test_batch"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: pack(folder / name, {"in/test_batch": b"some bytes" * 9}) for name, pack in PACKERS.items()}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_end_in_one_line(data: st.DataObject, whole: dict[str, Path], tmp_path: Path) -> None:
    raw = whole[data.draw(st.sampled_from(sorted(PACKERS)))].read_bytes()
    place = data.draw(st.integers(0, min(len(raw), 1200) - 1))
    byte = data.draw(st.none() | st.integers(0, 255))
    damaged = raw[:place] if byte is None else raw[:place] + bytes([byte]) + raw[place + 1 :]
    (tmp_path / "a").write_bytes(damaged)
    said = complaint(read_members, tmp_path / "a", ["test_batch"])
    assert not said or (said.startswith(str(tmp_path)) and "\n" not in said)
