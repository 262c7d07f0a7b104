"""A small fully convolutional network for streets, meant for cameras and CPUs, and to be trained on one.

On a CPU a dense 3x3 convolution of many channels runs near the machine's peak, while depthwise convolutions and
normalisations wait for memory. So the picture is made small early, and nearly all work is residual blocks of two dense
convolutions (He et al. 2016, arXiv:1512.03385) at an eighth and a sixteenth of the resolution, the second of each
dilated more and more to see the surroundings (Yu and Koltun 2016, arXiv:1511.07122). The mean of the whole picture is
added where the map is coarsest (Liu et al. 2015, "ParseNet", arXiv:1506.04579).

All upsampling is by transposed convolutions of 4x4 taps and stride 2, whose four phases have equal numbers of taps,
with skips added at every scale; they start as a random mixture of channels, interpolated bilinearly. Downsampling is
by windows of 4x4 and 2x2, so that both ways are aligned to the pixel. The layers are torch's, whose bfloat16 is fast
in training; for inference :func:`upscore.nn.accelerate` swaps the transposed convolutions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upscore import filters
from upscore.errors import ArgumentError

__all__ = ["UPSAMPLINGS", "Street", "Upsampling"]

Upsampling = Literal["learned", "bilinear", "nearest-conv", "pixel-shuffle"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("learned", "bilinear", "nearest-conv", "pixel-shuffle")

_FACTOR = 16


def _twice(before: int, after: int, how: Upsampling) -> nn.Module:
    """Twice the size: (N, before, H, W) to (N, after, 2H, 2W), without a bias."""
    if how == "learned":
        return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
    if how == "bilinear":
        fixed = nn.ConvTranspose2d(after, after, 4, stride=2, padding=1, groups=after, bias=False)
        fixed.requires_grad_(False)
        return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), fixed)
    if how == "nearest-conv":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1, bias=False))
    if how == "pixel-shuffle":
        return nn.Sequential(nn.Conv2d(before, 4 * after, 3, padding=1, bias=False), nn.PixelShuffle(2))
    raise ArgumentError("upsampling", f"one of {', '.join(UPSAMPLINGS)}", repr(how), "learned")


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A normalisation by its statistics as ``scale * x + shift``, a number of each for every channel."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _scale(module: nn.Module, scale: Tensor) -> None:
    """Multiply the outputs of a convolution; anything else, interpolation included, hands on what it is given."""
    if isinstance(module, nn.ConvTranspose2d) and module.groups == 1:
        module.weight.mul_(scale[:, None, None])
    elif isinstance(module, nn.Conv2d):  # before a pixel shuffle it has four channels for one
        module.weight.mul_(scale.repeat_interleave(module.out_channels // len(scale))[:, None, None, None])


class _Conv(nn.Sequential):
    """A convolution, normalised, and rectified unless it ends a block; windows of 2 and 4 halve the size."""

    def __init__(self, before: int, after: int, kernel: int = 3, *, dilation: int = 1, rectified: bool = True) -> None:
        halves = kernel % 2 == 0
        conv = nn.Conv2d(
            before,
            after,
            kernel,
            stride=2 if halves else 1,
            padding=kernel // 2 - 1 if halves else kernel // 2 * dilation,
            dilation=dilation,
            bias=False,
        )
        super().__init__(conv, nn.BatchNorm2d(after), *([nn.ReLU()] if rectified else []))

    def fold(self) -> None:
        scale, shift = _affine(self[1])
        _scale(self[0], scale)
        self[0].bias = nn.Parameter(shift, requires_grad=False)
        self[1] = nn.Identity()


class _Block(nn.Module):
    """Two convolutions, the second one dilated, added to their input."""

    def __init__(self, channels: int, dilation: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = _Conv(channels, channels)
        self.second = _Conv(channels, channels, dilation=dilation, rectified=False)
        self.drop = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.drop(self.second(self.first(x))))


class _Context(nn.Module):
    """What the picture is like on the whole, told to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x.mean((2, 3), keepdim=True)))


