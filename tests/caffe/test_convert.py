"""Out of Caffe: plain torch and ONNX compute what the graph computes, or nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import convert, prototxt, schema  # noqa: E402
from upscore.caffe.graph import Graph  # noqa: E402
from upscore.caffe.torch_source import NotPlainError, torch_source  # noqa: E402

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "caffe" / "layers.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
NOT_PLAIN = {  # what torch has no short words for; the message says so
    "batchnorm_batchstats_in_test", "pool_ave_empty_window", "pool_max_empty_window",
}  # fmt: skip

NET = """name: "a net/7"
input: "data" input_dim: 1 input_dim: 3 input_dim: 21 input_dim: 18
layer { name: "class" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 8 kernel_size: 3
  pad: 1 weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }
layer { name: "bn" type: "BN" bottom: "c1" top: "c1" bn_param { bn_mode: INFERENCE
  scale_filler { type: "uniform" } shift_filler { value: 0.1 } } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" relu_param { negative_slope: 0.1 } }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" top: "m1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "c.2" type: "Convolution" bottom: "p1" top: "c2" convolution_param { num_output: 8 kernel_size: 3 pad: 2
  dilation: 2 weight_filler { type: "xavier" } } }
layer { name: "s" type: "Scale" bottom: "c2" top: "c2" scale_param { bias_term: true filler { type: "uniform" } } }
layer { name: "u1" type: "Upsample" bottom: "c2" bottom: "m1" top: "u1"
  upsample_param { upsample_h: 21 upsample_w: 18 } }
layer { name: "up" type: "Deconvolution" bottom: "c2" top: "up" convolution_param { num_output: 8 group: 8
  kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" crop_param { offset: 2 offset: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "u1" bottom: "crop" top: "sum" eltwise_param { coeff: 1 coeff: -0.5 } }
layer { name: "prob" type: "Softmax" bottom: "sum" top: "prob" }
layer { name: "im" type: "Interp" bottom: "sum" top: "im" interp_param { zoom_factor: 2 } }
"""


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    return Graph(prototxt.read(NET, schema.NetParameter()))


def test_plain_torch_in_an_interpreter_of_its_own(graph: Graph, tmp_path: Path) -> None:
    module, worst = convert.to_torch(graph, tmp_path / "net.safetensors")
    assert worst < 1e-5
    x = torch.randn(1, 3, 21, 18)
    np.save(tmp_path / "x.npy", x.numpy())
    program = (
        "import sys, numpy, torch, net; from safetensors.torch import load_file; "
        "m = net.Net().eval(); m.load_state_dict(load_file('net.safetensors')); "
        "ys = m(torch.from_numpy(numpy.load('x.npy'))); "
        "assert not any(n.startswith('upscore') for n in sys.modules); "
        "numpy.savez('y.npz', *[y.detach().numpy() for y in ys])"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "y.npz")
    blobs = graph(x)
    for i, name in enumerate(graph.outputs):
        np.testing.assert_allclose(found[f"arr_{i}"], blobs[name].detach().numpy(), rtol=1e-4, atol=1e-6)
    assert module == tmp_path / "net.py"


def test_names_from_the_file_cannot_become_code() -> None:
    evil = 'x"); import os; os.abort(); ("'
    text = f"""name: '{evil}' input: '{evil}' input_dim: 1 input_dim: 1 input_dim: 2 input_dim: 2
    layer {{ name: '{evil}' type: "PReLU" bottom: '{evil}' top: '\"\"\" + evil' }}"""
    source, _ = torch_source(Graph(prototxt.read(text, schema.NetParameter())))
    assert "os.abort" not in source
    assert "+ evil" not in source
    compile(source, "net.py", "exec")


@pytest.mark.parametrize("name", CASES)
def test_every_golden_layer_in_plain_torch(name: str) -> None:
    meta = json.loads(str(GOLDEN[f"{name}/meta"]))
    graph = Graph(prototxt.read(str(GOLDEN[f"{name}/prototxt"]), schema.NetParameter()), schema.TEST)
    for j, blob in enumerate(graph.layers[-1].module.blobs):
        blob.data.copy_(torch.from_numpy(GOLDEN[f"{name}/param{j}"]))
    decides = meta["type"] in ("ArgMax", "Accuracy", "Reduction", "Tile", "MVN") or "Loss" in meta["type"]
    if decides or name in NOT_PLAIN:
        with pytest.raises(NotPlainError, match=r"layer 'layer' .* has no plain torch source; convert to .onnx"):
            torch_source(graph)
        return
    source, state = torch_source(graph)
    room: dict[str, object] = {}
    exec(compile(source, name, "exec"), room)
    net = room["Net"]().eval()  # type: ignore[operator]
    net.load_state_dict(state)
    inputs = {n: torch.from_numpy(GOLDEN[f"{name}/bottom{i}"]) for i, n in enumerate(graph.inputs)}
    with torch.no_grad():
        outputs = net(*inputs.values())
        expected = graph(inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for output, blob in zip(outputs, graph.outputs, strict=True):
        scale = float(expected[blob].abs().max())
        torch.testing.assert_close(output.float(), expected[blob], rtol=0, atol=2e-6 * scale)


def test_onnx_runtime_computes_the_same(graph: Graph, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="writes ONNX")
    runtime = pytest.importorskip("onnxruntime", reason="runs ONNX")
    path = tmp_path / "net.onnx"
    assert convert.to_onnx(graph, path) < 1e-5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(1, 3, 21, 18)
    blobs = graph(x)
    for name, found in zip(graph.outputs, session.run(graph.outputs, {"data": x.numpy()}), strict=True):
        np.testing.assert_allclose(found, blobs[name].detach().numpy(), rtol=1e-4, atol=1e-6)


def test_nothing_is_written_when_the_result_differs(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(given: Graph) -> tuple[str, dict[str, torch.Tensor]]:
        source, state = torch_source(given)
        return source, {name: value * 1.01 for name, value in state.items()}

    monkeypatch.setattr(convert, "torch_source", wrong)
    with pytest.raises(
        convert.ConversionError, match=r"the torch module computes something else: .* nothing was written"
    ):
        convert.to_torch(graph, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
