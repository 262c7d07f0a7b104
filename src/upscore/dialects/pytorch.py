"""PyTorch's ``torch.nn.ConvTranspose{1,2,3}d``.

``m = s(n - 1) + d(k - 1) + 1 - 2 padding + output_padding``; the output padding uncovers positions at the end, it
adds no zeros while the padding covers it. ``output_size`` chooses the output padding. Weights are
``(C_in, C_out / groups, *K)``, not flipped. No SAME, no padding that differs between the sides.

Source: torch.nn.ConvTranspose2d documentation, and ``_ConvTransposeNd._output_padding`` for ``output_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import NORMAL
from upscore.dialects.snippet import after, call, execute, needs_pad, require
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
    say_crop,
    split_symmetric,
    squeeze,
    take_weights,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["code", "formula", "read", "run", "write"]

SYSTEM = "PyTorch"
_KNOWN = {
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "bias",
    "output_size", "padding_mode",
}  # fmt: skip


def _of_module(module: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """The constructor's arguments and the weights of a ``torch.nn.ConvTranspose`` module."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation", "groups")
    missing = [name for name in names if not hasattr(module, name)]
    if missing or not getattr(module, "transposed", True):
        raise ArgumentError("module", "a torch.nn.ConvTranspose", type(module).__name__, "model.upscore")
    parameters = {name: getattr(module, name) for name in names}
    parameters.update(bias=module.bias is not None, padding_mode=getattr(module, "padding_mode", "zeros"))
    tensors = {"weight": module.weight, "bias": module.bias}
    return parameters, {k: t.detach().cpu().numpy() for k, t in tensors.items() if t is not None}


