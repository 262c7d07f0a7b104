"""Weights in HDF5: ``.caffemodel.h5`` (``data/<layer>/<blob>``) and ``.solverstate.h5``.

Layout after BVLC Caffe's Net::ToHDF5 and SGDSolver::SnapshotSolverStateToHDF5.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.caffe.caffemodel import LayerWeights, Snapshot
from upscore.errors import FileFormatError, MissingDependencyError
from upscore.files import replacing

try:
    import h5py  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingDependencyError("h5py", "reading Caffe's HDF5 files", "caffe") from error

__all__ = ["is_hdf5", "read", "read_state", "write", "write_state"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_GROUPS, _DEEPEST = 20_000, 32
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for damaged files


def is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as an HDF5 file does."""
    with Path(path).open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def read(path: str | os.PathLike[str]) -> list[LayerWeights]:
    """The layers of an HDF5 caffemodel.

    Raises:
        FileFormatError: for what is none, or a damaged one.
    """
    with _open(path) as file:
        try:
            data = file.get("data")
            if not isinstance(data, h5py.Group):
                raise FileFormatError(f"{path}: expected a group named data, which holds the layers of a caffemodel")
            found = []
            for name, group in _groups(path, data):
                blobs = sorted(int(key) for key in group if key.isdecimal())
                arrays = [_array(path, group, str(i)) for i in blobs]
                if blobs != list(range(len(blobs))):
                    raise FileFormatError(f"{path}: layer {name!r} has the blobs {blobs}, expected 0, 1, ...")
                found.append(LayerWeights(name, "", arrays))
            return found
        except _BROKEN as error:
            raise _damaged(path, error) from None


def write(path: str | os.PathLike[str], layers: Iterable[LayerWeights]) -> None:
    """Write an HDF5 caffemodel; it appears whole or not at all. Of layers of one name the first is kept."""
    with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        for layer in layers:
            if layer.name in data:
                continue
            group = data.create_group(layer.name)
            for i, blob in enumerate(layer.blobs):
                group.create_dataset(str(i), data=np.asarray(blob, np.float32))


def read_state(path: str | os.PathLike[str]) -> Snapshot:
    """An HDF5 solverstate.

    Raises:
        FileFormatError: for what is none, or a damaged one.
    """
    with _open(path) as file:
        try:
            history = file.get("history")
            if not isinstance(history, h5py.Group) or "iter" not in file:
                raise FileFormatError(f"{path}: expected iter and a group named history, as a solverstate has")
            count = len(history)
            if count > _MOST_GROUPS:
                raise FileFormatError(f"{path}: more than {_MOST_GROUPS} arrays")
            name = file["learned_net"][()] if "learned_net" in file else b""
            return Snapshot(
                _integer(path, file, "iter"),
                name.decode("utf-8", errors="replace") if isinstance(name, bytes) else str(name),
                _integer(path, file, "current_step") if "current_step" in file else 0,
                [_array(path, history, str(i)) for i in range(count)],
            )
        except _BROKEN as error:
            raise _damaged(path, error) from None


def write_state(path: str | os.PathLike[str], state: Snapshot) -> None:
    """Write an HDF5 solverstate."""
    with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        file["iter"], file["current_step"] = np.int32(state.iteration), np.int32(state.current_step)
        file["learned_net"] = np.bytes_(state.learned_net.encode())
        history = file.create_group("history")
        for i, blob in enumerate(state.history):
            history.create_dataset(str(i), data=np.asarray(blob, np.float32))


def _open(path: str | os.PathLike[str]) -> Any:
    Path(path).stat()  # a missing file is a missing file, not a damaged one
    try:
        return h5py.File(path, "r")
    except _BROKEN as error:
        raise _damaged(path, error) from None


def _damaged(path: str | os.PathLike[str], error: Exception) -> FileFormatError:
    if isinstance(error, FileFormatError):
        return error
    return FileFormatError(f"{path}: no HDF5 file of Caffe's, or damaged: {error}")


def _groups(path: str | os.PathLike[str], data: Any) -> Iterator[tuple[str, Any]]:
    """Every layer's group; a name with slashes is a path of groups. Links that lead elsewhere are refused."""
    open_ = [("", data, 0)]
    seen = 0
    while open_:
        prefix, group, depth = open_.pop()
        for key in reversed(list(group)):
            seen += 1
            if seen > _MOST_GROUPS or depth > _DEEPEST:
                raise FileFormatError(f"{path}: more or deeper groups than any net has layers")
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise FileFormatError(f"{path}: expected plain groups, got a link at {prefix}{key}")
            if isinstance(group.get(key), h5py.Group):
                open_.append((f"{prefix}{key}/", group[key], depth + 1))
        if prefix:
            yield prefix[:-1], group


def _array(path: str | os.PathLike[str], group: Any, key: str) -> NDArray[np.float32]:
    """A dataset that holds as many bytes as it claims; what claims more would fill the memory with nothing."""
    data = group[key]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.is_virtual or data.external:
        raise FileFormatError(f"{path}: expected floats in {group.name}/{key}")
    if data.id.get_storage_size() < data.size * data.dtype.itemsize and data.size:
        raise FileFormatError(f"{path}: {group.name}/{key} claims the shape {data.shape}, more than it holds")
    return np.asarray(data[()], np.float32).reshape(data.shape)


def _integer(path: str | os.PathLike[str], file: Any, key: str) -> int:
    data = file[key]
    if not isinstance(data, h5py.Dataset) or data.size != 1 or data.dtype.kind not in "iu":
        raise FileFormatError(f"{path}: expected one whole number in {key}")
    return int(np.asarray(data[()]).reshape(-1)[0])
