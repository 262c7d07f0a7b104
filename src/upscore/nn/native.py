"""Tensors in, the engine, tensors out: what runs where torch's dispatcher has nothing to add.

The three linear maps of :mod:`upscore.nn.operators` on CPU tensors that :func:`is_native` accepts. Results have the
dtype of the first argument, and its memory format as torch chooses it. Nothing here is differentiable.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.dlpack import from_dlpack

from upscore import cpu, engine
from upscore.engine import Method
from upscore.geometry import Geometry
from upscore.nn.packing import (
    CHANNELS_LAST,
    Call,
    Form,
    array,
    find_call,
    is_last,
    is_whole,
    keep_call,
    last_array,
    pack,
    plain,
)

__all__ = [
    "again",
    "conv_transpose",
    "gradients",
    "input_gradient",
    "is_native",
    "is_plain",
    "is_transformed",
    "memory_format",
    "records",
    "weight_gradient",
    "whole",
]

_NATIVE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_COMPUTED: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_DTYPES = {computed: dtype for dtype, computed in _COMPUTED.items()}
_PLAIN = (Tensor, torch.nn.Parameter)


def is_native(x: Tensor) -> bool:
    """Whether the engine computes this tensor, rather than torch's kernels."""
    return x.is_cpu and x.dtype in _NATIVE and x.layout is torch.strided


def records(x: Tensor, w: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd records this call."""
    return torch.is_grad_enabled() and (x.requires_grad or w.requires_grad or (bias is not None and bias.requires_grad))


def is_plain(x: Tensor, w: Tensor, bias: Tensor | None) -> bool:
    """Whether only numbers are wanted of this call: no mode, tracer, transform or autocast has to see it."""
    return (
        _is_plain_input(x)
        and type(w) in _PLAIN
        and w.dtype is x.dtype
        and w.is_cpu
        and (bias is None or (type(bias) in _PLAIN and bias.dtype is x.dtype and bias.is_cpu))
    )


def _is_plain_input(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and is_native(x)
        and not torch.is_autocast_enabled("cpu")
        and not _is_in_transform()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def is_transformed() -> bool:
    """Inside forward-mode differentiation or a functorch transform (vmap, jvp, functionalize)."""
    return not torch.compiler.is_compiling() and _is_in_transform()


def _is_in_transform() -> bool:
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """The format of a result, as torch chooses it: channels last when any argument is."""
    for t in tensors:
        if is_last(t):
            return CHANNELS_LAST[t.dim()]
    return torch.contiguous_format


def whole(t: Tensor) -> Tensor:
    """``t``, or a copy without holes in memory."""
    return t if is_whole(t) else t.contiguous()


def _layout(x: Tensor, w: Tensor) -> tuple[bool, bool]:
    """Whether the result is channels last, and whether ``x`` lies so, too; one channel may lie first as well."""
    last = memory_format(x, w)
    if last is torch.contiguous_format or not x.numel():
        return False, False
    return True, x.is_contiguous(memory_format=last)


def _run(call: Call, numbers: Tensor) -> Tensor:
    return from_dlpack(call(numbers.data_ptr(), torch.get_num_threads()))


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t.to(dtype)``, which is not called for nothing."""
    return t if t.dtype is dtype else t.to(dtype)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: tuple[int, ...],
    groups: int,
    *,
    keep: bool,
    form: Form | None = None,
    asked: Hashable = None,
) -> Tensor:
    """T of ``x`` (N, C_in, *n), of spatial size ``size``; ``keep`` and ``form`` are those of :func:`pack`.

    ``asked`` names the arguments but for tensors, if :func:`again` is to know the call.
    """
    last, reads = _layout(x, w)
    packed = pack(w, bias, geometry, groups, keep=keep, form=form, last=reads, x=x, size=size)
    call = packed.call_at(x.shape, geometry, size, reads, last and 0 not in size)
    numbers = _numbers(x, _DTYPES[packed.dtype])
    if asked is not None and numbers is x:
        keep_call(w, packed, _name(x, asked), call)
    return _cast(_run(call, numbers), x.dtype)


def again(x: Tensor, w: Tensor, bias: Tensor | None, asked: Hashable) -> Tensor | None:
    """A call that is not recorded, like one before, which has nothing left to decide; None if there was none.

    Deciding takes longer than small layers do, most of all where their inputs have pushed it out of the caches.
    """
    if not _is_plain_input(x) or x.is_neg():
        return None
    call = find_call(w, bias, _name(x, asked))
    return None if call is None else _run(call, x)


def _name(x: Tensor, asked: Hashable) -> Hashable:
    return asked, x.shape, x.stride(), x.dtype, cpu.active()


def _numbers(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` as the engine reads it: of this dtype, without holes in memory."""
    return whole(t if t.dtype is dtype and not t.is_neg() else plain(t).to(dtype))


def gradients(
    x: Tensor, y: Tensor, w: Tensor, geometry: Geometry, groups: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of T's input ``x``, weights and bias, from the gradient ``y`` of its output: those that are ``wanted``.

    That of the input lies in memory as ``y`` does, or as ``x`` where ``y`` lies both ways.
    """
    dtype = y.dtype if y.dtype in _COMPUTED else torch.float32
    inputs, outputs, weights = _numbers(x, dtype), _numbers(y, dtype), _numbers(w, dtype)
    x_last, y_last, w_last = is_last(inputs), is_last(outputs), is_last(weights)
    if x_last and not y_last and y.numel():
        y_last = outputs.is_contiguous(memory_format=CHANNELS_LAST[y.dim()])
    found = engine.gradients(
        engine.Lying(inputs.data_ptr(), x.shape, x_last),
        engine.Lying(outputs.data_ptr(), y.shape, y_last),
        engine.Lying(weights.data_ptr(), w.shape, w_last),
        _COMPUTED[dtype],
        geometry,
        groups,
        wanted,
        torch.get_num_threads(),
        last=(y_last or w_last) and x.numel() > 0,
    )
    of_x, of_w, of_bias = (None if a is None else _cast(torch.from_numpy(a), x.dtype) for a in found)
    return of_x, of_w, of_bias


def input_gradient(y: Tensor, w: Tensor, geometry: Geometry, size: tuple[int, ...], groups: int) -> Tensor:
    """A of ``y`` (N, C_out, *m), of spatial size ``size``."""
    once = y.shape[0], tuple(y.shape[2:]), size, torch.get_num_threads()
    last, reads = _layout(y, w)
    packed = engine.Packed(array(w), None, geometry, groups, adjoint=True, method=Method.FASTEST, last=reads, once=once)
    call = packed.call_at(y.shape, geometry, size, reads, last and 0 not in size)
    return _cast(_run(call, _numbers(y, _DTYPES[packed.dtype])), y.dtype)


def weight_gradient(x: Tensor, y: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """W of ``x`` (N, C_in, *n) and ``y`` (N, C_out, *m): (C_in, C_out/groups, *K)."""
    share, threads = y.shape[1] // groups, torch.get_num_threads()
    x_last, grad_last = is_last(x), is_last(y)
    first, second = (last_array(t) if last else array(t) for t, last in ((x, x_last), (y, grad_last)))
    numbers = engine.weight_gradient(
        first, second, geometry, groups, share, threads, x_last=x_last, grad_last=grad_last
    )
    return _cast(torch.from_numpy(numbers), x.dtype)
