"""upscore: the transposed convolution and the networks built on it.

``import upscore`` loads NumPy and nothing heavier. ``from upscore import nn`` needs torch.
"""

from upscore._version import __version__
from upscore.errors import ArgumentError, ArgumentTypeError, FileFormatError, MissingDependencyError, UpscoreError
from upscore.geometry import CoordinateMap, Geometry, Phase, Solution

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CoordinateMap",
    "FileFormatError",
    "Geometry",
    "MissingDependencyError",
    "Phase",
    "Solution",
    "UpscoreError",
    "__version__",
]
