"""Weights packed once for inference, and packed again when they change.

The packed form belongs to the weight tensor, not to a module: it is shared by everything that shares the
weights, found again by compiled graphs, never pickled or deep-copied, and freed with the tensor.

A change is noticed by the tensor's address, its version counter (every in-place operation, optimizer step and
``load_state_dict``), and a sample of the numbers, which is all of them up to 4096. What can escape is a change
of a few numbers of a large weight behind autograd's back, through ``.data`` or a NumPy view, between two calls
without gradients: call :func:`forget` after one.

Packed at every call are weights for a call that autograd records, that are themselves recorded results or made in
inference mode, and that lie in memory with holes.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from upscore import cpu
from upscore.engine import Array, Method, Packed, channels_first
from upscore.geometry import Geometry

__all__ = [
    "CHANNELS_LAST",
    "Call",
    "Form",
    "array",
    "can_keep",
    "find_call",
    "forget",
    "is_last",
    "is_whole",
    "keep_call",
    "last_array",
    "pack",
    "plain",
]

_SAMPLE_ALL = 4096
_SAMPLES = 128
_CALLS = 64  # that are kept of one weight tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_TO_LAST = {rank: (0, *range(2, rank), 1) for rank in CHANNELS_LAST}

Form = Callable[[Array], Array]
_Key = tuple[tuple[int, ...], tuple[int, ...], int, str, Form | None, bool]
Call = Callable[[int, int], object]  # as of Packed.call_at


class _Watch:
    """Remembers the state of a tensor, and holds its memory, so that no other tensor gets this address."""

    def __init__(self, t: Tensor) -> None:
        self._address, self._version, self._size, self._strides = t.data_ptr(), t._version, t.numel(), t.stride()
        t = t.detach()
        numbers = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()  # which NumPy does not know
        strides = t.stride()
        order = sorted(range(t.dim()), key=lambda axis: -strides[axis])
        flat = numbers.transpose(order).reshape(-1)  # a view, in the order of the memory
        # An odd step, so that the samples wander over the taps.
        self._sample = flat if flat.size <= _SAMPLE_ALL else flat[:: flat.size // _SAMPLES | 1]
        self._bytes = self._sample.tobytes()

    def unchanged(self, t: Tensor) -> bool:
        return (
            t.data_ptr() == self._address
            and t._version == self._version
            and t.numel() == self._size
            and t.stride() == self._strides
            and self._sample.tobytes() == self._bytes
        )


class _Kept(NamedTuple):
    """What is packed, and what it was packed from."""

    weight: _Watch
    bias: _Watch | None
    packed: Packed

    def holds(self, w: Tensor, bias: Tensor | None) -> bool:
        """Whether it is what would be packed now."""
        if not self.weight.unchanged(w):
            return False
        return bias is None if self.bias is None else bias is not None and self.bias.unchanged(bias)


class _Entry:
    """What is packed of one weight tensor, and the calls that were computed with it."""

    def __init__(self, w: Tensor, gone: functools.partial[None]) -> None:
        self.weight = weakref.ref(w, gone)
        self.packed: dict[_Key, _Kept] = {}
        self.calls: dict[Hashable, tuple[_Kept, Call]] = {}


_lock = threading.RLock()  # a tensor may die, and call back, while we hold it
_entries: dict[int, _Entry] = {}  # by id, which is quicker than a dictionary of weak keys


def pack(
    w: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    groups: int,
    *,
    keep: bool,
    form: Form | None = None,
    last: bool = False,
    x: Tensor,
    size: tuple[int, ...],
) -> Packed:
    """The packed transposed convolution of ``w`` and ``bias``, kept for the next call if ``keep``.

    ``w`` is (C_in, C_out/groups, *K) on the CPU, or what ``form``, which must be hashable, makes that of. Numbers
    narrower than float32 are widened. ``last`` is that of :class:`~upscore.engine.Packed`. What is not kept is packed
    for ``x`` and an output of this ``size`` alone.
    """

    def fresh(kept: bool) -> Packed:
        numbers = array(w) if form is None else form(array(w))
        once = None if kept else (x.shape[0], tuple(x.shape[2:]), size, torch.get_num_threads())
        return Packed(
            numbers,
            None if bias is None else array(bias),
            geometry,
            groups,
            method=Method.FASTEST,
            last=last,
            once=once,
        )

    if not keep:
        return fresh(kept=False)
    key = geometry.stride, geometry.dilation, groups, cpu.active(), form, last
    entry = _entry(w)
    found = entry and entry.packed.get(key)
    if found and found.holds(w, bias):
        return found.packed
    if not (can_keep(w) and (bias is None or can_keep(bias))):
        return fresh(kept=False)
    watches = _Watch(w), None if bias is None else _Watch(bias)  # before packing: a change meanwhile is noticed
    packed = fresh(kept=True)
    with _lock:
        entry = _entry(w)
        if entry is None:
            entry = _entries[id(w)] = _Entry(w, functools.partial(_drop, id(w)))
        # What was packed for other strides or instruction sets stays only while it is of use.
        entry.packed = {k: kept for k, kept in entry.packed.items() if kept.weight.unchanged(w)}
        entry.packed[key] = _Kept(*watches, packed)
        entry.calls.clear()
    return packed


def _entry(w: Tensor) -> _Entry | None:
    entry = _entries.get(id(w))
    return entry if entry is not None and entry.weight() is w else None


def find_call(w: Tensor, bias: Tensor | None, asked: Hashable) -> Call | None:
    """What :func:`keep_call` kept under this name, if weights and bias have not changed since."""
    entry = _entry(w)
    found = entry and entry.calls.get(asked)
    return found[1] if found and found[0].holds(w, bias) else None


def keep_call(w: Tensor, packed: Packed, asked: Hashable, call: Call) -> None:
    """Keep how ``packed``, if :func:`pack` has kept it, computes a call that comes again as ``asked``."""
    with _lock:
        entry = _entry(w)
        kept = entry and next((kept for kept in entry.packed.values() if kept.packed is packed), None)
        if entry and kept:
            if len(entry.calls) >= _CALLS:
                entry.calls.clear()
            entry.calls[asked] = kept, call


def can_keep(w: Tensor) -> bool:
    """Whether changes of ``w`` can be noticed, and it lives longer than a call."""
    return w.grad_fn is None and not w.is_inference() and is_whole(w)


def is_whole(t: Tensor) -> bool:
    """Whether the numbers lie in memory without holes, channels first or last."""
    return t.is_contiguous() or is_last(t)


def _drop(number: int, weight: weakref.ref[Tensor]) -> None:
    with _lock:
        entry = _entries.get(number)
        if entry is not None and entry.weight is weight:
            del _entries[number]


def forget(w: Tensor | None = None) -> None:
    """Drop the packed form of ``w``, or of all weights."""
    with _lock:
        if w is None:
            _entries.clear()
        else:
            _entries.pop(id(w), None)


def is_last(t: Tensor) -> bool:
    """Whether the numbers of ``t`` lie channels last, and not first as well."""
    if t.is_contiguous():
        return False
    last = CHANNELS_LAST.get(t.dim())
    return last is not None and t.is_contiguous(memory_format=last)


def array(t: Tensor) -> Array:
    """``t`` as a contiguous float32 or float64 array; shares memory where it can."""
    if is_last(t):
        return channels_first(last_array(t), torch.get_num_threads())
    numbers: Array = plain(t).contiguous().numpy()
    return numbers


def last_array(t: Tensor) -> Array:
    """The array (N, *spatial, C) of a channels-last tensor; shares memory where it can."""
    numbers: Array = plain(t).numpy()
    return numbers.transpose(_TO_LAST[t.dim()])


def plain(t: Tensor) -> Tensor:
    """``t`` as numbers that the engine computes with, float32 or float64, recorded by nothing; lies as ``t`` does."""
    if t.requires_grad:
        t = t.detach()
    if t.dtype is not torch.float32 and t.dtype is not torch.float64:
        t = t.float()
    return t.resolve_neg() if t.is_neg() else t
