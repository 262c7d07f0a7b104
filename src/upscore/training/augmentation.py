"""Random views of a labelled picture: scaled, cut, mirrored, under another light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from upscore.errors import ArgumentError
from upscore.training.labelled import Labelled

__all__ = ["Augmentation"]

_GREY = torch.tensor([0.299, 0.587, 0.114])
"""What BT.601 makes grey of."""


@dataclass(frozen=True)
class Augmentation:
    """The ranges that views are drawn from.

    ``scale`` is how many pixels of the view a pixel of the picture becomes, log-uniform; ``aspect`` by which factor
    (or its inverse) at most the two axes' scales differ. What of a view lies outside the picture is mid-grey, and void.
    Brightness, contrast, saturation and the gain of each channel change by at most the fraction ``light``.

    Raises:
        ArgumentError: naming the range that cannot work.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    aspect: float = 1.1
    mirror: bool = True
    light: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ArgumentError("scale", "two positive numbers, the smaller first", self.scale, "scale=(0.5, 2)")
        if self.aspect < 1:
            raise ArgumentError("aspect", "at least 1", self.aspect, "aspect=1.1")
        if not 0 <= self.light < 1:
            raise ArgumentError("light", "at least 0 and below 1", self.light, "light=0.3")

    def __call__(
        self, item: Labelled, size: tuple[int, int], void: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A view of ``size`` (H, W): float RGB of 0 to 255, ``(3, H, W)``, and labels, int64 ``(H, W)``."""
        draws = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        scale = math.exp(_between(math.log(self.scale[0]), math.log(self.scale[1]), draws[0]))
        stretch = self.aspect ** _between(-0.5, 0.5, draws[1])
        width, left, source_x = _window(item.picture.width, size[1], scale * stretch, draws[2])
        height, top, source_y = _window(item.picture.height, size[0], scale / stretch, draws[3])
        box = (source_x[0], source_y[0], source_x[1], source_y[1])
        picture = np.full((*size, 3), 127, np.uint8)
        labels = np.full(size, void, np.uint8)
        place = np.s_[top : top + height, left : left + width]
        picture[place] = np.asarray(item.picture.resize((width, height), Image.Resampling.BILINEAR, box))
        labels[place] = np.asarray(item.labels.resize((width, height), Image.Resampling.NEAREST, box))
        if self.mirror and draws[4] < 0.5:
            picture, labels = picture[:, ::-1], labels[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).float()
        if self.light:
            matrix, offset = self._light(draws[5:])
            pixels = torch.addmm(offset, pixels.view(-1, 3), matrix.T).view(pixels.shape).clamp_(0, 255)
        return pixels.permute(2, 0, 1), torch.from_numpy(np.ascontiguousarray(labels)).long()

    def _light(self, draws: list[float]) -> tuple[Tensor, Tensor]:
        """The matrix and the offset that colours (R, G, B) go through."""
        brightness, contrast, saturation = (_between(-self.light, self.light, draw) for draw in draws[:3])
        gains = torch.tensor([1 + _between(-self.light, self.light, draw) / 3 for draw in draws[3:6]])
        matrix = (1 + saturation) * torch.eye(3) - saturation * _GREY.expand(3, 3)
        matrix = (1 + contrast) * gains[:, None] * matrix
        return matrix, torch.full((3,), 127 * (brightness - contrast))


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _window(pixels: int, size: int, scale: float, draw: float) -> tuple[int, int, tuple[float, float]]:
    """One axis of a view: how many of its ``size`` pixels show the picture, from which on, and which part of it."""
    wanted = size / scale
    if wanted <= pixels:
        start = draw * (pixels - wanted)
        return size, 0, (start, min(start + wanted, float(pixels)))
    shown = min(size, max(1, round(pixels * scale)))
    return shown, round(draw * (size - shown)), (0.0, float(pixels))
