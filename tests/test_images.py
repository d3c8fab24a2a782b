"""Reading: every file people have gives the right samples or one clear line."""

from __future__ import annotations

import csv
import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageCms

from pixfit import images
from pixfit.images import Image, ImageError, load, load_folder, load_mask

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test pictures are not there")
EXPECTATIONS = DATA / "awkward" / "EXPECTATIONS.csv"


def expectations() -> list[tuple[str, str]]:
    if not EXPECTATIONS.is_file():
        return []
    with EXPECTATIONS.open(encoding="utf-8", newline="") as stream:
        return [(row["path"], row["expected"]) for row in csv.DictReader(stream)]


def read_as_meant(path: Path) -> object:
    """Masks are read for the 225x150 picture they belong to."""
    return load_mask(path, (150, 225)) if path.name.startswith("mask_") else load(path)


def assert_one_line(error: ImageError, path: Path) -> None:
    text = str(error)
    assert "\n" not in text
    assert path.name in text
    assert len(text) < 400


@needs_data
@pytest.mark.parametrize(("path", "expected"), expectations())
def test_awkward_file(path: str, expected: str) -> None:
    file = DATA / path
    if expected == "error":
        with pytest.raises(ImageError) as caught:
            read_as_meant(file)
        assert_one_line(caught.value, file)
    elif expected == "ok":
        assert read_as_meant(file) is not None
    else:
        try:
            read_as_meant(file)
        except ImageError as error:
            assert_one_line(error, file)


@needs_data
def test_all_expectations_are_tested() -> None:
    assert len(expectations()) >= 54
    assert all((DATA / path).is_file() for path, _ in expectations())


@needs_data
def test_sixteen_bit_rgb_keeps_every_bit() -> None:
    deep = load(DATA / "awkward/made/rgb16.png")
    plain = load(DATA / "awkward/made/rgb8_reference_for_rgb16.png")
    assert deep.bit_depth == 16
    assert torch.equal(deep.data, plain.data)  # 257·v / 65535 = v / 255 exactly


@needs_data
def test_sixteen_bit_grey_ramp_spans_the_range() -> None:
    ramp = load(DATA / "awkward/made/gray16_ramp.png")
    assert ramp.bit_depth == 16
    assert ramp.data.min() == 0.0
    assert ramp.data.max() == 1.0
    levels = torch.unique(ramp.data) * 255
    assert len(levels) == 225
    assert (levels - levels.round()).abs().max() > 0.4  # not cut to 8 bits


@needs_data
def test_exif_rotation_makes_partners_equal() -> None:
    upright, turned = load(DATA / "awkward/exif/Landscape_1.jpg"), load(DATA / "awkward/exif/Landscape_6.jpg")
    assert turned.data.shape == upright.data.shape
    assert (turned.data - upright.data).abs().mean() < 0.02
    assert "EXIF rotation applied (orientation 6)" in turned.notes


@needs_data
def test_cmyk_is_not_inverted() -> None:
    colour = load(DATA / "awkward/made/rgb8_reference_for_rgb16.png").data.mean(dim=(1, 2))
    cmyk = load(DATA / "awkward/made/cmyk.jpg").data.mean(dim=(1, 2))
    assert (colour - cmyk).abs().max() < 0.05
    adobe = load(DATA / "awkward/pillow/pil_sample_cmyk.jpg")
    with PillowImage.open(DATA / "awkward/pillow/pil_sample_cmyk.jpg") as picture:
        expected = np.asarray(picture.convert("RGB")).mean(axis=(0, 1)) / 255
    assert np.abs(adobe.data.mean(dim=(1, 2)).numpy() - expected).max() < 0.01


