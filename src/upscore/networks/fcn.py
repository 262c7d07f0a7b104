"""FCN-32s, FCN-16s and FCN-8s: Long, Shelhamer and Darrell 2015, "Fully convolutional networks for semantic
segmentation".

VGG-16 without its classifier's last layer, fully connected layers as convolutions; class scores at strides 32, 16 and
8, each coarser sum upsampled by a transposed convolution and added to the next; the last one upsampled to pixels.
Layers are named as in the authors' Caffe nets, and sizes are Caffe's (poolings round up). No crop is written down:
all follow from the layers' windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError
from upscore.geometry import CoordinateMap
from upscore.networks import vgg
from upscore.networks.cropping import common, coordinate_map, crop_to, offset_of, shifted
from upscore.nn import ConvTranspose2d
from upscore.nn.init import bilinear_

__all__ = ["FCN", "FCN8s", "FCN16s", "FCN32s"]

_UPSCORES = {32: ("upscore",), 16: ("upscore2", "upscore16"), 8: ("upscore2", "upscore_pool4", "upscore8")}
_SKIPS = {32: (), 16: (4,), 8: (4, 3)}


class FCN(nn.Module):
    """Pictures ``(N, 3, H, W)`` of any size to class scores ``(N, classes, H, W)``.

    Args:
        stride: 32, 16 or 8, where the finest scores are made.
        classes: how many.
        padding: of ``conv1_1``: 100 as in the paper, with fc6 unpadded; or 1, with fc6 padded by 3 (the map of
            scores then covers the picture and no more, at a third of the work for small pictures).
        learned: whether the upsampling layers, which start bilinear, are learned; else they stay so.
        channelwise: whether they upsample every channel alone. Else, as in the authors' nets, there is a kernel for
            every pair of channels: the same numbers at the start, and ``classes`` times the work.
        skip_scales: what pool4 and pool3 are multiplied by on their way to the skips' score layers: (1, 1), or
            (0.01, 0.0001) to train FCN-8s at once (the authors' voc-fcn8s-atonce).
        width: channels of the first stage; 64 is VGG-16's, and fc6 and fc7 have 64 times as many.
        dropout: after fc6 and fc7, in training.

    Score layers start at zero, as the paper's; the encoder at random until :meth:`load_vgg` or :meth:`load_caffe`.

    Raises:
        ArgumentError: naming the argument that cannot work.

    >>> with torch.device("meta"):
    ...     network = FCN8s()
    >>> network(torch.empty(1, 3, 500, 333, device="meta")).shape
    torch.Size([1, 21, 500, 333])
    >>> network.crops
    {'score_pool4': (5, 5), 'score_pool3': (9, 9), 'score': (31, 31)}
    """

    crops: dict[str, tuple[int, int]]
    """The offsets of the crops, rows and columns; negative where the other path is the one to crop."""

    def __init__(
        self,
        stride: int,
        classes: int = 21,
        *,
        padding: int = 100,
        learned: bool = False,
        channelwise: bool = True,
        skip_scales: tuple[float, float] = (1.0, 1.0),
        width: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if stride not in _UPSCORES:
            raise ArgumentError("stride", "32, 16 or 8", stride, "stride=8")
        if padding not in (1, 100):
            raise ArgumentError("padding", "100, the paper's, or 1, the plain one", padding, "padding=100")
        for name, count in (("classes", classes), ("width", width)):
            if count < 1:
                raise ArgumentError(name, "at least 1", count, f"{name}=21")
        self.stride, self.classes, self.skip_scales = stride, classes, skip_scales
        channels = 3
        for stage, factor in enumerate(vgg.FACTORS, 1):
            for name in vgg.names(stage):
                pad = padding if name == "conv1_1" else 1
                setattr(self, name, nn.Conv2d(channels, width * factor, 3, padding=pad))
                channels = width * factor
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.fc6 = nn.Conv2d(channels, 64 * width, 7, padding=0 if padding == 100 else 3)
        self.fc7 = nn.Conv2d(64 * width, 64 * width, 1)
        self.drop = nn.Dropout2d(dropout)
        self.score_fr = nn.Conv2d(64 * width, classes, 1)
        for stage in _SKIPS[stride]:
            setattr(self, f"score_pool{stage}", nn.Conv2d(width * vgg.FACTORS[stage - 1], classes, 1))
        for name in _UPSCORES[stride]:
            factor = 2 if name in ("upscore2", "upscore_pool4") else stride
            groups = classes if channelwise else 1
            layer = ConvTranspose2d(classes, classes, 2 * factor, stride=factor, groups=groups, bias=False)
            layer.weight.requires_grad_(learned)
            setattr(self, name, layer)
        self._initialise()
        self.crops = self._crops()

    def _initialise(self) -> None:
        for name, layer in self.named_children():
            if isinstance(layer, ConvTranspose2d):
                bilinear_(layer.weight, groups=layer.groups)
            elif isinstance(layer, nn.Conv2d):
                if name.startswith("score"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def _stage(self, stage: int) -> list[nn.Module]:
        return [*(self.get_submodule(name) for name in vgg.names(stage)), self.pool]

    def _crops(self) -> dict[str, tuple[int, int]]:
        pools: dict[int, CoordinateMap] = {}
        path = CoordinateMap.identity(2)
        for stage in range(1, 6):
            path = pools[stage] = path.then(coordinate_map(self._stage(stage)))
        path = path.then(coordinate_map([self.fc6, self.fc7, self.score_fr]))
        crops = {}
        for name, stage in zip(_UPSCORES[self.stride], _SKIPS[self.stride], strict=False):
            path = path.then(coordinate_map([self.get_submodule(name)]))
            offset = crops[f"score_pool{stage}"] = offset_of(pools[stage], path)
            path = shifted(path, (-offset[0], -offset[1]))
        path = path.then(coordinate_map([self.get_submodule(_UPSCORES[self.stride][-1])]))
        crops["score"] = offset_of(path, CoordinateMap.identity(2))
        return crops

    def scores(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The class scores at stride 32, and the outputs of the poolings by their number."""
        pools = {}
        for stage in range(1, 6):
            for name in vgg.names(stage):
                x = torch.relu(self.get_submodule(name)(x))
            x = pools[stage] = self.pool(x)
        x = self.drop(torch.relu(self.fc6(x)))
        x = self.drop(torch.relu(self.fc7(x)))
        return self.score_fr(x), pools

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)`` of pictures ``(N, 3, H, W)``."""
        score, pools = self.scores(x)
        *between, last = _UPSCORES[self.stride]
        for name, stage, scale in zip(between, _SKIPS[self.stride], self.skip_scales, strict=False):
            score = self.get_submodule(name)(score)
            skip = self.get_submodule(f"score_pool{stage}")(pools[stage] * scale if scale != 1 else pools[stage])
            skip, score = common(skip, score, self.crops[f"score_pool{stage}"])
            score = score + skip
        score = self.get_submodule(last)(score)
        return crop_to(score, (x.shape[2], x.shape[3]), self.crops["score"])

    def load_vgg(self, state: Mapping[str, Tensor]) -> list[str]:
        """Take the encoder, fc6 and fc7 from torchvision's ``vgg16().state_dict()``: :func:`vgg.from_torchvision`.

        Returns:
            The names of the layers that keep what they hold: score and upscore layers.
        """
        return vgg.load(self, vgg.from_torchvision(state))

    def load_caffe(self, blobs: Mapping[str, Sequence[Any]]) -> list[str]:
        """Take every layer that ``blobs`` has by its name, from a Caffe VGG-16 or FCN: :func:`vgg.load`.

        With the score layers of skips come their ``skip_scales``: those of an FCN-8s trained at once, else 1.
        """
        scales = [self._scale(blobs, stage, kept) for stage, kept in zip((4, 3), self.skip_scales, strict=True)]
        missing = vgg.load(self, blobs)
        self.skip_scales = (scales[0], scales[1])
        return missing

    @staticmethod
    def _scale(blobs: Mapping[str, Sequence[Any]], stage: int, kept: float) -> float:
        """What an FCN's file multiplies a pooling by; ``kept`` where it has no skip from there."""
        if f"score_pool{stage}" not in blobs:
            return kept
        name = f"scale_pool{stage}"
        numbers = torch.cat([torch.as_tensor(blob).detach().flatten() for blob in blobs.get(name, [[1.0]])])
        least, greatest = float(numbers.min()), float(numbers.max())
        if least != greatest:
            expected = f"one factor for all channels in layer {name!r}"
            raise ArgumentError("blobs", expected, f"{least:g} to {greatest:g}", "0.01")
        return greatest

    @torch.no_grad()
    def continue_from(self, coarser: Mapping[str, Tensor]) -> list[str]:
        """Start from a ``state_dict`` of the stage before: 16s from 32s, 8s from 16s (or 32s), as the paper trains.

        Layers of the same name are copied. The others start as always: skips at zero, upsampling bilinear, so that
        training goes on from what the coarser network computes, but for its upsampling in more steps.

        Returns:
            The names of the layers that are new.

        Raises:
            ArgumentError: for the weights of a network that is not coarser, or not of the same shapes.
        """
        theirs = next((stride for stride, names in _UPSCORES.items() if f"{names[-1]}.weight" in coarser), 0)
        if theirs <= self.stride:
            expected = f"the weights of an FCN of a stride above {self.stride}"
            got = f"those of an FCN-{theirs}s" if theirs else "none of a layer that upsamples to pixels"
            raise ArgumentError("coarser", expected, got, "FCN16s().continue_from(FCN32s().state_dict())")
        blobs = {}
        for name, _ in self.named_children():
            parts = [coarser[key] for key in (f"{name}.weight", f"{name}.bias") if key in coarser]
            if parts:
                blobs[name] = parts
        return vgg.load(self, blobs)


class FCN32s(FCN):
    """:class:`FCN` with scores at stride 32 only."""

    def __init__(self, classes: int = 21, **options: Any) -> None:
        super().__init__(32, classes, **options)


class FCN16s(FCN):
    """:class:`FCN` with a skip from pool4."""

    def __init__(self, classes: int = 21, **options: Any) -> None:
        super().__init__(16, classes, **options)


class FCN8s(FCN):
    """:class:`FCN` with skips from pool4 and pool3."""

    def __init__(self, classes: int = 21, **options: Any) -> None:
        super().__init__(8, classes, **options)
