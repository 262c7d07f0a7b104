"""A picture's classes: found at the size that the network knows, drawn or written at the picture's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from upscore.errors import ArgumentError
from upscore.files import replacing
from upscore.networks.classes import Classes, normalised
from upscore.tiled import legend
from upscore.tiled.reading import Picture, read
from upscore.tiled.writing import Format, open_writer

__all__ = ["SIDE", "draw_file", "label_file", "labels"]

SIDE = 720
"""The longer side at which the street network sees best, chosen on CamVid's val list among 480 to 960.

It learned from pictures of 480 x 360 that were shown at 0.65 to 1.8 times their size.
"""

_BAND_PIXELS = 1 << 18
_VEIL = 0.5
"""How much of a drawn pixel is its class's colour."""

Tick = Callable[[float], None]


def labels(
    network: torch.nn.Module, picture: Picture, side: int = SIDE, tick: Tick = lambda _: None
) -> NDArray[np.uint8]:
    """The class of every pixel, ``(H, W)``.

    The network sees the picture with its longer side brought to ``side`` pixels; its scores are interpolated
    bilinearly to the picture's size, in bands, and the highest is taken.

    Raises:
        ArgumentError: when ``side`` is less than 1.
    """
    if side < 1:
        raise ArgumentError("side", "at least 1", side, f"side={SIDE}")
    pixels = torch.from_numpy(_resized(picture, side)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        scores = network(normalised(pixels))[0].numpy()
    found = np.empty((picture.height, picture.width), np.uint8)
    rows = max(1, _BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        band = _interpolated(scores, 1, picture.height, top, bottom)
        found[top:bottom] = _interpolated(band, 2, picture.width, 0, picture.width).argmax(0)
        tick(bottom / picture.height)
    return found


def draw_file(
    network: torch.nn.Module,
    classes: Classes,
    source: Path,
    target: Path,
    *,
    side: int = SIDE,
    quality: int = 95,
    tick: Tick = lambda _: None,
) -> dict[str, Any]:
    """Draw the classes over the picture ``source``, with a legend below, into ``target``.

    ``tick`` is told the fraction that is done. Returns what was done: sizes, the classes' shares of the picture,
    notes. Raises FileFormatError for a broken source and ArgumentError for a target that cannot hold the result.
    """
    picture = read(source)
    found = labels(network, picture, side, lambda done: tick(done / 2))
    shares = _shares(found, classes)
    entries = [(f"{name} {_percent(share)}", _colour(classes, name)) for name, share in shares.items()]
    below = legend.draw(entries, picture.width)
    alpha = picture.channels in (2, 4)
    height, width = picture.height + below.shape[0], below.shape[1]
    form = Format(width, height, 4 if alpha else 3, 8, picture.icc, picture.exif, quality)
    with replacing(target) as temporary, temporary.open("wb") as file:
        writer = open_writer(target, file, form)
        rows = max(1, _BAND_PIXELS // picture.width)
        for top in range(0, picture.height, rows):
            bottom = min(top + rows, picture.height)
            drawn = _veiled(picture.rows(top, bottom), classes.draw(found[top:bottom]))
            right = ((0, 0), (0, width - picture.width), (0, 0))
            writer.write(np.pad(drawn, right, constant_values=255))
            tick((1 + bottom / picture.height) / 2)
        writer.write(np.pad(below, ((0, 0), (0, 0), (0, int(alpha))), constant_values=255))
        writer.close()
    notes = list(picture.notes)
    if picture.bits > form.bits:
        notes.append(f"drawn with {form.bits} bits a channel")
    return {"width": width, "height": height, "classes": _rounded(shares), "notes": notes}


def label_file(
    network: torch.nn.Module,
    classes: Classes,
    source: Path,
    target: Path,
    *,
    side: int = SIDE,
    tick: Tick = lambda _: None,
) -> dict[str, Any]:
    """Write the class of every pixel of the picture ``source``: a PNG of the classes' numbers, with their colours.

    Returns and raises what :func:`draw_file` does.
    """
    if target.suffix.lower() != ".png":
        raise ArgumentError("output", "a name ending in .png for labels", target.name, f"{target.stem}.png")
    picture = read(source)
    found = labels(network, picture, side, tick)
    image = Image.fromarray(found, "P")
    image.putpalette([value for colour in classes.colours for value in colour])
    with replacing(target) as temporary:
        image.save(temporary, "PNG")
    shares = _rounded(_shares(found, classes))
    return {"width": image.width, "height": image.height, "classes": shares, "notes": list(picture.notes)}


def _resized(picture: Picture, side: int) -> NDArray[np.uint8]:
    """The picture as the network sees it, ``(h, w, 3)``."""
    image = picture.image
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    longest = max(image.size)
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0).convert("RGB")
    return np.array(small)


def _interpolated(x: NDArray[Any], axis: int, size: int, start: int, stop: int) -> NDArray[np.float32]:
    """The axis resized to ``size``, linearly between the pixels' centres; only what lies in [start, stop)."""
    n = x.shape[axis]
    if n == size:
        return x.take(np.arange(start, stop), axis)
    place = ((np.arange(start, stop) + 0.5) * n / size - 0.5).clip(0, n - 1)
    before = place.astype(np.intp)
    after = np.minimum(before + 1, n - 1)
    part = (place - before).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    low = x.take(before, axis)
    return low + part * (x.take(after, axis) - low)  # type: ignore[no-any-return]


def _veiled(planes: NDArray[np.float32], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours ``(h, w, 3)`` over planes ``(C, h, w)`` in [0, 1]: ``(h, w, 3 or 4)``."""
    rgb = planes[:3] if len(planes) > 2 else planes[:1].repeat(3, 0)
    mixed = 255 * (1 - _VEIL) * rgb.transpose(1, 2, 0) + _VEIL * colours
    drawn = [mixed] if len(planes) in (1, 3) else [mixed, 255 * planes[-1][..., None]]
    whole: NDArray[np.uint8] = np.rint(np.concatenate(drawn, axis=2)).astype(np.uint8)
    return whole


def _shares(found: NDArray[np.uint8], classes: Classes) -> dict[str, float]:
    """The classes that occur, each with its share of the pixels."""
    counts = np.bincount(found.ravel(), minlength=len(classes))
    return {name: count / found.size for name, count in zip(classes.names, counts.tolist(), strict=True) if count}


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _colour(classes: Classes, name: str) -> tuple[int, int, int]:
    return classes.colours[classes.names.index(name)]
