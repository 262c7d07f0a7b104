"""The layers that are raced, all shaped as in a network that people run, and a second group chosen to be awkward."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One transposed convolution: sizes as torch.nn takes them, one int per axis.

    ``weights`` is ``random``, or ``bilinear`` for the interpolation that FCN starts its upscores from
    (across channels a diagonal, as in the published models).
    """

    name: str
    group: str
    batch: int
    channels_in: int
    size: tuple[int, ...]
    channels_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1
    dilation: int = 1
    weights: str = "random"

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def output_size(self) -> tuple[int, ...]:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.output_padding, strict=True)
        return tuple((n - 1) * s + self.dilation * (k - 1) + 1 - 2 * p + op for n, k, s, p, op in axes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels_in, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.channels_in, self.channels_out // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels_out, *self.output_size)

    @property
    def operations(self) -> int:
        """Two per product of an input and a weight, those that land in the crop included, as papers count them."""
        return 2 * self.batch * math.prod(self.size) * math.prod(self.weight_shape)

    @property
    def bytes(self) -> int:
        """What has to be moved at least: input and weights read once, the output written once, in float32."""
        return 4 * (math.prod(self.input_shape) + math.prod(self.weight_shape) + math.prod(self.output_shape))

    def arrays(self) -> tuple[Array, Array, Array]:
        """Input, weight and bias; the same ones in every process."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        x = rng.standard_normal(self.input_shape, dtype=np.float32)
        bias = rng.standard_normal(self.channels_out, dtype=np.float32)
        if self.weights == "bilinear":
            return x, _bilinear(self), bias
        fan = self.channels_in // self.groups * math.prod(self.kernel) / math.prod(self.stride)
        return x, rng.standard_normal(self.weight_shape, dtype=np.float32) / np.float32(math.sqrt(fan)), bias

    def output_gradient(self) -> Array:
        """What the backward race feeds into the output."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()) + 1)
        return rng.standard_normal(self.output_shape, dtype=np.float32)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Layer:
        restored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**restored)


def _bilinear(layer: Layer) -> Array:
    """The tent of Caffe's ``bilinear`` filler (caffe/include/caffe/filler.hpp) on the diagonal of the channels."""
    w = np.zeros(layer.weight_shape, dtype=np.float32)
    tent: npt.NDArray[np.float64] = np.ones(())
    for k in layer.kernel:
        factor = (k + 1) // 2
        centre = (2 * factor - 1 - factor % 2) / (2 * factor)
        tent = np.multiply.outer(tent, 1 - np.abs(np.arange(k) / factor - centre))
    for c in range(layer.channels_in):
        w[c, c if layer.groups == 1 else 0] = tent
    return w


def _layer(
    group: str,
    name: str,
    batch: int,
    channels_in: int,
    size: tuple[int, ...],
    channels_out: int,
    k: int | tuple[int, ...],
    s: int | tuple[int, ...],
    p: int | tuple[int, ...] = 0,
    op: int | tuple[int, ...] = 0,
    **more: Any,
) -> Layer:
    k, s, p, op = ((v,) * len(size) if isinstance(v, int) else v for v in (k, s, p, op))
    return Layer(name, group, batch, channels_in, size, channels_out, k, s, p, op, **more)


def _networks(*row: Any, **more: Any) -> Layer:
    return _layer("networks", *row, **more)


def _awkward(*row: Any, **more: Any) -> Layer:
    return _layer("awkward", *row, **more)


