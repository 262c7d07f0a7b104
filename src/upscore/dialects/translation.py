"""What a dialect's ``write`` returns, and the error it raises where the system cannot say the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import NORMAL, Layout
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints

__all__ = ["Crop", "Parameters", "RefusalError", "Weights", "Written", "split_symmetric", "squeeze", "take_weights"]

Parameters = Mapping[str, Any]
Weights = Mapping[str, Array]
Crop = tuple[tuple[int, int], ...]


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


def squeeze(values: tuple[int, ...]) -> Ints:
    """One integer where all axes agree, else the tuple: how a person would write it."""
    return values[0] if len(set(values)) == 1 else values


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
