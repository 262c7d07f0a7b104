"""Where ``upscore translate`` and ``upscore size`` find a layer: typed parameters, files, or a live torch module."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from upscore.dialects import Layer, get
from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError, UpscoreError

__all__ = ["Found", "find", "typed_layer", "typed_parameters", "understood"]

MOST_WEIGHTS = 2**26

Found = tuple[str, str, Callable[[], Layer]]
"""The system, the layer's name, and what reads the layer: one that cannot be read must not hide its neighbours."""

# What a size does not depend on, filled in so that nobody has to type it.
_CHANNELS: dict[str, dict[Any, int]] = {
    "caffe": {"num_output": 1},
    "pytorch": {"in_channels": 1, "out_channels": 1},
    "keras": {"filters": 1},
    "onnx": {"filters": 1},
    "jax": {"features": 1},
    "flax": {"features": 1},
    "haiku": {"output_channels": 1},
    "lasagne": {"num_filters": 1},
    "ncnn": {0: 1},
    "openvino": {"filters": 1},
    "signal": {"channels": 1},
}


def typed_parameters(words: Iterable[str]) -> dict[Any, Any]:
    """``kernel_size=3,4 stride=2 padding=same`` as a dict; values are Python literals where they can be.

    >>> typed_parameters(["kernel_size=3,4", "padding=same", "bias_term=false", "1=3"])
    {'kernel_size': (3, 4), 'padding': 'same', 'bias_term': False, 1: 3}
    """
    parameters: dict[Any, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ArgumentError("parameter", "name=value", repr(word), "kernel_size=4")
        try:
            said = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            said = {"true": True, "false": False, "none": None}.get(value.lower(), value)
        parameters[int(name) if name.isdigit() else name] = said
    return parameters


def typed_layer(
    system: str, words: Sequence[str], *, c_in: int | None = None, input_size: Any = None, rank: int | None = None
) -> Layer:
    """The layer that typed parameters say in a system; channels that were not typed are 1."""
    parameters = {**_CHANNELS.get(system, {}), **typed_parameters(words)}
    if system == "caffe":
        c_in = c_in or parameters.get("group")
    dialect = get(system)
    return understood(partial(dialect.read, parameters, c_in=c_in or 1, input_size=input_size, rank=rank))


def understood(read: Callable[[], Layer]) -> Layer:
    """The layer that ``read`` returns; values of a kind that the dialect did not expect are an ArgumentError, too.

    >>> understood(partial(get("caffe").read, {"num_output": "many"}, c_in=1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    upscore.errors.ArgumentError: parameters: expected values of the right kind, got ...
    """
    try:
        layer = read()
    except UpscoreError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ArgumentError("parameters", "values of the right kind", error, "kernel_size=4 stride=2") from error
    if math.prod(layer.weight_shape) > MOST_WEIGHTS:
        raise ArgumentError("layer", f"at most {MOST_WEIGHTS} weights", layer.weight_shape, "kernel_size=4")
    return layer


def find(source: str, *, weights: Path | None = None, c_in: int | None = None, input_size: Any = None) -> list[Found]:
    """Every transposed convolution in a file, or in the torch module that ``package.module:attribute`` names.

    Args:
        source: a .prototxt (with a .caffemodel in ``weights``), .onnx, .json (Keras) or .param (ncnn) file, or a path
            to a torch module: ``package.module:name.of.attribute``; a function or class there is called.
        weights: the .caffemodel of a .prototxt.
        c_in: channels of the input, where the file does not say.
        input_size: of the layer's input, where its parameters depend on it.

    Raises:
        ArgumentError: for a source of another kind, or without such a layer.
        FileFormatError: for a file that is not what its name says.
    """
    readers = {".prototxt": _prototxt, ".onnx": _onnx, ".json": _keras, ".param": _ncnn}
    suffix = Path(source).suffix
    if suffix in readers:
        found = list(readers[suffix](Path(source), weights, c_in, input_size))
    elif ":" in source:
        found = list(_torch(source))
    else:
        expected = "a .prototxt, .onnx, .json or .param file, or package.module:attribute"
        raise ArgumentError("source", expected, repr(source), "deploy.prototxt")
    if not found:
        raise ArgumentError(
            "source", "a transposed convolution in it", source, "upscore translate kernel_size=4 --from caffe"
        )
    return found


def _need(package: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(package, what, extra)


def _prototxt(path: Path, weights: Path | None, c_in: int | None, input_size: Any) -> Iterable[Found]:
    _need("google.protobuf", "reading prototxt", "caffe")
    from upscore.caffe import caffemodel, prototxt, schema, upgrade

    net = upgrade.upgrade(prototxt.read(path, schema.NetParameter()))
    blobs = {} if weights is None else {layer.name: layer.blobs for layer in caffemodel.read(weights)}
    for layer in net.layer:
        if layer.type != "Deconvolution":
            continue
        fields = layer.convolution_param.ListFields()
        said: dict[str, Any] = {f.name: v if isinstance(v, (int, float, str, bool)) else _plain(v) for f, v in fields}
        arrays = dict(zip(("weight", "bias"), blobs.get(layer.name, ()), strict=False))
        # without weights: groups say how many channels come in where every channel is upsampled on its own
        channels = c_in or (
            None if arrays else said.get("group", 1) if said.get("group", 1) > 1 else said["num_output"]
        )
        yield "caffe", layer.name, partial(get("caffe").read, said, arrays or None, c_in=None if arrays else channels)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) else str(value)


def _onnx(path: Path, weights: Path | None, c_in: int | None, input_size: Any) -> Iterable[Found]:
    _need("onnx", "reading ONNX files", "onnx")
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(path)
    except OSError:
        raise
    except Exception as error:
        raise FileFormatError(f"{path}: not an ONNX model ({error})") from error
    arrays = {t.name: t for t in model.graph.initializer}
    for i, node in enumerate(model.graph.node):
        if node.op_type == "ConvTranspose":
            names = dict(zip(("W", "B"), node.input[1:], strict=False))
            found = {k: numpy_helper.to_array(arrays[n]) for k, n in names.items() if n in arrays}
            if "W" not in found:
                raise FileFormatError(f"{path}: the weights of node {node.name or i} are no initializer")
            yield "onnx", node.name or f"node{i}", partial(get("onnx").read, node, found, input_size=input_size)


def _keras(path: Path, weights: Path | None, c_in: int | None, input_size: Any) -> Iterable[Found]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON ({error})") from error
    for layer in _layers(config):
        name = layer["config"].get("name", "layer")
        yield "keras", name, partial(get("keras").read, layer, c_in=c_in or layer["config"]["filters"])


def _layers(config: Any) -> Iterable[dict[str, Any]]:
    """The serialised Conv*DTranspose layers anywhere inside a config."""
    if isinstance(config, dict):
        if str(config.get("class_name", "")).endswith("DTranspose") and isinstance(config.get("config"), dict):
            yield config
            return
        if "filters" in config and "kernel_size" in config:
            yield {"config": config}
            return
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _layers(item)


def _ncnn(path: Path, weights: Path | None, c_in: int | None, input_size: Any) -> Iterable[Found]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("Deconvolution"):
            yield "ncnn", line.split()[1], partial(get("ncnn").read, line, c_in=c_in, input_size=input_size)


def _torch(source: str) -> Iterable[Found]:
    _need("torch", "reading a torch module", "torch")
    from torch import nn

    module_name, _, path = source.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ArgumentError(
            "source", "a module that can be imported", f"{module_name} ({error})", "torchvision.models:..."
        ) from error
    for name in path.split("."):
        if not hasattr(value, name):
            raise ArgumentError("source", f"an attribute of a {type(value).__name__}", name, f"{module_name}:name")
        value = getattr(value, name)
        if callable(value) and not isinstance(value, nn.Module):
            value = value()
    if not isinstance(value, nn.Module):
        raise ArgumentError("source", "a torch.nn.Module", f"{type(value).__name__} at {source}", "models:net.decoder")
    for name, module in value.named_modules():
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            yield "pytorch", name or path, partial(get("pytorch").read, module)
