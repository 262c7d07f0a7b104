"""What a dialect's ``write`` returns, and the error it raises where the system cannot say the layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import NORMAL, Layout
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = [
    "Crop",
    "Parameters",
    "RefusalError",
    "Terms",
    "Weights",
    "Written",
    "build",
    "check",
    "find_rank",
    "plain_axes",
    "refuse_dilation",
    "refuse_groups",
    "refuse_rank",
    "say_crop",
    "split_symmetric",
    "squeeze",
    "take_weights",
    "zero_crop",
]

Parameters = Mapping[str, Any]
Weights = Mapping[str, Array]
Crop = tuple[tuple[int, int], ...]
Terms = tuple[str, tuple[dict[str, int], ...]]
"""The formula of an output size in a system's own names, and the numbers to fill in, axis by axis."""


class RefusalError(ArgumentError):
    """A system cannot say a layer; the message says why, and what comes closest.

    >>> print(RefusalError("Caffe", "pad", "equal sides", "(0, 1)", "pad 0, then Crop"))
    Caffe cannot say this layer: pad: expected equal sides, got (0, 1); closest: pad 0, then Crop
    """

    def __init__(self, system: str, argument: str, expected: str, got: object, closest: str) -> None:
        super().__init__(argument, expected, got, closest)
        self.system, self.closest = system, closest
        said = f"{argument}: expected {expected}, got {got}"
        self.args = (f"{system} cannot say this layer: {said}; closest: {closest}",)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.system, self.argument, self.expected, self.got, self.closest)


@dataclass(frozen=True)
class Written:
    """A layer as one system says it.

    ``crop`` is what has to be sliced off (negative: padded) after the system's own layer, and is zero
    unless ``write`` was asked to allow it. ``input_size`` is set where the parameters hold for one input
    size only (TensorFlow's ``output_shape``).
    """

    system: str
    parameters: dict[str, Any]
    weights: dict[str, Array]
    layout: Layout = NORMAL
    input_size: tuple[int, ...] | None = None
    crop: Crop = field(default=())

    @property
    def is_one_layer(self) -> bool:
        """Whether the system's own layer says everything, without a slice or a pad after it."""
        return not any(any(pair) for pair in self.crop)


def split_symmetric(geometry: Geometry) -> tuple[Geometry, Crop]:
    """The nearest geometry with equal, non-negative padding, and the crop that is left to do after it."""
    padding = tuple(max(0, min(pair)) for pair in geometry.crop)
    left = tuple((lo - p, hi - p) for (lo, hi), p in zip(geometry.crop, padding, strict=True))
    return Geometry(geometry.kernel, geometry.stride, geometry.dilation, padding), left


def say_crop(crop: Crop) -> str:
    """What is left to do after a layer, in words.

    >>> say_crop(((0, 1), (0, 1))), say_crop(((0, 2), (-1, 0)))
    ('cut 1 after on every axis', 'cut 2 after on axis 0, add 1 before on axis 1')
    """

    def one(lo: int, hi: int) -> str:
        sides = ((lo, "before"), (hi, "after"))
        return " and ".join(f"{'cut' if n > 0 else 'add'} {abs(n)} {side}" for n, side in sides if n)

    if len(crop) > 1 and len(set(crop)) == 1:
        return f"{one(*crop[0])} on every axis"
    return ", ".join(f"{one(*pair)} on axis {i}" for i, pair in enumerate(crop) if any(pair))


def squeeze(values: tuple[int, ...]) -> Ints:
    """One integer where all axes agree, else the tuple: how a person would write it."""
    return values[0] if len(set(values)) == 1 else values


def zero_crop(rank: int) -> Crop:
    """Nothing to cut."""
    return ((0, 0),) * rank


def check(system: str, parameters: Parameters, known: Iterable[str]) -> None:
    """Refuse parameters that the system does not have: a misspelt one must not pass for a default."""
    known = sorted(known)
    unknown = sorted(str(k) for k in parameters if k not in known)
    if unknown:
        raise ArgumentError("parameters", f"names that {system} has", ", ".join(unknown), ", ".join(known))


def find_rank(parameters: Parameters, weights: Weights | None, name: str, default: int = 2) -> int:
    """Spatial axes: what the weight ``name`` has, else the longest sequence among the parameters."""
    if weights and name in weights:
        return int(np.ndim(weights[name])) - 2
    lengths = [len(v) for k, v in parameters.items() if k in _PER_AXIS and isinstance(v, (list, tuple))]
    return max(lengths, default=default)


_PER_AXIS = {"kernel_size", "kernel_shape", "kernel", "stride", "strides", "dilation", "dilations", "output_size", "up"}


def refuse_rank(system: str, layer: Layer, ranks: Sequence[int], closest: str) -> None:
    """Refuse a layer of another number of axes."""
    if layer.rank not in ranks:
        raise RefusalError(system, "rank", f"{' or '.join(map(str, ranks))} spatial axes", layer.rank, closest)


def refuse_groups(system: str, layer: Layer) -> None:
    """Refuse groups, for systems without them."""
    if layer.groups > 1:
        closest = f"{layer.groups} layers, one per group, on slices of the channels, concatenated"
        raise RefusalError(system, "groups", "1", layer.groups, closest)


def refuse_dilation(system: str, layer: Layer) -> None:
    """Refuse dilation, for systems without it."""
    d = layer.geometry.dilation
    if set(d) != {1}:
        closest = f"dilation 1 and a kernel of {layer.geometry.extent}, zeros between the taps"
        raise RefusalError(system, "dilation", "1", d, closest)


def plain_axes(layer: Layer, input_size: Ints) -> tuple[dict[str, int], ...]:
    """``n, kernel, stride, dilation, before, after`` of every axis, for the size formulas."""
    g = layer.geometry
    sizes = per_axis("input_size", input_size, layer.rank, least=1)
    return tuple(
        {"n": n, "kernel": k, "stride": s, "dilation": d, "before": lo, "after": hi}
        for n, k, s, d, (lo, hi) in zip(sizes, g.kernel, g.stride, g.dilation, g.crop, strict=True)
    )


def take_weights(
    weights: Weights | None, names: tuple[str, str], layout: Layout, groups: int
) -> tuple[Array | None, Array | None]:
    """Weight (in the normal layout) and bias out of a system's named weights."""
    if not weights:
        return None, None
    unknown = set(weights) - set(names)
    if unknown or names[0] not in weights:
        raise ArgumentError("weights", f"the keys {names[0]!r} and perhaps {names[1]!r}", sorted(weights), str(names))
    return layout.read(weights[names[0]], groups), weights.get(names[1])


def build(
    geometry: Geometry,
    weights: tuple[Array | None, Array | None],
    *,
    c_in: int | None,
    c_out: int | None,
    groups: int,
    has_bias: bool,
) -> Layer:
    """A layer from what a dialect found; channels come from the weight where there is one."""
    weight, bias = weights
    if weight is not None:
        found_in, found_out = weight.shape[0], weight.shape[1] * groups
        for name, said, found in (("c_in", c_in, found_in), ("c_out", c_out, found_out)):
            if said is not None and said != found:
                raise ArgumentError(name, f"{found}, as the weight has", said, f"{name}={found}")
        c_in, c_out = found_in, found_out
    if c_in is None or c_out is None:
        name = "c_in" if c_in is None else "c_out"
        raise ArgumentError(name, "the number of channels, where no weights are given", None, f"{name}=3")
    return Layer(geometry, c_in, c_out, groups, weight, bias, has_bias=has_bias)
