"""Haiku's ``Conv{1,2,3}DTranspose``: ``lax.conv_transpose`` with axes named ``(*K, C_out, C_in)`` and no flip.

The parameter ``w`` is ``(*K, C_out, C_in)`` like TensorFlow's, but its taps are **not** flipped, so they are
flipped in the normal form. ``padding`` is "SAME" by default; ``output_shape`` (spatial sizes) picks the size as
TensorFlow does; pairs are pads of the sliding. There is no dilation and there are no groups.

Source: haiku.Conv2DTranspose documentation and ``haiku/_src/conv.py`` (``compute_adjusted_padding``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upscore.dialects import jax
from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import channels_first, channels_last, execute, require
from upscore.dialects.tensorflow import convolution_size, same_before
from upscore.dialects.translation import (
    Parameters,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    refuse_dilation,
    refuse_groups,
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["LAYOUT", "code", "formula", "read", "run", "write"]

SYSTEM = "Haiku"
LAYOUT = Layout("koi", flip=True)
_KNOWN = {"output_channels", "kernel_shape", "stride", "output_shape", "padding", "with_bias", "data_format"}


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``ConvNDTranspose`` in the normal form.

    Args:
        parameters: the constructor's arguments.
        weights: ``w`` and ``b``, as in the module's params.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where neither a tuple nor the weights say it (then 2).
        input_size: of the input; needed only with ``output_shape``.

    Raises:
        ArgumentError: where Haiku raises: an ``output_shape`` that does not lead back to the input.

    >>> read({"output_channels": 4, "kernel_shape": 3, "stride": 2}, c_in=8).geometry.crop
    ((0, 1), (0, 1))
    """
    check(SYSTEM, parameters, _KNOWN)
    rank = rank or find_rank(parameters, weights, "w")
    kernel = per_axis("kernel_shape", parameters.get("kernel_shape", 1), rank, least=1)
    stride = per_axis("stride", parameters.get("stride", 1), rank, least=1)
    padding: Any = parameters.get("padding", "SAME")
    plain = Geometry(kernel, stride, rank=rank)
    wanted = parameters.get("output_shape")
    if wanted is None:
        geometry = Geometry(kernel, stride, 1, jax.crop_of(padding, plain))
    else:
        geometry = _with_output_shape(plain, padding, wanted, input_size)
    found = take_weights(weights, ("w", "b"), LAYOUT, 1)
    if found[1] is not None:
        found = found[0], np.asarray(found[1]).reshape(-1)  # (C, 1, 1) with channels first
    return build(
        geometry,
        found,
        c_in=c_in,
        c_out=parameters.get("output_channels"),
        groups=1,
        has_bias=bool(parameters.get("with_bias", True)) if not weights else "b" in weights,
    )


def _with_output_shape(plain: Geometry, padding: Any, wanted: Ints, input_size: Ints | None) -> Geometry:
    if padding not in ("SAME", "VALID"):
        raise ArgumentError("padding", "'SAME' or 'VALID' beside output_shape", padding, "padding='SAME'")
    if input_size is None:
        raise ArgumentError("input_size", "the input's size, as output_shape depends on it", None, "input_size=16")
    n = per_axis("input_size", input_size, plain.rank, least=1)
    m = per_axis("output_shape", wanted, plain.rank, least=1)
    back = tuple(convolution_size(mi, s, e, padding) for mi, s, e in zip(m, plain.stride, plain.extent, strict=True))
    if back != n:
        expected = f"a size that the {padding} convolution takes back to {n}"
        example = f"output_shape={tuple(ni * s for ni, s in zip(n, plain.stride, strict=True))}"
        raise ArgumentError("output_shape", expected, f"{m}, which leads to {back}", example)
    before = [
        same_before(*axis) if padding == "SAME" else 0 for axis in zip(n, m, plain.stride, plain.extent, strict=True)
    ]
    return Geometry(plain.kernel, plain.stride, 1, tuple((lo, 0) for lo in before)).with_output_size(n, m)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The constructor's arguments and the params of a layer.

    Raises:
        RefusalError: for dilation, groups or more than 3 axes.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "lax.conv_general_dilated with dimension_numbers of your own")
    refuse_groups(SYSTEM, layer)
    refuse_dilation(SYSTEM, layer)
    g = layer.geometry
    parameters = {
        "output_channels": layer.c_out,
        "kernel_shape": g.kernel,
        "stride": g.stride,
        "padding": jax.pads_of(g),
        "with_bias": layer.has_bias,
    }
    weights = {}
    if layer.weight is not None:
        weights["w"] = LAYOUT.write(layer.weight)
    if layer.bias is not None:
        weights["b"] = layer.bias
    return Written("haiku", parameters, weights, LAYOUT)


def code(layer: Layer) -> str:
    """The lines that build and apply the module; ``x`` is ``(N, *size, C)``."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in write(layer).parameters.items())
    bias = ', "b": bias' if layer.has_bias else ""
    lines = [
        "import haiku as hk",
        "",
        f'forward = hk.transform(lambda x: hk.Conv{layer.rank}DTranspose({arguments}, name="up")(x))',
        f'params = {{"up": {{"w": {LAYOUT.code("weight", layer.weight_shape)}{bias}}}}}  # {LAYOUT}',
        "y = hk.without_apply_rng(forward).apply(params, x)",
    ]
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in Haiku, for ``x`` ``(N, C, *size)``."""
    require("haiku", "running a layer in Haiku")
    return channels_first(np.asarray(execute(code(layer), layer, channels_last(x))))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in ``lax``' pads."""
    write(layer)
    return jax.formula(layer, input_size)
