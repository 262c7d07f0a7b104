"""Convolution and Deconvolution, InnerProduct and Embed: the layers with weights."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe.modules.base import CaffeModule, Shape, tracing
from upscore.dialects import caffe as dialect
from upscore.errors import ArgumentError
from upscore.geometry import Geometry
from upscore.nn import functional as up

__all__ = ["Convolution", "Deconvolution", "Embed", "InnerProduct"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: up.conv_transpose1d, 2: up.conv_transpose2d, 3: up.conv_transpose3d}
_TRACED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}  # what exporters know


def _settings(param: Any) -> dict[str, Any]:
    """The fields that are set, in the words of the dialect; DeepLab's ``hole`` is ``dilation``."""
    fields = {f.name: list(v) if f.name in _REPEATED else v for f, v in param.ListFields()}
    holes = [fields.pop(name, None) for name in ("hole", "hole_h", "hole_w")]
    if any(holes):
        fields["dilation"] = [holes[0]] if holes[0] else [holes[1] or 1, holes[2] or 1]
    return fields


_REPEATED = ("pad", "kernel_size", "stride", "dilation")


class Convolution(CaffeModule):
    """Each bottom is convolved with the same weights, ``(num_output, C / group, *K)``, into its own top."""

    bottoms: ClassVar = (1, None)
    tops: ClassVar = (1, None)
    geometry: Geometry

    def setup(self, *shapes: Shape) -> None:
        p = self.param.convolution_param
        self.rank = len(shapes[0]) - 2
        if self.rank not in _CONV:
            raise self.error(f"expected a bottom of 3 to 5 axes (N, C and 1 to 3 spatial ones), got {shapes[0]}")
        try:
            self.geometry = dialect.geometry(_settings(p), self.rank)
        except ArgumentError as error:
            raise self.error(str(error)) from None
        self.c_in, self.c_out, self.group = shapes[0][1], p.num_output, p.group
        if self.c_out < 1 or self.group < 1 or self.c_in % self.group or self.c_out % self.group:
            raise self.error(
                f"expected channels in and out that group divides, got {self.c_in} in, num_output {self.c_out}, "
                f"group {self.group}"
            )
        self.add_blob(self.weight_shape(), p.weight_filler)
        if p.bias_term:
            self.add_blob((self.c_out,), p.bias_filler)

    def weight_shape(self) -> Shape:
        return (self.c_out, self.c_in // self.group, *self.geometry.kernel)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        first = shapes[0]
        for shape in shapes:
            if len(shape) != self.rank + 2 or shape[1] != self.c_in or shape != first:
                raise self.error(f"expected bottoms of one shape (N, {self.c_in}, *{self.rank} axes), got {shape}")
        sizes = self.sizes(first[2:])
        if min(sizes) < 1:
            raise self.error(
                f"the output of a {first[2:]} bottom would have size {sizes} with kernel {self.geometry.kernel}, "
                f"stride {self.geometry.stride}; give a larger input or pad more"
            )
        return ((first[0], self.c_out, *sizes),) * len(shapes)

    def sizes(self, sizes: Shape) -> Shape:
        """The output's, by C's division, which truncates toward zero."""
        g = self.geometry
        rooms = [n + lo + hi - e for n, (lo, hi), e in zip(sizes, g.crop, g.extent, strict=True)]
        return tuple(int(math.copysign(abs(r) // s, r)) + 1 for r, s in zip(rooms, g.stride, strict=True))

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.convolve(x) for x in bottoms)

    def convolve(self, x: Tensor) -> Tensor:
        g, size = self.geometry, tuple(x.shape[2:])
        missing = [
            max(0, (m - 1) * s + e - n - lo - hi)
            for n, m, s, e, (lo, hi) in zip(size, self.sizes(size), g.stride, g.extent, g.crop, strict=True)
        ]
        if any(missing):  # where the division truncated upward, the kernel hangs over the end and reads zeros
            x = F.pad(x, [amount for m in reversed(missing) for amount in (0, m)])
        weight, bias = self.blobs[0], self.blobs[1] if len(self.blobs) > 1 else None
        pad = tuple(lo for lo, _ in g.crop)
        return _CONV[self.rank](x, weight, bias, g.stride, pad, g.dilation, self.group)


class Deconvolution(Convolution):
    """The transposed convolution: weights ``(C, num_output / group, *K)``, output ``s(n-1) + d(k-1) + 1 - 2p``."""

    def weight_shape(self) -> Shape:
        return (self.c_in, self.c_out // self.group, *self.geometry.kernel)

    def sizes(self, sizes: Shape) -> Shape:
        g = self.geometry
        axes = zip(sizes, g.stride, g.extent, g.crop, strict=True)
        return tuple((n - 1) * s + e - lo - hi for n, s, e, (lo, hi) in axes)

    def convolve(self, x: Tensor) -> Tensor:
        g = self.geometry
        weight, bias = self.blobs[0], self.blobs[1] if len(self.blobs) > 1 else None
        pad = tuple(lo for lo, _ in g.crop)
        return (_TRACED if tracing() else _CONV_TRANSPOSE)[self.rank](
            x, weight, bias, g.stride, pad, 0, self.group, g.dilation
        )


class InnerProduct(CaffeModule):
    """``y = x W^T + b`` over everything from ``axis`` on; ``transpose`` stores W the other way round."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.inner_product_param
        self.first = self.axis(p.axis, len(shapes[0]))
        self.inputs = math.prod(shapes[0][self.first :])
        self.add_blob((self.inputs, p.num_output) if p.transpose else (p.num_output, self.inputs), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        if math.prod(shapes[0][self.first :]) != self.inputs:
            raise self.error(f"expected {self.inputs} elements from axis {self.first} on, got bottom {shapes[0]}")
        return ((*shapes[0][: self.first], self.param.inner_product_param.num_output),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        weight = self.blobs[0].t() if self.param.inner_product_param.transpose else self.blobs[0]
        return (F.linear(bottoms[0].flatten(self.first), weight, self.blobs[1] if len(self.blobs) > 1 else None),)


class Embed(CaffeModule):
    """Rows of the weight ``(input_dim, num_output)`` looked up by the integers of the bottom."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.embed_param
        self.add_blob((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return ((*shapes[0], self.param.embed_param.num_output),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        index, rows = bottoms[0].detach().to(torch.int64), self.blobs[0].shape[0]
        if not tracing() and (index.min() < 0 or index.max() >= rows):
            raise self.error(f"expected indices 0 to {rows - 1}, got {int(index.min())} to {int(index.max())}")
        top = F.embedding(index, self.blobs[0])
        return (top + self.blobs[1] if len(self.blobs) > 1 else top,)
