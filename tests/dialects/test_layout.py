"""Weight layouts."""

from __future__ import annotations

import numpy as np
import pytest
from dialects.oracles import integers

from upscore.dialects import Layout
from upscore.errors import ArgumentError

EVERY = [
    Layout(axes, flip)
    for axes in ("iok", "oik", "koi", "kio", "oki", "(gi)ok", "(go)ik", "ki(go)", "ko(gi)", "giok", "k(go)i")
    for flip in (False, True)
]


@pytest.mark.parametrize("layout", EVERY, ids=lambda layout: f"{layout.axes}{'-flip' * layout.flip}")
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (1, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_reading_undoes_writing_and_the_code_does_the_same(
    layout: Layout, kernel: tuple[int, ...], groups: int
) -> None:
    weight = integers(0, 4, 3, *kernel)
    if groups > 1 and not layout.grouped:
        with pytest.raises(ArgumentError, match=f"groups: expected 1, for a weight of layout {layout.axes}, got 2"):
            layout.write(weight, groups)
        return
    written = layout.write(weight, groups)
    assert np.array_equal(layout.read(written, groups), weight)
    pasted = eval(layout.code("weight", weight.shape, groups), {"weight": weight})
    assert np.array_equal(pasted, written)


def test_every_element_lands_where_the_axes_say() -> None:
    weight = integers(0, 4, 3, 2, 5)  # two groups of 2 inputs, 3 outputs each
    grouped = Layout("ki(go)", flip=True).write(weight, groups=2)
    assert grouped.shape == (2, 5, 2, 6)
    for g in range(2):
        for i in range(2):
            for o in range(3):
                assert np.array_equal(grouped[:, :, i, 3 * g + o], weight[2 * g + i, o, ::-1, ::-1])


def test_what_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match="weight: expected a multiple of groups=2 on axis"):
        Layout("(gi)ok").read(np.zeros((3, 1, 2)), groups=2)
    with pytest.raises(ArgumentError, match="weight: expected 2 groups on its axis g, got 3"):
        Layout("giok").read(np.zeros((3, 1, 1, 2)), groups=2)
    with pytest.raises(ArgumentError, match="weight: expected at least 3 axes"):
        Layout("iok").read(np.zeros((3, 1)))


def test_it_says_itself() -> None:
    assert str(Layout("koi")) == "(*kernel, c_out, c_in)"
    assert str(Layout("(go)ik", flip=True)) == "(c_out, c_in/groups, *kernel) with the taps flipped"
