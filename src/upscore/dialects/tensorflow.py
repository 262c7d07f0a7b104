"""TensorFlow's ``tf.nn.conv{1,2,3}d_transpose``: the gradient of a convolution whose input has ``output_shape``.

The padding is that of the convolution that goes the other way, from size ``m`` to size ``n``::

    SAME        n = ceil(m / s)                 before = max((n - 1) s + e - m, 0) // 2
    VALID       n = ceil((m - e + 1) / s)       before = 0
    explicit    n = floor((m + lo + hi - e) / s) + 1    before = lo        (2-D only)

with ``e = d (k - 1) + 1``. So ``output_shape`` may be any of ``s`` sizes; where the total padding is odd, the
extra position is cut at the end. Filters are ``(*K, C_out, C_in)``, not flipped. There are no groups.

Sources: tf.nn.conv2d_transpose and tf.nn.convolution documentation ("notes on padding"). The 1.x call of old
threads, ``tf.nn.conv2d_transpose(x, w, output_shape, strides=[1, 2, 2, 1])``, is read as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import after, channels_first, channels_last, execute, require
from upscore.dialects.translation import (
    Crop,
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    plain_axes,
    refuse_groups,
    refuse_rank,
    say_crop,
    take_weights,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["LAYOUT", "code", "convolution_size", "formula", "lines_of", "read", "run", "same_before", "write"]

SYSTEM = "TensorFlow"
LAYOUT = Layout("koi")
_KNOWN = {"output_shape", "strides", "padding", "data_format", "dilations", "filters_shape"}


def convolution_size(m: int, s: int, e: int, padding: str, lo: int = 0, hi: int = 0) -> int:
    """The size that the convolution the other way makes of ``m``; ``padding`` is SAME, VALID or EXPLICIT."""
    if padding == "SAME":
        return -(-m // s)
    return (m + lo + hi - e) // s + 1


def same_before(n: int, m: int, s: int, e: int) -> int:
    """What SAME pads before an input of size ``m`` (here: cuts before the output)."""
    return max((n - 1) * s + e - m, 0) // 2


def _spatial(name: str, value: Any, rank: int, first: bool) -> tuple[int, ...]:
    """``strides`` or ``dilations``: one integer, one per axis, or with 1 for batch and channels."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) == rank + 2:
        batch, channels = values[0], values[1 if first else -1]
        if (batch, channels) != (1, 1):
            example = f"{name}={(1, 1, *[2] * rank) if first else (1, *[2] * rank, 1)}"
            raise ArgumentError(name, "1 for batch and channels", values, example)
        values = values[2:] if first else values[1:-1]
    return per_axis(name, values[0] if len(values) == 1 else values, rank, least=1)


