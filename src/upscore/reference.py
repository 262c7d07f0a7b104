"""Four definitions of the transposed convolution, in float64, that must agree to the last bits.

=================  ==========================================================================
`scatter`          stamp the kernel at every input, times that input; where stamps overlap, add
`zero_stuffing`    put s - 1 zeros between the inputs, then convolve with the flipped kernel
`matrix`           write the strided convolution as a sparse matrix, transpose it, multiply
`phases`           s small stride-1 convolutions whose outputs interleave; no zero is multiplied
=================  ==========================================================================

All take arrays of any rank::

    x     (N, C_in, *input)             float64, or what converts to it
    w     (C_in, C_out / groups, *K)    not flipped: PyTorch's and Caffe's layout
    bias  (C_out,) or None
    ->    (N, C_out, *geometry.output_size(input))

and raise upscore.ArgumentError for shapes that do not fit each other. `conv` is the adjoint and `gradients` the
derivatives. They are meant to be read and to be compared with, not to be fast.

>>> x, w = np.array([[[[1, 2], [3, 4]]]]), np.ones((1, 1, 3, 3))
>>> scatter(x, w, geometry=Geometry(kernel=(3, 3), stride=2))[0, 0].astype(int)
array([[ 1,  1,  3,  2,  2],
       [ 1,  1,  3,  2,  2],
       [ 4,  4, 10,  6,  6],
       [ 3,  3,  7,  4,  4],
       [ 3,  3,  7,  4,  4]])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = ["SparseMatrix", "conv", "convolution_matrix", "gradients", "matrix", "phases", "scatter", "zero_stuffing"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def scatter(
    x: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, geometry: Geometry, groups: int = 1
) -> Array:
    """``y[i*s + t*d - lo] += x[i] * w[t]``: the normal form, word for word (all inputs at once, tap by tap)."""
    x, w, bias = _check(x, w, bias, geometry, groups)
    size = x.shape[2:]
    full = np.zeros((len(x), len(bias), *_uncropped(geometry, size)))
    for tap in np.ndindex(*geometry.kernel):
        full[_landing(geometry, tap, size)] += _mix(x, w[_at(*tap)], groups)
    return _window(full, _crop_before(geometry), geometry.output_size(size)) + bias


def zero_stuffing(
    x: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, geometry: Geometry, groups: int = 1
) -> Array:
    """Insert ``s - 1`` zeros between the inputs, pad, and convolve at stride 1 with the flipped kernel."""
    x, w, bias = _check(x, w, bias, geometry, groups)
    size, extent = geometry.output_size(x.shape[2:]), geometry.extent
    stuffed = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], geometry.stride, strict=True))))
    stuffed[_at(*(slice(None, None, s) for s in geometry.stride))] = x
    # e - 1 zeros before, less what is cropped there, so that the flipped kernel's last tap can meet the first input
    starts = [lo - (e - 1) for lo, e in zip(_crop_before(geometry), extent, strict=True)]
    padded = _window(stuffed, starts, [m + e - 1 for m, e in zip(size, extent, strict=True)])
    flipped = np.flip(w, axis=tuple(range(2, w.ndim)))
    y = np.zeros((len(x), len(bias), *size))
    for tap in np.ndindex(*geometry.kernel):
        seen = _at(*(slice(t * d, t * d + m) for t, d, m in zip(tap, geometry.dilation, size, strict=True)))
        y += _mix(padded[seen], flipped[_at(*tap)], groups)
    return y + bias


def matrix(
    x: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, geometry: Geometry, groups: int = 1
) -> Array:
    """``y = C^T x``, where ``C`` is the sparse matrix of the convolution: hence "transposed" convolution."""
    x, w, bias = _check(x, w, bias, geometry, groups)
    transposed = convolution_matrix(w, x.shape[2:], geometry=geometry, groups=groups).T
    y = np.zeros((len(x), len(bias), *geometry.output_size(x.shape[2:])))
    for image, result in zip(x, y, strict=True):
        result[:] = (transposed @ image.ravel()).reshape(result.shape)
    return y + bias


def phases(
    x: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, geometry: Geometry, groups: int = 1
) -> Array:
    """Outputs of equal ``(y + lo) mod s`` use the same taps: one stride-1 convolution each, interleaved."""
    x, w, bias = _check(x, w, bias, geometry, groups)
    y = np.zeros((len(x), len(bias), *geometry.output_size(x.shape[2:])))
    crop, stride = _crop_before(geometry), geometry.stride
    for phase in geometry.phases():
        first = [(r - lo) % s for r, lo, s in zip(phase.residue, crop, stride, strict=True)]
        ours = y[_at(*(slice(f, None, s) for f, s in zip(first, stride, strict=True)))]
        q = [(f + lo) // s for f, lo, s in zip(first, crop, stride, strict=True)]
        for tap, shift in zip(itertools.product(*phase.taps), itertools.product(*phase.shifts), strict=True):
            under = _window(x, [a - b for a, b in zip(q, shift, strict=True)], ours.shape[2:])
            ours += _mix(under, w[_at(*tap)], groups)
    return y + bias


def conv(
    y: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, geometry: Geometry, groups: int = 1
) -> Array:
    """The adjoint, an ordinary convolution: ``x[i] = sum_t y[i*s + t*d - lo] * w[t]``.

    ``y`` is (N, C_out, *output), ``bias`` (C_in,), the result (N, C_in, *geometry.adjoint_size(output)):
    the layer backwards, so it reads what the transposed convolution writes.
    """
    y, w, bias = _check(y, w, bias, geometry, groups, adjoint=True)
    size = geometry.adjoint_size(y.shape[2:])
    full = _window(y, [-lo for lo in _crop_before(geometry)], _uncropped(geometry, size))
    swapped = _by_group(w, 0, groups).swapaxes(1, 2).reshape(-1, len(w) // groups, *geometry.kernel)
    x = np.zeros((len(y), len(w), *size))
    for tap in np.ndindex(*geometry.kernel):
        x += _mix(full[_landing(geometry, tap, size)], swapped[_at(*tap)], groups)
    return x + bias


def gradients(
    grad_y: npt.ArrayLike, x: npt.ArrayLike, w: npt.ArrayLike, *, geometry: Geometry, groups: int = 1
) -> tuple[Array, Array, Array]:
    """The gradients of ``sum(grad_y * scatter(x, w, bias))`` by ``x``, ``w`` and ``bias``, each of its own shape."""
    x, w, _ = _check(x, w, None, geometry, groups)
    grad_y, _, _ = _check(grad_y, w, None, geometry, groups, adjoint=True)
    size = x.shape[2:]
    full = _window(grad_y, [-lo for lo in _crop_before(geometry)], _uncropped(geometry, size))
    grad_w = np.zeros_like(w)
    for tap in np.ndindex(*geometry.kernel):
        met = full[_landing(geometry, tap, size)]
        products = np.einsum("ngi...,ngo...->gio...", _by_group(x, 1, groups), _by_group(met, 1, groups))
        grad_w[_at(*tap)] = products.reshape(*w.shape[:2], -1).sum(axis=-1)
    grad_x = conv(grad_y, w, geometry=geometry, groups=groups)
    return grad_x, grad_w, grad_y.sum(axis=(0, *range(2, grad_y.ndim)))


@dataclass(frozen=True)
class SparseMatrix:
    """``values[j]`` at ``(rows[j], columns[j])``, zero elsewhere; no position is listed twice."""

    rows: Index
    columns: Index
    values: Array
    shape: tuple[int, int]

    @property
    def T(self) -> SparseMatrix:  # noqa: N802
        """The transpose: rows and columns swapped."""
        return SparseMatrix(self.columns, self.rows, self.values, self.shape[::-1])

    def __matmul__(self, vector: Array) -> Array:
        product = np.zeros(self.shape[0])
        np.add.at(product, self.rows, self.values * vector[self.columns])
        return product

    def dense(self) -> Array:
        """The same matrix with its zeros written out, (rows, columns)."""
        full = np.zeros(self.shape)
        full[self.rows, self.columns] = self.values
        return full


def convolution_matrix(w: npt.ArrayLike, size: Sequence[int], *, geometry: Geometry, groups: int = 1) -> SparseMatrix:
    """The matrix ``C`` of the strided convolution that takes outputs ``y`` to inputs ``x`` of this ``size``.

    Shape (C_in * prod(size), C_out * prod(output size)); row (ci, i) holds ``w[ci, co, t]`` in the column
    (co, i*s + t*d - lo). Images are flattened in C order.

    >>> convolution_matrix([[[1, 2, 3]]], (2,), geometry=Geometry(3, 2)).dense().astype(int)
    array([[1, 2, 3, 0, 0],
           [0, 0, 1, 2, 3]])
    """
    w = np.asarray(w, np.float64)
    output, rank = geometry.output_size(size), geometry.rank
    inputs = np.indices(size).reshape(rank, -1, 1)
    taps = np.indices(geometry.kernel).reshape(rank, 1, -1)
    stride, dilation, crop = (
        np.reshape(v, (rank, 1, 1)) for v in (geometry.stride, geometry.dilation, _crop_before(geometry))
    )
    lands = inputs * stride + taps * dilation - crop
    inside = np.all((lands >= 0) & (lands < np.reshape(output, (rank, 1, 1))), axis=0)
    row, tap = np.nonzero(inside)
    column = np.ravel_multi_index(tuple(lands[:, row, tap]), output)
    ci, co = np.indices(w.shape[:2]).reshape(2, -1, 1)
    co += ci // (len(w) // groups) * w.shape[1]
    rows, columns = math.prod(size), math.prod(output)
    return SparseMatrix(
        rows=(ci * rows + row).ravel(),
        columns=(co * columns + column).ravel(),
        values=w.reshape(len(ci), -1)[:, tap].ravel(),
        shape=(len(w) * rows, w.shape[1] * groups * columns),
    )


def _at(*spatial: int | slice) -> tuple[int | slice, ...]:
    """The index of a tap or a span: every batch entry and channel, these positions."""
    return (slice(None), slice(None), *spatial)


def _crop_before(geometry: Geometry) -> tuple[int, ...]:
    return tuple(lo for lo, _ in geometry.crop)


def _uncropped(geometry: Geometry, size: Sequence[int]) -> list[int]:
    return [(n - 1) * s + e for n, s, e in zip(size, geometry.stride, geometry.extent, strict=True)]


def _landing(geometry: Geometry, tap: tuple[int, ...], size: Sequence[int]) -> tuple[int | slice, ...]:
    """Where one tap of the inputs lands in the uncropped output: ``t*d, t*d + s, ...``, one position per input."""
    axes = zip(tap, geometry.stride, geometry.dilation, size, strict=True)
    return _at(*(slice(t * d, t * d + (n - 1) * s + 1, s) for t, s, d, n in axes))


def _window(a: Array, starts: Sequence[int], sizes: Sequence[int]) -> Array:
    """``a`` from ``start`` on, ``size`` long on each spatial axis, with zeros wherever that is outside of ``a``."""
    window = np.zeros((*a.shape[:2], *sizes))
    theirs, ours = [], []
    for n, start, size in zip(a.shape[2:], starts, sizes, strict=True):
        first = min(max(start, 0), n)
        last = max(min(start + size, n), first)
        theirs.append(slice(first, last))
        ours.append(slice(first - start, last - start) if last > first else slice(0, 0))
    window[_at(*ours)] = a[_at(*theirs)]
    return window


def _by_group(a: Array, axis: int, groups: int) -> Array:
    """The channel axis split in two: (groups, channels of one group)."""
    return a.reshape(*a.shape[:axis], groups, a.shape[axis] // groups, *a.shape[axis + 1 :])


def _mix(x: Array, tap: Array, groups: int) -> Array:
    """One tap's channel product: (N, C_in, ...) times (C_in, C_out / groups) gives (N, C_out, ...)."""
    y: Array = np.einsum("ngi...,gio->ngo...", _by_group(x, 1, groups), _by_group(tap, 0, groups))
    return y.reshape(len(x), groups * tap.shape[1], *x.shape[2:])


