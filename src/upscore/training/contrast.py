"""Photographs as deconvolutional networks see them: grey, of even contrast everywhere, cut to one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from upscore.errors import ArgumentError, FileFormatError

__all__ = ["crops", "grey", "normalized"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def grey(path: Path, scale: float = 1.0) -> Tensor:
    """A photograph in shades of grey, ``(H, W)`` in [0, 1]; ``scale`` < 1 makes it smaller. Raises FileFormatError."""
    try:
        with Image.open(path) as image:
            plane = image.convert("L")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise FileFormatError(f"{path}: not a picture that can be read ({error})") from error
    if scale != 1:
        size = [max(1, round(n * scale)) for n in plane.size]
        plane = plane.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(plane, dtype=np.float32) / 255)


def normalized(plane: Tensor, sigma: float = 3.0) -> Tensor:
    """Local contrast normalisation of ``(H, W)``: less the local mean, divided by the local deviation.

    Local means Gaussian weights of deviation ``sigma`` pixels. The divisor is not less than its own mean over the
    picture, so that smooth skies stay smooth, nor than one of 255 shades (Jarrett et al. 2009, "What is the best
    multi-stage architecture for object recognition?", section 2).
    """
    centred = plane - _blurred(plane, sigma)
    deviation = _blurred(centred.square(), sigma).sqrt()
    floor = deviation.mean().clamp_min(1 / 255)
    return centred / deviation.maximum(floor)


def _blurred(plane: Tensor, sigma: float) -> Tensor:
    """Gaussian weights, of what there is of the plane at its borders."""
    reach = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=plane.dtype) / sigma) ** 2)

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(
            F.conv2d(x, taps.reshape(1, 1, -1, 1), padding=(reach, 0)), taps.reshape(1, 1, 1, -1), padding=(0, reach)
        )

    return (smooth(plane[None, None]) / smooth(torch.ones_like(plane)[None, None]))[0, 0]


def crops(folder: Path, *, count: int, side: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, list[str]]:
    """``count`` squares ``(count, 1, side, side)`` of photographs in ``folder``, and the names of the files.

    Photographs are taken in an order that ``seed`` decides, each once before any is taken again, normalised whole,
    and cut at random. Those smaller than a square are left out. Raises ArgumentError where all are, and
    FileFormatError for a file that is named as a picture and cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ArgumentError("photos", "a folder of photographs", f"{folder} with none", "--photos photos")
    generator = torch.Generator().manual_seed(seed)
    order = [paths[i] for i in torch.randperm(len(paths), generator=generator).tolist()]
    planes: dict[Path, Tensor] = {}
    squares: list[Tensor] = []
    names: list[str] = []
    largest = 0
    while len(squares) < count:
        for path in order:
            if path not in planes:
                planes[path] = normalized(grey(path, scale))
            plane = planes[path]
            largest = max(largest, min(plane.shape))
            if min(plane.shape) < side:
                continue
            y, x = (int(torch.randint(n - side + 1, (), generator=generator)) for n in plane.shape)
            squares.append(plane[y : y + side, x : x + side])
            names.append(path.name)
            if len(squares) == count:
                break
        if not squares:
            expected = f"photographs of {side} x {side} pixels or more after scaling by {scale:g}"
            raise ArgumentError("photos", expected, f"{folder} with none larger than {largest}", f"--crop {largest}")
    return torch.stack(squares)[:, None].contiguous(), names
