"""The legend below a picture: coloured patches and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

_SMALLEST = 12
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def draw(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> NDArray[np.uint8]:
    """The ``entries``, texts and colours, in columns: ``(h, w, 3)``, with ``w`` the ``width``, or more to be readable.

    The letters grow with the picture, so that they are as readable when it is shown on a screen.

    >>> draw([("road", (128, 64, 128)), ("sky", (128, 128, 128))], 480).shape
    (24, 480, 3)
    """
    size = max(_SMALLEST, width // 40)
    font = ImageFont.load_default(size)
    gap = size // 2
    column = gap + size + gap + round(max(font.getlength(text) for text, _ in entries)) + gap
    columns = max(1, min(len(entries), width // column))
    rows = -(-len(entries) // columns)
    step = size + gap
    canvas = Image.new("RGB", (max(width, column), rows * step + gap), _PAPER)
    pencil = ImageDraw.Draw(canvas)
    for i, (text, colour) in enumerate(entries):
        x, y = gap + i // rows * column, gap + i % rows * step
        pencil.rectangle((x, y, x + size - 1, y + size - 1), colour, _INK)
        pencil.text((x + size + gap, y + size / 2), text, _INK, font, anchor="lm")
    return np.asarray(canvas)
