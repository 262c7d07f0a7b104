"""SegNet: Badrinarayanan, Kendall and Cipolla 2017, "SegNet: a deep convolutional encoder-decoder architecture".

The convolutions of VGG-16, and a decoder of their mirror image: unpooling with the switches of the poolings, then
convolutions that make the sparse maps dense. Batch normalisation after every convolution but the last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upscore.networks import vgg
from upscore.nn import MaxUnpool2d

__all__ = ["SegNet"]


class SegNet(nn.Module):
    """Pictures ``(N, 3, H, W)`` of any size to class scores ``(N, classes, H, W)``.

    Names are those of the authors' Caffe net: ``conv5_3_D`` is the decoder's counterpart of ``conv5_3`` and has its
    channels reversed; ``conv1_1_D`` makes the scores.

    Args:
        classes: how many; 11 are CamVid's.
        width: channels of the first stage; 64 is VGG-16's.

    >>> with torch.device("meta"):
    ...     SegNet()(torch.empty(1, 3, 360, 480)).shape
    torch.Size([1, 11, 360, 480])
    """

    def __init__(self, classes: int = 11, *, width: int = 64) -> None:
        super().__init__()
        channels = 3
        reversed_: list[tuple[str, int, int]] = []
        for stage, factor in enumerate(vgg.FACTORS, 1):
            for name in vgg.names(stage):
                self._add(name, channels, width * factor)
                reversed_.append((f"{name}_D", width * factor, channels))
                channels = width * factor
        for name, before, after in reversed(reversed_):
            self._add(name, before, classes if name == "conv1_1_D" else after)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=True)
        self.unpool = MaxUnpool2d(2, 2)

    def _add(self, name: str, before: int, after: int) -> None:
        layer = nn.Conv2d(before, after, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        setattr(self, name, layer)
        if name != "conv1_1_D":
            setattr(self, f"{name}_bn", nn.BatchNorm2d(after))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)`` of pictures ``(N, 3, H, W)``."""
        switches, sizes = [], []
        for stage in range(1, 6):
            for name in vgg.names(stage):
                x = self._run(name, x)
            sizes.append(x.shape[2:])
            x, where = self.pool(x)
            switches.append(where)
        for stage in range(5, 0, -1):
            x = self.unpool(x, switches.pop(), sizes.pop())
            for name in reversed(vgg.names(stage)):
                x = self.get_submodule("conv1_1_D")(x) if name == "conv1_1" else self._run(f"{name}_D", x)
        return x
