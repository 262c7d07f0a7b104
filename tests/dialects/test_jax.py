"""JAX: drawn calls against ``lax.conv_transpose`` and ``lax.conv_general_dilated``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dialects.oracles import (
    Case,
    Worker,
    assert_same,
    check_code,
    check_reads_and_writes,
    draw_examples,
    integers,
    needs,
)
from hypothesis import strategies as st

from upscore.dialects import compare, jax, pytorch
from upscore.errors import ArgumentError

needs("jax", "keras")


@st.composite
def calls(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    dilated = draw(st.booleans())
    axes = []
    for _ in range(rank):
        k, s, n = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
        d = draw(st.sampled_from((1, 1, 2)))
        e = d * (k - 1) + 1
        axes.append((k, s, d, n, e))
    kernel, stride, dilation, size, extent = (tuple(v) for v in zip(*axes, strict=True))
    groups = draw(st.sampled_from((1, 2, 3))) if dilated else 1
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    spatial = "HWD"[:rank]
    lhs = draw(st.sampled_from((f"N{spatial}C", f"NC{spatial}")))
    rhs = draw(st.sampled_from((f"{spatial}IO", f"{spatial}OI", f"OI{spatial}", f"IO{spatial}")))
    transpose = not dilated and draw(st.booleans())
    # with transpose_kernel the letters name the axes after the swap
    ins, outs = (c_out, c_in) if transpose else (c_in // groups, c_out)
    shape = {"I": ins, "O": outs, **dict(zip(spatial, kernel, strict=True))}
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"rhs": integers(seed, *(shape[c] for c in rhs))}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    own = [(e - 1 - draw(st.integers(-2, e // 2)), e - 1 - draw(st.integers(-2, e // 2))) for e in extent]
    kept = [
        ((a, b) if (n - 1) * s + 2 - e + a + b >= 1 else (e, e))
        for (a, b), (_, s, _, n, e) in zip(own, axes, strict=True)
    ]
    parameters: dict[str, Any] = {"dimension_numbers": (lhs, rhs, lhs), "padding": tuple(kept)}
    if dilated:
        parameters.update(window_strides=(1,) * rank, lhs_dilation=stride, feature_group_count=groups)
    else:
        parameters.update(strides=stride, transpose_kernel=transpose)
        mode = draw(st.sampled_from(("SAME", "VALID", "pairs", "consistent")))
        if mode == "consistent":
            crops = [(draw(st.integers(-1, e // 2)), draw(st.integers(-1, (e - 1) // 2))) for e in extent]
            parameters.update(padding=tuple(crops), use_consistent_padding=True)
        elif mode != "pairs":
            parameters["padding"] = mode
        if draw(st.booleans()) and lhs.endswith("C") and rhs == f"{spatial}IO":
            del parameters["dimension_numbers"]
    if set(dilation) != {1}:
        parameters["rhs_dilation"] = dilation
    return Case(parameters, weights, integers(seed, 2, c_in, *size))


def test_five_hundred_calls(worker: Callable[[str], Worker]) -> None:
    cases = draw_examples(calls())
    assert {"SAME", "VALID"} < {str(case.parameters["padding"]) for case in cases}
    assert any(case.parameters.get("use_consistent_padding") for case in cases)
    check_reads_and_writes("jax", cases, worker("jax").evaluate("jax"))


def test_code_runs(worker: Callable[[str], Worker]) -> None:
    check_code("jax", worker("jax"), 12)


def test_the_kernel_is_not_flipped_unless_asked(worker: Callable[[str], Worker]) -> None:
    """One input stamps the kernel backwards: a port that copies the weights mirrors every blob of the output."""
    x = np.ones((1, 1, 1, 1), np.float32)
    weights = {"rhs": np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)}
    plain = Case({"strides": (2, 2), "padding": "VALID"}, weights, x)
    flipped = Case({**plain.parameters, "transpose_kernel": True}, weights, x)
    backwards, forwards = worker("jax").evaluate("jax")([plain, flipped])
    assert backwards.ravel().tolist() == [5, 4, 3, 2, 1, 0]
    assert forwards.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert_same(backwards, jax.read(plain.parameters, weights), x, plain)
    assert_same(forwards, jax.read(flipped.parameters, weights), x, flipped)
    assert compare(jax.read(plain.parameters, weights), jax.read(flipped.parameters, weights)).kernels == "flipped"


def test_pads_are_not_pytorchs_padding_unless_consistent() -> None:
    said: dict[str, Any] = {"strides": (2, 2), "padding": ((1, 1), (1, 1)), "kernel_size": (4, 4), "features": 1}
    torch = pytorch.read({"in_channels": 1, "out_channels": 1, "kernel_size": 4, "stride": 2, "padding": 1})
    assert jax.read(said, c_in=1).geometry.crop == ((2, 2), (2, 2))
    assert jax.read({**said, "use_consistent_padding": True}, c_in=1).geometry == torch.geometry


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"padding": "SAME_LOWER"}, "padding: expected 'SAME', 'VALID' or pairs, got 'SAME_LOWER'"),
        ({"lhs_dilation": (2, 2), "padding": "SAME"}, "padding: expected pairs beside lhs_dilation"),
        ({"lhs_dilation": (2, 2), "window_strides": (2, 1), "padding": ((0, 0),) * 2}, "window_strides: expected 1"),
        ({"lhs_dilation": (2, 2), "batch_group_count": 2, "padding": 0}, "batch_group_count: expected 1, got 2"),
        ({"dimension_numbers": ("NHWC", "HIOW", "NHWC")}, "dimension_numbers: expected the 2 spatial letters together"),
        ({"stride": 2}, "parameters: expected names that JAX has, got stride"),
        ({"kernel_size": None}, "kernel_size: expected one integer per axis, where no weights are given"),
    ],
)
def test_what_jax_does_not_take(parameters: dict[str, Any], message: str) -> None:
    said = {"kernel_size": (3, 3), "features": 1, **parameters}
    with pytest.raises(ArgumentError, match=message):
        jax.read(said, c_in=1, rank=2)
