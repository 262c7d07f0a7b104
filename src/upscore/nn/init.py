"""Weights to start from, for transposed convolutions. Every function fills a tensor in place and returns it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from upscore import filters
from upscore.errors import ArgumentError
from upscore.geometry import Ints, bilinear_kernel, per_axis

__all__ = ["bilinear_", "icnr_", "nearest_"]


def bilinear_(weight: Tensor, *, groups: int = 1) -> Tensor:
    """Fill ``weight`` (C, C / groups, *K) so that the layer upsamples every channel alone, bilinearly.

    The factor follows from the kernel, ``k = 2f - f % 2``; the layer's stride is ``f`` and its padding ``f // 2``.
    How FCN's upsampling layers start (Long, Shelhamer and Darrell 2015); see :func:`upscore.filters.bilinear`.

    Raises:
        ArgumentError: no factor has this kernel, or input and output channels differ.

    >>> bilinear_(torch.empty(1, 1, 4, 4))[0, 0, :2].tolist()
    [[0.0625, 0.1875, 0.1875, 0.0625], [0.1875, 0.5625, 0.5625, 0.1875]]
    """
    factors = []
    for k in _kernel(weight):
        f = (k + 1) // 2
        if bilinear_kernel(f)[0] != k:
            sizes = [bilinear_kernel(g)[0] for g in range(max(1, f - 1), f + 3)]
            expected = "a kernel of 2f - f % 2 for a factor f, such as " + ", ".join(map(str, sizes))
            raise ArgumentError("weight", expected, k, f"kernel_size={sizes[-1]}")
        factors.append(f)
    return _fill_channelwise(weight, filters.bilinear(factors), groups)


def nearest_(weight: Tensor, *, groups: int = 1) -> Tensor:
    """Fill ``weight`` (C, C / groups, *K) so that the layer of stride ``K`` repeats every pixel of a channel.

    Raises:
        ArgumentError: input and output channels differ.

    >>> nearest_(torch.empty(2, 2, 1, 2)).tolist()
    [[[[1.0, 1.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[1.0, 1.0]]]]
    """
    return _fill_channelwise(weight, filters.nearest(_kernel(weight)), groups)


def icnr_(
    weight: Tensor, *, stride: Ints, initializer: Callable[[Tensor], object] = torch.nn.init.kaiming_normal_
) -> Tensor:
    """Fill ``weight`` (C_in, C_out / groups, *K) at random, but free of checkerboards: all phases start equal.

    The layer starts as a random convolution whose output is upsampled by repeating pixels: of the ``stride`` taps
    that make neighbouring outputs from the same input, all are equal. That needs a kernel that the stride divides.
    On an axis where it does not, the phases' sums start equal instead: the layer starts as one that repeats the
    pixels and then convolves them with a random kernel of ``k - stride + 1`` taps.

    The transposed convolution's form of Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution".

    Args:
        weight: the tensor to fill.
        stride: of the layer.
        initializer: fills the small random kernel in place.

    Raises:
        ArgumentError: a kernel smaller than the stride leaves holes, whatever it holds.

    >>> w = icnr_(torch.empty(1, 1, 4), stride=2)[0, 0]
    >>> bool(w[0] == w[1] and w[2] == w[3])
    True
    """
    kernel = _kernel(weight)
    steps = per_axis("stride", stride, len(kernel), least=1)
    if any(k < s for k, s in zip(kernel, steps, strict=True)):
        raise ArgumentError("weight", f"a kernel of at least the stride {steps}", kernel, f"kernel_size={steps}")
    divides = [k % s == 0 for k, s in zip(kernel, steps, strict=True)]
    axes = zip(kernel, steps, divides, strict=True)
    small = torch.empty(*weight.shape[:2], *(k // s if even else k - s + 1 for k, s, even in axes))
    initializer(small)
    repeat = filters.channelwise(filters.nearest(steps), weight.shape[1])
    spread = [s if even else 1 for s, even in zip(steps, divides, strict=True)]
    return _fill(weight, filters.compose_weights(small.numpy(), repeat, stride=spread, groups=weight.shape[1]))


def _kernel(weight: Tensor) -> tuple[int, ...]:
    if weight.dim() < 3:
        raise ArgumentError("weight", "(C_in, C_out / groups, *K)", f"shape {tuple(weight.shape)}", "layer.weight")
    return tuple(weight.shape[2:])


def _fill_channelwise(weight: Tensor, kernel: filters.Array, groups: int) -> Tensor:
    if weight.shape[0] != weight.shape[1] * groups:
        raise ArgumentError(
            "weight",
            f"as many output channels as the {weight.shape[0]} of the input, with groups={groups}",
            weight.shape[1] * groups,
            f"groups={weight.shape[0]} for a weight of one channel per group",
        )
    return _fill(weight, filters.channelwise(kernel, weight.shape[0], groups=groups))


def _fill(weight: Tensor, numbers: filters.Array) -> Tensor:
    with torch.no_grad():
        return weight.copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
