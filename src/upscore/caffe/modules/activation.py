"""Layers that look at one element at a time."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = [
    "BNLL",
    "ELU",
    "AbsVal",
    "Clip",
    "Dropout",
    "Exp",
    "Log",
    "PReLU",
    "Power",
    "ReLU",
    "Sigmoid",
    "Swish",
    "TanH",
    "Threshold",
]


class ReLU(CaffeModule):
    """``max(x, 0) + slope * min(x, 0)``; the gradient at 0 is the slope."""

    overwrites = False
    """Whether the bottom may be overwritten; the graph says so where nothing else needs it."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        slope = self.param.relu_param.negative_slope
        inplace = self.overwrites and not torch.is_grad_enabled()
        if slope:
            return (F.leaky_relu(bottoms[0], slope, inplace),)
        return (F.relu(bottoms[0], inplace),)


class PReLU(CaffeModule):
    """ReLU with learned slopes, one per channel (axis 1), or one of shape () with ``channel_shared``."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.prelu_param
        if len(shapes[0]) < 2:
            raise self.error(f"expected a bottom of at least 2 axes (N, C), got {shapes[0]}")
        self.add_blob(() if p.channel_shared else (shapes[0][1],), p.filler if p.HasField("filler") else None, 0.25)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (F.prelu(bottoms[0], self.blobs[0].reshape(-1)),)


class ELU(CaffeModule):
    """``x`` above 0, ``alpha (e^x - 1)`` below."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (F.elu(bottoms[0], self.param.elu_param.alpha),)


class Sigmoid(CaffeModule):
    """``1 / (1 + e^-x)``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (torch.sigmoid(bottoms[0]),)


class TanH(CaffeModule):
    """The hyperbolic tangent."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (torch.tanh(bottoms[0]),)


class Swish(CaffeModule):
    """``x * sigmoid(beta x)``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0] * torch.sigmoid(self.param.swish_param.beta * bottoms[0]),)


class AbsVal(CaffeModule):
    """``|x|``; the gradient at 0 is 0."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].abs(),)


class BNLL(CaffeModule):
    """Binomial normal log likelihood, ``log(1 + e^x)``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (F.softplus(bottoms[0], threshold=30),)


def _base(layer: CaffeModule, base: float) -> float:
    """The base's natural logarithm; -1 stands for e."""
    if base == -1:
        return 1.0
    if base <= 0:
        raise layer.error(f"base: expected a number above 0, or -1 for e, got {base}; for example base: 2")
    return math.log(base)


class Exp(CaffeModule):
    """``base ^ (shift + scale x)``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.exp_param
        log = _base(self, p.base)
        return (torch.exp(bottoms[0] * (p.scale * log)) * math.exp(p.shift * log),)


class Log(CaffeModule):
    """``log_base(shift + scale x)``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.log_param
        log = _base(self, p.base)
        if log == 0:
            raise self.error("base: expected anything but 1, whose logarithm is 0; for example base: 2")
        return (torch.log(bottoms[0] * p.scale + p.shift) / log,)


class Power(CaffeModule):
    """``(shift + scale x) ^ power``; with a power or scale of 0 a constant without gradient."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.power_param
        if p.power == 0 or p.scale == 0:
            value = 1.0 if p.power == 0 else p.shift**p.power if p.shift else 0.0
            return (bottoms[0].detach() * 0 + value,)
        x = bottoms[0] if p.scale == 1 else bottoms[0] * p.scale
        x = x + p.shift if p.shift else x
        if p.power == 1:
            return (x if p.scale != 1 or p.shift else x.clone(),)
        return (x * x if p.power == 2 else torch.pow(x, p.power),)


class Threshold(CaffeModule):
    """1 where ``x > threshold``, else 0; no gradient."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ((bottoms[0] > self.param.threshold_param.threshold).to(bottoms[0].dtype),)


class Clip(CaffeModule):
    """``x`` kept within ``min`` and ``max``."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.clip_param
        if not (p.HasField("min") and p.HasField("max")):
            raise self.error("clip_param: expected min and max; for example clip_param { min: 0 max: 1 }")
        return (bottoms[0].clamp(p.min, p.max),)


class Dropout(CaffeModule):
    """In training, zeroes ``dropout_ratio`` of the elements and scales the rest; at test, nothing.

    ``sample_weights_test`` (Bayesian SegNet) drops at test too.
    """

    tops: ClassVar = (1, 1)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.dropout_param
        if not 0 <= p.dropout_ratio < 1:
            raise self.error(f"dropout_ratio: expected 0 <= ratio < 1, got {p.dropout_ratio}; for example 0.5")
        drops = self.phase == schema.TRAIN or p.sample_weights_test
        return (F.dropout(bottoms[0], p.dropout_ratio) if drops else bottoms[0],)