LAYERS: tuple[Layer, ...] = (
    _networks("fcn32s upscore", 1, 21, (16, 16), 21, 64, 32, weights="bilinear"),
    _networks("fcn32s upscore channelwise", 1, 21, (16, 16), 21, 64, 32, groups=21, weights="bilinear"),
    _networks("fcn16s upscore2", 1, 21, (16, 16), 21, 4, 2, weights="bilinear"),
    _networks("fcn8s upscore8", 1, 21, (70, 70), 21, 16, 8, weights="bilinear"),
    _networks("fcn8s upscore8 channelwise", 1, 21, (70, 70), 21, 16, 8, groups=21, weights="bilinear"),
    _networks("sr 540p to 1080p", 1, 64, (270, 480), 1, 4, 2, 1),
    _networks("fsrcnn x2", 1, 56, (128, 128), 1, 9, 2, 4, 1),
    _networks("fsrcnn x4", 1, 56, (128, 128), 1, 9, 4, 4, 3),
    _networks("waifu2x upconv_7", 1, 256, (128, 128), 3, 4, 2, 3),
    _networks("dcgan 4x4", 1, 1024, (4, 4), 512, 4, 2, 1),
    _networks("dcgan 4x4 batch 16", 16, 1024, (4, 4), 512, 4, 2, 1),
    _networks("dcgan 16x16 batch 16", 16, 256, (16, 16), 128, 4, 2, 1),
    _networks("unet 128x128", 1, 128, (128, 128), 64, 2, 2),
    _networks("unet 32x32", 1, 1024, (32, 32), 512, 2, 2),
    _networks("dbnet head", 1, 64, (160, 160), 64, 2, 2),
    _networks("mask r-cnn head", 100, 256, (14, 14), 256, 2, 2),
    _networks("pose head", 1, 256, (32, 24), 256, 4, 2, 1),
    _networks("deconvnet", 1, 512, (28, 28), 512, 3, 1, 1),
    _networks("enet", 1, 64, (128, 128), 64, 3, 2, 1, 1),
    _networks("hifigan up1", 1, 512, (100,), 256, 16, 8, 4),
    _networks("hifigan up2", 1, 256, (800,), 128, 16, 8, 4),
    _networks("hifigan up3", 1, 128, (6400,), 64, 4, 2, 1),
    _networks("encodec", 1, 128, (4000,), 64, 8, 4, 2),
    _networks("unet 3d", 1, 256, (16, 16, 16), 128, 2, 2),
    _networks("vnet", 1, 64, (24, 24, 24), 32, 4, 2, 1),
    _awkward("fcn32s upscore, random weights", 1, 21, (16, 16), 21, 64, 32),
    _awkward("fcn8s upscore8, random weights", 1, 21, (70, 70), 21, 16, 8),
    _awkward("odd everything", 1, 37, (53, 41), 19, 5, 2, 2, 1),
    _awkward("stride 3, kernel 5", 1, 48, (40, 56), 24, 5, 3, 1),
    _awkward("stride 5, kernel 7", 1, 32, (61, 47), 16, 7, 5, 1),
    _awkward("kernel 3, stride 2, no crop", 1, 128, (56, 56), 64, 3, 2),
    _awkward("kernel 3x5, stride 2x3", 1, 64, (30, 50), 32, (3, 5), (2, 3), (1, 2), (1, 0)),
    _awkward("kernel 1, stride 2", 1, 64, (56, 56), 64, 1, 2, 0, 1),
    _awkward("groups of 4", 1, 128, (40, 40), 64, 4, 2, 1, groups=4),
    _awkward("channelwise, random weights", 1, 96, (64, 64), 96, 4, 2, 1, groups=96),
    _awkward("dilated kernel 3", 1, 64, (48, 48), 64, 3, 2, 2, 1, dilation=2),
    _awkward("inverse stft", 1, 1026, (200,), 1, 1024, 256, 512),
    _awkward("wavenet-like, long", 1, 24, (44100,), 12, 10, 5, 3, 1),
    _awkward("3d without symmetry", 1, 24, (10, 20, 15), 12, (3, 4, 5), (1, 2, 3), (1, 1, 2), (0, 0, 1)),
    _awkward("2x3 with 2048 channels", 1, 2048, (2, 3), 1024, 4, 2, 1),
    _awkward("1x1 to 4x4, batch 8", 8, 512, (1, 1), 1024, 4, 1),
    _awkward("1080p, 3 channels out", 1, 32, (540, 960), 3, 4, 2, 1),
    _awkward("1080p, stride 3", 1, 16, (360, 640), 16, 5, 3, 1),
    _awkward("digits, batch 64", 64, 16, (14, 14), 1, 3, 2, 1, 1),
)


def select(names: str) -> tuple[Layer, ...]:
    """The layers whose name or group contains one of the comma-separated words; all of them for an empty string."""
    words = [word.strip().lower() for word in names.split(",") if word.strip()]
    chosen = tuple(x for x in LAYERS if not words or any(word in x.name or word in x.group for word in words))
    if not chosen:
        raise SystemExit(f"no layer contains one of {words}; the names are: {', '.join(x.name for x in LAYERS)}")
    return chosen
