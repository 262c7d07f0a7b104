"""What our writers write, others read: Pillow decodes it to the same pixels, profile and EXIF."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from upscore.errors import ArgumentError
from upscore.tiled import writing
from upscore.tiled.reading import read
from upscore.tiled.writing import Format, open_writer

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pixels(channels: int, bits: int, height: int = 21, width: int = 34) -> NDArray[np.unsignedinteger]:
    """A gradient with noise, so that every branch of a filter is taken."""
    noise = np.random.default_rng(channels).random((height, width, channels))
    slope = np.linspace(0, 1, width)[None, :, None]
    return np.rint((0.7 * slope + 0.3 * noise) * (2**bits - 1)).astype(f"u{bits // 8}")


def write(path: Path, rows: NDArray[np.unsignedinteger], icc: bytes | None = None, exif: bytes | None = None) -> None:
    height, width, channels = rows.shape
    with path.open("wb") as file:
        writer = open_writer(path, file, Format(width, height, channels, 8 * rows.itemsize, icc, exif))
        for top in range(0, height, 8):
            writer.write(rows[top : top + 8])
        writer.close()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_eight_bits(tmp_path: Path, channels: int, suffix: str) -> None:
    path, rows = tmp_path / f"a{suffix}", pixels(channels, 8)
    write(path, rows, icc=PROFILE)
    with Image.open(path) as image:
        image.load()
        assert image.mode == MODES[channels]
        assert image.info["icc_profile"] == PROFILE
        assert np.array_equal(np.asarray(image).reshape(rows.shape), rows)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits(tmp_path: Path, channels: int, suffix: str) -> None:
    path, rows = tmp_path / f"a{suffix}", pixels(channels, 16)
    write(path, rows)
    with Image.open(path) as image:  # Pillow keeps the high bytes of colours, all of grey
        theirs = np.asarray(image).reshape(rows.shape)
        assert np.array_equal(theirs, rows if channels == 1 else rows >> 8)
    picture = read(path)
    ours = np.rint(picture.rows(0, len(rows)) * 65535).transpose(1, 2, 0)
    assert (picture.bits, picture.channels) == (16, channels)
    assert np.array_equal(ours, rows)


def test_png_chunks_are_intact(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x010F] = "Maker"
    write(path, pixels(3, 8), icc=PROFILE, exif=exif.tobytes())
    data, kinds = path.read_bytes()[8:], []
    while data:
        (size,), kind = struct.unpack(">I", data[:4]), data[4:8]
        assert zlib.crc32(data[4 : 8 + size]) == struct.unpack(">I", data[8 + size : 12 + size])[0]
        kinds.append(kind)
        data = data[12 + size :]
    assert kinds[:3] == [b"IHDR", b"iCCP", b"eXIf"]
    assert kinds[-1] == b"IEND"
    with Image.open(path) as image:
        assert image.getexif()[0x010F] == "Maker"


def test_a_big_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_LARGEST_TIFF", 100)
    path, rows = tmp_path / "a.tif", pixels(3, 8)
    write(path, rows, icc=PROFILE)
    assert path.read_bytes()[:4] == b"II\x2b\x00"
    with Image.open(path) as image:
        assert image.info["icc_profile"] == PROFILE
        assert np.array_equal(np.asarray(image), rows)


@pytest.mark.parametrize(("suffix", "channels"), [(".jpg", 1), (".jpeg", 3), (".webp", 3), (".webp", 4)])
def test_jpeg_and_webp_are_close(tmp_path: Path, suffix: str, channels: int) -> None:
    slope = np.linspace(30, 200, 40)[None, :, None] * np.ones((24, 1, channels))
    path, rows = tmp_path / f"a{suffix}", slope.astype(np.uint8)
    write(path, rows, icc=PROFILE)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == PROFILE
        theirs = np.asarray(image.convert(MODES[channels])).reshape(rows.shape).astype(int)
    assert np.abs(theirs - rows).max() <= 6


@pytest.mark.parametrize(
    ("name", "width", "channels", "message"),
    [
        ("a.gif", 5, 3, r"output: expected a name ending in .png, .tif, .*, got a.gif; for example a.png"),
        ("a.jpg", 5, 4, r"output: expected a format that holds transparency, got a.jpg; for example a.png"),
        ("a.webp", 20000, 3, r"expected a format for 20000 x 4 pixels; WEBP holds 16383 a side, got a.webp"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path: Path, name: str, width: int, channels: int, message: str) -> None:
    with (tmp_path / name).open("wb") as file, pytest.raises(ArgumentError, match=message):
        open_writer(tmp_path / name, file, Format(width, 4, channels, 8))
