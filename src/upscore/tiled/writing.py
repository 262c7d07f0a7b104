"""Pictures written row by row: PNG and TIFF without ever holding the picture, JPEG and WebP through Pillow.

PNG: W3C, Portable Network Graphics (Third Edition). TIFF: Adobe, TIFF Revision 6.0 and its technical notes for
deflate (compression 8) and the differencing predictor (2); BigTIFF where 4 GiB are not enough.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from upscore.errors import ArgumentError

__all__ = ["SUFFIXES", "Format", "Writer", "depth_of", "open_writer"]

_LEVEL = 4
"""Of zlib: twice as fast as the usual 6, files about two per cent larger."""

_LARGEST_TIFF = 4_000_000_000
"""Bytes of pixels from which on a TIFF is a BigTIFF: offsets have 32 bits, and noise does not shrink."""


@dataclass(frozen=True)
class Format:
    """A file's pixels: sizes, 1 to 4 channels of 8 or 16 bits; and its colour profile and EXIF as they are stored."""

    width: int
    height: int
    channels: int
    bits: int
    icc: bytes | None = None
    exif: bytes | None = None
    quality: int = 95


class Writer(Protocol):
    """Rows from top to bottom, then ``close``."""

    def write(self, rows: NDArray[Any]) -> None:
        """``(h, width, channels)``, uint8 or uint16 as the format says."""

    def close(self) -> None:
        """Finish the file."""


class PngWriter:
    """PNG, with the Paeth filter on every row."""

    def __init__(self, file: BinaryIO, form: Format) -> None:
        self.file, self.form = file, form
        self.zlib = zlib.compressobj(_LEVEL)
        self.pixel = form.channels * form.bits // 8
        self.above = np.zeros((1, form.width * self.pixel), np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[form.channels]
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", form.width, form.height, form.bits, colour, 0, 0, 0))
        if form.icc:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(form.icc))
        if form.exif:
            self._chunk(b"eXIf", form.exif.removeprefix(b"Exif\0\0"))

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, rows: NDArray[Any]) -> None:
        for top in range(0, len(rows), 32):  # the filter needs several copies of what it filters
            self._write(rows[top : top + 32])

    def _write(self, rows: NDArray[Any]) -> None:
        big_endian = np.ascontiguousarray(rows.astype(">u2" if self.form.bits == 16 else np.uint8, copy=False))
        raw = big_endian.view(np.uint8).reshape(len(rows), -1)
        up = np.concatenate([self.above, raw[:-1]])
        self.above = raw[-1:]
        filtered = np.full((len(rows), 1 + raw.shape[1]), 4, np.uint8)
        filtered[:, 1:] = raw - _paeth(_shifted(raw, self.pixel), up, _shifted(up, self.pixel))
        data = self.zlib.compress(filtered.tobytes())
        if data:
            self._chunk(b"IDAT", data)

    def close(self) -> None:
        self._chunk(b"IDAT", self.zlib.flush())
        self._chunk(b"IEND", b"")


