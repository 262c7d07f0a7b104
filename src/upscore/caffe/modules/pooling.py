"""Pooling and its way back: Pooling with masks, Upsample (SegNet), Unpooling (DeconvNet)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.modules.base import CaffeModule, Shape, tracing

__all__ = ["Pooling", "Unpooling", "Upsample"]

_LEAST = -torch.finfo(torch.float32).max


def _per_axis(layer: CaffeModule, p: Any, name: str, short: str, default: int | None) -> tuple[int, int]:
    """``(h, w)`` from ``name``, or from ``short_h`` and ``short_w``, which go together."""
    given = [p.HasField(f"{short}_h"), p.HasField(f"{short}_w")]
    if any(given):
        if p.HasField(name) or not all(given):
            raise layer.error(f"expected either {name}, or both {short}_h and {short}_w")
        return getattr(p, f"{short}_h"), getattr(p, f"{short}_w")
    if p.HasField(name) or default is None:
        return (getattr(p, name),) * 2
    return default, default


class Pooling(CaffeModule):
    """MAX (with the mask as second top), AVE, and STOCHASTIC as it is at test.

    Sizes round up unless ``round_mode: FLOOR``; with padding the last window must start inside image and padding.
    The mask is the float ``h * W + w`` of the first maximum in its plane, -1 where no value wins: NaN, -inf and
    -FLT_MAX never do.
    """

    tops: ClassVar = (1, 2)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.pooling_param
        if len(shapes[0]) != 4:
            raise self.error(f"expected a bottom of 4 axes (N, C, H, W), got {shapes[0]}")
        self.stride = _per_axis(self, p, "stride", "stride", 1)
        self.pad = _per_axis(self, p, "pad", "pad", 0)
        if p.global_pooling:
            if p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w"):
                raise self.error("global_pooling takes its kernel from the bottom; drop kernel_size")
            if self.pad != (0, 0) or self.stride != (1, 1):
                raise self.error("global_pooling expects pad 0 and stride 1")
        else:
            self.kernel = _per_axis(self, p, "kernel_size", "kernel", None)
            if min(self.kernel) < 1:
                raise self.error("kernel_size: expected at least 1, got 0; for example kernel_size: 2")
            if any(pad >= k for pad, k in zip(self.pad, self.kernel, strict=True)):
                raise self.error(f"expected padding smaller than the kernel {self.kernel}, got {self.pad}")
        if min(self.stride) < 1:
            raise self.error("stride: expected at least 1, got 0; for example stride: 2")
        self.method = schema.PoolingParameter.PoolMethod.Name(p.pool)
        self.floor = p.round_mode == schema.PoolingParameter.FLOOR or not p.ceil_mode
        if self.method == "STOCHASTIC" and (self.phase == schema.TRAIN or self.pad != (0, 0)):
            raise self.error("STOCHASTIC pooling runs at test and without padding only; use MAX or AVE")
        if self.method != "MAX" and len(self.param.top) > 1:
            raise self.error("only MAX pooling has a mask as second top")

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        n, c, *size = shapes[0]
        sizes = self.sizes(size)
        if min(sizes) < 1:
            raise self.error(f"the output of a {tuple(size)} bottom would have size {sizes}; give a larger input")
        return ((n, c, *sizes),) * len(self.param.top)

    def sizes(self, size: Any) -> tuple[int, int]:
        found = []
        for n, k, s, p in zip(size, self._kernel(size), self.stride, self.pad, strict=True):
            room = n + 2 * p - k
            m = (room // s if self.floor else -(-room // s)) + 1
            found.append(m - 1 if p and (m - 1) * s >= n + p else m)
        return found[0], found[1]

    def _kernel(self, size: Any) -> tuple[int, int]:
        return (int(size[0]), int(size[1])) if self.param.pooling_param.global_pooling else self.kernel

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x = bottoms[0]
        if self.method == "MAX":
            return self._max(x)
        return (self._average(x) if self.method == "AVE" else self._stochastic(x),)

    def _as_torch(self, size: Any, kernel: tuple[int, int]) -> bool:
        """Whether torch's pooling takes these windows: its padding is at most half a kernel, and it always clips."""
        for n, k, s, p, m in zip(size, kernel, self.stride, self.pad, self.sizes(size), strict=True):
            if 2 * p > k or n + 2 * p < k or (m - 1) * s >= n + p:
                return False
        return True

    def _max(self, x: Tensor) -> tuple[Tensor, ...]:
        kernel, masked = self._kernel(x.shape[2:]), len(self.param.top) > 1
        if self._as_torch(x.shape[2:], kernel):
            window = (kernel, self.stride, self.pad, (1, 1), not self.floor)
            mask: Tensor | None = None
            if masked:
                values, mask = F.max_pool2d_with_indices(x, *window)
            elif self._in_blocks(x, kernel):
                values = _largest_of_blocks(x, kernel)
            else:
                values = torch.max_pool2d(x, *window)
            # torch lets NaN win and finds -inf where nothing is larger; both are rare and redone Caffe's way.
            if x.device.type == "meta" or tracing() or bool((values > _LEAST).all()):
                return (values,) if mask is None else (values, mask.to(x.dtype))
        return self._max_by_hand(x, kernel)[: len(self.param.top)]

    def _in_blocks(self, x: Tensor, kernel: tuple[int, int]) -> bool:
        """Whether the windows are blocks side by side whose largest can be found faster than torch's pooling does."""
        differentiable = torch.is_grad_enabled() and x.requires_grad  # of ties, torch.maximum halves the gradient
        blocks = kernel == self.stride and max(kernel) <= 3 and self.pad == (0, 0) and not self.floor
        recorded = torch._C._len_torch_dispatch_stack() > 0  # who records operators wants the one that has switches
        return blocks and not differentiable and not recorded and not tracing() and x.is_contiguous()

    def _max_by_hand(self, x: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Over a copy padded to the very windows with -FLT_MAX, where a window with nothing larger is empty."""
        least = torch.tensor(_LEAST, dtype=x.dtype)
        room = self._frame(x, kernel)
        framed = F.pad(torch.where(x > least, x, least), room, value=_LEAST)
        values, index = F.max_pool2d_with_indices(framed, kernel, self.stride)
        won = values > least
        row, column = index // framed.shape[3] - self.pad[0], index % framed.shape[3] - self.pad[1]
        mask = torch.where(won, row * x.shape[3] + column, -1)
        return torch.where(won, values, least), mask.to(x.dtype)

    def _frame(self, x: Tensor, kernel: tuple[int, int]) -> list[int]:
        """Padding, in F.pad's order, with which the windows cover the bottom and nothing else."""
        room: list[int] = []
        for n, k, s, p, m in zip(x.shape[2:], kernel, self.stride, self.pad, self.sizes(x.shape[2:]), strict=True):
            room = [p, (m - 1) * s + k - n - p, *room]
        return room

    def _average(self, x: Tensor) -> Tensor:
        """The divisor is the window clipped to image and padding: padding counts, what hangs over does not."""
        kernel = self._kernel(x.shape[2:])
        if self._as_torch(x.shape[2:], kernel):
            return F.avg_pool2d(x, kernel, self.stride, self.pad, not self.floor, True)
        sums = F.avg_pool2d(F.pad(x, self._frame(x, kernel)), kernel, self.stride) * (kernel[0] * kernel[1])
        spans = []
        for n, k, s, p, m in zip(x.shape[2:], kernel, self.stride, self.pad, self.sizes(x.shape[2:]), strict=True):
            start = torch.arange(m, dtype=x.dtype) * s - p
            spans.append((start + k).clamp(max=n + p) - start)
        divisor = spans[0][:, None] * spans[1]
        return sums / torch.where(divisor == 0, 1, divisor)

    def _stochastic(self, x: Tensor) -> Tensor:
        """The expectation of a draw in proportion to the values: ``sum(x^2) / sum(x)``, 0 where the sum is not > 0."""
        kernel = self._kernel(x.shape[2:])
        framed = F.pad(x, self._frame(x, kernel))
        total = F.avg_pool2d(framed, kernel, self.stride)
        squares = F.avg_pool2d(framed * framed, kernel, self.stride)
        return torch.where(total > 0, squares / torch.where(total > 0, total, 1), 0)


def _largest_of_blocks(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The largest value of each block, the last ones being what is left: four times as fast as torch's pooling."""
    for axis, k in zip((2, 3), kernel, strict=True):
        parts = [x[(slice(None),) * axis + (slice(i, None, k),)] for i in range(min(k, x.shape[axis]))]
        whole = x.shape[axis] // k
        largest = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        inside = largest.narrow(axis, 0, whole)
        if len(parts) == 1:
            largest.copy_(parts[0])
        else:
            torch.maximum(parts[0].narrow(axis, 0, whole), parts[1].narrow(axis, 0, whole), out=inside)
        for part in parts[2:]:
            torch.maximum(inside, part.narrow(axis, 0, whole), out=inside)
        if whole < largest.shape[axis]:
            rest = [part.narrow(axis, whole, 1) for part in parts if part.shape[axis] > whole]
            largest.narrow(axis, whole, 1).copy_(rest[0] if len(rest) == 1 else torch.maximum(rest[0], rest[1]))
        x = largest
    return x


def _put_back(layer: CaffeModule, values: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """``values`` where ``mask`` says in planes of ``size``, zeros elsewhere; a place named twice keeps the last.

    What never won (mask -1) goes nowhere. The gradient is read from the places, also from one named twice, as
    Caffe's forks do.
    """
    index = mask.detach().to(torch.int64).flatten(2)
    plane = size[0] * size[1]
    if not tracing() and bool(((index < -1) | (index >= plane)).any()):
        raise layer.error(
            f"expected a mask within planes of {size[0]} x {size[1]}, got places up to {int(index.max())}; "
            "does the size match the bottom of the pooling that made the mask?"
        )
    scatter = _scatter if tracing() else _Scatter.apply
    top: Tensor = scatter(values.flatten(2), torch.where(index < 0, plane, index), plane)
    return top.view(*values.shape[:2], *size)


def _scatter(values: Tensor, index: Tensor, plane: int) -> Tensor:
    """Assignment by index, the last one winning, with one place more for what won nowhere."""
    top = values.new_zeros(*values.shape[:2], plane + 1)
    return top.scatter(2, index, values)[..., :plane]


class _Scatter(torch.autograd.Function):
    """:func:`_scatter` with the gradient that the forks compute: also a place named twice is read by both."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, plane: int) -> Tensor:
        ctx.save_for_backward(index)
        return _scatter(values, index, plane)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return F.pad(grads[0], (0, 1)).gather(2, index), None, None


def _check_mask(layer: CaffeModule, shapes: tuple[Shape, ...]) -> None:
    if len(shapes[0]) != 4 or shapes[0] != shapes[1]:
        raise layer.error(f"expected values and mask of one shape (N, C, H, W), got {shapes[0]} and {shapes[1]}")


class Upsample(CaffeModule):
    """SegNet and ENet: the values of bottom 0 where the mask, bottom 1, says. Without a mask: nearest neighbour."""

    bottoms: ClassVar = (1, 2)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(shapes) == 2:
            _check_mask(self, shapes)
        elif len(shapes[0]) != 4:
            raise self.error(f"expected a bottom of 4 axes (N, C, H, W), got {shapes[0]}")
        return ((*shapes[0][:2], *self.size(shapes[0][2:])),)

    def size(self, size: Any) -> tuple[int, int]:
        p = self.param.upsample_param
        if p.HasField("upsample_h") and p.HasField("upsample_w"):
            return p.upsample_h, p.upsample_w
        if p.HasField("scale_h") != p.HasField("scale_w"):
            raise self.error("expected both scale_h and scale_w, or scale")
        scale = (p.scale_h, p.scale_w) if p.HasField("scale_h") else (p.scale, p.scale)
        if min(scale) < 1:
            raise self.error(f"scale: expected at least 1, got {min(scale)}; for example scale: 2")
        return int(size[0]) * scale[0] - p.pad_out_h, int(size[1]) * scale[1] - p.pad_out_w

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        size = self.size(bottoms[0].shape[2:])
        if len(bottoms) == 1:
            return (F.interpolate(bottoms[0], size, mode="nearest"),)
        return (_put_back(self, bottoms[0], bottoms[1], size),)


class Unpooling(CaffeModule):
    """DeconvNet: MAX puts values where the mask says, or at the corner of each window without one."""

    bottoms: ClassVar = (1, 2)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.unpooling_param
        self.kernel = _per_axis(self, p, "kernel_size", "kernel", None)
        self.stride = _per_axis(self, p, "stride", "stride", 1)
        self.pad = _per_axis(self, p, "pad", "pad", 0)
        self.wanted = _per_axis(self, p, "unpool_size", "unpool", 0)
        if self.pad != (0, 0) or p.unpool != schema.UnpoolingParameter.MAX:
            raise self.error("expected unpool: MAX without padding, all that DeconvNet's Unpooling does")
        if min(self.kernel) < 1 or min(self.stride) < 1:
            raise self.error("kernel_size and stride: expected at least 1; for example kernel_size: 2 stride: 2")

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(shapes) == 2:
            _check_mask(self, shapes)
        return ((*shapes[0][:2], *self.size(shapes[0][2:])),)

    def size(self, size: Any) -> tuple[int, int]:
        if min(self.wanted) > 0:
            return self.wanted
        h, w = (max((n - 1) * s + k, n * s + 1) for n, s, k in zip(size, self.stride, self.kernel, strict=True))
        return int(h), int(w)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        h, w = self.size(bottoms[0].shape[2:])
        if len(bottoms) == 2:
            return (_put_back(self, bottoms[0], bottoms[1], (h, w)),)
        rows = (torch.arange(bottoms[0].shape[2]) * self.stride[0]).clamp(max=h - 1)
        columns = (torch.arange(bottoms[0].shape[3]) * self.stride[1]).clamp(max=w - 1)
        return (_put_back(self, bottoms[0], (rows[:, None] * w + columns).expand(bottoms[0].shape), (h, w)),)
