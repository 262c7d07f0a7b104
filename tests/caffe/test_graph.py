"""Nets as torch modules: against Caffe's numbers, and by the rules of its nets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema  # noqa: E402
from upscore.caffe.graph import Graph  # noqa: E402
from upscore.caffe.modules import CaffeModule, LayerError, register  # noqa: E402
from upscore.errors import ArgumentError, FileFormatError  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 6 } } } '


def build(text: str, phase: int = schema.TEST, **options: object) -> Graph:
    return Graph(prototxt.read(text + "\n", schema.NetParameter()), phase, **options)


@pytest.fixture
def tiny() -> tuple[Graph, dict[str, np.ndarray]]:
    graph = build((GOLDEN / "tiny_unet.prototxt").read_text(), schema.TRAIN)
    assert graph.load(GOLDEN / "tiny_unet.caffemodel") == []
    return graph, dict(np.load(GOLDEN / "tiny_unet.npz"))


def test_a_whole_net_and_its_gradients_are_caffes(tiny: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, golden = tiny
    inputs = {name: torch.from_numpy(golden[f"blob/{name}"]).requires_grad_() for name in ("data", "target")}
    blobs = graph(inputs)
    for name, blob in blobs.items():
        expected = golden[f"blob/{name}"]
        np.testing.assert_allclose(blob.detach().numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    graph.loss(blobs).backward()
    for name, x in inputs.items():
        expected = golden[f"diff/{name}"]
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    for name, own in graph.named_blobs().items():
        for i, blob in enumerate(own):
            expected = golden[f"param_diff/{name}/{i}"]
            np.testing.assert_allclose(blob.grad.numpy(), expected, rtol=0, atol=4e-6 * np.abs(expected).max())


def test_parts_of_a_net_and_what_is_kept(tiny: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, golden = tiny
    whole = graph({name: torch.from_numpy(golden[f"blob/{name}"]) for name in ("data", "target")})
    first = graph({"data": torch.from_numpy(golden["blob/data"])}, end="c2")
    assert set(first) == {"data", "c1", "pool", "c2"}
    rest = graph({"c1": whole["c1"], "c2": whole["c2"]}, start="up", end="cat")
    assert torch.equal(rest["cat"], whole["cat"])
    kept = graph({name: whole[name] for name in ("data", "target")}, keep=["c3"])
    assert list(kept) == ["c3"]
    assert torch.equal(kept["c3"], whole["c3"])


def test_layers_work_in_place_on_names_not_on_what_was_fed() -> None:
    graph = build(INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }')
    x = -torch.ones(1, 3, 8, 6)
    with torch.no_grad():
        assert graph(x)["x"].max() == 0
    assert x.max() == -1


def test_an_overwriting_relu_changes_nothing() -> None:
    text = (
        INPUT
        + """
        layer { name: "c" type: "Convolution" bottom: "x" top: "c"
          convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
        layer { name: "r" type: "ReLU" bottom: "c" top: "c" relu_param { negative_slope: 0.5 } }"""
    )
    graph = build(text)
    assert graph.layer("r").module.overwrites
    x = torch.randn(1, 3, 8, 6)
    expected = graph(x)["c"].detach()
    with torch.no_grad():
        assert torch.equal(graph(x)["c"], expected)
        torch.testing.assert_close(graph.for_inference()(x)["c"], expected, rtol=0, atol=1e-6)
    crossed = build(
        text.replace('layer { name: "r"', 'layer { name: "s" type: "Split" bottom: "c" top: "d" } layer { name: "r"')
    )
    assert not crossed.layer("r").module.overwrites


def test_phases_levels_and_stages() -> None:
    text = (
        INPUT
        + """
        layer { name: "train" type: "Power" bottom: "x" top: "a" include { phase: TRAIN } }
        layer { name: "not_train" type: "Power" bottom: "x" top: "b" exclude { phase: TRAIN } }
        layer { name: "high" type: "Power" bottom: "x" top: "c" include { min_level: 2 } include { stage: "s" } }
        layer { name: "low" type: "Power" bottom: "x" top: "d" include { max_level: 1 not_stage: "s" not_stage: "t" } }
        layer { name: "both" type: "Power" bottom: "x" top: "e" include { stage: "s" stage: "t" } }"""
    )

    def names(phase: int, **state: object) -> list[str]:
        return [layer.name for layer in build(text, phase, **state).layers[1:]]

    assert names(schema.TRAIN) == ["train", "low"]
    assert names(schema.TEST, level=2) == ["not_train", "high"]
    assert names(schema.TEST, stages=["s"]) == ["not_train", "high"]
    assert names(schema.TEST, stages=["t", "s"]) == ["not_train", "high", "both"]
    with pytest.raises(FileFormatError, match="layer 'q': expected include or exclude rules, got both"):
        build('layer { name: "q" include { } exclude { } }')


def test_the_nets_own_state_counts() -> None:
    text = (
        INPUT
        + 'state { level: 3 stage: "s" } layer { name: "a" type: "Power" bottom: "x" top: "a" '
        + 'include { min_level: 3 stage: "s" } }'
    )
    assert build(text).layers[-1].name == "a"


SHARED = (
    INPUT
    + """
    layer { name: "a" type: "Convolution" bottom: "x" top: "a" param { name: "w" lr_mult: 0.5 } param { name: "b" }
      convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
    layer { name: "b" type: "Convolution" bottom: "a" top: "b" param { name: "w" } param { name: "c" }
      convolution_param { num_output: 3 kernel_size: 3 pad: 1 } }"""
)


def test_parameters_shared_by_name_are_one() -> None:
    graph = build(SHARED)
    a, b = graph.layer("a"), graph.layer("b")
    assert a.module.blobs[0] is b.module.blobs[0]
    assert a.module.blobs[1] is not b.module.blobs[1]
    assert (a.lr_mult, b.lr_mult) == ([0.5, 1.0], [0.5, 1.0])
    assert len(list(graph.parameters())) == 3
    with pytest.raises(
        LayerError, match=r"layer 'b' \(Convolution\): param 'w': expected the shape \(3, 3, 3, 3\) that"
    ):
        build(SHARED.replace("kernel_size: 3 pad: 1 } }", "kernel_size: 5 pad: 1 } }"))


def test_a_rate_of_0_learns_nothing_unless_backward_is_forced() -> None:
    text = INPUT + 'layer { name: "s" type: "Scale" bottom: "x" top: "s" param { lr_mult: 0 } }'
    assert not build(text).layer("s").module.blobs[0].requires_grad
    assert build("force_backward: true " + text).layer("s").module.blobs[0].requires_grad


def test_loss_weights() -> None:
    text = """
        layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } } }
        layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "y" top: "l" }
        layer { name: "m" type: "Reduction" bottom: "x" top: "m" loss_weight: 3 reduction_param { axis: 1 } }"""
    graph = build(text)
    assert [layer.loss_weight for layer in graph.layers[1:]] == [[1.0], [3.0]]
    blobs = graph({"x": torch.ones(2, 3), "y": torch.zeros(2, 3)})
    assert float(graph.loss(blobs)) == 6 / 4 + 3 * 6
    with pytest.raises(LayerError, match="loss_weight: expected one for each of 1 tops, got 2"):
        build(text.replace("loss_weight: 3", "loss_weight: 3 loss_weight: 1"))


def test_shapes_follow_the_inputs() -> None:
    graph = build(
        INPUT + 'layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 3 stride: 2 } }'
    )
    assert graph.shapes["p"] == (1, 3, 4, 3)
    assert graph.reshape({"x": (2, 3, 9, 20)})["p"] == graph.shapes["p"] == (2, 3, 4, 10)
    assert graph(torch.zeros(1, 3, 21, 4))["p"].shape == (1, 3, 10, 2)


def test_inputs_of_every_kind() -> None:
    text = """
        layer { name: "d" type: "ImageData" top: "data" top: "label" image_data_param { batch_size: 4 }
          transform_param { crop_size: 7 } }
        layer { name: "m" type: "MemoryData" top: "m" top: "ml"
          memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }
        layer { name: "u" type: "DummyData" top: "u"
          dummy_data_param { shape { dim: 2 dim: 2 } data_filler { value: 3 } } }
        layer { name: "p" type: "Python" top: "own" python_param { module: "nowhere" layer: "None" } }"""
    graph = build(text, input_shapes={"own": (1, 2)})
    assert graph.shapes == {
        "data": (4, 3, 7, 7), "label": (4,), "m": (2, 3, 4, 5), "ml": (2,), "u": (2, 2), "own": (1, 2),
    }  # fmt: skip
    assert graph.inputs == list(graph.shapes)
    assert graph(end="u")["u"].tolist() == [[3, 3], [3, 3]]
    fed = graph({"u": torch.ones(2, 2)}, start="u", end="u")
    assert fed["u"].tolist() == [[1, 1], [1, 1]]


REFUSED = {
    'type: "Warp" bottom: "x" top: "w"': (LayerError, "expected a known type, got 'Warp'; upscore"),
    'type: "ReLU" bottom: "y" top: "w"': (LayerError, "expected a bottom that an earlier layer makes, got 'y'"),
    'type: "Input" top: "x"': (LayerError, r"layer 'w' \(Input\): expected a top of a new name"),
    'type: "ReLU" top: "w"': (LayerError, r"layer 'w' \(ReLU\): expected 1 bottoms, got 0"),
    'type: "Slice" bottom: "x" top: "a" top: "a"': (LayerError, "tops of different names, got 'a' twice"),
    'type: "Data" top: "d"': (ArgumentError, "a shape for 'd', which layer 'w'"),
    'type: "Python" bottom: "x" top: "d" python_param { module: "os" }': (LayerError, "runs code of the module 'os'"),
    'type: "ReLU" bottom: "x" top: "w" param { }': (LayerError, "expected at most 0 param"),
    'type: "Input" top: "d" input_param { shape { dim: 65536 dim: 65536 } }': (
        LayerError,
        r"expected sizes whose product is below 2\^31",
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_nets_that_do_not_fit_together(text: str) -> None:
    kind, message = REFUSED[text]
    with pytest.raises(kind, match=message):
        build(INPUT + f'layer {{ name: "w" {text} }}')


def test_wrong_use() -> None:
    graph = build(INPUT + 'layer { name: "relu" type: "ReLU" bottom: "x" top: "y" }')
    with pytest.raises(ArgumentError, match="inputs: expected a blob for 'x', got none"):
        graph()
    with pytest.raises(ArgumentError, match="layer: expected the name of a layer, got 'rely'; for example relu"):
        graph.index("rely")
    with pytest.raises(ArgumentError, match=r"input_shapes: expected inputs of the net \(x\), got z"):
        build(INPUT, input_shapes={"z": (1,)})
    two = build(INPUT + INPUT.replace('top: "x"', 'top: "y"'))
    with pytest.raises(ArgumentError, match="expected blobs by name for"):
        two(torch.zeros(1))


def test_memory_is_bounded() -> None:
    fat = 'layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" inner_product_param { num_output: 1000000 } }'
    with pytest.raises(LayerError, match=r"blob 0 of shape \(1000000, 144\) makes the net's blobs exceed 0.0312 GiB"):
        build(INPUT + fat, max_bytes=32 << 20)
    assert build(INPUT + fat, device="meta").shapes["f"] == (1, 1000000)
    with pytest.raises(LayerError, match=r"must have between 1 and 2147483647 elements"):
        build(INPUT + fat.replace("1000000", "4000000000"), device="meta")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    graph = build(SHARED)
    graph.save(tmp_path / "n.caffemodel")
    plain = SHARED.replace('name: "w"', "")
    wider = build(plain.replace("num_output: 3", "num_output: 4"))
    with pytest.raises(
        FileFormatError, match=r"blob 0 of layer 'a' \(Convolution\) has the shape \(4, 3, 3, 3\), in the file \(3"
    ):
        wider.load(tmp_path / "n.caffemodel")
    fewer = build(
        SHARED.replace("pad: 1", "pad: 1 bias_term: false")
        .replace('param { name: "b" }', "")
        .replace('param { name: "c" }', "")
    )
    with pytest.raises(FileFormatError, match="has 1 blobs, the file 2; rename the layer"):
        fewer.load(tmp_path / "n.caffemodel")
    other = build(SHARED.replace('name: "b" type', 'name: "new" type'))
    assert other.load(tmp_path / "n.caffemodel") == ["new"]


def test_old_four_number_shapes_fit(tmp_path: Path) -> None:
    graph = build(SHARED)
    net = schema.NetParameter()
    layer = net.layers.add(name="a", type=schema.V1LayerParameter.CONVOLUTION)
    layer.blobs.add(num=3, channels=3, height=3, width=3).data.extend(range(81))
    layer.blobs.add(num=1, channels=1, height=1, width=3).data.extend([5, 6, 7])
    (tmp_path / "old").write_bytes(net.SerializeToString())
    assert graph.load(tmp_path / "old") == ["b"]
    assert graph.layer("a").module.blobs[1].tolist() == [5, 6, 7]


@pytest.mark.parametrize("name", ["n.caffemodel", "n.caffemodel.h5"])
def test_saving_and_loading(tmp_path: Path, name: str) -> None:
    one, other = build(SHARED), build(SHARED)
    one.save(tmp_path / name)
    other.load(tmp_path / name)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_table_takes_new_types() -> None:
    class Double(CaffeModule):
        def forward(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (bottoms[0] * 2,)

    register("TestDouble", Double)
    graph = build(INPUT + 'layer { name: "d" type: "TestDouble" bottom: "x" top: "d" }')
    assert graph(torch.ones(1, 3, 8, 6))["d"].sum() == 288


def test_sizes_of_voc_fcn_8s() -> None:
    """The sizes that Caffe gives on a 500 x 500 image (Long et al. 2015: pad 100, offsets 5, 9 and 31)."""
    import runpy

    text = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "caffe_fcn8s.py"))["prototxt"]()
    shapes = build(text, device="meta").shapes
    sizes = {name: shape[2] for name, shape in shapes.items() if len(shape) == 4}
    assert [sizes[f"pool{i}"] for i in range(1, 6)] == [349, 175, 88, 44, 22]
    assert [sizes[n] for n in ("fc6", "score_fr", "upscore2", "upscore_pool4", "upscore8", "score")] == [
        16, 16, 34, 70, 568, 500,
    ]  # fmt: skip
