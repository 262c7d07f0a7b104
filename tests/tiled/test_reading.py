"""Reading: every mode, orientation and depth that files come in, and files that are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from upscore.errors import FileFormatError
from upscore.tiled import reading
from upscore.tiled.reading import read

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "name", "channels"),
    [
        ("1", "a.png", 1),
        ("L", "a.png", 1),
        ("LA", "a.png", 2),
        ("P", "a.png", 3),
        ("RGB", "a.tif", 3),
        ("RGB", "a.webp", 3),
        ("RGB", "a.bmp", 3),
        ("RGBA", "a.png", 4),
        ("CMYK", "a.tif", 3),
    ],
)
def test_modes(tmp_path: Path, mode: str, name: str, channels: int) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    picture = read(tmp_path / name)
    assert (picture.channels, picture.bits, picture.width, picture.height) == (channels, 8, 9, 6)
    target = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    expected = np.asarray(image.convert(target)).reshape(6, 9, channels)[2:5]
    assert np.array_equal(np.rint(255 * picture.rows(2, 5)).transpose(1, 2, 0), expected)


@pytest.mark.parametrize("keyed", ["RGB", "P", "L"])
def test_a_transparent_colour_becomes_an_alpha_channel(tmp_path: Path, keyed: str) -> None:
    image = Image.new(keyed, (4, 3))
    if keyed == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((1, 2), 1 if keyed != "RGB" else (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=1 if keyed != "RGB" else (9, 9, 9))
    alpha = read(tmp_path / "a.png").rows(0, 3)[-1]
    assert alpha[2, 1] == 0
    assert alpha.sum() == 11


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_become_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0110] = "Camera"
    exif.get_ifd(0x8769).update({0x829A: 0.125, 0xA002: 9})
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    picture = read(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.rint(255 * picture.rows(0, picture.height)).transpose(1, 2, 0), expected)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept.get(0x0112) is None
    assert kept[0x0110] == "Camera"
    assert dict(kept.get_ifd(0x8769)) == {0x829A: 0.125}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int, compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(RGB).save(tmp_path / "a.tif", exif=exif, compression=compression)
    expected, found = read(tmp_path / "a.png"), read(tmp_path / "a.tif")
    assert np.array_equal(found.rows(0, found.height), expected.rows(0, expected.height))


@pytest.mark.parametrize(("name", "byte_order"), [("a.png", ">"), ("a.tif", "<"), ("b.tif", ">")])
def test_sixteen_bit_grey(tmp_path: Path, name: str, byte_order: str) -> None:
    values = RANDOM.integers(0, 65536, (5, 7), dtype=np.uint16)
    mode = "I;16B" if name == "b.tif" else "I;16"
    Image.frombytes(mode, (7, 5), values.astype("<u2" if mode == "I;16" else ">u2").tobytes()).save(tmp_path / name)
    picture = read(tmp_path / name)
    assert (picture.channels, picture.bits) == (1, 16)
    assert np.array_equal(np.rint(65535 * picture.rows(0, 5))[0], values)


def test_the_first_of_several_pictures_is_read_and_said(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.new("RGB", (9, 6))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    picture = read(tmp_path / "a.tif")
    assert picture.notes == ("the first of 2 pictures in the file",)
    assert np.array_equal(np.rint(255 * picture.rows(0, 6)).transpose(1, 2, 0), RGB)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=name):
        read(path)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("not a picture")
    with pytest.raises(FileFormatError, match=r"a.png: not a picture of a known format, such as JPEG"):
        read(path)
    Image.fromarray(np.ones((3, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(FileFormatError, match=r"a.tif: floating-point pixels; save it with 16 bits a channel first"):
        read(tmp_path / "a.tif")
    Image.fromarray(np.full((3, 4), 70000, np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(FileFormatError, match=r"b.tif: 32 bits a pixel; grey pictures may have 8 or 16"):
        read(tmp_path / "b.tif")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png")
    monkeypatch.setattr(reading, "MAX_MEGAPIXELS", 0.00001)
    Image.fromarray(RGB).save(path)
    with pytest.raises(FileFormatError, match=r"a.png: more than 1e-05 megapixels"):
        read(path)
