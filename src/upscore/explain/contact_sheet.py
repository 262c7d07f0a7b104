"""What feature maps look at, as one picture: projections in a square of nine, and beside it the patches they saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from upscore.explain.strongest import Look

__all__ = ["draw"]

_GAP, _TITLE = 4, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def draw(
    rows: Sequence[Sequence[Look]],
    to_image: Callable[[Tensor], Image.Image],
    *,
    order: str = "rgb",
    cell: int = 96,
) -> Image.Image:
    """One row for each feature map: its projections and, in the same order, the patches of the pictures.

    Args:
        rows: the looks of each feature map, strongest first.
        to_image: a picture of the network's ``(C, H, W)`` as an image of the same size to look at.
        order: of the network's channels, "rgb" or "bgr".
        cell: pixels of one patch's longer side.

    A map's patches have one size, that of the largest projection. Grey is zero; the scale of colours is each
    projection's own.
    """
    side = max(math.ceil(math.sqrt(len(row))) for row in rows)
    block = side * (cell + _GAP)
    sheet = Image.new("RGB", (2 * block + 3 * _GAP, len(rows) * (block + _TITLE + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = _GAP + r * (block + _TITLE + _GAP)
        first = row[0].activation
        title = f"map {first.map}: strongest {first.value:.3g}, projected back"
        pen.text((_GAP, top), title, _INK)
        pen.text((block + 2 * _GAP, top), "what it saw", _INK)
        for i, (look, box) in enumerate(zip(row, _boxes(row), strict=True)):
            x, y = _GAP + i % side * (cell + _GAP), top + _TITLE + i // side * (cell + _GAP)
            projected = _signed(look.projection, box, flip=order == "bgr")
            sheet.paste(_fit(projected, cell), (x, y))
            patch = to_image(look.picture).convert("RGB").crop((box[1], box[0], box[3], box[2]))
            sheet.paste(_fit(patch, cell), (x + block + _GAP, y))
    return sheet


def _boxes(row: Sequence[Look]) -> list[tuple[int, int, int, int]]:
    """A box around what each projection sees, all as large as the largest where the pictures are."""
    own = [look.box for look in row]
    height, width = max(b[2] - b[0] for b in own), max(b[3] - b[1] for b in own)
    boxes = []
    for look, (top, left, bottom, right) in zip(row, own, strict=True):
        _, rows, columns = look.projection.shape
        (first, last), (begin, end) = _span(top, bottom, height, rows), _span(left, right, width, columns)
        boxes.append((first, begin, last, end))
    return boxes


def _span(start: int, stop: int, length: int, size: int) -> tuple[int, int]:
    """``length`` positions around ``start`` to ``stop``, moved into ``size``."""
    length = min(length, size)
    first = min(max((start + stop - length) // 2, 0), size - length)
    return first, first + length


def _signed(projection: Tensor, box: tuple[int, int, int, int], *, flip: bool) -> Image.Image:
    numbers: NDArray[np.float64] = projection[:, box[0] : box[2], box[1] : box[3]].double().numpy()
    if flip:
        numbers = numbers[::-1]
    if len(numbers) != 3:
        numbers = np.repeat(numbers.mean(0, keepdims=True), 3, axis=0)
    scale = float(np.abs(numbers).max()) or 1.0
    grey = np.rint(127.5 + 127.5 * numbers / scale).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(grey.transpose(1, 2, 0)))


def _fit(image: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
