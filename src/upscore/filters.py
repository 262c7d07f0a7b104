"""Kernels people start from, and the algebra of kernels: placing, composing, taking apart.

A *kernel* is an array over the spatial axes, ``K``; a *weight* is ``(C_in, C_out / groups, *K)``, the normal
layout. Both are float64 here; convert at the end. NumPy only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from upscore.errors import ArgumentError
from upscore.geometry import Ints, bilinear_kernel, per_axis

__all__ = ["bilinear", "channelwise", "compose", "compose_weights", "dense", "diagonal", "nearest", "separable"]

Array = npt.NDArray[np.float64]


def bilinear(factor: Ints, *, rank: int = 2) -> Array:
    """The kernel that upsamples bilinearly by ``factor``: one factor per axis, or one for all ``rank`` axes.

    Its shape is ``2f - f % 2`` per axis, for stride ``f`` and padding ``upscore.geometry.bilinear_kernel(f)[1]``.
    Tap ``t`` is the product over the axes of ``1 - |t - (k - 1)/2| / f``, so the taps of every phase sum to 1.
    Away from the border the layer is ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    Kernel of Long, Shelhamer and Darrell (2015), sizes of Caffe's ``bilinear`` filler.

    >>> bilinear(2)[:2]
    array([[0.0625, 0.1875, 0.1875, 0.0625],
           [0.1875, 0.5625, 0.5625, 0.1875]])

    Raises:
        ArgumentError: a factor that is not at least 1.
    """
    ramps = []
    for f in _factors(factor, rank):
        k, _ = bilinear_kernel(f)
        ramps.append(1 - np.abs(np.arange(k) - (k - 1) / 2) / f)
    return _outer(ramps)


def nearest(factor: Ints, *, rank: int = 2) -> Array:
    """The kernel that repeats every input ``factor`` times (per axis, or on all ``rank`` axes): ones.

    For stride ``factor`` and no padding; ``torch.nn.functional.interpolate(mode="nearest")`` exactly.

    >>> nearest((1, 2))
    array([[1., 1.]])
    """
    return np.ones(_factors(factor, rank))


def channelwise(kernel: npt.ArrayLike, channels: int, *, groups: int | None = None) -> Array:
    """A weight that applies ``kernel`` to each channel alone: (channels, channels / groups, *K).

    With ``groups`` (by default one per channel) fewer than the channels, the other channel pairs are zero.

    >>> channelwise([1, 2], 3).shape, channelwise([1, 2], 2, groups=1).tolist()
    ((3, 1, 2), [[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 2.0]]])
    """
    groups = channels if groups is None else groups
    _check_groups(channels, groups)
    k = np.asarray(kernel, np.float64)
    w = np.zeros((channels, channels // groups, *k.shape))
    w[np.arange(channels), np.arange(channels) % (channels // groups)] = k
    return w


def dense(kernel: npt.ArrayLike, c_in: int, c_out: int, *, groups: int = 1) -> Array:
    """A weight with ``kernel`` for every channel pair of a group: (c_in, c_out / groups, *K).

    What Caffe's ``bilinear`` filler gives when its layer has ``group: 1``: every output sums all inputs.

    >>> dense([1, 2], 4, 6, groups=2).shape
    (4, 3, 2)
    """
    _check_groups(c_in, groups)
    _check_groups(c_out, groups)
    return np.tile(np.asarray(kernel, np.float64), (c_in, c_out // groups, *(1,) * np.ndim(kernel)))


def compose(a: npt.ArrayLike, b: npt.ArrayLike, *, stride: Ints = 1) -> Array:
    """The one kernel that does what kernel ``a`` and then kernel ``b`` do.

    ``stride`` is that of ``b``; the layer of the result has the product of both strides, and the crop
    ``crop_a * stride + crop_b``. Kernels are stamped, not slid: flip the kernel of an ordinary convolution first.
    Exact as long as ``a`` crops nothing (what it cuts, ``b`` cannot spread back over the border).

    Repeating pixels and then smoothing, ``(1 1) * (q0 q1 q2) = (q0, q0+q1, q1+q2, q2)``:

    >>> compose([1, 1], [1, 10, 100])
    array([  1.,  11., 110., 100.])

    Raises:
        ArgumentError: when ``a`` and ``b`` have different ranks.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != b.ndim:
        raise ArgumentError("b", f"a kernel of rank {a.ndim}, like a", f"shape {b.shape}", f"shape {a.shape}")
    composed: Array = compose_weights(a[None, None], b[None, None], stride=stride)[0, 0]
    return composed


