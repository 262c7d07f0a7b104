"""Binary weights: against files and messages that others wrote, and back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import caffemodel, schema
from upscore.caffe.caffemodel import LayerWeights, Snapshot
from upscore.errors import FileFormatError

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"


def written(tmp_path: Path, message: object) -> Path:
    path = tmp_path / "file"
    path.write_bytes(message.SerializeToString())
    return path


def test_a_model_that_caffe_wrote() -> None:
    arrays = np.load(GOLDEN / "tiny_unet.npz")
    found = {layer.name: layer for layer in caffemodel.read(GOLDEN / "tiny_unet.caffemodel")}
    expected = [key.split("/")[1:] for key in arrays.files if key.startswith("param/")]
    assert sum(len(layer.blobs) for layer in found.values()) == len(expected) == 9
    for name, i in expected:
        np.testing.assert_array_equal(found[name].blobs[int(i)], arrays[f"param/{name}/{i}"])
    assert (found["up"].type, found["up"].legacy) == ("Deconvolution", False)


def test_blobs_are_views_of_the_file() -> None:
    for layer in caffemodel.read(GOLDEN / "tiny_unet.caffemodel"):
        for blob in layer.blobs:
            assert not blob.flags.owndata
            assert not blob.flags.writeable


def test_v1_with_old_shapes_and_v0_inside_it(tmp_path: Path) -> None:
    net = schema.NetParameter()
    v1 = net.layers.add(name="fc", type=schema.V1LayerParameter.INNER_PRODUCT)
    v1.blobs.add(num=1, channels=1, height=2, width=3).data.extend(range(6))
    v0 = net.layers.add().layer
    v0.name, v0.type = "c", "conv"
    v0.blobs.add(num=1, channels=1, height=1, width=2).data.extend([7, 8])
    fc, c = caffemodel.read(written(tmp_path, net))
    assert (fc.name, fc.type, fc.legacy) == ("fc", "InnerProduct", True)
    np.testing.assert_array_equal(fc.blobs[0], np.arange(6).reshape(1, 1, 2, 3))
    assert (c.name, c.type, c.blobs[0].tolist()) == ("c", "Convolution", [[[[7, 8]]]])


def test_doubles_scalars_unpacked_and_split_fields(tmp_path: Path) -> None:
    net = schema.NetParameter()
    layer = net.layer.add(name="x")
    layer.blobs.add(shape=schema.BlobShape(dim=[2])).double_data.extend([0.5, 1e300])
    layer.blobs.add(shape=schema.BlobShape()).data.append(3)
    path = written(tmp_path, net)
    # Field 5 as three fields: one packed float, then two that are not packed; shape {dim: 3}, its dim not packed.
    blob = (
        b"\x3a\x02\x08\x03"
        + b"\x2a\x04"
        + struct.pack("<f", 1)
        + b"".join(b"\x2d" + struct.pack("<f", v) for v in (2, 4))
    )
    body = b"\x0a\x01y\x3a" + bytes([len(blob)]) + blob
    path.write_bytes(path.read_bytes() + b"\xa2\x06" + bytes([len(body)]) + body)
    x, y = caffemodel.read(path)
    assert x.blobs[0].dtype == np.float32
    assert x.blobs[0].tolist() == [0.5, np.inf]
    assert (x.blobs[1].shape, float(x.blobs[1])) == ((), 3.0)
    assert y.blobs[0].tolist() == [1, 2, 4]


def test_what_is_written_is_what_protobuf_and_we_read(tmp_path: Path) -> None:
    net = schema.NetParameter(name="n")
    net.layer.add(name="a", type="Deconvolution").convolution_param.stride.append(3)
    net.layer.add(name="b", type="ReLU")
    rng = np.random.default_rng(0)
    blobs = [rng.standard_normal((2, 3, 4, 5)).astype(np.float32), np.asarray(2.5, np.float32)]
    transposed = rng.standard_normal((3, 2)).astype(np.float32).T
    path = tmp_path / "n.caffemodel"
    caffemodel.write(path, net, [LayerWeights("a", "", [*blobs, transposed]), LayerWeights("b")])
    message = schema.NetParameter.FromString(path.read_bytes())
    assert message.layer[0].convolution_param.stride == [3]
    assert [list(b.shape.dim) for b in message.layer[0].blobs] == [[2, 3, 4, 5], [], [2, 3]]
    np.testing.assert_array_equal(np.array(message.layer[0].blobs[2].data).reshape(2, 3), transposed)
    found = caffemodel.read(path)
    for one, other in zip(found[0].blobs, [*blobs, transposed], strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[1].blobs == []


def test_writing_checks_the_names_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="expected weights for the net's 0 layers in order"):
        caffemodel.write(tmp_path / "n.caffemodel", schema.NetParameter(), [LayerWeights("a")])
    assert list(tmp_path.iterdir()) == []


def test_means_of_both_kinds(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    caffemodel.write_mean(tmp_path / "m.binaryproto", mean)
    np.save(tmp_path / "m.npy", mean.astype(np.float64))
    old = schema.BlobProto(num=1, channels=3, height=4, width=5)
    old.data.extend(mean.ravel().tolist())
    for path in (tmp_path / "m.binaryproto", tmp_path / "m.npy", written(tmp_path, old)):
        np.testing.assert_array_equal(caffemodel.read_mean(path), mean)
    np.save(tmp_path / "o.npy", np.array(["a"]))
    with pytest.raises(FileFormatError, match="expected numbers, got an array of <U1"):
        caffemodel.read_mean(tmp_path / "o.npy")


def test_solver_states(tmp_path: Path) -> None:
    state = Snapshot(20, "net_iter_20.caffemodel", 3, [np.ones((2, 1, 3), np.float32), np.zeros((), np.float32)])
    caffemodel.write_state(tmp_path / "s", state)
    message = schema.SolverState.FromString((tmp_path / "s").read_bytes())
    assert (message.iter, message.learned_net, message.current_step) == (20, "net_iter_20.caffemodel", 3)
    found = caffemodel.read_state(tmp_path / "s")
    assert (found.iteration, found.learned_net, found.current_step) == (20, "net_iter_20.caffemodel", 3)
    assert [h.shape for h in found.history] == [(2, 1, 3), ()]
    with pytest.raises(FileFormatError, match="byte 2: field 1 is none of a solverstate's"):
        caffemodel.read_state(GOLDEN / "tiny_unet.caffemodel")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"layer { }\n", "file, byte "),
        (b"\xa2\x06\x05\x0a", "field 100 claims 5 bytes where 1 are left; is the file complete"),
        (b"\xa2\x06\xff\xff\xff\xff\x0f", "claims 4294967295 bytes where 0 are left"),
        (b"\xff" * 11, "a number of more than 10 bytes"),
        (b"\xa3\x06", "wire type 3 is none of Caffe's"),
        (b"\xc2\x3e\x00", "field 1000 is none of a net's"),
        (b"\xa2\x06\x06\x0a\x01a\x3a\x01\x2a", "byte "),
        (
            b"\xa2\x06\x09\x3a\x07\x3a\x05\x0a\x03\xff\xff\x03",
            r"blob 0 of layer '' claims the shape \(65535,\) but holds 0",
        ),
        (b"\xa2\x06\x07\x3a\x05\x2a\x03abc", "field 5 should hold numbers of 4 bytes"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        caffemodel.read(path)
