"""A network over a picture by tiles, with seams that are exact because every tile sees its true surroundings.

A network whose convolutions are all valid turns ``(h + 2 halo, w + 2 halo)`` pixels into ``factor`` times ``(h, w)``.
So a tile is cut with ``halo`` pixels around it: real ones inside the picture, copies of the border outside. Nothing
is blended and nothing is computed from made-up pixels; the result is that of the whole picture at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TILE", "Valid", "bands", "upscale_band"]

TILE = (256, 512)
"""Rows and columns of a tile: its features fill the caches, not the memory."""


class Valid(Protocol):
    """A network with valid convolutions only."""

    @property
    def factor(self) -> int:
        """Output pixels per input pixel, along each axis."""

    @property
    def halo(self) -> int:
        """Pixels that it needs around what it upscales."""

    def forward_valid(self, x: Tensor) -> Tensor:
        """``(N, 1, H + 2 halo, W + 2 halo)`` to ``(N, 1, factor H, factor W)``."""


def bands(height: int, halo: int, rows: int = TILE[0]) -> Iterator[tuple[int, int, int, int]]:
    """Cut ``height`` rows into bands: ``(top, bottom)`` and, of the picture, the rows ``[first, last)`` they need.

    >>> list(bands(10, halo=2, rows=4))
    [(0, 4, 0, 6), (4, 8, 2, 10), (8, 10, 6, 10)]
    """
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        yield top, bottom, max(0, top - halo), min(height, bottom + halo)


def upscale_band(
    network: Valid, rows: NDArray[Any], top: int, bottom: int, first: int, columns: int = TILE[1]
) -> NDArray[np.float32]:
    """The large rows of the band ``[top, bottom)``, ``(factor (bottom - top), factor W)``.

    ``rows`` are those of the picture from ``first`` on, as ``bands`` says, ``(last - first, W)``; where they end
    before the halo does, the picture ends, and its border is repeated.
    """
    factor, halo = network.factor, network.halo
    height, width = bottom - top, rows.shape[1]
    above = halo - (top - first)
    below = height + 2 * halo - above - len(rows)
    padded = np.pad(rows.astype(np.float32, copy=False), ((above, below), (halo, halo)), mode="edge")
    large = np.empty((factor * height, factor * width), np.float32)
    with torch.inference_mode():
        for left in range(0, width, columns):
            right = min(left + columns, width)
            tile = torch.from_numpy(padded[:, left : right + 2 * halo].copy())
            large[:, factor * left : factor * right] = network.forward_valid(tile[None, None])[0, 0].numpy()
    return large
