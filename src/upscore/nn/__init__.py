"""torch modules and operators of the transposed convolution. Needs torch.

>>> import torch
>>> from upscore import nn
>>> nn.ConvTranspose2d(21, 21, kernel_size=64, stride=32)(torch.ones(1, 21, 16, 16)).shape
torch.Size([1, 21, 544, 544])
"""

from upscore.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingDependencyError("torch", "upscore.nn", "torch") from error

from upscore.nn import functional, init
from upscore.nn.accelerate import accelerate
from upscore.nn.errors import ShapeError
from upscore.nn.modules import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from upscore.nn.packing import forget
from upscore.nn.pooling import MaxUnpool1d, MaxUnpool2d, MaxUnpool3d

__all__ = [
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "ShapeError",
    "accelerate",
    "forget",
    "functional",
    "init",
]