@needs_data
@pytest.mark.parametrize("name", ["martian_terrain_4096x2160.jpg", "sunset_by_the_pier_5470x3646.jpg"])
def test_large_picture(name: str) -> None:
    image = load(DATA / "large" / name)
    assert f"{image.width}x{image.height}" in name
    with pytest.raises(ImageError, match="max_pixels=1000000"):
        load(DATA / "large" / name, max_pixels=1_000_000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = PillowImage.Exif()
    exif[274] = orientation
    PillowImage.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", stored.astype(np.uint16) * 257, extratags=[(274, "H", 1, orientation, True)])
    for name in ("a.png", "a.tif"):
        image = load(tmp_path / name)
        assert np.array_equal(np.rint(image.data[0].numpy() * 255), upright), name
        assert bool(image.notes) == (orientation != 1)


def test_bundled_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coffee = load("coffee")
    assert (coffee.width, coffee.height, coffee.channels, coffee.name) == (600, 400, 3, "coffee")
    assert all(load(name).pixels > 10_000 for name in images.BUNDLED)
    with pytest.raises(ImageError, match=r"no such file.*did you mean 'coffee'"):
        load("cofee")
    monkeypatch.chdir(tmp_path)
    PillowImage.new("L", (3, 2), 7).save("coffee", "PNG")
    assert load("coffee").pixels == 6  # a file of that name wins


@pytest.mark.parametrize("source", ["no/such/file.png", "a\0b", "x" * 5000, ""])
def test_unusable_paths_are_one_line_errors(source: str) -> None:
    with pytest.raises(ImageError) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_alpha_policies(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 255, 51]]], np.uint8)
    PillowImage.fromarray(rgba).save(path)
    white, keep, drop = (load(path, alpha=policy) for policy in ("white", "keep", "drop"))
    assert np.array_equal(np.rint(white.data[:, 0].T.numpy() * 255), [[255] * 3, [10, 20, 30], [204, 224, 255]])
    assert np.array_equal(np.rint(keep.data.permute(1, 2, 0).numpy() * 255), rgba)
    assert torch.equal(drop.data, keep.data[:3])
    assert [image.notes for image in (white, keep, drop)] == [
        ("alpha composited on white",),
        ("alpha kept as the last channel",),
        ("alpha dropped",),
    ]
    assert len({white.hash, keep.hash, drop.hash}) == 3
    with pytest.raises(ImageError, match="alpha must be one of"):
        load(path, alpha="black")


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    picture = PillowImage.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 90, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "p.png", transparency=0)
    image = load(tmp_path / "p.png", alpha="keep")
    assert np.rint(image.data[3].numpy() * 255).tolist() == [[0, 255]]
    assert np.rint(load(tmp_path / "p.png").data[:, 0].numpy() * 255).T.tolist() == [[255] * 3, [0, 90, 0]]


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: list[bytes], *chunks: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    extra = b"".join(chunk(part[:4], part[4:]) for part in chunks)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bit_depth", "colour_type", "row", "key", "samples"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (2, 0, b"\x70", b"\0\3", [85, 255]),
        (4, 0, b"\x3f", b"\0\x0f", [51, 255]),
        (8, 0, b"\x03\x09", b"\0\x09", [3, 9]),
        (16, 0, b"\x03\x01\x03\x02", b"\x03\x02", [0x301, 0x302]),
        (8, 2, b"\1\2\3\4\5\6", b"\0\4\0\5\0\6", [[1, 2, 3], [4, 5, 6]]),
        (16, 2, b"\1\1\2\2\3\3\1\1\2\2\3\4", b"\1\1\2\2\3\4", [[0x101, 0x202, 0x303], [0x101, 0x202, 0x304]]),
    ],
)
def test_png_transparent_value(
    bit_depth: int, colour_type: int, row: bytes, key: bytes, samples: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, bit_depth, colour_type, [row], b"tRNS" + key))
    image = load(path, alpha="keep")
    peak = 65535 if bit_depth == 16 else 255
    assert np.rint(image.data[:-1, 0].T.numpy() * peak).squeeze().tolist() == samples
    assert image.data[-1, 0].tolist() == [1.0, 0.0]


