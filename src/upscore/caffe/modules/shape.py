"""Layers that move elements without changing them."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = [
    "Concat",
    "Crop",
    "CropCenter",
    "Flatten",
    "Interp",
    "Permute",
    "Reshape",
    "Silence",
    "Slice",
    "Split",
    "Tile",
]


class Concat(CaffeModule):
    """Bottoms one after the other along an axis."""

    bottoms: ClassVar = (1, None)

    def along(self, rank: int) -> int:
        p = self.param.concat_param
        if p.HasField("concat_dim") and p.HasField("axis"):
            raise self.error("expected axis or the older concat_dim, got both")
        return self.axis(p.concat_dim if p.HasField("concat_dim") else p.axis, rank)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        axis, first = self.along(len(shapes[0])), shapes[0]
        for shape in shapes:
            if len(shape) != len(first) or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
                raise self.error(f"expected bottoms that differ along axis {axis} only, got {first} and {shape}")
        return ((*first[:axis], sum(s[axis] for s in shapes), *first[axis + 1 :]),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat(bottoms, self.along(bottoms[0].ndim)),)


class Slice(CaffeModule):
    """The bottom cut along an axis, at ``slice_point``s or into equal parts."""

    tops: ClassVar = (1, None)

    def along(self, rank: int) -> int:
        p = self.param.slice_param
        if p.HasField("slice_dim") and p.HasField("axis"):
            raise self.error("expected axis or the older slice_dim, got both")
        return self.axis(p.slice_dim if p.HasField("slice_dim") else p.axis, rank)

    def parts(self, size: int) -> list[int]:
        points, count = list(self.param.slice_param.slice_point), len(self.param.top)
        if not points:
            if size % count:
                raise self.error(f"expected a size that {count} tops divide, got {size}; give slice_point")
            return [size // count] * count
        edges = [0, *points, size]
        if len(points) != count - 1 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise self.error(f"slice_point: expected {count - 1} rising numbers within {size}, got {points}")
        return [b - a for a, b in itertools.pairwise(edges)]

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        axis = self.along(len(shapes[0]))
        return tuple((*shapes[0][:axis], n, *shapes[0][axis + 1 :]) for n in self.parts(shapes[0][axis]))

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        axis = self.along(bottoms[0].ndim)
        return torch.split(bottoms[0], self.parts(bottoms[0].shape[axis]), axis)


class Split(CaffeModule):
    """The same blob under several names."""

    tops: ClassVar = (1, None)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],) * len(self.param.top)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0],) * len(self.param.top)


class Silence(CaffeModule):
    """Takes blobs and says nothing."""

    bottoms: ClassVar = (1, None)
    tops: ClassVar = (0, 0)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return ()

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


class Crop(CaffeModule):
    """From ``axis`` on, the window of bottom 0 with the size of bottom 1, beginning at ``offset``."""

    bottoms: ClassVar = (2, 2)

    def starts(self, shape: Shape, reference: Shape) -> list[tuple[int, int]]:
        """``(start, length)`` along every axis."""
        p = self.param.crop_param
        first = self.axis(p.axis, len(shape))
        count = len(shape) - first
        offsets = list(p.offset) if len(p.offset) > 1 else [p.offset[0] if p.offset else 0] * count
        if len(reference) != len(shape) or len(offsets) != count:
            raise self.error(
                f"expected bottoms of the same number of axes and 1 or {count} offsets, "
                f"got {shape}, {reference} and {len(offsets)} offsets"
            )
        cuts = [(0, n) for n in shape[:first]]
        for axis, (offset, length) in enumerate(zip(offsets, reference[first:], strict=True), first):
            if offset + length > shape[axis]:
                raise self.error(
                    f"axis {axis}: expected offset {offset} and the reference's size {length} to fit into "
                    f"{shape[axis]}, got {offset + length}"
                )
            cuts.append((offset, length))
        return cuts

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (tuple(n for _, n in self.starts(*shapes)),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        cuts = self.starts(tuple(bottoms[0].shape), tuple(bottoms[1].shape))
        return (bottoms[0][tuple(slice(start, start + length) for start, length in cuts)],)


class CropCenter(CaffeModule):
    """waifu2x: ``crop_size`` per axis, cut from both its ends."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        cuts = list(self.param.crop_center_param.crop_size)
        if len(cuts) != len(shapes[0]) or any(2 * c >= n for c, n in zip(cuts, shapes[0], strict=True)):
            raise self.error(
                f"crop_size: expected {len(shapes[0])} numbers that leave something of {shapes[0]}, got {cuts}; "
                "for example crop_size: 0 crop_size: 0 crop_size: 4 crop_size: 4"
            )
        return (tuple(n - 2 * c for n, c in zip(shapes[0], cuts, strict=True)),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        cuts = self.param.crop_center_param.crop_size
        return (bottoms[0][tuple(slice(c, n - c) for n, c in zip(bottoms[0].shape, cuts, strict=True))],)


class Flatten(CaffeModule):
    """The axes from ``axis`` to ``end_axis`` as one."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p, rank = self.param.flatten_param, len(shapes[0])
        first, last = self.axis(p.axis, rank), self.axis(p.end_axis, rank)
        if first > last:
            raise self.error(f"expected axis <= end_axis, got {first} and {last}")
        return ((*shapes[0][:first], math.prod(shapes[0][first : last + 1]), *shapes[0][last + 1 :]),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].reshape(self.reshape(tuple(bottoms[0].shape))[0]),)


class Reshape(CaffeModule):
    """A new shape for the axes ``axis`` to ``axis + num_axes``: 0 copies the bottom's, -1 takes what is left."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p, old = self.param.reshape_param, shapes[0]
        first = p.axis if p.axis >= 0 else len(old) + p.axis + 1
        last = len(old) if p.num_axes == -1 else first + p.num_axes
        if not 0 <= first <= last <= len(old):
            raise self.error(f"expected axis {p.axis} and num_axes {p.num_axes} within the bottom's {len(old)} axes")
        new = list(p.shape.dim)
        for i, n in enumerate(new):
            if n == 0:
                if first + i >= len(old):
                    raise self.error(f"dim: 0 copies the bottom's axis {first + i}, which {old} does not have")
                new[i] = old[first + i]
        whole, rest = math.prod(old), math.prod(old[:first]) * math.prod(old[last:])
        known = rest * math.prod(n for n in new if n != -1)
        if new.count(-1) > 1 or min(new, default=1) < -1:
            raise self.error(f"dim: expected at most one -1 and else 0 or more, got {list(p.shape.dim)}")
        if -1 in new and known and whole % known == 0:
            new[new.index(-1)] = whole // known
            known = whole
        if known != whole:
            raise self.error(f"expected a shape of {whole} elements like the bottom {old}, got {list(p.shape.dim)}")
        return ((*old[:first], *new, *old[last:]),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].reshape(self.reshape(tuple(bottoms[0].shape))[0]),)