class _Up(nn.Module):
    """Twice the size, and the skip of that size added."""

    def __init__(self, before: int, after: int, skip: int, how: Upsampling) -> None:
        super().__init__()
        self.upscore = _twice(before, after, how)
        self.skip = nn.Conv2d(skip, after, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.relu(self.norm(self.upscore(x) + self.skip(skip)))

    def fold(self) -> None:
        scale, shift = _affine(self.norm)
        for module in self.upscore.modules():
            _scale(module, scale)
        _scale(self.skip, scale)
        self.skip.bias = nn.Parameter(shift, requires_grad=False)
        self.norm = nn.Identity()


class Street(nn.Module):
    """Pictures ``(N, 3, H, W)`` of any size, normalised, to class scores ``(N, classes, H, W)``.

    Inside, a picture is continued with its last row and column up to the next multiple of 16, and the scores are cut.

    Args:
        classes: how many; 11 are CamVid's.
        width: a sixteenth of the number of channels at half the resolution that goes on to the scores; the other
            numbers are multiples of it.
        dropout: of the residual branches at a sixteenth, in training.
        upsampling: "learned" is by transposed convolutions; the others take their place for comparison: "bilinear"
            interpolation of a 1x1 convolution, "nearest-conv", pixels repeated before a 3x3 convolution, or
            "pixel-shuffle", a 3x3 convolution whose channels interleave (Shi et al. 2016, arXiv:1609.05158).

    Raises:
        ArgumentError: for another ``upsampling``.

    >>> network = Street()
    >>> sum(p.numel() for p in network.parameters()) < 2_000_000
    True
    >>> network.eval()(torch.zeros(1, 3, 45, 60)).shape
    torch.Size([1, 11, 45, 60])
    """

    def __init__(
        self, classes: int = 11, *, width: int = 16, dropout: float = 0.1, upsampling: Upsampling = "learned"
    ) -> None:
        super().__init__()
        w, how = width, upsampling
        half, quarter, eighth, sixteenth = 2 * w, 3 * w, 6 * w, 7 * w
        self.stem = _Conv(3, half, 4)
        self.quarter = nn.Sequential(_Conv(half, quarter, 4), _Block(quarter, 1))
        self.eighth = nn.Sequential(_Conv(quarter, eighth, 4), *(_Block(eighth, d) for d in (1, 2, 4)))
        blocks = (_Block(sixteenth, d, dropout) for d in (2, 4, 8, 4))
        self.sixteenth = nn.Sequential(_Conv(eighth, sixteenth, 2), *blocks, _Context(sixteenth))
        self.up8 = _Up(sixteenth, 4 * w, eighth, how)
        self.refine8 = _Conv(4 * w, 4 * w)
        self.up4 = _Up(4 * w, 2 * w, quarter, how)
        self.refine4 = _Conv(2 * w, 2 * w)
        self.up2 = _Up(2 * w, w, half, how)
        # Without a bias, whose gradient alone takes torch twice as long as the rest of this layer.
        self.upscore = _twice(w, classes, how)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.ConvTranspose2d):
                bilinear = torch.from_numpy(filters.bilinear(2)).to(module.weight)
                mix = torch.ones(module.weight.shape[:2])
                if module.groups == 1:
                    nn.init.normal_(mix, std=(2 / module.in_channels) ** 0.5)
                module.weight.copy_(mix[:, :, None, None] * bilinear)
            elif isinstance(module, _Block):
                # Every block starts as the identity (Goyal et al. 2017, arXiv:1706.02677).
                nn.init.zeros_(module.second[1].weight)  # type: ignore[arg-type]

    @torch.no_grad()
    def fold(self) -> Street:
        """Put the normalisations into the kernels, for inference only: the same scores, up to rounding, sooner."""
        for module in self.eval().requires_grad_(False).modules():
            if isinstance(module, (_Conv, _Up)):
                module.fold()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)`` of pictures ``(N, 3, H, W)``."""
        h, w = x.shape[2:]
        half = self.stem(F.pad(x, (0, -w % _FACTOR, 0, -h % _FACTOR), mode="replicate"))
        quarter = self.quarter(half)
        eighth = self.eighth(quarter)
        y = self.refine8(self.up8(self.sixteenth(eighth), eighth))
        y = self.refine4(self.up4(y, quarter))
        scores: Tensor = self.upscore(self.up2(y, half))
        return scores[..., :h, :w].contiguous()  # class by class, as the losses read them
