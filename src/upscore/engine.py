"""The native engine on NumPy arrays and :class:`Geometry`: any rank, no dialects, no dtype conversions.

Everything here expects C-contiguous float32 or float64 arrays of one dtype, channels first, and shapes that
fit; :mod:`upscore.ops` and :mod:`upscore.nn` are where arguments are checked and converted.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from upscore import _engine
from upscore._engine import Method
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = [
    "NATIVE_RANK",
    "Lying",
    "Method",
    "Packed",
    "bias_gradient",
    "channels_first",
    "channels_last",
    "empty",
    "gradients",
    "lying",
    "weight_gradient",
]

Array = NDArray[Any]

NATIVE_RANK = 3
_LIMIT = 2**62


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array whose memory is reused when it is dropped (large blocks keep their pages).

    Raises:
        ArgumentError: if no machine could hold it.
        MemoryError: if this one cannot.
    """
    _check_can_be_held(shape, dtype)
    try:
        return _engine.empty_f32(shape) if dtype == np.float32 else _engine.empty_f64(shape)
    except MemoryError:
        raise _no_room(shape, dtype) from None


def _check_can_be_held(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if math.prod(shape) * dtype.itemsize >= _LIMIT:
        raise ArgumentError("output", "a size that fits into memory", f"shape {shape}", "a smaller stride or padding")


def _no_room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> MemoryError:
    gigabytes = math.prod(shape) * dtype.itemsize / 2**30
    return MemoryError(f"no room for an output of shape {shape}, {gigabytes:.1f} GiB")


class _Terms(NamedTuple):
    """What the engine computes with, of the axes that it computes natively."""

    stride: list[int]
    dilation: list[int]
    lo: list[int]


@functools.lru_cache(maxsize=256)
def _native_terms(geometry: Geometry, coarse: tuple[int, ...]) -> _Terms:
    """Those of ``geometry``, checked: in 64 bits every coordinate that the ``coarse`` side reaches must fit."""
    for n, s, e, (lo, hi) in zip(coarse, geometry.stride, geometry.extent, geometry.crop, strict=True):
        reach = {"stride": n * s, "dilation": e, "padding": max(lo, hi, 0), "output_size": max(-lo, -hi, 0)}
        if sum(reach.values()) >= _LIMIT:
            name = next(name for name in reach if reach[name] >= _LIMIT // 4)
            raise ArgumentError(name, "coordinates below 2^62", reach[name], f"{name}=2")
    lead = max(geometry.rank - NATIVE_RANK, 0)
    crop = tuple(before for before, _ in geometry.crop[lead:])
    return _Terms(_three(geometry.stride[lead:], 1), _three(geometry.dilation[lead:], 1), _three(crop, 0))


def _three(values: tuple[int, ...], fill: int) -> list[int]:
    return [fill] * (NATIVE_RANK - len(values)) + list(values)


class Packed:
    """Weights ``(C_in, C_out/groups, *K)`` in the order the kernels read, for the layer or its adjoint.

    Args:
        w: weights in the normal layout.
        bias: one number per output channel (of the direction that is run), or None.
        geometry: stride and dilation are used; the crop comes with each call.
        groups: number of groups.
        adjoint: run the ordinary convolution instead of the transposed one.
        method: as the taps are; by minimal filtering (Winograd's), folding (col2im) or a matrix unit's products of
            bfloat16 parts (``BF16``; ``POSITIONS``, in tiles whose rows are positions), where layer and machine allow;
            or whatever is fastest. These ways make weights of their own at the first call, which pays where they are
            run often: those of minimal filtering take up to 4 times the memory (8 times with three axes), those in
            bfloat16 parts 1.5 times. So do small maps.
        last: pack for :meth:`run_last`, which is slower otherwise, as :meth:`run` is then.
        once: batch, input's and output's size and threads of the only call that there will be, with this crop. It may
            read ``w`` where it lies, which must not change until then.
    """

    def __init__(
        self,
        w: Array,
        bias: Array | None,
        geometry: Geometry,
        groups: int,
        *,
        adjoint: bool = False,
        method: Method = Method.DIRECT,
        last: bool = False,
        once: tuple[int, tuple[int, ...], tuple[int, ...], int] | None = None,
    ) -> None:
        stride, dilation, lo = _native_terms(geometry, (1,) * geometry.rank)
        self.adjoint, self.groups, self.dtype = adjoint, groups, w.dtype
        self.channels = w.shape[0] if adjoint else w.shape[1] * groups
        make = _engine.PlanF32 if w.dtype == np.float32 else _engine.PlanF64
        lead = geometry.rank - NATIVE_RANK
        self._bias = bias
        self._known: tuple[tuple[Any, ...], tuple[list[int], list[int]]] | None = None
        if lead <= 0:
            if once and once[0] * max(math.prod(once[1]), math.prod(once[2])) * max(w.size, 1) >= _LIMIT:
                once = None  # what no machine can hold is refused where its memory is asked for
            call = once and (once[0], *self._sizes(once[1], once[2]), lo, once[3] or _engine.thread_count())
            self._plan = make(w, bias, stride, dilation, groups, not adjoint, method, last, call)
            return
        # Higher ranks: one native plan per tap of the leading axes; the bias is added once, by hand.
        self._taps = {
            tap: make(
                np.ascontiguousarray(w[_tap(tap)]), None, stride, dilation, groups, not adjoint, method, False, None
            )
            for tap in itertools.product(*(range(k) for k in geometry.kernel[:lead]))
        }

    def run(
        self, x: Array, geometry: Geometry, size: tuple[int, ...], out: Array | None = None, threads: int = 0
    ) -> Array:
        """The layer on ``x`` (N, C, *spatial), cropped as ``geometry`` says, giving spatial size ``size``."""
        threads = threads or _engine.thread_count()
        y = empty((x.shape[0], self.channels, *size), self.dtype) if out is None else out
        if geometry.rank > NATIVE_RANK:
            self._run_leading(x, geometry, y, threads)
        else:
            self._plan.run(x, y, self._terms(x.shape[2:], geometry, size)[0], threads)
        return y

    def _terms(
        self, input_size: tuple[int, ...], geometry: Geometry, size: tuple[int, ...]
    ) -> tuple[list[int], list[int]]:
        """The crop and the input's size as the engine takes them; a call is often like the one before."""
        question = input_size, geometry, size
        known = self._known
        if known and known[0] == question:
            return known[1]
        terms = _native_terms(geometry, size if self.adjoint else input_size).lo, _three(input_size, 1)
        self._known = question, terms
        return terms

    def run_last(self, x: Array, geometry: Geometry, size: tuple[int, ...], threads: int = 0) -> Array:
        """:meth:`run` with channels last: ``x`` (N, *spatial, C) gives (N, *size, channels).

        Where the engine has no way to read or write channels last, arrays are turned before or after.
        """
        threads = threads or _engine.thread_count()
        if geometry.rank > NATIVE_RANK:
            return channels_last(self.run(channels_first(x, threads), geometry, size, threads=threads), threads)
        y = empty((x.shape[0], *size, self.channels), self.dtype)
        self._plan.run(x, y, self._terms(x.shape[1:-1], geometry, size)[0], threads, True, True)
        return y

    def call_at(
        self, shape: tuple[int, ...], geometry: Geometry, size: tuple[int, ...], reads_last: bool, writes_last: bool
    ) -> Callable[[int, int], object]:
        """:meth:`run` of numbers at an address, which no array has to be made for, by so many threads.

        ``shape`` is (N, C, *spatial), of up to three axes, and so is the result's, however the numbers lie: those that
        are read, and those that are written, channels last or first. The result is a DLPack capsule.
        """
        result, channels = (shape[0], self.channels, *size), shape[1]
        _check_can_be_held(result, self.dtype)
        (lo, n), run_at = self._terms(shape[2:], geometry, size), self._plan.run_at

        def call(address: int, threads: int) -> object:
            try:
                return run_at(address, channels, n, result, lo, threads, reads_last, writes_last)
            except MemoryError:
                raise _no_room(result, self.dtype) from None

        return call

    @staticmethod
    def _sizes(input_size: tuple[int, ...], size: tuple[int, ...]) -> tuple[list[int], list[int]]:
        return _three(input_size, 1), _three(size, 1)

    def why(self, batch: int, geometry: Geometry, input_size: tuple[int, ...], size: tuple[int, ...]) -> str:
        """The engine's reasons for how it runs these sizes."""
        if geometry.rank > NATIVE_RANK:
            lead = geometry.rank - NATIVE_RANK
            return f"rank {geometry.rank}: loops over the first {lead} axes around a native 3-D plan"
        lo, _ = self._terms(input_size, geometry, size)
        return self._plan.why(batch, *self._sizes(input_size, size), lo, _engine.thread_count())

    def _run_leading(self, x: Array, geometry: Geometry, y: Array, threads: int) -> None:
        lead = geometry.rank - NATIVE_RANK
        y[...] = 0 if self._bias is None else self._bias.reshape(-1, *(1,) * geometry.rank)
        lo = _native_terms(geometry, (1,) * geometry.rank).lo
        coarse, dense = (y, x) if self.adjoint else (x, y)
        for tap, plan in self._taps.items():
            picks = _meeting(geometry, tap, coarse.shape, dense.shape)
            if picks is None:
                continue
            pick_y, pick_x = picks if self.adjoint else picks[::-1]
            source = x[pick_x]
            merged = _merge_leading(source, lead)
            part = empty((merged.shape[0], self.channels, *y.shape[2 + lead :]), self.dtype)
            plan.run(merged, part, lo, threads)
            spread = part.reshape(x.shape[0], *source.shape[2 : 2 + lead], *part.shape[1:])
            y[pick_y] += np.moveaxis(spread, 1 + lead, 1)


class Lying(NamedTuple):
    """Numbers at an address, which no array has to be made for, of up to three axes."""

    address: int
    shape: tuple[int, ...]  # (N, C, *spatial), or that of weights
    last: bool  # they lie channels last, the second axis after the others


def lying(a: Array) -> Lying:
    """Where the numbers of an array are."""
    return Lying(a.__array_interface__["data"][0], a.shape, False)


Gradients = tuple[Array | None, Array | None, Array | None]


def gradients(
    x: Lying,
    grad_y: Lying,
    w: Lying,
    dtype: np.dtype[Any],
    geometry: Geometry,
    groups: int,
    wanted: Sequence[bool],
    threads: int = 0,
    *,
    last: bool = False,
) -> Gradients:
    """The gradients of the transposed convolution's input, weights and bias, those that are ``wanted``; else None.

    All numbers have this ``dtype``. That of the input lies channels ``last``, if so; all have the shapes of what they
    are the gradients of.
    """
    stride, dilation, lo = _native_terms(geometry, x.shape[2:])
    run = _engine.gradients_f32 if dtype == np.float32 else _engine.gradients_f64
    return run(x, grad_y, w, stride, dilation, lo, groups, last, wanted, threads or _engine.thread_count())


def weight_gradient(
    x: Array,
    grad_y: Array,
    geometry: Geometry,
    groups: int,
    kernel_channels: int,
    threads: int = 0,
    method: Method = Method.FASTEST,
    *,
    x_last: bool = False,
    grad_last: bool = False,
) -> Array:
    """The gradient of the transposed convolution's weights, ``(C_in, C_out/groups, *K)``.

    ``x`` is (N, C_in, *n), ``grad_y`` (N, C_out, *m); with ``x_last`` (N, *n, C_in), with ``grad_last`` (N, *m, C_out),
    of up to three axes. ``kernel_channels`` is C_out/groups; ``method`` as in :class:`Packed`.
    """
    coarse, channels = (x.shape[1:-1], x.shape[-1]) if x_last else (x.shape[2:], x.shape[1])
    stride, dilation, lo = _native_terms(geometry, coarse)
    threads = threads or _engine.thread_count()
    grad_w = empty((channels, kernel_channels, *geometry.kernel), x.dtype)
    lead = max(geometry.rank - NATIVE_RANK, 0)
    if lead == 0:
        _engine.weight_gradient(x, grad_y, grad_w, stride, dilation, lo, groups, method, threads, x_last, grad_last)
        return grad_w
    grad_w[...] = 0
    for tap in itertools.product(*(range(k) for k in geometry.kernel[:lead])):
        picks = _meeting(geometry, tap, x.shape, grad_y.shape)
        if picks is None:
            continue
        part_x, part_y = (_merge_leading(a[pick], lead) for a, pick in zip((x, grad_y), picks, strict=True))
        part = np.empty((x.shape[1], kernel_channels, *geometry.kernel[lead:]), x.dtype)
        _engine.weight_gradient(part_x, part_y, part, stride, dilation, lo, groups, method, threads)
        grad_w[_tap(tap)] = part
    return grad_w


def bias_gradient(grad_y: Array, threads: int = 0) -> Array:
    """The sum of ``grad_y`` (N, C, *m) over all but its channels, ``(C,)``."""
    grad_bias = np.empty(grad_y.shape[1], grad_y.dtype)
    _engine.bias_gradient(grad_y, grad_bias, threads or _engine.thread_count())
    return grad_bias


def _tap(tap: tuple[int, ...]) -> tuple[slice | int, ...]:
    """The index of one tap of the leading axes in the weights."""
    return (slice(None), slice(None), *tap)


def channels_last(a: Array, threads: int = 0) -> Array:
    """(N, C, *spatial) in memory as (N, *spatial, C), which is the shape of the result."""
    return _turn(a.reshape(a.shape[0], a.shape[1], -1), threads).reshape(a.shape[0], *a.shape[2:], a.shape[1])


def channels_first(a: Array, threads: int = 0) -> Array:
    """(N, *spatial, C) in memory as (N, C, *spatial), which is the shape of the result."""
    return _turn(a.reshape(a.shape[0], -1, a.shape[-1]), threads).reshape(a.shape[0], a.shape[-1], *a.shape[1:-1])


def _turn(a: Array, threads: int) -> Array:
    if 1 in a.shape[1:]:
        return a.reshape(a.shape[0], a.shape[2], a.shape[1])
    turned = empty((a.shape[0], a.shape[2], a.shape[1]), a.dtype)
    _engine.turn(a, turned, threads or _engine.thread_count())
    return turned


_Picks = tuple[tuple[slice, ...], tuple[slice, ...]]


def _meeting(
    geometry: Geometry, tap: tuple[int, ...], coarse: tuple[int, ...], dense: tuple[int, ...]
) -> _Picks | None:
    """On the leading axes: the coarse positions whose stamp of ``tap`` lands inside, and where it lands."""
    pick_coarse, pick_dense = [slice(None)] * 2, [slice(None)] * 2
    for axis, t in enumerate(tap):
        s, shift = geometry.stride[axis], t * geometry.dilation[axis] - geometry.crop[axis][0]
        first = max(0, -(shift // s))
        last = min(coarse[2 + axis], (dense[2 + axis] - 1 - shift) // s + 1)
        if first >= last:
            return None
        pick_coarse.append(slice(first, last))
        pick_dense.append(slice(first * s + shift, (last - 1) * s + shift + 1, s))
    return tuple(pick_coarse), tuple(pick_dense)


def _merge_leading(a: Array, lead: int) -> Array:
    """The ``lead`` first spatial axes moved into the batch."""
    if lead == 0:
        return a
    moved = np.moveaxis(a, 1, 1 + lead)
    return np.ascontiguousarray(moved).reshape(-1, a.shape[1], *a.shape[2 + lead :])
