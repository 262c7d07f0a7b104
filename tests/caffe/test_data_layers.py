"""Data layers that read their sources: what a batch holds, in which order, and what files must hold."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import upscore.caffe as caffe
from upscore.errors import FileFormatError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def load(layer, phase=caffe.TRAIN, **kwargs):
    return caffe.Net(layer + 'layer { name: "s" type: "Silence" bottom: "data" }', phase, **kwargs)


def pictures(count, size=(6, 8), grey=False):
    """Image files of random numbers and their pixels, ``(H, W, 3)`` or ``(H, W)``."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{'grey' if grey else 'colour'}{i}.png")
        found.append(pixels)
    return found


def blob(pixels):
    """Pixels as Caffe has them: BGR, channels first."""
    return pixels[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)


class TestHDF5:
    LAYER = """layer { name: "d" type: "HDF5Data" top: "data" top: "label"
                 hdf5_data_param { source: "list.txt" batch_size: 3 %s } }"""

    def files(self, here, rows=(4, 3)):
        start = 0
        for i, count in enumerate(rows):
            with h5py.File(here / f"{i}.h5", "w") as file:
                file["data"] = np.arange(start, start + count)[:, None] * np.ones((1, 2))
                file["label"] = np.arange(start, start + count)
            start += count
        (here / "list.txt").write_text("".join(f"{i}.h5\n" for i in range(len(rows))))

    def test_rows_go_on_from_file_to_file_and_begin_again(self, here):
        self.files(here)
        net = load(self.LAYER % "")
        assert net.blobs["data"].shape == (3, 2)
        seen = [net.forward()["label"].tolist() for _ in range(4)]
        assert seen == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]
        assert net.blobs["data"].data.tolist() == [[2, 2], [3, 3], [4, 4]]

    def test_shuffled_epochs_hold_every_row_once(self, here):
        self.files(here, rows=(6,))
        net = load(self.LAYER % "shuffle: true")
        epochs = [[x for _ in range(2) for x in net.forward()["label"].tolist()] for _ in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6))
        assert epochs[0] != epochs[1]

    def test_passes_that_begin_later_do_not_read(self, here):
        self.files(here)
        net = load(self.LAYER % "")
        first = net.forward()["label"].tolist()
        net.forward(start="s")
        assert net.blobs["label"].data.tolist() == first

    def test_files_that_lack_a_dataset(self, here):
        self.files(here)
        with pytest.raises(FileFormatError, match=r"0.h5: expected a dataset 'target', got data, label"):
            load((self.LAYER % "").replace('"label"', '"target"'))

    def test_datasets_of_different_lengths(self, here):
        self.files(here, rows=(4,))
        with h5py.File(here / "0.h5", "a") as file:
            del file["label"]
            file["label"] = np.arange(3)
        with pytest.raises(FileFormatError, match=r"expected datasets of as many rows, got shapes \(4, 2\), \(3,\)"):
            load(self.LAYER % "")

    def test_without_the_source_it_is_an_input(self):
        net = load(self.LAYER % "", input_shapes={"data": (3, 2), "label": (3,)})
        net.blobs["data"].data[...] = 5
        net.forward()
        assert (net.blobs["data"].data == 5).all()


class TestImages:
    LAYER = """layer { name: "d" type: "ImageData" top: "data" top: "label"
                 image_data_param { source: "list.txt" batch_size: 2 %s } transform_param { %s } }"""

    def test_images_and_numbers(self, here):
        pixels = pictures(3)
        (here / "list.txt").write_text("colour0.png 7\ncolour1.png 0\n\ncolour2.png 3\n")
        net = load(self.LAYER % ("", "scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3"))
        seen = [(net.forward()["label"].tolist(), net.blobs["data"].data.copy()) for _ in range(2)]
        assert [labels for labels, _ in seen] == [[7, 0], [3, 7]]
        for batch, indices in ((seen[0][1], (0, 1)), (seen[1][1], (2, 0))):
            for found, index in zip(batch, indices, strict=True):
                expected = (blob(pixels[index]) - np.array([1, 2, 3])[:, None, None]) * 0.5
                np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_resized_and_grey(self, here):
        pixels = pictures(1)
        (here / "list.txt").write_text("0.png 1\n")
        fields = 'root_folder: "colour" is_color: false new_height: 3 new_width: 4'
        net = load(self.LAYER % (fields, ""))
        assert net.blobs["data"].shape == (2, 1, 3, 4)
        grey = caffe.io.load_image("colour0.png", color=False)
        expected = np.rint(caffe.io.resize_image(grey * 255, (3, 4)))[:, :, 0]
        net.forward()
        np.testing.assert_allclose(net.blobs["data"].data[0, 0], expected, atol=1)
        assert pixels[0].shape == (6, 8, 3)

    def test_crops_stand_in_the_middle_at_test_and_anywhere_in_training(self, here):
        (pixels,) = pictures(1)
        (here / "list.txt").write_text("colour0.png 1\n")
        test = load(self.LAYER % ("", "crop_size: 3"), caffe.TEST)
        test.forward()
        np.testing.assert_array_equal(test.blobs["data"].data[0], blob(pixels)[:, 1:4, 2:5])
        train = load(self.LAYER % ("", "crop_size: 3 mirror: true"))
        places = set()
        for _ in range(60):
            train.forward()
            for found in train.blobs["data"].data:
                for y in range(4):
                    for x in range(6):
                        window = blob(pixels)[:, y : y + 3, x : x + 3]
                        places |= {(y, x, m) for m in (1, -1) if np.array_equal(found, window[:, :, ::m])}
        assert {y for y, _, _ in places} == set(range(4))
        assert {x for _, x, _ in places} == set(range(6))
        assert {m for _, _, m in places} == {1, -1}

    def test_a_mean_image_is_subtracted_before_the_crop(self, here):
        from upscore.caffe import caffemodel

        (pixels,) = pictures(1)
        (here / "list.txt").write_text("colour0.png 1\n")
        mean = np.random.default_rng(5).random((1, 3, 6, 8), dtype=np.float32)
        caffemodel.write_mean("mean.binaryproto", mean)
        net = load(self.LAYER % ("", 'crop_size: 4 mean_file: "mean.binaryproto"'), caffe.TEST)
        net.forward()
        np.testing.assert_allclose(net.blobs["data"].data[0], (blob(pixels) - mean[0])[:, 1:5, 2:6], atol=1e-5)
        caffemodel.write_mean("mean.binaryproto", mean[:, :, :5])
        with pytest.raises(FileFormatError, match=r"expected a mean of shape \(3, 6, 8\), got \(3, 5, 8\)"):
            load(self.LAYER % ("", 'mean_file: "mean.binaryproto"'))

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("", "list.txt: expected the name of a file on each line, got an empty file"),
            ("colour0.png", "expected an image and a number on each line, got 'colour0.png'"),
            ("colour0.png 1\nsmall.png 2", r"expected items of one size in a batch, got \[\(3, 2, 2\), \(3, 6, 8\)\]"),
        ],
    )
    def test_lists_that_cannot_be_read(self, here, lines, message):
        pictures(1)
        Image.new("RGB", (2, 2)).save("small.png")
        (here / "list.txt").write_text(lines)
        with pytest.raises(FileFormatError, match=message):
            load(self.LAYER % ("", ""))

    def test_crops_larger_than_the_image(self, here):
        pictures(1)
        (here / "list.txt").write_text("colour0.png 1\n")
        with pytest.raises(FileFormatError, match=r"crop_size: expected at most the size \(6, 8\) of the image, got 7"):
            load(self.LAYER % ("", "crop_size: 7"))

    def test_one_at_a_time_images_may_differ_in_size(self, here):
        pictures(1)
        Image.new("RGB", (2, 4)).save("small.png")
        (here / "list.txt").write_text("colour0.png 1\nsmall.png 2\n")
        net = load((self.LAYER % ("", "")).replace("batch_size: 2", "batch_size: 1"))
        shapes = []
        for _ in range(3):
            net.forward()
            shapes.append(net.blobs["data"].shape)
        assert shapes == [(1, 3, 6, 8), (1, 3, 4, 2), (1, 3, 6, 8)]


