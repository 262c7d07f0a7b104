"""The pycaffe net: blobs in and out, partial passes, what backward does and does not, weights."""

import numpy as np
import pytest
import torch
from caffe_nets import CHAIN, make, rand

import upscore.caffe as caffe
from upscore.caffe import prototxt, schema
from upscore.errors import ArgumentError, FileFormatError


class TestMaking:
    def test_the_three_ways(self, tmp_path):
        path, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
        path.write_text(CHAIN)
        first = caffe.Net(str(path), caffe.TEST)
        first.save(weights)
        for net in (
            caffe.Net(str(path), str(weights), caffe.TEST),
            caffe.Net(str(path), caffe.TEST, weights=str(weights)),
            caffe.Net(network_file=path, phase=caffe.TEST, weights=weights),
            caffe.Net(prototxt.read(path, schema.NetParameter()), weights, caffe.TRAIN),
        ):
            np.testing.assert_array_equal(net.params["conv"][0].data, first.params["conv"][0].data)

    def test_names_and_shapes(self, chain):
        assert chain.name == "chain"
        assert chain.inputs == ["data"]
        assert chain.outputs == ["up"]
        assert list(chain.blobs) == chain._blob_names == ["data", "conv", "up"]
        assert {name: blob.shape for name, blob in chain.blobs.items()} == {
            "data": (2, 3, 5, 4),
            "conv": (2, 4, 5, 4),
            "up": (2, 2, 12, 5),
        }
        assert chain._layer_names == ["data", "conv", "relu", "up"]
        assert [(layer.type, len(layer.blobs)) for layer in chain.layers] == [
            ("Input", 0),
            ("Convolution", 2),
            ("ReLU", 0),
            ("Deconvolution", 2),
        ]
        assert {n: [b.shape for b in blobs] for n, blobs in chain.params.items()} == {
            "conv": [(4, 3, 3, 3), (4,)],
            "up": [(4, 2, 4, 2), (2,)],
        }
        assert chain.top_names["relu"] == chain.bottom_names["up"] == ["conv"]
        assert chain.layer_dict["up"] is chain.layers[3]
        assert "Python" in caffe.layer_type_list()

    def test_outputs_stand_in_the_order_of_their_names(self):
        text = CHAIN + 'layer { name: "a" type: "Power" bottom: "conv" top: "a" }'
        assert make(text).outputs == ["a", "up"]

    @pytest.mark.parametrize("phase", [None, 2, True, "TEST"])
    def test_the_phase_must_be_one(self, phase):
        with pytest.raises(ArgumentError, match=r"phase: expected caffe.TRAIN or caffe.TEST, got"):
            caffe.Net(CHAIN, phase) if phase is not None else caffe.Net(CHAIN)

    def test_stage_and_level(self):
        text = (
            CHAIN + 'layer { name: "s" type: "Softmax" bottom: "up" top: "s" include { stage: "deploy" min_level: 2 } }'
        )
        assert make(text).outputs == ["up"]
        assert make(text, stages=["deploy"], level=2).outputs == ["s"]

    def test_input_shapes_that_the_net_does_not_say(self):
        text = 'layer { name: "d" type: "Data" top: "d" } layer { name: "p" type: "Power" bottom: "d" top: "p" }'
        net = make(text, input_shapes={"d": (1, 3, 2, 2)})
        assert net.blobs["p"].shape == (1, 3, 2, 2)
        assert net.inputs == []


