"""From files into a graph and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from upscore.caffe import caffemodel
from upscore.caffe.caffemodel import LayerWeights
from upscore.errors import FileFormatError

if TYPE_CHECKING:
    from upscore.caffe.graph import Graph

__all__ = ["load", "read", "save"]


def read(path: str | os.PathLike[str]) -> list[LayerWeights]:
    """The layers of a caffemodel, binary or HDF5 by its content.

    Raises:
        FileFormatError: for what is neither.
    """
    with open(path, "rb") as file:
        hdf = file.read(8) == b"\x89HDF\r\n\x1a\n"
    if hdf:
        from upscore.caffe import hdf5

        return hdf5.read(path)
    return caffemodel.read(path)


def load(graph: Graph, path: str | os.PathLike[str]) -> list[str]:
    """Copy a file's weights into the layers of the same names; see :meth:`Graph.load`."""
    found = {layer.name: layer for layer in read(path)}
    missing = []
    for layer in graph.layers:
        own = list(layer.module.blobs)
        weights = found.get(layer.name)
        if weights is None or not own:
            missing += [layer.name] if own and weights is None else []
            continue
        if len(weights.blobs) != len(own):
            raise FileFormatError(
                f"{path}: layer {layer.name!r} ({layer.type}) has {len(own)} blobs, the file {len(weights.blobs)}; "
                "rename the layer in the prototxt to leave it as it was filled"
            )
        for i, (blob, value) in enumerate(zip(own, weights.blobs, strict=True)):
            shape = tuple(blob.shape)
            old = (
                weights.legacy
                and value.ndim == 4
                and len(shape) <= 4
                and value.shape == (1,) * (4 - len(shape)) + shape
            )
            if value.shape != shape and not old:
                raise FileFormatError(
                    f"{path}: blob {i} of layer {layer.name!r} ({layer.type}) has the shape {shape}, in the file "
                    f"{value.shape}; rename the layer in the prototxt to leave it as it was filled"
                )
            if blob.device.type != "meta":
                np.copyto(blob.detach().numpy(), value.reshape(shape))
    return missing


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph's net and weights; HDF5 where the name ends in ``.h5``."""
    layers = [
        LayerWeights(layer.name, layer.type, [blob.detach().numpy() for blob in layer.module.blobs])
        for layer in graph.layers
    ]
    if os.fspath(path).endswith(".h5"):
        from upscore.caffe import hdf5

        hdf5.write(path, layers)
    else:
        caffemodel.write(path, graph.param, layers)
