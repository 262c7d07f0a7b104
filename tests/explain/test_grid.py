"""Nothing is cut off, however narrow the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from upscore.explain.grid import Grid


def printed(rows, width: int) -> list[str]:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(Grid(rows))
    return captured.get().splitlines()


def test_cells_line_up_and_empty_ones_are_dots() -> None:
    assert printed([["a*w1", ""], ["b", "c"]], 80) == ["a*w1 ·", "b    c"]
    assert printed([1.0, 0.5625, 10.123456], 80) == ["1 0.5625 10.12"]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (24, ["a*w1+b*w2+c*w3+d*w4 b*w5"]),
        (23, ["a*w1+b*w2  b*w5", "+c*w3+d*w4"]),
        (14, ["a*w1  b*w5", "+b*w2", "+c*w3", "+d*w4"]),
        (9, ["a*w1", "+b*w2", "+c*w3", "+d*w4", "", "b*w5"]),
    ],
)
def test_sums_break_before_columns_do(width, lines) -> None:
    assert printed(["a*w1+b*w2+c*w3+d*w4", "b*w5"], width) == lines


def test_columns_break_into_blocks() -> None:
    assert printed([["11", "22", "33"], ["44", "55", "66"]], 5) == ["11 22", "44 55", "", "33", "66"]


def test_an_exponent_is_no_sum() -> None:
    assert printed([1e20, 2.0], 6) == ["1e+20", "", "2"]
