"""Weights in HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="the files are HDF5")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import hdf5  # noqa: E402
from upscore.caffe.caffemodel import LayerWeights, Snapshot  # noqa: E402
from upscore.errors import FileFormatError  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"


def test_a_model_that_caffe_wrote() -> None:
    arrays = np.load(GOLDEN / "tiny_unet.npz")
    found = {layer.name: layer.blobs for layer in hdf5.read(GOLDEN / "tiny_unet.caffemodel.h5")}
    assert found["relu" if "relu" in found else "r2"] == []
    for key in arrays.files:
        if key.startswith("param/"):
            _, name, i = key.split("/")
            np.testing.assert_array_equal(found[name][int(i)], arrays[key])


def test_there_and_back_with_slashes_in_names(tmp_path: Path) -> None:
    blobs = [np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.asarray(1.5, np.float32)]
    path = tmp_path / "n.caffemodel.h5"
    hdf5.write(path, [LayerWeights("inception_3a/1x1", "", blobs), LayerWeights("x")])
    found = {layer.name: layer.blobs for layer in hdf5.read(path)}
    for one, other in zip(found["inception_3a/1x1"], blobs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found["x"], hdf5.is_hdf5(path)) == ([], True)


def test_solver_states(tmp_path: Path) -> None:
    state = Snapshot(12, "net.h5", 2, [np.ones((3, 1), np.float32), np.zeros(2, np.float32)])
    hdf5.write_state(tmp_path / "s.h5", state)
    found = hdf5.read_state(tmp_path / "s.h5")
    assert (found.iteration, found.learned_net, found.current_step) == (12, "net.h5", 2)
    assert [h.shape for h in found.history] == [(3, 1), (2,)]


def test_what_is_missing_or_lies(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(FileNotFoundError):
        hdf5.read(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(FileFormatError, match="no HDF5 file of Caffe's, or damaged"):
        hdf5.read(path)
    with h5py.File(path, "w") as file:
        file["a"] = 1
    with pytest.raises(FileFormatError, match="expected a group named data"):
        hdf5.read(path)
    with pytest.raises(FileFormatError, match="expected iter and a group named history"):
        hdf5.read_state(path)


def test_a_dataset_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data/c/0", (2**20, 2**10), "f4", chunks=(1024, 1024))  # four gigabytes of nothing
    with pytest.raises(FileFormatError, match=r"/data/c/0 claims the shape \(1048576, 1024\), more than it holds"):
        hdf5.read(path)


def test_links_that_lead_elsewhere_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("data")["loop"] = h5py.SoftLink("/data")
    with pytest.raises(FileFormatError, match="expected plain groups, got a link at loop"):
        hdf5.read(path)
    with h5py.File(path, "w") as file:
        file["data/c/1"] = np.zeros(3, np.float32)
    with pytest.raises(FileFormatError, match=r"layer 'c' has the blobs \[1\], expected 0, 1"):
        hdf5.read(path)
    with h5py.File(path, "w") as file:
        file["data/c/0"] = np.zeros(3, np.int32)
    with pytest.raises(FileFormatError, match="expected floats in /data/c/0"):
        hdf5.read(path)
