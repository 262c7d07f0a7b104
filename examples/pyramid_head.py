"""A detection head over a feature pyramid: one small network slides over P3 to P7, its outputs become one list.

    python examples/pyramid_head.py             a picture of 375 x 500
    python examples/pyramid_head.py 600 801     any other height and width

Head and anchors of RetinaNet (Lin, Goyal, Girshick, He and Dollár 2017, "Focal loss for dense object detection",
section 4), top-down path of Lin et al. 2017, "Feature pyramid networks for object detection"; but it upsamples with
transposed convolutions, which start bilinear, where that paper repeats pixels. The backbone is a stand-in of one
convolution a level and nothing is trained: this is about sizes and places. No crop and no anchor position is written
down; all follow from the layers' coordinate maps, in which the centre of a picture's first pixel is 0.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from upscore.explain import explain
from upscore.geometry import CoordinateMap, Geometry
from upscore.networks.cropping import coordinate_map, crop_to, offset_of
from upscore.nn import ConvTranspose2d
from upscore.nn.init import bilinear_

LEVELS = range(3, 8)
SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))  # times four strides: areas of 32^2 to 512^2 and two between each
RATIOS = (1 / 2, 1, 2)  # height to width
ANCHORS = len(SCALES) * len(RATIOS)


class Pyramid(nn.Module):
    """Pictures ``(N, 3, H, W)`` of at least 32 x 32 to ``{level: (N, channels, H_level, W_level)}``, levels 3 to 7."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        widths = [3, 8, 16, 32, 48, 64]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.lateral = nn.ModuleDict({str(level): nn.Conv2d(widths[level], channels, 1) for level in (3, 4, 5)})
        # Unpadded, so that there is enough to crop whatever the rounding on the way down has left.
        self.up = nn.ModuleDict({str(level): ConvTranspose2d(channels, channels, 4, stride=2) for level in (3, 4)})
        self.smooth = nn.ModuleDict({str(level): nn.Conv2d(channels, channels, 3, padding=1) for level in (3, 4, 5)})
        self.p6 = nn.Conv2d(widths[5], channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for layer in self.up.values():
            bilinear_(layer.weight)
        self.maps, self.crops = self._maps()

    def _maps(self) -> tuple[dict[int, CoordinateMap], dict[int, tuple[int, int]]]:
        """Where every level's cells lie in the picture, and where the coarser map upsampled has to be cropped."""
        maps = {level: coordinate_map(list(self.down)[:level]) for level in (3, 4, 5)}
        crops = {}
        for level in (4, 3):
            upsampled = maps[level + 1].then(coordinate_map([self.up[str(level)]]))
            crops[level] = offset_of(upsampled, maps[level])
        maps[6] = maps[5].then(coordinate_map([self.p6]))
        maps[7] = maps[6].then(coordinate_map([self.p7]))
        return maps, crops

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        stages = [x]
        for layer in self.down:
            stages.append(torch.relu(layer(stages[-1])))
        merged = {5: self.lateral["5"](stages[5])}
        for level in (4, 3):
            fine = self.lateral[str(level)](stages[level])
            coarse = self.up[str(level)](merged[level + 1])
            merged[level] = fine + crop_to(coarse, (fine.shape[2], fine.shape[3]), self.crops[level])
        pyramid = {level: self.smooth[str(level)](merged[level]) for level in (3, 4, 5)}
        pyramid[6] = self.p6(stages[5])
        pyramid[7] = self.p7(torch.relu(pyramid[6]))
        return pyramid


class Head(nn.Module):
    """The same four convolutions on every level, and one that gives ``outputs`` numbers to each anchor of each cell."""

    def __init__(self, channels: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, ANCHORS * outputs, 3, padding=1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.constant_(self.last.bias, bias)

    def forward(self, pyramid: dict[int, Tensor]) -> Tensor:
        """``(N, A, outputs)``, A being all anchors of all levels."""
        return torch.cat([as_rows(self.last(self.body(pyramid[level])), self.outputs) for level in LEVELS], dim=1)


def as_rows(maps: Tensor, outputs: int) -> Tensor:
    """``(N, anchors * outputs, H, W)`` as ``(N, H * W * anchors, outputs)``: row by row, cell by cell."""
    n, _, h, w = maps.shape
    return maps.view(n, -1, outputs, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, outputs)


def anchors(at: CoordinateMap, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """``(H * W * anchors, 4)``: centre y, centre x, height, width, in the order of :func:`as_rows`."""
    ys, xs = (
        [float(scale * i + offset) for i in range(count)]
        for scale, offset, count in zip(at.scale, at.offset, size, strict=True)
    )
    side = 4 * float(at.scale[0])
    shapes = [(side * s * math.sqrt(r), side * s / math.sqrt(r)) for s in SCALES for r in RATIOS]
    return np.array([(y, x, *shape) for y in ys for x in xs for shape in shapes])


def steps(pyramid: Pyramid, sizes: dict[int, tuple[int, int]]) -> list[tuple[str, str, list[str]]]:
    """How each level comes by its size: what is done, the command that explains it, and what that says."""
    found = []
    for level in (4, 3):
        layer, coarse = pyramid.up[str(level)], sizes[level + 1]
        said = [size.filled_in for size in explain(Geometry(layer.kernel_size, layer.stride), coarse).sizes]
        said.append(f"cropped to {_times(sizes[level])} from ({_comma(pyramid.crops[level])}) on, to lie on C{level}")
        command = f"upscore explain --input {_comma(coarse)} --kernel 4 --stride 2"
        found.append((f"P{level + 1} upsampled to P{level}", command, said))
    for level, below in ((6, "C5"), (7, "P6")):
        size = sizes[level - 1]
        reached = Geometry((3, 3), 2, crop=1).adjoint_size(size)
        command = f"upscore size --adjoint --input {_comma(size)} --kernel 3 --stride 2 --padding 1"
        found.append((f"{below} convolved to P{level}", command, [f"{_times(size)} -> {_times(reached)}"]))
    return found


def _comma(numbers: tuple[int, int]) -> str:
    return ",".join(map(str, numbers))


def _times(numbers: tuple[int, int]) -> str:
    return " x ".join(map(str, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("height", type=int, nargs="?", default=375, help="of the picture, at least 32")
    parser.add_argument("width", type=int, nargs="?", default=500, help="of the picture, at least 32")
    parser.add_argument("--classes", type=int, default=20)
    options = parser.parse_args()
    if min(options.height, options.width) < 32:
        parser.error(f"expected a picture of at least 32 x 32, got {options.height} x {options.width}")

    torch.manual_seed(0)
    pyramid = Pyramid()
    # The bias makes every anchor background with probability 0.99 at first, as the paper starts.
    classes, boxes = Head(32, options.classes, bias=-math.log(99)), Head(32, 4)
    with torch.inference_mode():
        levels = pyramid(torch.rand(1, 3, options.height, options.width))
        scores, deltas = classes(levels).sigmoid(), boxes(levels)
    sizes = {level: (x.shape[2], x.shape[3]) for level, x in levels.items()}
    places = {level: anchors(pyramid.maps[level], sizes[level]) for level in LEVELS}

    console = Console(highlight=False)
    console.print(f"A picture of {options.height} x {options.width}\n")
    for title, command, said in steps(pyramid, sizes):
        console.print(f"[bold]{title}[/]  $ {command}", soft_wrap=True)
        for line in said:
            console.print(f"    {line}", soft_wrap=True)
    table = Table("level", "cells", "anchors", "rows", "first centre", "next", "tile centre")
    first = 0
    for level in LEVELS:
        count, at = len(places[level]), pyramid.maps[level]
        stride = int(at.scale[0])
        table.add_row(
            f"P{level}", _times(sizes[level]), f"{count}", f"{first} to {first + count - 1}",
            f"{float(at.offset[0])}", f"+{stride}", f"{(stride - 1) / 2}",
        )  # fmt: skip
        first += count
    console.print("", table, sep="\n")
    console.print(
        "A cell lies where its layers look: in P6 and P7 not in the middle of the tile it seems to stand for."
    )
    console.print(f"classes {tuple(scores.shape)}, boxes {tuple(deltas.shape)}, anchors ({first}, 4)")
    console.print(f"each starts with a probability of {scores.mean():.3f} of every class")


if __name__ == "__main__":
    main()
