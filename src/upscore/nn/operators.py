"""The transposed convolution and its gradients as torch operators: ``torch.ops.upscore.conv_transpose`` and two more.

All three speak the normal form: ``before`` and ``after`` are the crop per axis. With T the transposed convolution,
A its adjoint and W the gradient of its weights, all linear in both arguments, the derivatives close over the three::

    T(x, w):  dx = A(g, w)   dw = W(x, g)
    A(y, w):  dy = T(g, w)   dw = W(g, y)
    W(x, y):  dx = A(y, g)   dy = T(x, g)

so that gradients of any order stay in the engine. The sizes match exactly: A gives the x whose T has y's size.

On the CPU float32 and float64 are computed natively, float16 and bfloat16 in float32; on other devices, and for
other dtypes, by torch's kernels (:mod:`upscore.nn.fallback`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upscore.geometry import Geometry
from upscore.nn import fallback, native

__all__ = ["Recorded", "conv_transpose", "input_gradient", "weight_gradient"]

Ints = Sequence[int]

_GEOMETRY = "SymInt[] stride, SymInt[] dilation, SymInt[] before, SymInt[] after, SymInt groups"

# The operators. Not torch.library.custom_op: its first call imports torch's compiler, which takes seconds.
torch.library.define("upscore::conv_transpose", f"(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}, bool keep) -> Tensor")
torch.library.define("upscore::conv_transpose_input_gradient", f"(Tensor y, Tensor w, {_GEOMETRY}) -> Tensor")
torch.library.define(
    "upscore::conv_transpose_weight_gradient", f"(Tensor x, Tensor y, SymInt[] kernel, {_GEOMETRY}) -> Tensor"
)
conv_transpose: Any = torch.ops.upscore.conv_transpose.default
"""``(x, w, bias, stride, dilation, before, after, groups, keep)``: T of ``x`` (N, C_in, *n), plus the bias.

