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
    from upscore import caffe as caffe
    from upscore import dialects as dialects
    from upscore import explain as explain
    from upscore import filters as filters
    from upscore import networks as networks
    from upscore import nn as nn
    from upscore import reference as reference
    from upscore.nn import accelerate as accelerate

_ROOMS = ("caffe", "dialects", "explain", "filters", "networks", "nn", "reference")

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
    """Rooms are imported when they are first used, and what they need with them: ``nn`` brings torch."""
    if name in _ROOMS:
        return importlib.import_module(f"upscore.{name}")
    if name == "accelerate":
        return importlib.import_module("upscore.nn").accelerate
    raise AttributeError(f"module 'upscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, "accelerate"})
