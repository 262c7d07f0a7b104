"""Layers that combine blobs, or blobs and learned values, element by element."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = ["Axpy", "Bias", "Eltwise", "Reduction", "Scale"]


class Eltwise(CaffeModule):
    """Sum (with coefficients), product or maximum of bottoms of one shape.

    MAX ties: bottom 1 beats bottom 0, later ones must be larger; the gradient goes to the winner.
    """

    bottoms: ClassVar = (2, None)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p = self.param.eltwise_param
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise self.error(f"expected bottoms of one shape, got {shapes[0]} and, as bottom {i}, {shape}")
        if p.coeff and (len(p.coeff) != len(shapes) or p.operation != schema.EltwiseParameter.SUM):
            raise self.error(f"coeff: expected one for each of {len(shapes)} bottoms of a SUM, got {list(p.coeff)}")
        return (shapes[0],)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.eltwise_param
        top = bottoms[0]
        if p.operation == schema.EltwiseParameter.SUM:
            terms = [x if c == 1 else x * c for x, c in zip(bottoms, p.coeff or [1.0] * len(bottoms), strict=True)]
            top = terms[0]
            for term in terms[1:]:
                top = top + term
        elif p.operation == schema.EltwiseParameter.PROD:
            for x in bottoms[1:]:
                top = top * x
        else:
            top = torch.where(top > bottoms[1], top, bottoms[1])
            for x in bottoms[2:]:
                top = torch.where(x > top, x, top)
        return (top,)


class _Broadcast(CaffeModule):
    """A second operand, learned or a second bottom, laid over the axes of the first from ``axis`` on."""

    bottoms: ClassVar = (1, 2)

    def settings(self) -> Any:
        raise NotImplementedError

    def default(self) -> float:
        return 0.0

    def setup(self, *shapes: Shape) -> None:
        p = self.settings()
        if len(shapes) == 1:
            first = self.axis(p.axis, len(shapes[0]), end=p.num_axes == 0)
            last = len(shapes[0]) if p.num_axes == -1 else first + p.num_axes
            if not first <= last <= len(shapes[0]):
                raise self.error(
                    f"num_axes: expected at most {len(shapes[0]) - first} from axis {first} on, got {p.num_axes}"
                )
            self.add_blob(shapes[0][first:last], p.filler if p.HasField("filler") else None, self.default())

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        operand = shapes[1] if len(shapes) == 2 else tuple(self.blobs[0].shape)
        first = self._first(shapes[0], operand)
        if shapes[0][first : first + len(operand)] != operand:
            raise self.error(f"expected {operand} to lie over the bottom {shapes[0]} from axis {first} on")
        return (shapes[0],)

    def _first(self, shape: Shape, operand: Shape) -> int:
        return self.axis(self.settings().axis, len(shape), end=True) if operand else 0

    def over(self, operand: Tensor, x: Tensor) -> Tensor:
        """``operand`` with axes of 1 after it, to broadcast over ``x``."""
        after = x.ndim - self._first(tuple(x.shape), tuple(operand.shape)) - operand.ndim if operand.ndim else 0
        return operand.reshape((*operand.shape, *[1] * after))


class Bias(_Broadcast):
    """``x + b``, ``b`` learned or the second bottom."""

    def settings(self) -> Any:
        return self.param.bias_param

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0] + self.over(bottoms[1] if len(bottoms) == 2 else self.blobs[0], bottoms[0]),)


class Scale(_Broadcast):
    """``x * a``, ``a`` learned or the second bottom; with ``bias_term`` also ``+ b``, learned."""

    def settings(self) -> Any:
        return self.param.scale_param

    def default(self) -> float:
        return 1.0

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        p = self.param.scale_param
        if p.bias_term:
            self.add_blob(shapes[1] if len(shapes) == 2 else tuple(self.blobs[0].shape), p.bias_filler)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        scale, *bias = (bottoms[1], *self.blobs) if len(bottoms) == 2 else (*self.blobs,)
        top = bottoms[0] * self.over(scale, bottoms[0])
        return (top + self.over(bias[0], bottoms[0]) if bias else top,)


class Axpy(CaffeModule):
    """``a x + y``: ``a`` ``(N, C, 1, 1)`` scales each channel of ``x`` (squeeze-and-excitation)."""

    bottoms: ClassVar = (3, 3)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        a, x, y = shapes
        if x != y or len(x) < 2 or a[:2] != x[:2] or any(n != 1 for n in a[2:]):
            raise self.error(f"expected a (N, C, 1, 1), x and y of one shape (N, C, ...), got {a}, {x} and {y}")
        return (x,)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        a, x, y = bottoms
        return (a.reshape(*x.shape[:2], *[1] * (x.ndim - 2)) * x + y,)


class Reduction(CaffeModule):
    """SUM, ASUM, SUMSQ or MEAN over everything from ``axis`` on, times ``coeff``."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0][: self.axis(self.param.reduction_param.axis, len(shapes[0]))],)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.reduction_param
        x = bottoms[0].flatten(self.axis(p.axis, bottoms[0].ndim))
        operation = schema.ReductionParameter.ReductionOp.Name(p.operation)
        x = x.abs() if operation == "ASUM" else x * x if operation == "SUMSQ" else x
        return ((x.mean(-1) if operation == "MEAN" else x.sum(-1)) * p.coeff,)
