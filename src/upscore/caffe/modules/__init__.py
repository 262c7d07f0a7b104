"""Caffe's layers as torch modules: one class per layer type, found in :data:`TABLE` by its name in a prototxt."""

from __future__ import annotations

from upscore.caffe.modules import (
    activation,
    convolution,
    data,
    decision,
    elementwise,
    loss,
    normalization,
    pooling,
    shape,
)
from upscore.caffe.modules.base import CaffeModule, LayerError

__all__ = ["TABLE", "CaffeModule", "LayerError", "register"]

TABLE: dict[str, type[CaffeModule]] = {
    name: getattr(topic, name)
    for topic in (activation, convolution, data, decision, elementwise, loss, normalization, pooling, shape)
    for name in topic.__all__
    if name != "Source"
}
"""Layer type to module. Layers that read data are :class:`~upscore.caffe.modules.data.Source`: inputs."""

for _name in ("ConvolutionDepthwise", "DepthwiseConvolution"):  # the forks' faster kernels of the same layer
    TABLE[_name] = convolution.Convolution

for _name in (
    "AnnotatedData",
    "Data",
    "DenseImageData",
    "HDF5Data",
    "ImageData",
    "ImageSegData",
    "MemoryData",
    "VideoData",
    "WindowData",
    "WindowSegData",
):
    TABLE[_name] = data.Source


def register(name: str, module: type[CaffeModule]) -> None:
    """Teach the table a layer type, for example one of your own fork."""
    TABLE[name] = module
