"""The collection: complete, and JSON all the way down."""

from __future__ import annotations

import json

import numpy as np
import pytest

from upscore import filters
from upscore.errors import ArgumentError
from upscore.explain import explain
from upscore.geometry import Geometry


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (Geometry((64, 64), 32), (16, 16)),
        (Geometry((4, 3), (2, 1), crop=((1, 1), (-1, 2))), (2, 3)),
        (Geometry((3, 4, 5), (1, 2, 3)), (3, 4, 5)),
        (Geometry(5, 3, dilation=2), 4),
    ],
)
def test_it_survives_json(geometry, size) -> None:
    found = explain(geometry, size)
    data = found.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [axis["output"] for axis in data["sizes"]] == list(geometry.output_size(size))
    assert [len(axis) for axis in data["phases"]] == list(geometry.stride)
    assert data["geometry"]["kernel"] == list(geometry.kernel)
    for axis, mapped in zip(data["coordinates"], geometry.coordinate_map().offset, strict=True):
        assert axis["offset"] == str(mapped)


def test_weights_are_judged_and_used_in_small_cases() -> None:
    kernel = filters.bilinear(2)
    found = explain(Geometry((4, 4), 2, crop=1), 2, filters.channelwise(kernel, 3))
    assert found.checkerboard.verdict == "even"
    assert found.definitions is not None
    assert found.definitions.weights == kernel.tolist()
    assert found.definitions.output[0] == [0.75 * v for v in (0.75, 1.25, 1.75, 1.5)]  # a zero above


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: explain(Geometry(10**12), 4),
            "kernel: expected at most 4096 per axis, to explain it, got 1000000000000; for example kernel=4",
        ),
        (
            lambda: explain(Geometry((3, 3), (2, 5000)), 4),
            "stride: expected at most 4096 per axis, to explain it, got 5000; for example stride=4",
        ),
        (
            lambda: explain(Geometry((3, 4), 2), 2, np.ones((1, 1, 4, 3))),
            "weights: expected a kernel (3, 4) or a weight (C_in, C_out/groups, *(3, 4)), got shape (1, 1, 4, 3); "
            "for example shape (1, 1, 3, 4)",
        ),
    ],
)
def test_what_cannot_be_explained_is_named(attempt, message) -> None:
    with pytest.raises(ArgumentError) as error:
        attempt()
    assert str(error.value) == message
