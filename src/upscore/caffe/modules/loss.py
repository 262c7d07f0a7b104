"""Losses, and the softmax before them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.modules.base import CaffeModule, Shape, tracing

__all__ = [
    "ContrastiveLoss",
    "EuclideanLoss",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "Softmax",
    "SoftmaxWithLoss",
]

_LEAST = torch.finfo(torch.float32).tiny  # FLT_MIN, below which SoftmaxWithLoss takes no logarithm
_LEAST_LOG = 1e-20  # the same of the older losses


class Softmax(CaffeModule):
    """``e^x / sum e^x`` along ``axis``."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        self.axis(self.param.softmax_param.axis, len(shapes[0]))
        return (shapes[0],)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (torch.softmax(bottoms[0], self.param.softmax_param.axis),)


class _Loss(CaffeModule):
    bottoms: ClassVar = (2, 2)
    is_loss: ClassVar = True

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return ((),)

    def ignore_label(self) -> int | None:
        p = self.param.loss_param
        return p.ignore_label if p.HasField("ignore_label") else None

    def divisor(self, outer: int, full: int, valid: Tensor, default: str = "VALID") -> Tensor | float:
        """What the sum is divided by, at least 1; ``normalize: false`` means BATCH_SIZE."""
        p = self.param.loss_param
        mode = default
        if p.HasField("normalization"):
            mode = schema.LossParameter.NormalizationMode.Name(p.normalization)
        elif p.HasField("normalize"):
            mode = "VALID" if p.normalize else "BATCH_SIZE"
        if mode == "VALID":
            return valid.to(torch.float32).clamp(min=1)
        return {"FULL": float(full), "BATCH_SIZE": float(outer), "NONE": 1.0}[mode]


class _LabelLoss(_Loss):
    """Scores ``(outer, C, inner)`` around ``axis`` and integer labels ``(outer, inner)``."""

    axis_param: ClassVar[str] = "softmax_param"

    def along(self, rank: int) -> int:
        return self.axis(getattr(self.param, self.axis_param).axis, rank)

    def check(self, scores: Shape, labels: Shape) -> None:
        axis = self.along(len(scores))
        wanted = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
        if math.prod(labels) != wanted:
            raise self.error(
                f"expected {wanted} labels for scores {scores} (one per position, the {scores[axis]} of axis {axis} "
                f"being classes), got labels {labels}"
            )

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        self.check(shapes[0], shapes[1])
        return ((), shapes[0])[: len(self.param.top)]

    def labels(self, bottom: Tensor, scores: Tensor, axis: int, ignore: int | None) -> tuple[Tensor, Tensor]:
        """Labels as ``(*outer, *inner)`` with 0 where ignored, and which are valid."""
        shape = (*scores.shape[:axis], *scores.shape[axis + 1 :])
        label = bottom.detach().to(torch.int64).reshape(shape)
        valid = torch.ones_like(label, dtype=torch.bool) if ignore is None else label != ignore
        label = torch.where(valid, label, 0)
        if not tracing() and label.numel() and (int(label.min()) < 0 or int(label.max()) >= scores.shape[axis]):
            hint = "" if ignore is not None else "; labels to pass over are named by loss_param { ignore_label: 255 }"
            raise self.error(
                f"expected labels 0 to {scores.shape[axis] - 1}, got {int(label.min())} to {int(label.max())}{hint}"
            )
        return label, valid


class SoftmaxWithLoss(_LabelLoss):
    """Softmax and the mean of ``-log p[label]``; the second top is the softmax.

    Probabilities are kept above FLT_MIN in the value (a loss of at most 87.3365), not in the gradient.
    ``class_weighting`` (SegNet) weighs each class.
    """

    tops: ClassVar = (1, 2)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        scores = bottoms[0]
        axis = self.along(scores.ndim)
        label, valid = self.labels(bottoms[1], scores, axis, self.ignore_label())
        log = torch.log_softmax(scores, axis).gather(axis, label.unsqueeze(axis)).squeeze(axis)
        log = log + (log.detach().clamp(min=math.log(_LEAST)) - log.detach())
        weights = self._class_weights(scores.shape[axis], label)
        divisor = self.divisor(math.prod(scores.shape[:axis]), label.numel(), valid.sum())
        loss = -(torch.where(valid, log, 0) * weights).sum() / divisor
        return (loss,) if len(self.param.top) == 1 else (loss, torch.softmax(scores, axis))

    def _class_weights(self, classes: int, label: Tensor) -> Tensor | float:
        p = self.param.loss_param
        if not (p.weight_by_label_freqs and p.class_weighting):
            return 1.0
        if len(p.class_weighting) != classes:
            raise self.error(f"class_weighting: expected {classes} numbers, got {len(p.class_weighting)}")
        return torch.tensor(list(p.class_weighting))[label]


class MultinomialLogisticLoss(_LabelLoss):
    """The mean of ``-log p[label]`` of probabilities ``(N, C, ...)``."""

    def along(self, rank: int) -> int:
        return 1

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        label, _ = self.labels(bottoms[1], bottoms[0], 1, None)
        found = bottoms[0].gather(1, label.unsqueeze(1))
        return (-torch.log(found.clamp(min=_LEAST_LOG)).sum() / bottoms[0].shape[0],)


