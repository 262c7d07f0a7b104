"""DeconvNet: Noh, Hong and Han 2015, "Learning deconvolution network for semantic segmentation".

VGG-16 down to one vector by a 7x7 convolution, and its mirror image back: a 7x7 transposed convolution, then
unpooling with the switches of the poolings and transposed convolutions of stride 1. Batch normalisation everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError
from upscore.networks import vgg
from upscore.nn import ConvTranspose2d, MaxUnpool2d

__all__ = ["DeconvNet"]


class DeconvNet(nn.Module):
    """Pictures ``(N, 3, H, W)`` to class scores ``(N, classes, H, W)``; the paper's are 224 x 224.

    Any size is taken whose fifth pooling (sizes round up) has room for fc6: from 193 on with the paper's 7.

    Args:
        classes: how many.
        width: channels of the first stage; 64 is VGG-16's, and fc6 and fc7 have 64 times as many.
        fc_kernel: of fc6 and its mirror image.

    Raises:
        ArgumentError: a picture that is too small.

    >>> with torch.device("meta"):
    ...     DeconvNet().eval()(torch.empty(1, 3, 224, 224)).shape
    torch.Size([1, 21, 224, 224])
    """

    def __init__(self, classes: int = 21, *, width: int = 64, fc_kernel: int = 7) -> None:
        super().__init__()
        channels = 3
        for stage, factor in enumerate(vgg.FACTORS, 1):
            for name in vgg.names(stage):
                self._add(name, nn.Conv2d(channels, width * factor, 3, padding=1))
                channels = width * factor
        self._add("fc6", nn.Conv2d(channels, 64 * width, fc_kernel))
        self._add("fc7", nn.Conv2d(64 * width, 64 * width, 1))
        self._add("fc6_deconv", ConvTranspose2d(64 * width, channels, fc_kernel))
        for stage in range(5, 0, -1):
            depth = vgg.DEPTHS[stage - 1]
            for i in range(1, depth + 1):
                # The last of a stage has the channels of the stage that follows, which is the finer one.
                out = width * vgg.FACTORS[max(stage - 2, 0)] if i == depth else width * vgg.FACTORS[stage - 1]
                self._add(f"deconv{stage}_{i}", ConvTranspose2d(channels, out, 3, padding=1))
                channels = out
        self.seg_score = nn.Conv2d(channels, classes, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=True)
        self.unpool = MaxUnpool2d(2, 2)
        self.fc_kernel = fc_kernel

    def _add(self, name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in" if isinstance(layer, nn.Conv2d) else "fan_out")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        setattr(self, name, layer)
        setattr(self, f"bn_{name}", nn.BatchNorm2d(layer.out_channels))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(f"bn_{name}")(self.get_submodule(name)(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)`` of pictures ``(N, 3, H, W)``."""
        least = 32 * (self.fc_kernel - 1) + 1
        if min(x.shape[2:]) < least:
            raise ArgumentError("x", f"at least {least} rows and columns", tuple(x.shape[2:]), f"{least} x {least}")
        switches, sizes = [], []
        for stage in range(1, 6):
            for name in vgg.names(stage):
                x = self._run(name, x)
            sizes.append(x.shape[2:])
            x, where = self.pool(x)
            switches.append(where)
        for name in ("fc6", "fc7", "fc6_deconv"):
            x = self._run(name, x)
        for stage in range(5, 0, -1):
            x = self.unpool(x, switches.pop(), sizes.pop())
            for i in range(1, vgg.DEPTHS[stage - 1] + 1):
                x = self._run(f"deconv{stage}_{i}", x)
        scores: Tensor = self.seg_score(x)
        return scores
