"""Keras: drawn layers on the TensorFlow, JAX and torch backends, and UpSampling as a transposed convolution."""

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
    expected,
    integers,
    needs,
)
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, compare, keras
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("keras", "tensorflow", "jax", "torch")
BACKENDS = ("tensorflow", "jax", "torch")


@st.composite
def layers(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = tuple(draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank))
    dilated = draw(st.sampled_from((False, False, False, True)))
    stride = (1,) * rank if dilated else tuple(draw(st.integers(1, 3)) for _ in range(rank))
    # TensorFlow's eager kernels on the CPU know no dilation above 1 in 1-D and 3-D
    dilation = (2,) * rank if dilated and rank == 2 else (1,) * rank
    mode = draw(st.sampled_from(("valid", "same")))
    more: tuple[int, ...] | None = None
    if draw(st.booleans()):
        # an even kernel, same and output_padding 0 make s(n - 1): TensorFlow's backend refuses, so nobody ships it
        least = [int(mode == "same" and (d * (k - 1) + 1) % 2 == 0) for k, d in zip(kernel, dilation, strict=True)]
        if all(a < s for a, s in zip(least, stride, strict=True)):
            more = tuple(draw(st.integers(a, s - 1)) for a, s in zip(least, stride, strict=True))
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"kernel": integers(seed, *kernel, c_out, c_in)}
    if bias := draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    parameters: dict[str, Any] = {
        "filters": c_out,
        "kernel_size": kernel,
        "strides": stride,
        "padding": mode,
        "output_padding": more,
        "dilation_rate": dilation,
        "use_bias": bias,
    }
    return Case(parameters, weights, integers(seed, 2, c_in, *(draw(st.integers(1, 4)) for _ in range(rank))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_five_hundred_layers(worker: Callable[[str], Worker], backend: str) -> None:
    check_reads_and_writes("keras", draw_examples(layers()), worker(backend).evaluate("keras"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_code_runs_slices_and_pads_included(worker: Callable[[str], Worker], backend: str) -> None:
    check_code("keras", worker(backend), 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_with_stride_two_and_an_odd_kernel(worker: Callable[[str], Worker], backend: str) -> None:
    """The case that the torch backend once shifted by a pixel."""
    said = {"filters": 2, "kernel_size": (3, 5), "strides": (2, 2), "padding": "same", "use_bias": False}
    case = Case(said, {"kernel": integers(0, 3, 5, 2, 1)}, integers(1, 1, 1, 4, 3))
    layer = keras.read(said, case.weights)
    assert layer.geometry.crop == ((0, 1), (1, 2))
    assert_same(worker(backend).evaluate("keras")([case])[0], layer, case.x, said)


def test_the_old_torch_backend_was_a_pixel_off_and_compare_says_which_way() -> None:
    said = {"filters": 2, "kernel_size": (3, 5), "strides": (2, 2), "padding": "same", "use_bias": False}
    weights = {"kernel": integers(0, 3, 5, 2, 1)}
    found = compare(keras.read(said, weights), keras.read(said, weights, backend="torch-symmetric"))
    assert found.shift == (-1, -1)
    assert found.same_size
    assert str(found).startswith("the second output is shifted 1 pixel up and 1 pixel left; sizes agree; kernels: same")


def test_the_old_torch_backend_as_keras_still_has_it(worker: Callable[[str], Worker]) -> None:
    """Keras keeps the function that computed the symmetric padding; it is the oracle here."""
    cases = [
        (k, s, mode, more)
        for k in range(1, 7)
        for s in range(1, 5)
        for mode in ("same", "valid")
        for more in (None, *range(s))
    ]
    found = worker("torch")([("old_torch_padding", (case, None, None)) for case in cases])
    for (k, s, mode, more), (pad, extra) in zip(cases, found, strict=True):
        said = {"filters": 1, "kernel_size": k, "strides": s, "padding": mode, "output_padding": more}
        layer = keras.read(said, c_in=1, rank=1, backend="torch-symmetric")
        assert layer.geometry.crop == ((pad, pad - extra),), said


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (4, 4)])
def test_upsampling_nearest_is_exact(worker: Callable[[str], Worker], size: tuple[int, int]) -> None:
    case = Case({"size": size, "interpolation": "nearest"}, {}, integers(0, 2, 3, 4, 5))
    (y,) = worker("tensorflow").evaluate("upsampling")([case])
    assert_same(y, keras.upsampling(size, 3), case.x, size)


def test_upsampling_nearest_in_one_and_three_dimensions(worker: Callable[[str], Worker]) -> None:
    one = Case({"size": 3}, {}, integers(0, 1, 2, 4))
    three = Case({"size": (2, 1, 3)}, {}, integers(0, 1, 2, 2, 3, 2))
    first, second = worker("tensorflow").evaluate("upsampling")([one, three])
    assert_same(first, keras.upsampling(3, 2, rank=1), one.x, one)
    assert_same(second, keras.upsampling((2, 1, 3), 2, rank=3), three.x, three)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (4, 2), (5, 3)])
def test_upsampling_bilinear_differs_by_the_stated_amount_at_the_borders(
    worker: Callable[[str], Worker], size: tuple[int, int]
) -> None:
    """Keras repeats the edge where the layer has zeros; inside, out of reach of the edges, they agree."""
    x = integers(0, 1, 2, 4, 5) + 10
    row = np.broadcast_to(x[:, :, :1], x.shape).copy()  # the same in every row: the columns' borders alone
    cases = [Case({"size": size, "interpolation": "bilinear"}, {}, data) for data in (x, row)]
    clamped, along = worker("tensorflow").evaluate("upsampling")(cases)
    layer = keras.upsampling(size, 2, interpolation="bilinear")
    zeros = expected(layer, x)
    rows, columns = (slice(f // 2, -(f // 2)) for f in size)
    np.testing.assert_allclose(zeros[:, :, rows, columns], clamped[:, :, rows, columns], rtol=2e-6)
    assert np.abs(zeros - clamped).max() > 1

    missing = np.array([float(share) for share in keras.border_deficit(size[1], x.shape[3])])
    near_start = np.arange(len(missing)) < len(missing) / 2
    edge = np.where(near_start, row[:, :, :1, :1], row[:, :, :1, -1:])
    middle = slice(rows.start, rows.stop)
    repaired = expected(layer, row)[:, :, middle] + missing * edge
    np.testing.assert_allclose(repaired, along[:, :, middle], rtol=2e-6)


def test_a_config_a_serialised_layer_and_a_layer_read_alike() -> None:
    class Model:
        rank = 2

        def get_config(self) -> dict[str, Any]:
            return {"name": "up", "filters": 2, "kernel_size": (4, 4), "strides": (2, 2), "padding": "same",
                    "activation": "linear", "kernel_initializer": {}, "trainable": True}  # fmt: skip

        def get_weights(self) -> list[np.ndarray]:
            return [integers(0, 4, 4, 2, 3), integers(0, 2)]

    direct = keras.read(Model())
    named = keras.read({"class_name": "Conv2DTranspose", "config": Model().get_config()}, c_in=3)
    assert direct.without_weights() == named == keras.read(Model().get_config(), c_in=3)
    assert direct.bias is not None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"padding": "causal"}, "padding: expected 'valid' or 'same', got 'causal'"),
        ({"strides": 2, "output_padding": 2}, "output_padding: expected less than the stride 2, got 2"),
        ({"strides": 2, "dilation_rate": 2}, "dilation_rate: expected 1 where strides are above 1"),
        ({"activation": "relu"}, "activation: expected 'linear'"),
        ({"groups": 2}, "groups: expected 1, all that Keras' transposed layers have, got 2"),
        ({"stride": 2}, "parameters: expected names that Keras has, got stride"),
    ],
)
def test_what_keras_does_not_take(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        keras.read({"filters": 1, "kernel_size": 3, **parameters}, c_in=1)


def test_an_upsampling_is_read_by_its_size() -> None:
    assert keras.read({"size": (2, 3)}, c_in=4) == keras.upsampling((2, 3), 4)
    said = {
        "class_name": "UpSampling2D",
        "config": {"size": 2, "interpolation": "bilinear", "data_format": "channels_last"},
    }
    assert keras.read(said, c_in=1) == keras.upsampling(2, 1, interpolation="bilinear")
    assert keras.read({"class_name": "UpSampling3D", "config": {"size": (1, 2, 3)}}, c_in=1).rank == 3
    with pytest.raises(ArgumentError, match="c_in: expected the number of channels, which UpSampling does not say"):
        keras.read({"size": 2})


def test_what_is_no_layer() -> None:
    with pytest.raises(ArgumentError, match=r"layer: expected a keras\.layers.Conv2DTranspose, got int"):
        keras.read(3)
    with pytest.raises(ArgumentError, match="interpolation: expected 'nearest' or 'bilinear', got 'area'"):
        keras.upsampling(2, 1, interpolation="area")


def test_pytorchs_output_padding_is_refused_with_a_slice_for_closest() -> None:
    shifted = Layer(Geometry(3, 2, 1, ((1, 0), (1, 0))), 1, 1)
    with pytest.raises(RefusalError, match=r"Keras cannot say this layer: padding: .* closest: padding='valid'"):
        keras.write(shifted)
