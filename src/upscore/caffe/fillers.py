"""How Caffe fills the blobs of a layer before training.

Source: BVLC Caffe, include/caffe/filler.hpp. Random numbers come from torch's generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upscore.errors import FileFormatError

__all__ = ["FILLERS", "fill"]


def fill(blob: Tensor, filler: Any) -> Tensor:
    """Fill ``blob`` in place as the ``FillerParameter`` says, and return it.

    Raises:
        FileFormatError: for an unknown type, or a shape that the filler cannot fill.
    """
    if filler.type not in FILLERS:
        raise FileFormatError(f"filler: {filler.type!r} is unknown; known are {', '.join(FILLERS)}")
    if blob.device.type != "meta":
        with torch.no_grad():
            FILLERS[filler.type](blob, filler)
    return blob


def _constant(blob: Tensor, filler: Any) -> None:
    if filler.value != 0:  # a new blob is zero already, and zero pages cost nothing
        blob.fill_(filler.value)


def _uniform(blob: Tensor, filler: Any) -> None:
    if not (filler.min <= filler.max and math.isfinite(filler.max - filler.min)):
        raise FileFormatError(f"uniform filler: expected min <= max, got min {filler.min} and max {filler.max}")
    blob.uniform_(filler.min, filler.max)


def _gaussian(blob: Tensor, filler: Any) -> None:
    if not 0 <= filler.std < math.inf:
        raise FileFormatError(f"gaussian filler: expected std >= 0, got {filler.std}")
    blob.normal_(filler.mean, filler.std)
    if filler.sparse >= 0:
        keep = min(1.0, filler.sparse / max(1, blob.shape[0] if blob.ndim else 1))
        blob.mul_(torch.bernoulli(torch.full_like(blob, keep)))


def _positive_unitball(blob: Tensor, filler: Any) -> None:
    blob.uniform_(0, 1)
    rows = blob.view(blob.shape[0] if blob.ndim else 1, -1)
    rows.div_(rows.sum(1, keepdim=True))


def _fans(blob: Tensor, filler: Any) -> float:
    """The fan that ``variance_norm`` asks for: elements per slice of axis 0 (in), of axis 1 (out), or their mean."""
    fan_in = blob.numel() / (blob.shape[0] if blob.ndim > 0 else 1)
    fan_out = blob.numel() / (blob.shape[1] if blob.ndim > 1 else 1)
    return (fan_in, fan_out, (fan_in + fan_out) / 2)[filler.variance_norm]


def _xavier(blob: Tensor, filler: Any) -> None:
    bound = math.sqrt(3 / _fans(blob, filler))
    blob.uniform_(-bound, bound)


def _msra(blob: Tensor, filler: Any) -> None:
    blob.normal_(0, math.sqrt(2 / _fans(blob, filler)))


def _bilinear(blob: Tensor, filler: Any) -> None:
    if blob.ndim != 4 or blob.shape[2] != blob.shape[3]:
        raise FileFormatError(
            f"bilinear filler: expected a square two-dimensional kernel (C, C, k, k), got {tuple(blob.shape)}; "
            "fill by hand what is not square"
        )
    half = -(-blob.shape[3] // 2)
    centre = (blob.shape[3] - 1) / (2.0 * half)
    tent = 1 - (torch.arange(blob.shape[3], dtype=blob.dtype) / half - centre).abs()
    blob.copy_(torch.outer(tent, tent).expand(blob.shape))


FILLERS: dict[str, Callable[[Tensor, Any], None]] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
