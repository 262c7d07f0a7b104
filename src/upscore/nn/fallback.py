"""The three operators of the normal form by torch's own kernels: for CUDA, other devices and other dtypes.

Every function is differentiable by torch. Ranks 1 to 3. ``before`` and ``after`` are the crop per axis, of any
sign; see :mod:`upscore.geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv_transpose", "input_gradient", "weight_gradient"]

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Ints = Sequence[int]


def conv_transpose(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    """The transposed convolution of ``x`` (N, C_in, *n)."""
    run = _TRANSPOSED[x.dim() - 2]
    extra = [lo - hi for lo, hi in zip(before, after, strict=True)]
    if all(lo >= 0 and 0 <= op < max(s, d) for lo, op, s, d in zip(before, extra, stride, dilation, strict=True)):
        return run(x, w, bias, tuple(stride), tuple(before), tuple(extra), groups, tuple(dilation))
    cut = [max(0, min(lo, hi)) for lo, hi in zip(before, after, strict=True)]
    y = run(x, w, None, tuple(stride), tuple(cut), 0, groups, tuple(dilation))
    y = _pad(y, [p - lo for p, lo in zip(cut, before, strict=True)], [p - hi for p, hi in zip(cut, after, strict=True)])
    return y if bias is None else y + bias.view(-1, *(1,) * (y.dim() - 2))


def input_gradient(
    y: Tensor, w: Tensor, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    """The adjoint, an ordinary convolution of ``y`` (N, C_out, *m)."""
    run = _FORWARD[y.dim() - 2]
    x: Tensor = run(_pad(y, before, after), w, None, tuple(stride), 0, tuple(dilation), groups)
    return x


def weight_gradient(
    x: Tensor, y: Tensor, kernel: Ints, stride: Ints, dilation: Ints, before: Ints, after: Ints, groups: int
) -> Tensor:
    """The gradient of the weights, (C_in, C_out/groups, *K)."""
    w = x.new_empty((x.shape[1], y.shape[1] // groups, *kernel))
    zeros = [0] * len(kernel)
    # The adjoint convolution maps y to x: for it, x is the gradient of the output.
    grads: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        x, _pad(y, before, after), w, None, stride, zeros, dilation, False, zeros, groups, [False, True, False]
    )
    return grads[1]


def _pad(y: Tensor, before: Ints, after: Ints) -> Tensor:
    """Zeros added around ``y``; negative numbers cut."""
    sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return F.pad(y, sides) if any(sides) else y
