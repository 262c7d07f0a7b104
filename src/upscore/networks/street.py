"""A small fully convolutional network for streets, meant for cameras and CPUs.

Everything below half the resolution happens in factorised bottlenecks: a 3x3 convolution to half the channels, two
depthwise branches of a column and a row each, one plain and one dilated, and a 1x1 convolution back. That follows
Romera et al. 2018, "ERFNet" (factorised filters, transposed convolutions for decoding), and Li et al. 2019, "DABNet"
(the two branches). Context is the mean of the whole picture, added where the map is coarsest, after Liu et al. 2015,
"ParseNet". All upsampling is by transposed convolutions of 4x4 taps and stride 2, whose four phases have equal
numbers of taps, with skips added at every scale; downsampling is by windows of 4x4 and 2x2, so that both ways are
aligned to the pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upscore.nn import ConvTranspose2d

__all__ = ["Street"]

_FACTOR = 16


class _Down(nn.Module):
    """Half the size: a convolution of stride 2 beside a max pooling, as ENet's initial block has them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after - before, 4, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class _Branch(nn.Sequential):
    """A depthwise column and row of 3 taps each, ``dilation`` apart."""

    def __init__(self, channels: int, dilation: int) -> None:
        column = nn.Conv2d(
            channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1), groups=channels, bias=False
        )
        row = nn.Conv2d(
            channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=channels, bias=False
        )
        super().__init__(column, row, nn.BatchNorm2d(channels))


class _Block(nn.Module):
    """The factorised bottleneck, added to its input."""

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        inner = channels // 2
        self.reduce = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.near = _Branch(inner, 1)
        self.far = _Branch(inner, dilation) if dilation > 1 else None
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        self.expanded = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.reduce(x)))
        z = self.near(y) if self.far is None else self.near(y) + self.far(y)
        return torch.relu(x + self.drop(self.expanded(self.expand(torch.relu(z)))))


class _Context(nn.Module):
    """What the picture is like on the whole, told to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x.mean((2, 3), keepdim=True)))


class _Up(nn.Module):
    """Twice the size by a transposed convolution, and the skip of that size added."""

    def __init__(self, before: int, after: int, skip: int) -> None:
        super().__init__()
        self.upscore = ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
        self.skip = nn.Conv2d(skip, after, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.relu(self.norm(self.upscore(x) + self.skip(skip)))


class Street(nn.Module):
    """Pictures ``(N, 3, H, W)`` of any size, normalised, to class scores ``(N, classes, H, W)``.

    Inside, a picture is continued with its last row and column up to the next multiple of 16, and the scores are cut.

    Args:
        classes: how many; 11 are CamVid's.
        width: channels at half the resolution; 2, 4 and 8 times as many at a quarter, an eighth and a sixteenth.
        dropout: of the residual branches at a sixteenth, in training.

    >>> network = Street()
    >>> sum(p.numel() for p in network.parameters()) < 2_000_000
    True
    >>> network.eval()(torch.zeros(1, 3, 45, 60)).shape
    torch.Size([1, 11, 45, 60])
    """

    def __init__(self, classes: int = 11, *, width: int = 24, dropout: float = 0.1) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(nn.Conv2d(3, w, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.quarter = nn.Sequential(_Down(w, 2 * w), *(_Block(2 * w) for _ in range(3)))
        self.eighth = nn.Sequential(_Down(2 * w, 4 * w), *(_Block(4 * w, d) for d in (2, 2, 4, 4, 8, 8)))
        self.sixteenth = nn.Sequential(
            _Down(4 * w, 8 * w), *(_Block(8 * w, d, dropout) for d in (2, 4, 8, 16)), _Context(8 * w)
        )
        self.up8 = _Up(8 * w, 4 * w, 4 * w)
        self.refine8 = _Block(4 * w)
        self.up4 = _Up(4 * w, 2 * w, 2 * w)
        self.refine4 = _Block(2 * w)
        self.up2 = _Up(2 * w, w, w)
        self.upscore = ConvTranspose2d(w, classes, 4, stride=2, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, ConvTranspose2d):
                # Of the 16 taps, 4 make one output: the variance of what goes on is kept.
                nn.init.normal_(module.weight, std=(2 / (4 * module.in_channels)) ** 0.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.upscore.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)`` of pictures ``(N, 3, H, W)``."""
        h, w = x.shape[2:]
        half = self.stem(F.pad(x, (0, -w % _FACTOR, 0, -h % _FACTOR), mode="replicate"))
        quarter = self.quarter(half)
        eighth = self.eighth(quarter)
        y = self.refine8(self.up8(self.sixteenth(eighth), eighth))
        y = self.refine4(self.up4(y, quarter))
        scores: Tensor = self.upscore(self.up2(y, half))
        return scores[..., :h, :w]
