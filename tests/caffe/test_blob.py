"""Blobs: what their NumPy views show, and whose memory they are."""

import numpy as np
import pytest
import torch

from upscore.caffe.blob import Blob, ParameterBlob
from upscore.errors import ArgumentError


def test_views_are_writable_and_stay_the_blob():
    blob = Blob((2, 3))
    view = blob.data
    view[...] = 1
    assert blob.tensor.tolist() == [[1, 1, 1], [1, 1, 1]]
    blob.take(torch.full((2, 3), 7.0), own=True)
    assert view.tolist() == [[7, 7, 7], [7, 7, 7]]
    blob.diff[1, 2] = 5
    assert blob.gradient[1, 2] == 5


def test_a_slice_is_enough_to_hold_the_memory():
    blob = Blob((2, 3))
    row = blob.data[1]
    assert blob.held
    blob.take(torch.arange(6.0).reshape(2, 3), own=True)
    assert row.tolist() == [3, 4, 5]


def test_values_that_nobody_else_has_are_held_as_they_are():
    blob, value = Blob((2, 3)), torch.ones(2, 3)
    blob.data[...] = 4  # this view is gone at the end of the line
    assert not blob.held
    blob.take(value, own=True)
    assert blob.tensor.data_ptr() == value.data_ptr()
    blob.take(2 * value)
    assert blob.tensor.data_ptr() == value.data_ptr()
    assert value[0, 0] == 2


def test_other_dtypes_and_strides_become_plain_floats():
    blob = Blob((2, 3))
    blob.take(torch.arange(6, dtype=torch.float64).reshape(3, 2).t(), own=True)
    assert blob.data.dtype == np.float32
    assert blob.data.flags.c_contiguous
    assert blob.data.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_reshape_keeps_the_memory_while_it_is_large_enough():
    blob = Blob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    view = blob.data
    blob.reshape(3, 1)
    assert blob.data.tolist() == [[0], [1], [2]]
    blob.reshape(2, 3)
    assert blob.data.tolist() == [[0, 1, 2], [3, 4, 5]]
    view[0, 0] = 9
    assert blob.data[0, 0] == 9
    blob.reshape(4, 3)
    assert blob.data.shape == blob.diff.shape == (4, 3)


def test_legacy_sizes():
    blob = Blob((5, 6, 7))
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (5, 6, 7, 1, 210)
    with pytest.raises(ArgumentError, match=r"expected a blob of at most 4 axes, got shape \(1, 1, 1, 1, 1\)"):
        _ = Blob((1, 1, 1, 1, 1)).num


def test_negative_sizes_are_refused():
    with pytest.raises(ArgumentError, match=r"shape: expected sizes of at least 0, got \(2, -1\)"):
        Blob().reshape(2, -1)


class TestParameters:
    def test_memory_is_the_parameters(self):
        parameter = torch.nn.Parameter(torch.zeros(2, 3))
        blob = ParameterBlob(parameter)
        blob.data[1] = 3
        blob.diff[0] = 2
        assert parameter.tolist() == [[0, 0, 0], [3, 3, 3]]
        assert parameter.grad.tolist() == [[2, 2, 2], [0, 0, 0]]

    def test_reshape(self):
        parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        blob = ParameterBlob(parameter)
        assert blob.diff.shape == (2, 3)
        blob.reshape(3, 2)
        assert parameter.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert blob.diff.shape == (3, 2)

    def test_sharing_is_of_values_and_not_of_gradients(self):
        one, other = (ParameterBlob(torch.nn.Parameter(torch.full((2,), v))) for v in (1.0, 2.0))
        one.share(other)
        other.data[0] = 5
        other.diff[...] = 1
        assert one.data.tolist() == [5, 2]
        assert one.diff.tolist() == [0, 0]
        with pytest.raises(ArgumentError, match=r"other: expected a blob of shape \(2,\), got \(3,\)"):
            one.share(ParameterBlob(torch.nn.Parameter(torch.zeros(3))))
