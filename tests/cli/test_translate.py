"""upscore translate: parameters, files, proofs, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from upscore.cli import layer_sources
from upscore.cli.main import app
from upscore.dialects import caffe, pytorch
from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError
from upscore.geometry import Geometry

RUNNER = CliRunner()
CAFFE = ["kernel_size=4", "stride=2", "pad=1", "num_output=3", "c_in=3"]


def run(*words: object) -> str:
    result = RUNNER.invoke(app, ["translate", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def answer(*words: object) -> dict[str, Any]:
    return json.loads(run(*words, "--json"))


def test_parameters_become_parameters_code_and_a_proof() -> None:
    pytest.importorskip("torch", reason="the proof runs in PyTorch")
    text = run("kernel_size=4", "stride=2", "pad=1", "num_output=3", "--from", "caffe", "--to", "pytorch")
    assert "kernel_size = (4, 4)" in text
    assert "weights: (c_in, c_out/groups, *kernel)" in text
    assert (
        "layer = torch.nn.ConvTranspose2d(in_channels=1, out_channels=3, kernel_size=(4, 4), stride=2, padding=1)"
        in text
    )
    assert "proved: PyTorch gives the same bits for a random input of (2, 1, 4, 4)" in text


def test_json_holds_what_a_program_needs() -> None:
    pytest.importorskip("scipy", reason="the proof runs in SciPy")
    said = answer("kernel_size=3", "strides=2", "padding=same", "filters=5", "--from", "keras", "--to", "signal")
    assert said["from"] == "keras"
    assert said["layer"]["crop"] == [[0, 1], [0, 1]]
    (found,) = said["to"]
    assert found["system"] == "signal processing"
    assert found["parameters"]["up"] == [2, 2]
    assert found["weights"]["axes"] == "(gi)ok"
    assert found["proof"].startswith("proved: ")
    assert found["refused"] is None


def test_what_needs_a_slice_says_so_and_is_proved_with_it() -> None:
    pytest.importorskip("torch", reason="the proof runs in PyTorch")
    (found,) = answer("kernel_size=3", "strides=2", "padding=same", "filters=5", "--from", "keras", "--to", "pytorch")[
        "to"
    ]
    assert "closest: padding=(0, 0), then cut 1 after on every axis" in found["note"]
    assert found["crop_after"] == [[0, 1], [0, 1]]
    assert "y = y[:, :, :-1, :-1]" in found["code"]
    assert found["proof"].startswith("proved: ")


def test_a_refusal_is_the_answer_and_exit_code_1() -> None:
    words = ["in_channels=4", "out_channels=4", "kernel_size=3", "groups=2", "--from", "pytorch", "--to", "haiku"]
    result = RUNNER.invoke(app, ["translate", *words])
    assert result.exit_code == 1
    assert "Haiku cannot say this layer: groups: expected 1, got 2; closest: 2 layers, one per group" in result.output


def test_a_system_that_cannot_run_here_is_not_proved() -> None:
    (found,) = answer("kernel_size=4", "stride=2", "num_output=1", "--from", "caffe", "--to", "matconvnet")["to"]
    assert found["proof"] == "not proved: MatConvNet cannot be run from here"
    assert "vl_nnconvt" in found["code"]


def test_what_is_too_large_to_try_is_not_tried() -> None:
    words = ("kernel_size=4", "stride=2", "num_output=1", "--from", "caffe", "--to", "signal", "--input", 100000)
    assert answer(*words)["to"][0]["proof"] == "not proved: too large to try; give a smaller --input"


def test_an_input_size_gives_the_output_shape() -> None:
    words = (
        "kernel_size=4",
        "stride=2",
        "pad=1",
        "num_output=1",
        "--from",
        "caffe",
        "--to",
        "theano",
        "--input",
        "5,7",
    )
    (found,) = answer(*words)["to"]
    assert found["input_size"] == [5, 7]
    assert found["parameters"]["input_shape"] == [1, 1, 10, 14]


PROTOTXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 5 } } }
layer { name: "up" type: "Deconvolution" bottom: "data" top: "up"
  convolution_param { num_output: 4 group: 4 kernel_size: 4 stride: 2 pad: 1 bias_term: false } }
layer { name: "up2" type: "Deconvolution" bottom: "up" top: "up2"
  convolution_param { num_output: 2 kernel_h: 3 kernel_w: 5 stride: 2 } }
"""


def test_a_layer_of_a_prototxt(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="prototxt is read by protobuf")
    path = tmp_path / "deploy.prototxt"
    path.write_text(PROTOTXT)
    said = answer(path, "--layer", "up", "--to", "caffe")
    assert said["layer"]["crop"] == [[1, 1], [1, 1]]
    assert [said["layer"][name] for name in ("c_in", "c_out", "groups", "bias")] == [4, 4, 4, False]
    assert answer(path, "--layer", "up2", "--c-in", 7, "--to", "caffe")["layer"]["c_in"] == 7
    with pytest.raises(ArgumentError, match="--layer: expected one of up, up2, got None; for example --layer up"):
        RUNNER.invoke(app, ["translate", str(path), "--to", "caffe"], catch_exceptions=False)


