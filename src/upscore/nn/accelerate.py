"""``accelerate(model)``: any torch model, its transposed convolutions computed by upscore."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from upscore.errors import ArgumentTypeError
from upscore.nn import fusion, modules

__all__ = ["accelerate"]

Model = TypeVar("Model", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: modules.ConvTranspose1d,
    nn.ConvTranspose2d: modules.ConvTranspose2d,
    nn.ConvTranspose3d: modules.ConvTranspose3d,
}


def accelerate(model: Model, *, fuse: bool = True) -> Model:
    """Let upscore compute every ``torch.nn.ConvTranspose1d/2d/3d`` in ``model``; changes it in place and returns it.

    With ``fuse``, a nearest-neighbour upsampling by a whole factor and the convolution after it run as one transposed
    convolution when no gradients are recorded (:mod:`upscore.nn.fusion`); modules and parameters stay what they are.

    The layers change their class and nothing else. Parameters, buffers, ``state_dict`` keys, hooks, sharing,
    training mode, weight and spectral norm, optimizers that hold the parameters: all stay. Outputs agree to 1e-5.

    Subclasses of torch's layers are taken along (their overridden methods too); those that torch itself defines, lazy
    layers that have not seen an input, and layers whose ``forward`` was replaced stay torch's. Nothing is lost where
    the engine cannot help: on other devices the layers run torch's kernels.

    Args:
        model: any module; a single layer too.
        fuse: also fuse upsamplings and convolutions.

    Raises:
        ArgumentTypeError: when ``model`` is not a torch.nn.Module.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), torch.nn.ReLU())
    >>> type(accelerate(model)[0]).__module__
    'upscore.nn.modules'
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", type(model).__name__, "accelerate(model)")
    for module in model.modules():
        _swap(module)
    if fuse:
        fusion.fuse(model)
    return model


def _swap(module: nn.Module) -> None:
    """Give a transposed convolution of torch's the class of ours."""
    cls = type(module)
    # A parametrized module has a class of its own, made by torch, with a property per parametrized tensor.
    plain: Any = cls.__bases__[0] if parametrize.is_parametrized(module) else cls
    ours = _replacement(plain)
    if ours is None or "forward" in vars(module):
        return
    if cls is plain:
        module.__class__ = ours
    else:
        own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, (ours,), own)


@functools.cache
def _replacement(cls: Any) -> type[nn.Module] | None:
    """The class that takes the place of ``cls``, if it is one of torch's layers or a user's subclass of one."""
    if cls in _OURS:
        return _OURS[cls]
    for theirs, ours in _OURS.items():
        if issubclass(cls, theirs) and not issubclass(cls, ours) and not cls.__module__.startswith("torch."):
            # In the order of resolution ours comes after the user's class and before torch's.
            own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__reduce_ex__": _reduce}
            return type(cls.__name__, (cls, ours), own)
    return None


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickled by the name of the user's class, because the class made here has none to be found by."""
    return _new, (type(self).__bases__[0],), self.__getstate__() if hasattr(self, "__getstate__") else vars(self)


def _new(cls: Any) -> Any:
    replacement: Any = _replacement(cls)
    return replacement.__new__(replacement)
