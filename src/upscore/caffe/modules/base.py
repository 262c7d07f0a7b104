"""What all layers have in common."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from upscore.caffe import schema
from upscore.caffe.fillers import fill
from upscore.errors import UpscoreError

__all__ = ["Budget", "CaffeModule", "LayerError", "Shape", "machine_memory", "tracing"]

Shape = tuple[int, ...]
_LARGEST = 2**31 - 1  # Caffe counts a blob's elements in an int


def tracing() -> bool:
    """Whether torch is recording the net (export, compile): then values cannot be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


class LayerError(UpscoreError, ValueError):
    """A layer cannot work with its parameters, its bottoms or its weights; the message names the layer."""


class Budget:
    """What a net's blobs may take in all, so that a hostile prototxt cannot fill the memory."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.taken = max_bytes, 0

    def take(self, count: int) -> bool:
        """Whether ``count`` more float32 elements fit; they are taken if so."""
        fits = self.taken + 4 * count <= self.max_bytes
        self.taken += 4 * count if fits else 0
        return fits


def machine_memory() -> int:
    """The bytes of memory that this machine has, or 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 64 << 30


class CaffeModule(nn.Module):
    """One Caffe layer: bottoms in, tops out, always as tuples.

    Its life is Caffe's: the constructor reads the parameters, ``setup`` makes the blobs from the shapes of the
    bottoms, ``reshape`` says the shapes of the tops (and raises where Caffe would abort), ``forward`` computes.
    ``blobs`` are the layer's parameters in Caffe's order and shapes.

    Args:
        param: the ``LayerParameter``.
        phase: ``schema.TRAIN`` or ``schema.TEST``.
        budget: what blobs may take.
    """

    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    """How many bottoms there may be: least and most (None: any number)."""
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    is_loss: ClassVar[bool] = False
    """Whether the first top has a loss weight of 1 unless told otherwise."""
    learned: ClassVar[bool] = True
    """Whether the blobs are learned by a solver; statistics are not."""

    def __init__(self, param: Any, phase: int = schema.TEST, budget: Budget | None = None) -> None:
        super().__init__()
        self.param, self.phase = param, phase
        self.blobs = nn.ParameterList()
        self._budget = budget
        for what, given, (least, most) in (
            ("bottoms", len(param.bottom), self.bottoms),
            ("tops", len(param.top), self.tops),
        ):
            if given < least or (most is not None and given > most):
                wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
                raise self.error(f"expected {wanted} {what}, got {given}")

    def error(self, text: str) -> LayerError:
        """The error to raise: ``text`` with the layer's name and type before it."""
        return LayerError(f"layer {self.param.name!r} ({self.param.type}): {text}")

    def setup(self, *shapes: Shape) -> None:
        """Make the blobs; nothing by default."""

    def reshape(self, *shapes: Shape) -> tuple[Shape, ...]:
        """The shapes of the tops; that of the first bottom by default."""
        return (shapes[0],)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def add_blob(self, shape: Shape, filler: Any | None = None, default: float = 0.0) -> None:
        """Add a parameter of this shape, filled by ``filler``, or with ``default`` where that is not set."""
        count = math.prod(shape)
        where = f"blob {len(self.blobs)} of shape {shape}"
        if any(n < 1 for n in shape) or count > _LARGEST:
            raise self.error(f"{where} must have between 1 and {_LARGEST} elements; check the layer's num_output")
        meta = torch.empty(0).device.type == "meta"
        if not meta and self._budget is not None and not self._budget.take(count):
            raise self.error(
                f"{where} makes the net's blobs exceed {self._budget.max_bytes / 2**30:.3g} GiB; "
                "if the net is meant to be that large, pass max_bytes="
            )
        # NumPy's zeros are pages that take no memory until they are written; torch writes them.
        blob = torch.empty(shape) if meta else torch.from_numpy(np.zeros(shape, np.float32))
        if filler is None:
            filler = schema.FillerParameter(value=default)
        self.blobs.append(nn.Parameter(fill(blob, filler), requires_grad=self.learned))

    def axis(self, given: int, rank: int, *, end: bool = False) -> int:
        """A possibly negative axis counted from the front; ``end`` also allows the place after the last."""
        most = rank if end else rank - 1
        if not -rank <= given <= most:
            raise self.error(f"axis: expected {-rank} to {most} for a bottom of {rank} axes, got {given}")
        return given + rank if given < 0 else given
