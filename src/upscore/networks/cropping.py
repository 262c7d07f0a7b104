"""Where the paths of a network lie on each other, and the crops that align them, from the layers' own numbers.

Every layer with a window maps coordinates affinely (:class:`upscore.CoordinateMap`); what is left over between two
paths that start from the same pixels is the offset at which to crop (Long, Shelhamer and Darrell 2015).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from torch import Tensor, nn

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import CoordinateMap, Geometry, pairs

__all__ = ["common", "coordinate_map", "crop_to", "offset_of", "shifted"]


def coordinate_map(layers: Iterable[nn.Module]) -> CoordinateMap:
    """The map from the output's coordinates of 2-D ``layers`` in a row to those of their input.

    Raises:
        ArgumentTypeError: for a layer that is no convolution, transposed convolution or max pooling.

    >>> coordinate_map([nn.Conv2d(3, 8, 3, padding=100), nn.MaxPool2d(2)])((0, 0))
    (Fraction(-197, 2), Fraction(-197, 2))
    """
    path = CoordinateMap.identity(2)
    for layer in layers:
        path = path.then(_one(layer))
    return path


def _one(layer: nn.Module) -> CoordinateMap:
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d)):
        expected = "convolutions, transposed convolutions and max poolings"
        raise ArgumentTypeError("layers", expected, type(layer).__name__, "nn.Conv2d(3, 8, 3)")
    padding = layer.padding
    assert not isinstance(padding, str)
    window = Geometry(layer.kernel_size, layer.stride, layer.dilation, pairs("padding", padding, 2), rank=2)
    upward = window.coordinate_map()
    return upward if isinstance(layer, nn.ConvTranspose2d) else upward.inverse()


def offset_of(path: CoordinateMap, reference: CoordinateMap) -> tuple[int, int]:
    """Where in the output of ``path`` the first pixel of ``reference``'s lies: rows, columns; negative if before it.

    Raises:
        ArgumentError: when no whole number of pixels aligns the two.
    """
    offset = path.crop_offset(reference)
    if any(o.denominator != 1 for o in offset):
        expected, example = "a path that is aligned in whole pixels", "kernels of 2s - s % 2 at stride s"
        raise ArgumentError("path", expected, " x ".join(map(str, offset)), example)
    rows, columns = (int(o) for o in offset)
    return rows, columns


def common(path: Tensor, reference: Tensor, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the two have in common of ``(N, C, H, W)`` each, when ``reference`` begins at ``offset`` in ``path``."""
    for axis, start in zip((2, 3), offset, strict=True):
        first = max(start, 0)
        size = min(path.shape[axis], reference.shape[axis] + start) - first
        path = path.narrow(axis, first, size)
        reference = reference.narrow(axis, first - start, size)
    return path, reference


def shifted(path: CoordinateMap, offset: tuple[int, int]) -> CoordinateMap:
    """``path`` after a crop that begins at ``offset``, or no crop where that is negative."""
    one = (Fraction(1), Fraction(1))
    return path.then(CoordinateMap(one, tuple(Fraction(max(o, 0)) for o in offset)))


def crop_to(path: Tensor, size: tuple[int, int], offset: tuple[int, int]) -> Tensor:
    """``size`` rows and columns of ``(N, C, H, W)`` from ``offset`` on."""
    return path.narrow(2, offset[0], size[0]).narrow(3, offset[1], size[1])
