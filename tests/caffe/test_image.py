"""Photos through nets: what is prepared, and what is made of the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from PIL import Image  # noqa: E402

from upscore.caffe import caffemodel, prototxt, schema  # noqa: E402
from upscore.caffe.graph import Graph  # noqa: E402
from upscore.caffe.image import IMAGENET_MEAN, palette, run_image  # noqa: E402
from upscore.errors import ArgumentError  # noqa: E402

INPUT = 'input: "data" input_dim: 1 input_dim: {c} input_dim: 8 input_dim: 6 '


def model(folder: Path, layers: str, channels: int = 3) -> tuple[Path, Path]:
    net = folder / "deploy.prototxt"
    net.write_text(INPUT.format(c=channels) + layers)
    Graph(prototxt.read(net, schema.NetParameter())).save(folder / "net.caffemodel")
    return net, folder / "net.caffemodel"


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 7, 3), dtype=np.uint8))


IDENTITY = 'layer { name: "p" type: "Power" bottom: "data" top: "y" }'


def test_the_preparation_is_caffes_and_is_undone_for_pictures(tmp_path: Path, photo: Image.Image) -> None:
    net, weights = model(tmp_path, IDENTITY)
    seen: list[np.ndarray] = []

    class Watched(Graph):
        def forward(self, inputs: dict[str, torch.Tensor], **options: object) -> dict[str, torch.Tensor]:
            seen.append(inputs["data"].numpy())
            return super().forward(inputs, **options)

    import upscore.caffe.image as module

    original, module.Graph = module.Graph, Watched  # type: ignore[misc]
    try:
        result = run_image(net, weights, photo)
    finally:
        module.Graph = original  # type: ignore[misc]
    expected = np.asarray(photo).astype(np.float32)[:, :, ::-1].transpose(2, 0, 1) - np.reshape(
        IMAGENET_MEAN, (3, 1, 1)
    )
    np.testing.assert_allclose(seen[0][0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(result.image), np.asarray(photo))
    assert (result.blob, result.classes) == ("y", None)


@pytest.mark.parametrize("settings", [{"order": "rgb"}, {"scale": 1 / 255, "mean": 0}, {"mean": [1, 2, 3]}])
def test_other_preparations_are_undone_too(tmp_path: Path, photo: Image.Image, settings: dict[str, object]) -> None:
    result = run_image(*model(tmp_path, IDENTITY), photo, **settings)
    np.testing.assert_array_equal(np.asarray(result.image), np.asarray(photo))


def test_means_from_files(tmp_path: Path, photo: Image.Image) -> None:
    caffemodel.write_mean(tmp_path / "m.binaryproto", np.full((1, 3, 9, 9), 100, np.float32))
    layers = 'layer { name: "p" type: "Power" bottom: "data" top: "y" power_param { scale: 0 } }'
    result = run_image(*model(tmp_path, layers), photo, mean=tmp_path / "m.binaryproto")
    assert np.unique(np.asarray(result.image)).tolist() == [100]


SCORES = """layer { name: "c" type: "Convolution" bottom: "data" top: "s" convolution_param { num_output: 5
  kernel_size: 1 bias_filler { value: 1 } } }
layer { name: "b" type: "Bias" bottom: "s" top: "s" bias_param { filler { type: "uniform" } } }"""


def test_scores_become_a_class_map_with_the_pascal_palette(tmp_path: Path, photo: Image.Image) -> None:
    net, weights = model(tmp_path, SCORES)
    graph = Graph(prototxt.read(net, schema.NetParameter()))
    graph.load(weights)
    best = int(graph.layer("b").module.blobs[0].argmax())
    result = run_image(net, weights, photo)
    assert (result.image.mode, result.image.size, result.classes) == ("P", (7, 10), {best: 70})
    assert bytes(result.image.getpalette()[: 3 * 21]) == palette()[: 3 * 21]


def test_an_argmax_layer_is_classes_already(tmp_path: Path, photo: Image.Image) -> None:
    net, weights = model(
        tmp_path, SCORES + 'layer { name: "a" type: "ArgMax" bottom: "s" top: "a" argmax_param { axis: 1 } }'
    )
    scores, classes = run_image(net, weights, photo, output="s"), run_image(net, weights, photo)
    assert classes.blob == "a"
    np.testing.assert_array_equal(np.asarray(scores.image), np.asarray(classes.image))


def test_a_net_of_one_size_gets_a_resized_photo_and_its_result_is_resized_back(
    tmp_path: Path, photo: Image.Image
) -> None:
    layers = (
        SCORES
        + """layer { name: "p" type: "Pooling" bottom: "s" top: "p" top: "m"
      pooling_param { kernel_size: 2 stride: 2 } }
      layer { name: "u" type: "Unpooling" bottom: "p" bottom: "m" top: "u" unpooling_param { kernel_size: 2 stride: 2
        unpool_h: 8 unpool_w: 6 } } layer { name: "e" type: "Eltwise" bottom: "u" bottom: "s" top: "e" }"""
    )
    result = run_image(*model(tmp_path, layers), photo)
    assert (result.image.size, sum(result.classes.values())) == (photo.size, 48)


def test_grey_nets(tmp_path: Path, photo: Image.Image) -> None:
    up = """layer { name: "u" type: "Deconvolution" bottom: "data" top: "u" convolution_param { num_output: 1
      kernel_size: 2 stride: 2 bias_term: false weight_filler { value: 1 } } }"""
    result = run_image(*model(tmp_path, up, 1), photo, mean=0)
    np.testing.assert_array_equal(np.asarray(result.image)[::2, 1::2], np.asarray(photo.convert("L")))


def test_errors(tmp_path: Path, photo: Image.Image) -> None:
    files = model(tmp_path, IDENTITY)
    with pytest.raises(ArgumentError, match="order: expected 'bgr' or 'rgb', got 'gbr'"):
        run_image(*files, photo, order="gbr")
    with pytest.raises(ArgumentError, match="scale: expected any number but 0"):
        run_image(*files, photo, scale=0)
    with pytest.raises(ArgumentError, match="output: expected a blob of the net, got 'score'; for example y"):
        run_image(*files, photo, output="score")
    with pytest.raises(ArgumentError, match="mean: expected 1 or 3 numbers, got 2"):
        run_image(*files, photo, mean=[1, 2])
    with pytest.raises(
        ArgumentError, match=r"net: expected an input \(N, 1 or 3, H, W\) for an image, got data \(1, 7, 8, 6\)"
    ):
        run_image(*model(tmp_path, IDENTITY, 7), photo)
