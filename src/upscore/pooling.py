"""Max pooling that remembers where each maximum was, and the unpooling that puts values back there.

Switches are PyTorch's ``return_indices``: int64, the flat position of the maximum within its channel's plane.
They come from Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", and are what
DeconvNet and SegNet unpool with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from upscore.arrays import Array, read, read_integers, wrap_as
from upscore.errors import ArgumentError
from upscore.geometry import Ints, Pairs, pairs, per_axis

__all__ = ["max_pool", "max_unpool"]


def max_pool(
    x: Any, kernel: Ints, *, stride: Ints | None = None, padding: Pairs = 0, ceil_mode: bool = False
) -> tuple[Any, Any]:
    """The largest value of every window, and where it was.

    The first of equal maxima wins. A NaN wins over every number, and a later NaN over an earlier one (what PyTorch
    does). Padding never wins.

    Args:
        x: input ``(N, C, *spatial)`` of any rank.
        kernel: size of the window, an int or one per axis.
        stride: steps from window to window; the kernel by default.
        padding: how far windows begin before and end after the input, less than the kernel: an int, one per axis,
            or a (before, after) pair per axis.
        ceil_mode: also windows that reach past the end, as long as they begin before it.

    Returns:
        ``values`` and ``switches`` of one shape ``(N, C, *(floor((n + before + after - kernel) / stride) + 1))``
        (ceil with ``ceil_mode``). ``switches`` are int64 positions in ``x[n, c].ravel()``.

    Raises:
        ArgumentError: naming the argument that cannot work.

    Source: torch.nn.functional.max_pool2d with ``return_indices``.

    >>> import numpy as np
    >>> values, switches = max_pool(np.array([[[1.0, 5.0, 2.0, 3.0]]]), 2)
    >>> values.tolist(), switches.tolist()
    ([[[5.0, 3.0]]], [[[1, 3]]])
    """
    array, restore = read("x", x)
    if array.ndim < 3:
        raise ArgumentError("x", "at least 3 dimensions (N, C, *spatial)", f"shape {array.shape}", "x[None]")
    n, rank = array.shape[2:], array.ndim - 2
    k = per_axis("kernel", kernel, rank, least=1)
    s = k if stride is None else per_axis("stride", stride, rank, least=1)
    pad = pairs("padding", padding, rank, least=0)
    sizes = tuple(_pooled_size(*axis, ceil_mode=ceil_mode) for axis in zip(n, k, s, pad, strict=True))
    shape = _check_fits("padding", (*array.shape[:2], *sizes), array.itemsize)
    steps = [math.prod(n[axis + 1 :]) for axis in range(rank)]  # from one position of an axis to the next, flat

    begins = [[max(i * si - lo, 0) for i in range(m)] for m, si, (lo, _) in zip(sizes, s, pad, strict=True)]
    values, switches = np.full(shape, -np.inf, array.dtype), np.empty(shape, np.int64)
    switches[...] = _flat(begins, steps)
    axes = [_taps(*axis) for axis in zip(n, k, s, pad, sizes, strict=True)]
    for taps in itertools.product(*axes):
        windows = _at(windows for windows, _ in taps)
        seen = array[_at(slice(places.start, places.stop, places.step) for _, places in taps)]
        best = values[windows]
        wins = (seen > best) | np.isnan(seen)
        np.copyto(best, seen, where=wins)
        np.copyto(switches[windows], _flat([places for _, places in taps], steps), where=wins)
    return restore(values), wrap_as(x)(switches)


def _pooled_size(n: int, k: int, s: int, pad: tuple[int, int], *, ceil_mode: bool) -> int:
    lo, hi = pad
    if max(pad) >= k:
        raise ArgumentError("padding", f"less than the kernel's {k}", max(pad), f"padding={k // 2}")
    room = n + lo + hi - k
    size = (-(-room // s) if ceil_mode else room // s) + 1
    if n < 1 or size < 1:
        raise ArgumentError(
            "x",
            f"spatial axes that hold a window of {k}",
            f"{n} positions padded with {lo} and {hi}",
            "a smaller kernel",
        )
    return size - 1 if (size - 1) * s >= n + lo else size


def _taps(n: int, k: int, s: int, pad: tuple[int, int], size: int) -> list[tuple[slice, range]]:
    """For every tap of the window that meets the input: the windows in which it does, and the places it meets."""
    lo, found = pad[0], []
    for at in range(max(-lo, -(size - 1) * s), min(k - lo, n)):  # where the tap of window 0 lies
        first, last = max(0, -(at // s)), min(size, (n - 1 - at) // s + 1)
        if first < last:
            found.append((slice(first, last), range(first * s + at, (last - 1) * s + at + 1, s)))
    return found


def _at(spatial: Iterable[slice]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *spatial)


def _flat(places: Sequence[Sequence[int]], steps: Sequence[int]) -> Array:
    """The flat position for every combination of places along the axes."""
    along = (np.asarray(place) * step for place, step in zip(places, steps, strict=True))
    return reduce(np.add.outer, along)


def _check_fits(name: str, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    if math.prod(shape) * itemsize >= 2**62:
        raise ArgumentError(name, "an output that fits into memory", f"one of shape {shape}", f"a smaller {name}")
    return shape


def max_unpool(values: Any, switches: Any, output_size: Ints) -> Any:
    """Every value at the position that its switch names, zeros elsewhere.

    Where switches of one plane repeat (windows that overlap), one of their values stays: the last, in this version.

    Args:
        values: ``(N, C, *spatial)`` of any rank.
        switches: integers of the same shape: positions in the flattened output plane, as :func:`max_pool` gives.
        output_size: spatial size of the output, one int per axis (or one for all).

    Returns:
        ``(N, C, *output_size)``.

    Raises:
        ArgumentError: naming the argument that cannot work, also for a switch outside of the plane.

    Source: torch.nn.functional.max_unpool2d.

    >>> import numpy as np
    >>> max_unpool(np.array([[[5.0, 3.0]]]), np.array([[[1, 3]]]), 4).tolist()
    [[[0.0, 5.0, 0.0, 3.0]]]
    """
    array, restore = read("values", values)
    places = read_integers("switches", switches)
    if array.ndim < 3:
        raise ArgumentError("values", "at least 3 dimensions (N, C, *spatial)", f"shape {array.shape}", "values[None]")
    if places.shape != array.shape:
        raise ArgumentError(
            "switches", f"the shape of values, {array.shape}", f"{places.shape}", "the switches of the same max_pool"
        )
    size = per_axis("output_size", output_size, array.ndim - 2, least=1)
    plane = math.prod(size)
    shape = _check_fits("output_size", (*array.shape[:2], *size), array.itemsize)
    planes, count = shape[0] * shape[1], math.prod(array.shape[2:])
    if places.size and not (places.min() >= 0 and places.max() < plane):
        wrong = places.min() if places.min() < 0 else places.max()
        raise ArgumentError(
            "switches",
            f"positions from 0 to {plane - 1}, inside {size}",
            int(wrong),
            "the size that max_pool was given",
        )
    y = np.zeros((planes, plane), array.dtype)
    np.put_along_axis(y, places.reshape(planes, count), array.reshape(planes, count), axis=1)
    return restore(y.reshape(shape))