def compose_weights(a: npt.ArrayLike, b: npt.ArrayLike, *, stride: Ints = 1, groups: int = 1) -> Array:
    """`compose` for weights: (C_in, C, *K_a) and then (C, C_out / groups, *K_b) give (C_in, C_out, *K).

    ``stride`` and ``groups`` are those of ``b``; layer ``a`` has one group.
    A pixel-repeating upsampler followed by a learned 3 x 3 layer is one 4 x 4 layer of stride 2:

    >>> compose_weights(channelwise(nearest(2), 8, groups=1), np.ones((8, 3, 3, 3))).shape
    (8, 3, 4, 4)

    Raises:
        ArgumentError: when the ranks differ or ``b`` does not read the channels that ``a`` writes.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim < 3:
        raise ArgumentError("a", "a weight (C_in, C_out, *K)", f"shape {a.shape}", "shape (1, 1, 2, 2)")
    if a.ndim != b.ndim or a.shape[1] != b.shape[0]:
        expected = f"a weight of {a.ndim} axes that reads the {a.shape[1]} channels a writes"
        raise ArgumentError("b", expected, f"shape {b.shape}", f"shape {(a.shape[1], 1, *a.shape[2:])}")
    _check_groups(len(b), groups)
    steps = per_axis("stride", stride, a.ndim - 2, least=1)
    spans = [(ka - 1) * s + 1 for ka, s in zip(a.shape[2:], steps, strict=True)]  # a, stretched by the stride of b
    whole = np.zeros((len(a), groups * b.shape[1], *(n + kb - 1 for n, kb in zip(spans, b.shape[2:], strict=True))))
    by_group = a.reshape(len(a), groups, -1, *a.shape[2:])
    for tap in np.ndindex(*b.shape[2:]):
        w = b[(slice(None), slice(None), *tap)].reshape(groups, -1, b.shape[1])
        stamp = np.einsum("igm...,gmo->igo...", by_group, w).reshape(len(a), -1, *a.shape[2:])
        landing = (slice(t, t + n, s) for t, n, s in zip(tap, spans, steps, strict=True))
        whole[(slice(None), slice(None), *landing)] += stamp
    return whole


def separable(w: npt.ArrayLike, *, leading: int = 0, tolerance: float = 1e-12) -> tuple[Array, ...] | None:
    """One factor per spatial axis whose outer product is ``w``, or None where there is none.

    ``leading`` axes come before the spatial ones and have factors of their own: 0 for a kernel, 2 for a weight,
    whose factors are (C_in, C_out / groups, k). The error allowed is ``tolerance`` times the largest tap of each
    kernel. The first factors carry the scale, the others have a largest entry of +1.

    >>> [f.tolist() for f in separable([[2, 4], [3, 6]])]
    [[4.0, 6.0], [0.5, 1.0]]
    >>> separable([[1, 0], [0, 1]]) is None
    True
    """
    w = np.asarray(w, np.float64)
    if not 0 <= leading < w.ndim:
        raise ArgumentError("leading", f"fewer than the {w.ndim} axes of w", leading, "leading=0")
    kernel = w.shape[leading:]
    factors = [np.zeros((*w.shape[:leading], k)) for k in kernel]
    for pair in np.ndindex(*w.shape[:leading]):
        found = _rank_one(w[pair], tolerance)
        if found is None:
            return None
        for factor, line in zip(factors, found, strict=True):
            factor[pair] = line
    return tuple(factors)


def _rank_one(kernel: Array, tolerance: float) -> list[Array] | None:
    """The lines through the largest tap; if the kernel is an outer product at all, it is theirs."""
    if not np.isfinite(kernel).all():
        return None
    pivot = np.unravel_index(np.argmax(np.abs(kernel)), kernel.shape)
    largest = kernel[pivot]
    axes = range(kernel.ndim)
    lines = [kernel[tuple(slice(None) if b == a else int(pivot[b]) for b in axes)] for a in axes]
    if largest:
        lines[1:] = [line / largest for line in lines[1:]]
    return lines if np.abs(_outer(lines) - kernel).max() <= tolerance * abs(largest) else None


def diagonal(w: npt.ArrayLike, *, groups: int = 1, tolerance: float = 0.0) -> Array | None:
    """The (C, 1, *K) weight of the same layer with one group per channel, or None where channels mix.

    ``w`` is (C, C / groups, *K); entries up to ``tolerance`` times the largest count as zero. FCN's upsampling
    layers are diagonal: 21 kernels at work where the file has 441.

    >>> w = channelwise(bilinear(2), 21, groups=1)
    >>> w.shape, diagonal(w).shape
    ((21, 21, 4, 4), (21, 1, 4, 4))

    Raises:
        ArgumentError: when ``groups`` does not divide the channels.
    """
    w = np.asarray(w, np.float64)
    _check_groups(len(w), groups)
    if len(w) != w.shape[1] * groups:
        return None
    mine = np.arange(len(w)), np.arange(len(w)) % w.shape[1]
    others = np.abs(w)
    limit = tolerance * others.max(initial=0.0)
    others[mine] = 0
    return w[mine][:, None] if others.max(initial=0.0) <= limit else None


def _factors(factor: Ints, rank: int) -> tuple[int, ...]:
    return per_axis("factor", factor, len(factor) if isinstance(factor, Sequence) else rank, least=1)


def _outer(lines: Sequence[Array]) -> Array:
    return functools.reduce(np.multiply.outer, lines)


def _check_groups(channels: int, groups: int) -> None:
    if groups < 1 or channels < 1 or channels % groups:
        raise ArgumentError("groups", f"a divisor of the {channels} channels", groups, "groups=1")
