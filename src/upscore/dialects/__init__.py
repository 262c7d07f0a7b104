"""Every framework's transposed convolution, read into the normal form and written from it.

Each system is a module with the same functions::

    read(parameters, weights)   what the system says -> Layer
    write(layer)                Layer -> what the system says: Written(parameters, weights, ...)
    code(layer)                 the lines to paste into that system
    formula(layer, n)           the system's size formula and the numbers in it
    run(layer, x)               the output of that system, where it can be installed from PyPI

``write`` raises :class:`RefusalError` where the system cannot say the layer. No framework is imported before its
``run`` is called.

>>> from upscore.dialects import caffe, tensorflow
>>> layer = caffe.read({"num_output": 4, "kernel_size": 4, "stride": 2, "pad": 1, "bias_term": False}, c_in=8)
>>> tensorflow.write(layer, input_size=16).parameters["padding"]
'SAME'
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from upscore.dialects import (
    caffe,
    flax,
    haiku,
    jax,
    keras,
    lasagne,
    matconvnet,
    ncnn,
    onnx,
    openvino,
    pytorch,
    signal,
    tensorflow,
    tflite,
    theano,
)
from upscore.dialects.alignment import Alignment, compare
from upscore.dialects.layer import Layer
from upscore.dialects.layout import Layout
from upscore.dialects.translation import RefusalError, Terms, Written
from upscore.errors import ArgumentError
from upscore.geometry import Ints

__all__ = [
    "SYSTEMS",
    "Alignment",
    "Dialect",
    "Layer",
    "Layout",
    "RefusalError",
    "Written",
    "caffe",
    "compare",
    "flax",
    "get",
    "haiku",
    "jax",
    "keras",
    "lasagne",
    "matconvnet",
    "ncnn",
    "onnx",
    "openvino",
    "pytorch",
    "read_back",
    "signal",
    "tensorflow",
    "tflite",
    "theano",
]


class Dialect(Protocol):
    """What every module of this package offers."""

    SYSTEM: str

    def read(
        self,
        parameters: Any,
        weights: Any = None,
        *,
        c_in: int | None = None,
        rank: int | None = None,
        input_size: Ints | None = None,
    ) -> Layer: ...

    def write(self, layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written: ...

    def code(self, layer: Layer) -> str: ...

    def formula(self, layer: Layer, input_size: Ints) -> Terms: ...


_MODULES = {
    "caffe": caffe,
    "tensorflow": tensorflow,
    "keras": keras,
    "pytorch": pytorch,
    "onnx": onnx,
    "jax": jax,
    "flax": flax,
    "haiku": haiku,
    "theano": theano,
    "lasagne": lasagne,
    "matconvnet": matconvnet,
    "ncnn": ncnn,
    "openvino": openvino,
    "tflite": tflite,
    "signal": signal,
}
_ALIASES = {"torch": "pytorch", "tf": "tensorflow"}

SYSTEMS: tuple[str, ...] = tuple(_MODULES)
"""The names of all systems, as :func:`get` takes them."""


def get(name: str) -> Dialect:
    """The dialect of a system by name.

    Raises:
        ArgumentError: for a name that no system has.

    >>> get("caffe").SYSTEM
    'Caffe'
    """
    module = _MODULES.get(_ALIASES.get(name.lower(), name.lower()))
    if module is None:
        raise ArgumentError("system", f"one of {', '.join(SYSTEMS)}", repr(name), "system='pytorch'")
    return cast("Dialect", module)


def read_back(written: Written) -> Layer:
    """The layer that a Written says, its crop included: the inverse of ``write``."""
    layer = get(written.system).read(written.parameters, written.weights, input_size=written.input_size)
    return layer if written.is_one_layer else layer.cropped(written.crop)
