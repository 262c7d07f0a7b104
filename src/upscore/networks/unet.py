"""U-Net: Ronneberger, Fischer and Brox 2015, "U-Net: convolutional networks for biomedical image segmentation"."""

from __future__ import annotations

import itertools
from itertools import pairwise

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError
from upscore.geometry import CoordinateMap
from upscore.networks.cropping import common, coordinate_map, offset_of, shifted
from upscore.nn import ConvTranspose2d

__all__ = ["UNet"]


class UNet(nn.Module):
    """Pictures ``(N, channels, H, W)`` to class scores.

    Args:
        classes: how many.
        channels: of the picture.
        padded: convolutions keep the size, and scores have the picture's, whatever it is. Else, as in the paper,
            they are not padded and the scores are those of the picture's middle: 388 x 388 of 572 x 572. There a
            size should come to even ones before every pooling, or the last row or column is lost.
        width: channels of the first level, doubled at each; 64 in the paper.
        depth: poolings; 4 in the paper.

    Raises:
        ArgumentError: a picture that is too small.

    >>> with torch.device("meta"):
    ...     network = UNet()
    >>> network(torch.empty(1, 1, 572, 572, device="meta")).shape, network.crops
    (torch.Size([1, 2, 388, 388]), [(4, 4), (16, 16), (40, 40), (88, 88)])
    """

    crops: list[tuple[int, int]]
    """Where in the skips the upsampled maps begin: rows and columns, deepest first."""

    def __init__(
        self, classes: int = 2, *, channels: int = 1, padded: bool = False, width: int = 64, depth: int = 4
    ) -> None:
        super().__init__()
        self.padded = padded
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(self._two(*pair) for pair in pairwise([channels, *widths]))
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=padded)
        deepest_first = list(pairwise(widths[::-1]))
        self.up = nn.ModuleList(ConvTranspose2d(before, after, 2, stride=2) for before, after in deepest_first)
        self.merge = nn.ModuleList(self._two(before, after) for before, after in deepest_first)
        self.score = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.crops = self._crops()

    def _two(self, before: int, after: int) -> nn.Sequential:
        padding = 1 if self.padded else 0
        first, second = nn.Conv2d(before, after, 3, padding=padding), nn.Conv2d(after, after, 3, padding=padding)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def _crops(self) -> list[tuple[int, int]]:
        path = CoordinateMap.identity(2)
        skips = []
        for level, block in enumerate(self.down):
            path = path.then(coordinate_map(_windows(block)))
            if level < len(self.up):
                skips.append(path)
                path = path.then(coordinate_map([self.pool]))
        crops = []
        for up, merge in zip(self.up, self.merge, strict=True):
            path = path.then(coordinate_map([up]))
            offset = offset_of(skips.pop(), path)
            crops.append(offset)
            path = shifted(path, (-offset[0], -offset[1])).then(coordinate_map(_windows(merge)))
        return crops

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H', W')`` of pictures ``(N, channels, H, W)``."""
        self._check(x)
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, merge, offset in zip(self.up, self.merge, self.crops, strict=True):
            skip, x = common(skips.pop(), up(x), offset)
            x = merge(torch.cat([skip, x], dim=1))
        scores: Tensor = self.score(x)
        return scores

    def _check(self, x: Tensor) -> None:
        if not self.padded and not all(self._fits(n) for n in x.shape[2:]):
            least = next(n for n in itertools.count(1) if self._fits(n))
            raise ArgumentError("x", f"at least {least} rows and columns", tuple(x.shape[2:]), f"{least} x {least}")

    def _fits(self, size: int) -> bool:
        """Whether scores are left of so many rows or columns, when every convolution takes 2 and poolings halve."""
        for _ in self.up:
            size = (size - 4) // 2
        size -= 4
        for _ in self.up:
            size = 2 * size - 4
        return size > 0


def _windows(block: nn.Module) -> list[nn.Module]:
    return [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