def test_weights_of_a_caffemodel_are_translated_and_saved(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="prototxt is read by protobuf")
    pytest.importorskip("tensorflow", reason="the proof runs in TensorFlow")
    golden = Path(__file__).parents[1] / "golden/caffe"
    saved = tmp_path / "up.npz"
    words = [
        golden / "tiny_unet.prototxt",
        "--weights",
        golden / "tiny_unet.caffemodel",
        "--to",
        "onnx",
        "--save",
        saved,
    ]
    found = layer_sources.find(str(words[0]), weights=words[2])
    name = found[0][1]
    run(*words, "--layer", name)
    with np.load(saved) as arrays:
        assert np.array_equal(arrays["W"], found[0][2]().weight)
    with pytest.raises(ArgumentError, match="--save: expected a file that does not exist yet"):
        RUNNER.invoke(app, ["translate", *map(str, words), "--layer", name], catch_exceptions=False)
    run(*words, "--layer", name, "--force")


def test_a_node_of_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx writes the file")
    pytest.importorskip("onnxruntime", reason="the proof runs in ONNX Runtime")
    w = np.arange(2 * 3 * 3 * 4, dtype=np.float32).reshape(2, 3, 3, 4)
    helper = onnx.helper
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 1], auto_pad="SAME_UPPER")
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [onnx.numpy_helper.from_array(w, "w")])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    saved = tmp_path / "w.npz"
    said = answer(path, "--to", "onnx", "--save", saved)
    assert said["layer"]["crop"] == [[0, 1], [1, 2]]
    assert said["to"][0]["proof"].startswith("proved")
    assert np.array_equal(np.load(saved)["W"], w)


def test_a_keras_config_and_an_ncnn_file(tmp_path: Path) -> None:
    config = {
        "name": "up",
        "filters": 3,
        "kernel_size": [4, 4],
        "strides": [2, 2],
        "padding": "same",
        "activation": "linear",
    }
    inner = {"class_name": "Conv2DTranspose", "config": config}
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"config": {"layers": [{"class_name": "Dense", "config": {}}, inner]}}))
    assert answer(path, "--c-in", 8, "--to", "caffe")["layer"]["c_in"] == 8
    path = tmp_path / "model.param"
    path.write_text("7767517\n2 2\nInput in 0 1 x\nDeconvolution up 1 1 x y 0=4 1=3 3=2 5=0 6=288\n")
    assert answer(path, "--to", "caffe")["layer"]["c_in"] == 8


def test_a_path_to_a_torch_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the module is PyTorch's")
    (tmp_path / "some_models.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ConvTranspose2d(2, 3, (3, 4), stride=2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ((system, name, read),) = layer_sources.find("some_models:net")
    layer = read()
    assert (system, name) == ("pytorch", "1")
    assert layer.geometry == Geometry((3, 4), 2, rank=2)
    assert answer("some_models:net", "--to", "caffe")["layer"]["c_in"] == 2
    with pytest.raises(ArgumentError, match="source: expected an attribute of a Sequential, got nothing"):
        layer_sources.find("some_models:net.nothing")
    with pytest.raises(ArgumentError, match="source: expected a module that can be imported, got no_such_module"):
        layer_sources.find("no_such_module:net")
    with pytest.raises(ArgumentError, match=r"source: expected a torch\.nn\.Module"):
        layer_sources.find("some_models:torch.float32")
    assert torch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("kernel_size=4 --to caffe", "--from: expected the system whose parameters these are"),
        ("kernel_size=4 --from mxnet --to caffe", "system: expected one of caffe"),
        ("kernel_size=4 --from caffe --to mxnet", "system: expected one of caffe"),
        ("kernel_size=4 stride --from caffe --to onnx", "parameter: expected name=value, got 'stride'"),
        ("kernel_size=4 num_output=many --from caffe --to onnx", "parameters: expected values of the right kind, got"),
        ("kernel_size=99999 --from caffe --to onnx", r"layer: expected at most 67108864 weights, got \(1, 1, 99999"),
        ("nothing.txt --to caffe", r"source: expected a \.prototxt, \.onnx, \.json or \.param file"),
        ("kernel_size=4 --from caffe --to onnx --save x.npz", "--save: expected a source with weights"),
        ("a.onnx --to onnx --to caffe --save x.npz", "--save: expected one --to"),
    ],
)
def test_what_cannot_be_translated(words: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RUNNER.invoke(app, ["translate", *words.split()], catch_exceptions=False)


def test_files_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx reads the file")
    for name, message in (("a.onnx", "not an ONNX model"), ("a.json", "not JSON")):
        (tmp_path / name).write_bytes(b"\xff\xfe{{ nothing")
        with pytest.raises(FileFormatError, match=message):
            layer_sources.find(str(tmp_path / name))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ArgumentError, match="source: expected a transposed convolution in it"):
        layer_sources.find(str(tmp_path / "b.json"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layer_sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"reading ONNX files needs the package onnx, .* 'upscore\[onnx\]'"
    ):
        layer_sources.find(str(tmp_path / "a.onnx"))


def test_typed_layers_have_one_channel_where_none_is_said() -> None:
    assert layer_sources.typed_layer("caffe", ["kernel_size=4", "stride=2"]) == caffe.read(
        {"num_output": 1, "kernel_size": 4, "stride": 2}, c_in=1
    )
    assert layer_sources.typed_layer("pytorch", ["kernel_size=3,5"], rank=2).geometry.kernel == (3, 5)
    assert layer_sources.typed_layer("ncnn", ["1=3", "3=2"]).geometry.stride == (2, 2)


def test_the_help_imports_no_framework() -> None:
    import subprocess

    program = (
        "import sys, upscore.cli.main\nfrom typer.testing import CliRunner\n"
        "r = CliRunner().invoke(upscore.cli.main.app, ['translate', '--help'])\n"
        "assert r.exit_code == 0 and 'Examples' in r.output, r.output\n"
        "assert not {'torch', 'tensorflow', 'jax', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert pytorch.SYSTEM == "PyTorch"