class TestForward:
    def test_against_torch(self, chain):
        out = chain.forward()
        w, b = (torch.from_numpy(blob.data) for blob in chain.params["conv"])
        uw, ub = (torch.from_numpy(blob.data) for blob in chain.params["up"])
        hidden = torch.relu(torch.conv2d(torch.from_numpy(rand(2, 3, 5, 4)), w, b, padding=1))
        expected = torch.conv_transpose2d(hidden, uw, ub, stride=(2, 1))
        assert list(out) == ["up"]
        np.testing.assert_allclose(out["up"], expected, atol=1e-6)
        np.testing.assert_allclose(chain.blobs["conv"].data, hidden, atol=1e-6)

    def test_inputs_by_name(self, chain):
        first = chain.forward()["up"].copy()
        second = chain.forward(data=2 * rand(2, 3, 5, 4))["up"].copy()
        assert not np.allclose(first, second)
        chain.blobs["data"].data[...] = rand(2, 3, 5, 4)
        np.testing.assert_array_equal(chain.forward(blobs=["conv"])["up"], first)
        assert set(chain.forward(["conv", "data"])) == {"up", "conv", "data"}

    def test_parts(self, chain):
        whole = chain.forward()["up"].copy()
        assert list(chain.forward(end="conv")) == ["conv"]
        assert chain.blobs["conv"].data.min() < 0  # before the ReLU
        assert list(chain.forward(start="relu", end="relu")) == ["conv"]
        np.testing.assert_array_equal(chain.forward(start="up")["up"], whole)
        chain.blobs["conv"].data[...] = 0
        assert np.ptp(chain.forward(start="up")["up"][:, 0]) == 0

    def test_views_held_by_the_program_show_every_pass(self, chain):
        data, conv, up = (chain.blobs[name].data for name in ("data", "conv", "up"))
        chain.forward()
        first = up.copy()
        data *= 2
        chain.forward()
        assert not np.array_equal(first, up)
        assert up is chain.blobs["up"].data
        np.testing.assert_array_equal(conv, chain.blobs["conv"].data)

    def test_weights_are_the_memory_that_runs(self, chain):
        chain.params["up"][0].data[...] = 0
        chain.params["up"][1].data[...] = [3, 4]
        assert chain.forward()["up"][0, :, 0, 0].tolist() == [3, 4]

    def test_reshape_carries_shapes_through(self, chain):
        chain.blobs["data"].reshape(1, 3, 9, 7)
        chain.reshape()
        assert chain.blobs["up"].shape == (1, 2, 20, 8)
        chain.blobs["data"].reshape(3, 3, 6, 5)
        assert chain.forward()["up"].shape == (3, 2, 14, 6)  # forward reshapes by itself

    def test_shapes_that_no_layer_takes(self, chain):
        chain.blobs["data"].reshape(1, 2, 9, 7)
        with pytest.raises(ValueError, match="'conv'"):
            chain.forward()

    def test_forward_all_batches_and_fills_up(self, chain):
        images = rand(5, 3, 5, 4, seed=3)
        out = chain.forward_all(data=images, blobs=["conv"])
        assert out["up"].shape == (5, 2, 12, 5)
        for i in range(5):
            single = chain.forward(data=np.stack([images[i]] * 2))
            np.testing.assert_allclose(out["up"][i], single["up"][0], atol=1e-6)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda n: n.forward(dat=rand(2, 3, 5, 4)), "inputs: expected exactly data, got dat"),
            (lambda n: n.forward(data=rand(1, 3, 5, 4)), r"data: expected a batch for a blob of shape \(2, 3, 5, 4\)"),
            (
                lambda n: n.forward(start="cnv"),
                r"start: expected the name of a layer \(data, conv, relu, up\), got 'cnv'",
            ),
            (lambda n: n.forward(end="x"), "end: expected the name of a layer"),
            (lambda n: n.forward(blobs=["x"]), r"blobs: expected names of blobs \(data, conv, up\), got 'x'"),
            (lambda n: n.forward_all(), "inputs: expected values for data, got none"),
            (lambda n: n.set_input_arrays([1], [1]), "expected a net whose first layer is MemoryData, got Input"),
        ],
    )
    def test_mistakes_are_named(self, chain, call, message):
        with pytest.raises(ArgumentError, match=message):
            call(chain)

    def test_forward_backward_all(self):
        net = make("force_backward: true " + CHAIN)
        images, diffs = rand(3, 3, 5, 4), rand(3, 2, 12, 5, seed=2)
        outs, grads = net.forward_backward_all(data=images, up=diffs)
        assert outs["up"].shape == (3, 2, 12, 5)
        for i in range(3):
            net.forward(data=np.stack([images[i]] * 2))
            single = net.backward(up=np.stack([diffs[i]] * 2))["data"][0]
            np.testing.assert_allclose(grads["data"][i], single, atol=1e-6)


