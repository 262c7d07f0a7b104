"""Caffe files that attack: an error of ours or a net, in little time and memory."""

from __future__ import annotations

import importlib.util
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import caffemodel, hdf5, prototxt, schema, weights
from upscore.caffe.graph import Graph
from upscore.caffe.wire import length_delimited, tag, varint
from upscore.errors import FileFormatError, UpscoreError

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_caffe", Path(__file__).with_name("fuzz_caffe.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hundreds_of_mutated_files(fuzz: Any) -> None:
    outcomes, _, _ = fuzz.run(7_000_000, 400)
    assert outcomes.total() == 400
    assert {".prototxt net", ".prototxt error", ".caffemodel net", ".caffemodel error"} <= set(outcomes)


@pytest.mark.parametrize("name", ["tiny_unet.caffemodel", "tiny_unet.caffemodel.h5"])
def test_a_model_truncated_anywhere_is_an_error(name: str, tmp_path: Path) -> None:
    data = (GOLDEN / name).read_bytes()
    step = 1 if len(data) < 5000 else 97
    count = len(weights.read(GOLDEN / name))
    for length in range(0, len(data) - 1, step):
        (tmp_path / name).write_bytes(data[:length])
        try:
            found = len(weights.read(tmp_path / name))
        except FileFormatError:
            continue
        assert found < count, f"{length} of {len(data)} bytes read as the whole"  # a prefix of layers is a model


def test_a_prototxt_truncated_anywhere_is_an_error_or_a_shorter_net() -> None:
    text = (GOLDEN / "tiny_unet.prototxt").read_text()
    for length in range(0, len(text), 7):
        try:
            graph = Graph(prototxt.read(text[:length] + "\n", schema.NetParameter()), device="meta")
        except UpscoreError:
            continue
        assert len(graph.layers) < 11


def memory_of(read: Any, *arguments: Any) -> int:
    """The most that a call holds at once, of Python's and NumPy's memory; its error of ours is let pass."""
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError):
            read(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_lengths_that_lie_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (tag(100, 2**62), tag(100, 10) + tag(7, 2**40), b"\xa2\x06\x09\x3a\x07\x2a" + varint(2**34)):
        path.write_bytes(data + bytes(50))
        assert memory_of(caffemodel.read, path) < 1 << 20


def test_shapes_that_lie_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for dims in ([2**31, 2**31], [2**62], [-1, -1], [0, 5], [1] * 33):
        blob = length_delimited(7, schema.BlobShape(dim=dims).SerializeToString()) + length_delimited(5, b"\0" * 4)
        path.write_bytes(length_delimited(100, length_delimited(7, blob)))
        assert memory_of(caffemodel.read, path) < 1 << 20


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (b"\xa2\x06\x00" * 30_000, "more than 20000 layers"),
        (length_delimited(100, b"\x3a\x00" * 2_000), "layer '' has more than 1000 blobs"),
        (length_delimited(100, b"\x50\x00" * 150_000), "more than 100000 fields, which no net has"),
        (b"\x0a\x00" * 150_000, "more than 100000 fields"),
    ],
)
def test_a_million_tiny_things(tmp_path: Path, what: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(what)
    with pytest.raises(FileFormatError, match=message):
        caffemodel.read(path)


def test_messages_nested_where_none_belong(tmp_path: Path) -> None:
    nested = b""
    for _ in range(50_000):
        nested = length_delimited(1, nested)[:1] + varint(len(nested)) + nested if len(nested) < 60_000 else nested
    path = tmp_path / "x"
    path.write_bytes(length_delimited(2, nested))
    assert len(caffemodel.read(path)) <= 1  # a V0 layer is looked into once, and no deeper


@pytest.mark.parametrize(
    "text", ["layer {" * 50_000, "{" * 50_000, "x" * 1_000_000, "a: [" * 50_000, "# " + "x" * 1_000_000]
)
@pytest.mark.parametrize("lenient", [False, True])
def test_text_bombs(text: str, lenient: bool) -> None:
    try:
        read = prototxt.read(text + "\n", schema.NetParameter(), lenient=lenient)
    except FileFormatError:
        return
    assert len(read.layer) == 0


@pytest.mark.parametrize(
    "text",
    [
        'layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" inner_product_param { num_output: 4294967295 } }',
        'layer { name: "f" type: "Embed" bottom: "x" top: "f" embed_param { num_output: 65536 input_dim: 65536 } }',
        'layer { name: "f" type: "Tile" bottom: "x" top: "f" tile_param { tiles: 2147483647 } }',
        'layer { name: "f" type: "Convolution" bottom: "x" top: "f" convolution_param { num_output: 1 kernel_size: 1 '
        "pad: 4294967295 } }",
        'layer { name: "f" type: "Deconvolution" bottom: "x" top: "f" convolution_param { num_output: 1 kernel_size: 1 '
        "stride: 4294967295 } }",
        'layer { name: "f" type: "Interp" bottom: "x" top: "f" interp_param { height: 65536 width: 65536 } }',
        'layer { name: "f" type: "Upsample" bottom: "x" top: "f" upsample_param { scale: 65536 } }',
        'layer { name: "f" type: "Parameter" top: "f" parameter_param { shape { dim: 65536 dim: 65536 } } }',
        'layer { name: "f" type: "DummyData" top: "f" dummy_data_param { shape { dim: 65536 dim: 65535 } } }',
        'layer { name: "f" type: "Input" top: "f" input_param { shape { dim: 9223372036854775807 } } }',
    ],
)
def test_sizes_that_no_memory_holds_are_refused_before_they_are_taken(text: str) -> None:
    net = prototxt.read(
        'input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4\n' + text, schema.NetParameter()
    )
    for device in ("meta", "cpu"):
        with pytest.raises(UpscoreError, match="layer 'f'"):
            Graph(net, device=device)


def test_wrong_blob_counts_are_an_error(tmp_path: Path) -> None:
    graph = Graph(prototxt.read(GOLDEN / "tiny_unet.prototxt", schema.NetParameter()))
    for extra in (0, 1, 3):
        net = schema.NetParameter()
        layer = net.layer.add(name="c1", type="Convolution")
        for _ in range(extra):
            layer.blobs.add(shape=schema.BlobShape(dim=[1])).data.append(0)
        (tmp_path / "x").write_bytes(net.SerializeToString())
        with pytest.raises(FileFormatError, match=f"layer 'c1' \\(Convolution\\) has 2 blobs, the file {extra}"):
            graph.load(tmp_path / "x")


def test_hdf5_that_is_not_caffes(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes((GOLDEN / "tiny_unet.caffemodel.h5").read_bytes()[:2000] + bytes(9000))
    with pytest.raises(FileFormatError, match="no HDF5 file of Caffe's, or damaged"):
        hdf5.read(path)
