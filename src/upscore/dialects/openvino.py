"""OpenVINO's ``ConvolutionBackpropData`` and ``GroupConvolutionBackpropData``.

``m = s(n - 1) + d(k - 1) + 1 - pads_begin - pads_end + output_padding``. The optional input ``output_shape`` sets the
spatial size: with ``auto_pad`` explicit the begin stays and the end gives way (in the grouped operation the begin
does not count either: everything is cut at the end); with ``same_upper`` the larger half of
what is cut goes **before**, with ``same_lower`` after: the other way round than ONNX. What would have to be added is
added at the end. Without ``output_shape``, every ``auto_pad`` but explicit means no padding. Weights are
``(C_in, C_out, *K)``, with groups ``(G, C_in / G, C_out / G, *K)``, not flipped.

Source: OpenVINO operation sets, ConvolutionBackpropData-1; behaviour with ``auto_pad`` as the CPU plugin computes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import execute, require
from upscore.dialects.translation import (
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    plain_axes,
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["code", "formula", "read", "run", "write"]

SYSTEM = "OpenVINO"
_KNOWN = {
    "strides", "pads_begin", "pads_end", "dilations", "auto_pad", "output_padding", "output_shape", "kernel", "groups",
    "filters",
}  # fmt: skip


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``ConvolutionBackpropData`` (or grouped) in the normal form.

    Args:
        parameters: the operation's attributes, ``output_shape`` (its third input) and ``groups``; ``kernel`` and
            ``filters`` (output channels) where there are no weights.
        weights: ``weights`` ``(C_in, C_out, *K)``, with groups ``(G, C_in/G, C_out/G, *K)``; ``bias`` added after.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where nothing else says it.
        input_size: of the input; needed only with ``output_shape``.

    Raises:
        ArgumentError: naming the attribute.

    >>> read({"strides": [2, 2], "kernel": [3, 3], "filters": 4, "output_padding": [1, 1]}, c_in=8).output_size(5)
    (12, 12)
    """
    check(SYSTEM, parameters, _KNOWN)
    groups = int(parameters.get("groups", 1))
    layout = _layout(groups)
    rank = rank or len(parameters.get("strides", ())) or find_rank(parameters, weights, "weights") - (groups > 1)
    found = take_weights(weights, ("weights", "bias"), layout, groups)
    kernel = parameters.get("kernel") if found[0] is None else found[0].shape[2:]
    if kernel is None:
        raise ArgumentError("kernel", "its size, where no weights are given", None, "kernel=[4, 4]")
    plain = Geometry(
        tuple(kernel),
        per_axis("strides", parameters.get("strides", 1), rank, least=1),
        per_axis("dilations", parameters.get("dilations", 1), rank, least=1),
        rank=rank,
    )
    auto = str(parameters.get("auto_pad", "explicit")).lower()
    if auto not in ("explicit", "notset", "valid", "same_upper", "same_lower"):
        raise ArgumentError("auto_pad", "'explicit', 'same_upper', 'same_lower' or 'valid'", repr(auto), "'explicit'")
    explicit = auto in ("explicit", "notset")
    begin = per_axis("pads_begin", parameters.get("pads_begin", 0) if explicit else 0, rank, least=0)
    end = per_axis("pads_end", parameters.get("pads_end", 0) if explicit else 0, rank)
    more = per_axis("output_padding", parameters.get("output_padding", 0), rank, least=0)
    crop = tuple((a, b - m) for a, b, m in zip(begin, end, more, strict=True))
    geometry = Geometry(plain.kernel, plain.stride, plain.dilation, crop)
    if parameters.get("output_shape") is not None:
        if input_size is None:
            raise ArgumentError("input_size", "the input's size beside output_shape", None, "input_size=16")
        m = per_axis("output_shape", tuple(parameters["output_shape"])[-rank:], rank, least=1)
        if auto in ("same_upper", "same_lower"):
            cut = [f - mi for f, mi in zip(geometry.output_size(input_size), m, strict=True)]
            begin = tuple(max(c - c // 2 if auto == "same_upper" else c // 2, 0) for c in cut)
        elif groups > 1:
            begin = (0,) * rank
        geometry = Geometry(plain.kernel, plain.stride, plain.dilation, tuple((lo, 0) for lo in begin))
        geometry = geometry.with_output_size(input_size, m)
    return build(geometry, found, c_in=c_in, c_out=parameters.get("filters"), groups=groups, has_bias=False)


def _layout(groups: int) -> Layout:
    return Layout("giok") if groups > 1 else Layout("iok")


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The attributes and the weights of a layer.

    Raises:
        RefusalError: for more than 3 axes, or a negative crop before.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "upscore.conv_transpose, which has any rank")
    g, layout = layer.geometry, _layout(layer.groups)
    if min(lo for lo, _ in g.crop) < 0:
        closest = f"a kernel of {layer.with_zero_taps().geometry.kernel} whose added taps are 0"
        raise RefusalError(SYSTEM, "pads_begin", "at least 0", g.crop, closest)
    parameters: dict[str, Any] = {
        "strides": list(g.stride),
        "pads_begin": [lo for lo, _ in g.crop],
        "pads_end": [max(hi, 0) for _, hi in g.crop],
        "dilations": list(g.dilation),
        "auto_pad": "explicit",
        "output_padding": [max(-hi, 0) for _, hi in g.crop],
    }
    if layer.groups > 1:
        parameters["groups"] = layer.groups
    if layer.weight is None:
        parameters |= {"kernel": list(g.kernel), "filters": layer.c_out}
    weights = {}
    if layer.weight is not None:
        weights["weights"] = layout.write(layer.weight, layer.groups)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("openvino", parameters, weights, layout)


def code(layer: Layer) -> str:
    """The lines that build, compile and run the model; ``x`` is ``(N, C, *size)``."""
    written = write(layer)
    p = {k: v for k, v in written.parameters.items() if k not in ("groups", "kernel", "filters")}
    name = "group_convolution_backprop_data" if layer.groups > 1 else "convolution_backprop_data"
    lines = [
        "import openvino as ov",
        "from openvino import opset13 as ops",
        "",
        "data = ops.parameter(x.shape, ov.Type.f32)",
        f"kernel = ops.constant({written.layout.code('weight', layer.weight_shape, layer.groups)})  # {written.layout}",
        f"node = ops.{name}(data, kernel, {', '.join(f'{k}={v!r}' for k, v in p.items())})",
    ]
    if layer.has_bias:
        lines.append(f"node = ops.add(node, ops.constant(bias.reshape{(1, -1, *[1] * layer.rank)}))")
    config = '{"INFERENCE_PRECISION_HINT": "f32"}'
    lines.append(f'y = ov.compile_model(ov.Model([node], [data]), "CPU", {config})(x)[0]')
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in OpenVINO, for ``x`` ``(N, C, *size)``."""
    require("openvino", "running a layer in OpenVINO")
    return np.array(execute(code(layer), layer, np.ascontiguousarray(x)))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in OpenVINO's names."""
    p = write(layer).parameters
    axes = plain_axes(layer, input_size)
    for i, axis in enumerate(axes):
        axis.update({name: p[name][i] for name in ("pads_begin", "pads_end", "output_padding")})
    return "stride*(n - 1) + dilation*(kernel - 1) + 1 - pads_begin - pads_end + output_padding", axes