def read(
    parameters: Parameters | Any,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``ConvTranspose`` in the normal form.

    Args:
        parameters: the constructor's arguments (and ``output_size`` of the call), or the module itself.
        weights: ``weight`` ``(C_in, C_out / groups, *K)`` and ``bias`` ``(C_out,)``.
        c_in: channels of the input, where neither ``in_channels`` nor weights say it.
        rank: spatial axes, where neither a tuple nor the weights say it (then 2).
        input_size: needed only with ``output_size``.

    Raises:
        ArgumentError: where PyTorch raises, naming the argument.

    >>> read({"in_channels": 8, "out_channels": 4, "kernel_size": 3, "stride": 2, "output_padding": 1}).output_size(5)
    (12, 12)
    """
    if not isinstance(parameters, Mapping):
        parameters, weights = _of_module(parameters)
    check(SYSTEM, parameters, _KNOWN)
    if parameters.get("padding_mode", "zeros") != "zeros":
        raise ArgumentError("padding_mode", "'zeros', all that PyTorch has", parameters["padding_mode"], "'zeros'")
    groups = int(parameters.get("groups", 1))
    rank = rank or find_rank(parameters, weights, "weight")
    if "kernel_size" not in parameters:
        raise ArgumentError("kernel_size", "an integer, or one per axis", "none", "kernel_size=4")
    shape = Geometry.from_padding(
        parameters["kernel_size"],
        stride=parameters.get("stride", 1),
        padding=parameters.get("padding", 0),
        output_padding=0 if parameters.get("output_size") is not None else parameters.get("output_padding", 0),
        dilation=parameters.get("dilation", 1),
        rank=rank,
    )
    if parameters.get("output_size") is not None:
        shape = _with_output_size(shape, input_size, parameters["output_size"])
    return build(
        shape,
        take_weights(weights, ("weight", "bias"), NORMAL, groups),
        c_in=parameters.get("in_channels", c_in),
        c_out=parameters.get("out_channels"),
        groups=groups,
        has_bias=bool(parameters.get("bias", True)) if not weights else "bias" in weights,
    )


def _with_output_size(shape: Geometry, input_size: Ints | None, output_size: Ints) -> Geometry:
    if input_size is None:
        raise ArgumentError("input_size", "the input's size, as output_size depends on it", None, "input_size=16")
    wanted = per_axis("output_size", output_size, shape.rank, least=1)
    least = shape.output_size(input_size)
    most = tuple(m + s - 1 for m, s in zip(least, shape.stride, strict=True))
    if any(not a <= m <= b for a, m, b in zip(least, wanted, most, strict=True)):
        raise ArgumentError("output_size", f"a size from {least} to {most}", wanted, f"output_size={most}")
    return shape.with_output_size(input_size, wanted)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The constructor's arguments and the weights of a layer.

    Raises:
        RefusalError: for more than 3 axes; for a crop that padding and output padding cannot say, unless
            ``allow_crop``: then what is left to slice or pad stands in ``crop``.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "upscore.conv_transpose, which has any rank")
    g, said = layer.geometry, layer.geometry.symmetric()
    left = zero_crop(layer.rank)
    if said is None:
        inner, left = split_symmetric(g)
        if not allow_crop:
            raise RefusalError(
                SYSTEM,
                "padding",
                "0 <= before - after < max(stride, dilation), before >= 0, on every axis",
                g.crop,
                f"padding={tuple(lo for lo, _ in inner.crop)}, then {say_crop(left)}",
            )
        said = tuple(lo for lo, _ in inner.crop), (0,) * layer.rank
    parameters = {
        "in_channels": layer.c_in,
        "out_channels": layer.c_out,
        "kernel_size": g.kernel,
        "stride": squeeze(g.stride),
        "padding": squeeze(said[0]),
        "output_padding": squeeze(said[1]),
        "dilation": squeeze(g.dilation),
        "groups": layer.groups,
        "bias": layer.has_bias,
    }
    weights = {k: v for k, v in (("weight", layer.weight), ("bias", layer.bias)) if v is not None}
    return Written("pytorch", parameters, weights, NORMAL, crop=left)


def code(layer: Layer) -> str:
    """The lines that build, fill and call the module; ``x`` is a tensor ``(N, C, *size)``."""
    written = write(layer, allow_crop=True)
    bias_last = layer.has_bias and needs_pad(written.crop)
    arguments = {k: v for k, v in written.parameters.items() if (k, v) not in _DEFAULTS}
    if bias_last:
        arguments["bias"] = False
    double = ".double()" if layer.weight is not None and layer.weight.dtype.name == "float64" else ""
    lines = [
        "import torch",
        "",
        f"layer = {call(f'torch.nn.ConvTranspose{layer.rank}d', **arguments)}{double}",
        "with torch.no_grad():",
        "    layer.weight.copy_(torch.from_numpy(weight))",
    ]
    if layer.has_bias and not bias_last:
        lines.append("    layer.bias.copy_(torch.from_numpy(bias))")
    if needs_pad(written.crop):
        lines.append("pad = lambda y, pairs: torch.nn.functional.pad(y, [a for pair in pairs[::-1] for a in pair])")
    bias = f"torch.from_numpy(bias).reshape{(1, -1, *[1] * layer.rank)}" if bias_last else None
    lines += ["y = layer(x)", *after(written.crop, channels="first", pad="pad", bias=bias)]
    return "\n".join(lines) + "\n"


_DEFAULTS = (
    ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1), ("groups", 1), ("bias", True),
)  # fmt: skip


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in PyTorch, for ``x`` ``(N, C, *size)``."""
    torch = require("torch", "running a layer in PyTorch", "torch")
    y: Array = execute(code(layer), layer, torch.from_numpy(np.ascontiguousarray(x))).detach().numpy()
    return y


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in PyTorch's names."""
    p = write(layer).parameters
    said = [per_axis(name, p[name], layer.rank) for name in ("padding", "output_padding")]
    axes = plain_axes(layer, input_size)
    for axis, padding, more in zip(axes, *said, strict=True):
        axis.update(padding=padding, output_padding=more)
    return "stride*(n - 1) + dilation*(kernel - 1) + 1 - 2*padding + output_padding", axes