``keep`` keeps the packed weights for the next call."""
input_gradient: Any = torch.ops.upscore.conv_transpose_input_gradient.default
"""``(y, w, stride, dilation, before, after, groups)``: A, the ordinary convolution of ``y`` (N, C_out, *m)."""
weight_gradient: Any = torch.ops.upscore.conv_transpose_weight_gradient.default
"""``(x, y, kernel, stride, dilation, before, after, groups)``: W, (C_in, C_out/groups, *kernel)."""


@functools.lru_cache(maxsize=1024)
def _geometry(kernel: Ints, stride: Ints, dilation: Ints, before: Ints, after: Ints) -> Geometry:
    return Geometry(kernel, stride, dilation, tuple(zip(before, after, strict=True)))


@functools.lru_cache(maxsize=1024)
def _with_output(n: Ints, *terms: Ints) -> tuple[Geometry, tuple[int, ...]]:
    geometry = _geometry(*terms)
    return geometry, geometry.output_size(n)


@functools.lru_cache(maxsize=1024)
def _with_adjoint(m: Ints, *terms: Ints) -> tuple[Geometry, tuple[int, ...]]:
    geometry = _geometry(*terms)
    return geometry, geometry.adjoint_size(m)


_WORTH = 2e8  # products: asking takes 1 us, and up to 50 us for a leaf whose gradient torch.autograd.grad is asked for
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


def _wanted(ctx: Any, x: Tensor, w: Tensor) -> tuple[bool, bool, bool]:
    """Whether the gradients of T's input, weights and bias are wanted.

    ``ctx.needs_input_grad`` names all that can be: the weights', too, in ``torch.autograd.grad(loss, x)``. What this
    backward pass will use is known to torch's engine alone, which does not say it of leaves that it was asked for.
    """
    of_x, of_w, of_bias = ctx.needs_input_grad[:3]
    products = x.numel() * w.numel() / max(w.shape[0], 1)  # of each of the first two
    if not (of_x and of_w) or products < _WORTH or _will_execute is None:
        return of_x, of_w, of_bias

    def used(of: int) -> bool:
        try:
            return bool(_will_execute(ctx.next_functions[of][0]))
        except RuntimeError:
            return True

    of_w, of_bias = used(1), of_bias and used(2)
    # An input that is a leaf and records gradients was made to be asked for.
    return not (of_w or of_bias) or x.is_leaf or used(0), of_w, of_bias


# --- T ---


@torch.library.impl("upscore::conv_transpose", "CompositeExplicitAutograd")
def _run_conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    dilation: Ints,
    before: Ints,
    after: Ints,
    groups: int,
    keep: bool,
) -> Tensor:
    """The transposed convolution of ``x`` (N, C_in, *n); ``keep`` keeps the packed weights for the next call."""
    if not native.is_native(x):
        return fallback.conv_transpose(x, w, bias, stride, dilation, before, after, groups)
    geometry, size = _with_output(*map(tuple, (x.shape[2:], w.shape[2:], stride, dilation, before, after)))
    return native.conv_transpose(x, w, bias, geometry, size, groups, keep=keep)


def _fake_conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    dilation: Ints,
    before: Ints,
    after: Ints,
    groups: int,
    keep: bool,
) -> Tensor:
    axes = zip(x.shape[2:], w.shape[2:], stride, dilation, before, after, strict=True)
    size = [(n - 1) * s + d * (k - 1) + 1 - lo - hi for n, k, s, d, lo, hi in axes]
    return x.new_empty((x.shape[0], w.shape[1] * groups, *size)).contiguous(memory_format=native.memory_format(x, w))


def _save_conv_transpose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, *geometry, _ = inputs
    ctx.save_for_backward(x, w)
    ctx.geometry = geometry


def _conv_transpose_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    of_x, of_w, of_bias = _wanted(ctx, x, w)
    return (
        input_gradient(g, w, *ctx.geometry) if of_x else None,
        weight_gradient(x, g, w.shape[2:], *ctx.geometry) if of_w else None,
        g.sum((0, *range(2, g.dim()))) if of_bias else None,
        *(None,) * 6,
    )


torch.library.register_fake("upscore::conv_transpose", _fake_conv_transpose)
torch.library.register_autograd("upscore::conv_transpose", _conv_transpose_backward, setup_context=_save_conv_transpose)


# --- A ---


@torch.library.impl("upscore::conv_transpose_input_gradient", "CompositeExplicitAutograd")
def _run_input_gradient(
    y: Tensor, w: Tensor, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    """The adjoint: the ordinary convolution of ``y`` (N, C_out, *m) with the same weights."""
    if not native.is_native(y):
        return fallback.input_gradient(y, w, stride, dilation, before, after, groups)
    geometry, size = _with_adjoint(*map(tuple, (y.shape[2:], w.shape[2:], stride, dilation, before, after)))
    return native.input_gradient(y, w, geometry, size, groups)


def _fake_input_gradient(
    y: Tensor, w: Tensor, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    axes = zip(y.shape[2:], w.shape[2:], stride, dilation, before, after, strict=True)
    size = [(m + lo + hi - d * (k - 1) - 1) // s + 1 for m, k, s, d, lo, hi in axes]
    return y.new_empty((y.shape[0], w.shape[0], *size)).contiguous(memory_format=native.memory_format(y, w))


def _save_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, w, *ctx.geometry = inputs
    ctx.save_for_backward(y, w)


def _input_gradient_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, w = ctx.saved_tensors
    of_y, of_w = ctx.needs_input_grad[:2]
    return (
        conv_transpose(g, w, None, *ctx.geometry, False) if of_y else None,
        weight_gradient(g, y, w.shape[2:], *ctx.geometry) if of_w else None,
        *(None,) * 5,
    )


torch.library.register_fake("upscore::conv_transpose_input_gradient", _fake_input_gradient)
torch.library.register_autograd(
    "upscore::conv_transpose_input_gradient", _input_gradient_backward, setup_context=_save_input_gradient
)


# --- W ---


@torch.library.impl("upscore::conv_transpose_weight_gradient", "CompositeExplicitAutograd")
def _run_weight_gradient(
    x: Tensor, y: Tensor, kernel: Ints, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    """The gradient of the weights, (C_in, C_out/groups, *kernel), from input ``x`` and output gradient ``y``."""
    if not native.is_native(x):
        return fallback.weight_gradient(x, y, kernel, stride, dilation, before, after, groups)
    geometry = _geometry(*map(tuple, (kernel, stride, dilation, before, after)))
    return native.weight_gradient(x, y, geometry, groups)


def _fake_weight_gradient(
    x: Tensor, y: Tensor, kernel: Ints, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    return x.new_empty((x.shape[1], y.shape[1] // groups, *kernel))


def _save_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, _, *ctx.geometry = inputs
    ctx.save_for_backward(x, y)


def _weight_gradient_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    of_x, of_y = ctx.needs_input_grad[:2]
    return (
        input_gradient(y, g, *ctx.geometry) if of_x else None,
        conv_transpose(x, g, None, *ctx.geometry, False) if of_y else None,
        *(None,) * 6,
    )


torch.library.register_fake("upscore::conv_transpose_weight_gradient", _fake_weight_gradient)
torch.library.register_autograd(
    "upscore::conv_transpose_weight_gradient", _weight_gradient_backward, setup_context=_save_weight_gradient
)


# --- T for autograd alone ---


class Recorded(torch.autograd.Function):
    """T of plain tensors without the dispatcher, whose toll small layers notice; its gradients are the same."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, size: tuple[int, ...], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry, ctx.groups = geometry, groups
        return native.conv_transpose(x, w, bias, geometry, size, groups, keep=False)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        geometry, groups = ctx.geometry, ctx.groups
        wanted = of_x, of_w, of_bias = _wanted(ctx, x, w)
        if not torch.is_grad_enabled() and native.is_plain(g, w, None) and native.is_native(x):
            return *native.gradients(x, g, w, geometry, groups, wanted), None, None, None
        before, after = ([pair[side] for pair in geometry.crop] for side in (0, 1))
        terms = list(geometry.stride), list(geometry.dilation), before, after, groups
        return (
            input_gradient(g, w, *terms) if of_x else None,
            weight_gradient(x, g, geometry.kernel, *terms) if of_w else None,
            g.sum((0, *range(2, g.dim()))) if of_bias else None,
            *(None,) * 3,
        )
