"""What pycaffe keeps per process: the phase constants, the mode, the device and the random seed."""

from __future__ import annotations

import warnings

from upscore.errors import ArgumentError

__all__ = ["TEST", "TRAIN", "set_device", "set_mode_cpu", "set_mode_gpu", "set_random_seed"]

TRAIN = 0
TEST = 1


def set_mode_cpu() -> None:
    """Run on the CPU: what upscore's pycaffe interface always does."""


def set_mode_gpu() -> None:
    """Accepted so that programs run unchanged: warns, and the nets run on the CPU all the same.

    Blobs are NumPy views of the memory that the layers use, which only exists on the CPU.
    """
    warnings.warn(
        "set_mode_gpu: pycaffe nets of upscore run on the CPU, where their blobs are NumPy views; "
        "convert the model (upscore caffe convert) to run it on a GPU with torch",
        RuntimeWarning,
        stacklevel=2,
    )


def set_device(device: int) -> None:
    """Choose a GPU by number; without effect, because the nets run on the CPU (see :func:`set_mode_gpu`)."""
    if device < 0:
        raise ArgumentError("device", "the number of a GPU, at least 0", device, "device=0")


def set_random_seed(seed: int) -> None:
    """Seed what fillers, Dropout and stochastic pooling draw from (torch's generator).

    The numbers repeat from run to run, but they are not the numbers of Caffe's generator.
    """
    import torch

    torch.manual_seed(seed)
