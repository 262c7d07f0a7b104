"""Layers written in Python: ``type: "Python"`` with ``python_param { module: ... layer: ... param_str: ... }``.

The class is found by importing the module, and is used as pycaffe uses it: ``setup`` once, ``reshape`` before each
``forward``, with bottoms and tops as blobs. Importing a module runs its code: load such nets from people you trust.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from upscore.caffe.blob import Blob, ParameterBlob
from upscore.caffe.modules.base import CaffeModule, Shape

__all__ = ["BlobVector", "Layer", "PythonModule"]


class BlobVector(list[ParameterBlob]):
    """The parameters of a Python layer: a list that can also make a new blob."""

    def __init__(self, parameters: nn.ParameterList) -> None:
        super().__init__(ParameterBlob(p) for p in parameters)
        self._parameters = parameters

    def add_blob(self, *shape: int) -> None:
        """Add a parameter of this shape, zero."""
        self._parameters.append(nn.Parameter(torch.zeros(shape)))
        self.append(ParameterBlob(self._parameters[-1]))


class Layer:
    """What layers written in Python inherit from.

    Attributes:
        param_str: the text of ``param_str``, free for the layer's own settings.
        phase: ``caffe.TRAIN`` or ``caffe.TEST``.
        blobs: the layer's parameters; ``self.blobs.add_blob(3, 4)`` makes one.
    """

    param_str: str
    phase: int
    blobs: BlobVector

    def __init__(self, param: Any = None, *args: Any, **kwargs: Any) -> None:
        """Called with the ``LayerParameter``; programs seldom need one of their own."""

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Read the settings and check the bottoms; called once."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give every top its shape; called before each forward."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute ``top[i].data`` from ``bottom[i].data``."""
        raise NotImplementedError

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Compute ``bottom[i].diff`` from ``top[i].diff`` where ``propagate_down[i]``."""
        raise NotImplementedError

    @property
    def param_str_(self) -> str:
        """The older name of ``param_str``."""
        return self.param_str


class PythonModule(CaffeModule):
    """A layer of ``type: "Python"``: runs the program's class between torch's layers, with gradients."""

    bottoms: ClassVar = (0, None)
    tops: ClassVar = (0, None)
    layer: Any

    def setup(self, *shapes: Shape) -> None:
        self.layer = self._make()
        self.bottom = [Blob(shape) for shape in shapes]
        self.top = [Blob() for _ in self.param.top]
        self.layer.setup(self.bottom, self.top)

    def _make(self) -> Any:
        p = self.param.python_param
        try:
            kind = getattr(importlib.import_module(p.module), p.layer)
        except ImportError as error:
            raise self.error(
                f"expected a module {p.module!r} that can be imported, got {error}; put its folder on PYTHONPATH"
            ) from error
        except AttributeError:
            raise self.error(f"expected a class {p.layer!r} in the module {p.module!r}, which has none") from None
        if not (isinstance(kind, type) and issubclass(kind, Layer)):
            raise self.error(f"expected {p.layer!r} to inherit from caffe.Layer, got {kind!r}")
        layer = kind.__new__(kind)
        layer.param_str, layer.phase, layer.blobs = p.param_str, self.phase, BlobVector(self.blobs)
        kind.__init__(layer, self.param)  # after the attributes, which some programs read in theirs
        return layer

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        for blob, shape in zip(self.bottom, shapes, strict=True):
            blob.reshape(*shape)
        self.layer.reshape(self.bottom, self.top)
        return tuple(blob.shape for blob in self.top)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        tops: tuple[Tensor, ...] = _Run.apply(self, len(bottoms), *bottoms, *self.blobs)  # type: ignore[no-untyped-call]
        return tops

    def run(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's ``reshape`` and ``forward`` on these values."""
        for blob, value in zip(self.bottom, bottoms, strict=True):
            blob.take(value)
        self.layer.reshape(self.bottom, self.top)
        self.layer.forward(self.bottom, self.top)
        return tuple(blob.tensor.clone() for blob in self.top)

    def run_backward(self, gradients: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of the bottoms and of the blobs, by the layer's ``backward``."""
        for blob, gradient in zip(self.top, gradients, strict=True):
            blob.take_gradient(torch.zeros(blob.shape) if gradient is None else gradient)
        before = [parameter.grad for parameter in self.blobs]
        for parameter in self.blobs:
            parameter.grad = None
        self.layer.backward(self.top, list(wanted[: len(self.bottom)]), self.bottom)
        own = [parameter.grad for parameter in self.blobs]
        for parameter, gradient in zip(self.blobs, before, strict=True):
            parameter.grad = gradient
        return [b.gradient.clone() if want else None for b, want in zip(self.bottom, wanted, strict=False)] + own


class _Run(torch.autograd.Function):
    """Lets torch's gradients pass through a Python layer."""

    @staticmethod
    def forward(ctx: Any, module: PythonModule, count: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.module = module
        return module.run(values[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.module.run_backward(gradients, ctx.needs_input_grad[2:]))
