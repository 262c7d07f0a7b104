"""What people read says what the data says."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from upscore import filters
from upscore.explain import explain
from upscore.explain.render import render
from upscore.geometry import Geometry


def printed(geometry: Geometry, size, weights=None) -> str:
    console = Console(width=120, highlight=False, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(render(explain(geometry, size, weights)))
    return captured.get()


def test_the_upscore_layer_of_fcn_32s() -> None:
    text = printed(Geometry((64, 64), 32), 16)
    for line in (
        "each axis: (16 - 1)*32 + 1*(64 - 1) + 1 - 0 - 0 = 544",
        "the convolution with the same numbers leads back: 544 -> 16",
        "away from the borders an output has 2 x 2 inputs under it: 4 of the 4096 taps",
        "Why a kernel of 64",
        "64 reaches every row, because it is not smaller than the stride 32",
        "a kernel of 3 would touch only 3 of every 32 rows",
        "64 = 2*32, padding 16: the kernel that upsamples bilinearly by 32",
        "each axis: y[32i] = x[i]*w[0] + x[i-1]*w[32]",
        "... 27 more like these (--json lists all)",
        "y[32i+31] = x[i]*w[31] + x[i-1]*w[63]",
        "the axes multiply: 1024 phases",
        "each axis: x = 1/32*y - 63/64",
        "not by construction: all phases have 2 x 2 taps",
        "shown in numbers and letters for small cases",
        "1 -> 1 channels, float32",
    ):
        assert line in text


def test_a_kernel_too_small_for_its_stride() -> None:
    text = printed(Geometry((3, 3), 32), 16)
    assert "a kernel of 3 touches only 3 of every 32 rows; the others hold the bias alone" in text
    assert "no holes from a kernel of 32 on" in text
    assert "away from the borders an output has (0 or 1) x (0 or 1) inputs under it: 0 or 1 of the 9 taps" in text
    assert "holes: a grid of outputs that no tap reaches, whatever the weights are" in text
    assert "stride and dilation share a factor" in printed(Geometry(4, 2, dilation=2), 3)


def test_axes_that_differ_are_told_apart() -> None:
    text = printed(Geometry((3, 2), (2, 1), crop=((0, 0), (1, -2))), (2, 3))
    for line in (
        "axis 0: (2 - 1)*2 + 1*(3 - 1) + 1 - 0 - 0 = 5",
        "axis 1: (3 - 1)*1 + 1*(2 - 1) + 1 - 1 + 2 = 5",
        "Why a kernel of 3 x 2",
        "away from the borders an output has (1 or 2) x 2 inputs under it: 2 or 4 of the 6 taps",
        "axis 1: stride 1 places a stamp at every position: no kernel leaves holes",
        "likely before training: the phases have (1 or 2) x 2 taps, and so unequal gain",
        "a kernel that is a multiple of the stride, such as 4 x 2, gives all the same number",
    ):
        assert line in text
    assert "axes 0 and 1: " in printed(Geometry((3, 3, 4), 2), 9)


def test_the_small_case_shows_letters_and_numbers() -> None:
    text = printed(Geometry((3, 3), 2), 2)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "a*w7+c*w1 a*w8+c*w2 a*w9+b*w7+c*w3+d*w1 b*w8+d*w2 b*w9+d*w3" in rows
    assert "4 4 10 6 6" in rows
    for picture in ("scatter: one stamp per input, added", "zero-stuffing", "matrix C^T", "phases", "w9 w8 w7"):
        assert picture in text
    line = printed(Geometry(3, 2), 2)
    assert "a*w1 a*w2 a*w3+b*w1 b*w2 b*w3" in line


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (filters.bilinear((2, 2)), "none: all phases have the same gain (0 of the answer to a flat input alternates)"),
        (np.ones((4, 4)) + np.eye(4), "visible: the phases have unequal gain"),
        (np.ones((4, 4)) + np.eye(4), "phase (0, 0) answers with 6, phase (0, 1) with 4"),
    ],
)
def test_weights_are_judged(weights, said) -> None:
    assert said in printed(Geometry((4, 4), 2, crop=1), 2, weights)


def test_other_paddings_of_the_bilinear_kernel() -> None:
    shifted = "with another padding, as here, it does the same, shifted"
    assert shifted in printed(Geometry(4, 2), 5)
    assert shifted not in printed(Geometry(4, 2, crop=1), 5)
    assert shifted not in printed(Geometry(5, 3, dilation=2), 5)
    assert "5 = 2*3 - 1, padding 1: the kernel that upsamples bilinearly by 3" in printed(Geometry(7, 3), 5)
    assert "pixels keep their places" in printed(Geometry(5, 3, crop=1), 5)