def _shifted(rows: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """Each byte's left neighbour, zero before the first pixel."""
    left = np.zeros_like(rows)
    left[:, pixel:] = rows[:, :-pixel]
    return left


def _paeth(left: NDArray[np.uint8], up: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of three neighbours the one nearest to left + up - corner; ties go to left, then up (PNG, section 9.4)."""
    a, b, c = (plane.astype(np.int16) for plane in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)


class TiffWriter:
    """TIFF in deflated strips, little-endian; the directory comes last."""

    def __init__(self, file: BinaryIO, form: Format) -> None:
        self.file, self.form = file, form
        self.big = form.width * form.height * form.channels * form.bits // 8 > _LARGEST_TIFF
        self.word = "<Q" if self.big else "<I"
        self.strips: list[tuple[int, int]] = []
        self.rows_per_strip = 0
        # The place of the directory is not known yet: zero for now.
        file.write(b"II" + (struct.pack("<HHHQ", 43, 8, 0, 0) if self.big else struct.pack("<HI", 42, 0)))

    def write(self, rows: NDArray[Any]) -> None:
        if not self.strips:
            self.rows_per_strip = len(rows)
        whole = rows.astype("<u2" if self.form.bits == 16 else np.uint8)
        whole[:, 1:] -= whole[:, :-1].copy()
        data = zlib.compress(whole.tobytes(), _LEVEL)
        self.strips.append((self.file.tell(), len(data)))
        self.file.write(data)

    def close(self) -> None:
        form, alpha = self.form, self.form.channels in (2, 4)
        tags: list[tuple[int, str, tuple[int, ...] | bytes]] = [
            (256, "I", (form.width,)),
            (257, "I", (form.height,)),
            (258, "H", (form.bits,) * form.channels),
            (259, "H", (8,)),  # deflate
            (262, "H", (2 if form.channels > 2 else 1,)),  # RGB, or black is zero
            (273, self.word[1], tuple(offset for offset, _ in self.strips)),
            (277, "H", (form.channels,)),
            (278, "I", (self.rows_per_strip,)),
            (279, self.word[1], tuple(size for _, size in self.strips)),
            (284, "H", (1,)),  # channels side by side
            (317, "H", (2,)),  # each pixel less the one before
        ]
        if alpha:
            tags.append((338, "H", (2,)))  # not multiplied into the colours
        if form.icc:
            tags.append((34675, "B", form.icc))
        entries = [self._entry(*tag) for tag in tags]  # long values are written on the way
        if self.file.tell() % 2:
            self.file.write(b"\0")
        directory = self.file.tell()
        count = struct.pack("<Q" if self.big else "<H", len(entries))
        self.file.write(count + b"".join(entries) + struct.pack(self.word, 0))
        self.file.seek(8 if self.big else 4)
        self.file.write(struct.pack(self.word, directory))

    def _entry(self, tag: int, code: str, values: tuple[int, ...] | bytes) -> bytes:
        data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{code}", *values)
        room = struct.calcsize(self.word)
        if len(data) > room:
            if self.file.tell() % 2:
                self.file.write(b"\0")
            place = self.file.tell()
            self.file.write(data)
            data = struct.pack(self.word, place)
        kind = {"B": 1, "H": 3, "I": 4, "Q": 16}[code]
        return struct.pack("<HH", tag, kind) + struct.pack(self.word, len(values)) + data.ljust(room, b"\0")


class PillowWriter:
    """JPEG and WebP: Pillow encodes them, and needs the picture whole (4 bytes a pixel, 1 when grey)."""

    def __init__(self, file: BinaryIO, form: Format, kind: str) -> None:
        self.file, self.form, self.kind = file, form, kind
        self.image = Image.new({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[form.channels], (form.width, form.height))
        self.top = 0

    def write(self, rows: NDArray[Any]) -> None:
        self.image.paste(Image.fromarray(rows[..., 0] if self.form.channels == 1 else rows), (0, self.top))
        self.top += len(rows)

    def close(self) -> None:
        options: dict[str, Any] = {"quality": self.form.quality}
        if self.kind == "JPEG":
            options["subsampling"] = 0
        for name, value in (("icc_profile", self.form.icc), ("exif", self.form.exif)):
            if value:
                options[name] = value
        self.image.save(self.file, self.kind, **options)


SUFFIXES: dict[str, str] = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}
_LONGEST = {"PNG": 2**31 - 1, "TIFF": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}


def format_of(path: Path) -> str:
    """The format that a file name asks for. Raises ArgumentError for one that upscore does not write."""
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise ArgumentError(
            "output", f"a name ending in {', '.join(SUFFIXES)}", path.name, f"{path.stem}.png"
        ) from None


def depth_of(path: Path, bits: int) -> int:
    """The bits a channel that the file will have: JPEG and WebP hold 8."""
    return bits if format_of(path) in ("PNG", "TIFF") else 8


def open_writer(path: Path, file: BinaryIO, form: Format) -> Writer:
    """A writer of the format that the name ``path`` asks for; the bytes go to ``file``, open for binary writing."""
    kind = format_of(path)
    if max(form.width, form.height) > _LONGEST[kind]:
        expected = f"a format for {form.width} x {form.height} pixels; {kind} holds {_LONGEST[kind]} a side"
        raise ArgumentError("output", expected, path.name, f"{path.stem}.png")
    if kind == "JPEG" and form.channels in (2, 4):
        raise ArgumentError("output", "a format that holds transparency", path.name, f"{path.stem}.png")
    makers: dict[str, Callable[[BinaryIO, Format], Writer]] = {"PNG": PngWriter, "TIFF": TiffWriter}
    return makers[kind](file, form) if kind in makers else PillowWriter(file, form, kind)
