"""compare: which way, and by how much."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from dialects.oracles import expected, integers, many_layers

from upscore.dialects import Layer, compare
from upscore.errors import ArgumentError
from upscore.geometry import Geometry


@pytest.mark.parametrize("move", [(0, 0), (1, 0), (0, -1), (-2, 1), (3, 3)])
def test_the_shift_is_where_the_pixels_are(move: tuple[int, int]) -> None:
    """The outputs themselves, moved by what compare says, lie on each other."""
    weight, x = integers(0, 2, 3, 3, 4), integers(1, 1, 2, 5, 4)
    first = Layer.from_weight(Geometry((3, 4), (2, 3), 1, ((3, 0), (3, 1))), weight)
    crop = tuple((lo - by, hi + by) for (lo, hi), by in zip(first.geometry.crop, move, strict=True))
    second = first.with_crop(crop)
    found = compare(first, second)
    assert found.shift == move
    assert found.same_size
    assert found.kernels == "same"
    assert found.aligned == (move == (0, 0))
    a, b = expected(first, x), expected(second, x)
    there = tuple(slice(max(by, 0), n + min(by, 0)) for n, by in zip(a.shape[2:], move, strict=True))
    here = tuple(slice(max(-by, 0), n - max(by, 0)) for n, by in zip(a.shape[2:], move, strict=True))
    assert np.array_equal(b[(..., *there)], a[(..., *here)])


def test_drawn_layers_lie_on_their_frames_of_zeros() -> None:
    for layer, _ in many_layers()[:60]:
        if not np.any(layer.weight):
            continue  # nothing to see where it lies
        found = compare(layer, layer.with_zero_taps())
        assert found.aligned
        assert found.same_size
        assert found.kernels == "same"


def test_words_for_every_rank() -> None:
    def shifted(*by: int) -> str:
        first = Layer(Geometry(3, 2, 1, 1, rank=len(by)), 1, 1)
        return str(compare(first, first.with_crop(tuple((1 - a, 1 + a) for a in by))))

    assert shifted(1) == "the second output is shifted 1 pixel right; sizes agree; kernels: unknown"
    assert shifted(-2, 0).startswith("the second output is shifted 2 pixels up;")
    assert shifted(1, 1, -1).startswith(
        "the second output is shifted 1 pixel to the back and 1 pixel down and 1 pixel left;"
    )
    assert shifted(0, 0, 0, 1).startswith("the second output is shifted 1 pixel forth on axis 3;")
    assert shifted(0, 0).startswith("the outputs are aligned;")


def test_kernels_without_a_common_centre_lie_half_a_pixel_apart() -> None:
    four, three = (Layer(Geometry(k, 2, 1, 1, rank=1), 1, 1) for k in (4, 3))
    found = compare(four, three)
    assert found.shift == (Fraction(-1, 2),)
    assert not found.same_size
    assert "1/2 pixel left; sizes differ" in str(found)


def test_flipped_and_different_kernels() -> None:
    weight = integers(0, 1, 2, 3, 3)
    first = Layer.from_weight(Geometry(3, 2, rank=2), weight)
    assert compare(first, first.with_weights(weight[:, :, ::-1, ::-1])).kernels == "flipped"
    assert compare(first, first.with_weights(weight + 1)).kernels == "different"
    assert compare(first, Layer.from_weight(Geometry(3, 2, 2, rank=2), weight)).kernels == "different"


def test_another_stride_is_no_shift() -> None:
    with pytest.raises(
        ArgumentError, match=r"b: expected a layer of stride \(2, 2\), as the first, got stride \(2, 3\)"
    ):
        compare(Layer(Geometry(3, 2, rank=2), 1, 1), Layer(Geometry(3, (2, 3)), 1, 1))
