"""The task behind ``upscore train upscale-x2``: photographs, their bicubic halves, and PSNR on Y."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks import bicubic
from upscore.networks.colour import psnr, rgb_to_ycbcr
from upscore.networks.super_resolution import SuperResolution

__all__ = ["CROP", "HELD_OUT", "Upscaling", "choose_held_out", "luma", "shrink"]

HELD_OUT = Path(__file__).with_name("heldout_x2.txt")
CROP = 2
"""Border pixels left out of PSNR, as the papers do."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def choose_held_out(names: Sequence[str]) -> frozenset[str]:
    """Which photographs of a folder training never sees: those of the list ``HELD_OUT``, or else every twentieth.

    >>> sorted(choose_held_out([f"{i:02}.png" for i in range(40)]))
    ['10.png', '30.png']
    """
    listed = frozenset(HELD_OUT.read_text().split()) & frozenset(names)
    return listed or frozenset(sorted(names)[min(10, len(names) - 1) :: 20])


def luma(path: Path, scale: float = 1.0) -> NDArray[Any]:
    """Y of a photograph in [0, 1], ``(H, W)``, cut to even sizes; ``scale`` < 1 makes it smaller first."""
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    except OSError as error:
        raise FileFormatError(f"{path}: not a picture that can be read ({error})") from error
    y = rgb_to_ycbcr(rgb)[0]
    if scale != 1:
        y = bicubic.resize(y, round(y.shape[0] * scale), round(y.shape[1] * scale)).clip(16 / 255, 235 / 255)
    return np.ascontiguousarray(y[: y.shape[0] // 2 * 2, : y.shape[1] // 2 * 2])


def shrink(y: NDArray[Any]) -> NDArray[Any]:
    """Half the size, bicubic and antialiased, rounded to 8 bits as a stored picture is."""
    small = bicubic.resize(y, y.shape[0] // 2, y.shape[1] // 2)
    return (np.round(small.clip(0, 1) * 255) / 255).astype(np.float32)


class Upscaling:
    """Patches of photographs for a network that doubles the size; scored by mean PSNR over the held-out ones.

    ``folder`` holds the photographs; those named in ``held_out`` (by default, what ``choose_held_out`` names) are
    for scoring only. A patch has ``patch`` low resolution pixels a side, is turned and mirrored at random, and has
    its true surroundings as halo. Each photograph is learned from at each of the ``scales``.
    """

    def __init__(
        self,
        folder: Path,
        network: SuperResolution | None = None,
        *,
        held_out: Iterable[str] | None = None,
        batch_size: int = 16,
        patch: int = 48,
        scales: tuple[float, ...] = (1.0, 0.75),
    ) -> None:
        self.network = network if network is not None else SuperResolution()
        self.batch_size, self.patch, self.scales = batch_size, patch, scales
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES)
        apart = choose_held_out([path.name for path in paths]) if held_out is None else frozenset(held_out)
        side = self.network.factor * (patch + 2 * self.network.halo)
        self.names = [path.name for path in paths if path.name not in apart]
        self.validation = [(shrink(y), y) for path in paths if path.name in apart for y in [luma(path)]]
        planes = [luma(path, scale) for path in paths if path.name not in apart for scale in scales]
        self.photographs = [(torch.from_numpy(shrink(y)), torch.from_numpy(y)) for y in planes if min(y.shape) >= side]
        if not (self.photographs and self.validation):
            expected = f"a folder of at least two photographs of {side} x {side} pixels or more"
            raise ArgumentError("data", expected, f"{folder} with {len(paths)} pictures", "--data photos")

    def describe(self) -> Mapping[str, Any]:
        """What must not change between the parts of one run."""
        return {
            "channels": self.network.channels,
            "depth": self.network.depth,
            "photographs": len(self.names),
            "held out": len(self.validation),
            "batch_size": self.batch_size,
            "patch": self.patch,
            "scales": list(self.scales),
        }

    def batch(self, generator: torch.Generator, done: float = 0.0) -> tuple[Tensor, Tensor]:
        """``(N, 1, P + 2 halo, P + 2 halo)`` small patches with surroundings and the ``(N, 1, 2P, 2P)`` truth."""
        factor, halo, patch = self.network.factor, self.network.halo, self.patch
        side = patch + 2 * halo
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for index in torch.randint(len(self.photographs), (self.batch_size,), generator=generator).tolist():
            small, large = self.photographs[index]
            top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in small.shape)
            flip, mirror, turn = torch.randint(2, (3,), generator=generator).tolist()
            y, x = factor * (top + halo), factor * (left + halo)
            for patches, part in (
                (inputs, small[top : top + side, left : left + side]),
                (targets, large[y : y + factor * patch, x : x + factor * patch]),
            ):
                axes = [axis for axis, wanted in ((0, flip), (1, mirror)) if wanted]
                part = part.flip(axes) if axes else part
                patches.append(part.T if turn else part)
        return torch.stack(inputs)[:, None], torch.stack(targets)[:, None]

    def loss(self, batch: tuple[Tensor, Tensor], done: float) -> Tensor:
        """Mean absolute error, and mean squared error (which is what PSNR measures) for the last third of the run."""
        inputs, targets = batch
        error = self.network.forward_valid(inputs) - targets
        return error.abs().mean() if done < 2 / 3 else 30 * error.square().mean()

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """Mean PSNR on Y over the held-out photographs, in dB, outputs rounded to 8 bits."""
        each = [psnr(upscaled(network, small), large, crop=CROP) for small, large in self.validation]
        return {"PSNR": float(np.mean(each))}

    def bicubic_score(self) -> float:
        """The same mean for bicubic interpolation: what the network must beat."""
        return self.score(BicubicUpscaling())["PSNR"]


class BicubicUpscaling(nn.Module):
    """Bicubic interpolation with a network's manners."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(bicubic.resize(x.numpy(), 2 * x.shape[-2], 2 * x.shape[-1]))


def upscaled(network: nn.Module, small: NDArray[Any]) -> NDArray[Any]:
    """``network`` applied to one luma plane ``(H, W)``, rounded to 8 bits."""
    large: NDArray[Any] = network(torch.from_numpy(small)[None, None])[0, 0].numpy()
    return (np.round(large.clip(0, 1) * 255) / 255).astype(np.float32)
