"""Classifier and Detector: crops, windows and averages, on a net whose scores are mean colours."""

import numpy as np
import pytest
from PIL import Image

import upscore.caffe as caffe
from upscore.errors import ArgumentError

NET = """
layer { name: "image" type: "Input" top: "image" input_param { shape { dim: 4 dim: 3 dim: 6 dim: 8 } } }
layer { name: "score" type: "Pooling" bottom: "image" top: "score" pooling_param { pool: AVE global_pooling: true } }
"""


@pytest.fixture
def images():
    return [np.random.default_rng(i).random((11, 13, 3)).astype(np.float32) for i in range(3)]


def test_the_centre(images):
    net = caffe.Classifier(
        NET, image_dims=(10, 13), raw_scale=255, channel_swap=(2, 1, 0), mean=[1, 2, 3], input_scale=2
    )
    scores = net.predict(images, oversample=False)
    assert scores.shape == (3, 3, 1, 1)
    for image, score in zip(images, scores, strict=True):
        centre = caffe.io.resize_image(image, (10, 13))[2:8, 2:10].mean((0, 1))
        np.testing.assert_allclose(score.ravel(), (255 * centre[::-1] - [1, 2, 3]) * 2, rtol=1e-4)


def test_ten_crops(images):
    net = caffe.Classifier(NET, image_dims=(10, 12))
    scores = net.predict(images)
    for image, score in zip(images, scores, strict=True):
        resized = caffe.io.resize_image(image, (10, 12))
        crops = [resized[y : y + 6, x : x + 8].mean((0, 1)) for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
        np.testing.assert_allclose(score.ravel(), np.mean(crops, 0), rtol=1e-5)


def test_images_are_taken_at_the_net_size_unless_told_otherwise(images):
    net = caffe.Classifier(NET)
    expected = caffe.io.resize_image(images[0], (6, 8)).mean((0, 1))
    np.testing.assert_allclose(net.predict(images[:1]).ravel(), expected, rtol=1e-5)


def test_windows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    net = caffe.Detector(NET)
    windows = np.array([[0, 0, 6, 8], [3, 5, 9, 13]])
    found = net.detect_windows([(tmp_path / "a.png", windows)])
    assert [entry["filename"] for entry in found] == [tmp_path / "a.png"] * 2
    for entry, (top, left, bottom, right) in zip(found, windows, strict=True):
        assert entry["window"].tolist() == [top, left, bottom, right]
        expected = pixels[top:bottom, left:right].mean((0, 1)) / 255
        np.testing.assert_allclose(entry["prediction"].ravel(), expected, rtol=1e-5)
    assert net.detect_windows([]) == []
    with pytest.raises(ArgumentError, match=r"images_windows: expected .* within 20 x 30, got \[25, 0, 30, 5\]"):
        net.detect_windows([(tmp_path / "a.png", [[25, 0, 30, 5]])])


def test_nets_without_one_input():
    with pytest.raises(ArgumentError, match="model_file: expected a net with one Input layer, for the image, got none"):
        caffe.Classifier('layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }')
