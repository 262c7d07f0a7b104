"""The six update rules of Caffe's solvers, one class each, in place on the gradient.

An update rule turns the gradient of a parameter into what is subtracted from the parameter. Source:
Caffe's solver tutorial (https://caffe.berkeleyvision.org/tutorial/solver.html) and the papers named below.
Unlike in PyTorch, the learning rate sits inside the momentum: the history holds past *updates*, so a
change of the rate does not touch the momentum that is already there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from upscore.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SGD", "AdaDelta", "AdaGrad", "Adam", "Nesterov", "RMSProp", "UpdateRule", "clip_gradients", "regularize"]


class UpdateRule(Protocol):
    """What a solver asks of its rule."""

    slots: ClassVar[int]
    """How many tensors of the parameter's shape the rule remembers per parameter."""

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        """Overwrite ``gradient`` with what is to be subtracted from the parameter.

        Args:
            gradient: the parameter's gradient, already clipped, averaged over ``iter_size`` and regularized.
            history: ``slots`` tensors of its shape, zero before the first iteration; changed in place.
            rate: the iteration's learning rate times the parameter's ``lr_mult``.
            iteration: from 0.
        """


@dataclass(frozen=True)
class SGD:
    """``h = momentum * h + rate * g``, subtract ``h``.

    >>> import torch
    >>> gradient, history = torch.ones(1), [torch.full((1,), 10.0)]
    >>> SGD(momentum=0.5)(gradient, history, rate=0.1, iteration=0)
    >>> gradient
    tensor([5.1000])
    """

    slots: ClassVar[int] = 1
    momentum: float = 0.0

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        (h,) = history
        h.mul_(self.momentum).add_(gradient, alpha=rate)
        gradient.copy_(h)


@dataclass(frozen=True)
class Nesterov:
    """``h' = momentum * h + rate * g``, subtract ``(1 + momentum) * h' - momentum * h`` (Nesterov 1983)."""

    slots: ClassVar[int] = 1
    momentum: float = 0.0

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        (h,) = history
        before = h * self.momentum
        h.mul_(self.momentum).add_(gradient, alpha=rate)
        gradient.copy_(h).mul_(1 + self.momentum).sub_(before)


@dataclass(frozen=True)
class AdaGrad:
    """``h += g**2``, subtract ``rate * g / (sqrt(h) + delta)`` (Duchi, Hazan, Singer 2011)."""

    slots: ClassVar[int] = 1
    delta: float = 1e-8

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        (h,) = history
        h.addcmul_(gradient, gradient)
        gradient.mul_(rate).div_(h.sqrt().add_(self.delta))


@dataclass(frozen=True)
class RMSProp:
    """``h = decay * h + (1 - decay) * g**2``, subtract ``rate * g / (sqrt(h) + delta)`` (Tieleman, Hinton 2012)."""

    slots: ClassVar[int] = 1
    decay: float = 0.99
    delta: float = 1e-8

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        (h,) = history
        h.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        gradient.mul_(rate).div_(h.sqrt().add_(self.delta))


@dataclass(frozen=True)
class AdaDelta:
    """``g`` times the ratio of the root mean squares of past updates and of past gradients (Zeiler 2012).

    ``momentum`` is the decay of both means; the first history tensor holds that of the gradients.
    """

    slots: ClassVar[int] = 2
    momentum: float = 0.0
    delta: float = 1e-8

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        gradients, updates = history
        gradients.mul_(self.momentum).addcmul_(gradient, gradient, value=1 - self.momentum)
        gradient.mul_(((updates + self.delta) / (gradients + self.delta)).sqrt_())
        updates.mul_(self.momentum).addcmul_(gradient, gradient, value=1 - self.momentum)
        gradient.mul_(rate)


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba (2014), with the bias correction as a factor on the rate, outside ``delta``.

    ``momentum`` and ``momentum2`` are the paper's beta1 and beta2; the history tensors its m and v.
    """

    slots: ClassVar[int] = 2
    momentum: float = 0.9
    momentum2: float = 0.999
    delta: float = 1e-8

    def __call__(self, gradient: Tensor, history: Sequence[Tensor], rate: float, iteration: int) -> None:
        m, v = history
        m.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
        v.mul_(self.momentum2).addcmul_(gradient, gradient, value=1 - self.momentum2)
        correction = math.sqrt(1 - self.momentum2 ** (iteration + 1)) / (1 - self.momentum ** (iteration + 1))
        gradient.copy_(m).mul_(rate * correction).div_(v.sqrt().add_(self.delta))


def clip_gradients(gradients: Sequence[Tensor], limit: float) -> float:
    """Scale all gradients in place so that their common 2-norm is at most ``limit``; returns the norm before.

    A negative ``limit`` clips nothing (Caffe's ``clip_gradients`` is -1 by default).
    """
    import torch

    norm = math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))
    if 0 <= limit < norm:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return norm


def regularize(gradient: Tensor, parameter: Tensor, decay: float, kind: str) -> None:
    """Add the gradient of the weight decay in place: ``decay * w`` for L2, ``decay * sign(w)`` for L1.

    Raises:
        ArgumentError: for another ``kind``.
    """
    if kind not in ("L1", "L2"):
        raise ArgumentError("regularization_type", '"L1" or "L2"', repr(kind), 'regularization_type: "L2"')
    if decay:
        gradient.add_(parameter if kind == "L2" else parameter.sign(), alpha=decay)
