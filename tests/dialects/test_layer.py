"""The layer of the normal form."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from dialects.oracles import expected, integers, many_layers

from upscore.dialects import Layer
from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Geometry

SHAPE = Geometry((3, 4), (2, 1), 1, ((1, 0), (0, 2)))


def test_channels_come_from_the_weight() -> None:
    layer = Layer.from_weight(SHAPE, integers(0, 6, 2, 3, 4), integers(0, 4), groups=2)
    assert (layer.c_in, layer.c_out, layer.groups, layer.has_bias, layer.rank) == (6, 4, 2, True, 2)
    assert layer.weight_shape == (6, 2, 3, 4)
    assert layer.output_size((5, 6)) == (10, 7)


def test_it_cannot_be_changed() -> None:
    layer = Layer.from_weight(SHAPE, integers(0, 1, 1, 3, 4))
    with pytest.raises(AttributeError):
        layer.groups = 2  # type: ignore[misc]
    assert layer.weight is not None
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0] = 0


def test_equality_is_by_value() -> None:
    layer = Layer.from_weight(SHAPE, integers(0, 1, 1, 3, 4))
    assert layer == Layer.from_weight(SHAPE, integers(0, 1, 1, 3, 4))
    assert layer == pickle.loads(pickle.dumps(layer))
    assert layer != Layer.from_weight(SHAPE, integers(1, 1, 1, 3, 4))
    assert layer != layer.without_weights()
    assert layer != layer.with_weights(integers(0, 1, 1, 3, 4).astype(np.float64))
    assert layer != "layer"
    with pytest.raises(TypeError, match="unhashable"):
        hash(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c_in": 0}, "c_in: expected an integer of at least 1, got 0; for example c_in=1"),
        ({"c_in": 2.0}, "c_in: expected an integer of at least 1, got 2.0"),
        ({"groups": 3}, "groups: expected a divisor of the channels, 4 in and 2 out, got 3; for example groups=2"),
        ({"weight": np.zeros((4, 2, 4, 3))}, r"weight: expected shape \(4, 2, 3, 4\), got \(4, 2, 4, 3\)"),
        ({"bias": np.zeros(4)}, r"bias: expected shape \(2,\), got \(4,\)"),
        ({"weight": np.zeros((4, 2, 3, 4), complex)}, "weight: expected an array of real numbers, got complex128"),
    ],
)
def test_what_cannot_be_a_layer(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Layer(**{"geometry": SHAPE, "c_in": 4, "c_out": 2, **arguments})  # type: ignore[arg-type]


def test_a_weight_of_another_rank() -> None:
    with pytest.raises(ArgumentError, match=r"weight: expected 4 axes, \(c_in, c_out / groups, \*kernel\)"):
        Layer.from_weight(SHAPE, np.zeros((1, 1, 3)))
    with pytest.raises(ArgumentTypeError, match="groups: expected an integer of at least 1, got True"):
        Layer(SHAPE, 1, 1, True)


def test_filling_gives_what_is_missing_and_keeps_what_is_there() -> None:
    bare = Layer(SHAPE, 2, 3, has_bias=True)
    filled = bare.filled(1)
    assert filled.weight is not None
    assert filled.bias is not None
    assert filled.without_weights() == bare
    assert filled.filled(2) == filled
    assert bare.filled(1) == filled
    assert Layer(SHAPE, 2, 3).filled().bias is None


def test_the_smallest_input_is_the_smallest() -> None:
    for layer, _ in many_layers()[:100]:
        n = layer.smallest_input()
        assert min(layer.output_size(n)) >= 1
        for axis, size in enumerate(n):
            if size > 1:
                less = [size - 1 if i == axis else a for i, a in enumerate(n)]
                with pytest.raises(ArgumentError, match="leaves an output of at least 1"):
                    layer.output_size(less)


def test_zero_taps_change_the_kernel_and_not_the_function() -> None:
    changed = 0
    for layer, x in many_layers()[:200]:
        grown = layer.with_zero_taps()
        assert min(min(pair) for pair in grown.geometry.crop) >= 0
        assert np.array_equal(expected(grown, x), expected(layer, x))
        changed += grown != layer
    assert changed > 50


def test_a_crop_behind_a_layer_is_part_of_it() -> None:
    layer = Layer(SHAPE, 1, 1)
    assert layer.cropped(((1, -1), (0, 2))).geometry.crop == ((2, -1), (0, 4))
    assert layer.cropped(0) == layer
