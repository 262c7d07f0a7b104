"""``MaxUnpool1d``, ``2d`` and ``3d``: torch's modules, safe on bad indices.

Unpooling puts every value back where ``torch.nn.MaxPool2d(return_indices=True)`` found it, and zeros elsewhere
(Zeiler and Fergus 2014; the switches of DeconvNet and SegNet). ``torch.nn`` has the pooling that makes the indices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Ints, per_axis
from upscore.nn.errors import ShapeError

__all__ = ["MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"]


class _MaxUnpool(torch.nn.modules.pooling._MaxUnpoolNd):
    """What the three ranks share."""

    _rank: int
    kernel_size: Any
    stride: Any
    padding: Any

    def forward(self, input: Tensor, indices: Tensor, output_size: Ints | None = None) -> Tensor:  # noqa: A002
        """``input`` (N, C, *spatial) or (C, *spatial) spread by ``indices`` over ``output_size``.

        Args:
            input: the pooled values.
            indices: int64 of the same shape: where in its channel's (flattened) output each value goes.
            output_size: spatial, or whole; within a stride of the default, ``(n - 1)*stride + kernel - 2*padding``.

        Raises:
            ShapeError: (a RuntimeError and a ValueError) shapes that differ, or an index outside of the output.
            ArgumentError: (a ValueError) an ``output_size`` that pooling cannot have come from.
            ArgumentTypeError: (a TypeError) indices that are not int64.
        """
        size = self._size(input, indices, output_size)
        if not torch.compiler.is_compiling():
            _check_range(indices, math.prod(size))
        unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[self._rank - 1]
        return unpool(input, indices, self.kernel_size, self.stride, self.padding, list(size))

    def _size(self, x: Tensor, indices: Tensor, output_size: Ints | None) -> tuple[int, ...]:
        rank = self._rank
        if x.dim() not in (rank + 1, rank + 2):
            expected = f"{rank + 2} dimensions (batched) or {rank + 1} (unbatched)"
            raise ShapeError("input", expected, f"shape {tuple(x.shape)}", "input[None]")
        if indices.dtype != torch.int64:
            expected, example = "int64 numbers, as MaxPool returns them", "indices.long()"
            raise _IndexTypeError("indices", expected, indices.dtype, example)
        if indices.shape != x.shape:
            expected = f"the shape of input, {tuple(x.shape)}"
            raise ShapeError("indices", expected, tuple(indices.shape), "the indices that came with input")
        n, k, s = x.shape[-rank:], self._per_axis(self.kernel_size), self._per_axis(self.stride)
        p = self._per_axis(self.padding)
        usual = tuple((ni - 1) * si + ki - 2 * pi for ni, ki, si, pi in zip(n, k, s, p, strict=True))
        if output_size is None:
            return usual
        if not isinstance(output_size, int):
            wanted = tuple(output_size)
            output_size = wanted[-rank:] if len(wanted) in (x.dim(), rank + 2) else wanted
        size = per_axis("output_size", output_size, rank, least=1)
        if any(abs(m - u) >= si for m, u, si in zip(size, usual, s, strict=True)):
            expected = f"sizes less than the stride {s} away from {usual}"
            raise ArgumentError("output_size", expected, size, f"output_size={usual}")
        return size

    def _per_axis(self, value: Ints) -> tuple[int, ...]:
        return per_axis("value", value, self._rank)


class _IndexTypeError(ArgumentTypeError, RuntimeError):
    """torch raises a RuntimeError for the dtype of indices."""


def _check_range(indices: Tensor, count: int) -> None:
    if indices.numel() == 0 or indices.is_meta:
        return
    least, most = (int(v) for v in torch.aminmax(indices))
    if least < 0 or most >= count:
        wrong = least if least < 0 else most
        raise ShapeError(
            "indices", f"positions in the output, from 0 to {count - 1}", wrong, "output_size=, the size before pooling"
        )


class MaxUnpool1d(_MaxUnpool, torch.nn.MaxUnpool1d):
    """``torch.nn.MaxUnpool1d``: (N, C, L) to (N, C, L')."""

    _rank = 1


class MaxUnpool2d(_MaxUnpool, torch.nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d``: (N, C, H, W) to (N, C, H', W').

    Args:
        kernel_size, stride, padding: of the pooling to undo; an int or one per axis. ``stride`` is ``kernel_size``
            by default.

    >>> x = torch.tensor([[[[1.0, 2, 3], [4, 8, 6], [7, 5, 9]]]])
    >>> y, switches = torch.nn.MaxPool2d(2, return_indices=True)(x)
    >>> MaxUnpool2d(2)(y, switches, output_size=(3, 3))[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
    """

    _rank = 2


class MaxUnpool3d(_MaxUnpool, torch.nn.MaxUnpool3d):
    """``torch.nn.MaxUnpool3d``: (N, C, D, H, W) to (N, C, D', H', W')."""

    _rank = 3
