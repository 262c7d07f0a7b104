"""Layers that normalize: BatchNorm, BN, LRN, MVN, Normalize."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = ["BN", "LRN", "MVN", "BatchNorm", "Normalize"]


def _channels(x: Tensor, like: Tensor) -> Tensor:
    """``x`` of C elements as ``(C, 1, ...)``, to broadcast over ``like``."""
    return x.reshape(-1, *[1] * (like.ndim - 2))


class BatchNorm(CaffeModule):
    """Normalization without scale and shift; blobs are mean, variance and the factor that divides both.

    ``use_global_stats`` is on at test unless set. In training the statistics of the batch are used, and
    accumulated: the running variance takes m / (m - 1), m being the elements per channel.
    """

    learned: ClassVar = False

    def setup(self, *shapes: Shape) -> None:
        p = self.param.batch_norm_param
        self.channels = shapes[0][1] if len(shapes[0]) > 1 else 1
        self.stored = p.use_global_stats if p.HasField("use_global_stats") else self.phase == schema.TEST
        for shape in ((self.channels,), (self.channels,), (1,)):
            self.add_blob(shape)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(shapes[0]) > 1 and shapes[0][1] != self.channels:
            raise self.error(f"expected a bottom of {self.channels} channels, got {shapes[0]}")
        return (shapes[0],)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.batch_norm_param, bottoms[0]
        if x.ndim == 1:
            return tuple(t.squeeze(1) for t in self.forward(x[:, None]))
        if self.stored:
            factor = torch.where(self.blobs[2] == 0, 0, 1 / self.blobs[2])
            mean, variance = self.blobs[0] * factor, self.blobs[1] * factor
        else:
            axes = [0, *range(2, x.ndim)]
            mean = x.mean(axes)
            variance = ((x - _channels(mean, x)) ** 2).mean(axes)
            self._accumulate(mean, variance, x.numel() // x.shape[1])
        return ((x - _channels(mean, x)) / torch.sqrt(_channels(variance, x) + p.eps),)

    @torch.no_grad()
    def _accumulate(self, mean: Tensor, variance: Tensor, m: int) -> None:
        keep = self.param.batch_norm_param.moving_average_fraction
        self.blobs[0].mul_(keep).add_(mean)
        self.blobs[1].mul_(keep).add_(variance * (m / (m - 1) if m > 1 else 1.0))
        self.blobs[2].mul_(keep).add_(1)


class BN(CaffeModule):
    """The forks' batch normalization with scale and shift, blobs ``(1, C, 1, 1)``.

    Two blobs (SegNet, ENet, DeconvNet): ``bn_mode: INFERENCE`` is ``scale x + shift``, LEARN normalizes by the
    batch first (eps 1e-9). Four blobs (PSPNet: ``slope_filler``, ``frozen``, ``momentum`` or ``eps`` are set):
    the running mean and variance follow, used at test or when ``frozen``.
    """

    tops: ClassVar = (1, 3)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.bn_param
        if len(shapes[0]) != 4:
            raise self.error(f"expected a bottom of 4 axes (N, C, H, W), got {shapes[0]}")
        names = ("slope_filler", "bias_filler", "frozen", "momentum", "eps", "var_eps", "moving_average", "decay")
        self.keeps = any(p.HasField(name) for name in names)
        self.channels = shapes[0][1]
        shape = (1, self.channels, 1, 1)
        scale = p.slope_filler if p.HasField("slope_filler") else p.scale_filler if p.HasField("scale_filler") else None
        shift = p.bias_filler if p.HasField("bias_filler") else p.shift_filler if p.HasField("shift_filler") else None
        self.add_blob(shape, scale, 1.0 if self.keeps else 0.0)
        self.add_blob(shape, shift)
        if self.keeps:
            self.add_blob(shape)
            self.add_blob(shape, default=1.0)
            for statistic in self.blobs[2:]:
                statistic.requires_grad_(False)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(shapes[0]) != 4 or shapes[0][1] != self.channels:
            raise self.error(f"expected a bottom (N, {self.channels}, H, W), got {shapes[0]}")
        return (shapes[0], *[(1, self.channels, 1, 1)] * (len(self.param.top) - 1))

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.bn_param, bottoms[0]
        if not self.keeps and p.bn_mode == schema.BNParameter.INFERENCE:
            extra = [x.new_zeros(1, self.channels, 1, 1)] * (len(self.param.top) - 1)
            return (x * self.blobs[0] + self.blobs[1], *extra)
        eps = (p.var_eps if p.HasField("var_eps") else p.eps) if self.keeps else 1e-9
        if self.keeps and (p.frozen or self.phase == schema.TEST):
            mean, variance = self.blobs[2], self.blobs[3]
        else:
            mean = x.mean((0, 2, 3), keepdim=True)
            variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
            if self.keeps:
                rate = p.decay if p.HasField("decay") else 1 - p.momentum
                with torch.no_grad():
                    self.blobs[2].lerp_(mean, rate)
                    self.blobs[3].lerp_(variance, rate)
        top = (x - mean) / torch.sqrt(variance + eps) * self.blobs[0] + self.blobs[1]
        return (top, mean, variance)[: len(self.param.top)]


class LRN(CaffeModule):
    """Local response normalization, ``x / (k + alpha / n sum x^2)^beta``, across channels or within each.

    Within a channel the sum is AVE pooling (padding counts) and k is 1 whatever it is set to.
    """

    def setup(self, *shapes: Shape) -> None:
        p = self.param.lrn_param
        if p.local_size % 2 == 0 or len(shapes[0]) != 4:
            raise self.error(f"expected an odd local_size and 4 axes, got {p.local_size} and {shapes[0]}; e.g. 5")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.lrn_param, bottoms[0]
        if p.norm_region == schema.LRNParameter.ACROSS_CHANNELS:
            return (F.local_response_norm(x, p.local_size, p.alpha, p.beta, p.k),)
        pooled = F.avg_pool2d(x * x, p.local_size, 1, (p.local_size - 1) // 2)
        return (x * torch.pow(1 + p.alpha * pooled, -p.beta),)


class MVN(CaffeModule):
    """Mean 0 and, with ``normalize_variance``, variance 1, per channel or per item."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.mvn_param, bottoms[0]
        axes = list(range(1 if p.across_channels else 2, x.ndim))
        centred = x - x.mean(axes, keepdim=True)
        if not p.normalize_variance:
            return (centred,)
        return (centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + p.eps),)


class Normalize(CaffeModule):
    """SSD: divided by the 2-norm of the item (``across_spatial``) or of each position's channels, then scaled."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.norm_param
        if len(shapes[0]) < 2:
            raise self.error(f"expected a bottom of at least 2 axes (N, C), got {shapes[0]}")
        filler = p.scale_filler if p.HasField("scale_filler") else None
        self.add_blob(() if p.channel_shared else (shapes[0][1],), filler, 1.0)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.norm_param, bottoms[0]
        axes = list(range(1, x.ndim)) if p.across_spatial else [1]
        norm = torch.sqrt((x * x).sum(axes, keepdim=True) + p.eps)
        return (x / norm * _channels(self.blobs[0], x),)