@pytest.mark.parametrize("kind", ["DenseImageData", "ImageSegData"])
class TestSegmentation:
    def layer(self, kind, fields="", transform=""):
        param, more = (
            ("dense_image_data_param", "") if kind == "DenseImageData" else ("image_data_param", "label_type: PIXEL")
        )
        return f"""layer {{ name: "d" type: "{kind}" top: "data" top: "label"
          {param} {{ source: "list.txt" batch_size: 2 {more} {fields} }} transform_param {{ {transform} }} }}"""

    def test_labels_go_with_their_pixels(self, here, kind):
        images, labels = pictures(2), pictures(2, grey=True)
        (here / "list.txt").write_text("colour0.png grey0.png\ncolour1.png grey1.png\n")
        net = load(self.layer(kind, transform="crop_size: 4 mirror: true mean_value: 10"))
        assert net.blobs["label"].shape == (2, 1, 4, 4)
        for _ in range(5):
            net.forward()
            for i in range(2):
                found = []
                for y in range(3):
                    for x in range(5):
                        for m in (1, -1):
                            window = blob(images[i])[:, y : y + 4, x : x + 4][:, :, ::m] - 10
                            if np.array_equal(net.blobs["data"].data[i], window):
                                found.append(labels[i][y : y + 4, x : x + 4][:, ::m])
                assert len(found) == 1
                np.testing.assert_array_equal(net.blobs["label"].data[i, 0], found[0])

    def test_resized_labels_stay_labels(self, here, kind):
        pictures(1)
        Image.fromarray(np.array([[3, 200]], dtype=np.uint8).repeat(6, 0).repeat(4, 1)).save("grey0.png")
        (here / "list.txt").write_text("colour0.png grey0.png\n")
        net = load(self.layer(kind, "new_height: 9 new_width: 11"))
        net.forward()
        assert net.blobs["data"].shape[2:] == (9, 11)
        assert set(np.unique(net.blobs["label"].data)) == {3, 200}

    def test_labels_of_another_size(self, here, kind):
        pictures(1)
        pictures(1, size=(6, 7), grey=True)
        (here / "list.txt").write_text("colour0.png grey0.png\n")
        with pytest.raises(
            FileFormatError, match=r"images and labels of one size, got \(6, 8\) and \(6, 7\) for colour0"
        ):
            load(self.layer(kind))


def test_a_solver_trains_from_files(here):
    """SRCNN as it was trained: pairs of patches in HDF5."""
    data = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    with h5py.File("train.h5", "w") as file:
        file["data"], file["label"] = data, 2 * data[:, :, 1:-1, 1:-1]
    (here / "list.txt").write_text("train.h5\n")
    (here / "net.prototxt").write_text("""
    layer { name: "d" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 5 } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 1 kernel_size: 3
      weight_filler { type: "gaussian" std: 0.01 } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "conv" bottom: "label" top: "loss" }""")
    (here / "solver.prototxt").write_text(
        """net: "net.prototxt" base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" random_seed: 1
        test_iter: 2 test_interval: 90"""
    )
    solver = caffe.get_solver("solver.prototxt")
    solver.step(1)
    first = float(solver.net.blobs["loss"].data)
    solver.step(150)
    assert float(solver.net.blobs["loss"].data) < 0.05 * first
