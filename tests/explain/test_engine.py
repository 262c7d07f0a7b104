"""The engine's own words, for layers that can be planned, and a sentence for those that cannot."""

from __future__ import annotations

import numpy as np
import pytest

import upscore as up
from upscore.errors import ArgumentError
from upscore.explain.engine import run
from upscore.geometry import Geometry


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "channels", "groups"),
    [((4, 3), (2, 3), (9, 7), (6, 4), 2), ((5,), (4,), (11,), (3, 3), 1), ((2, 2, 2, 3), 2, (3, 3, 3, 2), (2, 1), 1)],
)
def test_it_is_what_the_plan_says(kernel, stride, size, channels, groups) -> None:
    layer = up.plan(np.ones((channels[0], channels[1] // groups, *kernel), np.float32), stride=stride, groups=groups)
    layer(np.zeros((1, channels[0], *size), np.float32))
    assert run(Geometry(kernel, stride), size, channels, groups).why == layer.why


def test_what_is_too_large_is_not_planned() -> None:
    assert run(Geometry((4096, 4096), 2), (4, 4), (8, 8)).why == "not planned: more than 33554432 weights"
    leading = run(Geometry((65, 64, 1, 1, 1), 2), (2, 2, 2, 2, 2), (1, 1)).why
    assert leading == "not planned: more than 4096 taps on the axes before the last 3"
    assert run(Geometry((4, 4), 2), (4, 2**31), (8, 8)).why == "not planned: an axis longer than 2147483647"


def test_channels_and_groups_have_to_fit() -> None:
    with pytest.raises(ArgumentError) as error:
        run(Geometry((4, 3), 2), (4, 4), (6, 4), 4)
    assert str(error.value) == (
        "channels: expected multiples of the groups, 4, got 6 in and 4 out; for example 4 in and 4 out"
    )
