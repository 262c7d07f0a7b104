"""The programs under examples/caffe: what people have, and what must come out."""

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import upscore.caffe as caffe
from upscore.caffe import script

EXAMPLES = Path(__file__).parents[2] / "examples/caffe"


def program(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder, proto, phase=caffe.TEST):
    """The net of a NetParameter or text, through a file."""
    (folder / "net.prototxt").write_text(str(proto))
    torch.manual_seed(0)
    return caffe.Net(str(folder / "net.prototxt"), phase)


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(net, name):
    """The blobs of a layer as tensors that record gradients."""
    return [torch.tensor(blob.data, requires_grad=True) for blob in net.params[name]]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("deconvolution_by_hand", "[ 4.  4. 10.  6.  6.]"),
        ("bilinear_upsampling 3", "unchanged after 20 steps: True"),
        ("fcn 32 --width 1 --size 40 90", "upscore          (1, 21, 96, 128)"),
        ("segnet --width 1", "prob             (1, 11, 360, 480)"),
        ("deconvnet --width 1 --size 64", "seg-score        (1, 21, 64, 64)"),
    ],
)
def test_each_runs_as_a_program(arguments, shown, monkeypatch, capsys):
    name, *options = arguments.split()
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert shown in capsys.readouterr().out


def test_the_program_of_the_documentation(tmp_path, monkeypatch):
    text = (EXAMPLES.parents[1] / "docs/pycaffe.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    exec(code, {})
    assert (tmp_path / "deconv.prototxt").is_file()


def test_a_deconvolution_by_hand(tmp_path):
    expected = np.zeros((5, 5))
    for y, x, value in ((0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 4)):
        expected[2 * y : 2 * y + 3, 2 * x : 2 * x + 3] += value
    found = program("deconvolution_by_hand").run(tmp_path)
    assert found[0].tolist() == [1, 1, 3, 2, 2]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_bilinear_upsampling_does_not_learn(tmp_path, factor):
    solver, before = program("bilinear_upsampling").train(tmp_path, factor, channels=3, height=6, width=5)
    net = solver.net
    assert solver.iter == 20
    np.testing.assert_array_equal(net.params["upsample"][0].data, before)
    assert net.params["upsample"][0].diff.any() == np.False_
    assert net.params["score"][0].diff.any()
    assert net.blobs["large"].data.shape == (2, 3, 6 * factor, 5 * factor)
    score = torch.tensor(net.blobs["score"].data)
    # Away from the border, beyond which Caffe sees zeros and torch repeats: half a pixel of the small image.
    inner = (slice(None), slice(None), slice(factor, -factor), slice(factor, -factor))
    expected = F.interpolate(score, scale_factor=factor, mode="bilinear")[inner]
    np.testing.assert_allclose(net.blobs["large"].data[inner], expected, atol=1e-5)
    assert factor == 1 or np.abs(before).max() <= 1


class TestFCN:
    fcn = program("fcn")

    @pytest.mark.parametrize(
        ("stride", "offsets", "sizes"),
        [
            (32, [19], {"score_fr": 16, "upscore": 544}),
            (16, [5, 27], {"score_fr": 16, "upscore2": 34, "upscore16": 560}),
            (8, [5, 9, 31], {"upscore2": 34, "upscore_pool4": 70, "upscore8": 568}),
        ],
    )
    def test_offsets_and_sizes(self, tmp_path, stride, offsets, sizes):
        spec = self.fcn.fcn(stride, width=1)
        assert self.fcn.crop_offsets(spec) == offsets
        net = load(tmp_path, spec)
        pools = {"pool1": 349, "pool2": 175, "pool3": 88, "pool4": 44, "pool5": 22, "fc6": 16, "score": 500}
        for name, size in {**pools, **sizes}.items():
            assert net.blobs[name].data.shape[2:] == (size, size)
        assert net.blobs["score"].shape == (1, 21, 500, 500)

    def test_offsets_do_not_depend_on_the_image(self):
        assert self.fcn.crop_offsets(self.fcn.fcn(8, width=1, size=(333, 501))) == [5, 9, 31]

    def test_surgery_makes_upscaling_bilinear(self, tmp_path):
        net = load(tmp_path, self.fcn.fcn(8, width=1, size=(64, 96), loss=False))
        before = net.params["score_fr"][0].data.copy()
        self.fcn.interpolate(net)
        for layer, factor in (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8)):
            bottom = net.blobs[net.bottom_names[layer][0]]
            bottom.data[...] = rand(*bottom.data.shape)
            small = torch.tensor(bottom.data)
            net.forward(start=layer, end=layer)
            # The layers do not pad, so that the result is half a factor larger all around.
            cut = factor // 2 + factor
            found = net.blobs[layer].data[:, :, cut:-cut, cut:-cut]
            expected = F.interpolate(small, scale_factor=factor, mode="bilinear")[..., factor:-factor, factor:-factor]
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(net.params["score_fr"][0].data, before)

    def test_fully_connected_layers_become_convolutions(self, tmp_path):
        trained = load(tmp_path, self.fcn.classifier(width=2))
        dense = load(tmp_path, self.fcn.classifier(width=2, dense=True))
        assert trained.params["fc6"][0].data.shape == (128, 16 * 49)
        assert dense.params["fc6"][0].data.shape == (128, 16, 7, 7)
        for blob in dense.params["fc6"] + dense.params["conv1_1"]:
            blob.data[...] = 0
        self.fcn.transplant(dense, trained)
        image = rand(1, 3, 224, 224)
        expected = trained.forward(data=image)["fc7"]
        assert expected.any()
        np.testing.assert_allclose(dense.forward(data=image)["fc7"][:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)
        dense.blobs["data"].reshape(1, 3, 256, 320)
        assert dense.forward()["fc7"].shape == (1, 128, 2, 4)

    def test_a_training_step(self, tmp_path):
        """The loss and the first update against torch; upscaling layers stay."""
        size, rate = (64, 80), 1e-6
        spec = self.fcn.fcn(8, width=2, size=size)
        torch.manual_seed(0)
        solver = self.fcn.solver_for(tmp_path, spec, base_lr=rate)
        net = solver.net
        self.fcn.interpolate(net)
        label = np.random.default_rng(0).integers(0, 21, (1, 1, *size)).astype(np.float32)
        label[:, :, :9] = 255
        net.blobs["data"].data[...] = rand(1, 3, *size)
        net.blobs["label"].data[...] = label
        before = {name: [b.data.copy() for b in blobs] for name, blobs in net.params.items()}
        solver.step(1)
        score = torch.tensor(net.blobs["score"].data, requires_grad=True)
        target = torch.tensor(label[:, 0], dtype=torch.int64)
        loss = F.cross_entropy(score, target, ignore_index=255, reduction="sum")  # the batch is one image
        loss.backward()
        assert net.blobs["loss"].data == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(net.blobs["score"].diff, score.grad, atol=1e-6)
        for name in ("upscore2", "upscore_pool4", "upscore8"):
            np.testing.assert_array_equal(net.params[name][0].data, before[name][0])
        # score_pool3 is a 1x1 convolution: its gradient is a sum over the cropped positions.
        upper = torch.tensor(before["upscore8"][0])
        crop = torch.zeros(1, 21, *net.blobs["upscore8"].data.shape[2:])
        crop[..., 31 : 31 + size[0], 31 : 31 + size[1]] = score.grad
        fused = F.conv2d(crop, upper, stride=8)
        pool3 = torch.tensor(net.blobs["pool3"].data)[..., 9 : 9 + fused.shape[2], 9 : 9 + fused.shape[3]]
        gradient = torch.einsum("nkhw,nchw->kc", fused, pool3).numpy()
        decayed = gradient + 0.0005 * before["score_pool3"][0][:, :, 0, 0]
        expected = rate * decayed
        weight, bias = net.params["score_pool3"]
        np.testing.assert_allclose(weight.diff[:, :, 0, 0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(bias.diff, 2 * rate * fused.sum((0, 2, 3)), rtol=1e-4)
        np.testing.assert_array_equal(weight.data, before["score_pool3"][0] - weight.diff)


class TestSegNet:
    segnet = program("segnet")

    def reference(self, net, x, blocks):
        """The same net in torch alone; returns the scores and the weights it used."""
        used = {}

        def unit(name, x):
            used[name], (scale, shift) = weights(net, name), weights(net, f"{name}_bn")
            used[f"{name}_bn"] = [scale, shift]
            return torch.relu(F.conv2d(x, *used[name], padding=1) * scale + shift)

        memory = []
        for block, (count, _) in enumerate(self.segnet.BLOCKS[:blocks], 1):
            for index in range(1, count + 1):
                x = unit(f"conv{block}_{index}", x)
            size = x.shape[2:]
            x, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            memory.append((indices, size))
        for block in range(blocks, 0, -1):
            indices, size = memory[block - 1]
            x = F.max_unpool2d(x, indices, 2, 2, output_size=size)
            for index in range(self.segnet.BLOCKS[block - 1][0], 0, -1):
                last = (block, index) == (1, 1)
                if last:
                    used["score"] = weights(net, "score")
                x = F.conv2d(x, *used["score"], padding=1) if last else unit(f"conv{block}_{index}_D", x)
        return x, used

    @pytest.mark.parametrize("size", [(16, 24), (18, 28), (23, 13)])
    def test_against_torch(self, tmp_path, size):
        net = load(tmp_path, "force_backward: true " + str(self.segnet.segnet(2, size, blocks=3)))
        image = rand(1, 3, *size)
        prob = net.forward(data=image)["prob"]
        assert prob.shape == (1, 11, *size)
        expected, used = self.reference(net, torch.tensor(image), 3)
        np.testing.assert_allclose(net.blobs["score"].data, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(prob, expected.detach().softmax(1), atol=1e-6)
        net.blobs["score"].diff[...] = rand(*net.blobs["score"].data.shape, seed=1)
        net.backward(start="score")
        expected.backward(torch.tensor(net.blobs["score"].diff))
        for name in ("conv1_1", "conv2_1", "conv3_2_D", "conv3_3_bn", "score"):
            for blob, tensor in zip(net.params[name], used[name], strict=True):
                np.testing.assert_allclose(
                    blob.diff, tensor.grad, rtol=1e-3, atol=1e-5 * float(tensor.grad.abs().max()), err_msg=name
                )

    def test_the_real_size(self, tmp_path):
        net = load(tmp_path, self.segnet.segnet(1))
        assert [net.blobs[f"pool{b}"].shape[2:] for b in (3, 4, 5)] == [(45, 60), (23, 30), (12, 15)]
        assert [net.blobs[f"upsample{b}"].shape[2:] for b in (5, 4, 3)] == [(23, 30), (45, 60), (90, 120)]


class TestDeconvNet:
    deconvnet = program("deconvnet")

    def reference(self, net, x, blocks):
        """The same net in torch alone."""

        def unit(function, name, x, **kwargs):
            weight, bias = weights(net, name)
            scale, shift = weights(net, f"bn_{name}")
            return torch.relu(function(x, weight, bias, **kwargs) * scale + shift)

        memory, counts = [], [count for count, _ in self.deconvnet.BLOCKS]
        for block in range(1, blocks + 1):
            for index in range(1, counts[block - 1] + 1):
                x = unit(F.conv2d, f"conv{block}_{index}", x, padding=1)
            x, indices = F.max_pool2d(x, 2, return_indices=True)
            memory.append(indices)
        x = unit(F.conv2d, "fc7", unit(F.conv2d, "fc6", x))
        x = unit(F.conv_transpose2d, "fc6-deconv", x)
        for block in range(blocks, 0, -1):
            x = F.max_unpool2d(x, memory[block - 1], 2)
            for index in range(1, counts[block - 1] + 1):
                x = unit(F.conv_transpose2d, f"deconv{block}_{index}", x, padding=1)
        return F.conv2d(x, *weights(net, "seg-score"))

    @pytest.mark.parametrize("syntax", ["v1", "modern"])
    def test_against_torch(self, tmp_path, syntax):
        net = load(tmp_path, getattr(self.deconvnet, syntax)(width=2, size=48, blocks=3))
        for name in ("bn_conv1_1", "bn_deconv2_1"):
            net.params[name][1].data[...] = rand(*net.params[name][1].data.shape)
        image = rand(1, 3, 48, 48)
        score = net.forward(data=image)["seg-score"]
        assert score.shape == (1, 21, 48, 48)
        expected = self.reference(net, torch.tensor(image), 3).detach()
        np.testing.assert_allclose(score, expected, atol=1e-5 * float(expected.abs().max()))

    def test_both_syntaxes_are_the_same_net(self, tmp_path):
        old, new = (
            load(tmp_path, write(width=1, size=32, blocks=2)) for write in (self.deconvnet.v1, self.deconvnet.modern)
        )
        assert [(s.name, s.type, s.bottoms, s.tops, s.lr_mults, s.decay_mults) for s in old.layers] == [
            (s.name, s.type, s.bottoms, s.tops, s.lr_mults, s.decay_mults) for s in new.layers
        ]
        assert old.layer_dict["conv1_1"].lr_mults == (1, 2)
        assert old.layer_dict["conv1_1"].decay_mults == (1, 0)
        old.save(tmp_path / "old.caffemodel")
        new.copy_from(tmp_path / "old.caffemodel")
        image = rand(1, 3, 32, 32)
        np.testing.assert_array_equal(old.forward(data=image)["seg-score"], new.forward(data=image)["seg-score"])

    def test_the_real_size(self, tmp_path):
        net = load(tmp_path, self.deconvnet.v1(width=1))
        assert net.blobs["fc6"].shape == (1, 64, 1, 1)
        assert [net.blobs[f"unpool{b}"].shape[2:] for b in (5, 3, 1)] == [(14, 14), (56, 56), (224, 224)]
        assert net.blobs["seg-score"].shape == (1, 21, 224, 224)


UNCHANGED = """
import sys
import numpy as np
import caffe
from caffe import layers as L, params as P
from caffe.coord_map import crop
from caffe.proto import caffe_pb2
from google.protobuf import text_format

caffe.set_mode_cpu()
n = caffe.NetSpec()
n.data, n.label = L.Python(module="seg_layers", layer="SegDataLayer", ntop=2, param_str=str(dict(size=(21, 33))))
n.conv = L.Convolution(n.data, num_output=8, kernel_size=3, pad=20, weight_filler=dict(type="xavier"))
n.relu = L.ReLU(n.conv, in_place=True)
n.pool = L.Pooling(n.relu, pool=P.Pooling.MAX, kernel_size=2, stride=2)
n.score_fr = L.Convolution(n.pool, num_output=2, kernel_size=1, weight_filler=dict(type="xavier"))
n.upscore = L.Deconvolution(
    n.score_fr, param=[dict(lr_mult=0)], convolution_param=dict(num_output=2, kernel_size=4, stride=2, bias_term=False)
)
n.score = crop(n.upscore, n.data)
n.loss = L.SoftmaxWithLoss(n.score, n.label, loss_param=dict(normalize=False, ignore_label=255))
with open("trainval.prototxt", "w") as f:
    f.write(str(n.to_proto()))

s = caffe_pb2.SolverParameter()
s.train_net = "trainval.prototxt"
s.test_net.append("trainval.prototxt")
s.test_iter.append(1)
s.test_interval = 1000
s.base_lr, s.lr_policy, s.momentum, s.random_seed = 1e-5, "fixed", 0.9, 0
s.snapshot_prefix, s.display = "seg", 10
s.test_initialization = False
with open("solver.prototxt", "w") as f:
    f.write(text_format.MessageToString(s))

solver = caffe.SGDSolver("solver.prototxt")
for name in [k for k in solver.net.params.keys() if "up" in k]:
    m, k, h, w = solver.net.params[name][0].data.shape
    ramp = 1 - abs(np.arange(h) - 1.5) / 2
    solver.net.params[name][0].data[range(m), range(k), :, :] = ramp[:, None] * ramp[None, :]
solver.step(1)
first = solver.net.blobs["loss"].data.flat[0]
solver.step(30)
solver.test_nets[0].share_with(solver.net)
out = solver.test_nets[0].forward()
guess = solver.test_nets[0].blobs["score"].data[0].argmax(0)
truth = solver.test_nets[0].blobs["label"].data[0, 0]
solver.net.save(sys.argv[1])
print(first, out["loss"].flat[0], (guess == truth)[truth != 255].mean())
"""

SEG_LAYERS = """
import caffe
import numpy as np


class SegDataLayer(caffe.Layer):
    def setup(self, bottom, top):
        self.size = eval(self.param_str)["size"]
        self.random = np.random.RandomState(0)
        if len(top) != 2:
            raise Exception("Need to define two tops: data and label.")
        if len(bottom) != 0:
            raise Exception("Do not define a bottom.")

    def reshape(self, bottom, top):
        self.data = self.random.randn(3, *self.size).astype(np.float32)
        for _ in range(3):
            self.data = (self.data + np.roll(self.data, 1, 1) + np.roll(self.data, 1, 2)) / 1.7
        self.label = (self.data[0] > 0)[np.newaxis].astype(np.float32)
        self.label[:, 0] = 255
        top[0].reshape(1, *self.data.shape)
        top[1].reshape(1, *self.label.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.data
        top[1].data[...] = self.label

    def backward(self, top, propagate_down, bottom):
        pass
"""


def test_an_unchanged_training_program(tmp_path, monkeypatch, capsys):
    """As they are in the field: NetSpec, a data layer in Python, surgery, a solver, scoring on the test net."""
    (tmp_path / "seg_layers.py").write_text(SEG_LAYERS)
    (tmp_path / "solve.py").write_text(UNCHANGED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "seg_layers", raising=False)
    try:
        script.run("solve.py", ["trained.caffemodel"])
    finally:
        sys.modules.pop("seg_layers", None)
    printed = capsys.readouterr()
    first, last, accuracy = map(float, printed.out.split())
    assert [line.split()[2] for line in printed.err.splitlines() if ", loss = " in line] == ["0,", "10,", "20,", "30,"]
    assert last < 0.7 * first
    assert accuracy > 0.7
    assert (tmp_path / "trained.caffemodel").stat().st_size > 4 * (8 * 27 + 8 + 16 + 2 + 64)
