"""``upscale-x2``: a small super-resolution network whose upsampling is one transposed convolution.

Features are computed at the low resolution by 3x3 convolutions with skips and PReLUs; a single transposed
convolution of stride 2 then reads the features *and the picture itself* and writes the large picture (the layout of
FSRCNN, Dong, Loy, Tang 2016, arXiv:1608.00367, with thinner and deeper features). Its kernel for the picture starts
as bicubic interpolation and its kernels for the features start with the same weights in all phases, so that
training begins without a checkerboard; all of it is learned.

Every convolution is *valid*: it sees real pixels only. The picture is extended once, at the start, by ``halo``
pixels of its border. A tile cut from the middle, with its true neighbours for a halo, therefore has
the same output as the same place in the whole picture: seams are exact by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from upscore.networks import bicubic
from upscore.nn import ConvTranspose2d

__all__ = ["SuperResolution"]


class Block(nn.Module):
    """A valid 3x3 convolution and a PReLU, added to its input: ``(N, C, H, W)`` to ``(N, C, H - 2, W - 2)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.act(self.conv(x))
        return x[..., 1:-1, 1:-1] + added


class SuperResolution(nn.Module):
    """Luma ``(N, 1, H, W)`` in [0, 1] to luma ``(N, 1, 2H, 2W)``; 14,000 parameters with the defaults."""

    factor = 2

    def __init__(self, channels: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.channels, self.depth = channels, depth
        self.halo = 2 + depth + 2
        self.head = nn.Conv2d(1, channels, 5)
        self.act = nn.PReLU(channels)
        self.body = nn.Sequential(*(Block(channels) for _ in range(depth)))
        # Padding 3 would make 2n outputs of n inputs; 4 more take away those that lack one of their 4 inputs.
        self.upscore = ConvTranspose2d(channels + 1, 1, 8, stride=2, padding=3 + 4)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("conv.weight"):
                nn.init.kaiming_normal_(parameter, a=0.25).mul_(self.depth**-0.5)
        nn.init.kaiming_normal_(self.head.weight, a=0.25)
        weights = self.upscore.weight
        kernel = torch.from_numpy(bicubic.upsampling_kernel(self.factor)).float()
        weights[:1] = torch.outer(kernel, kernel)
        # Nearest-neighbour repetition of a 3x3 kernel: all four phases start with the same weights.
        small = torch.randn(self.channels, 1, 3, 3) * 0.1 / (9 * len(weights)) ** 0.5
        weights[1:] = functional.pad(small.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1), (1,) * 4)

    def forward_valid(self, x: Tensor) -> Tensor:
        """``(N, 1, H + 2 halo, W + 2 halo)`` to ``(N, 1, 2H, 2W)``: the picture comes with its surroundings."""
        features = self.body(self.act(self.head(x)))
        inner = self.halo - 2
        large: Tensor = self.upscore(torch.cat([x[..., inner:-inner, inner:-inner], features], dim=1))
        return large

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, H, W)`` to ``(N, 1, 2H, 2W)``: beyond its border the picture continues as its last pixel."""
        return self.forward_valid(functional.pad(x, (self.halo,) * 4, mode="replicate"))
