"""Luma and chroma as super-resolution papers mean them: ITU-R BT.601, studio swing, and PSNR on Y.

With R, G, B in [0, 1], Y lies in [16, 235]/255 and Cb, Cr in [16, 240]/255. The coefficients are those of
Recommendation ITU-R BT.601-7, section 2.5: luma 0.299, 0.587, 0.114, scaled by 219/255 and 224/255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.errors import ArgumentError

__all__ = ["psnr", "rgb_to_ycbcr", "ycbcr_to_rgb"]

_LUMA = np.array([0.299, 0.587, 0.114])
_FORWARD = np.stack(
    [
        219 / 255 * _LUMA,
        112 / 255 * (np.array([0, 0, 1]) - _LUMA) / (1 - _LUMA[2]),
        112 / 255 * (np.array([1, 0, 0]) - _LUMA) / (1 - _LUMA[0]),
    ]
)
_OFFSET = np.array([16, 128, 128]) / 255
_BACKWARD = np.linalg.inv(_FORWARD)


def rgb_to_ycbcr(rgb: NDArray[Any]) -> NDArray[Any]:
    """``(3, H, W)`` red, green, blue in [0, 1] to ``(3, H, W)`` Y, Cb, Cr; grey is Cb = Cr = 128/255.

    >>> (rgb_to_ycbcr(np.ones((3, 1, 1), np.float32)) * 255).round(3).ravel().tolist()
    [235.0, 128.0, 128.0]
    """
    ycbcr: NDArray[Any] = np.tensordot(_FORWARD.astype(rgb.dtype), rgb, 1)
    ycbcr += _OFFSET.astype(rgb.dtype)[:, None, None]
    return ycbcr


def ycbcr_to_rgb(ycbcr: NDArray[Any]) -> NDArray[Any]:
    """The inverse of ``rgb_to_ycbcr``; colours outside the RGB cube are left outside [0, 1]."""
    rgb: NDArray[Any] = np.tensordot(
        _BACKWARD.astype(ycbcr.dtype), ycbcr - _OFFSET.astype(ycbcr.dtype)[:, None, None], 1
    )
    return rgb


def psnr(a: NDArray[Any], b: NDArray[Any], *, crop: int = 0) -> float:
    """Peak signal-to-noise ratio in decibels of two pictures ``(..., H, W)`` in [0, 1], without ``crop`` border pixels.

    >>> round(psnr(np.zeros((4, 4), np.float32), np.full((4, 4), 0.1, np.float32), crop=1), 3)
    20.0
    """
    if a.shape != b.shape:
        raise ArgumentError("b", f"the shape of a, {a.shape}", b.shape, "two pictures of one size")
    inside = (..., slice(crop, a.shape[-2] - crop), slice(crop, a.shape[-1] - crop))
    error = np.mean((a[inside].astype(np.float64) - b[inside].astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))
