"""Where blobs lie over the input, and the offsets at which crops align them.

The Caffe of the first FCN models had a Crop layer without parameters, which found its offset itself; those models'
files (``layers { type: CROP }``) still ask for that. Source: Long, Shelhamer, Darrell 2015, and their branch of Caffe.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from upscore.caffe.modules.base import CaffeModule, LayerError
from upscore.caffe.modules.convolution import Convolution, Deconvolution
from upscore.caffe.modules.pooling import Pooling
from upscore.errors import ArgumentError
from upscore.geometry import CoordinateMap, Geometry

__all__ = ["Alignment"]


class Alignment:
    """The coordinate map from each blob of a growing net down to its input, over two spatial axes."""

    def __init__(self) -> None:
        self._maps: dict[str, CoordinateMap] = {}

    def add(self, module: CaffeModule) -> None:
        """Note where a layer's tops lie."""
        param = module.param
        below = [self._maps[name] for name in param.bottom if name in self._maps]
        if not param.bottom:
            found = CoordinateMap.identity(2)
        elif not below:
            return
        else:
            found = below[0].then(_map(module))
        self._maps.update((name, found) for name in param.top)

    def settle(self, module: CaffeModule) -> list[str]:
        """Write the offsets of a Crop that asks for alignment; remark on one that looks as if it should.

        Raises:
            LayerError: when nothing aligns it.
        """
        param = module.param
        if param.crop_param.align:
            param.crop_param.offset.extend(self.offsets(module))
            param.crop_param.align = False
        elif not param.HasField("crop_param") and len(param.bottom) == 2:
            try:
                offsets = self.offsets(module)
            except LayerError:
                return []
            if any(offsets):
                return [
                    f"layer {param.name!r} (Crop) begins at the corner, as in BVLC Caffe, but its bottoms align at "
                    f"{', '.join(map(str, offsets))}; models of the first FCN branch mean that: "
                    "give crop_param { align: true }"
                ]
        return []

    def offsets(self, module: CaffeModule) -> list[int]:
        """Where the second bottom of a Crop begins in its first.

        Raises:
            LayerError: when nothing aligns the two: different strides, or an origin outside the first.
        """
        try:
            big, reference = (self._maps[name] for name in module.param.bottom)
            found = big.crop_offset(reference)
        except (KeyError, ArgumentError) as error:
            raise module.error(f"no offset aligns its bottoms ({error}); give crop_param {{ offset }}") from None
        offsets = [math.floor(o + Fraction(1, 2)) for o in found]
        if min(offsets) < 0:
            raise module.error(f"its bottoms align at {tuple(map(str, found))}, which no crop reaches")
        return offsets


def _map(module: CaffeModule) -> CoordinateMap:
    """The map from a layer's top to its bottom; the identity for layers that stay where they are."""
    geometry: Geometry | None = None
    if isinstance(module, Convolution) and module.rank == 2:
        geometry = module.geometry
    elif isinstance(module, Pooling) and not module.param.pooling_param.global_pooling:
        geometry = Geometry(module.kernel, module.stride, 1, module.pad, rank=2)
    if geometry is not None:
        found = geometry.coordinate_map()
        return found if isinstance(module, Deconvolution) else found.inverse()
    if module.param.type == "Crop":
        return CoordinateMap((Fraction(1),) * 2, _cut(module.param.crop_param))
    return CoordinateMap.identity(2)


def _cut(param: Any) -> tuple[Fraction, ...]:
    given = [int(o) for o in param.offset] or [0]
    return tuple(Fraction(o) for o in (given * 2 if len(given) == 1 else given)[-2:])