class TestWeights:
    @pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
    def test_saved_and_loaded(self, chain, tmp_path, suffix):
        path = tmp_path / f"net{suffix}"
        chain.save(path)
        other = make(CHAIN)
        other.params["up"][0].data[...] = 0
        view = other.params["up"][0].data
        other.copy_from(path)
        np.testing.assert_array_equal(view, chain.params["up"][0].data)

    def test_hdf5_of_any_name(self, chain, tmp_path):
        chain.save_hdf5(tmp_path / "weights")
        other = make(CHAIN.replace('name: "conv"', 'name: "elsewhere"'))
        before = other.params["elsewhere"][0].data.copy()
        other.load_hdf5(tmp_path / "weights")
        np.testing.assert_array_equal(other.params["up"][0].data, chain.params["up"][0].data)
        np.testing.assert_array_equal(other.params["elsewhere"][0].data, before)

    def test_a_wrong_shape_is_an_error(self, chain, tmp_path):
        chain.save(tmp_path / "w.caffemodel")
        with pytest.raises(FileFormatError, match="'conv'"):
            make(CHAIN.replace("num_output: 4", "num_output: 5")).copy_from(tmp_path / "w.caffemodel")

    def test_nets_that_share_learn_together(self, trained):
        test = make(CHAIN)
        test.share_with(trained)
        trained.params["conv"][0].data[...] = 7
        assert (test.params["conv"][0].data == 7).all()
        trained.forward()
        trained.backward()
        assert not test.params["conv"][0].diff.any()
        odd = make(CHAIN.replace("kernel_size: 3 pad: 1", "kernel_size: 1"))
        with pytest.raises(ArgumentError, match=r"other: expected a blob of shape \(4, 3, 1, 1\), got \(4, 3, 3, 3\)"):
            odd.share_with(trained)
        bare = make(CHAIN.replace("num_output: 4", "num_output: 4 bias_term: false"))
        with pytest.raises(ArgumentError, match="other: expected 1 blobs in layer 'conv', got 2 in the other net"):
            bare.share_with(trained)

    def test_shared_by_name_inside_a_net(self):
        text = """force_backward: true
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
        layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } inner_product_param {
          num_output: 2 bias_term: false } }
        layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param {
          num_output: 2 bias_term: false } }"""
        net = make(text)
        net.params["b"][0].data[...] = [[1, 2], [0, 1]]
        assert net.forward(x=[[1, 1]])["b"].tolist() == [[5, 1]]
        assert len(net.learnable) == 1
        net.backward(b=[[1, 0]])
        # d(w w x)[0]/dw = e0 (w x)^T + w^T e0 x^T
        assert net.params["a"][0].diff.tolist() == [[3 + 1, 1 + 1], [2, 2]]


class TestDataLayers:
    def test_memory_data_walks_through_its_arrays(self):
        net = make("""
        layer { name: "m" type: "MemoryData" top: "d" top: "l"
          memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 } }
        layer { name: "p" type: "Power" bottom: "d" top: "p" power_param { scale: 2 } }
        layer { name: "s" type: "Silence" bottom: "l" }""")
        net.set_input_arrays(np.arange(12).reshape(4, 1, 1, 3), np.arange(4))
        rows = [net.forward()["p"][:, 0, 0, 0].tolist() + net.blobs["l"].data.ravel().tolist() for _ in range(3)]
        assert rows == [[0, 6, 0, 1], [12, 18, 2, 3], [0, 6, 0, 1]]
        with pytest.raises(ArgumentError, match="a multiple of the batch size 2, as many labels, got 3 items and 3"):
            net.set_input_arrays(np.zeros((3, 1, 1, 3)), np.zeros(3))

    def test_dummy_data_is_filled_once_or_every_time(self):
        text = """layer {{ name: "d" type: "DummyData" top: "d" dummy_data_param {{ shape {{ dim: 1000 }}
          data_filler {{ type: "{}" value: 4 }} }} }}
        layer {{ name: "p" type: "Power" bottom: "d" top: "p" }}"""
        constant = make(text.format("constant"))
        assert (constant.forward()["p"] == 4).all()
        constant.blobs["d"].data[...] = 5
        assert (constant.forward()["p"] == 5).all()
        random = make(text.format("gaussian"))
        first = random.forward()["p"].copy()
        assert np.std(first) > 0.5
        assert (random.forward()["p"] != first).any()


class TestMode:
    def test_what_programs_call_first(self):
        caffe.set_mode_cpu()
        caffe.set_device(0)
        with pytest.warns(RuntimeWarning, match="set_mode_gpu: pycaffe nets of upscore run on the CPU"):
            caffe.set_mode_gpu()
        with pytest.raises(ArgumentError, match="device: expected the number of a GPU, at least 0, got -1"):
            caffe.set_device(-1)
        assert (caffe.TRAIN, caffe.TEST) == (0, 1)

    def test_the_seed_repeats(self):
        draws = []
        for seed in (1, 1, 2):
            caffe.set_random_seed(seed)
            draws.append(caffe.Net(CHAIN, caffe.TEST).params["conv"][0].data.copy())
        np.testing.assert_array_equal(draws[0], draws[1])
        assert (draws[0] != draws[2]).any()
