"""JAX's ``lax.conv_transpose``, and ``lax.conv_general_dilated`` with ``lhs_dilation``.

Both slide a kernel over the input with ``s - 1`` zeros between its elements, so pads are those of that sliding:
``pad = e - 1 - crop`` with ``e = d (k - 1) + 1``. Any crop can be said, negative ones too. By default the kernel is
**not** flipped, unlike the gradient of a convolution (and every other framework); ``transpose_kernel=True`` flips
it and swaps its channel axes. "SAME" gives ``s n`` and cuts the smaller half of ``e - s`` before; "VALID" gives
``s(n - 1) + max(e, s)``. With ``use_consistent_padding=True`` pairs are the crop itself, as in PyTorch.

Source: jax.lax.conv_transpose documentation and ``jax/_src/lax/convolution.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import channels_first, channels_last, execute, require
from upscore.dialects.translation import (
    Crop,
    Parameters,
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
from upscore.geometry import Geometry, Ints, pairs, per_axis

__all__ = ["code", "crop_of", "formula", "pads_of", "read", "run", "write"]

SYSTEM = "JAX"
_TRANSPOSE = {
    "strides", "padding", "rhs_dilation", "dimension_numbers", "transpose_kernel", "use_consistent_padding",
    "kernel_size", "features",
}  # fmt: skip
_DILATED = {
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
    "batch_group_count", "kernel_size", "features",
}  # fmt: skip
_LAST = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}
_FIRST = {1: ("NCH", "OIH", "NCH"), 2: ("NCHW", "OIHW", "NCHW"), 3: ("NCHWD", "OIHWD", "NCHWD")}


def crop_of(padding: Any, g: Geometry, *, consistent: bool = False) -> Crop:
    """The crop that ``lax.conv_transpose`` makes with a padding, for the kernel, stride and dilation of ``g``.

    >>> crop_of("SAME", Geometry(3, 2)), crop_of(((2, 1),), Geometry(3, 2))
    (((0, 1),), ((0, 1),))
    """
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ArgumentError("padding", "'SAME', 'VALID' or pairs", repr(padding), "padding='SAME'")
        totals = [e - s if padding == "SAME" else min(e - s, 0) for e, s in zip(g.extent, g.stride, strict=True)]
        return tuple((max(t // 2, 0), t - max(t // 2, 0)) for t in totals)
    said = pairs("padding", padding, g.rank)
    return said if consistent else tuple((e - 1 - a, e - 1 - b) for e, (a, b) in zip(g.extent, said, strict=True))


def pads_of(g: Geometry) -> Crop:
    """The pairs that make ``lax`` cut the crop of ``g``."""
    return tuple((e - 1 - lo, e - 1 - hi) for e, (lo, hi) in zip(g.extent, g.crop, strict=True))


def _layout(numbers: Sequence[str], rank: int, *, swapped: bool, grouped: bool) -> Layout:
    """The layout that the kernel's part of ``dimension_numbers`` says."""
    spec = str(numbers[1])
    spatial = "".join(c for c in spec if c not in "IO")
    order = [c for c in str(numbers[0]) if c not in "NC"]
    if len(spec) != rank + 2 or spatial not in spec or list(spatial) != order:
        expected = f"the {rank} spatial letters together, in one order"
        raise ArgumentError("dimension_numbers", expected, tuple(numbers), str(_LAST.get(rank, _LAST[2])))
    axes = spec.replace(spatial, "k").replace("I", "i").replace("O", "o")
    if swapped:
        axes = axes.translate(str.maketrans("io", "oi"))
    return Layout(axes.replace("o", "(go)") if grouped else axes, flip=not swapped)


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A call of ``lax.conv_transpose``, or of ``lax.conv_general_dilated`` where ``lhs_dilation`` is given.

    Args:
        parameters: the call's arguments; ``kernel_size`` and ``features`` where there are no weights.
        weights: ``rhs``, and ``bias`` where one is added after the call.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where nothing else says it (then 2).
        input_size: not needed here; the same in every dialect.

    Raises:
        ArgumentError: where JAX raises; for ``window_strides`` above 1, which is no transposed convolution.

    >>> read({"strides": [2, 2], "padding": "VALID", "kernel_size": [3, 3], "features": 4}, c_in=8).output_size(5)
    (11, 11)
    """
    dilated = "lhs_dilation" in parameters
    check(SYSTEM, parameters, _DILATED if dilated else _TRANSPOSE)
    rank = rank or find_rank(parameters, weights, "rhs")
    default = _FIRST if dilated else _LAST
    numbers = parameters.get("dimension_numbers") or default.get(rank, default[2])
    groups = int(parameters.get("feature_group_count", 1))
    if set(per_axis("window_strides", parameters.get("window_strides", 1), rank)) != {1}:
        raise ArgumentError("window_strides", "1", parameters["window_strides"], "lhs_dilation for the stride")
    if parameters.get("batch_group_count", 1) != 1:
        raise ArgumentError("batch_group_count", "1", parameters["batch_group_count"], "feature_group_count")
    swapped = bool(parameters.get("transpose_kernel", False))
    layout = _layout(numbers, rank, swapped=swapped, grouped=dilated)
    found = take_weights(weights, ("rhs", "bias"), layout, groups)
    kernel = parameters.get("kernel_size") if found[0] is None else found[0].shape[2:]
    if kernel is None:
        raise ArgumentError(
            "kernel_size", "one integer per axis, where no weights are given", None, "kernel_size=(4, 4)"
        )
    stride = per_axis("strides", parameters["lhs_dilation"] if dilated else parameters.get("strides", 1), rank, least=1)
    dilation = per_axis("rhs_dilation", parameters.get("rhs_dilation") or 1, rank, least=1)
    plain = Geometry(tuple(kernel), stride, dilation, rank=rank)
    padding = parameters.get("padding", "SAME")
    if dilated and isinstance(padding, str):
        raise ArgumentError("padding", "pairs beside lhs_dilation", repr(padding), f"padding={pads_of(plain)}")
    crop = crop_of(padding, plain, consistent=bool(parameters.get("use_consistent_padding", False)))
    geometry = Geometry(plain.kernel, stride, dilation, crop)
    return build(geometry, found, c_in=c_in, c_out=parameters.get("features"), groups=groups, has_bias=False)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The arguments of ``lax.conv_transpose``, or with groups of ``lax.conv_general_dilated``, and the kernel.

    Raises:
        RefusalError: for more than 3 axes.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "lax.conv_general_dilated with dimension_numbers of your own")
    g = layer.geometry
    parameters: dict[str, Any]
    if layer.groups == 1:
        layout = Layout("koi")
        parameters = {"strides": g.stride, "transpose_kernel": True, "dimension_numbers": _LAST[layer.rank]}
    else:
        layout = Layout("ki(go)", flip=True)
        numbers = _LAST[layer.rank]
        parameters = {
            "window_strides": (1,) * layer.rank,
            "lhs_dilation": g.stride,
            "dimension_numbers": numbers,
            "feature_group_count": layer.groups,
        }
    parameters |= {"padding": pads_of(g), "rhs_dilation": g.dilation}
    if layer.weight is None:
        parameters |= {"kernel_size": g.kernel, "features": layer.c_out}
    weights = {}
    if layer.weight is not None:
        weights["rhs"] = layout.write(layer.weight, layer.groups)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("jax", parameters, weights, layout)


def code(layer: Layer) -> str:
    """The call; ``x`` is ``(N, *size, C)``."""
    written = write(layer)
    p, g = written.parameters, layer.geometry
    function = "conv_transpose" if layer.groups == 1 else "conv_general_dilated"
    names = ["strides"] if layer.groups == 1 else ["window_strides", "lhs_dilation", "feature_group_count"]
    names += ["padding", "dimension_numbers", *(["transpose_kernel"] if layer.groups == 1 else [])]
    names += ["rhs_dilation"] if set(g.dilation) != {1} else []
    arguments = ", ".join(f"{name}={p[name]!r}" for name in names)
    lines = [
        "from jax import lax",
        "",
        f"kernel = {written.layout.code('weight', layer.weight_shape, layer.groups)}  # {written.layout}",
        f"y = lax.{function}(x, kernel, {arguments})",
    ]
    return "\n".join([*lines, "y = y + bias"] if layer.has_bias else lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in JAX, for ``x`` ``(N, C, *size)``."""
    require("jax", "running a layer in JAX")
    return channels_first(np.asarray(execute(code(layer), layer, channels_last(x))))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in JAX' pads."""
    axes = plain_axes(layer, input_size)
    for axis, (a, b) in zip(axes, pads_of(layer.geometry), strict=True):
        axis["pad_before"], axis["pad_after"] = a, b
    return "stride*(n - 1) + 1 + pad_before + pad_after - dilation*(kernel - 1)", axes
