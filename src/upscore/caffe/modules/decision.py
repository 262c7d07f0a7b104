"""Layers that decide: ArgMax and Accuracy. No gradient goes through them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from upscore.caffe.modules.base import CaffeModule, Shape, tracing
from upscore.caffe.modules.loss import _LabelLoss

__all__ = ["Accuracy", "ArgMax"]


class ArgMax(CaffeModule):
    """The indices of the ``top_k`` largest values, of ties the largest index; with ``out_max_val`` the values too.

    Along ``axis``; without it over all but axis 0, as ``(N, 1 or 2, top_k, 1, ...)``.
    """

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p, shape = self.param.argmax_param, shapes[0]
        size = shape[self.axis(p.axis, len(shape))] if p.HasField("axis") else math.prod(shape[1:])
        if not 1 <= p.top_k <= size:
            raise self.error(f"top_k: expected 1 to {size}, got {p.top_k}; for example top_k: 1")
        if p.HasField("axis"):
            axis = self.axis(p.axis, len(shape))
            return ((*shape[:axis], p.top_k, *shape[axis + 1 :]),)
        rank = max(len(shape), 3)
        return ((shape[0], 2 if p.out_max_val else 1, p.top_k, *[1] * (rank - 3)),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.argmax_param, bottoms[0].detach()
        axis = p.axis if p.HasField("axis") else 1
        x = x if p.HasField("axis") else x.flatten(1)
        last = x.shape[axis] - 1
        if p.top_k == 1:
            index = last - x.flip(axis).argmax(axis, keepdim=True)
        elif tracing():  # ONNX has no stable sort, but its TopK takes the smaller index of ties
            index = last - x.flip(axis).topk(p.top_k, axis).indices
        else:  # a stable sort of the reversed values keeps the largest index first
            index = last - x.flip(axis).sort(dim=axis, descending=True, stable=True).indices.narrow(axis, 0, p.top_k)
        values, index = x.gather(axis, index), index.to(x.dtype)
        if p.HasField("axis"):
            return (values if p.out_max_val else index,)
        found = torch.stack([index, values], 1) if p.out_max_val else index[:, None]
        return (found.reshape(self.reshape(tuple(bottoms[0].shape))[0]),)


class Accuracy(_LabelLoss):
    """The share of labels among the ``top_k`` scores, a tie counting against; the second top is per class."""

    tops: ClassVar = (1, 2)
    is_loss: ClassVar = False
    axis_param: ClassVar = "accuracy_param"

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        self.check(shapes[0], shapes[1])
        return ((), (shapes[0][self.along(len(shapes[0]))],))[: len(self.param.top)]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, scores = self.param.accuracy_param, bottoms[0].detach()
        axis = self.along(scores.ndim)
        ignore = p.ignore_label if p.HasField("ignore_label") else None
        label, valid = self.labels(bottoms[1], scores, axis, ignore)
        true = scores.gather(axis, label.unsqueeze(axis))
        right = ((scores >= true).sum(axis) <= p.top_k) & valid
        tops = [right.sum().to(scores.dtype) / valid.sum().clamp(min=1)]
        if len(self.param.top) > 1:
            classes = scores.shape[axis]
            each = torch.bincount(label[valid], minlength=classes)
            tops.append(torch.bincount(label[right], minlength=classes) / each.clamp(min=1))
        return tuple(tops)
