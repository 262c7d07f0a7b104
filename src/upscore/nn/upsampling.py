"""A nearest-neighbour upsampling and the convolution after it, as one transposed convolution.

Along one axis, with factor f, kernel k, dilation d and zero padding (before, after) of the upsampled input, the
convolution's output is the transposed convolution of the input itself, borders included::

    kernel    (1 ... 1) * (the convolution's kernel, flipped and dilated),  f + d(k - 1) taps
    stride    f
    crop      d(k - 1) - before,  d(k - 1) - after

For f = 2 and k = 3 an output position uses 2 taps instead of 3, per axis: 4 of 9 in 2-D.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from upscore import filters
from upscore.engine import Array
from upscore.geometry import Geometry
from upscore.nn import native
from upscore.nn.packing import can_keep

__all__ = ["Fused", "saves_taps", "upsampled_conv"]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Fused:
    """The arguments of an upsampling by ``factor`` and a convolution of stride 1; one entry per axis."""

    factor: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, w: Array) -> Array:
        """The weights (C_in, C_out/groups, *K), for those of the convolution, (C_out, C_in/groups, *k)."""
        c_out, share, *kernel = w.shape
        grouped = w.reshape(self.groups, c_out // self.groups, share, *kernel).swapaxes(1, 2)
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        flipped = np.zeros((self.groups * share, c_out // self.groups, *spans))
        every, flip = slice(None), [slice(None, None, -d) for d in self.dilation]
        flipped[(every, every, *flip)] = grouped.reshape(*flipped.shape[:2], *kernel)
        # Repeating after the convolution has the same kernel as before it, and is cheap: one channel at a time.
        repeat = filters.channelwise(filters.nearest(self.factor), flipped.shape[1])
        return filters.compose_weights(flipped, repeat, groups=flipped.shape[1]).astype(w.dtype)

    def geometry(self, kernel: Sequence[int]) -> Geometry:
        """The normal form for a convolution of this kernel size."""
        reach = [d * (k - 1) for k, d in zip(kernel, self.dilation, strict=True)]
        crop = [(r - lo, r - hi) for r, lo, hi in zip(reach, self.before, self.after, strict=True)]
        return Geometry([f + r for f, r in zip(self.factor, reach, strict=True)], self.factor, 1, crop)


def saves_taps(factor: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether an output position uses fewer taps than with the convolution."""
    taps = [-(-(f + d * (k - 1)) // f) for f, k, d in zip(factor, kernel, dilation, strict=True)]
    return math.prod(taps) < math.prod(kernel)


def upsampled_conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    factor: tuple[int, ...],
    before: tuple[int, ...],
    after: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """``conv(interpolate(x, scale_factor=factor), w, bias)``, without the upsampled tensor where that is possible.

    Args:
        x: (N, C_in, *n).
        w: the convolution's weights (C_out, C_in/groups, *k).
        bias: (C_out,) or None.
        factor: of the upsampling, per axis.
        before, after: zero padding of the upsampled tensor, per axis.
        dilation, groups: of the convolution, whose stride is 1.

    >>> import torch
    >>> x, w = torch.rand(1, 2, 3, 4), torch.rand(5, 2, 3, 3)
    >>> y = upsampled_conv(x, w, None, (2, 3), (1, 1), (1, 1), (1, 1), 1)
    >>> y.allclose(F.conv2d(F.interpolate(x, scale_factor=(2, 3)), w, padding=1))
    True
    """
    fused = Fused(factor, before, after, dilation, groups)
    if not native.records(x, w, bias) and native.is_plain(x, w, bias) and x.dim() == w.dim() and can_keep(w):
        geometry, size = _settled(fused, tuple(w.shape[2:]), tuple(x.shape[2:]))
        return native.conv_transpose(x, w, bias, geometry, size, fused.groups, keep=True, form=fused)
    y = F.interpolate(x, scale_factor=factor)
    if before == after:
        padding = before
    else:
        padding = (0,) * len(factor)
        y = F.pad(y, [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair])
    return _CONV[len(factor)](y, w, bias, 1, padding, dilation, groups)


@functools.lru_cache(maxsize=256)
def _settled(fused: Fused, kernel: tuple[int, ...], n: tuple[int, ...]) -> tuple[Geometry, tuple[int, ...]]:
    geometry = fused.geometry(kernel)
    return geometry, geometry.output_size(n)