class Permute(CaffeModule):
    """SSD: the axes in another order; those not named follow in theirs."""

    def order(self, rank: int) -> list[int]:
        order = list(self.param.permute_param.order)
        if len(set(order)) != len(order) or any(i >= rank for i in order):
            raise self.error(f"order: expected different axes of {rank}, got {order}; for example order: 0 order: 2")
        return order + [i for i in range(rank) if i not in order]

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (tuple(shapes[0][i] for i in self.order(len(shapes[0]))),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].permute(self.order(bottoms[0].ndim)),)


class Tile(CaffeModule):
    """The bottom repeated ``tiles`` times along an axis."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p = self.param.tile_param
        axis = self.axis(p.axis, len(shapes[0]))
        if p.tiles < 1:
            raise self.error(f"tiles: expected at least 1, got {p.tiles}; for example tiles: 2")
        return (tuple(n * p.tiles if i == axis else n for i, n in enumerate(shapes[0])),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.tile_param, bottoms[0]
        return (torch.cat([x] * p.tiles, self.axis(p.axis, x.ndim)),)


class Interp(CaffeModule):
    """DeepLab, PSPNet: bilinear with aligned corners, after cutting ``-pad_beg`` and ``-pad_end``."""

    bottoms: ClassVar = (1, 2)

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        p = self.param.interp_param
        if p.pad_beg > 0 or p.pad_end > 0 or len(shapes[0]) != 4:
            raise self.error(
                f"expected pads of 0 or less (which cut) and 4 axes, got {p.pad_beg}, {p.pad_end}, {shapes[0]}"
            )
        h, w = (n + p.pad_beg + p.pad_end for n in shapes[0][2:])
        shrinks, zooms = p.HasField("shrink_factor"), p.HasField("zoom_factor")
        if (shrinks and p.shrink_factor < 1) or (zooms and p.zoom_factor < 1):
            raise self.error("shrink_factor and zoom_factor: expected at least 1; for example zoom_factor: 8")
        if p.HasField("height") and p.HasField("width") and shrinks == zooms:
            size = (p.height, p.width)
        elif shrinks or zooms:
            size = tuple(((n - 1) // p.shrink_factor) * p.zoom_factor + 1 for n in (h, w))
        elif len(shapes) == 2 and len(shapes[1]) == 4:
            size = shapes[1][2:]
        else:
            raise self.error("expected height and width, zoom_factor, shrink_factor, or a second bottom for the size")
        if min(h, w, *size) < 1:
            raise self.error(f"expected sizes of at least 1, got {(h, w)} to {size}")
        return ((*shapes[0][:2], *size),)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p, x = self.param.interp_param, bottoms[0]
        size = self.reshape(*(tuple(b.shape) for b in bottoms))[0][2:]
        if p.pad_beg or p.pad_end:
            x = F.pad(x, [p.pad_beg, p.pad_end] * 2)
        return (F.interpolate(x, size, mode="bilinear", align_corners=True),)
