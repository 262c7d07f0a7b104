"""Where blobs come from: inputs, and the layers that read data, which are inputs with a shape here."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.fillers import fill
from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = ["DummyData", "Input", "Parameter", "Source"]


class Source(CaffeModule):
    """A layer without bottoms. Its tops are the net's inputs; ``shapes`` may not know all of theirs."""

    bottoms: ClassVar = (0, 0)
    tops: ClassVar = (1, None)

    def shapes(self) -> list[Shape | None]:
        """What the parameters say of the tops' shapes."""
        first, labels = _data_shape(self.param)
        shapes: list[Shape | None] = [None] * len(self.param.top)
        if first is not None:
            shapes[0] = first
        if len(shapes) > 1:
            shapes[1] = labels
        return shapes

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        raise self.error("its tops are inputs of the net; feed them")


def _data_shape(param: Any) -> tuple[Shape | None, Shape | None]:
    """The shapes of data and label that a data layer's parameters determine."""
    data: Shape | None = None
    label: Shape | None = None
    if param.type == "MemoryData":
        p = param.memory_data_param
        return (p.batch_size, p.channels, p.height, p.width), (p.batch_size,)
    for name in ("data_param", "image_data_param", "dense_image_data_param", "window_data_param"):
        if not param.HasField(name):
            continue
        p, crop = getattr(param, name), param.transform_param.crop_size
        channels = 3 if getattr(p, "is_color", True) else 1
        label = (p.batch_size,) if p.batch_size else None
        if crop:
            data = (p.batch_size, channels, crop, crop)
        elif getattr(p, "new_height", 0) and getattr(p, "new_width", 0):
            data = (p.batch_size, channels, p.new_height, p.new_width)
        if name == "dense_image_data_param" or param.type.endswith("SegData"):
            label = (p.batch_size, 1, *data[2:]) if data else None
    return data, label


class Input(Source):
    """An input of the net; one shape for each top, or one for all."""

    def shapes(self) -> list[Shape | None]:
        given = [tuple(s.dim) for s in self.param.input_param.shape]
        count = len(self.param.top)
        if len(given) not in (0, 1, count):
            raise self.error(f"expected 1 shape, or one for each of {count} tops, got {len(given)}")
        return [*given] * (count if len(given) == 1 else 1) or [None] * count


class DummyData(Source):
    """Blobs of given shapes, filled once per pass; also inputs that may be fed."""

    def shapes(self) -> list[Shape | None]:
        p, count = self.param.dummy_data_param, len(self.param.top)
        given = [tuple(s.dim) for s in p.shape] or list(zip(p.num, p.channels, p.height, p.width, strict=False))
        if len(given) not in (1, count) or len(p.data_filler) not in (0, 1, count):
            raise self.error(f"expected 1 or {count} shapes and 0, 1 or {count} data_fillers, got {len(given)} shapes")
        return [*given] * (count if len(given) == 1 else 1)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return tuple(s for s in self.shapes() if s is not None)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        fillers = list(self.param.dummy_data_param.data_filler) or [schema.FillerParameter()]
        fillers = fillers * (len(self.param.top) if len(fillers) == 1 else 1)
        return tuple(fill(torch.zeros(s), f) for s, f in zip(self.reshape(), fillers, strict=True))


class Parameter(CaffeModule):
    """A blob of parameters as a top."""

    bottoms: ClassVar = (0, 0)

    def setup(self, *shapes: Shape) -> None:
        shape = tuple(self.param.parameter_param.shape.dim)
        if math.prod(shape) < 1:
            raise self.error(f"shape: expected sizes of at least 1, got {shape}; for example shape {{ dim: 3 }}")
        self.add_blob(shape)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (tuple(self.blobs[0].shape),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (self.blobs[0].view_as(self.blobs[0]),)
