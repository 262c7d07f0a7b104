"""Flax' ``ConvTranspose`` (linen and nnx): ``lax.conv_transpose`` with an unflipped kernel unless told otherwise.

``kernel`` is ``(*K, C_in, C_out)``, used as it lies: the taps are flipped in the normal form. With
``transpose_kernel=True`` it is ``(*K, C_out, C_in)`` and not flipped. An integer ``p`` in ``padding`` is the pair
``(p, p)`` of pads of the sliding, not PyTorch's padding. There are no groups.

Source: flax.linen.ConvTranspose and flax.nnx.ConvTranspose documentation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upscore.dialects import jax
from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import call, channels_first, channels_last, execute, require
from upscore.dialects.translation import (
    Parameters,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    refuse_groups,
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["code", "formula", "read", "run", "write"]

SYSTEM = "Flax"
_KNOWN = {"features", "kernel_size", "strides", "padding", "kernel_dilation", "transpose_kernel", "use_bias"}


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``ConvTranspose`` in the normal form.

    Args:
        parameters: the module's attributes.
        weights: ``kernel`` and ``bias``, as in the module's ``params``.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where ``kernel_size`` is one integer (then 1, as in Flax).
        input_size: not needed here; the same in every dialect.

    Raises:
        ArgumentError: where Flax raises; for circular and causal padding, which are no crop.

    >>> read({"features": 4, "kernel_size": (3, 3), "strides": (2, 2)}, c_in=8).geometry.crop
    ((0, 1), (0, 1))
    """
    check(SYSTEM, parameters, _KNOWN)
    rank = rank or find_rank(parameters, weights, "kernel", default=1)
    kernel = per_axis("kernel_size", parameters.get("kernel_size", 1), rank, least=1)
    stride = per_axis("strides", parameters.get("strides") or 1, rank, least=1)
    dilation = per_axis("kernel_dilation", parameters.get("kernel_dilation") or 1, rank, least=1)
    swapped = bool(parameters.get("transpose_kernel", False))
    padding: Any = parameters.get("padding", "SAME")
    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        closest = "padding='VALID' on an input padded by hand"
        raise ArgumentError("padding", "'SAME', 'VALID' or pairs", repr(padding), closest)
    plain = Geometry(kernel, stride, dilation, rank=rank)
    geometry = Geometry(kernel, stride, dilation, jax.crop_of(padding, plain))
    return build(
        geometry,
        take_weights(weights, ("kernel", "bias"), _layout(swapped), 1),
        c_in=c_in,
        c_out=parameters.get("features"),
        groups=1,
        has_bias=bool(parameters.get("use_bias", True)) if not weights else "bias" in weights,
    )


def _layout(swapped: bool) -> Layout:
    return Layout("koi") if swapped else Layout("kio", flip=True)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The module's attributes and ``params`` of a layer.

    Raises:
        RefusalError: for groups or more than 3 axes.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "lax.conv_general_dilated with dimension_numbers of your own")
    refuse_groups(SYSTEM, layer)
    g, layout = layer.geometry, _layout(True)
    parameters = {
        "features": layer.c_out,
        "kernel_size": g.kernel,
        "strides": g.stride,
        "padding": jax.pads_of(g),
        "kernel_dilation": g.dilation,
        "transpose_kernel": True,
        "use_bias": layer.has_bias,
    }
    weights = {}
    if layer.weight is not None:
        weights["kernel"] = layout.write(layer.weight)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("flax", parameters, weights, layout)


def code(layer: Layer) -> str:
    """The lines that build and apply the module; ``x`` is ``(N, *size, C)``."""
    written = write(layer)
    bias = ', "bias": bias' if layer.has_bias else ""
    lines = [
        "import flax.linen as nn",
        "",
        f"layer = {call('nn.ConvTranspose', **written.parameters)}",
        f'params = {{"kernel": {written.layout.code("weight", layer.weight_shape)}{bias}}}  # {written.layout}',
        'y = layer.apply({"params": params}, x)',
    ]
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in Flax, for ``x`` ``(N, C, *size)``."""
    require("flax", "running a layer in Flax")
    return channels_first(np.asarray(execute(code(layer), layer, channels_last(x))))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in ``lax``' pads."""
    write(layer)
    return jax.formula(layer, input_size)
