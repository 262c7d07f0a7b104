"""How this machine would run the layer, in the engine's own words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upscore.engine import NATIVE_RANK, Packed
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = ["Run", "run"]

MOST_WEIGHTS = 2**25
MOST_LOOPS = 4096
LONGEST_AXIS = 2**31 - 1


@dataclass(frozen=True)
class Run:
    """A float32 layer with these channels, on one image."""

    channels: tuple[int, int]
    groups: int
    why: str
    """The kernel chosen and the reason (`upscore.ops.Plan.why`), or why nothing was planned."""


def run(geometry: Geometry, input: Sequence[int], channels: tuple[int, int], groups: int = 1) -> Run:  # noqa: A002
    """Plan the layer for ``channels`` (in, out) and an ``input`` size, without running it.

    Raises:
        ArgumentError: channels that are not multiples of the groups.
    """
    c_in, c_out = channels
    if min(c_in, c_out, groups) < 1 or c_in % groups or c_out % groups:
        raise ArgumentError(
            "channels",
            f"multiples of the groups, {groups}",
            f"{c_in} in and {c_out} out",
            f"{groups} in and {groups} out",
        )
    output = geometry.output_size(input)
    if c_in * c_out // groups * math.prod(geometry.kernel) > MOST_WEIGHTS:
        return Run(channels, groups, f"not planned: more than {MOST_WEIGHTS} weights")
    if math.prod(geometry.kernel[:-NATIVE_RANK]) > MOST_LOOPS:
        return Run(
            channels, groups, f"not planned: more than {MOST_LOOPS} taps on the axes before the last {NATIVE_RANK}"
        )
    if max(*input, *output) > LONGEST_AXIS:
        return Run(channels, groups, f"not planned: an axis longer than {LONGEST_AXIS}")
    # Ones: where the weights between different channels are all zero, the engine sees it and leaves them out.
    weights = np.ones((c_in, c_out // groups, *geometry.kernel), np.float32)
    why = Packed(weights, None, geometry, groups).why(1, geometry, tuple(input), output)
    return Run(channels, groups, why)
