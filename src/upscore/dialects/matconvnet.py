"""MatConvNet's ``vl_nnconvt``: filters stamped at every input, borders cropped.

``YH = UPY (XH - 1) + FH - CROPTOP - CROPBOTTOM``, with ``Upsample [UPY UPX]`` and ``Crop [TOP BOTTOM LEFT RIGHT]``,
all at least 0. Arrays are ``H x W x C x N``, filters ``FH x FW x K x FD``: ``K`` output channels of a group and all
``FD`` input channels; not flipped. No dilation here, but ``vl_nnconv`` has it, whose output size is
``floor((H + padding - dilate (FH - 1) - 1) / stride) + 1``: :func:`convolution_size`.

Source: vl_nnconvt and vl_nnconv documentation of MatConvNet 1.0-beta25.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from upscore.dialects.layer import Layer
from upscore.dialects.layout import Layout
from upscore.dialects.translation import (
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    plain_axes,
    refuse_dilation,
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["LAYOUT", "code", "convolution_size", "formula", "read", "write"]

SYSTEM = "MatConvNet"
LAYOUT = Layout("ko(gi)")
_KNOWN = {"Upsample", "Crop", "NumGroups", "size"}


def _sides(name: str, value: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """``[top bottom left right]`` or one amount for all four."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * 4
    if len(values) != 4 or any(v < 0 for v in values):
        raise ArgumentError(name, "one amount or [top bottom left right], at least 0", value, f"{name}=[1 1 1 1]")
    top, bottom, left, right = (int(v) for v in values)
    return (top, bottom), (left, right)


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``vl_nnconvt`` block in the normal form.

    Args:
        parameters: ``Upsample``, ``Crop``, ``NumGroups``; ``size``, the filters' ``[FH FW K FD]``, where there
            are no weights (as in ``dagnn.ConvTranspose``).
        weights: ``f`` ``(FH, FW, K, FD)`` and ``b`` with ``K * NumGroups`` elements in any shape.
        c_in: not needed: the filters say it.
        rank: 2.
        input_size: not needed here; the same in every dialect.

    Raises:
        ArgumentError: naming the option.

    >>> read({"Upsample": 2, "Crop": [0, 1, 0, 1], "size": [3, 3, 4, 8]}).output_size((5, 6))
    (10, 12)
    """
    check(SYSTEM, parameters, _KNOWN)
    shape = np.shape(weights["f"]) if weights and "f" in weights else tuple(parameters.get("size", ()))
    if len(shape) != 4:
        raise ArgumentError("size", "[FH FW K FD], or the filters f", shape, "size=[4 4 1 21]")
    groups = int(parameters.get("NumGroups", 1))
    stride = per_axis("Upsample", parameters.get("Upsample", 1), 2, least=1)
    crop = _sides("Crop", parameters.get("Crop", 0))
    found = take_weights(weights, ("f", "b"), LAYOUT, groups)
    if found[1] is not None:
        found = found[0], np.asarray(found[1]).reshape(-1)
    geometry = Geometry((int(shape[0]), int(shape[1])), stride, 1, crop)
    return build(geometry, found, c_in=int(shape[3]), c_out=int(shape[2]) * groups, groups=groups, has_bias=False)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The options and the arrays of a layer.

    Raises:
        RefusalError: for another rank than 2, dilation, or a negative crop.
    """
    refuse_rank(SYSTEM, layer, (2,), "a height of 1 for one axis; nothing for three")
    refuse_dilation(SYSTEM, layer)
    g = layer.geometry
    if min(min(pair) for pair in g.crop) < 0:
        closest = f"a kernel of {layer.with_zero_taps().geometry.kernel} whose added taps are 0"
        raise RefusalError(SYSTEM, "Crop", "at least 0 on every side", g.crop, closest)
    parameters: dict[str, Any] = {
        "Upsample": list(g.stride),
        "Crop": [amount for pair in g.crop for amount in pair],
        "NumGroups": layer.groups,
        "size": [*g.kernel, layer.c_out // layer.groups, layer.c_in],
    }
    weights = {}
    if layer.weight is not None:
        weights["f"] = LAYOUT.write(layer.weight, layer.groups)
    if layer.bias is not None:
        weights["b"] = layer.bias
    return Written("matconvnet", parameters, weights, LAYOUT)


def code(layer: Layer) -> str:
    """The MATLAB lines; ``x`` is ``H x W x C x N``, ``weight`` the normal layout as MATLAB loads it (4 axes)."""
    p = write(layer).parameters
    upsample = " ".join(map(str, p["Upsample"]))
    crop = " ".join(map(str, p["Crop"]))
    groups = f", 'NumGroups', {layer.groups}" if layer.groups > 1 else ""
    bias = "bias" if layer.has_bias else "[]"
    return (
        f"f = permute(weight, [3 4 2 1]);  % {LAYOUT}\n"
        f"y = vl_nnconvt(x, f, {bias}, 'Upsample', [{upsample}], 'Crop', [{crop}]{groups});\n"
    )


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in MatConvNet's names."""
    write(layer)
    axes = plain_axes(layer, input_size)
    for axis in axes:
        axis.update(up=axis["stride"], filter=axis["kernel"], crop_before=axis["before"], crop_after=axis["after"])
    return "up*(n - 1) + filter - crop_before - crop_after", axes


def convolution_size(
    input_size: Ints, kernel: Ints, *, stride: Ints = 1, pad: Any = 0, dilate: Ints = 1
) -> tuple[int, int]:
    """The size that ``vl_nnconv`` makes, dilation included.

    >>> convolution_size((10, 12), 3, stride=2, pad=[1, 1, 0, 0], dilate=2)
    (4, 4)
    """
    geometry = Geometry(
        per_axis("kernel", kernel, 2), per_axis("stride", stride, 2), per_axis("dilate", dilate, 2), _sides("Pad", pad)
    )
    height, width = geometry.adjoint_size(input_size)
    return height, width
