"""Flax: drawn modules against ``flax.linen.ConvTranspose``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

from upscore.dialects import Layer, RefusalError, compare, flax, jax
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("jax", "flax", "keras")


@st.composite
def modules(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.sampled_from((1, 1, 2))) for _ in range(rank))
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transpose = draw(st.booleans())
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"kernel": integers(seed, *kernel, *((c_out, c_in) if transpose else (c_in, c_out)))}
    if bias := draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    most = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    pairs = tuple((m + draw(st.integers(-1, 1)) - m // 2, m + draw(st.integers(0, 1)) - m // 2) for m in most)
    padding = draw(st.sampled_from(("SAME", "VALID", pairs, pairs, max(most))))
    size = [n + (2 if padding is pairs else 0) for n in (draw(st.integers(1, 3)) for _ in range(rank))]
    parameters: dict[str, Any] = {
        "features": c_out,
        "kernel_size": kernel,
        "strides": stride,
        "padding": padding,
        "kernel_dilation": dilation,
        "transpose_kernel": transpose,
        "use_bias": bias,
    }
    return Case(parameters, weights, integers(seed, 2, c_in, *size))


def test_five_hundred_modules(worker: Callable[[str], Worker]) -> None:
    check_reads_and_writes("flax", draw_examples(modules()), worker("jax").evaluate("flax"))


def test_code_runs(worker: Callable[[str], Worker]) -> None:
    check_code("flax", worker("jax"), 8)


def test_nnx_computes_what_linen_computes(worker: Callable[[str], Worker]) -> None:
    cases = draw_examples(modules(), 10)
    for case, y in zip(cases, worker("jax").evaluate("nnx")(cases), strict=True):
        assert_same(y, flax.read(case.parameters, case.weights), case.x, case.parameters)


def test_the_default_kernel_is_flipped_against_a_transposed_one() -> None:
    kernel = integers(0, 3, 3, 2, 2)
    said = {"features": 2, "kernel_size": (3, 3), "strides": (2, 2), "use_bias": False}
    plain = flax.read(said, {"kernel": kernel})
    transposed = flax.read({**said, "transpose_kernel": True}, {"kernel": kernel.swapaxes(2, 3)})
    assert compare(plain, transposed).kernels == "flipped"
    assert compare(plain, transposed).aligned


def test_one_integer_of_padding_is_two_pads() -> None:
    layer = flax.read({"features": 1, "kernel_size": (5,), "padding": 3}, c_in=1)
    assert layer.geometry.crop == jax.crop_of(((3, 3),), Geometry(5)) == ((1, 1),)


def test_circular_padding_is_no_crop() -> None:
    with pytest.raises(ArgumentError, match="padding: expected 'SAME', 'VALID' or pairs, got 'CIRCULAR'"):
        flax.read({"features": 1, "kernel_size": (3, 3), "padding": "CIRCULAR"}, c_in=1)


def test_groups_are_refused() -> None:
    with pytest.raises(RefusalError, match="Flax cannot say this layer: groups: expected 1, got 3; closest: 3 layers"):
        flax.write(Layer(Geometry(3, 2, rank=2), 3, 3, 3))
