"""Layers written in Python: their life, their gradients, their parameters, and what goes wrong."""

import sys

import numpy as np
import pytest

import upscore.caffe as caffe
from upscore.caffe.modules import LayerError

PROGRAM = '''
import json
import numpy as np
import upscore.caffe as caffe


class Scale(caffe.Layer):
    """y = factor * x, and how often it was set up and reshaped."""

    calls = []

    def setup(self, bottom, top):
        self.calls.append("setup")
        self.factor = json.loads(self.param_str)["factor"]
        if len(bottom) != 1:
            raise Exception("Scale takes one bottom")

    def reshape(self, bottom, top):
        self.calls.append("reshape")
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff


class Distance(caffe.Layer):
    """The Euclidean loss, as the pycaffe tutorials write it."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("Need two inputs to compute distance.")

    def reshape(self, bottom, top):
        self.difference = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * self.difference / bottom[i].num * top[0].diff


class Counter(caffe.Layer):
    """A data layer: batches 0, 1, 2 ... of a size that changes."""

    def setup(self, bottom, top):
        self.count = 0

    def reshape(self, bottom, top):
        top[0].reshape(1 + self.count % 2, 3)
        top[1].reshape(1)

    def forward(self, bottom, top):
        top[0].data[...] = self.count
        top[1].data[...] = self.phase
        self.count += 1

    def backward(self, top, propagate_down, bottom):
        pass


class Bias(caffe.Layer):
    """Adds a parameter that it learns."""

    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += top[0].diff.sum(0)
        bottom[0].diff[...] = top[0].diff


class Older(caffe.Layer):
    def __init__(self, p, *args, **kwargs):
        super().__init__(p, *args, **kwargs)
        self.made_for = p.name

    def reshape(self, bottom, top):
        top[0].reshape(len(self.made_for), len(self.param_str_))

    def forward(self, bottom, top):
        top[0].data[...] = 2


class NoLayer:
    pass


class Unfinished(caffe.Layer):
    pass
'''

X = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'


def layer(kind, bottoms="", tops='top: "y"', extra="", module="written_layers"):
    return f"""layer {{ name: "{kind}" type: "Python" {bottoms} {tops} {extra}
      python_param {{ module: "{module}" layer: "{kind}" param_str: '{{"factor": 2}}' }} }}"""


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    (tmp_path / "written_layers.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "written_layers", raising=False)
    yield
    sys.modules.pop("written_layers", None)


def test_forward_and_backward():
    net = caffe.Net("force_backward: true " + X + layer("Scale", 'bottom: "x"'), caffe.TEST)
    assert net.forward(x=[[1, 2, 3], [4, 5, 6]])["y"].tolist() == [[2, 4, 6], [8, 10, 12]]
    assert net.backward(y=np.full((2, 3), 5))["x"].tolist() == [[10, 10, 10], [10, 10, 10]]


def test_setup_once_and_reshape_before_every_forward():
    net = caffe.Net(X + layer("Scale", 'bottom: "x"'), caffe.TEST)
    calls = sys.modules["written_layers"].Scale.calls
    assert calls[0] == "setup"
    del calls[:]
    net.forward()
    net.forward()
    assert calls == ["reshape", "reshape"]
    net.blobs["x"].reshape(4, 3)
    assert net.forward()["y"].shape == (4, 3)
    assert "setup" not in calls


def test_a_loss_in_python_learns_as_caffes_own():
    inner = """layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2
      weight_filler { type: "constant" value: 0.3 } } }
    layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 2 dim: 2 } } }"""
    found = []
    for loss in (
        layer("Distance", 'bottom: "ip" bottom: "t"', 'top: "loss"', "loss_weight: 1"),
        'layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }',
    ):
        net = caffe.Net(X + inner + loss, caffe.TRAIN)
        net.forward(x=[[1, 2, 3], [-1, 0, 4]], t=[[0, 1], [1, 1]])
        net.backward()
        found.append((float(net.blobs["loss"].data.item()), net.params["ip"][0].diff.copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    assert found[0][1].any()


def test_data_layers_change_their_batches():
    source = layer("Counter", tops='top: "d" top: "phase"')
    net = caffe.Net(source + 'layer { name: "p" type: "Power" bottom: "d" top: "p" }', caffe.TEST)
    outs = [net.forward()["p"].copy() for _ in range(3)]
    assert [out.tolist() for out in outs] == [[[0] * 3], [[1] * 3] * 2, [[2] * 3]]
    assert net.blobs["phase"].data == caffe.TEST
    assert net.inputs == []


def test_parameters_are_learned_and_saved(tmp_path):
    text = (
        X + layer("Bias", 'bottom: "x"') + 'layer { name: "l" type: "Reduction" bottom: "y" top: "l" loss_weight: 1 }'
    )
    net = caffe.Net(text, caffe.TRAIN)
    assert net.forward(x=np.zeros((2, 3)))["l"] == 6
    for times in (1, 2):
        net.backward()
        assert net.params["Bias"][0].diff.tolist() == [2 * times] * 3
    net.params["Bias"][0].data[...] = [4, 5, 6]
    net.save(tmp_path / "b.caffemodel")
    again = caffe.Net(text, tmp_path / "b.caffemodel", caffe.TRAIN)
    assert again.forward(x=np.zeros((2, 3)))["l"] == 30


def test_classes_with_an_init_of_their_own():
    net = caffe.Net(layer("Older"), caffe.TEST)
    assert net.forward()["y"].shape == (5, 13)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            layer("Scale", module="no_such_module"),
            LayerError,
            "module 'no_such_module' that can be imported.*PYTHONPATH",
        ),
        (layer("Missing"), LayerError, "expected a class 'Missing' in the module 'written_layers', which has none"),
        (layer("NoLayer"), LayerError, "expected 'NoLayer' to inherit from caffe.Layer"),
        (layer("Scale"), Exception, "Scale takes one bottom"),
    ],
)
def test_mistakes_are_named(text, error, message):
    with pytest.raises(error, match=message):
        caffe.Net(text, caffe.TEST)


def test_methods_that_are_missing():
    net = caffe.Net(layer("Unfinished"), caffe.TEST)
    with pytest.raises(NotImplementedError):
        net.forward()
    with pytest.raises(NotImplementedError):
        net.layers[0].module.layer.backward([], [], [])
