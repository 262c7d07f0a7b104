"""Alignment: by how many pixels, and which way, the outputs of two layers are shifted.

Two ports of equal shape can lie a pixel apart (``padding=1, output_padding=1`` and SAME do), and no shape check
notices. The centre of what one input stamps lies at ``(e - 1) / 2 - lo`` plus ``stride`` times the input, so two
layers of one stride lie apart by the difference of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.errors import ArgumentError

__all__ = ["Alignment", "compare"]

_WAYS = {
    1: (("left", "right"),),
    2: (("up", "down"), ("left", "right")),
    3: (("to the front", "to the back"), ("up", "down"), ("left", "right")),
}


@dataclass(frozen=True)
class Alignment:
    """How the output of a second layer lies on that of a first.

    ``str()`` says it in words.
    """

    shift: tuple[Fraction, ...]
    """Output positions, per axis, by which the second output lies further to the end; a fraction for kernels of
    sizes that share no centre."""
    same_size: bool
    """Whether both make the same size from every input."""
    kernels: str
    """"same", "flipped" or "different" taps (zeros around them aside), or "unknown" without weights."""

    @property
    def aligned(self) -> bool:
        """Whether the outputs lie on each other."""
        return not any(self.shift)

    def __str__(self) -> str:
        said = []
        for axis, amount in enumerate(self.shift):
            ways = _WAYS.get(len(self.shift), ())
            back, forth = ways[axis] if ways else (f"back on axis {axis}", f"forth on axis {axis}")
            if amount:
                said.append(f"{abs(amount)} pixel{'s' if abs(amount) > 1 else ''} {forth if amount > 0 else back}")
        words = f"the second output is shifted {' and '.join(said)}" if said else "the outputs are aligned"
        size = "sizes agree" if self.same_size else "sizes differ"
        return f"{words}; {size}; kernels: {self.kernels}"


def compare(a: Layer, b: Layer) -> Alignment:
    """How the output of ``b`` lies on that of ``a``, for the same input.

    Kernels are compared by their taps where both layers have weights, zero taps around them not counting: a kernel
    of 4 and the same one in a frame of zeros are aligned by what they hold.

    Raises:
        ArgumentError: for layers of different rank or stride, whose outputs are not shifted but scaled.

    >>> from upscore.dialects import keras, pytorch
    >>> said = dict(kernel_size=3, padding=1, output_padding=1)
    >>> torch_layer = pytorch.read({"in_channels": 1, "out_channels": 1, "stride": 2, **said})
    >>> keras_layer = keras.read({"filters": 1, "kernel_size": 3, "strides": 2, "padding": "same"}, c_in=1)
    >>> print(compare(torch_layer, keras_layer))
    the second output is shifted 1 pixel down and 1 pixel right; sizes agree; kernels: unknown
    """
    if a.geometry.stride != b.geometry.stride:
        expected = f"a layer of stride {a.geometry.stride}, as the first"
        raise ArgumentError("b", expected, f"stride {b.geometry.stride}", "layers that upsample by the same factor")
    weights, starts, middles = [], [], []
    for layer in (a, b):
        weight, start, extent = _trimmed(layer)
        weights.append(weight)
        starts.append(start)
        middles.append(tuple(Fraction(2 * lo + e - 1, 2) for lo, e in zip(start, extent, strict=True)))
    shift = tuple(second - first for first, second in zip(*middles, strict=True))
    rest = [
        tuple(e - lo - hi for e, (lo, hi) in zip(layer.geometry.extent, layer.geometry.crop, strict=True))
        for layer in (a, b)
    ]
    return Alignment(shift, rest[0] == rest[1], _relation(a, b, *weights))


def _trimmed(layer: Layer) -> tuple[Array | None, tuple[int, ...], tuple[int, ...]]:
    """The weight without zero taps around it, the output position of its first tap, and its extent."""
    g, weight = layer.geometry, layer.weight
    first = [0] * layer.rank
    last = [k - 1 for k in g.kernel]
    if weight is not None and np.any(weight):
        for axis in range(layer.rank):
            others = tuple(i for i in range(weight.ndim) if i != axis + 2)
            (used,) = np.nonzero(np.any(weight != 0, axis=others))
            first[axis], last[axis] = int(used[0]), int(used[-1])
        cut = tuple(slice(lo, hi + 1) for lo, hi in zip(first, last, strict=True))
        weight = weight[(slice(None), slice(None), *cut)]
    starts = tuple(t * d - lo for t, d, (lo, _) in zip(first, g.dilation, g.crop, strict=True))
    extent = tuple((z - t) * d + 1 for t, z, d in zip(first, last, g.dilation, strict=True))
    return weight, starts, extent


def _relation(a: Layer, b: Layer, first: Array | None, second: Array | None) -> str:
    if first is None or second is None:
        return "unknown"
    if first.shape != second.shape or a.geometry.dilation != b.geometry.dilation or a.groups != b.groups:
        return "different"
    if np.array_equal(first, second):
        return "same"
    flipped = np.flip(second, tuple(range(2, second.ndim)))
    return "flipped" if np.array_equal(first, flipped) else "different"
