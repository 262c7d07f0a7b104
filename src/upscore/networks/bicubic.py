"""Bicubic resampling as super-resolution papers mean it: Keys' cubic, antialiased, symmetric borders.

This is the degradation that PSNR tables of the field are measured with, and the yardstick that a network must
beat. Kernel: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, equation (15),
a = -1/2. When an axis shrinks, the kernel is stretched by the factor (antialiasing), the weights of every output
sum to one, and the picture continues beyond its border as its mirror image. NumPy only; nothing is rounded.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.errors import ArgumentError

__all__ = ["cubic", "resize", "resize_axis", "taps", "upsampling_kernel"]


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -1/2, zero outside (-2, 2).

    >>> cubic(np.array([0.0, 0.5, 1.0, 1.5, 2.0])).tolist()
    [1.0, 0.5625, 0.0, -0.0625, 0.0]
    """
    t = np.abs(np.asarray(x, dtype=np.float64))
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def taps(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which inputs make each output of an axis, and how much of each: ``(indices, weights)``, ``(new_size, T)`` both.

    >>> indices, weights = taps(4, 8)
    >>> indices[3].tolist(), weights[3].tolist()
    ([0, 1, 2, 3], [-0.0703125, 0.8671875, 0.2265625, -0.0234375])
    """
    for name, value in (("size", size), ("new_size", new_size)):
        if value < 1:
            raise ArgumentError(name, "an integer of at least 1", value, f"{name}=1")
    scale = new_size / size
    stretch = max(1.0, 1 / scale)
    centre = (np.arange(new_size) + 0.5) / scale - 0.5
    reach = 2 * stretch
    count = ceil(2 * reach) + 1
    indices = np.floor(centre - reach).astype(np.intp)[:, None] + 1 + np.arange(count)
    weights = cubic((centre[:, None] - indices) / stretch)
    used = np.flatnonzero(np.any(np.abs(weights) > 0, axis=0))
    indices, weights = indices[:, used[0] : used[-1] + 1], weights[:, used[0] : used[-1] + 1]
    weights = weights / weights.sum(axis=1, keepdims=True)
    mirrored = np.mod(indices, 2 * size)
    return np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored), weights


def resize_axis(
    array: NDArray[Any],
    axis: int,
    size: int,
    new_size: int,
    *,
    first: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> NDArray[Any]:
    """Outputs ``[start, stop)`` of ``axis`` resized from ``size`` to ``new_size``.

    ``array`` may hold only a part of the axis, from index ``first`` on: the part that the outputs asked for need
    (this is how a large picture is resized band by band, with the same bits as all at once).
    """
    indices, weights = taps(size, new_size)
    indices, weights = indices[start:stop] - first, weights[start:stop].astype(array.dtype)
    shape = [1] * array.ndim
    shape[axis] = -1
    result = np.take(array, indices[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for t in range(1, indices.shape[1]):
        result += np.take(array, indices[:, t], axis=axis) * weights[:, t].reshape(shape)
    return result


def resize(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """``(..., H, W)`` resized to ``(..., height, width)``; the axis that shrinks most goes first.

    >>> resize(np.ones((4, 6), np.float32), 2, 12).shape
    (2, 12)
    """
    sizes = {-2: (picture.shape[-2], height), -1: (picture.shape[-1], width)}
    for axis in sorted(sizes, key=lambda a: sizes[a][1] / sizes[a][0]):
        if sizes[axis][0] != sizes[axis][1]:
            picture = resize_axis(picture, axis, *sizes[axis])
    return picture


def upsampling_kernel(factor: int) -> NDArray[np.float64]:
    """The 1D kernel of length ``4 * factor`` with which a transposed convolution of that stride is bicubic upsampling.

    ``factor`` must be even (an odd one has outputs on top of inputs, and length ``4 * factor - 1`` suffices).

    >>> upsampling_kernel(2).tolist()
    [-0.0234375, -0.0703125, 0.2265625, 0.8671875, 0.8671875, 0.2265625, -0.0703125, -0.0234375]
    """
    if factor < 2 or factor % 2:
        raise ArgumentError("factor", "an even integer of at least 2", factor, "factor=2")
    return cubic((np.arange(4 * factor) + 0.5) / factor - 2)
