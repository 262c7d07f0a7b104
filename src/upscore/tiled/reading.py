"""Pictures read with Pillow, upright, in full depth, handed out row by row as floats.

Pillow keeps colour pictures with 8 bits a channel. Where a file has 16, its low bytes are fetched by decoding it a
second time with the byte order of the raw mode exchanged.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from upscore.errors import FileFormatError

__all__ = ["MAX_MEGAPIXELS", "Picture", "read"]

MAX_MEGAPIXELS = 1000
"""Larger pictures are refused: a few bytes of file can claim any size."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# ImageDescription, Make, Model, XResolution, YResolution, ResolutionUnit, Software, DateTime, Artist, Copyright
_DESCRIPTIVE = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298}
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_SIZES = {0xA002, 0xA003, 0xA005}  # PixelXDimension, PixelYDimension, the place of the interoperability directory
_SWAPPED = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture: ``channels`` is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), ``bits`` 8 or 16."""

    image: Image.Image
    low: Image.Image | None
    bits: int
    icc: bytes | None
    exif: bytes | None
    notes: tuple[str, ...]

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def channels(self) -> int:
        return len(self.image.getbands())

    def rows(self, top: int, bottom: int) -> NDArray[np.float32]:
        """Rows ``[top, bottom)`` in [0, 1], ``(channels, bottom - top, width)``."""
        box = (0, top, self.width, bottom)
        array = np.asarray(self.image.crop(box)).astype(np.float32)
        if self.low is not None:
            array = 256 * array + np.asarray(self.low.crop(box))
        array /= np.float32(2**self.bits - 1)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def read(path: Path) -> Picture:
    """The picture of a file, turned upright as its EXIF orientation says.

    Raises FileFormatError when it cannot be read, and OSError when there is no such file.
    """
    try:
        with _allowing_large(), Image.open(path) as image:
            return _decode(path, image)
    except UnidentifiedImageError:
        raise FileFormatError(f"{path}: not a picture of a known format, such as JPEG, PNG, WebP or TIFF") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError, FileFormatError):
        raise
    except Image.DecompressionBombError:
        raise FileFormatError(f"{path}: more than {MAX_MEGAPIXELS} megapixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        # Pillow's decoders raise whatever the damage makes them trip over.
        raise FileFormatError(f"{path}: a damaged picture ({error})") from error


@contextlib.contextmanager
def _allowing_large() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_MEGAPIXELS * 1_000_000 // 2  # Pillow warns here and refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(path: Path, image: Image.Image) -> Picture:
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} pictures in the file")
    raw_mode = _raw_mode(image)  # asked first: getexif may decode, and then it is gone
    exif = image.getexif()
    orientation = 1 if image.format == "TIFF" else exif.get(_ORIENTATION, 1)  # Pillow turns TIFFs while decoding
    icc = image.info.get("icc_profile")
    low = None
    bits = 8
    if image.mode in ("RGB", "RGBA") and ";16" in raw_mode and "transparency" not in image.info:
        with Image.open(path) as again:
            suffix = raw_mode[raw_mode.index(";16") :]
            again.tile = [_with_raw_mode(tile, suffix, _SWAPPED[suffix]) for tile in again.tile]
            again.load()
            low, bits = _upright(again, orientation), 16
    elif ";16" in raw_mode and not image.mode.startswith("I"):
        notes.append("16 bits a channel, of which 8 were read")
    image.load()
    if image.mode.startswith("I"):
        image, bits = _grey16(path, image), 16
    elif low is None:
        target = _target_mode(path, image)
        converted = image if image.mode == target else image.convert(target)  # convert always copies
        if image.mode in ("CMYK", "YCbCr", "LAB"):
            icc = None  # it described the colours before the conversion
            notes.append(f"converted from {image.mode} to RGB")
        image = converted
    return Picture(_upright(image, orientation), low, bits, icc, _descriptive(exif), tuple(notes))


def _raw_mode(image: Image.Image) -> str:
    """How the file stores a pixel, in Pillow's words: ``RGB;16B``."""
    for tile in getattr(image, "tile", []):
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if args and isinstance(args[0], str):
            return args[0]
    return ""


def _with_raw_mode(tile: Any, old: str, new: str) -> Any:
    if isinstance(tile.args, tuple):
        return tile._replace(args=(tile.args[0].replace(old, new), *tile.args[1:]))
    return tile._replace(args=tile.args.replace(old, new))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turned as the EXIF orientation asks (CIPA DC-008, Exif 2.32, tag 274)."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _descriptive(exif: Image.Exif) -> bytes | None:
    """What EXIF says of the photograph, without what it says of the file that held it (sizes, offsets, orientation)."""
    kept = Image.Exif()
    for tag in _DESCRIPTIVE & set(exif):
        kept[tag] = exif[tag]
    for directory in (_EXIF_IFD, _GPS_IFD):
        inner = {tag: value for tag, value in exif.get_ifd(directory).items() if tag not in _SIZES}
        if inner:
            kept.get_ifd(directory).update(inner)
            kept[directory] = 0  # Pillow fills in the place
    return kept.tobytes() if len(kept) else None


def _grey16(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise FileFormatError(f"{path}: 32 bits a pixel; grey pictures may have 8 or 16")
    return image if image.mode == "I;16" else image.convert("I").convert("I;16")


def _target_mode(path: Path, image: Image.Image) -> str:
    mode = image.mode
    if mode == "F":
        raise FileFormatError(f"{path}: floating-point pixels; save it with 16 bits a channel first")
    if mode in ("1", "L"):
        return "LA" if "transparency" in image.info else "L"
    if mode in ("LA", "La"):
        return "LA"
    return "RGBA" if mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info else "RGB"
