"""Max pooling with switches, and unpooling, against torch."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import upscore as up
from upscore.errors import ArgumentError, ArgumentTypeError

POOL = [None, *(getattr(torch.nn.functional, f"max_pool{rank}d") for rank in (1, 2, 3))]
UNPOOL = [None, *(getattr(torch.nn.functional, f"max_unpool{rank}d") for rank in (1, 2, 3))]


@st.composite
def pools(draw):
    """An input with many ties, some infinities and some NaN, and a window that torch accepts."""
    rank = draw(st.integers(1, 3))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, stride = per_axis(1, 4), per_axis(1, 4)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(
        draw(st.integers(max(1, k - 2 * p), {1: 12, 2: 8, 3: 6}[rank])) for k, p in zip(kernel, padding, strict=True)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-3, 3, (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)).astype(np.float32)
    special = rng.random(x.shape)
    x[special < draw(st.sampled_from([0, 0.2, 1]))] = -np.inf
    x[special > draw(st.sampled_from([1, 0.9]))] = np.nan
    return x, {"stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}, kernel


@given(pools())
def test_max_pool_is_torchs_with_the_same_switches(case):
    x, options, kernel = case
    values, switches = up.max_pool(x, kernel, **options)
    theirs, indices = POOL[x.ndim - 2](torch.from_numpy(x), kernel, **options, return_indices=True)
    np.testing.assert_array_equal(values, theirs.numpy())
    np.testing.assert_array_equal(switches, indices.numpy())
    assert switches.dtype == np.int64


@given(pools())
def test_max_unpool_is_torchs(case):
    x, options, kernel = case
    options["stride"], options["padding"] = kernel, 0  # windows apart: no switch comes twice
    if any(n < k for n, k in zip(x.shape[2:], kernel, strict=True)):
        kernel = options["stride"] = (1,) * len(kernel)
    values, switches = up.max_pool(x, kernel, **options)
    size = x.shape[2:]
    theirs = UNPOOL[x.ndim - 2](torch.from_numpy(values), torch.from_numpy(switches), kernel, kernel, 0, size)
    np.testing.assert_array_equal(up.max_unpool(values, switches, size), theirs.numpy())


@pytest.mark.parametrize(("size", "kernel"), [((3, 5, 4, 6), (2, 3, 1, 2)), ((2, 3, 2, 3, 4), (1, 2, 2, 3, 2))])
def test_ranks_that_torch_does_not_have(size, kernel):
    """By the definition: the windows of NumPy, and the values found again at their switches."""
    x = np.random.default_rng(4).standard_normal((2, 3, *size))
    stride = tuple(range(1, len(size) + 1))
    values, switches = up.max_pool(x, kernel, stride=stride)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=tuple(range(2, x.ndim)))
    windows = windows[(..., *(slice(None, None, s) for s in stride), *[slice(None)] * len(size))]
    np.testing.assert_array_equal(values, windows.max(axis=tuple(range(-len(size), 0))))
    flat = x.reshape(2, 3, -1)
    np.testing.assert_array_equal(
        np.take_along_axis(flat, switches.reshape(2, 3, -1), axis=2), values.reshape(2, 3, -1)
    )
    restored = up.max_unpool(values, switches, size).reshape(2, 3, -1)
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, switches.reshape(2, 3, -1), True, axis=2)
    np.testing.assert_array_equal(restored, np.where(kept, flat, 0))


def test_first_of_equal_maxima_and_last_of_nans_win():
    x = np.array([[[2.0, 7.0, 7.0, np.nan, 1.0, np.nan]]])
    values, switches = up.max_pool(x, 3)
    assert values[0, 0].tolist()[0] == 7.0
    assert math.isnan(values[0, 0, 1])
    assert switches.tolist() == [[[1, 5]]]


def test_a_plane_of_minus_infinity_has_switches_inside():
    x = np.full((1, 1, 4, 3), -np.inf)
    values, switches = up.max_pool(x, (3, 2), stride=(2, 2), padding=((1, 0), (0, 1)))
    assert np.all(values == -np.inf)
    assert switches.tolist() == [[[[0, 2], [3, 5]]]]


def test_asymmetric_padding_is_what_padding_by_hand_gives():
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 5))
    values, _ = up.max_pool(x, (3, 4), stride=(2, 3), padding=((2, 1), (0, 3)))
    by_hand = np.pad(x, ((0, 0), (0, 0), (2, 1), (0, 3)), constant_values=-np.inf)
    np.testing.assert_array_equal(values, up.max_pool(by_hand, (3, 4), stride=(2, 3))[0])


def test_enormous_kernel_and_stride_see_the_input_once():
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 2))
    values, switches = up.max_pool(x, 10**12, stride=10**30, padding=((0, 10**12 - 1), (10**12 - 2, 0)))
    np.testing.assert_array_equal(values[0, :, 0, 0], x.max((0, 2, 3)))
    np.testing.assert_array_equal(switches[0, :, 0, 0], x.reshape(2, 6).argmax(1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ">f4"])
def test_values_keep_their_dtype_and_switches_are_int64(dtype):
    x = np.random.default_rng(1).standard_normal((2, 2, 6, 4)).astype(dtype)
    values, switches = up.max_pool(x, (3, 2))
    assert values.dtype == np.dtype(dtype).newbyteorder("=")
    assert switches.dtype == np.int64
    restored = up.max_unpool(values, switches, (6, 4))
    assert restored.dtype == values.dtype
    assert np.count_nonzero(restored) == values.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_tensors_come_back_as_torch_tensors(dtype):
    x = torch.randn(2, 3, 6, 8).to(dtype)
    values, switches = up.max_pool(x, (2, 4), stride=(2, 3))
    theirs, indices = torch.nn.functional.max_pool2d(x, (2, 4), (2, 3), return_indices=True)
    assert torch.equal(values, theirs)
    assert torch.equal(switches, indices)
    assert values.dtype == dtype
    restored = up.max_unpool(values, switches, (6, 8))
    assert restored.dtype == dtype
    assert restored.shape == x.shape


def test_batch_zero_and_readonly_and_strided_input():
    values, switches = up.max_pool(np.zeros((0, 3, 6, 4), np.float32), 2)
    assert values.shape == switches.shape == (0, 3, 3, 2)
    assert up.max_unpool(values, switches, (6, 4)).shape == (0, 3, 6, 4)
    x = np.random.default_rng(2).standard_normal((4, 12, 3, 2)).transpose(3, 2, 0, 1)[:, :, ::-1, ::2]
    x.flags.writeable = False
    for ours, theirs in zip(up.max_pool(x, (2, 3)), up.max_pool(np.ascontiguousarray(x), (2, 3)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_of_repeated_switches_one_value_stays():
    y = up.max_unpool(np.array([[[3.0, 4.0, 5.0]]]), np.array([[[1, 1, 0]]], np.uint8), 3)
    assert y.tolist() == [[[5.0, 4.0, 0.0]]]


X = np.zeros((1, 2, 6, 4), np.float32)
SWITCHES = np.zeros(X.shape, np.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: up.max_pool(X[0, 0], 2), "x: expected at least 3 dimensions (N, C, *spatial), got shape (6, 4)"),
        (lambda: up.max_pool(X, (2, 2, 2)), "kernel: expected one integer, or 2 of them (one per axis), got (2, 2, 2)"),
        (lambda: up.max_pool(X, 0), "kernel: expected an integer of at least 1, got 0; for example kernel=1"),
        (lambda: up.max_pool(X, 2, stride=0), "stride: expected an integer of at least 1, got 0"),
        (lambda: up.max_pool(X, 2, padding=-1), "padding: expected an integer of at least 0, got -1"),
        (lambda: up.max_pool(X, 3, padding=(1, 3)), "padding: expected less than the kernel's 3, got 3"),
        (
            lambda: up.max_pool(X, 7),
            "x: expected spatial axes that hold a window of 7, got 6 positions padded with 0 a",
        ),
        (lambda: up.max_pool(X[:, :, :0], 1), "x: expected spatial axes that hold a window of 1, got 0 positions"),
        (
            lambda: up.max_pool(X, 2**61, stride=1, padding=2**61 - 1),
            "padding: expected an output that fits into memory",
        ),
        (lambda: up.max_pool(X.astype(int), 2), "x: expected float32, float64, float16 or bfloat16 numbers, got int64"),
        (lambda: up.max_pool([[[1.0]]], 1), "x: expected a NumPy or DLPack array, got list"),
        (lambda: up.max_unpool(X[0, 0], SWITCHES[0, 0], 6), "values: expected at least 3 dimensions"),
        (
            lambda: up.max_unpool(X, SWITCHES[:1, :1], 6),
            "switches: expected the shape of values, (1, 2, 6, 4), got (1, 1",
        ),
        (
            lambda: up.max_unpool(X, X, 6),
            "switches: expected integers, got float32; for example switches.astype('int64')",
        ),
        (
            lambda: up.max_unpool(X, SWITCHES + 36, 6),
            "switches: expected positions from 0 to 35, inside (6, 6), got 36",
        ),
        (lambda: up.max_unpool(X, SWITCHES - 1, 6), "switches: expected positions from 0 to 35, inside (6, 6), got -1"),
        (lambda: up.max_unpool(X, SWITCHES.astype("u8") + 2**63, 6), "switches: expected positions from 0 to 35"),
        (lambda: up.max_unpool(X, SWITCHES, 0), "output_size: expected an integer of at least 1, got 0"),
        (lambda: up.max_unpool(X, SWITCHES, 2**31), "output_size: expected an output that fits into memory"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ArgumentError) as error:
        call()
    assert words in str(error.value)
    assert "; for example " in str(error.value)


def test_wrong_kinds_of_array_are_type_errors():
    with pytest.raises(ArgumentTypeError, match="integers"):
        up.max_unpool(X, X, 6)
