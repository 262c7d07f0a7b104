"""The nets of caffe_nets, filled."""

import pytest
from caffe_nets import CHAIN, LOSS, make, rand

import upscore.caffe as caffe


@pytest.fixture
def chain():
    net = make(CHAIN)
    net.blobs["data"].data[...] = rand(2, 3, 5, 4)
    return net


@pytest.fixture
def trained():
    net = make(CHAIN + LOSS, caffe.TRAIN)
    net.blobs["data"].data[...] = rand(2, 3, 5, 4)
    net.blobs["target"].data[...] = rand(2, 2, 12, 5, seed=1)
    return net
