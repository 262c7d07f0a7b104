"""The backward pass, layer by layer: what it computes, what it passes over, where programs may step in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_nets import CHAIN, LOSS, make, rand
from hypothesis import given, settings
from hypothesis import strategies as st

import upscore.caffe as caffe

GOLDEN = Path(__file__).parents[1] / "golden/caffe"


def test_every_number_of_caffe():
    """Blobs and diffs of a small U-net, as Caffe computed them; in place the diff is that before the ReLU."""
    golden = np.load(GOLDEN / "tiny_unet.npz")
    net = caffe.Net(GOLDEN / "tiny_unet.prototxt", GOLDEN / "tiny_unet.caffemodel", caffe.TEST)
    for name in ("data", "target"):
        net.blobs[name].data[...] = golden[f"blob/{name}"]
    net.forward()
    net.backward()
    names = [name for name in golden.files if "/" in name]
    assert len(names) == 36
    for name in names:
        kind, rest = name.split("/", 1)
        if kind in ("blob", "diff"):
            got = getattr(net.blobs[rest], {"blob": "data", "diff": "diff"}[kind])
        else:
            layer, index = rest.split("/")
            got = getattr(net.params[layer][int(index)], {"param": "data", "param_diff": "diff"}[kind])
        np.testing.assert_allclose(got, golden[name], rtol=0, atol=2e-6 * np.abs(golden[name]).max(), err_msg=name)


def test_parameter_diffs_add_up_and_blob_diffs_do_not(trained):
    trained.forward()
    trained.backward()
    once, hidden = trained.params["conv"][0].diff.copy(), trained.blobs["conv"].diff.copy()
    assert np.abs(once).min() > 0
    trained.backward()
    np.testing.assert_allclose(trained.params["conv"][0].diff, 2 * once, rtol=1e-6)
    np.testing.assert_array_equal(trained.blobs["conv"].diff, hidden)
    trained.clear_param_diffs()
    assert not trained.params["conv"][0].diff.any()


def test_the_loss_weight_scales_the_gradient_and_not_the_top(trained):
    trained.forward()
    trained.backward()
    up, target = trained.blobs["up"], trained.blobs["target"]
    assert trained.blobs["loss"].data == pytest.approx(((up.data - target.data) ** 2).sum() / 4, rel=1e-5)
    assert trained.blobs["loss"].diff == 3
    assert trained.blob_loss_weights["loss"] == 3
    np.testing.assert_allclose(up.diff, 3 * (up.data - target.data) / 2, rtol=1e-5)
    assert trained.forward_loss() == pytest.approx(3 * float(trained.blobs["loss"].data), rel=1e-6)


def test_nothing_happens_without_a_loss(chain):
    chain.forward()
    chain.blobs["up"].diff[...] = 1
    assert not chain.backward()["data"].any()
    assert not chain.params["up"][0].diff.any()


def test_force_backward_reaches_inputs_and_frozen_weights():
    text = CHAIN.replace('bottom: "conv" top: "up"', 'bottom: "conv" top: "up" param { lr_mult: 0 }')
    net = make("force_backward: true " + text)
    net.forward(data=rand(2, 3, 5, 4))
    diff = net.backward(up=np.ones((2, 2, 12, 5)))["data"]
    assert diff.any()
    assert net.params["up"][0].diff.any()
    quiet = make(text + LOSS)
    quiet.forward()
    quiet.backward()
    assert not quiet.params["up"][0].diff.any()
    assert quiet.params["up"][1].diff.any()
    assert not quiet.blobs["data"].diff.any()


def test_layers_under_which_nothing_learns_are_passed_over():
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    net = make(CHAIN.replace('top: "conv"\n', f'top: "conv" {frozen}\n') + LOSS)
    net.forward(data=rand(2, 3, 5, 4), target=rand(2, 2, 12, 5))
    net.backward()
    assert net.params["up"][0].diff.any()
    assert not net.blobs["conv"].diff.any()
    assert not net.params["conv"][0].diff.any()


def test_propagate_down_stops_it():
    net = make(CHAIN.replace('name: "up"', 'name: "up" propagate_down: false') + LOSS)
    net.forward(data=rand(2, 3, 5, 4), target=rand(2, 2, 12, 5))
    net.backward()
    assert net.params["up"][0].diff.any()
    assert not net.params["conv"][0].diff.any()


def test_gradients_of_all_readers_add_up():
    text = """force_backward: true
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }
    layer { name: "a" type: "Power" bottom: "x" top: "a" power_param { scale: 2 } }
    layer { name: "b" type: "Power" bottom: "x" top: "b" power_param { scale: 3 } }
    layer { name: "b2" type: "Power" bottom: "b" top: "b" power_param { scale: 5 } }
    layer { name: "c" type: "Eltwise" bottom: "a" bottom: "b" top: "c" }
    layer { name: "d" type: "Eltwise" bottom: "c" bottom: "x" top: "d" }"""
    net = make(text)
    net.forward(x=[1, 2])
    for _ in range(2):
        assert net.backward(d=[1, 10])["x"].tolist() == [2 + 15 + 1, 180]
    assert net.blobs["b"].diff.tolist() == [5, 50]  # before the layer in place


def test_a_loss_that_is_also_read():
    text = (
        CHAIN
        + LOSS
        + 'layer { name: "sq" type: "Power" bottom: "loss" top: "sq" power_param { power: 2 } loss_weight: 0.5 }'
    )
    net = make(text)
    net.forward(data=rand(2, 3, 5, 4), target=rand(2, 2, 12, 5))
    for _ in range(2):
        net.backward()
        assert net.blobs["loss"].diff == pytest.approx(3 + 0.5 * 2 * float(net.blobs["loss"].data), rel=1e-6)


def test_parts(trained):
    trained.forward()
    trained.backward()
    whole = trained.blobs["conv"].diff.copy()
    trained.blobs["conv"].diff[...] = 0
    out = trained.backward(start="up", end="up")
    assert list(out) == ["conv"]
    assert not np.array_equal(out["conv"], whole)  # the ReLU has not been passed
    np.testing.assert_array_equal(trained.backward(start="relu", end="relu")["conv"], whole)


def test_a_diff_set_by_the_program_is_where_it_begins(trained):
    """What feature visualisation does: the gradient of one hidden activation."""
    trained.forward()
    trained.blobs["conv"].diff[...] = 0
    trained.blobs["conv"].diff[0, 1, 2, 3] = 1
    trained.backward(start="conv")
    weight = trained.params["conv"][1].diff
    assert weight.tolist() == [0, 1, 0, 0]


def test_backward_before_any_forward_uses_the_blobs_as_they_are(trained):
    trained.backward()
    np.testing.assert_allclose(trained.blobs["up"].diff, 3 * -trained.blobs["target"].data / 2, rtol=1e-6)


def test_backward_after_reshape_without_forward(trained):
    trained.forward()
    for name in ("data", "target"):
        trained.blobs[name].reshape(1, *trained.blobs[name].shape[1:])
    trained.reshape()
    trained.backward()
    assert trained.blobs["conv"].diff.shape == (1, 4, 5, 4)
    assert trained.blobs["conv"].diff.any()


@pytest.mark.parametrize("type_", ["PReLU", "Sigmoid", "TanH", "ELU", "Scale", "Dropout", "Power"])
@pytest.mark.parametrize("held", [False, True])
def test_in_place_layers_have_the_gradients_of_those_that_are_not(type_, held):
    own = "power_param { power: 2 shift: 3 }" if type_ == "Power" else ""
    found = []
    for top in ("conv", "other"):
        text = f"""
        layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
        layer {{ name: "conv" type: "Convolution" bottom: "x" top: "conv"
          convolution_param {{ num_output: 3 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "f" type: "{type_}" bottom: "conv" top: "{top}" {own} }}
        layer {{ name: "sum" type: "Reduction" bottom: "{top}" top: "sum" loss_weight: 1
          reduction_param {{ operation: SUMSQ }} }}"""
        net = make(text, caffe.TRAIN)
        views = [blob.data for blob in net.blobs.values()] if held else []
        torch.manual_seed(1)
        net.forward(x=rand(2, 3, 4, 5))
        net.backward()
        assert len(views) == (len(net.blobs) if held else 0)
        found.append([net.blobs["sum"].data.copy(), *(b.diff.copy() for bs in net.params.values() for b in bs)])
    for in_place, apart in zip(*found, strict=True):
        np.testing.assert_allclose(in_place, apart, rtol=1e-6)
    assert found[0][1].any()


@st.composite
def random_nets(draw):
    """Prototxts of layers that read any earlier blobs, work in place where nobody else has read, and end in losses."""
    lines = ['layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }']
    blobs, settled = ["x"], {"x"}  # settled: what in place must not change, because it was read or is a loss
    for i in range(draw(st.integers(2, 9))):
        kind = draw(st.sampled_from(["Convolution", "Deconvolution", "TanH", "Power", "Eltwise", "Scale"]))
        bottoms = [draw(st.sampled_from(blobs)) for _ in range(2 if kind == "Eltwise" else 1)]
        top = f"b{i}"
        frozen = draw(st.sampled_from(["", "param { lr_mult: 0 }"]))
        window = draw(st.sampled_from(["kernel_size: 1", "kernel_size: 3 pad: 1"]))
        filler = f'num_output: 3 {window} weight_filler {{ type: "gaussian" std: 0.3 }}'
        own = {
            "Convolution": f"{frozen} convolution_param {{ {filler} }}",
            "Deconvolution": f"{frozen} convolution_param {{ {filler} bias_term: false }}",
            "Power": "power_param { scale: 0.7 shift: 0.2 power: 2 }",
            "Eltwise": f"eltwise_param {{ operation: {draw(st.sampled_from(['SUM', 'PROD', 'MAX']))} }}",
            "Scale": f"{frozen} scale_param {{ filler {{ value: 1.5 }} bias_term: true }}",
        }.get(kind, "")
        weight = draw(st.sampled_from(["", "", "", "loss_weight: 0.5", "loss_weight: 2"]))
        if kind in ("TanH", "Power", "Scale") and bottoms[0] not in settled and draw(st.booleans()):
            top, weight = bottoms[0], ""
        else:
            settled.update(bottoms, [top] if weight else [])
            blobs.append(top)
        names = " ".join(f'bottom: "{b}"' for b in bottoms)
        lines.append(f'layer {{ name: "l{i}" type: "{kind}" {names} top: "{top}" {weight} {own} }}')
    lines.append(f'layer {{ name: "end" type: "Reduction" bottom: "{blobs[-1]}" top: "end" loss_weight: 1 }}')
    force = draw(st.sampled_from(["", "force_backward: true "]))
    return force + "\n".join(lines)


@settings(max_examples=60, deadline=None)
@given(text=random_nets(), held=st.booleans())
def test_layer_by_layer_is_the_gradient_of_the_whole(text, held):
    """Against autograd through the same layers in one graph."""
    net = make(text, caffe.TRAIN)
    whole = net._graph
    views = [blob.data for blob in net.blobs.values()] if held else []
    net.blobs["x"].data[...] = rand(2, 3, 4, 5)
    for _ in range(2):
        loss = net.forward_loss()
        net.clear_param_diffs()
        net.backward_all()
    found = {(name, i): blob.diff.copy() for name, blobs in net.params.items() for i, blob in enumerate(blobs)}
    learns = {(step.name, i): learn for step in net.layers for i, learn in enumerate(step.learns)}
    x = torch.tensor(rand(2, 3, 4, 5), requires_grad=True)
    for blobs in net.params.values():
        for blob in blobs:
            blob.parameter.requires_grad_(True)
            blob.parameter.grad = None
    expected_loss = whole.loss(whole({"x": x}))
    expected_loss.backward()
    assert loss == pytest.approx(expected_loss.item(), rel=1e-4, abs=1e-4)
    for (name, i), gradient in found.items():
        expected = net.params[name][i].parameter.grad
        if not learns[name, i] or expected is None:
            assert not gradient.any()
            continue
        scale = float(expected.abs().max()) + 1e-6
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=0, atol=1e-4 * scale, err_msg=f"{name}/{i}\n{text}")
    if text.startswith("force"):
        scale = float(x.grad.abs().max()) + 1e-6
        np.testing.assert_allclose(net.blobs["x"].diff, x.grad, rtol=0, atol=1e-4 * scale, err_msg=text)
    assert len(views) == (len(net.blobs) if held else 0)
