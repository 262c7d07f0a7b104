"""MatConvNet, against the formula of its manual written as loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, check_reads_and_writes, draw_examples, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, matconvnet
from upscore.errors import ArgumentError
from upscore.geometry import Geometry


@st.composite
def blocks(draw: st.DrawFn) -> Case:
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    up = [draw(st.integers(1, 3)) for _ in range(2)]
    crop = [draw(st.integers(0, (k - 1 + side) // 2)) for k in kernel for side in (1, 0)]
    groups = draw(st.sampled_from((1, 1, 2)))
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"f": integers(seed, *kernel, o, groups * i)}
    if draw(st.booleans()):
        weights["b"] = integers(seed, 1, 1, groups * o)
    parameters = {"Upsample": up, "Crop": crop, "NumGroups": groups}
    return Case(parameters, weights, integers(seed, 1, groups * i, *(draw(st.integers(1, 3)) for _ in range(2))))


def by_the_manual(case: Case) -> np.ndarray:
    """The manual's convolution transpose (section 4.2), index for index, all of them counted from 1.

    y[i'', j'', d''] = b + sum over d', i' in 0..q(H', S), j' in 0..q(W', S) of
        f[1 + S i' + m(i'' + P, S), 1 + S j' + m(j'' + P, S), d'', d']
        * x[1 - i' + q(i'' + P, S), 1 - j' + q(j'' + P, S), d']
    with m(k, S) = (k - 1) mod S and q(k, n) = floor((k - 1) / n); f and x are 0 outside.
    """
    f, x = case.weights["f"], case.x[0].transpose(1, 2, 0)  # H x W x C, as MATLAB has it
    (sh, sw), (top, bottom, left, right) = case.parameters["Upsample"], case.parameters["Crop"]
    groups = case.parameters["NumGroups"]
    fh, fw, per_group, depth = f.shape
    height = sh * (x.shape[0] - 1) + fh - top - bottom
    width = sw * (x.shape[1] - 1) + fw - left - right
    y = np.zeros((height, width, per_group * groups), np.float32)
    inputs = depth // groups
    for i2 in range(1, height + 1):
        for j2 in range(1, width + 1):
            mi, qi = (i2 + top - 1) % sh, (i2 + top - 1) // sh
            mj, qj = (j2 + left - 1) % sw, (j2 + left - 1) // sw
            for i1 in range((fh - 1) // sh + 1):
                for j1 in range((fw - 1) // sw + 1):
                    a, b = sh * i1 + mi, sw * j1 + mj
                    c, d = qi - i1, qj - j1
                    if a < fh and b < fw and 0 <= c < x.shape[0] and 0 <= d < x.shape[1]:
                        for g in range(groups):
                            mine = slice(g * inputs, (g + 1) * inputs)
                            out = slice(g * per_group, (g + 1) * per_group)
                            y[i2 - 1, j2 - 1, out] += f[a, b, :, mine] @ x[c, d, mine]
    y = y.transpose(2, 0, 1)[None]
    return y + case.weights["b"].reshape(1, -1, 1, 1) if "b" in case.weights else y


def test_five_hundred_blocks() -> None:
    check_reads_and_writes("matconvnet", draw_examples(blocks()), lambda cases: [by_the_manual(case) for case in cases])


def test_it_is_the_transpose_of_vl_nnconv() -> None:
    """<conv(v), x> = <v, convt(x)>, the convolution written as loops over its definition."""
    f, x, v = integers(0, 3, 2, 2, 3), integers(1, 3, 4, 3), integers(2, 7, 7, 2)  # v: the size that convt makes of x
    layer = matconvnet.read({"Upsample": [2, 2], "Crop": [0, 0, 1, 0]}, {"f": f})
    assert layer.output_size((3, 4)) == v.shape[:2]
    padded = np.pad(v, [(0, 0), (1, 0), (0, 0)])
    conv = np.zeros((3, 4, 3))
    for i in range(3):
        for j in range(4):
            conv[i, j] = np.einsum("abk,abkd->d", padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 2], f)
    case = Case({"Upsample": [2, 2], "Crop": [0, 0, 1, 0], "NumGroups": 1}, {"f": f}, x.transpose(2, 0, 1)[None])
    transposed = by_the_manual(case)[0].transpose(1, 2, 0)
    assert (conv * x).sum() == (v * transposed).sum()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "dilate"),
    [((10, 12), (3, 3), 2, [1, 1, 0, 0], 2), ((9, 9), (2, 5), (1, 3), 0, (3, 1)), ((7, 8), (1, 1), 3, [0, 2, 1, 0], 4)],
)
def test_the_size_of_a_dilated_convolution(
    size: tuple[int, int], kernel: tuple[int, int], stride: Any, pad: Any, dilate: Any
) -> None:
    """Counted: how many dilated windows fit into the padded image."""
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    dilates = dilate if isinstance(dilate, tuple) else (dilate, dilate)
    sides = [pad] * 4 if isinstance(pad, int) else pad
    counted = []
    for axis in range(2):
        room = size[axis] + sides[2 * axis] + sides[2 * axis + 1]
        last = [dilates[axis] * (kernel[axis] - 1) + start for start in range(0, room, strides[axis])]
        counted.append(sum(end < room for end in last))
    assert matconvnet.convolution_size(size, kernel, stride=stride, pad=pad, dilate=dilate) == tuple(counted)


def test_what_matconvnet_does_not_take() -> None:
    with pytest.raises(ArgumentError, match=r"Crop: expected one amount or \[top bottom left right\]"):
        matconvnet.read({"Crop": [1, 1], "size": [3, 3, 1, 1]})
    with pytest.raises(ArgumentError, match=r"size: expected \[FH FW K FD\], or the filters f"):
        matconvnet.read({"Upsample": 2})
    with pytest.raises(
        RefusalError, match=r"Crop: expected at least 0 on every side, .* closest: a kernel of \(3, 4\)"
    ):
        matconvnet.write(Layer(Geometry(3, 2, 1, ((0, 0), (0, -1))), 1, 1))
    with pytest.raises(RefusalError, match=r"dilation: expected 1, got \(2, 2\)"):
        matconvnet.write(Layer(Geometry(3, 2, 2, rank=2), 1, 1))


def test_the_lines_for_matlab() -> None:
    text = matconvnet.code(Layer(Geometry((3, 4), (2, 1), 1, ((1, 0), (0, 2))), 4, 6, 2, has_bias=True))
    assert "f = permute(weight, [3 4 2 1]);" in text
    assert "vl_nnconvt(x, f, bias, 'Upsample', [2 1], 'Crop', [1 0 0 2], 'NumGroups', 2);" in text
    for shape in ((4, 3, 5, 6), (2, 2, 1, 3)):  # the permutation, done by NumPy, is the layout's
        weight = integers(0, *shape)
        assert np.array_equal(weight.transpose(2, 3, 1, 0), matconvnet.LAYOUT.write(weight))