def test_interlaced_sixteen_bit_rgb(tmp_path: Path) -> None:
    # one pixel and three more in the passes of Adam7 for a 2x2 picture: (0,0); (1,0); then row 1
    pixels = [b"".join(struct.pack(">H", 1000 * k + c) for c in range(3)) for k in range(4)]
    rows = b"\0" + pixels[0] + b"\0" + pixels[1] + b"\0" + pixels[2] + pixels[3]
    plain = png(2, 2, 16, 2, [])
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 1)
    body = b"IHDR" + header
    data = b"IDAT" + zlib.compress(rows)
    end = plain[-12:]
    file = plain[:8]
    for part in (body, data):
        file += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    (tmp_path / "a.png").write_bytes(file + end)
    image = load(tmp_path / "a.png")
    expected = [[1000 * k + c for c in range(3)] for k in range(4)]
    assert np.rint(image.data.permute(1, 2, 0).reshape(4, 3).numpy() * 65535).tolist() == expected


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_tiff_modes_and_compressions(mode: str, compression: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = (
        PillowImage.fromarray(rng.integers(0, 65536, (5, 7), dtype=np.uint16))
        if mode == "I;16"
        else PillowImage.fromarray(rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)).convert(mode)
    )
    picture.save(tmp_path / "a.tif", compression=compression)
    image = load(tmp_path / "a.tif", alpha="keep")
    shown = picture.convert("L" if mode == "1" else "RGB" if mode == "CMYK" else mode)
    expected = np.asarray(shown)
    peak = 65535 if mode == "I;16" else 255
    assert np.array_equal(np.rint(image.data.permute(1, 2, 0).numpy() * peak).squeeze(), expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_planes_and_inverted_grey(dtype: type, planar: str, tmp_path: Path) -> None:
    peak = 1 if dtype is np.float32 else np.iinfo(dtype).max
    colour = (np.random.default_rng(1).random((4, 6, 3)) * peak).astype(dtype)
    stored = colour if planar == "contig" else np.moveaxis(colour, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    expected = colour.astype(np.float32) / np.float32(peak)
    assert np.array_equal(load(tmp_path / "a.tif").data.permute(1, 2, 0).numpy(), expected)
    tifffile.imwrite(tmp_path / "b.tif", peak - colour[..., 0], photometric="miniswhite")
    assert np.allclose(load(tmp_path / "b.tif").data[0].numpy(), expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_lzw_tiff_keeps_every_bit(channels: int, byteorder: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(2).integers(0, 65536, (3, 5, channels), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter([lzw(samples.astype(f"{byteorder}u2").tobytes())]),
        shape=samples.squeeze().shape,
        dtype=np.uint16,
        photometric="rgb" if channels >= 3 else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",  # a lie, mended below: tifffile stores encoded strips as they are but knows no LZW
        rowsperstrip=3,
        byteorder=byteorder,
    )
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(5)
    image = load(path, alpha="keep")
    assert image.bit_depth == 16
    assert np.array_equal(np.rint(image.data.permute(1, 2, 0).numpy() * 65535), samples)


def lzw(data: bytes) -> bytes:
    """A valid TIFF LZW stream that compresses nothing: 9-bit literals, the table cleared before it grows."""
    codes = [code for at, byte in enumerate(data) for code in ([256, byte] if at % 200 == 0 else [byte])]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_value_range(tmp_path: Path) -> None:
    for name, write in (("a.npy", np.save), ("a.tif", tifffile.imwrite)):
        path = tmp_path / name
        write(path, np.array([[-2.0, 0.0, 6.0]], np.float32))
        with pytest.raises(ImageError, match=r"from -2 to 6.*value_range"):
            load(path)
        image = load(path, value_range=(-2, 6))
        assert image.data.tolist() == [[[0.0, 0.25, 1.0]]]
        assert image.bit_depth == 32
        with pytest.raises(ImageError, match="black < white"):
            load(path, value_range=(6, -2))
    write(path, np.array([[0, 4095]], np.uint16))
    assert load(path, value_range=(0, 4095)).data.tolist() == [[[0.0, 1.0]]]
    with pytest.raises(ImageError, match="value_range is for"):
        load("coffee", value_range=(0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(value: float, tmp_path: Path) -> None:
    samples = np.zeros((4, 4), np.float32)
    samples[1, 2] = value
    np.save(tmp_path / "a.npy", samples)
    tifffile.imwrite(tmp_path / "a.tif", samples)
    for name in ("a.npy", "a.tif"):
        with pytest.raises(ImageError, match="finite"):
            load(tmp_path / name, value_range=(0, 1))


@pytest.mark.parametrize(
    ("shape", "channels", "note"),
    [((5, 6), 1, False), ((5, 6, 3), 3, False), ((3, 5, 6), 3, True), ((3, 4, 4), 4, False), ((1, 5, 6), 1, True)],
)
def test_npy_layouts(shape: tuple[int, ...], channels: int, note: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    image = load(tmp_path / "a.npy", alpha="keep")
    assert image.channels == channels
    assert ("array read as (C, H, W)" in image.notes) == note


@pytest.mark.parametrize("array", [np.zeros((2, 3, 5)), np.zeros(4), np.zeros((0, 3)), np.zeros((2, 2), "U3")])
def test_npy_that_is_no_picture(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    if array.shape == (2, 3, 5):
        assert load(tmp_path / "a.npy").channels == 1  # (C, H, W): grey and alpha on white
        return
    with pytest.raises(ImageError):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize("white", [1000, 65535])
def test_deep_ppm(white: int, tmp_path: Path) -> None:
    samples = np.array([[[0, white // 2, white]]], ">u2")
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 # made by hand\n1 1\n%d\n" % white + samples.tobytes())
    image = load(path)
    assert image.bit_depth == 16
    assert np.abs(image.data.flatten().numpy() - samples.flatten() / white).max() < 1e-5
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="truncated"):
        load(path)


def test_icc_profile_is_converted_and_broken_one_noted(tmp_path: Path) -> None:
    grey = PillowImage.new("RGB", (2, 2), (120, 60, 200))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey.save(tmp_path / "srgb.png", icc_profile=lab)
    assert load(tmp_path / "srgb.png").notes == ()
    grey.save(tmp_path / "broken.png", icc_profile=b"not a profile")
    broken = load(tmp_path / "broken.png")
    assert "ICC profile unusable, colours left as stored" in broken.notes
    assert torch.equal(broken.data, load(tmp_path / "srgb.png").data)
    # the same primaries under another name, with red and green swapped: a profile that visibly changes the picture
    swapped = bytearray(lab)
    tags = {lab[at : at + 4]: struct.unpack(">II", lab[at + 4 : at + 12]) for at in range(132, 132 + 12 * 20, 12)}
    red, green = tags[b"rXYZ"][0], tags[b"gXYZ"][0]
    swapped[red : red + 20], swapped[green : green + 20] = lab[green : green + 20], lab[red : red + 20]
    renamed = (
        bytes(swapped).replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be")).replace(b"sRGB", b"odd ", 0)
    )
    grey.save(tmp_path / "swapped.png", icc_profile=renamed)
    image = load(tmp_path / "swapped.png")
    assert any("converted to sRGB" in note for note in image.notes)
    assert np.abs(image.data[:, 0, 0].numpy() * 255 - [60, 120, 200]).max() < 3


def test_frames_are_counted(tmp_path: Path) -> None:
    frames = [PillowImage.new("RGB", (4, 3), (60 * k, 0, 0)) for k in range(3)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        image = load(tmp_path / name)
        assert "first of 3 frames" in image.notes, name
        assert float(image.data.max()) == 0.0, name


def test_load_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.gif", "notes.txt", ".hidden.png"):
        PillowImage.new("L", (3, 2)).save(tmp_path / name, "PNG")
    (tmp_path / "inner.png").mkdir()
    assert [image.name for image in load_folder(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(ImageError, match="holds no picture"):
        load_folder(tmp_path / "inner.png")
    with pytest.raises(ImageError, match="no such folder"):
        load_folder(tmp_path / "none")
    with pytest.raises(ImageError, match="load_folder"):
        load(tmp_path)


def test_mask(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    PillowImage.fromarray(np.array([[0, 255, 255]], np.uint8)).save(path)
    assert load_mask(path, (1, 3)).tolist() == [[False, True, True]]
    with pytest.raises(ImageError, match="3x1 but the picture is 1x3"):
        load_mask(path, (3, 1))
    PillowImage.fromarray(np.array([[[0, 0, 0, 255], [255, 255, 255, 0]]], np.uint8)).save(path)
    with pytest.raises(ImageError, match="only white"):
        load_mask(path, (1, 2))
    PillowImage.fromarray(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8)).save(path)
    with pytest.raises(ImageError, match="only white"):
        load_mask(path, (1, 2))


def test_pillow_limit_is_left_alone() -> None:
    before = PillowImage.MAX_IMAGE_PIXELS
    load("camera")
    assert before == PillowImage.MAX_IMAGE_PIXELS is not None


def small_files() -> dict[str, bytes]:
    """One valid small file per format, as bytes."""
    rng = np.random.default_rng(3)
    rgb = PillowImage.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    files: dict[str, bytes] = {}

    def keep(name: str, picture: PillowImage.Image, kind: str, **options: object) -> None:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        files[name] = stream.getvalue()

    keep("rgb.png", rgb, "PNG")
    keep("palette.png", rgb.quantize(8), "PNG", transparency=b"\x00\x80\xff")
    keep("exif.jpg", rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    keep("cmyk.jpg", rgb.convert("CMYK"), "JPEG")
    keep("a.webp", rgb, "WEBP")
    keep("a.gif", rgb.quantize(8), "GIF", save_all=True, append_images=[rgb.rotate(90).quantize(4)])
    keep("a.bmp", rgb, "BMP")
    keep("a.tga", rgb, "TGA", compression="tga_rle")
    keep("a.ppm", rgb, "PPM")
    keep("lzw.tif", rgb, "TIFF", compression="tiff_lzw")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    keep("icc.png", rgb, "PNG", icc_profile=profile)
    files["deep.ppm"] = b"P6\n2 1\n1023\n" + bytes(12)
    for name, array in (("f.tif", rng.random((5, 4, 3), np.float32)), ("deep.tif", np.zeros((5, 4), np.uint16))):
        stream = io.BytesIO()
        tifffile.imwrite(stream, array, photometric="rgb" if array.ndim == 3 else "minisblack")
        files[name] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, rng.random((5, 4), np.float32))
    files["a.npy"] = stream.getvalue()
    files["deep.png"] = png(1, 2, 16, 6, [bytes(range(8)), bytes(range(8, 16))])
    return files


SMALL_FILES = small_files()


@pytest.mark.parametrize("name", SMALL_FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_gives_an_image_or_one_line(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(SMALL_FILES[name])
    path = tmp_path / name
    path.write_bytes(content)
    assert load(path).pixels > 0
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path.write_bytes(content[:length])
    try:
        image = load(path, max_pixels=1 << 20)
    except ImageError as error:
        assert_one_line(error, path)
    else:
        assert 0.0 <= float(image.data.min()) <= float(image.data.max()) <= 1.0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64), suffix=st.sampled_from([".png", ".tga", ".npy", ".tif"]), head=st.booleans())
def test_random_bytes_give_one_line(content: bytes, suffix: str, head: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    start = {".png": b"\x89PNG\r\n\x1a\n", ".npy": b"\x93NUMPY", ".tif": b"II*\0", ".tga": b"P6\n"}[suffix]
    path.write_bytes((start if head else b"") + content)
    try:
        load(path, max_pixels=1 << 16)
    except ImageError as error:
        assert_one_line(error, path)


def test_image_value() -> None:
    image = Image(torch.rand(3, 4, 5), name="a")
    assert (image.channels, image.height, image.width, image.pixels) == (3, 4, 5, 20)
    other = Image(image.data.clone(), name="b", notes=("x",))
    assert image == other
    assert len({image, other}) == 1
    assert "a" not in str(image.canonical_value().keys() - {"hash", "channels", "height", "width", "bit_depth"})
    assert image != Image(image.data, bit_depth=16)
    assert image != Image(image.data.transpose(1, 2))
    assert image != "a"
    assert repr(image) == "Image('a', 5x4, 3 channels, 8-bit)"
    with PillowImage.open(io.BytesIO(image._repr_png_())) as preview:
        assert preview.size == (5, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.name = "c"  # type: ignore[misc]


def test_hash_sees_differences_below_a_level() -> None:
    data = torch.full((1, 2, 2), 0.5)
    nudged = data.clone()
    nudged[0, 0, 0] += 1e-6
    assert Image(data) != Image(nudged)
    assert Image(torch.zeros(1, 1, 1), bit_depth=32) == Image(-torch.zeros(1, 1, 1), bit_depth=32)


def test_hash_is_that_of_the_documented_bytes() -> None:
    import hashlib

    samples = np.array([[[1, 2], [3, 250]]], np.uint8)
    image = Image.from_array(samples[0])
    assert image.hash == hashlib.sha256(b"pixfit image 1 uint8 1 2 2 8 white\n" + samples.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 4), "float32"),
        (torch.zeros(5, 4, 4), "C from 1 to 4"),
        (torch.zeros(3, 0, 4), "no empty side"),
        (torch.zeros(3, 4, 4, dtype=torch.float64), "float64"),
        (torch.full((1, 2, 2), 1.5), "1.5"),
        (torch.full((1, 2, 2), torch.nan), "NaN"),
    ],
)
def test_image_refuses(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Image(data)


@pytest.mark.parametrize(
    ("dtype", "white", "depth"),
    [(np.uint8, 255, 8), (np.uint16, 65535, 16), (np.bool_, True, 8), (np.float64, 1.0, 32), (np.float16, 1.0, 32)],
)
def test_from_array(dtype: type, white: object, depth: int) -> None:
    array = np.zeros((4, 5, 3), dtype)
    array[1, 2] = white
    image = Image.from_array(array)
    assert (image.data.shape, image.bit_depth) == ((3, 4, 5), depth)
    assert image.data[:, 1, 2].tolist() == [1.0] * 3
    assert image == Image.from_array(torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0))))
    assert Image.from_array(array[..., 0]) == Image.from_array(torch.from_numpy(array[..., 0].copy()))
    array[:] = 0
    assert image.data.max() == 1.0  # the image owns its samples


def test_from_array_refuses() -> None:
    with pytest.raises(ImageError, match="no agreed white level"):
        Image.from_array(np.zeros((2, 2), np.int32))
    with pytest.raises(ImageError, match="real numbers"):
        Image.from_array(np.zeros((2, 2), complex))
    with pytest.raises(ImageError, match=r"expected \(C, H, W\)"):
        Image.from_array(torch.zeros(5, 5, 3))
    assert Image.from_array(np.array([[0, 4095]], np.int32), value_range=(0, 4095)).data.max() == 1.0