def _check(
    a: npt.ArrayLike,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    geometry: Geometry,
    groups: int,
    *,
    adjoint: bool = False,
) -> tuple[Array, Array, Array]:
    """Input, weights and bias as float64 arrays of shapes that fit, the bias as (channels, 1, ...)."""
    a, w, rank = np.asarray(a, np.float64), np.asarray(w, np.float64), geometry.rank
    if w.ndim != rank + 2 or w.shape[2:] != geometry.kernel:
        shape = f"shape (C_in, C_out/groups, {', '.join(map(str, geometry.kernel))})"
        raise ArgumentError("w", shape, f"shape {w.shape}", f"shape {(1, 1, *geometry.kernel)}")
    if groups < 1 or len(w) % groups:
        raise ArgumentError("groups", f"a divisor of the {len(w)} input channels", groups, "groups=1")
    reads, writes = len(w), w.shape[1] * groups
    if adjoint:
        reads, writes = writes, reads
    if a.ndim != rank + 2 or a.shape[1] != reads:
        expected = f"{reads} channels and {rank} spatial axes"
        raise ArgumentError("y" if adjoint else "x", expected, f"shape {a.shape}", f"shape {(1, reads, *(8,) * rank)}")
    bias = np.zeros(writes) if bias is None else np.asarray(bias, np.float64)
    if bias.shape != (writes,):
        raise ArgumentError("bias", f"shape {(writes,)}", f"shape {bias.shape}", "bias=None")
    return a, w, bias.reshape(writes, *(1,) * rank)
