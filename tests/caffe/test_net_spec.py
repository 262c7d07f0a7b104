"""NetSpec: the prototxt that a specification in Python comes to."""

# ruff: noqa: C408  (dict(...) is how specifications are written)

import subprocess
import sys

import numpy as np
import pytest
from google.protobuf import text_format

import upscore.caffe as caffe
from upscore.caffe import layers as L
from upscore.caffe import params as P
from upscore.caffe import schema
from upscore.errors import ArgumentError, ArgumentTypeError


def parsed(text):
    """A net from text, by protobuf's own parser."""
    return text_format.Parse(text, schema.NetParameter())


def test_names_fields_and_fillers():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 40, 50]))
    n.conv1 = L.Convolution(
        n.data,
        num_output=8,
        kernel_size=[5, 3],
        pad=2,
        group=1,
        weight_filler=dict(type="xavier"),
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)],
    )
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1, n.mask1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2, ntop=2)
    n.drop = L.Dropout(n.pool1, dropout_ratio=0.3, include=dict(phase=caffe.TRAIN))
    n.up = L.Deconvolution(n.drop, convolution_param=dict(num_output=8, kernel_size=4, stride=2), loss_weight=3)
    expected = parsed("""
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 40 dim: 50 } } }
    layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
      param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
      convolution_param { num_output: 8 kernel_size: 5 kernel_size: 3 pad: 2 group: 1
        weight_filler { type: "xavier" } } }
    layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" top: "mask1"
      pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: "drop" type: "Dropout" bottom: "pool1" top: "drop" include { phase: TRAIN }
      dropout_param { dropout_ratio: 0.3 } }
    layer { name: "up" type: "Deconvolution" bottom: "drop" top: "up" loss_weight: 3
      convolution_param { num_output: 8 kernel_size: 4 stride: 2 } }
    """)
    assert n.to_proto() == expected
    assert parsed(str(n.to_proto())) == expected


def test_unnamed_layers_are_called_after_their_type():
    n = caffe.NetSpec()
    n.data, n.label = L.Input(ntop=2, shape=[dict(dim=[1, 3]), dict(dim=[1])])
    n.loss = L.SoftmaxWithLoss(L.InnerProduct(L.ReLU(L.InnerProduct(n.data, num_output=5)), num_output=2), n.label)
    assert [layer.name for layer in n.to_proto().layer] == ["data", "InnerProduct1", "ReLU1", "InnerProduct2", "loss"]
    assert list(n.to_proto().layer[-1].bottom) == ["InnerProduct2", "label"]


def test_a_layer_without_tops_can_be_named():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[2]))
    n.silence = L.Silence(n.data, ntop=0)
    layer = n.to_proto().layer[-1]
    assert (layer.name, list(layer.top)) == ("silence", [])


def test_fields_of_layers_without_a_message_of_their_own_name():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 2, 3, 4]))
    n.up = L.Deconvolution(n.data, num_output=2, kernel_size=4, bias_term=False)
    n.loss = L.SoftmaxWithLoss(n.up, n.data, normalize=False, ignore_label=255, axis=1)
    n.distance = L.SigmoidCrossEntropyLoss(n.up, n.data, normalization=P.Loss.FULL)
    _, up, loss, distance = n.to_proto().layer
    assert (up.convolution_param.num_output, up.convolution_param.bias_term) == (2, False)
    assert (loss.loss_param.ignore_label, loss.loss_param.normalize, loss.softmax_param.axis) == (255, False, 1)
    assert distance.loss_param.normalization == schema.LossParameter.FULL


def test_numpy_numbers_and_messages_are_values_too():
    filler = schema.FillerParameter(type="gaussian", std=0.5)
    n = caffe.NetSpec()
    n.data = L.Input(shape=[schema.BlobShape(dim=[1, 2])])
    n.ip = L.InnerProduct(n.data, num_output=np.int64(3), weight_filler=filler)
    data, ip = n.to_proto().layer
    assert list(data.input_param.shape[0].dim) == [1, 2]
    assert ip.inner_product_param.num_output == 3
    assert ip.inner_product_param.weight_filler == filler


def test_items_are_attributes():
    n = caffe.NetSpec()
    n["data"] = L.Input(shape=dict(dim=[1]))
    n["a/b"] = L.ReLU(n.data)
    assert n["a/b"] is n.vals()[1]
    assert n.keys() == list(n) == ["data", "a/b"]
    assert "data" in n
    del n["a/b"]
    assert n.keys() == ["data"]
    other = caffe.NetSpec()
    other.update(n)
    assert other.to_proto() == n.to_proto() == n.get_all_tops()


def test_tops_alone_make_a_net():
    top = L.Convolution(L.Input(shape=dict(dim=[1, 1, 5, 5])), num_output=1, kernel_size=3)
    assert top.to_proto() == caffe.to_proto(top)
    assert [layer.type for layer in caffe.to_proto(top, L.Silence(top, ntop=0)).layer] == [
        "Input",
        "Convolution",
        "Silence",
    ]


def test_a_net_of_three_thousand_layers():
    n = caffe.NetSpec()
    top = L.Input(shape=dict(dim=[1]))
    for _ in range(3000):
        top = L.ReLU(top)
    n.end = top
    assert len(n.to_proto().layer) == 3001


def test_enumerations():
    assert (P.Pooling.STOCHASTIC, P.Eltwise.SUM, P.Solver.GPU) == (2, 1, 1)
    assert "MAX" in dir(P.Pooling)
    with pytest.raises(
        AttributeError, match=r"P.Pooling has no enumeration value 'MEAN'; it has: MAX, AVE, STOCHASTIC"
    ):
        _ = P.Pooling.MEAN
    with pytest.raises(AttributeError, match=r"P.Nothing has no enumeration value 'MAX'; it has: none"):
        _ = P.Nothing.MAX


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda n: L.ReLU("data"),
            ArgumentTypeError,
            "bottoms of ReLU: expected tops of other layers, got str as bottom 0",
        ),
        (lambda n: L.ReLU(n.data, ntop=2, in_place=True), ArgumentError, "in_place: expected as many tops as bottoms"),
        (
            lambda n: L.Pooling(n.data, size=2).to_proto(),
            ArgumentError,
            "L.Pooling: expected a field of LayerParameter or of",
        ),
        (
            lambda n: L.Pooling(n.data, pooling_param=dict(kernel=2)).to_proto(),
            ArgumentError,
            "PoolingParameter: expected one of its fields .*kernel_size.*, got 'kernel'",
        ),
        (
            lambda n: L.Pooling(n.data, kernel_size="two").to_proto(),
            ArgumentTypeError,
            "kernel_size: expected a value that the field can hold, got 'two'",
        ),
        (lambda n: setattr(n, "x", 3), ArgumentTypeError, "x: expected a top of a layer, got 3"),
    ],
)
def test_mistakes_are_named(make, error, message):
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1]))
    with pytest.raises(error, match=message):
        make(n)


def test_a_missing_top_is_named():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1]))
    with pytest.raises(AttributeError, match="the NetSpec has no top 'date'; it has: data"):
        _ = n.date
    with pytest.raises(AttributeError, match="no top 'date'"):
        del n.date


def test_importing_the_package_brings_neither_torch_nor_protobuf():
    code = "import sys, upscore.caffe; print({'torch', 'google.protobuf', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match=r"module 'upscore.caffe' has no attribute 'Nett'; it has .*Net, "):
        _ = caffe.Nett
    with pytest.raises(AttributeError, match="is no layer type"):
        _ = L.convolution
