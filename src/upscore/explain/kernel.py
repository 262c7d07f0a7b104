"""Why a kernel has the size it has: what it reaches of each stride, and the bilinear kernel of the stride."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upscore.geometry import Geometry, bilinear_kernel

__all__ = ["KernelChoice", "kernel_choice", "touched"]


@dataclass(frozen=True)
class KernelChoice:
    """One axis."""

    kernel: int
    stride: int
    dilation: int
    touched: int
    """Of every ``stride`` outputs, how many a tap reaches."""
    least: int | None
    """The smallest kernel without holes; None where stride and dilation share a factor, and every kernel has some."""
    smaller: int | None
    """A kernel too small for the stride, for comparison: 3 where that is; None for stride 1."""
    smaller_touches: int | None
    bilinear: int
    """The kernel that upsamples bilinearly by the stride, and its padding."""
    bilinear_padding: int
    is_bilinear: bool
    """The layer has both (whether it upsamples bilinearly is then up to its weights)."""


def touched(kernel: int, stride: int, dilation: int = 1) -> int:
    """Of every ``stride`` outputs, how many a tap reaches.

    >>> touched(3, 32), touched(64, 32), touched(64, 32, dilation=2)
    (3, 32, 16)
    """
    return min(kernel, stride // math.gcd(stride, dilation))


def kernel_choice(geometry: Geometry) -> tuple[KernelChoice, ...]:
    """The choice of every axis."""
    found = []
    for k, s, d, crop in zip(geometry.kernel, geometry.stride, geometry.dilation, geometry.crop, strict=True):
        size, padding = bilinear_kernel(s)
        smaller = min(3, s - 1) or None
        found.append(
            KernelChoice(
                kernel=k,
                stride=s,
                dilation=d,
                touched=touched(k, s, d),
                least=s if math.gcd(s, d) == 1 else None,
                smaller=smaller,
                smaller_touches=touched(smaller, s, d) if smaller else None,
                bilinear=size,
                bilinear_padding=padding,
                is_bilinear=(k, d, crop) == (size, 1, (padding, padding)),
            )
        )
    return tuple(found)
