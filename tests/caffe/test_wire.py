"""The walk over protobuf's bytes: whatever protobuf writes, it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from hypothesis import given
from hypothesis import strategies as st

from upscore.caffe import caffemodel, schema
from upscore.caffe.wire import Reader, open_reader, varint
from upscore.errors import FileFormatError

SHAPES = st.lists(st.integers(0, 4), max_size=5)
BLOBS = st.tuples(SHAPES, st.booleans(), st.integers(0, 2**32 - 1))
LAYERS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.lists(BLOBS, max_size=3)), max_size=4)


@given(LAYERS)
def test_what_protobuf_writes_is_found(tmp_path_factory: pytest.TempPathFactory, layers: list) -> None:
    net = schema.NetParameter(name="n")
    expected = []
    for name, kind, blobs in layers:
        layer = net.layer.add(name=name, type=kind)
        layer.convolution_param.kernel_size.append(3)
        arrays = []
        for shape, double, seed in blobs:
            array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
            blob = layer.blobs.add(shape=schema.BlobShape(dim=shape))
            (blob.double_data if double else blob.data).extend(array.ravel().tolist())
            arrays.append(array)
        expected.append((name, kind, arrays))
    path = tmp_path_factory.mktemp("wire") / "n.caffemodel"
    path.write_bytes(net.SerializeToString())
    found = caffemodel.read(path)
    assert [(layer.name, layer.type) for layer in found] == [(name, kind) for name, kind, _ in expected]
    for layer, (_, _, arrays) in zip(found, expected, strict=True):
        for one, other in zip(layer.blobs, arrays, strict=True):
            np.testing.assert_array_equal(one, other)


@given(st.integers(0, 2**63 - 1))
def test_varints(value: int) -> None:
    (found,) = Reader(b"\x08" + varint(value), "x").fields(0, 1 + len(varint(value)))
    assert (found.number, found.wire, found.value) == (1, 0, value)
    assert schema.BlobShape.FromString(b"\x08" + varint(value)).dim == [value]


def test_a_file_is_mapped_and_an_empty_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x0a\x01n")
    reader = open_reader(path)
    assert [reader.text(found) for found in reader.fields(0, 3)] == ["n"]
    path.with_suffix(".empty").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"x.empty: the file is empty"):
        open_reader(path.with_suffix(".empty"))
