"""A transposed convolution layer in the normal form: what every dialect is read into and written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Geometry, Ints, Pairs, pairs

__all__ = ["Array", "Layer"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """A transposed convolution with every dialect taken off; immutable, compared by value.

    Args:
        geometry: kernel, stride, dilation and crop of every axis.
        c_in: channels of the input.
        c_out: channels of the output, of all groups together.
        groups: how many independent groups the channels fall into; divides both.
        weight: ``(c_in, c_out / groups, *kernel)``, not flipped, or None where only the shape is known.
        bias: ``(c_out,)`` or None.
        has_bias: whether the layer adds a bias; needed only where there is one and its values are not known.

    Raises:
        ArgumentError: naming the argument whose value or shape cannot work.

    >>> layer = Layer(Geometry(kernel=(3, 4), stride=2), c_in=6, c_out=4, groups=2)
    >>> layer.weight_shape, layer.output_size((5, 5))
    ((6, 2, 3, 4), (11, 12))
    """

    geometry: Geometry
    c_in: int
    c_out: int
    groups: int = 1
    weight: Array | None = None
    bias: Array | None = None
    has_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("c_in", "c_out", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise ArgumentTypeError(name, "an integer of at least 1", repr(value), f"{name}=1")
            if value < 1:
                raise ArgumentError(name, "an integer of at least 1", value, f"{name}=1")
            object.__setattr__(self, name, int(value))
        if self.c_in % self.groups or self.c_out % self.groups:
            expected = f"a divisor of the channels, {self.c_in} in and {self.c_out} out"
            raise ArgumentError("groups", expected, self.groups, f"groups={np.gcd(self.c_in, self.c_out)}")
        self._freeze("weight", self.weight_shape)
        self._freeze("bias", (self.c_out,))
        object.__setattr__(self, "has_bias", bool(self.has_bias) or self.bias is not None)

    def _freeze(self, name: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value is None:
            return
        array = np.asarray(value).view()
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise ArgumentTypeError(name, "an array of real numbers", array.dtype, f"{name}.astype('float32')")
        if array.shape != shape:
            raise ArgumentError(name, f"shape {shape}", array.shape, f"{name} of shape {shape}")
        array.flags.writeable = False
        object.__setattr__(self, name, array)

    @classmethod
    def from_weight(cls, geometry: Geometry, weight: Array, bias: Array | None = None, *, groups: int = 1) -> Layer:
        """The layer whose channels are those of a weight in the normal layout."""
        weight = np.asarray(weight)
        if weight.ndim != geometry.rank + 2:
            expected = f"{geometry.rank + 2} axes, (c_in, c_out / groups, *kernel)"
            raise ArgumentError("weight", expected, f"shape {weight.shape}", f"shape {(1, 1, *geometry.kernel)}")
        return cls(geometry, weight.shape[0], weight.shape[1] * groups, groups, weight, bias)

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return self.geometry.rank

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of a weight in the normal layout: ``(c_in, c_out / groups, *kernel)``."""
        return (self.c_in, self.c_out // self.groups, *self.geometry.kernel)

    def output_size(self, input_size: Ints) -> tuple[int, ...]:
        """The spatial size that comes out of ``input_size``."""
        return self.geometry.output_size(input_size)

    def smallest_input(self) -> tuple[int, ...]:
        """The smallest input, per axis, from which at least one position comes out."""
        g = self.geometry
        return tuple(
            max(1, 1 - (e - lo - hi - 1) // s)
            for s, e, (lo, hi) in zip(g.stride, g.extent, g.crop, strict=True)
        )  # fmt: skip

    def with_weights(self, weight: Array, bias: Array | None = None) -> Layer:
        """This layer with these weights."""
        return replace(self, weight=weight, bias=bias, has_bias=bias is not None)

    def without_weights(self) -> Layer:
        """The shape of this layer alone."""
        return replace(self, weight=None, bias=None, has_bias=self.has_bias)

    def filled(self, seed: int = 0) -> Layer:
        """This layer with every missing weight drawn at random, as float32 small integers (sums are then exact)."""
        draw = np.random.default_rng(seed)
        weight, bias = self.weight, self.bias
        if weight is None:
            weight = draw.integers(-4, 5, self.weight_shape).astype(np.float32)
        if bias is None and self.has_bias:
            bias = draw.integers(-4, 5, self.c_out).astype(np.float32)
        return replace(self, weight=weight, bias=bias)

    def cropped(self, crop: Pairs) -> Layer:
        """This layer followed by a slice that cuts ``crop`` (before, after) per axis; negative amounts pad.

        What is added by a negative amount holds the bias alone, as everywhere in the normal form.
        """
        more = pairs("crop", crop, self.rank)
        both = tuple((lo + a, hi + b) for (lo, hi), (a, b) in zip(self.geometry.crop, more, strict=True))
        return replace(self, geometry=self.with_crop(both).geometry)

    def with_crop(self, crop: Sequence[tuple[int, int]]) -> Layer:
        """This layer with its crop replaced."""
        g = self.geometry
        return replace(self, geometry=Geometry(g.kernel, g.stride, g.dilation, tuple(crop)))

    def with_zero_taps(self) -> Layer:
        """The same function with a kernel of more taps, all 0, so that no crop is negative.

        What systems need that can only cut: the positions to add come from taps that add nothing.

        >>> Layer(Geometry(kernel=2, stride=3, crop=((-1, -2),)), 1, 1).with_zero_taps().geometry
        Geometry(kernel=(5,), stride=(3,), dilation=(1,), crop=((0, 0),))
        """
        g = self.geometry
        more = [
            (max(0, -(lo // d)), max(0, -(hi // d))) for (lo, hi), d in zip(g.crop, g.dilation, strict=True)
        ]  # fmt: skip
        kernel = tuple(k + a + b for k, (a, b) in zip(g.kernel, more, strict=True))
        crop = tuple(
            (lo + a * d, hi + b * d) for (lo, hi), (a, b), d in zip(g.crop, more, g.dilation, strict=True)
        )  # fmt: skip
        weight = None if self.weight is None else np.pad(self.weight, [(0, 0), (0, 0), *more])
        return replace(self, geometry=Geometry(kernel, g.stride, g.dilation, crop), weight=weight)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layer):
            return NotImplemented
        mine = (self.geometry, self.c_in, self.c_out, self.groups, self.has_bias)
        theirs = (other.geometry, other.c_in, other.c_out, other.groups, other.has_bias)
        return mine == theirs and _same(self.weight, other.weight) and _same(self.bias, other.bias)

    __hash__ = None  # type: ignore[assignment]  # arrays do not hash


def _same(a: Array | None, b: Array | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and bool(np.array_equal(a, b))
