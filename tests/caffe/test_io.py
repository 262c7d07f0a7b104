"""Images into blobs: against Pillow, SciPy and the formulas that the steps stand for."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import upscore.caffe as caffe
from upscore.caffe import schema
from upscore.errors import ArgumentError, FileFormatError


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)


class TestBlobs:
    def test_round_trip(self):
        array = np.random.default_rng(0).standard_normal((2, 3, 1, 5)).astype(np.float32)
        blob = schema.BlobProto.FromString(caffe.io.array_to_blobproto(array, diff=2 * array).SerializeToString())
        np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob), array)
        np.testing.assert_array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), 2 * array)

    def test_legacy_shape(self):
        blob = schema.BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
        assert caffe.io.blobproto_to_array(blob).tolist() == [[[[0, 1, 2]], [[3, 4, 5]]]]

    def test_doubles(self):
        blob = schema.BlobProto(shape=schema.BlobShape(dim=[2]), double_data=[0.1, 0.2])
        assert caffe.io.blobproto_to_array(blob).tolist() == [0.1, 0.2]

    @pytest.mark.parametrize("dims", [[2, 3], [-1, -4], [2**40, 2**40]])
    def test_a_shape_that_lies_is_an_error(self, dims):
        blob = schema.BlobProto(shape=schema.BlobShape(dim=dims), data=range(4))
        with pytest.raises(FileFormatError, match=r"a blob says shape .* and holds 4"):
            caffe.io.blobproto_to_array(blob)

    def test_a_gradient_of_another_shape_is_refused(self):
        with pytest.raises(ArgumentError, match=r"diff: expected the shape of the array, \(2,\), got \(3,\)"):
            caffe.io.array_to_blobproto([1, 2], diff=[1, 2, 3])

    def test_vectors(self):
        arrays = [np.arange(6.0).reshape(2, 3), np.ones((1, 1, 4))]
        back = caffe.io.blobprotovector_str_to_arraylist(caffe.io.arraylist_to_blobprotovector_str(arrays))
        assert [b.tolist() for b in back] == [a.tolist() for a in arrays]

    def test_messages_where_programs_look_for_them(self):
        from upscore.caffe.proto import caffe_pb2

        assert caffe.io.caffe_pb2 is caffe.proto.caffe_pb2 is caffe_pb2
        assert caffe_pb2.BlobProto is schema.BlobProto
        assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1)
        assert (caffe_pb2.Phase.Name(0), caffe_pb2.Phase.Value("TEST")) == ("TRAIN", 1)
        assert "NetParameter" in dir(caffe_pb2)
        with pytest.raises(AttributeError, match=r"'upscore.caffe.io' has no attribute 'x'; it has Transformer, "):
            _ = caffe.io.x
        with pytest.raises(AttributeError, match="has no attribute 'x'; it has caffe_pb2"):
            _ = caffe.proto.x


class TestData:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_round_trip(self, pixels, dtype):
        array = pixels.transpose(2, 0, 1).astype(dtype)
        datum = schema.Datum.FromString(caffe.io.array_to_datum(array, label=7).SerializeToString())
        assert datum.label == 7
        assert bool(datum.data) == (dtype == np.uint8)
        np.testing.assert_array_equal(caffe.io.datum_to_array(datum), array)

    def test_encoded_images_come_out_in_bgr(self, pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        datum = schema.Datum(channels=3, encoded=True, data=file.getvalue())
        np.testing.assert_array_equal(caffe.io.datum_to_array(datum), pixels[:, :, ::-1].transpose(2, 0, 1))

    def test_errors(self):
        with pytest.raises(ArgumentError, match="arr: expected three axes"):
            caffe.io.array_to_datum(np.zeros((2, 2)))
        with pytest.raises(FileFormatError, match=r"a datum says shape \(3, 2, 2\) and holds 5 numbers"):
            caffe.io.datum_to_array(schema.Datum(channels=3, height=2, width=2, data=b"12345"))


class TestLoadImage:
    def test_colour(self, tmp_path, pixels):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        image = caffe.io.load_image(tmp_path / "a.png")
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, pixels.astype(np.float32) / 255)

    def test_alpha_is_dropped_and_palettes_are_looked_up(self, tmp_path, pixels):
        rgba = np.concatenate([pixels, np.zeros((5, 7, 1), np.uint8)], axis=2)
        Image.fromarray(rgba).save(tmp_path / "a.png")
        np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "a.png"), pixels.astype(np.float32) / 255)
        palette = Image.fromarray(pixels).quantize(4)
        palette.save(tmp_path / "p.png")
        expected = np.asarray(palette.convert("RGB"), dtype=np.float32) / 255
        np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "p.png"), expected)

    def test_grey(self, tmp_path, pixels):
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / "g.png")
        grey = caffe.io.load_image(tmp_path / "g.png", color=False)
        assert grey.shape == (5, 7, 1)
        np.testing.assert_array_equal(caffe.io.load_image(tmp_path / "g.png"), np.repeat(grey, 3, axis=2))
        Image.fromarray(pixels).save(tmp_path / "c.png")
        light = caffe.io.load_image(tmp_path / "c.png", color=False)
        r, g, b = (pixels[:, :, i] / 255 for i in range(3))
        np.testing.assert_allclose(light[:, :, 0], 0.2125 * r + 0.7154 * g + 0.0721 * b, atol=1e-6)

    def test_sixteen_bits(self, tmp_path):
        values = np.array([[0, 1, 65535], [257, 32768, 5]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "d.png")
        np.testing.assert_allclose(
            caffe.io.load_image(tmp_path / "d.png", color=False)[:, :, 0], values / 65535, rtol=1e-6
        )

    def test_a_file_that_is_no_image(self, tmp_path):
        (tmp_path / "x.png").write_bytes(b"no")
        with pytest.raises(FileFormatError, match=r"x\.png is no image"):
            caffe.io.load_image(tmp_path / "x.png")


class TestResize:
    @pytest.mark.parametrize("size", [(9, 4), (3, 14), (5, 7), (1, 1)])
    @pytest.mark.parametrize("order", [0, 1])
    def test_images_keep_their_borders(self, pixels, size, order):
        image = pixels / 255
        rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, image.shape[:2], strict=True))
        grid = np.meshgrid(rows, columns, indexing="ij")
        if order == 0:  # a position in the middle of two pixels takes the later one; SciPy rounds to even
            grid = [np.floor(g + 0.5) for g in grid]
        planes = [ndimage.map_coordinates(image[:, :, c], grid, order=order, mode="nearest") for c in range(3)]
        resized = caffe.io.resize_image(image, size, interp_order=order)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, np.stack(planes, axis=2), atol=1e-5)

    def test_score_maps_keep_their_corners(self):
        scores = np.random.default_rng(0).standard_normal((5, 7, 21)).astype(np.float32)
        expected = ndimage.zoom(scores.astype(float), (11 / 5, 4 / 7, 1), order=1)
        np.testing.assert_allclose(caffe.io.resize_image(scores, (11, 4)), expected, atol=1e-5)

    def test_errors(self):
        with pytest.raises(ArgumentError, match="interp_order: expected 0, 1 or 3, got 2"):
            caffe.io.resize_image(np.zeros((2, 2, 3)), (4, 4), interp_order=2)
        with pytest.raises(ArgumentError, match="im: expected three axes"):
            caffe.io.resize_image(np.zeros((2, 2)), (4, 4))


class TestOversample:
    def test_ten_crops_each(self, pixels):
        image = pixels.astype(np.float32)
        crops = caffe.io.oversample([image, image + 1], (3, 4))
        assert crops.shape == (20, 3, 4, 3)
        expected = [image[:3, :4], image[:3, 3:], image[2:, :4], image[2:, 3:], image[1:4, 1:5]]
        np.testing.assert_array_equal(crops[:5], expected)
        np.testing.assert_array_equal(crops[5:10], crops[:5, :, ::-1])
        np.testing.assert_array_equal(crops[10:], crops[:10] + 1)

    def test_crops_larger_than_the_image(self, pixels):
        with pytest.raises(ArgumentError, match="crop_dims: expected at most the size of the image, got 6 x 4 of"):
            caffe.io.oversample([pixels], (6, 4))


class TestTransformer:
    @pytest.fixture
    def transformer(self):
        t = caffe.io.Transformer({"data": (10, 3, 5, 7)})
        t.set_transpose("data", (2, 0, 1))
        t.set_channel_swap("data", (2, 1, 0))
        t.set_raw_scale("data", 255)
        t.set_mean("data", np.array([104, 117, 123]))
        t.set_input_scale("data", 0.5)
        return t

    def test_the_steps_in_their_order(self, transformer, pixels):
        image = pixels.astype(np.float32) / 255
        before = image.copy()
        blob = transformer.preprocess("data", image)
        expected = (pixels.astype(float)[:, :, ::-1].transpose(2, 0, 1) - [[[104]], [[117]], [[123]]]) / 2
        assert blob.dtype == np.float32
        np.testing.assert_allclose(blob, expected, atol=1e-4)
        np.testing.assert_array_equal(image, before)

    @pytest.mark.parametrize("batch", [False, True])
    def test_deprocess_is_the_inverse(self, transformer, pixels, batch):
        image = pixels.astype(np.float32) / 255
        blob = transformer.preprocess("data", image)
        np.testing.assert_allclose(transformer.deprocess("data", blob[None] if batch else blob), image, atol=1e-6)

    def test_images_are_resized_to_the_input(self, transformer, pixels):
        image = np.full((11, 3, 3), 0.25)
        assert transformer.preprocess("data", image).shape == (3, 5, 7)
        small = caffe.io.Transformer({"data": (1, 3, 2, 9)})
        np.testing.assert_array_equal(small.preprocess("data", pixels), caffe.io.resize_image(pixels, (2, 9)))

    def test_a_mean_image(self, pixels):
        t = caffe.io.Transformer({"data": (1, 3, 5, 7)})
        t.set_transpose("data", (2, 0, 1))
        mean = np.arange(105.0).reshape(3, 5, 7)
        t.set_mean("data", mean)
        np.testing.assert_allclose(t.preprocess("data", pixels), pixels.transpose(2, 0, 1) - mean)
        t.set_mean("data", np.full((3, 10, 2), 9.0))
        np.testing.assert_allclose(t.preprocess("data", pixels), pixels.transpose(2, 0, 1) - 9.0)

    def test_one_channel(self):
        t = caffe.io.Transformer({"data": (1, 1, 2, 3)})
        t.set_transpose("data", (2, 0, 1))
        image = np.arange(6.0).reshape(2, 3, 1)
        assert t.deprocess("data", t.preprocess("data", image)[None]).shape == (2, 3, 1)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda t: t.preprocess("date", np.zeros((5, 7, 3))), "in_: expected one of the inputs data, got 'date'"),
            (lambda t: t.set_transpose("data", (2, 0)), r"order: expected an order of the axes 0 to 2, got \(2, 0\)"),
            (lambda t: t.set_channel_swap("data", (1, 0)), "order: expected one number for each of the 3 channels"),
            (lambda t: t.set_mean("data", np.zeros(4)), r"mean: expected 3 numbers, or an image .*, got shape \(4,\)"),
            (lambda t: t.deprocess("data", np.zeros((2, 3, 5, 7))), r"data: expected one item of the batch, 3 axes"),
        ],
    )
    def test_errors(self, transformer, call, message):
        with pytest.raises(ArgumentError, match=message):
            call(transformer)
