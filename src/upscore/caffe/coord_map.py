"""Where the pixels of one top lie in another: the arithmetic behind every Crop layer of an FCN.

Every layer along a path maps coordinates affinely (:class:`upscore.CoordinateMap`); two tops are related through
a bottom that both are computed from. The interface is pycaffe's ``caffe.coord_map``, after Long, Shelhamer and
Darrell, "Fully convolutional networks for semantic segmentation" (2015)::

    n.score = crop(n.upscore, n.data)      # a Crop layer whose offset has been worked out
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.caffe.net_spec import Function, Top, make_layer
from upscore.dialects import caffe as dialect
from upscore.errors import ArgumentError, UpscoreError
from upscore.geometry import CoordinateMap

__all__ = [
    "AxisMismatchException",
    "CropError",
    "UndefinedMapException",
    "coord_map",
    "coord_map_from_to",
    "crop",
]

_PASS_THROUGH = frozenset({
    "AbsVal", "Axpy", "BatchNorm", "BN", "Bias", "BNLL", "Concat", "Dropout", "ELU", "Eltwise", "Exp", "Log", "LRN",
    "MVN", "Normalize", "Power", "PReLU", "ReLU", "Scale", "Sigmoid", "Softmax", "Split", "Swish", "TanH", "Threshold",
})  # fmt: skip
_GEOMETRY_FIELDS = frozenset(
    f"{field}{suffix}" for field in ("kernel", "stride", "pad") for suffix in ("", "_size", "_h", "_w")
) | {"dilation"}


class UndefinedMapException(UpscoreError):  # noqa: N818  (the name is pycaffe's)
    """A layer on the way has no affine map of coordinates, or two tops have nothing in common."""


class AxisMismatchException(UpscoreError):  # noqa: N818  (the name is pycaffe's)
    """Two layers on the way disagree on where the spatial axes begin."""


class CropError(ArgumentError, AssertionError):
    """No Crop layer can align these two tops (an AssertionError too, because pycaffe's is one)."""


@dataclass(frozen=True)
class _Axes:
    """A coordinate map and the first axis it is about (None: about any)."""

    axis: int | None
    map: CoordinateMap

    def then(self, later: _Axes) -> _Axes:
        if self.axis is not None and later.axis is not None and self.axis != later.axis:
            raise AxisMismatchException(
                f"the spatial axes begin after axis {self.axis} in one layer and after axis {later.axis} in another"
            )
        axis = later.axis if self.axis is None else self.axis
        rank = max(len(self.map.scale), len(later.map.scale))
        return _Axes(axis, _spread(self.map, rank).then(_spread(later.map, rank)))


def _spread(mapping: CoordinateMap, rank: int) -> CoordinateMap:
    """A map given once for all axes, given for each."""
    if len(mapping.scale) == rank:
        return mapping
    if len(mapping.scale) != 1:
        raise AxisMismatchException(f"one layer has {len(mapping.scale)} spatial axes and another has {rank}")
    return CoordinateMap(mapping.scale * rank, mapping.offset * rank)


def _fields(fn: Function, name: str) -> Mapping[str, Any]:
    """The layer's own fields, given directly or inside ``<name>_param``."""
    inner = fn.params.get(f"{name}_param", fn.params)
    if isinstance(inner, Mapping):
        return dict(inner)
    return {field.name: value for field, value in inner.ListFields()}


def _windowed(fn: Function, name: str) -> CoordinateMap:
    """From the output of a Deconvolution with these fields to its input; the inverse for Convolution and Pooling."""
    fields = {key: value for key, value in _fields(fn, name).items() if key in _GEOMETRY_FIELDS}
    lengths = [len(value) for value in fields.values() if isinstance(value, Sequence)]
    if any(key.endswith(("_h", "_w")) for key in fields):
        lengths.append(2)
    try:
        return dialect.geometry(fields, rank=max([1, *lengths])).coordinate_map()
    except ArgumentError as error:
        raise UndefinedMapException(f"the {fn.type_name} layer says no geometry: {error}") from error


def _layer_map(fn: Function) -> _Axes:
    """From the coordinates of the layer's top to those of its bottom."""
    match fn.type_name:
        case "Convolution" | "Im2col":
            return _Axes(_fields(fn, "convolution").get("axis", 1), _windowed(fn, "convolution").inverse())
        case "Deconvolution":
            return _Axes(_fields(fn, "convolution").get("axis", 1), _windowed(fn, "convolution"))
        case "Pooling":
            return _Axes(1, _windowed(fn, "pooling").inverse())
        case "Crop":
            fields = _fields(fn, "crop")
            given = fields.get("offset", 0)
            offset = tuple(Fraction(int(o)) for o in (given if isinstance(given, Iterable) else (given,)))
            # Crop's axis is the first that is cut; the others' is the one before the first spatial axis.
            return _Axes(
                fields.get("axis", 2) - 1, CoordinateMap((Fraction(1),) * len(offset), offset or (Fraction(0),))
            )
        case name if name in _PASS_THROUGH:
            return _Axes(None, CoordinateMap.identity(1))
    raise UndefinedMapException(f"a {fn.type_name} layer has no map of coordinates")


def coord_map(fn: Function) -> tuple[int | None, NDArray[np.float64], NDArray[np.float64]]:
    """``(axis, a, b)`` of one layer: the bottom's coordinate x lies at ``a * x + b`` of its top.

    Raises:
        UndefinedMapException: for a layer that has no such map, such as InnerProduct.
    """
    axes = _layer_map(fn)
    inverse = axes.map.inverse()
    return axes.axis, np.array(inverse.scale, dtype=float), np.array(inverse.offset, dtype=float)


def _ancestors(top: Top) -> dict[Top, _Axes]:
    """Every top that ``top`` is computed from (itself first), with the map from ``top`` to it, nearest first.

    Layers without a map end the walk: what lies beyond them is not related to ``top`` by coordinates.
    """
    found = {top: _Axes(None, CoordinateMap.identity(1))}
    queue = [top]
    for current in queue:
        # Crop takes only its size from the second bottom.
        bottoms = current.fn.inputs[:1] if current.fn.type_name == "Crop" else current.fn.inputs
        if not bottoms:
            continue
        try:
            step = _layer_map(current.fn)
        except UndefinedMapException:
            continue
        for bottom in bottoms:
            if bottom not in found:
                found[bottom] = step.then(found[current])
                queue.append(bottom)
    return found


def _between(top_from: Top, top_to: Top) -> _Axes:
    """The map from the coordinates of ``top_from`` to those of ``top_to``."""
    down_from, down_to = _ancestors(top_from), _ancestors(top_to)
    for shared, way in down_to.items():
        if shared in down_from:
            return _Axes(way.axis, way.map.inverse()).then(down_from[shared])
    raise UndefinedMapException(
        f"{top_from!r} and {top_to!r} have no common bottom that layers with a map of coordinates lead to"
    )


def coord_map_from_to(top_from: Top, top_to: Top) -> tuple[int | None, NDArray[np.float64], NDArray[np.float64]]:
    """``(axis, a, b)``: the coordinate x of ``top_from`` lies at ``a * x + b`` of ``top_to``.

    ``axis`` is the one before the first spatial axis (1 for N x C x H x W; None if no layer says). ``a`` and ``b``
    hold one number per spatial axis, or one for all.

    Raises:
        UndefinedMapException: when no chain of layers with maps connects the two.
        AxisMismatchException: when layers on the way disagree about the axes.

    >>> from upscore.caffe import NetSpec, layers as L
    >>> n = NetSpec()
    >>> n.data = L.Input(shape=dict(dim=[1, 3, 500, 500]))
    >>> n.conv = L.Convolution(n.data, num_output=4, kernel_size=3, pad=100)
    >>> n.up = L.Deconvolution(L.Pooling(n.conv, kernel_size=2, stride=2), num_output=4, kernel_size=4, stride=2)
    >>> coord_map_from_to(n.up, n.data)
    (1, array([1.]), array([-100.]))
    """
    axes = _between(top_from, top_to)
    return axes.axis, np.array(axes.map.scale, dtype=float), np.array(axes.map.offset, dtype=float)


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that cuts ``top_from`` so that its pixels lie on those of ``top_to``.

    Raises:
        CropError: when the two differ in scale, or would need a negative or a fractional offset.
        UndefinedMapException, AxisMismatchException: as :func:`coord_map_from_to`.
    """
    axes = _between(top_from, top_to)
    if any(scale != 1 for scale in axes.map.scale):
        got = " x ".join(str(scale) for scale in axes.map.scale)
        raise CropError("scale", "two tops of the same scale", got, "an upsampling by what pooling took away")
    offset = [-b for b in axes.map.offset]
    if any(o < 0 or o.denominator != 1 for o in offset):
        expected = "whole offsets of at least 0"
        got = ", ".join(str(o) for o in offset)
        raise CropError("offset", expected, got, "more padding in the first convolution, or another kernel")
    fields = {"axis": (1 if axes.axis is None else axes.axis) + 1, "offset": [int(o) for o in offset]}
    cropped = make_layer("Crop", (top_from, top_to), {"crop_param": fields})
    assert isinstance(cropped, Top)
    return cropped
