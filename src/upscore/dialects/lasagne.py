"""Lasagne's ``TransposedConv2DLayer`` (``Deconv2DLayer``), on Theano's gradient of a convolution.

``crop`` is "valid" (0), "full" (``k - 1``), "same" (``k // 2``), an integer or one per axis, cut from both sides;
``output_size`` picks one of the ``s`` sizes above the smallest. ``W`` is ``(C_in, C_out, kh, kw)`` and by default
(``flip_filters=False``) slides unflipped over the spread-out input, so its taps are flipped in the normal form.
2-D only, no dilation, no groups.

Source: lasagne.layers.TransposedConv2DLayer documentation and ``lasagne/layers/conv.py``.
"""

from __future__ import annotations

from typing import Any

from upscore.dialects.layer import Layer
from upscore.dialects.layout import Layout
from upscore.dialects.theano import border
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
    refuse_dilation,
    refuse_groups,
    refuse_rank,
    say_crop,
    split_symmetric,
    squeeze,
    take_weights,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["code", "formula", "read", "write"]

SYSTEM = "Lasagne"
_KNOWN = {"num_filters", "filter_size", "stride", "crop", "flip_filters", "output_size", "untie_biases", "b"}
_MODES = {"valid": "valid", "same": "half", "full": "full"}


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``TransposedConv2DLayer`` in the normal form.

    Args:
        parameters: the constructor's arguments; ``b=None`` means no bias.
        weights: ``W`` ``(C_in, C_out, kh, kw)`` and ``b`` ``(C_out,)``.
        c_in: channels of the input, where no weights say it.
        rank: 2.
        input_size: of the input; needed only with ``output_size``.

    Raises:
        ArgumentError: for untied biases, and for an ``output_size`` that the convolution does not lead back.

    >>> read({"num_filters": 4, "filter_size": 3, "stride": 2, "crop": "same"}, c_in=8).output_size(4)
    (7, 7)
    """
    check(SYSTEM, parameters, _KNOWN)
    if parameters.get("untie_biases", False):
        raise ArgumentError("untie_biases", "False: one bias per channel", True, "an addition after the layer")
    rank = find_rank({k: v for k, v in parameters.items() if k == "kernel"}, weights, "W")
    kernel = per_axis("filter_size", parameters.get("filter_size", 1), rank, least=1)
    stride = per_axis("stride", parameters.get("stride", 1), rank, least=1)
    crop: Any = parameters.get("crop", 0)
    if isinstance(crop, str) and crop not in _MODES:
        raise ArgumentError("crop", "'valid', 'same', 'full', or integers", repr(crop), "crop='same'")
    geometry = Geometry(kernel, stride, 1, border(_MODES[crop] if isinstance(crop, str) else crop, kernel))
    wanted = parameters.get("output_size")
    if wanted is not None:
        if input_size is None:
            raise ArgumentError("input_size", "the input's size beside output_size", None, "input_size=16")
        if geometry.adjoint_size(wanted) != per_axis("input_size", input_size, rank, least=1):
            expected = f"a size that the convolution takes back to {input_size}"
            raise ArgumentError("output_size", expected, wanted, f"output_size={geometry.output_size(input_size)}")
        geometry = geometry.with_output_size(input_size, wanted)
    return build(
        geometry,
        take_weights(weights, ("W", "b"), Layout("iok", flip=not parameters.get("flip_filters", False)), 1),
        c_in=c_in,
        c_out=parameters.get("num_filters"),
        groups=1,
        has_bias=parameters.get("b", 0) is not None if not weights else "b" in weights,
    )


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The constructor's arguments and the parameters of a layer, for one input size where ``output_size`` is needed.

    Raises:
        RefusalError: for another rank than 2, groups, dilation, or a crop that is not ``p`` before and ``p`` down
            to ``p - stride + 1`` after, unless ``allow_crop``.
    """
    refuse_rank(SYSTEM, layer, (2,), "theano.tensor.nnet.conv3d_grad_wrt_inputs, or a height of 1")
    refuse_groups(SYSTEM, layer)
    refuse_dilation(SYSTEM, layer)
    g, left = layer.geometry, zero_crop(layer.rank)
    if any(lo < 0 or not 0 <= lo - hi < s for (lo, hi), s in zip(g.crop, g.stride, strict=True)):
        inner, rest = split_symmetric(g)
        if not allow_crop:
            raise RefusalError(
                SYSTEM,
                "crop",
                "0 <= before - after < stride, before >= 0, on every axis",
                g.crop,
                f"crop={tuple(lo for lo, _ in inner.crop)}, then {say_crop(rest)}",
            )
        g, left = inner, rest
    parameters: dict[str, Any] = {
        "num_filters": layer.c_out,
        "filter_size": g.kernel,
        "stride": g.stride,
        "crop": squeeze(tuple(lo for lo, _ in g.crop)),
        "flip_filters": True,
    }
    n = None
    if any(lo != hi for lo, hi in g.crop):
        n = layer.smallest_input() if input_size is None else per_axis("input_size", input_size, layer.rank, least=1)
        parameters["output_size"] = g.output_size(n)
    if not layer.has_bias:
        parameters["b"] = None
    weights = {k: v for k, v in (("W", layer.weight), ("b", layer.bias)) if v is not None}
    return Written("lasagne", parameters, weights, Layout("iok"), n, left)


def code(layer: Layer) -> str:
    """The constructor's call; ``x`` is the incoming layer. A slice that is left over follows as SliceLayers.

    Raises:
        RefusalError: where positions would have to be added.
    """
    written = write(layer, allow_crop=True)
    if any(amount < 0 for pair in written.crop for amount in pair):
        write(layer)
    p = dict(written.parameters)
    p.pop("output_size", None)
    if written.input_size is not None:
        g = layer.geometry
        sizes = [
            f"{s} * x.output_shape[{axis + 2}] + {e - s - lo - hi}"
            for axis, (s, e, (lo, hi)) in enumerate(zip(g.stride, g.extent, g.crop, strict=True))
        ]
        size = f", output_size=({', '.join(sizes)})"
    else:
        size = ""
    p.pop("b", None)
    arguments = ", ".join(f"{k}={v!r}" for k, v in p.items())
    bias = "bias" if layer.has_bias else "None"
    lines = [
        "import lasagne",
        "",
        f"y = lasagne.layers.TransposedConv2DLayer(x, {arguments}{size}, W=weight, b={bias}, nonlinearity=None)",
    ]
    for axis, (lo, hi) in enumerate(written.crop):
        if lo or hi:
            cut = f"slice({lo}, {-hi if hi else None})"
            lines.append(f"y = lasagne.layers.SliceLayer(y, {cut}, axis={axis + 2})")
    return "\n".join(lines) + "\n"


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in Lasagne's names."""
    write(layer)
    axes = plain_axes(layer, input_size)
    for axis in axes:
        axis.update(crop=axis["before"], more=axis["before"] - axis["after"])
    return "stride*(n - 1) + kernel - 2*crop + more", axes
