"""Caffe's Deconvolution.

``convolution_param`` holds ``kernel_size``, ``stride``, ``pad`` and ``dilation`` once, once per axis (repeated),
or, in 2-D and without dilation, as ``_h`` and ``_w``. The padding is cut equally from both sides and there is
no output padding: ``m = s(n - 1) + d(k - 1) + 1 - 2p``. Weights are ``(C_in, C_out / group, *K)``, not flipped.

Sources: caffe.proto (ConvolutionParameter), base_conv_layer.cpp and deconv_layer.cpp of BVLC Caffe 9b891540.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from upscore.dialects.layer import Layer
from upscore.dialects.layout import NORMAL
from upscore.dialects.translation import (
    Crop,
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    plain_axes,
    say_crop,
    split_symmetric,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, bilinear_kernel

__all__ = ["code", "formula", "geometry", "read", "template", "write"]

SYSTEM = "Caffe"
_KNOWN = {
    "num_output", "bias_term", "pad", "kernel_size", "stride", "dilation", "pad_h", "pad_w", "kernel_h", "kernel_w",
    "stride_h", "stride_w", "group", "weight_filler", "bias_filler", "engine", "axis", "force_nd_im2col",
}  # fmt: skip


def _axes(parameters: Parameters, name: str, short: str, default: int | None, rank: int) -> tuple[int, ...]:
    """One value per axis, from ``name`` (absent, once or per axis) or from ``short_h`` and ``short_w``."""
    given = parameters.get(name, ())
    values = tuple(given) if isinstance(given, Iterable) else (given,)
    h, w = parameters.get(f"{short}_h"), parameters.get(f"{short}_w")
    if h is not None or w is not None:
        if rank != 2:
            raise ArgumentError(f"{short}_h", f"only with 2 spatial axes, not {rank}", h, f"{name}: one value per axis")
        if values:
            raise ArgumentError(name, f"none beside {short}_h and {short}_w", values, f"{name} alone")
        # An absent optional field is 0 in protobuf: pad_h alone leaves pad_w at 0, stride_h alone kills Caffe.
        return int(h or 0), int(w or 0)
    if not values:
        if default is None:
            raise ArgumentError(name, f"a value, or {short}_h and {short}_w", "none", f"{name}: 4")
        return (default,) * rank
    if len(values) not in (1, rank):
        raise ArgumentError(name, f"1 value, or {rank} (one per axis)", values, f"{name}: {values[0]}")
    return tuple(int(v) for v in values) * (rank if len(values) == 1 else 1)


def geometry(parameters: Parameters, rank: int = 2) -> Geometry:
    """The geometry of a ``convolution_param``: of a Deconvolution, and of the Convolution that is its adjoint.

    Args:
        parameters: the fields that are set, by their names in caffe.proto; repeated ones as int or sequence.
        rank: the number of spatial axes (of the bottom blob, without batch and channels).

    Raises:
        ArgumentError: where Caffe would abort, naming the field.

    >>> geometry({"kernel_size": 3, "stride": [2], "pad_h": 1}).crop
    ((1, 1), (0, 0))
    """
    unknown = sorted(set(parameters) - _KNOWN)
    if unknown:
        raise ArgumentError("convolution_param", "fields of ConvolutionParameter", ", ".join(unknown), "kernel_size")
    if parameters.get("axis", 1) != 1:
        raise ArgumentError("axis", "1, channels after the batch", parameters["axis"], "axis: 1")
    kernel = _axes(parameters, "kernel_size", "kernel", None, rank)
    stride = _axes(parameters, "stride", "stride", 1, rank)
    for name, values in (("kernel", kernel), ("stride", stride)):
        if min(values) < 1:
            expected = f"{name}_h and {name}_w, both at least 1 (one left out is 0 in Caffe)"
            field = f"{name}_h" if f"{name}_h" in parameters or f"{name}_w" in parameters else name
            raise ArgumentError(field, expected, values, f"{name}_h: 2 {name}_w: 2")
    pad = _axes(parameters, "pad", "pad", 0, rank)
    return Geometry(kernel, stride, _axes(parameters, "dilation", "dilation", 1, rank), pad, rank=rank)


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A Deconvolution layer in the normal form.

    Args:
        parameters: the fields of ``convolution_param`` that are set.
        weights: ``weight`` ``(c_in, num_output / group, *kernel)`` and ``bias`` ``(num_output,)``: the blobs.
        c_in: channels of the bottom; needed only without weights.
        rank: spatial axes of the bottom; from the weight, a repeated field, or 2.
        input_size: not needed here; the same in every dialect.

    Raises:
        ArgumentError: where Caffe would abort.

    >>> fields = {"num_output": 21, "kernel_size": 64, "stride": 32, "bias_term": False}
    >>> read(fields, c_in=21).output_size((16, 16))
    (544, 544)
    """
    groups = int(parameters.get("group", 1))
    if rank is None:
        lengths = [len(v) for v in parameters.values() if isinstance(v, (list, tuple))]
        known = np.ndim(weights["weight"]) - 2 if weights and "weight" in weights else 2
        rank = max([n for n in lengths if n > 1], default=known)
    found = take_weights(weights, ("weight", "bias"), NORMAL, groups)
    has_bias = bool(parameters.get("bias_term", True))
    if found[1] is not None and not has_bias:
        raise ArgumentError("bias_term", "true, as there is a bias blob", False, "bias_term: true")
    if found[1] is not None:
        found = (found[0], np.asarray(found[1]).reshape(-1))  # old models store the bias as (1, 1, 1, C)
    c_out = int(parameters["num_output"]) if "num_output" in parameters else None
    shape = geometry(parameters, rank)
    return build(shape, found, c_in=c_in, c_out=c_out, groups=groups, has_bias=has_bias)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The ``convolution_param`` and the blobs of a layer.

    Raises:
        RefusalError: for a crop that differs between the sides or is negative, unless ``allow_crop``: then the
            slice that has to follow (a Crop layer) stands in ``crop``.
    """
    g, left = split_symmetric(layer.geometry)
    if any(any(pair) for pair in left) and not allow_crop:
        raise RefusalError(
            SYSTEM,
            "pad",
            "the same amount, at least 0, on both sides of an axis",
            layer.geometry.crop,
            _closest(layer),
        )
    parameters: dict[str, Any] = {"num_output": layer.c_out, "bias_term": layer.has_bias}
    pad = tuple(lo for lo, _ in g.crop)
    for name, values, default in (
        ("kernel_size", g.kernel, None),
        ("stride", g.stride, 1),
        ("pad", pad, 0),
        ("dilation", g.dilation, 1),
    ):
        if set(values) != {default}:
            parameters[name] = [values[0]] if len(set(values)) == 1 and layer.rank == 2 else list(values)
    if layer.groups > 1:
        parameters["group"] = layer.groups
    weights = {k: v for k, v in (("weight", layer.weight), ("bias", layer.bias)) if v is not None}
    return Written("caffe", parameters, weights, NORMAL, crop=left)


def _closest(layer: Layer) -> str:
    """A kernel that has nothing to add, a pad, and a Crop layer for the rest."""
    g, left = split_symmetric(layer.with_zero_taps().geometry)
    grown = f"a kernel of {g.kernel} whose added taps are 0, " if g.kernel != layer.geometry.kernel else ""
    rest = f", then a Crop layer to {say_crop(left)}" if any(map(any, left)) else ""
    return f"{grown}pad {tuple(lo for lo, _ in g.crop)}{rest}"


def _fields(parameters: Parameters) -> str:
    lines = []
    for name, value in parameters.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            lines.append(f"    {name}: {str(item).lower() if isinstance(item, bool) else item}")
    return "\n".join(lines)


def code(layer: Layer) -> str:
    """The prototxt of the layer; a crop that Caffe cannot say follows as a Crop layer with its reference open.

    Raises:
        RefusalError: where positions would have to be added, which no Caffe layer does.
    """
    written = write(layer, allow_crop=True)
    text = (
        'layer {\n  name: "upscore"\n  type: "Deconvolution"\n  bottom: "x"\n  top: "y"\n'
        f"  convolution_param {{\n{_fields(written.parameters)}\n  }}\n}}\n"
    )
    if written.is_one_layer:
        return text
    return text + _crop_layer(written.crop)


def _crop_layer(crop: Crop) -> str:
    if any(amount < 0 for pair in crop for amount in pair):
        closest = "a larger kernel whose added taps are 0: layer.with_zero_taps()"
        raise RefusalError(SYSTEM, "pad", "nothing to add around the output", say_crop(crop), closest)
    offsets = "".join(f" offset: {lo}" for lo, _ in crop)
    after = ", ".join(str(hi) for _, hi in crop)
    return (
        f"# `size` is a blob of the size wanted: what stays after {after} is cut at the end of each axis.\n"
        'layer {\n  name: "crop"\n  type: "Crop"\n  bottom: "y"\n  bottom: "size"\n  top: "cropped"\n'
        f"  crop_param {{ axis: 2{offsets} }}\n}}\n"
    )


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in Caffe's names."""
    write(layer)
    axes = plain_axes(layer, input_size)
    for axis in axes:
        axis["pad"] = axis["before"]
    return "stride*(n - 1) + dilation*(kernel - 1) + 1 - 2*pad", axes


def template(factor: int, channels: int) -> Layer:
    """The layer that Caffe's documentation gives for upsampling by ``factor``, with its bilinear weights.

    ``kernel 2f - f % 2, stride f, pad ceil((f - 1) / 2), group C, num_output C``, filled with ``bilinear``:
    ``w[y, x] = (1 - |x/f' - c|)(1 - |y/f' - c|)``, ``f' = ceil(k / 2)``, ``c = (2f' - 1 - f' % 2) / (2f')``
    (caffe/include/caffe/filler.hpp).

    >>> layer = template(2, channels=3)
    >>> layer.geometry.kernel, layer.groups, layer.output_size((4, 5))
    ((4, 4), 3, (8, 10))
    """
    kernel, pad = bilinear_kernel(factor)
    half = -(-kernel // 2)
    centre = (2 * half - 1 - half % 2) / (2.0 * half)
    tent = 1 - np.abs(np.arange(kernel) / half - centre)
    weight = np.broadcast_to(np.outer(tent, tent), (channels, 1, kernel, kernel)).astype(np.float32)
    return Layer.from_weight(Geometry(kernel, factor, 1, pad, rank=2), weight, groups=channels)
