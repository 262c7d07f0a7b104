"""upscore: the transposed convolution and the networks built on it.

``import upscore`` loads NumPy and nothing heavier. ``from upscore import nn`` needs torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from upscore import cpu
from upscore._version import __version__
from upscore.errors import ArgumentError, ArgumentTypeError, FileFormatError, MissingDependencyError, UpscoreError
from upscore.geometry import CoordinateMap, Geometry, Phase, Solution
from upscore.ops import Plan, conv, conv_transpose, conv_transpose_backward, plan
from upscore.pooling import max_pool, max_unpool

if TYPE_CHECKING:
    from upscore import nn as nn
    from upscore.nn import accelerate as accelerate

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CoordinateMap",
    "FileFormatError",
    "Geometry",
    "MissingDependencyError",
    "Phase",
    "Plan",
    "Solution",
    "UpscoreError",
    "__version__",
    "conv",
    "conv_transpose",
    "conv_transpose_backward",
    "cpu",
    "max_pool",
    "max_unpool",
    "plan",
]


def __getattr__(name: str) -> Any:
    """``upscore.nn`` and ``upscore.accelerate`` import torch when they are first used."""
    if name not in ("accelerate", "nn"):
        raise AttributeError(f"module 'upscore' has no attribute {name!r}")
    nn = importlib.import_module("upscore.nn")
    return nn if name == "nn" else nn.accelerate
