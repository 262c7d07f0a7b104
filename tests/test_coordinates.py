"""The coordinate map, and the offsets at which the FCNs crop."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upscore.coordinates import CoordinateMap
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, bilinear_kernel


def test_the_centre_of_the_stamp_lies_over_its_input() -> None:
    g = Geometry((5, 4), stride=(3, 2), dilation=(1, 2), crop=((1, 0), (-2, 3)))
    centres = [Fraction(d * (k - 1), 2) - lo for k, d, (lo, _) in zip(g.kernel, g.dilation, g.crop, strict=True)]
    assert g.coordinate_map()(centres) == (0, 0)
    assert g.coordinate_map()([c + s for c, s in zip(centres, g.stride, strict=True)]) == (1, 1)
    assert g.coordinate_map().inverse()((0, 0)) == tuple(centres)


@given(st.integers(1, 9))
def test_bilinear_upsampling_maps_pixel_areas(factor: int) -> None:
    """Output pixel y covers [y, y + 1] / f of the input, so its centre is (y + 1/2)/f - 1/2: half-pixel centres."""
    kernel, padding = bilinear_kernel(factor)
    mapped = Geometry(kernel, factor, crop=padding).coordinate_map()
    assert all(mapped((y,))[0] == Fraction(2 * y + 1, 2 * factor) - Fraction(1, 2) for y in range(2 * factor))


def path(*layers: tuple[str, int, int, int]) -> CoordinateMap:
    """The map from the end of ``layers`` (kind, kernel, stride, pad), each fed by the one before, to the data."""
    mapped = CoordinateMap.identity(2)
    for kind, kernel, stride, pad in layers:
        step = Geometry((kernel, kernel), stride, crop=pad).coordinate_map()
        mapped = mapped.then(step if kind == "upscore" else step.inverse())
    return mapped


FIRST = [("conv", 3, 1, 100), ("conv", 3, 1, 1), ("pool", 2, 2, 0)]
BLOCK = [("conv", 3, 1, 1), ("conv", 3, 1, 1), ("pool", 2, 2, 0)]
POOL3 = FIRST + 2 * BLOCK
POOL4 = POOL3 + BLOCK
FC7 = [*POOL4, *BLOCK, ("conv", 7, 1, 0), ("conv", 1, 1, 0)]
SCORE = ("conv", 1, 1, 0)


def test_the_crop_offset_of_fcn_32s_is_19() -> None:
    upscore = path(*FC7, SCORE, ("upscore", 64, 32, 0))
    assert upscore.scale == (1, 1)
    assert upscore.crop_offset(CoordinateMap.identity(2)) == (19, 19)


def test_the_crop_offsets_of_fcn_16s_are_5_and_27() -> None:
    upscore2 = path(*FC7, SCORE, ("upscore", 4, 2, 0))
    assert path(*POOL4, SCORE).crop_offset(upscore2) == (5, 5)
    upscore16 = upscore2.then(path(("upscore", 32, 16, 0)))  # the sum of the two is aligned with upscore2
    assert upscore16.crop_offset(CoordinateMap.identity(2)) == (27, 27)


def test_the_crop_offsets_of_fcn_8s_are_5_9_and_31() -> None:
    upscore2 = path(*FC7, SCORE, ("upscore", 4, 2, 0))
    assert path(*POOL4, SCORE).crop_offset(upscore2) == (5, 5)
    upscore_pool4 = upscore2.then(path(("upscore", 4, 2, 0)))
    assert path(*POOL3, SCORE).crop_offset(upscore_pool4) == (9, 9)
    upscore8 = upscore_pool4.then(path(("upscore", 16, 8, 0)))
    assert upscore8.crop_offset(CoordinateMap.identity(2)) == (31, 31)


def test_paths_of_different_scale_cannot_be_cropped() -> None:
    with pytest.raises(ArgumentError) as error:
        path(*POOL4).crop_offset(path(*POOL3))
    assert str(error.value) == (
        "reference: expected a path with the same scale (16, 16), got (8, 8); "
        "for example a path whose strides multiply to the same number"
    )
