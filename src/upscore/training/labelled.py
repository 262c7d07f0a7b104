"""Folders of pictures and their labels, read once and checked before anything is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.classes import Classes

__all__ = ["Labelled", "frequencies", "read"]

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
_LABELS = {".png", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass(frozen=True)
class Labelled:
    """A picture (RGB) and its labels (8-bit grey, a class or void each), of the same size, decoded in memory."""

    name: str
    picture: Image.Image
    labels: Image.Image


def read(folder: Path, classes: Classes, tick: Callable[[float], None] = lambda _: None) -> list[Labelled]:
    """The pictures of ``folder/images`` with the labels of the same stem in ``folder/labels``, sorted by name.

    Labels are pictures of one channel (or of a palette) whose values are the classes' numbers. ``tick`` is told the
    fraction read.

    Raises:
        ArgumentError: when there are no pictures.
        FileFormatError: naming the file that cannot be read, has no counterpart, or holds what it must not.
    """
    pictures = _by_stem(folder / "images", _PICTURES)
    labels = _by_stem(folder / "labels", _LABELS)
    if not pictures:
        raise ArgumentError(
            "data", "pictures in train/images and val/images", f"none in {folder / 'images'}", "--data camvid"
        )
    for stem, path in pictures.items():
        if stem not in labels:
            raise FileFormatError(f"{path}: has no labels; expected {folder / 'labels' / stem}.png")
    found = []
    for number, (stem, path) in enumerate(pictures.items(), 1):
        picture, label = _opened(path, "RGB"), _label(labels[stem], classes)
        if picture.size != label.size:
            sizes = [f"{image.width} x {image.height}" for image in (label, picture)]
            raise FileFormatError(f"{labels[stem]}: {sizes[0]} labels for {path.name}, which has {sizes[1]} pixels")
        found.append(Labelled(stem, picture, label))
        tick(number / len(pictures))
    return found


def frequencies(labelled: Sequence[Labelled], classes: Classes) -> NDArray[np.float64]:
    """Which share of the labelled pixels each class has."""
    counts = sum(np.asarray(item.labels.histogram()[: len(classes)], np.float64) for item in labelled)
    return np.asarray(counts / max(1.0, float(np.sum(counts))))


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        expected = "a folder with train/images, train/labels, val/images and val/labels"
        raise ArgumentError("data", expected, f"no folder {folder}", "--data camvid")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def _opened(path: Path, mode: str | None = None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy() if mode is None else image.convert(mode)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path}: not a picture that can be read ({error})") from error


def _label(path: Path, classes: Classes) -> Image.Image:
    image = _opened(path)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise FileFormatError(f"{path}: labels are pictures of one channel, not of the mode {image.mode}")
    values = np.asarray(image).astype(np.int64)
    wrong = values[(values != classes.void) & ((values < 0) | (values >= len(classes)))]
    if wrong.size:
        expected = f"0 to {len(classes) - 1}, or {classes.void} where there is no class"
        raise FileFormatError(f"{path}: labels are {expected}; {wrong.size} pixels have others, as {wrong[0]}")
    return Image.fromarray(values.astype(np.uint8))
