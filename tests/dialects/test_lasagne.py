"""Lasagne's TransposedConv2DLayer; the oracle is the Theano gradient that its source calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, check_reads_and_writes, draw_examples, integers
from dialects.test_theano import _one_thread, gradient
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, lasagne
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = ["_one_thread"]


@st.composite
def layers(draw: st.DrawFn) -> Case:
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(2))
    crop: Any = draw(st.sampled_from(("valid", "same", "full", "int", "tuple")))
    pads = {"valid": [0, 0], "same": [k // 2 for k in kernel], "full": [k - 1 for k in kernel]}.get(
        crop, [draw(st.integers(0, min(kernel) // 2))] * 2
    )
    if crop == "tuple":
        pads = [draw(st.integers(0, k // 2)) for k in kernel]
    crop = {"int": pads[0], "tuple": tuple(pads)}.get(crop, crop)
    size = [draw(st.integers(4, 6)) for _ in range(2)]
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"W": integers(seed, c_in, c_out, *kernel)}
    parameters: dict[str, Any] = {
        "num_filters": c_out,
        "filter_size": kernel,
        "stride": stride,
        "crop": crop,
        "flip_filters": draw(st.booleans()),
    }
    if draw(st.booleans()):
        weights["b"] = integers(seed, c_out)
    else:
        parameters["b"] = None
    if draw(st.booleans()):
        parameters["output_size"] = tuple(
            (n - 1) * s + k - 2 * p + draw(st.integers(0, s - 1))
            for n, s, k, p in zip(size, stride, kernel, pads, strict=True)
        )
    return Case(parameters, weights, integers(seed, 2, c_in, *size), {"input_size": size})


def by_theano(case: Case) -> np.ndarray:
    """The call in lasagne/layers/conv.py: AbstractConv2d_gradInputs with filter_flip = not flip_filters."""
    p = case.parameters
    crop = {"same": "half"}.get(p["crop"], p["crop"]) if isinstance(p["crop"], str) else p["crop"]
    said = {"border_mode": crop, "subsample": p["stride"], "filter_flip": not p.get("flip_filters", False)}
    if "output_size" in p:
        said["input_shape"] = (1, p["num_filters"], *p["output_size"])
    weights = {"filters": case.weights["W"], **({"bias": case.weights["b"]} if "b" in case.weights else {})}
    return gradient(Case(said, weights, case.x))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_five_hundred_layers() -> None:
    check_reads_and_writes("lasagne", draw_examples(layers()), lambda cases: [by_theano(case) for case in cases])


def test_the_flag_is_inverted_against_lasagnes_convolution() -> None:
    w = integers(0, 1, 1, 2, 3)
    said = {"num_filters": 1, "filter_size": (2, 3), "b": None}
    assert np.array_equal(lasagne.read(said, {"W": w}).weight, w[:, :, ::-1, ::-1])
    assert np.array_equal(lasagne.read({**said, "flip_filters": True}, {"W": w}).weight, w)


@pytest.mark.parametrize(
    ("parameters", "size", "message"),
    [
        ({"crop": "half"}, None, "crop: expected 'valid', 'same', 'full', or integers, got 'half'"),
        ({"untie_biases": True}, None, "untie_biases: expected False: one bias per channel"),
        ({"output_size": (9, 9)}, None, "input_size: expected the input's size beside output_size"),
        ({"output_size": (9, 9)}, 4, "output_size: expected a size that the convolution takes back to 4"),
    ],
)
def test_what_lasagne_does_not_take(parameters: dict[str, Any], size: int | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        lasagne.read({"num_filters": 1, "filter_size": 3, **parameters}, c_in=1, input_size=size)


def test_refusals_and_code() -> None:
    with pytest.raises(RefusalError, match=r"crop: .* closest: crop=\(0, 0\), then cut 1 after on every axis"):
        lasagne.write(Layer(Geometry(3, 2, 1, ((0, 1), (0, 1))), 1, 1))
    text = lasagne.code(Layer(Geometry(3, 2, 1, ((0, 1), (1, 1))), 2, 5))
    assert "y = lasagne.layers.SliceLayer(y, slice(0, -1), axis=2)" in text
    assert "axis=3" not in text
    text = lasagne.code(Layer(Geometry(3, 2, 1, ((1, 0), (1, 1))), 2, 5, has_bias=True))
    assert "output_size=(2 * x.output_shape[2] + 0, 2 * x.output_shape[3] + -1)" in text
    assert "b=bias" in text