def _explicit(padding: Any, rank: int, first: bool) -> Crop:
    if rank != 2:
        raise ArgumentError("padding", "'SAME' or 'VALID' (explicit paddings exist in 2-D only)", padding, "'SAME'")
    both = [tuple(int(v) for v in pair) for pair in padding]
    if len(both) != rank + 2 or any(len(pair) != 2 or min(pair) < 0 for pair in both):
        expected = f"{rank + 2} pairs of integers of at least 0"
        raise ArgumentError("padding", expected, padding, "[[0, 0], [1, 1], [1, 1], [0, 0]]")
    spatial = both[2:] if first else both[1:-1]
    return tuple((lo, hi) for lo, hi in spatial)


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A call of ``tf.nn.conv{1,2,3}d_transpose`` in the normal form.

    Args:
        parameters: ``output_shape`` (whole, or the spatial sizes alone), ``strides``, ``padding`` ("SAME" by
            default), ``data_format``, ``dilations``; ``filters_shape`` where there are no weights.
        weights: ``filters`` ``(*K, C_out, C_in)`` and ``bias`` ``(C_out,)`` (added after the call).
        c_in: not needed: the filters say it.
        rank: spatial axes, where the filters do not say it.
        input_size: of the input; by default the one size that fits ``output_shape`` and the padding.

    Raises:
        ArgumentError: where TensorFlow raises: an ``output_shape`` that does not lead back to the input.

    >>> old = {"output_shape": [1, 32, 32, 8], "strides": [1, 2, 2, 1], "filters_shape": [5, 5, 8, 16]}
    >>> read(old, input_size=16).geometry.crop
    ((1, 2), (1, 2))
    """
    check(SYSTEM, parameters, _KNOWN)
    shape = parameters.get("filters_shape")
    if weights and "filters" in weights:
        shape = np.shape(weights["filters"])
    if shape is None or "output_shape" not in parameters:
        name = "filters_shape" if shape is None else "output_shape"
        raise ArgumentError(name, "its shape, which the call depends on", None, "output_shape=[1, 32, 32, 8]")
    rank = len(shape) - 2
    kernel, c_out, found_in = tuple(shape[:rank]), int(shape[-2]), int(shape[-1])
    first = str(parameters.get("data_format") or "N...C").startswith("NC")
    stride = _spatial("strides", parameters.get("strides", 1), rank, first)
    dilation = _spatial("dilations", parameters.get("dilations") or 1, rank, first)
    plain = Geometry(kernel, stride, dilation, rank=rank)
    wanted = tuple(parameters["output_shape"])
    m = per_axis("output_shape", wanted if len(wanted) == rank else wanted[2:] if first else wanted[1:-1], rank)
    mode, pads = parameters.get("padding", "SAME"), zero_crop(rank)
    if not isinstance(mode, str):
        mode, pads = "EXPLICIT", _explicit(mode, rank, first)
    elif mode.upper() not in ("SAME", "VALID"):
        raise ArgumentError("padding", "'SAME', 'VALID' or explicit pairs", repr(mode), "padding='SAME'")
    mode = mode.upper()
    fitting = tuple(
        convolution_size(mi, s, e, mode, *p)
        for mi, s, e, p in zip(m, stride, plain.extent, pads, strict=True)
    )  # fmt: skip
    n = fitting if input_size is None else per_axis("input_size", input_size, rank, least=1)
    if n != fitting or min(fitting) < 1:
        expected = f"a size that the {mode} convolution takes back to {n}"
        raise ArgumentError("output_shape", expected, f"{m}, which leads to {fitting}", _fits(plain, n, mode))
    if mode == "SAME":
        before = tuple(same_before(*axis) for axis in zip(n, m, stride, plain.extent, strict=True))
    else:
        before = tuple(lo for lo, _ in pads)
    geometry = Geometry(kernel, stride, dilation, tuple((lo, 0) for lo in before)).with_output_size(n, m)
    found = take_weights(weights, ("filters", "bias"), LAYOUT, 1)
    return build(geometry, found, c_in=found_in, c_out=c_out, groups=1, has_bias=False)


def _fits(plain: Geometry, n: tuple[int, ...], mode: str) -> str:
    sizes = [
        ni * s if mode == "SAME" else (ni - 1) * s + e for ni, s, e in zip(n, plain.stride, plain.extent, strict=True)
    ]
    return f"output_shape of the spatial size {tuple(max(m, 1) for m in sizes)}"


def _mode(g: Geometry, rank: int) -> str | None:
    """Which padding says this crop, or None."""
    axes = list(zip(g.stride, g.extent, g.crop, strict=True))
    if all(lo == 0 and -s < hi <= 0 for s, _, (lo, hi) in axes):
        return "VALID"
    # m lies in ((n - 1) s, n s], and the whole padding is cut with the odd position at the end
    if all(e - s <= lo + hi < e and lo == max(lo + hi, 0) // 2 for s, e, (lo, hi) in axes):
        return "SAME"
    if rank == 2 and all(lo >= 0 and hi > -s for s, _, (lo, hi) in axes):
        return "EXPLICIT"
    return None


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The arguments of the call for one input size (the smallest that works, if none is given).

    Raises:
        RefusalError: for groups, more than 3 axes, or a crop that no padding says, unless ``allow_crop``:
            then VALID makes everything, and the slice or pad that has to follow stands in ``crop``.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "jax.lax.conv_general_dilated with lhs_dilation, which has any rank")
    refuse_groups(SYSTEM, layer)
    g, left = layer.geometry, zero_crop(layer.rank)
    mode = _mode(g, layer.rank)
    if mode is None:
        closest = f"padding='VALID' with everything kept, then {say_crop(g.crop)}"
        if not allow_crop:
            expected = "a crop of SAME (extra position after), of VALID (none)"
            raise RefusalError(SYSTEM, "padding", expected + " or, in 2-D, at least 0 before", g.crop, closest)
        g, left, mode = Geometry(g.kernel, g.stride, g.dilation, rank=g.rank), g.crop, "VALID"
    n = layer.smallest_input() if input_size is None else per_axis("input_size", input_size, layer.rank, least=1)
    padding: Any = mode
    if mode == "EXPLICIT":
        padding = [[0, 0], *[[lo, max(hi, 0)] for lo, hi in g.crop], [0, 0]]
    parameters = {
        "output_shape": [1, *g.output_size(n), layer.c_out],
        "strides": list(g.stride),
        "padding": padding,
        "data_format": {1: "NWC", 2: "NHWC", 3: "NDHWC"}[layer.rank],
        "dilations": list(g.dilation),
        "filters_shape": [*g.kernel, layer.c_out, layer.c_in],
    }
    weights = {}
    if layer.weight is not None:
        weights["filters"] = LAYOUT.write(layer.weight)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("tensorflow", parameters, weights, LAYOUT, n, left)


def code(layer: Layer) -> str:
    """The call, for an input of any size; ``x`` is ``(N, *size, C)``. Groups are split and concatenated."""
    if layer.groups > 1:
        return _grouped(layer)
    return "import tensorflow as tf\n\n" + "\n".join(lines_of(layer, write(layer, allow_crop=True))) + "\n"


def lines_of(layer: Layer, written: Written) -> list[str]:
    """The lines of one call, without the import."""
    p, g = written.parameters, layer.geometry
    inner = g.crop if written.is_one_layer else zero_crop(layer.rank)
    sizes = []
    for axis, (s, e, (lo, hi)) in enumerate(zip(g.stride, g.extent, inner, strict=True)):
        more = e - s - lo - hi
        sizes.append(f"{s} * tf.shape(x)[{axis + 1}]" + (f" {'+' if more > 0 else '-'} {abs(more)}" if more else ""))
    dilations = f", dilations={p['dilations']}" if set(g.dilation) != {1} else ""
    lines = [
        f"filters = tf.constant({LAYOUT.code('weight', layer.weight_shape)})  # {LAYOUT}",
        f"size = [tf.shape(x)[0], {', '.join(sizes)}, {layer.c_out}]",
        f"y = tf.nn.conv{layer.rank}d_transpose(x, filters, size, {p['strides']}, {p['padding']!r}{dilations})",
        *after(written.crop, channels="last", pad="tf.pad", bias=None),
    ]
    return [*lines, "y = tf.nn.bias_add(y, bias)"] if layer.has_bias else lines


def _grouped(layer: Layer) -> str:
    one = Layer(layer.geometry, layer.c_in // layer.groups, layer.c_out // layer.groups)
    body = lines_of(one, write(one, allow_crop=True))
    lines = ["import tensorflow as tf", "", "parts = []", f"inputs = tf.split(x, {layer.groups}, axis=-1)"]
    lines.append(f"for x, weight in zip(inputs, weight.reshape({layer.groups}, -1, *weight.shape[1:])):")
    lines += [f"    {line}" for line in body]
    lines += ["    parts.append(y)", "y = tf.concat(parts, axis=-1)"]
    if layer.has_bias:
        lines.append("y = tf.nn.bias_add(y, bias)")
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in TensorFlow, for ``x`` ``(N, C, *size)``."""
    tf = require("tensorflow", "running a layer in TensorFlow")
    return channels_first(execute(code(layer), layer, tf.constant(channels_last(x))).numpy())


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size: chosen in ``output_shape``, here by its distance from the largest that SAME or VALID allow."""
    mode = write(layer, input_size=input_size).parameters["padding"]
    axes = plain_axes(layer, input_size)
    if mode == "SAME":
        for axis in axes:
            e = axis["dilation"] * (axis["kernel"] - 1) + 1
            axis["short"] = axis["before"] + axis["after"] - e + axis["stride"]
        return "stride*n - short", axes
    text = "stride*(n - 1) + dilation*(kernel - 1) + 1"
    if mode == "VALID":
        for axis in axes:
            axis["more"] = -axis["after"]
        return f"{text} + more", axes
    for axis in axes:
        axis["pad_before"], axis["pad_after"] = axis["before"], max(axis["after"], 0)
        axis["more"] = max(-axis["after"], 0)
    return f"{text} - pad_before - pad_after + more", axes
