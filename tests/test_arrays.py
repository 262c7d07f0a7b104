"""What comes in decides what goes out: NumPy of every layout, torch tensors, jax arrays, half precision."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import upscore as up
from upscore.arrays import read, read_integers, wrap_as
from upscore.errors import ArgumentTypeError

RNG = np.random.default_rng(0)
X, W = RNG.random((2, 4, 5, 7), np.float32), RNG.random((4, 3, 3, 2), np.float32)
BIAS = RNG.random(6, np.float32)
OPTIONS = {"stride": (2, 3), "padding": ((1, 0), (0, 2)), "groups": 2}
Y = up.conv_transpose(X, W, BIAS, **OPTIONS)


def sliced(a):
    """Every other element of a wider array, so that no axis is contiguous."""
    wide = np.zeros([2 * n + 1 for n in a.shape], a.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def misaligned(a):
    """The same numbers, one byte after an aligned address."""
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def read_only(a):
    view = a.view()
    view.flags.writeable = False
    return view


LAYOUTS = {
    "sliced": sliced,
    "misaligned": misaligned,
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "subclass": lambda a: a.view(np.memmap),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layout_does_not_matter(layout, dtype):
    x, w, bias = (a.astype(dtype) for a in (X, W, BIAS))
    y = up.conv_transpose(x, w, bias, **OPTIONS)
    grad_y = RNG.random(y.shape).astype(dtype)
    change = LAYOUTS[layout]
    ours = up.conv_transpose(change(x), change(w), change(bias), **OPTIONS)
    assert type(ours) is np.ndarray
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(up.plan(change(w), change(bias), **OPTIONS)(change(x)), y)
    plain = up.conv_transpose_backward(grad_y, x, w, **OPTIONS)
    for ours, theirs in zip(
        up.conv_transpose_backward(change(grad_y), change(x), change(w), **OPTIONS), plain, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(up.conv(change(grad_y), change(w), **OPTIONS), up.conv(grad_y, w, **OPTIONS))


def test_broadcast_input():
    x = np.broadcast_to(np.float32(0.5), (1, 4, 3, 6))
    np.testing.assert_array_equal(up.conv_transpose(x, W, **OPTIONS), up.conv_transpose(x.copy(), W, **OPTIONS))


def test_arguments_are_left_as_they_were():
    x, w, bias = X.copy(), W.copy(), BIAS.copy()
    grad_y = np.ones_like(up.conv_transpose(x, w, bias, **OPTIONS))
    up.conv_transpose_backward(grad_y, x, w, **OPTIONS)
    for now, before in ((x, X), (w, W), (bias, BIAS)):
        np.testing.assert_array_equal(now, before)
    assert np.all(grad_y == 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.dtype(np.float16).newbyteorder()])
def test_half_precision_is_computed_in_float32(dtype):
    x, w, bias = (a.astype(dtype) for a in (X, W, BIAS))
    native = np.dtype(dtype).newbyteorder("=")
    y32 = up.conv_transpose(*(a.astype(np.float32) for a in (x, w, bias)), **OPTIONS)
    y = up.conv_transpose(x, w, bias, **OPTIONS)
    assert y.dtype == native
    np.testing.assert_array_equal(y, y32.astype(native))
    grads = up.conv_transpose_backward(y, x, w, **OPTIONS)
    wide = up.conv_transpose_backward(y.astype(np.float32), x.astype(np.float32), w.astype(np.float32), **OPTIONS)
    for ours, theirs in zip(grads, wide, strict=True):
        assert ours.dtype == native
        np.testing.assert_array_equal(ours, theirs.astype(native))
    assert up.plan(w, bias, **OPTIONS)(x).dtype == native


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_tensors_come_back_as_torch_tensors(dtype):
    x, w, bias = (torch.from_numpy(a).to(dtype) for a in (X, W, BIAS))
    y = up.conv_transpose(x, w, bias, **OPTIONS)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = up.conv_transpose(x.to(wide).numpy(), w.to(wide).numpy(), bias.to(wide).numpy(), **OPTIONS)
    assert torch.equal(y, torch.from_numpy(theirs).to(dtype))
    grads = up.conv_transpose_backward(y, x, w, **OPTIONS)
    assert [g.shape for g in grads] == [x.shape, w.shape, bias.shape]
    assert all(g.dtype == dtype for g in grads)
    assert torch.equal(up.plan(w, bias, **OPTIONS)(x), y)
    y += 1  # it is an ordinary tensor: writable


def test_torch_views_are_read_as_they_are():
    x = torch.from_numpy(X).to(memory_format=torch.channels_last)[:, :, :, 1:-1:2]
    theirs = up.conv_transpose(x.contiguous().numpy(), W, **OPTIONS)
    assert torch.equal(up.conv_transpose(x, W, **OPTIONS), torch.from_numpy(theirs))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_arrays_come_back_as_jax_arrays(dtype):
    x, w, bias = (jax.numpy.asarray(a, dtype) for a in (X, W, BIAS))
    y = up.conv_transpose(x, w, bias, **OPTIONS)
    assert isinstance(y, jax.Array)
    assert y.dtype == jax.numpy.dtype(dtype)
    theirs = up.conv_transpose(*(np.asarray(a, np.float32) for a in (x, w, bias)), **OPTIONS)
    np.testing.assert_array_equal(np.asarray(y, np.float32), theirs.astype(y.dtype).astype(np.float32))


def test_the_input_decides_the_kind_and_the_weights_that_of_their_gradients():
    assert isinstance(up.conv_transpose(torch.from_numpy(X), W, jax.numpy.asarray(BIAS), **OPTIONS), torch.Tensor)
    assert isinstance(up.conv_transpose(X, torch.from_numpy(W), **OPTIONS), np.ndarray)
    grads = up.conv_transpose_backward(Y, X, torch.from_numpy(W), **OPTIONS)
    assert [type(g) for g in grads] == [np.ndarray, torch.Tensor, torch.Tensor]


class Shared:
    """An array of a library that speaks DLPack and has no from_dlpack: NumPy comes back."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_any_library_that_speaks_dlpack():
    y = up.conv_transpose(Shared(X), Shared(W), Shared(BIAS), **OPTIONS)
    np.testing.assert_array_equal(y, Y)


def test_read_shares_memory_where_it_can():
    assert np.shares_memory(read("x", X)[0], X)
    tensor = torch.zeros(3)
    array, restore = read("x", tensor)
    array[1] = 5
    assert tensor.tolist() == [0, 5, 0]
    assert restore(array).tolist() == [0, 5, 0]
    assert read("x", np.array(2.0))[0].shape == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_gives_what_the_engine_can_read(layout):
    array, _ = read("x", LAYOUTS[layout](X))
    assert type(array) is np.ndarray
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, X)


def test_read_integers():
    assert read_integers("i", np.array([[1, 2]], np.uint8)).dtype == np.int64
    assert read_integers("i", torch.tensor([3])).tolist() == [3]
    with pytest.raises(ArgumentTypeError, match=r"i: expected integers, got bool; for example i\.astype\('int64'\)"):
        read_integers("i", np.array([True]))


def test_wrap_as():
    assert wrap_as(X)(Y) is Y
    assert isinstance(wrap_as(torch.zeros(1))(Y.copy()), torch.Tensor)
    assert isinstance(wrap_as(jax.numpy.zeros(1))(Y.copy()), jax.Array)
    assert isinstance(wrap_as(Shared(X))(Y), np.ndarray)
