"""Weights in Caffe's binary files: caffemodel, solverstate, and the binaryproto of a mean image.

Reading maps the file: blobs are views of it, so that a model of any size takes next to no memory.
HDF5 files of the same content are :mod:`upscore.caffe.hdf5`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from upscore.caffe import schema
from upscore.caffe.upgrade import V0_TYPES, v1_type
from upscore.caffe.wire import Field, Reader, length_delimited, open_reader, tag
from upscore.errors import FileFormatError
from upscore.files import replacing

__all__ = ["LayerWeights", "Snapshot", "read", "read_mean", "read_state", "write", "write_mean", "write_state"]

Array = NDArray[np.float32]
_LAYER, _LAYERS = 100, 2  # NetParameter's fields for layers, today's and V1's
_MOST_LAYERS, _MOST_BLOBS = 20_000, 1_000
# Where name, type and blobs stand in the three generations of layers.
_V2 = {"name": 1, "type": 2, "blobs": 7}
_V1 = {"name": 4, "type": 5, "blobs": 6, "v0": 1}
_V0 = {"name": 1, "type": 2, "blobs": 50}


@dataclass
class LayerWeights:
    """What a model file holds of one layer.

    Attributes:
        name: the layer's name.
        type: its type in today's words; empty where the file does not say (HDF5).
        blobs: its parameters, read-only views where they come from a file.
        legacy: whether shapes are the old ones, always four numbers: a bias of C is (1, 1, 1, C).
    """

    name: str
    type: str = ""
    blobs: list[Array] = field(default_factory=list)
    legacy: bool = False


def read(path: str | os.PathLike[str]) -> list[LayerWeights]:
    """The layers of a binary caffemodel, V0 to today's, in order.

    Raises:
        FileFormatError: for what is no caffemodel, or a truncated or contradictory one, naming layer and byte.
        OSError: when the file cannot be read.
    """
    reader = open_reader(path)
    layers = []
    for found in reader.fields(0, len(reader.buffer)):
        if found.number in (_LAYER, _LAYERS):
            layers.append(_layer(reader, found, _V2 if found.number == _LAYER else _V1))
            if len(layers) > _MOST_LAYERS:
                raise reader.error(f"more than {_MOST_LAYERS} layers", found.start)
        elif found.number not in _NET_FIELDS:
            raise reader.error(f"field {found.number} is none of a net's", found.start)
    return layers


_NET_FIELDS = {f.number for f in schema.NetParameter.DESCRIPTOR.fields}


def _layer(reader: Reader, message: Field, numbers: dict[str, int]) -> LayerWeights:
    layer = LayerWeights("")
    kind: Field | None = None
    blobs = []
    for found in _inside(reader, message):
        if found.number == numbers["name"]:
            layer.name = reader.text(found)
        elif found.number == numbers["type"]:
            kind = found
        elif found.number == numbers["blobs"]:
            blobs.append(found)
        elif found.number == numbers.get("v0"):
            inner = _layer(reader, found, _V0)
            layer.name, layer.type = inner.name, inner.type
            layer.blobs.extend(inner.blobs)
            layer.legacy |= inner.legacy
    if len(blobs) + len(layer.blobs) > _MOST_BLOBS:
        raise reader.error(f"layer {layer.name!r} has more than {_MOST_BLOBS} blobs", message.start)
    for found in blobs:
        blob, legacy = reader.blob(found, f"blob {len(layer.blobs)} of layer {layer.name!r}")
        layer.blobs.append(blob)
        layer.legacy |= legacy
    if kind is not None:
        layer.type = _type(reader, kind, numbers)
    return layer


def _inside(reader: Reader, message: Field) -> Iterator[Field]:
    if message.wire != 2:
        raise reader.error(f"field {message.number} should hold a message", message.start)
    return reader.fields(message.start, message.end)


def _type(reader: Reader, found: Field, numbers: dict[str, int]) -> str:
    if numbers is not _V1:
        name = reader.text(found)
        return v1_type(V0_TYPES[name]) if numbers is _V0 and name in V0_TYPES else name
    if found.wire != 0:
        raise reader.error("a V1 layer's type should be a number", found.start)
    known = schema.V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"].values_by_number
    return v1_type(known[found.value].name) if found.value in known else str(found.value)


def write(path: str | os.PathLike[str], net: Any, layers: Iterable[LayerWeights]) -> None:
    """Write a binary caffemodel: ``net``'s layers, each with the blobs of the ``LayerWeights`` at its place.

    The floats go from the arrays to the file; nothing is held twice. The file appears whole or not at all.

    Raises:
        FileFormatError: when ``layers`` are not those of ``net``.
    """
    given = list(layers)
    if [layer.name for layer in given] != [layer.name for layer in net.layer]:
        raise FileFormatError(f"{path}: expected weights for the net's {len(net.layer)} layers in order")
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        head = schema.NetParameter()
        head.CopyFrom(net)
        head.ClearField("layer")
        file.write(head.SerializeToString())
        for param, weights in zip(net.layer, given, strict=True):
            shell = schema.LayerParameter()
            shell.CopyFrom(param)
            shell.ClearField("blobs")
            body = shell.SerializeToString()
            blobs = [_blob_head(blob) for blob in weights.blobs]
            sizes = [len(h) + blob.size * 4 for h, blob in zip(blobs, weights.blobs, strict=True)]
            total = len(body) + sum(len(tag(7, size)) + size for size in sizes)
            file.write(tag(_LAYER, total) + body)
            for head_bytes, blob, size in zip(blobs, weights.blobs, sizes, strict=True):
                file.write(tag(7, size) + head_bytes)
                _write_floats(file, blob)


def _blob_head(blob: Array) -> bytes:
    """A BlobProto up to its floats."""
    return length_delimited(7, schema.BlobShape(dim=blob.shape).SerializeToString()) + tag(5, blob.size * 4)


def _write_floats(file: BinaryIO, blob: Array) -> None:
    if blob.size:
        file.write(np.ascontiguousarray(blob, "<f4").reshape(-1).view(np.uint8).data)


def read_mean(path: str | os.PathLike[str]) -> Array:
    """A mean image: a ``BlobProto`` (``.binaryproto``) in its own shape, or a ``.npy``.

    Raises:
        FileFormatError: for anything else.
    """
    with Path(path).open("rb") as file:
        is_numpy = file.read(6) == b"\x93NUMPY"
    if is_numpy:
        try:
            mean = np.load(path, allow_pickle=False, mmap_mode="r")
        except ValueError as error:
            raise FileFormatError(f"{path}: {error}") from None
        if mean.dtype.kind not in "fiu":
            raise FileFormatError(f"{path}: expected numbers, got an array of {mean.dtype}")
        return np.asarray(mean, np.float32)
    reader = open_reader(path)
    return reader.blob(Field(0, 2, 0, len(reader.buffer)), "the mean")[0]


def write_mean(path: str | os.PathLike[str], mean: Array) -> None:
    """Write a mean image as a binaryproto."""
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(_blob_head(mean))
        _write_floats(file, mean)


@dataclass
class Snapshot:
    """What a solverstate holds.

    Attributes:
        iteration: the number of updates made.
        learned_net: the file of the weights that belong to it.
        current_step: how many steps of the learning rate policy are done.
        history: the solver's arrays, in the order of the net's parameters.
    """

    iteration: int
    learned_net: str = ""
    current_step: int = 0
    history: Sequence[Array] = ()


def read_state(path: str | os.PathLike[str]) -> Snapshot:
    """A binary solverstate.

    Raises:
        FileFormatError: for what is none, naming the byte.
    """
    reader = open_reader(path)
    state = Snapshot(0)
    history: list[Array] = []
    for found in reader.fields(0, len(reader.buffer)):
        if found.number == 2:
            state.learned_net = reader.text(found)
        elif found.number == 3:
            history.append(reader.blob(found, f"history {len(history)}")[0])
            if len(history) > _MOST_LAYERS:
                raise reader.error(f"more than {_MOST_LAYERS} arrays", found.start)
        elif found.number in (1, 4) and found.wire == 0:
            setattr(state, "iteration" if found.number == 1 else "current_step", found.value)
        else:
            raise reader.error(f"field {found.number} is none of a solverstate's", found.start)
    state.history = history
    return state


def write_state(path: str | os.PathLike[str], state: Snapshot) -> None:
    """Write a binary solverstate."""
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        head = schema.SolverState(iter=state.iteration, learned_net=state.learned_net, current_step=state.current_step)
        file.write(head.SerializeToString())
        for blob in state.history:
            start = _blob_head(blob)
            file.write(tag(3, len(start) + blob.size * 4) + start)
            _write_floats(file, blob)
