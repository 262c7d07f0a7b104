"""What a solver needs to go on: solverstate files, binary and HDF5.

Source: ``SolverState`` in caffe.proto, and SnapshotSolverStateToHDF5 in caffe/src/caffe/solvers/sgd_solver.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upscore.caffe import schema
from upscore.caffe.io import blobproto_to_array
from upscore.errors import FileFormatError
from upscore.files import replacing

__all__ = ["State", "read", "write"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class State:
    """A solver's state.

    Attributes:
        iteration: iterations done.
        learned_net: the path of the weights that belong to it.
        current_step: how many steps the policy ``multistep`` has taken.
        history: what the update rule remembers: one array for each parameter, for some rules twice.
    """

    iteration: int
    learned_net: str
    current_step: int
    history: Sequence[NDArray[np.float32]]


def write(path: str | os.PathLike[str], state: State) -> None:
    """Write a solverstate; HDF5 where the name ends in ``.h5``."""
    with replacing(Path(path)) as temporary:
        (_write_hdf5 if str(path).endswith(".h5") else _write_binary)(temporary, state)


def read(path: str | os.PathLike[str]) -> State:
    """Read a solverstate, binary or HDF5.

    Raises:
        FileFormatError: when the file is neither, or is broken.
    """
    with open(path, "rb") as file:
        hdf5 = file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC
    return _read_hdf5(Path(path)) if hdf5 else _read_binary(Path(path))


def _write_binary(path: Path, state: State) -> None:
    message = schema.SolverState(iter=state.iteration, learned_net=state.learned_net, current_step=state.current_step)
    for array in state.history:
        message.history.add(shape=schema.BlobShape(dim=array.shape), data=array.ravel())
    path.write_bytes(message.SerializeToString())


def _read_binary(path: Path) -> State:
    from google.protobuf.message import DecodeError

    try:
        message = schema.SolverState.FromString(path.read_bytes())
    except DecodeError as error:
        raise FileFormatError(f"{path} is no solverstate: {error}") from None
    history = [blobproto_to_array(blob).astype(np.float32) for blob in message.history]
    return State(message.iter, message.learned_net, message.current_step, history)


def _write_hdf5(path: Path, state: State) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["iter"] = np.int32(state.iteration)
        file["learned_net"] = state.learned_net
        file["current_step"] = np.int32(state.current_step)
        history = file.create_group("history")
        for index, array in enumerate(state.history):
            history[str(index)] = array


def _read_hdf5(path: Path) -> State:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            stored = file["history"]
            history = [np.array(stored[str(i)], dtype=np.float32) for i in range(len(stored))]
            learned = file["learned_net"][()]
            name = learned.decode() if isinstance(learned, bytes) else str(learned)
            return State(int(np.ravel(file["iter"])[0]), name, int(np.ravel(file["current_step"])[0]), history)
    except (KeyError, TypeError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is no solverstate in HDF5: {error}") from None