class InfogainLoss(_LabelLoss):
    """``-sum_k H[label, k] log p_k`` of a softmax; H is the third bottom or the file ``source``, ``(K, K)``."""

    bottoms: ClassVar = (2, 3)
    tops: ClassVar = (1, 2)
    axis_param: ClassVar = "infogain_loss_param"

    def setup(self, *shapes: Shape) -> None:
        if len(shapes) == 2:
            from upscore.caffe.caffemodel import read_mean

            if not self.param.infogain_loss_param.source:
                raise self.error("expected the infogain matrix as third bottom or as infogain_loss_param { source }")
            matrix = torch.from_numpy(read_mean(self.param.infogain_loss_param.source).copy())
            classes = shapes[0][self.along(len(shapes[0]))]
            if matrix.numel() != classes * classes:
                raise self.error(f"expected an infogain matrix of {classes} x {classes}, got {tuple(matrix.shape)}")
            self.register_buffer("matrix", matrix.reshape(classes, classes))

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        self.check(shapes[0], shapes[1])
        classes = shapes[0][self.along(len(shapes[0]))]
        if len(shapes) == 3 and math.prod(shapes[2]) != classes * classes:
            raise self.error(f"expected an infogain matrix of {classes} x {classes}, got {shapes[2]}")
        return ((), shapes[0])[: len(self.param.top)]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        scores = bottoms[0]
        axis = self.along(scores.ndim)
        label, valid = self.labels(bottoms[1], scores, axis, self.ignore_label())
        classes = scores.shape[axis]
        matrix = bottoms[2].reshape(classes, classes) if len(bottoms) == 3 else self.get_buffer("matrix")
        log = torch.log_softmax(scores, axis).movedim(axis, -1)
        log = log + (log.detach().clamp(min=math.log(_LEAST_LOG)) - log.detach())
        each = -(matrix.detach()[label] * log).sum(-1)
        divisor = self.divisor(math.prod(scores.shape[:axis]), label.numel(), valid.sum())
        loss = torch.where(valid, each, 0).sum() / divisor
        return (loss,) if len(self.param.top) == 1 else (loss, torch.softmax(scores, axis))


class EuclideanLoss(_Loss):
    """``sum (a - b)^2 / (2 N)``, with a gradient to both."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if math.prod(shapes[0]) != math.prod(shapes[1]) or shapes[0][:1] != shapes[1][:1]:
            raise self.error(f"expected two bottoms of the same size, got {shapes[0]} and {shapes[1]}")
        return ((),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        difference = bottoms[0] - bottoms[1].reshape(bottoms[0].shape)
        return ((difference * difference).sum() / (2 * bottoms[0].shape[0]),)


class ContrastiveLoss(_Loss):
    """``sum y d^2 + (1 - y) max(margin - d, 0)^2`` over 2N, d being the distance of rows of bottoms 0 and 1.

    ``legacy_version`` has ``max(margin - d^2, 0)`` instead. Source: Hadsell, Chopra, LeCun 2006.
    """

    bottoms: ClassVar = (3, 3)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if shapes[0] != shapes[1] or len(shapes[0]) < 2 or math.prod(shapes[2]) != shapes[0][0]:
            raise self.error(f"expected two bottoms (N, C) and N labels, got {shapes[0]}, {shapes[1]} and {shapes[2]}")
        return ((),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, y = self.param.contrastive_loss_param, bottoms[2].detach().reshape(-1)
        squared = ((bottoms[0] - bottoms[1]).flatten(1) ** 2).sum(1)
        if p.legacy_version:
            apart = F.relu(p.margin - squared)
        else:
            apart = F.relu(p.margin - torch.sqrt(squared.clamp(min=_LEAST))) ** 2
        return (torch.where(y != 0, squared, apart).sum() / (2 * y.numel()),)


class SigmoidCrossEntropyLoss(_Loss):
    """Cross-entropy of sigmoids and targets in [0, 1]; divided by the batch size unless told otherwise."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if math.prod(shapes[0]) != math.prod(shapes[1]):
            raise self.error(f"expected scores and targets of the same size, got {shapes[0]} and {shapes[1]}")
        return ((),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x, target, ignore = bottoms[0], bottoms[1].detach().reshape(bottoms[0].shape), self.ignore_label()
        valid = torch.ones_like(x, dtype=torch.bool) if ignore is None else target.to(torch.int64) != ignore
        each = F.binary_cross_entropy_with_logits(x, torch.where(valid, target, 0), reduction="none")
        divisor = self.divisor(x.shape[0] if x.ndim else 1, x.numel(), valid.sum(), "BATCH_SIZE")
        return (torch.where(valid, each, 0).sum() / divisor,)


class HingeLoss(_LabelLoss):
    """One against all: ``sum max(0, 1 - t x)`` (L1) or its square (L2) over N, t being 1 for the label, else -1."""

    def along(self, rank: int) -> int:
        return 1

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(shapes[0]) < 1 or math.prod(shapes[1]) != shapes[0][0]:
            raise self.error(f"expected one label for each of {shapes[0][:1]} rows of scores, got {shapes[1]}")
        return ((),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        scores: Any = bottoms[0].flatten(1)
        label, _ = self.labels(bottoms[1], scores, 1, None)
        sign = torch.ones_like(scores).scatter(1, label.unsqueeze(1), -1.0)
        margin = F.relu(1 + sign * scores)
        squared = self.param.hinge_loss_param.norm == schema.HingeLossParameter.L2
        return ((margin * margin if squared else margin).sum() / scores.shape[0],)
