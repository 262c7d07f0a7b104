"""Blobs as pycaffe programs know them: ``data`` and ``diff`` are NumPy views of what the layers compute with."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upscore.errors import ArgumentError

__all__ = ["Blob", "ParameterBlob"]

Array = NDArray[np.float32]


def _zeros(shape: tuple[int, ...]) -> Tensor:
    """Zeros that take no memory before they are written: a net whose blobs are declared huge costs nothing to load."""
    return torch.from_numpy(np.zeros(shape, np.float32))


class _Memory:
    """One buffer of a blob, and the NumPy view of it that somebody may still hold."""

    def __init__(self, tensor: Tensor) -> None:
        self._flat = tensor.detach().contiguous().view(-1)
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self._view: weakref.ref[Array] | None = None

    @property
    def tensor(self) -> Tensor:
        return self._flat[: math.prod(self.shape)].view(self.shape)

    def array(self) -> Array:
        """A view of the buffer, the same one as long as somebody holds it."""
        view = None if self._view is None else self._view()
        if view is None or view.shape != self.shape:
            view = self.tensor.numpy()
            self._view = weakref.ref(view)
        return view

    @property
    def held(self) -> bool:
        """Whether somebody holds a view (or a slice of one), which must go on showing the blob."""
        return self._view is not None and self._view() is not None

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Another shape, in the same memory where that is large enough, as Caffe does it."""
        if math.prod(shape) > self._flat.numel():
            self._flat, self._view = _zeros((math.prod(shape),)), None
        self.shape = shape

    def take(self, value: Tensor, *, own: bool) -> None:
        """Hold ``value``: itself if it is nobody else's (``own``) and no view of the buffer is held, else a copy."""
        value = value.detach()
        if own and not self.held and value.dtype == torch.float32:
            self._flat, self.shape, self._view = value.contiguous().view(-1), tuple(value.shape), None
            return
        if value.data_ptr() == self._flat.data_ptr() and tuple(value.shape) == self.shape and value.is_contiguous():
            return  # a layer that worked in place has written here already
        if tuple(value.shape) != self.shape:
            self.reshape(tuple(value.shape))
        if value.data_ptr() == self._flat.data_ptr() and value.is_contiguous():
            return  # computed in place
        # NumPy's copy, because torch's would count as an in-place change of what autograd has saved.
        np.copyto(self.tensor.numpy(), value.to(torch.float32).numpy())


class Blob:
    """An N-dimensional float32 array and its gradient.

    ``data`` and ``diff`` are writable and stay valid: they go on showing the blob through forward and backward
    passes until it is reshaped.

    >>> blob = Blob((1, 2))
    >>> blob.data[...] = 3
    >>> blob.data.tolist(), blob.diff.tolist()
    ([[3.0, 3.0]], [[0.0, 0.0]])
    """

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._data = _Memory(_zeros(tuple(shape)))
        self._diff: _Memory | None = None

    @property
    def data(self) -> Array:
        """The values, as a writable view."""
        return self._data.array()

    @property
    def diff(self) -> Array:
        """The gradient, as a writable view; zeros before the first backward pass."""
        return self._gradient().array()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    num = property(lambda self: self._legacy(0), doc="The size of axis 0, or 1 where there is none.")
    channels = property(lambda self: self._legacy(1), doc="The size of axis 1, or 1 where there is none.")
    height = property(lambda self: self._legacy(2), doc="The size of axis 2, or 1 where there is none.")
    width = property(lambda self: self._legacy(3), doc="The size of axis 3, or 1 where there is none.")

    def _legacy(self, axis: int) -> int:
        if len(self.shape) > 4:
            names = "num, channels, height and width"
            raise ArgumentError(names, "a blob of at most 4 axes", f"shape {self.shape}", f"blob.shape[{axis}]")
        return self.shape[axis] if axis < len(self.shape) else 1

    def reshape(self, *shape: int) -> None:
        """Change the shape. The values are kept as far as they still fit, in the same order.

        Raises:
            ArgumentError: for a negative size.
        """
        sizes = tuple(int(n) for n in (shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape))
        if any(n < 0 for n in sizes):
            raise ArgumentError("shape", "sizes of at least 0", sizes, "blob.reshape(1, 3, 500, 500)")
        self._data.reshape(sizes)
        if self._diff is not None:
            self._diff.reshape(sizes)

    def _gradient(self) -> _Memory:
        if self._diff is None:
            self._diff = _Memory(_zeros(self.shape))
        elif self._diff.shape != self.shape:
            self._diff.reshape(self.shape)
        return self._diff

    # What the net uses: the same memory as torch tensors.

    @property
    def tensor(self) -> Tensor:
        """The values as a tensor on the same memory."""
        return self._data.tensor

    @property
    def gradient(self) -> Tensor:
        """The gradient as a tensor on the same memory."""
        return self._gradient().tensor

    @property
    def held(self) -> bool:
        """Whether a program still holds a view of the values."""
        return self._data.held

    def take(self, value: Tensor, *, own: bool = False) -> None:
        """Hold these values, and their shape; ``own`` says that no other tensor shares their memory."""
        self._data.take(value, own=own)

    def take_gradient(self, value: Tensor, *, own: bool = False) -> None:
        """Hold this gradient."""
        self._gradient().take(value, own=own)

    def __repr__(self) -> str:
        return f"<blob {' x '.join(map(str, self.shape)) or 'scalar'}>"


class ParameterBlob(Blob):
    """The blob of a layer's parameter: its memory is that of the ``torch.nn.Parameter``, its diff that of ``grad``."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self.parameter = parameter

    @property
    def data(self) -> Array:
        return self.parameter.detach().numpy()

    @property
    def diff(self) -> Array:
        return self.gradient.numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def tensor(self) -> Tensor:
        return self.parameter.detach()

    @property
    def gradient(self) -> Tensor:
        if self.parameter.grad is None or self.parameter.grad.shape != self.parameter.shape:
            self.parameter.grad = torch.zeros_like(self.parameter)
        return self.parameter.grad

    @property
    def held(self) -> bool:
        return True

    def reshape(self, *shape: int) -> None:
        memory = _Memory(self.parameter)
        memory.reshape(tuple(int(n) for n in shape))
        self.parameter.grad = None
        self.parameter.data = memory.tensor

    def take(self, value: Tensor, *, own: bool = False) -> None:
        np.copyto(self.data, value.detach().numpy())

    def take_gradient(self, value: Tensor, *, own: bool = False) -> None:
        np.copyto(self.diff, value.detach().numpy())

    def share(self, other: Blob) -> None:
        """Use the memory of another parameter's values from now on (not that of its gradient).

        Raises:
            ArgumentError: when the shapes differ.
        """
        if self.shape != other.shape:
            raise ArgumentError("other", f"a blob of shape {self.shape}", other.shape, "a net of the same layers")
        self.parameter.data = other.tensor
