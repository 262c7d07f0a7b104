"""Theano's ``conv{2,3}d_grad_wrt_inputs``: the gradient of a convolution that has an ``input_shape``.

The padding is that convolution's ``border_mode``: "valid" is 0, "half" ``e // 2``, "full" ``e - 1`` with
``e = d (k - 1) + 1``, or an integer, one per axis, or (Theano 1.0) a pair per axis. ``input_shape`` picks one of the
``s`` sizes that lead to the same output. Filters are those of the convolution, ``(C_in, C_out / groups, *K)`` seen
from here; Theano's convolution flips them (``filter_flip=True``), so they are flipped in the normal form.

Sources: theano.tensor.nnet.abstract_conv documentation; V. Dumoulin, F. Visin, "A guide to convolution arithmetic
for deep learning" (2016), whose relationships 8 to 14 the tests go through.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upscore.dialects.layer import Layer
from upscore.dialects.layout import Layout
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
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, pairs, per_axis

__all__ = ["border", "code", "formula", "read", "write"]

SYSTEM = "Theano"
_KNOWN = {
    "input_shape", "filter_shape", "border_mode", "subsample", "filter_flip", "filter_dilation", "num_groups",
}  # fmt: skip


def border(mode: Any, extent: tuple[int, ...]) -> Crop:
    """The padding, before and after per axis, that a ``border_mode`` means for kernels of this extent.

    >>> border("half", (3, 4)), border("full", (3, 4))
    (((1, 1), (2, 2)), ((2, 2), (3, 3)))
    """
    if isinstance(mode, str):
        if mode not in ("valid", "half", "full"):
            raise ArgumentError("border_mode", "'valid', 'half', 'full', integers or pairs", repr(mode), "'half'")
        return tuple(({"valid": 0, "half": e // 2, "full": e - 1}[mode],) * 2 for e in extent)
    return pairs("border_mode", mode, len(extent), least=0)


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A call of ``conv2d_grad_wrt_inputs`` (or 3-D) in the normal form.

    Args:
        parameters: the call's arguments; ``filter_shape`` where there are no weights. ``input_shape`` is the
            shape of the result ``(N, C_out, *size)``; without it the smallest size is taken.
        weights: ``filters``, and ``bias`` where one is added after the call.
        c_in: not needed: the filters say it.
        rank: not needed: the filters say it.
        input_size: of ``output_grad``, our input; needed only with ``input_shape``.

    Raises:
        ArgumentError: where Theano raises: an ``input_shape`` that does not lead to ``output_grad``.

    >>> read({"filter_shape": (8, 4, 3, 3), "subsample": (2, 2), "border_mode": "half"}).output_size(4)
    (7, 7)
    """
    check(SYSTEM, parameters, _KNOWN)
    shape = np.shape(weights["filters"]) if weights and "filters" in weights else parameters.get("filter_shape")
    if shape is None:
        raise ArgumentError("filter_shape", "the filters' shape, where no weights are given", None, "(8, 4, 3, 3)")
    rank, groups = len(shape) - 2, int(parameters.get("num_groups", 1))
    stride = per_axis("subsample", parameters.get("subsample", 1), rank, least=1)
    dilation = per_axis("filter_dilation", parameters.get("filter_dilation", 1), rank, least=1)
    plain = Geometry(tuple(shape[2:]), stride, dilation, rank=rank)
    geometry = Geometry(plain.kernel, stride, dilation, border(parameters.get("border_mode", "valid"), plain.extent))
    wanted = parameters.get("input_shape")
    if wanted is not None:
        if input_size is None:
            raise ArgumentError("input_size", "the size of output_grad beside input_shape", None, "input_size=16")
        m = per_axis("input_shape", tuple(wanted)[2:], rank, least=1)
        if geometry.adjoint_size(m) != per_axis("input_size", input_size, rank, least=1):
            expected = f"a shape whose convolution has the size {input_size}"
            raise ArgumentError("input_shape", expected, wanted, f"the spatial size {geometry.output_size(input_size)}")
        geometry = geometry.with_output_size(input_size, m)
    layout = Layout("(gi)ok", flip=bool(parameters.get("filter_flip", True)))
    found = take_weights(weights, ("filters", "bias"), layout, groups)
    return build(geometry, found, c_in=int(shape[0]), c_out=int(shape[1]) * groups, groups=groups, has_bias=False)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The arguments of the call for one input size (the smallest that works, if none is given), and the filters.

    Raises:
        RefusalError: for 1 or more than 3 axes; for a crop below 0 before, or a stride and more added after.
    """
    refuse_rank(SYSTEM, layer, (2, 3), "conv2d_grad_wrt_inputs with a height of 1 for one axis")
    g = layer.geometry
    if any(lo < 0 or hi <= -s for (lo, hi), s in zip(g.crop, g.stride, strict=True)):
        expected = "at least 0 before, and less than a stride added after"
        closest = f"filters of {layer.with_zero_taps().geometry.kernel} whose added taps are 0"
        raise RefusalError(SYSTEM, "border_mode", expected, g.crop, closest)
    n = layer.smallest_input() if input_size is None else per_axis("input_size", input_size, layer.rank, least=1)
    # Any padding after between hi and hi + s - 1 leads from this size to n: take the symmetric one if it is there.
    after = [lo if 0 <= lo - hi < s else max(hi, 0) for (lo, hi), s in zip(g.crop, g.stride, strict=True)]
    mode: Any = tuple((lo, hi) for (lo, _), hi in zip(g.crop, after, strict=True))
    if all(lo == hi for lo, hi in mode):
        mode = tuple(lo for lo, _ in mode)
    parameters = {
        "input_shape": (1, layer.c_out, *g.output_size(n)),
        "filter_shape": layer.weight_shape,
        "border_mode": mode,
        "subsample": g.stride,
        "filter_flip": False,
        "filter_dilation": g.dilation,
        "num_groups": layer.groups,
    }
    weights = {}
    if layer.weight is not None:
        weights["filters"] = layer.weight
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("theano", parameters, weights, Layout("(gi)ok"), n)


def code(layer: Layer) -> str:
    """The call; ``x`` is a symbolic ``(N, C, *size)``."""
    written = write(layer)
    p, g = written.parameters, layer.geometry
    sizes = []
    for axis, (s, e, (lo, hi)) in enumerate(zip(g.stride, g.extent, g.crop, strict=True)):
        sizes.append(f"{s} * x.shape[{axis + 2}] + {e - s - lo - hi}")
    names = ("border_mode", "subsample", "filter_flip", "filter_dilation", "num_groups")
    arguments = ", ".join(f"{name}={p[name]!r}" for name in names)
    lines = [
        "import theano.tensor as T",
        "",
        f"size = (None, {layer.c_out}, {', '.join(sizes)})",
        f"y = T.nnet.abstract_conv.conv{layer.rank}d_grad_wrt_inputs(x, weight, size, {arguments})",
    ]
    if layer.has_bias:
        lines.append(f"y = y + bias.reshape{(1, -1, *[1] * layer.rank)}")
    return "\n".join(lines) + "\n"


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size: the smallest of the border mode, and what ``input_shape`` adds to it."""
    p = write(layer, input_size=input_size).parameters
    axes = plain_axes(layer, input_size)
    for axis, (lo, hi) in zip(axes, pairs("border_mode", p["border_mode"], layer.rank), strict=True):
        axis.update(border_before=lo, border_after=hi, more=hi - axis["after"])
    return "subsample*(n - 1) + dilation*(kernel - 1) + 1 - border_before - border_after + more", tuple(
        {**axis, "subsample": axis["stride"]} for axis in axes
    )
